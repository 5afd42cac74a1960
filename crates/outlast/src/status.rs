//! `outlast status`: what is up, what is not, since when, why, and what comes next, on one screen.

mod addresses;
mod databases;
mod topology;
mod zones;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use outlast::agent::admin;
use outlast::agent::face::status_json::{
    AgreementStatus, BackendStatus, Mark, SaidStatus, ServiceStatus, Status, VerdictStatus,
};
use outlast_core::units::show_duration;

use crate::cli::{Format, StatusArgs};
use crate::output::{self, Ink, Paint, plain};
use crate::{Outcome, verbs};

/// How often `--watch` asks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<Outcome> {
    let dir = verbs::data_dir(&args.at)?;
    let ink = Ink { colour: output::output_may_have_colour() };
    verbs::block_on(async {
        if !args.watch {
            output::print(&ask(&dir, args.format, ink).await?)?;
            return Ok(Outcome::Fine);
        }
        loop {
            // An agent that is away for a moment is what one watches for.
            let text = match ask(&dir, args.format, ink).await {
                Ok(text) => text,
                Err(error) => format!("error: {error:#}\n"),
            };
            if !output::print_on(&frame(text, args.format))? {
                return Ok(Outcome::Fine);
            }
            tokio::select! {
                () = tokio::time::sleep(WATCH_EVERY) => {}
                _ = tokio::signal::ctrl_c() => return Ok(Outcome::Fine),
            }
        }
    })
}

async fn ask(dir: &Path, format: Format, ink: Ink) -> anyhow::Result<String> {
    let (code, text) = admin::ask(dir, http::Method::GET, "/v1/status", String::new()).await?;
    anyhow::ensure!(code.is_success(), "the agent answers {code}: {}", text.trim_end());
    match format {
        Format::Json => Ok(text),
        Format::Table => {
            let status: Status = serde_json::from_str(&text).context(
                "understand the agent's answer; it may be of another version than this command, see --format json",
            )?;
            Ok(table(&status, ink))
        }
    }
}

/// One picture of many: on a terminal it takes the place of the one before.
fn frame(text: String, format: Format) -> String {
    match (output::terminal_size(), format) {
        (Some((_, rows)), Format::Table) => {
            let lines: String = text
                .lines()
                .take(usize::from(rows) - 1)
                .map(|line| format!("{line}\x1b[K\n"))
                .collect();
            // Home; cut what is too wide; nothing of the last picture below.
            format!("\x1b[H\x1b[?7l{lines}\x1b[J\x1b[?7h")
        }
        (None, Format::Table) => text + "\n",
        (Some(_) | None, Format::Json) => text,
    }
}

/// The whole screen.
fn table(status: &Status, ink: Ink) -> String {
    let mut blocks = vec![head(status, ink)];
    blocks.extend(status.agreement.as_ref().map(|agreement| agreed(status, agreement, ink)));
    blocks.extend(status.agreement.as_ref().map(|a| topology::topology(&a.topology, ink)));
    let at = |name: &String| elsewhere(status, name, ink);
    blocks.extend(status.services.iter().map(|(n, s)| block(n, s, ink) + &at(n)));
    blocks.extend(status.postgres.iter().map(|(name, d)| databases::block(name, d, ink)));
    if !status.addresses.is_empty() {
        blocks.push(addresses::block(&status.addresses, ink));
    }
    if !status.dns.is_empty() {
        blocks.push(zones::block(&status.dns, ink));
    }
    if let Some(parts) = parts(status, ink) {
        blocks.push(parts);
    }
    blocks.join("\n")
}

