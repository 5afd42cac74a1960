//! A PostgreSQL that is modelled: its log, what it receives and acknowledges, and how it dies.

use std::collections::{BTreeMap, VecDeque};
use std::vec::Vec;

use crate::agreed::{Confirm, Position};

/// One thing in a log. No two writes have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) timeline: u32,
    pub(super) id: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Log(pub(super) Vec<Record>);

impl Log {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn position(&self, length: usize) -> Position {
        let last = self.0[..length].last();
        Position { timeline: last.map_or(0, |r| r.timeline), lsn: length as u64 }
    }

    pub(super) fn timeline(&self) -> u32 {
        self.0.last().map_or(0, |record| record.timeline)
    }

    pub(super) fn is_prefix_of(&self, other: &Log) -> bool {
        other.0.starts_with(&self.0)
    }

    /// Its timelines and where each begins and ends.
    fn history(&self) -> Vec<(u32, usize, usize)> {
        let mut history: Vec<(u32, usize, usize)> = Vec::new();
        for (at, record) in self.0.iter().enumerate() {
            match history.last_mut() {
                Some(last) if last.0 == record.timeline => last.2 = at + 1,
                Some(_) | None => history.push((record.timeline, at, at + 1)),
            }
        }
        history
    }

    /// Whether a walsender with this log would send to one that asks for what comes after `own`: it knows numbers only.
    pub(super) fn would_send(&self, keeps_from: usize, flushed: usize, own: &Log) -> bool {
        let history = self.history();
        let last = history.last().map(|last| last.0);
        let known = history.iter().find(|(timeline, _, _)| *timeline == own.timeline());
        keeps_from <= own.len()
            && own.len() <= flushed
            && (own.len() == 0
                || known
                    .is_some_and(|(timeline, _, end)| Some(*timeline) == last || own.len() <= *end))
    }

