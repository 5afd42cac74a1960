//! Requests that are malformed, or that two readers could read differently: what each gets, and what of it gets through.
//!
//! Every vector goes to outlast and to a real nginx, each in front of a backend that writes down what reaches it. What nginx
//! refuses, outlast must not forward; and the next client must get its own answer. The whole is a table in `malformed.txt`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::harness::{Gate, Wire, listen, until};

/// What a client sends, and then it ends its side.
struct Vector {
    name: &'static str,
    bytes: Vec<u8>,
    /// Requests that an honest reader could find in it at most.
    intended: usize,
    /// The client stays and says nothing more: only a deadline can end this.
    waits: bool,
}

fn vector(name: &'static str, intended: usize, bytes: impl AsRef<[u8]>) -> Vector {
    Vector { name, bytes: bytes.as_ref().to_vec(), intended, waits: false }
}

/// A request head with a Host; `lines` follow it.
fn head(request_line: &str, lines: &str) -> Vec<u8> {
    format!("{request_line}\r\nHost: shop\r\n{lines}\r\n").into_bytes()
}

fn post(lines: &str, body: &str) -> Vec<u8> {
    [head("POST /a HTTP/1.1", lines), body.as_bytes().to_vec()].concat()
}

fn chunked(body: &str) -> Vec<u8> {
    post("Transfer-Encoding: chunked\r\n", body)
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n";

fn vectors() -> Vec<Vector> {
    let mut all = vec![
        vector("a plain GET", 1, head("GET /a HTTP/1.1", "")),
        vector("a POST with a length", 1, post("Content-Length: 5\r\n", "hello")),
        vector("a chunked POST", 1, chunked("5\r\nhello\r\n0\r\n\r\n")),
        vector(
            "two pipelined requests",
            2,
            [head("GET /a HTTP/1.1", ""), head("GET /b HTTP/1.1", "")].concat(),
        ),
    ];
    all.extend(request_lines());
    all.extend(header_lines());
    all.extend(hosts());
    all.extend(framings());
    all.extend(chunks());
    all.extend(connections());
    all.extend(sizes());
    all
}

fn request_lines() -> Vec<Vector> {
    let line = |name, line: &str| vector(name, 1, head(line, ""));
    vec![
        line("lower-case method", "get /a HTTP/1.1"),
        line("method with a digit", "GET1 /a HTTP/1.1"),
        line("method of other token characters", "G!T /a HTTP/1.1"),
        line("method with a slash", "GE/T /a HTTP/1.1"),
        line("method that nobody knows", "BREW /a HTTP/1.1"),
        line("method with a dash", "M-SEARCH /a HTTP/1.1"),
        line("no method", " /a HTTP/1.1"),
        line("two spaces after the method", "GET  /a HTTP/1.1"),
        line("two spaces before the version", "GET /a  HTTP/1.1"),
        line("space after the version", "GET /a HTTP/1.1 "),
        line("tab instead of space", "GET\t/a\tHTTP/1.1"),
        line("space in the path", "GET /a b HTTP/1.1"),
        line("tab in the path", "GET /a\tb HTTP/1.1"),
        line("NUL in the path", "GET /a\0b HTTP/1.1"),
        line("DEL in the path", "GET /a\x7fb HTTP/1.1"),
        line("backslash in the path", "GET /a\\b HTTP/1.1"),
        line("quote and angle brackets in the path", "GET /a\"<b> HTTP/1.1"),
        vector("8-bit bytes in the path", 1, b"GET /\xc3\xa4 HTTP/1.1\r\nHost: shop\r\n\r\n"),
        vector(
            "8-bit bytes that are not UTF-8 in the path",
            1,
            b"GET /\xff HTTP/1.1\r\nHost: shop\r\n\r\n",
        ),
        line("fragment in the target", "GET /a#b HTTP/1.1"),
        line("path above the root", "GET /../a HTTP/1.1"),
        line("path above the root, in disguise", "GET /x/%2e%2E/..%2fa HTTP/1.1"),
        line("path above the root, after a turn", "GET /x/.././../a HTTP/1.1"),
        line("path that goes up and stays below the root", "GET /x/../a HTTP/1.1"),
        line("two dots after the question mark", "GET /a?/../../b HTTP/1.1"),
        line("path with two slashes", "GET //x/../../a HTTP/1.1"),
        line("per cent without digits", "GET /a%zz HTTP/1.1"),
        line("per cent at the end", "GET /a% HTTP/1.1"),
        line("per cent without digits in the query", "GET /a?%zz HTTP/1.1"),
        line("NUL written with a per cent", "GET /a%00b HTTP/1.1"),
        line("slash written with a per cent", "GET /a%2Fb HTTP/1.1"),
        line("no path", "GET a HTTP/1.1"),
        line("asterisk with GET", "GET * HTTP/1.1"),
        line("asterisk with OPTIONS", "OPTIONS * HTTP/1.1"),
        line("HTTP/0.9", "GET /a"),
        vector("HTTP/0.9 without a header", 1, "GET /a\r\n"),
        line("HTTP/1.2", "GET /a HTTP/1.2"),
        line("HTTP/1.10", "GET /a HTTP/1.10"),
        line("HTTP/01.1", "GET /a HTTP/01.1"),
        line("HTTP/2.0", "GET /a HTTP/2.0"),
        line("http/1.1", "GET /a http/1.1"),
        line("HTTP/1.", "GET /a HTTP/1."),
        line("HTTPS/1.1", "GET /a HTTPS/1.1"),
        line("two versions", "GET /a HTTP/1.1 HTTP/1.1"),
        line("CONNECT", "CONNECT shop:80 HTTP/1.1"),
        line("TRACE", "TRACE /a HTTP/1.1"),
        vector(
            "PRI without HTTP/2",
            1,
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET /a HTTP/1.1\r\nHost: shop\r\n\r\n",
        ),
        vector("PRI with a Host", 1, head("PRI * HTTP/2.0", "")),
        vector(
            "empty lines before the request",
            1,
            [b"\r\n\r\n".to_vec(), head("GET /a HTTP/1.1", "")].concat(),
        ),
        vector(
            "junk before the request",
            1,
            [b"\x16\x03\x01\r\n".to_vec(), head("GET /a HTTP/1.1", "")].concat(),
        ),
    ]
}

fn header_lines() -> Vec<Vector> {
    let line = |name, line: &str| vector(name, 1, head("GET /a HTTP/1.1", &format!("{line}\r\n")));
    vec![
        vector("lines that end in LF", 1, "GET /a HTTP/1.1\nHost: shop\n\n"),
        vector("lines that end in CR", 1, "GET /a HTTP/1.1\rHost: shop\r\r"),
        vector("one line that ends in LF", 1, head("GET /a HTTP/1.1", "X: 1\nY: 2\r\n")),
        line("CR in a value", "X: a\rb"),
        line("CR before a hidden line", "X: a\rTransfer-Encoding: chunked"),
        line("CR twice before LF", "X: a\r"),
        line("NUL in a value", "X: a\0b"),
        line("control character in a value", "X: a\x01b"),
        line("tab in a value", "X: a\tb"),
        vector(
            "8-bit bytes in a value",
            1,
            b"GET /a HTTP/1.1\r\nHost: shop\r\nX: \xff\xfe\r\n\r\n",
        ),
        vector("8-bit bytes in a name", 1, b"GET /a HTTP/1.1\r\nHost: shop\r\nX\xff: 1\r\n\r\n"),
        line("NUL in a name", "X\0Y: 1"),
        line("space in a name", "X Y: 1"),
        line("space before the colon", "X : 1"),
        line("tab before the colon", "X\t: 1"),
        line("parenthesis in a name", "X(y): 1"),
        line("no name", ": 1"),
        line("no colon", "X"),
        line("only a space", " "),
        line("folded line", "X: 1\r\n  2"),
        line("folded line with a tab", "X: 1\r\n\t2"),
        line("folded framing", "Transfer-Encoding:\r\n chunked"),
        vector("first line folded", 1, "GET /a HTTP/1.1\r\n Host: shop\r\n\r\n"),
        vector("space before the first name", 1, "GET /a HTTP/1.1\r\n X: 1\r\nHost: shop\r\n\r\n"),
        line("unknown expectation", "Expect: tea"),
    ]
}

fn hosts() -> Vec<Vector> {
    let host = |name, host: &str| vector(name, 1, format!("GET /a HTTP/1.1\r\n{host}\r\n\r\n"));
    let target = |name, target: &str| vector(name, 1, head(&format!("GET {target} HTTP/1.1"), ""));
    vec![
        vector("no Host", 1, "GET /a HTTP/1.1\r\n\r\n"),
        vector("no Host in HTTP/1.0", 1, "GET /a HTTP/1.0\r\n\r\n"),
        host("empty Host", "Host:"),
        host("two equal Hosts", "Host: shop\r\nHost: shop"),
        host("two Hosts", "Host: shop\r\nHost: evil"),
        host("two Hosts in other cases", "Host: shop\r\nhOST: evil"),
        host("two Hosts, one with a space before the colon", "Host: shop\r\nHost : evil"),
        host("Host of two words", "Host: shop evil"),
        host("Host with a comma", "Host: shop,evil"),
        host("Host with a slash", "Host: shop/x"),
        host("Host with a user", "Host: me@shop"),
        host("Host with two dots in a row", "Host: shop..org"),
        host("Host of a dot", "Host: ."),
        host("Host that is only a port", "Host: :80"),
        host("Host with a bad port", "Host: shop:x"),
        host("Host with a quote", "Host: \"shop\""),
        host("Host with a backslash", "Host: shop\\x"),
        host("Host that is an open bracket", "Host: [::1"),
        host("Host that is an IPv6 address", "Host: [::1]:80"),
        target("absolute target", "http://shop/a"),
        target("absolute target with another Host", "http://other/a"),
        target("absolute target without a path", "http://shop"),
        target("absolute target with a query and no path", "http://shop?a"),
        target("absolute target with a user", "http://me@shop/a"),
        target("absolute target without a host", "http:///a"),
        target("absolute target of another scheme", "ftp://shop/a"),
        target("absolute target above the root", "http://shop/../a"),
        target("target that is only a host", "shop:80"),
        vector("absolute target without a Host", 1, "GET http://shop/a HTTP/1.1\r\n\r\n"),
    ]
}

fn framings() -> Vec<Vector> {
    let both = "5\r\nhello\r\n0\r\n\r\n";
    let length =
        |name, value: &str| vector(name, 1, post(&format!("Content-Length:{value}\r\n"), "hello"));
    // Whoever understands the coding sees the second request behind it.
    let coding = |name, value: &str| {
        vector(
            name,
            2,
            post(
                &format!("Transfer-Encoding:{value}\r\n"),
                &format!("5\r\nhello\r\n0\r\n\r\n{SMUGGLED}"),
            ),
        )
    };
    vec![
        length("length with a plus", " +5"),
        length("length with a minus", " -5"),
        length("length in hexadecimal", " 0x5"),
        length("length with a letter", " 5a"),
        length("length with a comma", " 5,"),
        length("length as a list", " 5, 5"),
        length("length as a list of two", " 5, 6"),
        length("length with a space inside", " 1 5"),
        length("length with a space after it", " 5 "),
        length("length with a tab before it", "\t5"),
        length("length with zeros before it", " 0005"),
        length("length with a point", " 5.0"),
        length("length with an underscore", " 0_5"),
        length("length with a vertical tab", " \x0b5"),
        length("length of 8-bit digits", " \u{0665}"),
        length("length in quotes", " \"5\""),
        length("empty length", ""),
        length("length of 2^64 + 5", " 18446744073709551621"),
        length("length of 2^63", " 9223372036854775808"),
        length("length with a space before the colon", " 5\r\nContent-Length : 6"),
        length("two equal lengths", " 5\r\nContent-Length: 5"),
        length("two lengths", " 5\r\nContent-Length: 0"),
        length("two lengths in other cases", " 5\r\ncONTENT-lENGTH: 0"),
        length("length with an underscore in its name", " 5\r\nContent_Length: 0"),
        vector("length in a folded line", 1, post("X: 1\r\n Content-Length: 5\r\n", "hello")),
        vector(
            "GET with a body that looks like a request",
            1,
            [
                head("GET /a HTTP/1.1", &format!("Content-Length: {}\r\n", SMUGGLED.len())),
                SMUGGLED.as_bytes().to_vec(),
            ]
            .concat(),
        ),
        vector(
            "a request after the body",
            2,
            post("Content-Length: 5\r\n", &format!("hello{SMUGGLED}")),
        ),
        vector("body cut short", 1, post("Content-Length: 50\r\n", "hello")),
        vector(
            "length, then coding",
            1,
            post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", both),
        ),
        vector(
            "coding, then length",
            1,
            post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", both),
        ),
        vector(
            "length and coding in odd cases",
            1,
            post("cOnTeNt-LeNgTh: 4\r\ntRANSFER-eNCODING: ChUnKeD\r\n", both),
        ),
        vector(
            "length zero and coding",
            1,
            post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", both),
        ),
        vector(
            "length and unknown coding",
            1,
            post("Content-Length: 5\r\nTransfer-Encoding: x\r\n", "hello"),
        ),
        vector(
            "length and empty coding",
            1,
            post("Content-Length: 5\r\nTransfer-Encoding:\r\n", "hello"),
        ),
        vector(
            "length between two codings",
            1,
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 4\r\nTransfer-Encoding: identity\r\n",
                both,
            ),
        ),
        coding("coding in odd case", " ChunKED"),
        coding("coding without a space", "chunked"),
        coding("coding with two spaces", "  chunked"),
        coding("coding with a tab", "\tchunked\t"),
        coding("coding with a vertical tab after it", " chunked\x0b"),
        coding("coding with a vertical tab before it", " \x0bchunked"),
        coding("coding with a form feed", " chunked\x0c"),
        coding("coding with a NUL", " chunked\0"),
        coding("coding in quotes", " \"chunked\""),
        coding("coding with a parameter", " chunked;q=1"),
        coding("coding and comma", " chunked,"),
        coding("comma and coding", " ,chunked"),
        coding("coding twice in a line", " chunked, chunked"),
        coding("coding in two lines", " chunked\r\nTransfer-Encoding: chunked"),
        coding("coding, then identity", " chunked, identity"),
        coding("identity, then coding", " identity, chunked"),
        coding("identity", " identity"),
        coding("identity in a line of its own", " chunked\r\nTransfer-Encoding: identity"),
        coding("gzip, then coding", " gzip, chunked"),
        coding("xchunked", " xchunked"),
        coding("chunkedx", " chunkedx"),
        coding("empty coding", ""),
        coding("coding with a space before the colon", " chunked\r\nTransfer-Encoding : identity"),
        coding("coding with an underscore in its name", " chunked\r\nTransfer_Encoding: identity"),
        vector(
            "coding in HTTP/1.0",
            1,
            [head("POST /a HTTP/1.0", "Transfer-Encoding: chunked\r\n"), both.as_bytes().to_vec()]
                .concat(),
        ),
        vector(
            "length and coding in HTTP/1.0",
            1,
            [
                head(
                    "POST /a HTTP/1.0",
                    "Connection: keep-alive\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
                ),
                both.as_bytes().to_vec(),
            ]
            .concat(),
        ),
        vector(
            "coding hidden behind a CR",
            1,
            post("X: 1\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n", "hello"),
        ),
        vector(
            "coding hidden behind an LF",
            1,
            post("X: 1\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n", both),
        ),
    ]
}