fn head(status: &Status, ink: Ink) -> String {
    let up = show_seconds(status.uptime_seconds);
    let proxy = match (status.proxy.pid, status.proxy.silent_seconds) {
        (Some(pid), None) => format!("proxy pid {pid}"),
        (Some(pid), Some(silent)) => ink.on(
            Paint::Red,
            &format!("proxy pid {pid} has not answered for {}", show_seconds(silent)),
        ),
        (None, _) => ink.on(Paint::Red, "no proxy"),
    };
    let cluster = ink.on(Paint::Bold, &plain(&status.cluster));
    let mut text = format!(
        "{cluster}  node {}  outlast {}  up {up}  {proxy}{}\n",
        plain(&status.node),
        plain(&status.version),
        status.proxy.draining.iter().map(|pid| format!(", pid {pid} drains")).collect::<String>(),
    );
    let note = |note: String| format!("{}\n", ink.on(Paint::Yellow, &note));
    if status.stopping {
        text += &note("the agent is stopping: it finishes what is open".to_owned());
    }
    if let Some(reason) = &status.pairs_not_saved {
        text += &note(format!(
            "no pair changes sides until who serves can be written to disk: {}",
            plain(reason)
        ));
    }
    if let Some(paused) = &status.failover_paused {
        text += &note(format!("failover is {}", plain(&paused.words())));
    }
    if let Some(refused) = &status.proxy.refused {
        text += &note(format!(
            "the proxy goes on with its old table, the new one was refused: {}; change the file and `outlast reload`",
            plain(refused)
        ));
    }
    // Counters come every second.
    if status.proxy.stats_age_seconds > 5.0 {
        text += &note(format!("counters are {:.0}s old", status.proxy.stats_age_seconds));
    }
    if status.services.is_empty() {
        text += &note("no services: the file has no [service.NAME]".to_owned());
    }
    text
}

/// This node among the others.
fn agreed(status: &Status, agreement: &AgreementStatus, ink: Ink) -> String {
    let title = ink.on(Paint::Bold, "agreement");
    let mut text = match (agreement.phase.as_str(), &agreement.leader) {
        ("running", Some(leader)) => format!(
            "{title}  {} leads, term {}; this node is {}; {} entries are agreed on\n",
            plain(leader),
            agreement.term,
            match agreement.role.as_deref() {
                Some("leader") => "the leader",
                Some("candidate") => "a candidate",
                Some(_) | None => "a follower",
            },
            agreement.commit
        ),
        ("running", None) => format!(
            "{title}  {}\n",
            ink.on(
                Paint::Red,
                "no leader has a majority of the voters behind it: nothing new is agreed on, what runs goes on"
            )
        ),
        (phase, _) => format!("{title}  {}\n", ink.on(Paint::Yellow, phase)),
    };
    if let Some(why) = &agreement.why {
        text += &format!("  {}\n", ink.on(Paint::Yellow, &plain(why)));
    }
    let role = |name: &String| {
        if agreement.learners.contains(name) {
            "learner"
        } else if agreement.voters.contains(name) {
            "voter"
        } else {
            "-"
        }
    };
    let heads = ["node", "role", "link", "for", "heard", "round trip", "services", "address"];
    let mut rows = vec![heads.map(|head| Cell::plain(ink.on(Paint::Faint, head), head)).to_vec()];
    let own = status.services.values().map(|service| service.state);
    rows.push(
        [&*plain(&status.node), role(&status.node), "this node", "-", "-", "-"]
            .into_iter()
            .map(Cell::left)
            .chain([tally(own, ink), Cell::left("-")])
            .collect(),
    );
    for (name, peer) in &agreement.peers {
        let link = match &peer.why {
            None if peer.linked => "up".to_owned(),
            Some(why) => format!("down: {why}"),
            None => "down".to_owned(),
        };
        let paint = if peer.linked { Paint::Green } else { Paint::Red };
        let seconds =
            |seconds: Option<f64>| seconds.map_or("-".to_owned(), |s| format!("{s:.1}s ago"));
        rows.push(vec![
            Cell::left(&plain(name)),
            Cell::left(role(name)),
            Cell::plain(ink.on(paint, &plain(&link)), &plain(&link)),
            Cell::left(&peer.for_seconds.map_or("-".to_owned(), show_seconds)),
            Cell::left(&seconds(peer.silent_seconds)),
            Cell::left(&peer.round_trip_ms.map_or("-".to_owned(), |ms| format!("{ms:.2}ms"))),
            said(peer.said.as_ref(), ink),
            Cell::left(&plain(&peer.address)),
        ]);
    }
    text + &aligned(&rows)
}

/// How the services of a node are, as it says, and how old that is.
fn said(said: Option<&SaidStatus>, ink: Ink) -> Cell {
    let Some(said) = said else { return Cell::left("-") };
    let ago = format!("{:.1}s ago", said.seconds_ago);
    if !said.counts {
        let old = format!("said nothing for {:.0}s", said.seconds_ago);
        return Cell::plain(ink.on(Paint::Red, &old), &old);
    }
    let Cell { text, width, right } = tally(said.services.values().map(|s| s.state), ink);
    Cell { text: format!("{text}, {ago}"), width: width + 2 + ago.chars().count(), right }
}

