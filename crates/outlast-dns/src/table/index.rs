//! Finds names by their hashes. Only who writes the zones could make names collide, so that speed is all that counts.

use crate::name::Labels;

/// Marks a slot without a number.
const EMPTY: u32 = u32::MAX;

/// Bytes that are hashed in one step.
const WORD: usize = size_of::<u64>();

/// The hash of a name, made from its end, so that those of the names above it come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NameHash(u64);

impl NameHash {
    pub(super) const ROOT: NameHash = NameHash(0x9e37_79b9_7f4a_7c15);

    /// The hash of a whole name.
    pub(super) fn of(name: &[u8]) -> NameHash {
        let mut hash = NameHash::ROOT;
        let mut labels = Labels::ROOT;
        if labels.read(name).is_none() {
            return hash;
        }
        let mut end = labels.root_at();
        for start in labels.starts().iter().rev().map(|start| usize::from(*start)) {
            hash = hash.below(labels.wire(), start, end);
            end = start;
        }
        hash
    }

    /// The hash of a name with one more label at its front, which stands there in these bytes.
    #[inline]
    pub(super) fn below(self, name: &[u8], start: usize, end: usize) -> NameHash {
        let (mut hash, mut at) = (self, start);
        while at + WORD <= end {
            hash = hash.and(word(name, at).unwrap_or_default());
            at += WORD;
        }
        if at < end { hash.and(part(name, at, end)) } else { hash }
    }

    /// Both halves of a product, so that each bit counts everywhere.
    fn and(self, word: u64) -> NameHash {
        let product = u128::from(self.0 ^ word) * 0xa076_1d64_78bd_642f;
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
        NameHash(half(product) ^ half(product >> 64))
    }

    /// Tells most names apart that share a slot.
    fn tag(self) -> u32 {
        u32::try_from(self.0 >> 32).unwrap_or_default()
    }
}

fn word(name: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*name.get(at..)?.first_chunk()?))
}

/// Fewer bytes than a word has, read as a part of one that lies within the name if there is one.
fn part(name: &[u8], start: usize, end: usize) -> u64 {
    let unused = 8 * (WORD - (end - start));
    if let Some(word) = word(name, start) {
        return word << unused >> unused;
    }
    if let Some(word) = end.checked_sub(WORD).and_then(|at| word(name, at)) {
        return word >> unused;
    }
    let bytes = name.get(start..end).unwrap_or_default();
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Numbers by the hashes of names, at most every second slot taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    slots: Box<[Slot]>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    tag: u32,
    number: u32,
}

impl Index {
    /// Numbers these from 0 on.
    pub(super) fn new(hashes: &[NameHash]) -> Index {
        let empty = Slot { tag: 0, number: EMPTY };
        let mut index = Index { slots: vec![empty; (2 * hashes.len()).next_power_of_two()].into() };
        for (number, hash) in (0..EMPTY).zip(hashes) {
            let mut at = index.first(*hash);
            while index.slots[at].number != EMPTY {
                at = index.after(at);
            }
            index.slots[at] = Slot { tag: hash.tag(), number };
        }
        index
    }

    /// What has that hash and is the right one.
    pub(super) fn find<T>(&self, hash: NameHash, fits: impl Fn(usize) -> Option<T>) -> Option<T> {
        let mut at = self.first(hash);
        loop {
            let slot = self.slots.get(at).filter(|slot| slot.number != EMPTY)?;
            if slot.tag == hash.tag()
                && let Some(found) = usize::try_from(slot.number).ok().and_then(&fits)
            {
                return Some(found);
            }
            at = self.after(at);
        }
    }

    /// Where to begin to look; slots are a power of two.
    fn first(&self, hash: NameHash) -> usize {
        let mask = self.slots.len().saturating_sub(1);
        usize::try_from(hash.0 & u64::try_from(mask).unwrap_or_default()).unwrap_or_default()
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & self.slots.len().saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use std::collections::BTreeSet;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn the_hash_of_a_name_goes_on_from_that_of_the_name_above() {
        for text in ["c", "a.b", "a-long-label.com", "seven77.eight888.a.b.example.org"] {
            let name = name(text);
            let mut above = name.parent();
            let first = name.wire().len() - above.as_ref().unwrap().wire().len();
            let hash = NameHash::of(above.take().unwrap().wire());
            // The bytes around a label do not count.
            let hash = hash.below(name.wire(), 0, first);
            assert_eq!(hash, NameHash::of(name.wire()), "{text}");
        }
    }

    #[test]
    fn names_of_all_lengths_have_hashes_of_their_own_and_are_found_by_them() {
        let words = (1..30).flat_map(|n| ["a", "b"].map(|letter| letter.repeat(n)));
        let names: Vec<Name> = words
            .clone()
            .chain(words.map(|word| format!("{word}.example.com")))
            .chain((0..2_000).map(|n| format!("www{n}.example.com")))
            .map(|text| name(&text))
            .collect();
        let hashes: Vec<NameHash> = names.iter().map(|name| NameHash::of(name.wire())).collect();
        assert_eq!(hashes.iter().map(|hash| hash.0).collect::<BTreeSet<_>>().len(), names.len());
        let index = Index::new(&hashes);
        for (number, hash) in hashes.iter().enumerate() {
            let found = index.find(*hash, |found| (names[found] == names[number]).then_some(found));
            assert_eq!(found, Some(number));
        }
        let other = NameHash::of(name("nobody").wire());
        assert_eq!(index.find(other, Some), None);
        assert_eq!(Index::default().find(other, Some), None);
    }
}
