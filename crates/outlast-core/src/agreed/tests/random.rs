//! Random commands that make sense often enough: dice choose among what there is.

use std::borrow::ToOwned as _;
use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::time::Duration;
use std::vec::Vec;

use crate::agreed::SwitchoverStep as Step;
use crate::agreed::*;
use crate::health::Health;
use crate::pair::{Epoch, Side};

/// What one entry is made from.
pub(crate) type Dice = [u8; 8];

/// A run of random entries: what was sent, and who sends next what.
#[derive(Debug, Default)]
pub(crate) struct Senders {
    past: Vec<Entry>,
    sequences: BTreeMap<u64, u64>,
}

impl Senders {
    /// Clients number from 1, sometimes with gaps and out of order; sometimes an old entry comes again.
    pub(crate) fn entry(&mut self, agreed: &Agreed, dice: Dice) -> Entry {
        let [who, how, ..] = dice;
        if how % 8 == 0 && !self.past.is_empty() {
            return self.past[usize::from(who) % self.past.len()].clone();
        }
        let command = command(agreed, dice);
        let clients: Vec<u64> = agreed.clients.known.keys().copied().collect();
        let nobody = clients.is_empty() || (command.repeatable() && who % 2 == 0);
        let (origin, sequence) = if nobody {
            (ClientId::NOBODY, 0)
        } else {
            let client = clients[usize::from(who / 2) % clients.len().min(3)];
            let last = self.sequences.entry(client).or_default();
            *last += 1 + u64::from(how % 16 == 1);
            (ClientId(client), *last - u64::from(how % 16 == 2).min(*last - 1))
        };
        let command = if clients.is_empty() { Command::Introduce } else { command };
        let entry = Entry { origin, sequence, wall: Timestamp(i64::from(how)), command };
        self.past.push(entry.clone());
        entry
    }
}

/// One of those, or now and then one that is not there.
fn pick(from: impl IntoIterator<Item = u64>, die: u8) -> u64 {
    let all: Vec<u64> = from.into_iter().collect();
    if all.is_empty() || die.is_multiple_of(16) {
        return u64::from(die);
    }
    all[usize::from(die) % all.len()]
}

fn name(die: u8, from: &[&str]) -> String {
    from[usize::from(die) % from.len()].to_owned()
}

fn ttl(die: u8) -> Duration {
    Duration::from_secs(u64::from(die % 8))
}

fn text(die: u8) -> String {
    if die == 7 { "x".repeat(3000) } else { format!("text {}", die % 4) }
}

fn command(agreed: &Agreed, dice: Dice) -> Command {
    let [_, _, kind, a, b, c, d, e] = dice;
    match kind % 32 {
        0 => Command::Introduce,
        1 => Command::Record { node: u64::from(a), text: text(b) },
        2 | 3 => Command::Node(node(agreed, [a, b, c, d])),
        4..=6 => Command::Topology(topology(agreed, [a, b, c])),
        7..=10 => Command::Lease(lease(agreed, [a, b, c, d])),
        11 => Command::Notice(notice(agreed, [a, b, c, d])),
        12..=15 => Command::Procedure(procedure(agreed, [a, b, c, d, e])),
        16..=19 => Command::Kv(kv(agreed, [a, b, c, d])),
        20 | 21 => Command::Session(session(agreed, [a, b, c])),
        22 => Command::Side(side(agreed, [a, b, c])),
        23 => Command::Address(address(agreed, [a, b, c, d])),
        24 => Command::Names(names(agreed, [a, b, c, d])),
        25..=29 => Command::Database(database(agreed, [a, b, c, d, e])),
        _ => Command::Lock(lock(agreed, [a, b, c])),
    }
}