/// `2 up, 1 down`.
fn tally(states: impl Iterator<Item = Mark> + Clone, ink: Ink) -> Cell {
    let marks = [Mark::Up, Mark::Degraded, Mark::Down, Mark::Unknown];
    let counts = marks.map(|mark| (mark, states.clone().filter(|state| *state == mark).count()));
    let words = counts.iter().filter(|(_, count)| *count > 0);
    let words: Vec<_> = words.map(|(m, count)| (*m, format!("{count} {}", m.word()))).collect();
    if words.is_empty() {
        return Cell::left("none");
    }
    let inked: Vec<String> = words.iter().map(|(mark, word)| marked(*mark, word, ink)).collect();
    let looks: Vec<&str> = words.iter().map(|(_, word)| word.as_str()).collect();
    Cell::plain(inked.join(", "), &looks.join(", "))
}

/// Where a service is not as it is here.
fn elsewhere(status: &Status, name: &str, ink: Ink) -> String {
    let Some(agreement) = &status.agreement else { return String::new() };
    let here = status.services.get(name).map(|service| service.state);
    let mut text = String::new();
    for (node, peer) in &agreement.peers {
        let Some(said) = peer.said.as_ref().filter(|said| said.counts) else { continue };
        let Some(sight) = said.services.get(name).filter(|s| Some(s.state) != here) else {
            continue;
        };
        text += &format!(
            "  at {}: {}: {} ({:.1}s ago)\n",
            plain(node),
            marked(sight.state, sight.state.word(), ink),
            plain(&sight.why),
            said.seconds_ago
        );
    }
    text
}

/// One service: how it is, what comes next, and its backends.
fn block(name: &str, service: &ServiceStatus, ink: Ink) -> String {
    let since =
        service.for_seconds.map(|s| format!(" for {}", show_seconds(s))).unwrap_or_default();
    let mut text = format!(
        "{}  {}{since}: {}\n",
        ink.on(Paint::Bold, &format!("service.{}", plain(name))),
        marked(service.state, service.state.word(), ink),
        plain(&service.why),
    );
    if let Some(next) = &service.next {
        text += &format!("  next: {}\n", plain(next));
    }
    if let Some(active) = &service.active {
        let moving = if active.moving { ", not routed to yet" } else { "" };
        text += &format!("  active: {}, epoch {}{moving}\n", plain(&active.side), active.epoch);
    }
    if let Some(listen) = &service.listen {
        let asked = if service.protocol == "tcp" { "connections" } else { "requests" };
        let rate = service.requests_per_second.map(|r| format!(" ({r:.1}/s)")).unwrap_or_default();
        text += &format!(
            "  {listen}: {} {asked}{rate}, {} failed, {} retries, {} in flight, {} open connections\n",
            service.requests,
            service.failed,
            service.retries,
            service.in_flight,
            service.connections,
        );
    }
    let pair = service.backends.iter().any(|b| b.role.is_some());
    let judged = service.backends.iter().any(|b| b.verdict.as_ref().is_some_and(|v| v.of > 1));
    let heads = [
        "backend",
        "role",
        "health",
        "all nodes",
        "for",
        "in flight",
        "requests",
        "failed",
        "errors",
        "last probe",
    ];
    let heads = heads.map(|head| Cell::plain(ink.on(Paint::Faint, head), head)).to_vec();
    let mut rows = vec![heads];
    rows.extend(service.backends.iter().map(|backend| backend_row(backend, ink)));
    if !judged {
        rows.iter_mut().for_each(|row| drop(row.remove(3)));
    }
    if !pair {
        rows.iter_mut().for_each(|row| drop(row.remove(1)));
    }
    text + &aligned(&rows)
}

