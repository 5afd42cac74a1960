//! Connections come, go and come again: dials at once, restarts, silence, a changed topology, versions.

use std::time::{Duration, Instant};

use outlast_link::wire::{Frame, Versions};
use outlast_link::{Channel, Config, LinkEvent, Security, Timing};

use crate::harness::{
    Ca, LIMIT, Node, Raw, cluster, config, connected, hello, listen, nowhere, peers, timing, until,
    within,
};

#[tokio::test]
async fn dials_at_the_same_time_become_one_connection_on_both_sides() {
    let ca = Ca::new("ca");
    for round in 0..20 {
        let (first, second) = (listen().await, listen().await);
        let to = peers(&[("a", first.local_addr().unwrap()), ("b", second.local_addr().unwrap())]);
        // Nobody leaves dialling to the other.
        let timing = Timing { dial_grace: Duration::ZERO, ..timing() };
        let start = |name: &str, serial, listener| {
            let identity = ca.identity(&ca.issue(name, serial), &[]);
            let config = Config { timing: timing.clone(), ..config(name) };
            Node::start(config, listener, &to, Security::Tls(identity))
        };
        let nodes = [start("a", 1, first), start("b", 2, second)];
        connected(&nodes, &["a", "b"]).await;
        let [mut a, mut b] = nodes;
        // What one calls dialled the other calls accepted: they keep the same connection.
        until("both keep the same", || {
            let (ours, theirs) = (a.links.peers(), b.links.peers());
            match (&ours["b"].connection, &theirs["a"].connection) {
                (Some(ours), Some(theirs)) => ours.hello.dialled != theirs.hello.dialled,
                _ => false,
            }
        })
        .await;
        // The node with the last word never changes its mind.
        for message in 0_u8..10 {
            a.links.try_send("b", Channel::Consensus, vec![message]).unwrap();
            let got = within("a message", b.inboxes.consensus.next()).await.unwrap();
            assert_eq!(got.bytes, [message], "round {round}");
        }
        b.links.send("a", Channel::Consensus, vec![9], LIMIT).await.unwrap();
        within("a message", a.inboxes.consensus.next()).await.unwrap();
        let mut ups = 0;
        while let Ok(event) = a.events.try_recv() {
            ups += u32::from(matches!(event, LinkEvent::Up { .. }));
            assert!(!matches!(event, LinkEvent::Down { .. }), "round {round}: {event:?}");
        }
        assert_eq!(ups, 1, "round {round}");
        a.links.stop().await;
        b.links.stop().await;
    }
}

