//! A running server on loopback, asked by bare sockets.

#![cfg(test)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use outlast_dns::dnssec::Signatures;
use outlast_dns::name::Name;
use outlast_dns::remote::{self, RemoteError};
use outlast_dns::server::{Config, Server};
use outlast_dns::table::Table;
use outlast_dns::update::{Change, Prerequisite, UpdateAnswer};
use outlast_dns::zone::{Rdata, Record, Rtype, ZoneSpec};
use outlast_dns::{Algorithm, TsigKey};

const ZONE: &str =
    "$TTL 60\n@ IN SOA ns1 host 7 300 60 604800 5\n@ NS ns1\nns1 A 127.0.0.1\nwww A 192.0.2.1\n";

/// How long an answer may take.
const WAIT: Duration = Duration::from_secs(10);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn table(extra: &str) -> Table {
    let spec = ZoneSpec::from_zone_file(&name("example.com"), &format!("{ZONE}{extra}")).unwrap();
    Table::build(&[spec], &mut Signatures::default(), 0).unwrap()
}

fn query(id: u8, owner: &str) -> Vec<u8> {
    let mut message = vec![0, id, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend(name(owner).wire());
    message.extend([0, 1, 0, 1]);
    message
}

/// Id, code and number of answers.
fn outcome(message: &[u8]) -> (u8, u8, u8) {
    (message[1], message[3] & 0xf, message[7])
}

fn ask(server: SocketAddr, message: &[u8]) -> Vec<u8> {
    let local: SocketAddr = SocketAddr::new(server.ip(), 0);
    let socket = UdpSocket::bind(local).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket.send_to(message, server).unwrap();
    let mut answer = vec![0; 2_000];
    let (length, from) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(from, server, "the answer comes from where it was asked");
    answer.truncate(length);
    answer
}

fn read(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).unwrap();
    message
}

