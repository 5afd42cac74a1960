//! The faults of a lab: which are active, until when, and what the network and the machines are to do about them.
//!
//! No clock and no kernel here: time comes in, rules and ways go out, built anew from all that is active.

use std::time::{Duration, Instant};

use outlast_host::lab::{Rule, Way, What};

use super::plan::Node;

/// How long a fault lasts if nobody says.
pub(super) const DEFAULT: Duration = Duration::from_secs(60);
/// A fault that nobody remembers ends all the same.
pub(super) const LONGEST: Duration = Duration::from_secs(60 * 60);
/// Faults at one time.
const FAULTS_MAX: usize = 100;
/// A packet that takes longer has been lost by any measure.
const DELAY_MAX: Duration = Duration::from_secs(60);

/// Ways between nodes, by their numbers in the plan: from and to.
type Pairs = Vec<(usize, usize)>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Cut { pairs: Pairs },
    Loss { pairs: Pairs, of_a_million: u32 },
    Delay { pairs: Pairs, delay: Duration, jitter: Duration },
    Pause { node: usize },
}

impl Kind {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Kind::Cut { .. } => "cut",
            Kind::Loss { .. } => "loss",
            Kind::Delay { .. } => "delay",
            Kind::Pause { .. } => "pause",
        }
    }

    fn concerns(&self, node: usize) -> bool {
        match self {
            Kind::Cut { pairs } | Kind::Loss { pairs, .. } | Kind::Delay { pairs, .. } => {
                pairs.iter().any(|&(from, to)| from == node || to == node)
            }
            Kind::Pause { node: paused } => *paused == node,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) id: u32,
    pub(super) kind: Kind,
    /// For people: `cut a,b | c`.
    pub(super) text: String,
    pub(super) until: Instant,
}

/// What to take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which<'w> {
    All,
    One(u32),
    Kind(&'w str),
    Node(usize),
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    last: u32,
    active: Vec<Fault>,
}

impl Faults {
    pub(super) fn active(&self) -> &[Fault] {
        &self.active
    }

    /// Writes a fault down, before anything is done; its number.
    pub(super) fn add(&mut self, kind: Kind, text: String, until: Instant) -> Result<u32, String> {
        if FAULTS_MAX <= self.active.len() {
            return Err(format!("{FAULTS_MAX} faults are active already; heal some"));
        }
        if let Kind::Delay { delay, jitter, .. } = &kind
            && DELAY_MAX < delay.saturating_add(*jitter)
        {
            return Err("no packet is delayed by more than a minute; `loss` loses it".to_owned());
        }
        self.last += 1;
        self.active.push(Fault { id: self.last, kind, text, until });
        Ok(self.last)
    }

    /// Takes out what is meant.
    pub(super) fn heal(&mut self, which: Which<'_>) -> Vec<Fault> {
        self.take(|fault| match which {
            Which::All => true,
            Which::One(id) => fault.id == id,
            Which::Kind(word) => fault.kind.word() == word,
            Which::Node(node) => fault.kind.concerns(node),
        })
    }

    /// Takes out what is over.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Fault> {
        self.take(|fault| fault.until <= now)
    }

    /// Takes out the pauses of a node: it goes on, or is off.
    pub(super) fn no_longer_paused(&mut self, node: usize) -> Vec<Fault> {
        self.take(|fault| fault.kind == Kind::Pause { node })
    }

    fn take(&mut self, is_meant: impl Fn(&Fault) -> bool) -> Vec<Fault> {
        self.active.extract_if(.., |fault| is_meant(fault)).collect()
    }

    pub(super) fn next_end(&self) -> Option<Instant> {
        self.active.iter().map(|fault| fault.until).min()
    }

    /// What the bridge is to do.
    pub(super) fn rules(&self, now: Instant, nodes: &[Node]) -> Vec<Rule> {
        let ports = |pairs: &Pairs| {
            let port = |node: usize| nodes[node].port.clone();
            pairs.iter().map(|&(from, to)| (port(from), port(to))).collect()
        };
        let rule = |fault: &Fault| {
            let (what, pairs) = match &fault.kind {
                // What is delayed is carried past the bridge.
                Kind::Cut { pairs } | Kind::Delay { pairs, .. } => (What::Drop, ports(pairs)),
                Kind::Loss { pairs, of_a_million } => {
                    (What::DropSome { of_a_million: *of_a_million }, ports(pairs))
                }
                Kind::Pause { .. } => return None,
            };
            let left = fault.until.saturating_duration_since(now);
            (!left.is_zero()).then_some(Rule { what, pairs, left })
        };
        self.active.iter().filter_map(rule).collect()
    }

    /// What is to be carried by hand: the newest delay of each pair, with the losses of that pair, unless it is cut.
    pub(super) fn ways(&self, nodes: &[Node]) -> Vec<Way> {
        let mut ways: Vec<((usize, usize), Way)> = Vec::new();
        for fault in &self.active {
            if let Kind::Delay { pairs, delay, jitter } = &fault.kind {
                for &(from, to) in pairs {
                    ways.retain(|(pair, _)| *pair != (from, to));
                    let lost_of_a_million = self.lost((from, to));
                    let way = Way {
                        from: nodes[from].port.clone(),
                        to: nodes[to].port.clone(),
                        to_mac: nodes[to].mac,
                        delay: *delay,
                        jitter: *jitter,
                        lost_of_a_million,
                        until: fault.until,
                    };
                    ways.push(((from, to), way));
                }
            }
        }
        ways.into_iter()
            .map(|(_, way)| way)
            .filter(|way| way.lost_of_a_million < 1_000_000)
            .collect()
    }

    /// How many of a million packets between two nodes are lost, by all faults together.
    fn lost(&self, pair: (usize, usize)) -> u32 {
        let mut passed = 1.0;
        for fault in &self.active {
            match &fault.kind {
                Kind::Cut { pairs } if pairs.contains(&pair) => return 1_000_000,
                Kind::Loss { pairs, of_a_million } if pairs.contains(&pair) => {
                    passed *= 1.0 - f64::from(*of_a_million) / 1e6;
                }
                Kind::Cut { .. } | Kind::Loss { .. } | Kind::Delay { .. } | Kind::Pause { .. } => {}
            }
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and a million"
        )]
        let lost = ((1.0 - passed) * 1e6).round() as u32;
        lost
    }
}

