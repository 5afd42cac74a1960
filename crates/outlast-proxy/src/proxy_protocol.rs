//! HAProxy's PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): who the client really is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::body::Malformed;

/// A version 1 line has at most 107 bytes with its CRLF (section 2.1).
const V1_MAX: usize = 107;

/// A version 2 header beyond this is refused; the addresses need 36 bytes, the rest is TLVs.
const V2_MAX: usize = 16 + 2048;

/// No header of either version is longer.
pub(crate) const HEADER_MAX: usize = V2_MAX;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What a header said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes that the header took.
    pub length: usize,
    /// Client and the address that it connected to; `None` for health checks of the other proxy itself.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// Reads a header of either version; `Ok(None)` if it is not complete.
pub fn read(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let seen = bytes.len().min(V2_SIGNATURE.len());
    if bytes[..seen] == V2_SIGNATURE[..seen] {
        return if seen < V2_SIGNATURE.len() { Ok(None) } else { read_v2(bytes) };
    }
    read_v1(bytes)
}

fn read_v1(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(end) = bytes.iter().take(V1_MAX).position(|&b| b == b'\n') else {
        let known = b"PROXY ";
        let seen = bytes.len().min(known.len());
        return if bytes.len() < V1_MAX && bytes[..seen] == known[..seen] {
            Ok(None)
        } else {
            Err(Malformed("no PROXY header"))
        };
    };
    let bad = Malformed("bad PROXY v1 header");
    let line =
        bytes[..end].strip_suffix(b"\r").and_then(|l| std::str::from_utf8(l).ok()).ok_or(bad)?;
    let mut words = line.split(' ');
    if words.next() != Some("PROXY") {
        return Err(bad);
    }
    let length = end + 1;
    let family = words.next().ok_or(bad)?;
    if family == "UNKNOWN" {
        return Ok(Some(Header { length, addresses: None }));
    }
    let mut ip = || words.next().and_then(|w| w.parse::<IpAddr>().ok()).ok_or(bad);
    let (from, to) = (ip()?, ip()?);
    let right_family = match family {
        "TCP4" => from.is_ipv4() && to.is_ipv4(),
        "TCP6" => from.is_ipv6() && to.is_ipv6(),
        _ => false,
    };
    let mut port = || {
        let word =
            words.next().filter(|w| !w.starts_with('+') && (*w == "0" || !w.starts_with('0')));
        word.and_then(|w| w.parse::<u16>().ok()).ok_or(bad)
    };
    let (from_port, to_port) = (port()?, port()?);
    if !right_family || words.next().is_some() {
        return Err(bad);
    }
    let addresses = Some((SocketAddr::new(from, from_port), SocketAddr::new(to, to_port)));
    Ok(Some(Header { length, addresses }))
}

fn read_v2(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(&[version_command, family, high, low]) =
        bytes.get(12..).and_then(<[u8]>::first_chunk::<4>)
    else {
        return Ok(None);
    };
    let length = 16 + usize::from(u16::from_be_bytes([high, low]));
    if length > V2_MAX {
        return Err(Malformed("PROXY v2 header too long"));
    }
    let Some(payload) = bytes.get(16..length) else { return Ok(None) };
    let local = match version_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed("bad PROXY v2 version or command")),
    };
    let short = Malformed("PROXY v2 addresses cut short");
    let addresses = match family {
        _ if local => None,
        // AF_INET or AF_INET6 over STREAM; anything else is accepted and ignored, as section 2.2 asks.
        0x11 => {
            let &[a, b, c, d, e, f, g, h, p, q, r, s] = payload.first_chunk::<12>().ok_or(short)?;
            let from =
                SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([p, q]));
            Some((
                from,
                SocketAddr::new(Ipv4Addr::new(e, f, g, h).into(), u16::from_be_bytes([r, s])),
            ))
        }
        0x21 => {
            let (from, rest) = payload.split_first_chunk::<16>().ok_or(short)?;
            let (to, rest) = rest.split_first_chunk::<16>().ok_or(short)?;
            let &[p, q, r, s] = rest.first_chunk::<4>().ok_or(short)?;
            let from = SocketAddr::new(Ipv6Addr::from(*from).into(), u16::from_be_bytes([p, q]));
            Some((from, SocketAddr::new(Ipv6Addr::from(*to).into(), u16::from_be_bytes([r, s]))))
        }
        _ => None,
    };
    Ok(Some(Header { length, addresses }))
}

