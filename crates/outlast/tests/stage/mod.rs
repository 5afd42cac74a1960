//! A place for one test: real agents on free ports of loopback, tiny backends in this process, the journal as witness.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Everything that is waited for comes within this time, on the slowest machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// Often enough for tests that take a second or two.
pub(crate) const PROBE: &str =
    r#"probe = { http = "/health", every = "100ms", timeout = "90ms", fall = 2, rise = 1 }"#;
const POLL: Duration = Duration::from_millis(5);

/// Looks again and again until there is something; fails with `what` if there is nothing within [`LIMIT`].
pub(crate) fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {LIMIT:?}");
        #[expect(clippy::disallowed_methods, reason = "between two looks at a condition")]
        std::thread::sleep(POLL);
    }
}

/// The same for a condition.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait(what, || holds().then_some(()));
}

/// A port that nobody has. Below those that the kernel gives to outgoing connections, and each only once in this process.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test programs that run side by side begin at different places.
    let first = 10_000 + u16::try_from(std::process::id() % 200).expect("below 200") * 100;
    wait("a free port", || {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
        TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(port)
    })
}

/// A directory, and all that runs in it. Dropping it ends every process that has the directory on its command line.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) dir: PathBuf,
    pub(crate) file: PathBuf,
    pub(crate) face: u16,
}

