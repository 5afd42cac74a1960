//! The world around the agent: a queue of what happens next, servers, commands and the agent's loop.

use std::borrow::ToOwned as _;
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::format;
use std::string::String;
use std::time::Duration;
use std::vec::Vec;

use super::check::{Check, Law, Runs, law};
use super::topologies::Variant;
use super::{Broken, Bug, Outcome, PLANTED, Rng};
use crate::agent::{Action, Agent, Input, Now, Resume};
use crate::event::Target;
use crate::health::Health;
use crate::pair::Epoch;
use crate::time::{Instant, Timestamp};
use crate::topology::{Pool, Standby};
use crate::view::View;

/// Faults end here; what follows must heal.
const FAULTS_END: u64 = 400_000;
/// The longest start and the longest wait for its answer fit in, and so does everything else.
const HEALED: u64 = FAULTS_END + 240_000;
/// Pairs that wait for a person are asked here to return.
const END: u64 = HEALED + 30_000;

/// Which kinds of fault a run has, and how many: no run has them all, so that each gets its turn alone.
#[derive(Debug)]
struct Weather {
    fault_every: u64,
    lost: u64,
    silent: u64,
    crashes: u64,
    reloads: u64,
    drains: u64,
    ejects: u64,
    /// Readers say when they have a route.
    confirms: bool,
    /// A restarted agent takes over the beliefs of the published view.
    inherits: bool,
    commands_fail: u64,
    /// Of a thousand writes of who serves.
    saves_fail: u64,
}

impl Weather {
    /// The disk's part is not drawn: half of the seeds have a good one.
    fn new(seed: u64, rng: &mut Rng) -> Weather {
        let often = |rng: &mut Rng| rng.pick(&[0, 0, 50, 200]);
        Weather {
            fault_every: rng.pick(&[3_000, 10_000, 30_000, 90_000]),
            lost: rng.pick(&[0, 0, 10, 100]),
            silent: rng.pick(&[0, 0, 50]),
            crashes: often(rng),
            reloads: often(rng),
            drains: often(rng),
            ejects: often(rng),
            confirms: rng.per_mille(700),
            inherits: rng.per_mille(700),
            commands_fail: rng.pick(&[0, 300, 700]),
            saves_fail: [0, 300, 0, 900][usize::try_from(seed % 4).unwrap()],
        }
    }
}

/// What happens at a moment.
#[derive(Clone, Debug)]
enum What {
    /// Time to ask a target; ends if the target is asked under another number by now.
    Ask {
        target: Target,
        number: u64,
    },
    /// To the agent, unless it has died since.
    Tell {
        life: u64,
        input: Box<Input>,
    },
    Wake,
    Fault,
    Kill(String),
    Heal(String),
    /// The start order of this epoch has brought its server up; later orders overrule it.
    CameUp {
        service: String,
        server: String,
        epoch: Epoch,
    },
    WentDown {
        service: String,
        server: String,
        epoch: Epoch,
    },
    Birth,
    HealAll,
    AskAll,
    End,
}

struct World {
    rng: Rng,
    weather: Weather,
    now: u64,
    queue: BTreeMap<(u64, u64), What>,
    number: u64,
    variant: Variant,
    agent: Option<Agent>,
    life: u64,
    crash_at: Option<u64>,
    /// Servers that do not answer.
    dead: BTreeSet<String>,
    /// Servers that hang: they answer too late.
    frozen: BTreeSet<String>,
    asked: BTreeMap<Target, u64>,
    wake: Option<u64>,
    /// The newest order to a standby, and whether it is to run.
    orders: BTreeMap<String, (Epoch, bool)>,
    view: View,
    check: Check,
    log: Option<String>,
    steps: u64,
    restarted: bool,
    /// The agent has not taken a step yet.
    newborn: bool,
}

/// Runs one seed to its end.
pub(crate) fn run(seed: u64, bug: Option<Bug>, with_log: bool) -> Result<Outcome, Broken> {
    PLANTED.set(bug);
    let mut world = World::new(seed, with_log);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.live()));
    PLANTED.set(None);
    let broken = match result {
        Ok(Ok(())) => None,
        Ok(Err(law)) => Some(law),
        Err(panic) => Some(format!(
            "panic: {}",
            panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
                .unwrap_or_default()
        )),
    };
    let log = world.log.unwrap_or_default();
    match broken {
        None => Ok(Outcome { seen: world.check.seen, steps: world.steps, log }),
        Some(law) => Err(Broken { seed, at: Duration::from_millis(world.now), law, log }),
    }
}

