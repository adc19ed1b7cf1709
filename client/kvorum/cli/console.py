"""The two streams, and tables that fit a terminal or a pipe.

Rules of this file: results go to stdout, everything about them (progress, hints,
errors) to stderr. What goes into a pipe has no colours and is never cut or
wrapped to a width that nobody sees.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvorum.errors import StorageError

PIPE_WIDTH: Final = 10_000


def _console(stream: TextIO, *, stderr: bool) -> Console:
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, emoji=False)


def out() -> Console:
    """The console of results."""
    return _console(sys.stdout, stderr=False)


def err() -> Console:
    """The console of hints, progress and errors."""
    return _console(sys.stderr, stderr=True)


def print_error(message: str) -> None:
    """Print `error: message` to stderr."""
    err().print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


@contextmanager
def needing_node(doing: str) -> Iterator[None]:
    """Around imports of what comes with the extra `node`: `StorageError` says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("kvorum"):
            raise
        raise StorageError(f"{doing} needs {error.name}: pip install 'kvorum[node]'") from None


def new_table(*columns: str, numbers: Sequence[str] = (), cut: Sequence[str] = ()) -> Table:
    """A table without lines, of which numbers are never broken.

    Args:
        numbers: columns that are aligned to the right.
        cut: columns that give way where a terminal is too narrow: then each row is one line.
            Without any, text goes on on a second line.
    """
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in numbers else "left",
            overflow="ellipsis" if column in cut else "fold",
            no_wrap=column in numbers or (bool(cut) and column not in cut),
            vertical="bottom",
        )
    return table


def show_path(path: Path) -> str:
    """The path as a reader would type it: relative if it is below the current directory."""
    path = path.absolute()
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
