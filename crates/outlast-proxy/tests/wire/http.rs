//! Requests and answers that are carried as they should be: bodies, borders, upgrades, early ends, who the client is.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use outlast_proxy::stats::ErrorKind;
use outlast_proxy::table::{Forwarded, Service};

use crate::harness::{Backend, Gate, LIMIT, Stage, Wire, ask, get, noise, ok, until, with_body};

fn plain(_service: &mut Service) {}

/// Sends back each piece of a body as soon as it has come.
fn echo() -> Backend {
    Backend::start(|mut stage: Stage| {
        while let Ok(Some(request)) = stage.wire.head() {
            let Some(length) = request.header("content-length").and_then(|l| l.parse().ok()) else {
                return;
            };
            let mut left: usize = length;
            stage.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
            let mut piece = std::mem::take(&mut stage.wire.buffer);
            while left > 0 {
                left -= piece.len();
                if !stage.say(&piece) {
                    return;
                }
                piece.resize(64 << 10, 0);
                let Ok(count) = stage.wire.stream.read(&mut piece[..left.min(64 << 10)]) else {
                    return;
                };
                if count == 0 && left > 0 {
                    return;
                }
                piece.truncate(count);
            }
        }
    })
}

#[test]
fn bodies_stream_both_ways_at_once() {
    let backend = echo();
    let gate = Gate::http(&[backend.address], plain);
    let body = Arc::new(noise(50 << 20));
    let mut client = Wire::connect(gate.address);
    for _ in 0..2 {
        let mut up = client.stream.try_clone().unwrap();
        let sent = body.clone();
        let sending = std::thread::spawn(move || {
            let head =
                format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n", sent.len());
            up.write_all(head.as_bytes()).unwrap();
            up.write_all(&sent).unwrap();
        });
        // More than all socket buffers hold: it could not end if the body were gathered first.
        let answer = client.answer();
        sending.join().unwrap();
        assert!(answer.body == *body, "the body came back changed");
    }
}

/// Writes until nothing more is taken; returns how much was.
fn fill(wire: &mut Wire, piece: &[u8], limit: usize) -> usize {
    wire.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = 0;
    while sent < limit {
        match wire.stream.write(piece) {
            Ok(count) => sent += count,
            Err(_) => break,
        }
    }
    sent
}

#[test]
fn a_backend_that_does_not_read_stops_the_client() {
    let done = Arc::new(AtomicBool::new(false));
    let seen = done.clone();
    let stuck = Backend::start(move |mut stage| {
        stage.wire.head().ok();
        until("the client has been stopped", || seen.load(SeqCst));
    });
    let gate = Gate::http(&[stuck.address], plain);
    let mut client = Wire::connect(gate.address);
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 99999999999\r\n\r\n");
    // The kernel's buffers on both connections hold some MiB each; the proxy itself must add next to nothing.
    let sent = fill(&mut client, &vec![7; 1 << 20], 200 << 20);
    done.store(true, SeqCst);
    assert!(sent < 64 << 20, "{sent} bytes were taken that nobody reads");
}

#[test]
fn a_client_that_does_not_read_stops_the_backend() {
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = sent.clone();
    let backend = Backend::start(move |mut stage| {
        stage.next();
        stage.say("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n");
        seen.store(fill(&mut stage.wire, &vec![7; 1 << 20], 200 << 20), SeqCst);
    });
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    client.send(get("/"));
    until("the backend has been stopped", || sent.load(SeqCst) > 0);
    assert!(
        sent.load(SeqCst) < 64 << 20,
        "{} bytes were taken that nobody reads",
        sent.load(SeqCst)
    );
}