impl World {
    fn new(seed: u64, with_log: bool) -> World {
        let mut rng = Rng::new(seed);
        let weather = Weather::new(seed, &mut rng);
        let variant = Variant::new(&mut rng);
        World {
            rng,
            weather,
            now: 0,
            queue: BTreeMap::new(),
            number: 0,
            variant,
            agent: None,
            life: 0,
            crash_at: None,
            dead: BTreeSet::from(["cold-b".to_owned()]),
            frozen: BTreeSet::new(),
            asked: BTreeMap::new(),
            wake: None,
            orders: BTreeMap::new(),
            view: View::default(),
            check: Check::default(),
            log: with_log.then(String::new),
            steps: 0,
            restarted: false,
            newborn: false,
        }
    }

    fn live(&mut self) -> Law {
        self.at(0, What::Birth);
        self.at(0, What::Fault);
        self.at(FAULTS_END, What::HealAll);
        self.at(HEALED, What::AskAll);
        self.at(END, What::End);
        while let Some(((at, _), what)) = self.queue.pop_first() {
            self.now = at;
            if let Some(log) = &mut self.log {
                writeln!(log, "{:9.3} {what:?}", Duration::from_millis(at).as_secs_f64()).unwrap();
            }
            match what {
                What::Ask { target, number } => self.ask(target, number),
                What::Tell { life, input } if life == self.life => self.step(*input)?,
                What::Tell { .. } => {}
                What::Wake if self.wake == Some(at) => {
                    self.wake = None;
                    self.step(Input::Tick)?;
                }
                What::Wake => {}
                What::Fault => self.fault()?,
                What::Kill(server) => {
                    self.dead.insert(server);
                }
                What::Heal(server) => {
                    self.frozen.remove(&server);
                    // A cold standby does not come back by itself.
                    if server != "cold-b" {
                        self.dead.remove(&server);
                    }
                }
                What::CameUp { service, server, epoch } => {
                    if self.orders.get(&service) == Some(&(epoch, true)) {
                        self.dead.remove(&server);
                    }
                }
                What::WentDown { service, server, epoch } => {
                    if self.orders.get(&service) == Some(&(epoch, false)) {
                        self.dead.insert(server);
                    }
                }
                What::Birth => self.birth()?,
                What::HealAll => self.heal_all()?,
                What::AskAll => {
                    self.healed(false)?;
                    self.ask_failback()?;
                }
                What::End => {
                    self.healed(true)?;
                    return Ok(());
                }
            }
        }
        Err("the world stood still".to_owned())
    }

    fn at(&mut self, at: u64, what: What) {
        self.number += 1;
        self.queue.insert((at, self.number), what);
    }

    fn after(&mut self, low: u64, high: u64, what: What) {
        let at = self.now + self.rng.between(low, high);
        self.at(at, what);
    }

    fn tell(&mut self, low: u64, high: u64, input: Input) {
        let life = self.life;
        self.after(low, high, What::Tell { life, input: Box::new(input) });
    }

    fn instant(&self) -> Instant {
        Instant::from_start(Duration::from_millis(self.now))
    }

    fn both(&self) -> Now {
        let wall = Timestamp(1_700_000_000_000 + i64::try_from(self.now).unwrap());
        Now { instant: self.instant(), wall }
    }

    fn healthy(&self) -> bool {
        FAULTS_END <= self.now
    }

    /// The agent starts, with what is on the disk.
    fn birth(&mut self) -> Law {
        let topology = self.variant.topology();
        let mut resume = Resume { pairs: self.check.disk.clone(), ..Resume::default() };
        if self.weather.inherits {
            for (service, view) in &self.view.services {
                for backend in &view.backends {
                    let backend_name = backend.name.clone();
                    let target =
                        Target::Backend { service: service.clone(), backend: backend_name };
                    if backend.health != Health::Unknown {
                        resume.beliefs.insert(target, backend.health);
                    }
                }
            }
        }
        self.newborn = true;
        self.check.born(&topology, &resume.beliefs);
        self.agent = Some(Agent::new(topology, &resume, self.both()));
        self.follow();
        // The loop publishes before it hears anything.
        self.perform(std::vec![Action::Publish])
    }

    fn death(&mut self) {
        self.agent = None;
        self.restarted = true;
        self.life += 1;
        self.crash_at = None;
        self.asked.clear();
        self.after(10, 3_000, What::Birth);
    }

