//! What stands in etcd: keys, and values whose first byte is their version.
//!
//! ```text
//! /outlast/CLUSTER/base              which snapshot is whole
//! /outlast/CLUSTER/chair             who leads
//! /outlast/CLUSTER/head              where the log ends
//! /outlast/CLUSTER/log/FIRST         entries, from this index on, agreed on together
//! /outlast/CLUSTER/snapshot/INDEX-NONCE/PART
//! /outlast/CLUSTER/term              counts leaders, as the chair does
//! ```
//!
//! Numbers in keys have twenty digits (a snapshot's nonce sixteen, its part six), so that keys ascend as they do.

use outlast_consensus::Index;
use outlast_core::agreed::Hash;
use outlast_core::codec::{Code, Malformed, Reader, decode_list, encode_list};

/// The first byte of every value.
const VERSION: u8 = 1;

/// The keys of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn of(cluster: &str) -> Keys {
        Keys { prefix: format!("/outlast/{cluster}/") }
    }

    fn key(&self, rest: &str) -> Vec<u8> {
        format!("{}{rest}", self.prefix).into_bytes()
    }

    pub(crate) fn base(&self) -> Vec<u8> {
        self.key("base")
    }

    pub(crate) fn chair(&self) -> Vec<u8> {
        self.key("chair")
    }

    pub(crate) fn term(&self) -> Vec<u8> {
        self.key("term")
    }

    pub(crate) fn head(&self) -> Vec<u8> {
        self.key("head")
    }

    pub(crate) fn log(&self, first: Index) -> Vec<u8> {
        self.key(&format!("log/{first:020}"))
    }

    /// Behind every key of the log; `0` follows `/`.
    pub(crate) fn log_end(&self) -> Vec<u8> {
        self.key("log0")
    }

    /// The index in a key of the log.
    pub(crate) fn first_of(&self, key: &[u8]) -> Option<Index> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?.strip_prefix(b"log/")?;
        std::str::from_utf8(rest).ok()?.parse().ok()
    }

    pub(crate) fn part(&self, base: &Base, part: u32) -> Vec<u8> {
        self.key(&format!("snapshot/{:020}-{:016x}/{part:06}", base.place.index, base.nonce))
    }

    /// Before every part of this snapshot, and behind them.
    pub(crate) fn parts(&self, base: &Base) -> (Vec<u8>, Vec<u8>) {
        let of =
            |end| self.key(&format!("snapshot/{:020}-{:016x}{end}", base.place.index, base.nonce));
        (of('/'), of('0'))
    }

    /// Before every snapshot, and behind those of this index and below.
    pub(crate) fn snapshots_up_to(&self, index: Index) -> (Vec<u8>, Vec<u8>) {
        (self.key("snapshot/"), self.key(&format!("snapshot/{:020}", index + 1)))
    }
}

/// A place in the log, and the hash of all that led there: two logs that went different ways have different ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: Index,
    pub(crate) chain: Hash,
}

impl Place {
    /// The place behind these entries.
    pub(crate) fn after(self, batch: &Batch, bytes: &[u8]) -> Place {
        let index = self.index + batch.entries.len() as u64;
        // The bytes begin with the hash before them.
        Place { index, chain: Hash::of(bytes) }
    }
}

/// Entries that were agreed on together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// The hash of the place before it.
    pub(crate) before: Hash,
    /// Random: no two are the same.
    pub(crate) nonce: u64,
    pub(crate) entries: Vec<Vec<u8>>,
}

/// A snapshot that is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) place: Place,
    /// Random: who else writes one of the same index writes other keys.
    pub(crate) nonce: u64,
    pub(crate) parts: u32,
    pub(crate) hash: Hash,
}

/// Who leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reign {
    /// Counts leaders.
    pub(crate) term: u64,
    /// Zero: nobody.
    pub(crate) holder: u64,
    /// Counts renewals.
    pub(crate) beat: u64,
    /// Of an empty chair: who is to have it; zero: whoever is first.
    pub(crate) next: u64,
}

impl Reign {
    /// The value of the key that has the term alone.
    pub(crate) fn term_value(term: u64) -> Vec<u8> {
        let mut to = vec![VERSION];
        term.encode(&mut to);
        to
    }
}

fn whole<T: Code>(bytes: &[u8]) -> Result<T, Malformed> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => T::from_bytes(rest),
        Some(_) | None => Err(Malformed("it is of another version than this one knows")),
    }
}

