//! Who gets a request, who gets it next, and what is never sent twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use outlast_proxy::Notice;
use outlast_proxy::stats::ErrorKind;
use outlast_proxy::table::{BackendState, Balance, Service};

use crate::harness::{
    Backend, Gate, Stage, Wire, ask, get, nobody, ok, pause, status, until, with_body,
};

/// Nothing is ejected, however it fails.
fn patient(service: &mut Service) {
    service.eject.failures = 0;
    service.eject.rate_5xx = None;
}

fn quick(service: &mut Service) {
    patient(service);
    service.retry.backoff = Duration::from_millis(1);
}

/// Takes a request and closes without an answer.
fn mute() -> Backend {
    Backend::start(|mut stage| {
        stage.next();
    })
}

/// Takes requests and never answers.
fn frozen() -> Backend {
    Backend::start(|mut stage| while stage.next().is_some() {})
}

fn failing(status_line: &'static str) -> Backend {
    Backend::answering(move |_| status(status_line, "sorry"))
}

/// Answers, and closes its connections a little later, each time after another tiny delay.
fn fickle() -> Backend {
    Backend::start(|mut stage| {
        let micros = (stage.wire.number as u64 * 7919) % 3000;
        if stage.next().is_some() {
            stage.say(ok("fickle"));
            pause(Duration::from_micros(micros));
        }
    })
}

#[test]
fn a_get_survives_a_backend_that_closes_idle_connections() {
    let backend = fickle();
    let gate = Gate::http(&[backend.address], patient);
    let mut client = Wire::connect(gate.address);
    for n in 0..500 {
        let answer = client.ask(get("/"));
        assert_eq!(answer.status(), 200, "request {n}: {answer:?}");
        pause(Duration::from_micros((n * 131) % 2500));
    }
    assert_eq!(
        gate.errors(0, ErrorKind::Reset),
        0,
        "a stale connection is no fault of the backend"
    );
}

#[test]
fn a_post_is_never_sent_twice() {
    let backend = fickle();
    let gate = Gate::http(&[backend.address], patient);
    for n in 0..500_u64 {
        let answer = ask(&gate, with_body("POST", &format!("/{n}"), b"pay"));
        assert!(matches!(answer.status(), 200 | 502), "request {n}: {answer:?}");
        pause(Duration::from_micros((n * 131) % 2500));
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for request in backend.requests() {
        *counts.entry(request.line()).or_default() += 1;
    }
    assert!(counts.values().all(|&count| count == 1), "{counts:?}");
}

#[test]
fn a_post_meets_no_connection_that_has_been_idle_for_long() {
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], patient);
    assert_eq!(ask(&gate, with_body("POST", "/", b"x")).status(), 200);
    pause(Duration::from_millis(1100));
    assert_eq!(ask(&gate, with_body("POST", "/", b"x")).status(), 200);
    assert_eq!(backend.connections(), 2);
    assert_eq!(ask(&gate, get("/")).status(), 200);
    assert_eq!(backend.connections(), 2, "a GET takes the pooled one");
}

#[test]
fn a_refused_connection_leads_to_another_backend() {
    let backend = Backend::named("b");
    let gate = Gate::http(&[nobody(), backend.address], quick);
    for _ in 0..10 {
        assert_eq!(ask(&gate, get("/")).text(), "b");
        assert_eq!(ask(&gate, with_body("POST", "/", b"x")).text(), "b", "nothing of it was sent");
    }
    assert_eq!(gate.errors(0, ErrorKind::Connect), gate.stats().retries);
    assert!(gate.stats().retries >= 9, "every other request went to the dead one first");
    assert!(gate.notices().iter().any(|n| matches!(n, Notice::Suspect { .. })));
}

#[test]
fn a_reset_before_the_answer_is_retried_for_a_get_only() {
    let (bad, good) = (mute(), Backend::named("good"));
    let gate = Gate::http(&[bad.address, good.address], quick);
    for _ in 0..6 {
        assert_eq!(ask(&gate, get("/")).text(), "good");
    }
    let mut statuses: Vec<u16> =
        (0..6).map(|_| ask(&gate, with_body("POST", "/", b"x")).status()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 502, 502, 502]);
    assert_eq!(good.requests().iter().filter(|r| r.line() == "POST /").count(), 3);
}

