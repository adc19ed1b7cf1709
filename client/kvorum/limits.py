"""Every limit of kvorum, on one page, for both sides of the wire.

A request beyond a limit is refused with `LimitExceeded`, which names the limit,
its maximum and the actual size. Nothing is ever cut to fit. Units are the last
word of each name; sizes count the bytes as stored, after the client's codec.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# What a user stores.
MAX_KEY_BYTES: Final = 8 * KIB
MAX_VALUE_BYTES: Final = 25 * MIB
MAX_TRANSACTION_OPERATIONS: Final = 1024
"""Checks and the operations of both branches, counted together."""
MAX_TRANSACTION_BYTES: Final = 32 * MIB
MAX_METADATA_BYTES: Final = 4 * KIB
MAX_INDEX_ENTRIES: Final = 64
"""Of one record."""
MAX_INDEX_NAME_BYTES: Final = 256
MAX_INDEX_VALUE_BYTES: Final = 4 * KIB
MAX_TTL_MS: Final = 100 * 366 * 24 * 3600 * 1000
"""A hundred years: what is to stay longer has no time to live."""

DEFAULT_TRANSACTION_ATTEMPTS: Final = 32
"""How often the body of a `KV.transaction` runs, at most."""

# What a transaction reads, and what it does beside its own bytes. All of this is decided where it
# is carried out, by every node alike: these numbers say what entries in the log mean, and so stay.
MAX_RESULT_BYTES: Final = 32 * MIB
"""Records that the operations of one transaction return together: keys, values, metadata, index
entries, and what each of them needs beside."""
MAX_RANGE_RECORDS: Final = 10_000
"""Records that one check or one operation on a range may look at."""
MAX_UNCHANGED_EVENTS: Final = 10_000
"""Events that a check of `unchanged_since` may look at."""
MAX_TRANSACTION_RECORDS: Final = 20_000
"""Looked at by all checks and operations on ranges together: a second of work at most. An event
and an index entry that goes count as a record each, and so do each RANGE_LOOK_BYTES of a value and
each RATE_LIMIT_LOOK_BYTES of the state of a rate limit."""
RANGE_LOOK_BYTES: Final = 16 * KIB
RATE_LIMIT_LOOK_BYTES: Final = 128
MAX_REPLACED_BYTES: Final = 64 * MIB
"""Records that one transaction writes over or removes together: the history takes them over, in
one write to the state."""
MAX_ENTRY_REPLACED_BYTES: Final = 128 * MIB
"""The same, of all transactions in one entry of the log: one that comes after it is to be tried
again."""
MAX_READING_TRANSACTIONS: Final = 8
"""Transactions with gets or lists that a node has under way: each may return MAX_RESULT_BYTES."""

# What a list returns.
MAX_PAGE_RECORDS: Final = 10_000
MAX_PAGE_BYTES: Final = 4 * MIB
"""A page ends once it holds this much; a single larger record is a page alone."""
DEFAULT_PAGE_RECORDS: Final = 1_000
MAX_LONG_LISTS: Final = 4
"""Lists that count, or pass over many expired records, which a node works on at a time."""

# Integers that `add` keeps.
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**63 - 1

# Rate limits.
MAX_RATE_LIMITS: Final = 16
"""In one operation."""
MAX_RATE_LIMIT: Final = 1_000_000_000
MAX_SLIDING_LOG_LIMIT: Final = 10_000
"""Of the algorithm that remembers each event, in 1 to 8 bytes; the others keep a few numbers."""
MAX_RATE_WINDOW_MS: Final = 366 * 24 * 3600 * 1000

# Exactly once.
MAX_CLIENTS: Final = 10_000
"""Beyond it, the one that has been idle longest is forgotten."""
MAX_CLIENT_WINDOW: Final = 65_536
"""Writes of one client that are not acknowledged: their results are kept."""
MAX_REMEMBERED_RESULT_BYTES: Final = 4 * KIB
"""Of a larger result, only that there was one is remembered."""
MAX_CLIENT_RESULT_BYTES: Final = 4 * MIB
"""Results remembered for one client; of those beyond it, only that there were any."""
MAX_CLIENTS_BYTES: Final = 64 * MIB
"""Remembered for all clients; beyond it, the one that has been idle longest is forgotten."""

# History.
DEFAULT_HISTORY_SECONDS: Final = 3600
"""How long revisions can be read and watched from."""
MAX_COMPACTION_EVENTS: Final = 10_000
"""Removed by one command."""
MAX_SWEEP_RECORDS: Final = 1_000
"""Expired records removed by one command."""
MAX_SWEEP_BYTES: Final = 1 * MIB
"""A sweep ends once it has removed this much: the history takes it all over. It decides what
entries in the log mean, and so stays as it is."""

# Watches.
MAX_WATCHES: Final = 100_000
"""On one node, of all its clients."""
MIN_PROGRESS_INTERVAL_MS: Final = 100
DEFAULT_PROGRESS_INTERVAL_MS: Final = 5_000
MAX_PROGRESS_INTERVAL_MS: Final = 3_600_000
MAX_WATCH_PENDING_REVISIONS: Final = 2_048
"""Numbers of revisions that a node remembers for one watch; what is beyond is in history."""
MAX_PENDING_REVISIONS: Final = 1_000_000
"""Of all watches of a node. Beyond it, MIN_WATCH_PENDING_REVISIONS are left to each."""
MIN_WATCH_PENDING_REVISIONS: Final = 64
MAX_WATCH_CACHE_BYTES: Final = 16 * MIB
"""Of the newest changes, which a node tells of without reading them from history."""
MAX_WATCH_MESSAGE_BYTES: Final = 256 * KIB
"""A message that has so much takes no more updates; the last one of it may be larger."""
MAX_WATCH_PART_BYTES: Final = 4 * MIB
"""Values in one message: a larger change comes in parts, so that a slow client costs no more."""
MAX_WATCH_UPDATES: Final = 256
"""In such a message."""
MAX_WATCH_SCAN_EVENTS: Final = 1_000
"""Events of the history that are looked at before the event loop goes on."""

# What travels.
MAX_MESSAGE_BYTES: Final = 40 * MIB
"""A gRPC message: the largest transaction with room for its framing."""
MAX_BATCH_BYTES: Final = 1 * MIB
"""Where a batch (of calls, of commands in a log entry, of entries in a message) stops growing."""
MAX_BATCH_CALLS: Final = 128
"""In one message of a session: enough to share its price, few enough that the client, the
network and the node work on several at a time."""
MAX_PART_BYTES: Final = 256 * KIB
"""Of a call or a reply above MAX_BATCH_BYTES, which travels in parts: what a small call may find
before it on the way takes 2 ms at 1 Gbit/s, and a part's price (a message) stays below a tenth
of what its bytes cost."""
MAX_LARGE_CALLS: Final = 2
"""In parts on one session at a time: while one is committed, the next one travels."""
MAX_SNAPSHOT_CHUNK_BYTES: Final = 1 * MIB
"""A part of a group's state on its way to another node, and what is written of it at a time."""
MAX_SNAPSHOTS_BEING_SAVED: Final = 2
"""Which a node gives to be kept, at a time: as long as one takes, what changes in the state is on
the disk twice."""

