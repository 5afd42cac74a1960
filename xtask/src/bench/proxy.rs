//! What a request, a gigabyte and a client cost: HAProxy, nginx and outlast in front of the same backend.
//!
//! With one thread, the proxy has a core of its own and load and backend share another; these figures decide. With
//! two threads nothing is tied to a core.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::arena::{Arena, Setting};
use super::figures::{FOREIGN_CORES_MAX, Goal, Report};
use super::meter::{self, Reading, Used};
use super::peers::{Peer, Running};
use super::{Finished, Options, measure};
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
const MEMORY_CONNECTIONS: usize = 512;
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
    /// Of a turn that others disturb.
    attempts: usize,
}

const FULL: Sizes = Sizes {
    wrk: Duration::from_secs(5),
    open_loop: Duration::from_secs(8),
    stream_bytes: 6 * GIGABYTE,
    attempts: 2,
};
const QUICK: Sizes = Sizes {
    wrk: Duration::from_secs(2),
    open_loop: Duration::from_secs(3),
    stream_bytes: 2 * GIGABYTE,
    attempts: 1,
};

pub(super) fn run(options: Options, outlast: Option<PathBuf>) -> Result<Option<Finished>> {
    let cores = std::thread::available_parallelism().context("count cores")?.get();
    ensure!(cores >= 2, "this needs two cores: one for the proxy, one for load and backend");
    let report = measure(compare(options, outlast))?;
    Ok(report.map(|report| Finished {
        table: report.table(),
        json: report.json("proxy"),
        holds: report.holds(),
    }))
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

/// One kind of measurement, made of each proxy in turn.
#[derive(Clone, Copy)]
enum Kind {
    Closed(&'static Cell),
    Open,
    Stream,
}

/// What one turn over all proxies found.
#[derive(Default)]
struct Turn {
    entries: Vec<Entry>,
    foreign_cores: Vec<f64>,
    faults: Vec<String>,
}

struct Entry {
    peer: Peer,
    name: String,
    unit: &'static str,
    goal: Option<f64>,
    value: f64,
}

impl Turn {
    fn noise(&self) -> f64 {
        self.foreign_cores.iter().copied().fold(0.0, f64::max)
    }

    fn note(&mut self, peer: Peer, name: impl Into<String>, unit: &'static str, value: f64) {
        self.entries.push(Entry { peer, name: name.into(), unit, goal: None, value });
    }

    /// The ratio to HAProxy of the value noted last must not exceed it.
    fn held_against(&mut self, ratio_max: impl Into<Option<f64>>) {
        if let Some(entry) = self.entries.last_mut() {
            entry.goal = ratio_max.into();
        }
    }
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
            self.quietest_turn(arena, Kind::Closed(cell)).await?;
        }
        if self.setting == ONE_THREAD {
            self.quietest_turn(arena, Kind::Open).await?;
            self.quietest_turn(arena, Kind::Stream).await?;
        }
        Ok(())
    }

    /// A turn that others disturbed is taken again; which one counts is chosen by the noise, not by the result.
    async fn quietest_turn(&mut self, arena: &Arena, kind: Kind) -> Result<()> {
        let mut best = self.turn(arena, kind).await?;
        for _ in 1..self.sizes.attempts {
            if best.noise() <= FOREIGN_CORES_MAX {
                break;
            }
            let mut again = self.turn(arena, kind).await?;
            if again.noise() < best.noise() {
                std::mem::swap(&mut best, &mut again);
            }
            // An error counts in whichever turn it happened.
            best.faults.append(&mut again.faults);
        }
        self.record(best);
        Ok(())
    }

    async fn turn(&self, arena: &Arena, kind: Kind) -> Result<Turn> {
        let mut turn = Turn::default();
        for running in &arena.running {
            let before = Reading::of(running)?;
            match kind {
                Kind::Closed(cell) => self.closed_loop(&mut turn, running, cell, &before).await?,
                Kind::Open => self.open_loop(&mut turn, running, &before).await?,
                // Debian's nginx passes streams on only with a module of its own.
                Kind::Stream if running.peer == Peer::Nginx => {}
                Kind::Stream => self.stream(&mut turn, arena, running, &before).await?,
            }
        }
        Ok(turn)
    }

    async fn closed_loop(
        &self,
        turn: &mut Turn,
        running: &Running,
        cell: &Cell,
        before: &Reading,
    ) -> Result<()> {
        let what = format!("{}, {} clients", cell.size, cell.connections);
        announce(running, &what);
        meter::reset_peak_memory(running)?;
        let wrk = self.wrk(running, cell, self.sizes.wrk).await?;
        let used = used(turn, running, before)?;
        let peak = meter::peak_memory(running)?;
        self.errors(turn, running, &what, wrk.errors);

        let peer = running.peer;
        let micros = |cpu: Duration| cpu.as_secs_f64() * 1e6 / wrk.requests;
        turn.note(peer, format!("CPU per request, {what}"), "us", micros(used.cpu));
        turn.held_against(cell.cpu_goal);
        if peer == Peer::Outlast {
            let name = format!("- of it in the data plane, {what}");
            turn.note(peer, name, "us", micros(used.carriers));
        }
        turn.note(peer, format!("requests, {what}"), "1/s", wrk.requests_per_second);
        turn.note(peer, format!("p50, {what}"), "ms", millis(wrk.p50));
        turn.note(peer, format!("p99, {what}"), "ms", millis(wrk.p99));
        if cell.connections == MEMORY_CONNECTIONS {
            #[expect(clippy::cast_precision_loss, reason = "far less memory than 2^52 bytes")]
            let mib = peak as f64 / f64::from(1 << 20);
            turn.note(peer, format!("peak memory, {what}"), "MiB", mib);
            turn.held_against(cell.memory_goal);
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

    async fn open_loop(&self, turn: &mut Turn, running: &Running, before: &Reading) -> Result<()> {
        let what = format!("at {OPEN_LOOP_RATE} requests/s");
        announce(running, &what);
        let plan = Plan {
            connections_max: OPEN_LOOP_CONNECTIONS,
            timeout: OPEN_LOOP_TIMEOUT,
            ..Plan::gets(running.places.http, "/1k", OPEN_LOOP_RATE)
        };
        let found = meter::open_loop(plan, self.sizes.open_loop, self.setting.load_core).await?;
        used(turn, running, before)?;
        self.errors(turn, running, &what, found.errors);
        let quantile = |share| millis(found.latencies.quantile(share));
        turn.note(running.peer, format!("p50 {what}"), "ms", quantile(0.5));
        turn.note(running.peer, format!("p99 {what}"), "ms", quantile(0.99));
        turn.held_against(OPEN_LOOP_P99_GOAL);
        Ok(())
    }

    async fn stream(
        &self,
        turn: &mut Turn,
        arena: &Arena,
        running: &Running,
        before: &Reading,
    ) -> Result<()> {
        announce(running, "TCP stream");
        let bytes = self.sizes.stream_bytes;
        let start = Instant::now();
        arena
            .sink
            .receive_through(running.places.tcp, bytes, self.setting.load_core)
            .await
            .with_context(|| format!("stream through {}", running.peer.name()))?;
        let time = start.elapsed();
        let used = used(turn, running, before)?;
        #[expect(clippy::cast_precision_loss, reason = "a few gigabytes")]
        let gigabytes = bytes as f64 / GIGABYTE as f64;
        let (cpu, speed) = (used.cpu.as_secs_f64() / gigabytes, gigabytes / time.as_secs_f64());
        turn.note(running.peer, "CPU per gigabyte, TCP stream", "s", cpu);
        turn.held_against(STREAM_CPU_GOAL);
        turn.note(running.peer, "TCP stream", "GB/s", speed);
        Ok(())
    }

    fn errors(&self, turn: &mut Turn, running: &Running, what: &str, errors: u64) {
        if errors > 0 {
            let (name, setting) = (running.peer.name(), words(self.setting));
            turn.faults.push(format!("{name}, {what}, {setting}: {errors} errors"));
        }
    }

    fn record(&mut self, turn: Turn) {
        let decides = self.setting == ONE_THREAD;
        for Entry { peer, name, unit, goal, value } in turn.entries {
            let name = format!("{} thr: {name}", self.setting.threads);
            let goal = goal.map(|ratio_max| Goal { ratio_max, decides });
            self.report.record(self.number, peer, (&name, unit), goal, value);
        }
        self.report.foreign_cores.extend(turn.foreign_cores);
        self.report.faults.extend(turn.faults);
    }
}

fn used(turn: &mut Turn, running: &Running, before: &Reading) -> Result<Used> {
    let used = Reading::of(running)?.used_since(before);
    turn.foreign_cores.push(used.foreign_cores);
    Ok(used)
}

fn announce(running: &Running, what: &str) {
    if out::is_terminal() {
        out::status(format!("  {}: {what}", running.peer.name()));
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn words(setting: Setting) -> &'static str {
    if setting == ONE_THREAD { "one thread, pinned" } else { "two threads" }
}
