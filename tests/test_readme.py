"""The README keeps its word: its program runs and prints what it says, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_first_program_prints_what_its_comments_say(tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert ran.stderr == ""
    said = re.findall(r"print\(.*?\)  # (.*)$", program, re.M)
    promised = [comment.partition(": ")[0] if "[" not in comment else comment for comment in said]
    assert ran.stdout.splitlines() == promised
    assert promised


@pytest.mark.parametrize(
    "page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    missing = [one for one in targets if "://" not in one and not (ROOT / one).exists()]
    assert missing == []


def test_the_commands_of_the_readme_exist() -> None:
    """`make` targets and `kvorum` commands, as they stand in the text."""
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)\b", text))
    assert targets
    assert {one for one in targets if not re.search(rf"^{one}:", makefile, re.M)} == set()
    commands = set(re.findall(r"^    kvorum ((?:cluster )?[a-z]+)", text, re.M))
    assert commands
    for command in sorted(commands):
        subprocess.run(
            [sys.executable, "-m", "kvorum.cli", *command.split(), "--help"],
            check=True,
            capture_output=True,
            timeout=60,
        )
