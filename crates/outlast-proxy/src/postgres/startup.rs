//! What a client says first: who it is, that it wants to speak TLS, or that a running statement is to be cancelled.

use crate::body::Malformed;

/// PostgreSQL's own limit (MAX_STARTUP_PACKET_LENGTH).
pub const STARTUP_MAX: usize = 10_000;

/// No packet is shorter: a length and a code.
const SHORTEST: usize = 8;

/// A cancel key has 4 bytes in protocol 3.0, and at most this many since 3.2.
const CANCEL_KEY_MAX: usize = 256;

const CANCEL: u32 = 80_877_102;
const TLS: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// A TLS handshake record: a client that does not ask first (`sslnegotiation=direct`).
const TLS_RECORD: u8 = 0x16;

/// A first packet, read completely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    Startup(Startup),
    Tls,
    /// TLS has begun without a question; nothing of it is consumed.
    DirectTls,
    Gss,
    /// The packet as it is to be passed on.
    Cancel(Vec<u8>),
    /// A protocol that is not version 3: major and minor.
    Unknown(u16, u16),
}

/// The packet that begins a session, kept to be said again to another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    packet: Vec<u8>,
    pub user: String,
    /// The session copies the log of the server and is bound to it.
    pub replication: bool,
}

/// Reads the first packet and how many bytes it took; `None` if it is not complete.
pub fn read(bytes: &[u8]) -> Result<Option<(Opening, usize)>, Malformed> {
    if bytes.first() == Some(&TLS_RECORD) {
        return Ok(Some((Opening::DirectTls, 0)));
    }
    let Some(length) = bytes.first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if !(SHORTEST..=STARTUP_MAX).contains(&length) {
        return Err(Malformed("invalid length of startup packet"));
    }
    let Some(packet) = bytes.get(..length) else { return Ok(None) };
    let Some((code, body)) = packet.get(4..).and_then(<[u8]>::split_first_chunk::<4>) else {
        return Err(Malformed("invalid length of startup packet"));
    };
    let opening = match u32::from_be_bytes(*code) {
        TLS if body.is_empty() => Opening::Tls,
        GSS if body.is_empty() => Opening::Gss,
        CANCEL if (8..=4 + CANCEL_KEY_MAX).contains(&body.len()) => {
            Opening::Cancel(packet.to_vec())
        }
        TLS | GSS | CANCEL => return Err(Malformed("invalid length of startup packet")),
        code if code >> 16 == 3 => Opening::Startup(startup(packet, body)?),
        _ => Opening::Unknown(
            u16::from_be_bytes([code[0], code[1]]),
            u16::from_be_bytes([code[2], code[3]]),
        ),
    };
    Ok(Some((opening, length)))
}

fn startup(packet: &[u8], body: &[u8]) -> Result<Startup, Malformed> {
    let bad = Malformed("invalid startup packet layout: expected terminator as last byte");
    let pairs = body.strip_suffix(b"\0").ok_or(bad)?;
    let (mut user, mut replication) = (None, false);
    let mut words = pairs.split(|&b| b == 0);
    // Of "a\0b\0" the split has an empty end.
    while let Some(name) = words.next().filter(|name| !name.is_empty()) {
        let value = words.next().ok_or(bad)?;
        match name {
            b"user" => user = std::str::from_utf8(value).ok().map(str::to_owned),
            b"replication" => replication = !matches!(value, b"false" | b"off" | b"no" | b"0"),
            _ => {}
        }
    }
    if words.next().is_some() {
        return Err(bad);
    }
    let user = user.filter(|user| !user.is_empty());
    let user = user.ok_or(Malformed("no PostgreSQL user name specified in startup packet"))?;
    Ok(Startup { packet: packet.to_vec(), user, replication })
}

/// Makes transactions read-only unless the session asks for more.
const READ_ONLY: &[u8] = b"-c default_transaction_read_only=on";

impl Startup {
    /// The packet as the client sent it.
    pub fn packet(&self) -> &[u8] {
        &self.packet
    }

