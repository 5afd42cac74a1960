//! Makes a table of what zones say: follows aliases, signs, and writes every answer down.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::choose::{Tree, tree};
use super::index::{Index, NameHash};
use super::piece::{Owner, Piece, Rr};
use super::{Both, Leaf, Link, Node, Table, Zone, beginning};
use crate::dnssec::{Signatures, Signed, ZoneKey, nsec};
use crate::name::Name;
use crate::zone::{Choice, RECORDS_MAX, Rdata, Record, Rrset, Rtype, ZoneSpec};

/// Aliases that are followed for one answer.
pub const CHAIN_MAX: usize = 8;

/// Answers among which is chosen for one name and type.
pub const LEAVES_MAX: usize = 1024;

/// Zones of a table.
pub const ZONES_MAX: usize = 10_000;

/// Names of a zone.
pub const NAMES_MAX: usize = 1 << 20;

/// Bytes of one answer: with the question, options and a signature of the message, it must fit into 65,535.
pub(crate) const ANSWER_MAX: usize = 60_000;

/// All that is wrong with the zones of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTable(pub Vec<String>);

impl fmt::Display for BadTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for BadTable {}

impl Table {
    /// Makes the table of these zones. `signatures` remembers what was signed for the table before; `now` is in seconds of the
    /// epoch.
    pub fn build(
        zones: &[ZoneSpec],
        signatures: &mut Signatures,
        now: u32,
    ) -> Result<Table, BadTable> {
        if zones.len() > ZONES_MAX {
            return Err(BadTable(vec![format!("more than {ZONES_MAX} zones")]));
        }
        signatures.begin();
        let mut table = Table::default();
        let (mut faults, mut names) = (Vec::new(), BTreeSet::new());
        for spec in zones {
            match build_zone(spec, signatures, now) {
                Ok(zone) => {
                    table.depths |= 1 << spec.name.label_count();
                    if !names.insert(&spec.name) {
                        faults.push(format!("{} stands here twice", spec.name));
                    }
                    table.zones.push(Arc::new(zone));
                }
                Err(of_zone) => faults.extend(of_zone),
            }
        }
        signatures.end();
        table.by_name = by_name(table.zones.iter().map(|zone| &zone.name));
        if faults.is_empty() { Ok(table) } else { Err(BadTable(faults)) }
    }
}

/// Numbers these names from 0 on.
fn by_name<'n>(names: impl Iterator<Item = &'n Name>) -> Index {
    Index::new(&names.map(|name| NameHash::of(name.wire())).collect::<Vec<_>>())
}

/// A name of a zone that is being built.
#[derive(Debug, Default)]
struct Place<'a> {
    sets: BTreeMap<Rtype, &'a Rrset>,
    /// Below a zone cut: known only as glue.
    is_occluded: bool,
    is_cut: bool,
}

impl Place<'_> {
    /// The types that somebody may get records of.
    fn types(&self) -> impl Iterator<Item = Rtype> {
        let types = self.sets.iter().filter(|(_, set)| has_records(&set.choice));
        types
            .map(|(rtype, _)| *rtype)
            .filter(|rtype| !self.is_cut || matches!(*rtype, Rtype::NS | Rtype::DS))
    }
}

/// Whether any branch that can be chosen has records.
fn has_records(choice: &Choice) -> bool {
    match choice {
        Choice::One(records) => !records.is_empty(),
        Choice::Weighted(branches) => {
            branches.iter().any(|(w, branch)| *w > 0 && has_records(branch))
        }
        Choice::ByClient { prefixes, default } => {
            has_records(default) || prefixes.iter().any(|(_, branch)| has_records(branch))
        }
        Choice::Empty => false,
    }
}

/// What is answered.
#[derive(Clone, Debug, Default)]
struct Content {
    is_nxdomain: bool,
    answer: Vec<Rr>,
    authority: Vec<Rr>,
}

