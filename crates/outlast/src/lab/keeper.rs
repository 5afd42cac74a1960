//! `outlast lab keeper`: the first process of a lab's namespaces. It builds the network, starts the machines, does what the
//! verbs ask, and takes faults back when their time is over.
//!
//! Everything that happens comes through one inbox and is handled in one place, one after the other.

use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use outlast::dataplane::wire;
use outlast_core::units::show_duration;
use outlast_host::lab::{
    Bridge, Carrier, HostPids, Rules, Way, die_with_parent, lay_over, on_its_own,
};
use rustix::process::Signal;

use super::faults::{DEFAULT, Fault, Faults, Kind, LONGEST, Which, between};
use super::node::{Goal, Machine, News, hosts, reply};
use super::place;
use super::plan::Plan;
use super::wire::{
    AgentState, Answer, Ask, FaultStatus, FromKeeper, FromMachine, NodeState, Status, ToKeeper,
    ToMachine,
};
use crate::Outcome;

/// News that wait to be handled.
const INBOX_MAX: usize = 256;
/// How long a verb may take to say what it wants, and to take the answer.
const VERB_MAX: Duration = Duration::from_secs(2);
/// How long a machine may take until its agent answers.
const UP_MAX: Duration = Duration::from_secs(60);
/// How long a machine may take until it is off: the agent has 40 seconds of it.
const OFF_MAX: Duration = Duration::from_secs(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// With nothing else to do, the keeper looks up this often.
const IDLE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
enum Event {
    Owner(ToKeeper),
    OwnerGone,
    Asked(Ask, UnixStream),
    Machine { number: usize, life: u64, news: News },
}

pub(super) fn run() -> anyhow::Result<Outcome> {
    die_with_parent().context("tie the lab to its owner")?;
    let stdin = std::io::stdin();
    let line = rustix::io::fcntl_dupfd_cloexec(stdin, 3).context("take the owner's line")?;
    let line = UnixStream::from(line);
    let Some((ToKeeper::Build(plan), lock)) =
        wire::receive::<ToKeeper>(&line).context("hear from the owner")?
    else {
        bail!("the owner did not say what to build; `outlast lab up` starts a keeper");
    };
    let (sender, inbox) = sync_channel(INBOX_MAX);
    listen_to_owner(&line, sender.clone())?;
    let outcome = Keeper::build(*plan, &line, sender).and_then(|mut keeper| keeper.serve(&inbox));
    // Held until here: who takes the lock next finds nothing of us.
    drop(lock);
    if let Err(error) = &outcome {
        wire::send(&line, &FromKeeper::Failed(format!("{error:#}")), &[]).ok();
    }
    // The end of this process is the end of all that it holds.
    Ok(if outcome.is_ok() { Outcome::Fine } else { Outcome::Unable })
}

/// Without the owner there is no lab. The kernel sees to that as well; this is for a kernel that forgot.
fn listen_to_owner(line: &UnixStream, inbox: SyncSender<Event>) -> anyhow::Result<()> {
    let reader = line.try_clone().context("listen to the owner")?;
    std::thread::Builder::new().name("from-owner".to_owned()).spawn(move || {
        while let Ok(Some((message, _))) = wire::receive::<ToKeeper>(&reader) {
            if inbox.send(Event::Owner(message)).is_err() {
                return;
            }
        }
        inbox.send(Event::OwnerGone).ok();
    })?;
    Ok(())
}

/// Takes the verbs' questions, one after the other; each has little time to be asked.
fn listen_to_verbs(path: &Path, inbox: SyncSender<Event>) -> anyhow::Result<()> {
    let listener = UnixListener::bind(path).with_context(|| {
        format!("listen at {}; a --dir with a shorter path may help", path.display())
    })?;
    std::thread::Builder::new().name("from-verbs".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let limited = stream.set_read_timeout(Some(VERB_MAX)).is_ok()
                && stream.set_write_timeout(Some(VERB_MAX)).is_ok();
            if limited
                && let Ok(Some((ask, _))) = wire::receive::<Ask>(&stream)
                && inbox.send(Event::Asked(ask, stream)).is_err()
            {
                return;
            }
        }
    })?;
    Ok(())
}

