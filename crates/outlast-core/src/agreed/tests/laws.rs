//! Laws that hold after every entry, whatever the entries are, and bugs that break each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::random::{Dice, Senders};
use crate::agreed::bugs::{Bug, with};
use crate::agreed::*;
use crate::sim::Rng;

type Law = Result<(), String>;

macro_rules! law {
    ($holds:expr, $($words:tt)*) => {
        if !$holds {
            return Err(format!($($words)*));
        }
    };
}

/// What was seen since the beginning, kept apart from the machine.
#[derive(Debug, Default)]
struct Seen {
    answers: BTreeMap<(u64, u64), Reply>,
    ids: BTreeSet<u64>,
    left: BTreeSet<u64>,
    epochs: BTreeMap<String, u64>,
    tokens: BTreeMap<Vec<u8>, u64>,
    replies: BTreeSet<u8>,
    commands: BTreeSet<(u8, u8)>,
}

/// One entry, and what it made of the state.
struct Turn<'a> {
    before: &'a Agreed,
    index: u64,
    entry: &'a Entry,
    reply: Reply,
    after: &'a Agreed,
}

impl Turn<'_> {
    fn done(&self) -> bool {
        !matches!(self.reply, Reply::Refused { .. })
    }

    /// Nothing but the index, and who was heard of when, is different.
    fn nothing_changed(&self) -> bool {
        let mut same = self.after.clone();
        same.index = self.before.index;
        same.clients = self.before.clients.clone();
        same == *self.before
    }

    fn check(&self, seen: &mut Seen) -> Law {
        self.once(seen)?;
        law!(self.done() || self.nothing_changed(), "a refused command changed something");
        self.nodes(seen)?;
        self.topology()?;
        self.leases(seen)?;
        self.procedures()?;
        self.keys()?;
        self.sessions_and_locks(seen)?;
        self.sides()?;
        self.addresses()?;
        self.names()?;
        self.databases()?;
        self.snapshot()
    }

    fn once(&self, seen: &mut Seen) -> Law {
        let Entry { origin, sequence, .. } = *self.entry;
        if origin == ClientId::NOBODY {
            return Ok(());
        }
        if let Some(first) = seen.answers.get(&(origin.0, sequence)) {
            law!(self.nothing_changed(), "{origin:?} {sequence} was applied twice");
            let lost = [Refusal::Superseded.into(), Refusal::Forgotten.into()];
            law!(self.reply == *first || lost.contains(&self.reply), "the answer changed");
        }
        seen.answers.entry((origin.0, sequence)).or_insert(self.reply);
        Ok(())
    }

    fn nodes(&self, seen: &mut Seen) -> Law {
        let (before, after) = (self.before.registry.nodes(), self.after.registry.nodes());
        seen.left.extend(before.keys().filter(|id| !after.contains_key(id)));
        for (&id, node) in after {
            law!(!seen.left.contains(&id), "id {id} came back");
            if !before.contains_key(&id) {
                law!(id == self.index && seen.ids.insert(id), "id {id} is not new");
            }
            law!(self.after.registry.id_of(&node.name) == Some(id), "two nodes of one name");
        }
        law!(
            seen.left.iter().all(|&id| self.after.registry.was_removed(id)),
            "a removed id forgotten"
        );
        let joins = matches!(self.entry.command, Command::Node(NodeCommand::Join { .. }));
        if let Reply::Joined { id } = self.reply
            && joins
        {
            let old = id == self.index || self.was_repeated(id);
            law!(old, "a node without its disk got the old id {id}");
        }
        let votes = |node: &Node| node.role.votes();
        law!(!before.values().any(votes) || after.values().any(votes), "no voter is left");
        Ok(())
    }

    /// The reply is one that was kept: it names an index before this one, at which the same entry was applied.
    fn was_repeated(&self, id: u64) -> bool {
        self.before.clients.known.get(&self.entry.origin.0).is_some_and(|client| {
            client.answers.get(&self.entry.sequence) == Some(&Reply::Joined { id })
        })
    }

    fn sides(&self) -> Law {
        let after = self.after.sides.all();
        for (service, before) in self.before.sides.all() {
            let Some(after) = after.get(service) else { return Err("a pair was forgotten".into()) };
            law!(before.epoch <= after.epoch, "a pair's epoch went back");
            let moved = before.side != after.side || before.settled && !after.settled;
            law!(!moved || before.epoch < after.epoch, "a pair moved under an old epoch");
        }
        Ok(())
    }

    fn addresses(&self) -> Law {
        let (before, after) = (self.before.addresses(), self.after.addresses());
        let units = before.all().keys().chain(after.all().keys());
        for unit in units.filter(|unit| before.get(unit) != after.get(unit)) {
            let was = before.get(unit).map_or(0, |address| address.epoch);
            let Command::Address(
                AddressCommand::Move { from, .. } | AddressCommand::Forget { from, .. },
            ) = &self.entry.command
            else {
                return Err("an address moved by itself".into());
            };
            law!(*from == was, "an address moved by what was judged before it moved");
            let new = after.get(unit).is_none_or(|address| address.epoch == self.index);
            law!(new, "an address moved under an old epoch");
        }
        Ok(())
    }

    fn names(&self) -> Law {
        let (before, after) = (self.before.names().all(), self.after.names().all());
        if before == after {
            return Ok(());
        }
        let Command::Names(NamesCommand::Change { from, .. }) = &self.entry.command else {
            return Err("answers changed by themselves".into());
        };
        law!(*from == before.epoch, "answers changed by what was judged before they changed");
        law!(after.epoch == self.index, "answers changed under an old epoch");
        for (name, zone) in &before.zones {
            let Some(after) = after.zones.get(name) else { continue };
            law!(zone.serial <= after.serial, "a serial went back");
            law!(
                zone.records == after.records || zone.serial < after.serial,
                "a serial stood still"
            );
        }
        Ok(())
    }

    fn databases(&self) -> Law {
        let after = self.after.databases.all();
        for (name, before) in self.before.databases.all() {
            let Some(after) = after.get(name) else { return Err("a database is forgotten".into()) };
            law!(before.epoch() <= after.epoch(), "a database's epoch went back");
            let new_reign = before.reign.epoch != after.reign.epoch;
            law!(!new_reign || after.reign.epoch == self.index, "a reign of an old epoch");
            law!(
                new_reign || before.reign.primary == after.reign.primary,
                "a primary changed within its reign"
            );
            law!(
                before.system.is_none() || before.system == after.system,
                "it is another database"
            );
            law!(!before.reign.open || after.reign.open || new_reign, "an open reign was closed");
            law!(after.confirms.len() <= Limit::Confirms.most(), "too many rules");
            let since = after.confirms.iter().map(|confirm| confirm.since);
            law!(since.is_sorted_by(|one, next| one <= next), "rules out of order");
            law!(after.election.is_none() || after.switchover.is_none(), "both at once");
            self.reign(name, before, after)?;
        }
        Ok(())
    }

    /// A reign ends by an election or by a switchover that has come to its pivot, and its lease is not renewed after that.
    fn reign(&self, name: &str, before: &Database, after: &Database) -> Law {
        if before.reign.epoch != after.reign.epoch {
            let planned = before.switchover.as_ref().is_some_and(|switchover| {
                switchover.step == SwitchoverStep::PIVOT && switchover.to == after.reign.primary
            });
            law!(before.election.is_some() || planned, "a primary without an election");
        }
        let role = database_role(name);
        let [was, is] = [self.before, self.after].map(|agreed| agreed.leases.get(&role));
        let (Some(was), Some(is)) = (was, is) else { return Ok(()) };
        let renewed = was.epoch == is.epoch && was.renewed_index != is.renewed_index;
        let over = before.election.is_some() || is.epoch < after.reign.epoch;
        law!(!renewed || !over, "a lease was renewed after the reign");
        Ok(())
    }

    fn topology(&self) -> Law {
        let (before, after) = (&self.before.topology, &self.after.topology);
        if before.version() != after.version() {
            law!(after.version() > before.version(), "the topology went back");
            let Some(proposal) = before.proposal() else { return Err("no proposal".into()) };
            let yes = |id| proposal.votes.get(id).is_some_and(|vote| vote.ok);
            let all = self.before.registry.nodes().keys().all(yes);
            law!(all, "a topology took effect without every node's yes");
            law!(after.text() == proposal.text && after.proposal().is_none(), "another text");
        } else {
            law!(before.text() == after.text(), "the topology changed without a version");
        }
        Ok(())
    }

    fn leases(&self, seen: &mut Seen) -> Law {
        let (before, after) = (self.before.leases.held(), self.after.leases.held());
        let of_databases = matches!(self.entry.command, Command::Database(_));
        for (role, lease) in after {
            let highest = seen.epochs.entry(role.clone()).or_default();
            law!(lease.epoch >= *highest, "the epoch of {role} went back");
            *highest = lease.epoch;
            match before.get(role) {
                Some(old) if old.holder == lease.holder && old.epoch == lease.epoch => {
                    law!(
                        old.granted == lease.granted,
                        "a new grant under the old epoch {}",
                        old.epoch
                    );
                }
                Some(old) => {
                    let taken = old.holder != lease.holder && !of_databases;
                    law!(!taken, "{role} was taken from its holder");
                    law!(lease.epoch == self.index, "an epoch that is not the index");
                }
                None => law!(lease.epoch == self.index, "an epoch that is not the index"),
            }
        }
        for (role, old) in before.iter().filter(|(role, _)| !after.contains_key(*role)) {
            if of_databases && database_of_role(role).is_some() {
                continue;
            }
            let Command::Lease(command) = &self.entry.command else {
                return Err(format!("{role} was lost by the way"));
            };
            let fair = match command {
                LeaseCommand::Expire { renewed_index, epoch, .. } => {
                    (*epoch, *renewed_index) == (old.epoch, old.renewed_index)
                }
                LeaseCommand::Release { node, epoch, .. } => {
                    (*node, *epoch) == (old.holder, old.epoch)
                }
                LeaseCommand::Grant { .. } | LeaseCommand::Renew { .. } => false,
            };
            law!(fair, "{role} was lost although it was renewed");
        }
        Ok(())
    }

    fn procedures(&self) -> Law {
        for (id, after) in self.after.procedures.known() {
            let (pivot, all) = (after.pivot as usize, &after.steps);
            let begun = |step: &Step| step.state != StepState::Pending;
            if after.unwinding.is_some() {
                law!(!all[pivot..].iter().any(begun), "procedure {id} unwinds past its pivot");
            }
            if let Some(End { how: How::Unwound, .. }) = after.ended {
                let left = all.iter().find(|step| {
                    step.undo && !matches!(step.state, StepState::Pending | StepState::Undone)
                });
                law!(left.is_none(), "procedure {id} is over and {left:?} is not undone");
            }
            if let Some(End { how: How::Finished, .. }) = after.ended {
                let done = |step: &Step| matches!(step.state, StepState::Done { .. });
                law!(all.iter().all(done), "procedure {id} is finished and not done");
            }
            let Some(before) = self.before.procedures.known().get(id) else { continue };
            if before == after {
                continue;
            }
            law!(before.ended.is_none(), "procedure {id} went on after its end");
            let Command::Procedure(command) = &self.entry.command else {
                return Err(format!("procedure {id} went on by the way"));
            };
            let epoch = match command {
                ProcedureCommand::Step { epoch, .. } | ProcedureCommand::Unwind { epoch, .. } => {
                    Some(*epoch)
                }
                ProcedureCommand::Begin { .. } | ProcedureCommand::Abandon { .. } => None,
            };
            let lease = self.before.leases.get(&before.coordinator).map(|lease| lease.epoch);
            law!(epoch.is_none() || epoch == lease, "a coordinator without a lease was obeyed");
        }
        Ok(())
    }

    fn keys(&self) -> Law {
        let items = self.after.space.items();
        let bytes: usize = items.iter().map(|(key, item)| key.len() + item.value.len()).sum();
        law!(items.bytes() == bytes, "{} bytes are counted and {bytes} are there", items.bytes());
        let before: BTreeMap<_, _> = self.before.space.items().iter().collect();
        let after: BTreeMap<_, _> = items.iter().collect();
        let all: BTreeSet<&[u8]> = before.keys().chain(after.keys()).copied().collect();
        let changed = all.into_iter().filter(|key| before.get(key) != after.get(key));
        let Watched::Changes { changes, next } = self.after.changes(self.index, b"", 1) else {
            return Err("the last changes are compacted".into());
        };
        law!(next == self.index + 1, "a watcher is sent to {next}");
        let told = changes.iter().filter(|change| match change.what {
            Changed::Written { .. } | Changed::Deleted => true,
            Changed::Locked { .. } | Changed::Unlocked => false,
        });
        let told: Vec<&[u8]> = told.map(|change| change.key.as_slice()).collect();
        law!(told == changed.collect::<Vec<_>>(), "watchers were told {told:?}");
        Ok(())
    }

    fn sessions_and_locks(&self, seen: &mut Seen) -> Law {
        let space = &self.after.space;
        let lives = |id: &u64| space.sessions().contains_key(id);
        for (key, item) in space.items().iter() {
            law!(item.session.as_ref().is_none_or(lives), "{key:?} has outlived its session");
        }
        for (key, lock) in space.locks().held() {
            let mut all: Vec<u64> = lock.queue.iter().copied().chain([lock.session]).collect();
            law!(all.iter().all(lives), "a lock or a queue has outlived its session");
            all.sort_unstable();
            all.dedup();
            law!(all.len() == lock.queue.len() + 1, "a session twice in one lock");
            let highest = seen.tokens.entry(key.clone()).or_default();
            law!(lock.token >= *highest, "the token of {key:?} went back");
            *highest = lock.token;
            let before = self.before.space.locks().get(key);
            let hands = before.is_none_or(|before| before.session != lock.session);
            law!(!hands || lock.token == self.index, "a lock changed hands under an old token");
        }
        Ok(())
    }

    fn snapshot(&self) -> Law {
        let bytes = self.after.snapshot();
        let again = Agreed::restore(&bytes).map_err(|why| format!("{why}"))?;
        law!(again == *self.after && again.snapshot() == bytes, "a snapshot is something else");
        Ok(())
    }
}

