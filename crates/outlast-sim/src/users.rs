//! Users of the key-value space: each has one call under way, repeats what has no answer under the same number, and writes
//! down what it asked for and what it was told.

use std::collections::BTreeMap;

use outlast_core::agreed::{Agreed, ClientId, Command, Entry, Expected, KvCommand, Refusal, Reply};
use outlast_core::linear::{Call, Operation};
use outlast_core::time::Timestamp;

use crate::clock::Nanos;
use crate::random::Random;

/// So few that users meet.
const KEYS: usize = 3;

/// What a user wants now.
#[derive(Debug)]
pub(crate) enum Wish {
    Look,
    Write(Entry),
}

#[derive(Debug)]
pub(crate) struct User {
    number: u64,
    id: Option<ClientId>,
    sequence: u64,
    /// A write that has no answer yet, and its place among the calls.
    pending: Option<(Entry, usize)>,
    reading: Option<(Vec<u8>, Nanos)>,
    /// What was under each key when this user looked last, and since when.
    seen: BTreeMap<Vec<u8>, Option<(Vec<u8>, u64)>>,
    pub(crate) calls: Vec<Call>,
    /// Planted: what has no answer is asked for again as if it were new.
    repeats_as_new: bool,
}

/// What nobody has to be introduced for.
pub(crate) fn nobody(command: Command) -> Entry {
    Entry { origin: ClientId::NOBODY, sequence: 0, wall: Timestamp(0), command }
}

impl User {
    pub(crate) fn new(number: u64, repeats_as_new: bool) -> User {
        User {
            number,
            id: None,
            sequence: 0,
            pending: None,
            reading: None,
            seen: BTreeMap::new(),
            calls: Vec::new(),
            repeats_as_new,
        }
    }

    pub(crate) fn wish(&mut self, now: Nanos, random: &mut Random) -> Wish {
        self.reading = None;
        let Some(id) = self.id else { return Wish::Write(nobody(Command::Introduce)) };
        if random.chance(30_000) {
            // Whatever becomes of it, nobody waits for it any more.
            self.pending = None;
        }
        if let Some((entry, _)) = &mut self.pending {
            if self.repeats_as_new {
                self.sequence += 1;
                entry.sequence = self.sequence;
            }
            return Wish::Write(entry.clone());
        }
        let key = vec![b'a' + u8::try_from(random.index(KEYS)).expect("few")];
        if random.chance(400_000) {
            self.reading = Some((key, now));
            return Wish::Look;
        }
        self.sequence += 1;
        let value = format!("{}-{}", self.number, self.sequence).into_bytes();
        let seen = self.seen.get(&key).cloned();
        let (operation, command) = match (random.within(0..10), seen) {
            (0..2, _) => {
                (Operation::Delete, KvCommand::Delete { key: key.clone(), expected: None })
            }
            (2..7, Some(seen)) => {
                let expected = seen
                    .as_ref()
                    .map_or(Expected::Absent, |(_, index)| Expected::Modified { index: *index });
                let (key, session) = (key.clone(), None);
                let command = KvCommand::Cas { key, expected, value: value.clone(), session };
                let expected = seen.map(|(value, _)| value);
                (Operation::Cas { expected, value, done: false }, command)
            }
            (2.., _) => {
                let (key, session) = (key.clone(), None);
                let command = KvCommand::Put { key, value: value.clone(), session };
                (Operation::Put { value }, command)
            }
        };
        let entry = Entry {
            origin: id,
            sequence: self.sequence,
            wall: Timestamp(0),
            command: Command::Kv(command),
        };
        let client = self.number;
        self.calls.push(Call { client, key, operation, invoked: now, returned: None });
        self.pending = Some((entry.clone(), self.calls.len() - 1));
        Wish::Write(entry)
    }

    /// What was written has an answer.
    pub(crate) fn told(&mut self, now: Nanos, reply: Reply) -> Result<(), String> {
        if let Reply::Introduced { client } = reply {
            self.id = Some(ClientId(client));
            return Ok(());
        }
        let Some((_, call)) = self.pending.take() else { return Ok(()) };
        let call = &mut self.calls[call];
        call.returned = Some(now);
        let cas = match &mut call.operation {
            Operation::Cas { done, .. } => Some(done),
            Operation::Get { .. } | Operation::Put { .. } | Operation::Delete => None,
        };
        match (reply, cas) {
            (Reply::Written { .. }, Some(done)) => *done = true,
            (Reply::Written { .. } | Reply::Deleted { .. }, None) => {}
            (Reply::Refused { why: Refusal::Conflict { .. } }, Some(done)) => *done = false,
            (reply, _) => return Err(format!("a user is told that {reply}: {call}")),
        }
        Ok(())
    }

    /// A look is answered by this.
    pub(crate) fn saw(&mut self, now: Nanos, agreed: &Agreed) {
        let Some((key, invoked)) = self.reading.take() else { return };
        let item = agreed.space().items().get(&key);
        let item = item.map(|item| (item.value.clone(), item.modified_index));
        let operation = Operation::Get { seen: item.as_ref().map(|(value, _)| value.clone()) };
        let client = self.number;
        self.seen.insert(key.clone(), item);
        self.calls.push(Call { client, key, operation, invoked, returned: Some(now) });
    }
}
