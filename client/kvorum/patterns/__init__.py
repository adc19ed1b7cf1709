"""What applications build on a store again and again, right under concurrency and failure.

Each pattern is one small module over the public interface of `KV` alone, and works on every
kind of store:

    Collection          records found by more than their key          collection.py
    Counter             counts, exactly                               counter.py
    Expiring            values that live for a while                  expiring.py
    Paginator           a web list with next-page tokens              pagination.py
    RateLimiter         so many in a window, decided by the store     rate_limiter.py
    Cache               values under tags, computed once              cache.py
    batch_get, ...      many keys at a time                           batch.py
    SessionStore        logins that end when they should              sessions.py
    FeatureFlags        features on for some, without a round trip    flags.py
    chunked             values beyond the limit of a value            chunked.py

`kvorum.patterns.sync` has the same names for threads. It is generated from these modules.

Rules of this package: nothing of it is known to the store or to `KV`; a name that the program
gives is checked (`keys.check_name`), text from outside is escaped (`keys.escape`); who decides
what time it is, is the store.
"""

from kvorum.patterns import chunked as chunked
from kvorum.patterns.batch import BatchEntries as BatchEntries
from kvorum.patterns.batch import BatchProgress as BatchProgress
from kvorum.patterns.batch import BatchResult as BatchResult
from kvorum.patterns.batch import ItemResult as ItemResult
from kvorum.patterns.batch import Put as Put
from kvorum.patterns.batch import batch_delete as batch_delete
from kvorum.patterns.batch import batch_get as batch_get
from kvorum.patterns.batch import batch_put as batch_put
from kvorum.patterns.cache import Cache as Cache
from kvorum.patterns.cache import CacheStatistics as CacheStatistics
from kvorum.patterns.collection import Collection as Collection
from kvorum.patterns.counter import Count as Count
from kvorum.patterns.counter import Counter as Counter
from kvorum.patterns.counter import ShardedCounter as ShardedCounter
from kvorum.patterns.expiring import Expiring as Expiring
from kvorum.patterns.flag_rules import Context as Context
from kvorum.patterns.flag_rules import Flag as Flag
from kvorum.patterns.flag_rules import Reason as Reason
from kvorum.patterns.flags import Explanation as Explanation
from kvorum.patterns.flags import FeatureFlags as FeatureFlags
from kvorum.patterns.indexes import Index as Index
from kvorum.patterns.indexes import Unique as Unique
from kvorum.patterns.pagination import Paginator as Paginator
from kvorum.patterns.rate_limiter import RateDecision as RateDecision
from kvorum.patterns.rate_limiter import RateDecisions as RateDecisions
from kvorum.patterns.rate_limiter import RateLimiter as RateLimiter
from kvorum.patterns.rate_limiter import RateStanding as RateStanding
from kvorum.patterns.reindexing import Difference as Difference
from kvorum.patterns.reindexing import Reindexed as Reindexed
from kvorum.patterns.reindexing import UniqueConflict as UniqueConflict
from kvorum.patterns.sessions import Session as Session
from kvorum.patterns.sessions import SessionPage as SessionPage
from kvorum.patterns.sessions import SessionStore as SessionStore

__all__ = [
    "BatchEntries",
    "BatchProgress",
    "BatchResult",
    "Cache",
    "CacheStatistics",
    "Collection",
    "Context",
    "Count",
    "Counter",
    "Difference",
    "Expiring",
    "Explanation",
    "FeatureFlags",
    "Flag",
    "Index",
    "ItemResult",
    "Paginator",
    "Put",
    "RateDecision",
    "RateDecisions",
    "RateLimiter",
    "RateStanding",
    "Reason",
    "Reindexed",
    "Session",
    "SessionPage",
    "SessionStore",
    "ShardedCounter",
    "Unique",
    "UniqueConflict",
    "batch_delete",
    "batch_get",
    "batch_put",
    "chunked",
]
