//! Reads zones: `[dns."ZONE"]`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use outlast_core::topology::{Record, RecordKind, RecordPolicy, Zone};

use super::complaint::quote;
use super::desk::Span;
use super::item::Item;
use super::section::Section;
use super::together::Notes;
use super::words;

pub(super) fn zone(section: &Section<'_>, name: &str, notes: &mut Notes) -> Option<Zone> {
    let listen = section.optional("listen", |item| item.listen());
    let items = section.item("records").map(|item| item.list());
    let mut seen: BTreeMap<(String, &str), Span> = BTreeMap::new();
    let records: Option<Vec<Option<Record>>> = items
        .flatten()
        .map(|items| items.iter().map(|item| record(&item.section()?, &mut seen)).collect());
    if let Some(Some(address)) = listen {
        notes.listen_for_dns(address, format!("[dns.\"{name}\"]"), section.span_of("listen"));
    }
    Some(Zone { listen: listen?, records: records?.into_iter().collect::<Option<Vec<Record>>>()? })
}

fn record(section: &Section<'_>, seen: &mut BTreeMap<(String, &str), Span>) -> Option<Record> {
    let name = section.item("name").map(|item| item.parsed(words::record_name));
    let kind = section.item("type").map(|item| item.word());
    let kind = kind.flatten();
    let ttl = section.duration("ttl");
    let probe = section.optional("probe", |item| item.part());
    let policy = policy(section, kind);
    if let (Some(Some(name)), Some(kind)) = (&name, kind)
        && let Some(first) = seen.insert((name.to_ascii_lowercase(), kind), section.span_of("name"))
    {
        section.desk.complain_with(
            section.span_of("name"),
            format!("there is a record {} of type {kind} already", quote(name)),
            "put all its `values` into one record",
            Some((first, "here".to_owned())),
        );
    }
    // RFC 2181 8: a TTL has 31 bits.
    if ttl.is_some_and(|ttl| ttl.as_secs() > u64::from(u32::MAX >> 1)) {
        section.desk.complain(
            section.span_of("ttl"),
            "`ttl` is out of range",
            "write a duration of 68 years or less, like \"60s\"",
        );
    }
    Some(Record {
        name: name??,
        kind: record_kind(kind?),
        policy: policy?,
        ttl: ttl?,
        probe: probe?,
    })
}

fn record_kind(word: &str) -> RecordKind {
    match word {
        "AAAA" => RecordKind::Aaaa,
        "CNAME" => RecordKind::Cname,
        "TXT" => RecordKind::Txt,
        _ => RecordKind::A,
    }
}

fn policy(section: &Section<'_>, kind: Option<&'static str>) -> Option<RecordPolicy> {
    let of_kind = |item: &Item<'_>| item.parsed(|text| record_value(kind, text));
    let values = section.item("values").map(|item| (item.distinct(of_kind), item.span()));
    let [primary, secondary] =
        ["primary", "secondary"].map(|name| section.item(name).map(|item| of_kind(&item)));
    if section.word("policy")? == "failover" {
        section.refuse(
            &["values"],
            "goes with `policy = \"simple\"`",
            "write `primary` and `secondary`",
        );
        for name in ["primary", "secondary", "probe"] {
            if !section.has(name) {
                section.complain_of_missing(name);
            }
        }
        return Some(RecordPolicy::Failover { primary: primary??, secondary: secondary?? });
    }
    section.refuse(
        &["primary", "secondary"],
        "goes with `policy = \"failover\"`",
        "write that too, or use `values`",
    );
    let Some((values, span)) = values else {
        section.complain_of_missing("values");
        return None;
    };
    let values = values?;
    if kind == Some("CNAME") && values.len() > 1 {
        section.desk.complain(span, "a CNAME has one value", "keep one");
    }
    Some(RecordPolicy::Simple { values })
}

fn record_value(kind: Option<&'static str>, text: &str) -> Result<String, words::Fault> {
    let (fits, wanted) = match kind {
        Some("A") => (text.parse::<Ipv4Addr>().is_ok(), "an IPv4 address, like \"54.123.45.67\""),
        Some("AAAA") => (text.parse::<Ipv6Addr>().is_ok(), "an IPv6 address, like \"2001:db8::1\""),
        Some("CNAME") => (words::is_domain(text), "a name, like \"www.example.com\""),
        // One character-string of RFC 1035 3.3.
        Some(_) => (text.len() <= 255, "at most 255 bytes"),
        None => (true, ""),
    };
    if fits {
        return Ok(text.to_owned());
    }
    Err(words::Fault {
        message: format!(
            "{} cannot be the value of a record of type {}",
            quote(text),
            kind.unwrap_or("A")
        ),
        help: format!("write {wanted}"),
    })
}
