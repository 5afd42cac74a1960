//! Writes down what nftables is to have: tables, sets whose elements the kernel forgets by itself, chains and rules.
//!
//! A batch takes effect as a whole or not at all, and no packet sees half of it.

use std::io;
use std::time::Duration;

use rustix::net::netlink::NETFILTER;

use crate::netlink::{APPEND, ASK, Attributes, CREATE, CREATE_OR_KEEP, Messages, Socket};

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
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
/// NFT_SET_TIMEOUT
const SET_TIMEOUT: u32 = 0x10;
/// NFT_REG32_00, the first of 16 words.
const REGISTER: u32 = 8;
const REGISTER_WORD: usize = 4;
/// NFTA_LIST_ELEM
const ELEMENT: u16 = 1;
/// NF_DROP
const DROP: u32 = 0;
/// NFT_CMP_EQ, NFT_CMP_LT
const EQUAL: u32 = 0;
const LESS: u32 = 2;
/// NFT_NG_RANDOM
const RANDOM: u32 = 1;
/// NFT_BYTEORDER_HTON
const TO_NETWORK: u32 = 1;
/// NFT_LOOKUP_F_INV
const INVERTED: u32 = 1;
/// NLM_F_REQUEST alone: the ends of a batch are not acknowledged.
const TELL: u16 = 1;

/// Which packets a table is about: a NFPROTO of linux/netfilter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    Arp,
    Bridge,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Family::Inet => 1,
            Family::Arp => 3,
            Family::Bridge => 7,
        }
    }
}

/// Where on a packet's way a chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// For this machine.
    Input,
    /// Between two ports of a bridge.
    Forward,
    /// From this machine.
    Output,
}

impl Hook {
    /// `NF_INET_*`, `NF_ARP_*` or `NF_BR_*`.
    fn number(self, family: Family) -> u32 {
        match (family, self) {
            (Family::Arp, Hook::Input) => 0,
            (Family::Arp, Hook::Output) => 1,
            (Family::Inet | Family::Bridge, Hook::Input) => 1,
            (_, Hook::Forward) => 2,
            (Family::Inet | Family::Bridge, Hook::Output) => 3,
        }
    }
}

/// A set of a table.
#[derive(Clone, Copy, Debug)]
pub struct Set<'n> {
    pub name: &'n str,
    /// By which rules of the same batch find it; each set of a batch has another.
    pub id: u32,
    /// How nft prints its elements (`TYPE_*` of its sources); 0: in no special way.
    pub prints_as: u32,
    pub key_len: usize,
    /// Its elements may have an end.
    pub forgets: bool,
}

/// A table by its family and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table<'n> {
    pub family: Family,
    pub name: &'n str,
}

/// Opens the way to nftables.
pub fn open() -> io::Result<Socket> {
    Socket::open(Some(NETFILTER))
}

/// What is done in one stroke, in this order.
#[derive(Debug)]
pub struct Batch(Messages);

impl Default for Batch {
    fn default() -> Batch {
        Batch::new()
    }
}

impl Batch {
    pub fn new() -> Batch {
        let mut messages = Messages::default();
        messages.add(BATCH_BEGIN, TELL, &batch_header(), |_| {});
        Batch(messages)
    }

    /// Carries it out.
    pub fn commit(mut self, netfilter: &Socket) -> io::Result<()> {
        self.0.add(BATCH_END, TELL, &batch_header(), |_| {});
        netfilter.ask(self.0.bytes())
    }

    /// Makes a table; one that is there stays as it is.
    pub fn add_table(&mut self, table: Table<'_>) {
        self.add(NEW_TABLE, ASK | CREATE_OR_KEEP, table, |_| {});
    }

    /// Takes a table away, which has to be there, with all in it.
    pub fn delete_table(&mut self, table: Table<'_>) {
        self.add(DELETE_TABLE, ASK, table, |_| {});
    }

