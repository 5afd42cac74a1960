//! The answers of all zones, made beforehand. A table is never changed: a new one takes its place.
//!
//! A query costs a hash of its name for each zone depth and each label that has no node, and a copy of the answer's bytes. No
//! part of it takes a lock or allocates.

mod build;
mod choose;
mod piece;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::name::{KEY_MAX, Name, labels, sort_key, strip};
use crate::zone::{Record, Rtype};

pub use build::{BadTable, CHAIN_MAX, LEAVES_MAX, NAMES_MAX, ZONES_MAX};
use choose::Tree;
pub(crate) use choose::{Client, Random};
pub(crate) use piece::Piece;

/// All zones that a server answers for.
#[derive(Clone, Debug, Default)]
pub struct Table {
    zones: HashMap<Box<[u8]>, Arc<Zone>, Hashing>,
    /// One bit for each number of labels that the name of a zone has.
    depths: u128,
}

/// One zone, ready to be answered from.
#[derive(Debug)]
pub(crate) struct Zone {
    pub(crate) name: Name,
    pub(crate) serial: u32,
    pub(crate) is_signed: bool,
    nodes: HashMap<Box<[u8]>, u32, Hashing>,
    list: Vec<Node>,
    /// The SOA, as it stands in an answer that says no.
    denial: Both,
    /// The records that prove what is not there, in canonical order of their owners.
    chain: Vec<Link>,
    /// What a secondary is given: the SOA first, the rest in order.
    pub(crate) records: Arc<[Record]>,
}

/// An NSEC with its signature, and the sort key of its owner.
#[derive(Debug)]
struct Link {
    key: Box<[u8]>,
    piece: Piece,
}

/// A name that exists.
#[derive(Debug)]
struct Node {
    sets: Box<[(Rtype, Tree<Leaf>)]>,
    /// For types that are not here: that they are not, or where an alias leads.
    other: Tree<Leaf>,
    /// Of a zone cut: where to ask instead.
    cut: Option<Leaf>,
    /// The node of the wildcard right below.
    wildcard: Option<u32>,
    /// The link that proves that there is no such wildcard.
    no_wildcard: u32,
    /// The link that this name owns, if it owns one.
    own_link: Option<u32>,
}

/// One answer.
#[derive(Clone, Debug)]
struct Leaf {
    is_nxdomain: bool,
    both: Both,
}

/// An answer for those who do not ask for signatures and, if there are any, one with them.
#[derive(Clone, Debug)]
struct Both {
    plain: Piece,
    signed: Option<Piece>,
}

impl Both {
    fn of(&self, dnssec: bool) -> &Piece {
        self.signed.as_ref().filter(|_| dnssec).unwrap_or(&self.plain)
    }
}

/// Parts of an answer, in the order in which they are written.
pub(crate) const PIECES_MAX: usize = 3;

/// What a query is answered with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan<'t> {
    pub(crate) is_nxdomain: bool,
    /// False for a referral.
    pub(crate) is_authoritative: bool,
    pub(crate) pieces: [Option<&'t Piece>; PIECES_MAX],
    /// How many bits of the client's address the answer depends on.
    pub(crate) scope: u8,
}

impl Table {
    /// The zone with that name.
    pub(crate) fn zone(&self, name: &[u8]) -> Option<&Arc<Zone>> {
        self.zones.get(name)
    }

    /// All zones, in no particular order.
    pub(crate) fn zones(&self) -> impl Iterator<Item = &Arc<Zone>> {
        self.zones.values()
    }

    /// The zones and their serials.
    pub fn serials(&self) -> std::collections::BTreeMap<Name, u32> {
        self.zones.values().map(|zone| (zone.name.clone(), zone.serial)).collect()
    }

    /// The answer to a question for a name in lower case; none for names that are in no zone here.
    pub(crate) fn find(
        &self,
        name: &[u8],
        rtype: Rtype,
        dnssec: bool,
        client: Client,
        random: &mut Random,
    ) -> Option<Plan<'_>> {
        let mut zone = self.zone_of(name)?;
        // What a parent says of a child stands in the parent (RFC 4035 3.1.4.1).
        if rtype == Rtype::DS && zone.name.wire() == name {
            zone = strip(name).and_then(|rest| self.zone_of(rest)).unwrap_or(zone);
        }
        Some(zone.find(name, rtype, dnssec, client, random))
    }

    /// The zone of the longest name that ends the given one.
    fn zone_of(&self, name: &[u8]) -> Option<&Zone> {
        let mut depth = labels(name).count();
        let mut rest = name;
        loop {
            if self.depths & (1 << depth) != 0
                && let Some(zone) = self.zones.get(rest)
            {
                return Some(zone);
            }
            rest = strip(rest)?;
            depth -= 1;
        }
    }
}

