"""The option that replaces the output in golden scripts by what came out."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write the output of golden scripts anew"
    )


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    # Without a default, a run that collects this folder late would not know the option.
    return bool(request.config.getoption("--rewrite", default=False))
