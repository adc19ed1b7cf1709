"""The pages keep their word: the program runs and prints what it says, links lead somewhere."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


PAGES = ["README.md", *sorted(str(one.relative_to(ROOT)) for one in ROOT.glob("docs/**/*.md"))]


def blocks_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def commands_of(page: str) -> list[str]:
    return re.findall(r"^ {4,}kvorum ([^#\n]+)", (ROOT / page).read_text(), re.M)


def programs_of(page: str) -> list[str]:
    """What can be run: whole programs, and all other blocks together, with an open store."""
    blocks = blocks_of(page)
    whole = [block for block in blocks if "asyncio.run(" in block]
    parts = "\n".join(block for block in blocks if block not in whole)
    if not parts:
        return whole
    body = textwrap.indent(parts, " " * 8)
    program = f"""
import asyncio

async def main():
    import kvorum
    async with kvorum.open("memory:") as kv:
{body}

asyncio.run(main())
"""
    return [*whole, program]


def keeps(line: str, promise: str) -> bool:
    """Whether this is what a comment behind a print says, which may go on with an explanation."""
    return promise == line or promise.startswith(f"{line}: ")


def test_there_are_programs() -> None:
    """On the pages for developers; those for operators have commands."""
    developers = [page for page in PAGES if not page.startswith("docs/reference")]
    without = [page for page in developers if not blocks_of(page)]
    assert [page for page in without if not page.startswith("docs/operations/")] == [
        "docs/chaos.md"
    ]
    assert len(programs_of("README.md")) == 2


@pytest.mark.parametrize(
    "program", [pytest.param(one, id=page) for page in PAGES for one in programs_of(page)]
)
def test_a_program_prints_what_its_comments_say(program: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert ran.stderr == ""
    printed = ran.stdout.splitlines()
    promises = re.findall(r"print\(.*\)  # (.*)$", program, re.M)
    assert promises or "assert " in program
    assert len(promises) == program.count("print(") == len(printed), ran.stdout
    broken = [pair for pair in zip(printed, promises, strict=True) if not keeps(*pair)]
    assert broken == []


@pytest.mark.parametrize(
    "page",
    ["ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", *PAGES],
)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    folder = (ROOT / page).parent
    missing = [one for one in targets if "://" not in one and not (folder / one).exists()]
    assert missing == []


def test_the_targets_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)\b", text))
    assert targets
    assert {one for one in targets if not re.search(rf"^{one}:", makefile, re.M)} == set()


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page.startswith(("README.md", "docs/operations/")) and commands_of(page)
    ],
)
def test_the_commands_of_a_page_exist_with_their_options(page: str) -> None:
    """As they stand in its examples, one a line."""
    commands: dict[str, set[str]] = {}
    for line in commands_of(page):
        [command] = re.findall(r"^(?:cluster |member |snapshot )?[a-z-]+", line)
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
