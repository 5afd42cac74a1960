//! Changes under load: a new table, other listeners, the end of the process. Nobody may notice.

use std::collections::BTreeMap;
use std::io::ErrorKind::ConnectionReset;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use outlast_proxy::table::{BackendState, Protocol, Service, Table};

use crate::h2::{known, known_to_end, nothing, request, run, text};
use crate::harness::{Backend, Gate, Silent, Wire, get, listen, ok, until, with_body};

/// Clients that ask without pause until told to stop; any answer but 200, and any broken connection, is a fault.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    fn on(gate: &Gate, clients: usize, keep_alive: bool) -> Load {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let address = gate.address;
        let threads = (0..clients).map(|n| {
            let (stop, asked) = (stop.clone(), asked.clone());
            std::thread::spawn(move || {
                let mut faults = Vec::new();
                let mut wire = Wire::connect(address);
                while !stop.load(SeqCst) {
                    let turn = asked.fetch_add(1, SeqCst);
                    if !keep_alive {
                        wire = Wire::connect(address);
                    }
                    let request = if (turn + n).is_multiple_of(3) {
                        with_body("POST", "/", &vec![7; turn % 5000])
                    } else {
                        get("/").into_bytes()
                    };
                    let answer = wire.try_send(request).and_then(|()| wire.try_answer());
                    match answer {
                        Ok(answer) if answer.status() == 200 => {}
                        other => {
                            faults.push(format!("{other:?}"));
                            wire = Wire::connect(address);
                        }
                    }
                }
                faults
            })
        });
        let threads = threads.collect();
        Load { stop, asked, threads }
    }

    /// Waits until so many more have been asked.
    fn more(&self, count: usize) {
        let from = self.asked.load(SeqCst);
        until("more is asked", || self.asked.load(SeqCst) >= from + count);
    }

    #[track_caller]
    fn end(self) {
        self.stop.store(true, SeqCst);
        let faults: Vec<String> =
            self.threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        assert!(
            faults.is_empty(),
            "{} of {}: {:?}",
            faults.len(),
            self.asked.load(SeqCst),
            &faults[..faults.len().min(5)]
        );
    }
}

fn swap_under_load(keep_alive: bool) {
    let backends = [0; 4].map(|_| Backend::answering(|r| ok(&"x".repeat(r.body.len()))));
    let addresses = backends.each_ref().map(|b| b.address);
    let gate = Gate::start(Protocol::Http, 2, &addresses[..2], |service| {
        // A POST that meets a connection which is just going is not what is tested here.
        service.eject.failures = 0;
    });
    let load = Load::on(&gate, 4, keep_alive);
    let first = gate.proxy.table();
    for round in 0..20_u64 {
        load.more(40);
        let mut table = first.clone();
        table.generation = round;
        let service = &mut table.services[0];
        let pair = if round % 2 == 0 { &addresses[2..] } else { &addresses[..2] };
        service.backends = Service::plain("x", service.listen, Protocol::Http, pair).backends;
        match round % 5 {
            1 => service.backends[0].state = BackendState::Draining,
            2 => service.backends[0].state = BackendState::Down,
            3 => service.backends[0].state = BackendState::Unknown,
            _ => {}
        }
        gate.proxy.apply(table, BTreeMap::new()).unwrap();
    }
    load.more(40);
    load.end();
    assert!(backends.iter().all(|b| b.count() > 0));
}

#[test]
fn a_new_table_under_load_drops_no_request() {
    swap_under_load(true);
}

#[test]
fn a_new_table_under_load_drops_no_connection() {
    swap_under_load(false);
}

#[test]
fn a_listener_is_kept_over_tables_and_a_new_one_beside_it_serves() {
    let backend = Backend::named("b");
    let gate = Gate::start(Protocol::Http, 2, &[backend.address], |_| {});
    let load = Load::on(&gate, 2, false);
    let mut held = None;
    for round in 0..10 {
        load.more(20);
        let socket = listen();
        let address = socket.local_addr().unwrap();
        let mut table: Table = gate.proxy.table();
        table.services.truncate(1);
        table.services.push(Service::plain(
            &format!("new{round}"),
            address,
            Protocol::Http,
            &[backend.address],
        ));
        gate.proxy.apply(table, BTreeMap::from([(address, socket)])).unwrap();
        assert_eq!(Wire::connect(address).ask(get("/")).text(), "b");
        if let Some(before) = held.replace(address) {
            until("the one before is closed", || TcpStream::connect(before).is_err());
        }
    }
    load.end();
    assert_eq!(gate.proxy.sockets().len(), 2);
}

#[test]
fn a_listener_may_go_to_another_service() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let gate = Gate::http(&[one.address], |_| {});
    let mut kept = Wire::connect(gate.address);
    assert_eq!(kept.ask(get("/")).text(), "one");
    let table = Table {
        generation: 2,
        services: vec![Service::plain("other", gate.address, Protocol::Http, &[two.address])],
    };
    gate.proxy.apply(table, BTreeMap::new()).unwrap();
    until("the other service answers", || {
        Wire::connect(gate.address).ask(get("/")).text() == "two"
    });
}

