//! Trees of answers, and how a query walks down one.

use std::net::IpAddr;

use crate::zone::{Choice, Prefix, Rdata};

/// Bits of an address as it is compared: those of IPv4 stand at the front.
const BITS: u8 = 128;

/// Who asks: the subnet that a resolver names, or the address itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
}

/// A generator for choices by chance (splitmix64); who guesses it knows which server is asked next, and nothing else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a limit, each as likely as the others to within 2^-32.
    fn below(&mut self, limit: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(limit);
        u64::try_from(wide >> 64).unwrap_or_default()
    }
}

/// Answers, and how one of them is chosen.
#[derive(Clone, Debug)]
pub(crate) enum Tree<T> {
    Leaf(T),
    Weighted(Box<[Weight<T>]>),
    ByClient(Box<ByClient<T>>),
}

/// A branch, and the sum of the weights up to and with it.
#[derive(Clone, Debug)]
pub(crate) struct Weight<T> {
    upto: u64,
    tree: Tree<T>,
}

/// Branches by the client's address.
#[derive(Clone, Debug)]
pub(crate) struct ByClient<T> {
    v4: Box<[Span]>,
    v6: Box<[Span]>,
    branches: Box<[Tree<T>]>,
}

/// From this address to before that of the next span, the same branch is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u128,
    branch: usize,
}

impl<T> Tree<T> {
    /// Walks down to an answer. `scope` becomes how many bits of the address have decided (RFC 7871 7.2.1).
    pub(crate) fn choose(&self, client: Client, random: &mut Random, scope: &mut u8) -> &T {
        let mut tree = self;
        loop {
            tree = match tree {
                Tree::Leaf(leaf) => return leaf,
                Tree::Weighted(branches) => &pick(branches, random).tree,
                Tree::ByClient(by) => {
                    let (spans, address) = match client.address {
                        IpAddr::V4(_) => (&by.v4, bits(client.address)),
                        IpAddr::V6(_) => (&by.v6, bits(client.address)),
                    };
                    let (branch, depends) = find(spans, address);
                    *scope = depends.max(*scope);
                    &by.branches[branch]
                }
            };
        }
    }

    /// Puts a tree in the place of each answer.
    pub(crate) fn flat_map<U>(&self, make: &mut dyn FnMut(&T) -> Tree<U>) -> Tree<U> {
        match self {
            Tree::Leaf(leaf) => make(leaf),
            Tree::Weighted(branches) => Tree::Weighted(
                branches
                    .iter()
                    .map(|Weight { upto, tree }| Weight { upto: *upto, tree: tree.flat_map(make) })
                    .collect(),
            ),
            Tree::ByClient(by) => Tree::ByClient(Box::new(ByClient {
                v4: by.v4.clone(),
                v6: by.v6.clone(),
                branches: by.branches.iter().map(|tree| tree.flat_map(make)).collect(),
            })),
        }
    }
}

/// The tree of a choice; its answers are records, and none where it is empty.
pub(crate) fn tree(choice: &Choice) -> Tree<Vec<Rdata>> {
    match choice {
        Choice::One(records) => Tree::Leaf(records.clone()),
        Choice::Empty => Tree::Leaf(Vec::new()),
        Choice::Weighted(branches) => weighted(branches),
        Choice::ByClient { prefixes, default } => {
            let of = |family: fn(&IpAddr) -> bool| {
                let own = prefixes.iter().enumerate().filter(|(_, (p, _))| family(&p.address));
                // The default is branch 0.
                spans(own.map(|(n, (prefix, _))| (*prefix, n + 1)).collect())
            };
            let (v4, v6) = (of(IpAddr::is_ipv4), of(IpAddr::is_ipv6));
            let own = prefixes.iter().map(|(_, choice)| choice);
            let branches = std::iter::once(&**default).chain(own).map(tree).collect();
            Tree::ByClient(Box::new(ByClient { v4, v6, branches }))
        }
    }
}

fn weighted(branches: &[(u32, Choice)]) -> Tree<Vec<Rdata>> {
    let mut upto = 0;
    let chosen = branches.iter().filter(|(weight, _)| *weight > 0);
    let branches: Box<[_]> = chosen
        .map(|(weight, choice)| {
            upto += u64::from(*weight);
            Weight { upto, tree: tree(choice) }
        })
        .collect();
    if branches.is_empty() { Tree::Leaf(Vec::new()) } else { Tree::Weighted(branches) }
}

