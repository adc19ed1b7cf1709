"""`kvorum.open` and `kvorum.open_sync`: from a target to a store."""

# ruff: noqa: A001 - `type` and `timeout` are the words of the public API

import os
from collections.abc import Generator
from types import TracebackType
from typing import Any, assert_never

from kvorum import limits
from kvorum.arguments import check_timeout
from kvorum.backends import Backend
from kvorum.codecs import Codec, ValueType, codec_of
from kvorum.kv import KV
from kvorum.sync import SyncKV
from kvorum.target import Cluster, Directory, Memory, Target, parse_target


class Opening:
    """A store that is about to be opened: await it, or enter it with `async with`."""

    def __init__(self, target: Target, timeout: float, codec: Codec[Any]) -> None:
        self._target = target
        self._timeout = timeout
        self._codec = codec
        self._kv: KV | None = None

    def __await__(self) -> Generator[Any, None, KV]:
        return self._open().__await__()

    async def __aenter__(self) -> KV:
        self._kv = await self._open()
        return self._kv

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._kv is not None:
            await self._kv.close()

    async def _open(self) -> KV:
        backend = await _open_backend(self._target)
        return KV(backend, target=str(self._target), timeout=self._timeout, type=self._codec)


async def _open_backend(target: Target) -> Backend:
    # What is not needed is not imported: a cluster's client does without the node.
    match target:
        case Memory() | Directory():
            from kvorum.backends.embedded import EmbeddedBackend  # noqa: PLC0415 - see above

            return await EmbeddedBackend.open(
                target.path if isinstance(target, Directory) else None
            )
        case Cluster(addresses):
            from kvorum.backends.cluster import ClusterBackend  # noqa: PLC0415 - see above

            return ClusterBackend(addresses)
        case _:
            assert_never(target)


def open(
    target: str | os.PathLike[str],
    *,
    timeout: float = limits.DEFAULT_TIMEOUT_SECONDS,
    type: ValueType = "json",
) -> Opening:
    """Open a store: "memory:", a directory, or "kvorum://host:port,host:port,...".

        kv = await kvorum.open("memory:")
        async with kvorum.open("./data") as kv: ...

    `timeout`, in seconds, and `type`, as for the calls of `KV`, are what calls use
    that do not say otherwise. Opening a cluster does not wait for it: the
    first call does. Raises `InvalidTarget`, `Closed` for a cluster if a fork has left gRPC
    unusable, and for a directory `StorageError`. A store in a
    directory refuses writes with `QuotaExceeded` while its disk has less than 256 MiB left.
    """
    return Opening(parse_target(target), check_timeout(timeout), codec_of(type))


def open_sync(
    target: str | os.PathLike[str],
    *,
    timeout: float = limits.DEFAULT_TIMEOUT_SECONDS,
    type: ValueType = "json",
) -> SyncKV:
    """Open a store for programs without an event loop; like `open`, but at once.

    with kvorum.open_sync("memory:") as kv: ...
    """
    return SyncKV.open(open(target, timeout=timeout, type=type))
