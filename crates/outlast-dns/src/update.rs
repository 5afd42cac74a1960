//! Changes that somebody asks for (RFC 2136): what must hold, what is to be done, and what comes of it.

use std::collections::BTreeSet;

use crate::name::Name;
use crate::respond::{Question, Rcode, UPDATE, count};
use crate::wire::{IN, Message, read_record};
use crate::zone::{Rdata, Record, Rtype};

/// Records of an update, prerequisites included.
pub const UPDATE_RECORDS_MAX: u32 = 1_000;

/// Bytes of an update that is written, before its signature.
const WRITTEN_MAX: usize = 64_000;

/// Classes that say what is to be done (RFC 2136 2.4, 2.5).
const NONE: u16 = 254;
const ANY: u16 = 255;

/// What must hold, or else nothing is changed (RFC 2136 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prerequisite {
    /// The name has a record of some type.
    NameInUse(Name),
    NameNotInUse(Name),
    /// The name has a set of that type, whatever is in it.
    SetExists(Name, Rtype),
    SetDoesNotExist(Name, Rtype),
    /// The name has exactly this set, whatever its times to live.
    SetIs(Name, Rtype, BTreeSet<Rdata>),
}

/// What is to be done (RFC 2136 2.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Add(Record),
    DeleteSet(Name, Rtype),
    DeleteName(Name),
    DeleteRecord(Name, Rtype, Rdata),
}

/// An update whose signature was good and whose form is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub zone: Name,
    /// The name of the key that signed it.
    pub key: Name,
    pub prerequisites: Vec<Prerequisite>,
    /// In order; each sees what those before have done.
    pub changes: Vec<Change>,
}

/// What an update is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateAnswer {
    /// It is done, and all servers will say so.
    Done,
    /// A name is there that should not be.
    NameExists,
    /// A name is not there that should be.
    NoSuchName,
    /// A set is there that should not be.
    SetExists,
    /// A set is not there that should be, or is another.
    NoSuchSet,
    /// The key may not do that.
    Refused,
    /// It could not be agreed on now.
    Failed,
}

impl UpdateAnswer {
    pub(crate) fn rcode(self) -> Rcode {
        match self {
            UpdateAnswer::Done => Rcode::NOERROR,
            UpdateAnswer::NameExists => Rcode::YXDOMAIN,
            UpdateAnswer::NoSuchName => Rcode::NXDOMAIN,
            UpdateAnswer::SetExists => Rcode::YXRRSET,
            UpdateAnswer::NoSuchSet => Rcode::NXRRSET,
            UpdateAnswer::Refused => Rcode::REFUSED,
            UpdateAnswer::Failed => Rcode::SERVFAIL,
        }
    }
}

impl Update {
    /// Reads an update that `key` signed (RFC 2136 3.1, 3.2, 3.4.1).
    pub(crate) fn read(message: &[u8], key: &Name) -> Result<Update, Rcode> {
        let question = Question::read(message).ok_or(Rcode::FORMERR)?;
        if question.rtype != Rtype::SOA || question.class != IN {
            return Err(Rcode::FORMERR);
        }
        let zone = Name::from_wire(question.name()).ok_or(Rcode::FORMERR)?;
        let counts = [count(message, 1), count(message, 2)].map(u32::from);
        if counts.iter().sum::<u32>() > UPDATE_RECORDS_MAX {
            return Err(Rcode::REFUSED);
        }
        let mut update =
            Update { zone, key: key.clone(), prerequisites: Vec::new(), changes: Vec::new() };
        let mut at = question.end();
        for number in 0..counts[0] + counts[1] {
            let read = read_record(message, at).ok_or(Rcode::FORMERR)?;
            at = read.end;
            if !read.record.owner.is_in(&update.zone) {
                return Err(Rcode::NOTZONE);
            }
            if number < counts[0] {
                update.require(read.record, read.class)?;
            } else {
                update.changes.push(change(read.record, read.class)?);
            }
        }
        Ok(update)
    }

