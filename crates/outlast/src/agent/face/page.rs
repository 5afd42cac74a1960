//! The status page: what is up, what is not, since when, why, and what comes next.
//!
//! One file that needs nothing from elsewhere. Without JavaScript it reloads itself; with it, it is refreshed in place
//! and says so when the node stops answering.

use std::time::Duration;

use outlast_core::event::Severity;
use outlast_core::units::show_duration;
use outlast_host::journal::Line;

use super::status_json::{BackendStatus, Mark, ServiceStatus, Status};

/// HTML under construction: markup is ours and static, everything else is escaped.
#[derive(Debug, Default)]
struct Html(String);

impl Html {
    fn raw(&mut self, markup: &'static str) -> &mut Html {
        self.0.push_str(markup);
        self
    }

    /// Safe between tags and in a quoted attribute.
    fn text(&mut self, text: &str) -> &mut Html {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                other => self.0.push(other),
            }
        }
        self
    }
}

/// The whole page. `nonce` is what the page's own script is allowed by.
pub fn page(status: &Status, events: &[Line], nonce: &str) -> String {
    let mut html = Html::default();
    html.raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    html.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    html.raw("<meta name=\"color-scheme\" content=\"light dark\">\n<title>");
    html.text(&format!("{}: {}", title(status), headline(status).1)).raw("</title>\n");
    html.raw("<noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript>\n<style>");
    html.raw(STYLE).raw("</style>\n</head>\n<body>\n");
    html.raw(
        "<p class=\"lost\" role=\"alert\">This node does not answer. What you see is old.</p>\n",
    );
    html.raw("<main>\n");
    banner(&mut html, status);
    for (name, service) in &status.services {
        service_card(&mut html, name, service);
    }
    parts(&mut html, status);
    event_table(&mut html, events);
    foot(&mut html, status);
    html.raw("</main>\n<script nonce=\"").text(nonce).raw("\">").raw(SCRIPT);
    html.raw("</script>\n</body>\n</html>\n");
    html.0
}

fn title(status: &Status) -> &str {
    if status.cluster.is_empty() { "outlast" } else { &status.cluster }
}

/// The whole in one sentence, and how it is.
fn headline(status: &Status) -> (Mark, String) {
    let all = status.services.len();
    let named = |mark| {
        let names = status.services.iter().filter(|(_, s)| s.state == mark);
        names.map(|(name, _)| name.as_str()).collect::<Vec<_>>()
    };
    for mark in [Mark::Down, Mark::Unknown, Mark::Degraded] {
        let names = named(mark);
        if !names.is_empty() {
            let (is, word) = (if names.len() == 1 { "is" } else { "are" }, mark.word());
            return (mark, format!("{} {is} {word}", names.join(", ")));
        }
    }
    match all {
        0 => (Mark::Up, "no services".to_owned()),
        1 => (Mark::Up, "the service is up".to_owned()),
        many => (Mark::Up, format!("all {many} services are up")),
    }
}

fn banner(html: &mut Html, status: &Status) {
    let (mark, sentence) = headline(status);
    html.raw("<header class=\"").raw(class(mark)).raw("\"><h1>").text(title(status));
    html.raw("</h1><p class=\"verdict\">").raw(sign(mark)).raw(" ").text(&sentence);
    html.raw("</p><p>node ").text(&status.node).raw(" · up for ");
    html.text(&show_seconds(status.uptime_seconds)).raw(" · <time datetime=\"").text(&status.at);
    html.raw("\">").text(clock(&status.at)).raw(" UTC</time></p>");
    if status.stopping {
        html.raw("<p class=\"note\">The agent is stopping: it finishes what is open.</p>");
    }
    if let Some(paused) = &status.failover_paused {
        html.raw("<p class=\"note\">Failover is ").text(&paused.words()).raw("</p>");
    }
    if let Some(reason) = &status.pairs_not_saved {
        html.raw("<p class=\"note\">No pair changes sides until it can be written to disk: ");
        html.text(reason).raw("</p>");
    }
    if let Some(seconds) = status.proxy.silent_seconds {
        html.raw("<p class=\"note\">The proxy has not answered for ");
        html.text(&show_seconds(seconds)).raw(".</p>");
    }
    match (&status.proxy.pid, &status.proxy.refused) {
        (_, Some(refused)) => {
            html.raw("<p class=\"note\">The proxy goes on with its old table: ").text(refused);
            html.raw("</p>");
        }
        (None, None) if !status.stopping => {
            html.raw("<p class=\"note\">No proxy runs; one is started.</p>");
        }
        (_, None) => {}
    }
    html.raw("</header>\n");
}