impl Stage {
    pub(crate) fn new(name: &str) -> Stage {
        let dir = format!("outlast-run-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        std::fs::create_dir_all(&dir).expect("a temporary directory can be made");
        Stage { file: dir.join("outlast.toml"), face: free_port(), dir }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Writes the topology file: `[cluster]`, and what the test adds.
    pub(crate) fn write(&self, services: &str) {
        let (data, face) = (self.data(), self.face);
        let text = format!(
            "[cluster]\nname = \"test\"\ndata_dir = \"{}\"\nface = \"127.0.0.1:{face}\"\nproxy_threads = 2\n\n{services}",
            data.display()
        );
        std::fs::write(&self.file, text).expect("the directory is ours");
    }

    /// Starts an agent; it may not answer yet.
    pub(crate) fn spawn(&self) -> Agent {
        self.spawn_as(Path::new(env!("CARGO_BIN_EXE_outlast")))
    }

    /// Starts the agent of one node of several.
    pub(crate) fn spawn_node(&self, node: &str) -> Agent {
        self.spawn_with(Path::new(env!("CARGO_BIN_EXE_outlast")), &["--node", node])
    }

    pub(crate) fn spawn_as(&self, program: &Path) -> Agent {
        self.spawn_with(program, &[])
    }

    fn spawn_with(&self, program: &Path, words: &[&str]) -> Agent {
        let mut options = std::fs::File::options();
        let log = options.create(true).append(true).open(self.dir.join("agent.log"));
        let log = log.expect("the directory is ours");
        let child = Command::new(program)
            .arg("run")
            .arg(&self.file)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("cargo has built it");
        Agent { child }
    }

    /// Starts an agent and waits until it answers.
    pub(crate) fn start(&self) -> Agent {
        let mut agent = self.spawn();
        self.wait_for_agent(&mut agent);
        agent
    }

    pub(crate) fn wait_for_agent(&self, agent: &mut Agent) {
        wait_until("the agent answers", || {
            if let Ok(Some(status)) = agent.child.try_wait() {
                panic!("the agent ended, {status}: {}", self.log());
            }
            self.status().is_some()
        });
    }

    /// Runs an agent that is not to start.
    pub(crate) fn run_to_end(&self) -> Output {
        let program = env!("CARGO_BIN_EXE_outlast");
        let run = Command::new(program).arg("run").arg(&self.file).stdin(Stdio::null()).output();
        run.expect("cargo has built it")
    }

    /// A verb with its words; whether it was obeyed, and what it said.
    pub(crate) fn verb(&self, words: &[&str]) -> (bool, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_outlast"))
            .args(words)
            .arg("--data-dir")
            .arg(self.data())
            .output()
            .expect("cargo has built it");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Runs a script while a lock is held; the token that it printed.
    pub(crate) fn lock(&self, words: &[&str], script: &str) -> u64 {
        let output = Command::new(env!("CARGO_BIN_EXE_outlast"))
            .args(words)
            .arg("--data-dir")
            .arg(self.data())
            .args(["--", "sh", "-c", script])
            .output()
            .expect("cargo has built it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let token = said.lines().find_map(|line| line.strip_prefix("token ")?.parse().ok());
        token.unwrap_or_else(|| panic!("no token: {said}"))
    }

    /// What `/v1/status` says at the admin socket, if an agent answers.
    pub(crate) fn status(&self) -> Option<String> {
        let mut stream =
            std::os::unix::net::UnixStream::connect(self.data().join("admin.sock")).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        let request = "GET /v1/status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// All events so far.
    pub(crate) fn journal(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.data().join("journal/journal.jsonl"));
        let text = text.unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for an event behind the first `after` ones.
    pub(crate) fn event(
        &self,
        after: usize,
        name: &str,
        mut fits: impl FnMut(&Value) -> bool,
    ) -> Value {
        let until = Instant::now() + LIMIT;
        let found = || {
            let events = self.journal();
            let mut new = events.get(after..).unwrap_or_default().iter();
            new.find(|event| event["event"] == name && fits(event)).cloned()
        };
        let mut found = found;
        wait(&format!("event {name}"), || {
            let event = found();
            if event.is_none() && until <= Instant::now() {
                let lines: Vec<String> = self.journal().iter().map(Value::to_string).collect();
                panic!("no {name} in the journal:\n{}\n{}", lines.join("\n"), self.log());
            }
            event
        })
    }

    /// Waits until the agent believes this of a backend.
    pub(crate) fn health(&self, after: usize, backend: &str, to: &str) -> Value {
        self.event(after, "health_changed", |e| e["backend"] == backend && e["to"] == to)
    }

    /// The serving proxy, as last told.
    pub(crate) fn proxy(&self) -> i32 {
        let events = self.journal();
        let told = events.iter().rev().find_map(|event| match event["event"].as_str()? {
            "proxy_started" | "proxy_adopted" => event["pid"].as_i64(),
            "proxy_replaced" => event["new"].as_i64(),
            _ => None,
        });
        i32::try_from(told.expect("the journal names a proxy")).expect("the kernel's number fits")
    }

    /// Breaks the connection between the agent and this proxy: both ends see its end.
    pub(crate) fn break_link(&self, proxy: i32) {
        use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
        let path = self.data().join(format!("proxy-{proxy}.sock")).display().to_string();
        let sockets = std::fs::read_to_string("/proc/net/unix").expect("this is Linux");
        // Of the sockets at that path, state 03 is connected.
        let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let linked = fields.filter(|f| f.last() == Some(&path.as_str()) && f.get(5) == Some(&"03"));
        let names: BTreeSet<String> = linked.map(|f| format!("socket:[{}]", f[6])).collect();
        let process = Pid::from_raw(proxy).expect("a proxy has a number");
        let process = pidfd_open(process, PidfdFlags::empty()).expect("it runs");
        let mut broken = 0;
        for entry in std::fs::read_dir(format!("/proc/{proxy}/fd")).expect("it is ours").flatten() {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            let fd = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let (true, Some(fd)) = (names.contains(&*target.to_string_lossy()), fd) {
                let fd = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty());
                let stream =
                    std::os::unix::net::UnixStream::from(fd.expect("it is our child's child"));
                stream.shutdown(std::net::Shutdown::Both).expect("it is connected");
                broken += 1;
            }
        }
        assert!(broken > 0, "no connection to break:\n{sockets}");
    }

    /// The proxies that run.
    pub(crate) fn proxies(&self) -> Vec<i32> {
        let is_proxy = |pid: &i32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|&byte| byte == 0).nth(1) == Some(b"proxy")
        };
        self.processes().into_iter().filter(is_proxy).collect()
    }

    /// Every process that has this directory on its command line, zombies left out: they have none.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let dir = self.dir.display().to_string();
        let entries = std::fs::read_dir("/proc").expect("this is Linux");
        let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).contains(&dir)
        })
        .collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // An agent that is killed later than its proxy would start another.
        for _ in 0..2 {
            for pid in self.processes() {
                kill(pid, Signal::KILL);
            }
        }
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.dir).ok();
        }
    }
}

/// A running agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) child: Child,
}

