//! Reads the tree of policies of one record.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use outlast_core::topology::{
    Branch, Check, ENTRIES_MAX, Endpoint, Entry, Failback, HealthCheck, HttpTarget, Network,
    PartRef, Policy, Probe, RecordValue, ValueProbe,
};

use super::RecordKey;
use crate::file::complaint::quote;
use crate::file::desk::Span;
use crate::file::item::Item;
use crate::file::names::listed;
use crate::file::probe::{self, Subject};
use crate::file::section::Section;
use crate::file::shape::Kind;
use crate::file::shapes;
use crate::file::words;

/// How deep policies may be written in each other.
const NESTING_MAX: usize = 4;

/// A depth at which no policies may be written at all.
const VALUES_ONLY: usize = usize::MAX;

/// Where a value is asked over HTTP.
const HTTP_PORT: NonZeroU16 = NonZeroU16::new(80).expect("it is not zero");

/// An alias, wherever it lies in a record.
#[derive(Debug)]
pub(super) struct Alias {
    pub(super) from: RecordKey,
    pub(super) to: RecordKey,
    pub(super) span: Span,
    /// How many policies it lies in.
    pub(super) depth: usize,
}

/// What a zone says for all of its records, and what stands beside it.
pub(super) struct Around<'a> {
    pub(super) zone: &'a str,
    pub(super) known_regions: Option<&'a BTreeSet<String>>,
    pub(super) regions: Option<&'a BTreeMap<String, Vec<Network>>>,
    /// How many values a name has to have that follows a part; `None`: it has no place that could be followed.
    pub(super) followed: BTreeMap<String, Option<usize>>,
}

/// Reads one record.
pub(super) struct Reader<'a, 't> {
    zone: &'a str,
    pub(super) name: Option<String>,
    pub(super) kind: Option<&'static str>,
    known_regions: Option<&'a BTreeSet<String>>,
    regions: Option<&'a BTreeMap<String, Vec<Network>>>,
    followed: &'a BTreeMap<String, Option<usize>>,
    pub(super) aliases: Vec<Alias>,
    /// By their ids: two different ones of one value cannot be told apart.
    probes: BTreeMap<String, Probe>,
    section: Section<'t>,
}

/// What decides on the health of a value that is not read yet.
#[derive(Clone, Debug)]
pub(super) enum Judge {
    Part(PartRef),
    Calculated {
        at_least: NonZeroU16,
        of: Vec<PartRef>,
        invert: bool,
    },
    /// Each value is asked.
    Value {
        probe: Box<Probe>,
        port: NonZeroU16,
        span: Span,
    },
}

impl Judge {
    fn is_of_value(&self) -> bool {
        matches!(self, Judge::Value { .. })
    }
}

/// What an entry of a policy says of itself.
struct Written<'t> {
    entry: Entry,
    /// `None`: a plain value.
    section: Option<Section<'t>>,
    span: Span,
}

impl<'a, 't> Reader<'a, 't> {
    pub(super) fn new(around: &'a Around<'a>, section: &Section<'t>) -> Reader<'a, 't> {
        let Around { zone, known_regions, regions, followed } = around;
        let (known_regions, regions) = (*known_regions, *regions);
        Reader {
            zone,
            followed,
            name: section.item("name").and_then(|item| item.parsed(words::record_name)),
            kind: section.item("type").and_then(|item| item.word()),
            known_regions,
            regions,
            aliases: Vec::new(),
            probes: BTreeMap::new(),
            section: *section,
        }
    }

