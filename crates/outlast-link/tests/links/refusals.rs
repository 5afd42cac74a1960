//! Whoever does not belong here is told why, on both sides, and costs little.

use std::net::SocketAddr;
use std::time::Duration;

use outlast_link::limits::{FRAME_MAX, HELD_MAX, STRANGERS_OF_NODE_MAX, WINDOW};
use outlast_link::wire::{Frame, Greeting, Hello, Lane, PREAMBLE, Versions};
use outlast_link::{Config, Identity, LinkEvent, Links, RefusalKind, Security, StartError, Timing};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::harness::{
    Ca, LIMIT, Node, Raw, client_config, config, hello, listen, nowhere, peers, timing, until,
    within,
};

/// Node `a` and node `b`, which dials it with `theirs`; what each says of the other.
async fn both_sides(
    ours: (Config, Identity),
    theirs: (Config, Identity),
    a_says: RefusalKind,
) -> (String, String) {
    let mut a = Node::alone_with(ours.0, Security::Tls(ours.1)).await;
    let to = peers(&[("a", a.address)]);
    let mut b = Node::start(theirs.0, listen().await, &to, Security::Tls(theirs.1));
    let ours = a.refusal(a_says).await.text;
    let theirs = b
        .event("a refusal", |event| {
            if let LinkEvent::Refused { refusal, .. } = event { Some(refusal.text) } else { None }
        })
        .await;
    assert!(!a.is_up("b") && !b.is_up("a"));
    (ours, theirs)
}

fn check((ours, theirs): (String, String), ours_has: &str, theirs_has: &str) {
    assert!(ours.contains(ours_has), "the one says: {ours}");
    assert!(theirs.contains(theirs_has), "the other says: {theirs}");
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let a = (config("a"), ca.identity(&ca.issue("a", 1), &[]));
    let b = (config("b"), other.identity(&other.issue("b", 2), &[]));
    // Both look at the same time; whoever is first tells the other.
    let mut a = Node::alone_with(a.0, Security::Tls(a.1)).await;
    let to = peers(&[("a", a.address)]);
    let mut b = Node::start(b.0, listen().await, &to, Security::Tls(b.1));
    let theirs = b.refusal(RefusalKind::OtherCa).await.text;
    let ours = a.refusal(RefusalKind::ByPeer).await.text;
    check(
        (ours, theirs),
        "our certificate is from another CA than that side trusts: compare the two ca.pem",
        "the certificate of node `a` is refused: it is from another CA",
    );
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let mut a = Node::alone(&ca).await;
    let mut raw = Raw::connect(a.address, Some(&other.issue("b", 2))).await.unwrap();
    raw.send(&PREAMBLE).await;
    let text = a.refusal(RefusalKind::OtherCa).await.text;
    assert_eq!(text, "the certificate of the other side is refused: it is from another CA");
}

#[tokio::test]
async fn a_ca_of_the_same_name_with_another_key_is_another_ca() {
    let (ca, other) = (Ca::new("ca"), Ca::new("ca"));
    let mut a = Node::alone(&ca).await;
    let mut raw = Raw::connect(a.address, Some(&other.issue("b", 2))).await.unwrap();
    raw.send(&PREAMBLE).await;
    a.refusal(RefusalKind::OtherCa).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let ca = Ca::new("ca");
    let a = (config("a"), ca.identity(&ca.issue("a", 1), &[]));
    let expired = ca.identity(&ca.issue_for("b", 2, -60), &[]);
    assert_eq!(expired.fault(), Some("this node's own certificate: it has expired"));
    check(
        both_sides(a, (config("b"), expired), RefusalKind::Expired).await,
        "the certificate of the other side is refused: it has expired",
        "node `a` refuses us: our certificate has expired, or a clock is wrong: `outlast certs rotate`",
    );
}