#[test]
fn bodies_keep_their_framing() {
    let backend = Backend::answering(|request| {
        let framing =
            ["content-length", "transfer-encoding"].map(|h| request.header(h).unwrap_or("-"));
        let told = format!("{} {}", framing.join(" "), request.text());
        if request.line().ends_with("chunked") {
            let (a, b) = told.split_at(3);
            return format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{a}\r\n{:x};x=y\r\n{b}\r\n0\r\nX-T: 1\r\n\r\n",
                a.len(),
                b.len()
            );
        }
        ok(&told)
    });
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    let answer = client.ask(with_body("POST", "/", b"hello"));
    assert_eq!((answer.text().as_str(), answer.header("content-length")), ("5 - hello", Some("9")));
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in ["5", "\r", "\nhel", "lo\r\n0\r\n", "\r\n"] {
        client.send(piece);
    }
    assert_eq!(client.answer().text(), "- chunked hello");
    let answer = client.ask(get("/chunked"));
    assert_eq!(
        (answer.text().as_str(), answer.header("transfer-encoding")),
        ("- - ", Some("chunked"))
    );
    assert_eq!(answer.header("content-length"), None);
    assert_eq!(client.ask(with_body("PUT", "/", b"")).text(), "0 - ");
}

#[test]
fn answers_without_a_body_end_at_their_head() {
    let backend = Backend::answering(|request| match request.line().as_str() {
        "HEAD /" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_owned(),
        "HEAD /chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "GET /204" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "GET /304" => {
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\n".to_owned()
        }
        _ => ok("hello"),
    });
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    let mut bodyless = |request: &str, name: &str| {
        client.send(format!("{request} HTTP/1.1\r\nHost: shop\r\n\r\n"));
        let answer = client.head().unwrap().unwrap();
        let value = answer.header(name).map(str::to_owned);
        // Whatever stood between would show here.
        assert_eq!(client.ask(get("/")).text(), "hello", "after {request}");
        value
    };
    assert_eq!(bodyless("HEAD /", "content-length").as_deref(), Some("5"));
    assert_eq!(bodyless("HEAD /chunked", "transfer-encoding").as_deref(), Some("chunked"));
    assert_eq!(bodyless("GET /204", "content-length"), None);
    assert_eq!(bodyless("GET /304", "etag").as_deref(), Some("\"x\""));
    assert_eq!(backend.connections(), 1, "all on one connection");
}

