//! `outlast lab keeper`: the first process of a lab's namespaces. It builds the network, starts the machines, does what the
//! verbs ask, and takes faults back when their time is over.
//!
//! Everything that happens comes through one inbox and is handled in one place, one after the other.

mod orders;

use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use outlast::dataplane::wire;
use outlast_host::lab::{
    Bridge, Carrier, HostPids, Rules, Way, die_with_parent, lay_over, on_its_own,
};
use rustix::process::Signal;

use super::faults::{Fault, Faults, Kind};
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
