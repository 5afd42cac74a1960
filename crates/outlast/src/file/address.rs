//! Reads addresses that move: `[address.NAME]`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::{NonZeroI16, NonZeroU8, NonZeroU16};
use std::time::Duration;

use outlast_core::health::Thresholds;
use outlast_core::heartbeat::{self, Pace};
use outlast_core::topology::{
    Address, AddressMode, IPS_MAX, Network, Node, PartKind, PartRef, Peers, Pool, Postgres,
    Preempt, Service, SplitBrain, TRACKS_MAX, Track, Tracked, Vrrp, priorities_by_order,
};
use outlast_core::units::show_duration;
use outlast_core::vrrp::wire::Dialect;
use outlast_core::vrrp::{Interval, PRIORITY};

use super::Parts;
use super::complaint::quote;
use super::desk::Span;
use super::item::Item;
use super::names::listed;
use super::section::Section;
use super::shapes::HEARTBEAT;
use super::words;

/// The longest delay that keepalived knows.
const PREEMPT_DELAY_MAX: Duration = Duration::from_secs(1000);

/// Keys that say more of a virtual router.
const OF_ROUTER: [&str; 4] = ["advert", "unicast", "peers", "checksum"];

/// What addresses are read beside.
pub(super) struct Beside<'a, 't> {
    pub(super) nodes: &'a Parts<'t, Node>,
    pub(super) services: &'a Parts<'t, Service>,
    pub(super) postgres: &'a Parts<'t, Postgres>,
}

pub(super) fn read(section: &Section<'_>, beside: &Beside<'_, '_>) -> Option<Address> {
    let ips = ips(section);
    let interface = section.item("interface").map(|item| item.parsed(words::interface));
    let mode = section.word("mode");
    let follows = section.optional("follows", |item| follows(&item, beside));
    let nodes = nodes(section, follows.as_ref().map(Option::as_ref));
    let priorities = section.optional("priority", |item| priorities(&item, nodes.as_deref()));
    let preempt = preempt(section);
    let group = section.optional("group", |item| item.parsed(words::part_name));
    let track = section.optional("track", |item| track(&item));
    let vrrp = vrrp(section, ips.as_deref(), mode);
    let split_brain = split_brain(section, nodes.as_deref());
    complain_of_what_does_not_go_together(section, mode);
    let mode = match mode? {
        "vrrp" => AddressMode::Vrrp(vrrp??),
        _ => AddressMode::Lease {
            follows: follows?.map(|followed| followed.part),
            split_brain: split_brain?,
            announce: vrrp?,
        },
    };
    let nodes = nodes?;
    Some(Address {
        ips: ips?,
        interface: interface??,
        mode,
        priorities: priorities?.unwrap_or_else(|| priorities_by_order(&nodes)),
        nodes,
        preempt: preempt?,
        group: group?,
        track: track?.unwrap_or_default(),
    })
}

fn ips(section: &Section<'_>) -> Option<Vec<Network>> {
    let one = section.item("ip").map(|item| item.parsed(words::prefixed));
    let several = section.item("ips").map(|item| {
        let ips = item.distinct(|item| item.parsed(words::prefixed));
        if let Some(ips) = &ips
            && ips.len() > IPS_MAX
        {
            item.complain(
                format!("`ips` has {} addresses", ips.len()),
                format!("write at most {IPS_MAX}; more go into another address of one `group`"),
            );
        }
        ips
    });
    match (one, several) {
        (Some(one), None) => Some(vec![one?]),
        (None, Some(several)) => several,
        (Some(_), Some(_)) => {
            section.refuse(&["ips"], "cannot stand beside `ip`", "write all addresses there");
            None
        }
        (None, None) => {
            section.complain_of_missing("ip");
            None
        }
    }
}

/// A part that is followed.
struct Followed {
    part: PartRef,
    /// Where it can lead.
    nodes: Vec<String>,
    /// Other regions have other networks: an address may stay within one.
    in_regions: bool,
}

