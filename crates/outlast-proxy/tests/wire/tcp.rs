//! TCP services: bytes both ways, whole and in order; who the client is; what a change of roles does to connections.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast_proxy::table::{BackendState, ProxyVersion};

use crate::harness::{Backend, Gate, Wire, get, nobody, noise, ok, until};
use crate::tls::{Authority, client, trusting};

/// Sends back what comes, and ends when its peer does.
fn echo() -> Backend {
    Backend::start(|mut stage| {
        let mut piece = [0; 65536];
        while let Ok(count) = stage.wire.stream.read(&mut piece) {
            if count == 0 || !stage.say(&piece[..count]) {
                return;
            }
        }
    })
}

/// Says its name, then echoes.
fn named(name: &'static str) -> Backend {
    Backend::start(move |mut stage| {
        stage.say(name);
        let mut piece = [0; 65536];
        while let Ok(count) = stage.wire.stream.read(&mut piece) {
            if count == 0 || !stage.say(&piece[..count]) {
                return;
            }
        }
    })
}

/// Sends all and ends its side.
fn pour(mut to: TcpStream, bytes: &[u8]) {
    to.write_all(bytes).unwrap();
    to.shutdown(std::net::Shutdown::Write).unwrap();
}

/// Reads to the end; whether these bytes came, and no others.
fn drinks(mut from: TcpStream, bytes: &[u8]) -> bool {
    let mut left = bytes;
    let mut piece = vec![0; 256 << 10];
    loop {
        let count = from.read(&mut piece).unwrap();
        if count == 0 {
            return left.is_empty();
        }
        let Some(rest) = left.strip_prefix(&piece[..count]) else { return false };
        left = rest;
    }
}

#[test]
fn each_side_may_end_before_the_other() {
    let backend = Backend::start(|mut stage| {
        stage.say("greeting");
        let question = stage.wire.rest().unwrap_or_default();
        stage.say([b"answer to ".as_slice(), &question].concat());
    });
    let gate = Gate::tcp(&[backend.address], |_| {});
    let mut client = Wire::connect(gate.address);
    assert_eq!(client.exactly(8).unwrap(), b"greeting");
    client.send("a question");
    client.end();
    assert_eq!(client.rest().unwrap(), b"answer to a question");
    // The backend ends first, and still hears.
    let heard = Arc::new(Mutex::new(Vec::new()));
    let seen = heard.clone();
    let backend = Backend::start(move |mut stage| {
        stage.say("all I say");
        stage.wire.end();
        *seen.lock().unwrap() = stage.wire.rest().unwrap();
    });
    let gate = Gate::tcp(&[backend.address], |_| {});
    let mut client = Wire::connect(gate.address);
    assert_eq!(client.rest().unwrap(), b"all I say");
    client.send("and what I say");
    client.end();
    until("it is heard", || *heard.lock().unwrap() == b"and what I say");
    until("the connection is over", || gate.proxy.connections() == 0);
}

#[test]
fn a_hundred_mebibytes_each_way_arrive_whole() {
    let count = 100 << 20;
    // The two ways differ, so that they cannot be mixed up.
    let bytes = Arc::new(noise(count + 1));
    let whole = Arc::new(Mutex::new(None));
    let (there, seen) = (bytes.clone(), whole.clone());
    let backend = Backend::start(move |stage| {
        let (up, bytes) = (stage.wire.stream.try_clone().unwrap(), there.clone());
        let sending = std::thread::spawn(move || pour(up, &bytes[1..]));
        let got = drinks(stage.wire.stream, &there[..count]);
        sending.join().unwrap();
        *seen.lock().unwrap() = Some(got);
    });
    let gate = Gate::tcp(&[backend.address], |_| {});
    let client = Wire::connect(gate.address).stream;
    let (up, here) = (client.try_clone().unwrap(), bytes.clone());
    let sending = std::thread::spawn(move || pour(up, &here[..count]));
    assert!(drinks(client, &bytes[1..]), "to the client");
    sending.join().unwrap();
    until("the backend has all", || whole.lock().unwrap().is_some());
    assert_eq!(*whole.lock().unwrap(), Some(true), "to the backend");
    let counts = gate.stats().backends[0].counts.clone();
    assert_eq!((counts.bytes_in, counts.bytes_out), (count as u64, count as u64));
}