fn side(agreed: &Agreed, [a, b, c]: [u8; 3]) -> SideCommand {
    let service = name(a, &["web", "billing"]);
    let current = agreed.sides().get(&service).map_or(0, |side| side.epoch.0);
    let epoch = Epoch((current + u64::from(b % 4)).saturating_sub(1));
    match c % 3 {
        0 => SideCommand::Settle { service, epoch },
        settled => {
            let to = if c % 2 == 0 { Side::Primary } else { Side::Backup };
            SideCommand::Move { service, to, epoch, settled: settled == 1 }
        }
    }
}

fn address(agreed: &Agreed, [a, b, c, d]: [u8; 4]) -> AddressCommand {
    let unit = name(a, &["edge", "inner"]);
    let current = agreed.addresses().get(&unit).map_or(0, |address| address.epoch);
    let from = if b % 8 == 0 { current.saturating_sub(u64::from(b)) } else { current };
    if c % 4 == 0 {
        return AddressCommand::Forget { unit, from };
    }
    let to = (c % 4 != 1).then(|| name(c, &MEMBERS));
    AddressCommand::Move { unit, from, to, why: text(d) }
}

fn names(agreed: &Agreed, [a, b, c, d]: [u8; 4]) -> NamesCommand {
    let current = agreed.names().all().epoch;
    let from = if a % 8 == 0 { current.saturating_sub(u64::from(a)) } else { current };
    let of = name(b, &["service.web", "external.mail"]);
    let zone = name(b, &["example.com", "example.net"]);
    let record =
        AddedRecord { owner: alloc::vec![c % 4], rtype: 1, ttl: 60, data: text(d).into_bytes() };
    let pin = AgreedPin { label: text(c), until: None };
    let until = Timestamp(i64::from(d));
    let change = match c % 9 {
        0 => NameChange::Forget { of },
        1 | 2 => {
            let health = if d.is_multiple_of(2) { Health::Up } else { Health::Down };
            NameChange::Health { of, health, why: text(d) }
        }
        3 => NameChange::MovesSoon { of, soon: d % 2 == 0 },
        4 => NameChange::Chosen { policy: of, label: (d % 2 == 0).then(|| text(d)) },
        5 => NameChange::Pinned { policy: of, pin: (d % 2 == 0).then_some(pin) },
        6 => NameChange::Zone { zone: zone.clone(), digest: (d % 8 != 0).then_some(u64::from(d)) },
        7 => NameChange::Record { zone: zone.clone(), record, present: d % 4 != 0 },
        _ => NameChange::Lowered { record: of, until: (d % 2 == 0).then_some(until) },
    };
    NamesCommand::Change { from, changes: alloc::vec![change], zones: [zone].into() }
}

const MEMBERS: [&str; 3] = ["db1", "db2", "db3"];