fn chunks() -> Vec<Vector> {
    let body = |name, intended, body: &str| vector(name, intended, chunked(body));
    let last = "0\r\n\r\n";
    vec![
        body("chunk size 0x5", 1, &format!("0x5\r\nhello\r\n{last}")),
        body("chunk size with a plus", 1, &format!("+5\r\nhello\r\n{last}")),
        body("chunk size with a minus", 1, &format!("-5\r\nhello\r\n{last}")),
        body("chunk size with a space before it", 1, &format!(" 5\r\nhello\r\n{last}")),
        body("chunk size with a space after it", 1, &format!("5 \r\nhello\r\n{last}")),
        body("chunk size with an underscore", 1, &format!("0_5\r\nhello\r\n{last}")),
        body("chunk size with zeros before it", 1, &format!("0005\r\nhello\r\n{last}")),
        body(
            "chunk size with too many zeros",
            1,
            &format!("{}5\r\nhello\r\n{last}", "0".repeat(2000)),
        ),
        body("chunk size that overflows", 1, &format!("10000000000000005\r\nhello\r\n{last}")),
        body("chunk size of 2^63", 1, &format!("8000000000000000\r\nhello\r\n{last}")),
        body("chunk size that is no number", 1, &format!("xyz\r\nhello\r\n{last}")),
        body("empty chunk size", 1, &format!("\r\nhello\r\n{last}")),
        body("chunk size that ends in LF", 1, &format!("5\nhello\r\n{last}")),
        body("chunk size that ends in CR", 1, &format!("5\rhello\r\n{last}")),
        body("chunk longer than its size", 1, &format!("4\r\nhello\r\n{last}")),
        body("chunk shorter than its size", 1, &format!("6\r\nhello\r\n{last}")),
        body("chunk that ends in LF", 1, &format!("5\r\nhello\n{last}")),
        body("chunk that ends in nothing", 1, &format!("5\r\nhello{last}")),
        body("chunk extension", 1, &format!("5;a=b\r\nhello\r\n{last}")),
        body("chunk extension with an LF", 1, &format!("5;a\nb\r\nhello\r\n{last}")),
        body("chunk extension with a CR", 1, &format!("5;a\rb\r\nhello\r\n{last}")),
        body("chunk extension with a NUL", 1, &format!("5;\0\r\nhello\r\n{last}")),
        body(
            "chunk extension that ends in LF and smuggles",
            1,
            &format!("5;\nhello\r\n0\r\n\r\n{SMUGGLED}"),
        ),
        body("huge chunk extension", 1, &format!("5;{}\r\nhello\r\n{last}", "a".repeat(20_000))),
        body("trailer", 1, "5\r\nhello\r\n0\r\nX: 1\r\n\r\n"),
        body(
            "trailer that is a framing header",
            1,
            &format!("5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n{}", ""),
        ),
        body("trailer without a colon", 1, "5\r\nhello\r\n0\r\nX\r\n\r\n"),
        body("trailer that is folded", 1, "5\r\nhello\r\n0\r\nX: 1\r\n 2\r\n\r\n"),
        body("trailer that ends in LF", 1, "5\r\nhello\r\n0\r\nX: 1\n\r\n"),
        body("trailer with a NUL", 1, "5\r\nhello\r\n0\r\nX: \0\r\n\r\n"),
        body("huge trailer", 1, &format!("5\r\nhello\r\n0\r\nX: {}\r\n\r\n", "a".repeat(20_000))),
        body("last chunk that ends in LF", 1, "5\r\nhello\r\n0\n\n"),
        body("last chunk cut short", 1, "5\r\nhello\r\n0\r\n"),
        body("request in a chunk", 1, &format!("{:x}\r\n{SMUGGLED}\r\n{last}", SMUGGLED.len())),
        body("request after the last chunk", 2, &format!("5\r\nhello\r\n{last}{SMUGGLED}")),
    ]
}