#[test]
fn a_reset_in_the_middle_of_an_answer_is_not_retried() {
    let broken = Backend::start(|mut stage| {
        stage.next();
        stage.say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        stage.wire.reset();
    });
    let gate = Gate::http(&[broken.address], quick);
    let mut client = Wire::connect(gate.address);
    client.send(get("/"));
    let got = String::from_utf8(client.rest().unwrap()).unwrap();
    // The reset may overtake the half; what must not come is a second answer, or an end that looks whole.
    assert!(got.matches("HTTP/1.1").count() <= 1, "{got}");
    assert!(got.ends_with("half") || got.contains("502"), "{got}");
    if got.ends_with("half") {
        assert_eq!(broken.count(), 1);
    }
}

#[test]
fn a_frozen_backend_is_left_after_the_try_timeout() {
    let (bad, good) = (frozen(), Backend::named("good"));
    let gate = Gate::http(&[bad.address, good.address], |service| {
        quick(service);
        service.retry.try_timeout = Duration::from_millis(100);
    });
    for _ in 0..4 {
        assert_eq!(ask(&gate, get("/")).text(), "good");
    }
    assert_eq!(gate.errors(0, ErrorKind::Timeout), 2);
    // A POST that may have arrived is not repeated.
    let mut statuses = [0, 0].map(|_| ask(&gate, with_body("POST", "/", b"x")).status());
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 504]);
}

#[test]
fn a_request_leaves_a_frozen_backend_that_the_agent_calls_down() {
    let (bad, good) = (frozen(), Backend::named("good"));
    let gate = Gate::http(&[bad.address, good.address], quick);
    let mut client = Wire::connect(gate.address);
    client.send(get("/"));
    until("the frozen one has the request", || bad.count() == 1);
    gate.set(0, BackendState::Down);
    assert_eq!(client.answer().text(), "good", "long before the try timeout of 10 s");
}

#[test]
fn a_5xx_is_retried_for_a_get_and_not_for_a_post() {
    for line in ["500 Internal Server Error", "502 Bad Gateway", "503 Busy", "504 Late"] {
        let (bad, good) = (failing(line), Backend::named("good"));
        let gate = Gate::http(&[bad.address, good.address], quick);
        let gets = [0; 4].map(|_| ask(&gate, get("/")).status());
        assert_eq!(gets, [200; 4], "{line}");
        let posts = [0; 4].map(|_| ask(&gate, with_body("POST", "/", b"x")).text());
        assert_eq!(posts.iter().filter(|t| *t == "good").count(), 2, "{posts:?}");
        assert_eq!(posts.iter().filter(|t| *t == "sorry").count(), 2, "{posts:?}");
        assert!(gate.errors(0, ErrorKind::Status5xx) >= 4);
    }
}

#[test]
fn a_5xx_that_nobody_can_better_is_passed_on() {
    let (one, two) = (failing("503 Busy"), failing("503 Busy"));
    let gate = Gate::http(&[one.address, two.address], quick);
    let answer = ask(&gate, get("/"));
    assert_eq!((answer.status(), answer.text().as_str()), (503, "sorry"));
    assert_eq!((one.count(), two.count()), (1, 1));
    let alone = Gate::http(&[one.address], quick);
    assert_eq!(ask(&alone, get("/")).text(), "sorry");
    // 501 says that no other backend would do better.
    let odd = failing("501 Not Implemented");
    let gate = Gate::http(&[odd.address, two.address], quick);
    let seen = [0, 0].map(|_| ask(&gate, get("/")).status());
    assert!(seen.contains(&501), "{seen:?}");
}

