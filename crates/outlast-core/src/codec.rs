//! How agreed things become bytes: the one form on the wire between nodes, in the log and in snapshots.
//!
//! Numbers are LEB128, texts and bytes carry their length, a list its count. There are no field names: whoever changes a
//! form gives it a new version byte and goes on reading the old one. Reading is total: any bytes give a value or a
//! [`Malformed`], never a panic and never an allocation that the input does not pay for.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

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
        u32::try_from(u64::decode(from)?).map_err(|_large| Malformed("a number above 32 bits"))
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
        text.map(str::to_owned).map_err(|_bytes| Malformed("a text that is not UTF-8"))
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
    fn a_length_that_the_input_does_not_pay_for_is_refused() {
        let mut bytes = u64::MAX.to_bytes();
        bytes.push(1);
        assert!(Vec::<u8>::from_bytes(&bytes).is_err());
        let list = decode_list::<u64>(&mut Reader::new(&bytes));
        assert_eq!(format!("{}", list.unwrap_err()), "malformed bytes: a length beyond the end");
    }
}