    /// Asks exactly the targets of the topology.
    fn follow(&mut self) {
        let Some(agent) = &self.agent else { return };
        let targets: BTreeSet<Target> =
            crate::agent::targets(agent.topology()).into_iter().map(|(target, _)| target).collect();
        self.asked.retain(|target, _| targets.contains(target));
        for target in targets {
            if !self.asked.contains_key(&target) {
                self.number += 1;
                let number = self.number;
                self.asked.insert(target.clone(), number);
                self.after(0, 1_000, What::Ask { target, number });
            }
        }
    }

    fn ask(&mut self, target: Target, number: u64) {
        if self.asked.get(&target) != Some(&number) {
            return;
        }
        let every = self.variant.every * 1_000;
        let server = match &target {
            Target::Backend { backend, .. } => backend.clone(),
            Target::External { name } | Target::Value { id: name } => name.clone(),
        };
        let frozen = self.frozen.contains(&server);
        let lost = !self.healthy() && self.rng.per_mille(self.weather.lost);
        let silent = !self.healthy() && self.rng.per_mille(self.weather.silent);
        let ok = !(self.dead.contains(&server) || frozen || lost);
        if !silent {
            let (low, high) = if frozen { (every / 2, every / 2 + 1) } else { (0, every / 2) };
            let input = Input::Probed { target: target.clone(), ok, reason: String::new() };
            self.tell(low, high, input);
        }
        self.at(self.now + every, What::Ask { target, number });
    }

    fn fault(&mut self) -> Law {
        if self.healthy() {
            return Ok(());
        }
        let every = self.weather.fault_every;
        self.after(every / 2, every * 3 / 2, What::Fault);
        let servers = [
            "web-1", "web-2", "web-3", "web-4", "hot-a", "hot-b", "hot-c", "warm-a", "warm-b",
            "warm-c", "cold-a", "cold-a", "cold-b", "cloud",
        ];
        let server = self.rng.pick(&servers).to_owned();
        match self.rng.between(0, 5) {
            0 => self.kill(server, 1_000, 120_000),
            1 => {
                self.frozen.insert(server.clone());
                self.after(1_000, 60_000, What::Heal(server));
            }
            2 => {
                for _ in 0..4 {
                    let at = self.now + self.rng.between(0, 40_000);
                    self.at(at, What::Kill(server.clone()));
                    self.at(at + 4_000, What::Heal(server.clone()));
                }
            }
            3 => {
                let both = self.rng.pick(&[
                    ("hot-a", "hot-b"),
                    ("warm-a", "warm-b"),
                    ("cold-a", "cold-b"),
                ]);
                self.kill(both.0.to_owned(), 1_000, 90_000);
                self.kill(both.1.to_owned(), 1_000, 90_000);
            }
            _ => {}
        }
        if self.rng.per_mille(self.weather.crashes) {
            if self.rng.per_mille(300) {
                self.death();
            } else {
                self.crash_at = Some(self.rng.between(0, 5));
            }
        }
        if self.rng.per_mille(self.weather.drains) {
            self.drain()?;
        }
        if self.rng.per_mille(self.weather.ejects) {
            self.eject()?;
        }
        if self.rng.per_mille(100) {
            self.ask_failback()?;
        }
        if self.rng.per_mille(self.weather.reloads) {
            self.reload()?;
        }
        Ok(())
    }

    fn kill(&mut self, server: String, low: u64, high: u64) {
        self.dead.insert(server.clone());
        self.after(low, high, What::Heal(server));
    }

    fn some_backend(&mut self) -> Option<(String, String)> {
        let all: Vec<(String, String)> = self
            .variant
            .topology()
            .services
            .iter()
            .flat_map(|(name, s)| {
                s.pool
                    .backends()
                    .into_iter()
                    .map(|b| (name.clone(), b.url.clone()))
                    .collect::<Vec<_>>()
            })
            .collect();
        let at = usize::try_from(self.rng.between(0, all.len() as u64)).unwrap();
        all.get(at).cloned()
    }

    fn drain(&mut self) -> Law {
        let Some((service, backend)) = self.some_backend() else { return Ok(()) };
        let on = Input::Drain { service: service.clone(), backend: backend.clone(), on: true };
        self.tell(5_000, 90_000, Input::Drain { service, backend, on: false });
        self.step(on)
    }

