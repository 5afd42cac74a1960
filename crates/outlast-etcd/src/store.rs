//! What is done in etcd, each as one transaction or a few: look, append, sit, save, found.

use std::time::Duration;

use outlast_consensus::{Index, boottime};
use outlast_core::agreed::Hash;
use outlast_core::codec::Malformed;
use outlast_core::time::Instant;

use crate::chair::Wish;
use crate::client::{Client, LONG, SHORT, Trouble};
use crate::form::{Base, Batch, Keys, Place, Reign};
use crate::mark::Mark;
use crate::message::{If, Kv, Op, Txn};
use crate::queue::Append;

/// Batches in one answer: each has 1 MiB or so at most, and an answer 64 (`client.rs`).
const PAGE: u64 = 32;

/// How often in a row the parts of a snapshot are asked for, and the pause between.
const PARTS_TRIES: u32 = 8;
const PARTS_AGAIN: Duration = Duration::from_millis(200);

/// Bytes of a part of a snapshot: etcd takes 1.5 MiB in one transaction.
pub(crate) const PART_BYTES: usize = 512 << 10;

/// Parts in one answer.
const PARTS_PAGE: u64 = 8;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Trouble(Trouble),
    /// What stands in etcd is not what this node knows or can read: it must not go on.
    Broken(String),
}

impl From<Trouble> for Fault {
    fn from(trouble: Trouble) -> Fault {
        Fault::Trouble(trouble)
    }
}

/// Everything at one revision, as a majority has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    /// When it was asked for.
    pub(crate) asked: Instant,
    pub(crate) base: Base,
    pub(crate) head: Place,
    pub(crate) chair: (Reign, u64),
    /// Of the log, from where it was asked for.
    pub(crate) batches: Vec<(Index, Vec<u8>)>,
    /// The snapshot, where the log does not reach back far enough.
    pub(crate) restored: Option<Vec<u8>>,
    /// Whether it goes on from the mark; `None`: nobody asked, or it cannot be told.
    pub(crate) goes_on: Option<bool>,
}

impl Picture {
    fn goes_on_from(&self, mark: &Mark) -> Result<Option<bool>, Fault> {
        let next = self.batches.first().map(|(first, bytes)| {
            let batch = Batch::of_value(bytes)
                .map_err(|error| Fault::Broken(format!("the log in etcd at {first}: {error}")))?;
            Ok::<_, Fault>((*first, batch.before))
        });
        Ok(mark.leads_to(self.base.place, self.head, next.transpose()?))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) client: std::sync::Arc<Client>,
    pub(crate) keys: Keys,
}

impl Store {
    /// Looks what there is behind a place; if there is none yet, what the snapshot has, and whether that goes on from the
    /// mark. `None`: there is no cluster of this name yet.
    pub(crate) async fn look(
        &self,
        from: Option<Place>,
        mark: Option<&Mark>,
    ) -> Result<Option<Picture>, Fault> {
        let asked = boottime();
        let then = match from {
            Some(from) => self.looks(from.index, PAGE),
            None => self.looks(mark.map_or(0, |mark| mark.index), 1),
        };
        let answer = self.client.txn(&Txn { then, ..Txn::default() }, SHORT).await?;
        let Some(mut picture) = self.picture(asked, answer.ranges)? else { return Ok(None) };
        let reaches = from.is_some_and(|from| {
            let first = picture.batches.first().map(|&(first, _)| first);
            picture.head.index <= from.index || first == Some(from.index + 1)
        });
        if !reaches {
            if from.is_some_and(|from| picture.base.place.index <= from.index) {
                return Err(Fault::Broken(format!(
                    "the log in etcd lacks entries behind {}",
                    from.map_or(0, |from| from.index)
                )));
            }
            if let Some(mark) = mark.filter(|_| from.is_none()) {
                picture.goes_on = picture.goes_on_from(mark)?;
                if picture.goes_on == Some(false) {
                    return Ok(Some(picture));
                }
            }
            picture.restored = Some(self.restore(&picture.base).await?);
            let base = picture.base.place.index;
            picture.batches.retain(|&(first, _)| base < first);
        }
        Ok(Some(picture))
    }

