//! Reads zones: `[dns."ZONE"]`.

mod elsewhere;
mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use outlast_core::topology::{
    Address, AddressMode, Network, POLICY_DEPTH_MAX, Pool, Postgres, Record, RecordKind,
    RecordValue, Service, Soa, TTL_DEGRADED_MIN, VerdictRule, WhenAllDown, ZONES_MAX, Zone,
};
use outlast_core::units::show_duration;

use super::Parts;
use super::complaint::quote;
use super::desk::{Desk, Span};
use super::item::Item;
use super::section::Section;
use super::shapes;
use super::together::Notes;
use super::words;

use policy::{Alias, Reader, record_value};

/// What stands beside a zone in the file.
pub(super) struct Beside<'a, 't> {
    pub(super) services: &'a Parts<'t, Service>,
    pub(super) postgres: &'a Parts<'t, Postgres>,
    pub(super) addresses: &'a Parts<'t, Address>,
}

pub(super) fn zone(
    section: &Section<'_>,
    name: &str,
    beside: &Beside<'_, '_>,
    notes: &mut Notes,
) -> Option<Zone> {
    let listen = section.optional("listen", |item| item.listen());
    let ns = section.optional("ns", |item| item.distinct(|item| item.parsed(words::domain)));
    let soa = soa(section);
    let secondaries = section
        .optional("secondaries", |item| item.distinct(|item| item.parsed(words::name_server)));
    let keys = section.optional("keys", |item| item.parsed(words::path));
    let update =
        section.optional("update", |item| item.distinct(|item| item.parsed(words::domain)));
    let elsewhere = section.optional("elsewhere", |item| elsewhere::list(&item));
    let dnssec = section.switch("dnssec");
    let rate_limit = rate_limit(section);
    let cookies = section.switch("cookies");
    let rule = rule(section);
    let regions = section.optional("regions", |item| regions(&item));
    let latencies = section.optional("latencies", |item| latencies(&item));
    if !section.has("keys") {
        section.refuse(&["update"], "goes with `keys`", "name the file of keys, too");
    }
    if !section.has("keys") {
        elsewhere::complain_of_no_keys(section);
    }
    let known = known_regions(regions.as_ref(), latencies.as_ref());
    let around = policy::Around {
        zone: name,
        known_regions: known.as_ref(),
        regions: regions.as_ref().and_then(Option::as_ref),
        followed: followed(beside),
    };
    let records = records(section, &around);
    if let Some(Some(address)) = listen {
        notes.listen_for_dns(address, format!("[dns.\"{name}\"]"), section.span_of("listen"));
    }
    Some(Zone {
        listen: listen?,
        records: records?,
        ns: ns?.unwrap_or_default(),
        soa: soa?,
        secondaries: secondaries?.unwrap_or_default(),
        keys: keys?,
        update: update?.unwrap_or_default(),
        elsewhere: elsewhere?.unwrap_or_default(),
        dnssec: dnssec?,
        rate_limit: rate_limit?,
        cookies: cookies?,
        rule: rule?,
        regions: regions?.unwrap_or_default(),
        latencies: latencies?.unwrap_or_default(),
    })
}

/// Complains of the first zone that the nodes could not agree on beside the others.
pub(super) fn complain_of_too_many(zones: &Parts<'_, Zone>) {
    let mut sections: Vec<&Section<'_>> =
        zones.list.iter().map(|(_, section, _)| section).collect();
    sections.sort_by_key(|section| section.span().start);
    if let Some(first) = sections.get(ZONES_MAX) {
        first.desk.complain(
            first.span(),
            format!("{} zones are too many: one cluster can agree on {ZONES_MAX}", sections.len()),
            "move some to a file of their own, with a `data_dir`, an agent and a `listen` of its own",
        );
    }
}

/// How many values a name has to have that follows a part; `None`: it has no place that could be followed.
fn followed(beside: &Beside<'_, '_>) -> BTreeMap<String, Option<usize>> {
    let services = beside.services.good().map(|(name, _, service)| {
        let sides = matches!(service.pool, Pool::Pair(_)).then_some(2);
        (format!("service.{name}"), sides)
    });
    let postgres = beside.postgres.good();
    let postgres =
        postgres.map(|(name, _, part)| (format!("postgres.{name}"), Some(part.nodes.len())));
    let addresses = beside.addresses.good().map(|(name, _, address)| {
        let leased = matches!(address.mode, AddressMode::Lease { .. });
        (format!("address.{name}"), leased.then_some(address.nodes.len()))
    });
    services.chain(postgres).chain(addresses).collect()
}

