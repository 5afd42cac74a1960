//! On which node each address is, agreed on by all nodes.
//!
//! An address, or a group of them that moves together, is a *unit*. What is agreed on is only who holds it, and under
//! which epoch: the index of the entry that moved it there. That the holder may answer on it at this moment is not in the
//! log; whoever leads grants it for a fraction of a second at a time (see [`crate::address`]), so that the log rests while
//! an address rests.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use super::Stamp;
#[cfg(test)]
use super::bugs::{Bug, instead};
use super::form::{coded_enum, coded_struct};
use super::history::History;
use super::limits::Limit;
use super::reply::{Refusal, Reply};

/// What can happen to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressCommand {
    /// The unit goes to a node, or to nobody. `from` is the epoch that this was judged by, 0 if there was none: anything
    /// else that happened meanwhile wins.
    Move { unit: String, from: u64, to: Option<String>, why: String },
    /// The unit is not in the topology any more, and nobody holds it.
    Forget { unit: String, from: u64 },
}

coded_enum!(AddressCommand, "a command about addresses that is not known here", {
    1 = Move { unit, from, to, why }, 2 = Forget { unit, from },
});

impl AddressCommand {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            AddressCommand::Move { unit, to, why, .. } => {
                Limit::RoleBytes.name(unit)?;
                to.iter().try_for_each(|node| Limit::NameBytes.name(node))?;
                Limit::ReasonBytes.text(why)
            }
            AddressCommand::Forget { unit, .. } => Limit::RoleBytes.name(unit),
        }
    }

    pub(super) fn repeatable(&self) -> bool {
        match self {
            // An epoch is given once, and is over once it is left.
            AddressCommand::Move { .. } | AddressCommand::Forget { .. } => true,
        }
    }
}

/// Who holds a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgreedAddress {
    /// `None`: it was taken from its last holder, and nobody can have it.
    pub holder: Option<String>,
    pub epoch: u64,
    pub why: String,
    pub moved: Stamp,
}

coded_struct!(AgreedAddress { holder, epoch, why, moved });

/// Every unit that somebody ever held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    all: BTreeMap<String, AgreedAddress>,
}

coded_struct!(Addresses { all });

impl Addresses {
    pub fn get(&self, unit: &str) -> Option<&AgreedAddress> {
        self.all.get(unit)
    }

    pub fn all(&self) -> &BTreeMap<String, AgreedAddress> {
        &self.all
    }

    pub(super) fn apply(
        &mut self,
        at: Stamp,
        command: &AddressCommand,
        history: &mut History,
    ) -> Result<Reply, Refusal> {
        let (AddressCommand::Move { unit, from, .. } | AddressCommand::Forget { unit, from }) =
            command;
        let current = self.all.get(unit).map_or(0, |address| address.epoch);
        let judged = current == *from;
        #[cfg(test)]
        let judged = instead(Bug::MovedBlindly, judged, true);
        if !judged {
            return Err(Refusal::OtherEpoch { current });
        }
        match command {
            AddressCommand::Move { to, why, .. } => {
                if current == 0 {
                    Limit::Addresses.holds(self.all.len() + 1)?;
                }
                let (holder, why) = (to.clone(), why.clone());
                let whom = to.as_deref().unwrap_or("nobody");
                history.add(at, 0, &format!("address.{unit}: held by {whom}: {why}"));
                let address = AgreedAddress { holder, epoch: at.index, why, moved: at };
                self.all.insert(unit.clone(), address);
            }
            AddressCommand::Forget { .. } => {
                self.all.remove(unit);
            }
        }
        Ok(Reply::Done)
    }
}
