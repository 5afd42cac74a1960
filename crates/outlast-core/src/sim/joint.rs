//! Three agents that decide together: what is agreed reaches them late, nodes are cut off, agents die, data planes hang,
//! single observers are wrong, clocks drift. At no moment may two nodes route to two sides.

use std::borrow::ToOwned as _;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::format;
use std::string::String;
use std::time::Duration;
use std::vec::Vec;

use super::check::{Law, law};
use super::seeds::each_seed;
use super::topologies::{pair, probe, service};
use super::{Bug, PLANTED, Rng};
use crate::agent::{Action, Agent, Agreement, Input, Now, ROUTING_LEASE, Resume, routing_role};
use crate::agreed::{
    Agreed, ClientId, Command, Entry, Held, LeaseClock, LeaseCommand, Moment, NodeCommand,
    NodeRole, Reply, SideCommand,
};
use crate::event::Target;
use crate::observers::{Report, SAY_EVERY};
use crate::pair::{Epoch, Side};
use crate::time::{Instant, Timestamp};
use crate::topology::{Command as Words, Failback, Standby, Topology};

const NAMES: [&str; 3] = ["a", "b", "c"];
const TICK: u64 = 10;
const FAULTS_END: u64 = 60_000;
const END: u64 = 100_000;

/// Answers go astray to the end, so that a lease can lapse at the last moment: it is back within this time.
const LAPSE_MAX: u64 = 5_000;
/// A leader that no majority answers stops acting after this, and another one is there a little later.
const DEPOSED_AFTER: u64 = 150;
const ELECTED_AFTER: u64 = 400;
/// A primary that was up for this long is up to everybody who looks.
const SURELY_UP: u64 = 6_000;

/// The last word of a node that saw wrongly and died is believed for this long: two of them would be a majority.
const LIE_LASTS: u64 = 5_000;

/// What is wrong with the world itself, so that the laws have something to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slip {
    /// Data planes go on when the lease is over.
    LeaseIgnored,
    /// An agent that has just started goes by what it reads of its old log.
    OldNewsCounts,
}

/// What a data plane does.
#[derive(Debug, Default)]
struct Plane {
    serves: Option<(Side, Epoch)>,
    coming: VecDeque<(u64, Option<(Side, Epoch)>)>,
    vouched_until: Instant,
    stuck_until: u64,
}

#[derive(Debug)]
struct Node {
    agent: Option<Agent>,
    life: u64,
    back_at: u64,
    cut_until: u64,
    /// This observer sees the primary down, whatever it is.
    lies_until: u64,
    drift: i64,
    plane: Plane,
    agreed: Agreed,
    clock: LeaseClock,
    leads: bool,
    told: Agreement,
    said: Report,
    said_at: u64,
    disk: Resume,
    inbox: Vec<(u64, String, Report)>,
    held: Option<Held>,
    /// What was agreed before the grant has to be known first.
    granted: Option<Held>,
    lease_asked: Option<u64>,
    renew_at: u64,
    /// Something was fed to its agent since it last spoke.
    stepped: bool,
    /// It applied something, or began or ceased to lead, since its agent was last told.
    news: bool,
    /// Since it was born, a leader has said that this index is newest.
    current_from: Option<u64>,
}

/// Something that is on its way to be agreed on.
#[derive(Clone, Debug)]
struct Proposal {
    due: u64,
    node: usize,
    life: u64,
    sent: Moment,
    command: Command,
}

struct World {
    rng: Rng,
    now: u64,
    log: Vec<Entry>,
    /// The state that all have once they have applied everything.
    truth: Agreed,
    nodes: Vec<Node>,
    proposals: Vec<Proposal>,
    leader: Option<usize>,
    vacant_since: u64,
    servers_down: [bool; 2],
    primary_up_since: u64,
    next_fault: u64,
    /// Moves that were settled at once, and when.
    planned: BTreeMap<u64, u64>,
    slip: Option<Slip>,
    /// The backup has to be activated first.
    warm: bool,
    /// Commands that run, and when they end.
    commands: Vec<(u64, usize, u64, Epoch)>,
    text: Option<String>,
    failovers: u64,
}