/// Where a name leads.
enum Way<'b> {
    Here(&'b Name),
    /// To this wildcard.
    Wildcard(Name),
    /// It does not exist; this is the closest name that does.
    Nowhere(Name),
    /// Out of what this zone answers for.
    Out,
}

struct Builder<'a> {
    spec: &'a ZoneSpec,
    places: BTreeMap<Name, Place<'a>>,
    /// The owners of NSEC records with the record's data, in canonical order.
    chain: Vec<(Name, Rdata)>,
    signatures: &'a mut Signatures,
    now: u32,
    /// Answers made for one name and type. Aliases that choose among aliases would multiply them.
    made: usize,
    faults: Vec<String>,
}

fn build_zone(spec: &ZoneSpec, signatures: &mut Signatures, now: u32) -> Result<Zone, Vec<String>> {
    let own = own_sets(spec);
    let mut faults = Vec::new();
    let places = places(spec, &own, &mut faults);
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut builder = Builder { spec, places, chain: Vec::new(), signatures, now, made: 0, faults };
    if spec.key.is_some() {
        builder.chain = builder.nsec_chain();
    }
    let zone = builder.zone();
    if builder.faults.is_empty() { Ok(zone) } else { Err(builder.faults) }
}

/// The sets that are made for a zone: its SOA and, if it is signed, its keys.
fn own_sets(spec: &ZoneSpec) -> Vec<Rrset> {
    let set = |rtype, ttl, data| Rrset {
        owner: spec.name.clone(),
        rtype,
        ttl,
        choice: Choice::One(vec![data]),
    };
    let mut sets = vec![set(Rtype::SOA, spec.soa.ttl, spec.soa.rdata(spec.serial))];
    if let Some(key) = &spec.key {
        let ttl = spec.soa.ttl;
        sets.push(set(Rtype::DNSKEY, ttl, key.dnskey()));
        sets.push(set(Rtype::CDNSKEY, ttl, key.dnskey()));
        sets.push(set(Rtype::CDS, ttl, key.ds(&spec.name)));
    }
    sets
}

/// All names of a zone, those between included, and everything that is wrong with its sets.
fn places<'a>(
    spec: &'a ZoneSpec,
    own: &'a [Rrset],
    faults: &mut Vec<String>,
) -> BTreeMap<Name, Place<'a>> {
    let mut places: BTreeMap<Name, Place<'a>> = BTreeMap::new();
    for set in &spec.sets {
        let made =
            [Rtype::SOA, Rtype::DNSKEY, Rtype::CDS, Rtype::CDNSKEY, Rtype::RRSIG, Rtype::NSEC];
        if made.contains(&set.rtype) || set.rtype.is_meta() {
            faults.push(format!("{}: type {} is not for zones' sets", set.owner, set.rtype.0));
        }
        if !set.owner.is_in(&spec.name) {
            faults.push(format!("{} is not in {}", set.owner, spec.name));
        }
        check_choice(set, &set.choice, faults);
    }
    if !faults.is_empty() {
        return places;
    }
    for set in spec.sets.iter().chain(own) {
        let place = places.entry(set.owner.clone()).or_default();
        if place.sets.insert(set.rtype, set).is_some() {
            faults.push(format!("{} has type {} twice", set.owner, set.rtype.0));
        }
        place.is_cut |= set.rtype == Rtype::NS && set.owner != spec.name;
        let mut above = set.owner.parent();
        while let Some(name) = above.filter(|name| name.is_in(&spec.name)) {
            above = name.parent();
            places.entry(name).or_default();
        }
    }
    if places.len() > NAMES_MAX {
        faults.push(format!("{} has more than {NAMES_MAX} names", spec.name));
    }
    if !places.get(&spec.name).is_some_and(|apex| apex.sets.contains_key(&Rtype::NS)) {
        faults.push(format!("{} has no NS", spec.name));
    }
    for (name, place) in &places {
        if place.sets.contains_key(&Rtype::CNAME) && place.sets.len() > 1 {
            faults.push(format!("{name} has an alias and something else"));
        }
    }
    occlude(&mut places);
    places
}

