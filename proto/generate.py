"""Generate the Python code of the protocol, or check that it is what the protos say.

    python proto/generate.py            write *_pb2.py and *_pb2.pyi beside the protos
    python proto/generate.py --check    exit 1 if they differ from what would be written

The generated code is committed, so that installing kvorum needs no protoc.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import grpc_tools
from google.rpc import status_pb2
from grpc_tools import protoc

ROOT = Path(__file__).parent
PROTOS = sorted(ROOT.glob("kvorumpb/**/*.proto"))


def generate(target: Path) -> None:
    """Write the code of all protos below the target directory."""
    googleapis = Path(status_pb2.__file__).parents[2]
    builtin = Path(grpc_tools.__file__).parent / "_proto"
    # protoc looks for its plug-in, protoc-gen-mypy, on the PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    status = protoc.main(
        [
            "protoc",
            f"-I{ROOT}",
            f"-I{googleapis}",
            f"-I{builtin}",
            f"--python_out={target}",
            f"--mypy_out=quiet:{target}",
            *(str(path) for path in PROTOS),
        ]
    )
    if status:
        sys.exit(status)


def outdated() -> list[str]:
    """The generated files that are not what the protos say."""
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        generate(target)
        fresh = {path.relative_to(target): path for path in target.rglob("*_pb2.py*")}
        present = {path.relative_to(ROOT) for path in ROOT.glob("kvorumpb/**/*_pb2.py*")}
        return sorted(
            str(path)
            for path in fresh.keys() | present
            if path not in fresh
            or path not in present
            or fresh[path].read_bytes() != (ROOT / path).read_bytes()
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    if names := outdated():
        sys.exit("out of date, run `make proto`:\n  " + "\n  ".join(names))


if __name__ == "__main__":
    main()