fn topology(warm: bool) -> Topology {
    let activate = warm.then(|| Words(Vec::from(["activate".to_owned()])));
    let standby = activate.map_or(Standby::Hot, |a| Standby::Warm { activate: Some(a) });
    let pool = pair("p", "q", standby, Failback::After(Duration::from_secs(1)));
    let services = [("db".to_owned(), service(pool, probe(1, 2, 2)))].into();
    Topology { services, ..Topology::default() }
}

fn backend(name: &str) -> Target {
    Target::Backend { service: "db".to_owned(), backend: name.to_owned() }
}

impl Node {
    fn new(name: &str, drift: i64) -> Node {
        Node {
            agent: None,
            life: 0,
            back_at: 0,
            cut_until: 0,
            lies_until: 0,
            drift,
            plane: Plane::default(),
            agreed: Agreed::default(),
            clock: LeaseClock::default(),
            leads: false,
            told: Agreement::default(),
            said: Report::default(),
            said_at: 0,
            disk: Resume { joint: Some(name.to_owned()), ..Resume::default() },
            inbox: Vec::new(),
            held: None,
            granted: None,
            lease_asked: None,
            renew_at: 0,
            stepped: true,
            news: true,
            current_from: None,
        }
    }

    /// By its own clock, which drifts by millionths.
    fn moment(&self, now: u64) -> Moment {
        let nanos = now * 1_000_000;
        let off = i64::try_from(now).unwrap() * self.drift;
        let at = Instant::from_start(Duration::from_nanos(nanos.saturating_add_signed(off)));
        let wall = Timestamp(i64::try_from(at.since_start().as_millis()).unwrap());
        Moment { now: at, wall }
    }

    fn routes(&self, now: u64, slip: Option<Slip>) -> Option<(Side, Epoch)> {
        let vouched = self.moment(now).now < self.plane.vouched_until;
        self.plane.serves.filter(|_| vouched || slip == Some(Slip::LeaseIgnored))
    }
}

impl World {
    fn new(seed: u64, slip: Option<Slip>, text: bool) -> World {
        let mut rng = Rng::new(seed ^ 0x6a6f_696e_7400);
        let mut log = Vec::new();
        let entry = |origin, sequence, command| Entry {
            origin: ClientId(origin),
            sequence,
            wall: Timestamp(0),
            command,
        };
        log.push(entry(0, 0, Command::Introduce));
        for (at, name) in (1..).zip(NAMES) {
            let join = NodeCommand::Join {
                name: name.to_owned(),
                role: NodeRole::Voter,
                address: name.to_owned(),
                replaces: None,
            };
            log.push(entry(1, at, Command::Node(join)));
        }
        let drifts = NAMES.map(|_| i64::try_from(rng.between(0, 1000)).unwrap() - 500);
        World {
            now: 0,
            log,
            truth: Agreed::default(),
            nodes: NAMES.iter().zip(drifts).map(|(name, drift)| Node::new(name, drift)).collect(),
            proposals: Vec::new(),
            leader: None,
            vacant_since: 0,
            servers_down: [false; 2],
            primary_up_since: 0,
            next_fault: rng.between(3_000, 8_000),
            planned: BTreeMap::new(),
            slip,
            warm: seed % 3 == 1,
            commands: Vec::new(),
            text: text.then(String::new),
            failovers: 0,
            rng,
        }
    }

    fn note(&mut self, words: &str) {
        let now = self.now;
        if let Some(text) = &mut self.text {
            writeln!(text, "{now:>7} {words}").unwrap();
        }
    }

    fn connected(&self, node: usize) -> bool {
        self.nodes[node].cut_until <= self.now
    }

    fn majority(&self) -> bool {
        (0..3).filter(|&n| self.connected(n) && self.nodes[n].agent.is_some()).count() >= 2
    }