/// Hides what lies below zone cuts. Names below a cut follow it directly in canonical order.
fn occlude(places: &mut BTreeMap<Name, Place<'_>>) {
    let mut cut: Option<Name> = None;
    for (name, place) in places.iter_mut() {
        if cut.as_ref().is_some_and(|cut| name.is_in(cut)) {
            place.is_occluded = true;
        } else if place.is_cut {
            cut = Some(name.clone());
        }
    }
}

fn check_choice(set: &Rrset, choice: &Choice, faults: &mut Vec<String>) {
    match choice {
        Choice::One(records) => {
            if records.len() > RECORDS_MAX {
                faults.push(format!("{}: more than {RECORDS_MAX} records", set.owner));
            }
            if set.rtype == Rtype::CNAME && records.len() > 1 {
                faults.push(format!("{} is an alias of several names", set.owner));
            }
            if !records.iter().all(|record| record.is_valid(set.rtype)) {
                faults.push(format!("{}: data of type {} is broken", set.owner, set.rtype.0));
            }
        }
        Choice::Weighted(branches) => {
            branches.iter().for_each(|(_, branch)| check_choice(set, branch, faults));
        }
        Choice::ByClient { prefixes, default } => {
            check_choice(set, default, faults);
            for (prefix, branch) in prefixes {
                let bits = if prefix.address.is_ipv4() { 32 } else { 128 };
                if prefix.length > bits {
                    faults.push(format!("{}: a prefix has more than {bits} bits", set.owner));
                }
                check_choice(set, branch, faults);
            }
        }
        Choice::Empty => {}
    }
}