/// Mostly what could come next.
fn database(agreed: &Agreed, [a, b, c, d, e]: [u8; 5]) -> DatabaseCommand {
    let database = name(b, &["orders", "orders", "orders", "orders", "billing"]);
    let node = || name(c, &MEMBERS);
    let Some(known) = agreed.databases().get(&database) else {
        return DatabaseCommand::Create { database, node: node() };
    };
    let epoch = pick([known.epoch(), known.epoch(), known.reign.epoch], d);
    let begun = pick(known.switchover.as_ref().map(|switchover| switchover.begun.index), d);
    match a % 32 {
        0 => DatabaseCommand::Create { database, node: node() },
        1 => DatabaseCommand::Made { database, epoch, system: u64::from(c % 4) },
        2 | 3 => DatabaseCommand::Open { database, epoch, timeline: u32::from(c % 4) },
        4..=6 => {
            let region = (e % 4 == 0).then(|| text(d));
            DatabaseCommand::Elect { database, epoch, why: text(c), region }
        }
        7..=10 => DatabaseCommand::Appoint {
            database,
            epoch,
            node: known.switchover.as_ref().map_or_else(node, |switchover| switchover.to.clone()),
            recruits: recruits([b, c, e]),
            next: confirm([d, e]),
            losing: e % 32 == 0,
        },
        11 => DatabaseCommand::Regain { database, epoch },
        12 | 13 => DatabaseCommand::Widen { database, epoch, to: confirm([c, e]) },
        14 | 15 => {
            let to = if c % 8 == 0 { confirm([c, e]) } else { known.rule() };
            DatabaseCommand::Settle { database, epoch, to }
        }
        16 | 17 => {
            let (who, pause_max) = (text(e), Duration::from_secs(u64::from(e)));
            DatabaseCommand::Switch { database, epoch, to: node(), who, pause_max }
        }
        24 | 25 => upkeep(known, database, [c, d, e]),
        26 | 27 => {
            let turn = known.upkeep.as_ref().and_then(|upkeep| upkeep.turn.as_ref());
            let turn = pick(turn.map(|turn| turn.at.index), d);
            DatabaseCommand::TurnDone { database, turn, evidence: text(e) }
        }
        28 => {
            let (to, who, pause_max) = (node(), text(e), Duration::from_secs(u64::from(e)));
            let when = Timestamp(i64::from(c) * 1000);
            DatabaseCommand::Schedule { database, to, who, pause_max, when }
        }
        29 | 30 => {
            let asked = pick(known.scheduled.as_ref().map(|scheduled| scheduled.asked.index), d);
            match c % 2 {
                0 => DatabaseCommand::SwitchScheduled { database, epoch, asked },
                _ => DatabaseCommand::Unschedule { database, asked, why: text(e) },
            }
        }
        19 => {
            let pairs =
                [(c, d), (d, e)].map(|(node, relay)| (name(node, &MEMBERS), name(relay, &MEMBERS)));
            DatabaseCommand::Relay { database, epoch, upstreams: pairs.into() }
        }
        18 if c % 4 == 0 => DatabaseCommand::Unwind { database, begun, why: text(e) },
        _ => {
            let turn = known.switchover.as_ref().map_or(Step::CatchUp, |s| s.step);
            let step = if c % 16 == 0 { Step::ALL[usize::from(c / 16) % 8] } else { turn };
            DatabaseCommand::Step { database, begun, step, evidence: text(e) }
        }
    }
}

fn upkeep(known: &Database, database: String, [c, d, e]: [u8; 3]) -> DatabaseCommand {
    let node = name(c, &MEMBERS);
    let Some(upkeep) = &known.upkeep else {
        let kind = if d % 2 == 0 { UpkeepKind::Restart } else { UpkeepKind::Remake };
        let nodes = [node, name(e, &MEMBERS)].into();
        let (pending, in_place, who) = (c % 2 == 0, e % 2 == 0, text(e));
        let plan = UpkeepPlan { kind, nodes, pending, in_place, who };
        return DatabaseCommand::Upkeep { database, epoch: known.epoch(), plan };
    };
    let begun = upkeep.begun.index;
    let failed = (d % 2 == 0).then(|| text(e));
    match e % 4 {
        0 => DatabaseCommand::UpkeepDone { database, begun, failed },
        _ => DatabaseCommand::Turn { database, begun, node },
    }
}

fn recruits(dice: [u8; 3]) -> Vec<Recruit> {
    let members = MEMBERS.iter().zip(dice).filter(|(_, die)| die % 4 > 0);
    let recruits = members.map(|(name, die)| Recruit {
        node: (*name).to_owned(),
        reaches: Position { timeline: u32::from(die / 64), lsn: u64::from(die / 8 % 4) },
    });
    recruits.collect()
}

fn confirm([a, b]: [u8; 2]) -> Confirm {
    let of = MEMBERS.iter().enumerate().filter(|(at, _)| b >> at & 1 > 0);
    let of = of.map(|(_, name)| (*name).to_owned()).collect();
    Confirm { acks: u32::from(a % 3), of, ..Confirm::default() }
}

fn nodes(agreed: &Agreed) -> impl Iterator<Item = u64> {
    agreed.registry.nodes().keys().copied()
}

