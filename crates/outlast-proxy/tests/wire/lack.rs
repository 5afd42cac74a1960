//! What clients may hold without asking for anything, and what happens when the proxy itself lacks something.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use outlast_proxy::stats::ErrorKind;
use outlast_proxy::table::{BackendState, Protocol};

use crate::h2::{known, known_to_end, nothing, request, run, text};
use crate::harness::{Backend, Gate, Wire, ask, get, ok, pause, until};
use crate::tls::Authority;

/// Whether the rest of a test may run here: it needs a process of its own, and this is it. Otherwise runs it in one.
fn alone(test: &str) -> bool {
    const ALONE: &str = "OUTLAST_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let ran = Command::new(this).args([test, "--exact"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success() && said.contains("1 passed"), "{said}{ran:?}");
    false
}

#[test]
fn a_lack_of_descriptors_is_not_blamed_on_a_backend() {
    if !alone("lack::a_lack_of_descriptors_is_not_blamed_on_a_backend") {
        return;
    }
    use rustix::net::{AddressFamily, SocketType, connect, socket};
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = Rlimit { current: Some(200), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |service| service.eject.failures = 1);
    let mut client = Wire::connect(gate.address);
    until("it is accepted", || gate.proxy.connections() == 1);
    let late = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let hoard: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    for _ in 0..3 {
        assert_eq!(client.ask(get("/")).status(), 503);
    }
    // Nor can anybody be let in: whoever comes waits.
    connect(&late, &gate.address).unwrap();
    assert_eq!(gate.own_errors(ErrorKind::Limit), 3);
    assert_eq!(gate.errors(0, ErrorKind::Connect), 0);
    assert!(!gate.stats().backends[0].ejected);
    assert!(gate.notices().is_empty());
    drop(hoard);
    assert_eq!(client.ask(get("/")).text(), "b");
    assert_eq!(Wire::over(late.into()).ask(get("/")).text(), "b");
}

/// How often the worker has gone to sleep.
fn pauses_of_the_worker() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let statuses = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("status")).ok());
    let worker = statuses.into_iter().find(|s| s.starts_with("Name:\tworker-0\n")).unwrap();
    let line = worker.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn a_proxy_header_that_is_not_complete_costs_nothing_while_it_is_waited_for() {
    if !alone("lack::a_proxy_header_that_is_not_complete_costs_nothing_while_it_is_waited_for") {
        return;
    }
    let backend = Backend::answering(|r| ok(r.header("x-forwarded-for").unwrap_or("-")));
    let gate = Gate::http(&[backend.address], |service| {
        service.accept_proxy = true;
        service.trusted = vec![("127.0.0.0".parse().unwrap(), 8)];
    });
    let mut clients: Vec<Wire> = (0..20).map(|_| Wire::connect(gate.address)).collect();
    clients.iter_mut().for_each(|client| client.send("PROXY TCP4 192.0.2.7 198."));
    until("all are there", || gate.proxy.connections() == 20);
    let before = pauses_of_the_worker();
    pause(Duration::from_millis(300));
    let woken = pauses_of_the_worker() - before;
    assert!(woken < 20, "woken {woken} times for nothing");
    for client in &mut clients {
        assert_eq!(client.ask(format!("51.100.1 4711 80\r\n{}", get("/"))).text(), "192.0.2.7");
    }
}

#[test]
fn every_client_counts_from_the_moment_when_it_is_accepted() {
    let authority = Authority::new();
    for (protocol, tls) in [(Protocol::Http, false), (Protocol::Http, true), (Protocol::Tcp, false)]
    {
        let backend = Backend::start(|mut stage| {
            stage.say("hello");
            stage.wire.rest().ok();
        });
        let gate = Gate::start(protocol, 2, &[backend.address], |service| {
            service.limits.connections = 3;
            if tls {
                service.certificates = vec![authority.issue(&["shop"])];
            }
        });
        // None of them says a word, in whatever language.
        let silent: Vec<Wire> = (0..3).map(|_| Wire::connect(gate.address)).collect();
        until("all are there", || gate.stats().connections == 3);
        let mut another = Wire::connect(gate.address);
        assert_eq!(another.rest().unwrap_or_default(), b"", "{protocol:?} {tls}");
        assert_eq!(gate.own_errors(ErrorKind::Limit), 1);
        drop(silent);
        until("they have gone", || gate.stats().connections == 0);
    }
}

#[test]
fn http2_clients_count_like_any_other() {
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |service| service.limits.connections = 2);
    run(async {
        let mut first = known(gate.address).await;
        let _second = known(gate.address).await;
        while gate.stats().connections < 2 {
            tokio::task::yield_now().await;
        }
        let (_third, refused) = known_to_end(gate.address).await;
        refused.await.unwrap().ok();
        assert_eq!(gate.own_errors(ErrorKind::Limit), 1);
        let asked = request("GET", "/").body(nothing()).unwrap();
        assert_eq!(text(first.send_request(asked).await.unwrap()).await, "b");
    });
}

