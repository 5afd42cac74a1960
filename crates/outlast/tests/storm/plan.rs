//! What befalls the nodes of a lab: drawn from a seed before anything begins, so that it can be read and done again.

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

#[test]
fn a_plan_is_the_same_for_the_same_seed_and_survives_being_written_down() {
    let nodes = ["a", "b", "c"].map(str::to_owned);
    let plan = |seed| draw(seed, &nodes, Duration::from_secs(600));
    assert_eq!(plan(1), plan(1));
    assert_ne!(plan(1), plan(2));
    let lines: Vec<String> = plan(1).iter().map(Order::to_string).collect();
    assert_eq!(parse(&lines.join("\n")), Some(plan(1)));
    let kinds: std::collections::BTreeSet<String> =
        plan(1).iter().filter_map(Order::fault).map(str::to_owned).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["cut", "delay", "kill", "loss", "pause"]);
}
