//! Runs one program's keeper: reads, steps, does what it says. No decisions are made here.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use outlast_core::container::{Action, Container, Input, Kind, Outcome};
use outlast_core::event::Fact;
use outlast_core::topology::{Probe, Process};
use outlast_core::view::ProcessView;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use super::{Cgroups, Files, Instance};
use crate::clock::Clock;
use crate::probe::{Code, Prober};

/// How often the size of the output file is looked at.
const OUTPUT_CHECK: Duration = Duration::from_secs(5);
/// How long the last reports may wait for a reader.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Facts that wait for a reader; beyond it the oldest are dropped, and that is said.
const PENDING_MAX: usize = 1000;

/// What a program's keeper works with.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Files go to `processes/NAME/` in it.
    pub data_dir: PathBuf,
    pub prober: Prober,
    pub cgroups: Cgroups,
    pub reports: mpsc::Sender<Report>,
}

/// Something that a program's keeper has to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub process: String,
    pub news: News,
}

#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The program as it is now. If the reader is slow, only the newest is sent.
    View(ProcessView),
    /// For the journal.
    Fact(Fact),
}

/// What the owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Run,
    Stop,
    Leave,
}

/// Keeps one program alive. Dropped, it leaves the program running for a later one to adopt.
#[derive(Debug)]
pub struct Supervisor {
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Adopts the program if it runs, else starts it.
    pub fn start(name: &str, process: Process, setting: Setting) -> Supervisor {
        Supervisor::start_after(None, name, process, setting)
    }

