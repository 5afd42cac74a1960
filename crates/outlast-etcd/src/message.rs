//! The two questions that we have for etcd, a transaction and a watch; fields by number as in its `rpc.proto` (v3.4).

use outlast_core::codec::Malformed;

use crate::wire::{Fields, Value, bytes, number, number_always};

pub(crate) const TXN: &str = "/etcdserverpb.KV/Txn";
pub(crate) const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// What must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum If {
    Absent {
        key: Vec<u8>,
    },
    Value {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    /// The key was changed last at this revision.
    Revision {
        key: Vec<u8>,
        revision: u64,
    },
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// All keys from `key` on that lie below `end`; without an end this key alone.
    Range {
        key: Vec<u8>,
        end: Vec<u8>,
        limit: u64,
    },
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        key: Vec<u8>,
        end: Vec<u8>,
    },
}

impl Op {
    pub(crate) fn get(key: Vec<u8>) -> Op {
        Op::Range { key, end: Vec::new(), limit: 1 }
    }
}

/// Done whole or not at all. One that changes nothing is read from a majority as well: etcd's reads are linearizable
/// unless asked otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Txn {
    pub(crate) when: Vec<If>,
    pub(crate) then: Vec<Op>,
    pub(crate) or: Vec<Op>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// Of the whole etcd cluster.
    pub(crate) cluster: u64,
    /// Of the store, after what was asked.
    pub(crate) revision: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kv {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) revision: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TxnAnswer {
    pub(crate) header: Header,
    /// All of `when` held.
    pub(crate) held: bool,
    /// One for each operation; of those that are no ranges, empty ones.
    pub(crate) ranges: Vec<Vec<Kv>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WatchAnswer {
    pub(crate) header: Header,
    pub(crate) created: bool,
    /// Why it goes on no longer.
    pub(crate) canceled: Option<String>,
    /// What was written; deletions are left out.
    pub(crate) written: Vec<Kv>,
}

impl Txn {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Vec::new();
        for compare in &self.when {
            bytes(1, &compare.encode(), &mut to);
        }
        for (field, ops) in [(2, &self.then), (3, &self.or)] {
            for op in ops {
                bytes(field, &op.encode(), &mut to);
            }
        }
        to
    }
}

impl If {
    /// `Compare`: the result EQUAL is zero and left out.
    fn encode(&self) -> Vec<u8> {
        let mut to = Vec::new();
        match self {
            If::Absent { key } => {
                number(2, 1, &mut to);
                bytes(3, key, &mut to);
                number_always(5, 0, &mut to);
            }
            If::Revision { key, revision } => {
                number(2, 2, &mut to);
                bytes(3, key, &mut to);
                number_always(6, *revision, &mut to);
            }
            If::Value { key, value } => {
                number(2, 3, &mut to);
                bytes(3, key, &mut to);
                bytes(7, value, &mut to);
            }
        }
        to
    }
}

impl Op {
    fn encode(&self) -> Vec<u8> {
        let (mut inner, mut to) = (Vec::new(), Vec::new());
        let case = match self {
            Op::Range { key, end, limit } => {
                bytes(1, key, &mut inner);
                // Empty, but there, it would mean every key from this one on.
                if !end.is_empty() {
                    bytes(2, end, &mut inner);
                }
                number(3, *limit, &mut inner);
                1
            }
            Op::Put { key, value } => {
                bytes(1, key, &mut inner);
                bytes(2, value, &mut inner);
                2
            }
            Op::Delete { key, end } => {
                bytes(1, key, &mut inner);
                bytes(2, end, &mut inner);
                3
            }
        };
        bytes(case, &inner, &mut to);
        to
    }
}

impl Header {
    fn decode(message: &[u8]) -> Result<Header, Malformed> {
        let mut header = Header::default();
        for field in Fields::of(message) {
            match field? {
                (1, value) => header.cluster = value.number()?,
                (3, value) => header.revision = value.number()?,
                (_, Value::Number(_) | Value::Bytes(_) | Value::Other) => {}
            }
        }
        Ok(header)
    }
}

impl Kv {
    fn decode(message: &[u8]) -> Result<Kv, Malformed> {
        let mut kv = Kv::default();
        for field in Fields::of(message) {
            match field? {
                (1, value) => kv.key = value.bytes()?.to_vec(),
                (3, value) => kv.revision = value.number()?,
                (5, value) => kv.value = value.bytes()?.to_vec(),
                (_, Value::Number(_) | Value::Bytes(_) | Value::Other) => {}
            }
        }
        Ok(kv)
    }
}

impl TxnAnswer {
    pub(crate) fn decode(message: &[u8]) -> Result<TxnAnswer, Malformed> {
        let mut answer = TxnAnswer::default();
        for field in Fields::of(message) {
            match field? {
                (1, value) => answer.header = Header::decode(value.bytes()?)?,
                (2, value) => answer.held = value.number()? != 0,
                (3, value) => answer.ranges.push(range_of(value.bytes()?)?),
                (_, Value::Number(_) | Value::Bytes(_) | Value::Other) => {}
            }
        }
        Ok(answer)
    }
}

/// The keys of a `ResponseOp`, if it answers a range.
fn range_of(response: &[u8]) -> Result<Vec<Kv>, Malformed> {
    let mut kvs = Vec::new();
    for field in Fields::of(response) {
        let (1, range) = field? else { continue };
        for field in Fields::of(range.bytes()?) {
            if let (2, kv) = field? {
                kvs.push(Kv::decode(kv.bytes()?)?);
            }
        }
    }
    Ok(kvs)
}

