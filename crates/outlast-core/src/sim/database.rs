//! Members of a database under faults: what is agreed reaches them late, nodes lose power, are cut off or freeze, agents and
//! servers die, disks stall, orders take long, reports come late, twice or never, clocks drift.
//!
//! The log of what is agreed is modelled as one truth that nodes apply with delay. Everything else is what it will be: the
//! decisions of the leader and of each member, and a PostgreSQL with a log, connections, and acknowledgements.

mod driver;
mod faults;
mod laws;
mod mind;
mod postgres;
mod replication;
mod tests;

use std::borrow::ToOwned as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::string::String;
use std::vec::Vec;

use super::Rng;
use super::check::Law;
use crate::agreed::{
    Agreed, ClientId, Command, DatabaseCommand, Entry, Moment, NodeCommand, NodeRole, Reply,
    UpkeepKind, UpkeepPlan, database_role,
};
use crate::database::Wish;
use crate::time::{Instant, Timestamp};
use crate::topology::RegionFailover;
use driver::{Driver, Kept};
use faults::Faults;
use laws::Ledger;
use mind::{Asked, Mind};
use postgres::Postgres;

const NODES: usize = 7;
const NAMES: [&str; NODES] = ["a", "b", "c", "d", "e", "f", "g"];
const REGIONS: [&str; 3] = ["east", "west", "north"];
/// How many nodes stand in each region, the last without a member.
const LAYOUTS: [[usize; 3]; 4] = [[2, 2, 1], [1, 2, 1], [2, 3, 2], [3, 3, 1]];
const ORDERS: &str = "orders";
const TICK: u64 = 20;
const FAULTS_END: u64 = 60_000;
/// By then everything has to be well again.
const END: u64 = 150_000;
/// A leader that no majority answers stops acting after this, and another one is there a little later.
const DEPOSED_AFTER: u64 = 200;
const ELECTED_AFTER: u64 = 500;

/// What is wrong with the world itself, so that the laws have something to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slip {
    /// A member says that it has stopped receiving before it has.
    StoppedEarly,
    /// A rule counts as confirmed at once.
    ConfirmedEarly,
    /// A primary whose lease is over is killed seconds later.
    KilledLate,
    /// Nothing outlives the agent that could kill its primary.
    NoKeeper,
}

#[derive(Debug)]
struct Node {
    mind: Option<Mind>,
    life: u64,
    agent_back_at: u64,
    powered: bool,
    power_back_at: u64,
    frozen_until: u64,
    /// How far its clock is off, in millionths.
    drift: i64,
    slow_reports_until: u64,
    /// What kills the primary when its lease is over, whatever the agent does; by its own clock.
    keeper_until: Option<Instant>,
    keeper_kills_at: Option<u64>,
    driver: Driver,
    kept: Kept,
    postgres: Postgres,
}

/// Something that is on its way to be agreed on.
#[derive(Debug)]
struct Proposal {
    due: u64,
    node: usize,
    life: u64,
    as_leader: bool,
    sent: Moment,
    asked: Asked,
    command: Command,
}

/// How a run is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Quorum,
    Async,
    /// Quorum, and a person who accepts losses where an election waits.
    Losing,
    /// Quorum, and clocks that are good for nothing.
    Drifting,
    /// Quorum in two regions, and a third to vote.
    Regions,
    /// The same, and where one is lost the other takes over.
    Crossing,
}

impl Kind {
    fn has_regions(self) -> bool {
        matches!(self, Kind::Regions | Kind::Crossing)
    }
}

/// Where each node stands.
fn places(layout: [usize; 3]) -> BTreeMap<String, String> {
    let regions = REGIONS.iter().zip(layout).flat_map(|(region, n)| std::iter::repeat_n(region, n));
    NAMES.iter().zip(regions).map(|(n, region)| ((*n).to_owned(), (*region).to_owned())).collect()
}