    fn run(&mut self) -> Law {
        while self.now < END || self.stray().is_some() && self.now < END + LAPSE_MAX {
            self.fault();
            self.lead();
            self.agree()?;
            self.end_commands();
            for node in 0..3 {
                self.live(node);
            }
            self.one_side()?;
            self.now += TICK;
        }
        match self.stray() {
            None => Ok(()),
            Some((name, routes)) => {
                Err(format!("{name} does not route to the primary: {routes:?}"))
            }
        }
    }

    /// A node that does not route to the primary.
    fn stray(&self) -> Option<(&'static str, Option<Side>)> {
        let routes = |node: &Node| node.routes(self.now, None).map(|(side, _)| side);
        let mut all = NAMES.into_iter().zip(self.nodes.iter().map(routes));
        all.find(|(_, routes)| *routes != Some(Side::Primary))
    }

    fn one_side(&self) -> Law {
        let routes: Vec<_> =
            self.nodes.iter().filter_map(|node| node.routes(self.now, self.slip)).collect();
        for (side, epoch) in &routes {
            for (other, newer) in routes.iter().filter(|(_, newer)| epoch < newer) {
                let planned = self.planned.get(&newer.0);
                let lease = u64::try_from(ROUTING_LEASE.as_millis()).unwrap();
                let at_once = planned.is_some_and(|&at| self.now <= at + lease);
                law!(
                    side == other || at_once,
                    "{side} under {epoch:?} and {other} under {newer:?} both serve"
                );
            }
        }
        Ok(())
    }

    fn fault(&mut self) {
        if FAULTS_END <= self.now {
            self.heal_all();
            return;
        }
        if self.now < self.next_fault {
            return;
        }
        self.next_fault = self.now + self.rng.between(300, 7_000);
        let node = usize::try_from(self.rng.between(0, 3)).unwrap();
        let lasts = self.rng.pick(&[200, 600, 2_000, 5_000, 9_000]);
        let until = self.now + lasts;
        match self.rng.between(0, 8) {
            0 | 1 => self.set_server(0, !self.servers_down[0]),
            2 => self.set_server(1, !self.servers_down[1]),
            3 if self.nodes.iter().all(|n| n.cut_until <= self.now) => {
                self.note(&format!("cut {} until {until}", NAMES[node]));
                self.nodes[node].cut_until = until;
            }
            4 if self.nodes.iter().all(|n| n.lies_until + LIE_LASTS <= self.now) => {
                self.note(&format!("{} sees the primary down until {until}", NAMES[node]));
                self.nodes[node].lies_until = until;
            }
            5 => self.nodes[node].plane.stuck_until = self.now + lasts.min(3_000),
            6 if self.nodes.iter().all(|n| n.agent.is_some()) => self.kill(node, until),
            _ => {}
        }
    }

    fn heal_all(&mut self) {
        for server in 0..2 {
            if self.servers_down[server] {
                self.set_server(server, false);
            }
        }
        for node in &mut self.nodes {
            node.cut_until = node.cut_until.min(self.now);
            node.lies_until = 0;
            node.back_at = node.back_at.min(self.now);
        }
    }

    fn set_server(&mut self, server: usize, down: bool) {
        self.note(&format!(
            "server {} {}",
            ["p", "q"][server],
            if down { "dies" } else { "is back" }
        ));
        self.servers_down[server] = down;
        if server == 0 {
            self.primary_up_since = if down { u64::MAX } else { self.now };
        }
    }

    fn kill(&mut self, node: usize, until: u64) {
        self.note(&format!("the agent of {} dies", NAMES[node]));
        let node = &mut self.nodes[node];
        node.agent = None;
        node.life += 1;
        node.back_at = until;
        node.leads = false;
        node.held = None;
        node.current_from = None;
        node.granted = None;
        node.lease_asked = None;
        node.told = Agreement::default();
        node.inbox.clear();
        // Another process reads the log from the beginning.
        node.agreed = Agreed::default();
        node.clock = LeaseClock::default();
    }

