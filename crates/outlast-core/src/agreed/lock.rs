//! Locks of the key-value space: one holder, a queue in the order of asking, and a token that only rises.
//!
//! A lock alone does not keep a holder out that has not noticed the end of its session: whatever the lock protects has to
//! refuse tokens lower than the highest one it has seen.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

#[cfg(test)]
use super::bugs::{Bug, instead};
use super::form::{coded_enum, coded_struct};
use super::kv::check_key;
use super::limits::Limit;
use super::reply::{Refusal, Reply};
use crate::codec::{Code, Malformed, Reader};

/// What can happen to a lock. Locks and keys do not share their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockCommand {
    /// Locks, or takes a place in the queue. Asked again, it gives the same answer.
    Lock { key: Vec<u8>, session: u64 },
    /// Gives the lock to the next in the queue, or leaves the queue.
    Unlock { key: Vec<u8>, session: u64 },
}

coded_enum!(LockCommand, "a command about locks that is not known here", {
    1 = Lock { key, session }, 2 = Unlock { key, session },
});

impl LockCommand {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            LockCommand::Lock { key, .. } | LockCommand::Unlock { key, .. } => check_key(key),
        }
    }
}

/// A lock that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    pub session: u64,
    /// The log index at which the session became the holder.
    pub token: u64,
    /// Who comes next, first in first out.
    pub queue: VecDeque<u64>,
}

impl Code for Lock {
    fn encode(&self, to: &mut Vec<u8>) {
        let Lock { session, token, queue } = self;
        session.encode(to);
        token.encode(to);
        #[cfg(test)]
        let none = VecDeque::new();
        #[cfg(test)]
        let queue = instead(Bug::QueueNotKept, queue, &none);
        queue.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Lock, Malformed> {
        let (session, token) = (u64::decode(from)?, u64::decode(from)?);
        Ok(Lock { session, token, queue: VecDeque::decode(from)? })
    }
}

/// All locks that are held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locks {
    held: BTreeMap<Vec<u8>, Lock>,
}

coded_struct!(Locks { held });

impl Locks {
    pub fn get(&self, key: &[u8]) -> Option<&Lock> {
        self.held.get(key)
    }

    pub fn held(&self) -> &BTreeMap<Vec<u8>, Lock> {
        &self.held
    }

    /// Locks a key for a session that lives. True: the lock changed hands.
    pub(super) fn lock(
        &mut self,
        index: u64,
        key: &[u8],
        session: u64,
    ) -> Result<(Reply, bool), Refusal> {
        let count = self.held.len() + 1;
        let waiting: usize = self.held.values().map(|lock| lock.queue.len()).sum();
        let Some(lock) = self.held.get_mut(key) else {
            Limit::Locks.holds(count)?;
            let lock = Lock { session, token: index, queue: VecDeque::new() };
            self.held.insert(Vec::from(key), lock);
            return Ok((Reply::Locked { token: index }, true));
        };
        if lock.session == session {
            return Ok((Reply::Locked { token: lock.token }, false));
        }
        let place = lock.queue.iter().position(|&waits| waits == session);
        let place = match place {
            Some(place) => place,
            None => {
                Limit::Waiting.holds(waiting + 1)?;
                lock.queue.push_back(session);
                lock.queue.len() - 1
            }
        };
        Ok((Reply::Queued { position: place as u64 + 1 }, false))
    }

    /// Takes a session from a lock and its queue. Returns who holds the lock now if that changed: the next, or nobody.
    pub(super) fn unlock(
        &mut self,
        index: u64,
        key: &[u8],
        session: u64,
    ) -> Result<Option<Option<u64>>, Refusal> {
        let lock = self.held.get_mut(key).ok_or(Refusal::NotLocked)?;
        if lock.session != session {
            let before = lock.queue.len();
            lock.queue.retain(|&waits| waits != session);
            return if lock.queue.len() < before { Ok(None) } else { Err(Refusal::NotLocked) };
        }
        match lock.queue.pop_front() {
            Some(next) => {
                (lock.session, lock.token) = (next, index);
                Ok(Some(Some(next)))
            }
            None => {
                self.held.remove(key);
                Ok(Some(None))
            }
        }
    }

    /// The locks that a session holds or waits for.
    pub(super) fn of(&self, session: u64) -> Vec<Vec<u8>> {
        let touches = |lock: &Lock| {
            let waits = lock.queue.contains(&session);
            #[cfg(test)]
            let waits = instead(Bug::DeadWaiter, waits, false);
            lock.session == session || waits
        };
        self.held.iter().filter(|(_, lock)| touches(lock)).map(|(key, _)| key.clone()).collect()
    }
}
