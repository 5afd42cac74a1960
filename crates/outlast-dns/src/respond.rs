//! What a message is answered with: a function of the message, who sent it, the table and the state that all threads share.

use std::net::IpAddr;

use crate::cookie::{COOKIE as COOKIE_BYTES, Checked, CookieSecrets};
use crate::edns::{self, Edns, OPT, Out};
use crate::limit::{Kind, Limiter, RateLimit, Ruling};
use crate::name::{LABEL_MAX, Labels};
use crate::table::{Client, Plan, Random, Table};
use crate::zone::Rtype;

/// Bytes of a message's head.
pub(crate) const HEAD: usize = 12;

/// Bytes of an answer that everybody takes over UDP (RFC 1035 4.2.1).
const UDP_PLAIN: usize = 512;

/// Bytes of an answer over UDP that no network takes apart (RFC 9715).
pub const UDP_MAX: u16 = 1232;

/// Bytes of a message (RFC 1035 4.2.2).
pub const MESSAGE_MAX: usize = 65_535;

/// Bytes of the identifier of a server (RFC 5001).
pub const NSID_MAX: usize = 128;

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What all threads share beside the table.
#[derive(Debug)]
pub struct State {
    cookies: Option<CookieSecrets>,
    limiter: Option<Limiter>,
    nsid: Vec<u8>,
}

impl State {
    /// Cookies and rate limits are off where there is none. `secret` seeds the hash that the limits count with; of an `nsid`
    /// only the first 128 bytes are told.
    pub fn new(
        cookies: Option<CookieSecrets>,
        limit: Option<RateLimit>,
        secret: [u8; 16],
        nsid: &[u8],
    ) -> State {
        let nsid = nsid.get(..NSID_MAX).unwrap_or(nsid).to_vec();
        State { cookies, limiter: limit.map(|limit| Limiter::new(limit, secret)), nsid }
    }
}

/// Who asks, how, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    pub address: IpAddr,
    pub transport: Transport,
    /// Seconds of the epoch; they go round in 2106, as those of cookies do.
    pub now: u32,
    /// Anything: what is chosen by chance follows from it.
    pub chance: u64,
}

/// What is to be done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing is sent: the message is no query, or its sender has had enough.
    Drop(Dropped),
    /// So many bytes are sent.
    Send(usize, Sent),
    /// The message needs keys, or more than one message as its answer.
    Later(Later),
}

/// Why nothing is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// An answer, or too short to have a head.
    NoQuery,
    /// The rate is limited.
    Limited,
}

/// What kind of answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Answer,
    NoData,
    NxDomain,
    Referral,
    Refused,
    /// Any other error.
    Error,
    /// Cut, or without an answer, because the rate is limited.
    Slipped,
}

/// What is not answered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Later {
    /// A whole zone or its changes are asked for.
    Transfer,
    /// A zone is to be changed (RFC 2136).
    Update,
    /// The message carries a TSIG (RFC 8945).
    Signed,
}

/// Response codes (RFC 6895 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rcode(pub(crate) u16);

impl Rcode {
    pub(crate) const NOERROR: Rcode = Rcode(0);
    pub(crate) const FORMERR: Rcode = Rcode(1);
    pub(crate) const SERVFAIL: Rcode = Rcode(2);
    pub(crate) const NXDOMAIN: Rcode = Rcode(3);
    pub(crate) const NOTIMP: Rcode = Rcode(4);
    pub(crate) const REFUSED: Rcode = Rcode(5);
    pub(crate) const YXDOMAIN: Rcode = Rcode(6);
    pub(crate) const YXRRSET: Rcode = Rcode(7);
    pub(crate) const NXRRSET: Rcode = Rcode(8);
    pub(crate) const NOTAUTH: Rcode = Rcode(9);
    pub(crate) const NOTZONE: Rcode = Rcode(10);
    pub(crate) const BADVERS: Rcode = Rcode(16);
    pub(crate) const BADCOOKIE: Rcode = Rcode(23);
}

/// Operations.
pub(crate) const QUERY: u8 = 0;
pub(crate) const NOTIFY: u8 = 4;
pub(crate) const UPDATE: u8 = 5;

/// Bits of the third byte of a head.
pub(crate) const QR: u8 = 0x80;
pub(crate) const AA: u8 = 0x04;
const TC: u8 = 0x02;
const RD: u8 = 0x01;

/// The one question of a message.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    name: Labels,
    pub(crate) rtype: Rtype,
    pub(crate) class: u16,
}

impl Question {
    /// Not one of a message.
    const NONE: Question = Question { name: Labels::ROOT, rtype: Rtype(0), class: 0 };

