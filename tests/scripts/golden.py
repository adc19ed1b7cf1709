"""Golden scripts: commands, and under each block of them what they led to.

    # What the script is about.
    group 3

    # Prose, wherever it helps.
    campaign n1
    run
    ---
    n1: pre-candidate, term 0
    ...

A block is one or more commands, one a line, and `---` with the output under it, up to
an empty line. `nothing` stands for no output. Rules: a script opens with a comment, its intent;
everything in it is prose, a command or output, and anything else is an error with
its line; what a script prints is a function of its commands.

A test compares the whole text, so that a line too many is a difference too. With
`pytest tests/scripts --rewrite` the output is replaced by what came out: read the
difference before you keep it, for it says that this is right.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

BAR = "---"
NOTHING = "nothing"


class ScriptError(Exception):
    """The script is wrong, whatever the code under test does."""


@dataclass(frozen=True, slots=True)
class Block:
    prose: tuple[str, ...]
    commands: tuple[str, ...]
    line: int
    """The number of the first command's line."""


def blocks(lines: list[str]) -> Iterator[Block]:
    """The blocks of a script, without the output under them.

    Raises:
        ScriptError: a line has no place.
    """
    if not lines or not lines[0].startswith("# "):
        raise ScriptError("line 1: a script opens with a comment that says what it is about")
    prose: list[str] = []
    commands: list[str] = []
    in_output = False
    for number, line in enumerate(lines, start=1):
        if in_output:
            in_output = line != ""
        elif line == BAR:
            if not commands:
                raise ScriptError(f"line {number}: output without a command")
            yield Block(tuple(prose), tuple(commands), number - len(commands))
            prose, commands, in_output = [], [], True
        elif line == "" or line.startswith("#"):
            if commands:
                raise ScriptError(f"line {number}: `{BAR}` is missing after {commands[-1]!r}")
            prose.append(line)
        else:
            commands.append(line)
    if commands or any(prose):
        raise ScriptError(f"line {len(lines)}: the script ends without `{BAR}` and output")


def told(script: str, execute: Callable[[str], list[str]]) -> str:
    """The script, with the output of its commands as they are executed now.

    Raises:
        ScriptError: with the line that is wrong.
    """
    text: list[str] = []
    for block in blocks(script.splitlines()):
        text += [*block.prose, *block.commands, BAR]
        output: list[str] = []
        for number, command in enumerate(block.commands, start=block.line):
            try:
                output += execute(command)
            except ScriptError as error:
                raise ScriptError(f"line {number}: {command}: {error}") from None
        text += [*(output or [NOTHING]), ""]
    return "\n".join(text)


def difference(path: Path, script: str, text: str) -> str:
    """What is expected and did not come (-), and what came unexpected (+)."""
    return "\n".join(
        difflib.unified_diff(
            script.splitlines(), text.splitlines(), f"{path.name}, as written", "as it came out",
            lineterm="",
        )
    )  # fmt: skip
