//! Heads of requests: what they ask for, who asks, where their body ends; and what a backend gets of them.

use std::io::Write as _;
use std::net::SocketAddr;

use super::{HEADERS_MAX, Method, Refusal, named, number, put, refuse, words};
use crate::body::Framing;
use crate::table::Forwarded;

/// A request as the proxy understands it; `wire` is what a backend gets.
#[derive(Debug, Default)]
pub struct Request {
    pub wire: Vec<u8>,
    pub method: Option<Method>,
    pub body: Body,
    /// HTTP/1.0 clients get no chunked coding.
    pub http10: bool,
    /// The client wants the connection to stay open.
    pub keep_alive: bool,
    pub expects_continue: bool,
    pub upgrade: bool,
    /// The balancer's hash of the configured header, cookie or path.
    pub hash: u64,
}

/// The framing of a request's body; a wrapper so that `Request` has a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body(pub Framing);

impl Default for Body {
    fn default() -> Body {
        Body(Framing::None)
    }
}

impl Request {
    /// The request's method; GET stands in before a head has been read.
    pub fn method(&self) -> Method {
        self.method.unwrap_or(Method::Get)
    }
}

/// What a request's head is judged and rewritten by.
#[derive(Debug)]
pub struct RequestRules<'a> {
    pub headers_max: u16,
    pub body_max: u64,
    pub forwarded: Forwarded,
    /// Whether the client's own forwarding headers are kept.
    pub trusted: bool,
    pub client: SocketAddr,
    /// The address that the client connected to.
    pub local: SocketAddr,
    pub tls: bool,
    pub hash: HashOn<'a>,
}

/// What the balancer hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashOn<'a> {
    Nothing,
    Path,
    Header(&'a str),
    Cookie(&'a str),
}

/// Reads a request head; `Ok(None)` if it is not complete. Returns its length in bytes.
pub fn read_request(
    bytes: &[u8],
    rules: &RequestRules<'_>,
    request: &mut Request,
) -> Result<Option<usize>, Refusal> {
    let mut lines = [const { std::mem::MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(bytes, &mut lines) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(refuse(431, "too many headers")),
        Err(httparse::Error::Version) => return Err(refuse(400, "bad version")),
        Err(httparse::Error::HeaderName) => return Err(refuse(400, "bad header name")),
        Err(httparse::Error::HeaderValue) => return Err(refuse(400, "bad header value")),
        Err(httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token) => {
            return Err(refuse(400, "bad request line"));
        }
    };
    if parsed.headers.len() > usize::from(rules.headers_max) {
        return Err(refuse(431, "too many headers"));
    }
    let method = parsed.method.ok_or(refuse(400, "no method"))?;
    let target = parsed.path.ok_or(refuse(400, "no target"))?;
    let http10 = parsed.version == Some(0);
    let notes = survey(bytes, parsed.headers, http10, rules)?;
    if !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-' || b == b'_') {
        return Err(refuse(400, "bad method"));
    }
    let (path, authority) = split_target(method, target)?;
    if !path_is_sane(path) {
        return Err(refuse(400, "bad path"));
    }
    let own;
    let host = match (authority, notes.host) {
        (Some(_), None) if !http10 => return Err(refuse(400, "no Host header")),
        // RFC 9112 3.2.2: an absolute target's authority replaces the Host header.
        (Some(authority), _) => authority.as_bytes(),
        (None, Some(host)) => host,
        (None, None) if http10 => {
            // A backend may insist on a Host that HTTP/1.0 does not have: it gets the address that was asked.
            own = rules.local.to_string();
            own.as_bytes()
        }
        (None, None) => return Err(refuse(400, "no Host header")),
    };
    if !host_is_sane(host) {
        return Err(refuse(400, "bad Host header"));
    }

    let wire = &mut request.wire;
    wire.clear();
    wire.extend_from_slice(method.as_bytes());
    wire.push(b' ');
    wire.extend_from_slice(path.as_bytes());
    wire.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    wire.extend_from_slice(host);
    wire.extend_from_slice(b"\r\n");
    for line in parsed.headers.iter() {
        if passes(line.name, &notes, rules) {
            put(wire, line.name.as_bytes(), line.value);
        }
    }
    match notes.framing {
        Framing::Length(length) => drop(write!(wire, "Content-Length: {length}\r\n")),
        Framing::Chunked => wire.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => {}
    }
    if let Some(upgrade) = notes.upgrade {
        put(wire, b"Connection", b"Upgrade");
        put(wire, b"Upgrade", upgrade);
    }
    write_forwarded(wire, rules, parsed.headers, &notes, host);
    wire.extend_from_slice(b"\r\n");

    request.method = Some(Method::of(method));
    request.body = Body(notes.framing);
    request.http10 = http10;
    request.keep_alive = notes.keep_alive.unwrap_or(!http10);
    request.expects_continue = notes.expects_continue && !http10;
    request.upgrade = notes.upgrade.is_some();
    request.hash = match rules.hash {
        HashOn::Nothing => 0,
        HashOn::Path => crate::balance::hash(path.as_bytes()),
        HashOn::Header(name) => parsed
            .headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name))
            .map_or(0, |h| crate::balance::hash(h.value)),
        HashOn::Cookie(name) => cookie(parsed.headers, name).map_or(0, crate::balance::hash),
    };
    Ok(Some(length))
}

