//! A request head from anybody: no panic, and what is passed on is read by ourselves exactly as we wrote it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast_proxy::head::{HashOn, Request, RequestRules, ends_in, read_request};
use outlast_proxy::table::Forwarded;

fuzz_target!(|bytes: &[u8]| {
    let rules = RequestRules {
        headers_max: 100,
        body_max: 0,
        forwarded: Forwarded::Both,
        trusted: bytes.len() % 2 == 0,
        client: std::net::SocketAddr::from(([192, 0, 2, 7], 1)),
        local: std::net::SocketAddr::from(([192, 0, 2, 1], 80)),
        tls: false,
        hash: HashOn::Cookie("id"),
    };
    let mut first = Request::default();
    let Ok(Some(length)) = read_request(bytes, &rules, &mut first) else { return };
    assert!(length <= bytes.len());
    assert!(ends_in(&bytes[..length], 0));
    // What a backend gets must have one meaning: ours.
    let mut second = Request::default();
    let again = read_request(&first.wire, &RequestRules { trusted: false, ..rules }, &mut second);
    assert_eq!(again, Ok(Some(first.wire.len())), "{:?}", String::from_utf8_lossy(&first.wire));
    assert_eq!(first.body.0, second.body.0);
    assert_eq!(first.method, second.method);
});
