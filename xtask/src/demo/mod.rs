//! A service under load whose backends are killed, frozen, broken and slowed, and whose agents are killed, one at a time,
//! while people watch.

mod fault;
mod ledger;
mod postgres;
mod report;
mod script;
mod stage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::{Verdict, children, load, out, workspace};
use ledger::{Ledger, Noted};
use postgres::Keeper;
use stage::{Front, Stage};

pub(crate) const HELP: &str = "\
demo [--once]           watch a service outlast killed agents and killed, frozen, failing and slow backends

Starts three small backends and three agents of one cluster in front of them, sends 200 requests a second to all three,
and breaks one backend after the other: SIGKILL, SIGSTOP, answers 500, answers 500 to health probes too, answers after
3 s. Then it kills one agent after the other, whoever leads first. Every request that is not answered with 200 within
5 s counts as failed. Everything runs on loopback and is gone at the end.

  --once             a fixed script of about two and a half minutes: every fault on every backend, and SIGKILL for
                     each agent; exit status 0 only if no request failed and every fault really happened
  --seed N           of the random faults without --once; printed at the start
  --outlast FILE     a binary that is built already
  --through PROXY    outlast, or haproxy to see the same with HAProxy in between (default: outlast)
  --postgres         a database of three nodes instead: its primary is killed, another takes over, the old one comes
                     back, and a planned switchover follows, while a client writes a row every 10 ms; exit status 0
                     only if every acknowledged row is there at the end. --through is outlast or patroni

Without --once, random faults go on until Ctrl-C.";

const RATE_PER_SECOND: f64 = 200.0;
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Enough for every request that can be under way within the client's timeout.
const CONNECTIONS_MAX: usize = 1024;

pub(crate) fn run(mut args: Args) -> Result<Verdict> {
    let once = args.flag("--once");
    let seed = args.option("--seed")?;
    let through: Option<String> = args.option("--through")?;
    let postgres = args.flag("--postgres");
    let outlast = args.option("--outlast")?;
    args.finish()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if postgres {
        let keeper = match through.as_deref() {
            None | Some("outlast") => Keeper::Outlast(workspace::outlast(outlast)?),
            Some("patroni") => Keeper::patroni()?,
            Some(other) => bail!("--through is outlast or patroni, not `{other}`"),
        };
        return runtime.block_on(postgres::play(&keeper, once));
    }
    let front = match through.as_deref() {
        None | Some("outlast") => Front::Outlast(workspace::outlast(outlast)?),
        Some("haproxy") => Front::haproxy()?,
        Some(other) => bail!("--through is outlast or haproxy, not `{other}`"),
    };
    runtime.block_on(play(&front, once, seed))
}

async fn play(front: &Front, once: bool, seed: Option<u64>) -> Result<Verdict> {
    let mut stage = Stage::set(front)?;
    let ready = children::unless_interrupted(stage.wait_until_it_answers()).await?;
    let Some(ready) = ready else { return leave(stage, Verdict::Bad).await };
    ready?;
    stage.introduce();
    let mut load = Load::start(&stage.services());
    let acted = {
        let mut show = script::Show::new(&mut stage, &mut load.ledger, &load.samples);
        let acting = async {
            if once { show.every_fault_once().await } else { show.random_faults(seed).await }
        };
        children::unless_interrupted(acting).await?
    };
    let mut complaints = Vec::new();
    match acted {
        Some(Ok(())) => {}
        Some(Err(error)) => complaints.push(format!("{error:#}")),
        None if once => complaints.push("interrupted before the script was through".to_owned()),
        None => {}
    }
    let ledger = load.finish()?;
    complaints.extend(report::complaints(&ledger, once, RATE_PER_SECOND));
    out::line(report::render(&ledger, &complaints));
    if complaints.is_empty() {
        return leave(stage, Verdict::Good).await;
    }
    out::line(stage.front_log());
    leave(stage, Verdict::Bad).await
}

async fn leave(stage: Stage, verdict: Verdict) -> Result<Verdict> {
    let clean = stage.strike().await;
    if !clean {
        out::line(
            "an agent did not end by itself within its time, or left a process behind; it was killed",
        );
    }
    Ok(if clean { verdict } else { Verdict::Bad })
}

/// The steady requests, sent from threads of their own, one for each agent, so that nothing else delays them.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
    samples: mpsc::Receiver<Noted>,
    ledger: Ledger,
}

impl Load {
    fn start(targets: &[SocketAddr]) -> Load {
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let rate = RATE_PER_SECOND / targets.len() as f64;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, samples) = mpsc::channel();
        let threads = targets.iter().map(|&target| {
            let plan = load::Plan {
                connections_max: CONNECTIONS_MAX,
                timeout: CLIENT_TIMEOUT,
                ..load::Plan::gets(target, "/", rate)
            };
            let (told, sender) = (Arc::clone(&stop), sender.clone());
            std::thread::spawn(move || {
                load::run(&plan, &told, |sample| {
                    // Whoever does not listen any more does not want to know.
                    let _unheard = sender.send(Noted::from(sample)).is_err();
                })
            })
        });
        let threads = threads.collect();
        Load { stop, threads, samples, ledger: Ledger::new() }
    }

    /// Waits for the requests that are under way; what they became is in the ledger.
    fn finish(mut self) -> Result<Ledger> {
        self.ledger.close();
        self.halt()?;
        self.ledger.take(&self.samples);
        Ok(std::mem::replace(&mut self.ledger, Ledger::new()))
    }

    fn halt(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = std::mem::take(&mut self.threads)
            .into_iter()
            .map(|thread| thread.join().ok().context("a load thread panicked").flatten());
        ended.collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ended = self.halt().is_ok();
    }
}
