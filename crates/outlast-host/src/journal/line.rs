//! One line of the journal, as it is written and as it is read back.

use std::collections::BTreeMap;
use std::fmt;

use outlast_core::event::{Event, Severity, Value};

use super::LINE_MAX;

/// The version of the format, first in each line. Readers refuse what they do not know.
const VERSION: u64 = 1;
/// Members that every line has; an event's own fields come behind them.
const COMMON: [&str; 8] = ["v", "seq", "at", "node", "event", "subject", "severity", "message"];

/// A line as programs read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub seq: u64,
    /// RFC 3339 in UTC with milliseconds.
    pub at: String,
    pub node: String,
    /// The event's name: `health_changed`.
    pub event: String,
    /// What it is about: `service.web`.
    pub subject: String,
    pub severity: Severity,
    /// A sentence for people, without its subject.
    pub message: String,
    /// The event's own fields. Durations are numbers of seconds.
    pub fields: BTreeMap<String, serde_json::Value>,
}

/// Why a line cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Malformed {
    TooLong,
    NotJson,
    /// This member is missing or of another kind.
    Member(&'static str),
    /// Written by a later outlast.
    Version(u64),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::TooLong => write!(f, "longer than {LINE_MAX} bytes"),
            Malformed::NotJson => f.write_str("not a JSON object"),
            Malformed::Member(name) => write!(f, "`{name}` is missing or not what it should be"),
            Malformed::Version(v) => write!(f, "format {v} is not known here"),
        }
    }
}

impl std::error::Error for Malformed {}

impl Line {
    /// The line of an event.
    pub fn of(event: &Event) -> Line {
        let fact = &event.fact;
        let field = |(name, value): (&str, Value)| {
            debug_assert!(!COMMON.contains(&name), "{name} would stand twice in a line");
            (name.to_owned(), json(value))
        };
        Line {
            seq: event.seq,
            at: event.at.to_string(),
            node: event.node.clone(),
            event: fact.name().to_owned(),
            subject: fact.subject(),
            severity: fact.severity(),
            message: fact.to_string(),
            fields: fact.fields().into_iter().map(field).collect(),
        }
    }

    /// The JSON object, on one line, without a line end.
    pub fn to_json(&self) -> String {
        let text = |text: &str| serde_json::Value::from(text);
        let values = [
            VERSION.into(),
            self.seq.into(),
            text(&self.at),
            text(&self.node),
            text(&self.event),
            text(&self.subject),
            text(show_severity(self.severity)),
            text(&self.message),
        ];
        let common = COMMON.into_iter().zip(values.iter());
        let own = self.fields.iter().map(|(name, value)| (name.as_str(), value));
        let members = common.chain(own);
        let members: Vec<String> =
            members.map(|(name, value)| format!("{}:{value}", text(name))).collect();
        format!("{{{}}}", members.join(","))
    }

    /// Reads a line back, with or without its line end.
    pub fn parse(text: &[u8]) -> Result<Line, Malformed> {
        if text.len() > LINE_MAX {
            return Err(Malformed::TooLong);
        }
        let mut members: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(text).map_err(|_error| Malformed::NotJson)?;
        match number(&mut members, "v")? {
            VERSION => {}
            other => return Err(Malformed::Version(other)),
        }
        Ok(Line {
            seq: number(&mut members, "seq")?,
            at: string(&mut members, "at")?,
            node: string(&mut members, "node")?,
            event: string(&mut members, "event")?,
            subject: string(&mut members, "subject")?,
            severity: parse_severity(&string(&mut members, "severity")?)
                .ok_or(Malformed::Member("severity"))?,
            message: string(&mut members, "message")?,
            fields: members,
        })
    }
}

fn number(
    members: &mut BTreeMap<String, serde_json::Value>,
    name: &'static str,
) -> Result<u64, Malformed> {
    members.remove(name).and_then(|value| value.as_u64()).ok_or(Malformed::Member(name))
}

fn string(
    members: &mut BTreeMap<String, serde_json::Value>,
    name: &'static str,
) -> Result<String, Malformed> {
    match members.remove(name) {
        Some(serde_json::Value::String(text)) => Ok(text),
        Some(_) | None => Err(Malformed::Member(name)),
    }
}

fn json(value: Value) -> serde_json::Value {
    match value {
        Value::Text(text) => text.into(),
        Value::Number(number) => number.into(),
        Value::Flag(flag) => flag.into(),
        // To the millisecond: what is below it is noise, and reads badly.
        Value::Seconds(duration) => ((duration.as_secs_f64() * 1000.0).round() / 1000.0).into(),
    }
}

fn show_severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warn => "warn",
        Severity::Error => "error",
    }
}

fn parse_severity(text: &str) -> Option<Severity> {
    [Severity::Info, Severity::Warn, Severity::Error]
        .into_iter()
        .find(|&severity| show_severity(severity) == text)
}