    /// The packet with an option that makes the session read-only by default.
    pub fn read_only(&self) -> Vec<u8> {
        let (head, body) = self.packet.split_at(SHORTEST);
        let pairs = &body[..body.len() - 1];
        let mut wire = head.to_vec();
        let mut words = pairs.split_inclusive(|&b| b == 0);
        let mut options = Vec::new();
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            if name == b"options\0" {
                // The last one counts; ours comes after all that the client has said.
                options = [&value[..value.len() - 1], b" "].concat();
            } else {
                wire.extend_from_slice(name);
                wire.extend_from_slice(value);
            }
        }
        wire.extend_from_slice(b"options\0");
        wire.extend_from_slice(&options);
        wire.extend_from_slice(READ_ONLY);
        wire.extend_from_slice(b"\0\0");
        let length = u32::try_from(wire.len()).expect("a startup packet and a few bytes");
        wire[..4].copy_from_slice(&length.to_be_bytes());
        wire
    }
}

/// Asks a server for TLS.
pub const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// A packet as libpq would send it; for tests.
pub fn packet(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut body = vec![0, 3, 0, 0];
    for (name, value) in pairs {
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [length.to_be_bytes().as_slice(), &body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_packet_is_read_whole_and_said_again_as_it_was() {
        let wire = packet(&[("user", "ada"), ("database", "db"), ("options", "-c a=b")]);
        for end in 0..wire.len() {
            assert_eq!(read(&wire[..end]), Ok(None), "{end}");
        }
        let Ok(Some((Opening::Startup(startup), length))) = read(&wire) else { panic!("{wire:?}") };
        assert_eq!((startup.packet(), length), (&wire[..], wire.len()));
        assert_eq!((startup.user.as_str(), startup.replication), ("ada", false));
    }

    #[test]
    fn a_read_only_packet_keeps_what_the_client_said() {
        let wire = packet(&[("user", "ada"), ("options", "-c a=b"), ("application_name", "")]);
        let Ok(Some((Opening::Startup(startup), _))) = read(&wire) else { panic!("{wire:?}") };
        let expected = packet(&[
            ("user", "ada"),
            ("application_name", ""),
            ("options", "-c a=b -c default_transaction_read_only=on"),
        ]);
        assert_eq!(startup.read_only(), expected);
    }

    #[test]
    fn what_is_no_first_packet_is_refused() {
        let cut = |bytes: &[u8]| read(bytes).expect_err("refused").0;
        assert!(cut(&[0xff; 8]).contains("length"));
        assert!(cut(&[0, 0, 0, 7, 0, 3, 0, 0]).contains("length"));
        assert!(cut(b"GET / HTTP/1.1\r\n\r\n").contains("length"));
        assert!(cut(&packet(&[("database", "x")])).contains("user"));
        assert!(cut(&packet(&[("user", "")])).contains("user"));
        let mut open = packet(&[("user", "ada")]);
        *open.last_mut().unwrap() = b'x';
        assert!(cut(&open).contains("terminator"));
        assert!(cut(&[0, 0, 0, 12, 4, 210, 22, 47, 0, 0, 0, 0]).contains("length"));
        assert_eq!(read(&[0, 0, 0, 8, 0, 2, 0, 1]), Ok(Some((Opening::Unknown(2, 1), 8))));
        assert_eq!(read(&TLS_REQUEST), Ok(Some((Opening::Tls, 8))));
        assert_eq!(read(&[0x16, 3, 1]), Ok(Some((Opening::DirectTls, 0))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            read(&bytes).ok();
            let length = u32::try_from(bytes.len() + 8).unwrap().to_be_bytes();
            let wire = [&length, [0, 3, 0, 0].as_slice(), &bytes].concat();
            if let Ok(Some((Opening::Startup(startup), _))) = read(&wire) {
                let again = startup.read_only();
                prop_assert!(matches!(read(&again), Ok(Some((Opening::Startup(_), n))) if n == again.len()));
            }
        }
    }
}
