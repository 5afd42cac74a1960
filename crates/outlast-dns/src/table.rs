//! The answers of all zones, made beforehand. A table is never changed: a new one takes its place.
//!
//! A query costs one hash of its name, a look at its zone and its node, and a copy of the answer's bytes. No part of it takes a
//! lock or allocates. What it costs is mostly what it has to wait for memory, so that what is looked at together stands together.

mod build;
mod choose;
mod index;
mod piece;

use std::num::NonZeroU32;
use std::sync::Arc;

use crate::name::{KEY_MAX, Labels, Name, sort_key};
use crate::zone::{Record, Rtype};

pub use build::{BadTable, CHAIN_MAX, LEAVES_MAX, NAMES_MAX, ZONES_MAX};
use choose::Tree;
pub(crate) use choose::{Client, Random};
use index::{Index, NameHash};
pub(crate) use piece::Piece;

/// All zones that a server answers for.
#[derive(Clone, Debug, Default)]
pub struct Table {
    zones: Vec<Arc<Zone>>,
    by_name: Index,
    /// One bit for each number of labels that the name of a zone has.
    depths: u128,
}

/// One zone, ready to be answered from.
#[derive(Debug)]
pub(crate) struct Zone {
    pub(crate) name: Name,
    pub(crate) serial: u32,
    pub(crate) is_signed: bool,
    /// In canonical order: the name of the zone first.
    nodes: Vec<Node>,
    by_name: Index,
    /// The SOA, as it stands in an answer that says no.
    denial: Both,
    /// The records that prove what is not there, in canonical order of their owners.
    chain: Vec<Link>,
    /// The first bytes of their keys that tell them apart, so that a search has little to look at.
    beginnings: Box<[u64]>,
    /// What a secondary is given: the SOA first, the rest in order.
    pub(crate) records: Arc<[Record]>,
}

/// An NSEC with its signature, and the sort key of its owner.
#[derive(Debug)]
struct Link {
    key: Box<[u8]>,
    piece: Piece,
}

/// A name that exists. It fills what a processor fetches at once.
#[derive(Debug)]
#[repr(align(64))]
struct Node {
    /// What stands before the name of the zone.
    front: Box<[u8]>,
    sets: Box<[(Rtype, Tree<Leaf>)]>,
    /// For types that are not here: that they are not, or where an alias leads.
    other: Box<Tree<Leaf>>,
    /// Of a zone cut: where to ask instead.
    cut: Option<Box<Leaf>>,
    /// The node of the wildcard right below; the name of a zone is none.
    wildcard: Option<NonZeroU32>,
    /// The link that proves that there is no such wildcard.
    no_wildcard: u32,
    /// The link that this name owns, if it owns one.
    own_link: Option<u32>,
}

const _: () = assert!(size_of::<Node>() == 64);

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
        self.by_name.find(NameHash::of(name), |number| self.zone_if(number, name))
    }

    /// The zone with that number if it has that name.
    fn zone_if(&self, number: usize, name: &[u8]) -> Option<&Arc<Zone>> {
        self.zones.get(number).filter(|zone| zone.name.wire() == name)
    }

    /// All zones, in no particular order.
    pub(crate) fn zones(&self) -> impl Iterator<Item = &Arc<Zone>> {
        self.zones.iter()
    }

    /// The zones and their serials.
    pub fn serials(&self) -> std::collections::BTreeMap<Name, u32> {
        self.zones.iter().map(|zone| (zone.name.clone(), zone.serial)).collect()
    }

    /// The answer to a question for a name; none for names that are in no zone here.
    pub(crate) fn find(
        &self,
        name: &Labels,
        rtype: Rtype,
        dnssec: bool,
        client: Client,
        random: &mut Random,
    ) -> Option<Plan<'_>> {
        let wire = name.wire();
        let (mut at, mut hash, mut depths) = (name.root_at(), NameHash::ROOT, self.depths);
        let mut zone = if depths & 1 == 0 { None } else { self.zone_of(wire, at, hash) };
        for start in name.starts().iter().rev().map(|start| usize::from(*start)) {
            hash = hash.below(wire, start, at);
            (at, depths) = (start, depths >> 1);
            // What a parent says of a child stands in the parent (RFC 4035 3.1.4.1).
            let is_of_parent = start == 0 && rtype == Rtype::DS && zone.is_some();
            if depths & 1 != 0 && !is_of_parent {
                // The zone of the longest name that ends the given one.
                zone = self.zone_of(wire, start, hash).or(zone);
            }
        }
        let InZone { zone, at, hash: above } = zone?;
        let asked = Asked { name, hash, zone_at: at, above };
        Some(zone.find(&asked, rtype, dnssec, client, random))
    }

    /// The zone of what stands from a place on.
    fn zone_of(&self, wire: &[u8], at: usize, hash: NameHash) -> Option<InZone<'_>> {
        let name = wire.get(at..)?;
        let zone = self.by_name.find(hash, |number| self.zone_if(number, name))?;
        Some(InZone { zone, at, hash })
    }
}

