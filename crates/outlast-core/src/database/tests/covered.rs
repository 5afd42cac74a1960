//! Any set of members that could have acknowledged a write intersects the recruits of any appointment that is accepted.

use std::borrow::ToOwned as _;
use std::format;
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use crate::agreed::bugs::{Bug, with};
use crate::agreed::*;
use crate::sim::Rng;
use crate::time::Timestamp;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

type Dice = [u8; 5];

/// Members whose logs are so many records long. A log that has parted from the primary's counts for nothing.
struct Model {
    agreed: Agreed,
    size: usize,
    primary: usize,
    length: Vec<u64>,
    parted: Vec<bool>,
    acknowledged: u64,
}

impl Model {
    fn new(size: usize) -> Model {
        let (length, parted) = (std::vec![0; size], std::vec![false; size]);
        let agreed = Agreed::default();
        let mut model = Model { agreed, size, primary: 0, length, parted, acknowledged: 0 };
        model.send(Command::Introduce);
        for name in &NAMES[..size] {
            let (name, address) = ((*name).to_owned(), (*name).to_owned());
            let role = NodeRole::Voter;
            model.send(Command::Node(NodeCommand::Join { name, role, address, replaces: None }));
        }
        model.command(DatabaseCommand::Create { database: database(), node: "a".to_owned() });
        // From the beginning, nothing is acknowledged by the primary alone.
        let (epoch, to) = (model.epoch(), model.rule([1, 255, 0, 0, 0]));
        model.command(DatabaseCommand::Widen { database: database(), epoch, to });
        let to = model.database().rule();
        model.command(DatabaseCommand::Settle { database: database(), epoch, to });
        model
    }

    fn send(&mut self, command: Command) -> Reply {
        let origin = if command.repeatable() { ClientId::NOBODY } else { ClientId(1) };
        let index = self.agreed.index() + 1;
        let entry = Entry { origin, sequence: index, wall: Timestamp(0), command };
        self.agreed.apply(index, &entry)
    }

    fn command(&mut self, command: DatabaseCommand) -> Reply {
        self.send(Command::Database(command))
    }

    fn database(&self) -> Database {
        self.agreed.databases().get("orders").cloned().unwrap_or_default()
    }

    fn epoch(&self) -> u64 {
        self.database().epoch()
    }

    fn rule(&self, [acks, of, ..]: Dice) -> Confirm {
        let others = (0..self.size).filter(|&node| node != self.primary && of >> node & 1 > 0);
        let of = others.map(|node| NAMES[node].to_owned()).collect();
        Confirm { acks: u32::from(acks % 3) + 1, of, ..Confirm::default() }
    }

    fn turn(&mut self, dice: Dice) -> Result<(), String> {
        let [what, a, b, ..] = dice;
        let elects = self.database().election.is_some();
        match what % 8 {
            0 | 1 if !elects => self.write(a, b),
            2 if !elects => self.receive(usize::from(a) % self.size, b),
            3 if !elects => {
                let (epoch, to) = (self.epoch(), self.rule([a, b, 0, 0, 0]));
                self.command(DatabaseCommand::Widen { database: database(), epoch, to });
            }
            4 if !elects => self.settle(),
            5 if !elects && a % 3 == 0 => {
                let (epoch, why) = (self.epoch(), String::new());
                self.command(DatabaseCommand::Elect {
                    database: database(),
                    epoch,
                    why,
                    region: None,
                });
            }
            _ if elects => return self.appoint(dice),
            _ => {}
        }
        Ok(())
    }

    /// Under any rule that counts, by as few as it takes.
    fn write(&mut self, which: u8, who: u8) {
        let confirms = self.database().confirms;
        let epoch = self.epoch();
        let mut rules: Vec<Confirm> = confirms.clone();
        // While the rule of this reign changes, some go by the one and some by the other.
        let changed = confirms.iter().rposition(|rule| rule.since <= epoch).unwrap_or(0);
        if let Some(acks) = confirms[changed..].iter().map(|rule| rule.acks).min() {
            let of = confirms[changed..].iter().flat_map(|rule| rule.of.clone()).collect();
            rules.push(Confirm { acks, of, ..Confirm::default() });
        }
        let rule = &rules[usize::from(which) % rules.len()];
        let of = (0..self.size).filter(|&node| rule.of.contains(NAMES[node]));
        let mut of: Vec<usize> = of.filter(|&node| !self.parted[node]).collect();
        if of.len() < rule.acks as usize {
            return;
        }
        let first = usize::from(who) % of.len().max(1);
        of.rotate_left(first);
        self.length[self.primary] += 1;
        for &node in &of[..rule.acks as usize] {
            self.length[node] = self.length[self.primary];
        }
        self.acknowledged = self.length[self.primary];
    }

    fn receive(&mut self, node: usize, how_much: u8) {
        let end = self.length[self.primary];
        let from = if self.parted[node] { 0 } else { self.length[node] };
        self.parted[node] = false;
        self.length[node] = (from + u64::from(how_much)).min(end);
    }

    fn settle(&mut self) {
        let (epoch, to) = (self.epoch(), self.database().rule());
        let end = self.length[self.primary];
        let has = |node: &usize| !self.parted[*node] && self.length[*node] == end;
        let of = (0..self.size).filter(|&node| to.of.contains(NAMES[node])).filter(has);
        if of.count() >= to.acks as usize {
            self.command(DatabaseCommand::Settle { database: database(), epoch, to });
        }
    }

    fn appoint(&mut self, [_, who, which, next, of]: Dice) -> Result<(), String> {
        let node = usize::from(who) % self.size;
        let recruits = (0..self.size).filter(|&n| n == node || which >> n & 1 > 0);
        let recruits = recruits.filter(|&n| !self.parted[n]);
        let position = |lsn| Position { timeline: 1, lsn };
        let recruits: Vec<Recruit> = recruits
            .map(|n| Recruit { node: NAMES[n].to_owned(), reaches: position(self.length[n]) })
            .collect();
        let (epoch, rule) = (self.epoch(), self.rule([next, of, 0, 0, 0]));
        let appoint = DatabaseCommand::Appoint {
            database: database(),
            epoch,
            node: NAMES[node].to_owned(),
            recruits,
            next: rule,
            losing: false,
        };
        if !matches!(self.command(appoint), Reply::Granted { .. }) {
            return Ok(());
        }
        let has = self.length[node];
        if has < self.acknowledged {
            return Err(format!("{} of {} acknowledged writes are left", has, self.acknowledged));
        }
        self.primary = node;
        for other in 0..self.size {
            self.parted[other] |= has < self.length[other];
        }
        Ok(())
    }
}

fn database() -> String {
    "orders".to_owned()
}

fn run(size: usize, dice: &[Dice]) -> Result<(), String> {
    let mut model = Model::new(size);
    dice.iter().try_for_each(|&dice| model.turn(dice))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_appointment_loses_an_acknowledged_write(
        size in 2_usize..6,
        dice in prop::collection::vec(any::<Dice>(), 0..120),
    ) {
        prop_assert_eq!(run(size, &dice), Ok(()));
    }
}

#[test]
fn an_appointment_that_is_not_covered_is_found() {
    let found = with(Bug::Uncovered, || {
        (0..200).find_map(|seed| {
            let mut rng = Rng::new(seed);
            let mut die = || rng.between(0, 256).to_le_bytes()[0];
            let dice: Vec<Dice> = (0..100).map(|_| core::array::from_fn(|_| die())).collect();
            run(3, &dice).err()
        })
    });
    assert!(found.is_some_and(|law| law.contains("acknowledged writes are left")));
}