    /// Reads the question that follows the head. Nothing stands before it that a pointer could lead to.
    pub(crate) fn read(message: &[u8]) -> Option<Question> {
        let mut question = Question::NONE;
        question.become_that_of(message).map(|()| question)
    }

    /// The same where it is, because it is large.
    #[inline]
    fn become_that_of(&mut self, message: &[u8]) -> Option<()> {
        let rest = message.get(HEAD..)?;
        self.name.read(rest)?;
        let &[t1, t2, c1, c2] = rest.get(self.name.wire().len()..)?.first_chunk()?;
        self.rtype = Rtype(u16::from_be_bytes([t1, t2]));
        self.class = u16::from_be_bytes([c1, c2]);
        Some(())
    }

    /// The name in lower case.
    pub(crate) fn name(&self) -> &[u8] {
        self.name.wire()
    }

    /// Where the question ends in its message.
    pub(crate) fn end(&self) -> usize {
        HEAD + self.name().len() + 4
    }
}

/// What follows the question of a query.
#[derive(Clone, Copy, Debug, Default)]
struct Rest<'q> {
    edns: Option<Edns<'q>>,
    is_signed: bool,
}

/// Whether a message that has a head has been cut.
pub(crate) fn is_cut(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & TC != 0)
}

/// Number `n` of the four counts of a head.
pub(crate) fn count(message: &[u8], n: usize) -> u16 {
    message.get(4 + 2 * n..6 + 2 * n).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]))
}

/// The records after the question: only OPT and TSIG matter.
fn read_rest<'q>(message: &'q [u8], question: &Question) -> Result<Rest<'q>, edns::Broken> {
    let before = u32::from(count(message, 1)) + u32::from(count(message, 2));
    let all = before + u32::from(count(message, 3));
    let mut rest = Rest::default();
    let mut at = question.end();
    for number in 0..all {
        let record = RawRecord::read(message, at).ok_or(edns::Broken)?;
        if number >= before && record.rtype == Rtype::OPT {
            // One OPT, of the root (RFC 6891 6.1.1).
            if rest.edns.is_some() || message.get(at) != Some(&0) {
                return Err(edns::Broken);
            }
            rest.edns = Some(Edns::read(record.class, record.ttl, record.data)?);
        }
        if number >= before && record.rtype == Rtype::TSIG {
            // The last record (RFC 8945 5.1).
            if number + 1 != all {
                return Err(edns::Broken);
            }
            rest.is_signed = true;
        }
        at = record.end;
    }
    Ok(rest)
}

/// A record where it stands in a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawRecord<'q> {
    pub(crate) rtype: Rtype,
    pub(crate) class: u16,
    pub(crate) ttl: [u8; 4],
    pub(crate) data: &'q [u8],
    pub(crate) end: usize,
}

