//! Zones and their changes for secondaries: AXFR (RFC 5936), IXFR (RFC 1995).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::name::Name;
use crate::respond::{AA, Question, RawRecord, Rcode, count};
use crate::table::{Table, Zone};
use crate::wire::{IN, Message};
use crate::zone::{Record, Rtype};

/// Changes of a zone that are kept for secondaries. Who is further behind gets the whole zone.
const CHANGES_MAX: usize = 64;

/// Records in those changes, for each zone.
const CHANGED_RECORDS_MAX: usize = 100_000;

/// Bytes of one message of a transfer, before its signature.
const TRANSFER_MESSAGE_MAX: usize = 16 << 10;

/// What has changed from one serial to the next.
#[derive(Debug)]
struct Diff {
    from: Record,
    to: Record,
    removed: Vec<Record>,
    added: Vec<Record>,
}

/// What has changed in all zones, as far back as is kept.
#[derive(Debug, Default)]
pub(crate) struct History(HashMap<Name, VecDeque<Arc<Diff>>>);

impl History {
    /// Notes what one table has that the other had not; returns the names of zones with another serial.
    pub(crate) fn note(&mut self, before: &Table, after: &Table) -> Vec<Name> {
        self.0.retain(|name, _| after.zone(name.wire()).is_some());
        let mut changed = Vec::new();
        for zone in after.zones() {
            let old = before.zone(zone.name.wire());
            if old.is_some_and(|old| old.serial == zone.serial) {
                continue;
            }
            changed.push(zone.name.clone());
            let kept = self.0.entry(zone.name.clone()).or_default();
            match old.and_then(|old| diff(old, zone)) {
                Some(diff) => kept.push_back(Arc::new(diff)),
                None => kept.clear(),
            }
            let size = |diffs: &VecDeque<Arc<Diff>>| -> usize {
                diffs.iter().map(|diff| diff.removed.len() + diff.added.len()).sum()
            };
            while kept.len() > CHANGES_MAX || size(kept) > CHANGED_RECORDS_MAX {
                kept.pop_front();
            }
        }
        changed
    }

    /// The changes that lead from a serial to that of the zone; none if they are not all kept.
    fn since(&self, zone: &Zone, serial: u32) -> Option<Vec<Arc<Diff>>> {
        let kept = self.0.get(&zone.name)?;
        let at = |soa: &Record, serial| serial_of(&soa.data.0) == Some(serial);
        let start = kept.iter().position(|diff| at(&diff.from, serial))?;
        let length = kept.iter().skip(start).position(|diff| at(&diff.to, zone.serial))?;
        Some(kept.iter().skip(start).take(length + 1).cloned().collect())
    }
}

/// The changes of a zone whose serial has gone up. Signatures differ between servers that sign for themselves, so that what a
/// secondary got from one cannot be changed by another: signed zones are given whole.
fn diff(old: &Zone, new: &Zone) -> Option<Diff> {
    if old.is_signed || new.is_signed || !is_after(new.serial, old.serial) {
        return None;
    }
    let (from, before) = old.records.split_first()?;
    let (to, after) = new.records.split_first()?;
    let (before, after): (BTreeSet<&Record>, BTreeSet<&Record>) =
        (before.iter().collect(), after.iter().collect());
    Some(Diff {
        from: from.clone(),
        to: to.clone(),
        removed: before.difference(&after).map(|record| (*record).clone()).collect(),
        added: after.difference(&before).map(|record| (*record).clone()).collect(),
    })
}

/// Whether a serial comes after another (RFC 1982 3.2).
pub(crate) fn is_after(serial: u32, other: u32) -> bool {
    serial.wrapping_sub(other).cast_signed() > 0
}

/// The serial in the data of a SOA, compressed or not: five numbers stand at its end.
pub(crate) fn serial_of(data: &[u8]) -> Option<u32> {
    let start = data.len().checked_sub(20)?;
    data.get(start..start + 4)?.try_into().ok().map(u32::from_be_bytes)
}

/// A transfer that goes on message by message.
#[derive(Debug)]
pub(crate) struct Transfer {
    question: Message,
    records: Vec<Part>,
    part: usize,
    at: usize,
}

/// Records that are kept somewhere and sent as they are.
#[derive(Debug)]
enum Part {
    One(Record),
    Zone(Arc<Zone>),
    Removed(Arc<Diff>),
    Added(Arc<Diff>),
}

impl Part {
    fn records(&self) -> &[Record] {
        match self {
            Part::One(record) => std::slice::from_ref(record),
            Part::Zone(zone) => &zone.records,
            Part::Removed(diff) => &diff.removed,
            Part::Added(diff) => &diff.added,
        }
    }
}

impl Transfer {
    /// Reads the question for a transfer and finds what it is answered with.
    pub(crate) fn begin(
        message: &[u8],
        table: &Table,
        history: &History,
    ) -> Result<Transfer, Rcode> {
        let question = Question::read(message).ok_or(Rcode::FORMERR)?;
        let zone = table.zone(question.name()).ok_or(Rcode::NOTAUTH)?.clone();
        let soa = zone.records.first().cloned().ok_or(Rcode::SERVFAIL)?;
        let whole = || vec![Part::Zone(zone.clone()), Part::One(soa.clone())];
        let records = match question.rtype {
            Rtype::IXFR => match theirs(message, &question).ok_or(Rcode::FORMERR)? {
                serial if !is_after(zone.serial, serial) => vec![Part::One(soa)],
                serial => match history.since(&zone, serial) {
                    Some(diffs) => changes(&soa, diffs),
                    None => whole(),
                },
            },
            _ => whole(),
        };
        let question = Message::answer(message, Rcode::NOERROR, AA);
        Ok(Transfer { question, records, part: 0, at: 0 })
    }

    /// The next message; none after the last.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        let mut message = Message(self.question.0.clone());
        let mut is_empty = true;
        while let Some(part) = self.records.get(self.part) {
            let records = part.records();
            while let Some(record) = records.get(self.at) {
                // One record of any length has room in a message of its own.
                let max = if is_empty { usize::from(u16::MAX) } else { TRANSFER_MESSAGE_MAX };
                if !message.push(1, record, IN, max) {
                    return Some(message.0);
                }
                is_empty = false;
                self.at += 1;
            }
            self.part += 1;
            self.at = 0;
        }
        (!is_empty).then_some(message.0)
    }
}

/// The serial that the secondary has, from the authority section (RFC 1995 3).
fn theirs(message: &[u8], question: &Question) -> Option<u32> {
    let record = RawRecord::read(message, question.end()).filter(|_| count(message, 2) == 1)?;
    if record.rtype == Rtype::SOA { serial_of(record.data) } else { None }
}

/// Changes in the form of RFC 1995 4: each as what goes after the old SOA, and what comes after the new one.
fn changes(soa: &Record, diffs: Vec<Arc<Diff>>) -> Vec<Part> {
    let mut parts = vec![Part::One(soa.clone())];
    for diff in diffs {
        parts.push(Part::One(diff.from.clone()));
        parts.push(Part::Removed(diff.clone()));
        parts.push(Part::One(diff.to.clone()));
        parts.push(Part::Added(diff));
    }
    parts.push(Part::One(soa.clone()));
    parts
}

#[cfg(test)]
mod tests;
