//! Heads of requests and responses: read strictly, written anew.
//!
//! `httparse` splits a head into its lines; what they mean for framing is decided here, after RFC 9112. Framing headers are
//! never passed through: they are understood, dropped and written again, so that the next reader sees the same borders.

use std::io::Write as _;
use std::net::SocketAddr;

use crate::body::Framing;
use crate::table::Forwarded;

/// More header lines than this are refused whatever a table says.
const HEADERS_MAX: usize = 256;

/// Why a request is refused: the status to answer with, and a word for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub reason: &'static str,
}

const fn refuse(status: u16, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

/// What a request's method means for repeating it (RFC 9110 section 9.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    /// PUT, DELETE, OPTIONS, TRACE.
    OtherIdempotent,
    /// POST, PATCH and everything unknown.
    Other,
}

impl Method {
    fn of(word: &str) -> Method {
        match word {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "PUT" | "DELETE" | "OPTIONS" | "TRACE" => Method::OtherIdempotent,
            _ => Method::Other,
        }
    }

    /// Whether doing it twice is the same as doing it once.
    pub fn idempotent(self) -> bool {
        match self {
            Method::Get | Method::Head | Method::OtherIdempotent => true,
            Method::Other => false,
        }
    }
}

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

/// Whether a head is complete in these bytes, looking only at where one may end since `from`.
pub fn ends_in(bytes: &[u8], from: usize) -> bool {
    let tail = &bytes[from.saturating_sub(3).min(bytes.len())..];
    tail.windows(2).any(|w| w == b"\n\n") || tail.windows(3).any(|w| w == b"\n\r\n")
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
fn path_is_sane(target: &str) -> bool {
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

/// Whether a `Connection` header names this header as one of this hop.
fn named(connection: &[Option<&[u8]>; 4], name: &str) -> bool {
    connection
        .iter()
        .flatten()
        .any(|value| words(value).any(|word| word.eq_ignore_ascii_case(name.as_bytes())))
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

/// A response as the proxy understands it; `wire` is what the client gets, without `Connection` and the empty line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub framing: Framing,
    /// The backend keeps the connection open.
    pub keep_alive: bool,
}

/// A backend's answer that cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAnswer(pub &'static str);

/// Reads a response head and appends what the client gets to `wire`; `Ok(None)` if it is not complete.
///
/// `dechunk`: the client speaks HTTP/1.0, so a chunked body becomes one that ends with the connection.
pub fn read_response(
    bytes: &[u8],
    to: Method,
    dechunk: bool,
    wire: &mut Vec<u8>,
) -> Result<Option<(usize, Response)>, BadAnswer> {
    let mut lines = [const { std::mem::MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut lines) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_malformed) => return Err(BadAnswer("malformed response head")),
    };
    let status =
        parsed.code.filter(|code| (100..=999).contains(code)).ok_or(BadAnswer("bad status"))?;
    let http10 = parsed.version == Some(0);
    let (mut body_length, mut chunked, mut keep_alive) = (None, false, None);
    let mut connection = [None; 4];
    let mut upgrade = None;
    for line in parsed.headers.iter() {
        match line.name.len() {
            14 if line.name.eq_ignore_ascii_case("content-length") => {
                let number = number(line.value).ok_or(BadAnswer("bad Content-Length"))?;
                if body_length.replace(number).is_some_and(|before| before != number) {
                    return Err(BadAnswer("two Content-Length headers"));
                }
            }
            17 if line.name.eq_ignore_ascii_case("transfer-encoding") => {
                if chunked || !line.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(BadAnswer("unknown Transfer-Encoding"));
                }
                chunked = true;
            }
            10 if line.name.eq_ignore_ascii_case("connection") => {
                let slot = connection.iter_mut().find(|slot| slot.is_none());
                *slot.ok_or(BadAnswer("too many Connection headers"))? = Some(line.value);
                for word in words(line.value) {
                    if word.eq_ignore_ascii_case(b"close") {
                        keep_alive = Some(false);
                    } else if word.eq_ignore_ascii_case(b"keep-alive") {
                        keep_alive = keep_alive.or(Some(true));
                    }
                }
            }
            7 if line.name.eq_ignore_ascii_case("upgrade") => upgrade = Some(line.value),
            _ => {}
        }
    }
    if chunked && body_length.is_some() {
        return Err(BadAnswer("Content-Length and Transfer-Encoding"));
    }
    let bodyless = to == Method::Head || status < 200 || status == 204 || status == 304;
    let framing = match (bodyless, chunked, body_length) {
        (true, _, _) => Framing::None,
        (false, true, _) => Framing::Chunked,
        (false, false, Some(length)) => Framing::Length(length),
        (false, false, None) => Framing::UntilClose,
    };
    drop(write!(wire, "HTTP/1.1 {status} "));
    wire.extend_from_slice(parsed.reason.unwrap_or_default().as_bytes());
    wire.extend_from_slice(b"\r\n");
    for line in parsed.headers.iter() {
        let ours = match line.name.len() {
            7 => line.name.eq_ignore_ascii_case("upgrade"),
            10 => {
                line.name.eq_ignore_ascii_case("connection")
                    || line.name.eq_ignore_ascii_case("keep-alive")
            }
            14 => line.name.eq_ignore_ascii_case("content-length"),
            16 => line.name.eq_ignore_ascii_case("proxy-connection"),
            17 => line.name.eq_ignore_ascii_case("transfer-encoding"),
            _ => false,
        };
        if !ours && !named(&connection, line.name) {
            put(wire, line.name.as_bytes(), line.value);
        }
    }
    if let Some(length) = body_length.filter(|_| status >= 200 && status != 204) {
        drop(write!(wire, "Content-Length: {length}\r\n"));
    } else if chunked && !dechunk && status >= 200 && status != 204 {
        wire.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if let Some(upgrade) = upgrade.filter(|_| status == 101) {
        put(wire, b"Upgrade", upgrade);
    }
    let keep_alive = keep_alive.unwrap_or(!http10) && framing != Framing::UntilClose;
    Ok(Some((length, Response { status, framing, keep_alive })))
}

/// Appends one header line.
fn put(wire: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    wire.extend_from_slice(name);
    wire.extend_from_slice(b": ");
    wire.extend_from_slice(value);
    wire.extend_from_slice(b"\r\n");
}

/// A whole number of decimal digits alone.
fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The words of a comma-separated list.
fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|w| !w.is_empty())
}