/// A zone that a name is in, where its name begins in that, and the hash of its name.
struct InZone<'t> {
    zone: &'t Zone,
    at: usize,
    hash: NameHash,
}

/// A name that is asked for in a zone.
struct Asked<'n> {
    name: &'n Labels,
    hash: NameHash,
    /// Where the zone's name begins, and its hash.
    zone_at: usize,
    above: NameHash,
}

impl Zone {
    fn link(&self, index: u32) -> Option<&Piece> {
        self.chain.get(usize::try_from(index).ok()?).map(|link| &link.piece)
    }

    /// The node of a name, of which this is the hash and what stands before the zone's name.
    fn node(&self, hash: NameHash, front: Option<&[u8]>) -> Option<&Node> {
        let front = front?;
        self.by_name
            .find(hash, |number| self.nodes.get(number).filter(|node| *node.front == *front))
    }

    /// The node of the longest name that ends one that has none: above a name with a node, all have one.
    fn closest(&self, asked: &Asked<'_>) -> Option<&Node> {
        let (wire, mut closest) = (asked.name.wire(), self.nodes.first());
        let (mut end, mut hash) = (asked.zone_at, asked.above);
        let starts = asked.name.starts().iter().rev().map(|start| usize::from(*start));
        for start in starts.skip_while(|start| *start >= asked.zone_at) {
            hash = hash.below(wire, start, end);
            end = start;
            let Some(node) = self.node(hash, wire.get(start..asked.zone_at)) else { break };
            closest = Some(node);
        }
        closest
    }

    fn find(
        &self,
        asked: &Asked<'_>,
        rtype: Rtype,
        dnssec: bool,
        client: Client,
        random: &mut Random,
    ) -> Plan<'_> {
        let name = asked.name.wire();
        let whole = self.node(asked.hash, name.get(..asked.zone_at));
        let is_whole = whole.is_some();
        // The name of a zone always has a node.
        let Some(node) = whole.or_else(|| self.closest(asked)) else { return Plan::default() };
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
        let wildcard = node.wildcard.and_then(|number| usize::try_from(number.get()).ok());
        match wildcard.and_then(|number| self.nodes.get(number)) {
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
        let own = beginning(key, &self.chain);
        let first = self.beginnings.partition_point(|beginning| *beginning < own);
        let same = self.beginnings.get(first..).unwrap_or_default();
        let same = same.partition_point(|beginning| *beginning == own);
        let links = self.chain.get(first..first + same).unwrap_or_default();
        let behind = first + links.partition_point(|link| *link.key <= *key);
        u32::try_from(behind.saturating_sub(1)).unwrap_or_default()
    }
}

/// The first bytes of a name's sort key behind that of its zone, which owns the first link, as a number with the same order.
fn beginning(key: &[u8], chain: &[Link]) -> u64 {
    let of_zone = chain.first().map_or(0, |link| link.key.len());
    let mut eight = [0; size_of::<u64>()];
    let own = key.get(of_zone..).unwrap_or_default();
    eight.iter_mut().zip(own).for_each(|(to, from)| *to = *from);
    u64::from_be_bytes(eight)
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
        std::ptr::eq(self.tree(rtype), &raw const *self.other)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dnssec::{Signatures, ZoneKey};
    use crate::zone::ZoneSpec;

    #[test]
    fn the_link_over_a_name_is_the_last_that_is_not_behind_it() {
        let owners =
            ["a", "long-label", "long-label1", "long-label2", "x.long-label1", "\\001", "zz"];
        let records: String = owners.iter().map(|owner| format!("{owner} A 192.0.2.1\n")).collect();
        let zone = format!("$TTL 60\n@ SOA ns1 host 7 300 60 604800 5\n@ NS ns1\n{records}");
        let apex = "example.com".parse().unwrap();
        let mut spec = ZoneSpec::from_zone_file(&apex, &zone).unwrap();
        spec.key = Some(ZoneKey::from_pkcs8(&ZoneKey::generate().unwrap()).unwrap().into());
        let table = Table::build(&[spec], &mut Signatures::default(), 1_000_000).unwrap();
        let zone = table.zone(apex.wire()).unwrap();
        assert_eq!(zone.chain.len(), owners.len() + 1);
        let between = ["0", "\\000", "\\002", "long-labe", "long-label0", "long-label11", "zzz"];
        let below = ["b.a", "a.x.long-label1", "y.long-label1", "z.long-label2"];
        for front in owners.iter().chain(&between).chain(&below) {
            let name: Name = format!("{front}.example.com").parse().unwrap();
            let key = name.key();
            let last = zone.chain.iter().rposition(|link| link.key <= key).unwrap();
            assert_eq!(usize::try_from(zone.cover(name.wire())), Ok(last), "{name}");
        }
        assert_eq!(zone.cover(apex.wire()), 0);
    }
}