macro_rules! valued {
    ($($kind:ident { $($field:ident),* })*) => {
        $(impl Code for $kind {
            fn encode(&self, to: &mut Vec<u8>) {
                $(self.$field.encode(to);)*
            }

            fn decode(from: &mut Reader<'_>) -> Result<$kind, Malformed> {
                Ok($kind { $($field: Code::decode(from)?),* })
            }
        })*
    };
}

valued! {
    Place { index, chain }
    Base { place, nonce, parts, hash }
    Reign { term, holder, beat, next }
}

impl Code for Batch {
    fn encode(&self, to: &mut Vec<u8>) {
        self.before.encode(to);
        self.nonce.encode(to);
        encode_list(self.entries.iter(), to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Batch, Malformed> {
        let (before, nonce) = (Code::decode(from)?, Code::decode(from)?);
        Ok(Batch { before, nonce, entries: decode_list(from)? })
    }
}

/// Values that stand alone under a key.
macro_rules! stands {
    ($($kind:ident)*) => {
        $(impl $kind {
            pub(crate) fn value(&self) -> Vec<u8> {
                let mut to = vec![VERSION];
                self.encode(&mut to);
                to
            }

            pub(crate) fn of_value(bytes: &[u8]) -> Result<$kind, Malformed> {
                whole(bytes)
            }
        })*
    };
}

stands! { Place Batch Base Reign }

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: PartialEq + std::fmt::Debug>(
        value: &T,
        bytes: &[u8],
        read: impl Fn(&[u8]) -> Result<T, Malformed>,
    ) {
        assert_eq!(read(bytes).as_ref(), Ok(value));
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "{value:?} cut at {cut}");
        }
        let longer = [bytes, &[0]].concat();
        assert!(read(&longer).is_err(), "{value:?} and one more");
        let mut other = bytes.to_vec();
        other[0] = 2;
        assert!(read(&other).is_err(), "{value:?} of another version");
    }

    #[test]
    fn what_was_written_is_read_and_nothing_shorter_longer_or_newer() {
        let place = Place { index: 300, chain: Hash::of(b"x") };
        check(&place, &place.value(), Place::of_value);
        let entries = vec![b"one".to_vec(), Vec::new()];
        let batch = Batch { before: place.chain, nonce: 7, entries };
        check(&batch, &batch.value(), Batch::of_value);
        let base = Base { place, nonce: u64::MAX, parts: 3, hash: Hash::of(b"y") };
        check(&base, &base.value(), Base::of_value);
        let reign = Reign { term: 1, holder: 2, beat: 300, next: 0 };
        check(&reign, &reign.value(), Reign::of_value);
    }

    #[test]
    fn keys_ascend_as_their_numbers_do() {
        let keys = Keys::of("shop");
        assert!(keys.log(9) < keys.log(10) && keys.log(u64::MAX) < keys.log_end());
        assert_eq!(keys.first_of(&keys.log(12)), Some(12));
        assert_eq!(keys.first_of(&keys.head()), None);
        assert_eq!(Keys::of("other").first_of(&keys.log(12)), None);
        // One watch sees all but the snapshots.
        let seen = keys.base()..keys.log_end();
        assert!(
            [keys.base(), keys.chair(), keys.head(), keys.log(1)].iter().all(|k| seen.contains(k))
        );
        let base = Base { place: Place { index: 20, ..Place::default() }, ..Base::default() };
        assert!(!seen.contains(&keys.part(&base, 0)));
        let (from, to) = keys.parts(&base);
        assert!((from..to).contains(&keys.part(&base, 999_999)));
        let (from, to) = keys.snapshots_up_to(20);
        assert!((from.clone()..to).contains(&keys.part(&base, 3)));
        let (_, to) = keys.snapshots_up_to(19);
        assert!(!(from..to).contains(&keys.part(&base, 0)));
    }

    #[test]
    fn logs_that_went_different_ways_have_different_places() {
        let start = Place { index: 5, chain: Hash::of(b"start") };
        let step = |nonce| {
            let batch = Batch { before: start.chain, nonce, entries: vec![b"same".to_vec()] };
            start.after(&batch, &batch.value())
        };
        assert_eq!(step(1).index, 6);
        assert_ne!(step(1).chain, step(2).chain);
        assert_eq!(step(1), step(1));
    }
}
