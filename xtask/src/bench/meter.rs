//! CPU time, memory and load of one measurement.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::peers::Running;
use crate::histogram::Histogram;
use crate::load::{self, Outcome, Plan};
use crate::{children, procs, tools};

/// Slower answers than this are errors, whatever the load.
const TIMEOUT: Duration = Duration::from_secs(10);
/// At the start of open-loop load, not counted.
const WARM_UP: Duration = Duration::from_secs(1);

/// What a proxy and the machine had used at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    at: Instant,
    /// The proxy: all of it, and those processes that carry traffic.
    all: Duration,
    carriers: Duration,
    /// The machine: all work, and ours.
    machine: Duration,
    ours: Duration,
}

/// The difference of two readings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) cpu: Duration,
    pub(super) carriers: Duration,
    pub(super) foreign_cores: f64,
}

impl Reading {
    pub(super) fn of(running: &Running) -> Result<Reading> {
        let own = i32::try_from(std::process::id()).expect("the kernel's process numbers fit");
        let sum = |stats: Vec<procs::Stat>| stats.iter().map(procs::Stat::cpu_with_ended).sum();
        let (work, stolen) = procs::machine_cpu()?;
        Ok(Reading {
            at: Instant::now(),
            all: sum(running.processes()),
            carriers: running.carriers().iter().map(procs::Stat::cpu).sum(),
            machine: work + stolen,
            ours: sum(procs::tree(own)),
        })
    }

    pub(super) fn used_since(&self, before: &Reading) -> Used {
        let machine = self.machine.saturating_sub(before.machine);
        let ours = self.ours.saturating_sub(before.ours);
        let time = self.at - before.at;
        Used {
            cpu: self.all.saturating_sub(before.all),
            carriers: self.carriers.saturating_sub(before.carriers),
            foreign_cores: machine.saturating_sub(ours).as_secs_f64() / time.as_secs_f64(),
        }
    }
}

pub(super) fn reset_peak_memory(running: &Running) -> Result<()> {
    running.processes().iter().try_for_each(|stat| procs::reset_peak_memory(stat.pid))
}

/// The sum over its processes, so that pages which they share count more than once.
pub(super) fn peak_memory(running: &Running) -> Result<u64> {
    running.processes().iter().map(|stat| procs::peak_memory(stat.pid)).sum()
}

/// What wrk reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wrk {
    pub(super) requests: f64,
    pub(super) requests_per_second: f64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    pub(super) errors: u64,
}

/// Closed-loop load: every connection sends its next request when the last one is answered.
pub(super) async fn wrk(
    target: SocketAddr,
    path: &str,
    connections: usize,
    threads: usize,
    time: Duration,
    core: Option<usize>,
) -> Result<Wrk> {
    let program = tools::which("wrk").context("wrk is installed but not found")?;
    let mut command =
        tokio::process::Command::new(std::env::current_exe().context("find ourselves")?);
    command.args(["leash", "--parent", &std::process::id().to_string()]);
    if let Some(core) = core {
        command.args(["--core", &core.to_string()]);
    }
    command.arg("--").arg(program);
    command.args([
        format!("-t{threads}"),
        format!("-c{connections}"),
        format!("-d{}s", time.as_secs()),
    ]);
    command.args(["--latency", "--timeout", &format!("{}s", TIMEOUT.as_secs())]);
    command.arg(format!("http://{target}{path}"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.context("run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("wrk: {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    parse_wrk(&text).with_context(|| format!("read what wrk says: {text}"))
}

fn parse_wrk(text: &str) -> Option<Wrk> {
    let line = |start: &str| text.lines().map(str::trim).find_map(|line| line.strip_prefix(start));
    let total = text.lines().find_map(|line| line.split_once(" requests in "))?.0;
    let numbers = |line: &str| -> u64 {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).sum()
    };
    Some(Wrk {
        requests: total.trim().parse().ok()?,
        requests_per_second: line("Requests/sec:")?.trim().parse().ok()?,
        p50: wrk_time(line("50%")?)?,
        p99: wrk_time(line("99%")?)?,
        errors: line("Socket errors:").map_or(0, numbers)
            + line("Non-2xx or 3xx responses:").map_or(0, numbers),
    })
}

/// `950.00us`, `5.27ms`, `1.02s`, `1.50m`
fn wrk_time(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| c.is_ascii_alphabetic())?;
    let seconds = match &text[digits..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(text[..digits].parse::<f64>().ok()? * seconds))
}

/// What open-loop load found.
#[derive(Clone, Debug)]
pub(super) struct OpenLoop {
    pub(super) latencies: Histogram,
    pub(super) errors: u64,
}

/// Requests at a fixed rate from a thread of our own, latency counted from when each was due.
pub(super) async fn open_loop(plan: Plan, time: Duration, core: Option<usize>) -> Result<OpenLoop> {
    let stop = Arc::new(AtomicBool::new(false));
    let found = Arc::new(Mutex::new(OpenLoop { latencies: Histogram::new(), errors: 0 }));
    let thread = std::thread::spawn({
        let (stop, found) = (Arc::clone(&stop), Arc::clone(&found));
        move || -> Result<()> {
            core.map_or(Ok(()), children::pin_to)?;
            let counted_from = Instant::now() + WARM_UP;
            load::run(&plan, &stop, |sample| {
                let mut found = found.lock().expect("nobody panics while holding it");
                if sample.due >= counted_from {
                    found.latencies.add(sample.latency);
                    found.errors += u64::from(sample.outcome != Outcome::Ok);
                }
            })
        }
    });
    let stop_when_dropped = Stop(stop);
    tokio::time::sleep(WARM_UP + time).await;
    drop(stop_when_dropped);
    thread.join().ok().context("the load thread panicked").flatten()?;
    let found = found.lock().expect("nobody panics while holding it");
    Ok(found.clone())
}

/// Ends the load even when nobody waits for its end any more.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let text = "Running 3s test @ http://127.0.0.1:1/1k
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.36ms  811.82us  20.39ms   91.31%
  Latency Distribution
     50%  950.00us
     75%    1.51ms
     90%    1.95ms
     99%    5.27ms
  140123 requests in 3.00s, 170.51MB read
  Socket errors: connect 0, read 2, write 0, timeout 1
  Non-2xx or 3xx responses: 4
Requests/sec:  46707.66
Transfer/sec:     56.84MB
";
        let expected = Wrk {
            requests: 140_123.0,
            requests_per_second: 46_707.66,
            p50: Duration::from_micros(950),
            p99: Duration::from_micros(5270),
            errors: 7,
        };
        assert_eq!(parse_wrk(text), Some(expected));
        assert_eq!(parse_wrk("unable to connect"), None);
    }
}
