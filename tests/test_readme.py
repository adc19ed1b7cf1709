"""The pages keep their word: the program runs and prints what it says, links lead somewhere."""

import os
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
    "page",
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/operations.md"],
)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    folder = (ROOT / page).parent
    missing = [one for one in targets if "://" not in one and not (folder / one).exists()]
    assert missing == []


def test_the_targets_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)\b", text))
    assert targets
    assert {one for one in targets if not re.search(rf"^{one}:", makefile, re.M)} == set()


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_the_commands_of_a_page_exist_with_their_options(page: str) -> None:
    """As they stand in its examples, one a line."""
    lines = re.findall(r"^ {4,}kvorum ([^#\n]+)", (ROOT / page).read_text(), re.M)
    commands: dict[str, set[str]] = {}
    for line in lines:
        [command] = re.findall(r"^(?:cluster |member )?[a-z]+", line)
        commands.setdefault(command, set()).update(re.findall(r" (--[a-z-]+)", line))
    assert commands
    for command, options in sorted(commands.items()):
        ran = subprocess.run(
            [sys.executable, "-m", "kvorum.cli", *command.split(), "--help"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert {option for option in options if option not in ran.stdout} == set(), command
