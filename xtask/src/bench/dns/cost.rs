//! What an answer costs: each server in turn on one core, dnsperf on the other.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::alone::{self, Alone};
use super::report::{Measure, Part, Report, Who};
use crate::bench::arena::free_ports;
use crate::children::TempDir;
use crate::{out, procs, tools};

const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;
const SOCKETS: &str = "8";
const OUTSTANDING: &str = "200";
const LOAD_TIME: Duration = Duration::from_secs(4);
const LOAD_TIME_QUICK: Duration = Duration::from_secs(2);
/// Before the first round, not counted.
const WARM_UP: Duration = Duration::from_secs(1);
/// dnsperf ends so long after its time at the latest.
const LOAD_LIMIT: Duration = Duration::from_secs(30);

const ALL: [Who; 7] =
    [Who::Outlast, Who::Knot, Who::Nsd, Who::Gdnsd, Who::Pdns, Who::OutlastSigned, Who::KnotSigned];

/// What those threads have used that are counted.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    cpu: Duration,
    user: Duration,
    system: Duration,
}

impl Used {
    fn of(threads: &[procs::Thread]) -> Used {
        let sum = |of: fn(&procs::Thread) -> Duration| threads.iter().map(of).sum();
        Used { cpu: sum(|t| t.cpu), user: sum(|t| t.user), system: sum(|t| t.system) }
    }

    fn since(&self, before: &Used) -> Used {
        Used {
            cpu: self.cpu.saturating_sub(before.cpu),
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
        }
    }

    /// How much of it was in user mode: the ticks say in which parts, the scheduler how much.
    fn in_user_mode(&self) -> f64 {
        let ticks = (self.user + self.system).as_secs_f64();
        if ticks > 0.0 { self.cpu.as_secs_f64() * self.user.as_secs_f64() / ticks } else { 0.0 }
    }
}

/// All of a server, and those of its threads that answer, where they are told apart from the rest.
fn used(server: &Alone) -> (Used, Used) {
    let family = procs::tree(server.child.pid());
    let all: Vec<procs::Thread> = family.iter().flat_map(|p| procs::threads(p.pid)).collect();
    let answers = |thread: &&procs::Thread| thread.name.starts_with("dns-");
    let answering: Vec<procs::Thread> = if server.who.is_ours() {
        all.iter().filter(answers).cloned().collect()
    } else {
        all.clone()
    };
    (Used::of(&all), Used::of(&answering))
}

/// What dnsperf reports.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Load {
    completed: f64,
    lost: f64,
    per_second: f64,
}

fn parse(text: &str) -> Option<Load> {
    let number = |name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Load {
        completed: number("Queries completed:")?,
        lost: number("Queries lost:")?,
        per_second: number("Queries per second:")?,
    })
}

async fn dnsperf(server: &Alone, questions: &Path, time: Duration) -> Result<Load> {
    let program = tools::which("dnsperf").context("dnsperf is installed but not found")?;
    let mut command =
        tokio::process::Command::new(std::env::current_exe().context("find ourselves")?);
    command.args(["leash", "--parent", &std::process::id().to_string()]);
    command.args(["--core", &LOAD_CORE.to_string(), "--"]).arg(program);
    command.args(["-s", &server.at.ip().to_string(), "-p", &server.at.port().to_string(), "-d"]);
    command.arg(questions);
    command.args(["-l", &time.as_secs().to_string(), "-c", SOCKETS, "-q", OUTSTANDING, "-T", "1"]);
    // EDNS; where signatures are asked for, that is told by it.
    let signed = matches!(server.who, Who::OutlastSigned | Who::KnotSigned);
    command.arg(if signed { "-D" } else { "-e" });
    command.stdin(Stdio::null()).kill_on_drop(true);
    let done = tokio::time::timeout(time + LOAD_LIMIT, command.output()).await;
    let done = done.context("dnsperf does not end")?.context("run dnsperf")?;
    let text = String::from_utf8_lossy(&done.stdout);
    if !done.status.success() {
        bail!("dnsperf: {}: {text}{}", done.status, String::from_utf8_lossy(&done.stderr));
    }
    parse(&text).with_context(|| format!("read what dnsperf says: {text}"))
}

pub(super) async fn compare(
    rounds: usize,
    quick: bool,
    takes_part: impl Fn(&Who) -> bool,
    outlast: Option<&Path>,
    report: &mut Report,
) -> Result<()> {
    let cores = std::thread::available_parallelism().context("count cores")?.get();
    ensure!(cores >= 2, "part D needs two cores: one for the server, one for the load");
    let dir = TempDir::new("dns-cost")?;
    let questions = dir.path().join("questions");
    std::fs::write(&questions, alone::questions()).context("write the questions")?;
    let who: Vec<Who> = ALL.into_iter().filter(takes_part).collect();
    let ports = free_ports(who.len())?;
    let mut servers = Vec::new();
    for (who, at) in who.into_iter().zip(ports) {
        let core = Some(SERVER_CORE);
        servers.push(Alone::start(who, at, None, outlast, core, dir.path()).await?);
    }
    let time = if quick { LOAD_TIME_QUICK } else { LOAD_TIME };
    for server in &servers {
        dnsperf(server, &questions, WARM_UP).await?;
    }
    for round in 1..=rounds {
        for server in &mut servers {
            let (all_before, before) = used(server);
            let load = dnsperf(server, &questions, time).await?;
            server.child.check_running()?;
            let (all, answering) = used(server);
            let (all, answering) = (all.since(&all_before), answering.since(&before));
            let each = |seconds: f64| seconds * 1e6 / load.completed.max(1.0);
            let who = server.who;
            let cpu = each(answering.cpu.as_secs_f64());
            report.record(Measure::Cpu, who, cpu);
            report.record(Measure::CpuUser, who, each(answering.in_user_mode()));
            if who.is_ours() {
                report.record(Measure::CpuAgent, who, each(all.cpu.as_secs_f64()));
            }
            report.record(Measure::Rate, who, load.per_second);
            report.record(Measure::Lost, who, load.lost);
            out::line(format!(
                "D round {round} of {rounds}: {} {cpu:.2} us, {:.0} queries/s",
                who.name(),
                load.per_second
            ));
        }
        // Nobody is always the first.
        servers.rotate_left(1);
    }
    let note =
        "CPU of outlast is that of the threads that answer; of the others it is all of theirs";
    report.note(Part::Cost, note.to_owned());
    for server in servers {
        server.child.stop().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dnsperf_prints_is_read() {
        let text = "Statistics:\n\n  Queries sent:         475003\n  Queries completed:    475000 (100.00%)\n  \
                    Queries lost:         3 (0.00%)\n\n  Run time (s):         4.000\n  Queries per second:   118750.5\n";
        let expected = Load { completed: 475_000.0, lost: 3.0, per_second: 118_750.5 };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse("no such server"), None);
    }

    #[test]
    fn time_in_user_mode_is_a_share_of_what_the_scheduler_counted() {
        let ms = Duration::from_millis;
        let used = Used { cpu: ms(110), user: ms(25), system: ms(75) };
        assert!((used.in_user_mode() - 0.0275).abs() < 1e-9);
    }
}
