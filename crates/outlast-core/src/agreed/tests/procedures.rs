//! A switchover whose every step fails in turn, led by coordinators that are lost after any entry.

use std::borrow::ToOwned as _;
use std::collections::BTreeSet;
use std::string::String;
use std::time::Duration;
use std::vec::Vec;

use crate::agreed::*;

const STEPS: [(&str, bool); 6] = [
    ("check", false),
    ("freeze", true),
    ("wait", false),
    ("move", true),
    ("promote", false),
    ("repoint", false),
];
const PIVOT: u32 = 4;

/// A cluster of two nodes that take turns as the coordinator.
struct Stand {
    agreed: Agreed,
    sequence: u64,
    nodes: [u64; 2],
    epoch: u64,
    procedure: u64,
    entries: u32,
    /// After how many entries the coordinator is lost.
    lost_after: u32,
}

impl Stand {
    fn new(lost_after: u32) -> Stand {
        let agreed = Agreed::default();
        let (nodes, epoch, procedure) = ([2, 3], 0, 0);
        let mut stand = Stand {
            agreed,
            sequence: 0,
            nodes,
            epoch,
            procedure,
            entries: 0,
            lost_after: u32::MAX,
        };
        let introduce = Command::Introduce;
        let (origin, wall) = (ClientId::NOBODY, Timestamp(0));
        stand.agreed.apply(1, &Entry { origin, sequence: 0, wall, command: introduce });
        for name in ["db1", "db2"] {
            let (name, address) = (name.to_owned(), "10.0.0.1".to_owned());
            let join = NodeCommand::Join { name, role: NodeRole::Voter, address, replaces: None };
            stand.apply(Command::Node(join));
        }
        stand.elect();
        let plan = STEPS.map(|(name, undo)| Plan { name: name.to_owned(), undo });
        let reply = stand.apply(Command::Procedure(ProcedureCommand::Begin {
            kind: "switchover".to_owned(),
            subject: "orders".to_owned(),
            coordinator: "coordinator".to_owned(),
            epoch: stand.epoch,
            pivot: PIVOT,
            plan: plan.into(),
        }));
        let Reply::Begun { id } = reply else { panic!("{reply}") };
        stand.procedure = id;
        (stand.entries, stand.lost_after) = (0, lost_after);
        stand
    }

    fn apply(&mut self, command: Command) -> Reply {
        self.sequence += 1;
        let (sequence, wall) = (self.sequence, Timestamp(0));
        let entry = Entry { origin: ClientId(1), sequence, wall, command };
        self.agreed.apply(self.agreed.index() + 1, &entry)
    }

    /// The lease runs out and the other node gets it; all that it knows is a snapshot.
    fn elect(&mut self) {
        let role = || "coordinator".to_owned();
        if let Some(&Lease { epoch, renewed_index, .. }) = self.agreed.leases().get("coordinator") {
            let expire = LeaseCommand::Expire { role: role(), epoch, renewed_index };
            assert_eq!(self.apply(Command::Lease(expire)), Reply::Done);
        }
        self.agreed = Agreed::restore(&self.agreed.snapshot()).unwrap();
        self.nodes.reverse();
        let (node, ttl) = (self.nodes[0], Duration::from_secs(5));
        let reply = self.apply(Command::Lease(LeaseCommand::Grant { role: role(), node, ttl }));
        let Reply::Granted { epoch } = reply else { panic!("{reply}") };
        self.epoch = epoch;
    }

    /// What a coordinator says; one that was lost just before is not heard, and its successor looks again.
    fn say(&mut self, step: u32, progress: Progress) -> bool {
        self.entries += 1;
        let lost = self.entries == self.lost_after;
        let old = self.epoch;
        if lost {
            self.elect();
        }
        let command = ProcedureCommand::Step { id: self.procedure, epoch: old, step, progress };
        let reply = self.apply(Command::Procedure(command));
        assert_eq!(matches!(reply, Reply::Refused { .. }), lost, "{reply}");
        !lost
    }

    /// Goes on until nothing is left to do. Returns which steps were done or undone, and how it ended.
    fn run(&mut self, mut fails: impl FnMut(u32, bool) -> bool) -> (Vec<String>, How) {
        let mut took_effect = Vec::new();
        for _ in 0..100 {
            let procedure = &self.agreed.procedures().known()[&self.procedure];
            let (step, forward) = match next(procedure) {
                What::Do { step } => (step, true),
                What::Undo { step } | What::Stuck { step } => (step, false),
                What::Ended { how } => return (took_effect, how),
            };
            let start = if forward { Progress::Start } else { Progress::UndoStart };
            if !self.say(step, start) {
                continue;
            }
            let name = STEPS[step as usize].0;
            took_effect.push(if forward { name.to_owned() } else { std::format!("un{name}") });
            let why = || "refused".to_owned();
            self.say(
                step,
                match (forward, fails(step, forward)) {
                    (true, false) => Progress::Done { evidence: String::new() },
                    (true, true) => Progress::Failed { why: why() },
                    (false, false) => Progress::Undone,
                    (false, true) => Progress::UndoFailed { why: why() },
                },
            );
        }
        panic!("it does not end");
    }
}

/// What stays in effect: the last word on each step.
fn in_effect(took_effect: &[String]) -> BTreeSet<&str> {
    let mut effects = BTreeSet::new();
    for word in took_effect {
        match STEPS.iter().find(|(name, _)| word == name) {
            Some((name, undo)) if *undo => drop(effects.insert(*name)),
            Some((name, _)) if *name == "promote" => drop(effects.insert(*name)),
            Some(_) => {}
            None => drop(effects.remove(word.strip_prefix("un").unwrap())),
        }
    }
    effects
}

#[test]
fn a_switchover_ends_done_or_undone_whatever_fails_and_whoever_is_lost() {
    for failing in 0..=6 {
        for lost_after in 0..30 {
            for undo_fails_once in [false, true] {
                let mut stand = Stand::new(lost_after);
                let (mut failed, mut undo_failed) = (false, !undo_fails_once);
                let (took_effect, how) = stand.run(|step, forward| {
                    let once = if forward { &mut failed } else { &mut undo_failed };
                    let fails = !*once && (!forward || step == failing);
                    *once |= fails;
                    fails
                });
                let case = std::format!("{failing} {lost_after} {took_effect:?}");
                let effects = in_effect(&took_effect);
                // A coordinator that was lost before it could tell of the failure has the step done again, and that works.
                if failing < PIVOT && failed && how == How::Unwound {
                    assert!(effects.is_empty(), "{case}");
                    assert!(!took_effect.contains(&"promote".to_owned()), "{case}");
                } else {
                    assert_eq!(how, How::Finished, "{case}");
                    assert_eq!(effects, BTreeSet::from(["freeze", "move", "promote"]), "{case}");
                }
                assert!(failing >= PIVOT || lost_after > 0 || how == How::Unwound, "{case}");
            }
        }
    }
}
