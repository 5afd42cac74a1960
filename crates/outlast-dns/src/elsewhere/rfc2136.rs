//! Records in a server that takes updates (BIND, Knot, PowerDNS): the values of now, since policies cannot be said there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use outlast_core::names::Choice;
use outlast_core::topology::RecordValue;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Outline, Plan, Provider, Trouble, Wanted, WantedRecord, rdata, rtype};
use crate::name::Name;
use crate::remote::{self, RemoteError};
use crate::respond::{AA, HEAD, QR, Question, Rcode, count};
use crate::tsig::TsigKey;
use crate::update::{Change, Prerequisite};
use crate::wire::{IN, Message, read_record};
use crate::zone::{Rdata, Record, Rtype};

/// How long an answer may take, the connection included.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Names and types that are asked for in one round.
const QUESTIONS_MAX: usize = 10_000;

/// A label that nobody has.
const NOBODY: &[u8] = b"outlast-asks-for-nobody";

/// A zone's primary server that takes updates signed with a key.
#[derive(Clone, Debug)]
pub struct Rfc2136 {
    pub server: SocketAddr,
    pub zone: Name,
    pub key: TsigKey,
}

impl fmt::Display for Rfc2136 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.zone, self.server)
    }
}

/// All records of one name and type; the seconds are those of the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Set {
    ttl: u32,
    data: BTreeSet<Rdata>,
}

type Sets = BTreeMap<(Name, Rtype), Set>;

/// One update.
#[derive(Clone, Debug)]
pub struct Rfc2136Steps {
    prerequisites: Vec<Prerequisite>,
    changes: Vec<Change>,
    /// What is there when it is done.
    then: Sets,
}

impl Provider for Rfc2136 {
    type Steps = Rfc2136Steps;

    async fn plan(&self, wanted: &Wanted) -> Result<Plan<Rfc2136Steps>, Trouble> {
        let mut outline = Outline::default();
        let mut to_be = Sets::new();
        for record in &wanted.records {
            let set = flattened(record, &mut outline.warnings)?;
            to_be.insert((record.owner.clone(), rtype(record.record.kind)), set);
        }
        for (owner, kind) in &wanted.gone {
            to_be.entry((owner.clone(), rtype(*kind))).or_default();
        }
        if wanted.zone != self.zone {
            return Err(Trouble::Never(format!("{} is not kept at {self}", wanted.zone)));
        }
        let mut line = self.connect().await?;
        let there = line.sets(&to_be).await?;
        let mut steps =
            Rfc2136Steps { prerequisites: Vec::new(), changes: Vec::new(), then: Sets::new() };
        let none = Set::default();
        let (mut deleted, mut added) = (Vec::new(), Vec::new());
        let goes = |owner: &Name| {
            let alias = to_be.get(&(owner.clone(), Rtype::CNAME));
            alias.is_some_and(|alias| alias.data.is_empty())
        };
        for ((owner, rtype), set) in &to_be {
            let (key, rtype) = ((owner.clone(), *rtype), *rtype);
            let old = match &there[&key] {
                Found::Set(old) => old,
                Found::Alias if goes(owner) => &none,
                Found::Alias if set.data.is_empty() => continue,
                Found::Alias => {
                    outline.refused.push(format!(
                        "{owner} {}: there is a CNAME at this name; take it out there",
                        word(rtype)
                    ));
                    continue;
                }
            };
            steps.then.insert(key, set.clone());
            if old == set || (old.data.is_empty() && set.data.is_empty()) {
                continue;
            }
            let lines = |mark: char, set: &Set| -> Vec<String> {
                let say = |data| {
                    format!("{mark} {owner} {} {} {}", set.ttl, word(rtype), show(rtype, data))
                };
                set.data.iter().map(say).collect()
            };
            outline.lines.extend(lines('-', old));
            outline.lines.extend(lines('+', set));
            if old.data.is_empty() || line.is_synthesized(owner, rtype).await? {
                steps.prerequisites.push(Prerequisite::SetDoesNotExist(owner.clone(), rtype));
            } else {
                let is = Prerequisite::SetIs(owner.clone(), rtype, old.data.clone());
                steps.prerequisites.push(is);
                deleted.push(Change::DeleteSet(owner.clone(), rtype));
            }
            added.extend(set.data.iter().map(|data| {
                let (owner, ttl, data) = (owner.clone(), set.ttl, data.clone());
                Change::Add(Record { owner, rtype, ttl, data })
            }));
        }
        // What comes may not stand beside what goes.
        steps.changes = [deleted, added].concat();
        Ok(Plan { outline, steps })
    }

