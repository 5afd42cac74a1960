//! One machine of a lab, as the keeper sees it: what it is, and who waits for it to be otherwise.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outlast::dataplane::wire;
use outlast_host::lab::{Bridge, HostPids, spawn_machine};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::plan::{Node, Plan};
use super::wire::{AgentState, Answer, FromMachine, NodeState, NodeStatus, ToMachine};

/// How long a machine that does not read may hold us up.
const TELL_MAX: Duration = Duration::from_secs(5);

/// What one machine tells, and its end.
#[derive(Debug)]
pub(super) enum News {
    Said(FromMachine),
    Gone,
}

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) node: Node,
    pub(super) state: NodeState,
    since: Instant,
    /// Counts how often the power was turned on: news of an earlier life are no news.
    pub(super) life: u64,
    pub(super) live: Option<Live>,
    pub(super) agent: AgentState,
    /// What it is to be called once it is off.
    pub(super) ends_as: NodeState,
    pub(super) back_at: Option<Instant>,
    waiting: Vec<Waiter>,
}

/// The machine's first process.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) pidfd: OwnedFd,
    host_pid: Option<u32>,
    line: UnixStream,
}

/// What someone waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// The agent answers.
    Up,
    Off,
    Paused,
}

#[derive(Debug)]
struct Waiter {
    line: UnixStream,
    goal: Goal,
    until: Instant,
}

impl Machine {
    pub(super) fn new(node: Node) -> Machine {
        Machine {
            node,
            state: NodeState::Dead,
            since: Instant::now(),
            life: 0,
            live: None,
            agent: AgentState::None,
            ends_as: NodeState::Dead,
            back_at: None,
            waiting: Vec::new(),
        }
    }

    /// Turns the power on. What the machine tells goes to `news`, with the number of this life.
    pub(super) fn power_on(
        &mut self,
        plan: &Plan,
        bridge: &Bridge,
        host: &HostPids,
        news: impl Fn(u64, News) + Send + 'static,
    ) -> anyhow::Result<()> {
        for private in self.node.private_dirs(&plan.dir) {
            std::fs::create_dir_all(&private.from)
                .with_context(|| format!("make {}", private.from.display()))?;
        }
        let (ours, theirs) = UnixStream::pair().context("make a socket for the machine")?;
        ours.set_write_timeout(Some(TELL_MAX))?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["lab", "machine"]);
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = spawn_machine(command).context("make the machine's namespaces")?;
        // An unreaped child keeps its number.
        let pid =
            i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("hold the machine")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("hold the machine")?;
        let host_pid = host.of(pidfd.as_fd()).ok();
        self.life += 1;
        let (life, reader) = (self.life, ours.try_clone()?);
        let number = child.id();
        std::thread::Builder::new().name(format!("from-{}", self.node.name)).spawn(move || {
            while let Ok(Some((message, _))) = wire::receive::<FromMachine>(&reader) {
                news(life, News::Said(message));
            }
            // Its line is closed, so it has ended; over when all its processes are gone.
            child.kill().ok();
            child.wait().ok();
            news(life, News::Gone);
        })?;
        self.live = Some(Live { pidfd, host_pid, line: ours });
        self.agent = AgentState::None;
        self.ends_as = NodeState::Dead;
        self.back_at = None;
        self.turn(NodeState::Starting);
        let built = bridge
            .plug(&self.node.port, number, &self.node.interface, self.node.mac)
            .context("lay the machine's cable")
            .and_then(|()| {
                self.tell(&ToMachine::Be {
                    node: Box::new(self.node.clone()),
                    lab: plan.dir.clone(),
                    file: plan.file.clone(),
                    program: plan.program.clone(),
                })?;
                self.tell(&ToMachine::Plugged)
            });
        if built.is_err() {
            self.kill(bridge).ok();
        }
        built
    }

    /// Takes the power: first the cable, so that no farewell gets out, then everything at once.
    pub(super) fn kill(&self, bridge: &Bridge) -> io::Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        let silenced = bridge.silence(&self.node.port);
        pidfd_send_signal(&live.pidfd, Signal::KILL)?;
        silenced
    }

    pub(super) fn tell(&self, message: &ToMachine) -> anyhow::Result<()> {
        let live = self.live.as_ref().context("the machine is off")?;
        wire::send(&live.line, message, &[]).context("tell the machine")
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match &self.live {
            Some(live) => Ok(pidfd_send_signal(&live.pidfd, signal)?),
            None => Ok(()),
        }
    }

    pub(super) fn turn(&mut self, state: NodeState) {
        if self.state != state {
            self.state = state;
            self.since = Instant::now();
        }
    }

    pub(super) fn wait(&mut self, line: UnixStream, goal: Goal, limit: Duration) {
        self.waiting.push(Waiter { line, goal, until: Instant::now() + limit });
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiter| waiter.until).chain(self.back_at).min()
    }

    /// Answers those whose wait is over.
    pub(super) fn settle(&mut self, now: Instant) {
        let mut waiting = std::mem::take(&mut self.waiting);
        let is_over = |w: &mut Waiter| self.reached(w.goal).is_some() || w.until <= now;
        let done: Vec<Waiter> = waiting.extract_if(.., is_over).collect();
        self.waiting = waiting;
        for waiter in done {
            let answer = self.reached(waiter.goal).unwrap_or_else(|| {
                Answer::Refused(format!("{} is still {}", self.node.name, self.state.word()))
            });
            reply(&waiter.line, &answer, None);
        }
    }

    /// What to say when the goal is reached, or cannot be any more.
    pub(super) fn reached(&self, goal: Goal) -> Option<Answer> {
        let name = &self.node.name;
        let is_off = self.live.is_none();
        match goal {
            Goal::Off => is_off.then(|| Answer::Done(format!("{name} is {}", self.state.word()))),
            Goal::Paused if is_off => Some(Answer::Refused(format!("{name} is off"))),
            Goal::Paused => {
                (self.state == NodeState::Paused).then(|| Answer::Done(format!("{name} is paused")))
            }
            Goal::Up if is_off => Some(Answer::Refused(format!(
                "{name} is {}; see `outlast lab logs {name}`",
                self.state.word()
            ))),
            Goal::Up => match self.agent {
                AgentState::Running => Some(Answer::Done(format!("{name} runs"))),
                AgentState::Ended(code) => Some(Answer::Refused(format!(
                    "the agent of {name} ended with status {code}; see `outlast lab logs {name}`"
                ))),
                AgentState::None | AgentState::Starting => None,
            },
        }
    }

    pub(super) fn status(&self, now: Instant) -> NodeStatus {
        NodeStatus {
            name: self.node.name.clone(),
            address: self.node.address.to_string(),
            state: self.state,
            for_seconds: now.saturating_duration_since(self.since).as_secs_f64(),
            pid: self.live.as_ref().and_then(|live| live.host_pid),
            agent: self.agent,
            back_in_seconds: self.back_at.map(|at| at.saturating_duration_since(now).as_secs_f64()),
        }
    }
}

/// Answers a verb. One that has gone away need not be told.
pub(super) fn reply(line: &UnixStream, answer: &Answer, pidfd: Option<&OwnedFd>) {
    let fds: Vec<_> = pidfd.iter().map(|fd| fd.as_fd()).collect();
    wire::send(line, answer, &fds).ok();
}

/// A file of names for the machines: those of the host, and the nodes.
pub(super) fn hosts(plan: &Plan, host: &Path) -> String {
    let mut text = std::fs::read_to_string(host).unwrap_or_default();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.extend(plan.nodes.iter().map(|node| format!("{} {}\n", node.address, node.name)));
    text
}