fn backend_row(backend: &BackendStatus, ink: Ink) -> Vec<Cell> {
    let health = match &backend.trend {
        Some(trend) => format!("{}, {trend}", backend.health.word()),
        None => backend.health.word().to_owned(),
    };
    let health = plain(&health);
    let flags = [(backend.draining, "draining"), (backend.ejected, "ejected")];
    let flags = flags.into_iter().filter_map(|(on, word)| on.then_some(word));
    let last: Vec<String> = flags.map(|flag| ink.on(Paint::Yellow, flag)).collect();
    let mut last = last.join(", ");
    if !last.is_empty() && !backend.reason.is_empty() {
        last += "; ";
    }
    last += &plain(&backend.reason);
    let count = |count: u64| Cell::right(count.to_string());
    vec![
        Cell::left(&plain(&backend.name)),
        Cell::left(&plain(backend.role.as_deref().unwrap_or_default())),
        Cell::plain(marked(backend.health, &health, ink), &health),
        verdict(backend.verdict.as_ref(), ink),
        Cell::left(&backend.for_seconds.map_or("-".to_owned(), show_seconds)),
        count(backend.in_flight),
        count(backend.requests),
        count(backend.failed),
        count(backend.errors.values().sum()),
        Cell::left(&last),
    ]
}

/// `up (3 of 3)`: what more than half of all nodes say.
fn verdict(verdict: Option<&VerdictStatus>, ink: Ink) -> Cell {
    let Some(verdict) = verdict else { return Cell::left("-") };
    let VerdictStatus { health, up, down, of } = verdict;
    let looks = match health {
        Mark::Up => format!("up ({up} of {of})"),
        Mark::Down => format!("down ({down} of {of})"),
        Mark::Unknown | Mark::Degraded => format!("unknown ({up} up, {down} down of {of})"),
    };
    Cell::plain(marked(*health, &looks, ink), &looks)
}

/// Programs, what others run, and what nobody watches.
fn parts(status: &Status, ink: Ink) -> Option<String> {
    let mut rows = Vec::new();
    for (name, process) in &status.processes {
        let ready = if process.ready { "" } else { ", not ready" };
        let state = format!("{}{ready}", plain(&process.state));
        let pid = process.pid.map(|pid| format!("pid {pid}, ")).unwrap_or_default();
        let reason = if process.reason.is_empty() { "" } else { ", " };
        rows.push(vec![
            Cell::left(&format!("process.{}", plain(name))),
            Cell::plain(marked(process.health, &state, ink), &state),
            Cell::left(&process.for_seconds.map_or("-".to_owned(), show_seconds)),
            Cell::left(&format!(
                "{pid}{} restarts{reason}{}",
                process.restarts,
                plain(&process.reason)
            )),
        ]);
    }
    for (name, external) in &status.externals {
        rows.push(vec![
            Cell::left(&format!("external.{}", plain(name))),
            Cell::plain(
                marked(external.health, external.health.word(), ink),
                external.health.word(),
            ),
            Cell::left(&external.for_seconds.map_or("-".to_owned(), show_seconds)),
            Cell::left(&plain(&external.reason)),
        ]);
    }
    for (name, why) in &status.unwatched {
        let cells = [plain(name), "unknown".to_owned(), "-".to_owned(), plain(why)];
        rows.push(cells.iter().map(|cell| Cell::left(cell)).collect());
    }
    if rows.is_empty() {
        return None;
    }
    Some(format!("{}\n{}", ink.on(Paint::Bold, "other parts"), aligned(&rows)))
}

fn marked(mark: Mark, text: &str, ink: Ink) -> String {
    match mark {
        Mark::Up => ink.on(Paint::Green, text),
        Mark::Degraded => ink.on(Paint::Yellow, text),
        Mark::Down => ink.on(Paint::Red, text),
        Mark::Unknown => ink.on(Paint::Faint, text),
    }
}

/// A text and how wide it looks, without its colours.
#[derive(Clone)]
struct Cell {
    text: String,
    width: usize,
    right: bool,
}

impl Cell {
    fn plain(text: String, looks: &str) -> Cell {
        Cell { text, width: looks.chars().count(), right: false }
    }

    fn left(text: &str) -> Cell {
        Cell::plain(text.to_owned(), text)
    }

    fn right(text: String) -> Cell {
        Cell { width: text.chars().count(), text, right: true }
    }
}