fn service_card(html: &mut Html, name: &str, service: &ServiceStatus) {
    html.raw("<section class=\"").raw(class(service.state)).raw("\"><h2>");
    badge(html, service.state).raw(" ").text(name).raw("</h2><p class=\"why\">");
    if let Some(seconds) = service.for_seconds {
        html.raw("for ").text(&show_seconds(seconds)).raw(": ");
    }
    html.text(&service.why);
    if let Some(active) = &service.active {
        let epoch = active.epoch.to_string();
        html.raw(" · active ").text(&active.side).raw(", epoch ").text(&epoch);
    }
    html.raw("</p>");
    if let Some(next) = &service.next {
        html.raw("<p class=\"next\">next: ").text(next).raw("</p>");
    }
    figures(html, service);
    html.raw("<div class=\"scroll\"><table><thead><tr><th>backend<th>health<th>for<th class=\"n\">in flight");
    html.raw("<th class=\"n\">requests<th class=\"n\">failed<th class=\"n\">errors<th>last probe</tr></thead><tbody>");
    for backend in &service.backends {
        backend_row(html, backend);
    }
    html.raw("</tbody></table></div></section>\n");
}

fn figures(html: &mut Html, service: &ServiceStatus) {
    let Some(listen) = &service.listen else {
        html.raw("<p class=\"figures\">only probed, not proxied</p>");
        return;
    };
    let rate = service.requests_per_second.map_or("–".to_owned(), |rate| format!("{rate:.1}"));
    let requests = if service.protocol == "tcp" { "connections" } else { "requests" };
    html.raw("<dl class=\"figures\">");
    for (word, value) in [
        ("listens on", listen.clone()),
        ("per second", rate),
        (requests, grouped(service.requests)),
        ("failed", grouped(service.failed)),
        ("retries", grouped(service.retries)),
        ("in flight", grouped(service.in_flight)),
        ("open connections", grouped(service.connections)),
    ] {
        html.raw("<div><dt>").text(word).raw("</dt><dd>").text(&value).raw("</dd></div>");
    }
    html.raw("</dl>");
}

fn backend_row(html: &mut Html, backend: &BackendStatus) {
    html.raw("<tr><td>").text(&backend.name);
    for flag in backend_flags(backend) {
        html.raw(" <span class=\"flag\">").text(flag).raw("</span>");
    }
    html.raw("<td>");
    badge(html, backend.health);
    if let Some(trend) = &backend.trend {
        html.raw(" <span class=\"trend\">").text(trend).raw("</span>");
    }
    let errors: Vec<String> =
        backend.errors.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    let sum: u64 = backend.errors.values().sum();
    html.raw("<td>").text(&backend.for_seconds.map_or("–".to_owned(), show_seconds));
    for count in [backend.in_flight, backend.requests, backend.failed] {
        html.raw("<td class=\"n\">").text(&grouped(count));
    }
    html.raw("<td class=\"n\" title=\"").text(&errors.join(", ")).raw("\">").text(&grouped(sum));
    html.raw("<td>").text(&backend.reason).raw("</tr>");
}

/// What else is to be said of a backend.
fn backend_flags(backend: &BackendStatus) -> impl Iterator<Item = &str> {
    let draining = backend.draining.then_some("draining");
    let ejected = backend.ejected.then_some("ejected");
    backend.role.as_deref().into_iter().chain(draining).chain(ejected)
}

