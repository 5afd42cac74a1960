use super::kubernetes::{deployment, deployment_yaml};
use super::yaml::to_yaml;
use expect_test::expect;
use outlast_core::health::Thresholds;
use outlast_core::topology::{
    Authority, Check, Command, HttpCheck, HttpTarget, PartKind, PartRef, Probe, Process, StatusSet,
    Topology,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

fn authority(host: &str, port: u16) -> Authority {
    Authority { host: host.to_owned(), port: NonZeroU16::new(port).unwrap() }
}

fn http(url_path: &str) -> Check {
    let authority = authority("127.0.0.1", 3000);
    let target = HttpTarget::Url { tls: false, authority, path: url_path.to_owned() };
    http_of(target)
}

fn http_of(target: HttpTarget) -> Check {
    Check::Http(HttpCheck {
        target,
        method: "GET".to_owned(),
        status: StatusSet(vec![(200, 399)]),
        body: None,
        headers: Vec::new(),
        tls_verify: true,
    })
}

fn probe(check: Check, delay: u64, every: u64, timeout: u64, fall: u16) -> Probe {
    let thresholds = Thresholds { rise: NonZeroU16::MIN, fall: NonZeroU16::new(fall).unwrap() };
    let seconds = Duration::from_secs;
    Probe {
        check,
        every: seconds(every),
        timeout: seconds(timeout),
        thresholds,
        delay: seconds(delay),
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// [process.api] of the example file.
fn api() -> Process {
    Process {
        nodes: words("a b c"),
        command: Command(words("/usr/bin/api --port 3000")),
        directory: None,
        environment: BTreeMap::from([("RUST_LOG".to_owned(), "info".to_owned())]),
        user: None,
        image: Some("registry.example.com/api:1.2".to_owned()),
        startup: Some(probe(
            Check::Tcp { address: Some(authority("127.0.0.1", 3000)) },
            0,
            2,
            1,
            30,
        )),
        liveness: Some(probe(http("/health/live"), 30, 10, 5, 3)),
        readiness: Some(probe(http("/health/ready"), 10, 5, 3, 2)),
        stop_timeout: Duration::from_secs(30),
        memory_limit: Some(512 << 20),
        cpu_limit: Some(0.5),
        needs: Vec::new(),
    }
}

fn file_of(process: Process) -> Topology {
    let mut topology = Topology::default();
    topology.processes.insert("api".to_owned(), process);
    topology
}

#[test]
fn a_process_becomes_a_deployment_with_the_same_numbers() {
    expect![[r##"
        # the probes ask the Pod's own address instead of the loopback: the program must listen there
        apiVersion: apps/v1
        kind: Deployment
        metadata:
          labels:
            app.kubernetes.io/name: api
          name: api
        spec:
          replicas: 3
          selector:
            matchLabels:
              app.kubernetes.io/name: api
          template:
            metadata:
              labels:
                app.kubernetes.io/name: api
            spec:
              affinity:
                podAntiAffinity:
                  preferredDuringSchedulingIgnoredDuringExecution:
                    - podAffinityTerm:
                        labelSelector:
                          matchLabels:
                            app.kubernetes.io/name: api
                        topologyKey: kubernetes.io/hostname
                      weight: 100
              containers:
                - command:
                    - /usr/bin/api
                    - "--port"
                    - "3000"
                  env:
                    - name: RUST_LOG
                      value: info
                  image: "registry.example.com/api:1.2"
                  livenessProbe:
                    failureThreshold: 3
                    httpGet:
                      path: /health/live
                      port: 3000
                      scheme: HTTP
                    initialDelaySeconds: 30
                    periodSeconds: 10
                    successThreshold: 1
                    timeoutSeconds: 5
                  name: api
                  ports:
                    - containerPort: 3000
                  readinessProbe:
                    failureThreshold: 2
                    httpGet:
                      path: /health/ready
                      port: 3000
                      scheme: HTTP
                    initialDelaySeconds: 10
                    periodSeconds: 5
                    successThreshold: 1
                    timeoutSeconds: 3
                  resources:
                    limits:
                      cpu: "500m"
                      memory: "512Mi"
                  startupProbe:
                    failureThreshold: 30
                    initialDelaySeconds: 0
                    periodSeconds: 2
                    successThreshold: 1
                    tcpSocket:
                      port: 3000
                    timeoutSeconds: 1
              terminationGracePeriodSeconds: 30
    "##]].assert_eq(&deployment_yaml(&file_of(api()), "api").unwrap());
}

#[test]
fn what_kubernetes_does_otherwise_is_said_above() {
    let mut process = api();
    process.startup = None;
    process.user = Some("api".to_owned());
    process.memory_limit = Some(512_000_000);
    process.stop_timeout = Duration::from_millis(2500);
    process.needs = vec![PartRef { kind: PartKind::Postgres, name: "orders".to_owned() }];
    let mut liveness = probe(
        Check::Http(HttpCheck {
            target: HttpTarget::Url {
                tls: true,
                authority: authority("localhost", 8443),
                path: "/live".to_owned(),
            },
            method: "HEAD".to_owned(),
            status: StatusSet(vec![(200, 299)]),
            body: Some("ok".to_owned()),
            headers: vec![("Host".to_owned(), "shop.example.com".to_owned())],
            tls_verify: true,
        }),
        0,
        10,
        1,
        3,
    );
    liveness.every = Duration::from_millis(1500);
    liveness.timeout = Duration::from_millis(500);
    liveness.thresholds.rise = NonZeroU16::new(2).unwrap();
    process.liveness = Some(liveness);
    let topology = file_of(process);
    let yaml = deployment_yaml(&topology, "api").unwrap();
    let comments: Vec<&str> = yaml.lines().take_while(|line| line.starts_with('#')).collect();
    expect![[r##"
        # user = "api" is left out: Kubernetes wants a number, or the image says USER
        # the memory limit of 512000000 bytes is rounded up to 489Mi
        # the liveness probe asks with GET, not HEAD: Kubernetes has no other method
        # the liveness probe counts every status from 200 to 399 as success: Kubernetes has no other set
        # the liveness probe does not look at the body: Kubernetes cannot
        # the liveness probe does not verify the certificate: Kubernetes never does
        # the probes ask the Pod's own address instead of the loopback: the program must listen there
        # the liveness probe's rise = 2 becomes successThreshold 1, the only one that Kubernetes allows there
        # liveness.every = 1.5s is rounded up to 2s: Kubernetes counts in seconds
        # liveness.timeout = 500ms is rounded up to 1s: Kubernetes counts in seconds
        # stop_timeout = 2.5s is rounded up to 3s: Kubernetes counts in seconds
        # it needs postgres.orders: see that they are there, this Deployment does not start them"##]].assert_eq(&comments.join("\n"));
    let container =
        &deployment(&topology, "api").unwrap()["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"]["memory"], "489Mi");
    assert_eq!(
        container["livenessProbe"],
        json!({
            "httpGet": {
                "path": "/live", "port": 8443, "scheme": "HTTPS",
                "httpHeaders": [{ "name": "Host", "value": "shop.example.com" }],
            },
            "initialDelaySeconds": 0, "periodSeconds": 2, "timeoutSeconds": 1,
            "failureThreshold": 3, "successThreshold": 1,
        })
    );
    assert_eq!(container["ports"], json!([{ "containerPort": 3000 }, { "containerPort": 8443 }]));
}

#[track_caller]
fn check_action(check: Check, expected: &Value) {
    let mut process = api();
    process.readiness = Some(probe(check, 0, 5, 1, 3));
    let manifest = deployment(&file_of(process), "api").unwrap();
    let got = &manifest["spec"]["template"]["spec"]["containers"][0]["readinessProbe"];
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&got[key], value);
    }
}

#[test]
fn every_kind_of_probe_has_its_kind_there() {
    let grpc = |service: &str| Check::Grpc {
        service: service.to_owned(),
        address: Some(authority("::1", 50051)),
        tls: false,
        tls_verify: true,
    };
    check_action(grpc(""), &json!({ "grpc": { "port": 50051 } }));
    check_action(grpc("shop"), &json!({ "grpc": { "port": 50051, "service": "shop" } }));
    check_action(
        Check::Tcp { address: Some(authority("10.0.0.9", 5432)) },
        &json!({ "tcpSocket": { "host": "10.0.0.9", "port": 5432 } }),
    );
    check_action(
        Check::Command(Command(vec!["/bin/check".to_owned(), "$(date) $HOME".to_owned()])),
        &json!({ "exec": { "command": ["/bin/check", "$$(date) $$HOME"] } }),
    );
    let target =
        HttpTarget::Url { tls: false, authority: authority("web", 80), path: "/".to_owned() };
    check_action(
        http_of(target),
        &json!({ "httpGet": { "host": "web", "port": 80, "path": "/", "scheme": "HTTP" } }),
    );
}

#[track_caller]
fn check_refused(change: impl FnOnce(&mut Process), expected: &str) {
    let mut process = api();
    change(&mut process);
    assert_eq!(deployment(&file_of(process), "api").unwrap_err(), expected);
}

#[test]
fn what_cannot_be_exported_is_refused_with_what_to_write() {
    check_refused(
        |process| process.image = None,
        "[process.api] has no Deployment: it names no container image: write `image = \"registry.example.com/api:1.2\"`",
    );
    check_refused(
        |process| {
            process.readiness =
                Some(probe(http_of(HttpTarget::Path("/ready".to_owned())), 0, 5, 1, 3));
        },
        "[process.api] has no Deployment: its readiness probe names a path without a port: write `http = \"http://127.0.0.1:3000/ready\"`",
    );
    check_refused(
        |process| process.startup = Some(probe(Check::Tcp { address: None }, 0, 5, 1, 3)),
        "[process.api] has no Deployment: its startup probe names no port: write `127.0.0.1:3000`",
    );
    let grpc = |host: &str, tls| Check::Grpc {
        service: String::new(),
        address: Some(authority(host, 50051)),
        tls,
        tls_verify: true,
    };
    check_refused(
        |process| process.liveness = Some(probe(grpc("127.0.0.1", true), 0, 5, 1, 3)),
        "[process.api] has no Deployment: its liveness probe speaks gRPC over TLS, which Kubernetes does not: probe with `tcp` or `command`",
    );
    check_refused(
        |process| process.liveness = Some(probe(grpc("10.0.0.9", false), 0, 5, 1, 3)),
        "[process.api] has no Deployment: its liveness probe asks gRPC of 10.0.0.9, but Kubernetes asks it of the Pod only: probe 127.0.0.1",
    );
    check_refused(
        |process| {
            let command = Command(words("/bin/check {backend}"));
            process.liveness = Some(probe(Check::Command(command), 0, 5, 1, 3));
        },
        "[process.api] has no Deployment: its liveness command asks for {backend}, which a process has not: write the address",
    );
    assert_eq!(
        deployment(&file_of(api()), "web").unwrap_err(),
        "there is no process `web`: name one of api"
    );
    assert_eq!(
        deployment(&Topology::default(), "web").unwrap_err(),
        "the file has no [process.NAME] to export"
    );
}

#[test]
fn a_name_becomes_one_that_kubernetes_takes() {
    let name_of = |name: &str| {
        let mut topology = Topology::default();
        topology.processes.insert(name.to_owned(), api());
        deployment(&topology, name).map(|manifest| manifest["metadata"]["name"].clone())
    };
    assert_eq!(name_of("Order_Api").unwrap(), "order-api");
    assert!(name_of("_").unwrap_err().contains("makes no Kubernetes name"));
    assert!(name_of(&"a".repeat(64)).unwrap_err().contains("makes no Kubernetes name"));
}

#[test]
fn yaml_quotes_whatever_could_be_taken_for_something_else() {
    let value = json!({
        "plain": "/usr/bin/api-2.0",
        "words": ["yes", "Null", "true", "~", "", "1.5", "0x1f", "-", "a: b", "a #b", "*a", ".inf"],
        "signs": "a \"b\" \\ \n\t\u{7f}\u{85}\u{2028}é",
        "empty": { "list": [], "map": {}, "null": null },
        "nested": [[1, [2]], { "a": { "b": [true] }, "c": 1.5 }],
    });
    expect![[r#"
        empty:
          list: []
          map: {}
          "null": null
        nested:
          - - 1
            - - 2
          - a:
              b:
                - true
            c: 1.5
        plain: /usr/bin/api-2.0
        signs: "a \"b\" \\ \n\t\u007f\u0085\u2028é"
        words:
          - "yes"
          - "Null"
          - "true"
          - "~"
          - ""
          - "1.5"
          - "0x1f"
          - "-"
          - "a: b"
          - "a #b"
          - "*a"
          - ".inf"
    "#]]
    .assert_eq(&to_yaml(&value));
}

proptest! {
    #[test]
    fn a_string_in_yaml_is_plain_or_a_json_string(text: String) {
        let yaml = to_yaml(&json!([text]));
        let scalar = yaml.strip_prefix("- ").unwrap().strip_suffix('\n').unwrap();
        prop_assert!(!scalar.contains('\n'));
        if scalar.starts_with('"') {
            prop_assert_eq!(serde_json::from_str::<String>(scalar).unwrap(), text);
        } else {
            prop_assert_eq!(scalar, text);
        }
    }
}
