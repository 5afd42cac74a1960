//! Reads a probe: what is asked, how often, and how many answers make a belief.

use std::num::NonZeroU16;

use outlast_core::health::Thresholds;
use outlast_core::topology::{Check, HttpCheck, HttpTarget, Probe, StatusSet};
use outlast_core::units::show_duration;

use super::complaint::quote;
use super::item::Item;
use super::section::Section;
use super::words;

/// What a probe is about.
#[derive(Clone, Debug)]
pub(super) enum Subject {
    /// Has an address of its own: a path is enough.
    Backend,
    /// Has none: a probe says the whole address.
    Process,
    /// A probe that does not say what to ask asks this.
    External { url: Option<HttpTarget> },
}

const CHECKS: [&str; 4] = ["http", "tcp", "command", "grpc"];
const OF_HTTP: [&str; 4] = ["status", "body", "headers", "method"];

pub(super) fn read(section: &Section<'_>, subject: &Subject) -> Option<Probe> {
    read_with(section, check(section, subject))
}

/// Reads all but what is asked.
pub(super) fn read_with(section: &Section<'_>, check: Option<Check>) -> Option<Probe> {
    let every = section.duration("every");
    let timeout = section.duration("timeout");
    let rise = section.count("rise").and_then(NonZeroU16::new);
    let fall = section.count("fall").and_then(NonZeroU16::new);
    let delay = section.duration("delay");
    if let (Some(every), Some(timeout)) = (every, timeout)
        && timeout >= every
    {
        let key = if section.has("timeout") { "timeout" } else { "every" };
        section.desk.complain(
            section.span_of(key),
            format!(
                "the timeout ({}) is not shorter than the interval ({})",
                show_duration(timeout),
                show_duration(every)
            ),
            format!("write a `timeout` below {}, or a longer `every`", show_duration(every)),
        );
        return None;
    }
    Some(Probe {
        check: check?,
        every: every?,
        timeout: timeout?,
        thresholds: Thresholds { rise: rise?, fall: fall? },
        delay: delay?,
    })
}

fn check(section: &Section<'_>, subject: &Subject) -> Option<Check> {
    let there: Vec<&'static str> = CHECKS.into_iter().filter(|name| section.has(name)).collect();
    let chosen = match (there.as_slice(), subject) {
        ([chosen], _) => *chosen,
        ([], Subject::External { url: Some(_) }) => "http",
        ([], Subject::Backend | Subject::Process | Subject::External { url: None }) => {
            section.complain_of_none(
                &CHECKS,
                "this probe does not say what to ask",
                match subject {
                    Subject::Backend => "add http = \"/health\", tcp = true, command = … or grpc = \"\"",
                    Subject::Process | Subject::External { .. } => {
                        "add http = \"http://127.0.0.1:3000/health\", tcp = \"127.0.0.1:3000\", command = … or grpc = \"\""
                    }
                },
            );
            ""
        }
        ([first, others @ ..], _) => {
            section.refuse(
                others,
                format!("cannot stand beside `{first}`: a probe asks one thing"),
                "keep one of http, tcp, command and grpc",
            );
            ""
        }
    };
    let address = section.optional("address", |item| item.parsed(words::authority));
    let tls = section.switch("tls");
    let tls_verify = section.switch("tls_verify");
    let http = http(section, subject, tls_verify);
    if chosen.is_empty() {
        return None;
    }
    if chosen != "http" {
        section.refuse(
            &OF_HTTP,
            "goes with `http` only",
            format!("take it out: this probe has `{chosen}`"),
        );
    }
    if chosen != "grpc" {
        section.refuse(
            &["tls", "address"],
            "goes with `grpc` only",
            "take it out; with `http` write a whole URL",
        );
    }
    if !matches!(chosen, "http" | "grpc") {
        section.refuse(&["tls_verify"], "goes with `http` and `grpc` only", "take it out");
    }
    match chosen {
        "tcp" => tcp(&section.item("tcp")?, subject),
        "command" => Some(Check::Command(section.item("command")?.command()?)),
        "grpc" => {
            let service = section.item("grpc")?.text()?.to_owned();
            let address = address?;
            if address.is_none() && !matches!(subject, Subject::Backend) {
                section.desk.complain_of_absence(
                    section.span_of("grpc"),
                    "this probe does not say where to ask",
                    "add address = \"127.0.0.1:3000\"",
                );
                return None;
            }
            Some(Check::Grpc { service, address, tls: tls?, tls_verify: tls_verify? })
        }
        _ => http.map(Check::Http),
    }
}