    /// Adds a record of the prerequisite section.
    fn require(&mut self, record: Record, class: u16) -> Result<(), Rcode> {
        let Record { owner, rtype, ttl, data } = record;
        if ttl != 0 || (class != IN && !data.0.is_empty()) {
            return Err(Rcode::FORMERR);
        }
        let prerequisite = match (class, rtype) {
            (ANY, Rtype::ANY) => Prerequisite::NameInUse(owner),
            (NONE, Rtype::ANY) => Prerequisite::NameNotInUse(owner),
            (ANY, _) => Prerequisite::SetExists(owner, rtype),
            (NONE, _) => Prerequisite::SetDoesNotExist(owner, rtype),
            (IN, _) if !rtype.is_meta() => {
                let data = data.canonical(rtype);
                for known in &mut self.prerequisites {
                    if let Prerequisite::SetIs(name, own, set) = known
                        && (&*name, *own) == (&owner, rtype)
                    {
                        set.insert(data);
                        return Ok(());
                    }
                }
                Prerequisite::SetIs(owner, rtype, BTreeSet::from([data]))
            }
            _ => return Err(Rcode::FORMERR),
        };
        self.prerequisites.push(prerequisite);
        Ok(())
    }

    /// What the records of a zone become; its SOA counts as one of them and is never deleted. The caller counts the serial up
    /// if anything has changed.
    pub fn apply(&self, records: &[Record]) -> Result<Vec<Record>, UpdateAnswer> {
        for prerequisite in &self.prerequisites {
            prerequisite.check(records)?;
        }
        let mut records = records.to_vec();
        for change in &self.changes {
            change.apply(&self.zone, &mut records);
        }
        Ok(records)
    }
}

/// Writes an update; none if it is too large for one message.
pub(crate) fn write(
    id: u16,
    zone: &Name,
    prerequisites: &[Prerequisite],
    changes: &[Change],
) -> Option<Vec<u8>> {
    let mut message = Message::new(id, [UPDATE << 3, 0], zone, Rtype::SOA);
    let mut put = |section, (record, class): (Record, u16)| {
        message.push(section, &record, class, WRITTEN_MAX)
    };
    let required =
        prerequisites.iter().flat_map(Prerequisite::records).all(|record| put(1, record));
    let changed = changes.iter().map(Change::record).all(|record| put(2, record));
    (required && changed).then_some(message.0)
}

/// A record without data, whose class says what is meant.
fn bare(owner: &Name, rtype: Rtype, class: u16) -> (Record, u16) {
    (Record { owner: owner.clone(), rtype, ttl: 0, data: Rdata(Vec::new()) }, class)
}

/// Reads a record of the update section.
fn change(record: Record, class: u16) -> Result<Change, Rcode> {
    let Record { owner, rtype, ttl, data } = record;
    match class {
        IN if !rtype.is_meta() && data.is_valid(rtype) => {
            Ok(Change::Add(Record { owner, rtype, ttl, data }))
        }
        ANY if ttl == 0 && data.0.is_empty() && rtype == Rtype::ANY => {
            Ok(Change::DeleteName(owner))
        }
        ANY if ttl == 0 && data.0.is_empty() && !rtype.is_meta() => {
            Ok(Change::DeleteSet(owner, rtype))
        }
        NONE if ttl == 0 && !rtype.is_meta() => Ok(Change::DeleteRecord(owner, rtype, data)),
        _ => Err(Rcode::FORMERR),
    }
}

impl Prerequisite {
    /// The records that say it.
    fn records(&self) -> Vec<(Record, u16)> {
        match self {
            Prerequisite::NameInUse(name) => vec![bare(name, Rtype::ANY, ANY)],
            Prerequisite::NameNotInUse(name) => vec![bare(name, Rtype::ANY, NONE)],
            Prerequisite::SetExists(name, rtype) => vec![bare(name, *rtype, ANY)],
            Prerequisite::SetDoesNotExist(name, rtype) => vec![bare(name, *rtype, NONE)],
            Prerequisite::SetIs(name, rtype, set) => {
                let (head, class) = bare(name, *rtype, IN);
                set.iter()
                    .map(|data| (Record { data: data.clone(), ..head.clone() }, class))
                    .collect()
            }
        }
    }

    fn check(&self, records: &[Record]) -> Result<(), UpdateAnswer> {
        let has_name = |name: &Name| records.iter().any(|record| record.owner == *name);
        let set = |name: &Name, rtype: Rtype| -> BTreeSet<Rdata> {
            let own = records.iter().filter(|r| r.owner == *name && r.rtype == rtype);
            own.map(|record| record.data.canonical(rtype)).collect()
        };
        let (holds, otherwise) = match self {
            Prerequisite::NameInUse(name) => (has_name(name), UpdateAnswer::NoSuchName),
            Prerequisite::NameNotInUse(name) => (!has_name(name), UpdateAnswer::NameExists),
            Prerequisite::SetExists(name, rtype) => {
                (!set(name, *rtype).is_empty(), UpdateAnswer::NoSuchSet)
            }
            Prerequisite::SetDoesNotExist(name, rtype) => {
                (set(name, *rtype).is_empty(), UpdateAnswer::SetExists)
            }
            Prerequisite::SetIs(name, rtype, wanted) => {
                (set(name, *rtype) == *wanted, UpdateAnswer::NoSuchSet)
            }
        };
        if holds { Ok(()) } else { Err(otherwise) }
    }
}

