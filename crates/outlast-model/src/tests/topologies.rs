use super::fixture::{add_node, backend, count, external, part, service, service_at};
use super::{check_close, check_printed};
use crate::layout::Layout;
use crate::sweep::{by_cases, sweep};
use crate::{Certainty, Figures, Report, Subject, analyse};
use outlast_core::topology::{
    Durability, Failback, Pair, Pool, Postgres, Redis, Reliability, Standby, Store, StoreMode,
    Topology,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn figures<'a>(report: &'a Report, name: &str) -> &'a Figures {
    let part = part(name);
    report.services.iter().chain(&report.parts).find(|f| f.part == part).unwrap()
}

fn subjects(report: &Report) -> Vec<String> {
    report.spofs.iter().map(|spof| spof.subject.to_string()).collect()
}

fn three_nodes(availability: Option<f64>) -> Topology {
    let mut topology = Topology::default();
    for name in ["a", "b", "c"] {
        add_node(&mut topology, name, availability);
    }
    topology
}

fn postgres(nodes: &[&str], durability: Durability) -> Postgres {
    Postgres {
        nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
        version: 15,
        data_dir: String::new(),
        listen_write: None,
        listen_read: None,
        durability,
        lag_limit: 0,
        home: None,
        region_failover: outlast_core::topology::RegionFailover::Manual,
        priorities: BTreeMap::new(),
        bin_dir: None,
        port: core::num::NonZeroU16::new(5432).unwrap(),
        user: "postgres".to_owned(),
        hold: core::time::Duration::from_secs(30),
        hba: Vec::new(),
        read_from_primary: false,
        parameters: BTreeMap::new(),
        reliability: None,
    }
}

/// Two load balancers, three web servers, one database: `examples/chapter12.toml`.
fn complete_system() -> Topology {
    let mut topology = three_nodes(Some(0.999));
    topology.externals.insert("load_balancer".into(), external(Some(0.999), 2, 1));
    topology.externals.insert("database".into(), external(Some(0.9995), 1, 1));
    let needs = ["external.load_balancer", "external.database"];
    topology.services.insert("shop".into(), service(&topology, &["a", "b", "c"], &needs));
    topology.cost.revenue_per_hour = Some(1141.0);
    topology
}

#[test]
fn the_complete_system_is_down_for_4_hours_a_year() {
    let report = analyse(&complete_system());
    let shop = figures(&report, "service.shop");
    check_printed(shop.availability.up() * 100.0, 4, "99.9499");
    check_printed(shop.downtime.year_hours, 2, "4.39");
    check_close(shop.outage_cost_per_year.unwrap(), shop.downtime.year_hours * 1141.0);
    assert_eq!(shop.certainty, Certainty::Stated);
    assert_eq!(shop.nines.unwrap().whole, 3);
    check_close(shop.itself.down(), 1e-9);
    check_close(figures(&report, "external.load_balancer").availability.down(), 1e-6);
    assert_eq!(subjects(&report), ["external.database"]);
    assert_eq!(report.assumed, []);
    assert_eq!(report.caveats, [""; 0]);
}

/// One load balancer, three web servers, one database, two caches that are not critical: `examples/spof.toml`.
fn with_externals() -> Topology {
    let mut topology = three_nodes(Some(0.999));
    for (name, instances) in [("load_balancer", 1), ("database", 1), ("cache", 2)] {
        topology.externals.insert(name.into(), external(Some(0.999), instances, 1));
    }
    let needs = ["external.load_balancer", "external.database"];
    let mut web = service(&topology, &["a", "b", "c"], &needs);
    web.may_use.push(part("external.cache"));
    topology.services.insert("web".into(), web);
    topology
}

/// The same, each part a service with a backend per machine.
fn with_machines() -> Topology {
    let mut topology = three_nodes(Some(0.999));
    for name in ["lb", "db", "cache1", "cache2"] {
        add_node(&mut topology, name, Some(0.999));
    }
    let all = [
        service(&topology, &["lb"], &["service.web", "service.database"]),
        service(&topology, &["a", "b", "c"], &["service.database"]),
        service(&topology, &["db"], &[]),
        service(&topology, &["cache1", "cache2"], &[]),
    ];
    for (name, service) in ["load_balancer", "web", "database", "cache"].into_iter().zip(all) {
        topology.services.insert(name.into(), service);
    }
    topology.services.get_mut("cache").unwrap().critical = false;
    topology
}

