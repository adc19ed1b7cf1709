"""Case files: a directive with its arguments, lines of input, `----`, and the expected output.

They come from other projects, and lie beside this one's folder, in shared/data, with a
description and their licences. Tests say so when they are absent.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2].parent / "shared/data"


@dataclass(frozen=True, slots=True)
class Case:
    file: str
    number: int
    directive: str
    arguments: str
    """All that follows the directive in its line."""
    input: tuple[str, ...]
    output: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}-{self.number}"

    def argument(self, name: str) -> list[str]:
        """The words of `name=(a, b)` or `name=a`; none if it is not given."""
        found = re.search(rf"\b{name}=(?:\(([^)]*)\)|(\S+))", self.arguments)
        return [] if found is None else re.split(r"[,\s]+", (found[1] or found[2]).strip())


def needs_case_files(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (FOLDER / folder).is_dir(),
        reason=f"the case files of other projects are not at {FOLDER / folder}",
    )


def cases(folder: str) -> list[Case]:
    """All cases of the folder, in the order of the files; none if it is absent."""
    return [case for path in sorted((FOLDER / folder).glob("*.txt")) for case in cases_of(path)]


def cases_of(path: Path) -> list[Case]:
    found: list[Case] = []
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        directive, _, arguments = line.partition(" ")
        given = list(iter(lambda: next(lines), "----"))
        output = list(iter(lambda: next(lines, ""), ""))
        found.append(
            Case(path.stem, len(found) + 1, directive, arguments, tuple(given), tuple(output))
        )
    return found