    /// Makes a table that has nothing in it, whether it is there or not.
    pub fn renew_table(&mut self, table: Table<'_>) {
        self.add_table(table);
        self.delete_table(table);
        self.add_table(table);
    }

    /// Makes a chain that filters; what no rule drops goes on.
    pub fn add_chain(&mut self, table: Table<'_>, name: &str, at: Hook, priority: i32) {
        self.add(NEW_CHAIN, ASK | CREATE, table, |a| {
            a.put_text(3, name);
            a.nest(4, |hook| {
                hook.put_be32(1, at.number(table.family));
                hook.put(2, &priority.to_be_bytes());
            });
            a.put_text(7, "filter");
        });
    }

    pub fn add_set(&mut self, table: Table<'_>, set: Set<'_>) {
        self.add(NEW_SET, ASK | CREATE, table, |a| {
            a.put_text(2, set.name);
            a.put_be32(3, if set.forgets { SET_TIMEOUT } else { 0 });
            a.put_be32(4, set.prints_as);
            a.put_be32(5, u32::try_from(set.key_len).expect("a key has at most 64 bytes"));
            a.put_be32(10, set.id);
        });
    }

    /// Adds elements to the set; those that are there stay as they are.
    pub fn add_elements<K: AsRef<[u8]>>(
        &mut self,
        table: Table<'_>,
        set: &str,
        keys: impl IntoIterator<Item = K>,
        left: Option<Duration>,
    ) {
        self.add(NEW_ELEMENTS, ASK | CREATE_OR_KEEP, table, |a| {
            elements(a, set, keys, left);
        });
    }

    /// Takes elements away, which have to be there.
    pub fn delete_elements<K: AsRef<[u8]>>(
        &mut self,
        table: Table<'_>,
        set: &str,
        keys: impl IntoIterator<Item = K>,
    ) {
        self.add(DELETE_ELEMENTS, ASK, table, |a| elements(a, set, keys, None));
    }

    /// Adds elements that are forgotten after this time, also if they are there with another end.
    ///
    /// Kernels before 6.12 do not change the end of an element that is there, and none takes one away that is not: so it is
    /// added, taken away, and added. A packet sees one state before and one after.
    pub fn renew_elements<K: AsRef<[u8]>>(
        &mut self,
        table: Table<'_>,
        set: &str,
        keys: &[K],
        left: Duration,
    ) {
        self.add_elements(table, set, keys, Some(left));
        self.delete_elements(table, set, keys);
        self.add_elements(table, set, keys, Some(left));
    }

    /// Takes all elements of a set away.
    pub fn flush_set(&mut self, table: Table<'_>, set: &str) {
        self.add(DELETE_ELEMENTS, ASK, table, |a| a.put_text(2, set));
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(
        &mut self,
        table: Table<'_>,
        chain: &str,
        fill: impl FnOnce(&mut Expressions<'_, '_>),
    ) {
        self.add(NEW_RULE, ASK | CREATE | APPEND, table, |a| {
            a.put_text(2, chain);
            a.nest(4, |list| fill(&mut Expressions(list)));
        });
    }

    /// A message of which the first attribute is the table's name, as with all of them.
    fn add(
        &mut self,
        kind: u16,
        flags: u16,
        table: Table<'_>,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        // struct nfgenmsg
        self.0.add(kind, flags, &[table.family.number(), 0, 0, 0], |a| {
            a.put_text(1, table.name);
            fill(a);
        });
    }
}

/// struct nfgenmsg: at the ends of a batch its resource is the subsystem, in network order.
fn batch_header() -> [u8; 4] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}

fn elements<K: AsRef<[u8]>>(
    a: &mut Attributes<'_>,
    set: &str,
    keys: impl IntoIterator<Item = K>,
    left: Option<Duration>,
) {
    a.put_text(2, set);
    a.nest(3, |list| {
        for key in keys {
            list.nest(ELEMENT, |element| {
                element.nest(1, |value| value.put(1, key.as_ref()));
                if let Some(left) = left {
                    // 0 would be: for ever.
                    let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
                    element.put(4, &left.to_be_bytes());
                }
            });
        }
    });
}

