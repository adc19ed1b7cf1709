"""What a node tells Prometheus, read as Prometheus reads it."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
}


def exposed_names(text: str) -> set[str]:
    """The names by which a query finds what the text has, or will have once it happens."""
    return {
        family.name + suffix
        for family in text_string_to_metric_families(text)
        for suffix in _SUFFIXES.get(family.type, ("",))
    }


class Reading:
    """The samples of one text."""

    def __init__(self, text: bytes) -> None:
        self.text = text.decode()
        self._samples = [
            sample
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        ]

    def __getitem__(self, name: str) -> float:
        """Of a sample without labels, or the sum of all that have the name."""
        values = [one.value for one in self._samples if one.name == name]
        assert values, f"there is no sample of {name}"
        return sum(values)

    def of(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels, whatever others they have."""
        return sum(
            one.value
            for one in self._samples
            if one.name == name and labels.items() <= one.labels.items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        """The values of the label."""
        return {one.labels[label] for one in self._samples if one.name == name}