    /// The policy of a record or of an inner table, and what is checked beside what is in it.
    pub(super) fn policy(
        &mut self,
        section: &Section<'t>,
        inherited: Option<&Judge>,
        depth: usize,
    ) -> Option<(Policy, Option<HealthCheck>)> {
        let word = section.word("policy");
        let follows = if depth == 0 { section.item("follows") } else { None };
        if let Some(item) = follows {
            return self.following(section, &item, word, depth).map(|policy| (policy, None));
        }
        let own = section.optional("probe", |item| judge(&item));
        let failback = failback(section);
        let evaluate = section.switch("evaluate");
        refuse_keys_of_others(section, word);
        let own = own?;
        let of_values = own.as_ref().filter(|own| own.is_of_value()).or(inherited);
        let mut policy = match word? {
            "failover" => {
                self.failover(section, of_values, own.is_some(), depth).and_then(|entries| {
                    let (failback, follows) = (failback?, None);
                    Some(Policy::Failover { entries, failback, follows })
                })
            }
            "weighted" => self.weighted(section, of_values, depth),
            "multivalue" => self.endpoints(section, of_values, true).map(Policy::Multivalue),
            "latency" => self.latency(section, of_values, depth),
            "geo" => self.geo(section, of_values, depth),
            "alias" => self.alias(section, evaluate, depth),
            _ => self.endpoints(section, of_values, false).map(Policy::Simple),
        }?;
        let Some(own) = own.filter(|own| !own.is_of_value()) else { return Some((policy, None)) };
        let check = Some(own.shared());
        if let Policy::Failover { entries, .. } = &mut policy
            && let Some(first) = entries.first_mut()
            && first.check.is_none()
        {
            first.check = check;
            return Some((policy, None));
        }
        Some((policy, check))
    }

    /// A failover policy that goes by where a part is.
    fn following(
        &mut self,
        section: &Section<'t>,
        item: &Item<'t>,
        word: Option<&'static str>,
        depth: usize,
    ) -> Option<Policy> {
        const DECIDES: &str = "cannot stand beside `follows`: where that is decides";
        section.refuse(&["probe", "failback"], DECIDES, "keep one of the two");
        if word.is_some_and(|word| word != "failover") {
            section.refuse(
                &["follows"],
                "goes with `policy = \"failover\"`",
                "write that, or take it out",
            );
            return None;
        }
        let part = item.part()?;
        let entries = self.failover(section, None, true, depth)?;
        match self.followed.get(&part.to_string())? {
            None => {
                item.complain(
                    format!("{part} has no place that a name could follow"),
                    "name a service with `primary` and `backup`, a postgres, or an address of mode lease",
                );
                None
            }
            Some(count) if *count != entries.len() => {
                item.complain(
                    format!("{part} can be in {count} places, and there are {} values", entries.len()),
                    "write one value for each: of a pair the primary's first, else in the order of its `nodes`",
                );
                None
            }
            Some(_) => {
                Some(Policy::Failover { entries, failback: Failback::Manual, follows: Some(part) })
            }
        }
    }

    fn failover(
        &mut self,
        section: &Section<'t>,
        of_values: Option<&Judge>,
        has_probe: bool,
        depth: usize,
    ) -> Option<Vec<Entry>> {
        let written = if section.has("values") {
            section.refuse(
                &["primary", "secondary"],
                "cannot stand beside `values`",
                "write all there, the primary first",
            );
            let written = self.values(section, of_values, depth)?;
            if written.len() < 2 {
                section.desk.complain(
                    section.span_of("values"),
                    "a failover needs a second value",
                    "write one, or another `policy`",
                );
            }
            written
        } else {
            let both = ["primary", "secondary"].map(|name| match section.item(name) {
                Some(item) => self.entry(&item, of_values, depth),
                None => {
                    section.complain_of_missing(name);
                    None
                }
            });
            let [primary, secondary] = both;
            let written = primary.zip(secondary).map(|(one, other)| vec![one, other]);
            if written.is_none() && !has_probe && !section.has("probe") {
                self.complain_of_missing_probe(section);
            }
            let written = written?;
            complain_of_twice(section, &written);
            written
        };
        let first = written.first()?;
        let judged = match &first.entry.what {
            Branch::Value(_) => first.entry.check.is_some() || has_probe,
            Branch::Policy(_) => true,
        };
        if !judged {
            self.complain_of_missing_probe(section);
        }
        Some(written.into_iter().map(|written| written.entry).collect())
    }

    fn complain_of_missing_probe(&self, section: &Section<'t>) {
        let plain = |name| section.item(name).is_none_or(|item| item.as_text().is_some());
        if plain("primary") {
            section.complain_of_missing("probe");
        }
    }