fn follows(item: &Item<'_>, beside: &Beside<'_, '_>) -> Option<Followed> {
    let part = item.part()?;
    if part.kind == PartKind::Postgres {
        let (.., postgres) = beside.postgres.good().find(|(name, ..)| *name == part.name)?;
        let (nodes, in_regions) = (postgres.nodes.clone(), postgres.home.is_some());
        return Some(Followed { part, nodes, in_regions });
    }
    let (.., service) = beside.services.good().find(|(name, ..)| *name == part.name)?;
    let Pool::Pair(pair) = &service.pool else {
        item.complain(
            format!("{part} has no active side: all its `backends` serve"),
            "name a service with `primary` and `backup`, or a postgres",
        );
        return None;
    };
    let mut nodes = Vec::new();
    for backend in [&pair.primary, &pair.backup] {
        let ip = backend.host.parse::<IpAddr>().ok();
        let at = beside.nodes.good().find(|(.., node)| Some(node.address) == ip);
        match at {
            Some((node, ..)) if nodes.iter().all(|other| other != node) => {
                nodes.push(node.to_owned());
            }
            Some((node, ..)) => {
                item.complain(
                    format!("both sides of {part} are on node {}", quote(node)),
                    "an address can follow a pair on two nodes only",
                );
                return None;
            }
            None => {
                item.complain(
                    format!("{} of {part} is on no node", quote(&backend.url)),
                    "write the `address` of a node in its URL, or let the address follow nothing",
                );
                return None;
            }
        }
    }
    Some(Followed { part, nodes, in_regions: false })
}

/// Those named; else those of the part that is followed; else all.
fn nodes(section: &Section<'_>, follows: Option<Option<&Followed>>) -> Option<Vec<String>> {
    let Some(Some(Followed { part, nodes: leading, in_regions })) = follows else {
        return section.nodes().filter(|_| follows.is_some());
    };
    if !section.has("nodes") {
        return Some(leading.clone());
    }
    let nodes = section.nodes()?;
    let lacking = leading.iter().find(|&node| !nodes.contains(node));
    if let Some(lacking) = lacking.filter(|_| !in_regions) {
        section.desk.complain(
            section.span_of("nodes"),
            format!("{part} can lead on node {}, which is not named here", quote(lacking)),
            "add it, or leave `nodes` out",
        );
    }
    if let Some(other) = nodes.iter().find(|&node| !leading.contains(node)) {
        section.desk.complain(
            section.span_of("nodes"),
            format!("{part} never leads on node {}", quote(other)),
            "take it out, or leave `nodes` out",
        );
    }
    Some(nodes)
}

fn priorities(item: &Item<'_>, nodes: Option<&[String]>) -> Option<BTreeMap<String, NonZeroU8>> {
    let read = |(key, value): (&str, Item<'_>)| {
        if nodes.is_some_and(|nodes| !nodes.iter().any(|node| node == key)) {
            value.complain(
                format!("the node {} is none of this address", quote(key)),
                "name one of its `nodes`, or take it out",
            );
            return None;
        }
        let priority = u8::try_from(value.count()?).ok().and_then(NonZeroU8::new)?;
        Some((key.to_owned(), priority))
    };
    let read: Vec<Option<(String, NonZeroU8)>> =
        item.entries()?.into_iter().map(|(key, value)| read((key.get_ref(), value))).collect();
    let mut named = read.into_iter().collect::<Option<BTreeMap<String, NonZeroU8>>>()?;
    for node in nodes? {
        named.entry(node.clone()).or_insert(PRIORITY);
    }
    Some(named)
}

fn preempt(section: &Section<'_>) -> Option<Preempt> {
    let preempt = section.switch("preempt");
    let delay = section.duration("preempt_delay");
    if delay.is_some_and(|delay| delay > PREEMPT_DELAY_MAX) {
        section.desk.complain(
            section.span_of("preempt_delay"),
            "`preempt_delay` is out of range",
            format!("write {} or less", show_duration(PREEMPT_DELAY_MAX)),
        );
    }
    if preempt == Some(false) {
        section.refuse(&["preempt_delay"], "goes with `preempt = true`", "write that too");
    }
    Some(if preempt? { Preempt::After(delay?) } else { Preempt::Never })
}

