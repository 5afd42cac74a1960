//! Heads as they come and as they are passed on.

use proptest::prelude::*;

use super::request::path_is_sane;
use super::*;
use crate::body::Framing;
use crate::table::Forwarded;

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
        request.keep_alive && request.method() == Method::Get && request.body.0 == Framing::None
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
    let (wire, _) = request("GET http://real/x HTTP/1.1\r\nHost: other\r\n\r\n", &rules()).unwrap();
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
            &format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: {word}\r\n\r\n"),
            &rules(),
        )
    };
    let (wire, websocket) = upgrade("websocket").unwrap();
    assert!(websocket.upgrade && wire.contains("Connection: Upgrade\r\nUpgrade: websocket\r\n"));
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
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Method::Get, Framing::Chunked),
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
