//! Follows what client and server say to each other, message by message, without keeping it: whether something is under way,
//! and whether the session has a state that another session would not have.

use super::params::Parameters;
use super::words::Words;
use crate::body::Malformed;

/// No message is longer (PQ_LARGE_MESSAGE_LIMIT).
pub const MESSAGE_MAX: u32 = 0x3fff_ffff;

/// A ParameterStatus beyond this is passed on but not remembered.
const STATUS_MAX: u32 = 1024;

/// Prepared statements of one session that are told apart; with more, it is bound for good.
const STATEMENTS_MAX: usize = 64;

/// What a server says after DISCARD ALL: from then on a session has nothing that a new one would not have.
const DISCARDED: &[u8; 12] = b"DISCARD ALL\0";

/// One session's conversation, from its first ReadyForQuery on.
#[derive(Clone, Debug)]
pub struct Talk {
    front: Frame,
    back: Frame,
    words: Words,
    part: Part,
    name: u64,
    statements: Vec<u64>,
    bound: Option<&'static str>,
    asked: Asked,
    /// Messages that no Sync has followed yet.
    unsynced: bool,
    copying: bool,
    /// Nothing was asked since the last ReadyForQuery that answers all.
    settled: bool,
    /// A prepared statement was closed by something that is under way: an error may skip that.
    closing: bool,
    /// The answers cannot be counted any more.
    lost: bool,
    status: u8,
    /// How much of `DISCARDED` a CommandComplete has matched.
    matched: usize,
    gathered: Vec<u8>,
    /// What the client knows of its server's settings.
    pub known: Parameters,
}

/// What is to be done with bytes of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// All may be passed on.
    All,
    /// The server leaves a session that it can be taken from: only so many bytes are for the client.
    Leaves(usize),
}

/// Requests that a ReadyForQuery has yet to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Queries(u32),
    Syncs(u32),
    Mixed(u32),
}

/// Where a message of a client has been read to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Rest,
    Name,
    Text,
    /// The first byte of Close: statement or portal.
    Kind,
}

/// Where a stream is in its messages.
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    head: [u8; 5],
    got: usize,
    left: u32,
}

impl Frame {
    fn tag(&self) -> u8 {
        self.head[0]
    }

    fn length(&self) -> u32 {
        let [_, a, b, c, d] = self.head;
        u32::from_be_bytes([a, b, c, d])
    }

    fn whole(&self) -> bool {
        self.got == 0
    }

    /// Takes bytes of a head; true once it is complete.
    fn head(&mut self, bytes: &mut &[u8]) -> Result<bool, Malformed> {
        let count = bytes.len().min(self.head.len() - self.got);
        let (head, rest) = bytes.split_at(count);
        self.head[self.got..][..count].copy_from_slice(head);
        self.got += count;
        *bytes = rest;
        if self.got < self.head.len() {
            return Ok(false);
        }
        self.left = self
            .length()
            .checked_sub(4)
            .ok_or(Malformed("a message is shorter than its length"))?;
        if self.left > MESSAGE_MAX {
            return Err(Malformed("a message is longer than the protocol allows"));
        }
        Ok(true)
    }

    /// Takes bytes of the body.
    fn body<'a>(&mut self, bytes: &mut &'a [u8]) -> &'a [u8] {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let (body, rest) = bytes.split_at(bytes.len().min(left));
        *bytes = rest;
        self.left -= u32::try_from(body.len()).expect("not more than is left");
        body
    }

    /// True if the message ends here.
    fn ends(&mut self) -> bool {
        let ends = self.left == 0;
        if ends {
            self.got = 0;
        }
        ends
    }
}

impl Talk {
    /// A session whose server has just said that it is ready.
    pub fn new(known: Parameters) -> Talk {
        Talk {
            front: Frame::default(),
            back: Frame::default(),
            words: Words::default(),
            part: Part::Rest,
            name: 0,
            statements: Vec::new(),
            bound: None,
            asked: Asked::Nothing,
            unsynced: false,
            copying: false,
            settled: true,
            closing: false,
            lost: false,
            status: b'I',
            matched: 0,
            gathered: Vec::new(),
            known,
        }
    }

    /// Nothing is under way, and no transaction is open.
    pub fn at_rest(&self) -> bool {
        self.quiet() && self.status == b'I'
    }