    /// The same, once an earlier form of the program has been stopped.
    pub fn start_after(
        before: Option<Supervisor>,
        name: &str,
        process: Process,
        setting: Setting,
    ) -> Supervisor {
        let (wish, wishes) = watch::channel(Wish::Run);
        let name = name.to_owned();
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                before.stop().await;
            }
            let mut keeper = Keeper::new(&name, process, setting, wishes);
            keeper.run().await;
        });
        Supervisor { wish, task }
    }

    /// Stops the program for good; returns once it and all it started are gone.
    pub async fn stop(self) {
        self.end(Wish::Stop).await;
    }

    /// Leaves the program running, for the agent's next life to adopt.
    pub async fn leave(self) {
        self.end(Wish::Leave).await;
    }

    async fn end(mut self, wish: Wish) {
        self.wish.send_replace(wish);
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the keeper of a program broke down");
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why the keeper wakes.
enum Woken {
    Wish(Wish),
    Exited,
    /// `None`: the probe was cancelled with its instance.
    Asked(Option<Asked>),
    Due,
    /// There is room for a report; `None`: there is no reader any more.
    Room(Option<mpsc::OwnedPermit<Report>>),
    OutputCheck,
}

/// The answer to a probe.
struct Asked {
    instance: u64,
    kind: Kind,
    outcome: Outcome,
}

struct Keeper {
    name: String,
    process: Process,
    setting: Setting,
    wishes: watch::Receiver<Wish>,
    clock: Clock,
    container: Container,
    instance: Option<Instance>,
    probes: JoinSet<Asked>,
    /// Inputs that the carrying out of actions has brought about.
    inputs: VecDeque<Input>,
    facts: VecDeque<Fact>,
    view: Option<ProcessView>,
}

impl Keeper {
    fn new(
        name: &str,
        process: Process,
        setting: Setting,
        wishes: watch::Receiver<Wish>,
    ) -> Keeper {
        let clock = Clock::start();
        Keeper {
            name: name.to_owned(),
            container: Container::new(name, &process, clock.now()),
            process,
            setting,
            wishes,
            clock,
            instance: None,
            probes: JoinSet::new(),
            inputs: VecDeque::new(),
            facts: VecDeque::new(),
            view: None,
        }
    }

    async fn run(&mut self) {
        self.adopt().await;
        let mut output_check = interval(OUTPUT_CHECK);
        output_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.container.is_stopped() {
            let deadline = self.container.deadline().map(|at| self.clock.timer(at));
            let room = self.setting.reports.clone().reserve_owned();
            let woken = tokio::select! {
                wish = wish(&mut self.wishes) => Woken::Wish(wish),
                () = exited(self.instance.as_ref()) => Woken::Exited,
                Some(asked) = self.probes.join_next() => Woken::Asked(asked.ok()),
                () = maybe(deadline.map(sleep_until)) => Woken::Due,
                room = room, if self.has_news() => Woken::Room(room.ok()),
                _ = output_check.tick() => Woken::OutputCheck,
            };
            match woken {
                Woken::Wish(Wish::Run) | Woken::Asked(None) => {}
                Woken::Wish(Wish::Stop) => self.feed(Input::Stop).await,
                Woken::Wish(Wish::Leave) => break,
                Woken::Exited => {
                    let input = self.reap().await;
                    self.feed(input).await;
                }
                Woken::Asked(Some(Asked { instance, kind, outcome })) => {
                    self.feed(Input::Probed { instance, kind, outcome }).await;
                }
                Woken::Due => self.feed(Input::Tick).await,
                Woken::Room(room) => {
                    if let (Some(report), Some(room)) = (self.next_news(), room) {
                        drop(room.send(report));
                    }
                }
                Woken::OutputCheck => self.rotate().await,
            }
        }
        self.say_the_rest().await;
    }

    /// Takes over an instance that runs already; one that was started otherwise is stopped first.
    async fn adopt(&mut self) {
        let found = self.blocking(|name, process, files, cgroups| {
            Ok(Instance::adopt(name, process, files, cgroups))
        });
        match found.await {
            Ok(Some(instance)) if instance.is_as(&self.process) => {
                let adopted = instance.adopted();
                self.instance = Some(instance);
                self.feed(Input::Adopted(adopted)).await;
            }
            Ok(Some(instance)) => self.stop_outdated(instance).await,
            Ok(None) => {}
            Err(why) => {
                tracing::warn!(process = self.name, %why, "cannot look for a running instance");
            }
        }
        self.publish();
    }

    async fn stop_outdated(&mut self, instance: Instance) {
        let (process, pid) = (self.name.clone(), instance.pid());
        let reason = "the topology starts it differently now".to_owned();
        self.say(Fact::ProcessKilled { process: process.clone(), pid, reason });
        self.warn_if(instance.terminate());
        if timeout(self.process.stop_timeout, instance.exited()).await.is_err() {
            self.warn_if(instance.kill());
            instance.exited().await;
        }
        self.instance = Some(instance);
        if let Input::Exited { status } = self.reap().await {
            self.say(Fact::ProcessExited { process, pid, status });
        }
    }

    /// Steps, and does what comes out, and steps again with what that brought about.
    async fn feed(&mut self, input: Input) {
        self.inputs.push_back(input);
        while let Some(input) = self.inputs.pop_front() {
            let mut actions = Vec::new();
            self.container.step(self.clock.now(), input, &mut actions);
            for action in actions {
                self.act(action).await;
            }
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Spawn => {
                let input = self.spawn().await;
                self.inputs.push_back(input);
            }
            Action::Probe { instance, kind } => self.ask(instance, kind),
            Action::Terminate { .. } => {
                self.warn_if(self.instance.as_ref().map_or(Ok(()), Instance::terminate));
            }
            Action::Kill => {
                self.warn_if(self.instance.as_ref().map_or(Ok(()), Instance::kill));
            }
            Action::Record(fact) => self.say(fact),
            Action::Changed => self.publish(),
        }
    }

    async fn spawn(&mut self) -> Input {
        let restarts = self.container.view().restarts;
        let started = self.blocking(move |name, process, files, cgroups| {
            Instance::start(name, process, files, cgroups, restarts)
        });
        match started.await {
            Ok(instance) => {
                let pid = instance.pid();
                self.instance = Some(instance);
                Input::Started { pid }
            }
            Err(reason) => Input::StartFailed { reason },
        }
    }

    fn ask(&mut self, instance: u64, kind: Kind) {
        let Some(probe) = self.probe(kind) else { return };
        let Probe { check, timeout, .. } = probe.clone();
        let prober = self.setting.prober.clone();
        let process = self.name.clone();
        self.probes.spawn(async move {
            let answer = prober.ask(&check, None, timeout).await;
            let outcome = match (answer.ok, answer.code) {
                (true, _) => Outcome::Success,
                (false, Code::Internal) => {
                    tracing::warn!(process, probe = %kind, reason = answer.reason, "a probe could not be asked");
                    Outcome::Error(answer.reason)
                }
                (false, _) => Outcome::Failure(answer.reason),
            };
            Asked { instance, kind, outcome }
        });
    }

    fn probe(&self, kind: Kind) -> Option<&Probe> {
        match kind {
            Kind::Startup => self.process.startup.as_ref(),
            Kind::Liveness => self.process.liveness.as_ref(),
            Kind::Readiness => self.process.readiness.as_ref(),
        }
    }

    /// Clears away the instance that has exited, and the probes that asked about it.
    async fn reap(&mut self) -> Input {
        self.probes.abort_all();
        let instance = self.instance.take().expect("only an instance exits");
        let status = tokio::task::spawn_blocking(move || instance.reap()).await;
        Input::Exited { status: status.unwrap_or_else(|error| format!("status unknown: {error}")) }
    }

    async fn rotate(&self) {
        let rotated = self.blocking(|_name, _process, files, _cgroups| {
            files.output.rotate().map_err(|error| error.to_string())
        });
        if let Err(why) = rotated.await {
            tracing::warn!(process = self.name, %why, "cannot rotate the output of a program");
        }
    }

    /// Does disk work away from the tasks that must not wait for a disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&str, &Process, &Files, &Cgroups) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let (name, process) = (self.name.clone(), self.process.clone());
        let (data_dir, cgroups) = (self.setting.data_dir.clone(), self.setting.cgroups.clone());
        let done = tokio::task::spawn_blocking(move || {
            let files = Files::of(&data_dir, &name)
                .map_err(|error| format!("make {}: {error}", data_dir.display()))?;
            work(&name, &process, &files, &cgroups)
        });
        done.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn publish(&mut self) {
        let view = self.container.view();
        if let Some(instance) = &mut self.instance {
            instance.believe(&self.name, self.container.has_started(), view.ready);
        }
        self.view = Some(view);
    }

    fn say(&mut self, fact: Fact) {
        if self.facts.len() == PENDING_MAX {
            tracing::warn!(
                process = self.name,
                "nobody reads what happens to a program; the oldest is dropped"
            );
            self.facts.pop_front();
        }
        self.facts.push_back(fact);
    }

    fn has_news(&self) -> bool {
        !self.facts.is_empty() || self.view.is_some()
    }

    /// Facts first, so that the journal is never behind the view.
    fn next_news(&mut self) -> Option<Report> {
        let fact = self.facts.pop_front().map(News::Fact);
        let news = fact.or_else(|| self.view.take().map(News::View))?;
        Some(Report { process: self.name.clone(), news })
    }

    async fn say_the_rest(&mut self) {
        while let Some(report) = self.next_news() {
            if self.setting.reports.send_timeout(report, LAST_WORDS).await.is_err() {
                tracing::warn!(
                    process = self.name,
                    "nobody reads the last of what happened to a program"
                );
                return;
            }
        }
    }

    fn warn_if(&self, result: io::Result<()>) {
        if let Err(error) = result {
            tracing::warn!(process = self.name, %error, "cannot signal a program");
        }
    }
}

/// The owner's next wish; an owner that is gone leaves the program running.
async fn wish(wishes: &mut watch::Receiver<Wish>) -> Wish {
    match wishes.changed().await {
        Ok(()) => *wishes.borrow_and_update(),
        Err(_gone) => Wish::Leave,
    }
}

async fn exited(instance: Option<&Instance>) {
    maybe(instance.map(Instance::exited)).await;
}

/// Waits for what there is; for nothing, for ever.
async fn maybe(future: Option<impl Future<Output = ()>>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
