"""The OpenFeature SDK over feature flags of the store."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode, ProviderNotReadyError
from openfeature.flag_evaluation import Reason
from openfeature.provider import ProviderStatus

import kvorum
from kvorum import KV
from kvorum.integrations.openfeature import KvorumProvider
from kvorum.patterns.flags import FeatureFlags
from tests.support.eventually import eventually
from tests.support.round_trips import RoundTrips


@pytest.fixture
async def flags(kv: KV) -> AsyncIterator[FeatureFlags]:
    async with FeatureFlags(kv) as flags:
        yield flags


@pytest.fixture
def client(flags: FeatureFlags) -> Iterator[OpenFeatureClient]:
    api.set_provider_and_wait(KvorumProvider(flags))
    yield api.get_client()
    api.clear_providers()


async def test_a_flag_is_asked_without_a_round_trip(
    client: OpenFeatureClient, flags: FeatureFlags, round_trips: RoundTrips
) -> None:
    await flags.wait_for(await flags.set("checkout", users=["ann"]))
    round_trips.reset()
    assert client.get_boolean_value("checkout", False, EvaluationContext("ann")) is True
    assert client.get_boolean_value("checkout", True, EvaluationContext("bob")) is False
    assert await client.get_boolean_value_async("checkout", True) is False
    assert round_trips.count == 0


async def test_the_reason_is_that_of_the_flag(
    client: OpenFeatureClient, flags: FeatureFlags
) -> None:
    revision = await flags.set("checkout", percentage=50, users=["ann"], where={"plan": ["pro"]})
    await flags.wait_for(revision)
    details = client.get_boolean_details("checkout", False, EvaluationContext("ann"))
    assert (details.reason, details.variant) == (Reason.TARGETING_MATCH, "on")
    assert details.flag_metadata == {"revision": flags.revision, "stale": False}
    by_plan = EvaluationContext("bob", {"plan": "pro"})
    assert client.get_boolean_details("checkout", False, by_plan).value is True
    details = client.get_boolean_details("checkout", False, EvaluationContext("bob"))
    assert details.reason == Reason.SPLIT


async def test_variants_have_every_type(client: OpenFeatureClient, flags: FeatureFlags) -> None:
    await flags.set("text", percentage=100, variants={"a": "hello"})
    await flags.set("whole", percentage=100, variants={"a": 7})
    await flags.set("number", percentage=100, variants={"a": 2})
    revision = await flags.set("thing", percentage=100, variants={"a": {"x": [1]}})
    await flags.wait_for(revision)
    assert client.get_string_value("text", "") == "hello"
    assert client.get_integer_value("whole", 0) == 7
    number = client.get_float_value("number", 0.5)
    assert (number, type(number)) == (2.0, float)
    assert client.get_object_value("thing", {}) == {"x": [1]}


async def test_what_cannot_be_answered_is_the_default_and_a_code(
    client: OpenFeatureClient, flags: FeatureFlags, kv: KV
) -> None:
    await kv.put("flag:broken", [1])
    await flags.wait_for(await flags.set("text", percentage=100, variants={"a": "hello"}))
    details = client.get_boolean_details("missing", True)
    assert (details.value, details.error_code) == (True, ErrorCode.FLAG_NOT_FOUND)
    assert details.reason == Reason.ERROR
    wrong = client.get_integer_details("text", 3)
    assert (wrong.value, wrong.error_code) == (3, ErrorCode.TYPE_MISMATCH)
    broken = client.get_boolean_details("broken", True)
    assert (broken.value, broken.error_code) == (True, ErrorCode.PARSE_ERROR)
    nobody = EvaluationContext(7)  # type: ignore[arg-type]  # on purpose
    assert client.get_boolean_details("text", True, nobody).error_code == ErrorCode.INVALID_CONTEXT


async def test_threads_ask_too(client: OpenFeatureClient, flags: FeatureFlags) -> None:
    await flags.wait_for(await flags.set("checkout", percentage=100))
    said: list[bool] = []
    thread = threading.Thread(
        target=lambda: said.append(client.get_boolean_value("checkout", False))
    )
    thread.start()
    await asyncio.to_thread(thread.join)
    assert said == [True]


async def test_flags_that_were_not_entered_are_not_ready(kv: KV) -> None:
    provider = KvorumProvider(FeatureFlags(kv))
    try:
        with pytest.raises(ProviderNotReadyError):
            api.set_provider_and_wait(provider)
        assert api.get_client().get_provider_status() == ProviderStatus.ERROR
        assert api.get_client().get_boolean_value("checkout", True) is True
    finally:
        api.clear_providers()
    with pytest.raises(ProviderNotReadyError):
        await provider.__aenter__()


async def test_the_sdk_learns_that_flags_are_stale_and_ready_and_followed_no_more() -> None:
    told: list[str] = []

    handlers: list[tuple[ProviderEvent, Callable[[EventDetails], None]]] = [
        (event, lambda details, name=event.name: told.append(name))  # type: ignore[misc]  # its default
        for event in ProviderEvent
    ]
    kv = await kvorum.open("memory:")
    try:
        async with FeatureFlags(kv) as flags, KvorumProvider(flags) as provider:
            await flags.wait_for(await flags.set("checkout", percentage=100))
            api.set_provider_and_wait(provider)
            for event, handler in handlers:
                api.add_handler(event, handler)
            await eventually(lambda: told == ["PROVIDER_READY"])  # as it is so already
            told.clear()
            client = api.get_client()

            heard_at, flags._heard_at = flags._heard_at, flags._heard_at - 1_000
            await eventually(lambda: told == ["PROVIDER_STALE"])
            assert client.get_provider_status() == ProviderStatus.STALE
            details = client.get_boolean_details("checkout", False)
            assert (details.value, details.reason) == (True, Reason.STALE)

            flags._heard_at = heard_at
            await flags.set("other")
            await eventually(lambda: told == ["PROVIDER_STALE", "PROVIDER_READY"])
            assert client.get_provider_status() == ProviderStatus.READY

            await kv.close()
            await eventually(lambda: told[2:] == ["PROVIDER_ERROR"])
            assert client.get_provider_status() == ProviderStatus.ERROR
            assert client.get_boolean_value("checkout", False) is True
    finally:
        await kv.close()
        for event, handler in handlers:
            api.remove_handler(event, handler)
        api.clear_providers()
