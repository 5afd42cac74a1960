//! Reads `[service.NAME]`.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};

use outlast_core::topology::{
    Backend, Balance, Check, Eject, Failback, Forwarded, HashKey, Limits, Pair, PartKind, PartRef,
    Pool, Protocol, ProxyProtocol, ProxyVersion, Retry, RetryOn, Service, Standby, Timeouts,
    TlsFiles,
};

use super::complaint::quote;
use super::desk::Span;
use super::item::Item;
use super::probe::{self, Subject};
use super::section::Section;
use super::shapes;
use super::together::Notes;
use super::words;

pub(super) fn read(section: &Section<'_>, name: &str, notes: &mut Notes) -> Option<Service> {
    let listen = section.optional("listen", |item| item.listen());
    let backends = backends(section);
    let protocol = protocol(section, backends.as_ref());
    let tls = section.optional("tls", certificates);
    let pool = pool(section, backends.as_ref(), protocol);
    let probe = match section.item("probe") {
        Some(item) => item.section().and_then(|section| probe::read(&section, &Subject::Backend)),
        None => default_probe(section),
    };
    let retry = section.inner("retry", &shapes::RETRY).and_then(|section| retry(&section));
    let eject = eject(section);
    let timeouts = section.inner("timeouts", &shapes::TIMEOUTS).and_then(|s| timeouts(&s));
    let limits = section.inner("limits", &shapes::SERVICE_LIMITS).and_then(|s| limits(&s));
    let panic = match section.item("panic") {
        Some(item) if item.as_text().is_some() => item.word().map(|_off| None),
        Some(_) | None => section.number("panic").map(Some),
    };
    let slow_start = section.duration("slow_start");
    let forwarded = section.word("forwarded");
    let trusted = section.optional("trusted", |item| item.distinct(|item| item.network()));
    let proxy_protocol =
        section.inner("proxy_protocol", &shapes::PROXY_PROTOCOL).and_then(|s| proxy_protocol(&s));
    let me = PartRef { kind: PartKind::Service, name: name.to_owned() };
    let needs = section.parts("needs");
    let (may_use, may_use_is_whole) = section.parts("may_use");
    refuse_both(section, &needs.0, &may_use);
    let needs = notes.needs(me, needs);
    let at_least = section.count("at_least").and_then(NonZeroU16::new);
    check_at_least(section, at_least, pool.as_ref());
    let reliability = section.reliability();
    let critical = section.switch("critical");
    if proxy_protocol.is_some_and(|proxy| proxy.accept) && !section.has("trusted") {
        section.desk.complain_of_absence(
            section.span_of("proxy_protocol"),
            "nobody is trusted to send the PROXY protocol",
            "add the networks of those who send it: trusted = [\"10.0.0.0/8\"]",
        );
    }
    if let Some(Some(address)) = listen {
        notes.listen(address, format!("[service.{name}]"), section.span_of("listen"), None);
    }
    Some(Service {
        listen: listen?,
        protocol: protocol?,
        tls: tls?.unwrap_or_default(),
        pool: pool?,
        probe: probe?,
        retry: retry?,
        eject: eject?,
        timeouts: timeouts?,
        limits: limits?,
        panic: panic?,
        slow_start: slow_start?,
        forwarded: match forwarded? {
            "off" => Forwarded::Off,
            "rfc7239" => Forwarded::Forwarded,
            "both" => Forwarded::Both,
            _ => Forwarded::XForwarded,
        },
        trusted: trusted?.unwrap_or_default(),
        proxy_protocol: proxy_protocol?,
        needs: needs?,
        may_use: may_use_is_whole.then(|| may_use.into_iter().map(|(part, _)| part).collect())?,
        at_least: at_least?,
        reliability: reliability?,
        critical: critical?,
    })
}

/// The backends as they are written.
struct Backends {
    servers: Servers,
    /// Whether each is `tcp://`, and where it stands; bad ones are left out.
    seen: Vec<(bool, Span)>,
}

