//! The server's messages: bytes in, messages out. No socket is seen here.
//!
//! Only what the control connection needs is spoken: a login by the account of the operating system, and plain queries.

use std::fmt;

/// Bytes of one message that are taken; the agent asks for nothing as long as that.
const BODY_MAX: usize = 4 << 20;
/// Version 3.0 of the protocol.
const PROTOCOL: u32 = 196_608;

/// One message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

/// What arrived is not the server's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not PostgreSQL's protocol: {}", self.0)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, `None` if more bytes are needed.
    pub(crate) fn message(&mut self) -> Result<Option<Message>, Malformed> {
        let Some((&[tag, a, b, c, d], rest)) = self.bytes.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let length = length.checked_sub(4).ok_or(Malformed("a length below four"))?;
        if length > BODY_MAX {
            return Err(Malformed("a message too long"));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = Message { tag, body: body.to_vec() };
        self.bytes.drain(..5 + length);
        Ok(Some(message))
    }
}

/// The first message of a connection.
pub(crate) fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    for (name, value) in parameters {
        put_text(&mut body, name);
        put_text(&mut body, value);
    }
    body.push(0);
    framed(None, &body)
}

/// A plain query.
pub(crate) fn query(sql: &str) -> Vec<u8> {
    let mut body = Vec::new();
    put_text(&mut body, sql);
    framed(Some(b'Q'), &body)
}

/// A polite end.
pub(crate) fn terminate() -> Vec<u8> {
    framed(Some(b'X'), &[])
}

fn framed(tag: Option<u8>, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("our own messages are short");
    let mut bytes: Vec<u8> = tag.into_iter().collect();
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A zero ends a text: whatever stands behind one would be read as something else.
fn put_text(body: &mut Vec<u8>, text: &str) {
    body.extend(text.bytes().filter(|byte| *byte != 0));
    body.push(0);
}

/// The columns of a row, as text.
pub(crate) fn row(body: &[u8]) -> Result<Vec<Option<String>>, Malformed> {
    const SHORT: Malformed = Malformed("a row that ends too early");
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or(SHORT)?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
        rest = behind;
        let column = match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                let (value, behind) = rest.split_at_checked(length).ok_or(SHORT)?;
                rest = behind;
                Some(String::from_utf8_lossy(value).into_owned())
            }
            Err(_null) => None,
        };
        columns.push(column);
    }
    Ok(columns)
}

/// What the server complains of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) sqlstate: String,
    pub(crate) message: String,
}

impl Complaint {
    pub(crate) fn parse(body: &[u8]) -> Complaint {
        let mut complaint = Complaint::default();
        for field in body.split(|byte| *byte == 0) {
            let Some((tag, text)) = field.split_first() else { continue };
            let text = || String::from_utf8_lossy(text).into_owned();
            match tag {
                b'C' => complaint.sqlstate = text(),
                b'M' => complaint.message = text(),
                _ => {}
            }
        }
        complaint
    }
}

/// The number of the server's process, from BackendKeyData.
pub(crate) fn backend_pid(body: &[u8]) -> Option<u32> {
    body.first_chunk::<4>().map(|pid| u32::from_be_bytes(*pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<u8> {
        [
            framed(Some(b'R'), &[0, 0, 0, 0]),
            framed(Some(b'Z'), b"I"),
            framed(Some(b'C'), b"SELECT\0"),
        ]
        .concat()
    }

    #[test]
    fn framing_does_not_depend_on_how_bytes_arrive() {
        let stream = stream();
        for chunk in 1..=stream.len() {
            let mut decoder = Decoder::default();
            let mut tags = Vec::new();
            for bytes in stream.chunks(chunk) {
                decoder.feed(bytes);
                while let Some(message) = decoder.message().unwrap() {
                    tags.push(message.tag);
                }
            }
            assert_eq!(tags, b"RZC", "{chunk}");
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        for length in [[0, 0, 0, 3], [0xff, 0xff, 0xff, 0xff]] {
            let mut decoder = Decoder::default();
            decoder.feed(b"D");
            decoder.feed(&length);
            assert!(decoder.message().is_err());
        }
    }

    #[test]
    fn rows_and_complaints_are_read_and_truncated_rows_are_not() {
        let body = [&[0, 3][..], &[0, 0, 0, 1], b"a", &[0xff; 4], &[0, 0, 0, 0]].concat();
        let expected = vec![Some("a".to_owned()), None, Some(String::new())];
        assert_eq!(row(&body).unwrap(), expected);
        for length in 0..body.len() {
            assert!(row(&body[..length]).is_err(), "{length}");
        }
        let complaint = Complaint::parse(b"SFATAL\0C57P03\0Mstarting up\0\0");
        assert_eq!((&*complaint.sqlstate, &*complaint.message), ("57P03", "starting up"));
    }

    #[test]
    fn a_zero_in_a_text_cannot_end_it() {
        assert_eq!(query("SELECT 1\0; DROP"), query("SELECT 1; DROP"));
    }
}