    /// Who leads: nobody for a while, once the leader is gone.
    fn lead(&mut self) {
        if let Some(leader) = self.leader {
            if !self.connected(leader) || self.nodes[leader].agent.is_none() || !self.majority() {
                self.leader = None;
                self.vacant_since = self.now;
            }
        } else if self.majority() && self.vacant_since + ELECTED_AFTER <= self.now {
            let fit: Vec<usize> =
                (0..3).filter(|&n| self.connected(n) && self.nodes[n].agent.is_some()).collect();
            let next = self.rng.pick(&fit);
            self.note(&format!("{} leads", NAMES[next]));
            self.leader = Some(next);
            let now = self.now;
            let node = &mut self.nodes[next];
            (node.leads, node.news) = (true, true);
            node.clock.took_over(node.moment(now).now, &node.agreed);
        }
        let deposed = self.leader.is_none() && self.vacant_since + DEPOSED_AFTER <= self.now;
        for node in 0..3 {
            if self.leader != Some(node) && (deposed || self.leader.is_some()) {
                self.nodes[node].news |= std::mem::take(&mut self.nodes[node].leads);
            }
        }
    }

    fn propose(&mut self, node: usize, command: Command) {
        let due = self.now + self.rng.between(2, 40);
        let sent = self.nodes[node].moment(self.now);
        let life = self.nodes[node].life;
        self.proposals.push(Proposal { due, node, life, sent, command });
    }

    /// What is due is agreed on, if its author is in touch with whoever leads.
    fn agree(&mut self) -> Law {
        let now = self.now;
        let (due, rest) =
            std::mem::take(&mut self.proposals).into_iter().partition(|p| p.due <= now);
        self.proposals = rest;
        let due: Vec<Proposal> = due;
        for proposal in due {
            let Proposal { node, life, .. } = proposal;
            let lives = self.nodes[node].life == life && self.nodes[node].agent.is_some();
            let sided = matches!(proposal.command, Command::Side(_));
            let leads = self.leader.is_some_and(|leader| !sided || leader == node);
            let reply = (lives && leads && self.connected(node)).then(|| self.commit(&proposal));
            let reply = reply.transpose()?;
            // Now and then the answer is lost.
            let reply = reply.filter(|_| !self.rng.per_mille(50));
            if lives {
                self.answer(proposal, reply);
            }
        }
        Ok(())
    }

    fn commit(&mut self, proposal: &Proposal) -> Result<Reply, String> {
        let command = proposal.command.clone();
        let repeatable = command.repeatable();
        let sequence = if repeatable { 0 } else { self.log.len() as u64 };
        let origin = ClientId(u64::from(!repeatable));
        self.log.push(Entry { origin, sequence, wall: Timestamp(0), command });
        let reply = self.apply_new();
        let done = !matches!(reply, Reply::Refused { .. });
        if let (true, Command::Side(side)) = (done, &proposal.command) {
            self.note(&format!("{} has agreed on {side:?}", NAMES[proposal.node]));
            if let SideCommand::Move { to, epoch, settled, .. } = side {
                if *settled {
                    self.planned.insert(epoch.0, self.now);
                }
                if *to == Side::Backup && !settled {
                    self.failovers += 1;
                    let up = self.primary_up_since.saturating_add(SURELY_UP) <= self.now;
                    law_is(!up, "a primary that all others see up was left")?;
                }
            }
        }
        Ok(reply)
    }

    fn apply_new(&mut self) -> Reply {
        let from = usize::try_from(self.truth.index()).unwrap();
        let mut reply = Reply::Done;
        for (index, entry) in (1..).zip(&self.log).skip(from) {
            reply = self.truth.apply(index, entry);
        }
        reply
    }