#[tokio::test]
async fn a_revoked_certificate_is_refused() {
    let ca = Ca::new("ca");
    let a = (config("a"), ca.identity(&ca.issue("a", 1), &[2]));
    let b = (config("b"), ca.identity(&ca.issue("b", 2), &[]));
    check(
        both_sides(a, b, RefusalKind::Revoked).await,
        "the certificate of the other side is refused: it was revoked",
        "node `a` refuses us: our certificate was revoked",
    );
}

#[tokio::test]
async fn a_certificate_of_another_node_is_refused() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    let mut raw = Raw::connect(a.address, Some(&ca.issue("c", 2))).await.unwrap();
    raw.say(Greeting::Hello(hello("b"))).await;
    let text = "it says that it is node `b` and shows the certificate of node `c`";
    assert_eq!(raw.refused().await, text);
    assert_eq!(a.refusal(RefusalKind::OtherNode).await.text, text);
}

#[tokio::test]
async fn a_certificate_that_names_no_node_is_refused() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    let mut other = ca.issue("b", 2);
    // A name of another kind, from the same CA.
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["b.example.com".to_owned()]).unwrap();
    let cert = ca.sign(params, &key);
    (other.cert, other.key) = (cert, key.serialize_pem());
    let mut raw = Raw::connect(a.address, Some(&other)).await.unwrap();
    raw.say(Greeting::Hello(hello("b"))).await;
    let text = "it says that it is node `b` and shows a certificate that names no node";
    assert_eq!(raw.refused().await, text);
    assert_eq!(a.refusal(RefusalKind::OtherNode).await.text, text);
}

#[tokio::test]
async fn another_node_at_the_address_that_was_dialled_is_refused() {
    let ca = Ca::new("ca");
    let c = Node::start(
        config("c"),
        listen().await,
        &peers(&[("a", nowhere().await)]),
        Security::Tls(ca.identity(&ca.issue("c", 3), &[])),
    );
    let to = peers(&[("b", c.address)]);
    let identity = ca.identity(&ca.issue("a", 1), &[]);
    let mut a = Node::start(config("a"), listen().await, &to, Security::Tls(identity));
    let text = a.refusal(RefusalKind::OtherNode).await.text;
    let start = "at the address of node `b` there is node `c`";
    assert!(text.starts_with(start), "{text}");
}

#[tokio::test]
async fn a_node_that_is_not_in_the_topology_is_refused() {
    let ca = Ca::new("ca");
    let a = (config("a"), ca.identity(&ca.issue("a", 1), &[]));
    let d = (config("d"), ca.identity(&ca.issue("d", 4), &[]));
    check(
        both_sides(a, d, RefusalKind::UnknownNode).await,
        "node `d` is not in the topology of node `a`: add it to the file there",
        "node `a` refuses us: node `d` is not in the topology of node `a`",
    );
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused() {
    let ca = Ca::new("ca");
    let a = (config("a"), ca.identity(&ca.issue("a", 1), &[]));
    let theirs = Config { cluster: "staging".to_owned(), ..config("b") };
    let b = (theirs, ca.identity(&ca.issue("b", 2), &[]));
    check(
        both_sides(a, b, RefusalKind::OtherCluster).await,
        "it belongs to cluster `staging`, this is cluster `shop`",
        "it belongs to cluster `shop`, this is cluster `staging`",
    );
}

#[tokio::test]
async fn a_node_with_our_own_name_is_refused() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    let mut raw = Raw::connect(a.address, Some(&ca.issue("a", 2))).await.unwrap();
    raw.say(Greeting::Hello(hello("a"))).await;
    assert_eq!(raw.refused().await, "it says that it is node `a`, and so are we");
    a.refusal(RefusalKind::DuplicateNode).await;
}

#[tokio::test]
async fn an_address_that_is_our_own_is_refused() {
    let ca = Ca::new("ca");
    let listener = listen().await;
    let to = peers(&[("b", listener.local_addr().unwrap())]);
    let identity = ca.identity(&ca.issue("a", 1), &[]);
    let mut a = Node::start(config("a"), listener, &to, Security::Tls(identity));
    a.event("ourselves", |event| {
        if let LinkEvent::Refused { refusal, .. } = event {
            matches!(refusal.kind, RefusalKind::Ourselves | RefusalKind::OtherNode).then_some(())
        } else {
            None
        }
    })
    .await;
}