#[test]
fn a_successor_takes_over_the_listening_sockets_and_nobody_notices() {
    let backend = Backend::named("b");
    let old = Gate::start(Protocol::Http, 2, &[backend.address], |_| {});
    let load = Load::on(&old, 3, false);
    load.more(50);
    let (new, _notices) = outlast_proxy::Proxy::start(2, rustls::RootCertStore::empty()).unwrap();
    let sockets = old.proxy.sockets();
    let sockets = sockets.iter().map(|(&a, s)| (a, s.try_clone().unwrap())).collect();
    new.apply(old.proxy.table(), sockets).unwrap();
    old.proxy.drain();
    until("the old one is empty", || old.proxy.connections() == 0);
    let before = new.stats().services[0].backends[0].counts.answers[1];
    load.more(100);
    load.end();
    assert!(new.stats().services[0].backends[0].counts.answers[1] > before);
    new.stop();
}

#[test]
fn drain_ends_a_connection_only_with_an_answer_that_says_so() {
    let go = Arc::new(AtomicBool::new(false));
    let seen = go.clone();
    let backend = Backend::start(move |mut stage| {
        while let Some(request) = stage.next() {
            if request.line() == "GET /late" {
                until("told to go on", || seen.load(SeqCst));
            }
            stage.say(ok("b"));
        }
    });
    let gate = Gate::http(&[backend.address], |_| {});
    let mut begun = Wire::connect(gate.address);
    assert_eq!(begun.ask(get("/")).header("connection"), None);
    let request = get("/");
    let (early, late) = request.split_at(10);
    begun.send(early);
    let mut busy = Wire::connect(gate.address);
    busy.send(get("/late"));
    until("it is under way", || backend.count() == 2);
    let mut uploading = Wire::connect(gate.address);
    let upload = with_body("POST", "/", b"xyz");
    uploading.send(&upload[..upload.len() - 1]);
    until("it is under way", || backend.connections() == 2);
    gate.proxy.drain();
    until("the listener is closed", || TcpStream::connect(gate.address).is_err());
    // Whoever has begun is served, and then told to come again elsewhere.
    begun.send(late);
    uploading.send(&upload[upload.len() - 1..]);
    go.store(true, SeqCst);
    for client in [&mut begun, &mut busy, &mut uploading] {
        let answer = client.answer();
        assert_eq!((answer.status(), answer.header("connection")), (200, Some("close")));
        assert_eq!(client.rest().unwrap(), b"");
    }
    until("all have gone", || gate.proxy.is_drained());
}

