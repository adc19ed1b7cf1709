"""Faults against a cluster of real processes: `make chaos`, or

    python -m tests.chaos --minutes 10 --nodes 5 --seed 7 --faults kill-leader,partition

Ends with status 0 only if every history is linearizable, nothing is lost, counted twice, or told
to watches in another way, keys expire when they have to, and all nodes agree; with 1 if not, or
if the run shows nothing; with 2 for a wrong command line. How to read the report is in
docs/chaos.md.
"""

import argparse
import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.chaos import namespaces, report
from tests.chaos.faults import FAULTS
from tests.chaos.judge import judge
from tests.chaos.network import Network
from tests.chaos.proxies import Proxies
from tests.chaos.run import Options, Outcome, run_on

SPARE_NODES: Final = 6
"""How many members can be replaced in one run."""
NODE_FLAGS: Final = "--log-max-bytes 131072"
"""A short log: followers that were away need snapshots."""


def main(arguments: Sequence[str]) -> int:
    parsed = _parser().parse_args(arguments)
    faults = tuple(parsed.faults.split(","))
    if unknown := sorted(set(faults) - set(FAULTS)):
        _parser().error(f"there is no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    if parsed.nodes < 3:
        _parser().error("a cluster that survives a fault has at least 3 nodes")
    inside = os.environ.get(namespaces.INSIDE, "")
    if not inside and parsed.network != "proxies":
        lacking = namespaces.missing()
        if not lacking:
            return _run_inside(arguments, parsed.nodes + SPARE_NODES)
        if parsed.network == "namespaces":
            _parser().error(lacking)
        print(f"no network namespaces here ({lacking}): nodes are joined by proxies", flush=True)
    options = Options(
        seconds=parsed.minutes * 60,
        nodes=parsed.nodes,
        faults=faults,
        seed=random.randrange(10**6) if parsed.seed is None else parsed.seed,
        directory=parsed.directory,
        clients=parsed.clients,
        calls_per_second=parsed.calls_per_second,
        node_flags=tuple(parsed.node_flags.split()),
    )
    return _run(options, inside, keep=parsed.keep)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=2.0, help="how long faults strike")
    add("--nodes", type=int, default=3, help="members of the cluster")
    add("--faults", default=",".join(FAULTS), help="which ones, comma-separated")
    add("--seed", type=int, help="of order, targets and lengths of the faults; drawn if not given")
    add("--directory", type=Path, default=Path(".kvorum/chaos"), help="for the report")
    add("--keep", action="store_true", help="keep histories and logs, also of a run that passes")
    add("--clients", type=int, default=2, help="client processes")
    add("--calls-per-second", type=float, default=300.0, help="of all clients together")
    add("--network", choices=["auto", "namespaces", "proxies"], default="auto")
    add("--node-flags", default=NODE_FLAGS, help="for `kvorum node`")
    return parser


def _run_inside(arguments: Sequence[str], count: int) -> int:
    """Run this program once more, inside of the namespaces."""
    with namespaces.hub(count) as (prefix, enter):
        command = [*enter, sys.executable, "-m", "tests.chaos", *arguments]
        environment = {**os.environ, namespaces.INSIDE: prefix}
        return subprocess.run(command, env=environment, check=False).returncode


def _run(options: Options, prefix: str, *, keep: bool) -> int:
    options.directory.mkdir(parents=True, exist_ok=True)
    # Another run's histories would be judged as this one's.
    report.remove(options.directory, *report.HISTORIES, *report.REPORTS)
    shutil.rmtree(options.directory / "nodes", ignore_errors=True)
    print(f"seed {options.seed}, {options.nodes} nodes, {options.directory}", flush=True)
    outcome = asyncio.run(_carry_out(options, prefix))
    judgement = judge(outcome.evidence)
    print(report.write(options, outcome, judgement), flush=True)
    shutil.rmtree(options.directory / "nodes", ignore_errors=True)
    if judgement.passed and not keep and not outcome.log_lines["tracebacks"]:
        report.remove(options.directory, *report.HISTORIES)
    else:
        print(f"histories and logs are kept in {options.directory}", flush=True)
    return 0 if judgement.passed else 1


async def _carry_out(options: Options, prefix: str) -> Outcome:
    names = namespaces.node_names(options.nodes + SPARE_NODES)

    @asynccontextmanager
    async def join(pid_of: Callable[[str], int | None]) -> AsyncIterator[Network]:
        if prefix:
            yield namespaces.Namespaces(prefix, len(names))
        else:
            async with Proxies(names, pid_of) as proxies:
                yield proxies

    return await run_on(options, join, may_mount=bool(prefix), progress=_print)


def _print(progress: str) -> None:
    print(f"  {progress}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