    fn answer(&mut self, proposal: Proposal, reply: Option<Reply>) {
        let Proposal { node, sent, command, .. } = proposal;
        let at = self.nodes[node].moment(self.now);
        match command {
            Command::Side(command) => {
                let result = match reply {
                    Some(Reply::Refused { why }) => Err(format!("{why}")),
                    Some(_) => Ok(()),
                    None => Err("no majority has answered in time".to_owned()),
                };
                self.step(node, Input::Answered { command, result });
            }
            Command::Lease(LeaseCommand::Grant { .. }) => {
                self.nodes[node].lease_asked = None;
                if let Some(Reply::Granted { epoch }) = reply {
                    self.nodes[node].granted = Some(Held::granted(epoch, ROUTING_LEASE, sent));
                }
            }
            Command::Lease(LeaseCommand::Renew { .. }) => {
                self.nodes[node].lease_asked = None;
                match (reply, &mut self.nodes[node].held) {
                    (Some(Reply::Done), Some(held)) => held.renewed(sent, at),
                    (Some(_), _) => self.lose_lease(node),
                    (None, _) => {}
                }
            }
            Command::Lease(LeaseCommand::Expire { .. } | LeaseCommand::Release { .. })
            | Command::Introduce
            | Command::Node(_)
            | Command::Topology(_)
            | Command::Notice(_)
            | Command::Procedure(_)
            | Command::Kv(_)
            | Command::Session(_)
            | Command::Lock(_)
            | Command::Database(_)
            | Command::Address(_)
            | Command::Names(_)
            | Command::Record { .. } => {}
        }
    }

    fn lose_lease(&mut self, node: usize) {
        self.nodes[node].held = None;
        self.step(node, Input::Vouches(false));
    }

    fn end_commands(&mut self) {
        let now = self.now;
        let (done, rest) = std::mem::take(&mut self.commands).into_iter().partition(|c| c.0 <= now);
        self.commands = rest;
        let done: Vec<(u64, usize, u64, Epoch)> = done;
        for (_, node, life, epoch) in done {
            if self.nodes[node].life == life {
                let result = Ok(());
                self.step(node, Input::CommandDone { service: "db".to_owned(), epoch, result });
            }
        }
    }

    /// One node's share of a moment.
    fn live(&mut self, node: usize) {
        self.plane(node);
        if self.nodes[node].agent.is_none() {
            if self.now < self.nodes[node].back_at {
                return;
            }
            self.birth(node);
        }
        self.catch_up(node);
        self.hear(node);
        self.probe(node);
        self.lease(node);
        self.expire(node);
        let now = self.now_of(node);
        let agent = self.nodes[node].agent.as_ref().unwrap();
        if agent.deadline(now.instant).is_some_and(|at| at <= now.instant) {
            self.step(node, Input::Tick);
        }
        self.say(node);
    }

    fn birth(&mut self, node: usize) {
        let now = self.now_of(node);
        let this = &mut self.nodes[node];
        this.news = true;
        this.agent = Some(Agent::new(topology(self.warm), &this.disk, now));
        self.step(node, Input::Tick);
    }

    /// An agent counts from another moment than the clock of its leases.
    fn now_of(&self, node: usize) -> Now {
        let Moment { now, wall } = self.nodes[node].moment(self.now);
        Now { instant: now, wall }
    }

    fn plane(&mut self, node: usize) {
        let now = self.now;
        let plane = &mut self.nodes[node].plane;
        if now < plane.stuck_until {
            return;
        }
        while plane.coming.front().is_some_and(|(due, _)| *due <= now) {
            plane.serves = plane.coming.pop_front().and_then(|(_, serves)| serves);
        }
        let all_in_force = plane.coming.is_empty();
        let switching = self.nodes[node].agent.as_ref().map(Agent::switching).unwrap_or_default();
        for (service, epoch) in switching.into_iter().filter(|_| all_in_force) {
            self.step(node, Input::Routed { service, epoch });
        }
    }

