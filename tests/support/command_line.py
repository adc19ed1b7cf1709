"""Running `kvorum` in this process, as a user would from a shell."""

from collections.abc import Mapping
from dataclasses import dataclass

from typer.testing import CliRunner

from kvorum.cli.app import app


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left behind."""

    status: int
    out: str
    out_bytes: bytes
    err: str


def kvorum(*arguments: str, stdin: str = "", env: Mapping[str, str | None] | None = None) -> Ran:
    """Run a command; a failure that is not a KvorumError is raised, as the traceback it is."""
    result = CliRunner().invoke(app, list(arguments), input=stdin, env=env, prog_name="kvorum")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stdout_bytes, result.stderr)
