//! The lease of a node: what needs somebody's word is served while it lasts, ends with it, and the rest does not notice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http_body_util::BodyExt as _;
use outlast_core::time::Instant;
use outlast_proxy::stats::{ErrorKind, LeaseStats, ServiceStats};
use outlast_proxy::table::{Protocol, Service, Table};
use outlast_proxy::{Notice, Proxy};
use rustix::time::{ClockId, clock_gettime};

use crate::h2::{known, nothing, request, run, text};
use crate::harness::{Backend, LIMIT, Message, Wire, get, listen, ok, until, with_body};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

/// Long enough to get everything under way before it has passed, on most machines.
const SHORT: Duration = Duration::from_millis(300);

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Now, on the clock that leases are counted on.
fn now() -> Instant {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned());
    Instant::from_start(Duration::from_secs(seconds) + Duration::from_nanos(nanos))
}

/// A moment that has passed: the lease is given up.
const OVER: Instant = Instant::from_start(Duration::ZERO);

/// A data plane with a pair and a TCP service that need a word, and a service `web` that needs none.
struct Node {
    proxy: Proxy,
    pair: SocketAddr,
    tcp: SocketAddr,
    web: SocketAddr,
    notices: Mutex<tokio::sync::mpsc::Receiver<Notice>>,
    services: Vec<Service>,
}

impl Node {
    fn start(threads: usize, backend: &Backend, echo: &Backend) -> Node {
        let node = Node::unguarded(threads, backend, echo);
        let guard = node.proxy.guard();
        std::thread::spawn(move || guard.watch());
        node
    }

    fn unguarded(threads: usize, backend: &Backend, echo: &Backend) -> Node {
        let (proxy, notices) = Proxy::start(threads, rustls::RootCertStore::empty()).unwrap();
        let mut sockets = BTreeMap::new();
        let mut services = Vec::new();
        for (name, protocol, backend, vouched) in [
            ("pair", Protocol::Http, backend, true),
            ("tcp", Protocol::Tcp, echo, true),
            ("web", Protocol::Http, backend, false),
        ] {
            let socket = listen();
            let address = socket.local_addr().unwrap();
            sockets.insert(address, socket);
            let mut service = Service::plain(name, address, protocol, &[backend.address]);
            service.vouched = vouched;
            // Nothing but the lease ends a wait.
            service.retry.try_timeout = LONG;
            service.retry.on_timeout = false;
            service.timeouts.body = LONG;
            services.push(service);
        }
        let [pair, tcp, web] = [0, 1, 2].map(|i: usize| services[i].listen);
        let table = Table { generation: 1, services: services.clone() };
        proxy.apply(table, sockets).unwrap().wait(LIMIT).unwrap();
        Node { proxy, pair, tcp, web, notices: Mutex::new(notices), services }
    }

    fn vouch_for(&self, time: Duration) {
        self.proxy.vouch(now() + time);
    }

    fn stats(&self, name: &str) -> ServiceStats {
        let stats = self.proxy.stats();
        stats.services.into_iter().find(|s| s.name == name).expect("a service of this name")
    }

    fn lease(&self) -> LeaseStats {
        self.proxy.stats().lease
    }

    fn refused(&self, name: &str) -> u64 {
        self.stats(name).own.errors[ErrorKind::Unvouched as usize]
    }

    fn cut(&self, name: &str) -> u64 {
        self.stats(name).backends[0].counts.errors[ErrorKind::CutOff as usize]
    }

    fn in_flight(&self, name: &str) -> u64 {
        self.stats(name).backends[0].in_flight
    }

    fn notices(&self) -> Vec<Notice> {
        let mut inbox = self.notices.lock().unwrap();
        std::iter::from_fn(|| inbox.try_recv().ok()).collect()
    }

    /// What a client of the TCP service gets before its connection ends, if it says something.
    fn says(&self, word: &str) -> Vec<u8> {
        let mut client = Wire::connect(self.tcp);
        client.try_send(word).ok();
        client.end();
        // A reset is an end, too; to be left waiting is not.
        client.rest().unwrap_or_else(|error| {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            Vec::new()
        })
    }
}

