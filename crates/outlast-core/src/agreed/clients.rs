//! Applies what a client asks for once, however often it asks.
//!
//! A client is introduced by the log and gets the log's index as its id, so that no two clients ever share one. It
//! numbers its commands from 1. The answers to its last [`ANSWERS_KEPT`] commands are kept: the same number again gets
//! the same answer and changes nothing. A client may have that many commands under way at once.
//!
//! Only the [`CLIENTS_KEPT`] clients that were heard of last are remembered. One that was forgotten is told so and
//! nothing is applied: it cannot learn any more what became of a command without an answer, has to look, and is
//! introduced anew. So a command is applied once or never, and never twice.

use alloc::collections::{BTreeMap, BTreeSet};

use super::form::coded_struct;
use super::limits::{ANSWERS_KEPT, CLIENTS_KEPT};
use super::reply::{Refusal, Reply};
use crate::codec::Malformed;

/// Who sends commands. [`ClientId::NOBODY`] sends only such that may be applied twice without harm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

impl ClientId {
    pub const NOBODY: ClientId = ClientId(0);
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Client {
    /// Numbers up to this one are settled; whatever became of them is no longer known.
    settled: u64,
    pub(super) answers: BTreeMap<u64, Reply>,
    /// The index at which it was last heard of.
    heard: u64,
}

coded_struct!(Client { settled, answers, heard });

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Clients {
    pub(super) known: BTreeMap<u64, Client>,
    /// When who was heard of last; follows from `known`.
    by_heard: BTreeSet<(u64, u64)>,
}

/// What is to be done with a command.
pub(super) enum Seen {
    Never,
    /// It was answered so before.
    Before(Reply),
}

impl Clients {
    pub(super) fn introduce(&mut self, index: u64) -> u64 {
        self.known.insert(index, Client { heard: index, ..Client::default() });
        self.by_heard.insert((index, index));
        while self.known.len() > CLIENTS_KEPT {
            let Some((_, oldest)) = self.by_heard.pop_first() else { break };
            self.known.remove(&oldest);
        }
        index
    }

    pub(super) fn seen(&self, client: ClientId, sequence: u64) -> Seen {
        let refused = |why| Seen::Before(Reply::Refused { why });
        let Some(known) = self.known.get(&client.0) else { return refused(Refusal::Forgotten) };
        match known.answers.get(&sequence) {
            Some(&reply) => Seen::Before(reply),
            None if sequence <= known.settled => refused(Refusal::Superseded),
            None => Seen::Never,
        }
    }

    pub(super) fn answered(&mut self, index: u64, client: ClientId, sequence: u64, reply: Reply) {
        let Some(known) = self.known.get_mut(&client.0) else { return };
        known.answers.insert(sequence, reply);
        while known.answers.len() > ANSWERS_KEPT
            && let Some((settled, _)) = known.answers.pop_first()
        {
            known.settled = settled;
        }
        self.by_heard.remove(&(known.heard, client.0));
        known.heard = index;
        self.by_heard.insert((index, client.0));
    }
}

impl crate::codec::Code for Clients {
    fn encode(&self, to: &mut alloc::vec::Vec<u8>) {
        self.known.encode(to);
    }

    fn decode(from: &mut crate::codec::Reader<'_>) -> Result<Clients, Malformed> {
        let known = BTreeMap::<u64, Client>::decode(from)?;
        let by_heard = known.iter().map(|(&id, client)| (client.heard, id)).collect();
        Ok(Clients { known, by_heard })
    }
}