fn track(item: &Item<'_>) -> Option<Vec<Track>> {
    let items = item.some_list()?;
    if items.len() > TRACKS_MAX {
        item.complain(
            format!("`track` has {} entries", items.len()),
            format!("write at most {TRACKS_MAX}; one script can look at several things"),
        );
    }
    let tracks: Vec<Option<Track>> = items.iter().map(|item| tracked(&item.section()?)).collect();
    tracks.into_iter().collect()
}

fn tracked(section: &Section<'_>) -> Option<Track> {
    const WHAT: [&str; 3] = ["interface", "service", "script"];
    let there: Vec<&'static str> = WHAT.into_iter().filter(|name| section.has(name)).collect();
    let interface = section.optional("interface", |item| item.parsed(words::interface));
    let part = section.optional("service", |item| item.part());
    let script = script(section);
    let weight = section.optional("weight", |item| weight(&item));
    let what = match *there.as_slice() {
        ["interface"] => interface?.map(Tracked::Interface),
        ["service"] => part?.map(Tracked::Part),
        ["script"] => script,
        [] => {
            section.complain_of_none(
                &WHAT,
                "nothing is tracked here",
                "add interface = \"eth1\", service = \"service.NAME\" or script = \"/usr/bin/check\"",
            );
            return None;
        }
        [first, ref others @ ..] => {
            section.refuse(
                others,
                format!("cannot stand beside `{first}`"),
                "write a table of its own for it",
            );
            return None;
        }
    };
    if there != ["script"] {
        section.refuse(
            &["every", "timeout", "fall", "rise"],
            "goes with `script` only",
            "take it out",
        );
    }
    Some(Track { what: what?, weight: weight? })
}

fn script(section: &Section<'_>) -> Option<Tracked> {
    let command = section.item("script")?.command();
    let every = section.duration("every");
    let timeout = section.optional("timeout", |item| item.duration());
    let [fall, rise] = ["fall", "rise"].map(|name| section.count(name).and_then(NonZeroU16::new));
    let (every, timeout) = (every?, timeout?);
    if timeout.is_some_and(|timeout| timeout > every) {
        section.desk.complain(
            section.span_of("timeout"),
            format!("the timeout is longer than the interval ({})", show_duration(every)),
            format!("write {} or less, or a longer `every`", show_duration(every)),
        );
    }
    Some(Tracked::Script {
        command: command?,
        every,
        timeout: timeout.unwrap_or(every),
        thresholds: Thresholds { rise: rise?, fall: fall? },
    })
}

fn weight(item: &Item<'_>) -> Option<NonZeroI16> {
    let number = item.number()?;
    #[expect(clippy::cast_possible_truncation, reason = "the kind has a range")]
    let whole = number as i16;
    let weight = NonZeroI16::new(whole).filter(|_| f64::from(whole) == number);
    if weight.is_none() {
        let help = match whole {
            0 => "leave it out: then a node where this is down does not hold the address",
            _ => "write a whole number from -253 to 253",
        };
        item.complain(format!("`weight` cannot be {number}"), help);
    }
    weight
}

fn vrrp(
    section: &Section<'_>,
    ips: Option<&[Network]>,
    mode: Option<&'static str>,
) -> Option<Option<Vrrp>> {
    let id = section
        .optional("vrrp_id", |item| u8::try_from(item.count()?).ok().and_then(NonZeroU8::new));
    let advert = advert(section);
    let peers = peers(section);
    let checksum = section.word("checksum");
    if !section.has("vrrp_id") {
        if mode == Some("vrrp") {
            section.complain_of_missing("vrrp_id");
            return None;
        }
        if !section.is_misspelt("vrrp_id") {
            section.refuse(&OF_ROUTER, "goes with `vrrp_id`", "add that, or take it out");
        }
    } else if let Some(ips) = ips {
        complain_of_kinds(section, ips, mode);
    }
    let checksum = match checksum? {
        "with-pseudo-header" => Some(Dialect::PseudoHeader),
        "without" => Some(Dialect::MessageOnly),
        _ => None,
    };
    let Some(id) = id? else { return Some(None) };
    Some(Some(Vrrp { id, advert: advert?, peers: peers?, checksum }))
}

