//! Servers that play a script: what must never happen between two of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use outlast_proxy::stats::ErrorKind;

use super::client::{Client, message, query};
use super::{counts, gate, primary};
use crate::harness::{Backend, Stage, until};

/// A server that has read the startup packet plays this.
pub(crate) fn scripted(script: impl Fn(Stage) + Send + Sync + 'static) -> Backend {
    Backend::start(move |mut stage| {
        let Ok(length) = stage.wire.exactly(4) else { return };
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        if stage.wire.exactly(length as usize - 4).is_ok() {
            script(stage);
        }
    })
}

/// Lets a session in that nobody asks for a password.
pub(crate) fn ready() -> Vec<u8> {
    let parameter = message('S', b"TimeZone\0UTC\0");
    [message('R', &[0; 4]), parameter, message('K', &[0, 0, 0, 1, 0, 0, 0, 2]), message('Z', b"I")]
        .concat()
}

/// Reads a whole message.
fn heard(stage: &mut Stage) -> Option<Vec<u8>> {
    let head = stage.wire.exactly(5).ok()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    stage.wire.exactly(length as usize - 4).ok()
}

/// Answers every statement with its name.
fn named(name: &'static str, asked: Arc<AtomicUsize>) -> Backend {
    scripted(move |mut stage| {
        stage.say(ready());
        while heard(&mut stage).is_some_and(|body| !body.is_empty()) {
            asked.fetch_add(1, SeqCst);
            let row = [&[0, 1, 0, 0, 0, name.len() as u8], name.as_bytes()].concat();
            stage.say([message('D', &row), message('Z', b"I")].concat());
        }
    })
}

#[test]
fn a_statement_that_was_under_way_is_never_repeated() {
    for half in [b"".to_vec(), message('T', b"x"), b"D\0\0\0\x20half".to_vec()] {
        let torn = half.starts_with(b"D");
        let dying = scripted(move |mut stage| {
            stage.say(ready());
            heard(&mut stage);
            stage.say(&half);
        });
        let asked = Arc::new(AtomicUsize::new(0));
        let other = named("other", asked.clone());
        let gate = gate(&[dying.address, other.address], |_| {});
        let mut client = Client::begin(gate.address, "ada");
        client.send(query("INSERT INTO t VALUES (1)"));
        if torn {
            // There is no place for an error in the middle of a message.
            assert!(client.next().is_err());
        } else {
            assert_eq!(client.farewell().code(), "08006");
        }
        gate.change(|service| primary(service, Some(1)));
        assert_eq!(asked.load(SeqCst), 0);
        assert_eq!(counts(&gate).resumed, 0);
        assert_eq!(gate.errors(0, ErrorKind::Reset), 1);
    }
}

#[test]
fn an_acknowledgement_that_comes_after_the_cut_is_not_passed_on() {
    let told = Arc::new(AtomicUsize::new(0));
    let (seen, asked) = (told.clone(), Arc::new(AtomicUsize::new(0)));
    let noted = asked.clone();
    let late = scripted(move |mut stage| {
        stage.say(ready());
        heard(&mut stage);
        noted.fetch_add(1, SeqCst);
        until("it has lost its role", || seen.load(SeqCst) > 0);
        stage.say([message('C', b"COMMIT\0"), message('Z', b"I")].concat());
    });
    let gate = gate(&[late.address], |_| {});
    let mut client = Client::begin(gate.address, "ada");
    client.send(query("COMMIT"));
    until("it is under way", || asked.load(SeqCst) == 1);
    gate.change(|service| primary(service, None));
    told.store(1, SeqCst);
    assert_eq!(client.farewell().code(), "08006");
}

#[test]
fn a_server_that_starts_up_is_asked_again_in_silence() {
    let tries = Arc::new(AtomicUsize::new(0));
    let seen = tries.clone();
    let starting = scripted(move |mut stage| {
        if seen.fetch_add(1, SeqCst) < 2 {
            stage.say(message(
                'E',
                b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0",
            ));
            return;
        }
        stage.say(ready());
        stage.wire.rest().ok();
    });
    let gate = gate(&[starting.address], |_| {});
    Client::begin(gate.address, "ada");
    assert_eq!(tries.load(SeqCst), 3);
    assert_eq!(counts(&gate).held, 1);
}

