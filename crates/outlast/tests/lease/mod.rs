//! The data plane's process alone, with the test in the place of its agent: it holds to the lease that it was told, whatever
//! happens to whoever told it, and to itself.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast::dataplane::process::socket_path;
use outlast::dataplane::wire::{self, FromProxy, ToProxy};
use outlast_consensus::boottime;
use outlast_core::time::Instant;
use outlast_proxy::stats::{ErrorKind, Stats};
use outlast_proxy::table::{Protocol, Service, Table};
use rustix::process::Signal;

use crate::stage::{LIMIT, get, kill, wait, wait_until};

const LONG: Duration = Duration::from_secs(3600);

/// Long enough for a test to get something under way before it is over.
const SHORT: Duration = Duration::from_secs(1);

/// A backend for bytes that sends them back, and for requests, which it answers; it notes what it got.
struct Noting {
    address: SocketAddr,
    got: Arc<Mutex<Vec<u8>>>,
}

impl Noting {
    fn start() -> Noting {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
        let address = listener.local_addr().expect("it is bound");
        let got = Arc::new(Mutex::new(Vec::new()));
        let noted = got.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let noted = noted.clone();
                std::thread::spawn(move || note(stream, &noted));
            }
        });
        Noting { address, got }
    }

    fn got(&self, what: &str) -> usize {
        let got = self.got.lock().expect("not poisoned");
        String::from_utf8_lossy(&got).matches(what).count()
    }
}

fn note(mut stream: TcpStream, noted: &Mutex<Vec<u8>>) {
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        noted.lock().expect("not poisoned").extend_from_slice(&piece[..count]);
        let said: &[u8] = match piece[..count].ends_with(b"\r\n\r\n") {
            true => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            false => &piece[..count],
        };
        if stream.write_all(said).is_err() {
            return;
        }
    }
}

/// A data plane with `pair` and `tcp`, which need the lease, and `web` and `free`, which do not.
struct Plane {
    child: Child,
    dir: PathBuf,
    agent: Option<UnixStream>,
    ports: [u16; 4],
    backend: Noting,
}

impl Plane {
    fn start(name: &str) -> Plane {
        let dir = std::env::temp_dir().join(format!("outlast-lease-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory can be made");
        let log = std::fs::File::create(dir.join("proxy.log")).expect("the directory is ours");
        let child = Command::new(env!("CARGO_BIN_EXE_outlast"))
            .args(["proxy", "--threads", "2", "--data-dir"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("cargo has built it");
        let path = socket_path(&dir, child.id());
        let agent = wait("the data plane listens", || UnixStream::connect(&path).ok());
        agent.set_read_timeout(Some(LIMIT)).expect("it is a socket");
        let backend = Noting::start();
        let mut plane = Plane { child, dir, agent: Some(agent), ports: [0; 4], backend };
        assert!(matches!(plane.hear(), FromProxy::Hello(_)));
        plane.apply();
        plane
    }

    fn apply(&mut self) {
        let kinds = [
            ("pair", Protocol::Http, true),
            ("tcp", Protocol::Tcp, true),
            ("web", Protocol::Http, false),
            ("free", Protocol::Tcp, false),
        ];
        let (mut listeners, mut services) = (Vec::new(), Vec::new());
        for (place, (name, protocol, vouched)) in kinds.into_iter().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
            let address = listener.local_addr().expect("it is bound");
            self.ports[place] = address.port();
            let mut service = Service::plain(name, address, protocol, &[self.backend.address]);
            service.vouched = vouched;
            listeners.push(listener);
            services.push(service);
        }
        let sockets = services.iter().map(|service| service.listen).collect();
        let table = Box::new(Table { generation: 1, services });
        let fds: Vec<_> = listeners.iter().map(|listener| listener.as_fd()).collect();
        let agent = self.agent.as_ref().expect("connected");
        wire::send(agent, &ToProxy::Apply { table, sockets }, &fds).expect("it reads");
        assert!(matches!(self.hear(), FromProxy::Applied { generation: 1 }));
    }

    fn say(&self, message: &ToProxy) {
        wire::send(self.agent.as_ref().expect("connected"), message, &[]).expect("it reads");
    }

    fn hear(&self) -> FromProxy {
        let heard = wire::receive(self.agent.as_ref().expect("connected"));
        heard.expect("a message").expect("no end").0
    }

    /// Vouches, and waits until that is heard.
    fn vouch(&self, until: Instant) {
        self.say(&ToProxy::Vouch { until: until.since_start() });
        assert!(self.stats().lease.left.is_some(), "it is over already");
    }

    /// Asks for the counters; what was said before has been obeyed once they are there.
    fn stats(&self) -> Stats {
        self.say(&ToProxy::GiveStats);
        loop {
            match self.hear() {
                FromProxy::Stats(stats) => return stats,
                FromProxy::Notice(_) => {}
                other @ (FromProxy::Hello(_)
                | FromProxy::Applied { .. }
                | FromProxy::NotApplied { .. }
                | FromProxy::Sockets { .. }
                | FromProxy::Draining { .. }) => panic!("{other:?}"),
            }
        }
    }

    /// A TCP connection through which a byte has gone both ways.
    fn tunnel(&self, place: usize) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports[place])).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("it is a socket");
        talk(&mut stream);
        stream
    }

    fn signal(&self, signal: Signal) {
        kill(i32::try_from(self.child.id()).expect("the kernel's number fits"), signal);
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("proxy.log")).unwrap_or_default()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.dir).ok();
        }
    }
}