/// Watches what changes from now on.
pub(crate) fn watch(key: &[u8], end: &[u8]) -> Vec<u8> {
    let (mut create, mut to) = (Vec::new(), Vec::new());
    bytes(1, key, &mut create);
    bytes(2, end, &mut create);
    // In parts, where many changes come at once.
    number(8, 1, &mut create);
    bytes(1, &create, &mut to);
    to
}

impl WatchAnswer {
    pub(crate) fn decode(message: &[u8]) -> Result<WatchAnswer, Malformed> {
        let mut answer = WatchAnswer::default();
        let (mut canceled, mut compacted, mut reason) = (false, 0, String::new());
        for field in Fields::of(message) {
            match field? {
                (1, value) => answer.header = Header::decode(value.bytes()?)?,
                (3, value) => answer.created = value.number()? != 0,
                (4, value) => canceled = value.number()? != 0,
                (5, value) => compacted = value.number()?,
                (6, value) => reason = String::from_utf8_lossy(value.bytes()?).into_owned(),
                (11, value) => answer.written.extend(written(value.bytes()?)?),
                (_, Value::Number(_) | Value::Bytes(_) | Value::Other) => {}
            }
        }
        if compacted != 0 {
            reason = format!("etcd has compacted what lies before revision {compacted}");
        }
        answer.canceled = (canceled || compacted != 0).then_some(reason);
        Ok(answer)
    }
}

/// What an event wrote; `None`: it deleted.
fn written(event: &[u8]) -> Result<Option<Kv>, Malformed> {
    let (mut deletes, mut kv) = (false, None);
    for field in Fields::of(event) {
        match field? {
            (1, value) => deletes = value.number()? == 1,
            (2, value) => kv = Some(Kv::decode(value.bytes()?)?),
            (_, Value::Number(_) | Value::Bytes(_) | Value::Other) => {}
        }
    }
    Ok(kv.filter(|_| !deletes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(revision: u64) -> Vec<u8> {
        let mut to = Vec::new();
        number(1, 77, &mut to);
        number(3, revision, &mut to);
        to
    }

    fn kv(key: &[u8], value: &[u8], revision: u64) -> Vec<u8> {
        let mut to = Vec::new();
        bytes(1, key, &mut to);
        number(3, revision, &mut to);
        bytes(5, value, &mut to);
        to
    }

    fn answer() -> Vec<u8> {
        let (mut range, mut response, mut to) = (Vec::new(), Vec::new(), Vec::new());
        bytes(2, &kv(b"k", b"v", 5), &mut range);
        bytes(1, &range, &mut response);
        bytes(1, &header(9), &mut to);
        number(2, 1, &mut to);
        bytes(3, &response, &mut to);
        let (mut put, empty) = (Vec::new(), Vec::new());
        bytes(2, &empty, &mut put);
        bytes(3, &put, &mut to);
        to
    }

    #[test]
    fn an_answer_to_a_transaction_is_read_and_no_cut_one_breaks_anything() {
        let bytes = answer();
        let kv = Kv { key: b"k".to_vec(), value: b"v".to_vec(), revision: 5 };
        let header = Header { cluster: 77, revision: 9 };
        let wanted = TxnAnswer { header, held: true, ranges: vec![vec![kv], vec![]] };
        assert_eq!(TxnAnswer::decode(&bytes), Ok(wanted));
        for cut in 0..bytes.len() {
            // Fields that are whole may be all there is: what matters is that nothing panics.
            TxnAnswer::decode(&bytes[..cut]).ok();
            WatchAnswer::decode(&bytes[..cut]).ok();
        }
    }

    #[test]
    fn a_transaction_has_the_bytes_that_etcd_reads() {
        let when = vec![If::Absent { key: b"k".to_vec() }];
        let then = vec![Op::Put { key: b"k".to_vec(), value: b"v".to_vec() }];
        let or = vec![Op::get(b"k".to_vec())];
        let wanted: &[u8] = &[
            0x0a, 7, 0x10, 1, 0x1a, 1, b'k', 0x28,
            0, // compare: CREATE, key, create_revision 0
            0x12, 8, 0x12, 6, 0x0a, 1, b'k', 0x12, 1, b'v', // success: put
            0x1a, 7, 0x0a, 5, 0x0a, 1, b'k', 0x18,
            1, // failure: range without an end, limit 1
        ];
        assert_eq!(Txn { when, then, or }.encode(), wanted);
    }

    #[test]
    fn a_watch_tells_what_was_written_and_why_it_ends() {
        let (mut put, mut delete, mut to) = (Vec::new(), Vec::new(), Vec::new());
        bytes(2, &kv(b"a", b"1", 3), &mut put);
        number(1, 1, &mut delete);
        bytes(2, &kv(b"b", b"", 4), &mut delete);
        bytes(1, &header(4), &mut to);
        bytes(11, &put, &mut to);
        bytes(11, &delete, &mut to);
        let answer = WatchAnswer::decode(&to).unwrap();
        assert_eq!(answer.written.len(), 1);
        assert_eq!((answer.canceled, answer.created), (None, false));
        let mut to = Vec::new();
        number(4, 1, &mut to);
        number(5, 30, &mut to);
        let reason = WatchAnswer::decode(&to).unwrap().canceled.unwrap();
        assert!(reason.contains("compacted") && reason.contains("30"), "{reason}");
    }
}
