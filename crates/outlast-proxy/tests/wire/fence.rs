//! A change of roles: what is under way at the side that lost its role ends before the new table counts as in force.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use outlast_proxy::stats::ErrorKind;
use outlast_proxy::table::{BackendState, Protocol, Service};

use crate::harness::{Backend, Gate, Silent, Wire, get, nobody, ok, unreachable, until, with_body};

fn pair(old: SocketAddr, new: SocketAddr, threads: usize) -> Gate {
    Gate::start(Protocol::Http, threads, &[old, new], |service| {
        service.backends[1].state = BackendState::Passive;
        // Nothing but the change of roles ends the wait for an answer.
        service.retry.try_timeout = Duration::from_secs(300);
        service.retry.on_timeout = false;
        service.timeouts.body = Duration::from_secs(300);
    })
}

fn switch(service: &mut Service) {
    service.backends[0].state = BackendState::Passive;
    service.backends[1].state = BackendState::Up;
}

#[test]
fn requests_at_the_side_that_lost_its_role_are_cut_and_only_safe_ones_sent_again() {
    for threads in [1, 3] {
        let (old, new) = (Silent::saying(""), Backend::named("new"));
        let gate = pair(old.backend.address, new.address, threads);
        let mut gets: Vec<Wire> = (0..10).map(|_| Wire::connect(gate.address)).collect();
        gets.iter_mut().for_each(|client| client.send(get("/")));
        let mut posts: Vec<Wire> = (0..10).map(|_| Wire::connect(gate.address)).collect();
        posts.iter_mut().for_each(|client| client.send(with_body("POST", "/", b"pay")));
        until("all are under way", || old.backend.count() == 20);
        gate.change(switch);
        // In force means: nothing is left there, on no thread.
        assert_eq!(gate.stats().backends[0].in_flight, 0);
        for client in &mut gets {
            assert_eq!(client.answer().text(), "new");
        }
        for client in &mut posts {
            let answer = client.answer();
            assert_eq!(answer.status(), 502, "{answer:?}");
        }
        until("the old side lost its connections", || old.ended.load(SeqCst) == 20);
        assert_eq!(new.count(), 10, "no POST was sent twice");
        assert_eq!(gate.errors(0, ErrorKind::CutOff), 20);
        assert!(gate.notices().is_empty(), "nobody is to blame");
        // Connections that stayed are served by the side that serves.
        for client in &mut gets {
            assert_eq!(client.ask(get("/")).text(), "new");
        }
    }
}

#[test]
fn an_answer_that_has_begun_is_broken_off_and_does_not_look_whole() {
    for beginning in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\n\r\nhalf",
    ] {
        let (old, new) = (Silent::saying(beginning), Backend::named("new"));
        let gate = pair(old.backend.address, new.address, 1);
        let mut client = Wire::connect(gate.address);
        client.send(get("/"));
        client.until(b"half").unwrap().expect("the beginning");
        gate.change(switch);
        match client.rest() {
            Ok(rest) if beginning.contains("\r\n\r\nhalf") && !beginning.contains("Length") => {
                panic!("an end that looks whole: {rest:?}")
            }
            Ok(rest) => assert!(!rest.ends_with(b"0\r\n\r\n"), "{beginning}"),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
        }
        until("the old side lost its connection", || old.ended.load(SeqCst) == 1);
        assert_eq!(new.count(), 0);
    }
}

#[test]
fn a_request_of_which_nothing_was_sent_goes_to_the_new_side_whatever_it_is() {
    let (_listener, old, _waiting) = unreachable();
    let new = Backend::answering(|r| ok(&r.line()));
    let gate = Gate::http(&[old, new.address], |service| {
        service.backends[1].state = BackendState::Passive;
        service.timeouts.connect = Duration::from_secs(300);
    });
    let mut client = Wire::connect(gate.address);
    client.send(with_body("POST", "/pay", b"pay"));
    until("it is on its way", || gate.stats().backends[0].in_flight == 1);
    gate.change(switch);
    assert_eq!(client.answer().text(), "POST /pay");
}

#[test]
fn a_tcp_connection_that_is_only_being_made_goes_to_the_new_side() {
    let (_listener, old, _waiting) = unreachable();
    let new = Backend::start(|mut stage| {
        stage.say("new");
        stage.wire.rest().ok();
    });
    let gate = Gate::tcp(&[old, new.address], |service| {
        service.backends[1].state = BackendState::Passive;
        service.timeouts.connect = Duration::from_secs(300);
    });
    let mut client = Wire::connect(gate.address);
    until("it is on its way", || gate.stats().backends[0].in_flight == 1);
    gate.change(switch);
    assert_eq!(client.exactly(3).unwrap(), b"new");
}

#[test]
fn a_backend_that_leaves_the_table_or_goes_down_may_finish_its_requests() {
    for state in [None, Some(BackendState::Down), Some(BackendState::Draining)] {
        let go = Arc::new(AtomicUsize::new(0));
        let seen = go.clone();
        let backend = Backend::start(move |mut stage| {
            stage.next();
            until("told to go on", || seen.load(SeqCst) > 0);
            stage.say(ok("done"));
        });
        let gate = pair(backend.address, nobody(), 1);
        let mut client = Wire::connect(gate.address);
        client.send(with_body("POST", "/", b"x"));
        until("it is under way", || backend.count() == 1);
        gate.change(|service| match state {
            Some(state) => service.backends[0].state = state,
            None => drop(service.backends.remove(0)),
        });
        go.store(1, SeqCst);
        assert_eq!(client.answer().text(), "done", "{state:?}");
    }
}