#[test]
fn small_messages_go_back_and_forth() {
    let backend = echo();
    let gate = Gate::tcp(&[backend.address], |_| {});
    let mut client = Wire::connect(gate.address);
    for n in 0..1000_usize {
        // Sizes around the buffer's, so that copying and splicing take turns.
        let size = if n % 100 == 99 { 200_000 } else { n % 700 + 1 };
        let message = vec![n as u8; size];
        let mut up = client.stream.try_clone().unwrap();
        let sent = message.clone();
        let sending = std::thread::spawn(move || up.write_all(&sent).unwrap());
        assert!(client.exactly(size).unwrap() == message, "message {n}");
        sending.join().unwrap();
    }
}

#[test]
fn a_backend_that_refuses_is_passed_over() {
    let backend = named("alive");
    let gate = Gate::tcp(&[nobody(), nobody(), backend.address], |service| {
        service.eject.failures = 0;
    });
    for _ in 0..9 {
        let mut client = Wire::connect(gate.address);
        assert_eq!(client.exactly(5).unwrap(), b"alive");
    }
    let none = Gate::tcp(&[nobody()], |_| {});
    let mut client = Wire::connect(none.address);
    assert_eq!(client.rest().unwrap_or_default(), b"");
}

#[test]
fn a_tunnel_in_which_nothing_moves_ends() {
    let backend = named("x");
    let gate = Gate::tcp(&[backend.address], |service| {
        service.timeouts.tunnel = Duration::from_millis(100);
    });
    let mut client = Wire::connect(gate.address);
    client.exactly(1).unwrap();
    assert_eq!(client.rest().unwrap_or_default(), b"");
    until("the connection is over", || gate.proxy.connections() == 0);
}

#[test]
fn a_change_of_roles_cuts_connections_and_moves_new_ones() {
    let (old, new) = (named("old"), named("new"));
    let gate = Gate::tcp(&[old.address, new.address], |service| {
        service.backends[1].state = BackendState::Passive;
    });
    let mut clients: Vec<Wire> = (0..20).map(|_| Wire::connect(gate.address)).collect();
    for client in &mut clients {
        assert_eq!(client.exactly(3).unwrap(), b"old");
    }
    gate.change(|service| {
        service.backends[0].state = BackendState::Passive;
        service.backends[1].state = BackendState::Up;
    });
    for client in &mut clients {
        let end = client.rest();
        assert!(matches!(&end, Err(e) if e.kind() == ErrorKind::ConnectionReset), "{end:?}");
    }
    for _ in 0..5 {
        let mut client = Wire::connect(gate.address);
        assert_eq!(client.exactly(3).unwrap(), b"new");
    }
}

#[test]
fn connections_that_come_during_a_change_of_roles_never_stay_at_the_old_side() {
    let (old, new) = (named("old"), named("new"));
    let gate = Gate::tcp(&[old.address, new.address], |service| {
        service.backends[1].state = BackendState::Passive;
    });
    for _ in 0..10 {
        let address = gate.address;
        let coming =
            std::thread::spawn(move || (0..60).map(|_| Wire::connect(address)).collect::<Vec<_>>());
        gate.change(|service| service.backends.iter_mut().for_each(swap));
        let now = gate.proxy.table().services[0].backends[0].state;
        let serving: &[u8] = if now == BackendState::Up { b"old" } else { b"new" };
        for mut client in coming.join().unwrap() {
            // Either it was cut, or it is where it should be: it can talk there.
            let alive = client.exactly(3).and_then(|name| {
                client.try_send("ping")?;
                client.exactly(4)?;
                Ok(name)
            });
            if let Ok(name) = alive {
                assert_eq!(name, serving);
            }
        }
    }
}