    fn catch_up(&mut self, node: usize) {
        let behind = self.log.len() as u64 - self.nodes[node].agreed.index();
        if behind > 0 && self.connected(node) && self.rng.per_mille(500) {
            let at = self.nodes[node].moment(self.now).now;
            let this = &mut self.nodes[node];
            let from = usize::try_from(this.agreed.index()).unwrap();
            let count = usize::try_from(self.rng.between(1, behind + 1)).unwrap();
            for (index, entry) in (1..).zip(&self.log).skip(from).take(count) {
                this.agreed.apply(index, entry);
            }
            this.clock.observe(at, &this.agreed);
            this.news = true;
        }
        // Whoever has just started applies old entries again: what they say counts once the newest ones are there.
        let reaches_leader = self.leader.is_some() && self.connected(node);
        let this = &mut self.nodes[node];
        if this.current_from.is_none() && reaches_leader {
            this.current_from = Some(self.log.len() as u64);
        }
        let current = this.current_from.is_some_and(|from| from <= this.agreed.index());
        let current = current || self.slip == Some(Slip::OldNewsCounts);
        if !current || !std::mem::take(&mut this.news) {
            return;
        }
        let agreement = Agreement::of(&this.agreed, this.leads);
        if agreement != this.told {
            this.told = agreement.clone();
            self.step(node, Input::Agreed(agreement));
        }
    }

    fn hear(&mut self, node: usize) {
        let now = self.now;
        let (due, rest) =
            std::mem::take(&mut self.nodes[node].inbox).into_iter().partition(|m| m.0 <= now);
        self.nodes[node].inbox = rest;
        let due: Vec<(u64, String, Report)> = due;
        for (_, name, report) in due {
            self.step(node, Input::Heard { node: name, report });
        }
    }

    fn probe(&mut self, node: usize) {
        if !(self.now / TICK + node as u64 * 7).is_multiple_of(20) {
            return;
        }
        for (server, name) in ["p", "q"].iter().enumerate() {
            let lie = server == 0 && self.now < self.nodes[node].lies_until;
            let ok = !self.servers_down[server] && !lie;
            let reason = "it said so".to_owned();
            self.step(node, Input::Probed { target: backend(name), ok, reason });
        }
    }

    fn lease(&mut self, node: usize) {
        let moment = self.nodes[node].moment(self.now);
        let role = routing_role(NAMES[node]);
        let id = self.nodes[node].agreed.registry().id_of(NAMES[node]);
        let this = &mut self.nodes[node];
        if let Some(held) = this.granted.filter(|held| held.epoch() <= this.agreed.index()) {
            this.granted = None;
            this.held = Some(held);
            self.step(node, Input::Vouches(true));
        }
        let this = &mut self.nodes[node];
        if this.lease_asked.is_some_and(|asked| self.now < asked + 500) {
            return;
        }
        match &mut this.held {
            None => {
                let Some(node_id) = id else { return };
                this.lease_asked = Some(self.now);
                this.renew_at = self.now + 1_000;
                let grant = LeaseCommand::Grant { role, node: node_id, ttl: ROUTING_LEASE };
                self.propose(node, Command::Lease(grant));
            }
            Some(held) => {
                if held.check(moment).is_err() {
                    return self.lose_lease(node);
                }
                // Only what the newest table says is vouched for.
                if this.plane.coming.is_empty() {
                    this.plane.vouched_until = held.ends();
                }
                if let (true, Some(node_id)) = (this.renew_at <= self.now, id) {
                    let epoch = held.epoch();
                    this.lease_asked = Some(self.now);
                    this.renew_at = self.now + 1_000;
                    let renew = LeaseCommand::Renew { role, node: node_id, epoch };
                    self.propose(node, Command::Lease(renew));
                }
            }
        }
    }

    fn expire(&mut self, node: usize) {
        if !self.nodes[node].leads || !(self.now / TICK).is_multiple_of(20) {
            return;
        }
        let at = self.nodes[node].moment(self.now).now;
        for command in self.nodes[node].clock.over(at) {
            self.propose(node, command);
        }
    }

    fn say(&mut self, node: usize) {
        let now = self.now_of(node).instant;
        let every = u64::try_from(SAY_EVERY.as_millis()).unwrap();
        let stepped = std::mem::take(&mut self.nodes[node].stepped);
        if !stepped && self.now < self.nodes[node].said_at + every {
            return;
        }
        let report = self.nodes[node].agent.as_ref().unwrap().report(now);
        let differs = report.differs(&self.nodes[node].said);
        if !differs && self.now < self.nodes[node].said_at + every {
            return;
        }
        self.nodes[node].said = report.clone();
        self.nodes[node].said_at = self.now;
        for other in (0..3).filter(|&other| other != node) {
            if self.connected(node) && self.connected(other) && self.nodes[other].agent.is_some() {
                // A connection keeps the order.
                let last =
                    self.nodes[other].inbox.iter().filter(|m| m.1 == NAMES[node]).map(|m| m.0);
                let due = (self.now + self.rng.between(1, 60)).max(last.max().unwrap_or(0));
                self.nodes[other].inbox.push((due, NAMES[node].to_owned(), report.clone()));
            }
        }
    }

