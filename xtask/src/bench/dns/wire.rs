//! Questions and answers as they are on the wire (RFC 1035), as far as this bench needs them.

use std::net::Ipv4Addr;

/// Bytes of the longest answer that is read.
pub(super) const DATAGRAM_MAX: usize = 4096;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;

/// What a server says to a question for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Address(Ipv4Addr),
    /// No error, and no address.
    Nothing,
    /// Its response code.
    Code(u8),
}

/// A question for the address of a name.
pub(super) fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("labels are short"));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The number of the question that it answers, and what it says; `None` if it is no answer that can be read.
pub(super) fn read(message: &[u8]) -> Option<(u16, Answer)> {
    let number = |at: usize| {
        let bytes = message.get(at..at + 2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let (id, flags) = (number(0)?, number(2)?);
    if flags & 0x8000 == 0 {
        return None;
    }
    let code = u8::try_from(flags & 0x000f).expect("four bits");
    if code != 0 {
        return Some((id, Answer::Code(code)));
    }
    let mut at = HEADER;
    for _ in 0..number(4)? {
        at = skip_name(message, at)? + 4;
    }
    for _ in 0..number(6)? {
        at = skip_name(message, at)?;
        let (rtype, length) = (number(at)?, usize::from(number(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        if rtype == TYPE_A {
            let octets: [u8; 4] = data.try_into().ok()?;
            return Some((id, Answer::Address(octets.into())));
        }
        at += 10 + length;
    }
    Some((id, Answer::Nothing))
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 1),
            length if length < 64 => at += 1 + length,
            _pointer => return Some(at + 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_a_question_is_no_answer() {
        let mut message = question(7, "api.example.com");
        assert_eq!(read(&message), None);
        message[2] = 0x84;
        assert_eq!(read(&message), Some((7, Answer::Nothing)));
        message[7] = 1;
        message.extend(*b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\x35\0\x0b");
        let address = Answer::Address(Ipv4Addr::new(10, 53, 0, 11));
        assert_eq!(read(&message), Some((7, address)));
        for length in 0..message.len() {
            assert_eq!(read(&message[..length]), None, "{length}");
        }
        message[3] = 5;
        assert_eq!(read(&message), Some((7, Answer::Code(5))));
    }
}