/// What the headers of a head say about framing and the connection.
#[derive(Debug)]
struct Notes<'a> {
    host: Option<&'a [u8]>,
    framing: Framing,
    keep_alive: Option<bool>,
    expects_continue: bool,
    upgrade: Option<&'a [u8]>,
    /// Values of `Connection` headers, whose words name headers of this hop.
    connection: [Option<&'a [u8]>; 4],
    proto: Option<&'a [u8]>,
    forwarded_host: Option<&'a [u8]>,
}

fn survey<'a>(
    head: &[u8],
    lines: &[httparse::Header<'a>],
    http10: bool,
    rules: &RequestRules<'_>,
) -> Result<Notes<'a>, Refusal> {
    let mut notes = Notes {
        host: None,
        framing: Framing::None,
        keep_alive: None,
        expects_continue: false,
        upgrade: None,
        connection: [None; 4],
        proto: None,
        forwarded_host: None,
    };
    let (mut length, mut chunked, mut wants_upgrade) = (None, false, false);
    for line in lines {
        let (name, value) = (line.name, line.value);
        // A cheap first look: only these lengths can be one of the names below.
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") && notes.host.replace(value).is_some() => {
                return Err(refuse(400, "two Host headers"));
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                let number = number(value)
                    .filter(|_| !beside_a_tab(head, value))
                    .ok_or(refuse(400, "bad Content-Length"))?;
                if length.replace(number).is_some() {
                    return Err(refuse(400, "two Content-Length headers"));
                }
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                if chunked || http10 {
                    return Err(refuse(400, "bad Transfer-Encoding"));
                }
                if !value.eq_ignore_ascii_case(b"chunked") || beside_a_tab(head, value) {
                    return Err(refuse(501, "unknown Transfer-Encoding"));
                }
                chunked = true;
            }
            10 if name.eq_ignore_ascii_case("connection") => {
                let slot = notes.connection.iter_mut().find(|slot| slot.is_none());
                *slot.ok_or(refuse(400, "too many Connection headers"))? = Some(value);
                for word in words(value) {
                    if word.eq_ignore_ascii_case(b"close") {
                        notes.keep_alive = Some(false);
                    } else if word.eq_ignore_ascii_case(b"keep-alive") {
                        notes.keep_alive = notes.keep_alive.or(Some(true));
                    } else if word.eq_ignore_ascii_case(b"upgrade") {
                        wants_upgrade = true;
                    }
                }
            }
            7 if name.eq_ignore_ascii_case("upgrade") => notes.upgrade = Some(value),
            6 if name.eq_ignore_ascii_case("expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(refuse(417, "unknown expectation"));
                }
                notes.expects_continue = true;
            }
            17 if name.eq_ignore_ascii_case("x-forwarded-proto") => notes.proto = Some(value),
            16 if name.eq_ignore_ascii_case("x-forwarded-host") => {
                notes.forwarded_host = Some(value);
            }
            _ => {}
        }
    }
    notes.framing = match (length, chunked) {
        (Some(_), true) => return Err(refuse(400, "Content-Length and Transfer-Encoding")),
        (Some(length), false) if rules.body_max > 0 && length > rules.body_max => {
            return Err(refuse(413, "body too large"));
        }
        (Some(length), false) => Framing::Length(length),
        (None, true) => Framing::Chunked,
        (None, false) => Framing::None,
    };
    // h2c by upgrade would let a client speak past us; a body before an upgrade has no clear end.
    let upgrade_ok = wants_upgrade
        && !http10
        && matches!(notes.framing, Framing::None | Framing::Length(0))
        && notes.upgrade.is_some_and(|u| {
            !words(u).any(|w| w.len() >= 3 && w[..3].eq_ignore_ascii_case(b"h2c"))
        });
    if !upgrade_ok {
        notes.upgrade = None;
    }
    Ok(notes)
}