/// Complains of addresses that one advertisement cannot tell of.
fn complain_of_kinds(section: &Section<'_>, ips: &[Network], mode: Option<&'static str>) {
    let v4 = ips.iter().filter(|ip| ip.address.is_ipv4()).count();
    if v4 != 0 && v4 != ips.len() {
        section.desk.complain(
            section.span_of("ips"),
            "a virtual router has addresses of one kind, and these are IPv4 and IPv6",
            "write two parts in one `group`, one for each kind",
        );
    } else if let Some(Network { address: IpAddr::V6(first), .. }) = ips.first()
        && mode == Some("vrrp")
        && !first.is_unicast_link_local()
    {
        // RFC 9568 5.2.9.
        section.desk.complain(
            section.span_of(if section.has("ips") { "ips" } else { "ip" }),
            "the first IPv6 address of a virtual router is to be link-local",
            "write ips = [\"fe80::…/64\", …]",
        );
    } else if v4 == 0 {
        section.refuse(
            &["checksum"],
            "goes with IPv4 only",
            "take it out: for IPv6 there is one way",
        );
    }
}

fn advert(section: &Section<'_>) -> Option<Interval> {
    let advert = section.duration("advert")?;
    let centiseconds = advert.as_millis() / 10;
    let whole = advert == Duration::from_millis(10).saturating_mul(advert_count(advert));
    let interval = u16::try_from(centiseconds).ok().and_then(Interval::of_centiseconds);
    if interval.is_none() || !whole {
        section.desk.complain(
            section.span_of("advert"),
            format!("VRRP cannot say {}", show_duration(advert)),
            "write 10ms to 40.95s, in steps of 10ms",
        );
        return None;
    }
    interval
}

fn advert_count(advert: Duration) -> u32 {
    u32::try_from(advert.as_millis() / 10).unwrap_or(u32::MAX)
}

fn peers(section: &Section<'_>) -> Option<Peers> {
    let unicast = section.switch("unicast");
    let others = section.optional("peers", |item| item.distinct(Item::ip));
    if unicast == Some(false) {
        section.refuse(&["peers"], "goes with `unicast = true`", "write that too");
    }
    let others = others?.unwrap_or_default();
    Some(if unicast? { Peers::Unicast { others } } else { Peers::Multicast })
}

fn split_brain(section: &Section<'_>, nodes: Option<&[String]>) -> Option<SplitBrain> {
    let accepts = section.word("split_brain")? == "accept";
    let pace = section.inner("heartbeat", &HEARTBEAT).and_then(|section| pace(&section));
    let all = section.names.nodes.len();
    if accepts && nodes.is_some_and(|nodes| nodes.len() != 2 || all > 2) {
        let message = match all > 2 {
            true => "a third node can say who is cut off: nobody needs to accept two holders",
            false => "two holders are accepted of two nodes only",
        };
        section.desk.complain(section.span_of("split_brain"), message, "take `split_brain` out");
    }
    if !accepts {
        section.refuse(
            &["heartbeat"],
            "goes with `split_brain = \"accept\"`",
            "write that too, or take it out: an agreed lease has a time of its own",
        );
        return Some(SplitBrain::Refuse);
    }
    Some(SplitBrain::Accept(pace?))
}