struct World {
    rng: Rng,
    kind: Kind,
    now: u64,
    size: usize,
    log: Vec<Entry>,
    /// The state that all have once they have applied everything.
    truth: Agreed,
    nodes: Vec<Node>,
    proposals: Vec<Proposal>,
    leader: Option<usize>,
    vacant_since: u64,
    wish: Wish,
    paused: bool,
    /// Nodes on which people work.
    resting: BTreeSet<String>,
    faults: Faults,
    /// `cut[from][to]` until then.
    cut: [[u64; NODES]; NODES],
    ports_down_since: [u64; NODES],
    ledger: Ledger,
    ids: u32,
    slip: Option<Slip>,
    text: Option<String>,
    events: u64,
    well_since: Option<u64>,
}

impl World {
    fn new(seed: u64, slip: Option<Slip>, text: bool) -> World {
        let mut rng = Rng::new(seed ^ 0x6461_7461_6261_7365);
        let kind = match seed % 7 {
            0 | 1 => Kind::Quorum,
            2 => Kind::Async,
            3 => Kind::Losing,
            4 => Kind::Drifting,
            5 => Kind::Regions,
            _ => Kind::Crossing,
        };
        let layout = rng.pick(&LAYOUTS);
        let (size, members) = if kind.has_regions() {
            (layout.iter().sum(), layout[0] + layout[1])
        } else {
            let size = rng.between(3, 6);
            let members = rng.between(2, size + 1).min(4);
            (usize::try_from(size).unwrap(), usize::try_from(members).unwrap())
        };
        let mut log = Vec::new();
        let entry = |origin, sequence, command| Entry {
            origin: ClientId(origin),
            sequence,
            wall: Timestamp(0),
            command,
        };
        log.push(entry(0, 0, Command::Introduce));
        for (at, name) in (1..).zip(&NAMES[..size]) {
            let (name, address) = ((*name).to_owned(), (*name).to_owned());
            let join = NodeCommand::Join { name, role: NodeRole::Voter, address, replaces: None };
            log.push(entry(1, at, Command::Node(join)));
        }
        let acks = match kind {
            Kind::Async => 0,
            Kind::Quorum | Kind::Losing | Kind::Drifting | Kind::Regions | Kind::Crossing => {
                rng.between(1, (members as u64).min(3))
            }
        };
        let mut priorities = BTreeMap::new();
        if rng.per_mille(300) && !kind.has_regions() {
            priorities.insert(NAMES[0].to_owned(), 200);
            // There has to be somebody left that can be primary, whoever dies.
            if members > 3 {
                priorities.insert(NAMES[1].to_owned(), 0);
            }
        }
        let acks_min = if rng.per_mille(400) { rng.between(0, acks + 1) } else { acks };
        let wish = Wish {
            members: NAMES[..members].iter().map(|name| (*name).to_owned()).collect(),
            acks: u32::try_from(acks).unwrap(),
            acks_min: u32::try_from(acks_min).unwrap(),
            lag_max: 1 << 40,
            priorities,
            home: kind.has_regions().then(|| REGIONS[0].to_owned()),
            regions: if kind.has_regions() { places(layout) } else { BTreeMap::new() },
            region_failover: match kind {
                Kind::Crossing => RegionFailover::Automatic,
                Kind::Quorum | Kind::Async | Kind::Losing | Kind::Drifting | Kind::Regions => {
                    RegionFailover::Manual
                }
            },
        };
        let rate = if kind == Kind::Drifting { 100_000 } else { 900 };
        let drift =
            |rng: &mut Rng| i64::try_from(rng.between(0, 2 * rate)).unwrap() - rate.cast_signed();
        let nodes = (0..size).map(|_| Node::new(drift(&mut rng))).collect();
        let mut truth = Agreed::default();
        for (index, entry) in (1..).zip(&log) {
            truth.apply(index, entry);
        }
        World {
            faults: Faults::new(&mut rng),
            rng,
            kind,
            now: 0,
            size,
            log,
            truth,
            nodes,
            proposals: Vec::new(),
            leader: None,
            vacant_since: 0,
            wish,
            paused: false,
            resting: BTreeSet::new(),
            cut: [[0; NODES]; NODES],
            ports_down_since: [0; NODES],
            ledger: Ledger::default(),
            ids: 0,
            slip,
            text: text.then(String::new),
            events: 0,
            well_since: None,
        }
    }