fn tcp(item: &Item<'_>, subject: &Subject) -> Option<Check> {
    const HELP: &str = "write the address, like tcp = \"127.0.0.1:3000\"";
    match item.as_switch() {
        Some(true) if matches!(subject, Subject::Backend) => Some(Check::Tcp { address: None }),
        Some(true) => {
            item.complain("this probe does not say where to connect", HELP);
            None
        }
        Some(false) => {
            item.complain(
                "`tcp = false` asks nothing",
                "write true, or leave it out and ask otherwise",
            );
            None
        }
        None => Some(Check::Tcp { address: Some(item.parsed(words::authority)?) }),
    }
}

fn http(section: &Section<'_>, subject: &Subject, tls_verify: Option<bool>) -> Option<HttpCheck> {
    let target = match (section.item("http"), subject) {
        (Some(item), _) => http_target(&item, subject),
        (None, Subject::External { url }) => url.clone(),
        (None, Subject::Backend | Subject::Process) => None,
    };
    let method = section.word("method");
    let body = section.optional("body", |item| item.text().map(str::to_owned));
    let headers = match section.item("headers") {
        Some(item) => headers(&item),
        None => Some(Vec::new()),
    };
    let status = match section.item("status") {
        Some(item) => status(&item),
        None => words::status_set(&section.text("status")?).ok(),
    };
    Some(HttpCheck {
        target: target?,
        method: method?.to_owned(),
        status: status?,
        body: body?,
        headers: headers?,
        tls_verify: tls_verify?,
    })
}

fn http_target(item: &Item<'_>, subject: &Subject) -> Option<HttpTarget> {
    let target = item.parsed(words::http_target)?;
    if let (HttpTarget::Path(path), Subject::Process | Subject::External { .. }) =
        (&target, subject)
    {
        item.complain(
            "this probe does not say which server to ask",
            format!(
                "write a whole URL, like \"http://127.0.0.1:3000{}\"",
                quote(path).trim_matches('`')
            ),
        );
        return None;
    }
    Some(target)
}

fn headers(item: &Item<'_>) -> Option<Vec<(String, String)>> {
    let read = |(key, value): (&str, Item<'_>)| {
        let value_text = value.text();
        if !words::is_token(key) {
            value.complain(
                format!("{} cannot be the name of a header", quote(key)),
                "a name has letters, digits and - only",
            );
            return None;
        }
        let value_text = value_text?;
        if value_text.chars().any(|c| c.is_control() && c != '\t') {
            value.complain(
                format!("the header `{key}` contains a control character"),
                "leave it out",
            );
            return None;
        }
        Some((key.to_owned(), value_text.to_owned()))
    };
    let read: Vec<Option<(String, String)>> =
        item.entries()?.into_iter().map(|(key, value)| read((key.get_ref(), value))).collect();
    read.into_iter().collect()
}

/// A number, a string, or a list of both.
fn status(item: &Item<'_>) -> Option<StatusSet> {
    if item.is_list() {
        let sets: Vec<Option<StatusSet>> = item.some_list()?.iter().map(status).collect();
        let sets = sets.into_iter().collect::<Option<Vec<StatusSet>>>()?;
        return Some(StatusSet(sets.into_iter().flat_map(|set| set.0).collect()));
    }
    if item.as_text().is_some() {
        return item.parsed(words::status_set);
    }
    let code = u16::try_from(item.count()?).ok()?;
    Some(StatusSet(vec![(code, code)]))
}
