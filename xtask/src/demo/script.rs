//! The order of events: every fault once on every backend and each agent killed once, or random ones without end.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::fault::Fault;
use super::ledger::{Ledger, Noted};
use super::report;
use super::stage::Stage;
use crate::random::Random;
use crate::{out, procs};

/// All backends serve within this time before the first fault.
const WARM_UP_LIMIT: Duration = Duration::from_secs(20);
/// Fifteen faults of this length and a warm-up make two minutes.
const SLOT: Duration = Duration::from_millis(7_700);
const FAULT_TIME: Duration = Duration::from_secs(4);
/// The next fault waits for the victim of the last one, but not for ever.
const BACK_LIMIT: Duration = Duration::from_secs(25);
/// A backend that fails again and again is left out for longer each time.
const RANDOM_BACK_LIMIT: Duration = Duration::from_secs(330);
const RANDOM_FAULT_MS: std::ops::Range<u64> = 2_000..8_000;
const RANDOM_PAUSE_MS: std::ops::Range<u64> = 500..4_000;
/// Between an agent that is back and the next event.
const CALM: Duration = Duration::from_secs(2);
pub(super) const TURN: Duration = Duration::from_millis(100);
pub(super) const STATUS_EVERY_TERMINAL: Duration = Duration::from_millis(200);
pub(super) const STATUS_EVERY_FILE: Duration = Duration::from_secs(5);

pub(super) struct Show<'a> {
    stage: &'a mut Stage,
    ledger: &'a mut Ledger,
    samples: &'a Receiver<Noted>,
    status_due: Instant,
    /// The agent that is dead now.
    killed: Option<usize>,
}

impl<'a> Show<'a> {
    pub(super) fn new(
        stage: &'a mut Stage,
        ledger: &'a mut Ledger,
        samples: &'a Receiver<Noted>,
    ) -> Self {
        Show { stage, ledger, samples, status_due: Instant::now(), killed: None }
    }

    pub(super) async fn every_fault_once(&mut self) -> Result<()> {
        self.warm_up().await?;
        for fault in Fault::ALL {
            for at in 0..self.stage.backends.len() {
                let end = Instant::now() + SLOT;
                self.befall(fault, at, FAULT_TIME).await?;
                self.watch_until(end).await?;
                self.wait_until_back(BACK_LIMIT).await?;
            }
        }
        self.each_agent_once().await
    }

    /// Kills each agent, always the leader if it was not killed yet.
    async fn each_agent_once(&mut self) -> Result<()> {
        let mut left: Vec<usize> = (0..self.stage.agents.len()).collect();
        while self.stage.is_cluster() && !left.is_empty() {
            let leader = self.stage.leader(None).await?;
            let at = if left.contains(&leader) { leader } else { left[0] };
            left.retain(|other| *other != at);
            self.kill_agent(at, at == leader).await?;
        }
        Ok(())
    }

    /// An agent dies; its data plane goes on, and the others elect a leader if it was the one.
    async fn kill_agent(&mut self, at: usize, leads: bool) -> Result<()> {
        let name = self.stage.agents[at].name.clone();
        let fault = if leads { "kill leader" } else { "kill agent" };
        self.ledger.open_window(fault, &format!("agent {name}"));
        let (begun, end) = (Instant::now(), Instant::now() + FAULT_TIME);
        self.say(format!(
            "agent {name} is killed (SIGKILL){}",
            if leads { "; it leads" } else { "" }
        ));
        let pid = self.stage.agents[at].child.pid();
        self.stage.kill_agent(at)?;
        self.killed = Some(at);
        if procs::stat(pid).is_some()
            && let Some(window) = self.ledger.window()
        {
            window.doubts.push(format!("process {pid} is still there"));
        }
        let next = self.stage.leader(Some(at)).await?;
        let took = begun.elapsed().as_secs_f64();
        self.say(format!("{} leads, {took:.1} s later", self.stage.agents[next].name));
        self.watch_until(end).await?;
        self.say(format!("agent {name} is started again"));
        let revived = Instant::now();
        self.stage.restart_agent(at).await?;
        self.killed = None;
        if let Some(window) = self.ledger.window() {
            window.back_after = Some(revived.elapsed());
        }
        self.watch_until(Instant::now() + CALM).await
    }