    fn run(&mut self) -> Law {
        while self.now < END {
            self.fault();
            self.tick()?;
            if self.is_well() {
                return self.check_end();
            }
        }
        Err(std::format!("it is not well again: {}", self.what_is_wrong().unwrap_or_default()))
    }

    fn tick(&mut self) -> Law {
        self.lead();
        self.agree()?;
        for node in 0..self.size {
            self.live(node)?;
        }
        self.one_takes_writes()?;
        self.ledger.broken.take().map_or(Ok(()), Err)?;
        self.now += TICK;
        Ok(())
    }

    fn live(&mut self, node: usize) -> Law {
        let now = self.now;
        let this = &mut self.nodes[node];
        if !this.powered {
            if this.power_back_at <= now {
                this.powered = true;
                this.agent_back_at = now + 200;
            }
            return Ok(());
        }
        if now < this.frozen_until {
            return Ok(());
        }
        self.events += 1;
        self.serve(node)?;
        self.drive(node);
        self.keep(node);
        let this = &mut self.nodes[node];
        if this.mind.is_none() && this.agent_back_at <= now {
            this.mind = Some(Mind::new(NAMES[node]));
        }
        // Agents look at things less often than bytes arrive.
        if this.mind.is_some() && (now / TICK + node as u64).is_multiple_of(2) {
            self.think(node);
        }
        Ok(())
    }

    /// Kills the primary when its lease is over, also if there is no agent.
    fn keep(&mut self, node: usize) {
        let at = self.moment(node).now;
        let delay = self.rng.between(20, 150);
        let (now, slip) = (self.now, self.slip);
        let this = &mut self.nodes[node];
        if this.keeper_kills_at.is_some_and(|kills_at| kills_at <= now) {
            this.keeper_kills_at = None;
            this.postgres.die();
            self.abort(node);
            self.note(node, "is killed by its keeper");
            return;
        }
        let primary = this.postgres.is_primary_soon();
        let over = this.keeper_until.is_some_and(|until| until <= at);
        if primary && over && this.keeper_kills_at.is_none() {
            let delay = if slip == Some(Slip::KilledLate) { delay + 8_000 } else { delay };
            if slip != Some(Slip::NoKeeper) {
                this.keeper_kills_at = Some(now + delay);
            }
        }
    }

    fn note(&mut self, node: usize, words: &str) {
        let now = self.now;
        if let Some(text) = &mut self.text {
            writeln!(text, "{now:>7} {} {words}", NAMES[node]).unwrap();
        }
    }

    fn new_id(&mut self) -> u32 {
        self.ids += 1;
        self.ids
    }

    /// By its own clock, which drifts by millionths.
    fn moment(&self, node: usize) -> Moment {
        let nanos = (self.now * 1_000_000).saturating_add_signed(
            i64::try_from(self.now).unwrap_or_default() * self.nodes[node].drift,
        );
        let at = Instant::from_start(core::time::Duration::from_nanos(nanos));
        let wall = Timestamp(i64::try_from(at.since_start().as_millis()).unwrap_or_default());
        Moment { now: at, wall }
    }

    fn is_up(&self, node: usize) -> bool {
        self.nodes[node].powered && self.nodes[node].frozen_until <= self.now
    }

    /// Whether bytes go from one node to the other.
    fn reach(&self, from: usize, to: usize) -> bool {
        from == to || self.cut[from][to] <= self.now
    }

    fn talk(&self, one: usize, other: usize) -> bool {
        self.reach(one, other) && self.reach(other, one)
    }

    fn thinks(&self, node: usize) -> bool {
        self.is_up(node) && self.nodes[node].mind.is_some()
    }

    /// Whether most nodes answer this one.
    fn has_majority(&self, node: usize) -> bool {
        let others = (0..self.size).filter(|&other| self.thinks(other) && self.talk(node, other));
        self.thinks(node) && others.count() * 2 > self.size
    }