#[test]
fn a_small_body_is_replayed_whole_and_a_large_one_is_not() {
    let bad = Backend::start(|mut stage| {
        // Reads the head and a little of the body, then closes.
        stage.wire.head().ok();
        stage.wire.exactly(1000).ok();
    });
    let good = Backend::answering(|request| ok(&request.body.len().to_string()));
    let gate = Gate::http(&[bad.address, good.address], quick);
    let body = |size: usize| -> Vec<u8> { (0..size).map(|i| (i % 251) as u8).collect() };
    let small = body(30 << 10);
    for _ in 0..4 {
        assert_eq!(ask(&gate, with_body("PUT", "/", &small)).text(), (30 << 10).to_string());
    }
    assert!(good.requests().iter().all(|r| r.body == small));
    // In this harness the client reads only after it has sent all: the proxy has long given up by then.
    let large = body(200 << 10);
    let statuses = [0, 0].map(|_| {
        let mut client = Wire::connect(gate.address);
        client.try_send(with_body("PUT", "/", &large)).ok();
        client.try_answer().map_or(0, |a| a.status())
    });
    assert!(statuses.contains(&200) && statuses.contains(&502), "{statuses:?}");
    assert_eq!(good.requests().last().unwrap().body.len(), 200 << 10);
    assert_eq!(good.count(), 5);
}

#[test]
fn a_chunked_body_is_replayed_whole() {
    let (bad, good) = (mute(), Backend::answering(|r| ok(&r.text())));
    let gate = Gate::http(&[bad.address, good.address], quick);
    for _ in 0..4 {
        let mut client = Wire::connect(gate.address);
        client.send(
            "PUT / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        );
        client.send("6\r\n world\r\n0\r\n\r\n");
        assert_eq!(client.answer().text(), "hello world");
    }
}

#[test]
fn the_budget_ends_retries() {
    let (one, two) = (mute(), mute());
    let gate = Gate::http(&[one.address, two.address], |service| {
        quick(service);
        service.retry.attempts = 2;
        service.retry.budget = 0.0;
    });
    for _ in 0..400 {
        assert_eq!(ask(&gate, get("/")).status(), 502);
    }
    let stats = gate.stats();
    assert_eq!(stats.retries + stats.retries_denied, 400);
    assert!((100..300).contains(&stats.retries), "{stats:?}");
    assert_eq!(one.count() + two.count(), 400 + usize::try_from(stats.retries).unwrap());
}

#[test]
fn attempts_are_counted_and_later_ones_wait() {
    let backends = [mute(), mute(), mute(), mute(), mute()];
    let addresses = backends.each_ref().map(|b| b.address);
    let gate = Gate::http(&addresses, |service| {
        patient(service);
        service.retry.attempts = 4;
        service.retry.backoff = Duration::from_millis(60);
    });
    let begun = std::time::Instant::now();
    assert_eq!(ask(&gate, get("/")).status(), 502);
    // The first retry goes at once, the second waits 30 to 60 ms, the third 60 to 120 ms.
    assert!(begun.elapsed() >= Duration::from_millis(90), "{:?}", begun.elapsed());
    let counts: Vec<usize> = backends.iter().map(Backend::count).collect();
    assert_eq!(counts.iter().sum::<usize>(), 4);
    assert!(counts.iter().all(|&c| c <= 1), "nobody twice while another is left: {counts:?}");
    let once = Gate::http(&addresses, |service| {
        patient(service);
        service.retry.attempts = 1;
    });
    assert_eq!(ask(&once, get("/")).status(), 502);
    assert_eq!(once.stats().retries, 0);
}

/// A backend that fails as long as it is told to.
fn switched() -> (Backend, Arc<AtomicBool>) {
    let bad = Arc::new(AtomicBool::new(true));
    let seen = bad.clone();
    let backend = Backend::start(move |mut stage: Stage| {
        while stage.next().is_some() && !seen.load(SeqCst) {
            stage.say(ok("switched"));
        }
    });
    (backend, bad)
}

#[test]
fn failures_in_a_row_eject_and_a_trial_ends_it() {
    let ((flaky, bad), good) = (switched(), Backend::named("good"));
    let gate = Gate::http(&[flaky.address, good.address], |service| {
        service.retry.backoff = Duration::from_millis(1);
        service.eject.failures = 3;
        service.eject.time = Duration::from_millis(300);
    });
    until("it is ejected", || {
        assert_eq!(ask(&gate, get("/")).text(), "good");
        gate.stats().backends[0].ejected
    });
    assert_eq!(flaky.count(), 3);
    assert!(gate.notices().iter().any(|n| matches!(n, Notice::Ejected { .. })));
    for _ in 0..20 {
        assert_eq!(ask(&gate, get("/")).text(), "good");
    }
    bad.store(false, SeqCst);
    until("a trial lets it back in", || {
        assert_eq!(ask(&gate, get("/")).status(), 200);
        !gate.stats().backends[0].ejected
    });
    assert!(gate.notices().iter().any(|n| matches!(n, Notice::Returned { .. })));
    let texts: Vec<String> = (0..10).map(|_| ask(&gate, get("/")).text()).collect();
    assert_eq!(texts.iter().filter(|t| *t == "switched").count(), 5, "{texts:?}");
}

#[test]
fn a_trial_is_not_lost_on_a_request_that_goes_elsewhere() {
    // Of many backends the ejected one is rarely the next in turn.
    let (flaky, bad) = switched();
    let others: Vec<Backend> = (0..5).map(|_| Backend::named("good")).collect();
    let mut addresses = vec![flaky.address];
    addresses.extend(others.iter().map(|b| b.address));
    let gate = Gate::http(&addresses, |service| {
        service.retry.backoff = Duration::from_millis(1);
        service.eject.failures = 1;
        service.eject.time = Duration::from_millis(50);
    });
    until("it is ejected", || {
        assert_eq!(ask(&gate, get("/")).text(), "good");
        gate.stats().backends[0].ejected
    });
    bad.store(false, SeqCst);
    pause(Duration::from_millis(60));
    let begun = std::time::Instant::now();
    until("a trial lets it back in", || {
        assert_eq!(ask(&gate, get("/")).status(), 200);
        !gate.stats().backends[0].ejected
    });
    assert!(begun.elapsed() < Duration::from_secs(5), "a lost trial blocks the next for 10 s");
}

#[test]
fn an_upgrade_can_be_the_trial() {
    let bad = Arc::new(AtomicBool::new(true));
    let seen = bad.clone();
    let flaky = Backend::start(move |mut stage| {
        if stage.next().is_some() && !seen.load(SeqCst) {
            stage.say("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
            stage.wire.rest().ok();
        }
    });
    let other = Backend::named("other");
    let gate = Gate::http(&[flaky.address, other.address], |service| {
        service.eject.failures = 1;
        service.eject.time = Duration::from_millis(50);
    });
    let upgrade = "GET / HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    until("it is ejected", || {
        ask(&gate, get("/"));
        gate.stats().backends[0].ejected
    });
    bad.store(false, SeqCst);
    let mut open = Vec::new();
    until("an upgrade lets it back in", || {
        let mut client = Wire::connect(gate.address);
        client.send(upgrade);
        client.head().unwrap();
        open.push(client);
        !gate.stats().backends[0].ejected
    });
}