/// The branch of a number between nothing and the sum of all weights.
fn pick<'t, T>(branches: &'t [Weight<T>], random: &mut Random) -> &'t Weight<T> {
    let number = random.below(branches.last().map_or(0, |last| last.upto));
    let place = branches.partition_point(|branch| branch.upto <= number);
    &branches[place.min(branches.len() - 1)]
}

/// An address as a number that is compared from its front.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// First and last address of a prefix.
fn range(prefix: Prefix) -> (u128, u128) {
    let span = u128::MAX.checked_shr(u32::from(prefix.length)).unwrap_or(0);
    let start = bits(prefix.address) & !span;
    (start, start | span)
}

/// Prefixes that may contain each other, as spans that do not: each address belongs to its longest prefix.
fn spans(prefixes: Vec<(Prefix, usize)>) -> Box<[Span]> {
    let ranges: Vec<_> =
        prefixes.iter().map(|(p, branch)| (range(*p), p.length, *branch)).collect();
    let mut starts: Vec<u128> = ranges
        .iter()
        .flat_map(|((from, to), ..)| [Some(*from), to.checked_add(1)])
        .flatten()
        .collect();
    starts.push(0);
    starts.sort_unstable();
    starts.dedup();
    let mut spans: Vec<Span> = starts
        .into_iter()
        .map(|start| {
            let holding = ranges.iter().filter(|((from, to), ..)| (*from..=*to).contains(&start));
            let branch =
                holding.max_by_key(|(_, length, _)| *length).map_or(0, |(.., branch)| *branch);
            Span { start, branch }
        })
        .collect();
    spans.dedup_by_key(|span| span.branch);
    spans.into()
}

/// The branch for an address, and how many of its bits make sure that it is this one.
fn find(spans: &[Span], address: u128) -> (usize, u8) {
    let behind = spans.partition_point(|span| span.start <= address);
    let Some(span) = spans.get(behind.saturating_sub(1)) else { return (0, 0) };
    // The neighbours on both sides must differ from the address within the scope.
    let before = span.start.checked_sub(1).map_or(0, |other| differs_at(address, other));
    let after = spans.get(behind).map_or(0, |next| differs_at(address, next.start));
    (span.branch, before.max(after))
}

/// How many bits at the front are needed to tell two addresses apart.
fn differs_at(one: u128, other: u128) -> u8 {
    u8::try_from((one ^ other).leading_zeros() + 1).unwrap_or(BITS).min(BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(n: u8) -> Choice {
        Choice::One(vec![Rdata(vec![n])])
    }

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix { address: address.parse().unwrap(), length: length.parse().unwrap() }
    }

    #[test]
    fn the_longest_prefix_decides_and_the_scope_excludes_the_others() {
        let prefixes = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "2001:db8::/32"];
        let prefixes = prefixes.iter().zip(1..).map(|(text, n)| (prefix(text), one(n))).collect();
        let tree = tree(&Choice::ByClient { prefixes, default: Box::new(one(0)) });
        for (address, answer, scope_wanted) in [
            ("10.1.2.3", 1 + 2, 24),
            ("10.1.3.1", 2, 24),
            ("10.1.128.1", 2, 17),
            ("10.2.0.1", 1, 15),
            ("10.128.0.1", 1, 9),
            ("11.0.0.1", 0, 8),
            ("192.0.2.1", 0, 1),
            ("2001:db8::1", 4, 32),
            ("2001:db9::1", 0, 32),
        ] {
            let mut scope = 0;
            let client = Client { address: address.parse().unwrap() };
            let chosen = tree.choose(client, &mut Random(1), &mut scope);
            assert_eq!((chosen[0].0[0], scope), (answer, scope_wanted), "{address}");
        }
    }

    #[test]
    fn branches_are_chosen_as_often_as_they_weigh() {
        let tree = tree(&Choice::Weighted(vec![(1, one(0)), (0, one(1)), (3, one(2))]));
        let mut random = Random(7);
        let mut counts = [0; 3];
        let client = Client { address: [192, 0, 2, 1].into() };
        for _ in 0..40_000 {
            counts[usize::from(tree.choose(client, &mut random, &mut 0)[0].0[0])] += 1;
        }
        assert!(counts[1] == 0 && (9_500..10_500).contains(&counts[0]), "{counts:?}");
    }
}
