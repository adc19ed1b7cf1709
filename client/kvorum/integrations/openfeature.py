"""A provider for the OpenFeature SDK: feature flags of the store, answered without asking it.

    async with FeatureFlags(kv) as flags, KvorumProvider(flags) as provider:
        api.set_provider_and_wait(provider)
        client = api.get_client()
        client.get_boolean_value("checkout", False, EvaluationContext("alice"))

The targeting key is the `user_id` of the context. A flag without variants is a boolean.

Rule of this file: what a flag says is in kvorum.patterns.flags. Here it gets the words of
OpenFeature, and errors become its codes.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from kvorum.errors import Closed, DeadlineExceeded, DecodeError, InvalidArgument, UnknownFlag
from kvorum.integrations import missing
from kvorum.patterns.flag_rules import Context
from kvorum.patterns.flags import FeatureFlags

try:
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.event import ProviderEventDetails
    from openfeature.exception import ErrorCode, ProviderNotReadyError
    from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
    from openfeature.provider import AbstractProvider, Metadata
except ImportError as error:
    raise missing("openfeature", error) from error

T = TypeVar("T")
Structure = Sequence[FlagValueType] | Mapping[str, FlagValueType]

_LOOK_SECONDS: Final = 1.0
"""How often it is looked whether the flags have become stale."""


class KvorumProvider(AbstractProvider):
    """OpenFeature over `FeatureFlags`, which have been entered.

    Every `resolve` is local, from any thread. Details have `revision` and `stale` as metadata;
    an error is FLAG_NOT_FOUND, TYPE_MISMATCH, PARSE_ERROR (what is stored is no flag) or
    INVALID_CONTEXT, with the default as value. `initialize` fails with PROVIDER_NOT_READY if the
    flags were not entered.

    While it is entered itself, it tells the SDK when the flags become stale (PROVIDER_STALE),
    when the store is heard again (PROVIDER_READY), and when they are followed no more
    (PROVIDER_ERROR). The answers go on in any case.
    """

    def __init__(self, flags: FeatureFlags) -> None:
        super().__init__()
        self._flags = flags
        self._telling: asyncio.Task[None] | None = None

    def get_metadata(self) -> Metadata:
        return Metadata("kvorum")

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """`ProviderNotReadyError` if the flags were not entered."""
        self._check_ready()

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(flag_key, default_value, evaluation_context)

    def resolve_string_details(
        self,
        flag_key: str,
        default_value: str,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[str]:
        return self._resolve(flag_key, default_value, evaluation_context)

    def resolve_integer_details(
        self,
        flag_key: str,
        default_value: int,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[int]:
        return self._resolve(flag_key, default_value, evaluation_context)

    def resolve_float_details(
        self,
        flag_key: str,
        default_value: float,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[float]:
        details = self._resolve(flag_key, float(default_value), evaluation_context)
        details.value = float(details.value)  # JSON writes 2.0 as 2
        return details

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Structure,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Structure]:
        return self._resolve(flag_key, default_value, evaluation_context)

    async def __aenter__(self) -> Self:
        self._check_ready()
        self._telling = asyncio.get_running_loop().create_task(self._tell(), name="kvorum provider")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell no more; the flags can still be asked."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])

    async def _tell(self) -> None:
        was_stale = False
        while True:
            try:
                await self._flags.wait_for(self._flags.revision + 1, timeout=_LOOK_SECONDS)
            except DeadlineExceeded:
                pass  # no news; but perhaps it was word that there are none
            except Closed as error:
                details = ProviderEventDetails(message=str(error), error_code=ErrorCode.GENERAL)
                self.emit_provider_error(details)
                return
            is_stale = self._flags.is_stale
            if is_stale and not was_stale:
                seconds = self._flags.staleness
                self.emit_provider_stale(
                    ProviderEventDetails(message=f"the store was not heard for {seconds:.0f} s")
                )
            elif was_stale and not is_stale:
                self.emit_provider_ready(ProviderEventDetails())
            was_stale = is_stale

    def _check_ready(self) -> None:
        if math.isinf(self._flags.staleness):
            raise ProviderNotReadyError("the feature flags are not loaded: enter them first")

    def _resolve(
        self, name: str, default: T, asking: EvaluationContext | None
    ) -> FlagResolutionDetails[T]:
        self._check_ready()
        asking = asking or EvaluationContext()
        context = Context(asking.targeting_key, asking.attributes)
        explained = self._flags.explain(name, context, default)
        details: FlagResolutionDetails[Any] = FlagResolutionDetails(
            value=explained.value,
            reason=Reason(explained.reason.value),
            variant=explained.variant,
            flag_metadata={"revision": explained.revision, "stale": explained.stale},
        )
        if explained.error is not None:
            details.error_code = _code(explained.error)
            details.error_message = explained.error.message
        return details


def _code(error: Exception) -> ErrorCode:
    match error:
        case UnknownFlag():
            return ErrorCode.FLAG_NOT_FOUND
        case DecodeError() if error.metadata["type"] == "flag":
            return ErrorCode.PARSE_ERROR
        case DecodeError():
            return ErrorCode.TYPE_MISMATCH
        case InvalidArgument():
            return ErrorCode.INVALID_CONTEXT
        case _:
            return ErrorCode.GENERAL