/// Whether a tab stands between a value and its colon or line end. Legal, but readers differ on it: not for framing headers.
fn beside_a_tab(head: &[u8], value: &[u8]) -> bool {
    let blank = |b: &&u8| matches!(b, b' ' | b'\t');
    let start = (value.as_ptr() as usize).wrapping_sub(head.as_ptr() as usize);
    let (before, after) = (head.get(..start), head.get(start.saturating_add(value.len())..));
    let (Some(before), Some(after)) = (before, after) else { return false };
    before.iter().rev().take_while(blank).chain(after.iter().take_while(blank)).any(|&b| b == b'\t')
}

/// Path and authority of a target: origin form or absolute form (RFC 9112 section 3.2).
///
/// The `*` of OPTIONS asks one server about itself; behind a balancer there is no such one.
fn split_target<'a>(method: &str, target: &'a str) -> Result<(&'a str, Option<&'a str>), Refusal> {
    if method == "CONNECT" || method == "TRACE" {
        return Err(refuse(405, "method not allowed"));
    }
    if target.starts_with('/') {
        return Ok((target, None));
    }
    let scheme_end = target.find("://").ok_or(refuse(400, "bad target"))?;
    let (scheme, rest) = (&target[..scheme_end], &target[scheme_end + 3..]);
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(refuse(400, "bad target"));
    }
    let path_start = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path_start);
    if !path.is_empty() && !path.starts_with('/') {
        return Err(refuse(400, "bad target"));
    }
    Ok((if path.is_empty() { "/" } else { path }, Some(authority)))
}

/// Whether no reader of a path can end up above its root, or at a NUL, however it decodes it.
pub(super) fn path_is_sane(target: &str) -> bool {
    let end = target.find(['?', '#']).unwrap_or(target.len());
    let path = &target.as_bytes()[..end];
    if !path.contains(&b'%') && !path.windows(2).any(|w| w == b"/.") {
        return true;
    }
    let (mut depth, mut dots, mut others) = (0_u32, 0, 0);
    let mut at = 0;
    loop {
        let (byte, length) = match path.get(at) {
            None => (b'/', 1),
            Some(b'%') => match path.get(at + 1..at + 3).and_then(hex) {
                None | Some(0) => return false,
                Some(byte) => (byte, 3),
            },
            Some(&byte) => (byte, 1),
        };
        match byte {
            b'/' => {
                match (dots, others) {
                    (0 | 1, 0) => {}
                    (2, 0) => match depth.checked_sub(1) {
                        Some(less) => depth = less,
                        None => return false,
                    },
                    _ => depth += 1,
                }
                (dots, others) = (0, 0);
            }
            b'.' => dots += 1,
            _ => others += 1,
        }
        if at >= path.len() {
            return true;
        }
        at += length;
    }
}

/// The byte that two hexadecimal digits stand for.
fn hex(digits: &[u8]) -> Option<u8> {
    let mut digits = digits.iter().map(|&d| char::from(d).to_digit(16));
    digits.try_fold(0, |sum, digit| Some(sum * 16 + digit?)).and_then(|n| u8::try_from(n).ok())
}

/// A Host of characters that no reader can take for something else.
fn host_is_sane(host: &[u8]) -> bool {
    let bracket = host.starts_with(b"[");
    let name = if bracket { host } else { host.split(|&b| b == b':').next().unwrap_or(host) };
    name.iter().any(|&b| b != b'.')
        && !host.windows(2).any(|w| w == b"..")
        && host.iter().all(|&b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&b))
}