/// Applies what the dice say and checks every law at every step; from step `cut` on, a restored machine runs beside.
fn run(dice: &[Dice], cut: usize, seen: &mut Seen) -> Law {
    let (mut agreed, mut senders) = (Agreed::default(), Senders::default());
    let mut restored: Option<Agreed> = None;
    let mut index = 0;
    for (at, &dice) in dice.iter().enumerate() {
        if at == cut {
            restored = Some(Agreed::restore(&agreed.snapshot()).map_err(|why| format!("{why}"))?);
        }
        index += 1 + u64::from(dice[1] % 32 == 3);
        let entry = senders.entry(&agreed, dice);
        let entry_bytes = entry.to_bytes();
        law!(Entry::from_bytes(&entry_bytes) == Ok(entry.clone()), "an entry is something else");
        let before = agreed.clone();
        let reply = agreed.apply(index, &entry);
        let turn = Turn { before: &before, index, entry: &entry, reply, after: &agreed };
        turn.check(seen).map_err(|law| format!("{law}\nat {index}: {entry:?} => {reply}"))?;
        if let Some(restored) = &mut restored {
            law!(restored.apply(index, &entry) == reply, "a restored machine answers otherwise");
        }
        seen.replies.insert(reply.to_bytes()[1]);
        let command = entry.command.to_bytes();
        seen.commands.insert((command[0], command.get(1).copied().unwrap_or(0)));
        law!(agreed.apply(index, &entry) == Refusal::Outdated { applied: index }.into(), "twice");
    }
    if let Some(restored) = restored {
        law!(restored.snapshot() == agreed.snapshot(), "a restored machine became another");
    }
    Ok(())
}