    fn eject(&mut self) -> Law {
        let Some((service, backend)) = self.some_backend() else { return Ok(()) };
        let time = Duration::from_millis(self.rng.between(1_000, 60_000));
        // The notice of its return may be lost, and both may come after the backend has left the topology.
        if self.rng.per_mille(700) {
            let at = u64::try_from(time.as_millis()).unwrap();
            let (service, backend) = (service.clone(), backend.clone());
            self.tell(at, at + 2_000, Input::Returned { service, backend });
        }
        let reason = "5 failures in a row".to_owned();
        self.tell(0, 3_000, Input::Ejected { service, backend, reason, time });
        Ok(())
    }

    fn ask_failback(&mut self) -> Law {
        for service in ["hot", "warm", "cold"] {
            if self.agent.is_some() {
                self.check.asked(service);
                self.step(Input::Failback { service: service.to_owned() })?;
            }
        }
        Ok(())
    }

    fn reload(&mut self) -> Law {
        let now = self.both();
        // A file that changes while no agent runs is another matter: what was saved does not name the servers.
        let Some(agent) = &mut self.agent else { return Ok(()) };
        self.variant.change(&mut self.rng);
        let topology = self.variant.topology();
        let mut actions = Vec::new();
        agent.reload(topology.clone(), now, &mut actions);
        // Whoever reloads sees to it that the disk takes it, or refuses the file.
        if agent.awaits_save() {
            agent.saved(now, &mut actions);
        }
        self.check.reloads(&topology, now.instant);
        self.follow();
        self.perform(actions)?;
        self.sleep();
        Ok(())
    }

    fn heal_all(&mut self) -> Law {
        self.crash_at = None;
        self.frozen.clear();
        self.dead.retain(|server| server == "cold-b");
        self.queue.retain(|_, what| {
            let drains = |input: &Input| matches!(input, Input::Drain { on: true, .. });
            !(matches!(what, What::Kill(_))
                || matches!(what, What::Tell { input, .. } if drains(input)))
        });
        let all: Vec<(String, String)> = self
            .view
            .services
            .iter()
            .flat_map(|(name, s)| s.backends.iter().map(|b| (name.clone(), b.name.clone())))
            .collect();
        for (service, backend) in all {
            self.step(Input::Drain { service, backend, on: false })?;
        }
        Ok(())
    }

    fn healed(&self, asked: bool) -> Law {
        let now = self.instant();
        let Some(agent) = &self.agent else { return Err("there is no agent".to_owned()) };
        self.check.healed(now, agent, asked)?;
        // A standby that an earlier life of the agent started is nobody's.
        let stops = matches!(
            agent.topology().services.get("cold").map(|s| &s.pool),
            Some(Pool::Pair(pair)) if matches!(&pair.standby, Standby::Cold { stop: Some(_), .. })
        );
        let left = stops && asked && !self.restarted && self.weather.reloads == 0;
        law!(!left || self.dead.contains("cold-b"), "the cold standby was left running");
        Ok(())
    }

    fn step(&mut self, input: Input) -> Law {
        let now = self.both();
        let Some(agent) = &mut self.agent else { return Ok(()) };
        self.check.slept(now.instant)?;
        self.steps += 1;
        let mut actions = Vec::new();
        agent.step(now, input, &mut actions);
        if agent.awaits_save() {
            let may_fail = self.weather.saves_fail > 0 && self.now < FAULTS_END;
            let fails = may_fail && self.rng.per_mille(self.weather.saves_fail);
            if fails {
                law!(actions.pop() == Some(Action::SavePairs), "awaits what it did not ask for");
                agent.not_saved(now, "no space left".to_owned(), &mut actions);
            } else {
                agent.saved(now, &mut actions);
            }
        }
        if std::mem::take(&mut self.newborn) {
            self.check.look(now.instant);
        }
        if self.perform_or_crash(actions)? {
            return Ok(());
        }
        let Some(agent) = &mut self.agent else { return Ok(()) };
        let deadline = agent.deadline(now.instant);
        law!(deadline.is_none_or(|at| now.instant < at), "woken at once, for ever");
        // Looking again changes nothing.
        if self.steps.is_multiple_of(16) {
            let mut again = Vec::new();
            agent.step(now, Input::Tick, &mut again);
            law!(again == [Action::Publish], "looked again and did {again:?}");
        }
        self.sleep();
        Ok(())
    }

    /// The agent may die anywhere between two actions. True: it did.
    fn perform_or_crash(&mut self, mut actions: Vec<Action>) -> Result<bool, String> {
        let interesting = actions.len() > 1;
        let Some(crash_at) = self.crash_at.filter(|_| interesting) else {
            self.perform(actions)?;
            return Ok(false);
        };
        actions.truncate(usize::try_from(crash_at).unwrap());
        self.perform(actions)?;
        self.death();
        Ok(true)
    }

