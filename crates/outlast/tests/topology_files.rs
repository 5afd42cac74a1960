//! Good files and what they mean; bad ones of every kind that must not bring the parser down.

use std::collections::BTreeSet;
use std::num::{NonZeroI16, NonZeroU8, NonZeroU16, NonZeroU32};
use std::time::{Duration, Instant};

use outlast::file::{FILE_MAX, parse, schema};
use outlast_core::health::Thresholds;
use outlast_core::heartbeat::Pace;
use outlast_core::topology::*;
use outlast_core::vrrp::Interval;
use outlast_core::vrrp::wire::Dialect;
use proptest::prelude::*;
use serde_json::Value;

const SHOP: &str = include_str!("../../../examples/shop.toml");
const EVERY_KEY: &str = include_str!("every_key.toml");

fn good(text: &str) -> Topology {
    parse("outlast.toml", text).unwrap_or_else(|complaints| panic!("{complaints}"))
}

fn messages(text: &str) -> Vec<String> {
    let complaints = parse("outlast.toml", text).expect_err("the file is broken");
    complaints.list().iter().map(|complaint| complaint.message.clone()).collect()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn count(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).expect("tests count from one")
}

fn command(words: &[&str]) -> Command {
    Command(words.iter().map(|&word| word.to_owned()).collect())
}

fn part(kind: PartKind, name: &str) -> PartRef {
    PartRef { kind, name: name.to_owned() }
}

fn http_probe(probe: &Probe) -> &HttpCheck {
    if let Check::Http(check) = &probe.check { check } else { panic!("{probe:?}") }
}

fn pair(service: &Service) -> &Pair {
    if let Pool::Pair(pair) = &service.pool { pair } else { panic!("{service:?}") }
}

#[test]
fn every_example_is_a_good_file() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
    let mut seen = 0;
    for file in std::fs::read_dir(dir).expect("there are examples") {
        let path = file.expect("it can be read").path();
        good(&std::fs::read_to_string(&path).expect("it is text"));
        seen += 1;
    }
    assert!(seen > 0);
}

#[test]
fn the_example_means_what_it_says() {
    let shop = good(SHOP);
    assert_eq!(shop.cluster.name, "shop");
    assert_eq!(shop.cluster.face, Some("127.0.0.1:9400".parse().unwrap()));
    assert_eq!(shop.cluster.tls.unwrap().ca, "/etc/outlast/ca.pem");
    assert_eq!(shop.consensus.kind, ConsensusKind::Embedded);
    assert_eq!(shop.consensus.voters, ["berlin1", "berlin2", "paris"]);
    assert_eq!(shop.nodes["berlin1"].reliability, Some(Reliability::Availability(0.999)));
    assert_eq!(
        shop.nodes["berlin2"].reliability,
        Some(Reliability::Mtbf { mtbf: seconds(60 * 86_400), mttr: seconds(3600) })
    );
    assert_eq!(shop.nodes["paris"].cost_per_month, Some(52.0));

    let web = &shop.services["web"];
    assert_eq!(web.listen, Some("0.0.0.0:80".parse().unwrap()));
    let Pool::Balanced { backends, balance } = &web.pool else { panic!("{web:?}") };
    assert_eq!(backends[2].authority(), "10.2.0.1:3000");
    assert_eq!(*balance, Balance::LeastRequests);
    assert_eq!(http_probe(&web.probe).target, HttpTarget::Path("/health/ready".to_owned()));
    assert_eq!(http_probe(&web.probe).status, StatusSet(vec![(200, 299)]));
    assert_eq!(web.probe.thresholds, Thresholds { rise: count(2), fall: count(3) });
    assert_eq!(web.needs, [part(PartKind::Postgres, "orders"), part(PartKind::Redis, "sessions")]);
    assert_eq!(web.may_use, [part(PartKind::External, "tax")]);
    assert_eq!(web.at_least, count(2));

    let api = &shop.processes["api"];
    let words = ["/opt/shop/bin/api", "--port", "3000", "--greeting", "Hello, world"];
    assert_eq!(api.command, command(&words));
    assert_eq!(api.memory_limit, Some(768 << 20));
    assert_eq!(api.cpu_limit, Some(1.5));
    assert_eq!(api.environment["RUST_LOG"], "info");
    let liveness = api.liveness.as_ref().unwrap();
    assert_eq!(liveness.delay, seconds(30));
    assert_eq!(liveness.thresholds.rise, count(1));
    assert_eq!(http_probe(liveness).status, StatusSet(vec![(200, 399)]));
    assert_eq!(
        http_probe(liveness).target,
        HttpTarget::Url {
            tls: false,
            authority: Authority { host: "127.0.0.1".to_owned(), port: count(3000) },
            path: "/health/live".to_owned(),
        }
    );

    let invoices = pair(&shop.services["invoices"]);
    assert_eq!(invoices.failback, Failback::After(seconds(60)));
    assert_eq!(
        invoices.standby,
        Standby::Cold {
            start: command(&["systemctl", "start", "invoices"]),
            stop: Some(command(&["systemctl", "stop", "invoices"])),
            start_limit: seconds(120),
        }
    );

    let orders = &shop.postgres["orders"];
    assert_eq!(orders.durability, Durability::Quorum { acks: count(1), acks_min: 1 });
    assert_eq!(orders.lag_limit, 32 << 20);
    let parameters: Vec<(&str, &str)> =
        orders.parameters.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(
        parameters,
        [("log_checkpoints", "on"), ("max_connections", "200"), ("shared_buffers", "1GB")]
    );
    assert_eq!(shop.redis["sessions"].sentinel, Some("0.0.0.0:26379".parse().unwrap()));
    assert_eq!(shop.stores["flags"].mode, StoreMode::ActiveActive);
    assert_eq!(shop.stores["flags"].nodes, ["berlin1", "berlin2", "paris"]);
    let entry = &shop.addresses["entry"];
    assert_eq!(entry.vrrp().map(|vrrp| vrrp.id), NonZeroU8::new(17));
    assert!(matches!(entry.mode, AddressMode::Lease { follows: None, .. }));
    assert_eq!(entry.preferred(), ["berlin1", "berlin2"]);
    assert_eq!((entry.preempt, &entry.track), (Preempt::Never, &Vec::new()));
    assert_eq!(shop.dns["shop.example"].records.len(), 2);
    assert!(http_probe(shop.externals["tax"].probe.as_ref().unwrap()).tls_verify);
    let objective = &shop.objectives["web"];
    assert_eq!(
        objective.latency,
        [(95.0, Duration::from_millis(250)), (99.9, Duration::from_secs(1))]
    );
    assert_eq!(objective.rpo, Some(Duration::ZERO));
    assert_eq!(shop.agreements["web"].objective, "web");
    assert_eq!(shop.agreements["web"].credits[0], Credit { below: 0.999, percent: 10.0 });
    assert_eq!(shop.cost.revenue_per_hour, Some(1250.0));
    assert_eq!(shop.notify["ops"].email.as_ref().unwrap().to, ["ops@shop.example"]);
    assert_eq!(shop.backups["orders"].of, part(PartKind::Postgres, "orders"));
    assert_eq!(shop.backups["orders"].keep, seconds(30 * 86_400));
}

