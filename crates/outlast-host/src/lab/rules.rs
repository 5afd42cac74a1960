//! What a lab's network does to packets: drops them, or drops some.
//!
//! The rules lie on the bridge, between the port that a packet comes from and the port that it goes to: whatever address it
//! bears, whatever protocol it is, and whatever someone does inside a machine. Each has the pairs of ports that it is about
//! in a set whose elements the kernel forgets when their time is over. So a fault heals by itself, with nobody there.
//!
//! The whole table is replaced in one stroke each time, built from nothing but the rules that are to hold.

use std::io;
use std::time::Duration;

use rustix::net::netlink::NETFILTER;

use super::netlink::{APPEND, ASK, Attributes, CREATE, Messages, Socket};

/// Ours alone; the namespace was made by the lab, so a table that is there was made by us.
const TABLE: &str = "outlast_lab";
const CHAIN: &str = "between";

// linux/netfilter/nfnetlink.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
// linux/netfilter/nf_tables.h
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
/// NFPROTO_BRIDGE
const FAMILY: u8 = 7;
/// NF_BR_FORWARD
const HOOK_FORWARD: u32 = 2;
/// NFT_SET_TIMEOUT
const SET_TIMEOUT: u32 = 0x10;
/// NFT_META_IIFNAME, NFT_META_OIFNAME
const META_FROM: u32 = 6;
const META_TO: u32 = 7;
/// NFT_REG32_00 and the register four words on: the two names lie side by side.
const REGISTER: u32 = 8;
const REGISTER_AFTER_NAME: u32 = 12;
/// IFNAMSIZ
const NAME_LEN: usize = 16;
const ELEMENT: u16 = 1;
const DROP: u32 = 0;
/// NFT_CMP_LT
const LESS: u32 = 2;
/// NFT_NG_RANDOM
const RANDOM: u32 = 1;
/// NFT_BYTEORDER_HTON
const TO_NETWORK: u32 = 1;
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
    is_there: bool,
}

impl Rules {
    pub fn open() -> io::Result<Rules> {
        Ok(Rules { netfilter: Socket::open(Some(NETFILTER))?, is_there: false })
    }

    /// Puts these rules in force instead of those before, all at once or not at all.
    pub fn replace(&mut self, rules: &[Rule]) -> io::Result<()> {
        if RULES_MAX < rules.len() {
            return Err(io::Error::other(format!("more than {RULES_MAX} rules at one time")));
        }
        self.netfilter.ask(batch(self.is_there, rules).bytes())?;
        self.is_there = true;
        Ok(())
    }
}

fn batch(replaces: bool, rules: &[Rule]) -> Messages {
    let mut batch = Messages::default();
    let general = |family: u8| [family, 0, 0, 0];
    // struct nfgenmsg: in a batch, its resource is the subsystem in network order.
    let [high, low] = SUBSYSTEM.to_be_bytes();
    batch.add(BATCH_BEGIN, 1, &[0, 0, high, low], |_| {});
    if replaces {
        batch.add(DELETE_TABLE, ASK, &general(FAMILY), |a| a.put_text(1, TABLE));
    }
    batch.add(NEW_TABLE, ASK | CREATE, &general(FAMILY), |a| a.put_text(1, TABLE));
    batch.add(NEW_CHAIN, ASK | CREATE, &general(FAMILY), |a| {
        a.put_text(1, TABLE);
        a.put_text(3, CHAIN);
        a.nest(4, |hook| {
            hook.put_be32(1, HOOK_FORWARD);
            hook.put_be32(2, 0);
        });
        a.put_text(7, "filter");
    });
    for (id, rule) in (1..).zip(rules) {
        let name = format!("pairs{id}");
        batch.add(NEW_SET, ASK | CREATE, &general(FAMILY), |a| {
            a.put_text(1, TABLE);
            a.put_text(2, &name);
            a.put_be32(3, SET_TIMEOUT);
            // What kind of thing the key is concerns only those who print it.
            a.put_be32(4, 0);
            a.put_be32(5, 2 * 16);
            a.put_be32(10, id);
        });
        for pair in &rule.pairs {
            batch.add(NEW_ELEMENTS, ASK | CREATE, &general(FAMILY), |a| {
                a.put_text(1, TABLE);
                a.put_text(2, &name);
                a.put_be32(4, id);
                a.nest(3, |elements| {
                    elements.nest(ELEMENT, |element| {
                        element.nest(1, |key| key.put(1, &key_of(pair)));
                        let left = u64::try_from(rule.left.as_millis()).unwrap_or(u64::MAX).max(1);
                        element.put(4, &left.to_be_bytes());
                    });
                });
            });
        }
        batch.add(NEW_RULE, ASK | CREATE | APPEND, &general(FAMILY), |a| {
            a.put_text(1, TABLE);
            a.put_text(2, CHAIN);
            a.nest(4, |list| {
                expressions(list, &name, id, rule.what);
            });
        });
    }
    batch.add(BATCH_END, 1, &[0, 0, high, low], |_| {});
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
fn expressions(list: &mut Attributes<'_>, set: &str, set_id: u32, what: What) {
    for (key, register) in [(META_FROM, REGISTER), (META_TO, REGISTER_AFTER_NAME)] {
        expression(list, "meta", |a| {
            a.put_be32(1, register);
            a.put_be32(2, key);
        });
    }
    expression(list, "lookup", |a| {
        a.put_text(1, set);
        a.put_be32(2, REGISTER);
        a.put_be32(4, set_id);
    });
    match what {
        What::Drop => drop_it(list),
        What::DropSome { of_a_million } => {
            expression(list, "numgen", |a| {
                a.put_be32(1, REGISTER);
                a.put_be32(2, 1_000_000);
                a.put_be32(3, RANDOM);
                a.put_be32(4, 0);
            });
            // Numbers are compared byte by byte.
            expression(list, "byteorder", |a| {
                a.put_be32(1, REGISTER);
                a.put_be32(2, REGISTER);
                a.put_be32(3, TO_NETWORK);
                a.put_be32(4, 4);
                a.put_be32(5, 4);
            });
            expression(list, "cmp", |a| {
                a.put_be32(1, REGISTER);
                a.put_be32(2, LESS);
                a.nest(3, |data| data.put_be32(1, of_a_million));
            });
            drop_it(list);
        }
    }
}

fn expression(list: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    list.nest(ELEMENT, |element| {
        element.put_text(1, name);
        element.nest(2, fill);
    });
}

fn drop_it(list: &mut Attributes<'_>) {
    expression(list, "immediate", |a| {
        a.put_be32(1, 0);
        a.nest(2, |data| data.nest(2, |verdict| verdict.put_be32(1, DROP)));
    });
}
