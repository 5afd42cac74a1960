//! What the proxy answers by itself.

use std::io::Write as _;

use crate::stats::ErrorKind;

/// The status for a request that no backend answered.
pub(crate) fn status_of(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Timeout => 504,
        ErrorKind::Connect
        | ErrorKind::Reset
        | ErrorKind::BadAnswer
        | ErrorKind::Status5xx
        | ErrorKind::CutOff => 502,
        ErrorKind::NoBackend | ErrorKind::Limit | ErrorKind::Unvouched => 503,
        ErrorKind::BadRequest | ErrorKind::ClientGone => 400,
    }
}

/// One sentence for the person who reads the answer.
pub(crate) fn reason_of(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Timeout => "no backend answered in time",
        ErrorKind::Connect => "no backend could be reached",
        ErrorKind::Reset => "the backend closed the connection without an answer",
        ErrorKind::BadAnswer => "the backend's answer could not be understood",
        ErrorKind::Status5xx => "the backend failed",
        ErrorKind::NoBackend => "no backend is up",
        ErrorKind::Limit => "too many requests at once",
        ErrorKind::BadRequest => "the request could not be understood",
        ErrorKind::ClientGone => "the client went away",
        ErrorKind::CutOff => {
            "the request was cut off: its backend may not serve it any more, or the proxy ends"
        }
        ErrorKind::Unvouched => "this node holds no lease to serve it",
    }
}

/// Appends a whole answer.
pub(crate) fn write(out: &mut Vec<u8>, status: u16, reason: &str, to_head: bool, close: bool) {
    let phrase = http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Error");
    let body = format!("{status} {phrase}: {reason}\n");
    let retry = if status == 503 { "Retry-After: 1\r\n" } else { "" };
    let end = if close { "Connection: close\r\n" } else { "" };
    drop(write!(
        out,
        "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n\
         Content-Length: {}\r\n{retry}{end}\r\n",
        body.len()
    ));
    if !to_head {
        out.extend_from_slice(body.as_bytes());
    }
}