enum Servers {
    /// `None`: some of them are bad.
    Balanced(Option<Vec<Backend>>),
    Pair(Option<Backend>, Option<Backend>),
}

fn backends(section: &Section<'_>) -> Option<Backends> {
    let mut seen = Vec::new();
    let mut authorities: BTreeMap<String, Span> = BTreeMap::new();
    let mut read = |item: &Item<'_>| {
        let (backend, tcp) = item.parsed(words::backend)?;
        seen.push((tcp, item.span()));
        let authority = backend.authority().to_ascii_lowercase();
        if let Some(first) = authorities.get(&authority) {
            item.desk.complain_with(
                item.span(),
                format!("{} is named twice", quote(&authority)),
                "take one of the two out",
                Some((first.clone(), "here first".to_owned())),
            );
        }
        authorities.insert(authority, item.span());
        Some(backend)
    };
    let list = section.item("backends");
    let primary = section.item("primary");
    let backup = section.item("backup");
    let servers = match (list, primary, backup) {
        (Some(list), None, None) => {
            let items = list.some_list();
            let read: Option<Vec<Option<Backend>>> =
                items.map(|items| items.iter().map(&mut read).collect());
            Servers::Balanced(read.and_then(|backends| backends.into_iter().collect()))
        }
        (None, Some(primary), Some(backup)) => {
            let primary = read(&primary);
            Servers::Pair(primary, read(&backup))
        }
        (Some(_), ..) => {
            section.refuse(
                &["primary", "backup"],
                "cannot stand beside `backends`",
                "keep `backends` (all serve), or `primary` and `backup` (one serves, one waits)",
            );
            return None;
        }
        (None, Some(_), None) => {
            section.complain_of_missing("backup");
            return None;
        }
        (None, None, Some(_)) => {
            section.complain_of_missing("primary");
            return None;
        }
        (None, None, None) => {
            section.complain_of_none(
                &["backends", "primary", "backup"],
                "this service has no backends",
                "add backends = [\"http://10.0.0.1:3000\"], or `primary` and `backup`",
            );
            return None;
        }
    };
    Some(Backends { servers, seen })
}

fn protocol(section: &Section<'_>, backends: Option<&Backends>) -> Option<Protocol> {
    let word = section.optional("protocol", |item| item.word())?;
    let seen = backends.map(|backends| backends.seen.as_slice()).unwrap_or_default();
    let tcp = match word {
        Some(word) => word == "tcp",
        None => seen.first().is_some_and(|&(tcp, _)| tcp),
    };
    if let Some((_, span)) = seen.iter().find(|&&(other, _)| other != tcp) {
        let (message, help) = match (word, tcp) {
            (None, _) => (
                "a service has either HTTP or TCP backends",
                "begin all of them with tcp://, or none",
            ),
            (Some(_), true) => ("a TCP service has TCP backends", "begin it with tcp://"),
            (Some(_), false) => {
                ("an HTTP service has HTTP backends", "begin it with http:// or https://")
            }
        };
        section.desk.complain(span.clone(), message, help);
    }
    Some(if tcp { Protocol::Tcp } else { Protocol::Http })
}

fn pool(
    section: &Section<'_>,
    backends: Option<&Backends>,
    protocol: Option<Protocol>,
) -> Option<Pool> {
    let balance = balance(section, protocol);
    let standby = standby(section);
    let failback = failback(section);
    match &backends?.servers {
        Servers::Balanced(backends) => {
            section.refuse(
                &["standby", "start", "stop", "start_limit", "activate", "failback"],
                "goes with `primary` and `backup`",
                "take it out: with `backends` all serve",
            );
            Some(Pool::Balanced { backends: backends.clone()?, balance: balance? })
        }
        Servers::Pair(primary, backup) => {
            section.refuse(
                &["balance", "hash_on"],
                "goes with `backends`",
                "take it out: of `primary` and `backup` one serves",
            );
            Some(Pool::Pair(Pair {
                primary: primary.clone()?,
                backup: backup.clone()?,
                standby: standby?,
                failback: failback?,
            }))
        }
    }
}

