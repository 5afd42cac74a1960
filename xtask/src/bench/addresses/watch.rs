//! What runs inside the machines of the lab: the service that answers on the address, and the client that asks it and
//! counts who claims the address.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use outlast_kernel::packet::{self, Mac};
use outlast_kernel::route::Route;
use tokio::io::unix::AsyncFd;
use tokio::time::MissedTickBehavior;

use crate::Verdict;
use crate::args::Args;
use crate::postgres::monotonic;

const PORT: u16 = 9000;
/// Between two questions of the client.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(4);
/// Between two looks at who claims the address.
pub(super) const CLAIM_EVERY: Duration = Duration::from_millis(20);
/// The client itself came too late by this much: the machine is too busy to measure on.
const LATE: Duration = Duration::from_millis(40);
const DATAGRAM_MAX: usize = 100;
const FRAME_MAX: usize = 128;
/// Answers that are read in one turn.
const TURN_MAX: usize = 1000;

/// Claims are asked for in the name of somebody who is not there: an answer to the client itself would change where its
/// kernel believes the address to be, and so what is measured.
const ASKER: Mac = [0x02, b'a', b's', b'k', 0, 1];

const ETHERNET: usize = 14;
const ARP_LEN: usize = 28;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// `vipecho NAME`: answers every datagram with itself and the name.
pub(crate) fn echo(args: Args) -> Result<Verdict> {
    let words = args.rest()?;
    let name = words.first().context("name the machine")?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listen")?;
    let mut buffer = [0; DATAGRAM_MAX];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).context("receive")?;
        let answer = [&buffer[..len], name.as_bytes()].concat();
        // Who asked sees that nothing came back.
        let _lost = socket.send_to(&answer, from).is_err();
    }
}

/// `vipclient --ip IP --asker IP --interface NAME`: asks without end, and prints one line for all that it sees.
pub(crate) fn client(mut args: Args) -> Result<Verdict> {
    let ip: Ipv4Addr = args.option("--ip")?.context("--ip is missing")?;
    let asker: Ipv4Addr = args.option("--asker")?.context("--asker is missing")?;
    let interface: String = args.option("--interface")?.context("--interface is missing")?;
    args.finish()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watch(ip, asker, &interface))?;
    Ok(Verdict::Good)
}

async fn watch(ip: Ipv4Addr, asker: Ipv4Addr, interface: &str) -> Result<()> {
    // Not connected: a socket that is would keep the way that it once had, and hear that nobody listens.
    let udp = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.context("open")?;
    let target = SocketAddr::from((ip, PORT));
    let mut claims = Claims::open(ip, asker, interface)?;
    let mut ask = tokio::time::interval(ASK_EVERY);
    let mut look = tokio::time::interval(CLAIM_EVERY);
    ask.set_missed_tick_behavior(MissedTickBehavior::Skip);
    look.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut buffer = [0; DATAGRAM_MAX];
    let mut last = Instant::now();
    let mut number: u64 = 0;
    let mut lines = std::io::stdout().lock();
    loop {
        tokio::select! {
            _ = ask.tick() => {
                let late = last.elapsed().saturating_sub(ASK_EVERY);
                last = Instant::now();
                if LATE < late {
                    writeln!(lines, "L {} {}", monotonic(), late.as_millis())?;
                }
                number += 1;
                // Nobody is there, or no way leads there: it is seen by what does not come back.
                let _lost = udp.try_send_to(format!("{number} ").as_bytes(), target).is_err();
            }
            _ = look.tick() => {
                if let Some(line) = claims.turn() {
                    writeln!(lines, "{line}")?;
                }
                lines.flush().context("say what was seen")?;
            }
            got = udp.recv_from(&mut buffer) => {
                let Ok((len, _)) = got else { continue };
                let text = String::from_utf8_lossy(&buffer[..len]);
                if let Some((_, name)) = text.split_once(' ') {
                    writeln!(lines, "A {} {name}", monotonic())?;
                }
            }
            came = claims.socket.readable() => {
                came.context("wait for claims")?.clear_ready();
                claims.collect()?;
            }
        }
    }
}

/// Who says, when asked, that the address is his.
struct Claims {
    socket: AsyncFd<packet::Socket>,
    index: u32,
    ip: Ipv4Addr,
    asker: Ipv4Addr,
    /// Since the last question.
    said: BTreeSet<Mac>,
}

impl Claims {
    fn open(ip: Ipv4Addr, asker: Ipv4Addr, interface: &str) -> Result<Claims> {
        let link = Route::open()?.link(interface).with_context(|| format!("find {interface}"))?;
        let socket = packet::Socket::open().context("open a packet socket")?;
        socket.bind(link.index, packet::ARP).context("listen for claims")?;
        let socket = socket.readable()?;
        Ok(Claims { socket, index: link.index, ip, asker, said: BTreeSet::new() })
    }

    /// Ends a sample and begins the next; how many have claimed the address, and who.
    fn turn(&mut self) -> Option<String> {
        let said = std::mem::take(&mut self.said);
        let question = frame(ASKER, self.asker, self.ip);
        let _lost = self.socket.get_ref().send(self.index, &question).is_err();
        let names: Vec<String> = said.iter().map(|mac| shown(*mac)).collect();
        (!names.is_empty()).then(|| format!("C {} {}", monotonic(), names.join(" ")))
    }

    fn collect(&mut self) -> Result<()> {
        let mut buffer = [0; FRAME_MAX];
        for _ in 0..TURN_MAX {
            match self.socket.get_ref().receive(&mut buffer) {
                Ok(arrival) => {
                    let len = arrival.len.min(FRAME_MAX);
                    self.said.extend(claim(&buffer[..len], ASKER, self.ip));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("receive claims"),
            }
        }
        Ok(())
    }
}

fn shown(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Asks everybody whose address `ip` is.
fn frame(mac: Mac, own: Ipv4Addr, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = [[0xff; 6], mac].concat();
    // ARP, as Ethernet asks for IPv4 (RFC 826).
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, REQUEST]);
    frame.extend(mac);
    frame.extend(own.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

/// Who answers a question of ours: not one who announces himself to all.
fn claim(frame: &[u8], own: Mac, ip: Ipv4Addr) -> Option<Mac> {
    let arp = frame.get(ETHERNET..ETHERNET + ARP_LEN)?;
    let is_answer = arp[7] == REPLY && arp[18..24] == own && arp[14..18] == ip.octets();
    is_answer.then(|| arp[8..14].try_into().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 4];
    const HOLDER: Mac = [2, 0, 0, 0, 0, 1];
    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);

    fn said(operation: u8, to: Mac, ip: Ipv4Addr) -> Option<Mac> {
        let mut bytes = frame(HOLDER, ip, Ipv4Addr::new(10, 0, 0, 4));
        bytes[ETHERNET + 7] = operation;
        bytes[ETHERNET + 18..ETHERNET + 24].copy_from_slice(&to);
        claim(&bytes, OWN, IP)
    }

    #[test]
    fn only_an_answer_to_our_own_question_is_a_claim() {
        assert_eq!(said(REPLY, OWN, IP), Some(HOLDER));
        assert_eq!(said(REQUEST, OWN, IP), None);
        assert_eq!(said(REPLY, [0xff; 6], IP), None);
        assert_eq!(said(REPLY, OWN, Ipv4Addr::new(10, 0, 0, 1)), None);
        assert_eq!(claim(&[0; 20], OWN, IP), None);
    }
}
