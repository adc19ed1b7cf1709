"""A node's directory: whose it is, that only one process has it, and what is in it.

    LOCK          held (flock) while the directory is open; contains the holder's pid
    kvorum.json   the identity: format, cluster, node, directory; and the peers it has met
    CORRUPT       only if the majority holds something else than the state: why nobody may
                  open the directory again, in words
    log/          the engine of the Raft log
    state/        the engine of the state

Creation is a sequence that may be cut off anywhere, and be taken up again:

    LOCK  ->  kvorum.json.new  ->  log/, state/  ->  rename to kvorum.json

So a directory with a kvorum.json is whole: if log/ or state/ is missing there,
it was removed, and to start with an empty one would forget votes and promised
entries. A directory with a kvorum.json.new has never promised anything. A
directory with anything else in it is not ours, and is left as it is.

What a cluster is begun with offline (founding.py) takes long to write, and counts as a whole
or not at all. It goes the same way with a kvorum.json.unfinished, with which no node starts:

    LOCK  ->  kvorum.json.unfinished  ->  log/, state/, written  ->  rename to kvorum.json

What a member has promised, a vote or an entry on its disk, is in its directory, and
gone with it. So a directory has an id of its own, drawn when it is created, and each
node keeps by which one it first met each peer, in the same file: a node that comes
with another one has lost what it was counted with, and is not listened to. Nodes that
have never met cannot tell. Nor can anybody tell a copy from its original, or an older
state of a directory from a newer one: to the others, two processes on copies are one
member, which can vote twice. LOCK only sees to it that no two of them share one path.
"""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Final, Self

from kvorum.errors import DataDirectoryInUse, DataDirectoryMismatch, StateCorrupt, StorageError
from kvorum_node.raft.types import NodeId, node_name
from kvorum_node.storage.budget import Budget
from kvorum_node.storage.durable import sync_directory, write_durably
from kvorum_node.storage.engine import Engine
from kvorum_node.storage.memory import MemoryEngine

FORMAT: Final = 1
"""Of everything below the directory. A node refuses a higher one."""

_LOCK: Final = "LOCK"
_IDENTITY: Final = "kvorum.json"
_NEW_IDENTITY: Final = "kvorum.json.new"
_UNFINISHED: Final = "kvorum.json.unfinished"
_CORRUPT: Final = "CORRUPT"
_LOG: Final = "log"
_STATE: Final = "state"
_NOT_OURS_BUT_HARMLESS: Final = frozenset({"lost+found"})  # a fresh ext4 volume has one


@dataclass(frozen=True, slots=True)
class Identity:
    """Which node of which cluster a directory belongs to."""

    cluster_id: str
    node_id: NodeId

    directory_id: str = field(default_factory=lambda: str(uuid.uuid4()), compare=False)
    """Of the directory itself. Not compared, because it is not what a directory is asked
    for by: one that exists has its own, and a new one takes this."""

    @classmethod
    def single(cls, node: NodeId = NodeId(1)) -> Self:  # noqa: B008 - it is an int
        """A fresh cluster of one node."""
        return cls(str(uuid.uuid4()), node)

    def in_new_cluster(self) -> Self:
        """The same node in a cluster that has no other one yet."""
        return replace(self, cluster_id=str(uuid.uuid4()))

    def __str__(self) -> str:
        return f"{node_name(self.node_id)} of cluster {self.cluster_id}"


class Acquaintances:
    """The directory by which this node knows each peer, since they first met."""

    def __init__(
        self,
        known: Mapping[NodeId, str] | None = None,
        *,
        save: Callable[[Mapping[NodeId, str]], None] = lambda _: None,
    ) -> None:
        """Begin with those that are known.

        Args:
            save: puts all of them on the disk, or raises StorageError.
        """
        self._known = dict(known or {})
        self._save = save

    def directory_of(self, peer: NodeId) -> str:
        """The id of the peer's directory; empty if they have never met."""
        return self._known.get(peer, "")

    def add(self, peer: NodeId, directory_id: str) -> None:
        """Remember a peer; on the disk when this returns.

        Raises:
            StorageError: and it is unknown as before.
        """
        known = {**self._known, peer: directory_id}
        self._save(known)
        self._known = known


