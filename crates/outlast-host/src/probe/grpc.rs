//! Asks `grpc.health.v1.Health/Check` over HTTP/2 and reads the answer by hand.
//!
//! The two messages have one field each (grpc/grpc-proto, `grpc/health/v1/health.proto`), so a few lines of protobuf do.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use hyper::{Method, Request, Response, Uri, Version};
use hyper_util::rt::TokioIo;
use outlast_core::topology::Authority;
use tokio::task::JoinSet;

use super::dial::{Cover, Tls, open};
use super::http::{hyper_fault, over};
use super::{Code, Fault, Limit, fault, internal, user_agent};
use crate::text::quote;

/// Bytes of an answer: the message takes seven.
const ANSWER_MAX: usize = 4 << 10;
/// Compressed flag and length (grpc/doc/PROTOCOL-HTTP2.md).
const PREFIX: usize = 5;

/// Asks once; the sentence of a success.
pub(super) async fn ask(
    tls: &Tls,
    place: &Authority,
    cover: Option<Cover<'_>>,
    service: &str,
    limit: &Limit,
) -> Result<String, Fault> {
    let request = request(place, cover.is_some(), service, limit)?;
    let stream = open(tls, place, cover, limit).await?;
    let (mut sender, connection) = http2::handshake(Tasks::default(), TokioIo::new(stream))
        .await
        .map_err(|e| hyper_fault(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| hyper_fault(&e))?;
        judge(response, service).await
    };
    over(connection, exchange).await
}

fn request(
    place: &Authority,
    tls: bool,
    service: &str,
    limit: &Limit,
) -> Result<Request<Full<Bytes>>, Fault> {
    let uri = Uri::builder()
        .scheme(if tls { "https" } else { "http" })
        .authority(place.to_string())
        .path_and_query("/grpc.health.v1.Health/Check")
        .build()
        .map_err(|_invalid| internal(format!("`{place}` is not a host and port")))?;
    let mut request = Request::new(Full::from(encode_request(service)));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT, HeaderValue::from_static(user_agent()));
    if let Ok(timeout) = HeaderValue::from_str(&format!("{}m", limit.left().as_millis().max(1))) {
        headers.insert(HeaderName::from_static("grpc-timeout"), timeout);
    }
    Ok(request)
}

async fn judge(response: Response<hyper::body::Incoming>, service: &str) -> Result<String, Fault> {
    let status = response.status().as_u16();
    if status != 200 {
        return Err(fault(Code::Status, format!("HTTP status {status}, expected 200")));
    }
    let kind = response.headers().get(CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return Err(fault(Code::Protocol, "the answer is not gRPC"));
    }
    // An answer without a message puts its status into the headers.
    grpc_status(response.headers(), service)?;
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| hyper_fault(&e))?;
        match frame.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => {
                if let Some(trailers) = frame.trailers_ref() {
                    grpc_status(trailers, service)?;
                }
            }
        }
        if bytes.len() > ANSWER_MAX {
            return Err(fault(Code::Grpc, "the answer is too long"));
        }
    }
    match decode_response(&bytes) {
        Ok(State::Serving) => Ok("gRPC SERVING".to_owned()),
        Ok(other) => Err(fault(Code::Grpc, format!("gRPC {}", other.word()))),
        Err(Malformed(why)) => Err(fault(Code::Grpc, format!("malformed health answer: {why}"))),
    }
}

/// Whether the call itself went well, if these headers say.
fn grpc_status(headers: &HeaderMap, service: &str) -> Result<(), Fault> {
    let text =
        |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let Some(status) = text("grpc-status") else { return Ok(()) };
    let what = match status.as_ref() {
        "0" => return Ok(()),
        "5" => format!("gRPC NOT_FOUND: no service `{}`", quote(service)),
        "12" => "gRPC UNIMPLEMENTED: the server does not answer health checks".to_owned(),
        other => {
            let name = other.parse().ok().and_then(|n: usize| STATUSES.get(n).copied());
            let said = text("grpc-message").unwrap_or_default();
            let colon = if said.is_empty() { "" } else { ": " };
            format!("gRPC {}{colon}{}", name.unwrap_or("status unknown"), quote(&said))
        }
    };
    Err(fault(Code::Grpc, what))
}

/// grpc/doc/statuscodes.md, by number.
const STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// `HealthCheckResponse.ServingStatus`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Serving,
    NotServing,
    ServiceUnknown,
    /// A number that the protocol does not name.
    Other,
}

impl State {
    fn from_number(number: u64) -> State {
        match number {
            0 => State::Unknown,
            1 => State::Serving,
            2 => State::NotServing,
            3 => State::ServiceUnknown,
            _ => State::Other,
        }
    }

