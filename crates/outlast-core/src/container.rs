//! Keeps one program alive: when to start it, ask it how it is, stop it, kill it and start it again.
//!
//! The rules are those of the Kubernetes kubelet (`pkg/kubelet/prober/worker.go`, `client-go/util/flowcontrol`), so that
//! what is written for one behaves the same under the other:
//!
//! - A startup probe gates the other two; at its failure threshold the program is killed.
//! - A liveness probe at its failure threshold has the program killed; a readiness probe only says ready or not ready.
//! - Before the first verdict a program counts as alive and as not ready.
//! - A probe that could not be asked ([`Outcome::Error`]) changes nothing.
//! - Each instance of the program starts with fresh counters; an adopted one keeps what was believed of it.
//! - The first restart is immediate; then waits double from 10 s to 300 s; a run of 10 min forgets them.
//! - Every stop ends in SIGKILL once its grace is over. While it lasts, readiness goes on being asked.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::agent::Now;
use crate::event::Fact;
use crate::health::{Belief, Health};
use crate::time::{Instant, Timestamp};
use crate::topology::{Probe, Process};
use crate::units::show_duration;
use crate::view::{ProcessState, ProcessView};

#[cfg(test)]
mod tests;

/// The wait before the second restart; it doubles with each further one.
pub const BACK_OFF_FIRST: Duration = Duration::from_secs(10);
pub const BACK_OFF_MAX: Duration = Duration::from_secs(300);
/// A run this long forgets the restarts before it.
pub const HEALTHY_RUN: Duration = Duration::from_secs(600);

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Startup, Kind::Liveness, Kind::Readiness];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Startup => "startup",
            Kind::Liveness => "liveness",
            Kind::Readiness => "readiness",
        })
    }
}

/// What a probe found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure(String),
    /// The probe could not be asked: nothing is known.
    Error(String),
}

/// Everything that can happen to a program. Closed: there is no other way in.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// `Spawn` was carried out.
    Started {
        pid: u32,
    },
    StartFailed {
        reason: String,
    },
    /// An instance that an earlier life of the agent started still runs. Only before the first `Spawn`.
    Adopted(Adopted),
    /// The instance is gone, with all that it started.
    Exited {
        status: String,
    },
    /// The answer to `Probe`, with its instance.
    Probed {
        instance: u64,
        kind: Kind,
        outcome: Outcome,
    },
    /// The program is to stop for good.
    Stop,
    Tick,
}

/// A running program, and what was believed of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    pub pid: u32,
    /// How long it has run.
    pub ran: Duration,
    /// Whether its startup probe had succeeded.
    pub started: bool,
    pub ready: bool,
    pub restarts: u64,
}

/// Everything that a program's keeper can want. Closed: there is no other way out.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start the program; answer with `Started` or `StartFailed`, and later, once, with `Exited`.
    Spawn,
    /// Ask; answer with `Probed`.
    Probe {
        instance: u64,
        kind: Kind,
    },
    /// SIGTERM to the whole group. `Kill` follows after the grace; nobody else need count it.
    Terminate {
        grace: Duration,
    },
    /// SIGKILL to the whole group.
    Kill,
    Record(Fact),
    /// The view is another one.
    Changed,
}

/// The state of one program.
#[derive(Debug)]
pub struct Container {
    name: String,
    stop_timeout: Duration,
    watches: Vec<Watch>,
    phase: Phase,
    /// Counts the instances, so that a late answer about an earlier one is known for what it is.
    instance: u64,
    restarts: u64,
    /// The wait before the next restart; `None`: none, it is the first.
    back_off: Option<Duration>,
    stop_wanted: bool,
    state: ProcessState,
    since: Timestamp,
    reason: String,
    #[cfg(test)]
    planted: Option<tests::Bug>,
}

/// Where a program is in its life.
#[derive(Debug)]
enum Phase {
    /// Does not run, and is started at this moment.
    Waiting {
        until: Instant,
    },
    /// `Spawn` is under way.
    Spawning,
    Alive(Life),
    /// Does not run and never will again.
    Stopped,
}

/// One instance.
#[derive(Debug)]
struct Life {
    pid: u32,
    /// When it was started or adopted.
    began: Instant,
    /// How long it had run when it was adopted.
    ran_before: Duration,
    /// Whether the startup probe has succeeded.
    started: bool,
    ready: bool,
    ending: Ending,
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    Terminating { kill_at: Instant },
    Killed,
}

