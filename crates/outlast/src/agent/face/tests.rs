//! The answers of one literal scene, and of scenes that differ from it in one thing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect, expect_file};
use outlast_core::event::{Event, Fact, Target};
use outlast_core::health::Health;
use outlast_core::pair::{Epoch, Side};
use outlast_core::time::Timestamp;
use outlast_core::view::{
    BackendView, PartView, ProcessState, ProcessView, ServiceState, ServiceView, View,
};
use outlast_host::journal::Line;
use outlast_host::probe::Code;
use outlast_host::vitals::Usage;
use outlast_proxy::stats::{BackendStats, PostgresStats, ServiceStats, Snapshot, Stats};
use serde_json::Value;

use super::health::{Detail, Question, Verdict, health};
use super::metrics::{Form, print};
use super::page::page;
use super::scene::Scene;
use super::status_json::{Mark, Status};
use crate::agent::shared::{Picture, ProxyView, Vitals};

/// 2026-11-22T15:04:05Z
const NOW: i64 = 1_795_359_845_000;

const FILE: &str = r#"
[cluster]
name = "shop"
data_dir = "/var/lib/outlast"

[node.a]
address = "10.0.0.1"

[service.web]
listen = "0.0.0.0:8080"
backends = ["http://10.0.0.1:3000", "http://10.0.0.2:3000"]
probe = { http = "/", every = "5s", timeout = "1s", fall = 3, rise = 2 }

[service.billing]
listen = "0.0.0.0:8081"
protocol = "tcp"
primary = "tcp://10.0.0.1:4000"
backup = "tcp://10.0.0.2:4000"

[process.api]
nodes = ["a"]
command = ["/usr/bin/api"]

[external.stripe]
probe = { http = "https://stripe.example/", every = "5s", timeout = "1s" }

[external.dns]

[postgres.orders]
nodes = ["a"]
data_dir = "/var/lib/postgresql/16/main"
version = 16
"#;

fn ago(seconds: i64) -> Timestamp {
    Timestamp(NOW - seconds * 1000)
}

fn backend(name: &str, health: Health, streak: i32, reason: &str) -> BackendView {
    let (draining, ejected, role) = (false, false, None);
    let (name, reason) = (name.to_owned(), reason.to_owned());
    BackendView {
        name,
        health,
        since: ago(3600),
        reason,
        streak,
        draining,
        ejected,
        role,
        verdict: None,
    }
}

fn service(state: ServiceState, why: &str, backends: Vec<BackendView>) -> ServiceView {
    let (why, next, active) = (why.to_owned(), None, None);
    ServiceView { state, since: ago(192), why, next, backends, active, moving: false }
}

fn counted(answers: [u64; 5]) -> Snapshot {
    let mut latency = vec![0; 15];
    latency[1] = answers.iter().sum();
    Snapshot {
        answers: answers.to_vec(),
        errors: vec![2, 0, 1, 0, answers[4], 0, 0, 0, 0],
        latency,
        latency_sum_us: 1500 * answers.iter().sum::<u64>(),
        ..Snapshot::default()
    }
}

fn view() -> View {
    let web = vec![
        backend("http://10.0.0.1:3000", Health::Up, -1, "no answer within 1s"),
        backend("http://10.0.0.2:3000", Health::Down, 1, "status 200 in 3ms"),
    ];
    let mut billing = vec![
        backend("tcp://10.0.0.1:4000", Health::Up, 40, "connected in 1ms"),
        backend("tcp://10.0.0.2:4000", Health::Up, 40, "connected in 1ms"),
    ];
    billing[0].role = Some(Side::Primary);
    billing[1].role = Some(Side::Backup);
    billing[1].draining = true;
    let billing = ServiceView {
        active: Some((Side::Primary, Epoch(4))),
        ..service(ServiceState::Up, "the primary serves", billing)
    };
    let process = ProcessView {
        state: ProcessState::Running,
        since: ago(60),
        ready: true,
        restarts: 2,
        pid: Some(77),
        reason: "the program runs".to_owned(),
    };
    let reason = "connect stripe.example:443: refused".to_owned();
    let external = PartView { health: Health::Down, since: ago(9), reason };
    View {
        nodes: BTreeMap::new(),
        generation: 3,
        services: BTreeMap::from([
            ("billing".to_owned(), billing),
            ("web".to_owned(), service(ServiceState::Degraded, "1 of 2 backends up", web)),
        ]),
        externals: BTreeMap::from([("stripe".to_owned(), external)]),
        processes: BTreeMap::from([("api".to_owned(), process)]),
        not_saved: None,
    }
}