    fn weighted(
        &mut self,
        section: &Section<'t>,
        of_values: Option<&Judge>,
        depth: usize,
    ) -> Option<Policy> {
        let written = self.values(section, of_values, depth)?;
        let entries: Vec<Option<(u16, Entry)>> = written
            .into_iter()
            .map(|Written { entry, section, .. }| {
                let weight = section.map_or(Some(1), |section| section.count("weight"));
                Some((weight?, entry))
            })
            .collect();
        Some(Policy::Weighted(entries.into_iter().collect::<Option<_>>()?))
    }

    fn latency(
        &mut self,
        section: &Section<'t>,
        of_values: Option<&Judge>,
        depth: usize,
    ) -> Option<Policy> {
        let mut seen: BTreeMap<String, Span> = BTreeMap::new();
        let mut entries = Some(Vec::new());
        for written in self.values(section, of_values, depth)? {
            let region = self.region(&written);
            if let Some(region) = &region
                && let Some(first) = seen.insert(region.clone(), written.span.clone())
            {
                section.desk.complain_with(
                    written.span.clone(),
                    format!("another one is in the region {} already", quote(region)),
                    "put both into one inner policy, like { region = …, policy = \"weighted\", values = … }",
                    Some((first, "here".to_owned())),
                );
            }
            entries = entries.zip(region).map(|(mut entries, region)| {
                entries.push((region, written.entry));
                entries
            });
        }
        entries.map(Policy::Latency)
    }

    /// The region of an entry that must have one.
    fn region(&self, written: &Written<'t>) -> Option<String> {
        let item = written.section.as_ref().and_then(|section| section.item("region"));
        let Some(item) = item else {
            self.section.desk.complain_of_absence(
                written.span.clone(),
                "this does not say in which region it is",
                "write it as { value = …, region = \"eu-west\" }",
            );
            return None;
        };
        let region = item.text()?;
        let known = self.known_regions?;
        if !known.contains(region) {
            let help = match item.near(region, known.iter().map(String::as_str)) {
                Some(near) => format!("write \"{near}\""),
                None if known.is_empty() => {
                    "name the networks of its clients in `regions` of the zone".to_owned()
                }
                None => format!("name one of {}", listed(known.iter().map(String::as_str))),
            };
            item.complain(format!("there is no region {}", quote(region)), help);
            return None;
        }
        Some(region.to_owned())
    }

    fn geo(
        &mut self,
        section: &Section<'t>,
        of_values: Option<&Judge>,
        depth: usize,
    ) -> Option<Policy> {
        let default = match section.item("default") {
            Some(item) => self.entry(&item, of_values, depth),
            None => {
                section.complain_of_missing("default");
                None
            }
        };
        let mut seen = BTreeMap::new();
        let mut entries = Some(Vec::new());
        for written in self.values(section, of_values, depth)? {
            let networks = self.networks(&written, &mut seen);
            entries = entries.zip(networks).map(|(mut entries, networks)| {
                entries.push((networks, written.entry));
                entries
            });
        }
        Some(Policy::Geo { entries: entries?, default: Box::new(default?.entry) })
    }

    /// The networks of an entry: its own, or those of its region.
    fn networks(
        &self,
        written: &Written<'t>,
        seen: &mut BTreeMap<String, Span>,
    ) -> Option<Vec<Network>> {
        let Some(item) = written.section.and_then(|section| section.item("networks")) else {
            let region = self.region(written)?;
            let of_region = self.regions.and_then(|regions| regions.get(&region));
            if of_region.is_none() {
                self.section.desk.complain(
                    written.span.clone(),
                    format!("the region {} has no networks", quote(&region)),
                    "name them in `regions` of the zone, or write `networks` here",
                );
            }
            let of_region = of_region?.clone();
            for network in &of_region {
                let shown = format!("{}/{}", network.address, network.prefix);
                if let Some(first) = seen.insert(shown.clone(), written.span.clone()) {
                    complain_of_network(&self.section, written.span.clone(), &shown, first);
                }
            }
            return Some(of_region);
        };
        if let Some(section) = &written.section {
            section.refuse(&["region"], "cannot stand beside `networks`", "keep one of the two");
        }
        networks(&item, seen)
    }