impl Zone {
    fn node(&self, index: u32) -> Option<&Node> {
        self.list.get(usize::try_from(index).ok()?)
    }

    fn link(&self, index: u32) -> Option<&Piece> {
        self.chain.get(usize::try_from(index).ok()?).map(|link| &link.piece)
    }

    fn find(
        &self,
        name: &[u8],
        rtype: Rtype,
        dnssec: bool,
        client: Client,
        random: &mut Random,
    ) -> Plan<'_> {
        let mut rest = name;
        let found = loop {
            if let Some(&index) = self.nodes.get(rest) {
                break self.node(index);
            }
            let Some(shorter) = strip(rest) else { break None };
            rest = shorter;
        };
        // The name of a zone always has a node.
        let Some(node) = found else { return Plan::default() };
        let is_whole = rest.len() == name.len();
        if let Some(leaf) = &node.cut
            && !(rtype == Rtype::DS && is_whole)
        {
            let pieces = [Some(leaf.both.of(dnssec)), None, None];
            return Plan { pieces, ..Plan::default() };
        }
        if is_whole {
            return node.answer(rtype, dnssec, client, random);
        }
        let proves = dnssec && self.is_signed;
        match node.wildcard.and_then(|index| self.node(index)) {
            Some(wildcard) => {
                let mut plan = wildcard.answer(rtype, dnssec, client, random);
                if proves {
                    let cover = self.cover(name);
                    let has_it = wildcard.own_link == Some(cover) && wildcard.is_denied(rtype);
                    plan.pieces[1] = self.link(cover).filter(|_| !has_it);
                }
                plan
            }
            None => {
                let mut pieces = [Some(self.denial.of(dnssec)), None, None];
                if proves {
                    let cover = self.cover(name);
                    pieces[1] = self.link(cover);
                    pieces[2] = self.link(node.no_wildcard).filter(|_| node.no_wildcard != cover);
                }
                Plan { is_nxdomain: true, is_authoritative: true, pieces, scope: 0 }
            }
        }
    }

    /// The link whose span holds a name that does not exist: the last one whose owner is not behind it.
    fn cover(&self, name: &[u8]) -> u32 {
        let mut room = [0; KEY_MAX];
        let key = sort_key(name, &mut room);
        let behind = self.chain.partition_point(|link| *link.key <= *key);
        u32::try_from(behind.saturating_sub(1)).unwrap_or_default()
    }
}

impl Node {
    /// The tree for a type.
    fn tree(&self, rtype: Rtype) -> &Tree<Leaf> {
        // ANY is answered with one set (RFC 8482 4.1).
        let any = if rtype == Rtype::ANY { self.sets.first() } else { None };
        let own = || self.sets.iter().find(|(own, _)| *own == rtype);
        any.or_else(own).map_or(&self.other, |(_, tree)| tree)
    }

    /// Whether the type is not here and no alias is.
    fn is_denied(&self, rtype: Rtype) -> bool {
        std::ptr::eq(self.tree(rtype), &raw const self.other)
    }

    fn answer(&self, rtype: Rtype, dnssec: bool, client: Client, random: &mut Random) -> Plan<'_> {
        let mut scope = 0;
        let leaf = self.tree(rtype).choose(client, random, &mut scope);
        Plan {
            is_nxdomain: leaf.is_nxdomain,
            is_authoritative: true,
            pieces: [Some(leaf.both.of(dnssec)), None, None],
            scope,
        }
    }
}

/// Hashes the names of tables. Only who writes the zones could make names collide, so that speed is all that counts.
type Hashing = BuildHasherDefault<NameHasher>;

/// Multiplies in eight bytes at a time.
#[derive(Clone, Copy, Debug, Default)]
struct NameHasher(u64);

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, tail) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        self.write_u64(u64::from_le_bytes(last));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// The length of a name, which its root label makes unnecessary.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}