pub(crate) fn dice(seed: u64, count: usize) -> Vec<Dice> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| rng.between(0, u64::MAX).to_le_bytes()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_commands_breaks_a_law(
        dice in prop::collection::vec(any::<Dice>(), 0..150),
        cut in 0_usize..150,
    ) {
        prop_assert_eq!(run(&dice, cut, &mut Seen::default()), Ok(()));
    }

    #[test]
    fn any_bytes_are_a_snapshot_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(agreed) = Agreed::restore(&bytes) {
            prop_assert_eq!(agreed.snapshot(), bytes);
        }
    }
}

#[test]
fn every_command_and_every_reply_is_tried() {
    let mut seen = Seen::default();
    // `OUTLAST_SEEDS` asks for more.
    let seeds = std::env::var("OUTLAST_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(25) {
        run(&dice(seed, 400), 200, &mut seen).unwrap_or_else(|law| panic!("seed {seed}: {law}"));
        seen = Seen { replies: seen.replies, commands: seen.commands, ..Seen::default() };
    }
    assert_eq!(seen.replies, (1..=15).collect());
    let tried = |case: u8| seen.commands.iter().filter(|(first, _)| *first == case).count();
    assert_eq!((3..=12).map(tried).collect::<Vec<_>>(), [4, 4, 4, 2, 4, 3, 4, 2, 2, 19]);
}