#[tokio::test]
async fn a_second_node_of_the_same_name_is_refused_while_the_first_lives() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    let mut first = Raw::accepted(a.address, &ca.issue("b", 2), hello("b")).await;
    until("b is up", || a.is_up("b")).await;
    let second = Hello { instance: 100, ..hello("b") };
    let mut raw = Raw::connect(a.address, Some(&ca.issue("b", 3))).await.unwrap();
    raw.say(Greeting::Hello(second.clone())).await;
    let text = raw.refused().await;
    let start = "node `b` is connected already from 127.0.0.1:";
    assert!(text.starts_with(start) && text.contains("must not run under one name"), "{text}");
    assert_eq!(a.refusal(RefusalKind::DuplicateNode).await.text, text);
    assert!(a.is_up("b"));
    // The first was asked whether it lives, and can go on.
    a.links.try_send("b", outlast_link::Channel::Consensus, vec![1]).unwrap();
    first.send_frame(Frame::Credit { lane: Lane::Consensus, bytes: 1000 }).await;
    loop {
        let is_it = first.frame(|frame| matches!(frame, Frame::Data { payload: [1], .. })).await;
        if is_it.expect("it goes on") {
            break;
        }
    }
}

#[tokio::test]
async fn a_dead_connection_gives_way_to_the_restarted_node() {
    let ca = Ca::new("ca");
    let timing = Timing { doubted_max: Duration::from_millis(50), ..timing() };
    let identity = ca.identity(&ca.issue("a", 1), &[]);
    let config = Config { timing, ..config("a") };
    let mut a = Node::alone_with(config, Security::Tls(identity)).await;
    // It answers no ping: its machine has lost power.
    let dead = Raw::accepted(a.address, &ca.issue("b", 2), hello("b")).await;
    until("b is up", || a.is_up("b")).await;
    let second = Hello { instance: 100, ..hello("b") };
    within("the second comes in", async {
        loop {
            let mut raw = Raw::connect(a.address, Some(&ca.issue("b", 2))).await.unwrap();
            raw.greet(second.clone()).await;
            if raw.greeting().await == Greeting::Accepted {
                break;
            }
        }
    })
    .await;
    let reason = a.down("b").await;
    assert_eq!(reason, "it did not answer when another connection of that node came");
    drop(dead);
}

#[tokio::test]
async fn versions_without_overlap_are_refused_with_both_ranges() {
    let ca = Ca::new("ca");
    let ours = Config { versions: Versions { min: 1, max: 2 }, ..config("a") };
    let theirs =
        Config { versions: Versions { min: 3, max: 4 }, build: "test 2".to_owned(), ..config("b") };
    let a = (ours, ca.identity(&ca.issue("a", 1), &[]));
    let b = (theirs, ca.identity(&ca.issue("b", 2), &[]));
    check(
        both_sides(a, b, RefusalKind::Versions).await,
        "node `b` (build test 2) speaks versions 3 to 4 of the protocol, node `a` (build test 1) versions 1 to 2",
        "node `a` (build test 1) speaks versions 1 to 2 of the protocol, node `b` (build test 2) versions 3 to 4",
    );
}

#[tokio::test]
async fn a_greeting_of_a_later_form_is_refused_by_name() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    let mut raw = Raw::connect(a.address, Some(&ca.issue("b", 2))).await.unwrap();
    let mut later = PREAMBLE;
    later[0] = 2;
    raw.send(&later).await;
    let text =
        "the other side greets in form 2, this build knows form 1: upgrade one version at a time";
    assert_eq!(raw.refused().await, text);
    assert_eq!(a.refusal(RefusalKind::Malformed).await.text, text);
}

