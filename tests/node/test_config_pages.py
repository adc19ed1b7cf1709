"""The sample file and the page about settings have all of them, with the defaults that hold."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from kvorum_node.config import NodeConfig
from kvorum_node.termination import DRAIN_SECONDS, GRACE_SECONDS, HANDOVER_SECONDS
from tests.support.command_line import kvorum

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "deploy/kvorum.toml"
PAGE = ROOT / "docs/operations/configuration.md"

DEFAULTS = {
    name: field.get_default(call_default_factory=True)
    for name, field in NodeConfig.model_fields.items()
}
REQUIRED = {name for name, default in DEFAULTS.items() if default is PydanticUndefined}


def test_the_sample_as_it_stands_sets_what_is_required_and_nothing_else() -> None:
    assert set(tomllib.loads(SAMPLE.read_text())) == REQUIRED == {"data_dir", "listen"}
    assert kvorum("node", "--config", str(SAMPLE), "--check-config").status == 0


def test_the_sample_without_its_comments_is_the_defaults() -> None:
    text = re.sub(r"^#(?=\w+ = |\[)", "", SAMPLE.read_text(), flags=re.M)
    settings = tomllib.loads(text)
    assert set(settings) == set(DEFAULTS)
    for name, default in DEFAULTS.items():
        if name not in {*REQUIRED, "cluster"}:  # of the members there are examples
            shown = settings[name]
            assert (tuple(shown) if isinstance(shown, list) else shown) == default, name
    assert NodeConfig.model_validate(settings | {"name": "n1"}).address == "h1:7100"


def test_every_setting_in_the_sample_has_its_consequence_before_it() -> None:
    lines = SAMPLE.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#?\w+ = |#\[", line) and not line.startswith("#n"):
            assert lines[number - 1].startswith("# "), line


def test_the_page_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\|", PAGE.read_text(), re.M))
    assert set(rows) == set(DEFAULTS)
    for name, default in DEFAULTS.items():
        shown = rows[name].strip("`")
        match default:
            case bool():
                assert shown == ("on" if default else "off")
            case int() | float():
                assert float(shown) == default, name
            case str() if name not in ("admin_listen", "advertise"):
                assert shown == default
            case _:
                assert shown in ("", "required", "none", "listen"), name


@pytest.mark.parametrize("seconds", [DRAIN_SECONDS, GRACE_SECONDS, HANDOVER_SECONDS])
def test_the_page_says_how_long_an_end_may_take(seconds: float) -> None:
    [end] = re.findall(r"^## The end\n(.*)", PAGE.read_text(), re.M | re.S)
    assert f"{seconds:.0f} s" in end


def test_the_bound_of_an_end_is_more_than_its_parts_and_far_below_that_of_kubernetes() -> None:
    assert HANDOVER_SECONDS + GRACE_SECONDS < DRAIN_SECONDS <= 25
