"""A simulator: whole clusters in one process, as a function of a seed.

    make sim                                    fresh seeds for two minutes
    python -m tests.sim --seeds 0:1000          these, in two processes
    python -m tests.sim --seeds 4711 --trace    one, and everything that happens in it

What is real: the driver, the group, the Raft core, the state machine, the log, the dispatcher
of client calls, snapshots, changes of members, the log clock, the housekeeper that sweeps and
compacts, and the hub of watches. What is simulated is all around them: time, the event loop,
the disk, the network, clocks, clients, watchers, and operators. A run picks what happens next
from its seed and nothing else, so a seed is a bug report: the same seed gives the same run, byte
for byte. (Here are the tools that FoundationDB and TigerBeetle have shown to find what no
hand-written test looks for.)

The way through the files:

    scheduler.py    simulated time: what happens next
    loop.py         the event loop of a process       disk.py       what a crash leaves
    host.py         a machine and a process on it     network.py    loss, order, partitions
    streams.py      snapshots on the network
    calls.py        what clients ask                  clients.py    how they ask, and ask again
    watchers.py     watches, from node to node        operators.py  changes of members
    plan.py         what a seed decides               faults.py     what goes wrong, and its end
    simulation.py   one run: a phase for safety, one for liveness
    checkers.py     the rules of Raft, and of time
    oracle.py       what clients may see: the model of tests/machine, fed by the log, knows
    inspector.py    from the node's objects to the checkers
    history.py      the search of tests/support, as a second opinion on some runs
    campaign.py     many runs                         shrink.py     a failing run made smaller
    mutants.py      guards taken away: the proof that the simulator sees
                    (without_guards.py: what the data model is like then)

A run has two phases. In the first one, for a number of events, machines crash and keep a part of
what they had not synced, pause, burn; links lose, delay, repeat and reorder; partitions
come and go, in one direction or both; disks are slow or fail; clocks run wild; leadership
is handed over and members are changed, while logs are cut so early that snapshots are sent all
the time. Wall clocks are minutes apart from the beginning, and are set; history is forgotten
after seconds. The checkers look after every event. In the second phase the faults end for a
majority (the others stay dead, cut off or deaf), which has to elect a leader, commit a write and
agree on every record within `simulation.LIVELY_TICKS`; then every watcher has to hear all of it.

What is promised of the data model, and how it is seen:

    once        Clients send most writes again, with their numbers, when they are refused, in
                doubt or not answered, and some that were answered. Each time they must hear
                what the model says of the first time; and at each index every node must be at
                the revision of the model, so a second effect shows at once.
    log time    A stamp is off the leader's last one by the slew at most, and off true time,
                counted from the first one, by the slew and the way of a leader's word: what
                a notice took at most, for each takeover. (And 2 ms for each start: clocks are
                stored in whole ones.) That is looked at while steady clocks are right, and no
                node is started whose wall clock was set: half of the runs leave out the
                faults of steady clocks, and half of those the faults of wall clocks.
    expiry      A read shows what the model has at its revision and log time: so nothing is
                hidden before its time is over by the log. Nor does it show what had expired
                by the clock of the leader when the read came to it.
    watches     Every change of the watched keys, once, in order and whole, as the model has
                it, over all nodes that a watcher goes through; or COMPACTED, if that is so.

When a run fails, the plan is made smaller as long as the same rule still breaks, and one command is
printed that repeats it. To follow it, add --trace.

What is left out: clients that are forgotten for others (tests/machine), gRPC and its connections
(tests/node), RocksDB and torn batches (tests/storage), processes and kernels (tests/e2e). A disk
that lies about a sync cannot be survived: there is none.
"""