fn swap(backend: &mut outlast_proxy::table::Backend) {
    backend.state = match backend.state {
        BackendState::Up => BackendState::Passive,
        BackendState::Passive => BackendState::Up,
        BackendState::Unknown | BackendState::Down | BackendState::Draining => unreachable!(),
    };
}

#[test]
fn a_backend_that_goes_down_or_away_loses_its_connections_and_a_draining_one_does_not() {
    for (state, cut) in [
        (Some(BackendState::Draining), false),
        (Some(BackendState::Down), true),
        (Some(BackendState::Passive), true),
        (None, true),
    ] {
        let (one, two) = (named("one"), named("two"));
        let gate = Gate::tcp(&[one.address, two.address], |_| {});
        let mut client = Wire::connect(gate.address);
        assert_eq!(client.exactly(3).unwrap(), b"one");
        gate.change(|service| match state {
            Some(state) => service.backends[0].state = state,
            None => drop(service.backends.remove(0)),
        });
        if cut {
            assert!(client.rest().is_err(), "{state:?}");
        } else {
            client.send("still here");
            assert_eq!(client.exactly(10).unwrap(), b"still here");
        }
        let mut client = Wire::connect(gate.address);
        assert_eq!(client.exactly(3).unwrap(), b"two");
    }
}

const TRUSTED: &[(&str, u8)] = &[("127.0.0.0", 8)];

fn networks(list: &[(&str, u8)]) -> Vec<(std::net::IpAddr, u8)> {
    list.iter().map(|&(ip, prefix)| (ip.parse().unwrap(), prefix)).collect()
}

#[test]
fn a_proxy_header_of_a_trusted_peer_names_the_client() {
    let from: SocketAddr = "192.0.2.7:4711".parse().unwrap();
    let to: SocketAddr = "198.51.100.1:80".parse().unwrap();
    let backend = Backend::answering(|r| ok(r.header("x-forwarded-for").unwrap_or("-")));
    let gate = Gate::http(&[backend.address], |service| {
        service.accept_proxy = true;
        service.trusted = networks(TRUSTED);
    });
    for header in [
        outlast_proxy::proxy_protocol::write_v1(from, to),
        outlast_proxy::proxy_protocol::write_v2(from, to),
    ] {
        let mut client = Wire::connect(gate.address);
        client.send([header.clone(), get("/").into_bytes()].concat());
        assert_eq!(client.answer().text(), "192.0.2.7");
        // However it arrives.
        let mut client = Wire::connect(gate.address);
        for byte in &header {
            client.send([*byte]);
        }
        assert_eq!(client.ask(get("/")).text(), "192.0.2.7");
    }
    // Without one, a trusted peer is not served at all: it would be taken for the client.
    let mut client = Wire::connect(gate.address);
    client.send(get("/"));
    assert_eq!(client.rest().unwrap_or_default(), b"");
    // The other proxy's own health check.
    let mut client = Wire::connect(gate.address);
    client.send("PROXY UNKNOWN\r\n");
    assert_eq!(client.ask(get("/")).text(), "127.0.0.1");
}

#[test]
fn a_proxy_header_of_anybody_else_is_not_believed() {
    let backend = Backend::answering(|r| ok(r.header("x-forwarded-for").unwrap_or("-")));
    let gate = Gate::http(&[backend.address], |service| {
        service.accept_proxy = true;
        service.trusted = networks(&[("10.0.0.0", 8)]);
    });
    let mut client = Wire::connect(gate.address);
    client.send(format!("PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n{}", get("/")));
    assert_eq!(client.answer().status(), 400);
    let mut client = Wire::connect(gate.address);
    assert_eq!(client.ask(get("/")).text(), "127.0.0.1");
}

#[test]
fn a_peer_that_never_ends_its_proxy_header_is_let_go() {
    let backend = named("x");
    let gate = Gate::tcp(&[backend.address], |service| {
        service.accept_proxy = true;
        service.trusted = networks(TRUSTED);
        service.timeouts.head = Duration::from_millis(100);
    });
    for sent in ["", "PROXY TCP4 1"] {
        let mut client = Wire::connect(gate.address);
        client.send(sent);
        assert_eq!(client.rest().unwrap_or_default(), b"");
    }
    assert_eq!(backend.connections(), 0);
}