fn connections() -> Vec<Vector> {
    let line = |name, line: &str| vector(name, 1, head("GET /a HTTP/1.1", &format!("{line}\r\n")));
    let named = |name, word: &str| {
        vector(name, 1, post(&format!("Connection: {word}\r\nContent-Length: 5\r\n"), "hello"))
    };
    vec![
        named("Connection names Content-Length", "Content-Length"),
        named("Connection names Host", "Host"),
        vector(
            "Connection names Transfer-Encoding",
            1,
            post(
                "Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n",
                "5\r\nhello\r\n0\r\n\r\n",
            ),
        ),
        line("Connection names X-Forwarded-For", "Connection: X-Forwarded-For"),
        line("Connection close and keep-alive", "Connection: close, keep-alive"),
        line("Connection of an odd word", "Connection: \"close"),
        vector(
            "a request after Connection: close",
            1,
            [head("GET /a HTTP/1.1", "Connection: close\r\n"), SMUGGLED.as_bytes().to_vec()]
                .concat(),
        ),
        line(
            "Upgrade to h2c",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        ),
        vector(
            "Upgrade to h2c with a body",
            1,
            post("Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n", "hello"),
        ),
        line("Upgrade that Connection does not name", "Upgrade: websocket"),
        vector(
            "a request after an Upgrade that is not taken",
            2,
            [
                head("GET /a HTTP/1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
                SMUGGLED.as_bytes().to_vec(),
            ]
            .concat(),
        ),
        vector(
            "body with an Upgrade",
            1,
            post("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n", "hello"),
        ),
        vector(
            "100-continue without waiting",
            1,
            post("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"),
        ),
        vector(
            "a request after 100-continue and no body",
            2,
            [head("GET /a HTTP/1.1", "Expect: 100-continue\r\n"), SMUGGLED.as_bytes().to_vec()]
                .concat(),
        ),
    ]
}

fn sizes() -> Vec<Vector> {
    let many = |n: usize| {
        (0..n).fold(String::new(), |mut s, i| {
            write!(s, "X-{i}: 1\r\n").unwrap();
            s
        })
    };
    let mut slow = vector("head that never ends", 1, "GET /a HTTP/1.1\r\nHost: shop\r\n");
    slow.waits = true;
    let mut slow_line = vector("request line that never ends", 1, "GET /a");
    slow_line.waits = true;
    let mut slow_body = vector("body that never ends", 1, post("Content-Length: 50\r\n", "hello"));
    slow_body.waits = true;
    vec![
        vector("90 header lines", 1, head("GET /a HTTP/1.1", &many(90))),
        vector("300 header lines", 1, head("GET /a HTTP/1.1", &many(300))),
        vector(
            "a header line of 64 KiB",
            1,
            head("GET /a HTTP/1.1", &format!("X: {}\r\n", "a".repeat(64 << 10))),
        ),
        vector(
            "a target of 64 KiB",
            1,
            head(&format!("GET /{} HTTP/1.1", "a".repeat(64 << 10)), ""),
        ),
        vector("a method of 64 KiB", 1, head(&format!("{} /a HTTP/1.1", "A".repeat(64 << 10)), "")),
        vector("a head cut short", 1, "GET /a HTTP/1.1\r\nHost: sh"),
        slow,
        slow_line,
        slow_body,
    ]
}

/// A backend that writes down every byte, and answers each whole request with its first line.
struct Recorder {
    address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

/// What reached the backend, by connection.
#[derive(Default)]
struct Log {
    bytes: BTreeMap<usize, Vec<u8>>,
}

impl Recorder {
    fn start() -> Recorder {
        let listener = listen();
        listener.set_nonblocking(true).unwrap();
        let recorder = Recorder { address: listener.local_addr().unwrap(), log: Arc::default() };
        let log = recorder.log.clone();
        std::thread::spawn(move || record(&listener, &log));
        recorder
    }

    /// Whole requests as `POST /a hello`, and what was left of a connection as `POST /a ...`; forgets them.
    fn take(&self) -> (Vec<String>, Vec<String>) {
        let mut log = self.log.lock().unwrap();
        let (mut whole, mut cut) = (Vec::new(), Vec::new());
        for bytes in log.bytes.values_mut() {
            let mut rest = bytes.as_slice();
            while let Some((request, length)) = parse(rest) {
                whole.push(request);
                rest = &rest[length..];
            }
            if !rest.is_empty() {
                cut.push(format!("{} ...", first_words(rest)));
            }
            bytes.clear();
        }
        (whole, cut)
    }
}

/// One thread for all connections: what was sent first is written down before anything that came later is answered.
fn record(listener: &TcpListener, log: &Mutex<Log>) {
    let mut open: BTreeMap<usize, (TcpStream, Vec<u8>)> = BTreeMap::new();
    let mut count = 0;
    loop {
        {
            let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
            fds.extend(open.values().map(|(s, _)| PollFd::new(s, PollFlags::IN)));
            poll(&mut fds, None).unwrap();
        }
        let mut news = true;
        while std::mem::take(&mut news) {
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                stream.set_nodelay(true).unwrap();
                open.insert(count, (stream, Vec::new()));
                count += 1;
                news = true;
            }
            open.retain(|number, (stream, buffer)| {
                let mut chunk = [0; 65536];
                match stream.read(&mut chunk) {
                    Ok(read) if read > 0 => {
                        let mut log = log.lock().unwrap();
                        log.bytes.entry(*number).or_default().extend_from_slice(&chunk[..read]);
                        buffer.extend_from_slice(&chunk[..read]);
                        news = true;
                        true
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => true,
                    Ok(_) | Err(_) => false,
                }
            });
        }
        for (stream, buffer) in open.values_mut() {
            while let Some((request, length)) = parse(buffer) {
                buffer.drain(..length);
                let line = request.split(' ').take(2).collect::<Vec<_>>().join(" ");
                let answer = crate::harness::ok(&line);
                // A few bytes always fit into an empty socket buffer.
                stream.write_all(answer.as_bytes()).ok();
            }
        }
    }
}

fn first_words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.split([' ', '\r']).take(2).collect::<Vec<_>>().join(" ").escape_debug().to_string()
}

/// Method, target and body of the request at the front of `bytes`, and its length.
fn parse(bytes: &[u8]) -> Option<(String, usize)> {
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let value = |name: &str| {
        let line = text.lines().skip(1).find(|l| l.split(':').next() == Some(name));
        line.and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned())
    };
    let mut body = Vec::new();
    let mut at = head;
    if value("transfer-encoding").as_deref() == Some("chunked") {
        loop {
            let line = bytes[at..].windows(2).position(|w| w == b"\r\n")?;
            let digits = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
            let size = digits.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).expect("what is forwarded is well formed");
            at += line + 2;
            if size == 0 {
                break;
            }
            body.extend_from_slice(bytes.get(at..at + size)?);
            at += size;
            assert_eq!(bytes.get(at..at + 2)?, b"\r\n", "what is forwarded is well formed");
            at += 2;
        }
        loop {
            let line = bytes[at..].windows(2).position(|w| w == b"\r\n")?;
            at += line + 2;
            if line == 0 {
                break;
            }
        }
    } else if let Some(length) = value("content-length") {
        let length: usize = length.parse().expect("what is forwarded is well formed");
        body.extend_from_slice(bytes.get(at..at + length)?);
        at += length;
    }
    let body = String::from_utf8_lossy(&body).split("\r\n").next().unwrap_or_default().to_owned();
    Some((format!("{} {body}", first_words(&bytes[..head])).trim_end().to_owned(), at))
}