#[test]
fn the_load_balancer_and_the_database_are_the_single_points_of_failure() {
    assert_eq!(
        subjects(&analyse(&with_externals())),
        ["external.database", "external.load_balancer"]
    );
    let report = analyse(&with_machines());
    assert_eq!(subjects(&report), ["service.database", "service.load_balancer"]);
    let database = &report.spofs[0];
    assert_eq!(database.nodes, ["db"]);
    assert_eq!(
        database.reason,
        "it has one backend, http://10.0.0.5:3000 on node.db: without it service.database, service.load_balancer and service.web are down"
    );
}

#[test]
fn what_is_not_critical_is_no_single_point() {
    let mut topology = with_machines();
    let cache = service(&topology, &["cache1"], &[]);
    topology.services.insert("cache".into(), cache);
    topology.services.get_mut("cache").unwrap().critical = false;
    assert_eq!(subjects(&analyse(&topology)), ["service.database", "service.load_balancer"]);
    let report = analyse(&topology);
    assert!(!figures(&report, "service.cache").critical);
    // Unless a critical service needs it.
    topology.services.get_mut("web").unwrap().needs.push(part("service.cache"));
    let report = analyse(&topology);
    assert!(subjects(&report).contains(&"service.cache".to_owned()));
    assert!(figures(&report, "service.cache").critical);
}

#[test]
fn a_database_that_no_part_needs_is_looked_at_by_itself() {
    let mut topology = three_nodes(Some(0.999));
    assert!(!analyse(&topology).has_critical_parts());
    let quorum = Durability::Quorum { acks: count(1), acks_min: 1 };
    topology.postgres.insert("safe".into(), postgres(&["a", "b", "c"], quorum));
    let report = analyse(&topology);
    assert!(figures(&report, "postgres.safe").critical && report.has_critical_parts());
    assert_eq!(subjects(&report), [""; 0]);
    topology.postgres.insert("alone".into(), postgres(&["a"], Durability::Async));
    let report = analyse(&topology);
    assert_eq!(subjects(&report), ["postgres.alone"]);
    assert_eq!(
        report.spofs[0].reason,
        "it has one node, node.a: without it postgres.alone is down"
    );
    // How much it matters is said by those who use it.
    let mut web = service(&topology, &["a", "b"], &[]);
    web.may_use.push(part("postgres.alone"));
    topology.services.insert("web".into(), web);
    assert_eq!(subjects(&analyse(&topology)), [""; 0]);
    topology.services.get_mut("web").unwrap().needs.push(part("postgres.alone"));
    assert_eq!(subjects(&analyse(&topology)), ["postgres.alone"]);
}

#[test]
fn a_node_that_carries_too_many_backends_is_a_single_point() {
    let mut topology = three_nodes(Some(0.999));
    let mut web = service(&topology, &["a", "a", "b"], &[]);
    web.at_least = count(2);
    topology.services.insert("web".into(), web);
    let report = analyse(&topology);
    assert_eq!(subjects(&report), ["node.a"]);
    assert_eq!(
        report.spofs[0].reason,
        "it carries 2 of the 3 backends of service.web, which needs 2: without it service.web is down"
    );
    assert_eq!(report.spofs[0].subject, Subject::Node("a".to_owned()));
}

#[test]
fn a_node_under_several_parts_is_told_besides_them() {
    let mut topology = three_nodes(Some(0.999));
    topology.postgres.insert("orders".into(), postgres(&["a"], Durability::Async));
    topology.services.insert("web".into(), service(&topology, &["a"], &["postgres.orders"]));
    let report = analyse(&topology);
    assert_eq!(subjects(&report), ["service.web", "postgres.orders", "node.a"]);
    assert_eq!(report.spofs[1].reason, "it has one node, node.a: without it service.web is down");
    assert_eq!(
        report.spofs[2].reason,
        "it carries the only backend of service.web and the only node of postgres.orders: without it service.web is down"
    );
    // Both stand on the same machine: it is counted once, not squared.
    check_close(figures(&report, "service.web").availability.down(), 1e-3);
}

#[test]
fn all_of_several_instances_leave_none_to_spare() {
    let mut topology = with_externals();
    topology.externals.insert("database".into(), external(Some(0.999), 2, 2));
    let report = analyse(&topology);
    assert_eq!(
        report.spofs[0].reason,
        "all 2 of its instances must be up: without it service.web is down"
    );
}

