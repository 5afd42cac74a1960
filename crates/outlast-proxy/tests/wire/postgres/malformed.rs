//! Clients that do not speak the protocol, or only the beginning of it.

use std::time::Duration;

use outlast_proxy::postgres::startup::{TLS_REQUEST, packet};
use outlast_proxy::stats::ErrorKind;

use super::client::Client;
use super::scripted::{ready, scripted};
use super::{SHORT, gate};
use crate::harness::{Wire, nobody};

/// What a client is told that says this first.
fn told(to: std::net::SocketAddr, bytes: &[u8]) -> Client {
    let mut client = Client { wire: Wire::connect(to), key: Vec::new() };
    client.wire.try_send(bytes).ok();
    client
}

#[test]
fn what_is_no_first_packet_is_refused_in_the_protocols_own_words() {
    let gate = gate(&[nobody()], |_| {});
    let version = |major: u8, minor: u8| [0, 0, 0, 8, 0, major, 0, minor];
    let unterminated = [&[0, 0, 0, 12, 0, 3, 0, 0], b"user".as_slice()].concat();
    for (bytes, code, text) in [
        (
            version(2, 0).to_vec(),
            "0A000",
            "unsupported frontend protocol 2.0: server supports 3.0 to 3.0",
        ),
        (version(4, 1).to_vec(), "0A000", "unsupported frontend protocol 4.1"),
        (vec![0xff; 8], "08P01", "invalid length of startup packet"),
        (vec![0, 0, 0, 0], "08P01", "invalid length of startup packet"),
        (vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0], "08P01", "invalid length of startup packet"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            "08P01",
            "invalid length of startup packet",
        ),
        (unterminated, "08P01", "expected terminator"),
        (packet(&[("database", "x")]), "08P01", "no PostgreSQL user name"),
        ([TLS_REQUEST.as_slice(), b"early"].concat(), "08P01", "unencrypted data"),
    ] {
        let farewell = told(gate.address, &bytes).farewell();
        assert_eq!(farewell.code(), code, "{farewell:?}");
        assert!(farewell.field(b'M').contains(text), "{farewell:?}");
        assert!(!farewell.field(b'H').is_empty(), "{farewell:?}");
    }
    assert_eq!(gate.own_errors(ErrorKind::BadRequest), 9);
}

#[test]
fn a_client_that_never_ends_its_first_packet_is_let_go() {
    let gate = gate(&[nobody()], |service| service.timeouts.head = SHORT);
    for sent in [b"".as_slice(), &[0, 0], &packet(&[("user", "ada")])[..9]] {
        let mut client = Wire::connect(gate.address);
        client.send(sent);
        assert_eq!(client.rest().unwrap_or_default(), b"");
    }
    // Nor does asking for encryption again and again keep it.
    let mut client = Wire::connect(gate.address);
    let gss = [0, 0, 0, 8, 4, 210, 22, 48];
    for _ in 0..3 {
        client.send(gss);
        assert_eq!(client.exactly(1).unwrap(), b"N");
    }
    assert_eq!(client.rest().unwrap_or_default(), b"");
}

#[test]
fn messages_that_cannot_be_end_a_session() {
    let backend = scripted(|mut stage| {
        stage.say(ready());
        stage.wire.rest().ok();
    });
    let gate = gate(&[backend.address], |_| {});
    for bytes in [b"Q\0\0\0\x03", b"Q\xff\xff\xff\xff", b"\0\0\0\0\0"] {
        let mut client = Client::begin(gate.address, "ada");
        client.send(bytes);
        assert_eq!(client.farewell().code(), "08P01");
    }
    // A server that speaks nonsense is not passed on.
    let backend = scripted(|mut stage| {
        stage.say(ready());
        stage.say(b"D\0\0\0\0");
        stage.wire.rest().ok();
    });
    let gate = super::gate(&[backend.address], |_| {});
    let mut client = Client::begin(gate.address, "ada");
    assert!(client.next().is_err());
    assert_eq!(gate.errors(0, ErrorKind::BadAnswer), 1);
}

#[test]
fn a_message_that_takes_its_time_is_no_fault() {
    let backend = scripted(|mut stage| {
        stage.say(ready());
        stage.wire.exactly(14).ok();
        stage.say(super::client::message('Z', b"I"));
        stage.wire.rest().ok();
    });
    let gate = gate(&[backend.address], |service| service.timeouts.head = SHORT);
    let mut client = Client::begin(gate.address, "ada");
    let query = super::client::query("SELECT 1");
    let (first, rest) = query.split_at(7);
    client.send(first);
    crate::harness::pause(SHORT + Duration::from_millis(50));
    client.send(rest);
    assert_eq!(client.said(), "");
}
