"""kvorum does without its integrations, and says what is missing for them."""

import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "client/kvorum"
LIBRARIES = ("starlette", "openfeature", "opentelemetry")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_is_an_error_that_names_the_extra(library: str) -> None:
    program = f"""
import sys
sys.modules[{library!r}] = None
try:
    import kvorum.integrations.{library}
except ImportError as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert f"pip install 'kvorum[{library}]'" in ran.stdout


def test_nothing_of_kvorum_imports_an_integration() -> None:
    outside = [path for path in CLIENT.rglob("*.py") if "integrations" not in path.parts]
    assert outside
    assert [path for path in outside if "kvorum.integrations" in path.read_text()] == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_integration_needs_its_own_library_alone(library: str) -> None:
    others = [other for other in LIBRARIES if other != library]
    program = f"""
import sys
for other in {others!r}:
    sys.modules[other] = None
import kvorum.integrations.{library}
"""
    subprocess.run([sys.executable, "-c", program], check=True)
