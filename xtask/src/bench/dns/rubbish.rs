//! Messages that mean no good, against the running agent: no answer to what is no query, none that is no answer, and no
//! memory that grows.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::net::UdpSocket;

use super::alone::Alone;
use super::report::{Measure, Part, Report, Who};
use super::systems::ZONE;
use super::wire;
use crate::bench::arena::free_ports;
use crate::children::TempDir;
use crate::random::Random;
use crate::{http, out, procs};

const MESSAGES: usize = 1_000_000;
const MESSAGES_QUICK: usize = 100_000;
/// Messages between two proper questions: they fit into the buffers of all sockets.
const BATCH: usize = 64;
/// A proper question is answered within this, or it is asked again, so often.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const TRIES: usize = 3;
/// All of it, however slow the machine is.
const ALL_LIMIT: Duration = Duration::from_secs(1800);
/// What is answered away from the thread that answers has come by then.
const LATE_ANSWERS: Duration = Duration::from_secs(1);
/// An answer belongs to one of so many last messages.
const RECENT: usize = 8_192;
/// Answers over UDP are not longer (docs/dns.md).
const UDP_MAX: usize = 1_232;
/// Of all messages, so many in a hundred must have arrived for the result to count.
const ARRIVED_PERCENT_MIN: u64 = 99;
const METRICS_LIMIT: Duration = Duration::from_secs(5);

const HEADER: usize = 12;
/// Bytes of a message that is made up from nothing.
const MADE_UP_MAX: usize = 600;

/// Answers, and what is wrong with them.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    sent: usize,
    no_queries: usize,
    answers: usize,
    forbidden: usize,
    garbled: usize,
    silent: usize,
}

struct Sockets {
    /// Sends what must never be answered.
    mute: UdpSocket,
    open: UdpSocket,
    proper: UdpSocket,
    /// The last message that had an identifier.
    last: Vec<usize>,
}

impl Sockets {
    async fn open(at: SocketAddr) -> Result<Sockets> {
        let connected = async || -> Result<UdpSocket> {
            let socket = UdpSocket::bind("127.0.0.1:0").await.context("open a socket")?;
            socket.connect(at).await.with_context(|| format!("connect to {at}"))?;
            Ok(socket)
        };
        let (mute, open) = (connected().await?, connected().await?);
        let last = vec![usize::MAX; 1 << 16];
        Ok(Sockets { mute, open, proper: connected().await?, last })
    }

    async fn send(&mut self, message: &[u8], found: &mut Found) -> Result<()> {
        found.sent += 1;
        let socket = if is_query(message) {
            self.last[id(message)] = found.sent;
            &self.open
        } else {
            found.no_queries += 1;
            &self.mute
        };
        socket.send(message).await.context("send a message")?;
        Ok(())
    }

    /// Looks at all answers that have come.
    fn collect(&self, found: &mut Found) {
        let mut buffer = [0; wire::DATAGRAM_MAX];
        while self.mute.try_recv(&mut buffer).is_ok() {
            found.forbidden += 1;
        }
        while let Ok(length) = self.open.try_recv(&mut buffer) {
            found.answers += 1;
            let answer = &buffer[..length];
            let good = (HEADER..=UDP_MAX).contains(&length) && answer[2] & 0x80 != 0;
            let fits = good && {
                let last = self.last[id(answer)];
                last != usize::MAX && found.sent - last < RECENT
            };
            found.garbled += usize::from(!fits);
        }
    }

