//! Clients that go before they have their answer: their requests end, at the backend too, and their places are free.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http_body_util::BodyExt as _;
use outlast_proxy::stats::ErrorKind;
use outlast_proxy::table::Service;

use crate::h2::{known, nothing, request, run, text};
use crate::harness::{Backend, Gate, Silent, Wire, get, ok, unreachable, until, with_body};

/// Nothing but the client's going ends a wait.
fn patient(service: &mut Service) {
    service.retry.try_timeout = Duration::from_secs(300);
    service.retry.on_timeout = false;
    service.timeouts.body = Duration::from_secs(300);
    service.timeouts.queue = Duration::from_secs(300);
    service.timeouts.connect = Duration::from_secs(300);
}

#[test]
fn a_client_that_hangs_up_while_it_waits_takes_its_request_back() {
    for reset in [false, true] {
        for wanted in [get("/").into_bytes(), with_body("POST", "/", b"pay")] {
            let silent = Silent::saying("");
            let gate = Gate::http(&[silent.backend.address], patient);
            let mut client = Wire::connect(gate.address);
            client.send(&wanted);
            until("the backend has it", || silent.backend.count() == 1);
            match reset {
                true => client.reset(),
                false => drop(client),
            }
            until("the backend is told", || silent.ended.load(SeqCst) == 1);
            until("its place is free", || gate.stats().in_flight == 0);
            assert_eq!(gate.errors(0, ErrorKind::ClientGone), 1);
            assert_eq!(silent.backend.connections(), 1);
            assert!(gate.notices().is_empty(), "no fault of the backend");
        }
    }
}

#[test]
fn a_client_that_hangs_up_while_an_answer_pauses_ends_it() {
    let silent = Silent::saying("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
    let gate = Gate::http(&[silent.backend.address], patient);
    let mut client = Wire::connect(gate.address);
    client.send(get("/events"));
    client.until(b"hi").unwrap().expect("the first event");
    client.reset();
    until("the backend is told", || silent.ended.load(SeqCst) == 1);
    until("its place is free", || gate.stats().in_flight == 0);
}

#[test]
fn what_a_client_has_sent_ahead_does_not_hide_that_it_has_gone() {
    let silent = Silent::saying("");
    let gate = Gate::http(&[silent.backend.address], patient);
    let mut client = Wire::connect(gate.address);
    client.send([get("/one"), get("/two")].concat());
    until("the backend has it", || silent.backend.count() == 1);
    client.reset();
    until("the backend is told", || silent.ended.load(SeqCst) == 1);
    until("its place is free", || gate.stats().in_flight == 0);
}

#[test]
fn requests_sent_ahead_while_another_waits_are_all_answered() {
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = asked.clone();
    let backend = Backend::start(move |mut stage| {
        while let Some(request) = stage.next() {
            if request.line() == "GET /0" {
                until("all have been sent", || seen.load(SeqCst) > 0);
            }
            stage.say(ok(&request.line()));
        }
    });
    let gate = Gate::http(&[backend.address], patient);
    let mut client = Wire::connect(gate.address);
    client.send(get("/0"));
    until("it is under way", || backend.count() == 1);
    // More than is read ahead.
    for n in 1..1000 {
        client.send(get(&format!("/{n}")));
    }
    asked.store(1, SeqCst);
    for n in 0..1000 {
        assert_eq!(client.answer().text(), format!("GET /{n}"));
    }
}

#[test]
fn a_client_that_hangs_up_in_the_queue_is_never_sent_to_a_backend() {
    let (silent, limit) = (Silent::saying(""), 1);
    let gate = Gate::http(&[silent.backend.address], |service| {
        patient(service);
        service.limits.requests = limit;
    });
    let mut first = Wire::connect(gate.address);
    first.send(get("/first"));
    until("the only place is taken", || silent.backend.count() == 1);
    let mut waiting: Vec<Wire> = (0..5).map(|_| Wire::connect(gate.address)).collect();
    waiting.iter_mut().for_each(|client| client.send(with_body("POST", "/", b"pay")));
    drop(waiting);
    until("they are let go", || gate.own_errors(ErrorKind::ClientGone) == 5);
    // Places in the queue are free again, too.
    let mut last = Wire::connect(gate.address);
    last.send(get("/last"));
    drop(first);
    until("the next is served", || silent.backend.count() == 2);
    assert_eq!(silent.backend.requests()[1].line(), "GET /last");
}

#[test]
fn a_client_that_hangs_up_while_its_backend_is_connected_to_frees_its_place() {
    let (_listener, address, _waiting) = unreachable();
    let gate = Gate::http(&[address], patient);
    let mut client = Wire::connect(gate.address);
    client.send(get("/"));
    until("it is on its way", || gate.stats().backends[0].in_flight == 1);
    client.reset();
    until("its place is free", || gate.stats().in_flight == 0);
    assert_eq!(gate.errors(0, ErrorKind::Connect), 0);
}

#[test]
fn rapid_resets_of_http2_streams_leave_no_request_behind() {
    let ended = Arc::new(AtomicUsize::new(0));
    let seen = ended.clone();
    let backend = Backend::start(move |mut stage| {
        while let Some(request) = stage.next() {
            if request.line() == "GET /good" {
                stage.say(ok("good"));
            } else {
                stage.wire.rest().ok();
                seen.fetch_add(1, SeqCst);
            }
        }
    });
    let gate = Gate::http(&[backend.address], |service| {
        patient(service);
        service.limits.requests = 10;
        service.limits.queue = 10;
    });
    run(async {
        let mut sender = known(gate.address).await;
        let mut sent = 0;
        for _ in 0..20 {
            let streams = (0..10).map(|_| {
                let asked = request("GET", "/slow").body(nothing()).unwrap();
                tokio::spawn(sender.send_request(asked))
            });
            let streams: Vec<_> = streams.collect();
            sent += streams.len();
            while backend.count() < sent {
                tokio::task::yield_now().await;
            }
            streams.iter().for_each(tokio::task::JoinHandle::abort);
            // Each reset frees a place, so that the next ten never see a full house.
            while gate.stats().in_flight > 0 {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(sent, 200);
        let asked = request("GET", "/good").body(nothing()).unwrap();
        assert_eq!(text(sender.send_request(asked).await.unwrap()).await, "good");
    });
    until("the backend is told of each", || ended.load(SeqCst) == 200);
    assert_eq!(gate.errors(0, ErrorKind::ClientGone), 200);
    assert_eq!(gate.own_errors(ErrorKind::Limit), 0);
}

#[test]
fn a_http2_stream_that_is_reset_while_its_answer_pauses_ends_at_the_backend() {
    let silent = Silent::saying("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
    let gate = Gate::http(&[silent.backend.address], patient);
    run(async {
        let mut sender = known(gate.address).await;
        let asked = request("GET", "/events").body(nothing()).unwrap();
        let mut body = sender.send_request(asked).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hi");
        drop(body);
        while silent.ended.load(SeqCst) == 0 || gate.stats().in_flight > 0 {
            tokio::task::yield_now().await;
        }
        // The connection as such is in order.
        assert!(sender.ready().await.is_ok());
    });
}