#[test]
fn a_share_of_5xx_ejects() {
    let (bad, good) = (failing("500 No"), Backend::named("good"));
    let gate = Gate::http(&[bad.address, good.address], |service| {
        service.retry.on_5xx = false;
        service.eject.rate_min = 10;
        service.eject.time = Duration::from_secs(60);
    });
    until("it is ejected", || {
        ask(&gate, get("/"));
        gate.stats().backends[0].ejected
    });
    assert_eq!(bad.count(), 10);
    assert_eq!([0; 10].map(|_| ask(&gate, get("/")).status()), [200; 10]);
}

#[test]
fn the_last_backend_is_never_ejected() {
    let (one, two) = (mute(), mute());
    let gate = Gate::http(&[one.address, two.address], |service| {
        service.retry.attempts = 1;
        service.eject.failures = 2;
    });
    for _ in 0..20 {
        ask(&gate, get("/"));
    }
    let ejected = gate.stats().backends.iter().filter(|b| b.ejected).count();
    assert_eq!(ejected, 1);
}

#[test]
fn a_client_that_stalls_is_no_fault_of_the_backend() {
    let backends = [0, 1].map(|_| Backend::answering(|r| ok(&r.text())));
    let gate = Gate::http(&backends.each_ref().map(|b| b.address), |service| {
        service.eject.failures = 1;
        service.timeouts.body = Duration::from_millis(100);
    });
    for _ in 0..4 {
        // The body never comes.
        let answer = ask(&gate, "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 9\r\n\r\nhalf");
        assert_eq!(answer.status(), 408, "{answer:?}");
        // A part of it comes, and then nothing.
        let answer = ask(
            &gate,
            "PUT / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        );
        assert_eq!(answer.status(), 408, "{answer:?}");
    }
    assert!(gate.stats().backends.iter().all(|b| !b.ejected), "{:?}", gate.stats());
    assert_eq!(gate.own_errors(ErrorKind::BadRequest), 8);
    assert!(gate.notices().is_empty());
}

#[test]
fn a_client_that_does_not_read_is_no_fault_of_the_backend() {
    let backends = [0, 1].map(|_| Backend::answering(|_| ok(&"x".repeat(32 << 20))));
    let gate = Gate::http(&backends.each_ref().map(|b| b.address), |service| {
        service.eject.failures = 1;
        service.timeouts.body = Duration::from_millis(100);
    });
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Wire::connect(gate.address);
        client.send(get("/"));
        clients.push(client);
    }
    until("all are served", || gate.stats().in_flight == 4);
    until("they are given up", || gate.proxy.connections() == 0);
    assert!(gate.stats().backends.iter().all(|b| !b.ejected), "{:?}", gate.stats());
    assert_eq!((0..2).map(|i| gate.errors(i, ErrorKind::ClientGone)).sum::<u64>(), 4);
}