    async fn apply(&self, plan: &Plan<Rfc2136Steps>) -> Result<(), Trouble> {
        let Rfc2136Steps { prerequisites, changes, then } = &plan.steps;
        let sent = remote::update(self.server, &self.zone, &self.key, prerequisites, changes);
        sent.await.map_err(|error| self.trouble(&error))?;
        // A server passes over what does not fit to what is there, like a second type beside a CNAME, and says well.
        let there = self.connect().await?.sets(then).await?;
        let other = then.iter().find(|(key, set)| !there[*key].is(set));
        match other {
            None => Ok(()),
            Some(((owner, rtype), _)) => Err(Trouble::Later(format!(
                "{self} took the update, but does not say so for {owner} {}: what else is at this name there?",
                word(*rtype)
            ))),
        }
    }
}

impl Rfc2136 {
    async fn connect(&self) -> Result<Line, Trouble> {
        let server = self.server;
        let stream = timeout(ANSWER_MAX, TcpStream::connect(server)).await;
        let stream = stream.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(|error| Trouble::Later(format!("reach {server}: {error}")))?;
        Ok(Line { stream, server, id: 0 })
    }

    fn trouble(&self, error: &RemoteError) -> Trouble {
        let server = self.server;
        match error {
            RemoteError::TooLarge => Trouble::Never(
                "the changes do not fit into one update; make them in several steps".to_owned(),
            ),
            RemoteError::Refused(code) => match Rcode(u16::from(*code)) {
                Rcode::YXDOMAIN | Rcode::YXRRSET | Rcode::NXRRSET | Rcode::NXDOMAIN => {
                    Trouble::Changed(format!("{server}: somebody has changed the same records"))
                }
                Rcode::SERVFAIL => Trouble::Later(format!("{server} cannot do it now (SERVFAIL)")),
                Rcode::REFUSED | Rcode::NOTAUTH => Trouble::Never(format!(
                    "{server} refuses: either it does not let the key {} change the zone {}, or something else stands at one of the \
                     names there, like an address where a CNAME is to be",
                    self.key.name, self.zone
                )),
                _ => Trouble::Never(format!("{server}: {error}")),
            },
            RemoteError::NotSigned(code) => Trouble::Never(format!(
                "{server} does not take the key {}: its name, algorithm and secret must be the same there, and the clocks within \
                 five minutes (code {code})",
                self.key.name
            )),
            RemoteError::NoAnswer | RemoteError::Network(_) => {
                Trouble::Later(format!("{server}: {error}"))
            }
        }
    }
}

/// What a client gets that is not told apart from others, and that gets the same each time.
fn flattened(record: &WantedRecord, warnings: &mut Vec<String>) -> Result<Set, Trouble> {
    let what = format!("{} {}", record.owner, record.record.kind);
    let (mut weighted, mut by_client) = (false, false);
    let mut choice = &record.now;
    let values: &[RecordValue] = loop {
        choice = match choice {
            Choice::One(values) => break values,
            Choice::Empty => break &[],
            Choice::Weighted(list) => {
                weighted = true;
                let heaviest = list.iter().rev().max_by_key(|(weight, _)| *weight);
                match heaviest {
                    Some((_, choice)) => choice,
                    None => break &[],
                }
            }
            Choice::ByClient { otherwise, .. } => {
                by_client = true;
                otherwise
            }
        };
    };
    let all: Vec<String> = values.iter().map(ToString::to_string).collect();
    let all = all.join(", ");
    if weighted {
        warnings.push(format!("{what}: an update cannot say shares; all clients there get {all}"));
    }
    if by_client {
        warnings.push(format!(
            "{what}: an update cannot tell clients apart; all clients there get {all}"
        ));
    }
    let data: Option<BTreeSet<Rdata>> = values.iter().map(rdata).collect();
    let data = data.ok_or_else(|| Trouble::Never(format!("{what}: {all} cannot be sent")))?;
    Ok(Set { ttl: record.ttl, data })
}

/// What a server has at a name and type.
enum Found {
    Set(Set),
    /// The name is another name for something else.
    Alias,
}

impl Found {
    fn is(&self, wanted: &Set) -> bool {
        match self {
            Found::Set(set) => set == wanted || (set.data.is_empty() && wanted.data.is_empty()),
            Found::Alias => false,
        }
    }
}

