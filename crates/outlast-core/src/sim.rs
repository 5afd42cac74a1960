//! One agent in a small world of faults: servers that die, freeze and flap, commands that fail, hang or answer late,
//! probes that are lost, restarts, crashes in the middle of a step, changed topologies, drains and ejections.
//!
//! Everything follows from a seed. What must hold is checked after every step, and a seed that breaks a law replays it.

mod address;
mod check;
mod database;
mod heartbeat;
mod joint;
mod seeds;
mod tests;
pub(crate) mod topologies;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::string::String;
use std::time::Duration;

pub(crate) use world::run;

/// A fault built into the core on purpose, so that a test can show that the simulation finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Failback does not wait until the primary has been up long enough.
    FailbackAtOnce,
    /// Failback reuses the epoch of the failover.
    SameEpoch,
    /// A failed attempt is followed by the next one at once.
    NoPause,
    /// A backup of which nothing is known counts as up.
    UnknownIsUp,
    /// A command is given while an earlier one runs.
    TwoCommands,
    /// What was decided is written down after it was acted on.
    SavedLate,
    /// A decision that the disk refused is acted on all the same.
    ActsUnsaved,
    /// A pair that comes back begins its epochs anew.
    EpochForgotten,
    /// A pair that was given other servers keeps its side.
    SideKept,
    /// The end of a pause is slept through.
    Oversleeps,
    /// A new side serves before everybody has left the old one.
    SettledEarly,
    /// What one node sees alone moves a pair.
    OneObserver,
    /// A database's primary is started without its lease.
    StartedUnleased,
    /// A standby follows although its log is longer.
    FollowsAhead,
    /// A primary is appointed without an election.
    NoElection,
    /// Logs are compared by position alone.
    LineageIgnored,
    /// A member follows a relay of which nothing is known.
    RelayUnknown,
    /// Another region takes over while the old one may still serve.
    CrossesEarly,
    /// Who steps down for a higher priority says nothing.
    SilentStepDown,
    /// A grant is counted from when it arrived.
    CountsFromAnswer,
    /// What was granted before an address was given back is taken all the same.
    TakesWhatItGaveBack,
    /// A leader to whom the lead was handed over waits no longer than any other.
    HandedNotHeeded,
    /// A new leader does not wait for what the one before it has granted.
    NewLeaderHurries,
    /// A grant outlasts the time in which nobody else can lead.
    GrantsTooLong,
    /// What a node said before is believed although it said something else since.
    OldQuestionCounts,
    /// An address that is about to move is granted to its old holder.
    GrantsWhileMoving,
    /// An address is moved before the last grant is over.
    MovesEarly,
    /// Who slept counts its own sleep as the silence of the other node of a pair.
    OwnSleepNotNoticed,
    /// The other node of a pair is taken for dead without being asked.
    NeverVerifies,
    /// A node that has never heard the other one of a pair waits no longer than for one that it has heard.
    UnknownIsGone,
    /// A heartbeat counts although it was sent before.
    ReplayCounts,
    /// What is granted is taken although the other node of a pair says that it holds it.
    TakesWhatIsHeld,
    /// Two nodes of a pair that hold one address both keep it.
    NobodyYields,
    /// The leader takes an address from a node that has taken over.
    TakesOverNotHeeded,
}

std::thread_local! {
    pub(crate) static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// The right value, or the wrong one if this bug is planted.
pub(crate) fn instead<T>(bug: Bug, right: T, wrong: T) -> T {
    if PLANTED.get() == Some(bug) { wrong } else { right }
}

/// Numbers that follow from a seed (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
#[derive(Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `low` to just below `high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    pub(crate) fn per_mille(&mut self, share: u64) -> bool {
        self.between(0, 1000) < share
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.between(0, from.len() as u64)).unwrap()]
    }
}

/// What a run came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Each transition of `docs/failover.md` and how often it was seen.
    pub(crate) seen: BTreeMap<&'static str, u64>,
    pub(crate) steps: u64,
    pub(crate) log: String,
}

/// A law that was broken.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) seed: u64,
    pub(crate) at: Duration,
    pub(crate) law: String,
    pub(crate) log: String,
}