fn balance(section: &Section<'_>, protocol: Option<Protocol>) -> Option<Balance> {
    let word = section.word("balance");
    let key = match section.item("hash_on") {
        Some(item) => item.parsed(words::hash_key),
        None => Some(HashKey::ClientIp),
    };
    if word.is_some_and(|word| word != "hash") {
        section.refuse(
            &["hash_on"],
            "goes with `balance = \"hash\"`",
            "write that too, or take it out",
        );
    }
    if protocol == Some(Protocol::Tcp) && key.as_ref().is_some_and(|key| *key != HashKey::ClientIp)
    {
        section.desk.complain(
            section.span_of("hash_on"),
            "TCP has no paths, headers or cookies",
            "write hash_on = \"ip\"",
        );
    }
    match word? {
        "random" => Some(Balance::Random),
        "least-requests" => Some(Balance::LeastRequests),
        "hash" => key.map(Balance::Hash),
        _ => Some(Balance::RoundRobin),
    }
}

fn standby(section: &Section<'_>) -> Option<Standby> {
    let word = section.word("standby");
    let start = section.optional("start", |item| item.command());
    let stop = section.optional("stop", |item| item.command());
    let start_limit = section.duration("start_limit");
    let activate = section.optional("activate", |item| item.command());
    let word = word?;
    if word != "cold" {
        section.refuse(
            &["start", "stop", "start_limit"],
            "goes with `standby = \"cold\"`",
            "write that too, or take it out",
        );
    }
    if word != "warm" {
        section.refuse(
            &["activate"],
            "goes with `standby = \"warm\"`",
            "write that too, or take it out",
        );
    }
    match word {
        "cold" => {
            if !section.has("start") {
                section.desk.complain_of_absence(
                    section.span_of("standby"),
                    "a cold standby needs a command that starts it",
                    "add it, like start = \"systemctl start billing\"",
                );
            }
            Some(Standby::Cold { start: start??, stop: stop?, start_limit: start_limit? })
        }
        "warm" => Some(Standby::Warm { activate: activate? }),
        _ => Some(Standby::Hot),
    }
}

fn failback(section: &Section<'_>) -> Option<Failback> {
    match section.item("failback") {
        Some(item) if item.as_text().is_some() => item.word().map(|_manual| Failback::Manual),
        Some(item) => item.section()?.duration("after").map(Failback::After),
        None => section.absent(&shapes::FAILBACK).duration("after").map(Failback::After),
    }
}

fn certificates(item: Item<'_>) -> Option<Vec<TlsFiles>> {
    let items = if item.is_list() { item.some_list()? } else { vec![item] };
    let files = |item: &Item<'_>| {
        let section = item.section()?;
        let cert = section.text("cert");
        let key = section.text("key");
        Some(TlsFiles { ca: None, cert: cert?, key: key? })
    };
    let read: Vec<Option<TlsFiles>> = items.iter().map(files).collect();
    read.into_iter().collect()
}

/// Of a service that says nothing: a TCP connect.
fn default_probe(section: &Section<'_>) -> Option<outlast_core::topology::Probe> {
    let defaults = section.absent(&shapes::SERVICE_PROBE);
    probe::read_with(&defaults, Some(Check::Tcp { address: None }))
}

fn retry(section: &Section<'_>) -> Option<Retry> {
    let attempts = section.count("attempts").and_then(NonZeroU16::new);
    let backoff = section.duration("backoff");
    let budget = section.number("budget");
    let try_timeout = section.duration("try_timeout");
    let on = match section.item("on") {
        Some(item) => item.distinct(|item| item.word()),
        None => Some(shapes::RETRY_ON.to_vec()),
    };
    let on = on?;
    Some(Retry {
        attempts: attempts?,
        backoff: backoff?,
        budget: budget?,
        try_timeout: try_timeout?,
        on: RetryOn {
            connect: on.contains(&"connect"),
            reset: on.contains(&"reset"),
            timeout: on.contains(&"timeout"),
            status_5xx: on.contains(&"5xx"),
        },
    })
}

