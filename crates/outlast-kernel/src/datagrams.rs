//! Many datagrams in one call: what a busy server pays for each is mostly the way into the kernel and back.

#![expect(unsafe_code, reason = "rustix does not receive several datagrams in one call")]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::null_mut;

/// Datagrams of one call. Fewer cost more ways into the kernel, and more find what they use fallen out of the processor's cache.
pub const BATCH: usize = 32;

/// Rooms are so far apart that those of a batch do not share the same few lines of the processor's cache.
const APART: usize = 192;

/// Bytes of the longest address.
const NAME_MAX: usize = size_of::<libc::sockaddr_in6>();
const NAME_V4: usize = size_of::<libc::sockaddr_in>();

/// An address as the kernel writes it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Name([u8; NAME_MAX]);

impl Name {
    /// How much of it is used.
    fn len(&self) -> usize {
        if self.family() == libc::AF_INET { NAME_V4 } else { NAME_MAX }
    }

    fn family(&self) -> libc::c_int {
        libc::c_int::from(u16::from_ne_bytes([self.0[0], self.0[1]]))
    }

    /// `None`: neither IPv4 nor IPv6.
    fn address(&self) -> Option<SocketAddr> {
        let bytes = |at: usize| *self.0[at..].first_chunk().expect("it is long enough");
        let port = u16::from_be_bytes([self.0[2], self.0[3]]);
        match self.family() {
            libc::AF_INET => Some((Ipv4Addr::from(bytes(4)), port).into()),
            libc::AF_INET6 => {
                let ip: [u8; 16] = *self.0[8..].first_chunk().expect("it is long enough");
                let (flow, scope) = (u32::from_be_bytes(bytes(4)), u32::from_ne_bytes(bytes(24)));
                Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into())
            }
            _ => None,
        }
    }
}

/// Rooms for datagrams that come, and for one answer to each.
#[derive(Debug)]
pub struct Datagrams {
    room: usize,
    answer_room: usize,
    bytes: Vec<u8>,
    answers: Vec<u8>,
    names: [Name; BATCH],
    /// Of what has come, and of the answers; an answer of length 0 is none.
    lengths: [usize; BATCH],
    answer_lengths: [usize; BATCH],
}

/// One that has come.
#[derive(Debug)]
pub struct Datagram<'b> {
    pub bytes: &'b [u8],
    pub source: SocketAddr,
    /// Where the answer is written.
    pub answer: &'b mut [u8],
    /// How long the answer is; 0: there is none.
    pub answer_length: &'b mut usize,
}

impl Datagrams {
    /// For datagrams of `room` bytes, of which longer ones lose the rest, and answers of `answer_room`.
    pub fn new(room: usize, answer_room: usize) -> Datagrams {
        Datagrams {
            room,
            answer_room,
            bytes: vec![0; BATCH * (room + APART)],
            answers: vec![0; BATCH * (answer_room + APART)],
            names: [Name([0; NAME_MAX]); BATCH],
            lengths: [0; BATCH],
            answer_lengths: [0; BATCH],
        }
    }

    /// Waits for a datagram, as the socket does, and takes those that are there with it; those that came before are forgotten.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let rooms = self.bytes.chunks_exact_mut(self.room + APART);
        let mut parts = [libc::iovec { iov_base: null_mut(), iov_len: self.room }; BATCH];
        for (part, room) in parts.iter_mut().zip(rooms) {
            part.iov_base = room.as_mut_ptr().cast();
        }
        // SAFETY: zeros are a `mmsghdr` that names nothing.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        for ((header, part), name) in headers.iter_mut().zip(&mut parts).zip(&mut self.names) {
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_namelen = length_of(NAME_MAX);
        }
        let (fd, first) = (socket.as_fd().as_raw_fd(), headers.as_mut_ptr());
        // MSG_WAITFORONE of linux/socket.h: waits for the first, takes what else is there. C libraries differ in its type.
        // SAFETY: there are `BATCH` headers; each names one part, a room of `room` bytes that no other part has, and an address
        // with room for `NAME_MAX` bytes. All of them outlive the call.
        let got = unsafe { libc::recvmmsg(fd, first, count_of(BATCH), 0x1_0000, null_mut()) };
        let Ok(count) = usize::try_from(got) else { return Err(io::Error::last_os_error()) };
        for (length, header) in self.lengths.iter_mut().zip(&headers).take(count) {
            // What is longer than the room is not told of unless that is asked for.
            *length = usize::try_from(header.msg_len).unwrap_or(0).min(self.room);
        }
        self.answer_lengths = [0; BATCH];
        Ok(count)
    }

    /// One of those that have come last.
    pub fn get(&mut self, n: usize) -> Option<Datagram<'_>> {
        let source = self.names.get(n)?.address()?;
        let (at, answer_at) = (n * (self.room + APART), n * (self.answer_room + APART));
        Some(Datagram {
            bytes: self.bytes.get(at..at + self.lengths.get(n)?)?,
            source,
            answer: self.answers.get_mut(answer_at..answer_at + self.answer_room)?,
            answer_length: self.answer_lengths.get_mut(n)?,
        })
    }

    /// Sends all answers to whom they belong. What cannot be sent is lost, as in any network.
    pub fn send(&mut self, socket: impl AsFd) {
        let rooms = self.answers.chunks_exact_mut(self.answer_room + APART);
        let mut parts = [libc::iovec { iov_base: null_mut(), iov_len: 0 }; BATCH];
        // SAFETY: zeros are a `mmsghdr` that names nothing.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        let wanted = rooms.zip(&self.answer_lengths).zip(&mut self.names);
        let wanted = wanted.filter(|((_, length), _)| 0 < **length);
        let mut count = 0;
        for (((room, length), name), (part, header)) in
            wanted.zip(parts.iter_mut().zip(&mut headers))
        {
            part.iov_base = room.as_mut_ptr().cast();
            part.iov_len = (*length).min(self.answer_room);
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_namelen = length_of(name.len());
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            count += 1;
        }
        let fd = socket.as_fd().as_raw_fd();
        let mut at = 0;
        while at < count {
            let left = &mut headers[at..count];
            // SAFETY: each of the headers names one part, bytes of a room, and an address; all of them outlive the call.
            let sent = unsafe { libc::sendmmsg(fd, left.as_mut_ptr(), count_of(left.len()), 0) };
            // The first of those that are left cannot be sent where none was.
            at += usize::try_from(sent).unwrap_or(0).max(1);
        }
    }
}

