//! Packet sockets: whole frames of Ethernet, past all rules and routes.

#![expect(unsafe_code, reason = "rustix knows neither addresses nor options of packet sockets")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// ETH_P_ALL, ETH_P_IP, ETH_P_ARP and ETH_P_IPV6 of linux/if_ether.h.
pub const ALL: u16 = 0x0003;
pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;

/// What linux/if_packet.h calls it; missing in some versions of libc's headers.
const IGNORE_OUTGOING: libc::c_int = 23;

/// A hardware address of Ethernet.
pub type Mac = [u8; 6];

/// A packet socket that waits for nothing; it receives nothing before it is bound.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// Where a frame has come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// How much of the buffer the frame has filled.
    pub len: usize,
    /// The interface.
    pub index: u32,
}

impl Socket {
    pub fn open() -> io::Result<Socket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(Socket(socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?))
    }

    /// Has a `virtio_net_hdr` before each frame, in both directions.
    pub fn with_notes(&self) -> io::Result<()> {
        self.switch_on(libc::PACKET_VNET_HDR)
    }

    /// Does not receive what this machine sends.
    pub fn ignore_outgoing(&self) -> io::Result<()> {
        self.switch_on(IGNORE_OUTGOING)
    }

    /// Receives only what the program says yes to.
    pub fn filter(&self, program: &Filter) -> io::Result<()> {
        let lines: Vec<_> = program
            .0
            .iter()
            .map(|line| libc::sock_filter { code: line.code, jt: line.yes, jf: line.no, k: line.k })
            .collect();
        let len = u16::try_from(lines.len()).map_err(io::Error::other)?;
        let program = libc::sock_fprog { len, filter: lines.as_ptr().cast_mut() };
        #[expect(clippy::cast_possible_truncation, reason = "a struct of 16 bytes")]
        let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
        let value = (&raw const program).cast();
        let (fd, option) = (self.0.as_raw_fd(), libc::SO_ATTACH_FILTER);
        // SAFETY: the value is a `sock_fprog` of the length given, whose `len` lines outlive the call and are only read.
        let done = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value, size) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Begins to receive: frames of this protocol from this interface; 0 is all interfaces.
    pub fn bind(&self, index: u32, protocol: u16) -> io::Result<()> {
        let address = address(index, protocol)?;
        // SAFETY: the address is a `sockaddr_ll` of the length given, and outlives the call.
        let done = unsafe { libc::bind(self.0.as_raw_fd(), (&raw const address).cast(), LENGTH) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Puts a frame, with all its headers, onto the wire of this interface.
    pub fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        let address = address(index, 0)?;
        let (start, len) = (frame.as_ptr().cast(), frame.len());
        let (fd, to) = (self.0.as_raw_fd(), (&raw const address).cast());
        // SAFETY: the frame is `len` bytes from `start`, the address a `sockaddr_ll`; both outlive the call.
        let sent = unsafe { libc::sendto(fd, start, len, libc::MSG_DONTWAIT, to, LENGTH) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes the next frame; what does not fit into the buffer is cut off.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        let mut from = address(0, 0)?;
        let mut from_len = LENGTH;
        let (start, len) = (buffer.as_mut_ptr().cast(), buffer.len());
        let (fd, address) = (self.0.as_raw_fd(), (&raw mut from).cast());
        // SAFETY: the buffer is `len` bytes from `start`, the address has room for the length given; all outlive the call.
        let got = unsafe {
            libc::recvfrom(fd, start, len, libc::MSG_DONTWAIT, address, &raw mut from_len)
        };
        let Ok(len) = usize::try_from(got) else { return Err(io::Error::last_os_error()) };
        Ok(Arrival { len, index: u32::try_from(from.sll_ifindex).unwrap_or(0) })
    }

    fn switch_on(&self, option: libc::c_int) -> io::Result<()> {
        let (on, fd): (libc::c_int, _) = (1, self.0.as_raw_fd());
        let value = (&raw const on).cast();
        #[expect(clippy::cast_possible_truncation, reason = "four bytes")]
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the value is a C int of the length given, and outlives the call.
        let done = unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, value, len) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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

#[expect(clippy::cast_possible_truncation, reason = "a struct of 20 bytes")]
const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

fn address(index: u32, protocol: u16) -> io::Result<libc::sockaddr_ll> {
    Ok(libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).expect("it is 17"),
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    })
}

/// A program that the kernel asks about each frame: the classic form of BPF.
#[derive(Clone, Debug, Default)]
pub struct Filter(Vec<Line>);

#[derive(Clone, Copy, Debug)]
struct Line {
    code: u16,
    yes: u8,
    no: u8,
    k: u32,
}

// linux/bpf_common.h: BPF_LD | BPF_B or BPF_W | BPF_ABS; BPF_JMP | BPF_JEQ | BPF_K; BPF_RET | BPF_K.
const LOAD_BYTE: u16 = 0x30;
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// As much of a frame as there is.
const ALL_OF_IT: u32 = u32::MAX;

impl Filter {
    /// Loads the byte at this place of the frame; a shorter frame is refused.
    pub fn load_byte(self, at: u32) -> Filter {
        self.line(LOAD_BYTE, 0, 0, at)
    }

    /// Loads four bytes, in network order.
    pub fn load_word(self, at: u32) -> Filter {
        self.line(LOAD_WORD, 0, 0, at)
    }

    /// Refuses the frame unless what is loaded is this.
    pub fn need(self, value: u32) -> Filter {
        self.line(JUMP_IF_EQUAL, 1, 0, value).line(RETURN, 0, 0, 0)
    }

    /// Takes the frame if what is loaded is this.
    pub fn take_if(self, value: u32) -> Filter {
        self.line(JUMP_IF_EQUAL, 0, 1, value).take()
    }

    /// Takes all that has come this far.
    pub fn take(self) -> Filter {
        self.line(RETURN, 0, 0, ALL_OF_IT)
    }

    /// Refuses all that has come this far.
    pub fn refuse(self) -> Filter {
        self.line(RETURN, 0, 0, 0)
    }

    fn line(mut self, code: u16, yes: u8, no: u8, k: u32) -> Filter {
        self.0.push(Line { code, yes, no, k });
        self
    }
}