    fn alias(
        &mut self,
        section: &Section<'t>,
        evaluate: Option<bool>,
        depth: usize,
    ) -> Option<Policy> {
        let Some(item) = section.item("target") else {
            section.complain_of_missing("target");
            return None;
        };
        let target = item.parsed(words::record_name)?;
        if let (Some(from), Some(kind)) = (&self.name, self.kind) {
            self.aliases.push(Alias {
                from: (from.to_ascii_lowercase(), kind),
                to: (target.to_ascii_lowercase(), kind),
                span: item.span(),
                depth,
            });
        }
        Some(Policy::Alias { target, evaluate: evaluate? })
    }

    /// Values that have no inner policies.
    fn endpoints(
        &mut self,
        section: &Section<'t>,
        of_values: Option<&Judge>,
        several: bool,
    ) -> Option<Vec<Endpoint>> {
        let written = self.values(section, of_values, VALUES_ONLY)?;
        if self.kind == Some("CNAME") && (several || written.len() > 1) {
            section.desk.complain(section.span_of("values"), "a CNAME has one value", "keep one");
        }
        let endpoint = |Written { entry, .. }: Written<'t>| match entry.what {
            Branch::Value(value) => Some(Endpoint { value, check: entry.check }),
            Branch::Policy(_) => None,
        };
        written.into_iter().map(endpoint).collect()
    }

    /// The entries of `values`, no two of which are the same.
    fn values(
        &mut self,
        section: &Section<'t>,
        of_values: Option<&Judge>,
        depth: usize,
    ) -> Option<Vec<Written<'t>>> {
        let Some(item) = section.item("values") else {
            section.complain_of_missing("values");
            return None;
        };
        let items = item.some_list()?;
        if items.len() > ENTRIES_MAX {
            item.complain(
                format!("`values` has {} entries", items.len()),
                format!("write at most {ENTRIES_MAX}"),
            );
            return None;
        }
        let written: Vec<Option<Written<'t>>> =
            items.iter().map(|item| self.entry(item, of_values, depth)).collect();
        let written = written.into_iter().collect::<Option<Vec<_>>>()?;
        complain_of_twice(section, &written);
        Some(written)
    }

    /// A plain value, a table with one, or an inner policy.
    fn entry(
        &mut self,
        item: &Item<'t>,
        of_values: Option<&Judge>,
        depth: usize,
    ) -> Option<Written<'t>> {
        let span = item.span();
        if item.as_text().is_some() {
            let value = self.value(item)?;
            let check = of_values.map(|judge| self.check(judge, &value));
            let entry = Entry { what: Branch::Value(value), check };
            return Some(Written { entry, section: None, span });
        }
        let section = item.section()?;
        if !section.has("value") && !section.has("policy") {
            section.complain_of_none(
                &["value", "policy"],
                "there is neither a value nor a policy here",
                "add `value`, or `policy` and its values",
            );
            return None;
        }
        let entry = if section.has("value") {
            section.refuse(
                &["policy", "values", "primary", "secondary", "default", "target", "evaluate"],
                "cannot stand beside `value`",
                "write a table of its own for it",
            );
            section.refuse(&["failback"], "goes with `policy = \"failover\"`", "take it out");
            let own = section.optional("probe", |item| judge(&item));
            let value = self.value(&section.item("value")?);
            let (own, value) = (own?, value?);
            let judge = own.as_ref().or(of_values);
            let check = judge.map(|judge| self.check(judge, &value));
            Entry { what: Branch::Value(value), check }
        } else {
            if depth >= NESTING_MAX {
                let message = match depth {
                    VALUES_ONLY => "an inner policy cannot stand here".to_owned(),
                    _ => format!("policies lie in each other more than {NESTING_MAX} deep"),
                };
                let help = match depth {
                    VALUES_ONLY => "write its values, or `policy = \"weighted\"` outside",
                    _ => "make a record of the inner one, and an alias to it",
                };
                item.complain(message, help);
                return None;
            }
            let (policy, check) = self.policy(&section, of_values, depth + 1)?;
            Entry { what: Branch::Policy(policy), check }
        };
        Some(Written { entry, section: Some(section), span })
    }

    fn value(&self, item: &Item<'t>) -> Option<RecordValue> {
        item.parsed(|text| record_value(self.kind, text))
    }

    fn check(&mut self, judge: &Judge, value: &RecordValue) -> HealthCheck {
        let Judge::Value { probe, port, span } = judge else { return judge.shared() };
        let name = match self.name.as_deref() {
            Some("@") | None => self.zone.to_owned(),
            Some(name) => format!("{name}.{}", self.zone),
        };
        let host = match value {
            RecordValue::A(ip) => ip.to_string(),
            RecordValue::Aaaa(ip) => ip.to_string(),
            RecordValue::Cname(name) => name.trim_end_matches('.').to_owned(),
            RecordValue::Txt(text) => {
                self.section.desk.complain(
                    span.clone(),
                    format!("nobody can be asked at the text {}", quote(text)),
                    "name a part instead, like probe = \"service.NAME\"",
                );
                text.clone()
            }
        };
        let id = format!("{name} {} {host}:{port}", self.kind.unwrap_or_default());
        if let Some(other) = self.probes.insert(id.clone(), Probe::clone(probe))
            && other != **probe
        {
            self.section.desk.complain(
                span.clone(),
                format!("{host} has another probe at port {port} in this record already"),
                "write the same in both places",
            );
        }
        let probe = ValueProbe { id, host, port: *port, probe: Probe::clone(probe) };
        HealthCheck::Value(Box::new(probe))
    }
}

