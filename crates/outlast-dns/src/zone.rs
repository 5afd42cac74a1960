//! What a zone says: its sets of records, and for each set how one of several answers is chosen.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::dnssec::ZoneKey;
use crate::name::{Name, wire_length};

/// Bytes of a character string (RFC 1035 3.3).
pub const STRING_MAX: usize = 255;

/// Bytes of the data of one record that a zone may have; what is longer could fill a message alone.
pub const RDATA_MAX: usize = 16 << 10;

/// Records of a set.
pub const RECORDS_MAX: usize = 256;

/// Records of a zone file that is read.
pub const ZONE_FILE_RECORDS_MAX: usize = 1 << 20;

/// The type of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rtype(pub u16);

impl Rtype {
    pub const A: Rtype = Rtype(1);
    pub const NS: Rtype = Rtype(2);
    pub const CNAME: Rtype = Rtype(5);
    pub const SOA: Rtype = Rtype(6);
    pub const PTR: Rtype = Rtype(12);
    pub const HINFO: Rtype = Rtype(13);
    pub const MX: Rtype = Rtype(15);
    pub const TXT: Rtype = Rtype(16);
    pub const AAAA: Rtype = Rtype(28);
    pub const SRV: Rtype = Rtype(33);
    pub const OPT: Rtype = Rtype(41);
    pub const DS: Rtype = Rtype(43);
    pub const RRSIG: Rtype = Rtype(46);
    pub const NSEC: Rtype = Rtype(47);
    pub const DNSKEY: Rtype = Rtype(48);
    pub const CDS: Rtype = Rtype(59);
    pub const CDNSKEY: Rtype = Rtype(60);
    pub const TSIG: Rtype = Rtype(250);
    pub const IXFR: Rtype = Rtype(251);
    pub const AXFR: Rtype = Rtype(252);
    pub const ANY: Rtype = Rtype(255);
    pub const CAA: Rtype = Rtype(257);

    /// Types that ask about a message or for a transfer and never stand in a zone (RFC 6895 3.1).
    pub fn is_meta(self) -> bool {
        self == Rtype::OPT || (128..=255).contains(&self.0)
    }

    /// How many bytes stand before the name that the data ends with, of types whose names may be compressed (RFC 3597 4).
    pub(crate) fn name_at(self) -> Option<usize> {
        match self {
            Rtype::NS | Rtype::CNAME | Rtype::PTR => Some(0),
            Rtype::MX => Some(2),
            _ => None,
        }
    }
}

/// The data of one record in wire form, without pointers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rdata(pub Vec<u8>);

impl Rdata {
    /// An IPv4 address.
    pub fn a(address: Ipv4Addr) -> Rdata {
        Rdata(address.octets().to_vec())
    }

    /// An IPv6 address.
    pub fn aaaa(address: Ipv6Addr) -> Rdata {
        Rdata(address.octets().to_vec())
    }

    /// A name: CNAME, NS and PTR.
    pub fn name(name: &Name) -> Rdata {
        Rdata(name.wire().to_vec())
    }

    /// A mail exchanger.
    pub fn mx(preference: u16, exchange: &Name) -> Rdata {
        Rdata([&preference.to_be_bytes()[..], exchange.wire()].concat())
    }

    /// A service (RFC 2782).
    pub fn srv(priority: u16, weight: u16, port: u16, target: &Name) -> Rdata {
        let numbers = [priority.to_be_bytes(), weight.to_be_bytes(), port.to_be_bytes()];
        Rdata([numbers.as_flattened(), target.wire()].concat())
    }

    /// A text, in strings of at most 255 bytes.
    pub fn txt(text: &[u8]) -> Rdata {
        let mut data = Vec::with_capacity(text.len() + 1);
        for piece in text.chunks(STRING_MAX) {
            data.extend(u8::try_from(piece.len()));
            data.extend_from_slice(piece);
        }
        if text.is_empty() {
            data.push(0);
        }
        Rdata(data)
    }

    /// Who may issue certificates (RFC 8659). A tag is at most 255 bytes long; what is longer is cut.
    pub fn caa(flags: u8, tag: &str, value: &str) -> Rdata {
        let tag = &tag.as_bytes()[..tag.len().min(STRING_MAX)];
        let length = u8::try_from(tag.len()).unwrap_or(u8::MAX);
        Rdata([&[flags, length], tag, value.as_bytes()].concat())
    }

