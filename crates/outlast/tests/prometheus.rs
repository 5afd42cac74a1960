//! A real Prometheus scrapes a real agent and finds what clients did; promtool finds nothing to say against the text form.
//!
//! Both come with Debian's package `prometheus`, which `cargo xtask test` installs. A test that cannot run is a failure
//! and says how to make it run.
#![expect(clippy::unwrap_used, reason = "what a test does not expect is its failure")]
#![expect(clippy::print_stdout, reason = "a failed test shows the logs")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// A program that ends with the test, and its own children with it.
struct Running {
    child: Child,
    stop: Signal,
}

impl Running {
    fn start(command: &mut Command, stop: Signal) -> Running {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| {
            panic!("start {name}: {error}; it comes with the Debian package: apt-get install prometheus (or `cargo xtask test`)")
        });
        Running { child, stop }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, self.stop).ok();
        self.child.wait().ok();
    }
}

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("outlast-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["agent.log", "prometheus.log"] {
                let text = std::fs::read_to_string(self.0.join(name)).unwrap_or_default();
                println!("{name}:\n{text}");
            }
        }
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A port that was free a moment ago.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Answers every request with 200, or with 500 if its path says so.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            let bad = head.starts_with(b"GET /bad");
            let status = if bad { "500 Internal Server Error" } else { "200 OK" };
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
                .ok();
        }
    });
    address
}

/// Status and body of a GET.
fn get(address: SocketAddr, path: &str, accept: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let head = format!("GET {path} HTTP/1.0\r\nhost: test\r\naccept: {accept}\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Asks again until there is an answer.
fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "waited {LIMIT:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// An agent with one service, its face and its proxy.
fn agent(dir: &Dir) -> (Running, SocketAddr, SocketAddr) {
    let (face, web, backend) = (free(), free(), backend());
    let file = dir.write(
        "outlast.toml",
        &format!(
            r#"
            [cluster]
            name = "shop"
            data_dir = "{}"
            face = "{face}"
            proxy_threads = 1

            [service.web]
            listen = "{web}"
            backends = ["http://{backend}", "http://127.0.0.1:1"]
            probe = {{ http = "/", every = "200ms", timeout = "100ms", fall = 1, rise = 1 }}
            retry = {{ attempts = 1 }}
            "#,
            dir.0.join("data").display()
        ),
    );
    let log = std::fs::File::create(dir.0.join("agent.log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_outlast"));
    command.arg("run").arg(&file).stderr(log);
    let mut agent = Running::start(&mut command, Signal::INT);
    wait_for("the agent to be ready", || {
        assert!(agent.child.try_wait().unwrap().is_none(), "the agent has ended");
        get(face, "/health/ready", "*/*").filter(|(status, _)| *status == 200)
    });
    wait_for("the proxy", || get(web, "/", "*/*").filter(|(status, _)| *status == 200));
    (agent, face, web)
}

/// A Prometheus that scrapes `target` every second; it keeps its data in `dir`.
fn prometheus(dir: &Dir, target: SocketAddr) -> (Running, SocketAddr) {
    let own = free();
    let config = dir.write(
        "prometheus.yml",
        &format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: outlast\n  static_configs:\n  - targets: ['{target}']\n"
        ),
    );
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", dir.0.join("tsdb").display()));
    command.arg(format!("--web.listen-address={own}"));
    let log = std::fs::File::create(dir.0.join("prometheus.log")).unwrap();
    command.stdout(Stdio::null()).stderr(log);
    (Running::start(&mut command, Signal::TERM), own)
}

fn api(prometheus: SocketAddr, path: &str) -> Option<Value> {
    let (_, body) =
        get(prometheus, path, "application/json").filter(|(status, _)| *status == 200)?;
    Some(serde_json::from_str::<Value>(&body).unwrap()["data"].clone())
}

/// The one value of a query; none while it has none.
fn query(prometheus: SocketAddr, query: &str) -> Option<f64> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let data = api(prometheus, &format!("/api/v1/query?query={encoded}"))?;
    let result = data["result"].as_array().unwrap();
    assert!(result.len() <= 1, "{query}: {result:?}");
    result.first()?["value"][1].as_str().unwrap().parse().ok()
}

fn promtool_has_nothing_to_say(text: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool comes with the Debian package: apt-get install prometheus (or `cargo xtask test`)");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn prometheus_finds_what_clients_did() {
    let dir = Dir::new("prometheus");
    let (_agent, face, web) = agent(&dir);
    let (_prometheus, prometheus) = prometheus(&dir, face);
    let target = wait_for("Prometheus to scrape", || {
        let targets = api(prometheus, "/api/v1/targets")?;
        let target = targets["activeTargets"][0].clone();
        (target["health"] != "unknown" && !target.is_null()).then_some(target)
    });
    assert_eq!(target["health"], "up", "{target:#}");
    for _ in 0..7 {
        assert_eq!(get(web, "/good", "*/*").unwrap().0, 200);
    }
    for _ in 0..2 {
        assert_eq!(get(web, "/bad", "*/*").unwrap().0, 500);
    }
    let counted =
        |code: &str| format!("sum(http_requests_total{{service=\"web\",code=\"{code}\"}})");
    let wait_value = |text: &str, wanted: &dyn Fn(f64) -> bool| {
        wait_for(text, || query(prometheus, text).filter(|&value| wanted(value)))
    };
    // One more than asked for above: the request that found the proxy running.
    wait_value(&counted("2xx"), &|value| value == 8.0);
    wait_value(&counted("5xx"), &|value| value == 2.0);
    wait_value("sum(http_request_duration_seconds_count{service=\"web\"})", &|value| value == 10.0);
    wait_value("sum(http_request_duration_seconds_bucket{service=\"web\",le=\"+Inf\"})", &|v| {
        v == 10.0
    });
    wait_value("sum(http_request_duration_seconds_bucket{service=\"web\",le=\"10.0\"})", &|v| {
        v == 10.0
    });
    wait_value("sum(outlast_backend_up{service=\"web\"})", &|value| value == 1.0);
    wait_value("outlast_backend_health{backend=\"http://127.0.0.1:1\",health=\"down\"}", &|v| {
        v == 1.0
    });
    wait_value("outlast_service_state{service=\"web\",state=\"degraded\"}", &|value| value == 1.0);
    wait_value("sum(outlast_probe_results_total{result=\"failure\",reason=\"refused\"})", &|v| {
        v > 0.0
    });
    wait_value("outlast_proxy_processes{state=\"serving\"}", &|value| value == 1.0);
    wait_value("outlast_build_info{cluster=\"shop\"}", &|value| value == 1.0);
    wait_value("outlast_disk_used_ratio", &|value| value > 0.0 && value <= 1.0);
    let (status, text) = get(face, "/metrics", "text/plain; version=0.0.4").unwrap();
    assert_eq!(status, 200);
    promtool_has_nothing_to_say(&text);
}
