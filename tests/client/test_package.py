"""What `import kvorum` gives, and what it does not do."""

import subprocess
import sys

import pytest

import kvorum


def test_every_public_name_is_there() -> None:
    for name in kvorum.__all__:
        assert getattr(kvorum, name) is not None


def test_the_public_names_are_sorted() -> None:
    """Constants, classes, the rest: the order that ruff's RUF022 keeps, too."""

    def rank(name: str) -> tuple[bool, bool, str]:
        return not name.isupper(), not name[0].isupper(), name

    assert kvorum.__all__ == sorted(kvorum.__all__, key=rank)


def test_every_error_class_is_public() -> None:
    classes = {
        name
        for name, value in vars(kvorum.errors).items()
        if isinstance(value, type) and issubclass(value, kvorum.KvorumError)
    }
    assert classes - set(kvorum.__all__) == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        getattr(kvorum, "non" + "sense")


def test_the_version_is_that_of_the_distribution() -> None:
    assert kvorum.__version__[0].isdigit()


def test_dir_lists_what_is_imported_lazily() -> None:
    assert set(kvorum.__all__) <= set(dir(kvorum))


@pytest.mark.parametrize("module", ["grpc", "google.protobuf", "typer", "rich", "kvorum_node"])
def test_importing_kvorum_does_not_import(module: str) -> None:
    code = f"import kvorum, sys; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", ["pydantic", "msgspec", "msgpack"])
def test_a_store_is_used_without_libraries_that_only_some_values_need(module: str) -> None:
    code = (
        "import kvorum.sync, kvorum.patterns, sys; from kvorum.codecs import JSON, encode_value; "
        f"encode_value([1], JSON, 'k'); sys.exit({module!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_translating_errors_does_without_grpc() -> None:
    code = "import kvorum.status, sys; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