    /// The data of a record of that type, as a zone file has it.
    pub fn parse(rtype: &str, text: &str) -> Result<(Rtype, Rdata), BadZone> {
        let line = format!(". 0 IN {rtype} {text}");
        let records = read_records(&Name::root(), &line)?;
        match &records[..] {
            [record] => Ok((record.rtype, record.data.clone())),
            _ => Err(BadZone(format!("`{rtype} {text}` is not one record"))),
        }
    }

    /// Whether bytes of the network can be the data of that type: addresses and names are whole, and it is not too long.
    pub(crate) fn is_valid(&self, rtype: Rtype) -> bool {
        let data = &self.0;
        let name_from =
            |at: usize| data.get(at..).is_some_and(|rest| wire_length(rest) == Some(rest.len()));
        let whole = match rtype {
            Rtype::A => data.len() == 4,
            Rtype::AAAA => data.len() == 16,
            Rtype::NS | Rtype::CNAME | Rtype::PTR => name_from(0),
            Rtype::MX => name_from(2),
            Rtype::SRV => name_from(6),
            Rtype::TXT => are_strings(data),
            Rtype::CAA => {
                data.get(1).is_some_and(|tag| *tag > 0 && 2 + usize::from(*tag) <= data.len())
            }
            Rtype::DS | Rtype::CDS => data.len() > 4,
            _ => true,
        };
        whole && data.len() <= RDATA_MAX
    }

    /// The data with its names in lower case, as it is signed and compared (RFC 4034 6.2).
    pub fn canonical(&self, rtype: Rtype) -> Rdata {
        let at = if rtype == Rtype::SRV { Some(6) } else { rtype.name_at() };
        let mut data = self.0.clone();
        if let Some(name) = at.and_then(|at| data.get_mut(at..)) {
            name.make_ascii_lowercase();
        }
        Rdata(data)
    }
}

/// Whether the bytes are one or more character strings.
fn are_strings(data: &[u8]) -> bool {
    let mut rest = data;
    while let Some((&length, after)) = rest.split_first() {
        let Some(next) = after.get(usize::from(length)..) else { return false };
        rest = next;
    }
    !data.is_empty()
}

/// A network: an address and how many of its bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}

/// How the answer for one name and type comes about. A tree: each branch may choose again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// These records, always.
    One(Vec<Rdata>),
    /// One branch for each query, by chance, as often as its weight says. What has weight 0 is never chosen.
    Weighted(Vec<(u32, Choice)>),
    /// The branch of the longest prefix that holds the client: its subnet as the resolver names it (RFC 7871), or else the
    /// address that asks.
    ByClient { prefixes: Vec<(Prefix, Choice)>, default: Box<Choice> },
    /// No record; the name exists.
    Empty,
}

impl Choice {
    /// One address record per address of the type's family.
    pub fn addresses(rtype: Rtype, addresses: &[IpAddr]) -> Choice {
        let of_type = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(v4) if rtype == Rtype::A => Some(Rdata::a(*v4)),
            IpAddr::V6(v6) if rtype == Rtype::AAAA => Some(Rdata::aaaa(*v6)),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        });
        let records: Vec<Rdata> = of_type.collect();
        if records.is_empty() { Choice::Empty } else { Choice::One(records) }
    }

    /// What a secondary is told, which cannot choose: of weighted branches the first of the heaviest, else the default.
    pub fn default_records(&self) -> &[Rdata] {
        match self {
            Choice::One(records) => records,
            Choice::Weighted(branches) => {
                let heaviest = branches.iter().filter(|(weight, _)| *weight > 0).rev();
                heaviest.max_by_key(|(weight, _)| *weight).map_or(&[], |(_, c)| c.default_records())
            }
            Choice::ByClient { default, .. } => default.default_records(),
            Choice::Empty => &[],
        }
    }
}

/// All records of one name and type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rrset {
    pub owner: Name,
    pub rtype: Rtype,
    pub ttl: u32,
    pub choice: Choice,
}

/// The start of authority of a zone, but for its serial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Soa {
    /// The name of the primary server.
    pub primary: Name,
    /// The mail address of who is responsible, as a name.
    pub contact: Name,
    pub refresh: u32,
    pub retry: u32,
    pub expire: u32,
    /// For how long it is remembered that something is not there (RFC 2308 5): keep it small.
    pub minimum: u32,
    pub ttl: u32,
}