    fn looks(&self, from: Index, limit: u64) -> Vec<Op> {
        let keys = &self.keys;
        let (key, end) = (keys.log(from + 1), keys.log_end());
        let log = Op::Range { key, end, limit };
        vec![Op::get(keys.base()), Op::get(keys.head()), Op::get(keys.chair()), log]
    }

    fn picture(&self, asked: Instant, ranges: Vec<Vec<Kv>>) -> Result<Option<Picture>, Fault> {
        let Ok([base, head, chair, log]) = <[Vec<Kv>; 4]>::try_from(ranges) else {
            let why = "an answer to another question".to_owned();
            return Err(Fault::Trouble(Trouble::Unknown(why)));
        };
        let (base, head, chair) = match (base.first(), head.first(), chair.first()) {
            (Some(base), Some(head), Some(chair)) => (base, head, chair),
            (None, None, None) if log.is_empty() => return Ok(None),
            (Some(_) | None, Some(_) | None, Some(_) | None) => {
                return Err(Fault::Broken("a part of the keys in etcd is gone".to_owned()));
            }
        };
        let reign = read(chair, Reign::of_value)?;
        let mut batches = Vec::new();
        for kv in log {
            let first = self.keys.first_of(&kv.key);
            let first = first.ok_or_else(|| broken(&kv.key, Malformed("a key that is none")))?;
            batches.push((first, kv.value));
        }
        Ok(Some(Picture {
            asked,
            base: read(base, Base::of_value)?,
            head: read(head, Place::of_value)?,
            chair: (reign, chair.revision),
            batches,
            restored: None,
            goes_on: None,
        }))
    }

    /// Reads a snapshot, part by part.
    async fn restore(&self, base: &Base) -> Result<Vec<u8>, Fault> {
        let (_, end) = self.keys.parts(base);
        let (mut data, mut parts, mut tries) = (Vec::new(), 0, 0);
        while parts < base.parts {
            let key = self.keys.part(base, parts);
            let range = Op::Range { key, end: end.clone(), limit: PARTS_PAGE };
            let txn = Txn { then: vec![range], ..Txn::default() };
            let answer = match self.client.txn(&txn, LONG).await {
                Ok(answer) => answer,
                // What has been read already stays.
                Err(_trouble) if tries < PARTS_TRIES => {
                    tries += 1;
                    tokio::time::sleep(PARTS_AGAIN).await;
                    continue;
                }
                Err(trouble) => return Err(trouble.into()),
            };
            tries = 0;
            let kvs = answer.ranges.into_iter().next().unwrap_or_default();
            if kvs.is_empty() {
                // A newer one has taken its place meanwhile.
                let why = "a snapshot in etcd went while it was read".to_owned();
                return Err(Fault::Trouble(Trouble::Nothing(why)));
            }
            for kv in kvs {
                data.extend_from_slice(&kv.value);
                parts += 1;
            }
        }
        if Hash::of(&data) != base.hash {
            return Err(Fault::Broken(format!(
                "the snapshot {} in etcd is damaged",
                base.place.index
            )));
        }
        Ok(data)
    }

    /// Appends a batch, if the log ends where it was put together and its term is not over. Else what there is instead.
    pub(crate) async fn append(
        &self,
        append: &Append,
    ) -> Result<(Instant, Option<Picture>), Fault> {
        let asked = boottime();
        let (keys, Append { at, after, term, bytes, .. }) = (&self.keys, append);
        let mut when = vec![If::Value { key: keys.head(), value: at.value() }];
        when.extend(term.map(|term| {
            let value = Reign::term_value(term);
            If::Value { key: keys.term(), value }
        }));
        let then = vec![
            Op::Put { key: keys.log(at.index + 1), value: bytes.to_vec() },
            Op::Put { key: keys.head(), value: after.value() },
        ];
        // The batch that stands in its place is enough; the rest is found by looking.
        let or = self.looks(at.index, 1);
        let answer = self.client.txn(&Txn { when, then, or }, LONG).await?;
        if answer.held {
            return Ok((asked, None));
        }
        match self.picture(asked, answer.ranges)? {
            Some(picture) => Ok((asked, Some(picture))),
            None => Err(Fault::Broken("what was agreed on is gone from etcd".to_owned())),
        }
    }

