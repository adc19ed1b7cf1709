"""A Dockerfile carried out in plain directories: a container engine is not everywhere.

A stage is a directory, and `root` a link to that of the stage at work: so what a stage has
installed under a path is found there, too, by the stage that copies it. Absolute paths of the
image are those below `root`; a RUN is started without a shell, as the files here have it.
The base image is this Python, with its pip. Whatever else a Dockerfile says is refused.
"""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

RUN_SECONDS: Final = 280


@dataclass
class Image:
    """What a stage ends as."""

    files: Path
    workdir: str = "/"
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    user: str = ""
    volumes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def note(self, instruction: str, text: str) -> None:
        """What changes no file."""
        match instruction:
            case "ENV":
                self.environment |= pairs(text)
            case "LABEL":
                self.labels |= pairs(text)
            case "USER":
                self.user = text
            case "VOLUME":
                self.volumes.append(text)
            case "EXPOSE":
                self.ports += map(int, text.split())
            case "HEALTHCHECK":
                self.healthcheck = json.loads(text.partition("CMD ")[2])
            case "ENTRYPOINT":
                self.entrypoint = json.loads(text)
            case "CMD":
                self.command = json.loads(text)
            case _:
                raise AssertionError(f"{instruction} is not known here")


class Build:
    """A Dockerfile at work in a directory."""

    def __init__(self, dockerfile: Path, context: Path, directory: Path) -> None:
        self._context = context
        self._directory = directory
        self.root = directory / "root"
        self._arguments: dict[str, str] = {}
        self._stages: dict[str, Image] = {}
        self._paths = sorted(
            set(re.findall(r"(?<![\w./:-])/(?:opt|src|var)[\w/.-]*", dockerfile.read_text())),
            key=len,
            reverse=True,
        )
        for instruction, text in instructions(dockerfile):
            self._carry_out(instruction, self._substituted(text))
        self.image = self._stage
        """Of the last stage."""

    def localised(self, text: str) -> str:
        """A text with the paths of the image as they are on this machine."""
        for path in self._paths:
            text = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w-])", f"{self.root}{path}", text)
        return text

    def _carry_out(self, instruction: str, text: str) -> None:
        match instruction:
            case "ARG":
                self._arguments |= pairs(text)
            case "FROM":
                self._begin_stage(text)
            case "WORKDIR":
                self._stage.workdir = text
                self._inside(text).mkdir(parents=True)
            case "COPY":
                self._copy(*text.split())
            case "RUN":
                self._run([self.localised(one) for one in json.loads(text)])
            case _:
                self._stage.note(instruction, text)

    def _begin_stage(self, text: str) -> None:
        base, _, name = text.partition(" AS ")
        assert re.fullmatch(r"python:3\.\d+-slim-\w+", base), base
        files = self._directory / f"stage-{len(self._stages)}"
        files.mkdir()
        self.root.unlink(missing_ok=True)
        self.root.symlink_to(files)
        self._stage = self._stages[name] = Image(files)

    def _inside(self, path: str) -> Path:
        return self._stage.files / Path(self._stage.workdir, path).relative_to("/")

    def _copy(self, *arguments: str) -> None:
        if arguments[0].startswith("--from="):
            origin, source, target = arguments
            files = self._stages[origin.removeprefix("--from=")].files
            shutil.copytree(
                files / source.lstrip("/"), self._inside(target), symlinks=True, dirs_exist_ok=True
            )
            return
        assert arguments == (".", "."), arguments
        for path in context_files(self._context):
            target_file = self._inside(".") / path
            target_file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self._context / path, target_file)

    def _run(self, command: list[str]) -> None:
        if command[0] == "install":  # to own a file takes root, and a number that nobody has here
            command = [one for one in command if not one.startswith(("--owner=", "--group="))]
        if command[0] in ("python", "pip"):
            module = [] if command[0] == "python" else ["-m", "pip"]
            command = [sys.executable, *module, *command[1:]]
        ran = subprocess.run(
            command,
            cwd=self._inside("."),
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_SECONDS,
        )
        assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"

    def _substituted(self, text: str) -> str:
        return re.sub(r"\$\{(\w+)\}", lambda match: self._arguments[match[1]], text)


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Each instruction with its text, on one line."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            instruction, _, text = line.partition(" ")
            yield instruction, text.strip()


def pairs(text: str) -> dict[str, str]:
    """`A=1 B="2 3"` as a mapping."""
    return {
        name: quoted or plain
        for name, quoted, plain in re.findall(r'([\w.]+)=(?:"([^"]*)"|(\S+))', text)
    }


def context_files(context: Path) -> list[Path]:
    """What `COPY . .` copies, by .dockerignore: the last pattern that matches a path decides."""
    patterns = [
        line
        for line in (context / ".dockerignore").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    found = []
    for folder, folders, names in os.walk(context):
        # Large, and at the root alone: there, what lets a name in names it.
        folders[:] = [one for one in folders if one != ".git" and not one.startswith(".venv")]
        found += [Path(folder, name).relative_to(context) for name in names]
    return sorted(path for path in found if not _is_ignored(path, patterns))


def _is_ignored(path: Path, patterns: list[str]) -> bool:
    ignored = False
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        if any(_matches(parent, bare) for parent in (path, *path.parents)):
            ignored = not pattern.startswith("!")
    return ignored


def _matches(path: Path, pattern: str) -> bool:
    """`**/name` is a name anywhere, `*` any name at the root."""
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(path.name, pattern.removeprefix("**/"))
    return len(path.parts) == pattern.count("/") + 1 and fnmatch.fnmatchcase(str(path), pattern)
