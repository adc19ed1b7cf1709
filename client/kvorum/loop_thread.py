"""An event loop in a thread of its own, for programs that have none."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from kvorum.errors import Closed, InvalidArgument

T = TypeVar("T")


class LoopThread:
    """An event loop in a daemon thread, and the way into it from other threads."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_log_unless_woken_in_vain)
        self._stopping = asyncio.Event()
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="kvorum", daemon=True)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """False in a child process: a fork copies the object, but not the thread."""
        return os.getpid() == self._pid

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine in the loop; return or raise what it does.

        If the calling thread is interrupted, the coroutine is cancelled.
        """
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop when what was submitted has ended, and join its thread."""
        with self._lock:
            self._stopped = True
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin to run the coroutine in the loop.

        Raises `Closed` after a stop or a fork, and `InvalidArgument` in the loop itself: who
        would wait there, waits for ever, and all other threads with it.
        """
        # The order matters: after a fork, the lock may be held by a thread that is not there.
        if not self.is_here:
            coroutine.close()
            raise Closed(
                f"the store was opened in process {self._pid} and does not survive a fork: "
                "open another one in this process"
            )
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise InvalidArgument(
                "a function that runs in the event loop of the store cannot call the store for "
                "threads: call it before, or use the KV that it is given"
            )
        with self._lock:
            if not self._stopped:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise Closed("the store is closed")

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._stopping.wait()
        # What was submitted just before the stop ends by itself: the store is closed.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)


def _log_unless_woken_in_vain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what no code has caught, but for one thing that happens and means nothing.

    gRPC wakes all loops of a process that have channels, and all but one find nothing to do: it
    lets them fail (grpc/grpc#25364). With two stores, that would be a traceback every few calls.
    """
    is_grpc = "PollerCompletionQueue._handle_events" in context["message"]
    if not (is_grpc and isinstance(context.get("exception"), BlockingIOError)):
        loop.default_exception_handler(context)
