"""What of a call gets into spans and metrics, and what does not."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import kvorum
from kvorum import KV, IndexEntry, InvalidArgument, NoNodeReachable, SyncKV, UniqueViolation
from kvorum.integrations.opentelemetry import instrument, uninstrument
from kvorum.patterns import Counter


class Telemetry:
    """What a program has sent."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._tracers = TracerProvider()
        self._tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self._meters = MeterProvider([self._reader])
        self.tracer = self._tracers.get_tracer("test")

    def instrument(self, kv: KV | SyncKV, *, record_keys: bool = False) -> None:
        instrument(
            kv,
            tracer_provider=self._tracers,
            meter_provider=self._meters,
            record_keys=record_keys,
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    @property
    def durations(self) -> list[HistogramDataPoint]:
        data = self._reader.get_metrics_data()
        assert data is not None
        [metric] = data.resource_metrics[0].scope_metrics[0].metrics
        assert (metric.name, metric.unit) == ("db.client.operation.duration", "s")
        points = list(metric.data.data_points)
        assert all(isinstance(point, HistogramDataPoint) for point in points)
        return points  # type: ignore[return-value]  # as was just asserted


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


async def test_nothing_is_recorded_before_and_after(kv: KV, telemetry: Telemetry) -> None:
    await kv.put("a", 1)
    telemetry.instrument(kv)
    await kv.put("b", 1)
    uninstrument(kv)
    uninstrument(kv)
    await kv.put("c", 1)
    assert [span.name for span in telemetry.spans] == ["put"]


async def test_a_call_is_a_span_and_a_duration(kv: KV, telemetry: Telemetry) -> None:
    telemetry.instrument(kv)
    await kv.put("user:secret", {"name": "ann"})
    await kv.get("user:secret")
    await kv.list("user:")
    await kv.delete("user:secret")
    await Counter(kv, "views").add()
    assert [span.name for span in telemetry.spans] == ["put", "get", "list", "delete", "add"]
    first = telemetry.spans[0]
    assert first.kind is SpanKind.CLIENT
    assert first.status.status_code is StatusCode.UNSET
    assert attributes_of(first) == {"db.system.name": "kvorum", "db.operation.name": "put"}
    points = {point.attributes["db.operation.name"]: point for point in telemetry.durations}  # type: ignore[index]  # each has some
    assert {name: point.count for name, point in points.items()} == dict.fromkeys(
        ["put", "get", "list", "delete", "add"], 1
    )
    assert points["put"].explicit_bounds[0] == 0.001
    everything = str([span.to_json() for span in telemetry.spans]) + str(telemetry.durations)
    assert "secret" not in everything
    assert "ann" not in everything


async def test_a_transaction_says_how_much_it_has_and_whether_its_checks_held(
    kv: KV, telemetry: Telemetry
) -> None:
    telemetry.instrument(kv)
    await kv.atomic().put("a", 1).put("b", 2).commit()
    await kv.atomic().check("a", value=7).put("a", 1).otherwise().commit()
    [held, failed] = map(attributes_of, telemetry.spans)
    assert (held["db.operation.name"], held["db.operation.batch.size"]) == ("transaction", 2)
    assert "kvorum.conflict" not in held
    assert (failed["db.operation.name"], failed["kvorum.conflict"]) == ("put", True)


async def test_an_error_is_known_by_its_reason_and_names_no_key(
    kv: KV, telemetry: Telemetry
) -> None:
    mail = IndexEntry("mail", "secret@example.org", unique=True)
    await kv.put("user:secret", 1, index_entries=[mail])
    telemetry.instrument(kv)
    with pytest.raises(UniqueViolation):
        await kv.put("user:2", 1, index_entries=[mail])
    [span] = telemetry.spans
    assert span.status.status_code is StatusCode.ERROR
    assert attributes_of(span)["error.type"] == "UNIQUE_VIOLATION"
    assert "secret" not in span.to_json()
    [point] = telemetry.durations
    assert point.attributes is not None
    assert (point.attributes["error.type"], point.count) == ("UNIQUE_VIOLATION", 1)


async def test_keys_are_recorded_if_that_is_asked_for(kv: KV, telemetry: Telemetry) -> None:
    telemetry.instrument(kv, record_keys=True)
    await kv.put("a", 1)
    await kv.list("us")
    await kv.atomic().put("b", 1).add("c").commit()
    assert [attributes_of(span)["kvorum.keys"] for span in telemetry.spans] == [
        ("a",),
        ("us",),
        ("b", "c"),
    ]
    assert all("kvorum.keys" not in (point.attributes or {}) for point in telemetry.durations)


async def test_a_call_is_within_what_the_program_does(kv: KV, telemetry: Telemetry) -> None:
    telemetry.instrument(kv)
    with telemetry.tracer.start_as_current_span("request"):
        await kv.get("a")
    call, request = telemetry.spans
    assert call.parent == request.context


def test_calls_of_threads_are_recorded_within_what_they_do(telemetry: Telemetry) -> None:
    with kvorum.open_sync("memory:") as kv:
        telemetry.instrument(kv)
        with telemetry.tracer.start_as_current_span("request"):
            kv.get("a")
    call, request = telemetry.spans
    assert call.parent == request.context


async def test_a_call_that_fails_or_is_cancelled_is_recorded(telemetry: Telemetry) -> None:
    async with kvorum.open("kvorum://127.0.0.1:1", timeout=0.2) as away:
        telemetry.instrument(away)
        with pytest.raises(NoNodeReachable):
            await away.get("a")
        waiting = asyncio.create_task(away.get("a", timeout=30))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    kinds = [attributes_of(span)["error.type"] for span in telemetry.spans]
    assert kinds == ["NO_NODE_REACHABLE", "CancelledError"]


async def test_a_watch_goes_through(kv: KV, telemetry: Telemetry) -> None:
    telemetry.instrument(kv)
    async with kv.watch("a") as watch:
        await kv.put("a", 1)
        assert (await anext(watch)).key == "a"
    assert [span.name for span in telemetry.spans] == ["put"]


async def test_a_store_is_instrumented_once(kv: KV, telemetry: Telemetry) -> None:
    telemetry.instrument(kv)
    with pytest.raises(InvalidArgument, match="already"):
        telemetry.instrument(kv)