impl Change {
    /// The record that says it.
    fn record(&self) -> (Record, u16) {
        match self {
            Change::Add(record) => (record.clone(), IN),
            Change::DeleteSet(name, rtype) => bare(name, *rtype, ANY),
            Change::DeleteName(name) => bare(name, Rtype::ANY, ANY),
            Change::DeleteRecord(name, rtype, data) => {
                let (head, class) = bare(name, *rtype, NONE);
                (Record { data: data.clone(), ..head }, class)
            }
        }
    }

    /// Does it (RFC 2136 3.4.2). What must not be done is passed over without a word.
    fn apply(&self, zone: &Name, records: &mut Vec<Record>) {
        match self {
            Change::Add(record) => add(record, records),
            Change::DeleteSet(name, rtype) => {
                records.retain(|r| r.owner != *name || r.rtype != *rtype || is_kept(r, zone));
            }
            Change::DeleteName(name) => records.retain(|r| r.owner != *name || is_kept(r, zone)),
            Change::DeleteRecord(name, rtype, data) => {
                let data = data.canonical(*rtype);
                let servers = records.iter().filter(|r| r.owner == *zone && r.rtype == Rtype::NS);
                let is_last = *name == *zone && *rtype == Rtype::NS && servers.count() == 1;
                let is_it = |r: &Record| {
                    r.owner == *name && r.rtype == *rtype && r.data.canonical(*rtype) == data
                };
                records.retain(|r| !is_it(r) || is_last || *rtype == Rtype::SOA);
            }
        }
    }
}

/// The SOA and the name servers of the zone itself are not deleted as sets.
fn is_kept(record: &Record, zone: &Name) -> bool {
    record.owner == *zone && matches!(record.rtype, Rtype::SOA | Rtype::NS)
}