#[test]
fn a_snapshot_or_an_entry_that_is_cut_is_refused() {
    let (mut agreed, mut senders) = (Agreed::default(), Senders::default());
    for (index, dice) in (1..).zip(dice(7, 300)) {
        let entry = senders.entry(&agreed, dice);
        let reply = agreed.apply(index, &entry);
        let (entry, reply) = (entry.to_bytes(), reply.to_bytes());
        for cut in 0..entry.len().min(300) {
            assert!(Entry::from_bytes(&entry[..cut]).is_err(), "{entry:?} cut at {cut}");
        }
        for cut in 0..reply.len() {
            assert!(Reply::from_bytes(&reply[..cut]).is_err(), "{reply:?} cut at {cut}");
        }
    }
    let snapshot = agreed.snapshot();
    for cut in 0..snapshot.len() {
        assert!(Agreed::restore(&snapshot[..cut]).is_err(), "cut at {cut}");
    }
    assert!(Agreed::restore(&[&snapshot[..], &[0]].concat()).is_err());
}

/// Every case of a form, found by its number and as many fields as it wants; each number below `end` is a case.
fn check_cases<T: Code + PartialEq + std::fmt::Debug>(before: &[u8], end: u8) -> Vec<T> {
    let read = |case: u8| {
        (0..4).find_map(|fields| {
            let bytes = [before, &[case], &[1; 4][..fields]].concat();
            let value = T::from_bytes(&bytes).ok()?;
            assert_eq!(value.to_bytes(), bytes);
            for cut in 0..bytes.len() {
                assert!(T::from_bytes(&bytes[..cut]).is_err(), "{value:?} cut at {cut}");
            }
            Some(value)
        })
    };
    assert!(read(0).is_none() && read(end).is_none());
    (1..end).map(|case| read(case).unwrap_or_else(|| panic!("no case {case}"))).collect()
}