type Regions = BTreeMap<String, Vec<Network>>;
type Latencies = BTreeMap<(String, String), Duration>;

/// All regions that are named; `None` if a mistake hides some.
fn known_regions(
    regions: Option<&Option<Regions>>,
    latencies: Option<&Option<Latencies>>,
) -> Option<BTreeSet<String>> {
    let regions = regions?.iter().flat_map(BTreeMap::keys);
    let ends = latencies?.iter().flat_map(BTreeMap::keys).flat_map(|(from, to)| [from, to]);
    Some(regions.chain(ends).cloned().collect())
}

fn soa(section: &Section<'_>) -> Option<Soa> {
    let soa = section.inner("soa", &shapes::SOA)?;
    let mname = soa.optional("mname", |item| item.parsed(words::domain));
    let rname = soa.optional("rname", |item| item.parsed(words::mail_address));
    let [refresh, retry, expire, minimum] =
        ["refresh", "retry", "expire", "minimum"].map(|name| soa.duration(name));
    for (name, value) in [("refresh", refresh), ("retry", retry), ("expire", expire)] {
        complain_of_ttl(&soa, name, value);
    }
    complain_of_ttl(&soa, "minimum", minimum);
    Some(Soa {
        mname: mname?,
        rname: rname?,
        refresh: refresh?,
        retry: retry?,
        expire: expire?,
        minimum: minimum?,
    })
}

fn rate_limit(section: &Section<'_>) -> Option<Option<NonZeroU32>> {
    match section.item("rate_limit") {
        Some(item) if item.as_text().is_some() => item.word().map(|_off| None),
        Some(_) | None => section.count("rate_limit").map(NonZeroU32::new),
    }
}

fn rule(section: &Section<'_>) -> Option<VerdictRule> {
    let share = section.optional("healthy_above", |item| {
        let share = item.number()?;
        if share >= 1.0 {
            item.complain("no share is above 1", "write a smaller share, like 0.18");
        }
        Some(share)
    })?;
    Some(share.map_or(VerdictRule::Majority, VerdictRule::Above))
}

fn regions(item: &Item<'_>) -> Option<Regions> {
    let mut seen = BTreeMap::new();
    let mut read = |name: &str, value: &Item<'_>| -> Option<(String, Vec<Network>)> {
        let networks = policy::networks(value, &mut seen)?;
        Some((name.to_owned(), networks))
    };
    let all: Vec<Option<(String, Vec<Network>)>> =
        item.entries()?.iter().map(|(key, value)| read(key.get_ref(), value)).collect();
    all.into_iter().collect()
}

fn latencies(item: &Item<'_>) -> Option<Latencies> {
    let mut all = Some(BTreeMap::new());
    for (from, inner) in item.entries()? {
        let Some(entries) = inner.entries() else {
            all = None;
            continue;
        };
        for (to, value) in entries {
            let latency = value.duration();
            all = all.zip(latency).map(|(mut all, latency)| {
                all.insert((from.get_ref().to_string(), to.get_ref().to_string()), latency);
                all
            });
        }
    }
    all
}

fn records(section: &Section<'_>, around: &policy::Around<'_>) -> Option<Vec<Record>> {
    let mut seen = BTreeMap::new();
    let mut aliases = Vec::new();
    let mut records = Some(Vec::new());
    for item in section.item("records")?.list()? {
        let read = item.section().and_then(|section| {
            let mut reader = Reader::new(around, &section);
            let record = record(&section, &mut reader, &mut seen);
            aliases.append(&mut reader.aliases);
            record
        });
        records = records.zip(read).map(|(mut records, record)| {
            records.push(record);
            records
        });
    }
    complain_of_aliases(section.desk, &seen, &aliases);
    records
}

/// A record's name in small letters, and its type.
type RecordKey = (String, &'static str);

fn record<'t>(
    section: &Section<'t>,
    reader: &mut Reader<'_, 't>,
    seen: &mut BTreeMap<RecordKey, Span>,
) -> Option<Record> {
    let (name, kind) = (reader.name.clone(), reader.kind);
    let ttl = section.duration("ttl");
    complain_of_ttl(section, "ttl", ttl);
    let ttl_degraded = ttl_degraded(section, ttl);
    let policy = reader.policy(section, None, 0);
    let when_all_down = when_all_down(section, kind);
    if let (Some(name), Some(kind)) = (&name, kind)
        && let Some(first) = seen.insert((name.to_ascii_lowercase(), kind), section.span_of("name"))
    {
        section.desk.complain_with(
            section.span_of("name"),
            format!("there is a record {} of type {kind} already", quote(name)),
            "put all its `values` into one record",
            Some((first, "here".to_owned())),
        );
    }
    let (policy, check) = policy?;
    Some(Record {
        name: name?,
        kind: record_kind(kind?),
        policy,
        check,
        ttl: ttl?,
        ttl_degraded: ttl_degraded?,
        when_all_down: when_all_down?,
    })
}

