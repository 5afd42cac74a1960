//! The bytes between two nodes: a greeting in which they agree on a version, then frames.
//!
//! A connection begins in both directions with [`PREAMBLE`] and a [`Greeting::Hello`], whose first fields never change
//! their form; whoever may not come in gets [`Greeting::Refused`] with the reason, else both say
//! [`Greeting::Accepted`]. Then frames: a tag, a length, a payload. Reading is total and allocates nothing that the
//! input does not pay for.

use outlast_core::codec::{Code, Malformed, Reader, encode_bytes};

use crate::limits::{FRAME_MAX, GREETING_MAX, REASON_MAX};

/// The form of the greeting, and a word by which people recognise it in a dump.
pub const PREAMBLE: [u8; 8] = *b"\x01outlast";

/// The versions of the frames that this build speaks.
pub const VERSIONS: Versions = Versions { min: 1, max: 1 };

/// A range of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    pub min: u32,
    pub max: u32,
}

impl Versions {
    /// The highest version of both, if there is one.
    pub fn common(self, other: Versions) -> Option<u32> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

/// Who speaks. Later forms may add fields behind these; they are skipped by those who do not know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub versions: Versions,
    pub cluster: String,
    pub node: String,
    pub id: u64,
    /// Random at each start of an agent: tells a node from another that has its name.
    pub instance: u64,
    /// The build, for people.
    pub build: String,
}

impl Code for Hello {
    fn encode(&self, to: &mut Vec<u8>) {
        self.versions.min.encode(to);
        self.versions.max.encode(to);
        self.cluster.encode(to);
        self.node.encode(to);
        self.id.encode(to);
        self.instance.encode(to);
        self.build.encode(to);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Hello, Malformed> {
        Ok(Hello {
            versions: Versions { min: u32::decode(from)?, max: u32::decode(from)? },
            cluster: String::decode(from)?,
            node: String::decode(from)?,
            id: u64::decode(from)?,
            instance: u64::decode(from)?,
            build: String::decode(from)?,
        })
    }
}

/// What is said before frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeting {
    Hello(Hello),
    Accepted,
    /// `again`: nothing is wrong, there is a connection already.
    Refused {
        again: bool,
        reason: String,
    },
}

const HELLO: u8 = 1;
const ACCEPTED: u8 = 2;
const REFUSED: u8 = 3;

impl Greeting {
    pub fn write(&self, to: &mut Vec<u8>) {
        let (tag, body) = match self {
            Greeting::Hello(hello) => (HELLO, hello.to_bytes()),
            Greeting::Accepted => (ACCEPTED, Vec::new()),
            Greeting::Refused { again, reason } => {
                let mut body = again.to_bytes();
                body.extend_from_slice(shortened(reason).as_bytes());
                (REFUSED, body)
            }
        };
        to.push(tag);
        encode_bytes(&body, to);
    }

    /// The greeting at the start of `bytes` and how long it is; `None` if more is needed.
    pub fn read(bytes: &[u8]) -> Result<Option<(Greeting, usize)>, Malformed> {
        let Some((tag, body, used)) = tagged(bytes, GREETING_MAX, "a greeting beyond the limit")?
        else {
            return Ok(None);
        };
        let greeting = match tag {
            HELLO => Greeting::Hello(Hello::decode(&mut Reader::new(body))?),
            ACCEPTED if body.is_empty() => Greeting::Accepted,
            REFUSED => {
                let mut body = Reader::new(body);
                let again = bool::decode(&mut body)?;
                let reason = String::from_utf8_lossy(body.rest()).into_owned();
                Greeting::Refused { again, reason }
            }
            _ => return Err(Malformed("a greeting that is not known")),
        };
        Ok(Some((greeting, used)))
    }
}

/// The start of a text, cut between characters.
pub(crate) fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(REASON_MAX)]
}

/// A channel of its own kind, in the order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    Consensus,
    Beliefs,
    /// The answers go before new requests: what is under way ends first.
    Answers,
    Requests,
    Bulk,
}

impl Lane {
    pub const ALL: [Lane; 5] =
        [Lane::Consensus, Lane::Beliefs, Lane::Answers, Lane::Requests, Lane::Bulk];

    /// Its number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Lane::Consensus => 0,
            Lane::Beliefs => 1,
            Lane::Requests => 2,
            Lane::Bulk => 3,
            Lane::Answers => 4,
        }
    }

    fn of(number: u8) -> Option<Lane> {
        Lane::ALL.into_iter().find(|lane| lane.number() == number)
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.number())
    }
}

/// What stands before a message's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    None,
    Request(u64),
    /// Whether the bytes are the answer, or the reason why there is none.
    Answer {
        id: u64,
        good: bool,
    },
}

impl Head {
    pub(crate) fn write(self, to: &mut Vec<u8>) {
        match self {
            Head::None => {}
            Head::Request(id) => id.encode(to),
            Head::Answer { id, good } => {
                id.encode(to);
                good.encode(to);
            }
        }
    }