fn stats() -> Stats {
    let one = |name: &str, counts| BackendStats {
        name: name.to_owned(),
        in_flight: 2,
        ejected: false,
        counts,
    };
    let tunnels = Snapshot { tunnels: 12, bytes_in: 345, bytes_out: 6789, ..Snapshot::default() };
    let web = ServiceStats {
        name: "web".to_owned(),
        own: counted([0, 0, 0, 1, 3]),
        retries: 5,
        retries_denied: 1,
        unvouched: false,
        connections: 17,
        in_flight: 4,
        backends: vec![
            one("http://10.0.0.1:3000", counted([0, 1_234_567, 0, 0, 8])),
            one("http://10.0.0.2:3000", Snapshot::default()),
        ],
        postgres: PostgresStats::default(),
    };
    let billing = ServiceStats {
        name: "billing".to_owned(),
        backends: vec![one("tcp://10.0.0.1:4000", tunnels)],
        ..ServiceStats::default()
    };
    let sessions = Snapshot { tunnels: 31, errors: counted([0; 5]).errors, ..Snapshot::default() };
    let orders = ServiceStats {
        name: "postgres.orders.write".to_owned(),
        backends: vec![one("a", sessions)],
        postgres: PostgresStats { waiting: 1, held: 9, resumed: 7, bound: 2 },
        ..ServiceStats::default()
    };
    Stats { services: vec![billing, web, orders], connections: 18, ..Stats::default() }
}

fn picture() -> Picture {
    let target = |service: &str, backend: &str| Target::Backend {
        service: service.to_owned(),
        backend: backend.to_owned(),
    };
    Picture {
        databases: None,
        addresses: None,
        names: Arc::default(),
        routers: BTreeMap::new(),
        cluster: None,
        view: view(),
        topology: Arc::new(crate::file::parse("shop.toml", FILE).unwrap()),
        proxy: ProxyView { pid: Some(4242), draining: vec![4100], refused: None, silent: None },
        probes: BTreeMap::from([
            ((target("web", "http://10.0.0.1:3000"), Code::Ok), 700),
            ((target("web", "http://10.0.0.1:3000"), Code::Timeout), 1),
            ((Target::External { name: "stripe".to_owned() }, Code::Refused), 3),
        ]),
        vitals: Vitals {
            disk: Some(Usage { used: 25, total: 100 }),
            memory: Some(Usage { used: 500, total: 1000 }),
        },
        at: ago(0),
    }
}

/// A node with a bit of everything: degraded, a pair, counters.
pub(super) fn scene() -> Scene {
    Scene {
        node: "a".to_owned(),
        version: "0.1.0",
        started_at: ago(93_600),
        uptime: Duration::from_secs(93_600),
        now: ago(0),
        stopping: false,
        picture: Arc::new(picture()),
        stats: stats(),
        stats_age: Duration::from_millis(250),
        rates: BTreeMap::from([("web".to_owned(), 120.25)]),
    }
}

/// The scene with one thing changed.
fn but(change: impl FnOnce(&mut Scene, &mut Picture)) -> Scene {
    let mut scene = scene();
    let mut picture = picture();
    change(&mut scene, &mut picture);
    scene.picture = Arc::new(picture);
    scene
}