#[tokio::test]
async fn tls_without_a_certificate_is_refused() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    let mut raw = Raw::connect(a.address, None).await.unwrap();
    raw.say(Greeting::Hello(hello("b"))).await;
    let text = a.refusal(RefusalKind::NoCertificate).await.text;
    assert_eq!(text, "the other side shows no certificate: only nodes of this cluster may connect");
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    let config = client_config(Some(&ca.issue("b", 2)), &[&rustls::version::TLS12]);
    let stream = TcpStream::connect(a.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("a").unwrap();
    let error = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    a.refusal(RefusalKind::Malformed).await;
}

#[tokio::test]
async fn a_node_without_tls_is_told_what_to_do() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    let to = peers(&[("a", a.address)]);
    let mut b = Node::start(config("b"), listen().await, &to, Security::Loopback);
    let text = b.refusal(RefusalKind::ByPeer).await.text;
    assert_eq!(
        text,
        "node `a` refuses us: it speaks without TLS, this cluster uses TLS: give that node a certificate (`outlast \
         certs issue`) and write it as `tls` in [cluster]"
    );
    a.refusal(RefusalKind::NoTls).await;
}

#[tokio::test]
async fn a_node_with_tls_among_such_without_is_told_too() {
    let ca = Ca::new("ca");
    let mut a = Node::alone_with(config("a"), Security::Loopback).await;
    let to = peers(&[("a", a.address)]);
    let identity = ca.identity(&ca.issue("b", 2), &[]);
    let mut b = Node::start(config("b"), listen().await, &to, Security::Tls(identity));
    let text = a.refusal(RefusalKind::Tls).await.text;
    assert!(text.starts_with("it speaks TLS, this node does not"), "{text}");
    let text = b
        .event("unreachable", |event| {
            if let LinkEvent::Unreachable { reason, .. } = event { Some(reason) } else { None }
        })
        .await;
    let hint = "closed the connection before it was encrypted; perhaps it runs without `tls`";
    assert!(text.contains(hint), "{text}");
}

async fn start_error(listener: &str, to: SocketAddr) -> StartError {
    let listener = tokio::net::TcpListener::bind(listener).await.unwrap();
    let (events, _receiver) = mpsc::channel(1);
    let to = peers(&[("b", to)]);
    Links::start(config("a"), listener, &to, Security::Loopback, events).unwrap_err()
}

#[tokio::test]
async fn without_tls_nothing_beyond_this_machine_is_spoken_to() {
    let far: SocketAddr = "10.0.0.2:8901".parse().unwrap();
    let near: SocketAddr = "[::1]:8901".parse().unwrap();
    let text = start_error("127.0.0.1:0", far).await.to_string();
    assert_eq!(
        text,
        "[cluster] has no `tls`, node `b` is at 10.0.0.2, and without TLS links stay within one machine: run `outlast \
         certs init` and `outlast certs issue`, then write `tls` in [cluster]"
    );
    let text = start_error("0.0.0.0:0", near).await.to_string();
    assert!(text.contains("this node listens at 0.0.0.0:"), "{text}");
    let a = Node::alone_with(config("a"), Security::Loopback).await;
    assert!(a.links.follow(&peers(&[("b", near)])).is_ok());
    assert!(matches!(a.links.follow(&peers(&[("b", far)])), Err(StartError::Insecure { .. })));
}

#[tokio::test]
async fn a_certificate_of_another_node_does_not_even_start() {
    let ca = Ca::new("ca");
    let identity = ca.identity(&ca.issue("c", 1), &[]);
    let (events, _receiver) = mpsc::channel(1);
    let refused =
        Links::start(config("a"), listen().await, &peers(&[]), Security::Tls(identity), events);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the certificate names node `c` and this is node `a`: run `outlast certs issue a` where the CA is, and bring \
         the files here"
    );
}

#[tokio::test]
async fn plain_garbage_is_refused() {
    let ca = Ca::new("ca");
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[22, 3, 1, 0xff, 0xff, 1, 2]] {
        let mut a = Node::alone(&ca).await;
        let mut stream = TcpStream::connect(a.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // It is closed; by a reset, if it did not even read all.
        drop(within("it closes", stream.read_to_end(&mut rest)).await);
        let what = format!("{garbage:?}");
        a.event(&what, |event| matches!(event, LinkEvent::Refused { .. }).then_some(())).await;
    }
}