    /// What stands at the start of a message in a lane, and the message behind it.
    pub(crate) fn split(lane: Lane, payload: &[u8]) -> Result<(Head, &[u8]), Malformed> {
        let mut reader = Reader::new(payload);
        let head = match lane {
            Lane::Consensus | Lane::Beliefs | Lane::Bulk => Head::None,
            Lane::Requests => Head::Request(u64::decode(&mut reader)?),
            Lane::Answers => {
                let id = u64::decode(&mut reader)?;
                Head::Answer { id, good: bool::decode(&mut reader)? }
            }
        };
        Ok((head, reader.rest()))
    }
}

/// What travels once two nodes have greeted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A piece of a message; `more` pieces follow in this lane.
    Data {
        lane: Lane,
        more: bool,
        payload: &'a [u8],
    },
    Ping(u64),
    Pong(u64),
    /// So many more bytes may be sent in a lane.
    Credit {
        lane: Lane,
        bytes: u32,
    },
    /// The other side ends the connection, and why.
    Goodbye(&'a str),
}

const MORE: u8 = 8;
const PING: u8 = 16;
const PONG: u8 = 17;
const CREDIT: u8 = 18;
const GOODBYE: u8 = 19;

impl<'a> Frame<'a> {
    /// Appends the frame. A payload is at most [`FRAME_MAX`] long.
    pub fn write(self, to: &mut Vec<u8>) {
        match self {
            Frame::Data { lane, more, payload } => data(lane, more, &[], payload, to),
            Frame::Ping(number) => put(PING, &number.to_bytes(), to),
            Frame::Pong(number) => put(PONG, &number.to_bytes(), to),
            Frame::Credit { lane, bytes } => {
                let mut body = vec![lane.number()];
                bytes.encode(&mut body);
                put(CREDIT, &body, to);
            }
            Frame::Goodbye(reason) => put(GOODBYE, shortened(reason).as_bytes(), to),
        }
    }

    /// The frame at the start of `bytes` and how long it is; `None` if more is needed.
    pub fn read(bytes: &'a [u8]) -> Result<Option<(Frame<'a>, usize)>, Malformed> {
        let Some((tag, body, used)) = tagged(bytes, FRAME_MAX, "a frame beyond the limit")? else {
            return Ok(None);
        };
        let frame = match tag {
            PING => Frame::Ping(u64::from_bytes(body)?),
            PONG => Frame::Pong(u64::from_bytes(body)?),
            CREDIT => {
                let mut body = Reader::new(body);
                let lane = Lane::of(body.byte()?).ok_or(Malformed("credit of no channel"))?;
                let bytes = u32::decode(&mut body)?;
                body.end()?;
                Frame::Credit { lane, bytes }
            }
            GOODBYE => Frame::Goodbye(
                str::from_utf8(body)
                    .map_err(|_not_text| Malformed("a goodbye that is not UTF-8"))?,
            ),
            _ => {
                let lane = Lane::of(tag & !MORE).ok_or(Malformed("a frame that is not known"))?;
                Frame::Data { lane, more: tag & MORE != 0, payload: body }
            }
        };
        Ok(Some((frame, used)))
    }
}

/// Appends a data frame whose payload is `head` and then `body`.
pub(crate) fn data(lane: Lane, more: bool, head: &[u8], body: &[u8], to: &mut Vec<u8>) {
    to.push(lane.number() | if more { MORE } else { 0 });
    ((head.len() + body.len()) as u64).encode(to);
    to.extend_from_slice(head);
    to.extend_from_slice(body);
}

fn put(tag: u8, body: &[u8], to: &mut Vec<u8>) {
    to.push(tag);
    encode_bytes(body, to);
}

/// A tag, its body, and how long both are on the wire.
type Tagged<'a> = (u8, &'a [u8], usize);

/// A tag and a body that carries its length, at the start of `bytes`; `None` if more is needed.
fn tagged<'a>(
    bytes: &'a [u8],
    max: usize,
    beyond: &'static str,
) -> Result<Option<Tagged<'a>>, Malformed> {
    /// A number of 32 bits in LEB128.
    const LENGTH_MAX: usize = 5;
    let Some((&tag, rest)) = bytes.split_first() else { return Ok(None) };
    let Some(last) = rest.iter().take(LENGTH_MAX).position(|&byte| byte < 0x80) else {
        return if rest.len() < LENGTH_MAX {
            Ok(None)
        } else {
            Err(Malformed("a length that does not end"))
        };
    };
    let (length, rest) = rest.split_at(last + 1);
    let length = u32::from_bytes(length)? as usize;
    if length > max {
        return Err(Malformed(beyond));
    }
    Ok(rest.get(..length).map(|body| (tag, body, 1 + last + 1 + length)))
}

#[cfg(test)]
mod tests;
