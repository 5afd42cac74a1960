//! `/metrics`, in the two text forms that Prometheus reads, printed from one table.

mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use outlast_proxy::stats::BUCKETS_US;

pub use table::METRICS;

use super::scene::Scene;

/// One metric: what it is called, what it means, and where its values come from.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// As people query it.
    pub name: &'static str,
    pub kind: Kind,
    /// The unit that the name ends with, before `_total`.
    pub unit: Option<&'static str>,
    pub labels: &'static [&'static str],
    pub help: &'static str,
    read: fn(&Scene) -> Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// Always 1; its labels are the news.
    Info,
}

/// One value, with a text for each label of its metric.
#[derive(Clone, Debug)]
struct Sample {
    labels: Vec<String>,
    value: Value,
}

#[derive(Clone, Debug)]
enum Value {
    Whole(u64),
    Real(f64),
    /// Counts in the order of `BUCKETS_US`, not cumulative, and the sum of what was observed.
    Histogram {
        counts: Vec<u64>,
        sum_seconds: f64,
    },
}

/// The forms of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Prometheus's own, version 0.0.4.
    Text,
    OpenMetrics,
}

impl Form {
    pub fn content_type(self) -> &'static str {
        match self {
            Form::Text => "text/plain; version=0.0.4; charset=utf-8",
            Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What a client that sends this `Accept` likes best; the older form if it has no opinion.
    pub fn negotiate(accept: &str) -> Form {
        let (mut open, mut text) = (0.0_f64, 0.0_f64);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
            let named = |name: &str| {
                let found = parameters.iter().find(|(n, _)| n.trim().eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.trim().trim_matches('"'))
            };
            let quality = named("q").map_or(1.0, |q| q.parse::<f64>().unwrap_or(0.0));
            match (kind.as_str(), named("version")) {
                ("application/openmetrics-text", None | Some("1.0.0")) => open = open.max(quality),
                ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => {
                    text = text.max(quality);
                }
                (_another, _) => {}
            }
        }
        if open > 0.0 && open >= text { Form::OpenMetrics } else { Form::Text }
    }
}

/// The whole scrape.
pub fn print(scene: &Scene, form: Form) -> String {
    let mut out = String::new();
    for metric in METRICS {
        let samples = (metric.read)(scene);
        if !samples.is_empty() {
            head(&mut out, metric, form);
            // Two samples with the same labels would make the whole scrape void.
            let mut seen = BTreeSet::new();
            for sample in samples {
                debug_assert_eq!(sample.labels.len(), metric.labels.len(), "{}", metric.name);
                if seen.insert(sample.labels.clone()) {
                    body(&mut out, metric, &sample);
                }
            }
        }
    }
    if form == Form::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn head(out: &mut String, metric: &Metric, form: Form) {
    let (family, kind) = match (form, metric.kind) {
        (Form::OpenMetrics, Kind::Counter) => (trimmed(metric.name, "_total"), "counter"),
        (Form::OpenMetrics, Kind::Info) => (trimmed(metric.name, "_info"), "info"),
        (Form::Text, Kind::Counter) => (metric.name, "counter"),
        // The older form has no info.
        (Form::Text, Kind::Info) => (metric.name, "gauge"),
        (_, Kind::Gauge) => (metric.name, "gauge"),
        (_, Kind::Histogram) => (metric.name, "histogram"),
    };
    let help = escaped(metric.help, form == Form::OpenMetrics);
    write!(out, "# HELP {family} {help}\n# TYPE {family} {kind}\n").expect("a String grows");
    if let (Form::OpenMetrics, Some(unit)) = (form, metric.unit) {
        writeln!(out, "# UNIT {family} {unit}").expect("a String grows");
    }
}

fn body(out: &mut String, metric: &Metric, sample: &Sample) {
    let labels: Vec<(&str, &str)> =
        metric.labels.iter().copied().zip(sample.labels.iter().map(String::as_str)).collect();
    match &sample.value {
        Value::Whole(value) => line(out, metric.name, "", &labels, &value.to_string()),
        // Debug prints the shortest text that reads back the same: 0.25, 1.0, 1e-7.
        Value::Real(value) => line(out, metric.name, "", &labels, &format!("{value:?}")),
        Value::Histogram { counts, sum_seconds } => {
            let bounds = BUCKETS_US.iter().map(|&us| format!("{:?}", us as f64 / 1e6));
            let mut sum = 0;
            for (place, bound) in bounds.chain(["+Inf".to_owned()]).enumerate() {
                sum += counts.get(place).copied().unwrap_or(0);
                let mut labels = labels.clone();
                labels.push(("le", &bound));
                line(out, metric.name, "_bucket", &labels, &sum.to_string());
            }
            line(out, metric.name, "_sum", &labels, &format!("{sum_seconds:?}"));
            line(out, metric.name, "_count", &labels, &sum.to_string());
        }
    }
}

fn line(out: &mut String, name: &str, suffix: &str, labels: &[(&str, &str)], value: &str) {
    out.push_str(name);
    out.push_str(suffix);
    for (place, (label, text)) in labels.iter().enumerate() {
        let before = if place == 0 { '{' } else { ',' };
        write!(out, "{before}{label}=\"{}\"", escaped(text, true)).expect("a String grows");
    }
    out.push_str(if labels.is_empty() { " " } else { "} " });
    out.push_str(value);
    out.push('\n');
}

/// As both forms escape the text of a label; of a help text only the newer one escapes the quotes.
fn escaped(text: &str, quotes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            other => out.push(other),
        }
    }
    out
}