/// A connection over which questions are asked one after the other.
struct Line {
    stream: TcpStream,
    server: SocketAddr,
    id: u16,
}

impl Line {
    /// What is there of these names and types.
    async fn sets(&mut self, wanted: &Sets) -> Result<BTreeMap<(Name, Rtype), Found>, Trouble> {
        if QUESTIONS_MAX < wanted.len() {
            return Err(Trouble::Never(format!("more than {QUESTIONS_MAX} records")));
        }
        let mut there = BTreeMap::new();
        for (owner, rtype) in wanted.keys() {
            there.insert((owner.clone(), *rtype), self.ask(owner, *rtype).await?);
        }
        Ok(there)
    }

    async fn ask(&mut self, owner: &Name, rtype: Rtype) -> Result<Found, Trouble> {
        self.id = self.id.wrapping_add(1);
        let question = Message::new(self.id, [0, 0], owner, rtype).0;
        let answer = timeout(ANSWER_MAX, self.exchange(&question)).await;
        let answer = answer.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
        let server = self.server;
        let answer = answer.map_err(|error| Trouble::Later(format!("ask {server}: {error}")))?;
        let strange = || Trouble::Later(format!("{server} answers something else for {owner}"));
        let asked = Question::read(&answer).ok_or_else(strange)?;
        let is_ours = answer[..2] == self.id.to_be_bytes()
            && answer[2] & QR != 0
            && (asked.name(), asked.rtype) == (owner.wire(), rtype);
        if !is_ours {
            return Err(strange());
        }
        let is_authority = answer[2] & AA != 0;
        match Rcode(u16::from(answer[3] & 0xf)) {
            Rcode::NOERROR | Rcode::NXDOMAIN if is_authority => {}
            Rcode::SERVFAIL => {
                return Err(Trouble::Later(format!(
                    "{server} cannot answer for {owner} (SERVFAIL)"
                )));
            }
            code => {
                return Err(Trouble::Never(format!(
                    "{server} does not answer for {owner} with authority (code {}); is it the primary server of the zone, and may this \
                     node ask it?",
                    code.0
                )));
            }
        }
        let mut set = Set::default();
        let mut at = asked.end();
        for _ in 0..count(&answer, 1) {
            let read = read_record(&answer, at).ok_or_else(strange)?;
            at = read.end;
            if read.record.owner != *owner || read.class != IN {
                continue;
            }
            if read.record.rtype == rtype {
                if set.data.is_empty() {
                    set.ttl = read.record.ttl;
                }
                set.data.insert(read.record.data.canonical(rtype));
            } else if read.record.rtype == Rtype::CNAME {
                return Ok(Found::Alias);
            }
        }
        Ok(Found::Set(set))
    }

    /// Whether what a name has was made of a `*` further up, so that the name itself has nothing. Then a name below it gets the same;
    /// below a name that is there itself there is nothing (RFC 4592 2.2.1).
    async fn is_synthesized(&mut self, owner: &Name, rtype: Rtype) -> Result<bool, Trouble> {
        let Some(below) = owner.child(NOBODY) else { return Ok(false) };
        Ok(match self.ask(&below, rtype).await? {
            Found::Set(set) => !set.data.is_empty(),
            Found::Alias => true,
        })
    }

    async fn exchange(&mut self, question: &[u8]) -> io::Result<Vec<u8>> {
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        self.stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
        let length = usize::from(self.stream.read_u16().await?);
        if length < HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

fn word(rtype: Rtype) -> &'static str {
    match rtype {
        Rtype::A => "A",
        Rtype::AAAA => "AAAA",
        Rtype::CNAME => "CNAME",
        _ => "TXT",
    }
}

/// Data for people.
fn show(rtype: Rtype, data: &Rdata) -> String {
    let bytes = &data.0[..];
    let shown = match rtype {
        Rtype::A => {
            <[u8; 4]>::try_from(bytes).ok().map(|ip| std::net::Ipv4Addr::from(ip).to_string())
        }
        Rtype::AAAA => {
            <[u8; 16]>::try_from(bytes).ok().map(|ip| std::net::Ipv6Addr::from(ip).to_string())
        }
        Rtype::CNAME => Name::from_wire(bytes).map(|name| name.to_string()),
        _ => bytes.get(1..).map(|text| format!("{:?}", String::from_utf8_lossy(text))),
    };
    shown.unwrap_or_else(|| format!("{bytes:02x?}"))
}