/// A running nginx; ends with the test.
struct Nginx {
    child: Child,
    address: SocketAddr,
    dir: PathBuf,
    version: String,
}

impl Nginx {
    fn start(backend: SocketAddr) -> Nginx {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"]
            .into_iter()
            .find(|p| std::path::Path::new(p).exists())
            .expect("nginx is not installed: run `cargo xtask test`, or `apt-get install nginx`");
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("nginx-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let address = listen().local_addr().unwrap();
        let conf = dir.join("nginx.conf");
        std::fs::write(&conf, nginx_conf(&dir.display().to_string(), address, backend)).unwrap();
        let child = Command::new(program)
            .args(["-e", "error.log", "-p"])
            .arg(&dir)
            .arg("-c")
            .arg(&conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start nginx");
        until("nginx listens", || TcpStream::connect(address).is_ok());
        let version = Command::new(program).arg("-v").output().unwrap().stderr;
        let version = String::from_utf8_lossy(&version).trim().replace("nginx version: ", "");
        Nginx { child, address, dir, version }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

fn nginx_conf(dir: &str, address: SocketAddr, backend: SocketAddr) -> String {
    format!(
        "daemon off;
master_process off;
pid {dir}/pid;
error_log {dir}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    client_header_timeout 1s;
    client_body_timeout 1s;
    upstream backend {{ server {backend}; keepalive 8; }}
    server {{
        listen {address};
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $host;
            proxy_ignore_client_abort on;
        }}
    }}
}}
"
    )
}