fn talk(stream: &mut TcpStream) {
    stream.write_all(b"x").expect("it is open");
    let mut byte = [0];
    stream.read_exact(&mut byte).expect("it comes back");
}

/// Waits until the other side has ended a connection.
fn ends(stream: &mut TcpStream) {
    assert!(!matches!(stream.read(&mut [0; 64]), Ok(1..)), "it goes on");
}

#[test]
fn without_an_agent_the_lease_ends_by_itself_and_the_rest_is_served_on() {
    for dies in [true, false] {
        let mut plane = Plane::start(if dies { "dies" } else { "hangs" });
        plane.vouch(boottime() + LONG);
        let mut leased = plane.tunnel(1);
        let mut free = plane.tunnel(3);
        assert_eq!(get(plane.ports[0], "/").unwrap().0, 200);
        let until = boottime() + SHORT;
        plane.vouch(until);
        if dies {
            plane.agent = None;
        }
        ends(&mut leased);
        assert!(until <= boottime(), "not before its end");
        let (status, text) = get(plane.ports[0], "/").unwrap();
        assert_eq!((status, text.contains("this node holds no lease")), (503, true), "{text}");
        assert_eq!(get(plane.ports[2], "/").unwrap().0, 200);
        talk(&mut free);
        wait_until("the log says so", || plane.log().contains("lease has ended"));
    }
}

#[test]
fn a_data_plane_that_is_frozen_over_the_end_does_nothing_more_when_it_wakes() {
    let plane = Plane::start("frozen");
    plane.vouch(boottime() + LONG);
    let mut tunnel = plane.tunnel(1);
    let mut free = plane.tunnel(3);
    let mut open = TcpStream::connect(("127.0.0.1", plane.ports[0])).unwrap();
    open.set_read_timeout(Some(LIMIT)).unwrap();
    open.write_all(b"GET /before HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
    let mut answer = [0; 256];
    assert!(open.read(&mut answer).unwrap() > 0);
    let until = boottime() + SHORT;
    plane.vouch(until);
    plane.signal(Signal::STOP);
    wait_until("it stands still", || plane.proc("stat").contains(") T "));
    assert!(boottime() < until, "too slow a machine for this test");
    // All of it waits in the kernel when the process wakes up.
    open.write_all(b"GET /during HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
    tunnel.write_all(b"during").unwrap();
    let fresh: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut fresh = TcpStream::connect(("127.0.0.1", plane.ports[0])).unwrap();
            fresh.set_read_timeout(Some(LIMIT)).unwrap();
            fresh.write_all(b"GET /during HTTP/1.1\r\nHost: shop\r\n\r\n").unwrap();
            fresh
        })
        .collect();
    let late = TcpStream::connect(("127.0.0.1", plane.ports[1])).unwrap();
    (&late).write_all(b"during").unwrap();
    wait_until("the end has passed", || until < boottime());
    plane.signal(Signal::CONT);
    for mut asked in fresh.into_iter().chain([open]) {
        let count = asked.read(&mut answer).unwrap();
        assert!(answer[..count].starts_with(b"HTTP/1.1 503 "), "{answer:?}");
    }
    ends(&mut tunnel);
    talk(&mut free);
    wait_until("what waited is refused", || {
        let stats = plane.stats();
        let refused = |name| {
            let service = stats.services.iter().find(|s| s.name == name);
            service.map_or(0, |s| s.own.errors[ErrorKind::Unvouched as usize])
        };
        (refused("pair"), refused("tcp")) == (11, 1)
    });
    assert_eq!((plane.backend.got("before"), plane.backend.got("during")), (1, 0));
    assert_eq!(plane.stats().lease.ended, 1);
}

#[test]
fn the_guard_is_a_thread_of_its_own_that_is_kept_in_memory_or_says_why_not() {
    let plane = Plane::start("guard");
    let threads = std::fs::read_dir(format!("/proc/{}/task", plane.child.id())).unwrap();
    let names: Vec<String> = threads
        .flatten()
        .map(|thread| std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default())
        .collect();
    assert_eq!(names.iter().filter(|name| *name == "guard\n").count(), 1, "{names:?}");
    wait_until("it is locked, or the log says why not", || {
        let locked = plane
            .proc("status")
            .lines()
            .any(|line| line.starts_with("VmLck:") && !line.ends_with(" 0 kB"));
        locked || plane.log().contains("keep the guard of the lease in memory")
    });
}
