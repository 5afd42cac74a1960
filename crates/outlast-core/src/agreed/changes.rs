//! What changed in the key-value space and when, so that a watcher gets each change once.
//!
//! Only the last changes are kept. A watcher that asks for older ones is told from where on it can watch; it reads what
//! it is interested in anew and goes on from there.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::form::{coded_enum, coded_struct};
use super::limits::CHANGES_KEPT;

/// One change of a key or a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// One command can change several keys, all at its index.
    pub index: u64,
    pub key: Vec<u8>,
    pub what: Changed,
}

coded_struct!(Change { index, key, what });

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    Written {
        version: u64,
    },
    Deleted,
    /// This session holds the lock now; the token is the index of the change.
    Locked {
        session: u64,
    },
    Unlocked,
}

coded_enum!(Changed, "a change that is not known here", {
    1 = Written { version }, 2 = Deleted, 3 = Locked { session }, 4 = Unlocked,
});

/// What a watcher gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// All of them, up to just before the index `next`, from which to go on.
    Changes { changes: Box<[Change]>, next: u64 },
    /// Some that were asked for are no longer kept: read anew, then watch from `first` or later.
    Compacted { first: u64 },
}

coded_enum!(Watched version 1, "an answer to a watcher that is not known here", {
    1 = Changes { changes, next }, 2 = Compacted { first },
});

/// The last changes, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    ring: VecDeque<Change>,
    /// Everything from this index on is still there.
    first: u64,
}

coded_struct!(Changes { ring, first });

impl Changes {
    /// The changes of keys that begin with `prefix`, from an index on and up to `applied`. What one command changed is
    /// never divided, so there may be a few more than `limit`.
    pub(super) fn since(&self, from: u64, prefix: &[u8], limit: usize, applied: u64) -> Watched {
        if from < self.first {
            return Watched::Compacted { first: self.first };
        }
        let mut changes = Vec::<Change>::new();
        let start = self.ring.partition_point(|change| change.index < from);
        for change in self.ring.iter().skip(start).filter(|c| c.key.starts_with(prefix)) {
            if changes.len() >= limit.max(1)
                && let Some(last) = changes.last().map(|last| last.index)
                && last < change.index
            {
                return Watched::Changes { changes: changes.into(), next: last.saturating_add(1) };
            }
            changes.push(change.clone());
        }
        Watched::Changes { changes: changes.into(), next: from.max(applied.saturating_add(1)) }
    }

    pub(super) fn add(&mut self, index: u64, key: &[u8], what: Changed) {
        self.ring.push_back(Change { index, key: Vec::from(key), what });
        if self.ring.len() > CHANGES_KEPT
            && let Some(gone) = self.ring.front().map(|change| change.index)
        {
            // What one command changed goes as a whole, so that no watcher gets half of it.
            let whole = self.ring.partition_point(|change| change.index <= gone);
            self.ring.drain(..whole);
            self.first = gone.saturating_add(1);
        }
    }
}
