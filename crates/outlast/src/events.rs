//! `outlast events`: the journal, for people and for programs.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context as _;
use outlast_core::event::Severity;
use outlast_host::journal::{Follow, Line, read_last};

use crate::cli::{EventsArgs, Format};
use crate::output::{self, Ink, Paint, plain};
use crate::{Outcome, verbs};

pub(crate) fn run(args: &EventsArgs) -> anyhow::Result<Outcome> {
    let dir = verbs::data_dir(&args.at)?.join("journal");
    match std::fs::read_dir(&dir) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => anyhow::bail!(
            "there is no journal at {}; it begins with the first `outlast run` of this file; another place is named with --data-dir",
            dir.display()
        ),
        Err(error) => {
            return Err(error).with_context(|| {
                format!("read the journal at {}; may you open that directory?", dir.display())
            });
        }
    }
    let wanted = |line: &Line| args.subject.as_ref().is_none_or(|s| is_about(line, s));
    // Looked up first, so that what is written between the two reads is shown by the second.
    let newest = read_last(&dir, 1).context("read the journal")?.last().map_or(0, |line| line.seq);
    let last = last_wanted(&dir, args.last, newest, wanted)?;
    let ink = Ink { colour: output::output_may_have_colour() };
    if !output::print_on(&shown(&last, args.format, ink))? || !args.follow {
        return Ok(Outcome::Fine);
    }
    verbs::block_on(async {
        let mut follow = Follow::after(&dir, newest);
        loop {
            let lines = tokio::select! {
                lines = follow.next() => lines.context("read the journal")?,
                () = output::reader_gone() => return Ok(Outcome::Fine),
                _ = tokio::signal::ctrl_c() => return Ok(Outcome::Fine),
            };
            let lines: Vec<Line> = lines.into_iter().filter(wanted).collect();
            if !output::print_on(&shown(&lines, args.format, ink))? {
                return Ok(Outcome::Fine);
            }
        }
    })
}

/// The last `count` lines up to `newest` that are wanted, oldest first. Reads no further back than it must.
fn last_wanted(
    dir: &Path,
    count: usize,
    newest: u64,
    wanted: impl Fn(&Line) -> bool,
) -> anyhow::Result<Vec<Line>> {
    let mut reach = count.saturating_add(16);
    loop {
        let lines = read_last(dir, reach).context("read the journal")?;
        let all = lines.len() < reach;
        let mut found: Vec<Line> =
            lines.into_iter().filter(|line| line.seq <= newest && wanted(line)).collect();
        if all || found.len() >= count {
            found.drain(..found.len().saturating_sub(count));
            return Ok(found);
        }
        reach = reach.saturating_mul(8);
    }
}

/// `service.web` is about itself and about `service`.
fn is_about(line: &Line, subject: &str) -> bool {
    let rest = line.subject.strip_prefix(subject);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn shown(lines: &[Line], format: Format, ink: Ink) -> String {
    lines
        .iter()
        .map(|line| match format {
            Format::Json => line.to_json() + "\n",
            Format::Table => row(line, ink),
        })
        .collect()
}

/// Fixed columns, because lines that are still to come cannot be measured.
fn row(line: &Line, ink: Ink) -> String {
    let (paint, word) = match line.severity {
        Severity::Info => (None, "info "),
        Severity::Warn => (Some(Paint::Yellow), "warn "),
        Severity::Error => (Some(Paint::Red), "error"),
    };
    let word = paint.map_or(word.to_owned(), |paint| ink.on(paint, word));
    let at = ink.on(Paint::Faint, &line.at);
    let (subject, message) = (plain(&line.subject), plain(&line.message));
    format!("{at}  {word}  {subject:<20}  {message}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use outlast_core::event::{Event, Fact, Target};
    use outlast_core::health::Health;
    use outlast_core::time::Timestamp;
    use outlast_host::journal::Journal;
    use std::time::Duration;

    fn facts() -> Vec<Fact> {
        vec![
            Fact::AgentStarted { version: "0.1.0".to_owned(), resumed: false },
            Fact::HealthChanged {
                target: Target::Backend {
                    service: "web".to_owned(),
                    backend: "http://a".to_owned(),
                },
                from: Health::Up,
                to: Health::Down,
                reason: "500 \u{1b}[2J".to_owned(),
                began_ago: Duration::from_secs(10),
            },
            Fact::BothDown { service: "webshop".to_owned() },
        ]
    }

    fn lines() -> Vec<Line> {
        let event = |(seq, fact)| Event {
            seq,
            at: Timestamp(1_795_359_845_678),
            node: "a".to_owned(),
            fact,
        };
        (1..).zip(facts()).map(event).map(|event| Line::of(&event)).collect()
    }

    #[test]
    fn events_are_rows_for_people_and_objects_for_programs() {
        expect![[r#"
            2026-11-22T15:04:05.678Z  info   agent                 started, version 0.1.0
            2026-11-22T15:04:05.678Z  warn   service.web           http://a up -> down: 500  [2J (began 10s ago)
            2026-11-22T15:04:05.678Z  error  service.webshop       primary and backup are both down
        "#]]
        .assert_eq(&shown(&lines(), Format::Table, Ink { colour: false }));
        expect![[r#"
            {"v":1,"seq":1,"at":"2026-11-22T15:04:05.678Z","node":"a","event":"agent_started","subject":"agent","severity":"info","message":"started, version 0.1.0","resumed":false,"version":"0.1.0"}
        "#]]
        .assert_eq(&shown(&lines()[..1], Format::Json, Ink { colour: false }));
        assert!(row(&lines()[2], Ink { colour: true }).contains("\x1b[31merror\x1b[0m"));
    }

    #[test]
    fn a_subject_is_a_part_or_a_kind_of_part() {
        let about = |subject: &str| lines().iter().filter(|line| is_about(line, subject)).count();
        assert_eq!(
            ["service", "service.web", "service.w", "agent", "x"].map(about),
            [2, 1, 0, 1, 0]
        );
    }

    #[test]
    fn rare_lines_are_found_far_back() {
        let dir = std::env::temp_dir().join(format!("outlast-events-{}", std::process::id()));
        let (mut journal, _) = Journal::open(&dir, "a").unwrap();
        for fact in facts() {
            journal.record(Timestamp(0), fact).unwrap();
        }
        for _ in 0..1000 {
            let fact = Fact::AgentStopping { reason: "x".to_owned() };
            journal.record(Timestamp(0), fact).unwrap();
        }
        let find = |count, subject: &'static str| {
            let found = last_wanted(&dir, count, 900, |line| is_about(line, subject)).unwrap();
            found.into_iter().map(|line| line.seq).collect::<Vec<_>>()
        };
        assert_eq!(find(5, "service"), [2, 3]);
        assert_eq!(find(1, "service"), [3]);
        assert_eq!(find(2, "agent"), [899, 900]);
        assert_eq!(find(0, "agent"), [0; 0]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