    fn step(&mut self, node: usize, input: Input) {
        let now = self.now_of(node);
        let mut actions = Vec::new();
        let Some(agent) = &mut self.nodes[node].agent else { return };
        agent.step(now, input, &mut actions);
        self.nodes[node].stepped = true;
        for action in actions {
            match action {
                Action::Record(fact) => self.note(&format!("  {} {fact}", NAMES[node])),
                Action::SavePairs => {
                    let agent = self.nodes[node].agent.as_ref().unwrap();
                    let (pairs, moving) = (agent.pairs(), agent.moving().clone());
                    let disk = &mut self.nodes[node].disk;
                    (disk.pairs, disk.moving) = (pairs, moving);
                }
                Action::Publish => self.publish(node, now),
                Action::Agree(command) => self.propose(node, Command::Side(command)),
                Action::StandbyCommand { epoch, .. } => {
                    let ends = self.now + self.rng.between(50, 2_000);
                    self.commands.push((ends, node, self.nodes[node].life, epoch));
                }
                Action::StandbyStop { .. } => {}
            }
        }
    }

    fn publish(&mut self, node: usize, now: Now) {
        let view = self.nodes[node].agent.as_ref().unwrap().view(now.instant);
        let wants = view.services["db"].active.filter(|_| !view.services["db"].moving);
        let plane = &mut self.nodes[node].plane;
        let last = plane.coming.back().map_or(plane.serves, |(_, serves)| *serves);
        if last != wants {
            let due = self.now + self.rng.between(0, 30);
            plane.coming.push_back((due, wants));
        }
    }
}

fn law_is(holds: bool, words: &str) -> Law {
    if holds { Ok(()) } else { Err(words.to_owned()) }
}

/// Failovers of a run, or the law that a seed breaks.
fn run(
    seed: u64,
    bug: Option<Bug>,
    slip: Option<Slip>,
    text: bool,
) -> Result<u64, (String, String)> {
    PLANTED.set(bug);
    let mut world = World::new(seed, slip, text);
    let result = world.run();
    PLANTED.set(None);
    let at = world.now;
    match result {
        Ok(()) => Ok(world.failovers),
        Err(law) => Err((format!("seed {seed} at {at}: {law}"), world.text.unwrap_or_default())),
    }
}

#[test]
fn no_two_nodes_route_to_two_sides_and_all_find_back() {
    let mut failovers = [0, 0];
    let run = |seed, tells| run(seed, None, None, tells);
    let seeds =
        each_seed([20, 2_000], run, |seed, count| failovers[usize::from(seed % 3 == 1)] += count);
    std::println!("{failovers:?} failovers, hot and warm");
    if seeds > 2 {
        assert!(failovers.iter().all(|&count| count > 0), "{failovers:?}");
    }
}

#[track_caller]
fn check_found(bug: Option<Bug>, slip: Option<Slip>, law: &str) {
    let found = (0..400).find_map(|seed| run(seed, bug, slip, false).err());
    let (found, _) = found.unwrap_or_else(|| panic!("{bug:?} {slip:?} was not found"));
    assert!(found.contains(law), "{bug:?} {slip:?} was found otherwise: {found}");
}

#[test]
fn what_two_sides_would_need_is_found() {
    check_found(Some(Bug::SettledEarly), None, "both serve");
    check_found(None, Some(Slip::LeaseIgnored), "both serve");
    check_found(None, Some(Slip::OldNewsCounts), "both serve");
    check_found(Some(Bug::OneObserver), None, "was left");
}