@dataclass(frozen=True, slots=True)
class _Content:
    """What kvorum.json says."""

    identity: Identity
    peers: Mapping[NodeId, str] = field(default_factory=dict[NodeId, str])


class DataDirectory:
    """A directory that this process holds the lock of. Released by `close`."""

    def __init__(self, path: Path, lock: int, content: _Content, *, pending: str | None) -> None:
        """`pending` is the file that is to become the identity; None if there is one."""
        self.path = path
        self.identity = content.identity
        self.acquaintances = Acquaintances(content.peers, save=self._save_peers)
        self._pending = pending
        self._lock: int | None = lock

    @classmethod
    def open(cls, path: Path, identity: Identity | None) -> Self:
        """Lock the directory, or begin to create it, and check whose it is.

        Args:
            identity: whose it must be; None takes what is there, or a fresh
                single-node identity.

        Raises:
            DataDirectoryInUse: another process, or this one, has it open.
            DataDirectoryMismatch: it belongs to another node or cluster, or to a
                newer version.
            StateCorrupt: it was condemned.
            StorageError: it is not a kvorum directory, or cannot be used.
        """
        try:
            _make_directory(path)
            _refuse_foreign(path)
            lock = _lock(path)
            try:
                _refuse_condemned(path)
                found, is_new = _find_content(path, identity)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise _unusable(path, error) from error
        return cls(path, lock, found, pending=_NEW_IDENTITY if is_new else None)

    @classmethod
    def found(cls, path: Path, identity: Identity) -> Self:
        """Lock an empty directory, and mark it as one that nobody may start from.

        Until `finish_creation`; `clear` gives it up.

        Raises:
            DataDirectoryInUse: another process has it locked.
            StorageError: there is something in it, or it cannot be used.
        """
        try:
            _make_directory(path)
            _refuse_filled(path)
            lock = _lock(path)
            try:
                _refuse_filled(path)  # another process may have had the lock before
                content = _Content(identity)
                write_durably(path / _UNFINISHED, _encode(content))
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise _unusable(path, error) from error
        return cls(path, lock, content, pending=_UNFINISHED)

    @property
    def is_new(self) -> bool:
        """Whether the creation has still to be finished (`finish_creation`)."""
        return self._pending is not None

    @property
    def log(self) -> Path:
        return self.path / _LOG

    @property
    def state(self) -> Path:
        return self.path / _STATE

    def finish_creation(self) -> None:
        """All is there that has to be: from now on the directory counts."""
        if self._pending is None:
            raise AssertionError(f"{self.path} was finished before")
        try:
            (self.path / self._pending).rename(self.path / _IDENTITY)
            sync_directory(self.path)
        except OSError as error:
            raise StorageError(f"cannot create {self.path}: {error.strerror}") from error
        self._pending = None

    def clear(self) -> None:
        """Remove what was created, as far as the disk lets it: the mark goes last."""
        if self._pending is None:
            raise AssertionError(f"{self.path} is in use")
        try:
            for engine in (self.log, self.state):
                if engine.exists():
                    shutil.rmtree(engine)
            (self.path / self._pending).unlink(missing_ok=True)
        except OSError:
            return  # what is left has the mark, and says so whenever it is opened

    def condemn(self, why: str) -> None:
        """Let nobody open the directory again; on the disk when this returns."""
        try:
            write_durably(self.path / _CORRUPT, f"{why}\n".encode())
        except OSError as error:
            raise StorageError(f"cannot write {self.path / _CORRUPT}: {error.strerror}") from error

    def _save_peers(self, peers: Mapping[NodeId, str]) -> None:
        _write_content(self.path, _Content(self.identity, peers))

    def close(self) -> None:
        """Release the lock. May be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _keep_no_mark(why: str) -> None:
    """What is in memory alone does not come back."""


@dataclass(frozen=True, slots=True)
class Storage:
    """The two engines of a node, and whose they are."""

    identity: Identity
    log: Engine
    state: Engine
    _resources: ExitStack = field(repr=False)
    acquaintances: Acquaintances = field(default_factory=Acquaintances, repr=False)
    condemn: Callable[[str], None] = field(default=_keep_no_mark, repr=False)
    """As DataDirectory.condemn."""
    path: Path | None = None
    """None if it is in memory."""

    @classmethod
    def open(
        cls,
        path: Path,
        identity: Identity | None,
        *,
        fsync: bool = True,
        budget: Budget = Budget(),  # noqa: B008 - it is frozen
    ) -> Self:
        """Open or create a node's data directory.

        Args:
            identity: as for DataDirectory.open.
            fsync: False lets acknowledged writes be lost with the power.
            budget: the memory that the engines may take.

        Raises:
            DataDirectoryInUse, DataDirectoryMismatch, StateCorrupt: as DataDirectory.open.
            StorageError: as there; or an engine is damaged; or RocksDB is not installed.
        """
        _require_rocksdb()
        with ExitStack() as resources:
            directory = DataDirectory.open(path, identity)
            resources.callback(directory.close)
            storage = cls._open_engines(directory, resources, budget, fsync=fsync)
            if directory.is_new:
                directory.finish_creation()
            return storage

    @classmethod
    @contextmanager
    def found(cls, path: Path, identity: Identity) -> Iterator[Self]:
        """An empty storage to be filled, which is a node's directory if the block ends well.

        If it does not, nothing is left in the directory, or what no node starts from.

        Raises:
            DataDirectoryInUse, StorageError: as DataDirectory.found; nothing was touched.
        """
        _require_rocksdb()
        directory = DataDirectory.found(path, identity)
        with closing(directory):
            try:
                with ExitStack() as resources:
                    storage = cls._open_engines(directory, resources, Budget(), fsync=True)
                    with closing(storage):
                        yield storage
            except BaseException:
                directory.clear()
                raise
            directory.finish_creation()

    @classmethod
    def _open_engines(
        cls, directory: DataDirectory, resources: ExitStack, budget: Budget, *, fsync: bool
    ) -> Self:
        """Both engines of a locked directory; the storage takes over what has to be closed."""
        from kvorum_node.storage.rocks import RocksEngine, Role  # noqa: PLC0415 - an extra

        log = RocksEngine.open(
            directory.log, Role.LOG, create=directory.is_new, fsync=fsync, budget=budget.log
        )
        resources.callback(log.close)
        state = RocksEngine.open(
            directory.state, Role.STATE, create=directory.is_new, budget=budget.state
        )
        resources.callback(state.close)
        return cls(
            directory.identity,
            log,
            state,
            resources.pop_all(),
            directory.acquaintances,
            directory.condemn,
            directory.path,
        )

    @classmethod
    def memory(cls, identity: Identity | None = None) -> Self:
        """Engines that keep nothing."""
        log, state = MemoryEngine(), MemoryEngine()
        with ExitStack() as resources:
            resources.callback(log.close)
            resources.callback(state.close)
            return cls(identity or Identity.single(), log, state, resources.pop_all())

    def close(self) -> None:
        """Close both engines, and then release the directory. May be called twice."""
        self._resources.close()


def _require_rocksdb() -> None:
    """`memory:` works without the extra that brings it."""
    try:
        import_module("kvorum_node.storage.rocks")
    except ModuleNotFoundError as error:
        if error.name != "rocksdict":
            raise
        raise StorageError("a store on a disk needs RocksDB: pip install 'kvorum[node]'") from error


def stored_identity(path: Path) -> Identity | None:
    """Whose the directory is; None if no node has ever been complete in it.

    Raises:
        DataDirectoryMismatch, StorageError: as DataDirectory.open.
    """
    try:
        return _read_content(path / _IDENTITY).identity
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unusable(path, error) from error


def is_open(path: Path) -> bool:
    """Whether a process has the directory open at this moment."""
    try:
        descriptor = os.open(path / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def prepare(path: Path) -> None:
    """See that a node can begin here, before anybody is told that it will.

    Raises:
        DataDirectoryInUse, StateCorrupt, StorageError: as DataDirectory.open.
    """
    try:
        _make_directory(path)
        _refuse_foreign(path)
        os.close(_lock(path))
        _refuse_condemned(path)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"the data directory {path} cannot be used: {error.strerror} ({error.filename})"
    )


def replace_identity(path: Path, identity: Identity) -> None:
    """Give the directory, which the caller has open, to another cluster, without its peers.

    Raises:
        StorageError: and it is as it was.
    """
    _write_content(path, _Content(identity))


def _write_content(path: Path, content: _Content) -> None:
    try:
        write_durably(path / _IDENTITY, _encode(content))
    except OSError as error:
        raise StorageError(f"cannot write {path / _IDENTITY}: {error.strerror}") from error


def _make_directory(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise StorageError(f"the data directory {path} is a file")
    missing = [ancestor for ancestor in (path, *path.parents) if not ancestor.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for created in missing:
        sync_directory(created.parent)


def _refuse_foreign(path: Path) -> None:
    """Before anything is created in it: is this a directory that a node may use?"""
    names = {entry.name for entry in path.iterdir()} - _NOT_OURS_BUT_HARMLESS
    if _IDENTITY in names or _NEW_IDENTITY in names:
        return
    if any(name.startswith(_UNFINISHED) for name in names):
        raise StorageError(
            f"{path} is not complete: a `kvorum init` or a `kvorum snapshot restore` is under way"
            " there, or was broken off. If it was, delete the directory, and repeat that"
        )
    foreign = names - {_LOCK, f"{_NEW_IDENTITY}.tmp"}
    if foreign:
        raise StorageError(
            f"{path} is not a kvorum data directory, and is not empty: it contains"
            f" {min(foreign)}. Choose a new or an empty directory"
        )


def _refuse_filled(path: Path) -> None:
    """A cluster is begun in a directory that has nothing in it, and never over what is there."""
    names = {entry.name for entry in path.iterdir()} - _NOT_OURS_BUT_HARMLESS - {_LOCK}
    if not names:
        return
    if _IDENTITY in names:
        held = f"holds {stored_identity(path)}"
    elif any(name.startswith(_UNFINISHED) for name in names):
        held = "is what is left of a start that was broken off, or is under way"
    else:
        held = f"is not empty: it contains {min(names)}"
    raise StorageError(f"{path} {held}. Choose a new or an empty directory")


def _refuse_condemned(path: Path) -> None:
    try:
        why = (path / _CORRUPT).read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        return
    raise StateCorrupt(why)


def _lock(path: Path) -> int:
    """Take the lock, for as long as the descriptor is open."""
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise DataDirectoryInUse(
            f"the data directory {path} is open in the process with pid {holder}", pid=holder
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    return descriptor


def _find_content(path: Path, expected: Identity | None) -> tuple[_Content, bool]:
    """What the directory is, and whether its creation is still to be finished."""
    if (path / _IDENTITY).exists():
        found = _read_content(path / _IDENTITY)
        if expected is not None and found.identity != expected:
            raise DataDirectoryMismatch(
                f"the data directory {path} belongs to {found.identity}, not to {expected}"
            )
        return found, False
    # Nothing was ever promised by what is here, so an unfinished identity gives way.
    created = _Content(expected or Identity.single())
    write_durably(path / _NEW_IDENTITY, _encode(created))
    return created, True


def _encode(content: _Content) -> bytes:
    identity = content.identity
    encoded = {
        "format": FORMAT,
        "cluster_id": identity.cluster_id,
        "node_id": identity.node_id,
        "directory_id": identity.directory_id,
        "peers": {str(peer): content.peers[peer] for peer in sorted(content.peers)},
    }
    return json.dumps(encoded, indent=2).encode() + b"\n"


def _read_content(path: Path) -> _Content:
    try:
        content = json.loads(path.read_bytes())
        version = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged: {error!r}; replace this node") from error
    if not isinstance(version, int) or version > FORMAT:
        raise DataDirectoryMismatch(
            f"{path.parent} is of format {version}, this version knows formats up to {FORMAT}."
            " A newer version of kvorum has written it; run that one"
        )
    match content:
        case {
            "cluster_id": str(cluster_id),
            "node_id": int(node_id),
            "directory_id": str(directory_id),
            "peers": dict(peers),
        } if cluster_id and node_id > 0 and directory_id and _are_peers(peers):
            known = {NodeId(int(peer)): known_as for peer, known_as in peers.items()}
            return _Content(Identity(cluster_id, NodeId(node_id), directory_id), known)
        case _:
            raise StorageError(
                f"{path} is damaged: it names no cluster, node, directory and peers; replace this"
                " node"
            )


def _are_peers(peers: Mapping[str, object]) -> bool:
    return all(
        peer.isdecimal() and isinstance(directory_id, str) and directory_id
        for peer, directory_id in peers.items()
    )