#[test]
fn with_all_down_health_is_ignored_or_not_as_the_table_says() {
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], quick);
    gate.set(0, BackendState::Down);
    assert_eq!(ask(&gate, get("/")).text(), "b", "a wrong guess is better than no answer");
    gate.change(|service| service.panic = None);
    let answer = ask(&gate, get("/"));
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("1")));
    assert_eq!(gate.own_errors(ErrorKind::NoBackend), 1);
}

#[test]
fn a_backend_in_slow_start_gets_a_small_share() {
    let (old, new) = (Backend::named("old"), Backend::named("new"));
    let gate = Gate::http(&[old.address, new.address], |service| {
        service.backends[1].state = BackendState::Unknown;
        service.slow_start = Duration::from_secs(2);
    });
    for _ in 0..20 {
        assert_eq!(ask(&gate, get("/")).text(), "old", "what is not probed yet gets nothing");
    }
    // The old one grows up.
    pause(Duration::from_millis(2100));
    gate.set(1, BackendState::Up);
    let begun = std::time::Instant::now();
    let mut all = 0;
    while all < 400 && begun.elapsed() < Duration::from_millis(400) {
        ask(&gate, get("/"));
        all += 1;
    }
    // Half would be even; of that it gets a tenth to a fifth.
    assert!(new.count() * 10 < all * 3, "{} of {all}", new.count());
}

#[test]
fn limits_per_backend_move_requests_and_then_refuse_them() {
    let (one, two) = (frozen(), frozen());
    let gate = Gate::http(&[one.address, two.address], |service| {
        patient(service);
        service.limits.per_backend = 2;
    });
    let mut clients: Vec<Wire> = (0..4).map(|_| Wire::connect(gate.address)).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    until("all places are taken", || one.count() == 2 && two.count() == 2);
    assert_eq!(ask(&gate, get("/")).status(), 503);
}

#[test]
fn beyond_a_services_limit_requests_queue_and_beyond_the_queue_they_are_refused() {
    let go = Arc::new(AtomicBool::new(false));
    let seen = go.clone();
    let backend = Backend::start(move |mut stage| {
        while stage.next().is_some() {
            until("told to go on", || seen.load(SeqCst));
            stage.say(ok("late"));
        }
    });
    let gate = Gate::http(&[backend.address], |service| {
        patient(service);
        service.limits.requests = 2;
        service.limits.queue = 3;
        service.timeouts.queue = Duration::from_secs(15);
    });
    let mut clients: Vec<Wire> = (0..5).map(|_| Wire::connect(gate.address)).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    until("two are served", || backend.count() == 2);
    // Five have come; who comes now finds the queue full once those three stand in it.
    until("the queue is full", || {
        let mut client = Wire::connect(gate.address);
        client.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        client.send(get("/"));
        client.try_answer().is_ok_and(|a| a.status() == 503)
    });
    assert!(gate.own_errors(ErrorKind::Limit) >= 1);
    assert_eq!(backend.count(), 2);
    go.store(true, SeqCst);
    let answered =
        clients.iter_mut().filter_map(|c| c.try_answer().ok()).filter(|a| a.status() == 200);
    assert!(answered.count() >= 2);
    assert_eq!(ask(&gate, get("/")).status(), 200, "places are given back");
}