fn node(agreed: &Agreed, [a, b, c, d]: [u8; 4]) -> NodeCommand {
    let role = [NodeRole::Voter, NodeRole::Learner, NodeRole::Witness][usize::from(c) % 3];
    let id = pick(nodes(agreed), b);
    let name = name(d, &["db1", "db2", "db3", ""]);
    let address = format!("10.0.0.{c}");
    match a % 8 {
        0..=3 => {
            let replaces = (b % 2 == 0).then(|| agreed.registry.id_of(&name).unwrap_or(id));
            NodeCommand::Join { name, role, address, replaces }
        }
        4 | 5 => NodeCommand::Return { id, name, address, disk_index: u64::from(c) },
        6 => NodeCommand::SetRole { id, role },
        _ => NodeCommand::Remove { id },
    }
}

fn topology(agreed: &Agreed, [a, b, c]: [u8; 3]) -> TopologyCommand {
    let version = pick(agreed.topology.proposal().map(|proposal| proposal.version), b);
    match a % 8 {
        0 => {
            let base_version = pick([agreed.topology.version()], b);
            super::script::propose(text(c), base_version)
        }
        1..=4 => {
            let (node, ok) = (pick(nodes(agreed), c), a < 224);
            TopologyCommand::Vote { version, node, ok, reason: text(b) }
        }
        5 | 6 => TopologyCommand::Commit { version },
        _ => TopologyCommand::Abort { version, reason: text(c) },
    }
}

fn lease(agreed: &Agreed, [a, b, c, d]: [u8; 4]) -> LeaseCommand {
    let role = name(b, &["coordinator", "coordinator", "vip", "postgres/orders"]);
    let lease = agreed.leases.get(&role);
    let node = match lease {
        Some(lease) if c % 4 > 0 => lease.holder,
        Some(_) | None => pick(nodes(agreed), c),
    };
    let epoch = pick(lease.map(|lease| lease.epoch), d);
    match a % 8 {
        0..=3 => LeaseCommand::Grant { role, node, ttl: ttl(d) },
        4 | 5 => LeaseCommand::Renew { role, node, epoch },
        6 => LeaseCommand::Release { role, node, epoch },
        _ => {
            let renewed = lease.map(|lease| [lease.renewed_index, lease.epoch]);
            LeaseCommand::Expire {
                role,
                epoch,
                renewed_index: pick(renewed.into_iter().flatten(), c),
            }
        }
    }
}

fn notice(agreed: &Agreed, [a, b, c, d]: [u8; 4]) -> NoticeCommand {
    let who = name(c, &["ann", "bob", ""]);
    if a % 3 == 0 {
        return NoticeCommand::Lift { id: pick(agreed.notices.up().keys().copied(), b), who };
    }
    let kinds = [NoticeKind::Pause, NoticeKind::Maintenance, NoticeKind::Silence];
    let (kind, lasts) = (kinds[usize::from(b) % 3], ttl(d));
    NoticeCommand::Post { kind, subject: text(d), who, why: text(c), lasts }
}

fn procedure(agreed: &Agreed, [a, b, c, d, e]: [u8; 5]) -> ProcedureCommand {
    let coordinator = "coordinator".to_owned();
    let epoch = pick(agreed.leases.get(&coordinator).map(|lease| lease.epoch), b);
    let id = pick(agreed.procedures.in_progress().map(|(id, _)| id), c);
    match a % 16 {
        0 => ProcedureCommand::Begin {
            kind: "switchover".to_owned(),
            subject: name(c, &["orders", "billing"]),
            coordinator,
            epoch,
            pivot: u32::from(d % 4),
            plan: (0..e % 5).map(|i| Plan { name: text(i % 4), undo: (e >> i) % 2 == 0 }).collect(),
        },
        1 => ProcedureCommand::Unwind { id, epoch, why: text(d) },
        2 if d % 4 == 0 => ProcedureCommand::Abandon { id, who: text(d), why: text(e) },
        _ => {
            // A coordinator whose lease is over goes on for a while.
            let procedure = agreed.procedures.known().get(&id);
            let epoch = if d % 8 == 0 { procedure.map_or(epoch, |p| p.epoch) } else { epoch };
            let (step, progress) = step(procedure, [d, e]);
            ProcedureCommand::Step { id, epoch, step, progress }
        }
    }
}