/// Both addresses in one family: IPv4 if both are, else IPv6 with mapped addresses.
fn families(
    from: SocketAddr,
    to: SocketAddr,
) -> Result<(Ipv4Addr, Ipv4Addr), (Ipv6Addr, Ipv6Addr)> {
    let six = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Ok((from, to)),
        (from, to) => Err((six(from), six(to))),
    }
}

/// The version 1 line for a connection.
pub fn write_v1(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (p, q) = (from.port(), to.port());
    match families(from, to) {
        Ok((from, to)) => format!("PROXY TCP4 {from} {to} {p} {q}\r\n"),
        Err((from, to)) => format!("PROXY TCP6 {from} {to} {p} {q}\r\n"),
    }
    .into_bytes()
}

/// The version 2 header for a connection.
pub fn write_v2(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut wire = V2_SIGNATURE.to_vec();
    match families(from, to) {
        Ok((from, to)) => {
            wire.extend_from_slice(&[0x21, 0x11, 0, 12]);
            wire.extend_from_slice(&from.octets());
            wire.extend_from_slice(&to.octets());
        }
        Err((from, to)) => {
            wire.extend_from_slice(&[0x21, 0x21, 0, 36]);
            wire.extend_from_slice(&from.octets());
            wire.extend_from_slice(&to.octets());
        }
    }
    wire.extend_from_slice(&from.port().to_be_bytes());
    wire.extend_from_slice(&to.port().to_be_bytes());
    wire
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_documents_own_lines_parse() {
        let line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nGET / HTTP/1.1";
        let header = read(line).unwrap().unwrap();
        assert_eq!(header.length, 47);
        assert_eq!(header.addresses.unwrap().0, "192.168.0.1:56324".parse().unwrap());
        assert_eq!(read(b"PROXY UNKNOWN\r\n").unwrap().unwrap().addresses, None);
        assert_eq!(
            read(b"PROXY UNKNOWN ffff::1 ffff::1 1 2\r\n").unwrap().unwrap().addresses,
            None
        );
        let local = [V2_SIGNATURE.as_slice(), &[0x20, 0, 0, 0]].concat();
        assert_eq!(read(&local), Ok(Some(Header { length: 16, addresses: None })));
    }

    #[test]
    fn bad_headers_are_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".as_slice(),
            b"PROXY TCP4 192.168.0.1 ::1 1 2\r\n",
            b"PROXY TCP6 192.168.0.1 192.168.0.1 1 2\r\n",
            b"PROXY TCP4 192.168.0.1 192.168.0.11 56324\r\n",
            b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 65536\r\n",
            b"PROXY TCP4 192.168.0.1 192.168.0.11 +1 2\r\n",
            b"PROXY TCP4 192.168.0.1 192.168.0.11 1 2 3\r\n",
            b"PROXY TCP4 192.168.0.1 192.168.0.11 1 2\n",
            b"PROXY TCP4  192.168.0.1 192.168.0.11 1 2\r\n",
            &[b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat(),
            &[V2_SIGNATURE.as_slice(), &[0x31, 0x11, 0, 12]].concat(),
            &[V2_SIGNATURE.as_slice(), &[0x21, 0x11, 0, 2, 1, 2]].concat(),
            &[V2_SIGNATURE.as_slice(), &[0x21, 0x11, 0xff, 0xff]].concat(),
        ] {
            let got = read(bytes);
            let cut_v2 = bytes.starts_with(V2_SIGNATURE) && got == Ok(None) && bytes.len() < 28;
            assert!(got.is_err() || cut_v2, "{:?} {got:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(from: SocketAddr, to: SocketAddr, v2: bool) {
            let wire = if v2 { write_v2(from, to) } else { write_v1(from, to) };
            for end in 0..wire.len() {
                prop_assert_eq!(read(&wire[..end]), Ok(None));
            }
            let header = read(&wire).unwrap().unwrap();
            prop_assert_eq!(header.length, wire.len());
            let (got_from, got_to) = header.addresses.unwrap();
            prop_assert_eq!((got_from.port(), got_to.port()), (from.port(), to.port()));
            prop_assert_eq!(got_from.ip().to_canonical(), from.ip().to_canonical());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            read(&bytes).ok();
            read(&[V2_SIGNATURE.as_slice(), &bytes].concat()).ok();
            read(&[b"PROXY ".as_slice(), &bytes].concat()).ok();
        }
    }
}