#[test]
fn an_expectation_is_answered_by_the_proxy() {
    let backend = Backend::answering(|r| ok(&format!("{:?} {}", r.header("expect"), r.text())));
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    for _ in 0..2 {
        client.send(
            "POST / HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        );
        assert_eq!(client.head().unwrap().unwrap().status(), 100);
        assert_eq!(client.ask("hello").text(), "None hello");
    }
    // Nobody there: the client need not send its body to learn that.
    let gate = Gate::http(&[], plain);
    let answer = ask(
        &gate,
        "POST / HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    );
    assert_eq!(answer.status(), 503);
}

#[test]
fn http_1_0_clients_get_no_chunks_and_no_surprises() {
    let backend = Backend::answering(|request| {
        match request.line().as_str() {
        "GET /chunked" => {
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n".to_owned()
        }
        _ => ok("hello"),
    }
    });
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    client.send("GET /chunked HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let answer = client.answer();
    assert_eq!(
        (answer.text().as_str(), answer.header("connection")),
        ("hello world", Some("close"))
    );
    assert_eq!(answer.header("transfer-encoding"), None);
    let mut client = Wire::connect(gate.address);
    for _ in 0..2 {
        let answer = client.ask("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(
            (answer.text().as_str(), answer.header("connection")),
            ("hello", Some("keep-alive"))
        );
    }
    let answer = client.ask("GET / HTTP/1.0\r\nHost: shop\r\n\r\n");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(client.rest().unwrap(), b"");
    assert!(backend.requests().iter().all(|r| r.head.contains(" HTTP/1.1\r\n")));
    assert_eq!(backend.connections(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::answering(|r| ok(&format!("{} {}", r.line(), r.text())));
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    let mut all = Vec::new();
    for n in 0..50 {
        all.extend(get(&format!("/{n}")).into_bytes());
        all.extend(with_body("POST", &format!("/{n}"), format!("body {n}").as_bytes()));
    }
    for piece in all.chunks(97) {
        client.send(piece);
    }
    for n in 0..50 {
        assert_eq!(client.answer().text(), format!("GET /{n} "));
        assert_eq!(client.answer().text(), format!("POST /{n} body {n}"));
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn requests_may_come_byte_by_byte() {
    let backend = Backend::answering(|r| ok(&format!("{} {}", r.line(), r.text())));
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    for byte in with_body("POST", "/slow", b"hello") {
        client.send([byte]);
    }
    assert_eq!(client.answer().text(), "POST /slow hello");
    client.send("\r\n");
    assert_eq!(client.ask(get("/again")).text(), "GET /again ");
}

#[test]
fn answers_may_come_byte_by_byte() {
    let backend = Backend::start(|mut stage| {
        while stage.next().is_some() {
            for byte in ok("hello").bytes() {
                stage.say([byte]);
            }
        }
    });
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    for _ in 0..3 {
        assert_eq!(client.ask(get("/")).text(), "hello");
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn an_answer_may_end_with_its_connection() {
    let backend = Backend::start(|mut stage| {
        let old = stage.next().is_some_and(|r| r.line() == "GET /old");
        stage.say(if old {
            "HTTP/1.0 200 OK\r\n\r\n"
        } else {
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        });
        stage.say("until ");
        stage.say("the end");
    });
    let gate = Gate::http(&[backend.address], plain);
    for path in ["/old", "/new"] {
        let answer = ask(&gate, get(path));
        assert_eq!(
            (answer.text().as_str(), answer.header("connection")),
            ("until the end", Some("close"))
        );
    }
}

#[test]
fn a_client_that_has_ended_its_side_still_gets_its_answer() {
    let backend = Backend::named("late");
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    client.send(with_body("POST", "/", b"x"));
    client.end();
    assert_eq!(client.answer().text(), "late");
    assert_eq!(client.rest().unwrap(), b"");
}

fn websocket() -> Backend {
    Backend::start(|mut stage| {
        let request = stage.next().expect("a request");
        assert_eq!(
            (request.header("connection"), request.header("upgrade")),
            (Some("Upgrade"), Some("websocket"))
        );
        assert_eq!(request.header("sec-websocket-key"), Some("k"));
        // The first frame comes with the head.
        stage.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\nhello");
        let mut piece = [0; 65536];
        while let Ok(count) = stage.wire.stream.read(&mut piece) {
            if count == 0 {
                stage.say("bye");
                return;
            }
            stage.say(&piece[..count]);
        }
    })
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";

#[test]
fn an_upgrade_becomes_a_tunnel_both_ways() {
    let backend = websocket();
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    // An impatient client speaks before it has been let through.
    client.send(format!("{UPGRADE}early"));
    let head = client.head().unwrap().unwrap();
    assert_eq!(
        (head.status(), head.header("upgrade"), head.header("connection")),
        (101, Some("websocket"), Some("Upgrade"))
    );
    assert_eq!(head.header("sec-websocket-accept"), Some("a"));
    assert_eq!(client.exactly(10).unwrap(), b"helloearly");
    let body = noise(8 << 20);
    let mut up = client.stream.try_clone().unwrap();
    let sent = body.clone();
    let sending = std::thread::spawn(move || up.write_all(&sent).unwrap());
    assert!(client.exactly(body.len()).unwrap() == body);
    sending.join().unwrap();
    assert_eq!(gate.stats().backends[0].counts.tunnels, 1);
    client.end();
    assert_eq!(client.rest().unwrap(), b"bye", "each side ends for itself");
}

#[test]
fn an_upgrade_may_be_declined() {
    let backend = Backend::named("no");
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    assert_eq!(client.ask(UPGRADE).text(), "no");
    assert_eq!(client.ask(get("/")).text(), "no");
}

#[test]
fn an_upgrade_that_nobody_asked_for_is_an_error() {
    let backend = Backend::start(|mut stage| {
        while stage.next().is_some() {
            stage.say(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
            );
        }
    });
    let gate = Gate::http(&[backend.address], |service| service.eject.failures = 0);
    let mut client = Wire::connect(gate.address);
    // What follows is a request of its own, and never bytes of a tunnel.
    client.send([with_body("POST", "/", b"x"), get("/smuggled").into_bytes()].concat());
    assert_eq!(client.answer().status(), 502);
    assert!(gate.errors(0, ErrorKind::BadAnswer) >= 1);
    assert_eq!(gate.stats().backends[0].counts.tunnels, 0);
}

#[test]
fn interim_answers_stay_behind() {
    let backend = Backend::start(|mut stage| {
        while stage.next().is_some() {
            stage.say("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n");
            stage.say("\r\n");
            stage.say(ok("final"));
        }
    });
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    for _ in 0..3 {
        let answer = client.ask(get("/"));
        assert_eq!((answer.status(), answer.text().as_str()), (200, "final"));
    }
}

#[test]
fn an_answer_may_come_while_the_body_is_still_being_sent() {
    let backend = Backend::start(|mut stage| {
        stage.wire.head().ok();
        stage.say("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig");
        // Reads on, as a careful server does.
        stage.wire.rest().ok();
    });
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000000\r\n\r\n");
    client.send(vec![7; 100_000]);
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text().as_str()), (413, "big"));
    // What the client had on its way is taken and thrown away, and the connection ends without a reset.
    until("the request is over", || gate.stats().in_flight == 0);
    for _ in 0..20 {
        client.send(vec![7; 5000]);
    }
    client.end();
    assert_eq!(client.rest().expect("an end, not a reset"), b"");
}

#[test]
fn a_client_that_goes_away_is_not_waited_for() {
    let gone = Arc::new(AtomicBool::new(false));
    let seen = gone.clone();
    let backend = Backend::start(move |mut stage| {
        stage.wire.head().ok();
        stage.say("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n");
        while stage.say(vec![7; 1 << 16]) {}
        seen.store(true, SeqCst);
    });
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    client.send(get("/"));
    client.exactly(1 << 20).unwrap();
    client.stream.shutdown(Shutdown::Both).unwrap();
    drop(client);
    until("the backend is told", || gone.load(SeqCst));
    until("it is counted", || gate.errors(0, ErrorKind::ClientGone) == 1);
    until("its place is free", || gate.proxy.connections() == 0);
    assert_eq!(gate.errors(0, ErrorKind::Reset), 0);
    assert!(gate.notices().is_empty(), "no fault of the backend");
}

#[test]
fn a_client_that_goes_away_in_its_body_takes_the_request_back() {
    let outcome = Arc::new(std::sync::Mutex::new(None));
    let seen = outcome.clone();
    let backend = Backend::start(move |mut stage| {
        let request = stage.wire.request();
        *seen.lock().unwrap() = Some(request.map(|r| r.is_some()).map_err(|e| e.kind()));
    });
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 100\r\n\r\nhalf");
    until("the backend has it", || backend.connections() == 1);
    client.reset();
    until("the backend sees it cut", || outcome.lock().unwrap().is_some());
    let outcome = outcome.lock().unwrap().take().unwrap();
    assert!(outcome.is_err(), "an unfinished body must not look finished: {outcome:?}");
    until("it is counted", || gate.errors(0, ErrorKind::ClientGone) == 1);
}

#[test]
fn a_backend_that_closes_in_its_body_is_seen_to() {
    let heads = [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    ];
    for head in heads {
        let backend = Backend::start(move |mut stage| {
            stage.next();
            stage.say(head);
        });
        let gate = Gate::http(&[backend.address], plain);
        let mut client = Wire::connect(gate.address);
        client.send(get("/"));
        let answer = client.try_answer();
        assert!(answer.is_err(), "an unfinished body must not look finished: {answer:?}");
        until("it is counted", || gate.errors(0, ErrorKind::Reset) == 1);
        assert_eq!(backend.count(), 1, "what has begun is not retried");
    }
}

#[test]
fn an_unfinished_body_does_not_look_finished_to_an_http_1_0_client() {
    let backend = Backend::start(|mut stage| {
        stage.next();
        stage.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    });
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    client.send("GET / HTTP/1.0\r\n\r\n");
    let end = client.rest();
    assert!(end.is_err(), "only a reset can say that the end is not the end: {end:?}");
}

#[test]
fn an_answer_that_makes_no_sense_is_not_passed_on() {
    let huge = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    let answers = [
        "hello\r\n\r\n".to_owned(),
        "HTTP/2.0 200 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 abc OK\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            .to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n".to_owned(),
        huge,
    ];
    for answer in answers {
        let wire = answer.clone();
        let backend = Backend::answering(move |_| wire.clone());
        let gate = Gate::http(&[backend.address], |service| service.retry.attempts = 1);
        let got = ask(&gate, get("/"));
        assert_eq!(got.status(), 502, "{answer:.60}: {got:?}");
        assert_eq!(gate.errors(0, ErrorKind::BadAnswer), 1, "{answer:.60}");
    }
}

#[test]
fn an_answer_that_says_more_than_it_should_ends_its_connection() {
    let backend = Backend::answering(|_| format!("{}{}", ok("one"), ok("poison")));
    let gate = Gate::http(&[backend.address], plain);
    let mut client = Wire::connect(gate.address);
    for _ in 0..5 {
        assert_eq!(client.ask(get("/")).text(), "one");
    }
    assert_eq!(backend.connections(), 5);
    // The surplus may also come late.
    let said = Arc::new(AtomicBool::new(false));
    let told = said.clone();
    let late = Backend::start(move |mut stage| {
        while stage.next().is_some() {
            stage.say(ok("one"));
            stage.say(ok("poison"));
            told.store(true, SeqCst);
        }
    });
    let gate = Gate::http(&[late.address], |service| service.retry.on_reset = false);
    let mut client = Wire::connect(gate.address);
    client.ask(get("/"));
    until("the surplus has come", || said.load(SeqCst));
    assert_eq!(client.ask(get("/")).text(), "one");
}

#[test]
fn a_client_is_announced_to_the_backend() {
    let backend = Backend::answering(|request| {
        let names = ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded"];
        ok(&names.map(|n| request.all(n).join("+")).join("|"))
    });
    let request = "GET / HTTP/1.1\r\nHost: shop:8080\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
                   X-Forwarded-Host: evil\r\nForwarded: for=6.6.6.6\r\n\r\n";
    let trusted = ("127.0.0.0".parse().unwrap(), 8);
    let elsewhere = ("10.0.0.0".parse().unwrap(), 8);
    let own = "for=127.0.0.1;proto=http;host=\"shop:8080\"";
    for (forwarded, network, expected) in [
        (Forwarded::XForwarded, None, "127.0.0.1|http|shop:8080|".to_owned()),
        (Forwarded::XForwarded, Some(elsewhere), "127.0.0.1|http|shop:8080|".to_owned()),
        (
            Forwarded::XForwarded,
            Some(trusted),
            "6.6.6.6, 127.0.0.1|https|evil|for=6.6.6.6".to_owned(),
        ),
        (Forwarded::Forwarded, None, format!("|||{own}")),
        (Forwarded::Forwarded, Some(trusted), format!("6.6.6.6|https|evil|for=6.6.6.6, {own}")),
        (Forwarded::Both, None, format!("127.0.0.1|http|shop:8080|{own}")),
        (Forwarded::Off, None, "|||".to_owned()),
        (Forwarded::Off, Some(trusted), "6.6.6.6|https|evil|for=6.6.6.6".to_owned()),
    ] {
        let gate = Gate::http(&[backend.address], |service| {
            service.forwarded = forwarded;
            service.trusted = network.into_iter().collect();
        });
        assert_eq!(ask(&gate, request).text(), expected, "{forwarded:?} {network:?}");
    }
}

#[test]
fn several_forwarding_lines_of_a_trusted_peer_are_all_kept() {
    let backend = Backend::answering(|r| ok(&r.all("x-forwarded-for").join("+")));
    let gate = Gate::http(&[backend.address], |service| {
        service.trusted = vec![("127.0.0.1".parse().unwrap(), 32)];
    });
    let request = "GET / HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n\r\n";
    assert_eq!(ask(&gate, request).text(), "1.1.1.1, 2.2.2.2, 127.0.0.1");
}

#[test]
fn headers_with_underscores_stay_behind_and_say_nothing_about_framing() {
    let backend = Backend::answering(|r| ok(&r.head));
    let gate = Gate::http(&[backend.address], plain);
    let answer = ask(
        &gate,
        "POST / HTTP/1.1\r\nHost: shop\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded_Proto: https\r\nX_Mine: 1\r\n\
         Content_Length: 3\r\nTransfer_Encoding: chunked\r\n_: 1\r\nX-Mine: a_b\r\nContent-Length: 2\r\n\r\nhi",
    );
    let head = answer.text();
    let names = head.lines().filter_map(|l| l.split_once(": ").map(|(name, _)| name));
    assert!(names.clone().all(|name| !name.contains('_')), "{head}");
    assert_eq!(names.filter(|name| name.eq_ignore_ascii_case("x-forwarded-for")).count(), 1);
    assert!(head.contains("X-Forwarded-For: 127.0.0.1\r\n") && head.contains("X-Mine: a_b\r\n"));
    assert!(head.contains("X-Forwarded-Proto: http\r\n") && head.contains("Content-Length: 2\r\n"));
}

#[test]
fn headers_of_one_hop_stay_there() {
    let backend = Backend::start(|mut stage| {
        while let Some(request) = stage.next() {
            let kept = ["connection", "keep-alive", "te", "proxy-connection", "x-hop", "x-end"];
            let kept: Vec<&str> =
                kept.into_iter().filter(|h| request.header(h).is_some()).collect();
            let body = kept.join(" ");
            stage.say(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-End: 1\r\n\r\n{body}",
                body.len()
            ));
        }
    });
    let gate = Gate::http(&[backend.address], plain);
    let answer = ask(
        &gate,
        "GET / HTTP/1.1\r\nHost: shop\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n\
         Proxy-Connection: keep-alive\r\nX-End: 1\r\n\r\n",
    );
    assert_eq!(answer.text(), "x-end");
    assert_eq!(answer.header("x-end"), Some("1"));
    assert!(["x-hop", "keep-alive"].iter().all(|h| answer.header(h).is_none()), "{answer:?}");
}

#[test]
fn a_body_beyond_the_limit_is_refused() {
    let backend = Backend::answering(|r| ok(&r.body.len().to_string()));
    let gate = Gate::http(&[backend.address], |service| service.limits.body_bytes = 1000);
    assert_eq!(ask(&gate, with_body("POST", "/", &[7; 1000])).text(), "1000");
    assert_eq!(ask(&gate, with_body("POST", "/", &[7; 1001])).status(), 413);
    let chunked = [
        b"POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n".to_vec(),
        vec![7; 2000],
        b"\r\n0\r\n\r\n".to_vec(),
    ];
    assert_eq!(ask(&gate, chunked.concat()).status(), 413);
    assert_eq!(backend.count(), 1);
}

#[test]
fn an_idle_client_is_let_go_and_a_slow_one_is_told() {
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |service| {
        service.timeouts.idle = Duration::from_millis(100);
        service.timeouts.head = Duration::from_millis(100);
    });
    let mut client = Wire::connect(gate.address);
    client.ask(get("/"));
    assert_eq!(client.rest().unwrap(), b"");
    let mut slow = Wire::connect(gate.address);
    slow.ask(get("/"));
    slow.send("GET / HT");
    assert_eq!(slow.answer().status(), 408);
    // A byte now and then does not help.
    let mut drip = Wire::connect(gate.address);
    let begun = std::time::Instant::now();
    until("the dripping client is refused", || {
        assert!(begun.elapsed() < LIMIT);
        drip.try_send("a").is_err() || gate.proxy.connections() == 0
    });
}
