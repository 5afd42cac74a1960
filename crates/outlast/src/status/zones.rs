//! The part of `outlast status` that is about zones of the name system.

use std::collections::BTreeMap;

use outlast::agent::face::zone_status::{RecordStatus, ZoneStatus};

use crate::output::{Ink, Paint, plain};

/// What each name is answered with, and what this node cannot answer.
pub(super) fn block(all: &BTreeMap<String, ZoneStatus>, ink: Ink) -> String {
    let mut text = format!("{}\n", ink.on(Paint::Bold, "names"));
    for (name, zone) in all {
        let at = match (&zone.listen, zone.serial) {
            (Some(listen), Some(serial)) => {
                format!("serial {serial}, answered at {}", plain(listen))
            }
            (Some(_), None) => ink.on(Paint::Red, "not answered here"),
            (None, _) => "not answered by this cluster: it has no `listen`".to_owned(),
        };
        let added = match zone.added_records {
            0 => String::new(),
            count => format!(", {count} records added by updates"),
        };
        text += &format!("  {}  {at}{added}\n", plain(name));
        if let Some(trouble) = &zone.trouble {
            text += &format!("    {}\n", ink.on(Paint::Yellow, &plain(trouble)));
        }
        for (place, news) in &zone.elsewhere {
            text += &format!("    {}: {}\n", plain(place), plain(news));
        }
        for record in &zone.records {
            text += &format!("    {}\n", line(record, ink));
        }
    }
    text
}

fn line(record: &RecordStatus, ink: Ink) -> String {
    let values = match record.values.as_slice() {
        [] => ink.on(Paint::Red, "nothing"),
        values => plain(&values.join(", ")),
    };
    let health = match record.health.as_str() {
        "up" if record.degraded => ink.on(Paint::Yellow, "degraded"),
        "down" => ink.on(Paint::Red, "down"),
        health => plain(health),
    };
    let lowered = record.ttl_lowered_until.as_ref();
    let lowered =
        lowered.map(|until| format!(" (lowered until {})", plain(until))).unwrap_or_default();
    format!(
        "{} {}  {}  {values}  ttl {}s{lowered}  {health}",
        plain(&record.name),
        record.kind,
        record.policy,
        record.ttl_seconds
    )
}