/// Columns two spaces apart, indented by two; a column is to the right if its last cell is.
fn aligned(rows: &[Vec<Cell>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.width)).max();
    let widths: Vec<usize> = (0..columns).map(|column| widest(column).unwrap_or(0)).collect();
    let right =
        |column: usize| rows.last().and_then(|row| row.get(column)).is_some_and(|c| c.right);
    let line = |row: &Vec<Cell>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            let space = " ".repeat(width - cell.width);
            if right(column) {
                format!("{space}{}", cell.text)
            } else {
                format!("{}{space}", cell.text)
            }
        });
        format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn show_seconds(seconds: u64) -> String {
    show_duration(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use outlast::agent::face::status_json::PausedStatus;

    /// What an agent answers; its own tests keep this file.
    const ANSWER: &str = include_str!("agent/face/expected/status.json");

    const PLAIN: Ink = Ink { colour: false };

    fn status() -> Status {
        serde_json::from_str(ANSWER).unwrap()
    }

    #[test]
    fn the_screen_says_what_where_since_when_why_and_what_next() {
        expect![[r#"
            shop  node a  outlast 0.1.0  up 1d2h  proxy pid 4242, pid 4100 drains

            service.billing  up for 3m12s: the primary serves
              next: tcp://10.0.0.2:4000 gets no requests until `outlast undrain`
              active: primary, epoch 4
              0.0.0.0:8081: 12 connections, 0 failed, 0 retries, 0 in flight, 0 open connections
              backend              role     health  for  in flight  requests  failed  errors  last probe
              tcp://10.0.0.1:4000  primary  up      1h           2        12       0       0  connected in 1ms
              tcp://10.0.0.2:4000  backup   up      1h           0         0       0       0  draining; connected in 1ms

            service.web  degraded for 3m12s: 1 of 2 backends up
              next: http://10.0.0.1:3000 is down after 2 more failed probes, one every 5s
              0.0.0.0:8080: 1234579 requests (120.2/s), 11 failed, 5 retries, 4 in flight, 17 open connections
              backend               health              for  in flight  requests  failed  errors  last probe
              http://10.0.0.1:3000  up, going down 1/3  1h           2   1234575       8      11  no answer within 1s
              http://10.0.0.2:3000  down, going up 1/2  1h           2         0       0       0  status 200 in 3ms

            other parts
              process.api      running  1m  pid 77, 2 restarts, the program runs
              external.stripe  down     9s  connect stripe.example:443: refused
              external.dns     unknown  -   has no probe
              postgres.orders  unknown  -   not watched by this version
        "#]].assert_eq(&table(&status(), PLAIN));
    }

    #[test]
    fn what_is_wrong_with_the_agent_stands_on_top() {
        let mut status = Status { node: "a".to_owned(), stopping: true, ..Status::default() };
        status.proxy.refused = Some("two services at 0.0.0.0:8080".to_owned());
        status.proxy.stats_age_seconds = 61.2;
        status.pairs_not_saved = Some("write pairs.json: no space left".to_owned());
        status.failover_paused = Some(PausedStatus {
            who: "ann".to_owned(),
            why: "new switch".to_owned(),
            until: "2026-12-01T02:00:00Z".to_owned(),
        });
        expect![[r#"
              node a  outlast   up 0s  no proxy
            the agent is stopping: it finishes what is open
            no pair changes sides until who serves can be written to disk: write pairs.json: no space left
            failover is paused by ann until 2026-12-01T02:00:00Z: new switch
            the proxy goes on with its old table, the new one was refused: two services at 0.0.0.0:8080; change the file and `outlast reload`
            counters are 61s old
            no services: the file has no [service.NAME]
        "#]].assert_eq(&table(&status, PLAIN));
    }

    #[test]
    fn a_silent_proxy_stands_on_top() {
        let mut status = status();
        status.proxy.silent_seconds = Some(7);
        let text = table(&status, PLAIN);
        assert!(text.lines().next().unwrap().contains("proxy pid 4242 has not answered for 7s"));
    }

    #[test]
    fn colours_change_no_column() {
        let coloured = table(&status(), Ink { colour: true });
        let mut bare = coloured.clone();
        for code in ["0", "1", "2", "31", "32", "33"] {
            bare = bare.replace(&format!("\x1b[{code}m"), "");
        }
        assert_ne!(coloured, bare);
        let trimmed =
            |text: &str| text.lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>();
        assert_eq!(trimmed(&bare), trimmed(&table(&status(), PLAIN)));
    }

    #[test]
    fn nothing_that_a_backend_says_steers_the_terminal() {
        let mut status = status();
        status.services.get_mut("web").unwrap().backends[0].reason = "\x1b[2J\r\n".to_owned();
        assert!(!table(&status, PLAIN).contains(['\x1b', '\r']));
    }
}