    /// Who leads: nobody for a while, once the leader is gone.
    fn lead(&mut self) {
        if let Some(leader) = self.leader {
            let resigns = self.now < FAULTS_END && self.rng.per_mille(1);
            if !self.has_majority(leader) || resigns {
                self.leader = None;
                self.vacant_since = self.now;
            }
        } else if self.vacant_since + ELECTED_AFTER <= self.now {
            let fit: Vec<usize> = (0..self.size).filter(|&node| self.has_majority(node)).collect();
            if !fit.is_empty() {
                let leader = self.rng.pick(&fit);
                self.note(leader, "leads");
                self.leader = Some(leader);
                self.take_over(leader);
            }
        }
    }

    fn propose(&mut self, node: usize, as_leader: bool, asked: Asked, command: Command) {
        let due = self.now + self.rng.between(5, 80);
        let (life, sent) = (self.nodes[node].life, self.moment(node));
        self.proposals.push(Proposal { due, node, life, as_leader, sent, asked, command });
    }

    /// What has arrived at the leader becomes an entry. An answer can be lost; a command can come twice.
    fn agree(&mut self) -> Law {
        let now = self.now;
        let (due, rest) =
            std::mem::take(&mut self.proposals).into_iter().partition(|p| p.due <= now);
        self.proposals = rest;
        let due: Vec<Proposal> = due;
        for proposal in due {
            let Some(leader) = self.leader else { continue };
            let node = proposal.node;
            let same = proposal.life == self.nodes[node].life && self.is_up(node);
            if !same || !self.talk(node, leader) || proposal.as_leader && node != leader {
                continue;
            }
            let reply = self.enter(&proposal.command)?;
            self.note(node, &std::format!("{:?}: {reply}", proposal.command));
            if self.rng.per_mille(20) && proposal.command.repeatable() {
                let due = now + self.rng.between(20, 6_000);
                let (command, asked) = (proposal.command.clone(), Asked::Nothing);
                self.proposals.push(Proposal { due, asked, command, ..proposal });
            }
            if self.rng.per_mille(980) {
                self.answer(&proposal, reply);
            }
        }
        Ok(())
    }

    fn enter(&mut self, command: &Command) -> Result<Reply, String> {
        let (origin, sequence, wall) = (ClientId::NOBODY, 0, Timestamp(0));
        let (origin, sequence) = if command.repeatable() {
            (origin, sequence)
        } else {
            (ClientId(1), 1_000 + self.log.len() as u64)
        };
        let entry = Entry { origin, sequence, wall, command: command.clone() };
        if matches!(command, Command::Database(DatabaseCommand::SwitchScheduled { .. })) {
            let scheduled = self.truth.databases().get(ORDERS).and_then(|d| d.scheduled.as_ref());
            // Clocks are off by a tenth at most, and a proposal is on its way for a while.
            let now = (self.now - self.now / 10).cast_signed() - 10_000;
            if scheduled.is_some_and(|scheduled| scheduled.when.0 + 60_000 < now) {
                return Err("a scheduled switchover begins late".to_owned());
            }
        }
        self.log.push(entry.clone());
        let role = database_role(ORDERS);
        let before = self.truth.databases().get(ORDERS).cloned();
        let lease = self.truth.leases().get(&role).copied();
        let reply = self.truth.apply(self.log.len() as u64, &entry);
        let database = self.truth.databases().get(ORDERS);
        let renewed = self.truth.leases().get(&role).zip(lease);
        let renewed = renewed.is_some_and(|(is, was)| {
            is.epoch == was.epoch && is.renewed_index != was.renewed_index
        });
        let over = before.as_ref().is_some_and(|before| {
            before.election.is_some() || lease.is_some_and(|lease| lease.epoch < before.reign.epoch)
        });
        if over && renewed {
            return Err("a lease was renewed after the reign".to_owned());
        }
        if let Some(database) = database {
            let reign = &database.reign;
            let node = NAMES.iter().position(|name| *name == reign.primary).expect("a member");
            self.ledger.appointed.insert(reign.epoch, node);
            self.ledger.opened |= reign.open;
            let changed = before.as_ref().is_some_and(|b| b.reign.epoch != reign.epoch);
            if let Some(before) = before.as_ref().filter(|_| changed) {
                self.judge_appointment(before, command, node)?;
                self.ledger.failovers += 1;
                if before.election.is_none() {
                    self.ledger.switchovers += 1;
                }
            }
        }
        Ok(reply)
    }