fn trimmed<'a>(name: &'a str, suffix: &str) -> &'a str {
    name.strip_suffix(suffix).unwrap_or(name)
}

/// The page about the metrics: docs/metrics.md.
pub fn reference() -> String {
    let mut page = REFERENCE_HEAD.to_owned();
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
        let (name, unit) = (metric.name, metric.unit.unwrap_or("–"));
        writeln!(page, "| `{name}` | {kind} | {unit} | {labels} | {} |", metric.help)
            .expect("a String grows");
    }
    page
}

const REFERENCE_HEAD: &str = "\
# Metrics

`GET /metrics` at the `face` address of `[cluster]`, or on the admin socket, answers with everything below: as OpenMetrics
1.0 if the client's `Accept` likes that best, else as Prometheus's text form 0.0.4. This page is printed from the same
table as the metrics.

- Counters of traffic count since the data plane was started, and outlive the agent and an upgrade; counters of probes and
  restarts count since the agent was started.
- What is not known is left out. A backend that has not been probed has no `outlast_backend_up`, neither 0 nor 1.
- `backend` is the backend's text in the file; `none` is what the proxy answered by itself.
- Of each set of states (`health`, `state`, `side`) one is 1 and the others are 0.

Prometheus finds an agent with:

```yaml
scrape_configs:
  - job_name: outlast
    static_configs:
      - targets: [\"10.0.0.1:7070\"]
```

Some questions and their answers:

| question | PromQL |
| --- | --- |
| share of requests that fail | `sum by (service) (rate(http_requests_total{code=\"5xx\"}[5m])) / sum by (service) (rate(http_requests_total[5m]))` |
| 95th percentile of latency | `histogram_quantile(0.95, sum by (service, le) (rate(http_request_duration_seconds_bucket[5m])))` |
| which backends are down | `outlast_backend_up == 0` |
| why probes fail | `topk(5, increase(outlast_probe_results_total{result=\"failure\"}[1h]))` |
| services that are not up | `outlast_service_state{state=\"up\"} == 0` |
| a pair that runs on its backup | `outlast_pair_active{side=\"backup\"} == 1` |

| metric | type | unit | labels | meaning |
| --- | --- | --- | --- | --- |
";