/// A cookie's value.
fn cookie<'a>(lines: &[httparse::Header<'a>], name: &str) -> Option<&'a [u8]> {
    lines.iter().filter(|h| h.name.eq_ignore_ascii_case("cookie")).find_map(|line| {
        line.value.split(|&b| b == b';').find_map(|pair| {
            pair.trim_ascii().strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules() -> RequestRules<'static> {
        RequestRules {
            headers_max: 100,
            body_max: 0,
            forwarded: Forwarded::XForwarded,
            trusted: false,
            client: "192.0.2.7:1234".parse().unwrap(),
            local: "192.0.2.1:80".parse().unwrap(),
            tls: false,
            hash: HashOn::Nothing,
        }
    }

    fn request(text: &str, rules: &RequestRules<'_>) -> Result<(String, Request), Refusal> {
        let mut request = Request::default();
        let length = read_request(text.as_bytes(), rules, &mut request)?.unwrap_or_default();
        debug_assert_eq!(length, text.len(), "a whole head");
        Ok((String::from_utf8(request.wire.clone()).unwrap(), request))
    }

    #[test]
    fn a_request_is_rewritten_for_the_next_hop() {
        let text = "GET /a?b HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n\
                    X-Forwarded-For: 6.6.6.6\r\nAccept: */*\r\n\r\n";
        let (wire, request) = request(text, &rules()).unwrap();
        assert_eq!(
            wire,
            "GET /a?b HTTP/1.1\r\nHost: shop\r\nAccept: */*\r\nX-Forwarded-For: 192.0.2.7\r\n\
             X-Forwarded-Proto: http\r\nX-Forwarded-Host: shop\r\n\r\n"
        );
        assert!(
            request.keep_alive
                && request.method() == Method::Get
                && request.body.0 == Framing::None
        );
    }

    #[test]
    fn a_trusted_peer_is_believed() {
        let trusting = RequestRules { trusted: true, forwarded: Forwarded::Both, ..rules() };
        let text = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
                    Forwarded: for=1.1.1.1\r\n\r\n";
        let (wire, _) = request(text, &trusting).unwrap();
        assert!(
            wire.contains("X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX-Forwarded-Proto: https\r\n"),
            "{wire}"
        );
        assert!(
            wire.contains("Forwarded: for=1.1.1.1, for=192.0.2.7;proto=http;host=\"h\"\r\n"),
            "{wire}"
        );
    }

    #[test]
    fn an_absolute_target_names_the_host() {
        let (wire, _) =
            request("GET http://real/x HTTP/1.1\r\nHost: other\r\n\r\n", &rules()).unwrap();
        assert!(wire.starts_with("GET /x HTTP/1.1\r\nHost: real\r\n"));
    }

    #[test]
    fn a_path_that_leaves_its_root_is_not_sane() {
        for path in [
            "/",
            "/a",
            "/a/../b",
            "/a/./b",
            "/.a/..b",
            "/...",
            "/a//b/..",
            "/a?/../..",
            "/%41",
            "/a%2F..",
        ] {
            assert!(path_is_sane(path), "{path}");
        }
        for path in [
            "/..",
            "/../a",
            "/a/../..",
            "//..",
            "/a/%2e%2E/..",
            "/a%2f../..",
            "/./..",
            "/%",
            "/%4",
            "/%4g",
            "/%00",
            "/%+1",
        ] {
            assert!(!path_is_sane(path), "{path}");
        }
    }

    #[test]
    fn a_request_without_host_gets_the_address_that_was_asked() {
        let (wire, _) = request("GET /x HTTP/1.0\r\n\r\n", &rules()).unwrap();
        assert!(wire.starts_with("GET /x HTTP/1.1\r\nHost: 192.0.2.1:80\r\n"), "{wire}");
    }

    #[test]
    fn an_upgrade_passes_and_h2c_does_not() {
        let upgrade = |word: &str| {
            request(
                &format!(
                    "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: {word}\r\n\r\n"
                ),
                &rules(),
            )
        };
        let (wire, websocket) = upgrade("websocket").unwrap();
        assert!(
            websocket.upgrade && wire.contains("Connection: Upgrade\r\nUpgrade: websocket\r\n")
        );
        let (wire, h2c) = upgrade("h2c").unwrap();
        assert!(!h2c.upgrade && !wire.contains("h2c"));
    }

    #[test]
    fn requests_that_two_readers_could_read_differently_are_refused() {
        for (head, status) in [
            (
                "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551617\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
            (
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            ("POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nX : 1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nX: 1\r\n  folded\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", 400),
            ("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", 400),
            ("GET x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("get / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("GET /../a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("GET /a%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a..b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\t5\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\t\r\n\r\n", 501),
            ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 405),
            ("GET / HTTP/1.1\r\nHost: h\r\nExpect: tea\r\n\r\n", 417),
        ] {
            let mut request = Request::default();
            let got = read_request(head.as_bytes(), &rules(), &mut request);
            assert_eq!(got.map_err(|r| r.status), Err(status), "{head:?}");
        }
    }

    fn response(text: &str, to: Method) -> Result<(String, Response), BadAnswer> {
        let mut wire = Vec::new();
        let (_, response) =
            read_response(text.as_bytes(), to, false, &mut wire)?.expect("a whole head");
        Ok((String::from_utf8(wire).unwrap(), response))
    }

    #[test]
    fn a_response_is_rewritten_for_the_client() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nETag: x\r\n\r\n";
        let (wire, got) = response(text, Method::Get).unwrap();
        assert_eq!(wire, "HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 3\r\n");
        assert_eq!(got, Response { status: 200, framing: Framing::Length(3), keep_alive: false });
    }

    #[test]
    fn a_response_body_ends_where_the_rfc_says() {
        for (text, to, framing) in [
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                Method::Get,
                Framing::Chunked,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", Method::Get, Framing::UntilClose),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", Method::Head, Framing::None),
            ("HTTP/1.1 204 No Content\r\n\r\n", Method::Get, Framing::None),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", Method::Get, Framing::None),
        ] {
            assert_eq!(response(text, to).unwrap().1.framing, framing, "{text:?}");
        }
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTP/1.1 200 OK\r\n\r\n",
        ] {
            assert!(response(text, Method::Get).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_cut_head_is_not_complete() {
        let text = "GET / HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n";
        for end in 0..text.len() {
            let mut request = Request::default();
            assert_eq!(
                read_request(&text.as_bytes()[..end], &rules(), &mut request),
                Ok(None),
                "{end}"
            );
            assert!(!ends_in(&text.as_bytes()[..end], 0));
        }
        assert!(ends_in(text.as_bytes(), text.len() - 1));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes: Vec<u8>) {
            let mut request = Request::default();
            read_request(&bytes, &rules(), &mut request).ok();
            read_response(&bytes, Method::Get, false, &mut Vec::new()).ok();
        }
    }
}