impl Agent {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("the kernel's number fits")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("it is ours");
    }

    /// Waits until it ends by itself.
    pub(crate) fn end(mut self) -> ExitStatus {
        wait("the agent ends", || self.child.try_wait().expect("it is ours"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        kill_process(pid, signal).ok();
    }
}

/// Whether there is such a process, dead and uncollected ones included.
pub(crate) fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A backend that answers its name, until it is stopped.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) port: u16,
    running: Arc<Running>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Running {
    stopped: AtomicBool,
    healthy: AtomicBool,
    /// Requests other than those for `/health`.
    requests: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

impl Backend {
    pub(crate) fn start(name: &str) -> Backend {
        Backend::start_at(name, SocketAddr::from(([127, 0, 0, 1], free_port())))
    }

    pub(crate) fn start_at(name: &str, at: SocketAddr) -> Backend {
        let listener = wait("the backend's port", || TcpListener::bind(at).ok());
        let running = Arc::new(Running::default());
        running.healthy.store(true, Ordering::Relaxed);
        let (shared, named) = (running.clone(), name.to_owned());
        let thread = std::thread::spawn(move || serve(&listener, &named, &shared));
        Backend { name: name.to_owned(), port: at.port(), running, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.running.requests.load(Ordering::Relaxed)
    }

    /// What `/health` says from now on.
    pub(crate) fn be_healthy(&self, healthy: bool) {
        self.running.healthy.store(healthy, Ordering::Relaxed);
    }

    /// Closes the listener and every connection, as a killed process does.
    pub(crate) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.running.stopped.store(true, Ordering::Relaxed);
        // Wakes it.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
        thread.join().expect("it does not panic");
        for stream in self.running.streams.lock().expect("not poisoned").drain(..) {
            stream.shutdown(std::net::Shutdown::Both).ok();
        }
    }

    /// Comes back on the same port.
    pub(crate) fn restart(&mut self) {
        self.stop();
        *self = Backend::start_at(&self.name, SocketAddr::from(([127, 0, 0, 1], self.port)));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(listener: &TcpListener, name: &str, running: &Arc<Running>) {
    for stream in listener.incoming() {
        if running.stopped.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let mut streams = running.streams.lock().expect("not poisoned");
        streams.extend(stream.try_clone());
        drop(streams);
        let (shared, named) = (running.clone(), name.to_owned());
        // Ends with its connection, which `stop` closes.
        std::thread::spawn(move || converse(stream, &named, &shared));
    }
}

fn converse(mut stream: TcpStream, name: &str, running: &Running) {
    let Ok(reading) = stream.try_clone() else { return };
    let mut reader = BufReader::new(reading);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if !reader.read_line(&mut line).is_ok_and(|count| count > 0) {
                return;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().expect("the proxy sends a number");
            }
            if first.is_empty() {
                first = line;
            } else if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let health = first.contains(" /health");
        let fails = health && !running.healthy.load(Ordering::Relaxed);
        if !health {
            running.requests.fetch_add(1, Ordering::Relaxed);
        }
        let status = if fails { "503 No" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{name}", name.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Status and body of a GET on a connection of its own; an error if the connection is refused, cut or too slow.
pub(crate) fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let bad = || std::io::Error::other(format!("not an answer: {answer}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.get(9..12).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}

/// Waits until a service answers 200, and says who did.
pub(crate) fn served(port: u16) -> String {
    wait("an answer of the service", || match get(port, "/") {
        Ok((200, body)) => Some(body),
        Ok(_) | Err(_) => None,
    })
}

/// Waits until this one, and no other, answers three requests in a row.
pub(crate) fn only_at(port: u16, name: &str) {
    let answers = || get(port, "/").is_ok_and(|(status, body)| status == 200 && body == name);
    wait_until(name, || (0..3).all(|_| answers()));
}

/// Who answers `count` requests; each must be answered with 200.
pub(crate) fn servers(port: u16, count: usize) -> BTreeSet<String> {
    let one = |_| {
        let (status, body) = get(port, "/").expect("the service answers");
        assert_eq!(status, 200, "{body}");
        body
    };
    (0..count).map(one).collect()
}

/// Sends requests without a pause until it is asked what became of them.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(u64, Vec<String>)>,
}

impl Load {
    pub(crate) fn start(port: u16) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut count, mut failures) = (0, Vec::new());
            while !told.load(Ordering::Relaxed) {
                count += 1;
                match get(port, "/") {
                    Ok((200, _)) => {}
                    Ok((status, body)) => failures.push(format!("{status} {body}")),
                    Err(error) => failures.push(error.to_string()),
                }
            }
            (count, failures)
        });
        Load { stop, thread }
    }

    /// None may have failed.
    pub(crate) fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (count, failures) = self.thread.join().expect("it does not panic");
        assert!(count > 0);
        assert!(failures.is_empty(), "{} of {count} failed: {failures:?}", failures.len());
    }
}
