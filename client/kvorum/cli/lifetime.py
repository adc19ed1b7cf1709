"""`kvorum ttl | touch | persist`: how long a key stays."""

from typing import Annotated

import typer
from rich.markup import escape

from kvorum import limits
from kvorum.cli import console, records
from kvorum.cli.data import (
    FAILED,
    JsonOption,
    KeyArgument,
    TargetOption,
    TimeoutOption,
    with_store,
    write,
)


def ttl(
    key: KeyArgument,
    *,
    as_json: JsonOption = False,
    target: TargetOption = None,
    timeout: TimeoutOption = limits.DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Print how many seconds a key has left, or "never" if it does not expire.

    Exit status 1 if there is no such key.
    """
    left = with_store(target, timeout, lambda kv: kv.ttl(key))
    if left == 0:
        _fail(key)
    if as_json:
        write(records.dump_line({"ttl": left}))
    else:
        print("never" if left is None else left)


def touch(
    key: KeyArgument,
    seconds: Annotated[float, typer.Argument(help="How long it is to live from now.")],
    *,
    target: TargetOption = None,
    timeout: TimeoutOption = limits.DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Let a key expire so long from now.

    Its value and revision stay. Exit status 1 if there is no such key.
    """
    if not with_store(target, timeout, lambda kv: kv.touch(key, seconds)):
        _fail(key)
    console.out().print("touched")


def persist(
    key: KeyArgument,
    *,
    target: TargetOption = None,
    timeout: TimeoutOption = limits.DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Let a key stay for ever. Exit status 1 if there is no such key."""
    if not with_store(target, timeout, lambda kv: kv.persist(key)):
        _fail(key)
    console.out().print("persisted")


def _fail(key: str) -> None:
    console.err().print(f"no key {escape(repr(key))}", soft_wrap=True)
    raise typer.Exit(FAILED)
