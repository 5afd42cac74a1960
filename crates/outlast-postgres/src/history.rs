//! Timelines: where each began, and whether a node's log is a beginning of another's.

use crate::error::Error;
use crate::lsn::Lsn;

/// Timelines that a history names; a cluster that was promoted more often is not one of ours.
const SWITCHES_MAX: usize = 100_000;

/// Where a timeline ended and its successor began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that ended.
    pub timeline: u32,
    /// Up to here, and not further, the successor shares its log.
    pub at: Lsn,
}

/// The way that led to a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    pub timeline: u32,
    /// Its ancestors, oldest first.
    pub switches: Vec<Switch>,
}

/// How far a node's own log reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub system: u64,
    pub timeline: u32,
    pub lsn: Lsn,
    /// What `lsn` is.
    pub end: End,
}

/// What is known of the end of a node's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The log ends here: what a standby has received or replayed.
    Here,
    /// The last record begins here: the checkpoint of a clean shutdown.
    LastRecord,
    /// It goes on from here nobody knows how far: a primary that was not shut down.
    Unknown,
}

/// What a node has to do to follow another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its log is a beginning of the other's.
    Follow,
    /// It has, or may have, what the other never had.
    Rewind,
    /// Nothing of it can be used.
    Clone(String),
}

impl History {
    /// Reads a `.history` file: timeline, switch point and reason in each line.
    pub fn parse(timeline: u32, text: &str) -> Result<History, Error> {
        let mut switches: Vec<Switch> = Vec::new();
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let bad = || Error::new(format!("not a line of a timeline's history: {line}"));
            let mut words = line.split_whitespace();
            let ended: u32 = words.next().and_then(|w| w.parse().ok()).ok_or_else(bad)?;
            let at: Lsn = words.next().and_then(|w| w.parse().ok()).ok_or_else(bad)?;
            let rises = switches.last().is_none_or(|last| last.timeline < ended && last.at <= at);
            if !rises || ended >= timeline || switches.len() >= SWITCHES_MAX {
                return Err(bad());
            }
            switches.push(Switch { timeline: ended, at });
        }
        Ok(History { timeline, switches })
    }

    /// The name of a timeline's file in `pg_wal`; the first has none.
    pub fn file_name(timeline: u32) -> Option<String> {
        (timeline > 1).then(|| format!("{timeline:08X}.history"))
    }

    /// Where the timeline was left on the way to this one; `None` if it is not on the way.
    fn left(&self, timeline: u32) -> Option<Lsn> {
        self.switches.iter().find(|switch| switch.timeline == timeline).map(|switch| switch.at)
    }
}

/// What a node has to do to follow the one with this history and end of log.
pub fn decide(ours: &Position, system: u64, theirs: &History, their_end: Lsn) -> Decision {
    if ours.system != system {
        return Decision::Clone(format!("system identifier {} is not {system}", ours.system));
    }
    // On the same timeline nobody else wrote: being ahead there is being on a way of one's own.
    let shared = match ours.timeline == theirs.timeline {
        true => Some(their_end),
        false => theirs.left(ours.timeline),
    };
    // A timeline that is not on their way has diverged, wherever it ends (trap 34).
    let Some(shared) = shared else { return Decision::Rewind };
    let within = match ours.end {
        End::Here => ours.lsn <= shared,
        // A switch lies between records: behind the beginning of one, it is behind its end.
        End::LastRecord => ours.lsn < shared,
        End::Unknown => false,
    };
    if within { Decision::Follow } else { Decision::Rewind }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tno recovery target specified\n";

    #[test]
    fn a_history_is_read_and_nonsense_is_not() {
        let history = History::parse(3, TEXT).unwrap();
        let switch = |timeline, at| Switch { timeline, at: Lsn(at) };
        assert_eq!(history.switches, [switch(1, 0x300_0148), switch(2, 0x500_0000)]);
        assert_eq!(History::parse(1, "").unwrap().switches, []);
        assert_eq!(History::file_name(31).as_deref(), Some("0000001F.history"));
        assert_eq!(History::file_name(1), None);
        for bad in ["1", "x 0/1", "1 01", "3 0/1 up", "2 0/1 a\n1 0/2 b", "1 0/2 a\n2 0/1 b"] {
            assert!(History::parse(3, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_beginning_of_their_log_may_follow() {
        let theirs = History::parse(3, TEXT).unwrap();
        let check = |timeline, lsn, end, expected: Decision| {
            let ours = Position { system: 7, timeline, lsn: Lsn(lsn), end };
            let decision = decide(&ours, 7, &theirs, Lsn(0x600_0000));
            assert_eq!(decision, expected, "{timeline} {lsn:x} {end:?}");
        };
        check(1, 0x300_0148, End::Here, Decision::Follow);
        check(1, 0x300_0149, End::Here, Decision::Rewind);
        check(1, 0x300_00d0, End::LastRecord, Decision::Follow);
        check(1, 0x300_0148, End::LastRecord, Decision::Rewind);
        check(1, 0x100_0000, End::Unknown, Decision::Rewind);
        check(2, 0x500_0000, End::Here, Decision::Follow);
        check(3, 0x600_0000, End::Here, Decision::Follow);
        check(3, 0x600_0001, End::Here, Decision::Rewind);
        // Trap 34: a timeline that they never were on.
        check(4, 0x100_0000, End::Here, Decision::Rewind);
        let foreign = Position { system: 8, timeline: 1, lsn: Lsn(1), end: End::Here };
        assert!(matches!(decide(&foreign, 7, &theirs, Lsn(9)), Decision::Clone(_)));
    }
}