#[tokio::test]
async fn a_restarted_node_is_connected_again_and_messages_go_on() {
    let ca = Ca::new("ca");
    let mut nodes = cluster(Some(&ca), &["a", "b"]).await;
    let mut b = nodes.pop().unwrap();
    let mut a = nodes.pop().unwrap();
    for round in 0_u8..5 {
        let address = b.address;
        let instance =
            |node: &Node| node.links.peers()["b"].connection.as_ref().map(|c| c.hello.instance);
        let before = instance(&a);
        b.links.stop().await;
        assert_eq!(a.down("b").await, "the other side ended it: the node stops");
        let reason = a.links.peers()["b"].reason.clone();
        assert!(reason.is_some(), "it is known why there is no connection");
        drop(b);
        let listener = {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            socket.listen(16).unwrap()
        };
        let identity = ca.identity(&ca.issue("b", 2), &[]);
        b = Node::start(
            config("b"),
            listener,
            &peers(&[("a", a.address)]),
            Security::Tls(identity),
        );
        until("b is up again", || a.is_up("b") && b.is_up("a")).await;
        assert_ne!(instance(&a), before, "another agent");
        a.links.send("b", Channel::Beliefs, vec![round], LIMIT).await.unwrap();
        assert_eq!(within("a message", b.inboxes.beliefs.next()).await.unwrap().bytes, [round]);
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_noticed_and_made_again() {
    let ca = Ca::new("ca");
    let mut a = Node::alone(&ca).await;
    for round in 0..5_u64 {
        let hello = outlast_link::wire::Hello { instance: round, ..hello("b") };
        let raw = Raw::accepted(a.address, &ca.issue("b", 2), hello).await;
        until("b is up", || a.is_up("b")).await;
        drop(raw);
        a.down("b").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leaves_in_the_middle_of_the_greeting_leaves_nothing_behind() {
    let ca = Ca::new("ca");
    let a = Node::alone(&ca).await;
    let b = ca.issue("b", 2);
    for round in 0..200_u64 {
        let stream = tokio::net::TcpStream::connect(a.address).await.unwrap();
        // Closing resets, so that the last word meets an error now and then.
        stream.set_zero_linger().unwrap();
        let mut raw = Raw::over(stream, Some(&b)).await.unwrap();
        let hello = outlast_link::wire::Hello { instance: round, ..hello("b") };
        raw.say(outlast_link::wire::Greeting::Hello(hello)).await;
        let mut accepted = Vec::new();
        outlast_link::wire::Greeting::Accepted.write(&mut accepted);
        raw.send(&accepted).await;
        // It goes a little later each time, so that once it is between the last word and the answer to that.
        let gone = Instant::now() + Duration::from_micros(round * 10);
        while Instant::now() < gone {
            std::hint::spin_loop();
        }
    }
    until("nothing is left", || !a.is_up("b")).await;
    let last = within("it comes in", async {
        loop {
            let hello = outlast_link::wire::Hello { instance: 1000, ..hello("b") };
            let mut raw = Raw::connect(a.address, Some(&b)).await.unwrap();
            raw.greet(hello).await;
            if raw.greeting().await == outlast_link::wire::Greeting::Accepted {
                break raw;
            }
        }
    });
    drop(last.await);
}

#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let ca = Ca::new("ca");
    let timing = Timing { silent_max: Duration::from_millis(100), ..timing() };
    let identity = ca.identity(&ca.issue("a", 1), &[]);
    let mut a = Node::alone_with(Config { timing, ..config("a") }, Security::Tls(identity)).await;
    let silent = Raw::accepted(a.address, &ca.issue("b", 2), hello("b")).await;
    let reason = a.down("b").await;
    assert!(reason.starts_with("nothing was heard for "), "{reason}");
    drop(silent);
}

/// Each ping wakes both sides.
#[tokio::test]
async fn a_peer_that_speaks_is_not_asked_again_and_again_whether_it_lives() {
    let ca = Ca::new("ca");
    let ping_every = Duration::from_millis(200);
    let timing = Timing { ping_every, measure_every: LIMIT, ..timing() };
    let identity = ca.identity(&ca.issue("a", 1), &[]);
    let a = Node::alone_with(Config { timing, ..config("a") }, Security::Tls(identity)).await;
    let mut peer = Raw::accepted(a.address, &ca.issue("b", 2), hello("b")).await;
    let begun = Instant::now();
    let mut pings = 0;
    while begun.elapsed() < ping_every * 10 {
        peer.send_frame(Frame::Ping(1)).await;
        loop {
            let seen = peer.frame(|frame| match frame {
                Frame::Pong(_) => true,
                Frame::Ping(_) => {
                    pings += 1;
                    false
                }
                Frame::Data { .. } | Frame::Credit { .. } | Frame::Goodbye(_) => false,
            });
            if seen.await.expect("it stays connected") {
                break;
            }
        }
    }
    // The first one measures. A machine that stands still for half of that time is to be forgiven.
    assert!((1..=5).contains(&pings), "{pings} of ten");
}

#[tokio::test]
async fn who_is_there_and_how_far_away_is_known() {
    let ca = Ca::new("ca");
    let nodes = cluster(Some(&ca), &["a", "b", "c"]).await;
    let trip = || {
        let peers = nodes[0].links.peers();
        peers["b"].connection.as_ref().and_then(|connection| connection.round_trip)
    };
    until("a round trip was measured", || trip().is_some()).await;
    let peers = nodes[0].links.peers();
    assert_eq!(peers.keys().map(String::as_str).collect::<Vec<_>>(), ["b", "c"]);
    let b = peers["b"].connection.as_ref().unwrap();
    assert!(b.bytes_in > 0 && b.bytes_out > 0 && b.lasts > Duration::ZERO, "{b:?}");
    assert!(b.round_trip.unwrap() < LIMIT && b.silent_for < LIMIT, "{b:?}");
    assert_eq!((b.hello.build.as_str(), b.hello.id, b.hello.version), ("test 1", 7, 1));
    assert_eq!(peers["b"].address, nodes[1].address);
}

#[tokio::test]
async fn nodes_of_different_versions_speak_the_highest_that_both_know() {
    let ca = Ca::new("ca");
    for (ours, theirs, spoken) in [((1, 2), (1, 1), 1), ((1, 3), (2, 2), 2), ((2, 4), (1, 3), 3)] {
        let (first, second) = (listen().await, listen().await);
        let to = peers(&[("a", first.local_addr().unwrap()), ("b", second.local_addr().unwrap())]);
        let start = |name: &str, (min, max), listener| {
            let identity = ca.identity(&ca.issue(name, 1), &[]);
            let config = Config { versions: Versions { min, max }, ..config(name) };
            Node::start(config, listener, &to, Security::Tls(identity))
        };
        let nodes = [start("a", ours, first), start("b", theirs, second)];
        connected(&nodes, &["a", "b"]).await;
        for (node, other) in nodes.iter().zip(["b", "a"]) {
            let peers = node.links.peers();
            assert_eq!(peers[other].connection.as_ref().unwrap().hello.version, spoken);
        }
    }
}

#[tokio::test]
async fn a_changed_topology_is_followed() {
    let ca = Ca::new("ca");
    let mut nodes = cluster(Some(&ca), &["a", "b", "c"]).await;
    let c = nodes.pop().unwrap();
    let mut b = nodes.pop().unwrap();
    let mut a = nodes.pop().unwrap();
    let without = peers(&[("a", a.address), ("b", b.address)]);
    a.links.follow(&without).unwrap();
    assert_eq!(a.down("c").await, "the node is not in the topology any more");
    assert_eq!(a.links.peers().len(), 1);
    until("c is told", || {
        let peers = c.links.peers();
        peers["a"].reason.as_ref().is_some_and(|why| why.contains("not in the topology"))
    })
    .await;
    // It goes on with those who stayed, and takes c back.
    a.links.try_send("b", Channel::Consensus, vec![1]).unwrap();
    within("a message", b.inboxes.consensus.next()).await.unwrap();
    a.links.follow(&peers(&[("b", b.address), ("c", c.address)])).unwrap();
    until("c is back", || a.is_up("c") && c.is_up("a")).await;
}

#[tokio::test]
async fn a_node_that_moved_is_found_at_its_new_address() {
    let ca = Ca::new("ca");
    let identity = ca.identity(&ca.issue("a", 1), &[]);
    let nobody = peers(&[("b", nowhere().await)]);
    let mut a = Node::start(config("a"), listen().await, &nobody, Security::Tls(identity));
    let reason = a
        .event("unreachable", |event| {
            if let LinkEvent::Unreachable { node, reason, .. } = event
                && node == "b"
            {
                Some(reason)
            } else {
                None
            }
        })
        .await;
    assert!(reason.contains("node `b`: Connection refused"), "{reason}");
    // b cannot dial a.
    let identity = ca.identity(&ca.issue("b", 2), &[]);
    let wrong = peers(&[("a", nowhere().await)]);
    let b = Node::start(config("b"), listen().await, &wrong, Security::Tls(identity));
    a.links.follow(&peers(&[("b", b.address)])).unwrap();
    until("b is found", || a.is_up("b")).await;
}

#[tokio::test]
async fn stopping_sends_what_is_queued() {
    /// More than a write, and little enough for a slow machine to send in the time that there is.
    const BULK: usize = 200_000;
    let ca = Ca::new("ca");
    let mut nodes = cluster(Some(&ca), &["a", "b"]).await;
    let mut b = nodes.pop().unwrap();
    let mut a = nodes.pop().unwrap();
    a.links.try_send("b", Channel::Bulk, vec![1; BULK]).unwrap();
    a.links.try_send("b", Channel::Consensus, vec![2]).unwrap();
    within("it stops", a.links.stop()).await;
    assert_eq!(within("a message", b.inboxes.consensus.next()).await.unwrap().bytes, [2]);
    let bulk = within("bulk", b.inboxes.bulk.next()).await.unwrap();
    assert_eq!(bulk.bytes.len(), BULK);
    assert_eq!(b.down("a").await, "the other side ended it: the node stops");
    assert_eq!(within("the end", a.inboxes.consensus.next()).await, None, "inboxes end");
}

#[tokio::test]
async fn dropped_links_end_too() {
    let ca = Ca::new("ca");
    let mut nodes = cluster(Some(&ca), &["a", "b"]).await;
    let mut b = nodes.pop().unwrap();
    drop(nodes);
    assert_eq!(b.down("a").await, "the other side ended it: the node stops");
}