/// Adds a record, or gives the one that is there a new time to live. A set has one time to live (RFC 2181 5.2).
fn add(record: &Record, records: &mut Vec<Record>) {
    let at_name = |r: &&Record| r.owner == record.owner;
    let mut there = records.iter().filter(at_name);
    let clashes = there.any(|r| (r.rtype == Rtype::CNAME) != (record.rtype == Rtype::CNAME));
    // Serials come from what is agreed.
    if clashes || record.rtype == Rtype::SOA {
        return;
    }
    let data = record.data.canonical(record.rtype);
    let is_set = |r: &Record| r.owner == record.owner && r.rtype == record.rtype;
    let is_single = record.rtype == Rtype::CNAME;
    records.retain(|r| !is_set(r) || (!is_single && r.data.canonical(r.rtype) != data));
    records.iter_mut().filter(|r| is_set(r)).for_each(|r| r.ttl = record.ttl);
    records.push(record.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn record(owner: &str, rtype: &str, data: &str) -> Record {
        let (rtype, data) = Rdata::parse(rtype, data).unwrap();
        Record { owner: name(owner), rtype, ttl: 30, data }
    }

    fn zone() -> Vec<Record> {
        vec![
            record("z", "SOA", "ns.z. h.z. 1 2 3 4 5"),
            record("z", "NS", "ns.z."),
            record("a.z", "A", "192.0.2.1"),
            record("a.z", "A", "192.0.2.2"),
            record("c.z", "CNAME", "a.z."),
        ]
    }

    fn update(
        prerequisites: Vec<Prerequisite>,
        changes: Vec<Change>,
    ) -> Result<Vec<Record>, UpdateAnswer> {
        Update { zone: name("z"), key: name("k"), prerequisites, changes }.apply(&zone())
    }

    #[test]
    fn what_is_written_is_read_again() {
        use Prerequisite::{NameInUse, NameNotInUse, SetDoesNotExist, SetExists, SetIs};
        let (a, b) = (name("a.z"), name("b.z"));
        let set = ["192.0.2.1", "192.0.2.2"].map(|text| Rdata::parse("A", text).unwrap().1);
        let update = Update {
            zone: name("z"),
            key: name("k"),
            prerequisites: vec![
                NameInUse(a.clone()),
                NameNotInUse(b.clone()),
                SetExists(a.clone(), Rtype::A),
                SetDoesNotExist(b.clone(), Rtype::TXT),
                SetIs(a.clone(), Rtype::A, set.clone().into()),
            ],
            changes: vec![
                Change::Add(record("b.z", "MX", "10 a.z.")),
                Change::DeleteSet(b.clone(), Rtype::A),
                Change::DeleteName(b),
                Change::DeleteRecord(a, Rtype::A, set[0].clone()),
            ],
        };
        let message = write(9, &update.zone, &update.prerequisites, &update.changes).unwrap();
        assert_eq!(Update::read(&message, &update.key), Ok(update));
        for length in 0..message.len() {
            let read = Update::read(&message[..length], &name("k"));
            assert_eq!(read, Err(Rcode::FORMERR), "{length}");
        }
    }

    /// Messages that were good once: no panic, and what is read can be written again.
    #[test]
    fn broken_updates_are_refused_or_mean_something() {
        let changes = [
            Change::Add(record("b.z", "MX", "10 a.z.")),
            Change::Add(record("s.z", "SRV", "1 2 3 a.z.")),
            Change::DeleteRecord(name("a.z"), Rtype::A, Rdata::a([192, 0, 2, 1].into())),
        ];
        let good = write(9, &name("z"), &[Prerequisite::NameInUse(name("a.z"))], &changes).unwrap();
        let mut random = crate::table::Random(20_261_129);
        let mut below = |limit: usize| usize::try_from(random.next() >> 33).unwrap() % limit;
        for _ in 0..100_000 {
            let mut message = good.clone();
            for _ in 0..=below(4) {
                let place = below(message.len());
                message[place] = u8::try_from(below(256)).unwrap();
            }
            message.truncate(good.len() - below(3) * below(20));
            if let Ok(update) = Update::read(&message, &name("k")) {
                assert!(write(9, &update.zone, &update.prerequisites, &update.changes).is_some());
                update.apply(&zone()).ok();
            }
        }
    }

    #[test]
    fn nothing_changes_unless_all_holds() {
        use Prerequisite::{NameInUse, NameNotInUse, SetDoesNotExist, SetExists, SetIs};
        let set = |list: &[&str]| list.iter().map(|a| Rdata::parse("A", a).unwrap().1).collect();
        for (prerequisite, wanted) in [
            (NameInUse(name("a.z")), Ok(())),
            (NameInUse(name("b.z")), Err(UpdateAnswer::NoSuchName)),
            (NameNotInUse(name("a.z")), Err(UpdateAnswer::NameExists)),
            (SetExists(name("a.z"), Rtype::A), Ok(())),
            (SetExists(name("a.z"), Rtype::TXT), Err(UpdateAnswer::NoSuchSet)),
            (SetDoesNotExist(name("a.z"), Rtype::A), Err(UpdateAnswer::SetExists)),
            (SetIs(name("a.z"), Rtype::A, set(&["192.0.2.2", "192.0.2.1"])), Ok(())),
            (SetIs(name("a.z"), Rtype::A, set(&["192.0.2.1"])), Err(UpdateAnswer::NoSuchSet)),
        ] {
            let said = format!("{prerequisite:?}");
            assert_eq!(update(vec![prerequisite], vec![]).map(drop), wanted, "{said}");
        }
    }

    #[test]
    fn changes_are_done_in_order_and_what_must_stay_stays() {
        let added = record("b.z", "TXT", "x");
        for (changes, left) in [
            (vec![Change::Add(added.clone())], 6),
            (vec![Change::Add(added), Change::DeleteName(name("b.z"))], 5),
            (vec![Change::Add(record("a.z", "A", "192.0.2.1"))], 5),
            (vec![Change::Add(record("a.z", "CNAME", "b.z."))], 5),
            (vec![Change::Add(record("c.z", "CNAME", "b.z."))], 5),
            (vec![Change::Add(record("c.z", "A", "192.0.2.1"))], 5),
            (vec![Change::DeleteSet(name("a.z"), Rtype::A)], 3),
            (vec![Change::DeleteRecord(name("a.z"), Rtype::A, Rdata::a([192, 0, 2, 1].into()))], 4),
            (vec![Change::DeleteName(name("z"))], 5),
            (vec![Change::DeleteRecord(name("z"), Rtype::NS, Rdata::name(&name("ns.z")))], 5),
            (vec![Change::DeleteSet(name("z"), Rtype::SOA)], 5),
        ] {
            let said = format!("{changes:?}");
            assert_eq!(update(vec![], changes).unwrap().len(), left, "{said}");
        }
    }
}
