"""How `kvorum.patterns.sync` runs the patterns of an event loop for threads.

Rule: what a user gives and a pattern would await (a function, an iterable) is called in the thread
that has called the pattern, which has nothing to do but wait. So it may block, and may use
patterns itself. What is not awaited (the function of an index or of an update, a codec) runs in the
loop: it computes, and calls no store, which would refuse it with `InvalidArgument`.
"""

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
)
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar, overload

from kvorum import KV, InvalidArgument, KvorumError, SyncKV

P = ParamSpec("P")
T = TypeVar("T")

_END = object()


def store_of(kv: SyncKV) -> KV:
    """The store that is behind it, for what runs in its loop."""

    async def itself(store: KV) -> KV:
        return store

    return kv.run(itself)


def same(given: Any) -> Any:
    """What has the same methods in both worlds, as the one is expected where the other is."""
    return given


def waiting(given: Any) -> Any:
    """The asynchronous object that a twin holds; of tuples and lists, those of what is in them."""
    if isinstance(given, tuple | list):
        return type(given)(map(waiting, given))
    return getattr(given, "_waiting", given)


def kv_of(given: Any) -> SyncKV:
    """The store of the first twin that is in there. `InvalidArgument` if there is none."""
    kv = getattr(given, "_kv", None)
    if isinstance(kv, SyncKV):
        return kv
    if isinstance(given, tuple | list) and given:
        return kv_of(given[0])
    raise InvalidArgument("there is nothing that has a store")


def iterate(kv: SyncKV, items: AsyncIterator[T]) -> Iterator[T]:
    """Take from an asynchronous iterator, one at a time."""

    async def following(_: KV) -> Any:
        return await anext(items, _END)

    async def close(_: KV) -> None:
        if isinstance(items, AsyncGenerator):
            await items.aclose()

    try:
        while (item := kv.run(following)) is not _END:
            yield item
    finally:
        # It may be left anywhere: where the garbage is collected, or after the store was closed.
        with suppress(KvorumError):
            kv.submit(close)


class Here:
    """The thread that waits for one call of a pattern, and runs what is asked of it meanwhile.

    What is asked later (of a cache that computes anew in the background) has a thread of its own.
    """

    def __init__(self, kv: SyncKV) -> None:
        self._kv = kv
        self._asked: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._has_left = False

    @overload
    def function(self, function: None) -> None: ...

    @overload
    def function(self, function: Callable[P, T]) -> Callable[P, Awaitable[T]]: ...

    def function(self, function: Callable[P, T] | None) -> Callable[P, Awaitable[T]] | None:
        """A function of the user, for the loop: to be awaited there, and run here."""
        if function is None:
            return None

        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self._ask(lambda: function(*args, **kwargs))

        return call

    def iterable(self, items: object) -> Any:
        """Items of the user, for the loop: asked for there, and taken here.

        Those that are there already are taken by the loop itself.
        """
        if isinstance(items, Iterable) and not isinstance(items, Collection):
            return self._take(items)
        return items

    def run(self, work: Callable[[KV], Awaitable[T]]) -> T:
        """Run the work in the loop, and here what it asks for."""
        future = self._kv.submit(work)
        future.add_done_callback(lambda _: self._asked.put(None))
        try:
            while (asked := self._asked.get()) is not None:
                asked()
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._has_left = True
        while not self._asked.empty():
            asked = self._asked.get()
            if asked is not None:
                _start(asked)

    async def _take(self, items: Iterable[T]) -> AsyncIterator[T]:
        iterator = iter(items)

        def following() -> Any:
            return next(iterator, _END)

        while (item := await self._ask(following)) is not _END:
            yield item

    async def _ask(self, function: Callable[[], T]) -> T:
        answer: Future[T] = Future()

        def carry_out() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(function())
                except BaseException as error:  # it is raised where it is awaited
                    answer.set_exception(_awaitable(error))
                    if not isinstance(error, Exception):
                        raise  # here, too: it is meant for the thread

        with self._lock:
            has_left = self._has_left
            if not has_left:
                self._asked.put(carry_out)
        if has_left:
            _start(carry_out)
        return await asyncio.wrap_future(answer)


def _awaitable(error: BaseException) -> Exception:
    """The error, or one that can be raised in the loop: this one would end the loop, or be lost."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    raised = RuntimeError(f"a function that was given has raised {error.__class__.__name__}")
    raised.__cause__ = error
    return raised


def _start(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="kvorum pattern", daemon=True).start()