    /// Returns only when something is wrong.
    pub(super) async fn random_faults(&mut self, seed: Option<u64>) -> Result<()> {
        let mut random = Random::new(seed);
        out::line(format!("random faults, seed {}; Ctrl-C ends", random.seed));
        self.warm_up().await?;
        loop {
            let at = random.index(self.stage.backends.len());
            let drawn = random.index(Fault::ALL.len() + usize::from(self.stage.is_cluster()));
            let Some(&fault) = Fault::ALL.get(drawn) else {
                let leads = self.stage.leader(None).await? == at;
                self.kill_agent(at, leads).await?;
                continue;
            };
            self.befall(fault, at, random.millis(RANDOM_FAULT_MS)).await?;
            self.wait_until_back(RANDOM_BACK_LIMIT).await?;
            self.watch_until(Instant::now() + random.millis(RANDOM_PAUSE_MS)).await?;
        }
    }

    async fn warm_up(&mut self) -> Result<()> {
        self.say("requests begin");
        let limit = Instant::now() + WARM_UP_LIMIT;
        while self.ledger.recent().served.len() < self.stage.backends.len() {
            if Instant::now() > limit {
                bail!("not every backend serves after {WARM_UP_LIMIT:?}");
            }
            self.turn().await?;
        }
        self.watch_until(Instant::now() + Duration::from_secs(2)).await
    }

    /// One fault on one backend, from beginning to end.
    async fn befall(&mut self, fault: Fault, at: usize, time: Duration) -> Result<()> {
        let name = self.stage.backends[at].name.clone();
        self.ledger.open_window(fault.name(), &name);
        let end = Instant::now() + time;
        self.say(format!("{name} {}", fault.deed()));
        fault.inject(&mut self.stage.backends[at]).await?;
        self.check(fault, at).await?;
        self.watch_until(end).await?;
        if fault == Fault::Freeze {
            // It must have been so all the time.
            self.check(fault, at).await?;
        }
        fault.undo(self.stage, at).await?;
        self.say(format!("{name} {}", fault.undeed()));
        if let Some(window) = self.ledger.window() {
            window.revived = Some(Instant::now());
        }
        Ok(())
    }

    /// Notes when the fault is not there, and goes on watching while it asks.
    async fn check(&mut self, fault: Fault, at: usize) -> Result<()> {
        let (ledger, samples) = (&mut *self.ledger, self.samples);
        let verifying = fault.verify(&self.stage.backends[at]);
        tokio::pin!(verifying);
        let verified = loop {
            tokio::select! {
                verified = &mut verifying => break verified,
                () = tokio::time::sleep(TURN) => {
                    ledger.take(samples);
                    show_status(ledger, &mut self.status_due);
                }
            }
        };
        if let Err(error) = verified
            && let Some(window) = self.ledger.window()
        {
            window.doubts.push(format!("{error:#}"));
        }
        Ok(())
    }

    async fn wait_until_back(&mut self, limit: Duration) -> Result<()> {
        let limit = Instant::now() + limit;
        while self.ledger.window().is_some_and(|window| window.back_after.is_none()) {
            if Instant::now() > limit {
                return Ok(());
            }
            self.turn().await?;
        }
        Ok(())
    }

    async fn watch_until(&mut self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            self.turn().await?;
        }
        Ok(())
    }

    /// A tenth of a second of watching.
    async fn turn(&mut self) -> Result<()> {
        tokio::time::sleep(TURN).await;
        self.ledger.take(self.samples);
        show_status(self.ledger, &mut self.status_due);
        self.stage.check_front(self.killed)
    }

    fn say(&self, text: impl std::fmt::Display) {
        let elapsed = self.ledger.started.elapsed().as_secs_f64();
        out::line(format!("{elapsed:7.1} s  {text}"));
    }
}

fn show_status(ledger: &Ledger, due: &mut Instant) {
    if *due > Instant::now() {
        return;
    }
    let every = if out::is_terminal() { STATUS_EVERY_TERMINAL } else { STATUS_EVERY_FILE };
    *due = Instant::now() + every;
    out::status(report::status(ledger));
}
