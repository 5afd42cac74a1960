//! What befalls the nodes of a lab: drawn from a seed before anything begins, so that it can be read and done again.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::clients::Random;

/// Words of `outlast lab`, and when they are said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) at: Duration,
    pub(crate) words: Vec<String>,
}

impl Order {
    fn new(at: u64, words: &str) -> Order {
        let words = words.split(' ').map(str::to_owned).collect();
        Order { at: Duration::from_millis(at), words }
    }

    /// The kind of fault; `None` if it takes one back.
    pub(crate) fn fault(&self) -> Option<&str> {
        let word = self.words.first()?;
        (!["start", "resume", "heal"].contains(&word.as_str())).then_some(word)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} {}", self.at.as_secs_f64(), self.words.join(" "))
    }
}

/// A plan as [`Order`] shows it, an order a line.
pub(crate) fn parse(text: &str) -> Option<Vec<Order>> {
    let order = |line: &str| {
        let (at, words) = line.split_once(' ')?;
        let at = Duration::try_from_secs_f64(at.parse().ok()?).ok()?;
        Some(Order { at, words: words.split(' ').map(str::to_owned).collect() })
    };
    text.lines().map(order).collect()
}

/// Two things go on at once and independently: machines die and freeze, and the network between them breaks.
pub(crate) fn draw(seed: u64, nodes: &[String], lasts: Duration) -> Vec<Order> {
    let mut random = Random(seed);
    let end = u64::try_from(lasts.as_millis()).expect("a storm ends within centuries");
    let mut orders = [machines(&mut random, nodes, end), network(&mut random, nodes, end)].concat();
    orders.sort_by_key(|order| order.at);
    orders
}

/// Power losses and freezes; mostly of one machine, now and then of a majority or of all.
fn machines(random: &mut Random, nodes: &[String], end: u64) -> Vec<Order> {
    let mut orders = Vec::new();
    let mut at = 0;
    loop {
        at += 300 + random.below(2_200);
        let count = match random.below(20) {
            0 => nodes.len(),
            1..5 => nodes.len() / 2 + 1,
            _ => 1,
        };
        let outage = if random.below(10) == 0 {
            3_000 + random.below(5_000)
        } else {
            200 + random.below(2_300)
        };
        let (fault, remedy) =
            if random.below(20) < 11 { ("kill", "start") } else { ("pause", "resume") };
        let chosen = shuffled(random, nodes);
        let back = at + outage;
        if end < back {
            return orders;
        }
        for node in &chosen[..count] {
            orders.push(Order::new(at, &format!("{fault} {node}")));
            orders.push(Order::new(back, &format!("{remedy} {node}")));
        }
        at = back;
    }
}

/// Cuts both ways and one way, losses and delays, one at a time.
fn network(random: &mut Random, nodes: &[String], end: u64) -> Vec<Order> {
    let mut orders = Vec::new();
    let mut at = 0;
    loop {
        at += 500 + random.below(3_000);
        let back = at + 500 + random.below(6_000);
        if end < back {
            return orders;
        }
        let mixed = shuffled(random, nodes);
        let (one, other) = (&mixed[0], &mixed[1]);
        let fault = match random.below(10) {
            0..2 => format!("cut {one}"),
            2..4 => {
                let (left, right) = mixed.split_at(nodes.len() / 2);
                format!("cut {} {}", left.join(","), right.join(","))
            }
            4 => format!("cut {one} {other}"),
            5 => format!("cut {one} --one-way"),
            6 => format!("cut {one} {other} --one-way"),
            7 => format!("loss {one} {}%", 5 + random.below(36)),
            8 => format!("delay {one} {}ms --jitter 10ms", 20 + random.below(180)),
            _ => format!("delay {one} {other} {}ms", 20 + random.below(400)),
        };
        let kind = fault.split(' ').next().unwrap_or_default();
        orders.push(Order::new(back, &format!("heal {kind}")));
        orders.push(Order::new(at, &fault));
        at = back;
    }
}

fn shuffled(random: &mut Random, nodes: &[String]) -> Vec<String> {
    let mut mixed = nodes.to_vec();
    for at in (1..mixed.len()).rev() {
        mixed.swap(at, random.place(at + 1));
    }
    mixed
}

