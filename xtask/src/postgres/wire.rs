//! As much of PostgreSQL's protocol (version 3.0) as a client needs that is trusted by its address: bytes in, messages out.

use anyhow::{Context, Result, bail, ensure};

/// No answer that we ask for comes near it.
const BODY_MAX: usize = 16 << 20;
const PROTOCOL: i32 = 196_608;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The kind of proof that is asked for; 0 is none.
    Authentication(i32),
    Row(Vec<Option<String>>),
    Ready,
    Error {
        sqlstate: String,
        text: String,
    },
    /// What we need not know: parameters, notices, descriptions, tags.
    Other(u8),
}

pub(super) fn startup(user: &str, database: &str) -> Vec<u8> {
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    for word in ["user", user, "database", database, "application_name", "outlast-xtask", ""] {
        body.extend(word.as_bytes());
        body.push(0);
    }
    with_length(&[], &body)
}

pub(super) fn query(sql: &str) -> Vec<u8> {
    let mut body = sql.as_bytes().to_vec();
    body.push(0);
    with_length(b"Q", &body)
}

fn with_length(tag: &[u8], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("what we send is short");
    [tag, &length.to_be_bytes(), body].concat()
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, `None` if more bytes are needed.
    pub(super) fn message(&mut self) -> Result<Option<Message>> {
        let Some((&[tag, a, b, c, d], rest)) = self.bytes.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d]))?;
        let length = length.checked_sub(4).context("a message shorter than its length")?;
        ensure!(length <= BODY_MAX, "a message of {length} bytes");
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = message(tag, body)?;
        self.bytes.drain(..5 + length);
        Ok(Some(message))
    }
}

fn message(tag: u8, body: &[u8]) -> Result<Message> {
    Ok(match tag {
        b'R' => {
            let kind = body.first_chunk::<4>().context("an authentication request cut short")?;
            Message::Authentication(i32::from_be_bytes(*kind))
        }
        b'D' => Message::Row(row(body)?),
        b'Z' => Message::Ready,
        b'E' => error(body),
        b'v' => bail!("the server speaks another version of the protocol"),
        other => Message::Other(other),
    })
}

fn row(body: &[u8]) -> Result<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>().context("a row cut short")?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk::<4>().context("a column cut short")?;
        rest = behind;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            columns.push(None);
            continue;
        };
        let value = rest.get(..length).context("a column cut short")?;
        columns.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = &rest[length..];
    }
    Ok(columns)
}

fn error(body: &[u8]) -> Message {
    let field = |kind: u8| {
        let found = body.split(|byte| *byte == 0).find(|field| field.first() == Some(&kind));
        found.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).unwrap_or_default()
    };
    Message::Error { sqlstate: field(b'C'), text: field(b'M') }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<u8> {
        [
            with_length(b"R", &0_i32.to_be_bytes()),
            with_length(b"S", b"TimeZone\0UTC\0"),
            with_length(b"D", b"\0\x02\0\0\0\x0210\xff\xff\xff\xff"),
            with_length(b"E", b"SFATAL\0C57P01\0Mgoing down\0\0"),
            with_length(b"Z", b"I"),
        ]
        .concat()
    }

    fn expected() -> Vec<Message> {
        vec![
            Message::Authentication(0),
            Message::Other(b'S'),
            Message::Row(vec![Some("10".to_owned()), None]),
            Message::Error { sqlstate: "57P01".to_owned(), text: "going down".to_owned() },
            Message::Ready,
        ]
    }

    #[test]
    fn messages_do_not_depend_on_how_bytes_arrive() {
        let stream = stream();
        for chunk in 1..=stream.len() {
            let (mut decoder, mut found) = (Decoder::default(), Vec::new());
            for part in stream.chunks(chunk) {
                decoder.feed(part);
                while let Some(message) = decoder.message().unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, expected(), "in chunks of {chunk}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for bytes in
            [&b"D\0\0\0\x03"[..], b"D\x7f\xff\xff\xff", b"D\0\0\0\x06\0\x01", b"R\0\0\0\x04"]
        {
            let mut decoder = Decoder::default();
            decoder.feed(bytes);
            assert!(decoder.message().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn what_we_send_has_its_length() {
        assert_eq!(query("select"), b"Q\0\0\0\x0bselect\0");
        let greeting = startup("u", "d");
        assert_eq!(
            usize::try_from(u32::from_be_bytes(*greeting.first_chunk().unwrap())).unwrap(),
            greeting.len()
        );
    }
}
