//! What vantage points together say: none of them alone can move an answer while others see something else.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::health::Health;
use crate::topology::VerdictRule;

/// What the live vantage points say of one thing. Who is not heard of is not counted at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Votes {
    pub up: usize,
    pub down: usize,
    /// Alive, and without a belief yet.
    pub unknown: usize,
}

impl Votes {
    pub fn of(votes: impl Iterator<Item = Health>) -> Votes {
        let mut sum = Votes::default();
        for vote in votes {
            match vote {
                Health::Up => sum.up += 1,
                Health::Down => sum.down += 1,
                Health::Unknown => sum.unknown += 1,
            }
        }
        sum
    }

    pub fn live(self) -> usize {
        self.up + self.down + self.unknown
    }
}

/// What the live vantage points have come to; `None`: nothing, and what was agreed on stays.
///
/// Each vantage point counts once, after its own rise and fall. It is the caller's to be the leader of a quorum: who is
/// cut off from the others commits nothing, whatever it sees.
///
/// - [`VerdictRule::Majority`]: up or down, if more than half of the live ones say so.
/// - [`VerdictRule::Above`]: up, if the share of the live ones that say up is above it. Down, if it would not be even if
///   all that are unknown said up. (Amazon Route 53 Developer Guide, "How Route 53 determines whether a health check is
///   healthy": more than 18 % of health checkers.)
pub fn verdict(votes: Votes, rule: VerdictRule) -> Option<Health> {
    let live = votes.live();
    let (up, down) = match rule {
        VerdictRule::Majority => (live < votes.up * 2, live < votes.down * 2),
        VerdictRule::Above(share) => {
            let above = |count: usize| share * as_number(live) < as_number(count);
            (above(votes.up), !above(votes.up + votes.unknown))
        }
    };
    match (up, down && live != 0) {
        (true, _) => Some(Health::Up),
        (false, true) => Some(Health::Down),
        (false, false) => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "there are not 2^52 nodes")]
fn as_number(count: usize) -> f64 {
    count as f64
}

/// The votes of all vantage points on all things, and what is agreed on of each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdicts<K> {
    votes: BTreeMap<String, BTreeMap<K, Health>>,
    agreed: BTreeMap<K, Health>,
}

impl<K: Ord + Clone> Verdicts<K> {
    /// Goes on from what was agreed on before.
    pub fn resume(agreed: BTreeMap<K, Health>) -> Verdicts<K> {
        Verdicts { votes: BTreeMap::new(), agreed }
    }

    /// Takes all that a vantage point believes, in place of what it said before. It is live from now on.
    pub fn hear(&mut self, node: &str, beliefs: BTreeMap<K, Health>) {
        self.votes.insert(String::from(node), beliefs);
    }

    /// A vantage point is not heard of any more: it counts no longer.
    pub fn lose(&mut self, node: &str) {
        self.votes.remove(node);
    }

    /// What is agreed on of a thing; unknown if nothing ever was.
    pub fn agreed(&self, key: &K) -> Health {
        self.agreed.get(key).copied().unwrap_or_default()
    }

    pub fn votes(&self, key: &K) -> Votes {
        Votes::of(self.votes.values().map(|of| of.get(key).copied().unwrap_or_default()))
    }

    /// What is to be committed: of each thing that vantage points know, where the verdict is not what is agreed on.
    pub fn changes(&self, rule: impl Fn(&K) -> VerdictRule) -> Vec<(K, Health)> {
        let known = self.votes.values().flat_map(BTreeMap::keys);
        let known: alloc::collections::BTreeSet<&K> = known.collect();
        let changed = |key: &K| {
            let verdict = verdict(self.votes(key), rule(key))?;
            (verdict != self.agreed(key)).then(|| (key.clone(), verdict))
        };
        known.into_iter().filter_map(changed).collect()
    }

    /// A change was committed.
    pub fn commit(&mut self, key: K, health: Health) {
        self.agreed.insert(key, health);
    }

    /// Only these things are of interest from now on.
    pub fn retain(&mut self, wanted: impl Fn(&K) -> bool) {
        self.agreed.retain(|key, _| wanted(key));
        self.votes.values_mut().for_each(|of| of.retain(|key, _| wanted(key)));
    }
}
