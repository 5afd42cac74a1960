//! What a request, a gigabyte and a client cost: HAProxy, nginx and outlast in front of the same backend.
//!
//! With one thread, the proxy has a core of its own and load and backend share another; these figures decide. With
//! two threads nothing is tied to a core.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::arena::{Arena, Setting};
use super::figures::{Goal, Report};
use super::meter::{self, Reading, Used};
use super::peers::{Peer, Running};
use super::{Options, measure};
use crate::load::Plan;
use crate::out;

const ONE_THREAD: Setting = Setting { threads: 1, proxy_core: Some(1), load_core: Some(0) };
const TWO_THREADS: Setting = Setting { threads: 2, proxy_core: None, load_core: None };

/// One kind of closed-loop load.
struct Cell {
    path: &'static str,
    size: &'static str,
    connections: usize,
    cpu_goal: f64,
    /// Peak memory is held against HAProxy's.
    memory_goal: Option<f64>,
}

/// Small answers first: memory that large ones needed would otherwise be counted for them.
const CELLS: &[Cell] = &[
    Cell { path: "/1k", size: "1 KiB", connections: 64, cpu_goal: 1.10, memory_goal: None },
    Cell { path: "/1k", size: "1 KiB", connections: 512, cpu_goal: 1.05, memory_goal: Some(1.0) },
    Cell { path: "/64k", size: "64 KiB", connections: 64, cpu_goal: 1.0, memory_goal: None },
    Cell { path: "/64k", size: "64 KiB", connections: 512, cpu_goal: 1.0, memory_goal: None },
];
const OPEN_LOOP_RATE: f64 = 8_000.0;
const OPEN_LOOP_CONNECTIONS: usize = 64;
const OPEN_LOOP_P99_GOAL: f64 = 1.1;
const STREAM_CPU_GOAL: f64 = 0.6;
const OPEN_LOOP_TIMEOUT: Duration = Duration::from_secs(5);
const GIGABYTE: u64 = 1_000_000_000;

struct Sizes {
    wrk: Duration,
    open_loop: Duration,
    stream_bytes: u64,
}

const FULL: Sizes = Sizes {
    wrk: Duration::from_secs(5),
    open_loop: Duration::from_secs(8),
    stream_bytes: 6 * GIGABYTE,
};
const QUICK: Sizes = Sizes {
    wrk: Duration::from_secs(2),
    open_loop: Duration::from_secs(3),
    stream_bytes: 2 * GIGABYTE,
};

pub(super) fn run(options: Options, outlast: Option<PathBuf>) -> Result<Option<Report>> {
    let cores = std::thread::available_parallelism().context("count cores")?.get();
    ensure!(cores >= 2, "this needs two cores: one for the proxy, one for load and backend");
    measure(compare(options, outlast))
}

async fn compare(options: Options, outlast: Option<PathBuf>) -> Result<Report> {
    let mut peers: Vec<_> = Peer::ALL.to_vec();
    peers.retain(|peer| *peer != Peer::Outlast || outlast.is_some());
    let mut round = Round {
        sizes: if options.quick { QUICK } else { FULL },
        report: Report::new(outlast.is_some()),
        number: 0,
        setting: ONE_THREAD,
    };
    for number in 0..options.rounds {
        for setting in [ONE_THREAD, TWO_THREADS] {
            out::line(format!("round {} of {}, {}", number + 1, options.rounds, words(setting)));
            (round.number, round.setting) = (number, setting);
            let arena = Arena::open(setting, &peers, outlast.as_deref()).await?;
            round.run(&arena).await?;
            arena.close().await;
            // Nobody is always the first.
            peers.rotate_left(1);
        }
    }
    out::status("");
    Ok(round.report)
}

struct Round {
    sizes: Sizes,
    report: Report,
    number: usize,
    setting: Setting,
}

impl Round {
    async fn run(&mut self, arena: &Arena) -> Result<()> {
        for running in &arena.running {
            self.wrk(running, &CELLS[0], Duration::from_secs(1)).await?;
        }
        for cell in CELLS {
            for running in &arena.running {
                self.closed_loop(running, cell).await?;
            }
        }
        if self.setting == ONE_THREAD {
            for running in &arena.running {
                self.open_loop(running).await?;
            }
            // Debian's nginx passes streams on only with a module of its own.
            for running in arena.running.iter().filter(|running| running.peer != Peer::Nginx) {
                self.stream(arena, running).await?;
            }
        }
        Ok(())
    }