    fn sleep(&mut self) {
        let now = self.instant();
        let deadline = self.agent.as_ref().and_then(|agent| agent.deadline(now));
        let wake = deadline.map(|at| u64::try_from(at.since_start().as_millis()).unwrap());
        if self.wake != wake {
            self.wake = wake;
            wake.into_iter().for_each(|at| self.at(at, What::Wake));
        }
    }

    /// Does what the agent says, in its order.
    fn perform(&mut self, actions: Vec<Action>) -> Law {
        let now = self.instant();
        let quiet = actions == [Action::Publish] && !self.steps.is_multiple_of(16);
        for action in actions {
            if let Some(log) = &mut self.log {
                writeln!(log, "          {action:?}").unwrap();
            }
            match action {
                Action::Record(fact) => self.check.fact(now, &fact)?,
                Action::SavePairs => {
                    self.check.disk = self.agent.as_ref().map(Agent::pairs).unwrap_or_default();
                }
                Action::Publish => self.publish(now, quiet)?,
                Action::StandbyCommand { service, epoch } => self.command(service, epoch)?,
                // Whoever is alone asks nobody.
                Action::Agree(_) => {}
                Action::StandbyStop { service, epoch } => {
                    self.check.stop(now, &service)?;
                    self.orders.insert(service.clone(), (epoch, false));
                    if let Some(server) = self.backup(&service) {
                        self.after(0, 6_000, What::WentDown { service, server, epoch });
                    }
                }
            }
        }
        Ok(())
    }

    fn publish(&mut self, now: Instant, quiet: bool) -> Law {
        let Some(agent) = &self.agent else { return Ok(()) };
        // Nothing was decided: the last view still holds but for its streaks.
        if !quiet {
            self.view = agent.view(now);
            self.check.publish(now, &self.view)?;
            if let Some(log) = &mut self.log {
                for (name, service) in &self.view.services {
                    writeln!(log, "            {name} {} {:?}", service.state, service.active)
                        .unwrap();
                }
            }
        }
        if self.weather.confirms {
            for (service, epoch) in agent.switching() {
                self.tell(0, 1_500, Input::Routed { service, epoch });
            }
        }
        Ok(())
    }

    fn backup(&self, service: &str) -> Option<String> {
        match &self.agent.as_ref()?.topology().services.get(service)?.pool {
            Pool::Pair(pair) => Some(pair.backup.url.clone()),
            Pool::Balanced { .. } => None,
        }
    }

    /// A standby's command: it works, fails, works too late, or its answer is lost. It ends soon after its limit at the latest.
    fn command(&mut self, service: String, epoch: Epoch) -> Law {
        let now = self.instant();
        self.check.command(now, &service, epoch)?;
        self.orders.insert(service.clone(), (epoch, true));
        let pool = self.agent.as_ref().and_then(|a| a.topology().services.get(&service));
        let limit = match pool.map(|s| &s.pool) {
            Some(Pool::Pair(pair)) => match &pair.standby {
                Standby::Cold { start_limit, .. } => *start_limit,
                Standby::Warm { .. } | Standby::Hot => crate::pair::ACTIVATE_LIMIT,
            },
            Some(Pool::Balanced { .. }) | None => Duration::ZERO,
        };
        let limit = u64::try_from(limit.as_millis()).unwrap();
        let fails = !self.healthy() && self.rng.per_mille(self.weather.commands_fail);
        let fate = if fails { self.rng.between(0, 4) } else { 4 };
        let (took, works, answers) = match fate {
            0 => (self.rng.between(0, limit), false, true),
            1 => (limit + self.rng.between(0, 20_000), true, true),
            2 => (limit, false, false),
            3 => (limit / 2, true, false),
            _ => (self.rng.between(0, limit / 4), true, true),
        };
        self.check
            .runs
            .insert(service.clone(), Runs { epoch, ends: now + Duration::from_millis(took) });
        if works && let Some(server) = self.backup(&service).filter(|s| s.starts_with("cold")) {
            let ready = if fails { limit } else { limit / 4 };
            let service = service.clone();
            self.after(took, took + ready, What::CameUp { service, server, epoch });
        }
        if answers {
            let result = if works { Ok(()) } else { Err("exit status 1".to_owned()) };
            let input = Input::CommandDone { service, epoch, result };
            self.tell(took, took + 100, input);
        }
        Ok(())
    }
}
