"""The architecture, executed: what ARCHITECTURE.md promises about the code, checked in it.

Each rule states what would be lost without it. A new exception belongs into the
table of its rule, with a reason, or not into the code.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NODE = ROOT / "node/kvorum_node"
CLIENT = ROOT / "client/kvorum"

MAX_MODULE_LINES = 600
MAX_FUNCTION_LINES = 70


def sources(*folders: Path) -> list[Path]:
    found = [
        path
        for folder in folders
        for path in ([folder] if folder.is_file() else sorted(folder.rglob("*.py")))
        if not path.name.endswith("_pb2.py")
    ]
    assert found, f"no sources under {folders}: the rule would check nothing"
    return found


def everything() -> list[Path]:
    return sources(
        ROOT / "client",
        ROOT / "node",
        ROOT / "tests",
        ROOT / "deploy",
        ROOT / "examples",
        ROOT / "proto/generate.py",
    )


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """All modules that a file imports, in functions too; `from a import b` gives a and a.b."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def offenders(paths: list[Path], *packages: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in paths
        for module in imports(path)
        if any(is_under(module, package) for package in packages)
    ]


def test_the_raft_core_imports_nothing_but_itself_and_pure_parts_of_the_library() -> None:
    pure = {"__future__", "collections", "dataclasses", "enum", "typing"}
    # What a configuration looks like in the log, which other versions and languages read.
    encoded = {
        "configuration.py": (
            "kvorumpb.v1.command_pb2",
            "kvorum_node.unknown_fields",
            "google.protobuf.message",
        )
    }
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources(NODE / "raft")
        for module in imports(path)
        if module.partition(".")[0] not in pure
        and not is_under(module, "kvorum_node.raft")
        and not any(is_under(module, one) for one in encoded.get(path.name, ()))
    ]
    assert wrong == []


def test_the_state_machine_knows_no_time_chance_network_or_engine() -> None:
    assert (
        offenders(
            sources(NODE / "machine"),
            "asyncio",
            "grpc",
            "logging",
            "random",
            "rocksdict",
            "secrets",
            "threading",
            "time",
            "uuid",
            "kvorum_node.storage.memory",
            "kvorum_node.storage.rocks",
        )
        == []
    )


def test_rocksdb_is_known_to_one_file() -> None:
    paths = [path for path in sources(ROOT / "client", ROOT / "node") if path.name != "rocks.py"]
    assert offenders(paths, "rocksdict") == []
    assert offenders([NODE / "storage/rocks.py"], "rocksdict") != []


def test_grpc_stays_at_the_edges() -> None:
    edges = [
        NODE / "services",
        NODE / "transport.py",
        NODE / "server.py",
        CLIENT / "backends",
        CLIENT / "channels.py",
        CLIENT / "admin.py",
        CLIENT / "status.py",
    ]
    inner = [
        path
        for path in sources(ROOT / "client", ROOT / "node")
        if not any(path == edge or edge in path.parents for edge in edges)
    ]
    assert offenders(inner, "grpc") == []


def test_the_client_needs_the_node_only_for_embedded_stores_and_to_run_begin_or_recover_one() -> (
    None
):
    allowed = {
        CLIENT / "backends/embedded.py",
        CLIENT / "cli/node.py",
        CLIENT / "cli/recover.py",
        CLIENT / "cli/founding.py",
        CLIENT / "cli/snapshot.py",
    }
    paths = [path for path in sources(CLIENT) if path not in allowed]
    assert offenders(paths, "kvorum_node") == []


def test_patterns_go_over_the_public_interface() -> None:
    """A pattern that needs something private shows that the interface lacks something."""
    private = ["grpc", "kvorumpb", "kvorum_node", "rocksdict", "google"]
    private += [
        f"kvorum.{name}"
        for name in ("backends", "checks", "operations", "optimistic", "reading", "ranges")
    ]
    paths = sources(CLIENT / "patterns")
    assert offenders(paths, *private) == []
    wrong = [
        f"{path.relative_to(ROOT)}: {node.value.id}.{node.attr}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and isinstance(node.value, ast.Name)
        and node.value.id in ("kv", "txn", "store", "KV")
    ]
    assert wrong == []


