//! The prober, as a process of its own, against two servers that say no more than they must.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(10);
const ANSWER: u8 = 0;
const SILENT: u8 = 1;
const READ_ONLY: u8 = 2;

/// Answers as PostgreSQL does, or does not, and tells of every request that it answers.
struct Server {
    address: SocketAddr,
    behaviour: Arc<AtomicU8>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    fn start(name: &'static str, told: &Sender<&'static str>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        let (behaviour, connections) = (Arc::new(AtomicU8::new(ANSWER)), Arc::default());
        let server = Server { address, behaviour, connections };
        let (behaviour, connections) =
            (Arc::clone(&server.behaviour), Arc::clone(&server.connections));
        let told = told.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::Relaxed);
                let (behaviour, told) = (Arc::clone(&behaviour), told.clone());
                std::thread::spawn(move || serve(stream, name, &behaviour, &told));
            }
        });
        server
    }

    fn behave(&self, behaviour: u8) {
        self.behaviour.store(behaviour, Ordering::Relaxed);
    }
}

/// Ends with the connection.
fn serve(
    mut stream: TcpStream,
    name: &'static str,
    behaviour: &AtomicU8,
    told: &Sender<&'static str>,
) -> Option<()> {
    read_body(&mut stream)?;
    stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").ok()?;
    loop {
        let mut tag = [0];
        stream.read_exact(&mut tag).ok()?;
        assert_eq!(tag, *b"Q");
        let sql = read_body(&mut stream)?;
        assert!(sql.starts_with(b"INSERT INTO t(id) VALUES ("), "{sql:?}");
        let mut answer = match behaviour.load(Ordering::Relaxed) {
            ANSWER => {
                let length = u8::try_from(name.len()).expect("short");
                [b"D\0\0\0".as_slice(), &[10 + length], b"\0\x01\0\0\0", &[length], name.as_bytes()]
                    .concat()
            }
            READ_ONLY => b"E\0\0\0\x0cC25006\0\0".to_vec(),
            _ => continue,
        };
        answer.extend(b"Z\0\0\0\x05I");
        stream.write_all(&answer).ok()?;
        told.send(name).ok()?;
    }
}

fn read_body(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).ok()? - 4];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

struct Prober {
    child: Child,
    dir: std::path::PathBuf,
}

impl Prober {
    fn start(test: &str, at: &[SocketAddr]) -> Prober {
        let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pgprobe-{test}"));
        std::fs::create_dir_all(&dir).expect("the directory for tests can be written");
        let at: Vec<String> = at.iter().map(ToString::to_string).collect();
        let child = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["pgprobe", "--table", "t", "--timeout-ms", "200", "--at", &at.join(",")])
            .arg("--log")
            .arg(dir.join("log.csv"))
            .spawn()
            .expect("cargo has built it");
        Prober { child, dir }
    }

    /// The fields of each line.
    fn finish(mut self) -> Vec<Vec<String>> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it runs until now");
        assert!(self.child.wait().expect("it is ours").success());
        let text = std::fs::read_to_string(self.dir.join("log.csv")).expect("it has written a log");
        std::fs::remove_dir_all(&self.dir).expect("it is ours");
        text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
    }
}

fn wait_for(server: &str, count: usize, told: &Receiver<&'static str>) {
    let mut left = count;
    while left > 0 {
        let name = told.recv_timeout(LIMIT).expect("requests go on");
        left -= usize::from(name == server);
    }
}

#[test]
fn writes_go_on_elsewhere_when_a_server_falls_silent_and_every_attempt_is_logged() {
    let (sender, told) = channel();
    let (first, second) = (Server::start("first", &sender), Server::start("second", &sender));
    let prober = Prober::start("silent", &[first.address, second.address]);
    wait_for("first", 50, &told);
    assert!(first.connections.load(Ordering::Relaxed) <= 8, "connections are used again");
    first.behave(SILENT);
    wait_for("second", 50, &told);
    let lines = prober.finish();
    let ids: BTreeSet<i64> =
        lines.iter().filter_map(|line| line[0].parse().ok()).filter(|id| *id > 0).collect();
    let count = i64::try_from(ids.len()).expect("few");
    assert_eq!(ids.last(), Some(&count), "every id once, from 1 on");
    let with = |status: &str, server: &str| {
        lines.iter().filter(|line| line[3] == status && line[4] == server).count()
    };
    assert!(with("ok", "first") >= 50 && with("ok", "second") >= 50);
    assert!(with("T_op", "") >= 1, "what was under way was not answered");
    for line in lines.iter().filter(|line| line[3] == "T_op") {
        let time = |at: usize| line[at].parse::<u64>().expect("a moment");
        let took = Duration::from_nanos(time(2) - time(1));
        assert!(took >= Duration::from_millis(200), "gave up after {took:?}");
    }
}

#[test]
fn a_server_that_only_reads_is_left() {
    let (sender, told) = channel();
    let (first, second) = (Server::start("first", &sender), Server::start("second", &sender));
    first.behave(READ_ONLY);
    let prober = Prober::start("read-only", &[first.address, second.address]);
    wait_for("second", 20, &told);
    let lines = prober.finish();
    assert!(lines.iter().any(|line| line[3] == "E25006"));
    assert!(lines.iter().any(|line| line[3] == "ok" && line[4] == "second"));
}