#[test]
fn every_key_is_read() {
    let all = good(EVERY_KEY);
    let endpoints = ["https://10.0.0.1:2379", "http://[::1]:2379"].map(str::to_owned).to_vec();
    let own = Some(("etcd.pem".to_owned(), "etcd.key".to_owned()));
    let tls = Some(EtcdTls { ca: "etcd-ca.pem".to_owned(), own });
    assert_eq!(all.consensus.kind, ConsensusKind::Etcd { endpoints, tls });
    let service = &all.services["all"];
    assert_eq!(service.tls.len(), 2);
    let backends: Vec<String> = service.pool.backends().iter().map(|b| b.authority()).collect();
    assert_eq!(backends, ["10.0.0.1:443", "b.example.com:8443", "[fd00::1]:80"]);
    let Pool::Balanced { balance, .. } = &service.pool else { panic!("{service:?}") };
    assert_eq!(*balance, Balance::Hash(HashKey::Cookie("session".to_owned())));
    let check = http_probe(&service.probe);
    assert_eq!(check.status, StatusSet(vec![(200, 200), (204, 206), (304, 304)]));
    assert_eq!(check.headers.len(), 2);
    assert_eq!((check.method.as_str(), check.tls_verify), ("HEAD", false));
    assert_eq!(
        service.retry,
        Retry {
            attempts: count(2),
            backoff: Duration::ZERO,
            budget: 1.0,
            try_timeout: seconds(3),
            on: RetryOn { connect: true, reset: false, timeout: false, status_5xx: true },
        }
    );
    assert_eq!(
        service.eject,
        Eject {
            failures: 7,
            rate_5xx: None,
            rate_min: 50,
            time: seconds(1),
            max_time: seconds(60)
        }
    );
    assert_eq!(service.timeouts.tunnel, seconds(6));
    assert_eq!(
        service.limits,
        Limits {
            head_bytes: 16 << 10,
            headers: 50,
            body_bytes: 1 << 20,
            connections: NonZeroU32::new(7).unwrap(),
            requests: NonZeroU32::new(8).unwrap(),
            per_backend: 9,
            queue: 10,
        }
    );
    assert_eq!(service.panic, Some(0.5));
    assert_eq!(service.forwarded, Forwarded::Both);
    assert_eq!(service.trusted[2].prefix, 32);
    assert_eq!(
        service.proxy_protocol,
        ProxyProtocol { accept: true, send: Some(ProxyVersion::V2) }
    );
    assert!(!service.critical);

    let warm = &all.services["warm"];
    assert_eq!(warm.protocol, Protocol::Tcp);
    assert_eq!(warm.panic, None);
    assert_eq!((warm.eject.failures, warm.eject.rate_5xx), (0, None));
    assert_eq!(pair(warm).failback, Failback::Manual);
    let activate = Some(command(&["promote", "--now"]));
    assert_eq!(pair(warm).standby, Standby::Warm { activate });
    assert!(matches!(&warm.probe.check, Check::Grpc { tls: true, address: Some(_), .. }));
    assert_eq!(all.services["hot"].probe.check, Check::Command(command(&["check", "{backend}"])));
    assert_eq!(all.processes["worker"].command, command(&["/usr/bin/worker", "", "a b"]));
    let own = Durability::Quorum { acks: count(1), acks_min: 0 };
    assert_eq!(all.postgres["own"].durability, own);
    assert_eq!(all.postgres["own"].home.as_deref(), Some("berlin"));
    assert_eq!(all.postgres["other"].durability, Durability::Async);
    assert_eq!(all.postgres["own"].data_dir, "/var/lib/outlast/own");
    let both = all.externals["both"].probe.as_ref().unwrap();
    assert_eq!(both.every, seconds(30));
    assert!(matches!(&http_probe(both).target, HttpTarget::Url { path, .. } if path == "/"));
    assert_eq!(all.externals["counted"].at_least, count(2));
    assert_eq!(all.cost.revenue_per_hour, Some(1000.0));
}

