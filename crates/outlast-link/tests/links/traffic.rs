//! What is sent arrives, in order of urgency, and what nobody takes is bounded.

use std::net::SocketAddr;
use std::time::Duration;

use outlast_link::limits::{
    COST, FRAME_MAX, HELD_MAX, MESSAGE_MAX, QUEUE_MAX, REQUESTS_MAX, WINDOW,
};
use outlast_link::wire::{Frame, Lane};
use outlast_link::{Channel, RequestError, SendError};
use tokio::net::TcpSocket;

use crate::harness::{Ca, LIMIT, Node, Raw, cluster, hello, until, within};

/// Bytes that tell where they are from.
fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(31).wrapping_add(seed) % 251) as u8).collect()
}

async fn check_round_trips(ca: Option<&Ca>) {
    let mut nodes = cluster(ca, &["a", "b"]).await;
    let mut b = nodes.pop().unwrap();
    let a = nodes.pop().unwrap();
    let lengths = [0, 1, FRAME_MAX - 1, FRAME_MAX, FRAME_MAX + 1, 300_000, MESSAGE_MAX];
    for channel in Channel::ALL {
        for (seed, length) in lengths.into_iter().enumerate() {
            let bytes = pattern(length, seed);
            a.links.send("b", channel, bytes.clone(), LIMIT).await.unwrap();
            let inbox = match channel {
                Channel::Consensus => &mut b.inboxes.consensus,
                Channel::Beliefs => &mut b.inboxes.beliefs,
                Channel::Bulk => &mut b.inboxes.bulk,
            };
            let got = within("a message", inbox.next()).await.unwrap();
            assert_eq!((&*got.from, got.channel), ("a", channel));
            assert!(got.bytes == bytes, "{channel:?} {length}");
        }
    }
    let mut requests = b.inboxes.requests;
    let answers = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            assert_eq!(&*request.from, "a");
            let mut answer = request.bytes;
            answer.reverse();
            request.reply.send(answer).await.unwrap();
        }
    });
    for (seed, length) in lengths.into_iter().enumerate() {
        let bytes = pattern(length, seed);
        let mut answer = a.links.request("b", bytes.clone(), LIMIT).await.unwrap();
        answer.reverse();
        assert!(answer == bytes, "{length}");
    }
    let too_large = vec![0; MESSAGE_MAX + 1];
    let refused = a.links.try_send("b", Channel::Bulk, too_large.clone());
    assert_eq!(refused, Err(SendError::TooLarge));
    let refused = a.links.request("b", too_large, LIMIT).await;
    assert_eq!(refused, Err(RequestError::NotSent(SendError::TooLarge)));
    assert_eq!(a.links.try_send("x", Channel::Bulk, Vec::new()), Err(SendError::Unknown));
    drop(b.links);
    within("the answers end", answers).await.unwrap();
}

#[tokio::test]
async fn messages_of_every_length_arrive_on_every_channel() {
    check_round_trips(Some(&Ca::new("ca"))).await;
}