def test_integrations_go_over_the_public_interface() -> None:
    """But telemetry stands where every call passes, whoever makes it."""
    at_the_seam = CLIENT / "integrations/opentelemetry.py"
    paths = sources(CLIENT / "integrations")
    private = ("grpc", "kvorumpb", "kvorum_node", "google", "kvorum.backends")
    assert offenders([path for path in paths if path != at_the_seam], *private) == []
    assert offenders([at_the_seam], "kvorum.backends") != []


def test_clocks_and_chance_are_read_in_named_files_only() -> None:
    """Whatever reads a clock or draws a number cannot be replayed."""
    allowed = {
        NODE / "nameless.py": "chance, so that nodes that wait do not ask all at once",
        NODE / "node.py": "the leader's clock for log time, and the election's chance",
        NODE / "figures.py": "how long things took, on which nothing rests",
        NODE / "storage/data_directory.py": "a fresh cluster id",
        NODE / "probes.py": "how long the event loop has done nothing",
        CLIENT / "backends": "jitter of retries, deadlines",
        CLIENT / "channels.py": "how long a fork waits for gRPC's threads",
        CLIENT / "entry.py": "times that the store has given, and none beside them",
        CLIENT / "atomic.py": "the same",
        CLIENT / "watching.py": "the same",
        CLIENT / "loop_thread.py": "threads",
        CLIENT / "cli": "progress, waiting for processes",
        CLIENT / "keys.py": "times that callers give, as text",
        CLIENT / "patterns/counter.py": "times that the store has given, and the shard of an add",
        CLIENT / "patterns/rate_limiter.py": "times that the store has given",
        CLIENT / "patterns/sessions.py": "the secrets that tokens are",
        CLIENT / "integrations/opentelemetry.py": "how long a call took",
        CLIENT / "durations.py": "timedelta, a length of time that callers give",
        CLIENT / "optimistic.py": "jitter between attempts",
    }
    paths = [
        path
        for path in sources(ROOT / "client", ROOT / "node")
        if not any(path == place or place in path.parents for place in allowed)
    ]
    assert offenders(paths, "random", "secrets", "time", "uuid", "datetime") == []


def test_durability_is_decided_in_one_place() -> None:
    """The log engine is written and synced by the driver, and where a group begins, or anew."""
    calls = {
        str(path.relative_to(ROOT))
        for path in sources(ROOT / "client", NODE)
        if re.search(r"storage\.log\.(write|sync)\b", path.read_text(encoding="utf-8"))
    }
    assert calls == {
        "node/kvorum_node/driver.py",
        "node/kvorum_node/founding.py",
        "node/kvorum_node/node.py",
        "node/kvorum_node/survivor.py",
    }


@pytest.mark.parametrize("path", everything(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_short_enough_to_read(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_MODULE_LINES, "about 600 lines is where a module asks to be split"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", everything(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_opens_with_what_it_is(path: Path) -> None:
    if path.read_text(encoding="utf-8").strip():
        assert ast.get_docstring(tree_of(path)), "the module has no docstring"


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(
        r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in everything()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []


def test_every_exemption_gives_its_reason() -> None:
    """`# noqa: X - why` and `# type: ignore[x]  # why`."""
    exemption = re.compile(r"#\s*(noqa|type:\s*ignore)")
    explained = re.compile(r"# noqa: [A-Z0-9, ]+ - \w|# type: ignore\[[a-z, -]+\]  # \w")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in everything()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if exemption.search(line) and not explained.search(line)
    ]
    assert found == []


def test_there_is_no_package_where_the_import_roots_are() -> None:
    """An __init__.py there would make `client` a package, and break the type checkers."""
    assert [
        root for root in ("client", "node", "proto") if (ROOT / root / "__init__.py").exists()
    ] == []


def test_importing_the_client_brings_neither_the_network_nor_the_node() -> None:
    code = (
        "import sys, kvorum; "
        "heavy = ('grpc', 'kvorum_node', 'rocksdict', 'typer', 'rich'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