# What a node keeps in memory for its clients; beyond it answers `Overloaded`.
MAX_UNCOMMITTED_BYTES: Final = 128 * MIB
MAX_LARGE_ENTRIES: Final = 2
"""Entries with a command above MAX_BATCH_BYTES that a leader has under way: while one is applied,
the next one is written. A small write waits for so many at most."""
MAX_CALL_BYTES_UNDER_WAY: Final = 128 * MIB
"""Calls above MAX_BATCH_BYTES, from their first part to their answer. As much as may be
uncommitted: so a call is refused before its bytes have come, and hardly ever after."""
MAX_ARRIVING_REQUESTS: Final = 8
"""Requests of unary calls that a node reads at a time: few, as any of them may be large."""
MAX_ARRIVAL_BYTES: Final = 160 * MIB
"""Requests of unary calls that take a while to arrive, each counted as MAX_MESSAGE_BYTES: their
size is known when they are there."""
MAX_REPLY_BYTES_UNDER_WAY: Final = 128 * MIB
"""Replies above MAX_BATCH_BYTES until they are written. Apart from the calls, so that clients
who do not read their replies do not keep others from writing."""
MAX_SESSION_CALLS: Final = 8192
"""Calls under way on one session stream before the node stops reading from it."""

# Time.
DEFAULT_TIMEOUT_SECONDS: Final = 10.0
"""Of a client call, all its retries included."""
MAX_CALL_TIMEOUT_MS: Final = 30_000
"""How long a node works on a call at most."""