impl<'q> RawRecord<'q> {
    /// Reads the record at a place. Where its owner's name points to is not looked at.
    pub(crate) fn read(message: &'q [u8], at: usize) -> Option<RawRecord<'q>> {
        let mut at = at;
        loop {
            let length = *message.get(at)?;
            match length {
                0 => break at += 1,
                0xc0.. => break at += 2,
                _ if usize::from(length) > LABEL_MAX => return None,
                _ => at += 1 + usize::from(length),
            }
        }
        let &[t1, t2, c1, c2, ttl1, ttl2, ttl3, ttl4, l1, l2] = message.get(at..)?.first_chunk()?;
        let start = at + 10;
        let end = start + usize::from(u16::from_be_bytes([l1, l2]));
        Some(RawRecord {
            rtype: Rtype(u16::from_be_bytes([t1, t2])),
            class: u16::from_be_bytes([c1, c2]),
            ttl: [ttl1, ttl2, ttl3, ttl4],
            data: message.get(start..end)?,
            end,
        })
    }
}

/// Answers a message into `out`, which should have room for the longest: 1232 bytes over UDP, 65,535 over TCP.
pub fn respond(
    message: &[u8],
    asker: Asker,
    table: &Table,
    state: &State,
    out: &mut [u8],
) -> Reply {
    // An answer to an answer would go to and fro for ever.
    if message.len() < HEAD || message[2] & QR != 0 {
        return Reply::Drop(Dropped::NoQuery);
    }
    let opcode = (message[2] >> 3) & 0xf;
    let mut writer =
        Writer { message, asker, state, question: None, edns: None, checked: None, out };
    if !matches!(opcode, QUERY | UPDATE) {
        return writer.error(Rcode::NOTIMP);
    }
    if count(message, 0) != 1 {
        return writer.error(Rcode::FORMERR);
    }
    let mut question = Question::NONE;
    if question.become_that_of(message).is_none() {
        return writer.error(Rcode::FORMERR);
    }
    writer.question = Some(&question);
    let Ok(rest) = read_rest(message, &question) else { return writer.error(Rcode::FORMERR) };
    writer.edns = rest.edns;
    writer.check_cookie();
    if rest.edns.is_some_and(|edns| edns.version != 0) {
        return writer.error(Rcode::BADVERS);
    }
    if rest.is_signed {
        return Reply::Later(Later::Signed);
    }
    if opcode == UPDATE {
        return Reply::Later(Later::Update);
    }
    answer(&mut writer, &question, table)
}

/// Answers a query that is well formed.
fn answer(writer: &mut Writer<'_, '_>, question: &Question, table: &Table) -> Reply {
    const IN: u16 = 1;
    const ANY: u16 = 255;
    if !matches!(question.class, IN | ANY) {
        return writer.error(Rcode::REFUSED);
    }
    let over_tcp = writer.asker.transport == Transport::Tcp;
    let rtype = match question.rtype {
        Rtype::AXFR | Rtype::IXFR if over_tcp => return Reply::Later(Later::Transfer),
        // Over UDP the current SOA says whether it is worth while (RFC 1995 2).
        Rtype::IXFR => Rtype::SOA,
        Rtype::AXFR => return writer.error(Rcode::FORMERR),
        Rtype::ANY => Rtype::ANY,
        rtype if rtype.is_meta() => return writer.error(Rcode::NOTIMP),
        rtype => rtype,
    };
    let edns = writer.edns.unwrap_or_default();
    // A subnet of no bits asks not to be told apart (RFC 7871 7.1.2).
    let subnet = edns.subnet.filter(|subnet| subnet.length > 0);
    let client = Client { address: subnet.map_or(writer.asker.address, |subnet| subnet.address) };
    let mut random = Random(writer.asker.chance);
    match table.find(&question.name, rtype, edns.dnssec, client, &mut random) {
        Some(plan) => writer.plan(&plan, question),
        None => writer.error(Rcode::REFUSED),
    }
}

/// An answer that is being written.
struct Writer<'m, 'o> {
    message: &'m [u8],
    asker: Asker,
    state: &'m State,
    question: Option<&'m Question>,
    edns: Option<Edns<'m>>,
    checked: Option<Checked>,
    out: &'o mut [u8],
}

impl Writer<'_, '_> {
    fn check_cookie(&mut self) {
        let cookie = self.edns.and_then(|edns| edns.cookie);
        let Some(((client, server), secrets)) = cookie.zip(self.state.cookies.as_ref()) else {
            return;
        };
        self.checked = Some(secrets.check(client, server, self.asker.address, self.asker.now));
    }

    /// Bytes that the answer may have.
    fn limit(&self) -> usize {
        let most = match (self.asker.transport, self.edns) {
            (Transport::Tcp, _) => MESSAGE_MAX,
            (Transport::Udp, Some(edns)) => usize::from(edns.size.min(UDP_MAX)).max(UDP_PLAIN),
            (Transport::Udp, None) => UDP_PLAIN,
        };
        most.min(self.out.len())
    }

    /// Bytes of the OPT record of the answer.
    fn opt_length(&self) -> usize {
        let Some(edns) = self.edns else { return 0 };
        let cookie = self.checked.map_or(0, |_| 4 + COOKIE_BYTES);
        let subnet = edns.subnet.map_or(0, edns::Subnet::written);
        let nsid = if edns.nsid { 4 + self.state.nsid.len() } else { 0 };
        OPT + cookie + subnet + nsid
    }

    /// Whether the answer may be sent. Who has a valid cookie is there, and so is who speaks TCP.
    fn ruling(&self, kind: Kind) -> Ruling {
        let is_there = self.asker.transport == Transport::Tcp
            || self.checked.is_some_and(|checked| checked.is_valid);
        match &self.state.limiter {
            Some(limiter) if !is_there => limiter.count(self.asker.address, kind, self.asker.now),
            _ => Ruling::Send,
        }
    }

    fn error(&mut self, rcode: Rcode) -> Reply {
        let sent = if rcode == Rcode::REFUSED { Sent::Refused } else { Sent::Error };
        match self.ruling(Kind::Error) {
            Ruling::Send => self.finish(rcode, 0, [0; 3], self.body_at(), 0, sent),
            Ruling::Slip => self.slip(),
            Ruling::Drop => Reply::Drop(Dropped::Limited),
        }
    }

    /// Instead of an answer: ask over TCP or, to a client with a cookie of its own, ask again with ours (RFC 7873 5.2.3).
    fn slip(&mut self) -> Reply {
        let (rcode, flags) =
            if self.checked.is_some() { (Rcode::BADCOOKIE, 0) } else { (Rcode::NOERROR, TC) };
        self.finish(rcode, flags, [0; 3], self.body_at(), 0, Sent::Slipped)
    }