/// Whether a request header is passed on: not of this hop, not written anew by us, and not to be mistaken for such a one.
fn passes(name: &str, notes: &Notes<'_>, rules: &RequestRules<'_>) -> bool {
    let ours = match name.len() {
        2 => name.eq_ignore_ascii_case("te"),
        4 => name.eq_ignore_ascii_case("host"),
        6 => name.eq_ignore_ascii_case("expect"),
        7 => name.eq_ignore_ascii_case("upgrade"),
        9 => name.eq_ignore_ascii_case("forwarded") && drops(rules, Forwarded::Forwarded),
        10 => name.eq_ignore_ascii_case("connection") || name.eq_ignore_ascii_case("keep-alive"),
        14 => {
            name.eq_ignore_ascii_case("content-length")
                || name.eq_ignore_ascii_case("http2-settings")
        }
        15 => name.eq_ignore_ascii_case("x-forwarded-for") && drops(rules, Forwarded::XForwarded),
        16 => {
            name.eq_ignore_ascii_case("proxy-connection")
                || (name.eq_ignore_ascii_case("x-forwarded-host")
                    && drops(rules, Forwarded::XForwarded))
        }
        17 => {
            name.eq_ignore_ascii_case("transfer-encoding")
                || (name.eq_ignore_ascii_case("x-forwarded-proto")
                    && drops(rules, Forwarded::XForwarded))
        }
        _ => false,
    };
    // CGI, WSGI and the like make `-` and `_` the same: `X_Forwarded_For` would be taken for the header that we write.
    !ours && !name.contains('_') && !named(&notes.connection, name)
}

/// Whether a client's own header of this family is dropped: we write it, or nobody vouches for it.
fn drops(rules: &RequestRules<'_>, family: Forwarded) -> bool {
    let written = rules.forwarded == family || rules.forwarded == Forwarded::Both;
    written || !rules.trusted
}

/// Writes the values of all lines of this name, each with a comma after it, if the peer is believed.
fn put_before(
    wire: &mut Vec<u8>,
    rules: &RequestRules<'_>,
    lines: &[httparse::Header<'_>],
    name: &str,
) {
    let before = lines.iter().filter(|h| rules.trusted && h.name.eq_ignore_ascii_case(name));
    for line in before.filter(|h| !h.value.is_empty()) {
        wire.extend_from_slice(line.value);
        wire.extend_from_slice(b", ");
    }
}

fn write_forwarded(
    wire: &mut Vec<u8>,
    rules: &RequestRules<'_>,
    lines: &[httparse::Header<'_>],
    notes: &Notes<'_>,
    host: &[u8],
) {
    let proto = if rules.tls { "https" } else { "http" };
    let ip = rules.client.ip();
    if matches!(rules.forwarded, Forwarded::XForwarded | Forwarded::Both) {
        wire.extend_from_slice(b"X-Forwarded-For: ");
        put_before(wire, rules, lines, "X-Forwarded-For");
        drop(write!(wire, "{ip}\r\nX-Forwarded-Proto: "));
        wire.extend_from_slice(notes.proto.filter(|_| rules.trusted).unwrap_or(proto.as_bytes()));
        wire.extend_from_slice(b"\r\nX-Forwarded-Host: ");
        wire.extend_from_slice(notes.forwarded_host.filter(|_| rules.trusted).unwrap_or(host));
        wire.extend_from_slice(b"\r\n");
    }
    if matches!(rules.forwarded, Forwarded::Forwarded | Forwarded::Both) {
        wire.extend_from_slice(b"Forwarded: ");
        put_before(wire, rules, lines, "Forwarded");
        // RFC 7239 section 6: an IPv6 address stands in brackets and quotes.
        match ip {
            std::net::IpAddr::V4(ip) => drop(write!(wire, "for={ip}")),
            std::net::IpAddr::V6(ip) => drop(write!(wire, "for=\"[{ip}]\"")),
        }
        wire.extend_from_slice(b";proto=");
        wire.extend_from_slice(proto.as_bytes());
        wire.extend_from_slice(b";host=\"");
        wire.extend_from_slice(host);
        wire.extend_from_slice(b"\"\r\n");
    }
}

/// A cookie's value.
fn cookie<'a>(lines: &[httparse::Header<'a>], name: &str) -> Option<&'a [u8]> {
    lines.iter().filter(|h| h.name.eq_ignore_ascii_case("cookie")).find_map(|line| {
        line.value.split(|&b| b == b';').find_map(|pair| {
            pair.trim_ascii().strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
        })
    })
}