#[test]
fn a_stop_with_idle_clients_only_does_not_wait_for_them() {
    let backend = Backend::named("b");
    let gate = Gate::start(Protocol::Http, 2, &[backend.address], |_| {});
    let mut clients: Vec<Wire> = (0..20).map(|_| Wire::connect(gate.address)).collect();
    // Half of them have never asked for anything.
    for client in clients.iter_mut().step_by(2) {
        assert_eq!(client.ask(get("/")).text(), "b");
    }
    run(async {
        let (sender, ended) = known_to_end(gate.address).await;
        let mut asking = sender.clone();
        let asked = request("GET", "/").body(nothing()).unwrap();
        assert_eq!(text(asking.send_request(asked).await.unwrap()).await, "b");
        let begun = Instant::now();
        gate.proxy.drain();
        // Said in a frame, not by breaking off.
        assert!(ended.await.unwrap().is_ok());
        while !gate.proxy.is_drained() {
            tokio::task::yield_now().await;
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
        drop(sender);
    });
    for client in &mut clients {
        assert_eq!(client.rest().expect("an end, not a reset"), b"");
    }
}

#[test]
fn clients_that_ask_on_and_on_are_told_to_go_and_lose_no_request() {
    let backend = Backend::named("b");
    let gate = Gate::start(Protocol::Http, 2, &[backend.address], |_| {});
    let asked = Arc::new(AtomicUsize::new(0));
    let clients = (0..8).map(|_| {
        let (mut wire, asked) = (Wire::connect(gate.address), asked.clone());
        std::thread::spawn(move || {
            loop {
                let answer = wire.ask(get("/"));
                assert_eq!(answer.text(), "b");
                asked.fetch_add(1, SeqCst);
                if answer.header("connection") == Some("close") {
                    return;
                }
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    until("all are busy", || asked.load(SeqCst) > 400);
    gate.proxy.drain();
    clients.into_iter().for_each(|client| client.join().expect("no request failed"));
    until("all have gone", || gate.proxy.is_drained());
}

#[test]
fn a_service_cuts_off_what_is_still_open_after_its_own_time_for_draining() {
    let silent = Silent::saying("");
    let gate = Gate::start(Protocol::Http, 2, &[silent.backend.address], |service| {
        service.timeouts.drain = Duration::from_millis(200);
        service.retry.try_timeout = Duration::from_secs(300);
        service.timeouts.head = Duration::from_secs(300);
    });
    let mut waiting = Wire::connect(gate.address);
    waiting.send(get("/"));
    let mut beginning = Wire::connect(gate.address);
    beginning.send("GET / HT");
    run(async {
        let mut sender = known(gate.address).await;
        let answering = sender.send_request(request("GET", "/").body(nothing()).unwrap());
        let answering = tokio::spawn(answering);
        while silent.backend.count() < 2 {
            tokio::task::yield_now().await;
        }
        gate.proxy.drain();
        while !gate.proxy.is_drained() {
            tokio::task::yield_now().await;
        }
        let answer = answering.await.unwrap();
        assert!(answer.is_err() || answer.is_ok_and(|a| a.status().as_u16() == 502));
    });
    let answer = waiting.answer();
    assert_eq!((answer.status(), answer.header("connection")), (502, Some("close")));
    assert_eq!(beginning.rest().unwrap_or_default(), b"");
    assert_eq!(silent.backend.count(), 2, "nothing is tried again");
}

#[test]
fn tunnels_end_with_their_service_s_time_for_draining() {
    let backend = Backend::start(|mut stage| {
        stage.next();
        stage.say("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
        stage.wire.rest().ok();
    });
    let upgrade = "GET / HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    for protocol in [Protocol::Http, Protocol::Tcp] {
        let gate = Gate::start(protocol, 1, &[backend.address], |service| {
            service.timeouts.drain = Duration::from_millis(200);
        });
        let mut client = Wire::connect(gate.address);
        client.send(upgrade);
        assert_eq!(client.head().unwrap().unwrap().status(), 101);
        gate.proxy.drain();
        let end = client.rest();
        assert!(end.as_ref().is_err_and(|e| e.kind() == ConnectionReset), "{end:?}");
        until("it has gone", || gate.proxy.is_drained());
    }
}

#[test]
fn a_backend_that_drains_keeps_its_open_work_only_for_the_service_s_time() {
    let silent = Silent::saying("");
    let talking = Backend::start(|mut stage| {
        stage.say("hello");
        stage.wire.rest().ok();
    });
    let other = Backend::named("other");
    let soon = |service: &mut Service| {
        service.timeouts.drain = Duration::from_millis(200);
        service.retry.try_timeout = Duration::from_secs(300);
    };
    let gate = Gate::start(Protocol::Http, 2, &[silent.backend.address, other.address], |s| {
        soon(s);
        s.backends[1].state = BackendState::Down;
    });
    let mut client = Wire::connect(gate.address);
    client.send(get("/"));
    until("it is under way", || silent.backend.count() == 1);
    gate.change(|service| {
        service.backends[0].state = BackendState::Draining;
        service.backends[1].state = BackendState::Up;
    });
    assert_eq!(client.answer().text(), "other");
    until("its connection is closed", || silent.ended.load(SeqCst) == 1);
    assert!(gate.notices().is_empty(), "nobody is to blame");
    let gate = Gate::start(Protocol::Tcp, 2, &[talking.address], soon);
    let mut client = Wire::connect(gate.address);
    assert_eq!(client.exactly(5).unwrap(), b"hello");
    gate.set(0, BackendState::Draining);
    let end = client.rest();
    assert!(end.as_ref().is_err_and(|e| e.kind() == ConnectionReset), "{end:?}");
    // Back in traffic, it keeps what it has.
    gate.set(0, BackendState::Up);
    let mut client = Wire::connect(gate.address);
    assert_eq!(client.exactly(5).unwrap(), b"hello");
    gate.set(0, BackendState::Draining);
    gate.set(0, BackendState::Up);
    assert_eq!(gate.stats().backends[0].in_flight, 1);
}

#[test]
fn drain_leaves_tunnels_alone() {
    let backend = Backend::start(|mut stage| {
        stage.next();
        stage.say("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
        while let Ok(bytes) = stage.wire.exactly(1) {
            stage.say(bytes);
        }
    });
    let gate = Gate::http(&[backend.address], |_| {});
    let mut client = Wire::connect(gate.address);
    client.send("GET / HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n");
    assert_eq!(client.head().unwrap().unwrap().status(), 101);
    gate.proxy.drain();
    until("the listener is closed", || TcpStream::connect(gate.address).is_err());
    client.send("x");
    assert_eq!(client.exactly(1).unwrap(), b"x");
    client.end();
    until("it has gone", || gate.proxy.connections() == 0);
}

#[test]
fn stop_ends_everything_at_once() {
    let backend = Backend::named("b");
    let gate = Gate::http(&[backend.address], |_| {});
    let mut client = Wire::connect(gate.address);
    client.ask(get("/"));
    let Gate { proxy, address, .. } = gate;
    proxy.stop();
    assert!(client.rest().is_ok_and(|rest| rest.is_empty()));
    assert!(TcpStream::connect(address).is_err());
}
