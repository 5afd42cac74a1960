//! The demo's backend, as a process of its own, misbehaves when told to and recovers when told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

struct Backend {
    child: Child,
    work: SocketAddr,
    control: SocketAddr,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.child.kill().expect("it runs until now");
        self.child.wait().expect("it is ours");
    }
}

fn start() -> Backend {
    // Through the leash, as the demo does it.
    let parent = std::process::id().to_string();
    let xtask = env!("CARGO_BIN_EXE_xtask");
    let mut child = Command::new(xtask)
        .args(["leash", "--parent", &parent, "--", xtask, "backend"])
        .args(["--name", "b1", "--port", "0", "--control", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("cargo has built it");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
    let addresses: Vec<SocketAddr> =
        line.split_whitespace().map(|word| word.parse().expect("an address")).collect();
    let [work, control] = addresses[..] else { panic!("two addresses expected: {line}") };
    Backend { child, work, control }
}

/// Status and body of an answer on a connection of its own.
fn ask(to: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(to).expect("it listens");
    stream.set_read_timeout(Some(LIMIT)).expect("not zero");
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head[9..12].parse().expect("a status"), body.to_owned())
}

#[test]
fn a_backend_behaves_as_told() {
    let backend = start();
    let (status, body) = ask(backend.work, "GET", "/", "");
    assert_eq!((status, &body[..3]), (200, "b1 "));
    for (word, work, health) in
        [("error500", 500, 200), ("error500-all", 500, 500), ("ok", 200, 200)]
    {
        assert_eq!(ask(backend.control, "POST", "/behave", word), (200, word.to_owned()));
        let answers =
            (ask(backend.work, "GET", "/", "").0, ask(backend.work, "GET", "/health", "").0);
        assert_eq!(answers, (work, health), "{word}");
    }
    assert_eq!(ask(backend.control, "POST", "/behave", "well").0, 404);
}

#[test]
fn one_connection_serves_many_requests() {
    let backend = start();
    let mut stream = TcpStream::connect(backend.work).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    for _ in 0..3 {
        // Two at once, so that the second waits in the same read as the first.
        stream.write_all(b"GET /health HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\n\r\n").unwrap();
        let mut answers = Vec::new();
        while answers.windows(3).filter(|three| three == b"ok\n").count() < 2 {
            let mut some = [0; 512];
            let count = stream.read(&mut some).unwrap();
            assert!(count > 0, "closed early");
            answers.extend_from_slice(&some[..count]);
        }
    }
}

#[test]
fn a_leash_refuses_when_its_parent_is_gone() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["leash", "--parent", "1", "--", "true"])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stdout).contains("the parent is gone"));
}