pub(super) fn record_kind(word: &str) -> RecordKind {
    match word {
        "AAAA" => RecordKind::Aaaa,
        "CNAME" => RecordKind::Cname,
        "TXT" => RecordKind::Txt,
        _ => RecordKind::A,
    }
}

/// RFC 2181 8: a TTL has 31 bits.
fn complain_of_ttl(section: &Section<'_>, name: &'static str, ttl: Option<Duration>) {
    if ttl.is_some_and(|ttl| ttl.as_secs() > u64::from(u32::MAX >> 1)) {
        section.desk.complain(
            section.span_of(name),
            format!("`{name}` is out of range"),
            "write a duration of 68 years or less, like \"60s\"",
        );
    }
}

fn ttl_degraded(section: &Section<'_>, ttl: Option<Duration>) -> Option<Duration> {
    let written = section.optional("ttl_degraded", |item| item.duration())?;
    let ttl = ttl?;
    if written.is_some_and(|written| ttl < written) {
        section.desk.complain(
            section.span_of("ttl_degraded"),
            format!("`ttl_degraded` is longer than `ttl` ({})", show_duration(ttl)),
            "write less, or leave it out",
        );
    }
    let half = Duration::from_secs(ttl.as_secs() / 2);
    Some(written.unwrap_or_else(|| half.max(TTL_DEGRADED_MIN).min(ttl)))
}

fn when_all_down(section: &Section<'_>, kind: Option<&'static str>) -> Option<WhenAllDown> {
    let value = |item: &Item<'_>| item.parsed(|text| record_value(kind, text));
    let sorry = section.optional("sorry", |item| -> Option<Vec<RecordValue>> {
        let list = match item.is_list() {
            true => item.distinct(value),
            false => value(&item).map(|value| vec![value]),
        }?;
        if kind == Some("CNAME") && 1 < list.len() {
            item.complain("a CNAME has one value", "keep one");
        }
        Some(list)
    });
    let word = section.word("when_all_down")?;
    if word != "sorry" {
        section.refuse(
            &["sorry"],
            "goes with `when_all_down = \"sorry\"`",
            "write that too, or take it out",
        );
    } else if !section.has("sorry") {
        section.complain_of_missing("sorry");
        return None;
    }
    Some(match word {
        "closed" => WhenAllDown::Closed,
        "sorry" => WhenAllDown::Sorry(sorry??),
        _ => WhenAllDown::Open,
    })
}

/// Complains of aliases without a target, and of the first one that leads too far or in a circle.
fn complain_of_aliases(desk: &Desk<'_>, seen: &BTreeMap<RecordKey, Span>, aliases: &[Alias]) {
    for alias in aliases.iter().filter(|alias| !seen.contains_key(&alias.to)) {
        let (name, kind) = &alias.to;
        desk.complain_of_absence(
            alias.span.clone(),
            format!("there is no record {} of type {kind} in this zone", quote(name)),
            "name another record of the same type",
        );
    }
    // How many policies lie on the longest way from a record. One in a circle gets farther in each round.
    let mut heights: BTreeMap<&RecordKey, usize> = BTreeMap::new();
    for _ in 0..=POLICY_DEPTH_MAX {
        for alias in aliases {
            let height = alias.depth + 1 + heights.get(&alias.to).copied().unwrap_or(0);
            let longest = heights.entry(&alias.from).or_default();
            *longest = (*longest).max(height.min(POLICY_DEPTH_MAX + 1));
        }
    }
    let too_far = |alias: &&Alias| {
        POLICY_DEPTH_MAX < alias.depth + 1 + heights.get(&alias.to).copied().unwrap_or(0)
    };
    if let Some(alias) = aliases.iter().find(too_far) {
        desk.complain(
            alias.span.clone(),
            format!("this alias leads to itself, or over more than {POLICY_DEPTH_MAX} policies"),
            "name the record at the end of the way",
        );
    }
}