/// Mostly what comes next.
fn step(procedure: Option<&Procedure>, [d, e]: [u8; 2]) -> (u32, Progress) {
    let why = || text(e % 4);
    let turn = procedure.map(|procedure| (procedure, next(procedure)));
    match turn {
        Some((procedure, What::Do { step })) if d % 16 > 0 => {
            let started = procedure.steps[step as usize].state != StepState::Pending;
            let progress = match e % 4 {
                0 | 1 if started => Progress::Done { evidence: why() },
                2 if started => Progress::Failed { why: why() },
                _ => Progress::Start,
            };
            (step, progress)
        }
        Some((procedure, What::Undo { step } | What::Stuck { step })) if d % 16 > 0 => {
            let undoing = procedure.steps[step as usize].state == StepState::Undoing;
            let progress = match e % 8 {
                0..=4 if undoing => Progress::Undone,
                5 | 6 if undoing => Progress::UndoFailed { why: why() },
                _ => Progress::UndoStart,
            };
            (step, progress)
        }
        Some(_) | None => (
            u32::from(d / 16 % 5),
            match e % 6 {
                0 => Progress::Start,
                1 => Progress::Done { evidence: why() },
                2 => Progress::Failed { why: why() },
                3 => Progress::UndoStart,
                4 => Progress::Undone,
                _ => Progress::UndoFailed { why: why() },
            },
        ),
    }
}

fn key(die: u8) -> Vec<u8> {
    if die == 9 { std::vec![b'k'; 600] } else { std::vec![b'a' + die % 4; usize::from(die % 3)] }
}

fn sessions(agreed: &Agreed) -> impl Iterator<Item = u64> {
    agreed.space.sessions().keys().copied()
}

fn kv(agreed: &Agreed, [a, b, c, d]: [u8; 4]) -> KvCommand {
    let key = key(b);
    let session = (c % 2 == 0).then(|| pick(sessions(agreed), c));
    let length = if d == 11 { 70_000 } else { usize::from(d) };
    let value = std::vec![c; length];
    let item = agreed.space.items().get(&key);
    let expected = match d % 3 {
        0 => Expected::Absent,
        1 => Expected::Version { version: pick(item.map(|item| item.version), c) },
        _ => Expected::Modified { index: pick(item.map(|item| item.modified_index), c) },
    };
    match a % 4 {
        0 | 1 => KvCommand::Put { key, value, session },
        2 => KvCommand::Cas { key, expected, value, session },
        _ => KvCommand::Delete { key, expected: (a % 8 < 4).then_some(expected) },
    }
}

fn session(agreed: &Agreed, [a, b, c]: [u8; 3]) -> SessionCommand {
    let id = pick(sessions(agreed), b);
    match a % 6 {
        0 | 1 => SessionCommand::Open { ttl: ttl(c) },
        2 => SessionCommand::Renew { id },
        3 => SessionCommand::Close { id },
        _ => {
            let session = agreed.space.sessions().get(&id);
            let renewed = session.map(|session| [session.renewed_index, id]);
            SessionCommand::Expire { id, renewed_index: pick(renewed.into_iter().flatten(), c) }
        }
    }
}

fn lock(agreed: &Agreed, [a, b, c]: [u8; 3]) -> LockCommand {
    let (key, session) = (key(b), pick(sessions(agreed), c));
    if a % 3 == 0 {
        LockCommand::Unlock { key, session }
    } else {
        LockCommand::Lock { key, session }
    }
}