/// The pairs between groups of nodes: each from each other, both ways or only from the first.
pub(super) fn between(groups: &[Vec<usize>], one_way: bool) -> Pairs {
    let mut pairs = Vec::new();
    for (first, from) in groups.iter().enumerate() {
        for (second, to) in groups.iter().enumerate() {
            if first != second && (!one_way || first == 0) {
                pairs.extend(from.iter().flat_map(|&from| to.iter().map(move |&to| (from, to))));
            }
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn nodes() -> Vec<Node> {
        let node = |number: u8| Node {
            name: format!("{number}"),
            address: [10, 0, 0, number].into(),
            interface: "eth0".to_owned(),
            port: format!("n{number}"),
            mac: [2, 0, 0, 0, 0, number],
            private: Vec::new(),
            data_dir: PathBuf::new(),
        };
        (0..3).map(node).collect()
    }

    fn shown(faults: &Faults, now: Instant) -> String {
        let rules = faults.rules(now, &nodes());
        let rule = |r: &Rule| {
            let pairs: Vec<String> = r.pairs.iter().map(|(a, b)| format!("{a}>{b}")).collect();
            let what = match r.what {
                What::Drop => "drop".to_owned(),
                What::DropSome { of_a_million } => format!("drop {of_a_million}"),
            };
            format!("{what} {} {:?}", pairs.join(" "), r.left)
        };
        let ways = faults.ways(&nodes());
        let way =
            |w: &Way| format!("carry {}>{} {:?} {}", w.from, w.to, w.delay, w.lost_of_a_million);
        rules.iter().map(rule).chain(ways.iter().map(way)).collect::<Vec<_>>().join("; ")
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn groups_are_cut_from_each_other_and_not_within() {
        assert_eq!(between(&[vec![0, 1], vec![2]], false), [(0, 2), (1, 2), (2, 0), (2, 1)]);
        assert_eq!(between(&[vec![0, 1], vec![2]], true), [(0, 2), (1, 2)]);
        assert_eq!(between(&[vec![0], vec![1], vec![2]], false).len(), 6);
    }

    #[test]
    fn a_fault_has_an_end_in_the_kernel_and_one_here() {
        let (mut faults, now) = (Faults::default(), Instant::now());
        let cut = Kind::Cut { pairs: vec![(0, 1)] };
        let id = faults.add(cut, "cut 0 | 1".to_owned(), now + 5 * SECOND).unwrap();
        assert_eq!(shown(&faults, now + SECOND), "drop n0>n1 4s");
        assert_eq!(faults.next_end(), Some(now + 5 * SECOND));
        // Over in the kernel as well: not renewed.
        assert_eq!(shown(&faults, now + 5 * SECOND), "");
        assert_eq!(faults.expire(now + 5 * SECOND)[0].id, id);
        assert_eq!(faults.next_end(), None);
    }

    #[test]
    fn what_is_delayed_is_carried_with_its_losses_and_not_if_it_is_cut() {
        let (mut faults, now) = (Faults::default(), Instant::now());
        let mut add = |kind| faults.add(kind, String::new(), now + SECOND).unwrap();
        let delay = |pairs, ms| Kind::Delay {
            pairs,
            delay: Duration::from_millis(ms),
            jitter: Duration::ZERO,
        };
        add(delay(vec![(0, 1), (0, 2)], 50));
        add(delay(vec![(0, 1)], 80));
        add(Kind::Loss { pairs: vec![(0, 1)], of_a_million: 500_000 });
        add(Kind::Loss { pairs: vec![(0, 1)], of_a_million: 500_000 });
        let cut = add(Kind::Cut { pairs: vec![(0, 2)] });
        assert_eq!(shown(&faults, now).split_once("carry").unwrap().1, " n0>n1 80ms 750000");
        faults.heal(Which::One(cut));
        assert!(shown(&faults, now).ends_with("carry n0>n2 50ms 0; carry n0>n1 80ms 750000"));
    }

    #[test]
    fn faults_are_healed_one_by_one_by_kind_by_node_or_all() {
        let check = |which, left: &[u32]| {
            let (mut faults, now) = (Faults::default(), Instant::now());
            for kind in [
                Kind::Cut { pairs: vec![(0, 1)] },
                Kind::Loss { pairs: vec![(1, 2)], of_a_million: 1 },
                Kind::Pause { node: 2 },
            ] {
                faults.add(kind, String::new(), now + SECOND).unwrap();
            }
            faults.heal(which);
            assert_eq!(faults.active().iter().map(|f| f.id).collect::<Vec<_>>(), left, "{which:?}");
        };
        check(Which::One(2), &[1, 3]);
        check(Which::One(9), &[1, 2, 3]);
        check(Which::Kind("pause"), &[1, 2]);
        check(Which::Node(0), &[2, 3]);
        check(Which::Node(2), &[1]);
        check(Which::All, &[]);
    }
}