fn length_of(bytes: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes).expect("an address is short")
}

fn count_of(datagrams: usize) -> libc::c_uint {
    libc::c_uint::try_from(datagrams).expect("a batch is short")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    const WAIT: Option<Duration> = Some(Duration::from_secs(5));

    fn pair(ip: &str) -> (UdpSocket, UdpSocket) {
        let bind = || UdpSocket::bind((ip.parse::<std::net::IpAddr>().unwrap(), 0)).unwrap();
        let (server, client) = (bind(), bind());
        client.connect(server.local_addr().unwrap()).unwrap();
        client.set_read_timeout(WAIT).unwrap();
        server.set_read_timeout(WAIT).unwrap();
        (server, client)
    }

    /// Answers all that has come with itself, doubled, but for what is empty.
    fn answer(batch: &mut Datagrams, server: &UdpSocket) -> usize {
        let count = batch.receive(server).unwrap();
        for n in 0..count {
            let Datagram { bytes, answer, answer_length, .. } = batch.get(n).unwrap();
            let double = bytes.repeat(2);
            answer[..double.len()].copy_from_slice(&double);
            *answer_length = double.len();
        }
        batch.send(server);
        count
    }

    #[test]
    fn each_datagram_of_a_batch_gets_its_own_answer_on_both_families() {
        for ip in ["127.0.0.1", "::1"] {
            let (server, client) = pair(ip);
            let mut batch = Datagrams::new(100, 200);
            let texts: Vec<String> = (0..BATCH + 3).map(|n| format!("question {n}")).collect();
            for text in &texts {
                client.send(text.as_bytes()).unwrap();
            }
            assert_eq!(answer(&mut batch, &server), BATCH, "as many as there is room for");
            assert_eq!(answer(&mut batch, &server), 3, "and the rest without waiting for more");
            let mut buffer = [0; 200];
            for text in &texts {
                let length = client.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..length], *text.repeat(2).as_bytes());
            }
            let source = batch.get(0).unwrap().source;
            assert_eq!(source, client.local_addr().unwrap());
        }
    }

    #[test]
    fn what_is_too_long_is_cut_and_what_is_empty_is_not_answered() {
        let (server, client) = pair("127.0.0.1");
        let mut batch = Datagrams::new(8, 16);
        for bytes in [[7; 20].as_slice(), &[], &[9]] {
            client.send(bytes).unwrap();
        }
        assert_eq!(answer(&mut batch, &server), 3);
        let mut buffer = [0; 200];
        assert_eq!(client.recv(&mut buffer).unwrap(), 16);
        assert_eq!(client.recv(&mut buffer).unwrap(), 2);
        assert_eq!(buffer[..2], [9, 9]);
        assert!(batch.get(BATCH).is_none());
    }

    #[test]
    fn one_answer_that_cannot_be_sent_does_not_hold_up_the_others() {
        let (server, client) = pair("127.0.0.1");
        let mut batch = Datagrams::new(100, 70_000);
        for _ in 0..3 {
            client.send(b"x").unwrap();
        }
        assert_eq!(batch.receive(&server).unwrap(), 3);
        for (n, length) in [(0, 1), (1, 70_000), (2, 2)] {
            // More than a datagram can have cannot be sent.
            *batch.get(n).unwrap().answer_length = length;
        }
        batch.send(&server);
        let mut buffer = [0; 200];
        assert_eq!(client.recv(&mut buffer).unwrap(), 1);
        assert_eq!(client.recv(&mut buffer).unwrap(), 2);
    }

    #[test]
    fn nothing_comes_while_nobody_sends() {
        let (server, _client) = pair("127.0.0.1");
        server.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let error = Datagrams::new(100, 100).receive(&server).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