/// The words of an answer: the verdict, then the checks that do not pass.
fn words(scene: &Scene, question: Question) -> String {
    let answer = health(scene, question, Detail::Full);
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(body["status"], answer.verdict.word());
    let mut words = answer.verdict.word().to_owned();
    for (name, check) in body["checks"].as_object().into_iter().flatten() {
        let (status, output) = (&check[0]["status"], &check[0]["output"]);
        if status != "pass" {
            words += &format!(
                "\n{name} {}: {}",
                status.as_str().unwrap(),
                output.as_str().unwrap_or("-")
            );
        }
    }
    words
}

fn check(scene: &Scene, question: Question, expected: &Expect) {
    expected.assert_eq(&words(scene, question));
}

#[test]
fn health_names_everything_that_is_not_as_it_should_be() {
    check(
        &scene(),
        Question::Whole,
        &expect![[r#"
        warn
        external:stripe warn: connect stripe.example:443: refused
        postgres:orders warn: not watched by this version
        service:web warn: 1 of 2 backends up"#]],
    );
    check(
        &but(|_, picture| picture.view.services.get_mut("web").unwrap().state = ServiceState::Down),
        Question::Whole,
        &expect![[r#"
            fail
            external:stripe warn: connect stripe.example:443: refused
            postgres:orders warn: not watched by this version
            service:web fail: 1 of 2 backends up"#]],
    );
    check(
        &but(|_, picture| {
            picture.view.processes.get_mut("api").unwrap().state = ProcessState::Waiting;
            picture.vitals.disk = Some(Usage { used: 96, total: 100 });
            picture.vitals.memory = Some(Usage { used: 96, total: 100 });
        }),
        Question::Whole,
        &expect![[r#"
            fail
            disk:utilization fail: the disk is 96 % full
            external:stripe warn: connect stripe.example:443: refused
            memory:utilization warn: the memory is 96 % full
            postgres:orders warn: not watched by this version
            process:api fail: the program runs
            service:web warn: 1 of 2 backends up"#]],
    );
}

#[test]
fn live_looks_at_nothing() {
    let worst = but(|scene, picture| {
        scene.stopping = true;
        *picture = Picture::default();
    });
    check(&worst, Question::Live, &expect!["pass"]);
}

#[test]
fn ready_while_something_can_be_served_and_nothing_is_unknown() {
    let all = |state: ServiceState| {
        but(move |_, picture| picture.view.services.values_mut().for_each(|s| s.state = state))
    };
    let web = |state: ServiceState| {
        but(move |_, picture| picture.view.services.get_mut("web").unwrap().state = state)
    };
    check(
        &scene(),
        Question::Ready,
        &expect![[r#"
        warn
        service:web warn: 1 of 2 backends up"#]],
    );
    check(&all(ServiceState::Up), Question::Ready, &expect!["pass"]);
    check(
        &all(ServiceState::Down),
        Question::Ready,
        &expect![[r#"
        fail
        service:billing fail: the primary serves
        service:web fail: 1 of 2 backends up"#]],
    );
    check(
        &web(ServiceState::Down),
        Question::Ready,
        &expect![[r#"
        warn
        service:web fail: 1 of 2 backends up"#]],
    );
    check(
        &web(ServiceState::Unknown),
        Question::Ready,
        &expect![[r#"
        fail
        service:web fail: 1 of 2 backends up"#]],
    );
    check(
        &but(|scene, _| scene.stopping = true),
        Question::Ready,
        &expect![[r#"
        fail
        agent:state fail: the agent is stopping
        service:web warn: 1 of 2 backends up"#]],
    );
    check(
        &but(|_, picture| picture.proxy.pid = None),
        Question::Ready,
        &expect![[r#"
        fail
        proxy:state fail: no proxy runs; one is started
        service:web warn: 1 of 2 backends up"#]],
    );
    check(
        &but(|_, picture| picture.at = ago(16)),
        Question::Ready,
        &expect![[r#"
        fail
        agent:picture fail: the agent has decided nothing for 16s; look at its log
        service:web warn: 1 of 2 backends up"#]],
    );
    check(
        &but(|_, picture| *picture = Picture::default()),
        Question::Ready,
        &expect![[r#"
        fail
        agent:picture fail: no topology has been put in force yet
        proxy:state warn: no proxy runs; one is started"#]],
    );
}

#[test]
fn a_service_without_the_lease_of_this_node_is_down_here_whatever_its_backends_could_do() {
    let withheld = |ended| {
        but(move |scene, _| {
            scene.stats.lease.ended = ended;
            scene.stats.services[0].unvouched = true;
        })
    };
    for (ended, why) in [
        (0, "not served: this node holds no lease yet; the primary serves"),
        (1, "not served: this node's lease has ended; the primary serves"),
    ] {
        let scene = withheld(ended);
        let billing = &Status::of(&scene).services["billing"];
        assert_eq!((billing.state, billing.why.as_str()), (Mark::Down, why));
    }
    check(
        &withheld(1),
        Question::Ready,
        &expect![[r#"
            warn
            service:billing fail: not served: this node's lease has ended; the primary serves
            service:web warn: 1 of 2 backends up"#]],
    );
}

#[test]
fn started_once_a_topology_is_in_force_and_the_proxy_runs() {
    check(&scene(), Question::Started, &expect!["pass"]);
    check(
        &but(|_, picture| *picture = Picture::default()),
        Question::Started,
        &expect![[r#"
        fail
        agent:picture fail: no topology has been put in force yet
        proxy:state warn: no proxy runs; one is started"#]],
    );
}

#[test]
fn strangers_see_names_and_no_reasons() {
    expect![[r#"
        {
          "status": "warn",
          "checks": {
            "agent:picture": [
              {
                "status": "pass"
              }
            ],
            "agent:state": [
              {
                "status": "pass"
              }
            ],
            "proxy:state": [
              {
                "status": "pass"
              }
            ],
            "service:billing": [
              {
                "status": "pass"
              }
            ],
            "service:web": [
              {
                "status": "warn"
              }
            ]
          }
        }
    "#]]
    .assert_eq(&health(&scene(), Question::Ready, Detail::Names).body);
    expect![[r#"
        {
          "status": "warn",
          "version": "0.1.0",
          "serviceId": "shop/a",
          "description": "outlast node a of cluster shop",
          "checks": {
            "agent:picture": [
              {
                "componentType": "component",
                "status": "pass",
                "time": "2026-11-22T15:04:05.000Z"
              }
            ],
            "agent:state": [
              {
                "componentType": "component",
                "observedValue": "running",
                "status": "pass",
                "since": "2026-11-21T13:04:05.000Z",
                "time": "2026-11-22T15:04:05.000Z"
              }
            ],
            "proxy:state": [
              {
                "componentType": "component",
                "observedValue": "serving",
                "status": "pass",
                "time": "2026-11-22T15:04:05.000Z"
              }
            ],
            "service:billing": [
              {
                "componentType": "component",
                "observedValue": "up",
                "status": "pass",
                "since": "2026-11-22T15:00:53.000Z",
                "time": "2026-11-22T15:04:05.000Z"
              }
            ],
            "service:web": [
              {
                "componentType": "component",
                "observedValue": "degraded",
                "status": "warn",
                "since": "2026-11-22T15:00:53.000Z",
                "time": "2026-11-22T15:04:05.000Z",
                "output": "1 of 2 backends up"
              }
            ]
          }
        }
    "#]]
    .assert_eq(&health(&scene(), Question::Ready, Detail::Full).body);
    expect![[r#"
        {
          "status": "pass"
        }
    "#]]
    .assert_eq(&health(&scene(), Question::Live, Detail::Names).body);
}

#[test]
fn status_has_everything_and_reads_back() {
    let status = Status::of(&scene());
    expect_file!["expected/status.json"].assert_eq(&status.to_json());
    assert_eq!(serde_json::from_str::<Status>(&status.to_json()).unwrap(), status);
    // What an older agent does not send, and what only a newer one sends.
    let other: Status = serde_json::from_str(r#"{"v":1,"node":"a","moon":"full"}"#).unwrap();
    assert_eq!((other.node.as_str(), other.proxy.pid), ("a", None));
}

fn events() -> Vec<Line> {
    let event = |seq, fact| Line::of(&Event { seq, at: ago(5), node: "a".to_owned(), fact });
    vec![
        event(1, Fact::AgentStarted { version: "0.1.0".to_owned(), resumed: false }),
        event(2, Fact::BothDown { service: "<b>".to_owned() }),
    ]
}

#[test]
fn the_page_shows_the_scene() {
    let html = page(&Status::of(&scene()), &events(), "abc");
    let main = html.split_once("<main>").unwrap().1.split_once("</main>").unwrap().0;
    expect_file!["expected/page.html"].assert_eq(main);
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_no_script() {
    let html = page(&Status::of(&scene()), &events(), "abc");
    for banned in ["http-equiv=\"refresh\" content=\"2\" url", "src=", "@import", "url(", "//cdn"] {
        assert!(!html.contains(banned), "{banned}");
    }
    assert!(html.contains("<noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript>"));
    assert!(html.contains("<script nonce=\"abc\">"));
    assert_eq!(html.matches("<script").count(), 1);
}

#[test]
fn a_proxy_that_says_nothing_makes_its_services_unknown_and_never_up() {
    let silent =
        |seconds| but(|_, picture| picture.proxy.silent = Some(Duration::from_secs(seconds)));
    let status = Status::of(&silent(3));
    assert_eq!(status.services["billing"].state, Mark::Up, "one that is slow is not silent");
    assert_eq!(status.proxy.silent_seconds, None);

    let scene = silent(7);
    let status = Status::of(&scene);
    assert_eq!(status.proxy.silent_seconds, Some(7));
    assert_eq!(status.proxy.silent_since, Some(ago(7).to_string()));
    for service in status.services.values() {
        assert_eq!((service.state, service.for_seconds), (Mark::Unknown, Some(7)));
        assert!(service.why.starts_with("the proxy has not answered for 7 s; "), "{}", service.why);
    }
    assert!(page(&status, &events(), "abc").contains("The proxy has not answered for 7s."));
    let metrics = print(&scene, Form::Text);
    assert!(metrics.contains("outlast_service_state{service=\"web\",state=\"unknown\"} 1"));
    assert_eq!(health(&scene, Question::Ready, Detail::Full).verdict, Verdict::Fail);

    let gone = but(|_, picture| picture.proxy.pid = None);
    let status = Status::of(&gone);
    assert_eq!(status.services["billing"].state, Mark::Unknown);
    assert_eq!(status.services["billing"].why, "no proxy runs; one is started; the primary serves");
}

#[test]
fn whatever_stands_in_a_text_stays_text() {
    let evil = "</table><script>alert('1')</script>\"&";
    let scene = but(|scene, picture| {
        scene.node = evil.to_owned();
        picture.proxy.refused = Some(evil.to_owned());
        let view = &mut picture.view;
        let web = view.services.get_mut("web").unwrap();
        web.why = evil.to_owned();
        web.next = Some(evil.to_owned());
        web.backends[0].reason = evil.to_owned();
        web.backends[0].name = evil.to_owned();
        let web = view.services["web"].clone();
        view.services.insert(evil.to_owned(), web);
        view.processes.get_mut("api").unwrap().reason = evil.to_owned();
        view.externals.get_mut("stripe").unwrap().reason = evil.to_owned();
    });
    let line = Line::of(&Event {
        seq: 1,
        at: ago(5),
        node: evil.to_owned(),
        fact: Fact::FailoverFailed {
            service: evil.to_owned(),
            epoch: Epoch(1),
            reason: evil.to_owned(),
        },
    });
    let html = page(&Status::of(&scene), &[line], "abc");
    assert_eq!(html.matches("<script").count(), 1);
    assert!(!html.contains("alert('"));
    assert!(
        html.contains("&lt;/table&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;")
    );
}
