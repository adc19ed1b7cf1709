"""Every golden script prints what stands in it (golden.py), carried out by commands.py."""

from pathlib import Path

import pytest

from tests.scripts.commands import new_script
from tests.scripts.golden import ScriptError, difference, told

HERE = Path(__file__).parent
SCRIPTS = sorted(HERE.glob("*/*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_script_prints_what_stands_in_it(path: Path, rewrite: bool) -> None:
    script = path.read_text(encoding="utf-8")
    text = told(script, new_script())
    assert text == told(script, new_script()), "the same commands have printed something else"
    if rewrite:
        path.write_text(text, encoding="utf-8")
    else:
        assert text == script, difference(path, script, text)


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 60


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("group 3\n---\nnothing\n", "line 1: a script opens with a comment"),
        ("# Intent.\ngroup 3\n", "line 2: the script ends without `---`"),
        ("# Intent.\ngroup 3\n\ntick n1\n---\nnothing\n", "line 3: `---` is missing after"),
        ("# Intent.\n---\nnothing\n", "line 2: output without a command"),
        ("# Intent.\ngroup 3\n---\nnothing\n\n# And then?\n", "line 6: the script ends without"),
        ("# Intent.\ngroup 3\nvanish n1\n---\nnothing\n", "line 3: vanish n1: unknown command"),
        ("# Intent.\ngroup 3\ntick n1 2 3\n---\nnothing\n", "line 3: tick n1 2 3: what is '3'?"),
        ("# Intent.\ngroup 3 x=1\n---\nnothing\n", "line 2: group 3 x=1: what is 'x=1'?"),
        ("# Intent.\ngroup 3\ntick n9\n---\nnothing\n", "line 3: tick n9: there is no n9"),
        ("# Intent.\ngroup 3\ntick me\n---\nnothing\n", "line 3: tick me: 'me' is no node"),
        ("# Intent.\ngroup 3\ntick\n---\nnothing\n", "line 3: tick: an argument is missing"),
        ("# Intent.\ntick n1\n---\nnothing\n", "line 2: tick n1: there is no n1"),
    ],
)
def test_a_script_with_a_mistake_is_refused(script: str, complaint: str) -> None:
    with pytest.raises(ScriptError) as caught:
        told(script, new_script())
    assert complaint in str(caught.value)


def test_a_line_that_did_not_come_out_is_a_difference() -> None:
    script = "# Intent.\ngroup 1\nrun\n---\nn1: leader, term 1\n"
    text = told(script, new_script())
    assert text == "# Intent.\ngroup 1\nrun\n---\nnothing\n"
    assert "-n1: leader, term 1\n+nothing" in difference(Path("a.txt"), script, text)
