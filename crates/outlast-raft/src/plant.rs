//! Faults that the simulation plants, to prove that it would find them.

/// One guard taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    not(feature = "plant"),
    expect(unreachable_pub, reason = "public where it can be planted")
)]
pub enum Bug {
    /// A vote is answered before it is on disk.
    VoteBeforeDisk,
    /// Entries are acknowledged before they are on disk.
    AckBeforeDisk,
    /// A vote goes to a candidate whose log lacks entries.
    VoteForShorterLog,
    /// Votes are granted while a leader is heard.
    NoStickiness,
    /// Votes are granted while a leader is heard if the voter knows the term already.
    NoStickinessInTerm,
    /// A leader that no majority answers goes on.
    NoQuorumGate,
    /// The lease counts from when the answer came, not from when it was asked for.
    LeaseFromAnswer,
    /// Nothing is taken off the lease for clocks that run at different rates.
    NoDriftMargin,
    /// An entry of an earlier term counts as committed once a majority holds it.
    CommitOldTerm,
    /// A read is answered without asking a majority.
    ReadWithoutRound,
    /// What a leader of an earlier term says is obeyed.
    NoTermCheck,
    /// A second change of members begins before the first is committed.
    ChangeTooEarly,
    /// A snapshot from the leader takes the place of entries that follow it.
    SnapshotTakesAll,
}

impl Bug {
    #[cfg(feature = "plant")]
    pub const ALL: [Bug; 13] = [
        Bug::VoteBeforeDisk,
        Bug::AckBeforeDisk,
        Bug::VoteForShorterLog,
        Bug::NoStickiness,
        Bug::NoStickinessInTerm,
        Bug::NoQuorumGate,
        Bug::LeaseFromAnswer,
        Bug::NoDriftMargin,
        Bug::CommitOldTerm,
        Bug::ReadWithoutRound,
        Bug::NoTermCheck,
        Bug::ChangeTooEarly,
        Bug::SnapshotTakesAll,
    ];
}
