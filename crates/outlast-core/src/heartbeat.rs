//! What two nodes without a third one do about an address when they cannot agree: `split_brain = "accept"`.
//!
//! While both are there, who holds an address is agreed on, and [`crate::address`] has the rules. When one is lost, there is
//! no majority any more. Heartbeats then say whether the other one lives: after the timeout it is asked three times, by
//! every way there is; if it does not answer, this node goes on, or takes over in five steps ([`takeover`]).
//!
//! Two nodes that do not hear each other both take themselves for the last one, and both hold the address: that is what
//! is accepted. Once they hear each other, one of them lets go: see [`Claim::beats`]. As long as heartbeats pass, nobody
//! takes what the other one says that it holds.
//!
//! [`Watch`] says how the peer is, [`Lone`] what follows for one unit, [`Talk`] what a datagram is worth; all are pure.

mod lone;
pub mod takeover;
mod talk;
mod watch;

use core::time::Duration;

pub use lone::{Act, Lone, Scene};
pub use talk::{DATAGRAM_MAX, Datagram, Kind, News, TAG_BYTES, Talk, UNITS_MAX, Unfit, open};
pub use watch::{Peer, Watch};

use crate::agreed::form::{coded_enum, coded_list, coded_struct};

/// How often a heartbeat is sent.
pub const EVERY: Duration = Duration::from_millis(100);

/// After so long without one, the other node is asked whether it lives.
pub const TIMEOUT: Duration = Duration::from_millis(300);

/// Less would be shorter than what a frozen holder may still answer for.
pub const TIMEOUT_MIN: Duration = crate::address::GRANT;

pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// More often, and a busy machine takes itself for dead.
pub const EVERY_MIN: Duration = Duration::from_millis(20);

/// How often the other node is asked before it is taken for dead.
pub const QUESTIONS: u8 = 3;

/// How long a node that has started waits for a peer that it has never heard.
pub const UNHEARD: Duration = Duration::from_secs(10);

/// How long a node that has started waits for a first word of its peer before it takes what is granted: one that took over
/// and is gone by now may still be answered for by its kernel.
pub const HESITATION: Duration = Duration::from_millis(450);

/// Without an answer of whoever leads for so long, nobody leads.
pub const SILENCE: Duration = crate::address::GRANT;

/// For so long nothing could be agreed on although both nodes are there: then they do without.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How fast a pair notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pace {
    pub every: Duration,
    pub timeout: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { every: EVERY, timeout: TIMEOUT }
    }
}

impl Pace {
    /// Between two questions to a peer that is not heard.
    pub fn question_every(&self) -> Duration {
        self.every / u32::from(QUESTIONS)
    }

    /// After so long the other node is taken for dead.
    pub fn gone_after(&self) -> Duration {
        self.timeout + self.every
    }
}

/// What a hold rests on. Of two nodes that hold one unit under one epoch, the one with the greater wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basis {
    /// The other one was not there any more.
    TookOver,
    /// It was granted, and went on when there was nobody to grant more.
    WentOn,
    /// Whoever leads has granted it.
    Granted,
}

coded_enum!(Basis, "a basis that is not known here", {
    1 = TookOver, 2 = WentOn, 3 = Granted,
});

/// What a node says that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The last one that it knows of to be agreed on.
    pub epoch: u64,
    pub basis: Basis,
    /// `false`: it was granted, and waits until the other node lets go; or it is about to take over from one that is there.
    pub holds: bool,
}

coded_struct!(Claim { epoch, basis, holds });

impl Claim {
    /// Whether whoever makes the other claim has to let go. `first`: of the two nodes this one is preferred, by priority
    /// and then by the order of the file.
    pub fn beats(&self, other: &Claim, first: bool) -> bool {
        match self.holds {
            true => (self.epoch, self.basis, first) > (other.epoch, other.basis, !first),
            // What is waited for is agreed on, and newer.
            false => self.basis == Basis::Granted && self.epoch > other.epoch,
        }
    }
}

/// What a heartbeat says of a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Nothing that it needs is missing there.
    pub able: bool,
    pub claim: Option<Claim>,
}

coded_struct!(Said { able, claim });
coded_list!(Said);

impl Said {
    pub fn holds(&self) -> bool {
        self.claim.is_some_and(|claim| claim.holds)
    }

    /// It is about to take over.
    fn intends(&self) -> bool {
        self.claim.is_some_and(|claim| !claim.holds && claim.basis == Basis::TookOver)
    }
}