impl Judge {
    /// The check where it is about something else than one value.
    fn shared(&self) -> HealthCheck {
        match self {
            Judge::Part(part) => HealthCheck::Part(part.clone()),
            Judge::Calculated { at_least, of, invert } => {
                HealthCheck::Calculated { at_least: *at_least, of: of.clone(), invert: *invert }
            }
            Judge::Value { .. } => unreachable!("the caller makes a check of each value"),
        }
    }
}

/// Complains of keys that belong to another policy.
fn refuse_keys_of_others(section: &Section<'_>, word: Option<&'static str>) {
    let Some(word) = word else { return };
    const SIMPLE: &str = "write that too, or use `values`";
    for (keys, of, help) in [
        (&["primary", "secondary", "failback"] as &[&'static str], "failover", SIMPLE),
        (&["default"], "geo", SIMPLE),
        (&["target", "evaluate"], "alias", "write that too, or take it out"),
    ] {
        if word != of {
            section.refuse(keys, format!("goes with `policy = \"{of}\"`"), help);
        }
    }
    if word == "alias" {
        section.refuse(&["values"], "cannot stand beside a `target`", "keep one of the two");
    }
    for item in section.item("values").and_then(|item| items_of(&item)).into_iter().flatten() {
        let has =
            |name: &str| item.value.get_ref().as_table().is_some_and(|t| t.contains_key(name));
        for (key, fits, of) in [
            ("weight", word == "weighted", "\"weighted\""),
            ("region", matches!(word, "latency" | "geo"), "\"latency\" or \"geo\""),
            ("networks", word == "geo", "\"geo\""),
        ] {
            if has(key) && !fits {
                item.complain(
                    format!("`{key}` goes with `policy = {of}`"),
                    "write that in what holds `values`, or take it out",
                );
            }
        }
    }
}

/// The items of a list, without complaints.
fn items_of<'t>(item: &Item<'t>) -> Option<Vec<Item<'t>>> {
    let kind = item.kind.alternatives().iter().find_map(Kind::of_items)?;
    let array = item.value.get_ref().as_array()?;
    Some(array.iter().take(ENTRIES_MAX).map(|value| Item { value, kind, ..*item }).collect())
}

fn complain_of_twice(section: &Section<'_>, written: &[Written<'_>]) {
    let mut seen: BTreeMap<String, Span> = BTreeMap::new();
    for Written { entry, span, .. } in written {
        let label = entry.label();
        if let Some(first) = seen.insert(label.clone(), span.clone()) {
            section.desk.complain_with(
                span.clone(),
                format!("{} is there twice", quote(&label)),
                "take one of the two out",
                Some((first, "here first".to_owned())),
            );
        }
    }
}

/// Networks, none of which was seen before.
pub(super) fn networks(item: &Item<'_>, seen: &mut BTreeMap<String, Span>) -> Option<Vec<Network>> {
    let mut all = Some(Vec::new());
    for item in item.some_list()? {
        let network = item.network();
        if let Some(network) = network {
            let shown = format!("{}/{}", network.address, network.prefix);
            if let Some(first) = seen.insert(shown.clone(), item.span()) {
                item.desk.complain_with(
                    item.span(),
                    format!("the network {shown} is there already"),
                    "take one of the two out",
                    Some((first, "here".to_owned())),
                );
            }
        }
        all = all.zip(network).map(|(mut all, network)| {
            all.push(network);
            all
        });
    }
    all
}