#[test]
fn tables_are_exchanged_under_way_on_both_families() {
    let listen = ["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
    let (server, _updates) =
        Server::start(&listen, 2, Config::default(), Table::default()).unwrap();
    for &at in server.addresses() {
        assert_eq!(outcome(&ask(at, &query(1, "www.example.com"))), (1, 5, 0), "no table yet");
    }
    server.publish(table(""));
    for &at in server.addresses() {
        assert_eq!(outcome(&ask(at, &query(2, "www.example.com"))), (2, 0, 1));
        assert_eq!(outcome(&ask(at, &query(3, "new.example.com"))), (3, 3, 0));
    }
    server.publish(table("new A 192.0.2.9\n"));
    for &at in server.addresses() {
        assert_eq!(outcome(&ask(at, &query(4, "new.example.com"))), (4, 0, 1));
    }
    let totals = server.counters();
    assert_eq!((totals.refused, totals.answers, totals.no_such_name), (2, 4, 2));
    server.stop();
}

#[test]
fn many_questions_go_over_one_connection() {
    let (server, _updates) =
        Server::start(&["127.0.0.1:0".parse().unwrap()], 1, Config::default(), table("")).unwrap();
    let mut stream = TcpStream::connect(server.addresses()[0]).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let mut bytes = Vec::new();
    for id in 0..100 {
        let message = query(id, "www.example.com");
        bytes.extend([0, u8::try_from(message.len()).unwrap()]);
        bytes.extend(message);
    }
    // In pieces that are no messages.
    for piece in bytes.chunks(7) {
        stream.write_all(piece).unwrap();
    }
    for id in 0..100 {
        assert_eq!(outcome(&read(&mut stream)), (id, 0, 1));
    }
    // What is no query ends the connection.
    stream.write_all(&[0, 12, 0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn what_is_no_query_gets_no_answer() {
    let (server, _updates) =
        Server::start(&["127.0.0.1:0".parse().unwrap()], 1, Config::default(), table("")).unwrap();
    let at = server.addresses()[0];
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    let mut answer = query(1, "www.example.com");
    answer[2] = 0x80;
    for message in [&answer[..], &answer[..11], b""] {
        socket.send_to(message, at).unwrap();
    }
    socket.send_to(&query(9, "www.example.com"), at).unwrap();
    // Answers of one socket keep their order: the first one is to the last message.
    let mut first = [0; 512];
    let length = socket.recv(&mut first).unwrap();
    assert_eq!(outcome(&first[..length]), (9, 0, 1));
    assert_eq!(server.counters().no_queries, 3);
}

#[test]
fn a_server_does_not_listen_everywhere_at_once() {
    for (listen, threads) in [("0.0.0.0:0", 1), ("[::]:0", 1), ("127.0.0.1:0", 0)] {
        let started =
            Server::start(&[listen.parse().unwrap()], threads, Config::default(), Table::default());
        let error = started.map(drop).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{listen}");
    }
}

/// The end of the name server is not delayed by open connections.
#[test]
fn a_server_ends_at_once() {
    let (server, _updates) =
        Server::start(&["127.0.0.1:0".parse().unwrap()], 2, Config::default(), Table::default())
            .unwrap();
    let at = server.addresses()[0];
    let _open = TcpStream::connect(at).unwrap();
    let begin = Instant::now();
    server.stop();
    assert!(begin.elapsed() < WAIT / 2);
    assert!(UdpSocket::bind(at).is_ok(), "its address is free");
}

#[test]
fn updates_are_decided_by_who_takes_them() {
    let mut key = TsigKey::new(&name("k"), Algorithm::Sha512, b"0123456789abcdef").unwrap();
    let reader = TsigKey::new(&name("reader"), Algorithm::Sha256, b"0123456789abcdef").unwrap();
    key.may_update = true;
    let config = Config { keys: vec![key.clone(), reader.clone()], ..Config::default() };
    let (server, mut updates) =
        Server::start(&["127.0.0.1:0".parse().unwrap()], 1, config, table("")).unwrap();
    let at = server.addresses()[0];
    let decide = std::thread::spawn(move || {
        let mut taken = Vec::new();
        while let Some(request) = updates.blocking_recv() {
            let answers = [UpdateAnswer::Done, UpdateAnswer::SetExists];
            // The third is left without an answer.
            if let Some(answer) = answers.get(taken.len()) {
                request.answer.send(*answer).unwrap();
            }
            taken.push(request.update);
        }
        taken
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let record = Record {
        owner: name("a.example.com"),
        rtype: Rtype::A,
        ttl: 5,
        data: Rdata::a([10, 0, 0, 1].into()),
    };
    let changes = [Change::Add(record)];
    let absent = [Prerequisite::SetDoesNotExist(name("a.example.com"), Rtype::A)];
    let update = |zone: &str, key: &TsigKey, prerequisites: &[Prerequisite]| {
        runtime.block_on(remote::update(at, &name(zone), key, prerequisites, &changes))
    };
    assert!(update("example.com", &key, &[]).is_ok());
    for (zone, key, code) in [
        ("example.com", &key, 7),
        ("example.com", &key, 2),
        ("example.com", &reader, 5),
        ("com", &key, 9),
        ("example.org", &key, 10),
    ] {
        let result = update(zone, key, &absent);
        assert!(
            matches!(result, Err(RemoteError::Refused(own)) if own == code),
            "{zone} {code} {result:?}"
        );
    }
    let stranger = TsigKey::new(&name("k"), Algorithm::Sha512, b"fedcba9876543210").unwrap();
    let result = update("example.com", &stranger, &absent);
    assert!(matches!(result, Err(RemoteError::NotSigned(9))), "{result:?}");
    server.stop();
    let taken = decide.join().unwrap();
    assert_eq!(taken.len(), 3);
    assert_eq!((&taken[1].prerequisites[..], &taken[1].changes[..]), (&absent[..], &changes[..]));
}