/// Where in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// From the header of IP or ARP on: NFT_PAYLOAD_NETWORK_HEADER.
    Network,
    /// From the header behind that on: NFT_PAYLOAD_TRANSPORT_HEADER.
    Transport,
}

/// What is known about a packet besides its bytes: NFT_META_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// The name of the interface that it came from, 16 bytes.
    InName,
    /// The name of the interface that it goes to, 16 bytes.
    OutName,
    /// An NFPROTO, one byte.
    Family,
    /// What follows the header of IP, one byte.
    Protocol,
}

impl Meta {
    fn number(self) -> u32 {
        match self {
            Meta::InName => 6,
            Meta::OutName => 7,
            Meta::Family => 15,
            Meta::Protocol => 16,
        }
    }
}

/// What a rule looks at and does: the first that does not hold ends it.
#[derive(Debug)]
pub struct Expressions<'a, 'b>(&'a mut Attributes<'b>);

impl Expressions<'_, '_> {
    /// Loads what is known, behind the first `at` bytes of what is loaded.
    pub fn load_meta(&mut self, meta: Meta, at: usize) {
        self.add("meta", |a| {
            a.put_be32(1, register(at));
            a.put_be32(2, meta.number());
        });
    }

    /// Loads bytes of the packet.
    pub fn load(&mut self, part: Part, offset: u32, len: u32) {
        let base = match part {
            Part::Network => 1,
            Part::Transport => 2,
        };
        self.add("payload", |a| {
            a.put_be32(1, REGISTER);
            a.put_be32(2, base);
            a.put_be32(3, offset);
            a.put_be32(4, len);
        });
    }

    /// Goes on if what is loaded is this.
    pub fn is(&mut self, value: &[u8]) {
        self.compare(EQUAL, value);
    }

    /// Goes on if what is loaded is in the set.
    pub fn is_in(&mut self, set: Set<'_>) {
        self.look_up(set, 0);
    }

    /// Goes on if what is loaded is not in the set.
    pub fn is_not_in(&mut self, set: Set<'_>) {
        self.look_up(set, INVERTED);
    }

    /// Goes on with this many of a million packets.
    pub fn happens(&mut self, of_a_million: u32) {
        self.add("numgen", |a| {
            a.put_be32(1, REGISTER);
            a.put_be32(2, 1_000_000);
            a.put_be32(3, RANDOM);
            a.put_be32(4, 0);
        });
        // Numbers are compared byte by byte.
        self.add("byteorder", |a| {
            a.put_be32(1, REGISTER);
            a.put_be32(2, REGISTER);
            a.put_be32(3, TO_NETWORK);
            a.put_be32(4, 4);
            a.put_be32(5, 4);
        });
        self.compare(LESS, &of_a_million.to_be_bytes());
    }

    /// Ends the packet.
    pub fn drop_it(&mut self) {
        self.add("immediate", |a| {
            a.put_be32(1, 0);
            a.nest(2, |data| data.nest(2, |verdict| verdict.put_be32(1, DROP)));
        });
    }

    fn compare(&mut self, how: u32, value: &[u8]) {
        self.add("cmp", |a| {
            a.put_be32(1, REGISTER);
            a.put_be32(2, how);
            a.nest(3, |data| data.put(1, value));
        });
    }

    fn look_up(&mut self, set: Set<'_>, flags: u32) {
        self.add("lookup", |a| {
            a.put_text(1, set.name);
            a.put_be32(2, REGISTER);
            a.put_be32(4, set.id);
            a.put_be32(5, flags);
        });
    }

    fn add(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.0.nest(ELEMENT, |element| {
            element.put_text(1, name);
            element.nest(2, fill);
        });
    }
}

/// The register that begins behind so many bytes.
fn register(at: usize) -> u32 {
    REGISTER + u32::try_from(at / REGISTER_WORD).expect("registers hold 64 bytes")
}
