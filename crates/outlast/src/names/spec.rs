//! A zone as the name server wants it: made of the topology and of what is agreed on, and of nothing else, so that all
//! servers make the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use outlast_core::agreed::{AddedRecord, AgreedNames, AgreedZone};
use outlast_core::names::{Answers, Choice, agreed_answers};
use outlast_core::topology::{RecordKind, RecordValue, Zone};
use outlast_dns::dnssec::ZoneKey;
use outlast_dns::name::Name;
use outlast_dns::zone::{self, Prefix, Rdata, Record, Rrset, Rtype, Soa, ZoneSpec};

use crate::cluster::{NameSecrets, zone_key};

/// How long the start of authority and the names of servers may be remembered.
const HEAD_TTL: u32 = 300;

/// The zone, or why there can be none.
pub(super) fn spec(
    name: &str,
    zone: &Zone,
    agreed: &AgreedNames,
    secrets: &NameSecrets,
) -> Result<ZoneSpec, String> {
    let own = parse(name)?;
    let known = agreed.zones.get(name);
    let mut sets = file_sets(&own, name, zone, agreed)?;
    if let Some(known) = known {
        add(&mut sets, known);
    }
    let key = match (zone.dnssec, secrets.0.get(&zone_key(name))) {
        (false, _) => None,
        (true, Some(bytes)) => {
            let key = ZoneKey::from_pkcs8(bytes).map_err(|error| error.to_string())?;
            Some(Arc::new(key))
        }
        (true, None) => return Err("its key is not agreed on yet".to_owned()),
    };
    let serial = known.map_or(1, |known| known.serial);
    Ok(ZoneSpec { soa: soa(&own, zone)?, name: own, serial, sets, key })
}

/// What the file says, with the answers that are agreed on.
pub(super) fn file_sets(
    own: &Name,
    name: &str,
    zone: &Zone,
    agreed: &AgreedNames,
) -> Result<Vec<Rrset>, String> {
    let servers = zone.ns.iter().map(|server| parse(server)).collect::<Result<Vec<_>, _>>()?;
    let servers = if servers.is_empty() { vec![own.clone()] } else { servers };
    let servers = servers.iter().map(Rdata::name).collect();
    let mut sets = vec![Rrset {
        owner: own.clone(),
        rtype: Rtype::NS,
        ttl: HEAD_TTL,
        choice: zone::Choice::One(servers),
    }];
    for answers in agreed_answers(name, zone, agreed) {
        sets.push(set(own, &answers)?);
    }
    Ok(sets)
}

fn set(own: &Name, answers: &Answers) -> Result<Rrset, String> {
    let owner = match answers.name.as_str() {
        "@" => own.clone(),
        name => parse(&format!("{name}.{own}"))?,
    };
    let rtype = match answers.kind {
        RecordKind::A => Rtype::A,
        RecordKind::Aaaa => Rtype::AAAA,
        RecordKind::Cname => Rtype::CNAME,
        RecordKind::Txt => Rtype::TXT,
    };
    let ttl = u32::try_from(answers.ttl.as_secs()).unwrap_or(u32::MAX);
    Ok(Rrset { owner, rtype, ttl, choice: choice(&answers.choice)? })
}

fn choice(from: &Choice) -> Result<zone::Choice, String> {
    Ok(match from {
        Choice::One(values) => {
            zone::Choice::One(values.iter().map(value).collect::<Result<_, _>>()?)
        }
        Choice::Weighted(list) => {
            let each = list.iter().map(|(weight, of)| Ok((u32::from(*weight), choice(of)?)));
            zone::Choice::Weighted(each.collect::<Result<_, String>>()?)
        }
        Choice::ByClient { networks, otherwise } => {
            let each = networks.iter().map(|(network, of)| {
                let prefix = Prefix { address: network.address, length: network.prefix };
                Ok((prefix, choice(of)?))
            });
            let prefixes = each.collect::<Result<_, String>>()?;
            zone::Choice::ByClient { prefixes, default: Box::new(choice(otherwise)?) }
        }
        Choice::Empty => zone::Choice::Empty,
    })
}

fn value(value: &RecordValue) -> Result<Rdata, String> {
    Ok(match value {
        RecordValue::A(ip) => Rdata::a(*ip),
        RecordValue::Aaaa(ip) => Rdata::aaaa(*ip),
        RecordValue::Cname(name) => Rdata::name(&parse(name)?),
        RecordValue::Txt(text) => Rdata::txt(text.as_bytes()),
    })
}

fn soa(own: &Name, zone: &Zone) -> Result<Soa, String> {
    let of = &zone.soa;
    let primary = of.mname.as_deref().or(zone.ns.first().map(String::as_str));
    let primary = primary.map_or_else(|| Ok(own.clone()), parse)?;
    let contact = match &of.rname {
        Some(mail) => mailbox(mail).ok_or_else(|| format!("{mail} is too long for a name"))?,
        None => own.child(b"hostmaster").ok_or("the zone's name is too long")?,
    };
    let seconds = |time: std::time::Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    Ok(Soa {
        primary,
        contact,
        refresh: seconds(of.refresh),
        retry: seconds(of.retry),
        expire: seconds(of.expire),
        minimum: seconds(of.minimum),
        ttl: seconds(of.minimum).clamp(1, HEAD_TTL),
    })
}

/// A mail address as a name: what is before the @ is one label (RFC 1035 8).
fn mailbox(mail: &str) -> Option<Name> {
    let (local, domain) = mail.rsplit_once('@')?;
    domain.parse::<Name>().ok()?.child(local.as_bytes())
}

/// Adds what updates have added; where the file has a set, the file's counts.
fn add(sets: &mut Vec<Rrset>, known: &AgreedZone) {
    let mut added: BTreeMap<(Name, Rtype), Rrset> = BTreeMap::new();
    for record in known.records.iter().filter_map(read) {
        // A name with a CNAME has nothing else (RFC 1034 3.6.2).
        let clashes = |set: &Rrset| {
            let alias = set.rtype == Rtype::CNAME || record.rtype == Rtype::CNAME;
            set.owner == record.owner && (alias || set.rtype == record.rtype)
        };
        if sets.iter().any(clashes) {
            continue;
        }
        let set = added.entry((record.owner.clone(), record.rtype)).or_insert_with(|| Rrset {
            owner: record.owner.clone(),
            rtype: record.rtype,
            ttl: record.ttl,
            choice: zone::Choice::One(Vec::new()),
        });
        // One set has one time to live (RFC 2181 5.2).
        set.ttl = set.ttl.min(record.ttl);
        if let zone::Choice::One(records) = &mut set.choice {
            records.push(record.data);
        }
    }
    sets.extend(added.into_values());
}

pub(super) fn read(record: &AddedRecord) -> Option<Record> {
    Some(Record {
        owner: Name::from_wire(&record.owner)?,
        rtype: Rtype(u16::try_from(record.rtype).ok()?),
        ttl: record.ttl,
        data: Rdata(record.data.clone()),
    })
}

pub(super) fn write(record: &Record) -> AddedRecord {
    AddedRecord {
        owner: record.owner.wire().to_vec(),
        rtype: u32::from(record.rtype.0),
        ttl: record.ttl,
        data: record.data.0.clone(),
    }
}

pub(super) fn parse(name: &str) -> Result<Name, String> {
    name.parse().map_err(|error| format!("{name}: {error}"))
}