#[test]
fn every_key_of_an_address_is_read() {
    let all = good(EVERY_KEY);
    let edge = &all.addresses["edge"];
    let others = vec!["10.0.0.3".parse().unwrap()];
    let vrrp = Vrrp {
        id: NonZeroU8::new(51).unwrap(),
        advert: Interval::of_centiseconds(10).unwrap(),
        peers: Peers::Unicast { others },
        checksum: Some(Dialect::MessageOnly),
    };
    assert_eq!(edge.mode, AddressMode::Vrrp(vrrp));
    assert_eq!(edge.ips.len(), 2);
    assert_eq!(edge.priorities["a"].get(), 200);
    assert_eq!(edge.priorities["b"].get(), 100);
    assert_eq!(edge.preempt, Preempt::After(seconds(10)));
    assert_eq!(edge.group, all.addresses["edge6"].group);
    let script = Tracked::Script {
        command: command(&["/usr/bin/check"]),
        every: seconds(2),
        timeout: seconds(1),
        thresholds: Thresholds { rise: count(1), fall: count(3) },
    };
    let weight = NonZeroI16::new;
    assert_eq!(
        edge.track,
        [
            Track { what: Tracked::Interface("eth1".to_owned()), weight: None },
            Track { what: Tracked::Part(part(PartKind::Service, "all")), weight: weight(-50) },
            Track { what: script, weight: weight(20) },
        ]
    );
    let edge6 = all.addresses["edge6"].vrrp().unwrap();
    assert_eq!((edge6.advert, &edge6.peers), (edge.vrrp().unwrap().advert, &Peers::Multicast));
    assert_eq!(edge6.checksum, None);
    assert_eq!(all.addresses["database"].follows(), Some(&part(PartKind::Postgres, "own")));
    assert_eq!(all.addresses["database"].nodes, ["a", "b"]);
    assert_eq!(all.addresses["pair"].follows(), Some(&part(PartKind::Service, "hot")));
    assert_eq!(all.addresses["pair"].nodes, ["a", "b"]);
    let AddressMode::Lease { split_brain, .. } = all.addresses["split"].mode else { panic!() };
    let pace = Pace { every: seconds(3), timeout: seconds(10) };
    assert_eq!(split_brain, SplitBrain::Accept(pace));
}

#[test]
fn a_simple_failover_stays_as_it_was() {
    let zone = &good(SHOP).dns["shop.example"];
    let value = |text: &str| RecordValue::A(text.parse().unwrap());
    let entry = |text, check| Entry { what: Branch::Value(value(text)), check };
    let web = Some(HealthCheck::Part(part(PartKind::Service, "web")));
    assert_eq!(
        zone.records[0],
        Record {
            name: "www".to_owned(),
            kind: RecordKind::A,
            policy: Policy::Failover {
                entries: vec![entry("192.0.2.10", web), entry("198.51.100.20", None)],
                follows: None,
                failback: Failback::After(seconds(30)),
            },
            check: None,
            ttl: seconds(60),
            ttl_degraded: seconds(30),
            when_all_down: WhenAllDown::Open,
        }
    );
    let simple = Policy::Simple(vec![Endpoint {
        value: RecordValue::Txt("v=spf1 -all".to_owned()),
        check: None,
    }]);
    assert_eq!(zone.records[1].policy, simple);
    assert_eq!((zone.rule, zone.cookies, zone.dnssec), (VerdictRule::Majority, true, false));
    assert_eq!(zone.rate_limit, NonZeroU32::new(200));
    assert_eq!(zone.soa.minimum, seconds(30));
}

