//! Three nodes and an address that moves: agents die, freeze and are cut off, leaders change early and late, questions
//! and answers are lost, late and out of order, clocks drift. At no moment may two nodes answer on the address.

use std::borrow::ToOwned as _;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::format;
use std::string::String;
use std::time::Duration;
use std::vec::Vec;

use super::check::{Law, law};
use super::seeds::each_seed;
use super::{Bug, PLANTED, Rng};
use crate::address::{
    ASK_EVERY, GUARD_ERROR, Grants, Hold, Lead, Member, Order, Question, Scene, Unit,
};
use crate::agreed::{Agreed, ClientId, Command, Entry};
use crate::time::{Instant, Timestamp};

const NAMES: [&str; 3] = ["a", "b", "c"];
const UNIT: &str = "edge";
const TICK: u64 = 5;
const FAULTS_END: u64 = 40_000;
const END: u64 = 44_000;

/// A leader may act for so long after a round that a majority has answered; nobody else is elected before the other.
const LEADS_FOR: u64 = 245;
const ELECTED_AFTER: u64 = 250;
const ROUND_EVERY: u64 = 100;

#[derive(Debug)]
struct Node {
    /// Counts the runs of its agent; `None`: none runs.
    alive: bool,
    life: u64,
    back_at: u64,
    frozen_until: u64,
    cut_until: u64,
    unable_until: u64,
    /// Something that it tracks is missing.
    amiss_until: u64,
    drift: i64,
    hold: Hold,
    /// Until when the kernel lets it answer, whatever becomes of the agent.
    guard: Option<Instant>,
    number: u64,
    ask_at: u64,
    /// Questions that were asked: when, by its own clock.
    sent: BTreeMap<u64, Instant>,
    /// Whom it takes for the leader.
    believes: Option<usize>,
    lead: Option<Lead>,
    acts_until: Instant,
}

#[derive(Clone, Debug)]
enum Message {
    Ask(Question),
    Answer { life: u64, number: u64, grants: Grants },
    Nudge,
}

#[derive(Clone, Debug)]
struct Letter {
    due: u64,
    from: usize,
    to: usize,
    message: Message,
}

struct World {
    rng: Rng,
    now: u64,
    nodes: Vec<Node>,
    letters: Vec<Letter>,
    agreed: Agreed,
    /// On its way to be agreed on: when, by whom, what.
    proposals: Vec<(u64, usize, Command)>,
    leader: Option<usize>,
    /// When the last round that a majority answered began.
    round: u64,
    elects_at: u64,
    handed: bool,
    before: Option<usize>,
    /// Commands of a leader that is gone, which its successor will have agreed on.
    orphans: Vec<Command>,
    unit: Unit,
    next_fault: u64,
    faults: bool,
    moves: u64,
    dark: u64,
    dark_max: u64,
    text: Option<String>,
}

impl Node {
    fn new(drift: i64) -> Node {
        Node {
            alive: true,
            life: 1,
            back_at: 0,
            frozen_until: 0,
            cut_until: 0,
            unable_until: 0,
            amiss_until: 0,
            drift,
            hold: Hold::default(),
            guard: None,
            number: 0,
            ask_at: 0,
            sent: BTreeMap::new(),
            believes: None,
            lead: None,
            acts_until: Instant::default(),
        }
    }

    /// By its own clock, which drifts by millionths.
    fn at(&self, now: u64) -> Instant {
        let off = i64::try_from(now).unwrap() * self.drift;
        Instant::from_start(Duration::from_nanos((now * 1_000_000).saturating_add_signed(off)))
    }

    fn answers(&self, now: u64) -> bool {
        self.guard.is_some_and(|until| self.at(now) < until)
    }

    fn runs(&self, now: u64) -> bool {
        self.alive && self.frozen_until <= now
    }
}

impl World {
    fn new(seed: u64, faults: bool, text: bool) -> World {
        let mut rng = Rng::new(seed ^ 0x6164_6472_6573_7300);
        let drifts = NAMES.map(|_| i64::try_from(rng.between(0, 1000)).unwrap() - 500);
        let members = NAMES.map(|node| Member { node: node.to_owned(), priority: 100 });
        let preempt = rng.per_mille(300).then_some(Duration::from_millis(500));
        let unit = Unit { members: members.into(), preempt, follows: false };
        World {
            now: 0,
            nodes: drifts.into_iter().map(Node::new).collect(),
            letters: Vec::new(),
            agreed: Agreed::default(),
            proposals: Vec::new(),
            leader: None,
            round: 0,
            elects_at: 300,
            handed: false,
            before: None,
            orphans: Vec::new(),
            unit,
            next_fault: 4_000,
            faults,
            moves: 0,
            dark: 0,
            dark_max: 0,
            text: text.then(String::new),
            rng,
        }
    }

