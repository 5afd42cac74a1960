//! Which side of each pair serves, agreed on by all nodes.
//!
//! A failover is agreed on in two steps. `Move` takes the old side out of traffic everywhere: from then on nobody serves.
//! `Settle` lets the new side in, and is proposed once every node that could still route to the old side has either said
//! that it does not, or has lost the lease under which it may. So there is no moment at which two nodes route to two
//! sides. A planned return to a primary that is up is settled at once: both sides can serve, and no request is lost.

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
use crate::codec::{Code, Malformed, Reader};
use crate::pair::{Epoch, Side};

/// What can happen to who serves a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SideCommand {
    /// Refused unless the epoch is higher than every one before it. `settled`: the side serves at once.
    Move { service: String, to: Side, epoch: Epoch, settled: bool },
    /// Nobody routes to the other side any more.
    Settle { service: String, epoch: Epoch },
}

coded_enum!(SideCommand, "a command about pairs that is not known here", {
    1 = Move { service, to, epoch, settled }, 2 = Settle { service, epoch },
});

impl Code for Epoch {
    fn encode(&self, to: &mut alloc::vec::Vec<u8>) {
        self.0.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Epoch, Malformed> {
        u64::decode(from).map(Epoch)
    }
}

coded_enum!(Side, "a side that is not known here", { 1 = Primary, 2 = Backup });

impl SideCommand {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            SideCommand::Move { service, .. } | SideCommand::Settle { service, .. } => {
                Limit::RoleBytes.name(service)
            }
        }
    }

    pub(super) fn repeatable(&self) -> bool {
        match self {
            // An epoch is used once.
            SideCommand::Move { .. } | SideCommand::Settle { .. } => true,
        }
    }
}

/// Who serves a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgreedSide {
    pub side: Side,
    pub epoch: Epoch,
    /// It may be routed to; until then nobody serves.
    pub settled: bool,
    pub moved: Stamp,
}

coded_struct!(AgreedSide { side, epoch, settled, moved });

/// Every pair that ever changed sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sides {
    all: BTreeMap<String, AgreedSide>,
}

coded_struct!(Sides { all });

impl Sides {
    /// `None`: it has never moved, so its primary serves.
    pub fn get(&self, service: &str) -> Option<&AgreedSide> {
        self.all.get(service)
    }

    pub fn all(&self) -> &BTreeMap<String, AgreedSide> {
        &self.all
    }

    pub(super) fn apply(
        &mut self,
        at: Stamp,
        command: &SideCommand,
        history: &mut History,
    ) -> Result<Reply, Refusal> {
        match command {
            SideCommand::Move { service, to, epoch, settled } => {
                let before = self.all.get(service).map(|side| side.epoch).unwrap_or_default();
                let newer = before < *epoch;
                #[cfg(test)]
                let newer = instead(Bug::OldMoveWins, newer, true);
                if !newer {
                    return Err(Refusal::OtherEpoch { current: before.0 });
                }
                if !self.all.contains_key(service) {
                    Limit::Pairs.holds(self.all.len() + 1)?;
                }
                let side = AgreedSide { side: *to, epoch: *epoch, settled: *settled, moved: at };
                self.all.insert(service.clone(), side);
                let text = format!("service.{service}: {to} under epoch {}", epoch.0);
                history.add(at, 0, &text);
                Ok(Reply::Done)
            }
            SideCommand::Settle { service, epoch } => {
                let side = self.all.get_mut(service).ok_or(Refusal::NotHeld)?;
                if side.epoch != *epoch {
                    return Err(Refusal::OtherEpoch { current: side.epoch.0 });
                }
                side.settled = true;
                Ok(Reply::Done)
            }
        }
    }
}