#[test]
fn backends_are_told_the_client_in_either_version() {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let backend = Backend::start(|mut stage| {
            loop {
                match outlast_proxy::proxy_protocol::read(&stage.wire.buffer) {
                    Ok(Some(header)) => {
                        let (from, to) = header.addresses.unwrap();
                        stage.wire.buffer.drain(..header.length);
                        stage.say(format!("{from} {to}\n"));
                        return;
                    }
                    Ok(None) => {
                        let mut piece = [0; 256];
                        let count = stage.wire.stream.read(&mut piece).unwrap();
                        assert!(count > 0);
                        stage.wire.buffer.extend_from_slice(&piece[..count]);
                    }
                    Err(e) => panic!("{e:?}"),
                }
            }
        });
        let gate = Gate::tcp(&[backend.address], |service| service.send_proxy = Some(version));
        let mut client = Wire::connect(gate.address);
        let own = client.stream.local_addr().unwrap();
        let told = String::from_utf8(client.rest().unwrap()).unwrap();
        assert_eq!(told, format!("{own} {}\n", gate.address));
        // And what was told to us is told on.
        let gate = Gate::tcp(&[backend.address], |service| {
            service.send_proxy = Some(version);
            service.accept_proxy = true;
            service.trusted = networks(TRUSTED);
        });
        let mut client = Wire::connect(gate.address);
        client.send("PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n");
        let told = String::from_utf8(client.rest().unwrap()).unwrap();
        assert_eq!(told, "[2001:db8::1]:1 [2001:db8::2]:2\n");
    }
}

#[test]
fn clients_of_one_http_backend_connection_are_never_confused_by_its_proxy_header() {
    // The header belongs to a connection, so each client needs a connection of its own.
    let backend = Backend::start(|mut stage| {
        let header = stage.wire.until(b"\r\n").unwrap().unwrap();
        let port = String::from_utf8(header).unwrap().split(' ').nth(4).unwrap().to_owned();
        while stage.next().is_some() {
            stage.say(ok(&port));
        }
    });
    let gate =
        Gate::http(&[backend.address], |service| service.send_proxy = Some(ProxyVersion::V1));
    for _ in 0..5 {
        let mut client = Wire::connect(gate.address);
        let own = client.stream.local_addr().unwrap().port().to_string();
        for _ in 0..3 {
            assert_eq!(client.ask(get("/")).text(), own);
        }
    }
}

#[test]
fn tls_ends_at_the_gate_in_tcp_mode_too() {
    let authority = Authority::new();
    let backend = echo();
    let gate = Gate::tcp(&[backend.address], |service| {
        service.certificates = vec![authority.issue(&["db.example"])];
    });
    let mut wire = client(gate.address, "db.example", &trusting(&authority, &[]));
    let message: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    for piece in message.chunks(100_000) {
        wire.send(piece);
        assert!(wire.exactly(piece.len()).unwrap() == piece);
    }
    wire.stream.conn.send_close_notify();
    wire.try_send("").unwrap();
    // The backend ends, and the end comes back as one that nobody can forge.
    assert_eq!(wire.rest().unwrap(), b"");
}

#[test]
fn a_change_of_roles_cuts_tls_connections_too() {
    let authority = Authority::new();
    let backend = named("old");
    let gate = Gate::tcp(&[backend.address], |service| {
        service.certificates = vec![authority.issue(&["db.example"])];
    });
    let mut wire = client(gate.address, "db.example", &trusting(&authority, &[]));
    assert_eq!(wire.exactly(3).unwrap(), b"old");
    gate.set(0, BackendState::Passive);
    let end = wire.rest();
    assert!(matches!(&end, Err(e) if e.kind() == ErrorKind::ConnectionReset), "{end:?}");
}
