//! What a lab's network does to packets: drops them, or drops some.
//!
//! The rules lie on the bridge, between the port that a packet comes from and the port that it goes to: whatever address it
//! bears, whatever protocol it is, and whatever someone does inside a machine. Each has the pairs of ports that it is about
//! in a set whose elements the kernel forgets when their time is over. So a fault heals by itself, with nobody there.
//!
//! The whole table is replaced in one stroke each time, built from nothing but the rules that are to hold.

use std::io;
use std::time::Duration;

use outlast_kernel::netlink::Socket;
use outlast_kernel::nft::{self, Batch, Expressions, Family, Hook, Meta, Set, Table};

/// Ours alone; the namespace was made by the lab, so a table that is there was made by us.
const TABLE: Table<'_> = Table { family: Family::Bridge, name: "outlast_lab" };
const CHAIN: &str = "between";
/// IFNAMSIZ
const NAME_LEN: usize = 16;
/// Rules at one time.
pub const RULES_MAX: usize = 1024;

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub what: What,
    /// Ports of the bridge, from and to.
    pub pairs: Vec<(String, String)>,
    /// The time until the kernel forgets them.
    pub left: Duration,
}

/// What happens to a packet that a rule is about. What one rule does not drop is looked at by the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Drop,
    DropSome { of_a_million: u32 },
}

/// The rules of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Rules {
    netfilter: Socket,
}

impl Rules {
    pub fn open() -> io::Result<Rules> {
        Ok(Rules { netfilter: nft::open()? })
    }

    /// Puts these rules in force instead of those before, all at once or not at all.
    pub fn replace(&mut self, rules: &[Rule]) -> io::Result<()> {
        if RULES_MAX < rules.len() {
            return Err(io::Error::other(format!("more than {RULES_MAX} rules at one time")));
        }
        batch(rules).commit(&self.netfilter)
    }
}

fn batch(rules: &[Rule]) -> Batch {
    let mut batch = Batch::new();
    batch.renew_table(TABLE);
    batch.add_chain(TABLE, CHAIN, Hook::Forward, 0);
    for (id, rule) in (1..).zip(rules) {
        let name = format!("pairs{id}");
        let set = Set { name: &name, id, prints_as: 0, key_len: 2 * NAME_LEN, forgets: true };
        batch.add_set(TABLE, set);
        batch.add_elements(TABLE, &name, rule.pairs.iter().map(key_of), Some(rule.left));
        batch.add_rule(TABLE, CHAIN, |rule_of| expressions(rule_of, set, rule.what));
    }
    batch
}

/// Two names of interfaces, each filled up with zeros.
fn key_of((from, to): &(String, String)) -> [u8; 2 * NAME_LEN] {
    let mut key = [0; 2 * NAME_LEN];
    for (name, place) in [from, to].into_iter().zip(key.chunks_mut(NAME_LEN)) {
        let len = name.len().min(NAME_LEN - 1);
        place[..len].copy_from_slice(&name.as_bytes()[..len]);
    }
    key
}

/// If the pair of ports is in the set: what.
fn expressions(rule: &mut Expressions<'_, '_>, set: Set<'_>, what: What) {
    rule.load_meta(Meta::InName, 0);
    rule.load_meta(Meta::OutName, NAME_LEN);
    rule.is_in(set);
    match what {
        What::Drop => {}
        What::DropSome { of_a_million } => rule.happens(of_a_million),
    }
    rule.drop_it();
}
