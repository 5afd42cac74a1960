//! What a fault did to those who write: how long nothing was acknowledged, what failed, what was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::attempts::{Attempt, Log};
use super::span;

/// The longest time without an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blackout {
    /// An acknowledgement before it and one after it.
    Ended(Duration),
    /// It was still going on when we stopped to look.
    Open(Duration),
}

impl Blackout {
    pub(crate) fn at_least(self) -> Duration {
        match self {
            Blackout::Ended(time) | Blackout::Open(time) => time,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Findings {
    pub(crate) blackout: Blackout,
    /// Not acknowledged, and known to be so after the fault.
    pub(crate) failed: usize,
    pub(crate) failed_by: BTreeMap<String, usize>,
    /// The same before the fault: a measurement that began badly.
    pub(crate) failed_before: usize,
    /// Acknowledged and not there.
    pub(crate) lost: usize,
    /// There and never written by anyone.
    pub(crate) unattempted: usize,
    /// Acknowledged by the old primary after another server had acknowledged.
    pub(crate) late: usize,
    pub(crate) acknowledged: usize,
    /// How long the prober itself did not run after the fault.
    pub(crate) starved: Duration,
}

/// `fault` on the prober's clock; `present` is what the final primary holds; `old` is the address of the primary before.
pub(crate) fn analyse(log: &Log, fault: u64, present: &BTreeSet<i64>, old: &str) -> Findings {
    let bad = || log.attempts.iter().filter(|attempt| !attempt.acknowledged());
    let mut failed_by = BTreeMap::new();
    for attempt in bad().filter(|attempt| fault <= attempt.ended) {
        *failed_by.entry(attempt.status.clone()).or_default() += 1;
    }
    let attempted: BTreeSet<i64> = log.attempts.iter().map(|attempt| attempt.id).collect();
    let starved = log.starved.iter().filter(|(_, to)| fault < *to);
    Findings {
        blackout: blackout(log, fault),
        failed: failed_by.values().sum(),
        failed_by,
        failed_before: bad().filter(|attempt| attempt.ended < fault).count(),
        lost: lost(log, present),
        unattempted: present.difference(&attempted).count(),
        late: late(log, fault, old),
        acknowledged: log.acknowledged().count(),
        starved: starved.map(|(from, to)| span((*from).max(fault), *to)).sum(),
    }
}

/// The longest gap between two acknowledgements that ends after the fault, or the one that has not ended.
pub(crate) fn blackout(log: &Log, fault: u64) -> Blackout {
    let mut moments: Vec<u64> = log.acknowledged().map(|attempt| attempt.ended).collect();
    moments.sort_unstable();
    let gaps = moments.windows(2).filter(|pair| fault <= pair[1]);
    let ended = gaps.map(|pair| span(pair[0], pair[1])).max().unwrap_or_default();
    let last = moments.last().copied().unwrap_or(fault);
    let end = log.attempts.iter().map(|attempt| attempt.ended).max().unwrap_or(last);
    let open = span(last, end);
    if open > ended { Blackout::Open(open) } else { Blackout::Ended(ended) }
}

/// How many acknowledged ids are absent.
fn lost(log: &Log, present: &BTreeSet<i64>) -> usize {
    log.acknowledged().filter(|attempt| !present.contains(&attempt.id)).count()
}

fn late(log: &Log, fault: u64, old: &str) -> usize {
    let by_other = |attempt: &&Attempt| attempt.server != old && fault < attempt.ended;
    let first = log.acknowledged().filter(by_other).map(|attempt| attempt.ended).min();
    let Some(first) = first else { return 0 };
    log.acknowledged().filter(|attempt| attempt.server == old && first < attempt.ended).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// `10 ok a` is a request that began at 10 ms and took 1 ms; its number is its place in the list.
    fn log(lines: &[&str]) -> Log {
        let attempts = lines.iter().zip(1..).map(|(line, id)| {
            let words: Vec<&str> = line.split(' ').collect();
            let started = words[0].parse::<u64>().unwrap() * MS;
            let server = words.get(2).copied().unwrap_or_default().to_owned();
            Attempt { id, started, ended: started + MS, status: words[1].to_owned(), server }
        });
        Log { attempts: attempts.collect(), starved: Vec::new() }
    }

    fn ids(ids: &[i64]) -> BTreeSet<i64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn a_blackout_is_the_longest_gap_that_ends_after_the_fault() {
        let log = log(&[
            "0 ok a",
            "90 ok a",
            "100 ok a",
            "110 E_lost",
            "140 E_conn",
            "150 ok b",
            "160 ok b",
        ]);
        let found = analyse(&log, 105 * MS, &ids(&[1, 2, 3, 6, 7]), "a");
        assert_eq!(found.blackout, Blackout::Ended(Duration::from_millis(50)));
        assert_eq!((found.failed, found.failed_before, found.lost, found.late), (2, 0, 0, 0));
        assert_eq!(found.failed_by["E_conn"], 1);
        assert_eq!(
            analyse(&log, 80 * MS, &ids(&[]), "a").blackout.at_least(),
            Duration::from_millis(90)
        );
    }

    #[test]
    fn a_blackout_that_has_not_ended_says_so() {
        let log = log(&["0 ok a", "10 ok a", "20 T_op", "500 T_conn"]);
        let found = analyse(&log, 15 * MS, &ids(&[1, 2]), "a");
        assert_eq!(found.blackout, Blackout::Open(Duration::from_millis(490)));
        assert_eq!(found.failed, 2);
    }

    #[test]
    fn what_is_absent_is_lost_and_what_nobody_wrote_is_counted() {
        let log = log(&["0 ok a", "10 ok a", "20 E_lost", "30 ok b"]);
        let found = analyse(&log, 5 * MS, &ids(&[1, 3, 4, 99]), "a");
        assert_eq!((found.lost, found.unattempted, found.acknowledged), (1, 1, 3));
    }

    #[test]
    fn an_old_primary_that_acknowledges_after_the_new_one_is_found() {
        let log = log(&["0 ok a", "10 ok b", "20 ok a", "30 ok b"]);
        assert_eq!(analyse(&log, 5 * MS, &ids(&[]), "a").late, 1);
        assert_eq!(analyse(&log, 5 * MS, &ids(&[]), "c").late, 0);
    }

    #[test]
    fn starvation_of_the_prober_counts_from_the_fault_on() {
        let mut log = log(&["0 ok a"]);
        log.starved = vec![(0, 2 * MS), (4 * MS, 9 * MS)];
        assert_eq!(analyse(&log, 5 * MS, &ids(&[]), "a").starved, Duration::from_millis(4));
    }
}