    /// Asks properly; whether that is answered. What was sent before has been read by then.
    async fn ask(&self, number: u16) -> Result<bool> {
        let question = wire::question(number, &format!("www1.{ZONE}"));
        let mut buffer = [0; wire::DATAGRAM_MAX];
        for _ in 0..TRIES {
            self.proper.send(&question).await.context("send a question")?;
            let end = Instant::now() + ANSWER_LIMIT;
            loop {
                let left = end.saturating_duration_since(Instant::now());
                let got = tokio::time::timeout(left, self.proper.recv(&mut buffer)).await;
                let Ok(got) = got else { break };
                let length = got.context("receive an answer")?;
                let answer = wire::read(&buffer[..length]);
                if let Some((_, wire::Answer::Address(_))) = answer.filter(|(id, _)| *id == number)
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

fn id(message: &[u8]) -> usize {
    usize::from(message[0]) << 8 | usize::from(message[1])
}

fn is_query(message: &[u8]) -> bool {
    HEADER <= message.len() && message[2] & 0x80 == 0
}

/// Proper queries with all options, of all kinds.
fn good() -> Vec<Vec<u8>> {
    let names = ["www1", "any", "no", "no.such.name.at.all", "WWW2", "_tcp"];
    let types: [u16; 9] = [1, 28, 16, 255, 6, 43, 252, 251, 250];
    let one = |name: &str, rtype: u16| {
        let mut message = wire::question(0, &format!("{name}.{ZONE}"));
        let rtype_at = message.len() - 4;
        message[rtype_at..rtype_at + 2].copy_from_slice(&rtype.to_be_bytes());
        message[11] = 1;
        // EDNS with DO, a client's cookie and a client's subnet.
        message.extend(*b"\0\0\x29\x10\0\0\0\x80\0\0\x17");
        message.extend(*b"\0\x0a\0\x08clientid\0\x08\0\x07\0\x01\x18\0\xc0\0\x02");
        message
    };
    names.iter().flat_map(|name| types.map(|rtype| one(name, rtype))).collect()
}

/// A message that was once good, or never was.
fn spoil(random: &mut Random, good: &[Vec<u8>]) -> Vec<u8> {
    let byte = |random: &mut Random| u8::try_from(random.index(256)).expect("below 256");
    let mut message = good[random.index(good.len())].clone();
    message[0] = byte(random);
    message[1] = byte(random);
    match random.index(8) {
        0 => message.truncate(random.index(message.len() + 1)),
        1 => message.truncate(random.index(HEADER)),
        2 => message[2] |= 0x80,
        3 => {
            let more = random.index(64);
            message.extend((0..more).map(|_| byte(random)));
        }
        4 => message = (0..random.index(MADE_UP_MAX)).map(|_| byte(random)).collect(),
        _ => {
            for _ in 0..1 + random.index(8) {
                let place = random.index(message.len());
                message[place] = match random.index(2) {
                    0 => byte(random),
                    _ => message[place] ^ 1 << random.index(8),
                };
            }
        }
    }
    message
}

pub(super) async fn throw(
    quick: bool,
    outlast: &Path,
    random: &mut Random,
    report: &mut Report,
) -> Result<()> {
    let dir = TempDir::new("dns-rubbish")?;
    let ports = free_ports(2)?;
    let [at, face] = ports[..] else { bail!("too few ports") };
    let who = Who::OutlastSigned;
    // One thread answers, so that all that was sent before a proper question is read before that.
    let core = Some(0);
    let server = Alone::start(who, at, Some(face), Some(outlast), core, dir.path()).await?;
    let mut sockets = Sockets::open(at).await?;
    let (messages, good) = (if quick { MESSAGES_QUICK } else { MESSAGES }, good());
    let counted_before = counted(face).await?;
    let memory = procs::memory(server.child.pid())?;
    let (mut found, mut batch, begun) = (Found::default(), 0_u16, Instant::now());
    while found.sent < messages {
        for _ in 0..BATCH.min(messages - found.sent) {
            sockets.send(&spoil(random, &good), &mut found).await?;
        }
        batch = batch.wrapping_add(1);
        let answered = sockets.ask(batch).await?;
        found.silent += usize::from(!answered);
        sockets.collect(&mut found);
        ensure!(
            answered,
            "E: no answer any more after {} messages{}",
            found.sent,
            server.child.log_tail()
        );
        let (sent, limit) = (found.sent, ALL_LIMIT);
        ensure!(begun.elapsed() < limit, "E: only {sent} messages within {limit:?}");
    }
    let time = begun.elapsed();
    crate::postgres::sample_for(LATE_ANSWERS).await;
    sockets.collect(&mut found);
    let grew = procs::memory(server.child.pid())?.saturating_sub(memory);
    let arrived = counted(face).await?.saturating_sub(counted_before);
    let count = |number: usize| u32::try_from(number).map(f64::from).context("too many");
    report.record(Measure::Forbidden, who, count(found.forbidden)?);
    report.record(Measure::Garbled, who, count(found.garbled)?);
    report.record(Measure::Silent, who, count(found.silent)?);
    let mib = f64::from(u32::try_from(grew >> 10).context("too much memory")?) / 1024.0;
    report.record(Measure::Memory, who, mib);
    let note = format!(
        "{} messages in {:.0} s, {} of them no queries, {} answered; the agent has counted {arrived}, proper questions among \
         them; it had {} MiB",
        found.sent,
        time.as_secs_f64(),
        found.no_queries,
        found.answers,
        memory >> 20
    );
    out::line(format!("E {note}"));
    report.note(Part::Rubbish, note);
    let least = u64::try_from(found.sent)? * ARRIVED_PERCENT_MIN / 100;
    if arrived < least {
        report.fault(format!("E: only {arrived} of {} messages have arrived", found.sent));
    }
    server.child.stop().await;
    Ok(())
}

/// Messages that the name servers of an agent have counted.
async fn counted(face: SocketAddr) -> Result<u64> {
    let (status, text) = http::ask(face, "GET /metrics", "", METRICS_LIMIT).await?;
    ensure!(status == 200, "the agent's metrics: status {status}");
    let counts = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("outlast_dns_responses_total{")?;
        rest.rsplit(' ').next()?.parse::<u64>().ok()
    });
    Ok(counts.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_queries_are_queries_and_spoiled_ones_are_of_all_kinds() {
        let (good, mut random) = (good(), Random::new(Some(7)));
        assert!(good.iter().all(|message| is_query(message)));
        let spoiled: Vec<Vec<u8>> = (0..1000).map(|_| spoil(&mut random, &good)).collect();
        let queries = spoiled.iter().filter(|message| is_query(message)).count();
        assert!((300..900).contains(&queries), "{queries}");
        assert!(spoiled.iter().any(|message| message.len() < HEADER));
        assert!(spoiled.iter().any(|message| HEADER <= message.len() && message[2] & 0x80 != 0));
    }
}
