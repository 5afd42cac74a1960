//! How agreed things become bytes: the one form on the wire between nodes, in the log and in snapshots.
//!
//! Numbers are LEB128, texts and bytes carry their length, a list its count. There are no field names: whoever changes a
//! form gives it a new version byte and goes on reading the old one. Reading is total: any bytes give a value or a
//! [`Malformed`], never a panic and never an allocation that the input does not pay for.

use alloc::borrow::ToOwned as _;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::time::Timestamp;

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed bytes: {}", self.0)
    }
}

impl core::error::Error for Malformed {}

/// What can be written as bytes and read back.
pub trait Code: Sized {
    fn encode(&self, to: &mut Vec<u8>);
    fn decode(from: &mut Reader<'_>) -> Result<Self, Malformed>;

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes
    }

    /// Reads a value that fills `bytes` exactly.
    fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let value = Self::decode(&mut reader)?;
        reader.end()?;
        Ok(value)
    }
}

/// What is still to be read.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub fn byte(&mut self) -> Result<u8, Malformed> {
        let (&first, rest) = self.rest.split_first().ok_or(Malformed("it ends too early"))?;
        self.rest = rest;
        Ok(first)
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or(Malformed("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// A length or a count; each thing that it counts is at least one byte long, so more than what is left is a lie.
    pub fn count(&mut self) -> Result<usize, Malformed> {
        let count = usize::try_from(u64::decode(self)?).unwrap_or(usize::MAX);
        if count > self.rest.len() { Err(Malformed("a length beyond the end")) } else { Ok(count) }
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    pub fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed("bytes after the end")) }
    }
}

impl Code for u64 {
    fn encode(&self, to: &mut Vec<u8>) {
        let mut rest = *self;
        while rest >= 0x80 {
            #[expect(clippy::cast_possible_truncation, reason = "the low seven bits are wanted")]
            to.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        #[expect(clippy::cast_possible_truncation, reason = "below 128")]
        to.push(rest as u8);
    }

    fn decode(from: &mut Reader<'_>) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = from.byte()?;
            let bits = u64::from(byte & 0x7f);
            // One number, one form: what overflows or ends in a needless zero was not written by us.
            if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
                return Err(Malformed("a number in a form that is not ours"));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed("a number that does not end"))
    }
}

impl Code for u32 {
    fn encode(&self, to: &mut Vec<u8>) {
        u64::from(*self).encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<u32, Malformed> {
        u32::try_from(u64::decode(from)?).ok().ok_or(Malformed("a number above 32 bits"))
    }
}

impl Code for i32 {
    /// The sign is the lowest bit, so that small numbers stay short.
    fn encode(&self, to: &mut Vec<u8>) {
        ((self << 1) ^ (self >> 31)).cast_unsigned().encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<i32, Malformed> {
        let bits = u32::decode(from)?;
        Ok((bits >> 1).cast_signed() ^ -(bits & 1).cast_signed())
    }
}

impl Code for bool {
    fn encode(&self, to: &mut Vec<u8>) {
        to.push(u8::from(*self));
    }