/// What became of one vector behind one proxy.
#[derive(Debug)]
struct Fate {
    /// Statuses of the answers, and `close` if the last one ends the connection.
    answers: String,
    whole: Vec<String>,
    cut: Vec<String>,
}

impl Fate {
    fn reached(&self) -> String {
        let all: Vec<&str> = self.whole.iter().chain(&self.cut).map(String::as_str).collect();
        if all.is_empty() { "-".to_owned() } else { all.join(" + ") }
    }
}

fn try_on(proxy: SocketAddr, backend: &Recorder, vector: &Vector) -> Fate {
    let mut client = Wire::connect(proxy);
    // A refused client may find the door shut before it has said all.
    client.try_send(&vector.bytes).ok();
    if !vector.waits {
        client.end();
    }
    let got = match client.rest() {
        Ok(bytes) => bytes,
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
            ) =>
        {
            std::mem::take(&mut client.buffer)
        }
        Err(e) => panic!("{}: {e}", vector.name),
    };
    let answers = answers(&got);
    // The next client must get its own answer, on whatever connection to the backend is kept.
    let next = Wire::connect(proxy).ask(head("GET /next HTTP/1.1", ""));
    assert_eq!(next.text(), "GET /next", "{}: the next client got another's answer", vector.name);
    let (mut whole, cut) = backend.take();
    assert_eq!(whole.iter().filter(|r| *r == "GET /next").count(), 1, "{}: {whole:?}", vector.name);
    whole.retain(|r| r != "GET /next");
    Fate { answers, whole, cut }
}