#[test]
fn a_http2_client_that_asks_nothing_is_let_go_after_the_time_for_a_head() {
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |service| {
        service.timeouts.head = Duration::from_millis(100);
        service.timeouts.idle = Duration::from_secs(300);
    });
    // One that answers pings, and one that says no more than it must.
    run(async {
        let (_sender, ended) = known_to_end(gate.address).await;
        assert!(ended.await.unwrap().is_ok(), "told, not broken off");
    });
    let mut raw = Wire::connect(gate.address);
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    raw.rest().ok();
    until("both have gone", || gate.proxy.connections() == 0);
}

#[test]
fn a_http2_client_is_idle_only_while_it_has_no_stream() {
    let go = Arc::new(AtomicUsize::new(0));
    let seen = go.clone();
    let backend = Backend::start(move |mut stage| {
        while let Some(request) = stage.next() {
            if request.line() == "GET /late" {
                until("told to go on", || seen.load(SeqCst) > 0);
            }
            stage.say(ok("b"));
        }
    });
    let gate = Gate::http(&[backend.address], |service| {
        service.timeouts.idle = Duration::from_millis(100);
    });
    run(async {
        let (mut busy, busy_ended) = known_to_end(gate.address).await;
        let asked = request("GET", "/late").body(nothing()).unwrap();
        let answering = tokio::spawn(busy.send_request(asked));
        while backend.count() == 0 {
            tokio::task::yield_now().await;
        }
        // As long as it takes until an idle one is let go, the busy one stays.
        let begun = Instant::now();
        let (mut idle, idle_ended) = known_to_end(gate.address).await;
        let asked = request("GET", "/").body(nothing()).unwrap();
        assert_eq!(text(idle.send_request(asked).await.unwrap()).await, "b");
        assert!(idle_ended.await.unwrap().is_ok());
        assert!(begun.elapsed() >= Duration::from_millis(100) && !busy_ended.is_finished());
        go.store(1, SeqCst);
        assert_eq!(text(answering.await.unwrap().unwrap()).await, "b");
        assert!(busy_ended.await.unwrap().is_ok());
    });
    until("both have gone", || gate.proxy.connections() == 0);
}

#[test]
fn whoever_may_serve_now_is_asked_before_each_try() {
    let go = Arc::new(AtomicUsize::new(0));
    let seen = go.clone();
    let first = Backend::start(move |mut stage| {
        stage.next();
        until("told to break off", || seen.load(SeqCst) > 0);
    });
    let (stale, fresh) = (Backend::named("stale"), Backend::named("fresh"));
    let gate = Gate::http(&[first.address, stale.address], |service| service.eject.failures = 0);
    let mut client = Wire::connect(gate.address);
    client.send(get("/"));
    until("the first try is under way", || first.count() == 1);
    gate.change(|service| {
        let mut newcomer = service.backends[1].clone();
        (newcomer.name, newcomer.address) = ("fresh".to_owned(), fresh.address);
        service.backends[0].state = BackendState::Draining;
        service.backends[1].state = BackendState::Down;
        service.backends.push(newcomer);
    });
    go.store(1, SeqCst);
    assert_eq!(client.answer().text(), "fresh");
    assert_eq!((first.count(), stale.count()), (1, 0));
}

#[test]
fn whoever_may_serve_now_is_asked_after_the_queue() {
    let go = Arc::new(AtomicUsize::new(0));
    let seen = go.clone();
    let (old, fresh) = (
        Backend::start(move |mut stage| {
            while stage.next().is_some() {
                until("told to answer", || seen.load(SeqCst) > 0);
                stage.say(ok("old"));
            }
        }),
        Backend::named("fresh"),
    );
    let gate = Gate::http(&[old.address, fresh.address], |service| {
        service.backends[1].state = BackendState::Down;
        service.limits.requests = 1;
        service.timeouts.queue = Duration::from_secs(300);
    });
    let mut first = Wire::connect(gate.address);
    first.send(get("/"));
    until("the only place is taken", || old.count() == 1);
    let mut second = Wire::connect(gate.address);
    second.send(get("/"));
    // A third that finds the queue full proves that the second is in it.
    gate.change(|service| service.limits.queue = 1);
    until("the second is in the queue", || ask(&gate, get("/")).status() == 503);
    gate.change(|service| {
        service.backends[0].state = BackendState::Draining;
        service.backends[1].state = BackendState::Up;
    });
    go.store(1, SeqCst);
    assert_eq!((first.answer().text(), second.answer().text()), ("old".into(), "fresh".into()));
    assert_eq!(old.count(), 1);
}

#[test]
fn a_tls_client_that_says_nothing_does_not_hold_up_a_stop() {
    let authority = Authority::new();
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |service| {
        service.certificates = vec![authority.issue(&["shop"])];
        service.timeouts.head = Duration::from_secs(300);
    });
    let address: SocketAddr = gate.address;
    let mut silent = Wire::connect(address);
    until("it is there", || gate.proxy.connections() == 1);
    let begun = Instant::now();
    gate.proxy.drain();
    assert_eq!(silent.rest().unwrap_or_default(), b"");
    until("it has gone", || gate.proxy.is_drained());
    assert!(begun.elapsed() < Duration::from_secs(2));
}