    fn decode(from: &mut Reader<'_>) -> Result<bool, Malformed> {
        match from.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a yes or no that is neither")),
        }
    }
}

/// Nanoseconds.
impl Code for Duration {
    fn encode(&self, to: &mut Vec<u8>) {
        u64::try_from(self.as_nanos()).unwrap_or(u64::MAX).encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Duration, Malformed> {
        u64::decode(from).map(Duration::from_nanos)
    }
}

impl Code for Vec<u8> {
    fn encode(&self, to: &mut Vec<u8>) {
        encode_bytes(self, to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Vec<u8>, Malformed> {
        let count = from.count()?;
        from.take(count).map(<[u8]>::to_vec)
    }
}

impl Code for String {
    fn encode(&self, to: &mut Vec<u8>) {
        encode_bytes(self.as_bytes(), to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<String, Malformed> {
        let count = from.count()?;
        let text = core::str::from_utf8(from.take(count)?);
        text.map(str::to_owned).ok().ok_or(Malformed("a text that is not UTF-8"))
    }
}

/// Written as what is shared.
impl<T: Code> Code for Arc<T> {
    fn encode(&self, to: &mut Vec<u8>) {
        self.as_ref().encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Arc<T>, Malformed> {
        T::decode(from).map(Arc::new)
    }
}

impl Code for Arc<[u8]> {
    fn encode(&self, to: &mut Vec<u8>) {
        encode_bytes(self, to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Arc<[u8]>, Malformed> {
        let count = from.count()?;
        Ok(Arc::from(from.take(count)?))
    }
}

impl<T: Code> Code for Option<T> {
    fn encode(&self, to: &mut Vec<u8>) {
        self.is_some().encode(to);
        if let Some(value) = self {
            value.encode(to);
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Option<T>, Malformed> {
        if bool::decode(from)? { T::decode(from).map(Some) } else { Ok(None) }
    }
}

impl<A: Code, B: Code> Code for (A, B) {
    fn encode(&self, to: &mut Vec<u8>) {
        self.0.encode(to);
        self.1.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<(A, B), Malformed> {
        Ok((A::decode(from)?, B::decode(from)?))
    }
}

/// Milliseconds; small ones are short on both sides of 1970.
impl Code for Timestamp {
    fn encode(&self, to: &mut Vec<u8>) {
        ((self.0 << 1) ^ (self.0 >> 63)).cast_unsigned().encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Timestamp, Malformed> {
        let folded = u64::decode(from)?;
        Ok(Timestamp((folded >> 1).cast_signed() ^ -(folded & 1).cast_signed()))
    }
}

/// Keys ascend, so that one map has one form.
impl<K: Code + Ord, V: Code> Code for BTreeMap<K, V> {
    fn encode(&self, to: &mut Vec<u8>) {
        (self.len() as u64).encode(to);
        for (key, value) in self {
            key.encode(to);
            value.encode(to);
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<BTreeMap<K, V>, Malformed> {
        let mut map = BTreeMap::new();
        for _ in 0..from.count()? {
            let (key, value) = (K::decode(from)?, V::decode(from)?);
            if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(Malformed("keys that do not ascend"));
            }
            map.insert(key, value);
        }
        Ok(map)
    }
}

/// Members ascend, so that one set has one form.
impl<T: Code + Ord> Code for BTreeSet<T> {
    fn encode(&self, to: &mut Vec<u8>) {
        encode_list(self.iter(), to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<BTreeSet<T>, Malformed> {
        let mut set = BTreeSet::new();
        for _ in 0..from.count()? {
            let member = T::decode(from)?;
            if set.last().is_some_and(|last| *last >= member) {
                return Err(Malformed("members that do not ascend"));
            }
            set.insert(member);
        }
        Ok(set)
    }
}

impl<T: Code> Code for VecDeque<T> {
    fn encode(&self, to: &mut Vec<u8>) {
        encode_list(self.iter(), to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<VecDeque<T>, Malformed> {
        decode_list(from).map(VecDeque::from)
    }
}

impl<T: Code> Code for Box<[T]> {
    fn encode(&self, to: &mut Vec<u8>) {
        encode_list(self.iter(), to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Box<[T]>, Malformed> {
        decode_list(from).map(Vec::into_boxed_slice)
    }
}

pub fn encode_bytes(bytes: &[u8], to: &mut Vec<u8>) {
    (bytes.len() as u64).encode(to);
    to.extend_from_slice(bytes);
}

/// Writes a count and then each thing.
pub fn encode_list<'a, T: Code + 'a>(
    items: impl ExactSizeIterator<Item = &'a T>,
    to: &mut Vec<u8>,
) {
    (items.len() as u64).encode(to);
    items.for_each(|item| item.encode(to));
}

pub fn decode_list<T: Code>(from: &mut Reader<'_>) -> Result<Vec<T>, Malformed> {
    let count = from.count()?;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(T::decode(from)?);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    fn check_round_trip<T: Code + PartialEq + fmt::Debug>(value: &T) {
        let bytes = value.to_bytes();
        assert_eq!(T::from_bytes(&bytes).as_ref(), Ok(value));
        for cut in 0..bytes.len() {
            assert!(T::from_bytes(&bytes[..cut]).is_err(), "{value:?} cut at {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(T::from_bytes(&longer).is_err(), "{value:?} and one more");
    }

    #[test]
    fn what_was_written_is_read_and_nothing_shorter_or_longer() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            check_round_trip(&number);
            check_round_trip(&Some(number));
            check_round_trip(&Duration::from_nanos(number));
        }
        for milliseconds in [0, 1, -1, i64::MIN, i64::MAX] {
            check_round_trip(&Timestamp(milliseconds));
        }
        check_round_trip(&BTreeMap::from([(1_u64, "one".to_owned()), (300, "more".to_owned())]));
        check_round_trip(&BTreeSet::from([1_u64, 300]));
        check_round_trip(&VecDeque::from([300_u64, 1, 1]));
        check_round_trip(&Vec::from([300_u64, 1, 1]).into_boxed_slice());
        check_round_trip(&u32::MAX);
        check_round_trip(&true);
        check_round_trip(&"grüße".to_owned());
        check_round_trip(&Vec::from(*b"\x00\xff"));
    }

    #[test]
    fn a_number_has_one_form() {
        let refused: [&[u8]; 4] = [
            &[0x80, 0x00],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
            &[0x80; 11],
            &[],
        ];
        for bytes in refused {
            assert!(u64::from_bytes(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_map_and_a_set_have_one_form() {
        for bytes in [[2, 1, 1], [2, 2, 1]] {
            assert!(BTreeSet::<u64>::from_bytes(&bytes).is_err(), "{bytes:?}");
        }
        for bytes in [[2, 1, 0, 1, 0], [2, 2, 0, 1, 0]] {
            assert!(BTreeMap::<u64, u64>::from_bytes(&bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_length_that_the_input_does_not_pay_for_is_refused() {
        let mut bytes = u64::MAX.to_bytes();
        bytes.push(1);
        assert!(Vec::<u8>::from_bytes(&bytes).is_err());
        let list = decode_list::<u64>(&mut Reader::new(&bytes));
        assert_eq!(format!("{}", list.unwrap_err()), "malformed bytes: a length beyond the end");
    }
}