/// Answers `/`, lets `/wait` wait for `go`, begins an answer to `/half`, and upgrades `/ws` to an echo.
fn backend() -> (Backend, std::sync::Arc<AtomicUsize>) {
    let go = std::sync::Arc::new(AtomicUsize::new(0));
    let seen = go.clone();
    let backend = Backend::start(move |mut stage| {
        while let Some(asked) = stage.next() {
            let line = asked.line();
            let said = match line.split(' ').nth(1).unwrap_or_default() {
                "/wait" => {
                    until("told to go on", || seen.load(SeqCst) > 0);
                    stage.say(ok("late"))
                }
                "/half" => {
                    stage.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
                    until("told to go on", || seen.load(SeqCst) > 0);
                    stage.say("0\r\n\r\n")
                }
                "/ws" => {
                    stage.say("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
                    return echo_on(stage);
                }
                _ => stage.say(ok("served")),
            };
            if !said {
                return;
            }
        }
    });
    (backend, go)
}

fn echo_on(mut stage: crate::harness::Stage) {
    while let Ok(piece) = stage.wire.exactly(1) {
        stage.note(&Message { head: String::new(), body: piece.clone() });
        if !stage.say(&piece) {
            return;
        }
    }
}

fn echo() -> Backend {
    Backend::start(echo_on)
}

/// A tunnel through which a byte has gone both ways.
fn tunnel(to: SocketAddr, opening: &str) -> Wire {
    let mut client = Wire::connect(to);
    if !opening.is_empty() {
        client.send(opening);
        assert_eq!(client.head().unwrap().map(|head| head.status()), Some(101));
    }
    talk(&mut client);
    client
}

fn talk(client: &mut Wire) {
    client.send("x");
    assert_eq!(client.exactly(1).unwrap(), b"x");
}

/// Whether a connection has been ended by the other side.
fn ended(client: &mut Wire) -> bool {
    client.rest().map_or_else(
        |error| error.kind() == std::io::ErrorKind::ConnectionReset,
        |rest| rest.is_empty(),
    )
}

#[test]
fn what_needs_a_word_is_not_served_without_one() {
    let ((backend, _go), echo) = (backend(), echo());
    let node = Node::start(2, &backend, &echo);
    let mut client = Wire::connect(node.pair);
    for asked in [get("/").into_bytes(), with_body("POST", "/pay", b"pay")] {
        let mut client = Wire::connect(node.pair);
        let answer = client.ask(asked);
        assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")));
        assert_eq!(
            answer.text(),
            "503 Service Unavailable: this node holds no lease to serve it\n"
        );
    }
    assert_eq!(client.ask(get("/")).status(), 503);
    assert_eq!(node.says("x"), b"");
    assert_eq!(
        run(async {
            let mut sender = known(node.pair).await;
            let answer = sender.send_request(request("GET", "/").body(nothing()).unwrap()).await;
            answer.unwrap().status().as_u16()
        }),
        503
    );
    assert_eq!((backend.connections(), echo.connections()), (0, 0), "nothing went there");
    assert_eq!(Wire::connect(node.web).ask(get("/")).text(), "served");
    assert_eq!((node.refused("pair"), node.refused("tcp"), node.refused("web")), (4, 1, 0));
    assert!(node.stats("pair").unvouched && !node.stats("web").unvouched);
    assert_eq!(node.lease(), LeaseStats::default());

    node.vouch_for(LONG);
    // The same connection: a refusal is no reason to end it.
    assert_eq!(client.ask(get("/")).text(), "served");
    assert_eq!(node.says("x"), b"x");
    run(async {
        let mut sender = known(node.pair).await;
        let answer = sender.send_request(request("GET", "/").body(nothing()).unwrap()).await;
        assert_eq!(text(answer.unwrap()).await, "served");
    });
    assert!(!node.stats("pair").unvouched && node.lease().left.is_some());
    assert_eq!(node.notices(), [Notice::LeaseBegun], "told once");
}

#[test]
fn what_is_under_way_ends_with_the_lease_and_the_rest_goes_on() {
    for threads in [1, 3] {
        let ((backend, go), echo) = (backend(), echo());
        let node = Node::start(threads, &backend, &echo);
        node.vouch_for(LONG);
        let [mut asking, mut paying, mut half] = [0; 3].map(|_| Wire::connect(node.pair));
        asking.send(get("/wait"));
        paying.send(with_body("POST", "/wait", b"pay"));
        half.send(get("/half"));
        half.until(b"half\r\n").unwrap().expect("the beginning");
        let mut tunnels = [tunnel(node.pair, UPGRADE), tunnel(node.tcp, "")];
        let mut free = Wire::connect(node.web);
        free.send(get("/wait"));
        let mut free_tunnel = tunnel(node.web, UPGRADE);
        run(async {
            let mut sender = known(node.pair).await;
            let begun = sender.send_request(request("GET", "/half").body(nothing()).unwrap());
            let mut begun = begun.await.unwrap().into_body();
            let first = begun.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(first, b"half".as_slice());
            let asked = sender.send_request(request("GET", "/wait").body(nothing()).unwrap());
            let asked = tokio::spawn(asked);
            while node.in_flight("pair") < 6 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // From here on it ends by itself.
            node.vouch_for(SHORT);
            assert_eq!(asked.await.unwrap().unwrap().status().as_u16(), 503);
            assert!(begun.frame().await.unwrap().is_err(), "an end that looks whole");
        });
        assert_eq!(asking.answer().status(), 503);
        // It may have been done: nobody is invited to ask once more.
        assert_eq!(paying.answer().status(), 502);
        assert!(ended(&mut half));
        assert!(tunnels.iter_mut().all(ended));
        until("nothing is left there", || node.in_flight("pair") + node.in_flight("tcp") == 0);
        assert_eq!((node.cut("pair"), node.cut("tcp"), node.cut("web")), (6, 1, 0));
        // All of it may have seen the clock before the guard could tell anybody.
        until("the guard has looked", || node.lease().ended == 1);
        let mut notices = Vec::new();
        until("it has told", || {
            notices.extend(node.notices());
            notices.len() >= 2
        });
        let [begun, ended, ..] = &notices[..] else { panic!("{notices:?}") };
        let expected = *begun == Notice::LeaseBegun
            && matches!(ended, Notice::LeaseEnded { open } if *open <= 7);
        assert!(expected, "{notices:?}");
        assert_eq!(node.lease(), LeaseStats { left: None, ended: 1 });
        assert_eq!(asking.ask(get("/")).status(), 503);
        // What needs no word has not noticed.
        talk(&mut free_tunnel);
        go.store(1, SeqCst);
        assert_eq!(free.answer().text(), "late");
        node.vouch_for(LONG);
        assert_eq!(asking.ask(get("/")).text(), "served");
    }
}

#[test]
fn a_lease_that_is_renewed_in_time_ends_nothing() {
    let ((backend, go), echo) = (backend(), echo());
    let node = Node::start(2, &backend, &echo);
    let first = now() + Duration::from_secs(1);
    node.proxy.vouch(first);
    node.vouch_for(LONG);
    let mut asking = Wire::connect(node.pair);
    asking.send(get("/wait"));
    let mut tunnels = [tunnel(node.pair, UPGRADE), tunnel(node.tcp, "")];
    until("the first end has passed", || {
        tunnels.iter_mut().for_each(talk);
        first + SHORT < now()
    });
    go.store(1, SeqCst);
    assert_eq!(asking.answer().text(), "late");
    assert_eq!(node.lease().ended, 0);
    // A shorter one counts as well, and so does one that is given up.
    node.vouch_for(SHORT);
    assert!(tunnels.iter_mut().all(ended));
    node.vouch_for(LONG);
    let mut late = [tunnel(node.pair, UPGRADE), tunnel(node.tcp, "")];
    node.proxy.vouch(OVER);
    assert!(late.iter_mut().all(ended));
    assert_eq!((node.lease().ended, node.cut("pair") + node.cut("tcp")), (2, 4));
}

#[test]
fn without_its_guard_a_quiet_connection_would_outlive_the_lease_but_not_use_it() {
    let ((backend, _go), echo) = (backend(), echo());
    let node = Node::unguarded(1, &backend, &echo);
    node.vouch_for(LONG);
    let (mut quiet, mut talking) = (tunnel(node.tcp, ""), tunnel(node.tcp, ""));
    node.proxy.vouch(OVER);
    assert_eq!(node.says("y"), b"", "the clock alone refuses what is new");
    // Bytes make the worker look: they go nowhere.
    talking.try_send("z").ok();
    assert!(ended(&mut talking));
    assert!(echo.requests().iter().all(|piece| piece.body == b"x"));
    until("the talking one is gone", || node.in_flight("tcp") == 1);
    assert_eq!(node.lease().ended, 0, "nobody has woken the quiet one");
    // Whoever vouches anew finds that an end was missed.
    node.vouch_for(LONG);
    assert!(ended(&mut quiet));
    assert_eq!(node.lease().ended, 1);
    talk(&mut tunnel(node.tcp, ""));
}

#[test]
fn a_guard_that_begins_late_ends_what_has_ended() {
    let ((backend, _go), echo) = (backend(), echo());
    let node = Node::unguarded(1, &backend, &echo);
    node.vouch_for(LONG);
    let mut quiet = tunnel(node.tcp, "");
    node.proxy.vouch(OVER);
    let guard = node.proxy.guard();
    let watching = std::thread::spawn(move || guard.watch());
    assert!(ended(&mut quiet));
    node.proxy.stop();
    watching.join().unwrap();
}

#[test]
fn a_service_that_needs_a_word_from_now_on_keeps_nothing_that_came_without() {
    let ((backend, _go), echo) = (backend(), echo());
    let node = Node::start(2, &backend, &echo);
    let mut free = tunnel(node.web, UPGRADE);
    let mut asking = Wire::connect(node.web);
    asking.send(get("/wait"));
    until("it is under way", || node.in_flight("web") == 2);
    let mut services = node.services.clone();
    services[2].vouched = true;
    let applying = node.proxy.apply(Table { generation: 2, services }, BTreeMap::new()).unwrap();
    applying.wait(LIMIT).unwrap();
    assert!(ended(&mut free));
    assert_eq!(asking.answer().status(), 503);
}