#[test]
fn a_pair_is_one_of_two() {
    let mut topology = three_nodes(Some(0.99));
    let mut billing = service(&topology, &["a"], &[]);
    billing.pool = Pool::Pair(Pair {
        primary: backend("10.0.0.1", 8000),
        backup: backend("10.0.0.2", 8000),
        standby: Standby::Hot,
        failback: Failback::Manual,
    });
    billing.reliability = Some(Reliability::Availability(0.99));
    topology.services.insert("billing".into(), billing);
    let report = analyse(&topology);
    // Each of the two is a node times its own software: (1 - 0.99^2)^2.
    check_close(figures(&report, "service.billing").availability.down(), 0.0199 * 0.0199);
    assert_eq!(subjects(&report), [""; 0]);
}

#[test]
fn a_database_needs_one_node_or_the_quorum() {
    let mut topology = three_nodes(Some(0.9));
    let quorum = |acks| Durability::Quorum { acks: count(acks), acks_min: acks };
    let nodes = ["a", "b", "c"];
    topology.postgres.insert("async".into(), postgres(&nodes, Durability::Async));
    topology.postgres.insert("one_ack".into(), postgres(&nodes, quorum(1)));
    topology.postgres.insert("two_acks".into(), postgres(&nodes, quorum(2)));
    topology.postgres.insert("three_acks".into(), postgres(&nodes, quorum(3)));
    let owned: Vec<String> = nodes.iter().map(|&node| node.to_owned()).collect();
    let redis = Redis { nodes: owned.clone(), sentinel: None, reliability: None };
    topology.redis.insert("sessions".into(), redis);
    for (name, mode) in [("flags", StoreMode::Quorum), ("carts", StoreMode::ActiveActive)] {
        let listen = ([127, 0, 0, 1], 6479).into();
        let store = Store { nodes: owned.clone(), mode, listen, reliability: None };
        topology.stores.insert(name.into(), store);
    }
    let report = analyse(&topology);
    let up = |name| figures(&report, name).availability.up();
    check_close(up("postgres.async"), 0.999);
    check_close(up("postgres.one_ack"), 0.972);
    check_close(up("postgres.two_acks"), 0.729);
    check_close(up("redis.sessions"), 0.999);
    check_close(up("store.flags"), 0.972);
    check_close(up("store.carts"), 0.999);
    check_close(figures(&report, "postgres.three_acks").availability.down(), 1.0);
    assert_eq!(report.caveats, ["postgres.three_acks asks for 4 of 3: it can never be up"]);
}

#[test]
fn what_the_file_does_not_say_is_listed_and_never_called_certain() {
    let mut topology = three_nodes(None);
    topology.externals.insert("bank".into(), external(None, 1, 1));
    topology.services.insert("web".into(), service(&topology, &["a", "b"], &[]));
    let shop = service_at(&["192.0.2.1", "shop.example.com"], &["external.bank"]);
    topology.services.insert("shop".into(), shop);
    let report = analyse(&topology);
    let subjects: Vec<&str> = report.assumed.iter().map(|a| a.subject.as_str()).collect();
    // node.c carries nothing.
    assert_eq!(subjects, ["external.bank", "node.a", "node.b", "service.shop"]);
    assert_eq!(
        report.assumed[1].text,
        "node.a has no availability: counted as 100 %; write `availability = 0.999`, or `mtbf` and `mttr`, in [node.a]"
    );
    assert_eq!(figures(&report, "service.web").certainty, Certainty::Unknown);
    assert_eq!(figures(&report, "service.shop").certainty, Certainty::Unknown);
    topology.nodes.get_mut("a").unwrap().reliability = Some(Reliability::Availability(0.9));
    let report = analyse(&topology);
    assert_eq!(figures(&report, "service.web").certainty, Certainty::AtMost);
    assert_eq!(figures(&report, "service.web").nines, None);
}

#[test]
fn a_backend_elsewhere_is_as_good_as_its_service_says() {
    let mut topology = Topology::default();
    let mut web = service_at(&["one.example.com", "two.example.com"], &[]);
    web.reliability = Some(Reliability::Availability(0.99));
    topology.services.insert("web".into(), web);
    let report = analyse(&topology);
    let web = figures(&report, "service.web");
    check_close(web.availability.down(), 1e-4);
    assert_eq!((web.certainty, report.assumed.len()), (Certainty::Stated, 0));
}

