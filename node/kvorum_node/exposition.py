"""What a node says of itself to Prometheus, in its text format.

Rules: a name that etcd has means here what it means there, with `kvorum` for `etcd`; each
is explained in docs/operations/monitoring.md (tests/node/test_exposition.py compares). What
is counted begins with the process. Labels are of a known few: methods of the server, gRPC
codes, members, kinds of alarms. No figure costs more to tell than to look it up.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import kvorum
from kvorum.errors import Code
from kvorum_node.figures import Calls, Histogram
from kvorum_node.node import Node
from kvorum_node.raft.leader import Leader
from kvorum_node.raft.types import node_name
from kvorumpb.v1.cluster_pb2 import Alarm


def render(node: Node | None) -> bytes:
    """All figures of the node and its process, as text. Call it on the node's event loop.

    Without a node, which starts or waits for a cluster, those of the process alone: it is up.
    """
    registry = CollectorRegistry()
    if node is not None:
        registry.register(_NodeCollector(node))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _NodeCollector(Collector):
    def __init__(self, node: Node) -> None:
        self._node = node
        self._figures = node.figures

    def collect(self) -> Iterator[Metric]:
        yield from self._server()
        yield from self._positions()
        yield from self._proposals()
        yield from self._disk()
        yield from self._space()
        yield from self._store()
        yield from self._watches()
        yield from self._calls()
        yield from self._rpcs()
        yield from self._peers()
        yield from self._snapshots()
        yield from self._admission()

    def _server(self) -> Iterator[Metric]:
        raft = self._node.group.raft
        version = _gauge(
            "server_version", "1 for the version that runs.", labels=["server_version"]
        )
        version.add_metric([kvorum.__version__], 1)
        yield version
        yield _gauge("server_has_leader", "1 if this node knows a leader.", raft.leader is not None)
        leads = isinstance(raft.role, Leader)
        yield _gauge("server_is_leader", "1 if this node leads.", leads)
        learns = self._node.id not in raft.configuration.all_voters
        yield _gauge("server_is_learner", "1 if this node has no vote.", learns)
        yield _counter(
            "server_leader_changes_seen",
            "Leaders that this node has come to know: one more with each election.",
            self._figures.leader_changes,
        )
        voters = len(raft.configuration.all_voters)
        yield _gauge("raft_voters", "Members that vote, as far as this node knows.", voters)

    def _positions(self) -> Iterator[Metric]:
        group = self._node.group
        raft, machine = group.raft, group.machine
        yield _gauge("raft_term", "The term that this node is in.", raft.term)
        yield _gauge("raft_first_index", "The first entry in the log.", raft.log.first_index)
        yield _gauge("raft_last_index", "The last entry in the log.", raft.log.last_index)
        yield _gauge("raft_commit_index", "The last entry known as committed.", raft.log.committed)
        yield _gauge("raft_applied_index", "The last entry applied to the state.", machine.applied)
        matches = _gauge(
            "raft_match_index",
            "The last entry known to be on the disk of a peer. Only a leader knows.",
            labels=["peer"],
        )
        active = _gauge(
            "network_active_peers",
            "1 if a peer was heard from lately, 0 if not. Only a leader knows.",
            labels=["peer"],
        )
        if isinstance(raft.role, Leader):
            for member, progress in raft.role.progress.items():
                matches.add_metric([node_name(member)], progress.match)
                active.add_metric([node_name(member)], float(progress.is_alive))
        yield matches
        yield active

    def _proposals(self) -> Iterator[Metric]:
        figures, group = self._figures, self._node.group
        yield _counter(
            "server_proposals_committed",
            "Entries that this node has learned to be committed, those in a snapshot included.",
            group.raft.log.committed - figures.committed_before,
        )
        yield _counter(
            "server_proposals_applied",
            "Entries that this node has applied, those in a snapshot included.",
            group.machine.applied - figures.applied_before,
        )
        yield _gauge(
            "server_proposals_pending",
            "Entries that this node has proposed, and that are not applied yet.",
            group.proposals_pending,
        )
        yield _counter(
            "server_proposals_failed",
            "Entries that this node has proposed, or was to, and has not seen applied.",
            figures.proposals_failed,
        )
        yield _histogram(
            "server_proposal_commands",
            "Commands in an entry that this node has proposed.",
            figures.commands_per_entry,
        )

    def _disk(self) -> Iterator[Metric]:
        figures = self._figures
        yield _histogram("disk_wal_fsync_duration_seconds", "An fsync of the log.", figures.sync)
        yield _histogram(
            "disk_wal_fsync_entries",
            "Entries that were made durable by one fsync of the log.",
            figures.entries_per_sync,
        )
        yield _histogram(
            "disk_backend_commit_duration_seconds",
            "To apply what is committed, one batch a turn, with its write to the state engine.",
            figures.apply,
        )
        yield _histogram(
            "disk_backend_commit_entries",
            "Entries that were applied as one batch.",
            figures.entries_per_apply,
        )

    def _space(self) -> Iterator[Metric]:
        watchman = self._node.watchman
        yield _gauge(
            "mvcc_db_total_size_in_bytes",
            "Files of log and state, when they were last looked at.",
            watchman.space.store_bytes,
        )
        yield _gauge("raft_log_bytes", "Entries in the log.", self._node.group.log.log_bytes())
        yield _gauge(
            "server_quota_backend_bytes",
            "What log and state may grow to; 0 is no limit.",
            watchman.bounds.quota_bytes,
        )
        free = _gauge(
            "disk_free_bytes",
            "Left in the file system of the data directory, when it was last looked at.",
            labels=[],
        )
        if watchman.space.free_bytes is not None:
            free.add_metric([], watchman.space.free_bytes)
        yield free
        yield _gauge(
            "disk_min_free_bytes",
            "What is to be left in the file system.",
            watchman.bounds.min_free_bytes,
        )
        alarms = _gauge(
            "server_alarms",
            "1 while this node has the alarm: then the cluster refuses writes.",
            labels=["kind"],
        )
        raised = {alarm.kind for alarm in watchman.alarms}
        for kind in (Alarm.QUOTA, Alarm.LOW_SPACE):
            alarms.add_metric([Alarm.Kind.Name(kind).lower()], float(kind in raised))
        yield alarms

    def _store(self) -> Iterator[Metric]:
        machine = self._node.group.machine
        yield _gauge("debugging_mvcc_current_revision", "The newest revision.", machine.revision)
        yield _gauge(
            "debugging_mvcc_compact_revision",
            "The oldest revision that can be read; 0 before the first compaction.",
            machine.oldest_revision,
        )
        yield _gauge(
            "debugging_state_rows_estimate",
            "Rows of the state: records, history and indexes. An estimate of the engine.",
            self._node.storage.state.estimate_rows(),
        )
        yield _gauge(
            "server_log_time_seconds",
            "Log time, by which records expire, since the Unix epoch.",
            machine.log_time_ms / 1000,
        )
        yield _gauge(
            "server_clients",
            "Clients that the store knows, so that their writes are applied once.",
            machine.client_count,
        )
        yield _counter(
            "server_records_expired",
            "Records that were removed because their time was over.",
            machine.swept,
        )

    def _watches(self) -> Iterator[Metric]:
        hub, figures = self._node.watches, self._figures
        yield _gauge("debugging_mvcc_watcher_total", "Watches of this node.", hub.count)
        yield _gauge("debugging_mvcc_watch_stream_total", "Streams with watches.", hub.stream_count)
        yield _gauge(
            "debugging_mvcc_slow_watcher_total",
            "Watches that are being led through history.",
            hub.behind_count,
        )
        yield _counter(
            "server_watch_revisions_told",
            "Revisions that were told to watches, to each one that wants it.",
            figures.changes_told,
        )
        yield _counter(
            "server_watches_fallen_behind",
            "How often a watch had more to be told than may be noted, and fell behind.",
            figures.watches_behind,
        )
        yield _counter(
            "server_watches_caught_up",
            "How often a watch was led through history, and came to the newest revision.",
            figures.watches_caught_up,
        )

    def _calls(self) -> Iterator[Metric]:
        handled = CounterMetricFamily(
            "kvorum_server_calls",
            "Reads and writes that were answered; a message of a session has many.",
            labels=["kind", "code"],
        )
        seconds = HistogramMetricFamily(
            "kvorum_server_call_duration_seconds",
            "From the arrival of a read or a write to its answer.",
            labels=["kind"],
        )
        kinds: dict[str, Calls] = {"read": self._figures.reads, "write": self._figures.writes}
        for kind, calls in kinds.items():
            handled.add_metric([kind, "OK"], calls.succeeded)
            for code, count in sorted(calls.errors.items()):
                handled.add_metric([kind, Code(code).name], count)
            _add(seconds, [kind], calls.seconds)
        yield handled
        yield seconds

    def _rpcs(self) -> Iterator[Metric]:
        labels = ["grpc_service", "grpc_method"]
        started = CounterMetricFamily(
            "kvorum_grpc_server_started", "Calls and streams that have begun.", labels=labels
        )
        handled = CounterMetricFamily(
            "kvorum_grpc_server_handled",
            "Calls and streams that have ended, by what they ended with.",
            labels=[*labels, "grpc_code"],
        )
        seconds = HistogramMetricFamily(
            "kvorum_grpc_server_handling_seconds",
            "How long calls took, and streams were open.",
            labels=labels,
        )
        for key, rpc in sorted(self._figures.rpcs.items()):
            started.add_metric(key, rpc.started)
            for code, count in sorted(rpc.handled.items()):
                handled.add_metric([*key, code], count)
            _add(seconds, key, rpc.seconds)
        yield started
        yield handled
        yield seconds

    def _peers(self) -> Iterator[Metric]:
        """Of the present members: who was removed is not spoken of any more."""
        sent = CounterMetricFamily(
            "kvorum_network_peer_sent_bytes", "Bytes sent to a peer.", labels=["peer"]
        )
        received = CounterMetricFamily(
            "kvorum_network_peer_received_bytes", "Bytes received from a peer.", labels=["peer"]
        )
        failures = CounterMetricFamily(
            "kvorum_network_peer_sent_failures",
            "Messages to a peer that were dropped: no connection, or too many wait.",
            labels=["peer"],
        )
        round_trips = HistogramMetricFamily(
            "kvorum_network_peer_round_trip_time_seconds",
            "A message to a peer and its answer, without what the peer held it.",
            labels=["peer"],
        )
        for member in sorted(self._node.group.raft.configuration.members - {self._node.id}):
            peer, labels = self._figures.peers[member], [node_name(member)]
            sent.add_metric(labels, peer.sent_bytes)
            received.add_metric(labels, peer.received_bytes)
            failures.add_metric(labels, peer.sent_failures)
            _add(round_trips, labels, peer.round_trip)
        yield sent
        yield received
        yield failures
        yield round_trips

    def _snapshots(self) -> Iterator[Metric]:
        figures = self._figures
        counts = {
            "send_success": ("Snapshots sent to peers.", figures.snapshots_sent),
            "send_failures": ("Snapshots that did not get there.", figures.snapshots_send_failures),
            "receive_success": ("Snapshots received.", figures.snapshots_received),
            "receive_failures": (
                "Snapshots that broke on their way here, or were of no use.",
                figures.snapshots_receive_failures,
            ),
        }
        for name, (text, count) in counts.items():
            yield _counter(f"network_snapshot_{name}", text, count)

    def _admission(self) -> Iterator[Metric]:
        admission = self._node.admission
        labels = ["budget"]
        reserved = _gauge(
            "server_admission_reserved_bytes",
            "What large calls and replies under way have reserved.",
            labels=labels,
        )
        refusals = CounterMetricFamily(
            "kvorum_server_admission_refusals",
            "Large calls that were refused, as others took the room.",
            labels=labels,
        )
        budgets = {
            "calls": admission.calls,
            "arrivals": admission.arrivals,
            "replies": admission.replies,
        }
        for name, budget in budgets.items():
            reserved.add_metric([name], budget.reserved_bytes)
            refusals.add_metric([name], budget.refusals)
        yield reserved
        yield refusals


def _gauge(
    name: str, text: str, value: float | None = None, *, labels: list[str] | None = None
) -> GaugeMetricFamily:
    """With a value, or with labels under which values are to be added."""
    return GaugeMetricFamily(f"kvorum_{name}", text, value=value, labels=labels)


def _counter(name: str, text: str, value: int) -> CounterMetricFamily:
    """Its name ends with `_total` where it is told."""
    return CounterMetricFamily(f"kvorum_{name}", text, value=value)


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"kvorum_{name}", text, labels=[])
    _add(family, [], histogram)
    return family


def _add(family: HistogramMetricFamily, labels: Iterable[str], histogram: Histogram) -> None:
    """In this format a bucket counts all that is at most so large."""
    buckets = [
        (f"{bound:g}", float(count))
        for bound, count in zip(histogram.bounds, accumulate(histogram.counts), strict=True)
    ]
    buckets.append(("+Inf", float(histogram.count)))
    family.add_metric(list(labels), buckets=buckets, sum_value=histogram.total)