fn complain_of_network(section: &Section<'_>, span: Span, shown: &str, first: Span) {
    section.desk.complain_with(
        span,
        format!("the network {shown} is there already"),
        "take one of the two out",
        Some((first, "here".to_owned())),
    );
}

fn failback(section: &Section<'_>) -> Option<Failback> {
    match section.item("failback") {
        Some(item) if item.as_text().is_some() => item.word().map(|_manual| Failback::Manual),
        Some(item) => item.section()?.duration("after").map(Failback::After),
        None => section.absent(&shapes::FAILBACK).duration("after").map(Failback::After),
    }
}

fn judge(item: &Item<'_>) -> Option<Judge> {
    if item.as_text().is_some() {
        return item.part().map(Judge::Part);
    }
    let section = item.section()?;
    if section.has("of") {
        return calculated(&section);
    }
    section.refuse(&["at_least", "invert"], "goes with `of`", "name the parts that are counted");
    let probe = probe::read(&section, &Subject::Backend)?;
    let port: Option<u16> = match section.has("port") {
        true => Some(section.count("port")?),
        false => None,
    };
    let asks_value = match &probe.check {
        Check::Http(check) => matches!(check.target, HttpTarget::Path(_)),
        Check::Tcp { address } => address.is_none(),
        Check::Grpc { address, .. } => address.is_none(),
        Check::Command(_) => false,
    };
    let has_port = port.is_some() || matches!(probe.check, Check::Http(_));
    if asks_value && !has_port {
        section.complain_of_missing("port");
        return None;
    }
    let port = port.and_then(NonZeroU16::new).unwrap_or(HTTP_PORT);
    Some(Judge::Value { probe: Box::new(probe), port, span: item.span() })
}

fn calculated(section: &Section<'_>) -> Option<Judge> {
    const OF_PROBE: [&str; 16] = [
        "http", "tcp", "command", "grpc", "address", "port", "every", "timeout", "fall", "rise",
        "delay", "status", "body", "headers", "method", "tls",
    ];
    section.refuse(&OF_PROBE, "cannot stand beside `of`", "keep one of the two");
    let of = section.item("of")?.distinct(Item::part);
    let at_least = section.count("at_least").and_then(NonZeroU16::new);
    let invert = section.switch("invert");
    if let (Some(of), Some(at_least)) = (&of, at_least)
        && usize::from(at_least.get()) > of.len()
    {
        section.desk.complain(
            section.span_of("at_least"),
            format!("`at_least` can never be met: `of` names {}", of.len()),
            format!("write at most {}, or name more", of.len()),
        );
    }
    Some(Judge::Calculated { at_least: at_least?, of: of?, invert: invert? })
}

pub(super) fn record_value(
    kind: Option<&'static str>,
    text: &str,
) -> Result<RecordValue, words::Fault> {
    let (value, wanted) = match kind {
        Some("A") | None => (
            text.parse::<Ipv4Addr>().ok().map(RecordValue::A),
            "an IPv4 address, like \"54.123.45.67\"",
        ),
        Some("AAAA") => (
            text.parse::<Ipv6Addr>().ok().map(RecordValue::Aaaa),
            "an IPv6 address, like \"2001:db8::1\"",
        ),
        Some("CNAME") => (
            words::is_domain(text).then(|| RecordValue::Cname(text.to_owned())),
            "a name, like \"www.example.com\"",
        ),
        // One character-string of RFC 1035 3.3.
        Some(_) => {
            ((text.len() <= 255).then(|| RecordValue::Txt(text.to_owned())), "at most 255 bytes")
        }
    };
    match (value, kind) {
        (Some(value), _) => Ok(value),
        // The type has a mistake of its own: any text will do.
        (None, None) => Ok(RecordValue::Txt(text.to_owned())),
        (None, Some(kind)) => Err(words::Fault {
            message: format!("{} cannot be the value of a record of type {kind}", quote(text)),
            help: format!("write {wanted}"),
        }),
    }
}