fn pace(section: &Section<'_>) -> Option<Pace> {
    let (every, timeout) = (section.duration("every")?, section.duration("timeout")?);
    if !(heartbeat::EVERY_MIN..=heartbeat::TIMEOUT_MAX).contains(&every) {
        section.desk.complain(
            section.span_of("every"),
            "`every` is out of range",
            format!(
                "write {} or more, and no more than half of `timeout`",
                show_duration(heartbeat::EVERY_MIN)
            ),
        );
        return None;
    }
    if !(heartbeat::TIMEOUT_MIN..=heartbeat::TIMEOUT_MAX).contains(&timeout) {
        section.desk.complain(
            section.span_of("timeout"),
            "`timeout` is out of range",
            format!(
                "write {} to {}",
                show_duration(heartbeat::TIMEOUT_MIN),
                show_duration(heartbeat::TIMEOUT_MAX)
            ),
        );
        return None;
    }
    if timeout < every * 2 {
        section.desk.complain(
            section.span_of("timeout"),
            format!("one lost heartbeat of {} would be an outage", show_duration(every)),
            format!("write {} or more, or a shorter `every`", show_duration(every * 2)),
        );
        return None;
    }
    Some(Pace { every, timeout })
}

fn complain_of_what_does_not_go_together(section: &Section<'_>, mode: Option<&'static str>) {
    if mode == Some("vrrp") {
        section.refuse(
            &["follows", "split_brain", "heartbeat"],
            "goes with `mode = \"lease\"`",
            "take it out, or write that mode",
        );
    } else if section.has("follows") {
        section.refuse(
            &["priority", "preempt", "preempt_delay", "track", "split_brain", "heartbeat"],
            "cannot stand beside `follows`: who leads there holds the address",
            "take one of the two out",
        );
    }
}

/// Complains of addresses that move but are somebody's already, and of virtual routers with one number.
pub(super) fn complain_of_same(addresses: &Parts<'_, Address>, nodes: &Parts<'_, Node>) {
    let mut ips: BTreeMap<IpAddr, Span> = BTreeMap::new();
    let mut routers: BTreeMap<(&str, bool, NonZeroU8), Span> = BTreeMap::new();
    for (_, section, address) in addresses.good() {
        let desk = section.desk;
        for (nth, ip) in address.ips.iter().map(|ip| ip.address).enumerate() {
            let span = span_of_ip(section, nth);
            if let Some((node, ..)) = nodes.good().find(|(_, _, node)| node.address == ip) {
                desk.complain(
                    span.clone(),
                    format!("{ip} is the address of node {} itself", quote(node)),
                    "write an address that no machine has",
                );
            }
            if let Some(first) = ips.insert(ip, span.clone()) {
                let also = Some((first, "here".to_owned()));
                desk.complain_with(
                    span,
                    format!("another part has the address {ip} already"),
                    "write another address",
                    also,
                );
            }
        }
        complain_of_silence(section, address, nodes);
        let v4 = address.ips.iter().all(|ip| ip.address.is_ipv4());
        if let Some(id) = address.vrrp().map(|vrrp| vrrp.id)
            && let Some(first) =
                routers.insert((&address.interface, v4, id), section.span_of("vrrp_id"))
        {
            desk.complain_with(
                section.span_of("vrrp_id"),
                format!("another part has `vrrp_id` {id} on {} already", quote(&address.interface)),
                "write another number from 1 to 255",
                Some((first, "here".to_owned())),
            );
        }
    }
}

fn span_of_ip(section: &Section<'_>, nth: usize) -> Span {
    let Some(ips) = section.item("ips") else { return section.span_of("ip") };
    ips.list().and_then(|list| Some(list.get(nth)?.span())).unwrap_or(ips.span())
}