#[test]
fn a_part_of_a_file_without_nodes_is_on_one_machine() {
    let mut topology = Topology::default();
    topology.postgres.insert("orders".into(), postgres(&[], Durability::Async));
    let report = analyse(&topology);
    assert_eq!(figures(&report, "postgres.orders").certainty, Certainty::Unknown);
    assert_eq!(report.assumed[0].subject, "postgres.orders");
    let orders = topology.postgres.get_mut("orders").unwrap();
    orders.reliability = Some(Reliability::Availability(0.999));
    let report = analyse(&topology);
    check_close(figures(&report, "postgres.orders").availability.down(), 1e-3);
    assert_eq!(report.assumed, []);
}

#[test]
fn parts_that_need_each_other_are_counted_once() {
    let mut topology = three_nodes(Some(0.9));
    topology.services.insert("one".into(), service(&topology, &["a"], &["service.two"]));
    topology.services.insert("two".into(), service(&topology, &["b"], &["service.one"]));
    let report = analyse(&topology);
    check_close(figures(&report, "service.one").availability.up(), 0.81);
    check_close(figures(&report, "service.two").availability.up(), 0.81);
}

#[test]
fn too_many_ways_of_sharing_are_multiplied_and_said() {
    let mut topology = Topology::default();
    let names: Vec<String> = (10..31).map(|number| format!("n{number}")).collect();
    for name in &names {
        add_node(&mut topology, name, Some(0.99));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // Each of these asks for 7 of the 21 nodes, and has a software of its own.
    for (name, needs) in [
        ("s0", vec!["service.s1"]),
        ("s1", vec!["service.s2"]),
        ("s2", vec!["service.s3"]),
        ("s3", vec!["service.s4"]),
        ("s4", vec![]),
    ] {
        let mut some = service(&topology, &names, &needs);
        some.at_least = count(11);
        some.reliability = Some(Reliability::Availability(0.9));
        topology.services.insert(name.into(), some);
    }
    let report = analyse(&topology);
    assert!(report.caveats[0].starts_with("service.s0 shares nodes"), "{:?}", report.caveats);
    let itself = figures(&report, "service.s4").itself.up();
    check_close(figures(&report, "service.s0").availability.up(), itself.powi(5));
    assert!(!report.caveats.iter().any(|caveat| caveat.starts_with("service.s4")));
}

#[test]
fn many_parts_on_few_machines_are_exact_too() {
    let mut topology = three_nodes(Some(0.9));
    topology.nodes.remove("c");
    let names: Vec<String> = (0..20).map(|number| format!("service.s{number:02}")).collect();
    for number in 0..20 {
        let needs: Vec<&str> = names.get(number + 1).map(String::as_str).into_iter().collect();
        let mut some = service(&topology, &["a", "b"], &needs);
        some.reliability = Some(Reliability::Availability(0.99));
        topology.services.insert(format!("s{number:02}"), some);
    }
    let report = analyse(&topology);
    assert_eq!(report.caveats, [""; 0]);
    let both = 0.81 * (1.0 - 0.01 * 0.01_f64).powi(20);
    let one = 0.18 * 0.99_f64.powi(20);
    check_close(figures(&report, "service.s00").availability.up(), both + one);
    check_close(figures(&report, "service.s00").availability.down(), 1.0 - both - one);
}

/// A service of the generated topologies: which node each backend is on, how many must be up, and its software.
#[derive(Clone, Debug)]
struct Sketch {
    nodes: Vec<usize>,
    at_least: usize,
    own: Option<f64>,
}

fn sketches(nodes: usize) -> impl Strategy<Value = Vec<Sketch>> {
    let own = prop_oneof![Just(None), (0.0..=1.0).prop_map(Some)];
    let sketch = (vec(0..nodes, 1..4), 1..4_usize, own).prop_map(|(nodes, at_least, own)| Sketch {
        at_least: at_least.min(nodes.len()),
        nodes,
        own,
    });
    vec(sketch, 1..4)
}

fn drawn(shares: &[f64], sketches: &[Sketch]) -> Topology {
    let mut topology = Topology::default();
    for (number, &share) in shares.iter().enumerate() {
        add_node(&mut topology, &format!("n{number}"), Some(share));
    }
    for (number, sketch) in sketches.iter().enumerate() {
        let nodes: Vec<String> = sketch.nodes.iter().map(|node| format!("n{node}")).collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let next = format!("service.s{}", number + 1);
        let needs = if number + 1 < sketches.len() { vec![next.as_str()] } else { Vec::new() };
        let mut service = service(&topology, &nodes, &needs);
        service.at_least = count(u16::try_from(sketch.at_least).unwrap());
        service.reliability = sketch.own.map(Reliability::Availability);
        topology.services.insert(format!("s{number}"), service);
    }
    topology
}

/// Whether every service has enough backends, when `up` says which nodes and then which backends' software are up.
fn serves(node_count: usize, sketches: &[Sketch], up: &dyn Fn(usize) -> bool) -> bool {
    let mut software = node_count..;
    sketches.iter().all(|sketch| {
        let parts: Vec<(usize, usize)> = sketch.nodes.iter().copied().zip(&mut software).collect();
        parts.iter().filter(|&&(node, own)| up(node) && up(own)).count() >= sketch.at_least
    })
}

fn share_serving(shares: &[f64], sketches: &[Sketch]) -> f64 {
    let mut all = shares.to_vec();
    for sketch in sketches {
        all.extend(sketch.nodes.iter().map(|_| sketch.own.unwrap_or(1.0)));
    }
    (0_u32..1 << all.len())
        .filter(|case| serves(shares.len(), sketches, &|bit| case >> bit & 1 == 1))
        .map(|case| -> f64 {
            all.iter()
                .enumerate()
                .map(|(bit, share)| if case >> bit & 1 == 1 { *share } else { 1.0 - share })
                .product()
        })
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn shared_nodes_are_counted_exactly(
        (shares, sketches) in (1..4_usize).prop_flat_map(|n| (vec(0.0..=1.0, n), sketches(n))),
    ) {
        let report = analyse(&drawn(&shares, &sketches));
        let got = figures(&report, "service.s0").availability;
        let expected = share_serving(&shares, &sketches);
        prop_assert!((got.up() - expected).abs() < 1e-12, "{got:?} {expected}");
        prop_assert!((got.down() + expected - 1.0).abs() < 1e-12, "{got:?} {expected}");
        prop_assert_eq!(report.caveats.len(), 0);
    }

    #[test]
    fn both_exact_ways_agree(
        (shares, sketches) in (1..4_usize).prop_flat_map(|n| (vec(0.0..=1.0, n), sketches(n))),
    ) {
        let layout = Layout::of(&drawn(&shares, &sketches));
        let groups = layout.required(&part("service.s0"));
        let swept = sweep(&groups, &layout.nodes).unwrap();
        let cased = by_cases(&groups, &layout.nodes).unwrap();
        prop_assert!((swept.up() - cased.up()).abs() < 1e-12, "{swept:?} {cased:?}");
        prop_assert!((swept.down() - cased.down()).abs() < 1e-12, "{swept:?} {cased:?}");
    }

    #[test]
    fn exactly_the_nodes_whose_loss_takes_a_service_down_are_single_points(
        (n, sketches) in (1..4_usize).prop_flat_map(|n| (Just(n), sketches(n))),
    ) {
        let report = analyse(&drawn(&vec![0.9; n], &sketches));
        let told: BTreeSet<String> =
            report.spofs.iter().flat_map(|spof| spof.nodes.clone()).collect();
        let fatal: BTreeSet<String> = (0..n)
            .filter(|lost| !serves(n, &sketches, &|bit| bit != *lost))
            .map(|lost| format!("n{lost}"))
            .collect();
        prop_assert_eq!(told, fatal);
        let parts: Vec<String> = (0..)
            .zip(&sketches)
            .filter(|(_, sketch)| sketch.at_least == sketch.nodes.len())
            .map(|(number, _)| format!("service.s{number}"))
            .collect();
        let told: Vec<String> =
            subjects(&report).into_iter().filter(|subject| subject.starts_with("service")).collect();
        prop_assert_eq!(told, parts);
    }

    #[test]
    fn a_better_node_makes_no_service_worse(
        (shares, sketches) in (1..4_usize).prop_flat_map(|n| (vec(0.0..=1.0, n), sketches(n))),
        which: prop::sample::Index, gain in 0.0..=1.0,
    ) {
        let which = which.index(shares.len());
        let mut better = shares.clone();
        better[which] += (1.0 - better[which]) * gain;
        let up = |shares: &[f64]| {
            figures(&analyse(&drawn(shares, &sketches)), "service.s0").availability.up()
        };
        prop_assert!(up(&better) >= up(&shares) - 1e-12);
    }
}