#[test]
fn every_key_of_a_zone_is_read() {
    let zone = &good(EVERY_KEY).dns["example.com"];
    assert_eq!(zone.ns, ["ns1.example.com", "ns2.example.com"]);
    assert_eq!(zone.soa.rname.as_deref(), Some("ops@example.com"));
    let secondaries: Vec<String> = zone.secondaries.iter().map(ToString::to_string).collect();
    assert_eq!(secondaries, ["10.0.0.9:53", "10.0.0.8:5353"]);
    let elsewhere: Vec<String> = zone.elsewhere.iter().map(ToString::to_string).collect();
    assert_eq!(elsewhere, ["192.0.2.53:53", "Route 53 zone Z1234567890ABC"]);
    assert_eq!((zone.rule, zone.rate_limit), (VerdictRule::Above(0.18), None));
    assert_eq!(zone.regions["eu-west"].len(), 2);
    let latency = &zone.latencies[&("eu-west".to_owned(), "us-east".to_owned())];
    assert_eq!(*latency, Duration::from_millis(80));
    let record = |name: &str| zone.records.iter().find(|record| record.name == name).unwrap();

    let Policy::Failover { entries, failback, .. } = &record("order").policy else { panic!() };
    assert_eq!((entries.len(), *failback), (3, Failback::Manual));
    let Some(HealthCheck::Value(probe)) = &entries[2].check else { panic!("{entries:?}") };
    assert_eq!(probe.id, "order.example.com A 192.0.2.3:80");
    assert_eq!(probe.probe.thresholds, Thresholds { rise: count(3), fall: count(3) });

    let Policy::Weighted(entries) = &record("share").policy else { panic!() };
    let weights: Vec<u16> = entries.iter().map(|(weight, _)| *weight).collect();
    assert_eq!(weights, [1, 3, 0]);
    assert_eq!(entries[1].1.check, Some(HealthCheck::Part(part(PartKind::Service, "all"))));
    let many = record("many");
    let Policy::Multivalue(endpoints) = &many.policy else { panic!("{many:?}") };
    assert!(
        matches!(&endpoints[1].check, Some(HealthCheck::Value(probe)) if probe.port.get() == 443)
    );
    assert_eq!((many.ttl, many.ttl_degraded), (seconds(120), seconds(10)));

    let Policy::Latency(entries) = &record("near").policy else { panic!() };
    let Branch::Policy(Policy::Failover { entries: inner, .. }) = &entries[1].1.what else {
        panic!("{entries:?}")
    };
    assert_eq!(inner[0].check, Some(HealthCheck::Part(part(PartKind::Service, "all"))));
    let alias = Policy::Alias { target: "many".to_owned(), evaluate: true };
    assert_eq!(entries[3].1.what, Branch::Policy(alias));
    let Policy::Geo { entries, .. } = &record("where").policy else { panic!() };
    assert_eq!(entries[0].0, zone.regions["eu-west"]);

    let counted = record("counted");
    let Some(HealthCheck::Calculated { at_least, of, invert: false }) = &counted.check else {
        panic!("{counted:?}")
    };
    assert_eq!((at_least.get(), of.len()), (2, 3));
    let sorry = WhenAllDown::Sorry(vec![RecordValue::A("192.0.2.99".parse().unwrap())]);
    assert_eq!(counted.when_all_down, sorry);
}

#[test]
fn a_service_with_backends_alone_has_safe_defaults() {
    let topology = good("[service.web]\nbackends = [\"http://10.0.0.1:3000\"]\n");
    let millis = Duration::from_millis;
    let expected = Service {
        listen: None,
        protocol: Protocol::Http,
        tls: Vec::new(),
        pool: Pool::Balanced {
            backends: vec![Backend {
                url: "http://10.0.0.1:3000".to_owned(),
                tls: false,
                host: "10.0.0.1".to_owned(),
                port: count(3000),
            }],
            balance: Balance::RoundRobin,
        },
        probe: Probe {
            check: Check::Tcp { address: None },
            every: seconds(5),
            timeout: seconds(2),
            thresholds: Thresholds { rise: count(2), fall: count(3) },
            delay: Duration::ZERO,
        },
        retry: Retry {
            attempts: count(3),
            backoff: millis(100),
            budget: 0.2,
            try_timeout: seconds(10),
            on: RetryOn { connect: true, reset: true, timeout: true, status_5xx: true },
        },
        eject: Eject {
            failures: 5,
            rate_5xx: Some(0.5),
            rate_min: 20,
            time: seconds(5),
            max_time: seconds(300),
        },
        timeouts: Timeouts {
            connect: seconds(2),
            head: seconds(10),
            body: seconds(30),
            idle: seconds(60),
            backend_idle: seconds(30),
            tunnel: seconds(3600),
            drain: seconds(30),
            queue: seconds(1),
        },
        limits: Limits {
            head_bytes: 32 << 10,
            headers: 100,
            body_bytes: 0,
            connections: NonZeroU32::new(20_000).unwrap(),
            requests: NonZeroU32::new(10_000).unwrap(),
            per_backend: 0,
            queue: 1000,
        },
        panic: Some(0.0),
        slow_start: Duration::ZERO,
        forwarded: Forwarded::XForwarded,
        trusted: Vec::new(),
        proxy_protocol: ProxyProtocol { accept: false, send: None },
        needs: Vec::new(),
        may_use: Vec::new(),
        at_least: count(1),
        reliability: None,
        critical: true,
    };
    assert_eq!(topology.services["web"], expected);
}

#[test]
fn an_empty_file_is_one_machine_that_does_nothing() {
    let topology = good("");
    let face = Some("127.0.0.1:9400".parse().unwrap());
    let cluster = Cluster {
        name: "outlast".to_owned(),
        data_dir: "/var/lib/outlast".to_owned(),
        tls: None,
        port: LinkPort::default(),
        face,
        proxy_threads: None,
    };
    assert_eq!(topology, Topology { cluster, ..Topology::default() });
    assert_eq!(good("[cluster]\nface = \"off\"\n").cluster.face, None);
}