    /// Changes the chair, if it still is as it was when that was wished. The revision; else how the chair is.
    pub(crate) async fn sit(&self, wish: Wish) -> Result<(u64, Option<(Reign, u64)>), Fault> {
        let key = self.keys.chair();
        let when = vec![If::Revision { key: key.clone(), revision: wish.revision }];
        let term = Reign::term_value(wish.reign.term);
        let then = vec![
            Op::Put { key: key.clone(), value: wish.reign.value() },
            Op::Put { key: self.keys.term(), value: term },
        ];
        let or = vec![Op::get(key)];
        let answer = self.client.txn(&Txn { when, then, or }, SHORT).await?;
        if answer.held {
            return Ok((answer.header.revision, None));
        }
        match answer.ranges.first().and_then(|kvs| kvs.first()) {
            Some(kv) => {
                Ok((answer.header.revision, Some((read(kv, Reign::of_value)?, kv.revision))))
            }
            None => Err(Fault::Broken("what was agreed on is gone from etcd".to_owned())),
        }
    }

    /// Makes the first keys, unless somebody else has.
    pub(crate) async fn found(&self, base: &Base, data: &[u8]) -> Result<(), Fault> {
        assert!(data.len() <= PART_BYTES, "the first state is small");
        let keys = &self.keys;
        let put = |key, value| Op::Put { key, value };
        let then = vec![
            put(keys.part(base, 0), data.to_vec()),
            put(keys.base(), base.value()),
            put(keys.head(), base.place.value()),
            put(keys.chair(), Reign::default().value()),
            put(keys.term(), Reign::term_value(0)),
        ];
        let when = vec![If::Absent { key: keys.head() }];
        self.client.txn(&Txn { when, then, or: Vec::new() }, LONG).await?;
        Ok(())
    }

    /// Saves a snapshot, then deletes what is older than the one `before` it, snapshots and log: whoever reads that one
    /// has time until the next is saved.
    pub(crate) async fn save(&self, before: Base, base: Base, data: &[u8]) -> Result<bool, Fault> {
        let keys = &self.keys;
        let ((before_ours, behind_before), (ours, behind)) =
            (keys.parts(&before), keys.parts(&base));
        let saved = match self.save_parts(&base, data).await {
            Ok(()) => {
                // Whoever has saved another one meanwhile may have deleted these parts.
                let when = vec![If::Value { key: keys.base(), value: before.value() }];
                let then = vec![Op::Put { key: keys.base(), value: base.value() }];
                // Without an answer they may count, and stay.
                Ok(self.client.txn(&Txn { when, then, or: Vec::new() }, LONG).await?.held)
            }
            Err(trouble) => Err(trouble),
        };
        let then = if saved == Ok(true) {
            let (first, end) = keys.snapshots_up_to(base.place.index);
            vec![
                Op::Delete { key: first, end: before_ours },
                Op::Delete { key: behind_before, end: ours },
                Op::Delete { key: behind, end },
                Op::Delete { key: keys.log(0), end: keys.log(before.place.index + 1) },
            ]
        } else {
            // Nobody will ever read them.
            vec![Op::Delete { key: ours, end: behind }]
        };
        let deleted = self.client.txn(&Txn { then, ..Txn::default() }, LONG).await;
        let saved = saved?;
        deleted?;
        Ok(saved)
    }

    async fn save_parts(&self, base: &Base, data: &[u8]) -> Result<(), Trouble> {
        for (part, bytes) in (0..).zip(data.chunks(PART_BYTES)) {
            let put = Op::Put { key: self.keys.part(base, part), value: bytes.to_vec() };
            self.client.txn(&Txn { then: vec![put], ..Txn::default() }, LONG).await?;
        }
        Ok(())
    }
}

pub(crate) fn read<T>(kv: &Kv, of: impl FnOnce(&[u8]) -> Result<T, Malformed>) -> Result<T, Fault> {
    of(&kv.value).map_err(|error| broken(&kv.key, error))
}

fn broken(key: &[u8], error: Malformed) -> Fault {
    Fault::Broken(format!("{} in etcd: {error}", String::from_utf8_lossy(key)))
}