/// Programs, what others run, and what nobody watches.
fn parts(html: &mut Html, status: &Status) {
    if status.processes.is_empty() && status.externals.is_empty() && status.unwatched.is_empty() {
        return;
    }
    html.raw("<section><h2>Other parts</h2><div class=\"scroll\"><table><thead><tr><th>part<th>state<th>for");
    html.raw("<th>what is known</tr></thead><tbody>");
    for (name, process) in &status.processes {
        let mark = process.health;
        html.raw("<tr><td>process.").text(name).raw("<td class=\"").raw(class(mark)).raw("\">");
        html.raw("<span class=\"badge\">").raw(sign(mark)).raw(" ").text(&process.state);
        html.raw("</span>");
        if !process.ready {
            html.raw(" <span class=\"trend\">not ready</span>");
        }
        html.raw("<td>").text(&process.for_seconds.map_or("–".to_owned(), show_seconds));
        let pid = process.pid.map_or(String::new(), |pid| format!("pid {pid}, "));
        let restarts = grouped(process.restarts);
        html.raw("<td>").text(&pid).text(&restarts).raw(" restarts");
        if !process.reason.is_empty() {
            html.raw(", ").text(&process.reason);
        }
        html.raw("</tr>");
    }
    for (name, external) in &status.externals {
        html.raw("<tr><td>external.").text(name).raw("<td>");
        badge(html, external.health);
        html.raw("<td>").text(&external.for_seconds.map_or("–".to_owned(), show_seconds));
        html.raw("<td>").text(&external.reason).raw("</tr>");
    }
    for (name, why) in &status.unwatched {
        html.raw("<tr><td>").text(name).raw("<td>");
        badge(html, Mark::Unknown).raw("<td>–<td>").text(why).raw("</tr>");
    }
    html.raw("</tbody></table></div></section>\n");
}

/// The newest first.
fn event_table(html: &mut Html, events: &[Line]) {
    html.raw("<section><h2>Events</h2>");
    if events.is_empty() {
        html.raw("<p>none yet</p></section>\n");
        return;
    }
    html.raw("<div class=\"scroll\"><table class=\"events\"><thead><tr><th>when (UTC)<th>about<th>what happened");
    html.raw("</tr></thead><tbody>");
    for line in events.iter().rev() {
        let (class, word) = match line.severity {
            Severity::Info => ("", ""),
            Severity::Warn => ("degraded", "warning: "),
            Severity::Error => ("down", "error: "),
        };
        html.raw("<tr class=\"").raw(class).raw("\"><td><time datetime=\"").text(&line.at);
        html.raw("\">").text(&line.at.replacen('T', " ", 1).replace('Z', "")).raw("</time><td>");
        html.text(&line.subject).raw("<td><span class=\"severity\">").raw(word).raw("</span>");
        html.text(&line.message).raw("</tr>");
    }
    html.raw("</tbody></table></div></section>\n");
}

fn foot(html: &mut Html, status: &Status) {
    let percent =
        |share: Option<f64>| share.map_or("–".to_owned(), |s| format!("{:.0} %", s * 100.0));
    html.raw("<footer><p>outlast ").text(&status.version);
    match status.proxy.pid {
        Some(pid) => html.raw(" · proxy pid ").text(&pid.to_string()),
        None => html.raw(" · no proxy"),
    };
    for pid in &status.proxy.draining {
        html.raw(" · pid ").text(&pid.to_string()).raw(" drains");
    }
    html.raw(" · disk ").text(&percent(status.machine.disk_used_ratio));
    html.raw(" · memory ").text(&percent(status.machine.memory_used_ratio));
    html.raw("</p><p><a href=\"/health\">health</a> <a href=\"/metrics\">metrics</a> ");
    html.raw("<a href=\"/v1/status\">this page as JSON</a></p></footer>\n");
}

fn badge(html: &mut Html, mark: Mark) -> &mut Html {
    html.raw("<span class=\"badge ").raw(class(mark)).raw("\">").raw(sign(mark)).raw(" ");
    html.raw(mark.word()).raw("</span>")
}

fn class(mark: Mark) -> &'static str {
    mark.word()
}

/// A shape for each state, for those who do not see the colour.
fn sign(mark: Mark) -> &'static str {
    match mark {
        Mark::Unknown => "<span aria-hidden=\"true\">?</span>",
        Mark::Up => "<span aria-hidden=\"true\">●</span>",
        Mark::Degraded => "<span aria-hidden=\"true\">▲</span>",
        Mark::Down => "<span aria-hidden=\"true\">✖</span>",
    }
}

/// `15:04:05` of an RFC 3339 time.
fn clock(at: &str) -> &str {
    at.get(11..19).unwrap_or(at)
}

fn show_seconds(seconds: u64) -> String {
    show_duration(Duration::from_secs(seconds))
}

/// `1,234,567`
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