#[test]
fn a_client_learns_what_is_different_at_its_new_server() {
    let one = named("one", Arc::default());
    let two = scripted(|mut stage| {
        let zone = message('S', b"TimeZone\0Mars\0");
        stage.say(
            [message('R', &[0; 4]), zone, message('N', b"Mhello\0\0"), message('Z', b"I")].concat(),
        );
        heard(&mut stage);
        stage.say(message('Z', b"I"));
        stage.wire.rest().ok();
    });
    let gate = gate(&[one.address, two.address], |_| {});
    let mut client = Client::begin(gate.address, "ada");
    assert_eq!(client.ask("x"), "one");
    gate.change(|service| primary(service, Some(1)));
    client.send(query("y"));
    let answer = client.answer();
    let tags: String = answer.iter().map(|m| m.tag).collect();
    assert_eq!((tags.as_str(), answer[0].body.as_slice()), ("SZ", b"TimeZone\0Mars\0".as_slice()));
}

#[test]
fn whoever_says_goodbye_while_no_server_is_there_has_gone() {
    let one = named("one", Arc::default());
    let gate = gate(&[one.address], |_| {});
    let mut client = Client::begin(gate.address, "ada");
    client.ask("x");
    gate.change(|service| primary(service, None));
    client.send(message('X', b""));
    assert_eq!(client.wire.rest().unwrap_or_default(), b"");
    until("it has gone", || gate.proxy.connections() == 0);
    assert_eq!(counts(&gate).held, 0);
}

#[test]
fn a_server_that_leaves_is_not_heard_by_a_session_that_rests() {
    let leaving = scripted(|mut stage| {
        stage.say([ready(), message('E', b"SFATAL\0VFATAL\0C57P01\0Mshutting down\0\0")].concat());
    });
    let asked = Arc::new(AtomicUsize::new(0));
    let other = named("other", asked.clone());
    let gate = gate(&[leaving.address, other.address], |_| {});
    let mut client = Client::begin(gate.address, "ada");
    until("it has lost its server", || gate.stats().backends[0].in_flight == 0);
    gate.change(|service| primary(service, Some(1)));
    for _ in 0..3 {
        assert_eq!(client.ask("x"), "other");
    }
    // It rests again, and goes on again.
    gate.change(|service| super::port(service).paused = true);
    until("it has left", || gate.stats().backends[1].in_flight == 0);
    gate.change(|service| super::port(service).paused = false);
    assert_eq!(client.ask("x"), "other");
    assert_eq!((counts(&gate).resumed, asked.load(SeqCst)), (2, 4));
}

#[test]
fn a_server_that_is_lost_before_it_has_said_anything_is_not_missed() {
    let silent = scripted(|mut stage| drop(stage.wire.rest()));
    let other = named("other", Arc::default());
    let gate = gate(&[silent.address, other.address], |_| {});
    let address = gate.address;
    let coming = std::thread::spawn(move || Client::begin(address, "ada").ask("x"));
    until("it is there", || silent.connections() == 1);
    gate.change(|service| primary(service, Some(1)));
    assert_eq!(coming.join().unwrap(), "other");
}

#[test]
fn what_a_client_cannot_wait_to_say_is_said_in_its_turn() {
    let asked = Arc::new(AtomicUsize::new(0));
    let server = named("one", asked.clone());
    let gate = gate(&[server.address], |service| primary(service, None));
    let mut client = Client { wire: crate::harness::Wire::connect(gate.address), key: Vec::new() };
    let startup = outlast_proxy::postgres::startup::packet(&[("user", "ada")]);
    client.send([startup, query("x"), query("y")].concat());
    until("it waits", || counts(&gate).waiting == 1);
    gate.change(|service| primary(service, Some(0)));
    client.answer();
    assert_eq!((client.said(), client.said(), asked.load(SeqCst)), ("one".into(), "one".into(), 2));
}

#[test]
fn draining_ends_sessions_after_its_time_and_tells_them() {
    let server = named("one", Arc::default());
    let gate = gate(&[server.address], |service| service.timeouts.drain = super::SHORT);
    let [mut resting, mut busy] = [0; 2].map(|_| Client::begin(gate.address, "ada"));
    busy.send(&query("never whole")[..7]);
    until("it has begun", || gate.stats().backends[0].counts.bytes_in == 7);
    gate.proxy.drain();
    assert_eq!(resting.farewell().field(b'M'), "terminating connection because this proxy ends");
    assert_eq!(busy.farewell().code(), "08006");
    until("it is drained", || gate.proxy.is_drained());
}