#[test]
fn a_request_waits_in_the_queue_only_so_long() {
    let backend = frozen();
    let gate = Gate::http(&[backend.address], |service| {
        patient(service);
        service.limits.requests = 1;
        service.timeouts.queue = Duration::from_millis(50);
    });
    let mut first = Wire::connect(gate.address);
    first.send(get("/"));
    until("it is served", || backend.count() == 1);
    assert_eq!(ask(&gate, get("/")).status(), 503);
}

#[test]
fn a_service_has_only_so_many_connections() {
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |service| service.limits.connections = 2);
    let mut kept = [0, 1].map(|_| Wire::connect(gate.address));
    for client in &mut kept {
        assert_eq!(client.ask(get("/")).status(), 200);
    }
    let mut third = Wire::connect(gate.address);
    third.try_send(get("/")).ok();
    assert!(third.try_answer().is_err());
    drop(kept);
    until("a place is free", || {
        let mut client = Wire::connect(gate.address);
        client.try_send(get("/")).ok();
        client.try_answer().is_ok_and(|a| a.status() == 200)
    });
}

#[test]
fn a_draining_backend_keeps_what_it_has_and_gets_nothing_new() {
    let go = Arc::new(AtomicBool::new(false));
    let seen = go.clone();
    let leaving = Backend::start(move |mut stage| {
        while stage.next().is_some() {
            until("told to go on", || seen.load(SeqCst));
            stage.say(ok("leaving"));
        }
    });
    let staying = Backend::named("staying");
    let gate = Gate::http(&[leaving.address, staying.address], patient);
    let mut clients: Vec<Wire> = (0..2).map(|_| Wire::connect(gate.address)).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    until("it has its request", || leaving.count() == 1);
    gate.set(0, BackendState::Draining);
    for _ in 0..10 {
        assert_eq!(ask(&gate, get("/")).text(), "staying");
    }
    go.store(true, SeqCst);
    let mut texts: Vec<String> = clients.iter_mut().map(|c| c.answer().text()).collect();
    texts.sort_unstable();
    assert_eq!(texts, ["leaving", "staying"]);
    assert_eq!(leaving.count(), 1);
}

#[test]
fn round_robin_is_even() {
    let backends = [0; 3].map(|_| Backend::named("b"));
    let gate = Gate::http(&backends.each_ref().map(|b| b.address), patient);
    for _ in 0..300 {
        ask(&gate, get("/"));
    }
    assert_eq!(backends.each_ref().map(Backend::count), [100; 3]);
}

#[test]
fn a_hash_keeps_to_its_backend_and_moves_only_when_that_is_gone() {
    let names = ["a", "b", "c"];
    for balance in [
        Balance::HashPath,
        Balance::HashHeader("X-Tenant".to_owned()),
        Balance::HashCookie("session".to_owned()),
    ] {
        let backends = names.map(Backend::named);
        let gate = Gate::http(&backends.each_ref().map(|b| b.address), |service| {
            patient(service);
            service.balance = balance.clone();
        });
        let place = |n: usize| {
            let request = format!(
                "GET /{n} HTTP/1.1\r\nHost: shop\r\nX-Tenant: t{n}\r\nCookie: a=b; session=s{n}\r\n\r\n"
            );
            ask(&gate, request).text()
        };
        let before: Vec<String> = (0..60).map(place).collect();
        assert!(names.iter().all(|n| before.iter().any(|b| b == n)), "{balance:?} {before:?}");
        assert_eq!((0..60).map(place).collect::<Vec<_>>(), before);
        gate.set(1, BackendState::Down);
        for (n, before) in before.iter().enumerate() {
            let after = place(n);
            assert!(after == *before || before == "b", "{balance:?} {n}: {before} -> {after}");
            assert_ne!(after, "b");
        }
    }
}

