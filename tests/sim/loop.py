"""The event loop of one simulated process: asyncio as far as the node uses it, without a selector.

The simulator calls `run` when the process gets the processor. Between two calls nothing
of the process happens, which is what makes a pause: what arrives meanwhile waits in the
queue. Time is the node's own monotonic clock, and what the node gives to a thread goes to
`in_thread`, which lets simulated time pass for it.

Not a subclass of AbstractEventLoop: most of that is sockets, pipes and signals, which a
simulated process must not have. To ask for one of those is an AttributeError.
"""

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from functools import partial
from heapq import heappop, heappush
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")


class Surroundings(Protocol):
    """What the loop needs of the machine that it runs on."""

    def time(self) -> float:
        """The monotonic clock, in seconds."""

    def timer_set(self, when: float) -> None:
        """The process wants to run again at this time of its clock."""

    def in_thread(
        self, executor: object, work: Callable[[], Any], future: "asyncio.Future[Any]"
    ) -> None:
        """Do the work beside the loop, and settle the future when it is done."""

    def unhandled(self, message: str, error: BaseException | None) -> None:
        """A callback or a task has failed, and nobody took the error."""


class NodeLoop:
    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._sequence = 0
        self._self = cast("asyncio.AbstractEventLoop", self)
        self.tasks: list[asyncio.Task[Any]] = []
        """All that were created and may not have ended."""

    # What the simulator calls.

    @property
    def has_work(self) -> bool:
        return bool(self._ready)

    def run(self, *, iterations: int) -> None:
        """Run what is ready, and what that makes ready, for at most so many iterations."""
        ready = self._ready
        if events._get_running_loop() is not None:
            raise AssertionError("one process runs at a time, and to its end")
        events._set_running_loop(self._self)
        try:
            while ready and iterations > 0:
                iterations -= 1
                for _ in range(len(ready)):
                    handle = ready.popleft()
                    if not handle.cancelled():
                        handle._run()
        finally:
            events._set_running_loop(None)

    def wake_timers(self) -> None:
        """Make ready what is due by the clock, and ask to be woken for the rest."""
        now = self.time()
        timers = self._timers
        while timers and timers[0][0] <= now:
            handle = heappop(timers)[2]
            if not handle.cancelled():
                self._ready.append(handle)
        if timers:
            self._surroundings.timer_set(timers[0][0])

    def end(self) -> None:
        """Cancel every task and let it come to its end."""
        for _ in range(100):
            self.tasks = [task for task in self.tasks if not task.done()]
            if not self.tasks:
                break
            for task in self.tasks:
                task.cancel()
            self.run(iterations=100)
        else:
            raise AssertionError(f"tasks outlive their cancellation: {self.tasks}")
        self._ready.clear()
        self._timers.clear()

    # What asyncio and the node call.

    def time(self) -> float:
        return self._surroundings.time()

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return events._get_running_loop() is self._self

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self._self)

    def create_task(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> "asyncio.Task[T]":
        task = asyncio.Task(coroutine, loop=self._self, name=name or "task", context=context)
        if len(self.tasks) > 20:
            self.tasks = [one for one in self.tasks if not one.done()]
        self.tasks.append(task)
        return task

    def call_soon(
        self, callback: Callable[..., Any], *arguments: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, arguments, self._self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., Any],
        *arguments: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *arguments, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *arguments: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, arguments, self._self, context)
        self._sequence += 1
        heappush(self._timers, (when, self._sequence, handle))
        if self._timers[0][2] is handle:
            self._surroundings.timer_set(when)
        return handle

    def run_in_executor(
        self, executor: Executor | None, function: Callable[..., T], *arguments: Any
    ) -> "asyncio.Future[T]":
        future = self.create_future()
        work = partial(function, *arguments) if arguments else function
        self._surroundings.in_thread(executor, work, future)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._surroundings.unhandled(str(context.get("message")), context.get("exception"))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Asyncio tells us; a cancelled timer is skipped when it is due."""