#[tokio::test]
async fn garbage_within_tls_is_refused() {
    let ca = Ca::new("ca");
    let b = ca.issue("b", 2);
    let mut beyond = PREAMBLE.to_vec();
    beyond.extend([1, 0xff, 0xff, 0x7f]);
    let mut endless = PREAMBLE.to_vec();
    endless.extend([1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let mut unknown = PREAMBLE.to_vec();
    unknown.extend([9, 0]);
    let mut impatient = PREAMBLE.to_vec();
    Greeting::Accepted.write(&mut impatient);
    let mut hollow = PREAMBLE.to_vec();
    hollow.extend([1, 2, 0, 0]);
    for (bytes, text) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "does not greet like a node of outlast"),
        (beyond, "a greeting beyond the limit"),
        (endless, "a length that does not end"),
        (unknown, "a greeting that is not known"),
        (impatient, "did not say who it is"),
        (hollow, "it ends too early"),
    ] {
        let mut a = Node::alone(&ca).await;
        let mut raw = Raw::connect(a.address, Some(&b)).await.unwrap();
        raw.send(&bytes).await;
        let told = raw.refused().await;
        assert!(told.contains(text), "{told}");
        assert_eq!(a.refusal(RefusalKind::Malformed).await.text, told);
    }
}

#[tokio::test]
async fn a_greeting_cut_short_is_refused() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    let mut greeting = PREAMBLE.to_vec();
    Greeting::Hello(hello("b")).write(&mut greeting);
    for cut in [0, 3, PREAMBLE.len(), greeting.len() - 1] {
        let mut raw = Raw::connect(a.address, Some(&ca.issue("b", 2))).await.unwrap();
        raw.send(&greeting[..cut]).await;
        drop(raw);
        a.refusal(RefusalKind::Broken).await;
    }
}

#[tokio::test]
async fn malformed_frames_end_a_connection_and_nothing_else() {
    let ca = Ca::new("ca");
    let b = ca.issue("b", 2);
    let mut a = Node::alone(&ca).await;
    let mut credit = Vec::new();
    Frame::Credit { lane: Lane::Bulk, bytes: u32::MAX }.write(&mut credit);
    for (bytes, text) in [
        (vec![0x7e, 0], "a frame that is not known"),
        (vec![0, 0x81, 0x80, 0x02], "a frame beyond the limit"),
        (vec![0, 0xff, 0xff, 0xff, 0xff, 0xff], "a length that does not end"),
        (vec![16, 1, 0x80], "it ends too early"),
        (vec![2, 0], "it ends too early"),
        (credit, "more credit than there is"),
    ] {
        let mut raw = Raw::accepted(a.address, &b, hello("b")).await;
        raw.send(&bytes).await;
        let told = raw.goodbye().await;
        assert!(told.contains(text), "{told}");
        assert_eq!(a.down("b").await, told);
    }
}

#[tokio::test]
async fn whoever_sends_more_than_it_may_is_cut_off() {
    let ca = Ca::new("ca");
    let b = ca.issue("b", 2);
    let mut a = Node::alone(&ca).await;
    let frames = (HELD_MAX + WINDOW) / FRAME_MAX + 2;
    for (more, text) in [(true, "a message beyond the limit"), (false, "more than it may")] {
        let mut raw = Raw::accepted(a.address, &b, hello("b")).await;
        let payload = &[0; FRAME_MAX];
        for _ in 0..frames {
            raw.send_frame(Frame::Data { lane: Lane::Consensus, more, payload }).await;
        }
        let reason = a.down("b").await;
        assert!(reason.contains(text), "{reason}");
        assert!(a.links.peers()["b"].held_bytes <= HELD_MAX + WINDOW);
    }
}