#[test]
fn one_client_keeps_to_its_backend_by_address() {
    let backends = ["a", "b", "c"].map(Backend::named);
    let gate = Gate::http(&backends.each_ref().map(|b| b.address), |service| {
        service.balance = Balance::HashIp;
    });
    let first = ask(&gate, get("/")).text();
    for n in 0..20 {
        assert_eq!(ask(&gate, get(&format!("/{n}"))).text(), first);
    }
}

#[test]
fn the_passive_side_gets_nothing_and_its_tunnels_are_reset() {
    let upgrading = |name: &'static str| {
        Backend::start(move |mut stage| {
            while let Some(request) = stage.next() {
                if request.header("upgrade").is_none() {
                    stage.say(ok(name));
                    continue;
                }
                stage.say("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
                stage.say(name);
                while let Ok(bytes) = stage.wire.exactly(1) {
                    stage.say(bytes);
                }
            }
        })
    };
    let (old, new) = (upgrading("old"), upgrading("new"));
    let gate = Gate::http(&[old.address, new.address], |service| {
        patient(service);
        service.backends[1].state = BackendState::Passive;
    });
    let upgrade = "GET / HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    let mut client = Wire::connect(gate.address);
    client.send(upgrade);
    assert_eq!(client.head().unwrap().unwrap().status(), 101);
    assert_eq!(client.exactly(3).unwrap(), b"old");
    client.send("z");
    assert_eq!(client.exactly(1).unwrap(), b"z");
    gate.change(|service| {
        service.backends[0].state = BackendState::Passive;
        service.backends[1].state = BackendState::Up;
    });
    let end = client.rest();
    assert!(matches!(&end, Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset), "{end:?}");
    for _ in 0..10 {
        assert_eq!(ask(&gate, get("/")).text(), "new");
    }
    // Even when nothing else is left: two sides at once would be worse than none.
    gate.set(1, BackendState::Passive);
    assert_eq!(ask(&gate, get("/")).status(), 503);
}

#[test]
fn an_upgrade_that_is_answered_after_the_backend_has_left_is_reset() {
    let go = Arc::new(AtomicUsize::new(0));
    let seen = go.clone();
    let old = Backend::start(move |mut stage| {
        stage.next();
        until("it has left", || seen.load(SeqCst) > 0);
        stage.say("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
        stage.wire.rest().ok();
    });
    let gate = Gate::http(&[old.address], |service| {
        patient(service);
        service.retry.on_timeout = false;
    });
    let mut client = Wire::connect(gate.address);
    client.send("GET / HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
    until("it has the request", || old.count() == 1);
    gate.change(|service| service.backends.clear());
    go.store(1, SeqCst);
    let end = client.rest();
    assert!(matches!(&end, Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset), "{end:?}");
}

#[test]
fn a_table_that_is_refused_changes_nothing() {
    let backend = Backend::start(|mut stage| {
        stage.next();
        stage.say("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
        while let Ok(bytes) = stage.wire.exactly(1) {
            stage.say(bytes);
        }
    });
    let gate = Gate::http(&[backend.address], patient);
    let mut client = Wire::connect(gate.address);
    client.send("GET / HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
    assert_eq!(client.head().unwrap().unwrap().status(), 101);
    let mut table = gate.proxy.table();
    table.services[0].backends[0].state = BackendState::Passive;
    let mut other = table.services[0].clone();
    other.name = "other".to_owned();
    other.listen = "127.0.0.1:1".parse().unwrap();
    table.services.push(other);
    let refused = gate.proxy.apply(table.clone(), BTreeMap::new());
    assert!(matches!(refused, Err(outlast_proxy::Refused::NoSocket(_))), "{refused:?}");
    table.services.remove(1);
    table.services[0].certificates.push(outlast_proxy::table::Certificate {
        chain: String::new(),
        key: String::new(),
        client_ca: None,
    });
    let refused = gate.proxy.apply(table, BTreeMap::new());
    assert!(matches!(refused, Err(outlast_proxy::Refused::Tls(_))), "{refused:?}");
    client.send("still here");
    assert_eq!(client.exactly(10).unwrap(), b"still here");
}
