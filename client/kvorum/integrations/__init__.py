"""kvorum within what applications are built of: web frameworks, feature flags, telemetry.

    starlette       rate limits and sessions, for Starlette and FastAPI      kvorum[starlette]
    openfeature     a provider over FeatureFlags, for the OpenFeature SDK    kvorum[openfeature]
    opentelemetry   spans and metrics of calls, for OpenTelemetry            kvorum[opentelemetry]

Rules of this package:

- Nothing of it is imported by kvorum itself, and each module needs its own extra alone.
- It translates, and decides nothing: what is right under concurrency and failure is so in the
  patterns, and in the store.
- It goes over the public interface. opentelemetry.py alone stands at the seam of backends, where
  every call passes, whoever makes it.
- What is secret (tokens), and what is the user's (values, and keys unless asked for), is in no
  log, header, span or repr.
"""


def missing(extra: str, error: ImportError) -> ImportError:
    """The error to raise where the library of an integration is not installed."""
    return ImportError(
        f"kvorum.integrations.{extra} needs a library that is not installed ({error.name}): "
        f"pip install 'kvorum[{extra}]'",
        name=error.name,
    )
