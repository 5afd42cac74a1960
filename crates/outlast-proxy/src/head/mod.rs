//! Heads of requests and responses: read strictly, written anew.
//!
//! `httparse` splits a head into its lines; what they mean for framing is decided here, after RFC 9112. Framing headers are
//! never passed through: they are understood, dropped and written again, so that the next reader sees the same borders.

mod request;
mod response;
#[cfg(test)]
mod tests;

pub use request::{Body, HashOn, Request, RequestRules, read_request};
pub use response::{BadAnswer, Response, read_response};

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

/// Whether a head is complete in these bytes, looking only at where one may end since `from`.
pub fn ends_in(bytes: &[u8], from: usize) -> bool {
    let tail = &bytes[from.saturating_sub(3).min(bytes.len())..];
    tail.windows(2).any(|w| w == b"\n\n") || tail.windows(3).any(|w| w == b"\n\r\n")
}

/// Whether a `Connection` header names this header as one of this hop.
fn named(connection: &[Option<&[u8]>; 4], name: &str) -> bool {
    connection
        .iter()
        .flatten()
        .any(|value| words(value).any(|word| word.eq_ignore_ascii_case(name.as_bytes())))
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
