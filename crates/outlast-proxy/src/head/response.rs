//! Heads of answers: where their body ends; and what a client gets of them.

use std::io::Write as _;

use super::{HEADERS_MAX, Method, named, number, put, words};
use crate::body::Framing;

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