/// The rules of the lab's network, empty; or what is missing.
fn open_rules() -> Result<Rules, String> {
    let opened = Rules::open().and_then(|mut rules| rules.replace(&[]).map(|()| rules));
    opened.map_err(|error| {
        format!(
            "the kernel has no nftables for bridges ({error}); `sudo modprobe nf_tables` may help"
        )
    })
}

struct Keeper<'l> {
    plan: Plan,
    owner: &'l UnixStream,
    log: std::fs::File,
    host: HostPids,
    bridge: Bridge,
    /// Or why there are none.
    rules: Result<Rules, String>,
    carrier: Option<Carrier>,
    /// What the carrier was told.
    ways: Vec<Way>,
    faults: Faults,
    machines: Vec<Machine>,
    inbox: SyncSender<Event>,
    was_up: bool,
    /// When those who start a lab have waited long enough.
    up_by: Instant,
}

impl<'l> Keeper<'l> {
    fn build(
        plan: Plan,
        owner: &'l UnixStream,
        inbox: SyncSender<Event>,
    ) -> anyhow::Result<Keeper<'l>> {
        let log = std::fs::File::options().create(true).append(true).open(place::log(&plan.dir));
        let log = log.context("open the lab's log")?;
        on_its_own().context("keep the lab's mounts to itself")?;
        let etc_hosts = Path::new("/etc/hosts");
        let names = plan.dir.join("hosts");
        std::fs::write(&names, hosts(&plan, etc_hosts)).context("write the names of the nodes")?;
        if etc_hosts.exists() {
            lay_over(&names, etc_hosts).context("lay the names of the nodes over /etc/hosts")?;
        }
        let host = HostPids::open().context("open /proc")?;
        let bridge = Bridge::build().context("build the lab's bridge")?;
        let rules = open_rules();
        listen_to_verbs(&place::socket(&plan.dir), inbox.clone())?;
        let machines = plan.nodes.iter().cloned().map(Machine::new).collect();
        let up_by = Instant::now() + UP_MAX;
        Ok(Keeper {
            plan,
            owner,
            log,
            host,
            bridge,
            rules,
            carrier: None,
            ways: Vec::new(),
            faults: Faults::default(),
            machines,
            inbox,
            was_up: false,
            up_by,
        })
    }

    /// Until the lab is to end.
    fn serve(&mut self, inbox: &Receiver<Event>) -> anyhow::Result<()> {
        if let Err(why) = self.rules.as_ref().map(drop).map_err(String::clone) {
            // A cluster that cannot be broken is better than none.
            self.say(&format!("cut, loss and delay will not work: {why}"));
        }
        for number in 0..self.machines.len() {
            let name = self.machines[number].node.name.clone();
            self.power_on(number).with_context(|| format!("start node {name}"))?;
        }
        loop {
            let now = Instant::now();
            self.expire(now);
            let next =
                self.next_deadline().map_or(IDLE_MAX, |at| at.saturating_duration_since(now));
            let event = match inbox.recv_timeout(next.min(IDLE_MAX)) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => bail!("nobody speaks to the keeper"),
            };
            match event {
                Some(Event::OwnerGone | Event::Owner(ToKeeper::Down)) => return Ok(()),
                Some(Event::Owner(ToKeeper::Build(_))) => {
                    bail!("the owner says twice what to build")
                }
                Some(Event::Asked(Ask::Down, line)) => {
                    reply(&line, &Answer::Done(format!("lab {} is down", self.plan.name)), None);
                    return Ok(());
                }
                Some(Event::Asked(ask, line)) => self.obey(ask, line),
                Some(Event::Machine { number, life, news })
                    if self.machines[number].life == life =>
                {
                    self.hear(number, news)?;
                }
                Some(Event::Machine { .. }) | None => {}
            }
            let now = Instant::now();
            self.machines.iter_mut().for_each(|machine| machine.settle(now));
            self.say_whether_up(now);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let machines = self.machines.iter().filter_map(Machine::next_deadline);
        let up_by = (!self.was_up).then_some(self.up_by);
        machines.chain(self.faults.next_end()).chain(up_by).min()
    }

    fn power_on(&mut self, number: usize) -> anyhow::Result<()> {
        let inbox = self.inbox.clone();
        let news = move |life, news| {
            // If nobody listens any more, the lab is at its end.
            inbox.send(Event::Machine { number, life, news }).ok();
        };
        self.machines[number].power_on(&self.plan, &self.bridge, &self.host, news)?;
        // The port is a new one; the carrier still listens at the old.
        if !self.ways.is_empty() {
            self.ways.clear();
            self.apply()?;
        }
        Ok(())
    }

    fn hear(&mut self, number: usize, news: News) -> anyhow::Result<()> {
        let machine = &mut self.machines[number];
        let name = machine.node.name.clone();
        match news {
            News::Said(FromMachine::Failed(why)) => {
                if !self.was_up {
                    bail!("node {name}: {why}");
                }
                self.say(&format!("{name} broke: {why}"));
            }
            News::Said(FromMachine::AgentStarted { .. }) => {
                machine.agent = AgentState::Starting;
                machine.turn(NodeState::Running);
            }
            News::Said(FromMachine::AgentAnswers) => {
                machine.agent = AgentState::Running;
                if self.was_up {
                    self.say(&format!("{name} runs"));
                }
            }
            News::Said(FromMachine::AgentEnded { code }) => {
                machine.agent = AgentState::Ended(code);
                self.say(&format!("{name}: the agent ended with status {code}"));
            }
            News::Said(FromMachine::Frozen) => {
                let is_meant =
                    self.faults.active().iter().any(|f| f.kind == Kind::Pause { node: number });
                if is_meant {
                    machine.signal(Signal::STOP).context("freeze a machine")?;
                    machine.turn(NodeState::Paused);
                } else {
                    machine.tell(&ToMachine::Thaw)?;
                }
            }
            News::Gone => {
                // Gone with the machine, if the kernel was quick.
                self.bridge.unplug(&machine.node.port).ok();
                machine.live = None;
                machine.agent = AgentState::None;
                machine.turn(machine.ends_as);
                let word = machine.state.word();
                self.faults.no_longer_paused(number);
                self.say(&format!("{name} is {word}"));
            }
        }
        Ok(())
    }

    /// Tells the owner once, when every agent answers, or has ended, or has had its time.
    fn say_whether_up(&mut self, now: Instant) {
        let settled = self.machines.iter().all(|m| m.reached(Goal::Up).is_some());
        if !self.was_up && (settled || self.up_by <= now) {
            self.was_up = true;
            let status = self.status(now);
            wire::send(self.owner, &FromKeeper::Up(status), &[]).ok();
        }
    }

    /// Takes back what is over, and turns on what is to come back.
    fn expire(&mut self, now: Instant) {
        let over = self.faults.expire(now);
        self.take_back(&over, "is over");
        for number in 0..self.machines.len() {
            if self.machines[number].back_at.is_some_and(|at| at <= now) {
                self.machines[number].back_at = None;
                if self.machines[number].live.is_none()
                    && let Err(error) = self.power_on(number)
                {
                    self.say(&format!(
                        "{} does not start: {error:#}",
                        self.machines[number].node.name
                    ));
                }
            }
        }
    }

    /// Undoes faults that are no longer in the list.
    fn take_back(&mut self, faults: &[Fault], why: &str) {
        if faults.is_empty() {
            return;
        }
        if let Err(error) = self.apply() {
            // The kernel has its own end for each; this is for the log.
            self.say(&format!("cannot tell the network: {error:#}"));
        }
        for fault in faults {
            match fault.kind {
                Kind::Pause { node } => self.thaw(node),
                Kind::Cut { .. } | Kind::Loss { .. } | Kind::Delay { .. } => {}
            }
            self.say(&format!("f{} {why}: {}", fault.id, fault.text));
        }
    }

    fn thaw(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        if machine.live.is_none() {
            return;
        }
        let done = machine.signal(Signal::CONT).map_err(anyhow::Error::from);
        let done = done.and_then(|()| machine.tell(&ToMachine::Thaw));
        if machine.state == NodeState::Paused {
            machine.turn(NodeState::Running);
        }
        if let Err(error) = done {
            let name = machine.node.name.clone();
            self.say(&format!("{name} does not go on: {error:#}"));
        }
    }

    /// Makes the network what the list of faults says.
    fn apply(&mut self) -> anyhow::Result<()> {
        let ways = self.faults.ways(&self.plan.nodes);
        let mut old = None;
        if ways != self.ways {
            let new = if ways.is_empty() {
                None
            } else {
                Some(Carrier::start(&ways).context("carry packets")?)
            };
            old = std::mem::replace(&mut self.carrier, new);
            self.ways = ways;
        }
        // The new carrier is there before the bridge drops, the old one until it no longer does: nothing falls between.
        let rules = self.faults.rules(Instant::now(), &self.plan.nodes);
        let replaced = match &mut self.rules {
            Ok(known) => known.replace(&rules).context("set the rules of nftables"),
            Err(_) if rules.is_empty() => Ok(()),
            Err(why) => Err(anyhow::anyhow!("{why}")),
        };
        drop(old);
        replaced
    }

    fn obey(&mut self, ask: Ask, line: UnixStream) {
        let answer = match ask {
            Ask::Status => Ok(Answer::Status(self.status(Instant::now()))),
            Ask::Down => Ok(Answer::Refused("it is going down".to_owned())),
            Ask::Enter { node } => return self.open_door(&node, &line),
            Ask::Cut { groups, one_way, lasts } => self.cut(&groups, one_way, lasts),
            Ask::Loss { from, to, of_a_million, lasts } => {
                self.pairs(&from, to.as_deref()).and_then(|pairs| {
                    let text = format!(
                        "loss {}% of what {from} sends to {}",
                        f64::from(of_a_million) / 1e4,
                        to.as_deref().unwrap_or("all")
                    );
                    self.befall(Kind::Loss { pairs, of_a_million }, text, lasts)
                })
            }
            Ask::Delay { from, to, delay, jitter, lasts } => {
                self.pairs(&from, to.as_deref()).and_then(|pairs| {
                    let around = if jitter.is_zero() {
                        String::new()
                    } else {
                        format!(" ± {}", show_duration(jitter))
                    };
                    let text = format!(
                        "delay of {}{around} in what {from} sends to {}",
                        show_duration(delay),
                        to.as_deref().unwrap_or("all")
                    );
                    self.befall(Kind::Delay { pairs, delay, jitter }, text, lasts)
                })
            }
            Ask::Heal { what } => self.heal(what.as_deref()),
            Ask::Kill { node, back_after } => return self.kill(&node, back_after, line),
            Ask::Stop { node } => return self.stop(&node, line),
            Ask::Start { node } => return self.start(&node, line),
            Ask::Pause { node, lasts } => return self.pause(&node, lasts, line),
            Ask::Resume { node } => self.resume(&node),
        };
        reply(&line, &answer.unwrap_or_else(Answer::Refused), None);
    }

    fn number(&self, name: &str) -> Result<usize, String> {
        self.machines.iter().position(|machine| machine.node.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.machines.iter().map(|m| m.node.name.as_str()).collect();
            format!(
                "there is no node `{name}` in lab {}; its nodes are {}",
                self.plan.name,
                names.join(", ")
            )
        })
    }

    /// What a node sends, to one or to all others.
    fn pairs(&self, from: &str, to: Option<&str>) -> Result<Vec<(usize, usize)>, String> {
        let from = self.number(from)?;
        let others = match to {
            Some(to) => vec![self.number(to)?],
            None => (0..self.machines.len()).filter(|&number| number != from).collect(),
        };
        if others == [from] {
            return Err("nothing lies between a node and itself; name another one".to_owned());
        }
        Ok(between(&[vec![from], others], true))
    }

    fn cut(
        &mut self,
        groups: &[Vec<String>],
        one_way: bool,
        lasts: Duration,
    ) -> Result<Answer, String> {
        let mut numbered = Vec::new();
        let mut seen = Vec::new();
        for group in groups {
            let numbers =
                group.iter().map(|name| self.number(name)).collect::<Result<Vec<_>, _>>()?;
            if let Some(&twice) = numbers.iter().find(|number| seen.contains(*number)) {
                return Err(format!("{} is in two groups", self.machines[twice].node.name));
            }
            seen.extend(&numbers);
            numbered.push(numbers);
        }
        let mut names: Vec<String> = groups.iter().map(|group| group.join(",")).collect();
        if numbered.len() == 1 {
            numbered
                .push((0..self.machines.len()).filter(|number| !seen.contains(number)).collect());
            names.push("all others".to_owned());
        }
        let pairs = between(&numbered, one_way);
        if pairs.is_empty() {
            return Err("there is nobody to cut them from".to_owned());
        }
        let text = format!("cut {}", names.join(if one_way { " > " } else { " | " }));
        self.befall(Kind::Cut { pairs }, text, lasts)
    }

    /// Writes a fault down, then does it; if that cannot be done, nothing of it stays.
    fn befall(&mut self, kind: Kind, text: String, lasts: Duration) -> Result<Answer, String> {
        let lasts = self.limited(lasts)?;
        let id = self.faults.add(kind, text.clone(), Instant::now() + lasts)?;
        if let Err(error) = self.apply() {
            self.faults.heal(Which::One(id));
            self.apply().ok();
            return Err(format!("{error:#}"));
        }
        let said = format!("f{id} {text}, for {}", show_duration(lasts));
        self.say(&said);
        Ok(Answer::Done(said))
    }

    fn limited(&self, lasts: Duration) -> Result<Duration, String> {
        if lasts.is_zero() {
            return Ok(DEFAULT);
        }
        if LONGEST < lasts {
            return Err(format!("no fault lasts longer than {}", show_duration(LONGEST)));
        }
        Ok(lasts)
    }

    fn heal(&mut self, what: Option<&str>) -> Result<Answer, String> {
        let which = match what {
            None => Which::All,
            Some(word @ ("cut" | "loss" | "delay" | "pause")) => Which::Kind(word),
            Some(word) => {
                let node = self.machines.iter().position(|m| m.node.name == word);
                let id = word.strip_prefix('f').and_then(|id| id.parse().ok());
                match (node, id) {
                    (Some(node), _) => Which::Node(node),
                    (None, Some(id)) => Which::One(id),
                    (None, None) => {
                        return Err(format!(
                            "`{word}` is no fault (`outlast lab status` lists them), no kind of fault (cut, loss, delay, pause) and no node"
                        ));
                    }
                }
            }
        };
        let healed = self.faults.heal(which);
        self.take_back(&healed, "healed");
        Ok(match (healed.as_slice(), which) {
            ([], Which::One(id)) => {
                return Err(format!("there is no fault f{id}; it may have healed by itself"));
            }
            ([], Which::All | Which::Kind(_) | Which::Node(_)) => {
                Answer::Done("there was nothing to heal".to_owned())
            }
            (faults, _) => {
                let lines: Vec<String> =
                    faults.iter().map(|f| format!("healed f{} {}", f.id, f.text)).collect();
                Answer::Done(lines.join("\n"))
            }
        })
    }

    fn kill(&mut self, name: &str, back_after: Option<Duration>, line: UnixStream) {
        let done = self.number(name).and_then(|number| {
            let back_after = back_after.map(|after| self.limited(after)).transpose()?;
            let machine = &mut self.machines[number];
            machine.ends_as = NodeState::Dead;
            if machine.live.is_some() {
                machine.kill(&self.bridge).map_err(|error| format!("kill {name}: {error}"))?;
            } else {
                machine.turn(NodeState::Dead);
            }
            machine.back_at = back_after.map(|after| Instant::now() + after);
            Ok(number)
        });
        self.wait_for(done, Goal::Off, OFF_MAX, line);
    }

    fn stop(&mut self, name: &str, line: UnixStream) {
        let done = self.number(name).and_then(|number| {
            let paused = self.faults.no_longer_paused(number);
            self.take_back(&paused, "healed");
            let machine = &mut self.machines[number];
            machine.back_at = None;
            if machine.live.is_some() {
                machine.ends_as = NodeState::Stopped;
                machine.turn(NodeState::Stopping);
                machine.tell(&ToMachine::Stop).map_err(|error| format!("{error:#}"))?;
            }
            Ok(number)
        });
        self.wait_for(done, Goal::Off, OFF_MAX, line);
    }

    fn start(&mut self, name: &str, line: UnixStream) {
        let done = self.number(name).and_then(|number| {
            let machine = &mut self.machines[number];
            match machine.state {
                NodeState::Paused => {
                    return Err(format!(
                        "{name} is paused; `outlast lab resume {name}` lets it go on"
                    ));
                }
                NodeState::Stopping => {
                    return Err(format!("{name} is stopping; start it when it is off"));
                }
                NodeState::Starting => {}
                NodeState::Running => match machine.agent {
                    AgentState::None | AgentState::Starting | AgentState::Running => {}
                    AgentState::Ended(_) => {
                        machine.agent = AgentState::Starting;
                        machine
                            .tell(&ToMachine::StartAgent)
                            .map_err(|error| format!("{error:#}"))?;
                    }
                },
                NodeState::Stopped | NodeState::Dead => {
                    self.power_on(number).map_err(|error| format!("start {name}: {error:#}"))?;
                }
            }
            Ok(number)
        });
        self.wait_for(done, Goal::Up, UP_MAX, line);
    }

    fn pause(&mut self, name: &str, lasts: Duration, line: UnixStream) {
        let done = self.number(name).and_then(|number| {
            let lasts = self.limited(lasts)?;
            match self.machines[number].state {
                NodeState::Running => {}
                NodeState::Paused => return Err(format!("{name} is paused already")),
                NodeState::Starting
                | NodeState::Stopping
                | NodeState::Stopped
                | NodeState::Dead => {
                    return Err(format!("{name} is {}", self.machines[number].state.word()));
                }
            }
            // Written down before it is done: from now on it ends by itself.
            self.faults.no_longer_paused(number);
            let text = format!("pause {name}");
            let id = self.faults.add(Kind::Pause { node: number }, text, Instant::now() + lasts)?;
            if let Err(error) = self.machines[number].tell(&ToMachine::Freeze) {
                self.faults.heal(Which::One(id));
                return Err(format!("{error:#}"));
            }
            self.say(&format!("f{id} pause {name}, for {}", show_duration(lasts)));
            Ok(number)
        });
        self.wait_for(done, Goal::Paused, PAUSE_MAX, line);
    }

    fn resume(&mut self, name: &str) -> Result<Answer, String> {
        let number = self.number(name)?;
        let paused = self.faults.no_longer_paused(number);
        if paused.is_empty() {
            return Err(format!("{name} is not paused"));
        }
        self.take_back(&paused, "healed");
        Ok(Answer::Done(format!("{name} goes on")))
    }

    /// Answers when the machine has come where it was sent, or at once if it was not sent.
    fn wait_for(
        &mut self,
        sent: Result<usize, String>,
        goal: Goal,
        limit: Duration,
        line: UnixStream,
    ) {
        match sent {
            Ok(number) => self.machines[number].wait(line, goal, limit),
            Err(why) => reply(&line, &Answer::Refused(why), None),
        }
    }

    fn open_door(&self, name: &str, line: &UnixStream) {
        let found = self.number(name).and_then(|number| {
            let machine = &self.machines[number];
            // Also while it is being frozen: what came in now would not be.
            let is_paused =
                self.faults.active().iter().any(|f| f.kind == Kind::Pause { node: number });
            match (&machine.live, machine.state) {
                (Some(_), _) if is_paused => {
                    Err(format!("{name} is paused; `outlast lab resume {name}` lets it go on"))
                }
                (Some(_), NodeState::Starting) => Err(format!("{name} is still starting")),
                (
                    Some(live),
                    NodeState::Running
                    | NodeState::Paused
                    | NodeState::Stopping
                    | NodeState::Stopped
                    | NodeState::Dead,
                ) => Ok(&live.pidfd),
                (None, _) => Err(format!("{name} is off; `outlast lab start {name}` turns it on")),
            }
        });
        match found {
            Ok(pidfd) => {
                let door = Answer::Door {
                    rootless: self.plan.rootless,
                    file: self.plan.file.clone(),
                    program: self.plan.program.clone(),
                };
                reply(line, &door, Some(pidfd));
            }
            Err(why) => reply(line, &Answer::Refused(why), None),
        }
    }

    fn status(&self, now: Instant) -> Status {
        let fault = |fault: &Fault| FaultStatus {
            id: format!("f{}", fault.id),
            kind: fault.kind.word().to_owned(),
            text: fault.text.clone(),
            heals_in_seconds: fault.until.saturating_duration_since(now).as_secs_f64(),
        };
        Status {
            v: 1,
            name: self.plan.name.clone(),
            file: self.plan.file.clone(),
            dir: self.plan.dir.clone(),
            rootless: self.plan.rootless,
            owner: self.plan.owner,
            up: self.was_up,
            nodes: self.machines.iter().map(|machine| machine.status(now)).collect(),
            faults: self.faults.active().iter().map(fault).collect(),
        }
    }

    /// To the owner, and into the lab's log.
    fn say(&mut self, text: &str) {
        let now = jiff::Timestamp::now();
        writeln!(self.log, "{now:.3} {text}").ok();
        wire::send(self.owner, &FromKeeper::Said(text.to_owned()), &[]).ok();
    }
}
