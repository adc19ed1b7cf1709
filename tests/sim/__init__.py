"""A simulator: whole clusters in one process, as a function of a seed.

    make sim                                    fresh seeds for two minutes
    python -m tests.sim --seeds 0:1000          these, in two processes
    python -m tests.sim --seeds 4711 --trace    one, and everything that happens in it

What is real: the driver, the group, the Raft core, the state machine, the log, the dispatcher
of client calls, snapshots, changes of members. What is simulated is all around them: time,
the event loop, the disk, the network, clocks, clients, and operators. A run picks what happens next
from its seed and nothing else, so a seed is a bug report: the same seed gives the same run, byte
for byte. (Here are the tools that FoundationDB and TigerBeetle have shown to find what no
hand-written test looks for.)

The way through the files:

    scheduler.py    simulated time: what happens next
    loop.py         the event loop of a process       disk.py       what a crash leaves
    host.py         a machine and a process on it     network.py    loss, order, partitions
    streams.py      snapshots on the network
    clients.py      calls                             operators.py  changes of members
    plan.py         what a seed decides               faults.py     what goes wrong, and its end
    simulation.py   one run: a phase for safety, one for liveness
    checkers.py     the rules of Raft                 oracle.py     what clients may see
    inspector.py    from the node's objects to the checkers
    history.py      the search of tests/support, as a second opinion on some runs
    campaign.py     many runs                         shrink.py     a failing run made smaller
    mutants.py      guards taken away: the proof that the simulator sees

A run has two phases. In the first one, for a number of events, machines crash and keep a part of
what they had not synced, pause, burn; links lose, delay, repeat and reorder; partitions
come and go, in one direction or both; disks are slow or fail; clocks run wild; leadership
is handed over and members are changed, while logs are cut so early that snapshots are sent all
the time. The checkers look after every event. In the second phase the faults end for a majority
(the others stay dead, cut off or deaf), which has to elect a leader, commit a write and agree
on every record within `simulation.LIVELY_TICKS`.

When a run fails, the plan is made smaller as long as the same rule still breaks, and one command is
printed that repeats it. To follow it, add --trace.

What is left out: gRPC and its connections (tests/node), RocksDB and torn batches (tests/storage),
processes and kernels (tests/e2e). A disk that lies about a sync cannot be survived: there is none.
"""