    /// What a rewind leaves of it: by numbers of timelines, too.
    pub(super) fn rewound(&self, source: &Log) -> Log {
        let (own, other) = (self.history(), source.history());
        if own.last().map(|last| last.0) == other.last().map(|last| last.0) {
            // "no rewind required"
            return self.clone();
        }
        let same = own.iter().zip(&other).take_while(|(a, b)| (a.0, a.1) == (b.0, b.1)).last();
        let parts = same.map_or(0, |(a, b)| a.2.min(b.2));
        Log(self.0[..parts].to_vec())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disk {
    Empty,
    Broken,
    Data { standby: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Down,
    Starting,
    Standby,
    Primary,
}

/// What is on its way to a standby.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) due: u64,
    pub(super) records: Vec<Record>,
}

/// What a standby has said that it has flushed.
#[derive(Debug)]
pub(super) struct Flushed {
    pub(super) due: u64,
    pub(super) life: u64,
    pub(super) node: usize,
    pub(super) length: usize,
}

#[derive(Debug)]
pub(super) struct Postgres {
    pub(super) disk: Disk,
    pub(super) log: Log,
    pub(super) flushed: usize,
    pub(super) mode: Mode,
    pub(super) hung_until: u64,
    pub(super) stalled_until: u64,
    /// Counts its starts.
    pub(super) life: u64,
    /// Whose address it receives from, whatever has become of that server.
    pub(super) upstream: Option<usize>,
    /// Under which it was told to receive from there.
    pub(super) follows_under: u64,
    /// From then on it has read all of its log.
    pub(super) read_at: u64,
    /// The upstream's life with which it is connected, and what was sent so far.
    pub(super) connection: Option<(u64, usize)>,
    pub(super) coming: VecDeque<Sent>,
    pub(super) said: usize,
    pub(super) stopped: Option<u64>,
    pub(super) promoting: bool,
    /// As primary.
    pub(super) epoch: u64,
    pub(super) rule: Confirm,
    pub(super) ruled_at: usize,
    pub(super) flushes: Vec<Flushed>,
    pub(super) acked: BTreeMap<usize, usize>,
    pub(super) pending: VecDeque<(usize, u32)>,
    pub(super) verifying: Option<(usize, u64)>,
    pub(super) verified: Option<u64>,
    pub(super) closed: Option<u64>,
    pub(super) is_source: bool,
    /// What lies before is no longer there to be sent.
    pub(super) keeps_from: usize,
}

impl Postgres {
    pub(super) fn new() -> Postgres {
        Postgres {
            disk: Disk::Empty,
            log: Log::default(),
            flushed: 0,
            mode: Mode::Down,
            hung_until: 0,
            stalled_until: 0,
            life: 0,
            upstream: None,
            follows_under: 0,
            read_at: 0,
            connection: None,
            coming: VecDeque::new(),
            said: 0,
            stopped: None,
            promoting: false,
            epoch: 0,
            rule: Confirm::default(),
            ruled_at: 0,
            flushes: Vec::new(),
            acked: BTreeMap::new(),
            pending: VecDeque::new(),
            verifying: None,
            verified: None,
            closed: None,
            is_source: false,
            keeps_from: 0,
        }
    }

    pub(super) fn is_hung(&self, now: u64) -> bool {
        now < self.hung_until
    }

    pub(super) fn runs(&self, now: u64) -> bool {
        matches!(self.mode, Mode::Standby | Mode::Primary) && !self.is_hung(now)
    }

    /// It is primary, or will be if nobody kills it.
    pub(super) fn is_primary_soon(&self) -> bool {
        let rises = self.mode == Mode::Starting && self.disk == (Disk::Data { standby: false });
        self.mode == Mode::Primary || rises || self.promoting
    }

    /// As far as it is known.
    pub(super) fn reaches(&self, now: u64) -> Position {
        let known = if now < self.read_at { self.flushed / 2 } else { self.flushed };
        self.log.position(known)
    }

    /// The whole process tree is killed; what was written is still in the cache of the system.
    pub(super) fn die(&mut self) {
        self.mode = Mode::Down;
        self.promoting = false;
        self.hung_until = 0;
        self.life += 1;
        self.cut_off();
        self.flushes.clear();
        self.acked.clear();
        self.pending.clear();
        self.verifying = None;
        (self.stopped, self.closed, self.verified, self.is_source) = (None, None, None, false);
        self.upstream = None;
    }

    /// The machine loses its power.
    pub(super) fn lose_power(&mut self) {
        self.die();
        self.log.0.truncate(self.flushed);
    }

    /// Nothing that is on its way arrives any more.
    pub(super) fn cut_off(&mut self) {
        self.connection = None;
        self.coming.clear();
        self.said = 0;
    }

    pub(super) fn append(&mut self, id: u32) -> usize {
        let timeline = self.log.timeline().max(1);
        self.log.0.push(Record { timeline, id });
        self.log.len()
    }

    pub(super) fn promote(&mut self, id: u32) {
        self.promoting = false;
        self.flushes.clear();
        let timeline = self.log.timeline() + 1;
        self.log.0.push(Record { timeline, id });
        self.flushed = self.log.len();
        (self.mode, self.disk) = (Mode::Primary, Disk::Data { standby: false });
        (self.closed, self.verified, self.stopped, self.is_source) = (None, None, None, false);
    }

    pub(super) fn flush(&mut self, now: u64) {
        if self.stalled_until <= now {
            self.flushed = self.log.len();
        }
    }

    /// Whether everything up to here is acknowledged under the rule.
    pub(super) fn is_acked(&self, length: usize, names: &[&str]) -> bool {
        let has = |name: &&str| {
            let node = names.iter().position(|other| other == name);
            node.and_then(|node| self.acked.get(&node)).is_some_and(|acked| length <= *acked)
        };
        let count = self.rule.of.iter().filter(|name| has(&name.as_str())).count();
        length <= self.flushed && self.rule.acks as usize <= count
    }
}