/// The statuses of all answers in `bytes`.
fn answers(bytes: &[u8]) -> String {
    let mut wire =
        Wire { stream: std::io::Cursor::new(bytes.to_vec()), buffer: Vec::new(), number: 0 };
    let mut words = Vec::new();
    loop {
        let at = usize::try_from(wire.stream.position()).unwrap() - wire.buffer.len();
        let rest = &bytes[at..];
        if rest.is_empty() {
            break;
        }
        if rest.len() > 9 && rest[3] == 4 && rest[0] == 0 {
            words.push("h2".to_owned());
            break;
        }
        if !rest.starts_with(b"HTTP/") {
            words.push("0.9".to_owned());
            break;
        }
        let Ok(answer) = wire.try_answer() else {
            words.push("cut".to_owned());
            break;
        };
        if answer.status() == 100 {
            continue;
        }
        words.push(answer.status().to_string());
        if answer.header("connection") == Some("close") {
            words.push("close".to_owned());
        }
    }
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

#[test]
fn nothing_that_nginx_refuses_gets_through() {
    let (ours, theirs) = (Recorder::start(), Recorder::start());
    let nginx = Nginx::start(theirs.address);
    let gate = Gate::http(&[ours.address], |service| {
        service.timeouts.head = Duration::from_millis(300);
        service.timeouts.body = Duration::from_millis(300);
        service.retry.attempts = 1;
    });
    let mut faults = Vec::new();
    let mut rows = Vec::new();
    for vector in vectors() {
        let we = try_on(gate.address, &ours, &vector);
        let they = try_on(nginx.address, &theirs, &vector);
        if !they.whole.starts_with(&we.whole) {
            faults.push(format!(
                "{}: we forward {:?}, nginx {:?}",
                vector.name, we.whole, they.whole
            ));
        }
        if we.whole.len() > vector.intended {
            faults.push(format!(
                "{}: {} requests, not {}",
                vector.name,
                we.whole.len(),
                vector.intended
            ));
        }
        rows.push([
            vector.name.to_owned(),
            we.answers.clone(),
            we.reached(),
            they.answers.clone(),
            they.reached(),
        ]);
    }
    assert_eq!(gate.own_errors(outlast_proxy::stats::ErrorKind::NoBackend), 0);
    check_table(&nginx.version, &rows);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Compares with the file beside this one, or writes it.
fn check_table(nginx: &str, rows: &[[String; 5]]) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire/malformed.txt");
    let text = render(nginx, rows);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected.starts_with(&format!("What {nginx} ")) {
        assert!(text == expected, "{}", differences(&expected, &text));
    } else {
        // Another nginx: only our own columns are promised.
        let ours = |text: &str| {
            text.lines()
                .skip(1)
                .map(|l| l.split(" | ").take(3).collect::<Vec<_>>().join(" | "))
                .map(|l| l.trim_end().to_owned())
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert!(ours(&text) == ours(&expected), "{}", differences(&ours(&expected), &ours(&text)));
    }
}

fn differences(before: &str, after: &str) -> String {
    let lines = before.lines().zip(after.lines()).filter(|(a, b)| a != b);
    let mut text = "malformed.txt differs; UPDATE_EXPECT=1 rewrites it\n".to_owned();
    for (before, after) in lines {
        write!(text, "- {before}\n+ {after}\n").unwrap();
    }
    text
}

fn render(nginx: &str, rows: &[[String; 5]]) -> String {
    let heads = ["request", "answer", "reached the backend", "nginx", "reached its backend"]
        .map(str::to_owned);
    let mut all = vec![heads];
    all.extend_from_slice(rows);
    let mut text = format!(
        "What {nginx} and outlast make of malformed and ambiguous requests. `...`: cut off, never a whole request.\n\n"
    );
    let width = |i: usize| all.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    for row in &all {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(text, "{}", cells.join(" | ").trim_end()).unwrap();
    }
    text
}