impl Soa {
    /// The times that suit a zone whose addresses move: seconds are remembered, not hours.
    pub fn new(primary: Name, contact: Name) -> Soa {
        Soa { primary, contact, refresh: 300, retry: 60, expire: 604_800, minimum: 5, ttl: 30 }
    }

    /// The data of the record.
    pub(crate) fn rdata(&self, serial: u32) -> Rdata {
        let numbers = [serial, self.refresh, self.retry, self.expire, self.minimum];
        let numbers = numbers.map(u32::to_be_bytes);
        Rdata([self.primary.wire(), self.contact.wire(), numbers.as_flattened()].concat())
    }
}

/// A zone to be served. The servers of a zone must be given the same specification to give the same answers.
#[derive(Clone, Debug)]
pub struct ZoneSpec {
    pub name: Name,
    /// Counts up with each change (RFC 1982); comes from what is agreed, so that all servers have the same.
    pub serial: u32,
    pub soa: Soa,
    /// All sets but SOA, DNSKEY, CDS, CDNSKEY, RRSIG and NSEC, which are made. The name itself needs NS.
    pub sets: Vec<Rrset>,
    /// The zone is signed if there is one.
    pub key: Option<Arc<ZoneKey>>,
}

/// What is wrong with a zone or a zone file, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadZone(pub String);

impl fmt::Display for BadZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadZone {}

impl ZoneSpec {
    /// The SOA as a record.
    pub fn soa_record(&self) -> Record {
        let data = self.soa.rdata(self.serial);
        Record { owner: self.name.clone(), rtype: Rtype::SOA, ttl: self.soa.ttl, data }
    }

