//! Reads what is to be achieved, what that is worth and who is told:
//! `[objective.NAME]`, `[agreement.NAME]`, `[cost]` and `[notify.NAME]`.

use std::collections::BTreeMap;
use std::time::Duration;

use outlast_core::topology::{Agreement, Cost, Credit, Email, Notify, Objective};

use super::complaint::quote;
use super::desk::Span;
use super::item::Item;
use super::names::listed;
use super::section::Section;
use super::words;

pub(super) fn objective(section: &Section<'_>) -> Option<Objective> {
    let service = section.item("service").map(|item| item.part());
    let availability = section.optional("availability", |item| item.number());
    let latency = section.optional("latency", latency);
    let window = section.duration("window");
    let rto = section.optional("rto", |item| item.duration());
    let rpo = section.optional("rpo", |item| item.duration());
    let targets = ["availability", "latency", "rto", "rpo"];
    if !targets.into_iter().any(|name| section.has(name)) {
        section.complain_of_none(
            &targets,
            "this objective asks for nothing",
            "add availability = 0.999, latency = { p95 = \"200ms\" }, rto = \"30s\" or rpo = \"0s\"",
        );
    }
    Some(Objective {
        service: service??,
        availability: availability?,
        latency: latency?.unwrap_or_default(),
        window: window?,
        rto: rto?,
        rpo: rpo?,
    })
}

/// Percentiles and their limits, lowest percentile first.
fn latency(item: Item<'_>) -> Option<Vec<(f64, Duration)>> {
    let entries = item.entries()?;
    if entries.is_empty() {
        item.complain("`latency` names no percentile", "write it like { p95 = \"200ms\" }");
        return None;
    }
    let read = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, Item<'_>)| {
        let limit = value.duration();
        let percentile = words::percentile(key.get_ref())
            .map_err(|fault| item.desk.complain(key.span(), fault.message, fault.help));
        Some((percentile.ok()?, limit?))
    };
    let read: Vec<Option<(f64, Duration)>> = entries.into_iter().map(read).collect();
    let mut limits = read.into_iter().collect::<Option<Vec<(f64, Duration)>>>()?;
    limits.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    Some(limits)
}

pub(super) fn agreement(section: &Section<'_>) -> Option<Agreement> {
    let objective = section.item("objective").map(objective_name);
    let promise = section.item("promise").map(|item| item.number());
    let period = section.word("period");
    let timezone = match section.item("timezone") {
        Some(item) => item.parsed(words::timezone),
        None => section.text("timezone"),
    };
    let credits = section.optional("credits", credits);
    period?;
    Some(Agreement {
        objective: objective??,
        promise: promise??,
        timezone: timezone?,
        credits: credits?.unwrap_or_default(),
    })
}

/// The name behind `objective.`.
fn objective_name(item: Item<'_>) -> Option<String> {
    let text = item.text()?;
    let names = || item.names.objectives.iter().map(String::as_str);
    let Some(name) = text.strip_prefix("objective.") else {
        let name = if item.names.objectives.contains(text) { text } else { "NAME" };
        item.complain(
            format!("{} does not name an objective", quote(text)),
            format!("write \"objective.{name}\""),
        );
        return None;
    };
    if item.names.objectives.contains(name) {
        return Some(name.to_owned());
    }
    let help = match item.near(name, names()) {
        Some(near) => format!("write \"objective.{near}\""),
        None if item.names.objectives.is_empty() => {
            "define it in a section [objective.NAME]".to_owned()
        }
        None => format!("name one of {}", listed(names())),
    };
    item.desk.complain_of_absence(
        item.span(),
        format!("there is no objective {}", quote(name)),
        help,
    );
    None
}

/// Steps of credit, highest availability first.
fn credits(item: Item<'_>) -> Option<Vec<Credit>> {
    let mut seen: BTreeMap<u64, Span> = BTreeMap::new();
    let mut read = |item: &Item<'_>| {
        let section = item.section()?;
        let below = section.item("below").map(|item| item.number());
        let percent = section.item("percent").map(|item| item.number());
        let below = below??;
        // Positive numbers: the same bits are the same number.
        if let Some(first) = seen.insert(below.to_bits(), section.span_of("below")) {
            section.desk.complain_with(
                section.span_of("below"),
                format!("there is a credit below {below} already"),
                "take one of the two out",
                Some((first, "here".to_owned())),
            );
        }
        Some(Credit { below, percent: percent?? })
    };
    let read: Vec<Option<Credit>> = item.list()?.iter().map(&mut read).collect();
    let mut credits = read.into_iter().collect::<Option<Vec<Credit>>>()?;
    credits.sort_by(|a, b| b.below.total_cmp(&a.below));
    Some(credits)
}

pub(super) fn cost(section: &Section<'_>) -> Option<Cost> {
    /// Of a year without a leap day.
    const HOURS: f64 = 8760.0;
    let per_hour = section.optional("revenue_per_hour", |item| item.number());
    let per_year = section.optional("revenue_per_year", |item| item.number());
    let currency = section.optional("currency", |item| item.text().map(str::to_owned));
    if section.has("revenue_per_hour") {
        section.refuse(
            &["revenue_per_year"],
            "cannot stand beside `revenue_per_hour`",
            "keep one of the two: a year has 8760 hours",
        );
    }
    let per_year = per_year?.map(|revenue| revenue / HOURS);
    Some(Cost { revenue_per_hour: per_hour?.or(per_year), currency: currency? })
}

pub(super) fn notify(section: &Section<'_>) -> Option<Notify> {
    let file = |channel: &'static str, key: &'static str| {
        section.optional(channel, |item| {
            item.section()?.item(key).and_then(|item| item.text().map(str::to_owned))
        })
    };
    let pagerduty_key_file = file("pagerduty", "routing_key_file");
    let slack_webhook_file = file("slack", "webhook_file");
    let email = section.optional("email", |item| {
        let section = item.section()?;
        let smtp = section.item("smtp").map(|item| item.parsed(words::smtp_url));
        let to = section
            .item("to")
            .map(|item| item.distinct(|address| address.parsed(words::mail_address)));
        Some(Email { smtp: smtp??, to: to?? })
    });
    let channels = ["pagerduty", "slack", "email"];
    if !channels.into_iter().any(|channel| section.has(channel)) {
        section.complain_of_none(
            &channels,
            "nobody is told anything here",
            "add pagerduty, slack or email",
        );
    }
    Some(Notify {
        pagerduty_key_file: pagerduty_key_file?,
        slack_webhook_file: slack_webhook_file?,
        email: email?,
    })
}