    async fn closed_loop(&mut self, running: &Running, cell: &Cell) -> Result<()> {
        let Cell { size, connections, .. } = cell;
        let what = format!("{size}, {connections} clients");
        self.announce(running, &what);
        meter::reset_peak_memory(running)?;
        let before = Reading::of(running)?;
        let wrk = self.wrk(running, cell, self.sizes.wrk).await?;
        let used = self.used(running, &before)?;
        let peak = meter::peak_memory(running)?;
        self.errors(running, &what, wrk.errors);

        let micros = |cpu: Duration| cpu.as_secs_f64() * 1e6 / wrk.requests;
        let peer = running.peer;
        let cpu_goal = self.goal(cell.cpu_goal);
        self.record(peer, (&format!("CPU per request, {what}"), "us"), cpu_goal, micros(used.cpu));
        if peer == Peer::Outlast {
            let name = format!("- of it in the data plane, {what}");
            self.record(peer, (&name, "us"), None, micros(used.carriers));
        }
        self.record(peer, (&format!("requests, {what}"), "1/s"), None, wrk.requests_per_second);
        self.record(peer, (&format!("p50, {what}"), "ms"), None, wrk.p50.as_secs_f64() * 1e3);
        self.record(peer, (&format!("p99, {what}"), "ms"), None, wrk.p99.as_secs_f64() * 1e3);
        if cell.connections == 512 {
            #[expect(clippy::cast_precision_loss, reason = "far less memory than 2^52 bytes")]
            let mib = peak as f64 / f64::from(1 << 20);
            let goal = cell.memory_goal.and_then(|ratio| self.goal(ratio));
            self.record(peer, (&format!("peak memory, {what}"), "MiB"), goal, mib);
        }
        Ok(())
    }

    async fn wrk(&self, running: &Running, cell: &Cell, time: Duration) -> Result<meter::Wrk> {
        let Setting { threads, load_core, .. } = self.setting;
        let target = running.places.http;
        meter::wrk(target, cell.path, cell.connections, threads, time, load_core)
            .await
            .with_context(|| format!("load {}", running.peer.name()))
    }

    async fn open_loop(&mut self, running: &Running) -> Result<()> {
        let what = format!("at {OPEN_LOOP_RATE} requests/s");
        self.announce(running, &what);
        let plan = Plan {
            target: running.places.http,
            path: "/1k".to_owned(),
            rate_per_second: OPEN_LOOP_RATE,
            connections_max: OPEN_LOOP_CONNECTIONS,
            timeout: OPEN_LOOP_TIMEOUT,
        };
        let before = Reading::of(running)?;
        let found = meter::open_loop(plan, self.sizes.open_loop, self.setting.load_core).await?;
        let _used = self.used(running, &before)?;
        self.errors(running, &what, found.errors);
        let millis = |share| found.latencies.quantile(share).as_secs_f64() * 1e3;
        let peer = running.peer;
        self.record(peer, (&format!("p50 {what}"), "ms"), None, millis(0.5));
        let goal = self.goal(OPEN_LOOP_P99_GOAL);
        self.record(peer, (&format!("p99 {what}"), "ms"), goal, millis(0.99));
        Ok(())
    }

    async fn stream(&mut self, arena: &Arena, running: &Running) -> Result<()> {
        self.announce(running, "TCP stream");
        let bytes = self.sizes.stream_bytes;
        let before = Reading::of(running)?;
        let start = std::time::Instant::now();
        arena
            .sink
            .receive_through(running.places.tcp, bytes, self.setting.load_core)
            .await
            .with_context(|| format!("stream through {}", running.peer.name()))?;
        let time = start.elapsed();
        let used = self.used(running, &before)?;
        #[expect(clippy::cast_precision_loss, reason = "a few gigabytes")]
        let gigabytes = bytes as f64 / GIGABYTE as f64;
        let per_gigabyte = used.cpu.as_secs_f64() / gigabytes;
        let peer = running.peer;
        let goal = self.goal(STREAM_CPU_GOAL);
        self.record(peer, ("CPU per gigabyte, TCP stream", "s"), goal, per_gigabyte);
        let speed = gigabytes / time.as_secs_f64();
        self.record(peer, ("TCP stream", "GB/s"), None, speed);
        Ok(())
    }

    fn used(&mut self, running: &Running, before: &Reading) -> Result<Used> {
        let used = Reading::of(running)?.used_since(before);
        self.report.foreign_cores.push(used.foreign_cores);
        Ok(used)
    }

    fn errors(&mut self, running: &Running, what: &str, errors: u64) {
        if errors > 0 {
            let name = running.peer.name();
            let setting = words(self.setting);
            self.report.faults.push(format!("{name}, {what}, {setting}: {errors} errors"));
        }
    }

    fn announce(&self, running: &Running, what: &str) {
        if out::is_terminal() {
            out::status(format!("  {}: {what}", running.peer.name()));
        }
    }

    fn goal(&self, ratio_max: f64) -> Option<Goal> {
        Some(Goal { ratio_max, decides: self.setting == ONE_THREAD })
    }

    fn record(
        &mut self,
        peer: Peer,
        (name, unit): (&str, &'static str),
        goal: Option<Goal>,
        value: f64,
    ) {
        let name = format!("{} thr: {name}", self.setting.threads);
        self.report.record(self.number, peer, (&name, unit), goal, value);
    }
}

fn words(setting: Setting) -> &'static str {
    if setting == ONE_THREAD { "one thread, pinned" } else { "two threads" }
}
