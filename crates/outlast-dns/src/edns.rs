//! EDNS (RFC 6891): the options of a query that matter here, and those of its answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::cookie::{CLIENT_COOKIE, COOKIE_MAX};

/// Option codes: NSID (RFC 5001), client subnet (RFC 7871), cookie (RFC 7873).
pub(crate) const NSID: u16 = 3;
pub(crate) const SUBNET: u16 = 8;
pub(crate) const COOKIE: u16 = 10;

/// Bytes of an OPT record without options.
pub(crate) const OPT: usize = 11;

/// What the OPT record of a query says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edns<'q> {
    /// Bytes of an answer that the client takes over UDP.
    pub(crate) size: u16,
    pub(crate) version: u8,
    /// The client wants signatures (DO).
    pub(crate) dnssec: bool,
    pub(crate) cookie: Option<([u8; CLIENT_COOKIE], &'q [u8])>,
    pub(crate) subnet: Option<Subnet>,
    pub(crate) nsid: bool,
}

/// The network of a client, as its resolver names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subnet {
    pub(crate) address: IpAddr,
    pub(crate) length: u8,
}

/// The options are not in the form of their standards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl<'q> Edns<'q> {
    /// Reads an OPT record: its class, its TTL and its data.
    pub(crate) fn read(class: u16, ttl: [u8; 4], data: &'q [u8]) -> Result<Edns<'q>, Broken> {
        let [_, version, flags, _] = ttl;
        let mut edns = Edns { size: class, version, dnssec: flags & 0x80 != 0, ..Edns::default() };
        // Options of another version are not understood (RFC 6891 6.1.3).
        let mut rest = if version == 0 { data } else { &[] };
        while !rest.is_empty() {
            let (&[c1, c2, l1, l2], after) = rest.split_first_chunk().ok_or(Broken)?;
            let length = usize::from(u16::from_be_bytes([l1, l2]));
            let (option, after) = after.split_at_checked(length).ok_or(Broken)?;
            match u16::from_be_bytes([c1, c2]) {
                COOKIE if edns.cookie.is_none() => edns.cookie = Some(cookie(option)?),
                SUBNET if edns.subnet.is_none() => edns.subnet = Some(Subnet::read(option)?),
                NSID => edns.nsid = true,
                _ => {}
            }
            rest = after;
        }
        Ok(edns)
    }
}

/// The client's part and the server's (RFC 7873 5.2.2).
fn cookie(option: &[u8]) -> Result<([u8; CLIENT_COOKIE], &[u8]), Broken> {
    let (client, server) = option.split_first_chunk::<CLIENT_COOKIE>().ok_or(Broken)?;
    let fits =
        server.is_empty() || (CLIENT_COOKIE..=COOKIE_MAX - CLIENT_COOKIE).contains(&server.len());
    if fits { Ok((*client, server)) } else { Err(Broken) }
}

impl Subnet {
    /// Reads the option of a query (RFC 7871 6, 7.1.2).
    fn read(option: &[u8]) -> Result<Subnet, Broken> {
        let (&[f1, f2, length, scope], octets) = option.split_first_chunk().ok_or(Broken)?;
        if scope != 0 || octets.len() != usize::from(length.div_ceil(8)) {
            return Err(Broken);
        }
        let mut room = [0; 16];
        room.get_mut(..octets.len()).ok_or(Broken)?.copy_from_slice(octets);
        let all = u128::from_be_bytes(room);
        if all & u128::MAX.checked_shr(u32::from(length)).unwrap_or(0) != 0 {
            return Err(Broken);
        }
        let address = match u16::from_be_bytes([f1, f2]) {
            1 if length <= 32 => {
                IpAddr::V4(Ipv4Addr::from_octets([room[0], room[1], room[2], room[3]]))
            }
            2 if length <= 128 => IpAddr::V6(Ipv6Addr::from_octets(room)),
            _ => return Err(Broken),
        };
        Ok(Subnet { address, length })
    }

    /// Writes the option of an answer that holds for `scope` bits. There is room for it.
    pub(crate) fn write(self, scope: u8, out: &mut Out<'_>) {
        let (family, octets, count) = match self.address {
            IpAddr::V4(v4) => (1u8, v4.to_ipv6_mapped().octets(), 12),
            IpAddr::V6(v6) => (2, v6.octets(), 0),
        };
        let used = usize::from(self.length.div_ceil(8));
        out.put(&SUBNET.to_be_bytes());
        out.put(&u16::try_from(4 + used).unwrap_or_default().to_be_bytes());
        out.put(&[0, family, self.length, scope]);
        out.put(octets.get(count..count + used).unwrap_or_default());
    }

    /// Bytes of the option of an answer.
    pub(crate) fn written(self) -> usize {
        8 + usize::from(self.length.div_ceil(8))
    }
}

/// Bytes that are written one after the other into a place that may be too small; then the end is not moved.
#[derive(Debug)]
pub(crate) struct Out<'o> {
    pub(crate) room: &'o mut [u8],
    pub(crate) end: usize,
}

impl Out<'_> {
    /// Appends; false if there is no room.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> bool {
        let Some(place) = self.room.get_mut(self.end..self.end + bytes.len()) else { return false };
        place.copy_from_slice(bytes);
        self.end += bytes.len();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_refused() {
        let subnet = |a: &str, length| Some(Subnet { address: a.parse().unwrap(), length });
        let none = Edns { size: 1232, ..Edns::default() };
        for (data, wanted) in [
            (&b""[..], Some(none)),
            (b"\0\x03\0\0", Some(Edns { nsid: true, ..none })),
            (b"\0\x99\0\x01x", Some(none)),
            (b"\0\x99\0\x02x", None),
            (b"\0\x99\0", None),
            (b"\0\x0a\0\x08abcdefgh", Some(Edns { cookie: Some((*b"abcdefgh", b"")), ..none })),
            (b"\0\x0a\0\x07abcdefg", None),
            (b"\0\x0a\0\x09abcdefghi", None),
            (
                b"\0\x08\0\x07\0\x01\x18\0\xc0\0\x02",
                Some(Edns { subnet: subnet("192.0.2.0", 24), ..none }),
            ),
            (b"\0\x08\0\x07\0\x01\x17\0\xc0\0\x03", None),
            (b"\0\x08\0\x06\0\x01\x18\0\xc0\0", None),
            (b"\0\x08\0\x07\0\x01\x18\x01\xc0\0\x02", None),
            (b"\0\x08\0\x07\0\x03\x18\0\xc0\0\x02", None),
            (b"\0\x08\0\x04\0\x01\0\0", Some(Edns { subnet: subnet("0.0.0.0", 0), ..none })),
            (
                b"\0\x08\0\x08\0\x02\x20\0\x20\x01\x0d\xb8",
                Some(Edns { subnet: subnet("2001:db8::", 32), ..none }),
            ),
        ] {
            assert_eq!(Edns::read(1232, [0; 4], data).ok(), wanted, "{data:?}");
        }
    }
}
