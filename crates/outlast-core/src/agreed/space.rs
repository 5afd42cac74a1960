//! The key-value space as a whole: keys, sessions, locks, and what changed.

use alloc::collections::BTreeMap;

use super::Stamp;
#[cfg(test)]
use super::bugs::{Bug, instead};
use super::changes::{Changed, Changes};
use super::kv::{Items, KvCommand};
use super::limits::Limit;
use super::lock::{LockCommand, Locks};
use super::reply::{Refusal, Reply};
use super::session::{Session, SessionCommand};
use crate::codec::{Code, Malformed, Reader};

/// Keys, sessions and locks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    items: Items,
    sessions: BTreeMap<u64, Session>,
    locks: Locks,
    pub(super) changes: Changes,
}

impl Space {
    pub fn items(&self) -> &Items {
        &self.items
    }

    pub fn sessions(&self) -> &BTreeMap<u64, Session> {
        &self.sessions
    }

    pub fn locks(&self) -> &Locks {
        &self.locks
    }

    pub(super) fn apply_kv(&mut self, at: Stamp, command: &KvCommand) -> Result<Reply, Refusal> {
        match command {
            KvCommand::Put { key, value, session } => self.put(at, key, value, *session),
            KvCommand::Cas { key, expected, value, session } => {
                self.items.expect(key, *expected)?;
                self.put(at, key, value, *session)
            }
            KvCommand::Delete { key, expected } => {
                if let Some(expected) = expected {
                    self.items.expect(key, *expected)?;
                }
                let existed = self.items.delete(key);
                if existed {
                    self.changes.add(at.index, key, Changed::Deleted);
                }
                Ok(Reply::Deleted { existed })
            }
        }
    }

    fn put(
        &mut self,
        at: Stamp,
        key: &[u8],
        value: &[u8],
        session: Option<u64>,
    ) -> Result<Reply, Refusal> {
        if let Some(id) = session {
            self.lives(id)?;
        }
        let reply = self.items.put(at.index, key, value, session)?;
        let version = self.items.get(key).map_or(0, |item| item.version);
        self.changes.add(at.index, key, Changed::Written { version });
        Ok(reply)
    }

    pub(super) fn apply_session(
        &mut self,
        at: Stamp,
        command: &SessionCommand,
    ) -> Result<Reply, Refusal> {
        match command {
            SessionCommand::Open { ttl } => {
                Limit::Sessions.holds(self.sessions.len() + 1)?;
                let session = Session { ttl: *ttl, opened: at, renewed_index: at.index };
                self.sessions.insert(at.index, session);
                Ok(Reply::SessionOpened { id: at.index })
            }
            SessionCommand::Renew { id } => {
                let session = self.sessions.get_mut(id).ok_or(Refusal::NoSession { id: *id })?;
                session.renewed_index = at.index;
                Ok(Reply::Done)
            }
            SessionCommand::Close { id } => {
                self.lives(*id)?;
                self.end(at, *id);
                Ok(Reply::Done)
            }
            SessionCommand::Expire { id, renewed_index } => {
                let current = self.lives(*id)?.renewed_index;
                if current != *renewed_index {
                    return Err(Refusal::RenewedSince { renewed_index: current });
                }
                self.end(at, *id);
                Ok(Reply::Done)
            }
        }
    }

    pub(super) fn apply_lock(
        &mut self,
        at: Stamp,
        command: &LockCommand,
    ) -> Result<Reply, Refusal> {
        match command {
            LockCommand::Lock { key, session } => {
                self.lives(*session)?;
                let (reply, changed) = self.locks.lock(at.index, key, *session)?;
                if changed {
                    self.changes.add(at.index, key, Changed::Locked { session: *session });
                }
                Ok(reply)
            }
            LockCommand::Unlock { key, session } => {
                self.unlock(at, key, *session)?;
                Ok(Reply::Done)
            }
        }
    }

    fn unlock(&mut self, at: Stamp, key: &[u8], session: u64) -> Result<(), Refusal> {
        match self.locks.unlock(at.index, key, session)? {
            Some(Some(session)) => self.changes.add(at.index, key, Changed::Locked { session }),
            Some(None) => self.changes.add(at.index, key, Changed::Unlocked),
            None => {}
        }
        Ok(())
    }

    fn lives(&self, id: u64) -> Result<&Session, Refusal> {
        self.sessions.get(&id).ok_or(Refusal::NoSession { id })
    }

    fn end(&mut self, at: Stamp, id: u64) {
        self.sessions.remove(&id);
        let keys = self.items.keys_of(id);
        #[cfg(test)]
        let keys = instead(Bug::KeysOutliveSession, keys, alloc::vec::Vec::new());
        for key in keys {
            self.items.delete(&key);
            self.changes.add(at.index, &key, Changed::Deleted);
        }
        for key in self.locks.of(id) {
            let gone = self.unlock(at, &key, id);
            debug_assert!(gone.is_ok(), "the lock was said to be this session's");
        }
    }
}

impl Code for Space {
    fn encode(&self, to: &mut alloc::vec::Vec<u8>) {
        let Space { items, sessions, locks, changes } = self;
        items.encode(to);
        sessions.encode(to);
        locks.encode(to);
        changes.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Space, Malformed> {
        let space = Space {
            items: Items::decode(from)?,
            sessions: BTreeMap::decode(from)?,
            locks: Locks::decode(from)?,
            changes: Changes::decode(from)?,
        };
        let lives = |id: &u64| space.sessions.contains_key(id);
        let items = space.items.iter().all(|(_, item)| item.session.as_ref().is_none_or(lives));
        let locks = space.locks.held().values();
        let locks = locks.flat_map(|lock| lock.queue.iter().chain([&lock.session])).all(lives);
        if items && locks {
            Ok(space)
        } else {
            Err(Malformed("a key or a lock of a session that is not there"))
        }
    }
}