    fn members(&self) -> BTreeSet<usize> {
        (0..self.size).filter(|&node| self.wish.members.contains(NAMES[node])).collect()
    }

    fn ask_upkeep(&mut self) {
        let Some(database) = self.truth.databases().get(ORDERS) else { return };
        let (epoch, primary) = (database.epoch(), database.reign.primary.clone());
        let all = self.wish.members.clone();
        let others: Vec<String> = all.iter().filter(|name| **name != primary).cloned().collect();
        let kind = if self.rng.per_mille(300) { UpkeepKind::Remake } else { UpkeepKind::Restart };
        let nodes = match kind {
            UpkeepKind::Remake => BTreeSet::from([others[self.index_of(others.len())].clone()]),
            UpkeepKind::Restart => all,
        };
        let (pending, in_place, who) = (false, self.rng.per_mille(500), "ann".to_owned());
        let plan = UpkeepPlan { kind, nodes, pending, in_place, who };
        let database = ORDERS.to_owned();
        let node = self.index_of(self.size);
        let command = DatabaseCommand::Upkeep { database, epoch, plan };
        self.propose(node, false, Asked::Nothing, Command::Database(command));
    }

    fn ask_schedule(&mut self) {
        let members: Vec<usize> = self.members().into_iter().collect();
        let to = NAMES[self.rng.pick(&members)].to_owned();
        let pause_max = core::time::Duration::from_secs(self.rng.between(2, 8));
        let when = self.now + self.rng.between(100, 5_000);
        let when = Timestamp(i64::try_from(when).unwrap());
        let (database, who) = (ORDERS.to_owned(), "ann".to_owned());
        let command = DatabaseCommand::Schedule { database, to, who, pause_max, when };
        let node = self.index_of(self.size);
        self.propose(node, false, Asked::Nothing, Command::Database(command));
    }

    fn index_of(&mut self, size: usize) -> usize {
        usize::try_from(self.rng.between(0, size as u64)).unwrap()
    }

    /// A person ends the reign and wants the next one in another region.
    fn ask_for_region(&mut self) {
        let Some(database) = self.truth.databases().get(ORDERS) else { return };
        let epoch = database.epoch();
        let here = self.wish.regions.get(&database.reign.primary);
        let region = REGIONS[..2].iter().find(|region| here.is_none_or(|here| here != *region));
        let (why, region) = ("ann asked for it".to_owned(), region.map(|r| (*r).to_owned()));
        let database = ORDERS.to_owned();
        let command = DatabaseCommand::Elect { database, epoch, why, region };
        let node = self.index_of(self.size);
        self.propose(node, false, Asked::Nothing, Command::Database(command));
    }

    fn ask_switchover(&mut self) {
        let members: Vec<usize> = self.members().into_iter().collect();
        let to = self.rng.pick(&members);
        self.switch_to(to);
    }

    fn switch_to(&mut self, to: usize) {
        let Some(database) = self.truth.databases().get(ORDERS) else { return };
        let (epoch, to) = (database.epoch(), NAMES[to].to_owned());
        let pause_max = core::time::Duration::from_secs(self.rng.between(2, 8));
        let (database, who) = (ORDERS.to_owned(), "ann".to_owned());
        let command = DatabaseCommand::Switch { database, epoch, to, who, pause_max };
        let node = self.index_of(self.size);
        self.propose(node, false, Asked::Nothing, Command::Database(command));
    }
}

impl Node {
    fn new(drift: i64) -> Node {
        Node {
            mind: None,
            life: 0,
            agent_back_at: 0,
            powered: true,
            power_back_at: 0,
            frozen_until: 0,
            drift,
            slow_reports_until: 0,
            keeper_until: None,
            keeper_kills_at: None,
            driver: Driver::default(),
            kept: Kept::default(),
            postgres: Postgres::new(),
        }
    }
}
