//! `pgprobe`: writes one row after the other through an entry point, open loop, and logs what became of each.
//!
//! A request is begun every interval, whether or not earlier ones have been answered. Connections are reused first in,
//! first out; one that fails is thrown away. Independent of what it watches: it knows addresses and nothing else.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::attempts::{ACKNOWLEDGED, Attempt, STARVED};
use super::monotonic;
use super::session::{Fault, Session};
use crate::Verdict;
use crate::args::Args;

/// A request that is begun later than this tells of a prober that did not get to run; what it missed is not made up for.
const STARVED_AFTER: Duration = Duration::from_millis(100);
/// What is under way for longer when we end was not answered.
const DRAIN_MAX: Duration = Duration::from_secs(1);
const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// Of the machine's attention, if we may take more than others.
const NICE: i32 = -5;

#[derive(Debug)]
struct Plan {
    /// Tried in turn: the next one after a failure.
    entries: Vec<SocketAddr>,
    table: String,
    interval: Duration,
    timeout: Duration,
    pool_max: usize,
    outstanding_max: usize,
    /// Ids count up from the one after it.
    id_base: i64,
}

/// `pgprobe --at ADDRESS[,ADDRESS...] --table NAME --log FILE [--interval-ms N] [--timeout-ms N] [--pool N]
/// [--outstanding N] [--id-base N]`, until SIGTERM.
pub(crate) fn run(mut args: Args) -> Result<Verdict> {
    let at: String = args.option("--at")?.context("--at is missing")?;
    let entries: Result<Vec<SocketAddr>, _> = at.split(',').map(str::parse).collect();
    let log: PathBuf = args.option("--log")?.context("--log is missing")?;
    let millis = |value: Option<u64>, otherwise| Duration::from_millis(value.unwrap_or(otherwise));
    let plan = Plan {
        entries: entries.context("read --at")?,
        table: args.option("--table")?.context("--table is missing")?,
        interval: millis(args.option("--interval-ms")?, 10),
        timeout: millis(args.option("--timeout-ms")?, 1_000),
        pool_max: args.option("--pool")?.unwrap_or(8),
        outstanding_max: args.option("--outstanding")?.unwrap_or(128),
        id_base: args.option("--id-base")?.unwrap_or(0),
    };
    args.finish()?;
    ensure!(!plan.interval.is_zero(), "--interval-ms must be at least 1");
    // Without the right to it, we are like everybody else.
    let _as_others = rustix::process::nice(NICE).is_err();
    let log = std::fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut stop = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        Prober::new(plan, log).write_on(&mut stop).await
    })?;
    Ok(Verdict::Good)
}

/// How far a request came before its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Asked,
}

struct Prober {
    plan: Plan,
    idle: RefCell<VecDeque<(usize, Session)>>,
    /// Which entry point new connections go to.
    entry: Cell<usize>,
    /// When those began that have not ended.
    outstanding: RefCell<BTreeMap<i64, u64>>,
    log: RefCell<BufWriter<std::fs::File>>,
}

impl Prober {
    fn new(plan: Plan, log: std::fs::File) -> Rc<Prober> {
        Rc::new(Prober {
            plan,
            idle: RefCell::default(),
            entry: Cell::new(0),
            outstanding: RefCell::default(),
            log: RefCell::new(BufWriter::new(log)),
        })
    }