#[tokio::test]
async fn a_recorded_stream_cannot_be_replayed() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    // A wire in the middle that writes down what b sends.
    let middle = listen().await;
    let at = middle.local_addr().unwrap();
    let target = a.address;
    let tap = tokio::spawn(async move {
        let (mut near, _) = middle.accept().await.unwrap();
        let mut far = TcpStream::connect(target).await.unwrap();
        let (mut near_read, mut near_write) = near.split();
        let (mut far_read, mut far_write) = far.split();
        let mut recorded = Vec::new();
        let forth = async {
            let mut piece = [0; 4096];
            loop {
                let count = near_read.read(&mut piece).await.unwrap_or(0);
                if count == 0 {
                    break;
                }
                recorded.extend_from_slice(&piece[..count]);
                far_write.write_all(&piece[..count]).await.unwrap();
            }
            far_write.shutdown().await.unwrap();
        };
        let back = async {
            drop(tokio::io::copy(&mut far_read, &mut near_write).await);
        };
        tokio::join!(forth, back);
        recorded
    });
    let mut raw = Raw::accepted(at, &ca.issue("b", 2), hello("b")).await;
    let payload = b"vote for me";
    raw.send_frame(Frame::Data { lane: Lane::Consensus, more: false, payload }).await;
    let got = within("a message", a.inboxes.consensus.next()).await.unwrap();
    assert_eq!(got.bytes, payload);
    drop(raw);
    a.down("b").await;
    let recorded = within("the recording", tap).await.unwrap();

    let mut replay = TcpStream::connect(a.address).await.unwrap();
    replay.write_all(&recorded).await.unwrap();
    let text = a.refusal(RefusalKind::Malformed).await.text;
    assert!(text.contains("breaks the rules of TLS"), "{text}");
    assert!(!a.is_up("b"));
    assert_eq!(a.inboxes.consensus.next_now(), None, "nothing arrived twice");
}

#[tokio::test]
async fn whoever_says_nothing_is_left_after_the_deadline() {
    let ca = Ca::new("ca");
    let timing = Timing { handshake_max: Duration::from_millis(30), ..timing() };
    let identity = ca.identity(&ca.issue("a", 1), &[]);
    let mut a = Node::alone_with(Config { timing, ..config("a") }, Security::Tls(identity)).await;
    let mut silent = TcpStream::connect(a.address).await.unwrap();
    let text = a.refusal(RefusalKind::Deadline).await.text;
    assert_eq!(text, "no greeting within 30ms");
    let mut rest = Vec::new();
    drop(within("it closes", silent.read_to_end(&mut rest)).await);
}

#[tokio::test]
async fn strangers_are_bounded_and_places_come_back() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    // Both nodes of this topology are at the same address.
    let max = 2 * STRANGERS_OF_NODE_MAX;
    let mut silent = Vec::new();
    for _ in 0..=max {
        silent.push(TcpStream::connect(a.address).await.unwrap());
    }
    let text = a.refusal(RefusalKind::Crowded).await.text;
    assert_eq!(text, "too many connections at once that have not shown who they are");
    drop(silent);
    let b = ca.issue("b", 2);
    within("a place comes back", async {
        loop {
            if let Ok(mut raw) = Raw::connect(a.address, Some(&b)).await {
                raw.greet(hello("b")).await;
                assert_eq!(raw.greeting().await, Greeting::Accepted);
                break;
            }
        }
    })
    .await;
    assert!(LIMIT > Duration::ZERO);
}

#[tokio::test]
async fn the_same_refusal_is_reported_once_in_a_while() {
    let ca = Ca::new("ca");
    let identity = ca.identity(&ca.issue("a", 1), &[]);
    let timing = Timing { report_every: LIMIT, ..timing() };
    let mut a = Node::alone_with(Config { timing, ..config("a") }, Security::Tls(identity)).await;
    for _ in 0..5 {
        let mut stream = TcpStream::connect(a.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        drop(within("it closes", stream.read_to_end(&mut rest)).await);
    }
    a.refusal(RefusalKind::NoTls).await;
    while let Ok(event) = a.events.try_recv() {
        assert!(!matches!(event, LinkEvent::Refused { .. }), "{event:?}");
    }
}
