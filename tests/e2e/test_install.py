"""The package as a user gets it: built, and installed into fresh environments."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.test_readme import programs_of

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"

IMPORT = """
import sys, time
began = time.perf_counter()
import kvorum
print(f"import kvorum took {time.perf_counter() - began:.3f} s")
print([name for name in ("grpc", "rocksdict", "kvorum_node") if name in sys.modules])
"""

MEMORY = """
import asyncio, kvorum
async def main():
    async with kvorum.open("memory:") as kv:
        await kv.put("greeting", {"hello": "world"})
        print((await kv.get("greeting")).value)
asyncio.run(main())
"""

DIRECTORY = """
import kvorum
try:
    kvorum.open_sync("data")
except kvorum.StorageError as error:
    print(error)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What the command prints; it must succeed, and see nothing of this environment."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "KVORUM", "VIRTUAL_ENV"))
    }
    ran = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def pip_install(environment: Path, *what: str | Path, cwd: Path) -> None:
    constraints = ("--constraint", CONSTRAINTS) if CONSTRAINTS.exists() else ()
    pip = (environment / "bin/python", "-m", "pip", "--disable-pip-version-check", "install")
    run(*pip, "--quiet", *constraints, *what, cwd=cwd)


@pytest.fixture(scope="module")
def client_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment into which the wheel was installed, without the extra."""
    directory = tmp_path_factory.mktemp("install")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT, cwd=directory)
    [wheel] = directory.glob("kvorum-*.whl")
    environment = directory / "venv"
    venv.create(environment, with_pip=True)
    pip_install(environment, wheel, cwd=directory)
    return environment


def test_importing_the_client_brings_neither_grpc_nor_rocksdb(
    client_alone: Path, tmp_path: Path
) -> None:
    said, modules = run(client_alone / "bin/python", "-c", IMPORT, cwd=tmp_path).splitlines()
    print(said)
    assert modules == "[]"


def test_the_client_alone_has_a_store_in_memory(client_alone: Path, tmp_path: Path) -> None:
    assert run(client_alone / "bin/python", "-c", MEMORY, cwd=tmp_path) == "{'hello': 'world'}\n"


@pytest.mark.parametrize("number", range(2))
def test_the_programs_of_the_readme_run_with_the_client_alone(
    client_alone: Path, tmp_path: Path, number: int
) -> None:
    """Every pattern among them."""
    program = programs_of("README.md")[number]
    assert run(client_alone / "bin/python", "-W", "error", "-c", program, cwd=tmp_path)


def test_a_directory_needs_the_extra_and_says_so(client_alone: Path, tmp_path: Path) -> None:
    said = run(client_alone / "bin/python", "-c", DIRECTORY, cwd=tmp_path)
    assert "pip install 'kvorum[node]'" in said
    assert not (tmp_path / "data").exists()


def test_a_node_needs_the_extra_and_says_so(client_alone: Path, tmp_path: Path) -> None:
    command = [
        str(client_alone / "bin/kvorum"),
        *("node", "n1", "--data-dir", "data"),
        *("--listen", "127.0.0.1:1", "--cluster", "n1=127.0.0.1:1"),
    ]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 2
    assert "pip install 'kvorum[node]'" in ran.stderr


def test_the_command_line_tells_its_version(client_alone: Path, tmp_path: Path) -> None:
    said = run(client_alone / "bin/kvorum", "--version", cwd=tmp_path)
    version = run(
        client_alone / "bin/python", "-c", "import kvorum; print(kvorum.__version__)", cwd=tmp_path
    )
    assert version.strip()
    assert version.strip() in said


def test_an_editable_install_with_the_extra_has_everything(tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    pip_install(environment, "--editable", f"{ROOT}[node]", cwd=tmp_path)
    python = environment / "bin/python"
    where = (
        "import kvorum, kvorum_node, kvorumpb.v1.kv_pb2 as p; print(kvorum.__file__, p.__file__)"
    )
    for path in run(python, "-c", where, cwd=tmp_path).split():
        assert Path(path).is_relative_to(ROOT)
    stored = MEMORY.replace("memory:", "data")
    assert run(python, "-c", stored, cwd=tmp_path) == "{'hello': 'world'}\n"
    assert (tmp_path / "data/kvorum.json").exists()
