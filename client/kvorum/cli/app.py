"""The commands put together, and the one place where an error becomes an exit status."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import kvorum
from kvorum.cli import (
    cluster,
    compact,
    console,
    data,
    founding,
    lifetime,
    member,
    node,
    recover,
    snapshot,
    top,
    transfer,
    verify,
    watch,
)
from kvorum.errors import KvorumError


class KvorumGroup(TyperGroup):
    """Commands whose expected failures are one line on stderr, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KvorumError as error:
            console.print_error(str(error))
        except BrokenPipeError:
            raise  # typer ends quietly: whoever read the output has seen enough
        except OSError as error:
            path = f"{error.filename}: " if error.filename else ""
            console.print_error(f"{path}{error.strerror or error}")
        raise typer.Exit(1)


app = typer.Typer(
    name="kvorum",
    cls=KvorumGroup,
    help="A replicated, strongly consistent key-value store.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.out().print(f"kvorum {kvorum.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


CLUSTER_PANEL = "A cluster on this machine"
DATA_PANEL = "Data"
NODE_PANEL = "Running nodes"

app.add_typer(cluster.app, name="cluster", rich_help_panel=CLUSTER_PANEL)
for command in (data.get, data.put, data.delete, data.list_, data.add, watch.watch, data.status):
    app.command(command.__name__.rstrip("_"), rich_help_panel=DATA_PANEL)(command)
app.command("ttl", rich_help_panel=DATA_PANEL)(lifetime.ttl)
app.command("touch", rich_help_panel=DATA_PANEL)(lifetime.touch)
app.command("persist", rich_help_panel=DATA_PANEL)(lifetime.persist)
app.command("import", rich_help_panel=DATA_PANEL)(transfer.import_)
app.command("export", rich_help_panel=DATA_PANEL)(transfer.export)
app.command("node", rich_help_panel=NODE_PANEL)(node.node)
app.command("init", rich_help_panel=NODE_PANEL)(founding.init)
app.add_typer(member.app, name="member", rich_help_panel=NODE_PANEL)
app.add_typer(snapshot.app, name="snapshot", rich_help_panel=NODE_PANEL)
app.command("top", rich_help_panel=NODE_PANEL)(top.top)
app.command("verify", rich_help_panel=NODE_PANEL)(verify.verify)
app.command("compact", rich_help_panel=NODE_PANEL)(compact.compact)
app.command("recover", rich_help_panel=NODE_PANEL)(recover.recover)