/// What of the nodes works, as far as orders say: losses and delays hold nobody up for long.
#[derive(Debug, Default)]
struct Condition {
    off: BTreeSet<String>,
    cut: BTreeSet<(String, String)>,
}

impl Condition {
    fn take(&mut self, order: &Order, nodes: &[String]) {
        let words: Vec<&str> = order.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["kill" | "pause" | "stop", node, ..] => drop(self.off.insert((*node).to_owned())),
            ["start" | "resume", node, ..] => drop(self.off.remove(*node)),
            ["heal", "cut"] | ["heal"] => self.cut.clear(),
            ["cut", groups @ ..] => {
                let groups = groups.iter().take_while(|word| !word.starts_with("--"));
                let mut groups: Vec<Vec<&str>> =
                    groups.map(|group| group.split(',').collect()).collect();
                if let [alone] = groups.as_slice() {
                    let others = nodes.iter().map(String::as_str);
                    groups.push(others.filter(|node| !alone.contains(node)).collect());
                }
                for (at, group) in groups.iter().enumerate() {
                    for other in groups.iter().skip(at + 1).flatten() {
                        for node in group {
                            self.cut.insert(((*node).to_owned(), (*other).to_owned()));
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// Some majority runs, and nothing is cut between any two of it.
    fn has_majority(&self, nodes: &[String]) -> bool {
        let is_whole = |members: &[&String]| {
            let runs = members.iter().all(|node| !self.off.contains(*node));
            let are_apart = |a: &String, b: &String| self.cut.contains(&(a.clone(), b.clone()));
            runs && members.iter().all(|a| members.iter().all(|b| !are_apart(a, b)))
        };
        (0..1_u32 << nodes.len()).any(|chosen| {
            let members = nodes.iter().enumerate().filter(|(at, _)| chosen & (1 << at) != 0);
            let members: Vec<&String> = members.map(|(_, node)| node).collect();
            members.len() > nodes.len() / 2 && is_whole(&members)
        })
    }
}

/// From when until when some majority of the nodes could agree, by orders that were obeyed.
pub(crate) fn good_times(
    orders: &[Order],
    nodes: &[String],
    end: Duration,
) -> Vec<(Duration, Duration)> {
    let mut condition = Condition::default();
    let mut since = Some(Duration::ZERO);
    let mut times = Vec::new();
    for order in orders {
        condition.take(order, nodes);
        match (since, condition.has_majority(nodes)) {
            (Some(from), false) => {
                times.push((from, order.at));
                since = None;
            }
            (None, true) => since = Some(order.at),
            (Some(_), true) | (None, false) => {}
        }
    }
    times.extend(since.map(|from| (from, end)));
    times
}

#[test]
fn times_in_which_a_majority_could_agree_are_known() {
    let check = |lines: &str, expected: &[(u64, u64)]| {
        let nodes = ["a", "b", "c"].map(str::to_owned);
        let orders = parse(lines).expect("it is a plan");
        let times = good_times(&orders, &nodes, Duration::from_secs(9));
        let times: Vec<_> = times.iter().map(|(from, to)| (from.as_secs(), to.as_secs())).collect();
        assert_eq!(times, expected, "{lines}");
    };
    check("1 kill a\n2 loss b 5%\n3 start a", &[(0, 9)]);
    check("1 kill a\n2 pause b\n4 start a\n5 resume b", &[(0, 2), (4, 9)]);
    check("1 cut a\n2 kill b\n3 heal cut\n4 start b", &[(0, 2), (3, 9)]);
    check("1 cut a b\n2 cut a c --one-way\n3 cut b,c a\n4 pause c\n5 heal", &[(0, 4), (5, 9)]);
}

#[test]
fn a_plan_is_the_same_for_the_same_seed_and_survives_being_written_down() {
    let nodes = ["a", "b", "c"].map(str::to_owned);
    let plan = |seed| draw(seed, &nodes, Duration::from_secs(600));
    assert_eq!(plan(1), plan(1));
    assert_ne!(plan(1), plan(2));
    let lines: Vec<String> = plan(1).iter().map(Order::to_string).collect();
    assert_eq!(parse(&lines.join("\n")), Some(plan(1)));
    let kinds: BTreeSet<String> =
        plan(1).iter().filter_map(Order::fault).map(str::to_owned).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["cut", "delay", "kill", "loss", "pause"]);
}