impl Builder<'_> {
    /// Every name with types that the zone answers for, and the next one (RFC 4034 4).
    fn nsec_chain(&self) -> Vec<(Name, Rdata)> {
        let owners: Vec<(&Name, BTreeSet<Rtype>)> = self
            .places
            .iter()
            .filter(|(_, place)| !place.is_occluded)
            .map(|(name, place)| (name, place.types().collect::<BTreeSet<_>>()))
            .filter(|(_, types)| !types.is_empty())
            .collect();
        let nexts = owners.iter().skip(1).chain(owners.first()).map(|(name, _)| (*name).clone());
        let links = owners.iter().zip(nexts).map(|((name, types), next)| {
            let made = [Rtype::RRSIG, Rtype::NSEC];
            ((*name).clone(), nsec(&next, types.iter().copied().chain(made)))
        });
        links.collect()
    }

    fn zone(&mut self) -> Zone {
        let names: Vec<Name> =
            self.places.iter().filter(|(_, p)| !p.is_occluded).map(|(n, _)| n.clone()).collect();
        let by_name = by_name(names.iter());
        let number = |wanted: &Name| {
            let fits =
                |number: usize| names.get(number).filter(|name| *name == wanted).map(|_| number);
            by_name.find(NameHash::of(wanted.wire()), fits)
        };
        let nodes = names.iter().map(|name| self.node(name, number)).collect();
        let apex = self.spec.name.clone();
        let soa = self.soa_denial();
        let denial = self.both([&[], &soa, &[]], &apex);
        let chain = self.chain.clone().into_iter().map(|(owner, data)| {
            let set = self.proof(Owner::Name(owner.clone()), &owner, Rtype::NSEC, &data);
            Link { key: owner.key(), piece: Piece::new([&[], &set, &[]], &apex, true) }
        });
        let chain: Vec<Link> = chain.collect();
        let beginnings = chain.iter().map(|link| beginning(&link.key, &chain)).collect();
        let records = self.records();
        Zone {
            name: apex,
            serial: self.spec.serial,
            is_signed: self.spec.key.is_some(),
            nodes,
            by_name,
            denial,
            chain,
            beginnings,
            records,
        }
    }

    /// A name that has a node, where the numbers of all that have one are known.
    fn node(&mut self, name: &Name, number: impl Fn(&Name) -> Option<usize>) -> Node {
        // Names that a wildcard stands for end with what it stands below.
        let base = if name.is_wildcard() { name.parent() } else { None };
        let base = base.unwrap_or_else(|| name.clone());
        let mut sets = self.sets(name, &base);
        let other = self.tree(name, None, &base);
        let own_link = self.chain.binary_search_by(|(owner, _)| owner.cmp(name)).ok();
        if let Some((_, data)) = own_link.and_then(|place| self.chain.get(place)).cloned() {
            sets.push((Rtype::NSEC, self.own_nsec(name, &data, &base)));
        }
        let star = name.child(b"*");
        let wildcard = star.as_ref().and_then(number);
        let wildcard = wildcard.and_then(|number| u32::try_from(number).ok());
        let front = name.wire().strip_suffix(self.spec.name.wire()).unwrap_or_default();
        Node {
            front: front.into(),
            sets: sets.into(),
            other: Box::new(other),
            cut: self.places[name].is_cut.then(|| Box::new(self.referral(name))),
            wildcard: wildcard.and_then(NonZeroU32::new),
            no_wildcard: star.map_or(0, |star| self.cover(&star)),
            own_link: own_link.and_then(|place| u32::try_from(place).ok()),
        }
    }

    /// The answers for each type that a name has, itself or by its alias; the alias first.
    fn sets(&mut self, name: &Name, base: &Name) -> Vec<(Rtype, Tree<Leaf>)> {
        let mut types = self.types_behind(name);
        types.remove(&Rtype::CNAME);
        let alias = self.places[name].sets.contains_key(&Rtype::CNAME).then_some(Rtype::CNAME);
        let types = alias.into_iter().chain(types);
        types.map(|rtype| (rtype, self.tree(name, Some(rtype), base))).collect()
    }

    /// The answers for a type, or for those that are not here.
    fn tree(&mut self, name: &Name, rtype: Option<Rtype>, base: &Name) -> Tree<Leaf> {
        self.made = 0;
        let contents = self.resolve(&Owner::Asked, name, rtype, 0);
        if self.made > LEAVES_MAX {
            self.faults.push(format!("{name}: more than {LEAVES_MAX} answers for one type"));
        }
        self.leaves(&contents, base)
    }

    /// The answer to who asks for the proof itself: its signature is only for those who want signatures.
    fn own_nsec(&mut self, name: &Name, data: &Rdata, base: &Name) -> Tree<Leaf> {
        let mut answer = self.proof(Owner::Asked, name, Rtype::NSEC, data);
        answer.iter_mut().for_each(|rr| rr.is_proof = rr.rtype == Rtype::RRSIG);
        Tree::Leaf(Leaf { is_nxdomain: false, both: self.both([&answer, &[], &[]], base) })
    }

    /// The types that a name has, itself or where its alias leads.
    fn types_behind(&self, name: &Name) -> BTreeSet<Rtype> {
        let (mut types, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut open = vec![name.clone()];
        while let Some(name) = open.pop() {
            let Some(place) = self.places.get(&name).filter(|_| seen.insert(name.clone())) else {
                continue;
            };
            types.extend(place.sets.keys());
            let alias = place.sets.get(&Rtype::CNAME).map(|set| targets(&set.choice));
            for target in alias.unwrap_or_default() {
                match self.way(&target) {
                    Way::Here(to) => open.push(to.clone()),
                    Way::Wildcard(to) => open.push(to),
                    Way::Nowhere(_) | Way::Out => {}
                }
            }
        }
        types
    }

    /// Where a name leads.
    fn way(&self, name: &Name) -> Way<'_> {
        if !name.is_in(&self.spec.name) {
            return Way::Out;
        }
        if let Some((found, place)) = self.places.get_key_value(name) {
            return if place.is_cut || place.is_occluded { Way::Out } else { Way::Here(found) };
        }
        let mut above = name.parent();
        while let Some(closest) = above {
            if let Some(place) = self.places.get(&closest) {
                if place.is_cut || place.is_occluded {
                    return Way::Out;
                }
                let star = closest.child(b"*").filter(|star| self.places.contains_key(star));
                return star.map_or(Way::Nowhere(closest), Way::Wildcard);
            }
            above = closest.parent();
        }
        Way::Out
    }

    /// What is answered for a name that exists; for no type, where no type of the name fits.
    fn resolve(
        &mut self,
        owner: &Owner,
        name: &Name,
        rtype: Option<Rtype>,
        depth: usize,
    ) -> Tree<Content> {
        let sets = &self.places[name].sets;
        let own = rtype.and_then(|rtype| sets.get(&rtype).copied());
        if let Some(set) = own {
            let (rtype, ttl) = (set.rtype, set.ttl);
            return tree(&set.choice).flat_map(&mut |records| {
                self.made += 1;
                Tree::Leaf(match &records[..] {
                    [] => self.nodata(name, Some(rtype)),
                    records => {
                        let answer = self.set(owner, name, rtype, ttl, records);
                        Content { answer, ..Content::default() }
                    }
                })
            });
        }
        let Some(alias) = sets.get(&Rtype::CNAME).copied() else {
            return Tree::Leaf(self.nodata(name, None));
        };
        let ttl = alias.ttl;
        tree(&alias.choice).flat_map(&mut |records| {
            self.made += 1;
            let target = records.first().and_then(|data| Name::from_wire(&data.0));
            let Some(target) = target else {
                return Tree::Leaf(self.nodata(name, Some(Rtype::CNAME)));
            };
            let first = self.set(owner, name, Rtype::CNAME, ttl, records);
            let rest = self.follow(&target, rtype, depth + 1);
            rest.flat_map(&mut |content| {
                let answer = first.iter().chain(&content.answer).cloned().collect();
                Tree::Leaf(Content { answer, ..content.clone() })
            })
        })
    }

    /// What the target of an alias adds to an answer.
    fn follow(&mut self, target: &Name, rtype: Option<Rtype>, depth: usize) -> Tree<Content> {
        if depth > CHAIN_MAX || self.made > LEAVES_MAX {
            return Tree::Leaf(Content::default());
        }
        let owner = Owner::Name(target.clone());
        match self.way(target) {
            Way::Here(to) => {
                let to = to.clone();
                self.resolve(&owner, &to, rtype, depth)
            }
            Way::Wildcard(to) => {
                let cover = self.cover_proof(target);
                let found = self.resolve(&owner, &to, rtype, depth);
                found.flat_map(&mut |content| {
                    let mut content = content.clone();
                    content.authority.extend(cover.iter().cloned());
                    Tree::Leaf(content)
                })
            }
            Way::Nowhere(closest) => {
                let mut authority = self.soa_denial();
                authority.extend(self.cover_proof(target));
                let star = closest.child(b"*");
                if let Some(star) = star.filter(|star| self.cover(star) != self.cover(target)) {
                    authority.extend(self.cover_proof(&star));
                }
                Tree::Leaf(Content { is_nxdomain: true, answer: Vec::new(), authority })
            }
            Way::Out => Tree::Leaf(Content::default()),
        }
    }

    /// That a name has no records of a type. Where it may have some for others, they are left out of the proof.
    fn nodata(&mut self, name: &Name, without: Option<Rtype>) -> Content {
        let mut authority = self.soa_denial();
        if self.spec.key.is_some() {
            match self.chain.binary_search_by(|(owner, _)| owner.cmp(name)) {
                Ok(at) => {
                    let next = (at + 1) % self.chain.len();
                    let here = self.places[name].types().filter(|rtype| Some(*rtype) != without);
                    let here: Vec<Rtype> = here.chain([Rtype::RRSIG, Rtype::NSEC]).collect();
                    let data = nsec(&self.chain[next].0, here);
                    authority.extend(self.proof(
                        Owner::Name(name.clone()),
                        name,
                        Rtype::NSEC,
                        &data,
                    ));
                }
                Err(_) => authority.extend(self.cover_proof(name)),
            }
        }
        Content { authority, ..Content::default() }
    }

    /// The SOA as it stands with a denial: remembered no longer than its minimum (RFC 2308 3).
    fn soa_denial(&mut self) -> Vec<Rr> {
        let soa = &self.spec.soa;
        let data = soa.rdata(self.spec.serial);
        let ttl = soa.ttl.min(soa.minimum);
        let apex = self.spec.name.clone();
        let mut set = self.set(&Owner::Name(apex.clone()), &apex, Rtype::SOA, soa.ttl, &[data]);
        set.iter_mut().for_each(|rr| rr.ttl = ttl);
        set
    }

    /// A set and, if the zone is signed, its signature.
    fn set(
        &mut self,
        shown: &Owner,
        owner: &Name,
        rtype: Rtype,
        ttl: u32,
        records: &[Rdata],
    ) -> Vec<Rr> {
        let rr = |rtype, data: &Rdata, is_proof| Rr {
            owner: shown.clone(),
            rtype,
            ttl,
            data: data.clone(),
            is_proof,
        };
        let mut set: Vec<Rr> = records.iter().map(|data| rr(rtype, data, false)).collect();
        if let Some(key) = self.spec.key.clone() {
            let signature = self.sign(&key, owner, rtype, ttl, records);
            set.extend(signature.map(|data| rr(Rtype::RRSIG, &data, true)));
        }
        set
    }

    fn sign(
        &mut self,
        key: &ZoneKey,
        owner: &Name,
        rtype: Rtype,
        ttl: u32,
        records: &[Rdata],
    ) -> Option<Rdata> {
        let set = Signed { zone: &self.spec.name, owner, rtype, ttl, records };
        let signature = self.signatures.rrsig(key, set, self.now);
        if signature.is_none() {
            self.faults.push(format!("{owner}: the system has no randomness to sign with"));
        }
        signature
    }

    /// An NSEC and its signature, only for those who ask for signatures. It lives as long as denials do (RFC 9077).
    fn proof(&mut self, shown: Owner, owner: &Name, rtype: Rtype, data: &Rdata) -> Vec<Rr> {
        let ttl = self.spec.soa.ttl.min(self.spec.soa.minimum);
        let mut set = self.set(&shown, owner, rtype, ttl, std::slice::from_ref(data));
        set.iter_mut().for_each(|rr| rr.is_proof = true);
        set
    }

    /// The place in the chain whose span holds a name.
    fn cover(&self, name: &Name) -> u32 {
        let behind = self.chain.partition_point(|(owner, _)| owner <= name);
        u32::try_from(behind.saturating_sub(1)).unwrap_or_default()
    }

    /// The proof that a name does not exist; nothing in a zone that is not signed.
    fn cover_proof(&mut self, name: &Name) -> Vec<Rr> {
        let place = usize::try_from(self.cover(name)).unwrap_or_default();
        let Some((owner, data)) = self.chain.get(place).cloned() else { return Vec::new() };
        self.proof(Owner::Name(owner.clone()), &owner, Rtype::NSEC, &data)
    }

    /// Where to ask instead: the name servers below a cut, whether they sign, and their addresses if they lie below it.
    fn referral(&mut self, name: &Name) -> Leaf {
        let owner = Owner::Name(name.clone());
        let plain = |set: &Rrset, owner: &Owner| -> Vec<Rr> {
            let rr = |data: &Rdata| Rr {
                owner: owner.clone(),
                rtype: set.rtype,
                ttl: set.ttl,
                data: data.clone(),
                is_proof: false,
            };
            set.choice.default_records().iter().map(rr).collect()
        };
        let sets = self.places[name].sets.clone();
        let servers = sets.get(&Rtype::NS).expect("a cut is where name servers are");
        let mut authority = plain(servers, &owner);
        let glue: Vec<Rr> = servers
            .choice
            .default_records()
            .iter()
            .filter_map(|data| Name::from_wire(&data.0))
            .filter(|server| server.is_in(&self.spec.name))
            .filter_map(|server| Some((self.places.get(&server)?, Owner::Name(server))))
            .flat_map(|(place, owner)| {
                let addresses = [Rtype::A, Rtype::AAAA].map(|rtype| place.sets.get(&rtype));
                addresses
                    .into_iter()
                    .flatten()
                    .flat_map(|set| plain(set, &owner))
                    .collect::<Vec<_>>()
            })
            .collect();
        if let Some(set) = sets.get(&Rtype::DS) {
            let signers = self.set(&owner, name, Rtype::DS, set.ttl, set.choice.default_records());
            authority.extend(signers.into_iter().map(|rr| Rr { is_proof: true, ..rr }));
        } else if self.spec.key.is_some() {
            authority.extend(self.cover_proof(name));
        }
        let both = self.both([&[], &authority, &glue], name);
        Leaf { is_nxdomain: false, both }
    }

    fn leaves(&mut self, contents: &Tree<Content>, base: &Name) -> Tree<Leaf> {
        contents.flat_map(&mut |content| {
            let both = self.both([&content.answer, &content.authority, &[]], base);
            Tree::Leaf(Leaf { is_nxdomain: content.is_nxdomain, both })
        })
    }

    fn both(&mut self, sections: [&[Rr]; 3], base: &Name) -> Both {
        let plain = Piece::new(sections, base, false);
        let signed = self.spec.key.is_some().then(|| Piece::new(sections, base, true));
        if signed.as_ref().unwrap_or(&plain).len() > ANSWER_MAX {
            self.faults.push(format!("{base}: an answer has more than {ANSWER_MAX} bytes"));
        }
        Both { plain, signed }
    }

    /// The records that a secondary is given: the SOA, then all others in order.
    fn records(&mut self) -> Arc<[Record]> {
        let soa = self.spec.soa.rdata(self.spec.serial);
        let apex = self.spec.name.clone();
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        let sets: Vec<(Rrset, bool)> = self
            .places
            .values()
            .flat_map(|place| {
                place.sets.values().map(|set| {
                    let is_ours = !place.is_occluded && (!place.is_cut || set.rtype == Rtype::DS);
                    ((*set).clone(), is_ours)
                })
            })
            .collect();
        for (Rrset { owner, rtype, ttl, choice }, is_ours) in sets {
            let records = choice.default_records();
            let to = if rtype == Rtype::SOA { &mut first } else { &mut rest };
            let record = |rtype, data: &Rdata| Record {
                owner: owner.clone(),
                rtype,
                ttl,
                data: data.clone(),
            };
            to.extend(records.iter().map(|data| record(rtype, data)));
            if let Some(key) = self.spec.key.clone().filter(|_| is_ours && !records.is_empty()) {
                let signature = self.sign(&key, &owner, rtype, ttl, records);
                rest.extend(signature.map(|data| record(Rtype::RRSIG, &data)));
            }
        }
        for (owner, data) in self.chain.clone() {
            for Rr { rtype, ttl, data, .. } in self.proof(Owner::Asked, &owner, Rtype::NSEC, &data)
            {
                rest.push(Record { owner: owner.clone(), rtype, ttl, data });
            }
        }
        debug_assert!(
            first.len() == 1 && first[0].data == soa && first[0].owner == apex,
            "one SOA"
        );
        rest.sort();
        rest.dedup();
        first.into_iter().chain(rest).collect()
    }
}

/// All names that an alias may lead to.
fn targets(choice: &Choice) -> Vec<Name> {
    match choice {
        Choice::One(records) => {
            records.iter().filter_map(|data| Name::from_wire(&data.0)).collect()
        }
        Choice::Weighted(branches) => {
            branches.iter().flat_map(|(_, branch)| targets(branch)).collect()
        }
        Choice::ByClient { prefixes, default } => {
            let branches = prefixes.iter().map(|(_, branch)| branch);
            std::iter::once(&**default).chain(branches).flat_map(targets).collect()
        }
        Choice::Empty => Vec::new(),
    }
}
