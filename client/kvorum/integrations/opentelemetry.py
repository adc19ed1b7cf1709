"""Spans and metrics of calls, for OpenTelemetry.

    instrument(kv)      # nothing is recorded before that

Names follow the semantic conventions for database clients (1.33 and later):

    span       get, put, delete, list, add, ..., transaction     of kind CLIENT
      db.system.name            kvorum
      db.operation.name         the same
      db.operation.batch.size   how many operations, of a transaction with several
      kvorum.conflict           true if a check of it did not hold, and nothing was written
      kvorum.keys               only with `record_keys`
      error.type                the reason of a KvorumError, such as UNIQUE_VIOLATION
    metric     db.client.operation.duration, a histogram in seconds, by the same but the keys

The count of the histogram by `error.type` is that of errors by their reason.

Rule of this file: it stands at the seam of backends, so that a call is one span whoever makes
it: a program, a pattern, or a thread through `SyncKV`. A call includes its retries. Values are
never recorded, and messages of errors only with the keys that they name.
"""

from collections.abc import Iterator
from time import perf_counter
from typing import Any, Final

from kvorum.backends import Backend, Feed
from kvorum.errors import InvalidArgument, KvorumError
from kvorum.integrations import missing
from kvorum.kv import KV
from kvorum.sync import SyncKV
from kvorumpb.v1.kv_pb2 import Call, Reply
from kvorumpb.v1.watch_pb2 import BeginWatch

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import Histogram, MeterProvider
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
except ImportError as error:
    raise missing("opentelemetry", error) from error

Attributes = dict[str, Any]

MAX_RECORDED_KEYS: Final = 16
"""Of one call."""

_SCOPE: Final = "kvorum"
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.33.0"
_BUCKETS_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""As the conventions advise."""


def instrument(
    kv: KV | SyncKV,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    record_keys: bool = False,
) -> None:
    """Record the calls of a store from now on, with the providers of the program.

    `record_keys` puts the first keys of a call, and the messages of errors, which name keys,
    into its span. Watches are not recorded: they have no end. Costs nothing on the wire.
    `InvalidArgument` if the store is instrumented already.
    """
    store = _store(kv)
    if isinstance(store._backend, _Recording):  # noqa: SLF001 - the rule of this file
        raise InvalidArgument(f"{kv!r} is instrumented already")
    tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider, schema_url=_SCHEMA)
    meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider, schema_url=_SCHEMA)
    duration = meter.create_histogram(
        "db.client.operation.duration",
        unit="s",
        description="Duration of database client operations.",
        explicit_bucket_boundaries_advisory=_BUCKETS_SECONDS,
    )
    store._backend = _Recording(store._backend, tracer, duration, record_keys)  # noqa: SLF001 - as above


def uninstrument(kv: KV | SyncKV) -> None:
    """Record nothing any more. May be repeated."""
    store = _store(kv)
    if isinstance(store._backend, _Recording):  # noqa: SLF001 - the rule of this file
        store._backend = store._backend.inner  # noqa: SLF001 - as above


class _Recording:
    """A backend that records what passes to another one."""

    def __init__(
        self, inner: Backend, tracer: Tracer, duration: Histogram, record_keys: bool
    ) -> None:
        self.inner = inner
        self._tracer = tracer
        self._duration = duration
        self._record_keys = record_keys

    async def call(self, call: Call, *, timeout_seconds: float) -> Reply:
        name, size = _operation(call)
        attributes: Attributes = {"db.system.name": "kvorum", "db.operation.name": name}
        if size > 1:
            attributes["db.operation.batch.size"] = size
        only_here: Attributes = {}
        if self._record_keys:
            only_here["kvorum.keys"] = [
                _text(key) for key, _ in zip(_keys(call), range(MAX_RECORDED_KEYS), strict=False)
            ]
        began = perf_counter()
        with self._tracer.start_as_current_span(
            name,
            kind=SpanKind.CLIENT,
            attributes={**attributes, **only_here},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                reply = await self.inner.call(call, timeout_seconds=timeout_seconds)
            except BaseException as error:  # cancelled, too
                attributes["error.type"] = self._fail(span, error)
                raise
            else:
                if reply.HasField("txn") and not reply.txn.result.succeeded:
                    attributes["kvorum.conflict"] = True
                    span.set_attribute("kvorum.conflict", True)
                return reply
            finally:
                self._duration.record(perf_counter() - began, attributes)

    def watch(self, begin: BeginWatch, *, timeout_seconds: float) -> Feed:
        return self.inner.watch(begin, timeout_seconds=timeout_seconds)

    async def close(self) -> None:
        await self.inner.close()

    def _fail(self, span: Span, error: BaseException) -> str:
        reason = error.reason if isinstance(error, KvorumError) else type(error).__name__
        span.set_attribute("error.type", reason)
        span.set_status(Status(StatusCode.ERROR, str(error) if self._record_keys else None))
        return reason


def _store(kv: KV | SyncKV) -> KV:
    return kv._kv if isinstance(kv, SyncKV) else kv  # noqa: SLF001 - the rule of this file


def _operation(call: Call) -> tuple[str, int]:
    """The name of what is called, and how many operations it has."""
    request = call.WhichOneof("request") or "unknown"
    if request != "txn":
        return request, 1
    operations = call.txn.transaction.operations
    if len(operations) == 1:
        return operations[0].WhichOneof("operation") or "unknown", 1
    return "transaction", len(operations)


def _keys(call: Call) -> Iterator[bytes]:
    """The keys that a call names, without those of its checks."""
    match call.WhichOneof("request"):
        case "get":
            yield call.get.key
        case "put":
            yield call.put.key
        case "delete":
            yield call.delete.key
        case "list" if call.list.HasField("prefix"):
            yield call.list.prefix
        case "txn":
            for operation in call.txn.transaction.operations:
                one = getattr(operation, operation.WhichOneof("operation") or "get")
                if "key" in one.DESCRIPTOR.fields_by_name:
                    yield one.key


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