    /// Reads a zone file (RFC 1035 5). It must contain the SOA; `$INCLUDE` is refused, and so is what is made at signing.
    pub fn from_zone_file(name: &Name, text: &str) -> Result<ZoneSpec, BadZone> {
        let mut head = None;
        let mut sets: Vec<Rrset> = Vec::new();
        let mut places = std::collections::BTreeMap::new();
        for record in read_records(name, text)? {
            if record.rtype == Rtype::SOA {
                head = Some(read_soa(&record)?);
                continue;
            }
            let place = *places.entry((record.owner.clone(), record.rtype)).or_insert(sets.len());
            if place == sets.len() {
                let Record { owner, rtype, ttl, data } = record;
                sets.push(Rrset { owner, rtype, ttl, choice: Choice::One(vec![data]) });
            } else if let Choice::One(records) = &mut sets[place].choice {
                records.push(record.data);
            }
        }
        let (serial, soa) =
            head.ok_or_else(|| BadZone(format!("the zone file of {name} has no SOA")))?;
        Ok(ZoneSpec { name: name.clone(), serial, soa, sets, key: None })
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    pub owner: Name,
    pub rtype: Rtype,
    pub ttl: u32,
    pub data: Rdata,
}

/// The records of a text in the form of a zone file.
fn read_records(origin: &Name, text: &str) -> Result<Vec<Record>, BadZone> {
    use domain::base::rdata::ComposeRecordData as _;
    use domain::zonefile::inplace::{Entry, Zonefile};

    let bad = |error: &dyn fmt::Display| BadZone(error.to_string());
    let mut file = Zonefile::from(text);
    // The last line counts, too, if nothing ends it.
    file.extend_from_slice(b"\n");
    let bytes = bytes::Bytes::copy_from_slice(origin.wire());
    file.set_origin(domain::base::Name::from_octets(bytes).map_err(|e| bad(&e))?);
    file.set_default_class(domain::base::iana::Class::IN);
    let mut records = Vec::new();
    while let Some(entry) = file.next_entry().map_err(|e| bad(&e))? {
        let Entry::Record(record) = entry else {
            return Err(BadZone("$INCLUDE is not read".to_owned()));
        };
        if record.class() != domain::base::iana::Class::IN {
            return Err(BadZone(format!("{}: only class IN is served", record.owner())));
        }
        let mut data = Vec::new();
        let Ok(()) = record.data().compose_rdata(&mut data);
        let mut owner = Vec::new();
        domain::base::name::ToName::compose(record.owner(), &mut owner)
            .unwrap_or_else(|e| match e {});
        let owner = Name::from_wire(&owner)
            .ok_or_else(|| BadZone(format!("{} is no name", record.owner())))?;
        let rtype = Rtype(domain::base::rdata::RecordData::rtype(record.data()).to_int());
        records.push(Record { owner, rtype, ttl: record.ttl().as_secs(), data: Rdata(data) });
        if records.len() > ZONE_FILE_RECORDS_MAX {
            return Err(BadZone(format!("more than {ZONE_FILE_RECORDS_MAX} records")));
        }
    }
    Ok(records)
}

/// The parts of a SOA record: the serial and the rest.
fn read_soa(record: &Record) -> Result<(u32, Soa), BadZone> {
    let bad = || BadZone(format!("the SOA of {} is cut", record.owner));
    let data = &record.data.0[..];
    let (primary, rest) =
        data.split_at_checked(wire_length(data).ok_or_else(bad)?).ok_or_else(bad)?;
    let (contact, rest) =
        rest.split_at_checked(wire_length(rest).ok_or_else(bad)?).ok_or_else(bad)?;
    let (numbers, []) = rest.as_chunks::<4>() else { return Err(bad()) };
    let &[serial, refresh, retry, expire, minimum] = numbers else { return Err(bad()) };
    let [serial, refresh, retry, expire, minimum] =
        [serial, refresh, retry, expire, minimum].map(u32::from_be_bytes);
    let primary = Name::from_wire(primary).ok_or_else(bad)?;
    let contact = Name::from_wire(contact).ok_or_else(bad)?;
    let soa = Soa { primary, contact, refresh, retry, expire, minimum, ttl: record.ttl };
    Ok((serial, soa))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_file_becomes_sets() {
        let name: Name = "example.com".parse().unwrap();
        let text = "$TTL 60\n@ IN SOA ns1 host 7 300 60 604800 5\n@ NS ns1\n@ NS ns2\n\
            www 30 A 192.0.2.1\nwww 30 A 192.0.2.2\nt TXT \"a b\" c\n@ MX 10 Mail";
        let zone = ZoneSpec::from_zone_file(&name, text).unwrap();
        assert_eq!((zone.serial, zone.soa.minimum, zone.sets.len()), (7, 5, 4));
        let www = &zone.sets[1];
        assert_eq!((www.ttl, www.choice.default_records().len()), (30, 2));
        assert_eq!(zone.sets[2].choice.default_records()[0].0, b"\x03a b\x01c");
        assert_eq!(
            Rdata::parse("CAA", "0 issue \"ca.example\"").unwrap().1,
            Rdata::caa(0, "issue", "ca.example")
        );
        assert!(Rdata::parse("A", "192.0.2").is_err());
        assert!(ZoneSpec::from_zone_file(&name, "www 5 A 192.0.2.1\n").is_err());
    }

    #[test]
    fn data_of_the_wrong_form_is_refused() {
        for (rtype, data, valid) in [
            (Rtype::A, &b"\x01\x02\x03\x04"[..], true),
            (Rtype::A, b"\x01\x02\x03", false),
            (Rtype::CNAME, b"\x01a\0", true),
            (Rtype::CNAME, b"\x01a", false),
            (Rtype::MX, b"\0\x01\xc0\x0c", false),
            (Rtype::TXT, b"\x01a\x00", true),
            (Rtype::TXT, b"\x02a", false),
            (Rtype::CAA, b"\0\x05issueca", true),
            (Rtype::CAA, b"\0\0", false),
            (Rtype(65280), b"", true),
        ] {
            assert_eq!(Rdata(data.to_vec()).is_valid(rtype), valid, "{rtype:?} {data:?}");
        }
    }

    #[test]
    fn a_secondary_is_told_the_heaviest_branch() {
        let one = |n: u8| Choice::One(vec![Rdata::a([192, 0, 2, n].into())]);
        let weighted = Choice::Weighted(vec![(0, one(1)), (5, one(2)), (5, one(3)), (1, one(4))]);
        assert_eq!(weighted.default_records(), [Rdata::a([192, 0, 2, 2].into())]);
        assert!(Choice::Weighted(vec![(0, one(1))]).default_records().is_empty());
    }
}