    async fn write_on(self: Rc<Prober>, stop: &mut Signal) -> Result<()> {
        let mut due = Instant::now();
        let mut flush = due;
        let mut id = self.plan.id_base;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                _ = stop.recv() => break,
            }
            let now = Instant::now();
            let late = now.saturating_duration_since(due);
            if late > STARVED_AFTER {
                let ended = monotonic();
                let started = ended.saturating_sub(u64::try_from(late.as_nanos())?);
                self.note(-1, started, ended, STARVED, "");
                due = now;
            }
            due += self.plan.interval;
            id += 1;
            self.begin(id);
            if flush <= now {
                self.log.borrow_mut().flush().context("write the log")?;
                flush = now + FLUSH_EVERY;
            }
        }
        self.drain().await;
        for (id, started) in self.outstanding.take() {
            self.note(id, started, monotonic(), "T_op", "");
        }
        self.log.borrow_mut().flush().context("write the log")
    }

    /// A client of ordinary patience waits for what is under way.
    async fn drain(&self) {
        let end = Instant::now() + self.plan.timeout.min(DRAIN_MAX) + FLUSH_EVERY;
        while !self.outstanding.borrow().is_empty() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn begin(self: &Rc<Prober>, id: i64) {
        let started = monotonic();
        if self.outstanding.borrow().len() >= self.plan.outstanding_max {
            return self.note(id, started, started, "skip", "");
        }
        self.outstanding.borrow_mut().insert(id, started);
        let prober = Rc::clone(self);
        drop(tokio::task::spawn_local(async move {
            let (status, server) = prober.attempt(id).await;
            if prober.outstanding.borrow_mut().remove(&id).is_some() {
                prober.note(id, started, monotonic(), &status, &server);
            }
        }));
    }

    /// The status of one request, and who acknowledged it.
    async fn attempt(&self, id: i64) -> (String, String) {
        let (stage, entry) = (Cell::new(Stage::Asked), Cell::new(self.entry.get()));
        let written = self.write(id, &stage, &entry);
        let status = match tokio::time::timeout(self.plan.timeout, written).await {
            Ok(Ok(server)) => return (ACKNOWLEDGED.to_owned(), server),
            Ok(Err(Fault::Refused { sqlstate, .. })) if keeps_connection(&sqlstate) => {
                return (format!("E{sqlstate}"), String::new());
            }
            Ok(Err(Fault::Refused { sqlstate, .. })) => format!("E{sqlstate}"),
            Ok(Err(Fault::Broken(_))) => match stage.get() {
                Stage::Connecting => "E_conn".to_owned(),
                Stage::Asked => "E_lost".to_owned(),
            },
            Err(_elapsed) => match stage.get() {
                Stage::Connecting => "T_conn".to_owned(),
                Stage::Asked => "T_op".to_owned(),
            },
        };
        // Others may have left the bad entry point already.
        if self.entry.get() == entry.get() {
            self.entry.set((entry.get() + 1) % self.plan.entries.len());
        }
        (status, String::new())
    }

    async fn write(
        &self,
        id: i64,
        stage: &Cell<Stage>,
        entry: &Cell<usize>,
    ) -> Result<String, Fault> {
        let idle = self.idle.borrow_mut().pop_front();
        let (at, mut session) = match idle {
            Some((at, session)) => (at, session),
            None => {
                stage.set(Stage::Connecting);
                let at = entry.get();
                let session = Session::open(self.plan.entries[at]).await?;
                stage.set(Stage::Asked);
                (at, session)
            }
        };
        entry.set(at);
        let sql = format!(
            "INSERT INTO {}(id) VALUES ({id}) RETURNING host(inet_server_addr())",
            self.plan.table
        );
        let answer = session.query(&sql).await;
        let good = match &answer {
            Ok(_) => true,
            Err(Fault::Refused { sqlstate, .. }) => keeps_connection(sqlstate),
            Err(Fault::Broken(_)) => false,
        };
        if good && self.idle.borrow().len() < self.plan.pool_max {
            self.idle.borrow_mut().push_back((at, session));
        }
        let server = answer?.first().and_then(|row| row.first().cloned().flatten());
        server.ok_or_else(|| anyhow::anyhow!("an answer without a row").into())
    }

    fn note(&self, id: i64, started: u64, ended: u64, status: &str, server: &str) {
        let (status, server) = (status.to_owned(), server.to_owned());
        let line = Attempt { id, started, ended, status, server }.line();
        // A full disk shows when the log is flushed.
        let _unwritten = self.log.borrow_mut().write_all(line.as_bytes()).is_err();
    }
}

/// Whether a refusal says nothing against the server: not shutting down (57), not broken (08), not read-only (25).
fn keeps_connection(sqlstate: &str) -> bool {
    !["57", "08", "25"].iter().any(|class| sqlstate.starts_with(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_goes_or_only_reads_is_left() {
        assert!(keeps_connection("23505"));
        for sqlstate in ["57P01", "57P03", "08006", "25006"] {
            assert!(!keeps_connection(sqlstate), "{sqlstate}");
        }
    }
}