#[tokio::test]
async fn without_tls_they_arrive_within_one_machine() {
    check_round_trips(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_find_their_answers() {
    let ca = Ca::new("ca");
    let mut nodes = cluster(Some(&ca), &["a", "b"]).await;
    let mut b = nodes.pop().unwrap();
    let a = nodes.pop().unwrap();
    let answering = tokio::spawn(async move {
        while let Some(request) = b.inboxes.requests.next().await {
            request.reply.send(request.bytes).await.unwrap();
        }
    });
    let mut asking = tokio::task::JoinSet::new();
    for client in 0_u32..64 {
        let links = a.links.clone();
        asking.spawn(async move {
            for turn in 0_u32..50 {
                let question = [client.to_be_bytes(), turn.to_be_bytes()].concat();
                let answer = links.request("b", question.clone(), LIMIT).await;
                assert_eq!(answer, Ok(question));
            }
        });
    }
    within("all answers", asking.join_all()).await;
    drop(b.links);
    within("the answers end", answering).await.unwrap();
}

#[tokio::test]
async fn a_request_ends_at_its_deadline_with_a_reason_or_with_the_connection() {
    let ca = Ca::new("ca");
    let mut nodes = cluster(Some(&ca), &["a", "b"]).await;
    let mut b = nodes.pop().unwrap();
    let a = nodes.pop().unwrap();
    let answer = a.links.request("b", vec![1], Duration::from_millis(1)).await;
    assert_eq!(answer, Err(RequestError::Deadline));
    let late = within("a request", b.inboxes.requests.next()).await.unwrap();

    let links = a.links.clone();
    let second = tokio::spawn(async move { links.request("b", vec![2], LIMIT).await });
    let request = within("a request", b.inboxes.requests.next()).await.unwrap();
    late.reply.send(b"too late".to_vec()).await.unwrap();
    drop(request.reply);
    let refused = Err(RequestError::Refused("it was not answered".to_owned()));
    assert_eq!(within("no answer", second).await.unwrap(), refused);

    let links = a.links.clone();
    let third = tokio::spawn(async move { links.request("b", vec![3], LIMIT).await });
    let request = within("a request", b.inboxes.requests.next()).await.unwrap();
    request.reply.refuse("not the leader");
    let refused = Err(RequestError::Refused("not the leader".to_owned()));
    assert_eq!(within("a refusal", third).await.unwrap(), refused);

    let links = a.links.clone();
    let fourth = tokio::spawn(async move { links.request("b", vec![4], LIMIT).await });
    let request = within("a request", b.inboxes.requests.next()).await.unwrap();
    b.links.stop().await;
    assert_eq!(within("the end", fourth).await.unwrap(), Err(RequestError::Lost));
    drop(request);
    until("b is down", || !a.is_up("b")).await;
    let answer = a.links.request("b", vec![5], LIMIT).await;
    assert_eq!(answer, Err(RequestError::NotSent(SendError::Down)));
}

#[tokio::test]
async fn requests_in_flight_are_bounded_and_places_come_back() {
    let ca = Ca::new("ca");
    let nodes = cluster(Some(&ca), &["a", "b"]).await;
    let links = nodes[0].links.clone();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..REQUESTS_MAX {
        let links = links.clone();
        asking.spawn(async move { links.request("b", Vec::new(), LIMIT).await });
    }
    until("all places are taken", || nodes[1].links.peers()["a"].held_bytes >= REQUESTS_MAX * COST)
        .await;
    let answer = links.request("b", Vec::new(), LIMIT).await;
    assert_eq!(answer, Err(RequestError::NotSent(SendError::Full)), "one more");
    asking.shutdown().await;
    // The other side still holds what it has to answer, and says no to more than it holds for us.
    let answer = links.request("b", Vec::new(), Duration::from_millis(1)).await;
    let given_back = !matches!(answer, Err(RequestError::NotSent(_)));
    assert!(given_back, "whoever gives up gives the place back: {answer:?}");
}

/// A peer with a small receive buffer: what is under way is what the node sent of its own accord.
async fn small_peer(to: SocketAddr, ca: &Ca) -> Raw {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let stream = socket.connect(to).await.unwrap();
    let mut raw = Raw::over(stream, Some(&ca.issue("b", 2))).await.unwrap();
    raw.greet(hello("b")).await;
    assert_eq!(raw.greeting().await, outlast_link::wire::Greeting::Accepted);
    raw
}

#[tokio::test]
async fn bulk_holds_up_a_heartbeat_by_what_is_under_way_only() {
    let ca = Ca::new("ca");
    let a = Node::alone(&ca).await;
    let mut raw = small_peer(a.address, &ca).await;
    until("b is up", || a.is_up("b")).await;
    a.links.try_send("b", Channel::Bulk, vec![7; MESSAGE_MAX]).unwrap();
    for lane in [Lane::Bulk, Lane::Consensus] {
        raw.send_frame(Frame::Credit { lane, bytes: 512 << 10 }).await;
    }
    let mut bulk_frames = 0;
    let mut heartbeats = 0;
    let mut since_sent = 0;
    let mut gap_max = 0;
    let mut done = false;
    while !done {
        let (lane, length, more) = raw
            .frame(|frame| match frame {
                Frame::Data { lane, more, payload } => (Some(lane), payload.len(), more),
                Frame::Ping(_) | Frame::Pong(_) | Frame::Credit { .. } => (None, 0, true),
                Frame::Goodbye(why) => panic!("{why}"),
            })
            .await
            .expect("it goes on");
        match lane {
            Some(Lane::Bulk) => {
                bulk_frames += 1;
                since_sent += 1;
                done = !more;
                let bytes = u32::try_from(length + COST).unwrap();
                raw.send_frame(Frame::Credit { lane: Lane::Bulk, bytes }).await;
                if bulk_frames % 16 == 1 {
                    a.links.try_send("b", Channel::Consensus, b"heartbeat".to_vec()).unwrap();
                    since_sent = 0;
                }
            }
            Some(Lane::Consensus) => {
                heartbeats += 1;
                gap_max = gap_max.max(since_sent);
            }
            Some(Lane::Beliefs | Lane::Answers | Lane::Requests) | None => {}
        }
    }
    assert_eq!(bulk_frames, MESSAGE_MAX / FRAME_MAX);
    // The last one may come behind the end of the message.
    assert!(heartbeats >= bulk_frames / 16 - 1, "{heartbeats} heartbeats");
    // Credit lets 512 KiB be under way: 16 frames and what one write holds.
    assert!(gap_max <= 18, "a heartbeat waited for {gap_max} frames of bulk");
}

#[tokio::test]
async fn a_node_that_takes_nothing_is_bounded_and_disturbs_nobody() {
    let ca = Ca::new("ca");
    let mut nodes = cluster(Some(&ca), &["a", "b", "c"]).await;
    let mut c = nodes.pop().unwrap();
    let mut b = nodes.pop().unwrap();
    let a = nodes.pop().unwrap();
    // Nobody takes what consensus says on b.
    let piece = vec![1; 100_000];
    let mut taken = 0_usize;
    within("the queue is full", async {
        let mut full = 0;
        while full < 200 {
            match a.links.try_send("b", Channel::Consensus, piece.clone()) {
                Ok(()) => taken += piece.len(),
                Err(SendError::Full) => {
                    full += 1;
                    // What is on its way may still arrive.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
    })
    .await;
    assert!(a.links.peers()["b"].dropped >= 200, "what was dropped is counted");
    let bound = HELD_MAX + WINDOW + QUEUE_MAX + 4 * piece.len();
    assert!(taken <= bound, "{taken} bytes were taken, the bound is {bound}");
    let held = b.links.peers()["a"].held_bytes;
    assert!(held <= HELD_MAX + WINDOW, "{held} bytes are held");

    // The other channels and the other nodes notice nothing.
    a.links.try_send("b", Channel::Beliefs, b"up".to_vec()).unwrap();
    assert_eq!(within("a belief", b.inboxes.beliefs.next()).await.unwrap().bytes, b"up");
    a.links.try_send("c", Channel::Consensus, b"vote".to_vec()).unwrap();
    assert_eq!(within("a vote", c.inboxes.consensus.next()).await.unwrap().bytes, b"vote");
    let limit = Duration::from_millis(5);
    let waited = a.links.send("b", Channel::Consensus, vec![2], limit).await;
    assert_eq!(waited, Err(SendError::Full));

    // Once somebody takes it, it flows again.
    let links = a.links.clone();
    let last =
        tokio::spawn(async move { links.send("b", Channel::Consensus, vec![3], LIMIT).await });
    let mut got = 0;
    loop {
        let message = within("the rest", b.inboxes.consensus.next()).await.unwrap();
        if message.bytes == [3] {
            break;
        }
        got += message.bytes.len();
    }
    assert_eq!(got, taken, "what was taken arrived");
    last.await.unwrap().unwrap();
}
