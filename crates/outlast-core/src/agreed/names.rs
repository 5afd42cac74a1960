//! What all name servers answer by, agreed on by all nodes: which things are healthy, and which of several serves.
//!
//! A name server answers by this and by the topology alone, so that all of them answer the same. Whoever leads hears what
//! every node sees and proposes what has changed (see [`crate::names::Lead`]); a node that is cut off keeps answering by
//! what it knew.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Stamp;
#[cfg(test)]
use super::bugs::{Bug, instead};
use super::form::{coded_enum, coded_list, coded_struct};
use super::history::History;
use super::limits::{LOWERED_MAX, Limit};
use super::reply::{Refusal, Reply};
use crate::health::Health;
use crate::time::Timestamp;

/// What can happen to the answers of name servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamesCommand {
    /// All of these, or none. `from` is the epoch that they were judged by, 0 if there was none: anything else that happened
    /// meanwhile wins. `zones` are those whose answers become other ones: their serials count up.
    Change { from: u64, changes: Vec<NameChange>, zones: BTreeSet<String> },
}

coded_enum!(NamesCommand, "a command about names that is not known here", {
    1 = Change { from, changes, zones },
});

/// One thing that is different from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameChange {
    /// A part, or the value of a record, is up or down.
    Health { of: String, health: Health, why: String },
    /// No answer depends on it any more.
    Forget { of: String },
    /// Somebody has planned to move it away, or has not any more.
    MovesSoon { of: String, soon: bool },
    /// Of a policy of kind failover, who serves; `None`: its first one.
    Chosen { policy: String, label: Option<String> },
    /// A person wants this one to serve; `None`: no more.
    Pinned { policy: String, pin: Option<AgreedPin> },
    /// The zone's part of the topology that is in force now; `None`: it is not there any more.
    Zone { zone: String, digest: Option<u64> },
    /// An update (RFC 2136) has added a record, or taken one out that an update had added.
    Record { zone: String, record: AddedRecord, present: bool },
    /// A person wants a record of the file to be remembered for less long until then, by the leader's wall clock; `None`: no
    /// more.
    Lowered { record: String, until: Option<Timestamp> },
}

coded_enum!(NameChange, "a change of names that is not known here", {
    1 = Health { of, health, why },
    2 = Forget { of },
    3 = MovesSoon { of, soon },
    4 = Chosen { policy, label },
    5 = Pinned { policy, pin },
    6 = Zone { zone, digest },
    7 = Record { zone, record, present },
    8 = Lowered { record, until },
});
coded_list!(NameChange);

/// Whom a person wants to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgreedPin {
    pub label: String,
    /// By the leader's wall clock; `None`: until the person takes it out.
    pub until: Option<Timestamp>,
}

coded_struct!(AgreedPin { label, until });

/// A record that an update has added, as it goes over the wire: nobody here looks into it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddedRecord {
    pub owner: Vec<u8>,
    pub rtype: u32,
    pub ttl: u32,
    pub data: Vec<u8>,
}

coded_struct!(AddedRecord { owner, rtype, ttl, data });

/// What is agreed on of one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgreedHealth {
    pub health: Health,
    pub why: String,
    pub since: Stamp,
}

coded_struct!(AgreedHealth { health, why, since });

/// What is agreed on of one zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgreedZone {
    /// Stands for its part of the topology.
    pub digest: u64,
    /// Of its SOA. It is the wall clock's second where that is later than the one before, so that a zone that is moved here
    /// from elsewhere, or founded anew, goes on upwards.
    pub serial: u32,
    pub changed: Stamp,
    /// Those that updates have added.
    pub records: BTreeSet<AddedRecord>,
}

coded_struct!(AgreedZone { digest, serial, changed, records });

/// All that name servers answer by, besides the topology.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgreedNames {
    /// The index of the last change.
    pub epoch: u64,
    pub health: BTreeMap<String, AgreedHealth>,
    pub moves_soon: BTreeSet<String>,
    pub chosen: BTreeMap<String, String>,
    pub pins: BTreeMap<String, AgreedPin>,
    /// Until when records are remembered for less long.
    pub lowered: BTreeMap<String, Timestamp>,
    pub zones: BTreeMap<String, AgreedZone>,
}

// Version 1 did not have what is lowered.
coded_struct!(AgreedNames version 2 { epoch, health, moves_soon, chosen, pins, lowered, zones });

/// The same, shared with whoever looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    all: Arc<AgreedNames>,
}

coded_struct!(Names { all });

impl NamesCommand {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let NamesCommand::Change { changes, zones, .. } = self;
        Limit::NameChanges.holds(changes.len())?;
        Limit::Zones.holds(zones.len())?;
        zones.iter().try_for_each(|zone| Limit::SubjectBytes.name(zone))?;
        changes.iter().try_for_each(NameChange::check)
    }

    pub(super) fn repeatable(&self) -> bool {
        match self {
            // An epoch is given once, and is over once it is left.
            NamesCommand::Change { .. } => true,
        }
    }
}