    /// Nothing is under way; a transaction may be open.
    pub fn quiet(&self) -> bool {
        self.settled
            && self.asked == Asked::Nothing
            && self.front.whole()
            && self.back.whole()
            && !self.lost
    }

    /// What another session would not have, if anything.
    pub fn bound(&self) -> Option<&'static str> {
        let statements = (!self.statements.is_empty()).then_some("a prepared statement");
        self.bound.or(statements)
    }

    /// Binds the session to its server for another reason.
    pub fn bind(&mut self, reason: &'static str) {
        self.bound = self.bound.or(Some(reason));
    }

    /// The client has said goodbye.
    pub fn has_ended(&self) -> bool {
        self.front.tag() == b'X'
    }

    /// The last that the server has said is an error: its client knows already.
    pub fn refused_last(&self) -> bool {
        self.back.whole() && self.back.tag() == b'E'
    }

    /// Whether the client can be told something: the server has not stopped in the middle of a message.
    pub fn may_be_told(&self) -> bool {
        self.back.whole()
    }

    /// Reads what a client says.
    pub fn front(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            if self.front.got < self.front.head.len() {
                if !self.front.head(&mut bytes)? {
                    return Ok(());
                }
                self.asks(self.front.tag());
            }
            let body = self.front.body(&mut bytes);
            self.read(body);
            if self.front.ends() && self.part == Part::Text {
                self.text_ends();
            }
        }
        Ok(())
    }

    /// A message of a client begins.
    fn asks(&mut self, tag: u8) {
        self.part = Part::Rest;
        match tag {
            b'Q' => {
                self.part = Part::Text;
                self.ask(Asked::Queries(1));
            }
            b'F' => {
                self.bind("a function call without a statement");
                self.ask(Asked::Queries(1));
            }
            b'S' if !self.copying => {
                self.unsynced = false;
                self.ask(Asked::Syncs(1));
            }
            b'P' => {
                self.part = Part::Name;
                self.unsynced();
            }
            b'C' => {
                self.part = Part::Kind;
                self.closing = true;
                self.unsynced();
            }
            b'B' | b'D' | b'E' | b'H' => self.unsynced(),
            b'c' | b'f' => self.copying = false,
            // A Sync amid COPY is passed over by the server, too.
            b'S' | b'd' | b'X' => {}
            _ => self.bind("a message that this proxy does not know"),
        }
        self.name = NAME_BEGINS;
    }

    fn ask(&mut self, one: Asked) {
        self.settled = false;
        self.asked = match (self.asked, one) {
            (Asked::Nothing, one) => one,
            (Asked::Queries(n), Asked::Queries(_)) => Asked::Queries(n.saturating_add(1)),
            (Asked::Syncs(n), Asked::Syncs(_)) => Asked::Syncs(n.saturating_add(1)),
            (Asked::Queries(n) | Asked::Syncs(n) | Asked::Mixed(n), _) => {
                Asked::Mixed(n.saturating_add(1))
            }
        };
    }

    fn unsynced(&mut self) {
        self.unsynced = true;
        self.settled = false;
    }

    /// Reads a part of a client's message.
    fn read(&mut self, mut body: &[u8]) {
        while !body.is_empty() {
            match self.part {
                Part::Rest => return,
                Part::Kind => {
                    self.part = if body[0] == b'S' { Part::Name } else { Part::Rest };
                    body = &body[1..];
                }
                Part::Name | Part::Text => {
                    let end = body.iter().position(|&b| b == 0);
                    let (piece, rest) = body.split_at(end.unwrap_or(body.len()));
                    match self.part {
                        Part::Name => {
                            self.name = piece.iter().fold(self.name, |h, &b| add_to_name(h, b));
                        }
                        Part::Text | Part::Rest | Part::Kind => self.words.read(piece),
                    }
                    if end.is_none() {
                        return;
                    }
                    body = &rest[1..];
                    match self.part {
                        Part::Name => self.name_ends(),
                        Part::Text | Part::Rest | Part::Kind => self.text_ends(),
                    }
                }
            }
        }
    }

    fn name_ends(&mut self) {
        let parse = self.front.tag() == b'P';
        self.part = if parse { Part::Text } else { Part::Rest };
        if self.name == NAME_BEGINS {
            return;
        }
        if !parse {
            self.statements.retain(|&name| name != self.name);
        } else if self.statements.len() == STATEMENTS_MAX {
            self.bind("many prepared statements");
        } else if !self.statements.contains(&self.name) {
            self.statements.push(self.name);
        }
    }

    fn text_ends(&mut self) {
        self.part = Part::Rest;
        if self.words.end() {
            self.bind("a statement that may have changed it");
        }
    }

    /// Reads what a server says.
    pub fn back(&mut self, bytes: &[u8]) -> Result<Heard, Malformed> {
        let mut left = bytes;
        while !left.is_empty() {
            if self.back.got < self.back.head.len() {
                let resting = self.at_rest() && self.bound().is_none();
                let before = bytes.len() - left.len();
                if !self.back.head(&mut left)? {
                    return Ok(Heard::All);
                }
                if resting && self.back.tag() == b'E' && leaves(left) {
                    // The next that is heard is another server.
                    self.back = Frame::default();
                    return Ok(Heard::Leaves(before));
                }
                self.answers(self.back.tag());
            }
            let body = self.back.body(&mut left);
            self.hear(body);
            if self.back.ends() {
                self.heard();
            }
        }
        Ok(Heard::All)
    }

    /// A message of a server begins.
    fn answers(&mut self, tag: u8) {
        match tag {
            b'G' => self.copies(),
            b'W' => self.lost = true,
            b'E' => {
                self.copying = false;
                if self.closing {
                    self.bind("an error while a prepared statement was closed");
                }
            }
            b'C' => self.matched = 0,
            _ => {}
        }
    }

    /// The server takes rows: until it has them all, it passes over every Sync, those that it already has as well.
    fn copies(&mut self) {
        self.copying = true;
        match self.asked {
            Asked::Syncs(_) => self.asked = Asked::Nothing,
            Asked::Mixed(_) => self.lost = true,
            Asked::Queries(_) | Asked::Nothing => {}
        }
    }

    fn hear(&mut self, body: &[u8]) {
        match self.back.tag() {
            b'Z' => self.status = body.last().copied().unwrap_or(self.status),
            b'C' => {
                let rest = DISCARDED.get(self.matched..).unwrap_or_default();
                let same = rest.starts_with(body);
                self.matched = if same { self.matched + body.len() } else { usize::MAX };
            }
            b'S' if self.back.length() <= STATUS_MAX => self.gathered.extend_from_slice(body),
            _ => {}
        }
    }

    /// A message of a server has ended.
    fn heard(&mut self) {
        match self.back.tag() {
            b'Z' => self.ready(),
            b'S' => {
                let gathered = std::mem::take(&mut self.gathered);
                self.known.set(&gathered);
            }
            b'C' if self.matched == DISCARDED.len() && self.asks_only_this() => {
                self.bound = None;
                self.statements = Vec::new();
            }
            _ => {}
        }
    }

    fn asks_only_this(&self) -> bool {
        matches!(self.asked, Asked::Queries(1) | Asked::Syncs(1))
            && !self.unsynced
            && self.front.whole()
    }

    fn ready(&mut self) {
        self.asked = match self.asked {
            Asked::Nothing | Asked::Queries(1) | Asked::Syncs(1) | Asked::Mixed(1) => {
                Asked::Nothing
            }
            Asked::Queries(n) => Asked::Queries(n - 1),
            Asked::Syncs(n) => Asked::Syncs(n - 1),
            Asked::Mixed(n) => Asked::Mixed(n - 1),
        };
        if self.asked == Asked::Nothing && !self.unsynced {
            self.settled = true;
            self.closing = false;
        }
    }
}

/// FNV-1a, so that names need not be kept: the one that is empty has this value.
const NAME_BEGINS: u64 = 0xcbf2_9ce4_8422_2325;

fn add_to_name(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}

/// Whether an error that nobody asked for says that the server goes down, or takes its session away: class 57P, but for
/// what it does by its own settings (57P05, idle_session_timeout).
fn leaves(body: &[u8]) -> bool {
    let code = body.split(|&b| b == 0).find_map(|field| field.strip_prefix(b"C"));
    code.is_none_or(|code| matches!(code, b"57P01" | b"57P02" | b"57P03"))
}

#[cfg(test)]
#[path = "talk_tests.rs"]
mod tests;