    fn word(self) -> &'static str {
        match self {
            State::Unknown => "UNKNOWN",
            State::Serving => "SERVING",
            State::NotServing => "NOT_SERVING",
            State::ServiceUnknown => "SERVICE_UNKNOWN",
            State::Other => "answers with an unknown serving status",
        }
    }
}

/// The serving status of a framed `HealthCheckResponse` in the protocol's own word, or what is wrong with it.
pub fn serving_status(frame: &[u8]) -> Result<&'static str, &'static str> {
    decode_response(frame).map(State::word).map_err(|Malformed(what)| what)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Malformed(&'static str);

/// A framed `HealthCheckRequest { string service = 1 }`.
fn encode_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let len = u32::try_from(message.len()).expect("a service name is shorter than 4 GiB");
    let mut frame = vec![0];
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(&message);
    frame
}

/// Reads a framed `HealthCheckResponse { ServingStatus status = 1 }`; an absent field is UNKNOWN.
fn decode_response(frame: &[u8]) -> Result<State, Malformed> {
    let Some((&[compressed, a, b, c, d], message)) = frame.split_first_chunk::<PREFIX>() else {
        return Err(Malformed("shorter than its frame"));
    };
    if compressed != 0 {
        return Err(Malformed("compressed, which was not asked for"));
    }
    if message.len() as u64 != u64::from(u32::from_be_bytes([a, b, c, d])) {
        return Err(Malformed("not as long as its frame says"));
    }
    let mut status = 0;
    let mut rest = message;
    while !rest.is_empty() {
        let key = take_varint(&mut rest)?;
        let skip = match (key >> 3, key & 7) {
            (0, _) => return Err(Malformed("field number 0")),
            (1, 0) => {
                status = take_varint(&mut rest)?;
                0
            }
            (1, _) => return Err(Malformed("status is not a number")),
            (_, 0) => take_varint(&mut rest).map(|_skipped| 0)?,
            (_, 1) => 8,
            (_, 2) => take_varint(&mut rest)?,
            (_, 5) => 4,
            (_, _) => return Err(Malformed("unknown wire type")),
        };
        let skip = usize::try_from(skip).map_err(|_too_large| Malformed("field too long"))?;
        rest = rest.get(skip..).ok_or(Malformed("field too long"))?;
    }
    Ok(State::from_number(status))
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Base-128, least significant first, at most ten bytes; bits beyond 64 are dropped, as protobuf's own decoders do.
fn take_varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Malformed("cut short"))?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed("number too long"))
}

/// Runs what hyper wants run beside a connection, and ends it with the probe.
#[derive(Clone, Debug, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(message: &[u8]) -> Vec<u8> {
        let mut frame = vec![0];
        frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(message);
        frame
    }

    #[test]
    fn a_request_is_framed() {
        assert_eq!(encode_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(encode_request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(encode_request(&"x".repeat(300))[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
    }

    #[test]
    fn an_answer_is_read_past_fields_of_later_versions() {
        for (message, serving) in [
            (&b""[..], State::Unknown),
            (b"\x08\x01", State::Serving),
            (b"\x08\x02", State::NotServing),
            (b"\x08\x03", State::ServiceUnknown),
            (b"\x08\x63", State::Other),
            (b"\x10\x96\x01\x1a\x02hi\x21aaaabbbb\x2dcccc\x08\x01", State::Serving),
            (b"\x08\x02\x08\x01", State::Serving),
        ] {
            assert_eq!(decode_response(&frame(message)), Ok(serving), "{message:?}");
        }
    }

    #[test]
    fn a_malformed_answer_says_what_is_wrong() {
        for (bytes, why) in [
            (b"".to_vec(), "shorter than its frame"),
            (vec![1, 0, 0, 0, 0], "compressed, which was not asked for"),
            (vec![0, 0, 0, 0, 2, 8], "not as long as its frame says"),
            (frame(b"\x08"), "cut short"),
            (frame(b"\x08\x80"), "cut short"),
            (frame(b"\x0a\x01a"), "status is not a number"),
            (frame(b"\x1a\x05abc"), "field too long"),
            (frame(b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "field too long"),
            (frame(&[0xff; 11]), "number too long"),
            (frame(b"\x00"), "field number 0"),
            (frame(b"\x13"), "unknown wire type"),
        ] {
            assert_eq!(decode_response(&bytes), Err(Malformed(why)), "{bytes:?}");
        }
    }

    #[test]
    fn no_truncation_passes_for_an_answer() {
        let whole = frame(b"\x1a\x02hi\x08\x01");
        for len in 0..whole.len() {
            assert!(decode_response(&whole[..len]).is_err(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>, message: Vec<u8>) {
            decode_response(&bytes).ok();
            decode_response(&frame(&message)).ok();
        }

        #[test]
        fn a_varint_comes_back_as_it_was(value: u64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            prop_assert_eq!(take_varint(&mut bytes.as_slice()), Ok(value));
        }
    }
}