impl NameChange {
    /// Refuses what is too long or not well-formed.
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            NameChange::Health { of, why, .. } => {
                Limit::SubjectBytes.name(of)?;
                Limit::ReasonBytes.text(why)
            }
            NameChange::Forget { of } | NameChange::MovesSoon { of, .. } => {
                Limit::SubjectBytes.name(of)
            }
            NameChange::Chosen { policy, label } => {
                Limit::SubjectBytes.name(policy)?;
                label.iter().try_for_each(|label| Limit::SubjectBytes.text(label))
            }
            NameChange::Pinned { policy, pin } => {
                Limit::SubjectBytes.name(policy)?;
                pin.iter().try_for_each(|pin| Limit::SubjectBytes.text(&pin.label))
            }
            NameChange::Zone { zone, .. } => Limit::SubjectBytes.name(zone),
            NameChange::Record { zone, record, .. } => {
                Limit::SubjectBytes.name(zone)?;
                Limit::KeyBytes.holds(record.owner.len())?;
                Limit::ValueBytes.holds(record.data.len())
            }
            NameChange::Lowered { record, .. } => Limit::SubjectBytes.name(record),
        }
    }

    /// What people are told of it, where that is worth a line.
    fn words(&self) -> Option<(String, String)> {
        match self {
            NameChange::Health { of, health, why } => {
                Some((of.clone(), format!("is {health} for name servers: {why}")))
            }
            NameChange::Chosen { policy, label } => {
                let label = label.as_deref().unwrap_or("its first value");
                Some((policy.clone(), format!("{label} serves")))
            }
            NameChange::Pinned { policy, pin: Some(pin) } => {
                Some((policy.clone(), format!("{} is to serve, a person says", pin.label)))
            }
            NameChange::Pinned { policy, pin: None } => Some((
                policy.clone(),
                String::from("nobody is to serve any more by a person's word"),
            )),
            NameChange::Lowered { record, until } => Some((record.clone(), lowered_words(*until))),
            NameChange::MovesSoon { .. }
            | NameChange::Forget { .. }
            | NameChange::Zone { .. }
            | NameChange::Record { .. } => None,
        }
    }
}

impl AgreedNames {
    /// What becomes of it by an entry. Where there is only one node, it counts its own entries.
    pub fn changed(&self, at: Stamp, command: &NamesCommand) -> Result<AgreedNames, Refusal> {
        command.check()?;
        let NamesCommand::Change { from, changes, zones } = command;
        let judged = self.epoch == *from;
        #[cfg(test)]
        let judged = instead(Bug::AnsweredBlindly, judged, true);
        if !judged {
            return Err(Refusal::OtherEpoch { current: self.epoch });
        }
        let mut after = self.clone();
        changes.iter().try_for_each(|change| after.make(at, change))?;
        for zone in zones {
            let Some(zone) = after.zones.get_mut(zone) else { continue };
            let second = u32::try_from(at.wall.0.div_euclid(1000)).unwrap_or_default();
            zone.serial = second.max(zone.serial.wrapping_add(1));
            zone.changed = at;
        }
        after.epoch = at.index;
        Ok(after)
    }

    fn make(&mut self, at: Stamp, change: &NameChange) -> Result<(), Refusal> {
        match change {
            NameChange::Health { of, health, why } => {
                let agreed = AgreedHealth { health: *health, why: why.clone(), since: at };
                self.health.insert(of.clone(), agreed);
                Limit::NamedThings.holds(self.health.len())
            }
            NameChange::Forget { of } => {
                self.health.remove(of);
                self.moves_soon.remove(of);
                Ok(())
            }
            NameChange::MovesSoon { of, soon } => {
                if *soon {
                    self.moves_soon.insert(of.clone());
                } else {
                    self.moves_soon.remove(of);
                }
                Limit::NamedThings.holds(self.moves_soon.len())
            }
            NameChange::Chosen { policy, label } => {
                put(&mut self.chosen, policy, label.clone());
                Limit::NamedThings.holds(self.chosen.len())
            }
            NameChange::Pinned { policy, pin } => {
                put(&mut self.pins, policy, pin.clone());
                Limit::NamedThings.holds(self.pins.len())
            }
            NameChange::Zone { zone, digest } => {
                match digest {
                    Some(digest) => self.zones.entry(zone.clone()).or_default().digest = *digest,
                    None => drop(self.zones.remove(zone)),
                }
                Limit::Zones.holds(self.zones.len())
            }
            NameChange::Record { zone, record, present } => {
                let zone = self.zones.get_mut(zone).ok_or(Refusal::NotHeld)?;
                if *present {
                    zone.records.insert(record.clone());
                } else {
                    zone.records.remove(record);
                }
                Limit::ZoneRecords.holds(zone.records.len())?;
                let bytes =
                    zone.records.iter().map(|record| record.owner.len() + record.data.len());
                Limit::ZoneBytes.holds(bytes.sum())
            }
            NameChange::Lowered { record, until } => {
                let most = i64::try_from(LOWERED_MAX.as_millis()).unwrap_or(i64::MAX);
                if until.is_some_and(|until| at.wall.0.saturating_add(most) < until.0) {
                    return Err(Refusal::Duration);
                }
                put(&mut self.lowered, record, *until);
                Limit::NamedThings.holds(self.lowered.len())
            }
        }
    }
}

/// What people are told where a person wants a record to be remembered for less long, or no more.
pub(crate) fn lowered_words(until: Option<Timestamp>) -> String {
    match until {
        Some(until) => format!("is remembered for less long until {until}, a person says"),
        None => String::from("is remembered for as long as ever again"),
    }
}

fn put<V>(map: &mut BTreeMap<String, V>, key: &str, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(String::from(key), value)),
        None => drop(map.remove(key)),
    }
}

impl Names {
    pub fn all(&self) -> &Arc<AgreedNames> {
        &self.all
    }

    pub(super) fn apply(
        &mut self,
        at: Stamp,
        command: &NamesCommand,
        history: &mut History,
    ) -> Result<Reply, Refusal> {
        self.all = Arc::new(self.all.changed(at, command)?);
        let NamesCommand::Change { changes, .. } = command;
        for (subject, text) in changes.iter().filter_map(NameChange::words) {
            history.add(at, 0, &format!("{subject}: {text}"));
        }
        Ok(Reply::Done)
    }
}
