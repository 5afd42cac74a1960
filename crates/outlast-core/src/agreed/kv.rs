//! The small key-value space: what is under a key, since when, and in which version.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Bound;

#[cfg(test)]
use super::bugs::{Bug, instead};
use super::form::{coded_enum, coded_struct};
use super::limits::{Limit, PAGE_BYTES_MAX, PAGE_KEYS_MAX};
use super::reply::{Refusal, Reply};
use crate::codec::{Code, Malformed, Reader};

/// What can happen to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvCommand {
    /// With a session, the key goes when the session goes.
    Put { key: Vec<u8>, value: Vec<u8>, session: Option<u64> },
    /// Deletes a key, if it is as expected or if nothing is expected.
    Delete { key: Vec<u8>, expected: Option<Expected> },
    /// Writes a key only if it is as expected.
    Cas { key: Vec<u8>, expected: Expected, value: Vec<u8>, session: Option<u64> },
}

coded_enum!(KvCommand, "a command about keys that is not known here", {
    1 = Put { key, value, session }, 2 = Delete { key, expected }, 3 = Cas { key, expected, value, session },
});

/// How a key has to be for a change to take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Absent,
    /// Versions count from 1 again after a deletion.
    Version {
        version: u64,
    },
    /// The index of the last change; it never comes twice, also not after a deletion.
    Modified {
        index: u64,
    },
}

coded_enum!(Expected, "an expectation that is not known here", {
    1 = Absent, 2 = Version { version }, 3 = Modified { index },
});

impl KvCommand {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            KvCommand::Put { key, value, .. } | KvCommand::Cas { key, value, .. } => {
                check_key(key)?;
                Limit::ValueBytes.holds(value.len())
            }
            KvCommand::Delete { key, .. } => check_key(key),
        }
    }
}

pub(super) fn check_key(key: &[u8]) -> Result<(), Refusal> {
    Limit::KeyBytes.holds(key.len())?;
    if key.is_empty() { Err(Refusal::Unfit { limit: Limit::KeyBytes }) } else { Ok(()) }
}

/// What is under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub value: Vec<u8>,
    /// 1 for the first value since the key was absent.
    pub version: u64,
    pub created_index: u64,
    pub modified_index: u64,
    pub session: Option<u64>,
}

coded_struct!(Item { value, version, created_index, modified_index, session });

/// A part of a reading, in the order of the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page<'a> {
    pub items: Vec<(&'a [u8], &'a Item)>,
    /// There is more after the last of these.
    pub more: bool,
}

/// All keys and their values. A clone shares them, so that a snapshot of them can be written down while they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Items {
    items: BTreeMap<Arc<[u8]>, Arc<Item>>,
    /// Bytes of all keys and values; follows from `items`.
    bytes: usize,
    /// The keys of each session; follows from `items`.
    by_session: BTreeMap<u64, BTreeSet<Arc<[u8]>>>,
}

impl Items {
    pub fn get(&self, key: &[u8]) -> Option<&Item> {
        self.items.get(key).map(Arc::as_ref)
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes of all keys and values together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Item)> {
        self.items.iter().map(|(key, item)| (key.as_ref(), item.as_ref()))
    }

    /// The keys that begin with `prefix`, after the key `after` if one is given, at most `limit` of them and never more
    /// than a page holds. A page has at least one key if there is one.
    pub fn page(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Page<'_> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            Some(_) | None => Bound::Included(prefix),
        };
        let mut page = Page::default();
        let mut bytes = 0;
        let all = self.items.range::<[u8], _>((from, Bound::Unbounded));
        for (key, item) in all.take_while(|(key, _)| key.starts_with(prefix)) {
            bytes += key.len() + item.value.len();
            let full = page.items.len() >= limit.clamp(1, PAGE_KEYS_MAX) || bytes > PAGE_BYTES_MAX;
            if full && !page.items.is_empty() {
                page.more = true;
                break;
            }
            page.items.push((key, item));
        }
        page
    }

    pub(super) fn expect(&self, key: &[u8], expected: Expected) -> Result<(), Refusal> {
        let (version, modified) =
            self.get(key).map_or((0, 0), |item| (item.version, item.modified_index));
        let fits = match expected {
            Expected::Absent => version == 0,
            Expected::Version { version: wanted } => version > 0 && wanted == version,
            Expected::Modified { index } => version > 0 && index == modified,
        };
        if fits { Ok(()) } else { Err(Refusal::Conflict { version, modified }) }
    }

    /// Writes a key; the caller has seen that the session lives.
    pub(super) fn put(
        &mut self,
        index: u64,
        key: &[u8],
        value: &[u8],
        session: Option<u64>,
    ) -> Result<Reply, Refusal> {
        let before = self.items.get(key);
        let freed = before.map_or(0, |item| key.len() + item.value.len());
        #[cfg(test)]
        let freed = instead(Bug::OverwriteLeaks, freed, 0);
        let bytes = self.bytes - freed + key.len() + value.len();
        Limit::SpaceBytes.holds(bytes)?;
        Limit::Keys.holds(self.items.len() + usize::from(before.is_none()))?;
        if let Some(session) = session
            && before.and_then(|item| item.session) != Some(session)
        {
            let keys = self.by_session.get(&session).map_or(0, BTreeSet::len);
            Limit::SessionKeys.holds(keys + 1)?;
        }
        let version = before.map_or(1, |item| item.version.saturating_add(1));
        let created_index = before.map_or(index, |item| item.created_index);
        self.bytes = bytes;
        self.forget_owner(key);
        let key = Arc::<[u8]>::from(key);
        if let Some(session) = session {
            self.by_session.entry(session).or_default().insert(key.clone());
        }
        let item = Item {
            value: Vec::from(value),
            version,
            created_index,
            modified_index: index,
            session,
        };
        self.items.insert(key, Arc::new(item));
        Ok(Reply::Written { version })
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> bool {
        self.forget_owner(key);
        let Some(item) = self.items.remove(key) else { return false };
        self.bytes -= key.len() + item.value.len();
        true
    }

    pub(super) fn keys_of(&self, session: u64) -> Vec<Vec<u8>> {
        let keys = self.by_session.get(&session);
        keys.map_or_else(Vec::new, |keys| keys.iter().map(|key| key.to_vec()).collect())
    }

    fn forget_owner(&mut self, key: &[u8]) {
        let Some(owner) = self.items.get(key).and_then(|item| item.session) else { return };
        if let Some(keys) = self.by_session.get_mut(&owner) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_session.remove(&owner);
            }
        }
    }
}

impl Code for Items {
    fn encode(&self, to: &mut Vec<u8>) {
        self.items.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Items, Malformed> {
        let items = BTreeMap::<Arc<[u8]>, Arc<Item>>::decode(from)?;
        let bytes = items.iter().map(|(key, item)| key.len() + item.value.len()).sum();
        let mut by_session = BTreeMap::<u64, BTreeSet<Arc<[u8]>>>::new();
        for (key, item) in &items {
            if item.version == 0 {
                return Err(Malformed("a key that was never written"));
            }
            if let Some(session) = item.session {
                by_session.entry(session).or_default().insert(key.clone());
            }
        }
        Ok(Items { items, bytes, by_session })
    }
}