fn eject(section: &Section<'_>) -> Option<Eject> {
    let off = match section.item("eject") {
        Some(item) if item.as_text().is_some() => item.word()? == "off",
        Some(_) | None => false,
    };
    let table = if off {
        section.absent(&shapes::EJECT)
    } else {
        section.inner("eject", &shapes::EJECT)?
    };
    let failures = table.count("failures");
    let rate_5xx = match table.item("rate_5xx") {
        Some(item) if item.as_text().is_some() => item.word().map(|_off| None),
        Some(_) | None => table.number("rate_5xx").map(Some),
    };
    let rate_min = table.count("rate_min");
    let time = table.duration("time");
    let max_time = table.duration("max_time");
    if let (Some(time), Some(max_time)) = (time, max_time)
        && max_time < time
    {
        let key = if table.has("max_time") { "max_time" } else { "time" };
        section.desk.complain(
            table.span_of(key),
            "`max_time` is shorter than `time`",
            "write a longer `max_time`",
        );
    }
    Some(Eject {
        failures: if off { 0 } else { failures? },
        rate_5xx: if off { None } else { rate_5xx? },
        rate_min: rate_min?,
        time: time?,
        max_time: max_time?,
    })
}

fn timeouts(section: &Section<'_>) -> Option<Timeouts> {
    let [connect, head, body, idle, backend_idle, tunnel, drain, queue] =
        ["connect", "head", "body", "idle", "backend_idle", "tunnel", "drain", "queue"]
            .map(|name| section.duration(name));
    Some(Timeouts {
        connect: connect?,
        head: head?,
        body: body?,
        idle: idle?,
        backend_idle: backend_idle?,
        tunnel: tunnel?,
        drain: drain?,
        queue: queue?,
    })
}

fn limits(section: &Section<'_>) -> Option<Limits> {
    let head = section.size("head");
    let headers = section.count("headers");
    let body = section.size("body");
    let connections = section.count("connections").and_then(NonZeroU32::new);
    let requests = section.count("requests").and_then(NonZeroU32::new);
    let per_backend = section.count("per_backend");
    let queue = section.count("queue");
    Some(Limits {
        head_bytes: u32::try_from(head?).ok()?,
        headers: headers?,
        body_bytes: body?,
        connections: connections?,
        requests: requests?,
        per_backend: per_backend?,
        queue: queue?,
    })
}

fn proxy_protocol(section: &Section<'_>) -> Option<ProxyProtocol> {
    let accept = section.switch("accept");
    let send = section.optional("send", |item| item.word());
    Some(ProxyProtocol {
        accept: accept?,
        send: send?.map(|word| if word == "v1" { ProxyVersion::V1 } else { ProxyVersion::V2 }),
    })
}

/// A part is either needed or only used.
fn refuse_both(section: &Section<'_>, needs: &[(PartRef, Span)], may_use: &[(PartRef, Span)]) {
    let needs: BTreeMap<&PartRef, &Span> = needs.iter().map(|(part, span)| (part, span)).collect();
    for (part, span) in may_use {
        if let Some(&first) = needs.get(part) {
            section.desk.complain_with(
                span.clone(),
                format!("`{part}` is in both `needs` and `may_use`"),
                "keep it in `needs` if the service is down without it, else here",
                Some((first.clone(), "needed here".to_owned())),
            );
        }
    }
}

fn check_at_least(section: &Section<'_>, at_least: Option<NonZeroU16>, pool: Option<&Pool>) {
    let (Some(at_least), Some(pool)) = (at_least, pool) else { return };
    let (most, why) = match pool {
        Pool::Balanced { backends, .. } => {
            (backends.len(), format!("there are only {} backends", backends.len()))
        }
        Pool::Pair(_) => (1, "of `primary` and `backup` one serves".to_owned()),
    };
    if usize::from(at_least.get()) > most {
        section.desk.complain(
            section.span_of("at_least"),
            format!("`at_least` can never be met: {why}"),
            if most == 1 { "write 1".to_owned() } else { format!("write {most} or less") },
        );
    }
}
