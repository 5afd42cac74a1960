//! Which node answers on an address that moves, so that never two of them do.
//!
//! All nodes agree on the *holder* ([`crate::agreed::AgreedAddress`]). The holder answers only under a *grant* of whoever
//! leads, which it asks for every [`ASK_EVERY`] and which lasts for at most [`GRANT`], counted by the holder from when it
//! *asked* and by the leader from when it *answered*. The kernel ends it, not the agent: a holder that is frozen or dead
//! falls silent in time.
//!
//! The leader moves the address once the last grant is over or given back. A new leader does not know what the one before
//! it has granted, but no grant outlasts the time in which that one alone could lead by more than [`OVERHANG`]; so it waits
//! for as long, and for a whole grant where the lead was handed over before that time was up. Gray and Cheriton, "Leases"
//! (1989), is the source of both rules.
//!
//! [`Lead`] decides, [`Hold`] obeys; both are pure.

mod hold;
mod lead;
mod plan;
mod routers;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

pub use hold::{Hold, Order};
pub use lead::{Decision, Lead, Scene};
pub use plan::{Plan, digest, plans, unit_of};
pub use routers::{Audience, RouterPlan, Voice, announcing, moving, router_plans};

use crate::agreed::AgreedAddress;
use crate::agreed::form::{coded_enum, coded_struct};
use crate::event::{AddressChange, Fact};

/// How long a holder may answer after it last asked.
pub const GRANT: Duration = Duration::from_millis(300);

/// How often every member asks: a grant outlasts two questions that got lost.
pub const ASK_EVERY: Duration = Duration::from_millis(100);

/// By how much a grant may outlast the time in which nobody but the leader that gave it can lead.
pub const OVERHANG: Duration = Duration::from_millis(100);

/// By how much the kernel may be late: it counts the time of an element in ticks, of 10 ms at most.
pub const GUARD_ERROR: Duration = Duration::from_millis(20);

/// A member that has asked within this time is there.
pub const FRESH: Duration = Duration::from_millis(350);

/// How long a new leader waits for a holder to ask that may only not have found it yet.
pub const PATIENCE: Duration = Duration::from_millis(700);

/// How long the first holder waits for better ones to ask.
pub const GATHER: Duration = Duration::from_secs(1);

/// How long after a member has come back the holder says again and again that it is the holder.
pub const HEALED: Duration = Duration::from_secs(2);

/// What the topology says of a unit: an address, or several that move together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Which of two that are equal is preferred: the one that comes first.
    pub members: Vec<Member>,
    /// After how long a member of higher priority gets it back; `None`: never by itself.
    pub preempt: Option<Duration>,
    /// It goes where something else is, and nowhere else.
    pub follows: bool,
}

/// A node that may hold a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: String,
    pub priority: i32,
}

/// What a member says of a unit when it asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Nothing that it needs is missing here.
    pub able: bool,
    /// Less what is amiss.
    pub priority: i32,
    /// The epoch under which this node may still answer on the address.
    pub holds: Option<u64>,
    /// It was never granted that, and took over while nobody led: see [`crate::heartbeat`].
    pub alone: bool,
}

coded_struct!(Said { able, priority, holds, alone });

/// One question of one node, for all its units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Which run of the agent asks: later ones have higher numbers.
    pub life: u64,
    /// Counts the questions of a life.
    pub number: u64,
    /// Which units the node has, with which addresses: see [`digest`].
    pub plans: u64,
    pub units: BTreeMap<String, Said>,
}

coded_struct!(Question version 2 { life, number, plans, units });

/// What the leader says of one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Answer on it until so long after asking. `tell`: somebody may believe that it is elsewhere.
    Hold { epoch: u64, lasts: Duration, tell: bool },
    /// Cease to answer on it, and say so.
    LetGo { epoch: u64 },
}

coded_enum!(Grant, "a grant that is not known here", {
    1 = Hold { epoch, lasts, tell }, 2 = LetGo { epoch },
});

/// What the leader says of those units of which it has something to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    pub units: BTreeMap<String, Grant>,
}

coded_struct!(Grants version 1 { units });

/// What is to be written down where other holders were agreed on.
pub fn moves(
    before: &BTreeMap<String, AgreedAddress>,
    after: &BTreeMap<String, AgreedAddress>,
) -> Vec<Fact> {
    let new = |(unit, agreed): &(&String, &AgreedAddress)| {
        before.get(*unit).is_none_or(|before| before.epoch < agreed.epoch)
    };
    let fact = |(unit, agreed): (&String, &AgreedAddress)| {
        let holder = agreed.holder.as_deref().unwrap_or("nobody");
        let text = format!("it is agreed that {holder} holds it: {}", agreed.why);
        Fact::Address {
            unit: unit.clone(),
            epoch: agreed.epoch,
            change: AddressChange::Moved,
            text,
        }
    };
    after.iter().filter(new).map(fact).collect()
}
