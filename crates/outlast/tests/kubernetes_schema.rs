//! The Deployments that are exported are what the schemas that Kubernetes publishes ask for.
//!
//! The schemas come with the Python package below, in a virtual environment that `cargo xtask test` makes. A test that
//! cannot run is a failure and says how to make it run.
#![expect(clippy::unwrap_used, reason = "what a test does not expect is its failure")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::num::NonZeroU16;
use std::path::Path;
use std::process::{Command as Program, Stdio};
use std::time::Duration;

use outlast::export::kubernetes::{deployment, deployment_yaml};
use outlast_core::health::Thresholds;
use outlast_core::topology::{
    Authority, Check, Command, HttpCheck, HttpTarget, Probe, Process, StatusSet, Topology,
};
use serde_json::{Value, json};

const PACKAGE: &str = "kubernetes-validate==1.37.0";

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn authority(host: &str) -> Authority {
    Authority { host: host.to_owned(), port: NonZeroU16::new(3000).unwrap() }
}

fn http(host: &str, tls: bool, headers: &[(&str, &str)]) -> Check {
    let headers = headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    Check::Http(HttpCheck {
        target: HttpTarget::Url { tls, authority: authority(host), path: "/ready?a=1".to_owned() },
        method: "GET".to_owned(),
        status: StatusSet(vec![(200, 299)]),
        body: None,
        headers: headers.collect(),
        tls_verify: true,
    })
}

/// A check of every kind, of the Pod itself and of others.
fn checks() -> Vec<Check> {
    let grpc = |service: &str| Check::Grpc {
        service: service.to_owned(),
        address: Some(authority("127.0.0.1")),
        tls: false,
        tls_verify: true,
    };
    vec![
        http("127.0.0.1", false, &[]),
        http("shop.example.com", true, &[("Host", "shop.example.com"), ("X-Probe", "yes")]),
        Check::Tcp { address: Some(authority("localhost")) },
        Check::Tcp { address: Some(authority("10.0.0.9")) },
        Check::Command(Command(words(&["/bin/sh", "-c", "test -e /tmp/\"ready\" # yes"]))),
        grpc(""),
        grpc("shop.v1.Orders"),
    ]
}

fn probe(check: Check) -> Probe {
    let count = |n| NonZeroU16::new(n).unwrap();
    Probe {
        check,
        every: Duration::from_millis(1500),
        timeout: Duration::from_millis(200),
        thresholds: Thresholds { rise: count(1), fall: count(3) },
        delay: Duration::ZERO,
    }
}

fn smallest() -> Process {
    Process {
        nodes: Vec::new(),
        command: Command(words(&["/usr/bin/api"])),
        directory: None,
        environment: BTreeMap::new(),
        user: None,
        image: Some("api".to_owned()),
        startup: None,
        liveness: None,
        readiness: None,
        stop_timeout: Duration::ZERO,
        memory_limit: None,
        cpu_limit: None,
        needs: Vec::new(),
    }
}

/// Values that a careless emitter would turn into numbers, truth values, comments or structure.
const AWKWARD: [&str; 12] = [
    "",
    "yes",
    "null",
    "1e3",
    "0o17",
    "12:30:45",
    "2026-01-01",
    "a: b # c",
    "- x",
    "{{a}} &b *c !d %e @f `g`",
    "line\nline\ttab \"quoted\" \\ back\u{85}\u{7f}\u{feff}é😀",
    "trailing ",
];

fn largest(check: Check) -> Process {
    let environment = (0..).zip(AWKWARD).map(|(n, value)| (format!("VAR_{n}"), value.to_owned()));
    Process {
        nodes: words(&["a", "b", "c"]),
        command: Command(
            [&["/usr/bin/api", "--port", "3000"], AWKWARD.as_slice()]
                .concat()
                .iter()
                .map(|&w| w.to_owned())
                .collect(),
        ),
        directory: Some("/srv/api".to_owned()),
        environment: environment.collect(),
        user: Some("1000".to_owned()),
        image: Some("registry.example.com:5000/shop/api@sha256:0123".to_owned()),
        startup: Some(probe(check.clone())),
        liveness: Some(probe(check.clone())),
        readiness: Some(probe(check)),
        stop_timeout: Duration::from_secs(30),
        memory_limit: Some(512 << 20),
        cpu_limit: Some(0.5),
        needs: Vec::new(),
    }
}

fn case(name: &str, process: Process) -> Value {
    let mut topology = Topology::default();
    topology.processes.insert("api".to_owned(), process);
    let yaml = deployment_yaml(&topology, "api").unwrap();
    let json = deployment(&topology, "api").unwrap();
    json!({ "name": name, "yaml": yaml, "json": json, "valid": true })
}

/// The same manifest with one value changed: the schemas must see it, or they see nothing.
fn spoilt(name: &str, pointer: &str, value: Value) -> Value {
    let mut manifest = case(name, largest(checks().remove(0)))["json"].take();
    *manifest.pointer_mut(pointer).unwrap() = value;
    json!({ "name": name, "yaml": null, "json": manifest, "valid": false })
}

#[test]
fn every_deployment_is_what_kubernetes_asks_for() {
    let mut cases = vec![case("smallest", smallest())];
    for check in checks() {
        cases.push(case(&format!("{check:?}"), largest(check)));
    }
    let container = "/spec/template/spec/containers/0";
    cases.extend([
        spoilt("replicas as text", "/spec/replicas", json!("3")),
        spoilt("an unknown key", "/spec/template/spec/affinity", json!({ "podAffinities": {} })),
        spoilt("a fraction", &format!("{container}/livenessProbe/periodSeconds"), json!(1.5)),
        spoilt("a variable as number", &format!("{container}/env/0/value"), json!(1)),
        spoilt("a probe without port", &format!("{container}/livenessProbe/httpGet"), json!({})),
    ]);
    check_with_kubernetes(&json!(cases));
}

#[track_caller]
fn check_with_kubernetes(cases: &Value) {
    // CARGO_TARGET_TMPDIR is target/tmp.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let venv = target.join("test-tools/venv");
    let how = format!(
        "run `cargo xtask test`, or by hand: python3 -m venv {venv} && {venv}/bin/pip install {PACKAGE}",
        venv = venv.display()
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes_schema.py");
    let mut python = Program::new(venv.join("bin/python"))
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|fault| panic!("no Python with the schemas ({fault}): {how}"));
    let mut stdin = python.stdin.take().unwrap();
    let text = cases.to_string();
    let sent = stdin.write_all(text.as_bytes());
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("ModuleNotFoundError"), "the schemas are missing: {how}\n{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && sent.is_ok(), "{sent:?}\n{stdout}{stderr}");
}