    fn note(&mut self, words: &str) {
        let now = self.now;
        if let Some(text) = &mut self.text {
            writeln!(text, "{now:>7} {words}").unwrap();
        }
    }

    fn reaches(&self, one: usize, other: usize) -> bool {
        one == other
            || self.nodes[one].cut_until <= self.now && self.nodes[other].cut_until <= self.now
    }

    /// Whether a majority would answer this node.
    fn has_majority(&self, node: usize) -> bool {
        let there = |&n: &usize| self.nodes[n].runs(self.now) && self.reaches(node, n);
        (0..3).filter(there).count() >= 2 && self.nodes[node].runs(self.now)
    }

    fn run(&mut self) -> Law {
        while self.now < END {
            self.fault();
            self.lead();
            self.agree();
            self.carry()?;
            for node in 0..3 {
                self.live(node);
            }
            self.one_answers()?;
            self.now += TICK;
        }
        let answering = (0..3).find(|&n| self.nodes[n].answers(self.now));
        let able = answering.is_some_and(|n| self.nodes[n].unable_until <= self.now);
        law!(able, "nobody answers although all is well");
        Ok(())
    }

    fn one_answers(&mut self) -> Law {
        let answer = (0..3).filter(|&n| self.nodes[n].answers(self.now));
        let answer: Vec<&str> = answer.map(|n| NAMES[n]).collect();
        law!(answer.len() < 2, "{answer:?} both answer");
        if answer.is_empty() && self.moves > 0 {
            self.dark += TICK;
        } else {
            self.dark = 0;
        }
        self.dark_max = self.dark_max.max(self.dark);
        Ok(())
    }

    fn fault(&mut self) {
        if !self.faults || self.now < self.next_fault && self.now < FAULTS_END {
            return;
        }
        if FAULTS_END <= self.now {
            for node in &mut self.nodes {
                for until in [
                    &mut node.back_at,
                    &mut node.frozen_until,
                    &mut node.cut_until,
                    &mut node.unable_until,
                    &mut node.amiss_until,
                ] {
                    *until = (*until).min(self.now);
                }
            }
            return;
        }
        self.next_fault = self.now + self.rng.between(20, 1_500);
        let node = usize::try_from(self.rng.between(0, 3)).unwrap();
        let until = self.now + self.rng.pick(&[20, 60, 150, 400, 900, 2_500]);
        match self.rng.between(0, 11) {
            0 | 1 => self.nodes[node].cut_until = until,
            2 | 3 => self.nodes[node].frozen_until = until,
            4 | 5 if self.nodes[node].alive => self.kill(node, until),
            6 | 7 => self.hand_over(),
            8 => self.nodes[node].unable_until = until,
            9 => self.nodes[node].amiss_until = until,
            _ => return,
        }
        self.note(&format!("a fault of {} until {until}", NAMES[node]));
    }

    fn kill(&mut self, node: usize, until: u64) {
        // Half of them have a guardian that lives on for a moment.
        let guarded = self.rng.per_mille(500);
        let node = &mut self.nodes[node];
        (node.alive, node.back_at, node.lead) = (false, until, None);
        if guarded {
            node.guard = None;
        }
    }

    /// The leader ends early, for another one.
    fn hand_over(&mut self) {
        let Some(leader) = self.leader.filter(|&leader| self.has_majority(leader)) else { return };
        self.note(&format!("{} hands over", NAMES[leader]));
        self.depose(leader);
        self.handed = true;
        self.elects_at = self.now + self.rng.between(TICK, 60);
    }

    fn depose(&mut self, leader: usize) {
        (self.leader, self.before) = (None, Some(leader));
        let lost: Vec<Command> = self.proposals.drain(..).map(|(_, _, command)| command).collect();
        if self.rng.per_mille(500) {
            self.orphans.extend(lost);
        }
    }

    fn lead(&mut self) {
        let now = self.now;
        match self.leader {
            Some(leader) if self.has_majority(leader) && self.nodes[leader].lead.is_some() => {
                if now.is_multiple_of(ROUND_EVERY) {
                    self.round = now;
                    let until = self.nodes[leader].at(now) + Duration::from_millis(LEADS_FOR);
                    self.nodes[leader].acts_until = until;
                }
            }
            Some(leader) if self.round + ELECTED_AFTER <= now => {
                self.depose(leader);
                self.handed = false;
                self.elects_at = now + self.rng.between(0, 150);
            }
            Some(_) => {}
            None => self.elect(),
        }
        // Who does not lead any more, and knows it, gives nothing out; who does not know it cannot act for long.
        if self.handed
            && let Some(before) = self.before
        {
            self.nodes[before].lead = None;
        }
    }