#[test]
fn every_answer_has_one_form_and_a_sentence() {
    let refusals = check_cases::<Reply>(&[1, 15], 36);
    let replies = check_cases::<Reply>(&[1], 16);
    let sentences: BTreeSet<String> =
        refusals.iter().chain(&replies).map(|reply| format!("{reply}")).collect();
    assert_eq!(sentences.len(), 35 + 14);
    for sentence in sentences {
        assert!(sentence.len() > 3 && !sentence.ends_with('.'), "{sentence}");
    }
    check_cases::<Limit>(&[], 33);
    check_cases::<Changed>(&[], 5);
    check_cases::<Expected>(&[], 4);
    check_cases::<How>(&[], 4);
    let watched = Watched::Compacted { first: 300 }.to_bytes();
    assert_eq!(watched, [1, 2, 0xac, 2]);
    assert!((0..4).all(|cut| Watched::from_bytes(&watched[..cut]).is_err()));
}

/// Changed bytes of a true snapshot: refused, or a machine that takes any command without a panic.
#[test]
fn a_damaged_snapshot_does_no_harm() {
    let (mut agreed, mut senders) = (Agreed::default(), Senders::default());
    for (index, dice) in (1..).zip(dice(11, 120)) {
        let entry = senders.entry(&agreed, dice);
        agreed.apply(index, &entry);
    }
    let snapshot = agreed.snapshot();
    let mut rng = Rng::new(5);
    let mut restored = 0;
    for _ in 0..2000 {
        let mut bytes = snapshot.clone();
        let at = usize::try_from(rng.between(0, bytes.len() as u64)).unwrap();
        bytes[at] = rng.between(0, 256).to_le_bytes()[0];
        let Ok(mut agreed) = Agreed::restore(&bytes) else { continue };
        restored += 1;
        assert_eq!(agreed.snapshot(), bytes);
        for (index, dice) in (agreed.index().saturating_add(1)..).zip(dice(rng.between(0, 99), 30))
        {
            let entry = senders.entry(&agreed, dice);
            agreed.apply(index, &entry);
        }
    }
    assert!(restored > 100, "{restored}");
}

/// Plants a bug and says what the first seed that finds it has to say.
#[track_caller]
fn check_found(bug: Bug, law: &str) {
    let found = with(bug, || {
        (0..300).find_map(|seed| run(&dice(seed, 200), 100, &mut Seen::default()).err())
    });
    let found = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
    assert!(found.contains(law), "{bug:?} was found otherwise: {found}");
}

#[test]
fn the_laws_find_every_planted_bug() {
    check_found(Bug::ExpiresBlindly, "was lost although it was renewed");
    check_found(Bug::EpochKept, "a new grant under the old epoch");
    check_found(Bug::WipedDiskKeepsId, "got the old id");
    check_found(Bug::SilenceIsConsent, "without every node's yes");
    check_found(Bug::FailedIsNotUndone, "is not undone");
    check_found(Bug::StaleCoordinator, "without a lease was obeyed");
    check_found(Bug::OverwriteLeaks, "bytes are counted");
    check_found(Bug::QueueNotKept, "a snapshot is something else");
    check_found(Bug::DeadWaiter, "has outlived its session");
    check_found(Bug::KeysOutliveSession, "has outlived its session");
    check_found(Bug::AppliedTwice, "the answer changed");
    check_found(Bug::OldMoveWins, "epoch");
    check_found(Bug::MovedBlindly, "judged before it moved");
    check_found(Bug::AnsweredBlindly, "judged before they changed");
    check_found(Bug::RenewedAfterElection, "renewed after the reign");
}