#[test]
fn the_first_three_nodes_vote_unless_the_file_says_who() {
    let nodes = "[node.b]\naddress = \"10.0.0.2\"\n[node.a]\naddress = \"10.0.0.1\"\n";
    assert_eq!(good(nodes).consensus.voters, ["a", "b"]);
    let more = "[node.d]\naddress = \"10.0.0.4\"\n[node.c]\naddress = \"10.0.0.3\"\n";
    assert_eq!(good(&format!("{nodes}{more}")).consensus.voters, ["a", "b", "c"]);
    let all = "[consensus]\nvoters = [\"a\", \"b\", \"c\", \"d\"]\n";
    assert_eq!(good(&format!("{nodes}{more}{all}")).consensus.voters, ["a", "b", "c", "d"]);
}

#[test]
fn listeners_of_different_nodes_are_not_in_each_others_way() {
    let nodes = "[node.a]\naddress = \"10.0.0.1\"\n[node.b]\naddress = \"10.0.0.2\"\n";
    let store = |name: &str, node: &str| {
        format!("[store.{name}]\nlisten = \"0.0.0.0:6479\"\nnodes = [\"{node}\"]\n")
    };
    good(&format!("{nodes}{}{}", store("one", "a"), store("two", "b")));
    assert_eq!(
        messages(&format!("{nodes}{}{}", store("one", "a"), store("two", "a"))),
        ["[store.one] listens on 0.0.0.0:6479 already"]
    );
}

const THREE_NODES: &str = "\
[node.a]
address = \"10.0.0.1\"
[node.b]
address = \"10.0.0.2\"
[node.c]
address = \"10.0.0.3\"
";

/// A database with these lines, beside three nodes.
fn database(name: &str, lines: &str) -> String {
    format!("[postgres.{name}]\nversion = 16\n{lines}\n")
}

fn check_refused(text: &str, said: &[&str]) {
    assert_eq!(messages(&format!("{THREE_NODES}{text}")), said, "{text}");
}

#[test]
fn what_listens_on_a_nodes_own_address_is_in_nobodys_way() {
    let backends = "backends = [\"http://10.0.0.9:1\"]\n";
    let service = |listen: &str| format!("[service.s]\nlisten = \"{listen}\"\n{backends}");
    let one = database("one", "");
    let other = |lines: &str| format!("{one}{}", database("two", lines));
    let on_port = "the PostgreSQL of [postgres.one] listens on";
    let link = "the agent (`port` in [cluster]) listens on";
    for (text, said) in [
        (other(""), format!("{on_port} 10.0.0.1:5432 already")),
        (other("nodes = [\"b\"]"), format!("{on_port} 10.0.0.2:5432 already")),
        (database("one", "port = 8901"), format!("{link} 10.0.0.1:8901 already")),
        (
            format!("[cluster]\nport = 5432\n{one}"),
            "the agent (`port` in [cluster]) listens on 10.0.0.1:5432 already".to_owned(),
        ),
        (
            format!("[node.d]\naddress = \"10.0.0.4\"\nport = 5432\n{one}"),
            "the agent (`port` in [node.d]) listens on 10.0.0.4:5432 already".to_owned(),
        ),
        (
            format!("{one}{}", service("0.0.0.0:5432")),
            format!("{on_port} 10.0.0.1:5432 already, which takes 0.0.0.0:5432 too"),
        ),
        (
            format!("{one}{}", service("[::]:5432")),
            format!("{on_port} 10.0.0.1:5432 already, which takes [::]:5432 too"),
        ),
        (
            format!("{}{one}", service("0.0.0.0:5432")),
            "[service.s] listens on 0.0.0.0:5432 already, which takes 10.0.0.1:5432 too".to_owned(),
        ),
        (format!("{one}{}", service("10.0.0.2:5432")), format!("{on_port} 10.0.0.2:5432 already")),
        (
            format!("[cluster]\nface = \"10.0.0.3:5432\"\n{one}"),
            "`face` in [cluster] listens on 10.0.0.3:5432 already".to_owned(),
        ),
        (
            service("0.0.0.0:8901"),
            format!("{link} 10.0.0.1:8901 already, which takes 0.0.0.0:8901 too"),
        ),
        (
            database("one", "listen = { write = \"10.0.0.1:5432\" }"),
            format!("{on_port} 10.0.0.1:5432 already"),
        ),
        (
            format!(
                "{}{}",
                database("one", "nodes = [\"a\"]\nlisten = { write = \"0.0.0.0:6432\" }"),
                database("two", "nodes = [\"b\"]\nlisten = { read = \"0.0.0.0:6432\" }")
            ),
            "`write` of [postgres.one] listens on 0.0.0.0:6432 already".to_owned(),
        ),
    ] {
        check_refused(&text, &[&said]);
    }
    for text in [
        other("port = 5433"),
        format!("{}{}", database("one", "nodes = [\"a\"]"), database("two", "nodes = [\"b\"]")),
        format!("{one}{}", service("127.0.0.1:5432")),
        format!("{}{}", database("one", "nodes = [\"a\"]"), service("10.0.0.2:5432")),
    ] {
        good(&format!("{THREE_NODES}{text}"));
    }
    // A node that is alone does not listen for others.
    good(&format!("[node.a]\naddress = \"10.0.0.1\"\n{}", service("0.0.0.0:8901")));
}