    fn elect(&mut self) {
        let fit: Vec<usize> = (0..3).filter(|&n| self.has_majority(n)).collect();
        let fit: Vec<usize> =
            fit.into_iter().filter(|&n| !self.handed || self.before != Some(n)).collect();
        if self.now < self.elects_at {
            return;
        }
        if fit.is_empty() {
            // One that was handed over came to nothing: now patience has to run out.
            self.handed &= self.now < self.round + ELECTED_AFTER;
            return;
        }
        let next = self.rng.pick(&fit);
        self.note(&format!("{} leads{}", NAMES[next], if self.handed { ", handed" } else { "" }));
        (self.leader, self.round) = (Some(next), self.now);
        for command in std::mem::take(&mut self.orphans) {
            self.apply(command);
        }
        let at = self.nodes[next].at(self.now);
        self.nodes[next].lead = Some(Lead::began(at, self.handed));
        self.nodes[next].acts_until = at + Duration::from_millis(LEADS_FOR);
    }

    fn apply(&mut self, command: Command) {
        let entry = Entry { origin: ClientId::NOBODY, sequence: 0, wall: Timestamp(0), command };
        let reply = self.agreed.apply(self.agreed.index() + 1, &entry);
        self.moves += 1;
        self.note(&format!("agreed on {:?}: {reply}", entry.command));
    }

