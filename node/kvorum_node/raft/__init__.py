"""The Raft consensus algorithm, as one pure and deterministic core.

    D. Ongaro, J. Ousterhout: In Search of an Understandable Consensus Algorithm
    (extended version), 2014: "Raft", cited by section.
    D. Ongaro: Consensus: Bridging Theory and Practice, 2014: "dissertation".

A *group* of *members* keeps one log. A leader, elected for a *term*, appends
entries and sends them to the others; an entry that a majority has on its disks is
*committed*: it stands at its index for ever, and every member hands it to its
state machine, in order. A position is written `index@term`.

Nothing in this package waits, reads a clock, opens a socket or a file, or draws a
random number of its own: the host (driver.py) brings inputs in and carries effects
out. The same inputs give the same effects, so a test can be a script, and a
simulation can be replayed from its seed.

Read it in this order:

    types.py       the nouns          messages.py    what members say
    core.py        inputs, effects (`Ready`, with its law), the table (role, message) -> handler
    follower.py    candidate.py    leader.py         what each role does
    log.py         stored and unstable entries, snapshots, the configuration that holds
    configuration.py    membership.py                who is a member, and how that changes
    progress.py    read_index.py    quorum.py        parts of the leader

What goes beyond the paper's figure 2, and why:

  * Pre-vote and check-quorum: a member that was cut off does not unseat a leader when
    it returns; a leader that is cut off stops being one. A follower disregards
    requests for votes while it hears its leader. Members answer leaders and
    pre-candidates of older terms: without it, the two could block each other.
  * Conflict hints: a rejected append says where the logs may meet, and both sides
    skip whole terms on the way.
  * A leader sends entries while it fsyncs them itself, and counts itself only
    after its own fsync (dissertation, section 10.2.1).
  * Reads by read rounds (dissertation, section 6.4), many reads a round.
  * A leader does not announce a commit by itself; the next append or heartbeat carries it.
  * Candidates repeat an undecided election sooner than followers start one.

  * Members change by joint consensus, in entries that hold the whole configuration and
    that count from when they are appended (dissertation, sections 4.1 and 4.3). Learners
    are promoted by the leader once they have caught up. Ids are never used again, so
    that a member that was removed can be told apart from one that is not known yet.
  * A follower that needs what was cut from the log is sent a snapshot. The core asks the
    host for it, and learns what became of it; how it travels is the host's affair, and
    the core goes on meanwhile.

What is left out: leases for reads, and priorities among candidates.
"""