#[test]
fn each_database_has_a_directory_of_its_own() {
    let dir = |name: &str, dir: &str, port: u16| {
        database(name, &format!("data_dir = \"{dir}\"\nport = {port}"))
    };
    let two = |one: &str, other: &str| format!("{}{}", dir("x", one, 1), dir("y", other, 2));
    let agent = "would be in the way of the agent, which has files of its own in";
    for (text, said) in [
        (two("/srv/x", "/srv/x"), "[postgres.x] has its data in `/srv/x` already".to_owned()),
        (two("/srv/x", "/srv//x/"), "[postgres.x] has its data in `/srv/x` already".to_owned()),
        (
            two("/srv/x", "/srv/x/y"),
            "`/srv/x/y` lies in `/srv/x`, where [postgres.x] has its data".to_owned(),
        ),
        (
            two("/srv/x/y", "/srv/x"),
            "`/srv/x` holds `/srv/x/y`, where [postgres.x] has its data".to_owned(),
        ),
        (
            format!("{}{}", database("x", ""), dir("y", "/var/lib/outlast/x", 2)),
            "[postgres.x] has its data in `/var/lib/outlast/x` already".to_owned(),
        ),
        (dir("x", "/", 1), "`/` holds all other files".to_owned()),
        (dir("x", "/var/lib", 1), format!("data in `/var/lib` {agent} `/var/lib/outlast/journal`")),
        (
            dir("x", "/var/lib/outlast/", 1),
            "`data_dir` in [cluster] is `/var/lib/outlast/` already".to_owned(),
        ),
        (
            dir("x", "/srv/../var/lib/outlast", 1),
            "`/srv/../var/lib/outlast` goes up again by `..`".to_owned(),
        ),
        (
            format!("[cluster]\ndata_dir = \"/srv/x\"\n{}", dir("x", "/srv", 1)),
            format!("data in `/srv` {agent} `/srv/x/journal`"),
        ),
    ] {
        check_refused(&text, &[&said]);
    }
    let elsewhere = |node: &str, port: u16| {
        database(node, &format!("nodes = [\"{node}\"]\ndata_dir = \"/srv/x\"\nport = {port}"))
    };
    good(&format!("{THREE_NODES}{}{}", elsewhere("a", 1), elsewhere("b", 1)));
    good(&format!("{THREE_NODES}{}", two("/srv/x", "/srv/xy")));
    good(&format!("[cluster]\ndata_dir = \"../state\"\n{THREE_NODES}{}", database("x", "")));
}

#[test]
fn no_database_takes_a_directory_of_the_agent_by_its_name() {
    for name in ["postgres", "journal", "consensus", "processes", "lab-certs"] {
        let complaints = parse("outlast.toml", &format!("{THREE_NODES}{}", database(name, "")));
        let complaints = complaints.expect_err(name);
        let [only] = complaints.list() else { panic!("{complaints}") };
        let own = format!("`/var/lib/outlast/{name}`");
        assert_eq!(
            only.message,
            format!(
                "data in {own} would be in the way of the agent, which has files of its own in {own}"
            )
        );
        let help = &only.help;
        let proposal = format!("data_dir = \"/var/lib/outlast/{name}-data\"");
        assert!(help.contains(&proposal), "{help}");
        good(&format!("{THREE_NODES}{}", database(name, &proposal)));
    }
}

#[test]
fn zones_share_a_name_server() {
    let zone = |name: &str| format!("[dns.\"{name}\"]\nlisten = \"0.0.0.0:53\"\nrecords = []\n");
    good(&format!("{}{}", zone("a.example"), zone("b.example")));
}

