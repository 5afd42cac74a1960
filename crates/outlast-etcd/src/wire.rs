//! Protobuf, as much of it as etcd's messages need: numbers and bytes by field number.

use outlast_core::codec::Malformed;

/// Appends a number; zero is what is meant where nothing stands.
pub(crate) fn number(field: u32, value: u64, to: &mut Vec<u8>) {
    if value != 0 {
        number_always(field, value, to);
    }
}

/// The same in a `oneof`, where what stands there says which case it is.
pub(crate) fn number_always(field: u32, value: u64, to: &mut Vec<u8>) {
    varint(u64::from(field) << 3, to);
    varint(value, to);
}

/// Appends bytes, a text or a message.
pub(crate) fn bytes(field: u32, value: &[u8], to: &mut Vec<u8>) {
    varint(u64::from(field) << 3 | 2, to);
    varint(value.len() as u64, to);
    to.extend_from_slice(value);
}

fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    to.push(u8::try_from(value).expect("seven bits"));
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a kind that no field has that we read.
    Other,
}

impl<'a> Value<'a> {
    pub(crate) fn number(self) -> Result<u64, Malformed> {
        match self {
            Value::Number(value) => Ok(value),
            Value::Bytes(_) | Value::Other => Err(Malformed("bytes in place of a number")),
        }
    }

    pub(crate) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Value::Bytes(value) => Ok(value),
            Value::Number(_) | Value::Other => Err(Malformed("a number in place of bytes")),
        }
    }
}

/// The fields of a message, in their order.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Fields<'a> {
        Fields(message)
    }

    fn read(&mut self) -> Result<(u32, Value<'a>), Malformed> {
        let key = self.varint()?;
        let field = u32::try_from(key >> 3).ok().ok_or(Malformed("a field number that is none"))?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return Err(Malformed("a field of a kind that is none")),
        };
        Ok((field, value))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or(Malformed("a field beyond the end"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { return Err(Malformed("a byte beyond the end")) };
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed("a number that does not end"))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.0 = &[];
        }
        Some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_that_is_cut() {
        let mut message = Vec::new();
        number(1, u64::MAX, &mut message);
        number(2, 0, &mut message);
        number_always(3, 0, &mut message);
        bytes(64, b"abc", &mut message);
        let read: Vec<_> = Fields::of(&message).collect::<Result<_, _>>().unwrap();
        assert_eq!(
            read,
            [(1, Value::Number(u64::MAX)), (3, Value::Number(0)), (64, Value::Bytes(b"abc"))]
        );
        for cut in [1, 5, message.len() - 1] {
            let read: Result<Vec<_>, _> = Fields::of(&message[..cut]).collect();
            assert!(read.is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn fields_of_other_kinds_are_passed_over() {
        let message = [0x09, 1, 2, 3, 4, 5, 6, 7, 8, 0x15, 1, 2, 3, 4, 0x18, 7];
        let read: Vec<_> = Fields::of(&message).collect::<Result<_, _>>().unwrap();
        assert_eq!(read, [(1, Value::Other), (2, Value::Other), (3, Value::Number(7))]);
        for broken in [&[0x0b][..], &[0xff; 11], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]] {
            assert!(Fields::of(broken).any(|field| field.is_err()), "{broken:?}");
        }
    }
}
