"""Counts the calls of a server by method: an interceptor, so no service knows of it.

Rules: what has no handler is not counted, so that a caller cannot invent methods. A stream is
one call, whatever travels on it: services/dispatch.py counts what is in those of a session.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from inspect import isasyncgenfunction
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio

from kvorum_node.figures import Figures, Rpc, clock

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = (
    "Callable[[grpc.HandlerCallDetails],"
    " Awaitable[grpc.RpcMethodHandler[RequestT, ResponseT] | None]]"
)
Context = grpc.aio.ServicerContext[Any, Any]


class Observer(grpc.aio.ServerInterceptor):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._observed: dict[str, Handler] = {}
        """By the path of the method."""

    async def intercept_service(
        self,
        continuation: "Continuation[RequestT, ResponseT]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[RequestT, ResponseT] | None":
        path = handler_call_details.method
        observed = self._observed.get(path)
        if observed is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            _, service, method = path.split("/")
            observed = self._observed[path] = _observe(handler, self._figures.rpc(service, method))
        return observed


def _observe(handler: Handler, rpc: Rpc) -> Handler:
    """The same handler, counted."""
    kinds = {
        (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    }
    behavior: Any
    make: Any
    behavior, make = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]

    async def serve(request: Any, context: Context) -> Any:
        with _counted(rpc, context):
            return await behavior(request, context)

    async def serve_generator(request: Any, context: Context) -> AsyncIterator[Any]:
        with _counted(rpc, context):
            async for response in behavior(request, context):
                yield response

    observed: Handler = make(
        serve_generator if isasyncgenfunction(behavior) else serve,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return observed


@contextmanager
def _counted(rpc: Rpc, context: Context) -> Iterator[None]:
    rpc.started += 1
    began, code = clock(), "UNKNOWN"  # which is what gRPC says of any other exception
    try:
        yield
        code = _code(context)
    except asyncio.CancelledError:  # by the caller, by its deadline, or by a server that stops
        code = "CANCELLED"
        raise
    except grpc.aio.AbortError:
        code = _code(context)
        raise
    finally:
        rpc.handled[code] += 1
        rpc.seconds.observe(clock() - began)


def _code(context: Context) -> str:
    code: grpc.StatusCode | None = context.code()  # None is what nobody has set
    return "OK" if code is None else code.name