#[test]
fn all_mistakes_of_a_file_are_named_at_once() {
    let text = "\
[cluster]
nam = \"shop\"
face = \"nowhere\"

[node.a]
address = \"10.0.0.999\"
zone = 1

[service.web]
listen = 80
backends = [\"http://10.0.0.1:3000/\", \"10.0.0.2:3000\"]
probe = { http = \"health\", every = \"5\", timeout = \"2sec\", rise = 0 }
retry = { attempts = 0 }
needs = [\"postgres.orders\"]
at_least = \"2\"

[process.api]
nodes = [\"b\"]

[postgres.users]
version = 1

[notify.ops]
";
    assert_eq!(
        messages(text),
        [
            "[cluster] has no key `nam`",
            "`nowhere` is not an IP address and a port",
            "`10.0.0.999` is not an IP address",
            "`zone` cannot be a number",
            "`listen` cannot be a number",
            "a backend has no path: `http://10.0.0.1:3000/`",
            "`10.0.0.2:3000` does not say how to speak to the backend",
            "`health` is neither a path nor a URL",
            "the duration `5` has no unit",
            "the duration `2sec` has an unknown unit",
            "`rise` is out of range: 0",
            "`attempts` is out of range: 0",
            "there is no postgres `orders`",
            "`at_least` cannot be a string",
            "`command` is missing in [process.api]",
            "there is no node `b`",
            "`version` is out of range: 1",
            "nobody is told anything here",
        ]
    );
}

#[test]
fn a_mistake_is_named_though_other_lines_do_not_parse() {
    let text = "[cluster]\nname = shop\nfase = \"off\"\n\n[node.a]\naddress = 10.0.0.1\nzone = 3\n";
    assert_eq!(
        messages(text),
        [
            "text stands in quotes",
            "[cluster] has no key `fase`",
            "text stands in quotes",
            "`zone` cannot be a number",
        ]
    );
}

#[test]
fn a_list_of_complaints_has_their_places() {
    let complaints = parse("shop.toml", "# é\n[cluster]\n  'é' = 1\nface = \"x\"\n").unwrap_err();
    let places: Vec<(usize, usize)> =
        complaints.list().iter().map(|complaint| (complaint.line, complaint.column)).collect();
    assert_eq!(places, [(3, 3), (4, 8)]);
    assert!(complaints.render(false).ends_with("\nshop.toml: 2 mistakes\n"));
    assert!(complaints.render(true).contains("\u{1b}["));
    assert!(!complaints.render(false).contains('\u{1b}'));
}

#[test]
fn a_file_that_is_too_large_is_refused_by_its_size() {
    let text = "#".repeat(FILE_MAX + 1);
    assert_eq!(messages(&text), ["the file is larger than 1MiB"]);
    good(&text[1..]);
}

#[test]
fn a_large_and_hopeless_file_is_refused_soon() {
    const LARGE: usize = FILE_MAX / 4;
    let repeat = |what: &str| what.repeat(LARGE / what.len());
    let numbered = |what: fn(usize) -> String| -> String {
        let mut text = String::new();
        for number in 0.. {
            let next = what(number);
            if text.len() + next.len() > LARGE {
                break;
            }
            text.push_str(&next);
        }
        text
    };
    let files = [
        repeat("=\n"),
        repeat("a\n"),
        repeat("["),
        repeat("a."),
        repeat("[a]\n"),
        repeat("\"\"\"\n"),
        format!("[service.web]\nneeds = [{}]", repeat("\"service.x\",")[..LARGE - 40].to_owned()),
        format!("[service.web]\nbackends = [{}]", repeat("\"\",")[..LARGE - 40].to_owned()),
        format!("[cost]\n{}", numbered(|n| format!("k{n}=1\n")).split_at(LARGE - 20).0),
        numbered(|n| format!("[service.s{n}]\nlisten=\"10.0.{}.{}:80\"\n", n / 256 % 256, n % 256)),
        numbered(|n| format!("[node.n{n}]\naddress=\"10.0.0.1\"\n")),
        numbered(|n| format!("[process.p{n}]\ncommand=\"x\"\nneeds=[\"process.p{}\"]\n", n + 1)),
        numbered(|n| format!("[process.p{n}]\ncommand=\"x\"\nnodes=[\"p{n}x\"]\n[node.p{n}]\n")),
    ];
    for text in files {
        let begun = Instant::now();
        let text = &text[..text.len().min(LARGE)];
        let complaints = parse("outlast.toml", text).expect_err("the file is broken");
        assert!(complaints.count() >= complaints.list().len());
        let rendered = complaints.render(false);
        let took = begun.elapsed();
        let start: String = text.chars().take(40).collect();
        assert!(rendered.len() < 1 << 20, "{start}: {}", rendered.len());
        assert!(took < seconds(20), "{start}: {took:?}");
    }
}

/// Tables of a record that have the same keys, however deep they lie in each other.
const NESTED: [&str; 4] = ["values", "primary", "secondary", "default"];

/// The path of a key as if it were in the outermost of such tables.
fn unnested(path: &str) -> String {
    let Some(rest) = path.strip_prefix("dns.records.") else { return path.to_owned() };
    let mut words: Vec<&str> = rest.split('.').collect();
    let nested = words.iter().take_while(|word| NESTED.contains(word)).count();
    let outer = nested.min(words.len() - 1);
    if 0 < outer {
        words.splice(..outer, ["values"]);
    }
    format!("dns.records.{}", words.join("."))
}

/// All keys of a schema, as `section.key.key`, without the names of parts and of free keys.
fn keys_of_schema(schema: &Value, root: &Value, path: &str, keys: &mut BTreeSet<String>) {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let definition = root.pointer(reference.trim_start_matches('#')).expect("it is defined");
        return keys_of_schema(definition, root, path, keys);
    }
    for (key, value) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = unnested(format!("{path}.{key}").trim_start_matches('.'));
        // A policy may lie in a policy.
        if keys.insert(path.clone()) {
            keys_of_schema(value, root, &path, keys);
        }
    }
    for inner in ["additionalProperties", "items"] {
        if let Some(value) = schema.get(inner) {
            keys_of_schema(value, root, path, keys);
        }
    }
    for value in schema.get("anyOf").and_then(Value::as_array).into_iter().flatten() {
        keys_of_schema(value, root, path, keys);
    }
}

/// All keys of a file, written in the same way.
fn keys_of_file(value: &toml::Value, path: &str, keys: &mut BTreeSet<String>) {
    const NAMED: [&str; 13] = [
        "node",
        "service",
        "process",
        "postgres",
        "redis",
        "store",
        "address",
        "dns",
        "external",
        "objective",
        "agreement",
        "notify",
        "backup",
    ];
    const FREE: [&str; 8] = [
        "priorities",
        "priority",
        "environment",
        "parameters",
        "headers",
        "latency",
        "regions",
        "latencies",
    ];
    for (key, value) in value.as_table().into_iter().flatten() {
        let path = unnested(format!("{path}.{key}").trim_start_matches('.'));
        keys.insert(path.clone());
        if NAMED.contains(&path.as_str()) {
            for part in value.as_table().into_iter().flatten().map(|(_, part)| part) {
                keys_of_file(part, &path, keys);
            }
        } else if !FREE.contains(&key.as_str()) {
            keys_of_file(value, &path, keys);
        }
    }
    for value in value.as_array().into_iter().flatten() {
        keys_of_file(value, path, keys);
    }
}

#[test]
fn the_schema_and_the_good_files_have_the_same_keys() {
    let schema = schema();
    let mut of_schema = BTreeSet::new();
    keys_of_schema(&schema, &schema, "", &mut of_schema);
    let mut of_files = BTreeSet::new();
    for text in [SHOP, EVERY_KEY] {
        keys_of_file(&text.parse::<toml::Table>().unwrap().into(), "", &mut of_files);
    }
    let unknown: Vec<&String> = of_files.difference(&of_schema).collect();
    assert!(unknown.is_empty(), "not in the schema: {unknown:#?}");
    // A probe has the same keys wherever it is: here they are counted once.
    let probes = ["startup", "liveness", "readiness", "probe"];
    let unused: Vec<&String> = of_schema
        .difference(&of_files)
        .filter(|key| !key.split('.').rev().skip(1).any(|word| probes.contains(&word)))
        .collect();
    assert!(unused.is_empty(), "in no good file: {unused:#?}");
}

#[test]
fn the_schema_describes_every_key() {
    fn visit(schema: &Value) {
        for (key, value) in
            schema.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            let description = value.get("description").and_then(Value::as_str);
            assert!(description.is_some_and(|text| !text.is_empty()), "{key}");
        }
    }
    let schema = schema();
    visit(&schema);
    let definitions = schema["$defs"].as_object().unwrap();
    definitions.values().for_each(visit);
    assert_eq!(definitions["service.NAME"]["properties"]["at_least"]["default"], 1);
    assert_eq!(definitions["service.probe"]["properties"]["every"]["default"], "5s");
    assert_eq!(definitions["process.probe"]["properties"]["every"]["default"], "10s");
}

/// Pieces that files are made of, in no order that makes sense.
const PIECES: [&str; 40] = [
    "[service.web]\n",
    "[node.a]\n",
    "[process.p]\n",
    "[postgres.x]\n",
    "[dns.\"a.b\"]\n",
    "[objective.o]\n",
    "[[service]]\n",
    "[cluster]\n",
    "listen",
    "backends",
    "probe",
    "needs",
    "address",
    "command",
    " = ",
    "=",
    "\"",
    "'",
    "\"\"\"",
    "[",
    "]",
    "{",
    "}",
    ",",
    "\n",
    "\r\n",
    "\"5s\"",
    "\"10.0.0.1:80\"",
    "\"http://10.0.0.1:80\"",
    "http",
    "true",
    "1",
    "-1",
    "1e999",
    "0x7fffffffffffffff",
    "1979-05-27",
    "\\u0000",
    "é",
    "\u{202e}",
    "#",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_text_brings_the_parser_down(text in "\\PC{0,200}") {
        if let Err(complaints) = parse("outlast.toml", &text) {
            prop_assert!(complaints.count() > 0);
            complaints.render(true);
        }
    }

    #[test]
    fn no_heap_of_pieces_brings_the_parser_down(
        pieces in proptest::collection::vec(proptest::sample::select(&PIECES), 0..60)
    ) {
        let text = pieces.concat();
        if let Err(complaints) = parse("outlast.toml", &text) {
            prop_assert!(complaints.count() > 0);
            complaints.render(true);
        }
    }

    #[test]
    fn no_change_of_a_good_file_brings_the_parser_down(
        which in 0..2_usize,
        changes in proptest::collection::vec(
            (any::<proptest::sample::Index>(), 0..8_usize, proptest::sample::select(&PIECES)),
            1..6,
        )
    ) {
        let mut text: Vec<char> = [SHOP, EVERY_KEY][which].chars().collect();
        for (at, cut, put) in changes {
            let at = at.index(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, put.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(complaints) = parse("outlast.toml", &text) {
            prop_assert!(complaints.count() > 0);
            complaints.render(false);
        }
    }
}

#[test]
fn every_beginning_of_a_good_file_is_read_or_refused() {
    for text in [SHOP, EVERY_KEY] {
        for (end, _) in text.char_indices().step_by(7) {
            if let Err(complaints) = parse("outlast.toml", &text[..end]) {
                assert!(complaints.count() > 0, "{end}");
            }
        }
    }
}

#[test]
fn the_order_of_sections_makes_no_difference() {
    let sections: Vec<&str> = SHOP.split("\n[").skip(1).collect();
    let backwards: String = sections.iter().rev().map(|section| format!("[{section}\n")).collect();
    assert_eq!(good(&backwards), good(SHOP));
}

/// The fuzzer found this file: a mistake whose place lies behind carriage returns that are not shown.
#[test]
fn carriage_returns_at_the_end_of_an_excerpt_bring_nothing_down() {
    let found = include_bytes!("../../../fuzz/seeds/topology_file/carriage_returns");
    let complaints = parse("outlast.toml", &String::from_utf8_lossy(found)).unwrap_err();
    assert!(!complaints.render(true).is_empty());
}