/// One probe of the program.
#[derive(Debug)]
struct Watch {
    kind: Kind,
    probe: Probe,
    belief: Belief,
    /// When to ask next; `None` while an answer is awaited.
    due: Option<Instant>,
    asked: Instant,
}

impl Container {
    /// A program that does not run yet; the first `Tick` starts it.
    pub fn new(name: &str, process: &Process, now: Now) -> Container {
        let probes = [
            (Kind::Startup, &process.startup),
            (Kind::Liveness, &process.liveness),
            (Kind::Readiness, &process.readiness),
        ];
        let watch = |(kind, probe): (Kind, &Option<Probe>)| {
            let probe = probe.clone()?;
            let belief = Belief::new(probe.thresholds);
            Some(Watch { kind, probe, belief, due: None, asked: now.instant })
        };
        Container {
            name: name.to_owned(),
            stop_timeout: process.stop_timeout,
            watches: probes.into_iter().filter_map(watch).collect(),
            phase: Phase::Waiting { until: now.instant },
            instance: 0,
            restarts: 0,
            back_off: None,
            stop_wanted: false,
            state: ProcessState::Waiting,
            since: now.wall,
            reason: "not started yet".into(),
            #[cfg(test)]
            planted: None,
        }
    }

    /// Feeds one input; pushes what must be done, in the order of doing. Same state and input, same output: always.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Vec<Action>) {
        let before = self.view();
        match input {
            Input::Started { pid } => self.started(now.instant, pid, out),
            Input::StartFailed { reason } => self.start_failed(now.instant, &reason, out),
            Input::Adopted(adopted) => self.adopted(now.instant, &adopted, out),
            Input::Exited { status } => self.exited(now.instant, status, out),
            Input::Probed { instance, kind, outcome } => {
                if instance == self.instance {
                    self.probed(now.instant, kind, outcome, out);
                }
            }
            Input::Stop => self.stop(now.instant, out),
            Input::Tick => {}
        }
        self.tick(now.instant, out);
        let state = self.current_state();
        if state != self.state {
            self.state = state;
            self.since = now.wall;
        }
        if self.view() != before {
            out.push(Action::Changed);
        }
    }

    /// When `step` wants a `Tick` even if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting { until } => Some(*until),
            Phase::Alive(life) => {
                let kill = match life.ending {
                    Ending::Terminating { kill_at } => Some(kill_at),
                    Ending::No | Ending::Killed => None,
                };
                let probes = self.watches.iter().filter(|watch| life.asks(watch.kind));
                probes.filter_map(|watch| watch.due).chain(kill).min()
            }
            Phase::Spawning | Phase::Stopped => None,
        }
    }

    /// The program as its readers see it.
    pub fn view(&self) -> ProcessView {
        let life = self.life();
        ProcessView {
            state: self.state,
            since: self.since,
            ready: life.is_some_and(|life| life.ready),
            restarts: self.restarts,
            pid: life.map(|life| life.pid),
            reason: self.reason.clone(),
        }
    }

    /// Whether the startup probe of the running instance has succeeded, for the agent's next life.
    pub fn has_started(&self) -> bool {
        self.life().is_some_and(|life| life.started)
    }

    /// Whether nothing runs and nothing will be started again.
    pub fn is_stopped(&self) -> bool {
        matches!(self.phase, Phase::Stopped)
    }

    fn life(&self) -> Option<&Life> {
        match &self.phase {
            Phase::Alive(life) => Some(life),
            Phase::Waiting { .. } | Phase::Spawning | Phase::Stopped => None,
        }
    }

    fn has(&self, kind: Kind) -> bool {
        self.watches.iter().any(|watch| watch.kind == kind)
    }

    /// A bug that the simulation must find: counters survive a restart.
    #[cfg(test)]
    fn keeps_counters(&self) -> bool {
        self.planted == Some(tests::Bug::KeepCounters)
    }

    #[cfg(not(test))]
    fn keeps_counters(&self) -> bool {
        false
    }

    fn current_state(&self) -> ProcessState {
        match &self.phase {
            Phase::Waiting { .. } => ProcessState::Waiting,
            Phase::Spawning => ProcessState::Starting,
            Phase::Stopped => ProcessState::Stopped,
            Phase::Alive(life) if life.ending != Ending::No => ProcessState::Stopping,
            Phase::Alive(life) if life.started => ProcessState::Running,
            Phase::Alive(_) => ProcessState::Starting,
        }
    }

    /// Does what has come due.
    fn tick(&mut self, now: Instant, out: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Waiting { until } if *until <= now => {
                self.phase = Phase::Spawning;
                self.reason = "is being started".into();
                out.push(Action::Spawn);
            }
            Phase::Alive(life) => {
                if let Ending::Terminating { kill_at } = life.ending
                    && kill_at <= now
                {
                    life.ending = Ending::Killed;
                    out.push(Action::Kill);
                }
                for watch in &mut self.watches {
                    if life.asks(watch.kind) && watch.due.is_some_and(|due| due <= now) {
                        watch.due = None;
                        watch.asked = now;
                        out.push(Action::Probe { instance: self.instance, kind: watch.kind });
                    }
                }
            }
            Phase::Waiting { .. } | Phase::Spawning | Phase::Stopped => {}
        }
    }

    fn started(&mut self, now: Instant, pid: u32, out: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::Spawning) {
            return;
        }
        let ending = Ending::No;
        let life = Life {
            pid,
            began: now,
            ran_before: Duration::ZERO,
            started: false,
            ready: false,
            ending,
        };
        self.begin(life, false, out);
        if self.has(Kind::Startup) {
            self.reason = "waits for its startup probe".into();
        } else {
            self.startup_succeeded(now, "the program runs", out);
        }
        if self.stop_wanted {
            self.terminate(now, out);
        }
    }

    fn adopted(&mut self, now: Instant, adopted: &Adopted, out: &mut Vec<Action>) {
        if self.instance != 0 || !matches!(self.phase, Phase::Waiting { .. }) {
            return;
        }
        let &Adopted { pid, ran, started, ready, restarts } = adopted;
        self.restarts = restarts;
        let ending = Ending::No;
        let life = Life { pid, began: now, ran_before: ran, started, ready, ending };
        self.begin(life, true, out);
        self.reason = "found running, as it was left".into();
        for watch in &mut self.watches {
            if watch.kind == Kind::Readiness && ready {
                watch.belief = Belief::resume(watch.probe.thresholds, Health::Up);
            }
        }
        if !started && !self.has(Kind::Startup) {
            self.startup_succeeded(now, "the program runs", out);
        } else if started && !ready && !self.has(Kind::Readiness) {
            self.set_ready(true, "has no readiness probe", out);
        }
    }

    /// A new instance lives: nothing is known of it yet.
    fn begin(&mut self, life: Life, adopted: bool, out: &mut Vec<Action>) {
        self.instance += 1;
        let keeps_counters = self.keeps_counters();
        for watch in &mut self.watches {
            if !keeps_counters {
                watch.belief = Belief::new(watch.probe.thresholds);
            }
            watch.due = Some(life.began + watch.probe.delay.saturating_sub(life.ran_before));
        }
        let process = self.name.clone();
        out.push(Action::Record(Fact::ProcessStarted { process, pid: life.pid, adopted }));
        self.phase = Phase::Alive(life);
    }

    fn start_failed(&mut self, now: Instant, reason: &str, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Spawning) {
            self.rest(now, Duration::ZERO, alloc::format!("cannot start: {reason}"), out);
        }
    }

    fn exited(&mut self, now: Instant, status: String, out: &mut Vec<Action>) {
        let Phase::Alive(life) = &self.phase else { return };
        let ran = life.ran_before + now.since(life.began);
        let (process, pid) = (self.name.clone(), life.pid);
        let reason = alloc::format!("exited: {status}");
        out.push(Action::Record(Fact::ProcessExited { process, pid, status }));
        self.rest(now, ran, reason, out);
    }

    /// Nothing runs: for good, or until the back-off is over.
    fn rest(&mut self, now: Instant, ran: Duration, reason: String, out: &mut Vec<Action>) {
        self.reason = reason;
        if self.stop_wanted {
            self.phase = Phase::Stopped;
            return;
        }
        if ran >= HEALTHY_RUN {
            self.back_off = None;
        }
        let wait = self.back_off.unwrap_or(Duration::ZERO);
        self.back_off =
            Some(self.back_off.map_or(BACK_OFF_FIRST, |wait| (wait * 2).min(BACK_OFF_MAX)));
        self.restarts += 1;
        self.phase = Phase::Waiting { until: now + wait };
        if !wait.is_zero() {
            let process = self.name.clone();
            out.push(Action::Record(Fact::ProcessWaiting { process, back_off: wait }));
            self.reason.push_str(", restarts in ");
            self.reason.push_str(&show_duration(wait));
        }
    }

    fn probed(&mut self, now: Instant, kind: Kind, outcome: Outcome, out: &mut Vec<Action>) {
        let Phase::Alive(life) = &self.phase else { return };
        let Some(watch) = self.watches.iter_mut().find(|watch| watch.kind == kind) else { return };
        watch.due = Some((watch.asked + watch.probe.every).max(now));
        // What a program says of its startup or liveness no longer matters once it is to go.
        if !life.asks(kind) {
            return;
        }
        let (ok, said) = match outcome {
            Outcome::Success => (true, String::new()),
            Outcome::Failure(reason) => (false, reason),
            Outcome::Error(_) => return,
        };
        let health = watch.belief.observe(ok);
        let streak = watch.belief.streak().unsigned_abs();
        let sentence = if ok {
            alloc::format!("{kind} probe succeeded")
        } else {
            alloc::format!("{kind} probe failed: {said}{}", times(streak))
        };
        match (kind, health) {
            (Kind::Startup, Some(Health::Up)) => self.startup_succeeded(now, &sentence, out),
            (Kind::Startup | Kind::Liveness, Some(Health::Down)) => {
                let Phase::Alive(life) = &self.phase else { return };
                let (process, pid) = (self.name.clone(), life.pid);
                let reason = sentence.clone();
                out.push(Action::Record(Fact::ProcessKilled { process, pid, reason }));
                self.reason = sentence;
                self.terminate(now, out);
            }
            (Kind::Readiness, Some(Health::Up)) => self.set_ready(true, &sentence, out),
            (Kind::Readiness, Some(Health::Down)) => self.set_ready(false, &sentence, out),
            (Kind::Startup | Kind::Readiness, None) if !ok => self.reason = sentence,
            (Kind::Liveness, Some(Health::Up))
            | (_, Some(Health::Unknown))
            | (Kind::Startup | Kind::Liveness | Kind::Readiness, None) => {}
        }
    }

    /// Opens the gate: from now on the other two probes are asked.
    fn startup_succeeded(&mut self, now: Instant, why: &str, out: &mut Vec<Action>) {
        let Phase::Alive(life) = &mut self.phase else { return };
        life.started = true;
        let from = life.began;
        for watch in &mut self.watches {
            if watch.kind != Kind::Startup {
                let delay = watch.probe.delay.saturating_sub(life.ran_before);
                watch.due = Some((from + delay).max(now));
            }
        }
        if self.has(Kind::Readiness) {
            self.reason = alloc::format!("{why}; waits for its readiness probe");
        } else {
            self.set_ready(true, why, out);
        }
    }

    fn set_ready(&mut self, ready: bool, why: &str, out: &mut Vec<Action>) {
        let Phase::Alive(life) = &mut self.phase else { return };
        self.reason = why.to_owned();
        // The first verdict may be that it is not ready, which is what was said all along.
        if life.ready == ready {
            return;
        }
        life.ready = ready;
        let (process, reason) = (self.name.clone(), why.to_owned());
        out.push(Action::Record(Fact::ProcessReadiness { process, ready, reason }));
    }

    fn stop(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.stop_wanted = true;
        match &self.phase {
            Phase::Waiting { .. } => {
                self.phase = Phase::Stopped;
                self.reason = "stopped".into();
            }
            Phase::Alive(_) => {
                self.reason = "is being stopped".into();
                self.terminate(now, out);
            }
            Phase::Spawning | Phase::Stopped => {}
        }
    }

    /// Begins the end of the running instance, unless it has begun.
    fn terminate(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Phase::Alive(life) = &mut self.phase else { return };
        if life.ending == Ending::No {
            life.ending = Ending::Terminating { kill_at: now + self.stop_timeout };
            out.push(Action::Terminate { grace: self.stop_timeout });
        }
    }
}

impl Life {
    /// Whether this instance is asked this: behind the startup gate, and only its readiness once it is to go.
    fn asks(&self, kind: Kind) -> bool {
        match kind {
            Kind::Startup => !self.started && self.ending == Ending::No,
            Kind::Liveness => self.started && self.ending == Ending::No,
            Kind::Readiness => self.started,
        }
    }
}

/// ` (3 times in a row)`
fn times(streak: u32) -> String {
    if streak < 2 { String::new() } else { alloc::format!(" ({streak} times in a row)") }
}