/// Complains of groups whose addresses cannot move together.
pub(super) fn complain_of_groups(addresses: &Parts<'_, Address>) {
    let mut groups: BTreeMap<&str, Vec<(&str, &Section<'_>, &Address)>> = BTreeMap::new();
    for (name, section, address) in addresses.good() {
        if let Some(group) = &address.group {
            groups.entry(group).or_default().push((name, section, address));
        }
    }
    // An address with a mistake in it may be the other one.
    let all_are_good = addresses.list.iter().all(|(.., address)| address.is_some());
    for (group, members) in groups {
        let Some(((name, first, with), others)) = members.split_first() else { continue };
        complain_of_equals(first, with);
        if others.is_empty() && all_are_good {
            first.desk.complain(
                first.span_of("group"),
                format!("no other address is in the group {}", quote(group)),
                "write the same group in another one, or take it out",
            );
        }
        for (_, section, address) in others {
            let different = different(with, address);
            if !different.is_empty() {
                section.desk.complain_with(
                    section.span_of("group"),
                    format!(
                        "this address cannot move together with [address.{name}]: {} differ",
                        listed(different.iter().copied())
                    ),
                    "write the same in both",
                    Some((first.span_of("group"), "here".to_owned())),
                );
            }
        }
    }
}

/// Complains of nodes between which nothing decides in each router of a group alike: among equal priorities the addresses
/// from which they speak would, and these are others in each of them.
fn complain_of_equals(section: &Section<'_>, address: &Address) {
    if !matches!(address.mode, AddressMode::Vrrp(_)) {
        return;
    }
    let mut known: BTreeMap<NonZeroU8, &str> = BTreeMap::new();
    for (node, priority) in &address.priorities {
        if let Some(other) = known.insert(*priority, node) {
            section.desk.complain(
                section.span_of("priority"),
                format!(
                    "nodes {} and {} have the same priority, which leaves open who holds a `group` of the mode vrrp",
                    quote(other),
                    quote(node)
                ),
                "give each node another one",
            );
        }
    }
}

/// Complains of nodes that would speak to nobody.
fn complain_of_silence(section: &Section<'_>, address: &Address, nodes: &Parts<'_, Node>) {
    let Some(Vrrp { peers: Peers::Unicast { others }, .. }) = address.vrrp() else { return };
    let v4 = address.ips.iter().all(|ip| ip.address.is_ipv4());
    let speaks_to = |name: &str, node: &str, ip: IpAddr| name != node && ip.is_ipv4() == v4;
    let is_silent = |node: &&String| {
        let is_peer = |other: &&String| {
            let known = nodes.good().find(|(name, ..)| name == *other);
            // One that cannot be read may be one.
            known.is_none_or(|(.., known)| speaks_to(other, node, known.address))
        };
        !address.nodes.iter().any(|other| is_peer(&other))
            && !others.iter().any(|ip| ip.is_ipv4() == v4)
    };
    if let Some(node) = address.nodes.iter().find(is_silent) {
        section.desk.complain(
            section.span_of("unicast"),
            format!(
                "node {} would speak to nobody: none of the other `nodes` has an address of {}, and `peers` names none",
                quote(node),
                if v4 { "IPv4" } else { "IPv6" }
            ),
            "name one in `peers`, or take `unicast` out",
        );
    }
}

/// What decides who holds an address, and is not the same for both.
fn different(one: &Address, other: &Address) -> Vec<&'static str> {
    let nodes = |address: &Address| -> BTreeSet<String> { address.nodes.iter().cloned().collect() };
    let is_vrrp = |address: &Address| matches!(address.mode, AddressMode::Vrrp(_));
    let accepts = |address: &Address| address.pair().is_some();
    let advert = |address: &Address| match &address.mode {
        AddressMode::Lease { .. } => None,
        AddressMode::Vrrp(vrrp) => Some(vrrp.advert),
    };
    [
        ("nodes", nodes(one) == nodes(other)),
        ("mode", is_vrrp(one) == is_vrrp(other)),
        ("follows", one.follows() == other.follows()),
        ("priority", nodes(one) != nodes(other) || one.priorities == other.priorities),
        ("preempt", one.preempt == other.preempt),
        ("split_brain", accepts(one) == accepts(other)),
        ("heartbeat", accepts(one) != accepts(other) || one.pair() == other.pair()),
        ("advert", is_vrrp(one) != is_vrrp(other) || advert(one) == advert(other)),
    ]
    .into_iter()
    .filter_map(|(key, same)| (!same).then_some(key))
    .collect()
}