    fn agree(&mut self) {
        let (due, rest) =
            std::mem::take(&mut self.proposals).into_iter().partition(|p| p.0 <= self.now);
        self.proposals = rest;
        let due: Vec<(u64, usize, Command)> = due;
        for (_, node, command) in due {
            if self.leader == Some(node) && self.has_majority(node) {
                self.apply(command);
            } else if self.rng.per_mille(500) {
                self.orphans.push(command);
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let lost = self.faults && self.now < FAULTS_END && self.rng.per_mille(30);
        if from != to && lost {
            return;
        }
        let late = self.faults && self.now < FAULTS_END && self.rng.per_mille(120);
        let takes = if late { self.rng.between(50, 900) } else { self.rng.between(0, 15) };
        let due = if from == to { self.now } else { self.now + takes };
        self.letters.push(Letter { due, from, to, message });
    }

    fn carry(&mut self) -> Law {
        // What a question sets off may be answered within the same moment.
        for _ in 0..4 {
            let now = self.now;
            let frozen = |world: &World, to: usize| world.nodes[to].frozen_until > now;
            let (due, rest) = std::mem::take(&mut self.letters)
                .into_iter()
                .partition(|letter| letter.due <= now && !frozen(self, letter.to));
            self.letters = rest;
            let due: Vec<Letter> = due;
            if due.is_empty() {
                break;
            }
            for Letter { from, to, message, .. } in due {
                if self.nodes[to].runs(now) && self.reaches(from, to) {
                    self.hear(from, to, message);
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, from: usize, to: usize, message: Message) {
        let at = self.nodes[to].at(self.now);
        match message {
            Message::Nudge => self.nodes[to].ask_at = self.now,
            Message::Ask(question) => {
                let agreed = &self.agreed;
                let node = &mut self.nodes[to];
                let Some(lead) = &mut node.lead else { return };
                let grants = lead.asked(at, NAMES[from], &question, node.acts_until, |unit| {
                    agreed.addresses().get(unit)
                });
                let Question { life, number, .. } = question;
                self.send(to, from, Message::Answer { life, number, grants });
                self.decide(to);
            }
            Message::Answer { life, number, grants } => {
                let node = &mut self.nodes[to];
                let Some(sent) = node.sent.get(&number).copied().filter(|_| node.life == life)
                else {
                    return;
                };
                let Some(&grant) = grants.units.get(UNIT) else { return };
                if node.unable_until > self.now {
                    return;
                }
                let order = node.hold.answered(number, sent, at, grant);
                self.obey(to, order);
            }
        }
    }

    fn decide(&mut self, node: usize) {
        let at = self.nodes[node].at(self.now);
        if self.nodes[node].acts_until <= at {
            return;
        }
        let mut scene = Scene::default();
        let suspects = self.before.into_iter().filter(|&before| before != node);
        scene.suspects.extend(suspects.map(|before| NAMES[before].to_owned()));
        let unit = self.unit.clone();
        let agreed = self.agreed.addresses().get(UNIT);
        let Some(lead) = &mut self.nodes[node].lead else { return };
        let decision = lead.decide(at, UNIT, &unit, agreed, &scene);
        if let Some(command) = decision.command
            && !self.proposals.iter().any(|(_, by, _)| *by == node)
        {
            self.note(&format!("{} proposes {command:?}", NAMES[node]));
            let due = self.now + self.rng.between(2, 25);
            self.proposals.push((due, node, Command::Address(command)));
        }
        if let Some(name) = decision.nudge {
            let to = NAMES.iter().position(|other| *other == name).unwrap();
            self.send(node, to, Message::Nudge);
        }
    }

    fn obey(&mut self, node: usize, order: Option<Order>) {
        let Some(order) = order else { return };
        self.note(&format!("  {} {order:?}", NAMES[node]));
        let late = Duration::from_millis(self.rng.between(0, 20)).min(GUARD_ERROR);
        let this = &mut self.nodes[node];
        match order {
            Order::Take { until } | Order::Keep { until, .. } => this.guard = Some(until + late),
            Order::Drop => {
                // The next question says so.
                (this.guard, this.ask_at) = (None, self.now);
            }
        }
    }

    /// One node's share of a moment.
    fn live(&mut self, node: usize) {
        let now = self.now;
        if !self.nodes[node].alive {
            if self.nodes[node].back_at <= now {
                let this = &mut self.nodes[node];
                (this.alive, this.life, this.number) = (true, this.life + 1, 0);
                (this.hold, this.guard) = (Hold::default(), None);
                this.sent.clear();
            }
            return;
        }
        if !self.nodes[node].runs(now) {
            return;
        }
        let at = self.nodes[node].at(now);
        let order = self.nodes[node].hold.pass(at);
        self.obey(node, order);
        let able = self.nodes[node].unable_until <= now;
        if !able {
            let order = self.nodes[node].hold.let_go();
            self.obey(node, order);
        }
        if self.rng.per_mille(200) {
            self.nodes[node].believes = self.leader;
        }
        if self.nodes[node].ask_at <= now {
            self.ask(node, able);
        }
        if now.is_multiple_of(25) {
            self.decide(node);
        }
    }

    fn ask(&mut self, node: usize, able: bool) {
        let at = self.nodes[node].at(self.now);
        let this = &mut self.nodes[node];
        this.ask_at = self.now + u64::try_from(ASK_EVERY.as_millis()).unwrap();
        this.number += 1;
        let (life, number) = (this.life, this.number);
        this.sent.insert(number, at);
        this.sent.retain(|&sent, _| number < sent + 32);
        let priority = if self.now < this.amiss_until { 50 } else { 100 };
        let said = this.hold.said(number, able, priority);
        let units = [(UNIT.to_owned(), said)].into();
        if let Some(leader) = this.believes {
            self.send(node, leader, Message::Ask(Question { life, number, plans: 0, units }));
        }
    }
}

struct Run {
    moves: u64,
    dark_max: u64,
}

fn run(seed: u64, bug: Option<Bug>, faults: bool, text: bool) -> Result<Run, (String, String)> {
    PLANTED.set(bug);
    let mut world = World::new(seed, faults, text);
    let result = world.run();
    PLANTED.set(None);
    let at = world.now;
    match result {
        Ok(()) => Ok(Run { moves: world.moves, dark_max: world.dark_max }),
        Err(law) => Err((format!("seed {seed} at {at}: {law}"), world.text.unwrap_or_default())),
    }
}

#[test]
fn never_two_nodes_answer_on_an_address_and_one_does_when_all_is_well() {
    let mut moves = 0;
    let run = |seed, tells| run(seed, None, true, tells);
    let seeds = each_seed([60, 5_000], run, |_, run| moves += run.moves);
    std::println!("{moves} moves");
    assert!(moves > seeds, "{moves} moves");
}

#[test]
fn an_address_rests_where_nothing_happens() {
    for seed in 0..10 {
        let run = run(seed, None, false, false).ok().unwrap();
        assert_eq!((run.moves, run.dark_max < 200), (1, true), "seed {seed}: {}", run.dark_max);
    }
}

#[test]
fn what_two_holders_would_need_is_found() {
    for bug in [
        Bug::CountsFromAnswer,
        Bug::TakesWhatItGaveBack,
        Bug::HandedNotHeeded,
        Bug::NewLeaderHurries,
        Bug::GrantsTooLong,
        Bug::OldQuestionCounts,
        Bug::GrantsWhileMoving,
        Bug::MovesEarly,
    ] {
        let found = (0..2_000).find_map(|seed| run(seed, Some(bug), true, false).err());
        let (found, _) = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        std::println!("{bug:?}: {found}");
        assert!(found.contains("both answer"), "{bug:?} was found otherwise: {found}");
    }
}
