//! Speaks netlink: how a network is described to the kernel, without a program or a crate between.
//!
//! A message is a header, a fixed part and attributes that may hold attributes. Every question is answered at once: the
//! kernel works while `sendto` runs, so the answers lie ready when it returns.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto,
    socket_with,
};

/// Bytes of one answer: netlink messages are at most this long (NLMSG_GOODSIZE is 8 KiB).
pub const ANSWER_MAX: usize = 32 << 10;
/// Datagrams that are read as the answer to one question.
const ANSWERS_MAX: usize = 4096;

const HEADER: usize = 16;
/// linux/netlink.h: NLMSG_ERROR, also the acknowledgement when its code is 0.
const ERROR: u16 = 2;
/// NLMSG_DONE: the end of a list.
const DONE: u16 = 3;
/// linux/netlink.h: NLA_F_NESTED.
const NESTED: u16 = 1 << 15;

/// NLM_F_REQUEST | NLM_F_ACK
pub const ASK: u16 = 0x1 | 0x4;
/// NLM_F_REQUEST | NLM_F_DUMP: a list of all.
pub const LIST: u16 = 0x1 | 0x300;
/// NLM_F_EXCL | NLM_F_CREATE: fail if it is there.
pub const CREATE: u16 = 0x200 | 0x400;
/// NLM_F_CREATE: let it be if it is there.
pub const CREATE_OR_KEEP: u16 = 0x400;
/// NLM_F_REPLACE | NLM_F_CREATE: change it if it is there.
pub const CREATE_OR_CHANGE: u16 = 0x100 | 0x400;
/// NLM_F_APPEND
pub const APPEND: u16 = 0x800;

/// A connection to one part of the kernel.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Belongs to the network namespace that the calling thread is in, for good.
    pub fn open(protocol: Option<Protocol>) -> io::Result<Socket> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        Ok(Socket(socket))
    }

    /// Belongs to the groups as well: the kernel says there by itself what has changed.
    pub fn listen(protocol: Option<Protocol>, groups: u32) -> io::Result<Socket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Socket(socket))
    }

    /// Sends messages and reads all that is said about them; the first complaint is the result.
    pub fn ask(&self, messages: &[u8]) -> io::Result<()> {
        self.query(messages, |_, _| {})
    }

    /// The same, and hands on each message of the answer: its type, and what follows its header.
    pub fn query(&self, messages: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.send(messages)?;
        let mut acknowledged = false;
        let mut buffer = vec![0; ANSWER_MAX];
        for _ in 0..ANSWERS_MAX {
            let len = match recv(&self.0, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((len, _)) => len,
                Err(Errno::AGAIN) if acknowledged => return Ok(()),
                Err(Errno::AGAIN) => return Err(io::Error::other("the kernel said nothing")),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for (kind, body) in messages_of(&buffer[..len]) {
                match kind {
                    ERROR => self.judge(body)?,
                    DONE => {}
                    _ => each(kind, body),
                }
                acknowledged |= kind == ERROR || kind == DONE;
            }
        }
        Err(io::Error::other("the kernel says too much"))
    }

    /// What an acknowledgement says; after a complaint nothing is left to be read.
    fn judge(&self, body: &[u8]) -> io::Result<()> {
        match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
            Some(0) => Ok(()),
            Some(code) => {
                self.forget();
                Err(io::Error::from_raw_os_error(code.saturating_neg()))
            }
            None => Err(io::Error::other("a netlink error is cut short")),
        }
    }

    /// Reads what the kernel has said by itself, into the buffer.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.0, buffer, RecvFlags::DONTWAIT)?.0)
    }

    /// Sends messages without a look at what is said about them.
    pub fn send(&self, messages: &[u8]) -> io::Result<()> {
        loop {
            match sendto(&self.0, messages, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)) {
                Ok(len) if len == messages.len() => return Ok(()),
                Ok(_) => return Err(io::Error::other("the kernel took half of a message")),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Reads what else was said about a question that failed, so that it answers no other.
    fn forget(&self) {
        let mut buffer = [0; 64];
        for _ in 0..ANSWERS_MAX {
            if recv(&self.0, &mut buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC).is_err() {
                return;
            }
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The messages of one datagram: their types and what follows their headers. What is cut short is left out.
pub fn messages_of(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes of a message or of another attribute: their types and values. What is cut short is left out.
pub fn attributes_of(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !NESTED, value))
    })
}

/// One message, or several in a row.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    count: u32,
}

impl Messages {
    /// Adds a message: its type, flags, fixed part and attributes.
    pub fn add(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.count += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        pad(&mut self.bytes);
        fill(&mut Attributes(&mut self.bytes));
        let len = u32::try_from(self.bytes.len() - start).expect("no message holds 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// As they are sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Where attributes are written.
#[derive(Debug)]
pub struct Attributes<'b>(&'b mut Vec<u8>);

impl Attributes<'_> {
    /// A value as it is.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        self.with(kind, |inner| inner.0.extend_from_slice(value));
    }

    /// A number in network order, as nftables wants it.
    pub fn put_be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A text with the zero that ends it.
    pub fn put_text(&mut self, kind: u16, text: &str) {
        self.with(kind, |inner| {
            inner.0.extend_from_slice(text.as_bytes());
            inner.0.push(0);
        });
    }

    /// An attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.with(kind | NESTED, fill);
    }

    /// An attribute that begins with a fixed part, like the other end of a veth.
    pub fn nest_after(&mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(&mut Attributes<'_>)) {
        self.with(kind | NESTED, |inner| {
            inner.0.extend_from_slice(fixed);
            fill(inner);
        });
    }

    fn with(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        fill(&mut Attributes(self.0));
        let len = u16::try_from(self.0.len() - start).expect("no attribute holds 64 KiB");
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        pad(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Messages {
        let mut messages = Messages::default();
        messages.add(16, ASK, &[1, 2, 3, 4], |a| {
            a.put_text(3, "eth0");
            a.nest(18, |inner| inner.put_be32(1, 7));
        });
        messages.add(20, ASK, &[], |a| a.put(1, &[9]));
        messages
    }

    #[test]
    fn what_is_written_can_be_read() {
        let messages = sample();
        let read: Vec<_> = messages_of(messages.bytes()).collect();
        assert_eq!(read.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [16, 20]);
        let attributes: Vec<_> = attributes_of(&read[0].1[4..]).collect();
        assert_eq!(attributes[0], (3, b"eth0\0".as_slice()));
        assert_eq!(attributes[1].0, 18);
        let inner: Vec<_> = attributes_of(attributes[1].1).collect();
        assert_eq!(inner, [(1, [0, 0, 0, 7].as_slice())]);
        assert_eq!(attributes_of(read[1].1).collect::<Vec<_>>(), [(1, [9].as_slice())]);
    }

    #[test]
    fn a_message_cut_short_is_no_message_and_no_panic() {
        let messages = sample();
        for len in 0..messages.bytes().len() {
            for (_, body) in messages_of(&messages.bytes()[..len]) {
                assert!(attributes_of(body).count() < 10);
            }
        }
    }
}