    /// Where what follows the question begins.
    fn body_at(&self) -> usize {
        self.question.map_or(HEAD, Question::end)
    }

    fn plan(&mut self, plan: &Plan<'_>, question: &Question) -> Reply {
        let (kind, sent) = kind(plan);
        match self.ruling(kind) {
            Ruling::Send => {}
            Ruling::Slip => return self.slip(),
            Ruling::Drop => return Reply::Drop(Dropped::Limited),
        }
        let rcode = if plan.is_nxdomain { Rcode::NXDOMAIN } else { Rcode::NOERROR };
        let flags = if plan.is_authoritative { AA } else { 0 };
        let room = self.limit().saturating_sub(self.opt_length());
        let mut end = question.end();
        let mut counts = [0u16; 3];
        for piece in plan.pieces.iter().flatten() {
            let fits = end + piece.len() <= room;
            if !fits || !piece.write(question.name().len(), self.out, end) {
                return self.finish(rcode, flags | TC, [0; 3], question.end(), plan.scope, sent);
            }
            end += piece.len();
            for (sum, own) in counts.iter_mut().zip(piece.counts) {
                *sum += own;
            }
        }
        self.finish(rcode, flags, counts, end, plan.scope, sent)
    }

    /// Writes head, question and OPT around what stands between. The records' counts are those before OPT.
    fn finish(
        &mut self,
        rcode: Rcode,
        flags: u8,
        counts: [u16; 3],
        end: usize,
        scope: u8,
        sent: Sent,
    ) -> Reply {
        let body_at = self.body_at();
        let limit = self.limit();
        let [high, low] = rcode.0.to_be_bytes();
        let opt = (low >> 4) | (high << 4);
        let asked = self.message[2] & (0x78 | RD);
        let [answers, authority, additional] = counts;
        let additional = additional + u16::from(self.edns.is_some());
        let flags = u16::from_be_bytes([QR | asked | flags, low & 0xf]);
        let questions = u16::from(self.question.is_some());
        let mut out = Out { room: self.out.get_mut(..limit).unwrap_or_default(), end: 0 };
        let mut fits = out.put(self.message.get(..body_at).unwrap_or_default());
        // All but its first two bytes, which name the message.
        let head = out.room.get_mut(2..HEAD).unwrap_or_default().as_chunks_mut().0;
        for (place, number) in
            head.iter_mut().zip([flags, questions, answers, authority, additional])
        {
            *place = number.to_be_bytes();
        }
        out.end = end.max(out.end);
        if let Some(edns) = &self.edns {
            fits &= write_opt(edns, opt, self.checked, self.state, scope, &mut out);
        }
        let end = out.end;
        if fits { Reply::Send(end, sent) } else { Reply::Drop(Dropped::NoQuery) }
    }
}

/// What an answer counts as.
fn kind(plan: &Plan<'_>) -> (Kind, Sent) {
    let has_answer = plan.pieces.iter().flatten().any(|piece| piece.counts[0] > 0);
    match (plan.is_nxdomain, plan.is_authoritative, has_answer) {
        (true, ..) => (Kind::NxDomain, Sent::NxDomain),
        (_, false, _) => (Kind::Referral, Sent::Referral),
        (_, _, true) => (Kind::Answer, Sent::Answer),
        (_, _, false) => (Kind::NoData, Sent::NoData),
    }
}

/// Writes an OPT record; false if there is no room.
fn write_opt(
    edns: &Edns<'_>,
    rcode_high: u8,
    checked: Option<Checked>,
    state: &State,
    scope: u8,
    out: &mut Out<'_>,
) -> bool {
    let start = out.end;
    let [high, low] = UDP_MAX.to_be_bytes();
    let dnssec = if edns.dnssec { 0x80 } else { 0 };
    let mut fits = out.put(&[0, 0, 41, high, low, rcode_high, 0, dnssec, 0, 0, 0]);
    if edns.nsid {
        let length = u16::try_from(state.nsid.len()).unwrap_or_default();
        fits &= out.put(&edns::NSID.to_be_bytes()) && out.put(&length.to_be_bytes());
        fits &= out.put(&state.nsid);
    }
    if let Some(subnet) = edns.subnet {
        subnet.write(if subnet.length == 0 { 0 } else { scope }, out);
    }
    if let Some(checked) = checked {
        let length = u16::try_from(COOKIE_BYTES).unwrap_or_default();
        fits &= out.put(&edns::COOKIE.to_be_bytes()) && out.put(&length.to_be_bytes());
        fits &= out.put(&checked.answer);
    }
    let length = u16::try_from(out.end.saturating_sub(start + OPT)).unwrap_or_default();
    if let Some(place) = out.room.get_mut(start + OPT - 2..start + OPT) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    fits
}

#[cfg(test)]
mod tests;
