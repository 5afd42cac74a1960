//! The advertisement of VRRP version 3 in bytes (RFC 9568 5).
//!
//! ```text
//!  0        1        2        3
//!  version│ router │priority│ count of
//!   type  │ number │        │ addresses
//!  reserved, interval (12) │ checksum
//!  addresses, 4 or 16 bytes each
//! ```

use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::num::NonZeroU8;

use super::Interval;

/// The number of the protocol in the header of IP.
pub const PROTOCOL: u8 = 112;
/// An advertisement with another one has crossed a router, and is none (RFC 9568 5.1.1.3).
pub const HOPS: u8 = 255;
/// To whom it goes.
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// As many as the field of the count has room for.
pub const ADDRESSES_MAX: usize = 255;

const VERSION: u8 = 3;
const ADVERTISEMENT: u8 = 1;
const HEADER: usize = 8;

/// What the checksum covers in IPv4. In IPv6 it always covers the addresses of the header, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// The message and the addresses of the header: keepalived, RFC 5798 as most have read it.
    #[default]
    PseudoHeader,
    /// The message alone: RFC 9568 5.2.8, and version 2.
    MessageOnly,
}

/// What a router says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    pub router: NonZeroU8,
    /// [`super::LEAVES`]: it ends.
    pub priority: u8,
    pub interval: Interval,
    /// All of one kind.
    pub addresses: Vec<IpAddr>,
}

/// Why bytes are no advertisement that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    Short,
    /// Not version 3.
    Version(u8),
    Kind(u8),
    Router,
    Interval,
    Checksum,
    /// The addresses end before the count of them, or after.
    Length,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Short => f.write_str("it is shorter than its header"),
            Malformed::Version(version) => write!(f, "it is of version {version}, not {VERSION}"),
            Malformed::Kind(kind) => write!(f, "it is of type {kind}, which is no advertisement"),
            Malformed::Router => f.write_str("it has the router number 0"),
            Malformed::Interval => f.write_str("its interval is 0"),
            Malformed::Checksum => f.write_str("its checksum is wrong"),
            Malformed::Length => f.write_str("it does not have as many addresses as it says"),
        }
    }
}

impl core::error::Error for Malformed {}

impl Advert {
    /// From one address of the header to another one of the same kind. Addresses of the other kind are left out.
    pub fn to_bytes(&self, from: IpAddr, to: IpAddr, dialect: Dialect) -> Vec<u8> {
        let mut bytes =
            alloc::vec![VERSION << 4 | ADVERTISEMENT, self.router.get(), self.priority, 0,];
        bytes.extend(self.interval.centiseconds().to_be_bytes());
        bytes.extend([0, 0]);
        let same_kind = |address: &&IpAddr| address.is_ipv4() == from.is_ipv4();
        for address in self.addresses.iter().filter(same_kind).take(ADDRESSES_MAX) {
            bytes[3] += 1;
            extend(&mut bytes, *address);
        }
        let sum = checksum(&bytes, from, to, dialect);
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Reads what follows the header of IP; says which checksum the sender goes by. A sum that is right in both ways is the
    /// usual one.
    pub fn read(bytes: &[u8], from: IpAddr, to: IpAddr) -> Result<(Advert, Dialect), Malformed> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(Malformed::Short);
        };
        let [first, router, priority, count, reserved_high, low, ..] = *header;
        if first >> 4 != VERSION {
            return Err(Malformed::Version(first >> 4));
        }
        if first & 15 != ADVERTISEMENT {
            return Err(Malformed::Kind(first & 15));
        }
        let router = NonZeroU8::new(router).ok_or(Malformed::Router)?;
        let interval = u16::from_be_bytes([reserved_high & 15, low]);
        let interval = Interval::of_centiseconds(interval).ok_or(Malformed::Interval)?;
        let addresses = addresses(rest, count, from.is_ipv4()).ok_or(Malformed::Length)?;
        let dialects = [Dialect::PseudoHeader, Dialect::MessageOnly];
        let fits = |dialect: &Dialect| checksum(bytes, from, to, *dialect) == 0;
        let dialect = dialects.into_iter().find(fits).ok_or(Malformed::Checksum)?;
        Ok((Advert { router, priority, interval, addresses }, dialect))
    }
}

fn addresses(bytes: &[u8], count: u8, v4: bool) -> Option<Vec<IpAddr>> {
    let size = if v4 { 4 } else { 16 };
    if bytes.len() != usize::from(count) * size {
        return None;
    }
    let read = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(octets) => Some(IpAddr::from(octets)),
        Err(_) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    bytes.chunks_exact(size).map(read).collect()
}

fn extend(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
}

/// RFC 1071 over the message, behind what the header of IP says where that counts (RFC 8200 8.1). Zero, if the sum that is
/// in the message is right.
fn checksum(message: &[u8], from: IpAddr, to: IpAddr, dialect: Dialect) -> u16 {
    let mut all = Vec::with_capacity(message.len() + 40);
    if from.is_ipv6() || dialect == Dialect::PseudoHeader {
        extend(&mut all, from);
        extend(&mut all, to);
        // A message is shorter than 65536 bytes: in both kinds these are zeros, the protocol and the length.
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        all.extend(length.to_be_bytes());
        all.extend([0, PROTOCOL]);
    }
    all.extend(message);
    let words = all.chunks(2).map(|word| match *word {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
