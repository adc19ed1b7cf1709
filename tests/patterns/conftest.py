"""Every pattern on each kind of store; what it costs is counted in round trips."""

from collections.abc import Iterator

import pytest

from kvorum import KV
from tests.support import targets
from tests.support.round_trips import RoundTrips, counting

kv = targets.kv
local_cluster = targets.local_cluster
sync_kv = targets.sync_kv
target = targets.target


@pytest.fixture
def round_trips(kv: KV) -> Iterator[RoundTrips]:
    """Those of `kv`."""
    with counting(kv) as trips:
        yield trips
