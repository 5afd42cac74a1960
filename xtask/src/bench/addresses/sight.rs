//! What the client has seen, read from the lines that it writes, and what they say about a span of time.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::postgres::span;

/// Between two answers while all is well, at most.
const PAUSE: Duration = Duration::from_millis(50);
/// Lines that are kept: a span of some minutes.
const SEEN_MAX: usize = 200_000;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// A machine answered.
    Answer(String),
    /// So many machines claimed the address at once.
    Claims(usize),
    /// The client itself was late.
    Late(Duration),
}

/// All that the client has written so far.
#[derive(Debug)]
pub(super) struct Sight {
    log: File,
    /// The start of a line whose end is not written yet.
    rest: String,
    seen: Vec<(u64, Seen)>,
}

/// For how long nobody answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    Ended(Duration),
    /// Not over when the span was.
    Open(Duration),
}

impl Silence {
    pub(super) fn at_least(self) -> Duration {
        match self {
            Silence::Ended(time) | Silence::Open(time) => time,
        }
    }
}

impl Sight {
    pub(super) fn open(log: &Path) -> Result<Sight> {
        let log = File::open(log).context("open what the client writes")?;
        Ok(Sight { log, rest: String::new(), seen: Vec::new() })
    }

    /// Reads what is new.
    pub(super) fn look(&mut self) -> Result<()> {
        let at = self.log.stream_position()?;
        let mut bytes = Vec::new();
        self.log.read_to_end(&mut bytes).context("read what the client writes")?;
        self.log.seek(SeekFrom::Start(at + u64::try_from(bytes.len())?))?;
        self.take(&String::from_utf8_lossy(&bytes));
        Ok(())
    }

    fn take(&mut self, text: &str) {
        self.rest.push_str(text);
        let whole = self.rest.rfind('\n').map_or(0, |at| at + 1);
        let rest = self.rest.split_off(whole);
        let lines = std::mem::replace(&mut self.rest, rest);
        self.seen.extend(lines.lines().filter_map(parse));
        let old = self.seen.len().saturating_sub(SEEN_MAX);
        self.seen.drain(..old);
    }

    fn answers(&self) -> impl DoubleEndedIterator<Item = (u64, &str)> {
        self.seen.iter().filter_map(|(at, seen)| match seen {
            Seen::Answer(name) => Some((*at, name.as_str())),
            Seen::Claims(_) | Seen::Late(_) => None,
        })
    }

    /// Who has answered alone, without a pause, for the whole span.
    pub(super) fn steady(&self, from: u64, to: u64, pause_max: Duration) -> Option<String> {
        let within = self.answers().filter(|(at, _)| (from..=to).contains(at));
        let names: BTreeSet<&str> = within.map(|(_, name)| name).collect();
        let is_calm = self.silence(from, to).at_least() <= pause_max;
        let name = names.first().filter(|_| names.len() == 1 && is_calm)?;
        Some((*name).to_owned())
    }

    /// The longest time without an answer that lies in the span or reaches into it.
    pub(super) fn silence(&self, from: u64, to: u64) -> Silence {
        let before = self.answers().rev().find(|(at, _)| *at < from).map(|(at, _)| at);
        self.gap(before.unwrap_or(from), from, to)
    }

    /// The same, but counted from the beginning of the span at the earliest.
    pub(super) fn silence_within(&self, from: u64, to: u64) -> Silence {
        self.gap(from, from, to)
    }

    fn gap(&self, mut last: u64, from: u64, to: u64) -> Silence {
        let mut longest = Duration::ZERO;
        for (at, _) in self.answers().filter(|(at, _)| (from..=to).contains(at)) {
            longest = longest.max(span(last, at));
            last = at;
        }
        let open = span(last, to);
        let is_open = PAUSE < open && longest < open;
        if is_open { Silence::Open(open) } else { Silence::Ended(longest) }
    }

    /// Samples in which the address was claimed, and those in which two machines claimed it.
    pub(super) fn claims(&self, from: u64, to: u64) -> (usize, usize) {
        let within = self.seen.iter().filter(|(at, _)| (from..=to).contains(at));
        let counts: Vec<usize> = within
            .filter_map(|(_, seen)| match seen {
                Seen::Claims(count) => Some(*count),
                Seen::Answer(_) | Seen::Late(_) => None,
            })
            .collect();
        (counts.len(), counts.iter().filter(|count| 1 < **count).count())
    }

    /// How often another machine answered than before.
    pub(super) fn changes(&self, from: u64, to: u64) -> usize {
        let within = self.answers().filter(|(at, _)| (from..=to).contains(at));
        let names: Vec<&str> = within.map(|(_, name)| name).collect();
        names.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    /// How late the client itself was at most.
    pub(super) fn late(&self, from: u64, to: u64) -> Duration {
        let within = self.seen.iter().filter(|(at, _)| (from..=to).contains(at));
        within
            .filter_map(|(_, seen)| match seen {
                Seen::Late(late) => Some(*late),
                Seen::Answer(_) | Seen::Claims(_) => None,
            })
            .max()
            .unwrap_or_default()
    }
}

fn parse(line: &str) -> Option<(u64, Seen)> {
    let mut words = line.split_whitespace();
    let (kind, at) = (words.next()?, words.next()?.parse().ok()?);
    let seen = match kind {
        "A" => Seen::Answer(words.next()?.to_owned()),
        "C" => Seen::Claims(words.count()),
        "L" => Seen::Late(Duration::from_millis(words.next()?.parse().ok()?)),
        _ => return None,
    };
    Some((at, seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn sight(text: &str) -> Sight {
        let log = File::open("/dev/null").unwrap();
        let mut sight = Sight { log, rest: String::new(), seen: Vec::new() };
        sight.take(text);
        sight
    }

    fn answers(moments: &[(u64, &str)]) -> Sight {
        let line = |(ms, name): &(u64, &str)| format!("A {} {name}\n", ms * MS);
        sight(&moments.iter().map(line).collect::<String>())
    }

    #[test]
    fn a_silence_begins_with_the_last_answer_before_it() {
        let sight = answers(&[(1, "a"), (5, "a"), (305, "b"), (310, "b")]);
        let ms = Duration::from_millis;
        assert_eq!(sight.silence(7 * MS, 312 * MS), Silence::Ended(ms(300)));
        assert_eq!(sight.silence_within(7 * MS, 312 * MS), Silence::Ended(ms(298)));
        assert_eq!(sight.silence(7 * MS, 200 * MS), Silence::Open(ms(195)));
        assert_eq!(sight.steady(300 * MS, 312 * MS, ms(350)), Some("b".to_owned()));
        assert_eq!(sight.steady(1, 312 * MS, ms(350)), None);
        assert_eq!(sight.changes(0, 400 * MS), 1);
    }

    #[test]
    fn two_who_claim_the_address_in_one_sample_are_counted() {
        let sight = sight("C 10 m1\nC 20 m1 m2\nL 25 80\nC 30 m");
        assert_eq!(sight.claims(0, 100), (2, 1));
        assert_eq!(sight.late(0, 100), Duration::from_millis(80));
    }
}
