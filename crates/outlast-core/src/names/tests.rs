use super::*;
use crate::agreed::{AgreedNames, LOWERED_MAX, NameChange, NamesCommand};
use crate::event::Fact;
use crate::health::Thresholds;
use crate::observers::Report;
use crate::time::Timestamp;
use crate::topology::{
    Address, AddressMode, Check, PartKind, Peers, Preempt, Probe, Soa, Topology, VerdictRule, Vrrp,
    priorities_by_order,
};
use crate::view::ServiceState;
use crate::vrrp::Interval;
use alloc::borrow::ToOwned as _;
use alloc::vec;
use core::num::{NonZeroU8, NonZeroU16};
use std::cell::Cell;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn at(count: u64) -> Instant {
    Instant::from_start(seconds(count))
}

/// `1` is 192.0.2.1.
fn value(last: u8) -> RecordValue {
    RecordValue::A([192, 0, 2, last].into())
}

fn part(name: &str) -> PartRef {
    PartRef { kind: PartKind::Service, name: name.to_owned() }
}

/// A value that is as healthy as the service of its own number.
fn checked(last: u8) -> Entry {
    let check = Some(HealthCheck::Part(part(&format!("{last}"))));
    Entry { what: Branch::Value(value(last)), check }
}

fn plain(last: u8) -> Entry {
    Entry { what: Branch::Value(value(last)), check: None }
}

fn endpoint(last: u8) -> Endpoint {
    Endpoint { value: value(last), check: checked(last).check }
}

fn inner(policy: Policy) -> Entry {
    Entry { what: Branch::Policy(policy), check: None }
}

fn failover(entries: Vec<Entry>) -> Policy {
    Policy::Failover { entries, failback: Failback::After(seconds(30)), follows: None }
}

fn record(name: &str, policy: Policy) -> Record {
    Record {
        name: name.to_owned(),
        kind: RecordKind::A,
        policy,
        check: None,
        ttl: seconds(60),
        ttl_degraded: seconds(30),
        when_all_down: WhenAllDown::Open,
    }
}

fn network(text: &str) -> Network {
    let (address, prefix) = text.split_once('/').unwrap();
    Network { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
}

fn zone(records: Vec<Record>) -> Zone {
    let soa = Soa {
        mname: None,
        rname: None,
        refresh: seconds(3600),
        retry: seconds(600),
        expire: seconds(86_400),
        minimum: seconds(30),
    };
    Zone {
        listen: None,
        records,
        ns: Vec::new(),
        soa,
        secondaries: Vec::new(),
        keys: None,
        update: Vec::new(),
        elsewhere: Vec::new(),
        dnssec: false,
        rate_limit: None,
        cookies: true,
        rule: VerdictRule::Majority,
        regions: BTreeMap::from([
            ("eu".to_owned(), vec![network("10.1.0.0/16")]),
            ("us".to_owned(), vec![network("10.2.0.0/16")]),
        ]),
        latencies: BTreeMap::from([
            (("eu".to_owned(), "us".to_owned()), Duration::from_millis(80)),
            (("eu".to_owned(), "ap".to_owned()), Duration::from_millis(60)),
            (("ap".to_owned(), "us".to_owned()), Duration::from_millis(150)),
        ]),
    }
}

/// Healths of the services 1, 2, ..: u, d and ?; since the start of time.
fn sight(healths: &str) -> impl Fn(Asked<'_>) -> Seen {
    move |asked| {
        let Asked::Part(part) = asked else { panic!("{asked:?}") };
        let nth: usize = part.name.parse().unwrap();
        let health = match healths.as_bytes().get(nth - 1) {
            Some(b'u') => Up,
            Some(b'd') => Down,
            _ => Unknown,
        };
        Seen { health, ..Seen::default() }
    }
}

fn first(zone: &Zone, healths: &str) -> Answers {
    answers(zone, &sight(healths), &Sticky::default()).remove(0)
}

/// `1,2` for one answer with two values, `3*1|2` for a choice of two answers, `-` for none.
fn show(choice: &Choice) -> String {
    match choice {
        Choice::One(values) => {
            let last =
                |value: &RecordValue| format!("{value}").rsplit('.').next().unwrap().to_owned();
            values.iter().map(last).collect::<Vec<_>>().join(",")
        }
        Choice::Weighted(list) => {
            let each = list.iter().map(|(weight, choice)| format!("{weight}*{}", show(choice)));
            each.collect::<Vec<_>>().join("|")
        }
        Choice::ByClient { networks, otherwise } => {
            let each = networks.iter().map(|(network, choice)| {
                format!("{}/{}:{} ", network.address, network.prefix, show(choice))
            });
            format!("{}else:{}", each.collect::<String>(), show(otherwise))
        }
        Choice::Empty => "-".to_owned(),
    }
}

/// Each row: the healths, what is answered, and the health upward.
fn check(policy: Policy, rows: &[(&str, &str, Health)]) {
    let zone = zone(vec![record("x", policy)]);
    for &(healths, expected, health) in rows {
        let got = first(&zone, healths);
        assert_eq!(
            (show(&got.choice).as_str(), got.health),
            (expected, health),
            "{healths}\n{}",
            got.why
        );
    }
}

use Health::{Down, Unknown, Up};

#[test]
fn simple_answers_all_whatever_their_health() {
    let policy = Policy::Simple(vec![endpoint(1), endpoint(2)]);
    check(
        policy,
        &[("uu", "1,2", Up), ("ud", "1,2", Up), ("dd", "1,2", Down), ("?d", "1,2", Unknown)],
    );
    check(Policy::Simple(vec![Endpoint { value: value(1), check: None }]), &[("d", "1", Up)]);
}

#[test]
fn a_failover_answers_the_first_that_is_not_down() {
    check(
        failover(vec![checked(1), checked(2), checked(3)]),
        &[
            ("uuu", "1", Up),
            ("duu", "2", Up),
            ("ddu", "3", Up),
            ("???", "1", Unknown),
            ("?uu", "1", Up),
            ("d??", "2", Unknown),
            ("ddd", "1", Down),
        ],
    );
    check(failover(vec![checked(1), plain(2)]), &[("u", "1", Up), ("d", "2", Up), ("?", "1", Up)]);
}

#[test]
fn weights_count_among_the_healthy_and_zero_comes_last() {
    let weighted = |entries: &[(u16, u8)]| {
        Policy::Weighted(entries.iter().map(|&(weight, last)| (weight, checked(last))).collect())
    };
    check(
        weighted(&[(3, 1), (1, 2), (0, 3)]),
        &[
            ("uuu", "3*1|1*2", Up),
            ("u?u", "3*1|1*2", Up),
            ("udu", "1", Up),
            ("ddu", "3", Up),
            ("ddd", "3*1|1*2", Down),
        ],
    );
    check(
        weighted(&[(0, 1), (0, 2)]),
        &[("uu", "1*1|1*2", Up), ("du", "2", Up), ("dd", "1*1|1*2", Down)],
    );
}

#[test]
fn multivalue_answers_eight_healthy_ones_at_most() {
    let policy = Policy::Multivalue((1..=10).map(endpoint).collect());
    check(
        policy.clone(),
        &[
            (
                "uuuuuuuuud",
                "1*1,2,3,4,5,6,7,8|1*2,3,4,5,6,7,8,9|1*3,4,5,6,7,8,9,1|1*4,5,6,7,8,9,1,2|1*5,6,7,8,9,1,2,3|1*6,7,8,9,1,2,3,4|1*7,8,9,1,2,3,4,5|1*8,9,1,2,3,4,5,6|1*9,1,2,3,4,5,6,7",
                Up,
            ),
            ("uuuuuuuudd", "1,2,3,4,5,6,7,8", Up),
            ("dddddddddu", "10", Up),
            ("ddddddddd?", "10", Unknown),
        ],
    );
    // Each as often as any other, and never twice in one answer.
    let Choice::Weighted(runs) = first(&zone(vec![record("x", policy)]), "dddddddddd").choice
    else {
        panic!("ten are too many for one answer");
    };
    for last in 1..=10 {
        let with = runs.iter().filter(|(_, run)| run.values().contains(&value(last))).count();
        assert_eq!(with, MULTIVALUE_MAX, "{last}");
    }
}

#[test]
fn latency_answers_the_nearest_healthy_region() {
    let entries = [("us", 1), ("ap", 2), ("eu", 3)];
    let policy =
        Policy::Latency(entries.map(|(region, last)| (region.to_owned(), checked(last))).to_vec());
    check(
        policy,
        &[
            ("uuu", "10.1.0.0/16:3 10.2.0.0/16:1 else:1", Up),
            // From eu, ap is nearer than us; from us, eu is nearer than ap.
            ("uud", "10.1.0.0/16:2 10.2.0.0/16:1 else:1", Up),
            ("duu", "10.1.0.0/16:3 10.2.0.0/16:3 else:2", Up),
            ("udd", "1", Up),
            ("ddd", "10.1.0.0/16:3 10.2.0.0/16:1 else:1", Down),
        ],
    );
}

#[test]
fn geo_goes_by_the_narrowest_network_of_the_client() {
    let entry = |text: &str, last| (vec![network(text)], checked(last));
    let entries = vec![entry("10.0.0.0/8", 1), entry("10.1.0.0/16", 2), entry("2001:db8::/32", 3)];
    let policy = Policy::Geo { entries, default: Box::new(checked(4)) };
    check(
        policy.clone(),
        &[
            ("uuuu", "2001:db8::/32:3 10.1.0.0/16:2 10.0.0.0/8:1 else:4", Up),
            ("uduu", "2001:db8::/32:3 10.0.0.0/8:1 else:4", Up),
            ("uddd", "1", Up),
            ("dddu", "4", Up),
            ("dddd", "2001:db8::/32:3 10.1.0.0/16:2 10.0.0.0/8:1 else:4", Down),
        ],
    );
    let zone = zone(vec![record("x", policy)]);
    for (client, healths, expected) in [
        ("10.1.2.3", "uuuu", "2"),
        ("10.9.9.9", "uuuu", "1"),
        ("10.1.2.3", "uduu", "1"),
        ("10.1.2.3", "dduu", "4"),
        ("192.0.2.77", "uuuu", "4"),
        ("2001:db8::1", "uuuu", "3"),
        ("2001:db9::1", "uuuu", "4"),
    ] {
        let choice = first(&zone, healths).choice.for_client(client.parse().unwrap());
        assert_eq!(show(&choice), expected, "{client} {healths}");
    }
}

#[test]
fn a_failed_inner_policy_is_down_for_the_outer_one() {
    let site = |a, b| inner(Policy::Multivalue(vec![endpoint(a), endpoint(b)]));
    check(
        failover(vec![site(1, 2), site(3, 4)]),
        &[
            ("uuuu", "1,2", Up),
            ("uduu", "1", Up),
            ("dduu", "3,4", Up),
            ("ddud", "3", Up),
            ("dddd", "1,2", Down),
            ("d?uu", "2", Up),
        ],
    );
    let deep = failover(vec![inner(failover(vec![checked(1), checked(2)])), checked(3)]);
    check(
        Policy::Weighted(vec![(2, inner(deep)), (1, checked(4))]),
        &[
            ("uuuu", "2*1|1*4", Up),
            ("duuu", "2*2|1*4", Up),
            ("dduu", "2*3|1*4", Up),
            ("dddu", "4", Up),
            ("dddd", "2*1|1*4", Down),
        ],
    );
    // An inner policy may have a check of its own.
    let mut gated = site(1, 2);
    gated.check = Some(HealthCheck::Part(part("4")));
    check(failover(vec![gated, checked(3)]), &[("uuuu", "1,2", Up), ("uuud", "3", Up)]);
}

#[test]
fn an_alias_answers_and_fails_as_its_target() {
    let alias = |evaluate| Policy::Alias { target: "WEB".to_owned(), evaluate };
    let web = record("web", Policy::Multivalue(vec![endpoint(1), endpoint(2)]));
    let zone = zone(vec![
        record("x", alias(true)),
        record("y", failover(vec![inner(alias(true)), checked(3)])),
        record("z", failover(vec![inner(alias(false)), checked(3)])),
        web,
        record("loose", Policy::Alias { target: "gone".to_owned(), evaluate: true }),
    ]);
    let shown = |healths: &str| -> Vec<String> {
        let all = answers(&zone, &sight(healths), &Sticky::default());
        all.iter().map(|answers| show(&answers.choice)).collect()
    };
    assert_eq!(shown("uuu"), ["1,2", "1,2", "1,2", "1,2", "-"]);
    assert_eq!(shown("duu"), ["2", "2", "2", "2", "-"]);
    assert_eq!(shown("ddu"), ["1,2", "3", "1,2", "1,2", "-"]);
    let circle = |name: &str, target: &str| {
        record(name, Policy::Alias { target: target.to_owned(), evaluate: true })
    };
    let zone = Zone { records: vec![circle("a", "b"), circle("b", "a")], ..zone.clone() };
    assert_eq!(first(&zone, "").choice, Choice::Empty);
}

#[test]
fn with_all_down_it_is_open_closed_or_sorry() {
    let mut record = record("x", failover(vec![checked(1), checked(2)]));
    for (when, expected) in [
        (WhenAllDown::Open, "1"),
        (WhenAllDown::Closed, "-"),
        (WhenAllDown::Sorry(vec![value(9)]), "9"),
    ] {
        record.when_all_down = when;
        let zone = zone(vec![record.clone()]);
        let down = first(&zone, "dd");
        assert_eq!((show(&down.choice).as_str(), down.health), (expected, Down));
        assert_eq!(show(&first(&zone, "du").choice), "2");
        assert_eq!(show(&first(&zone, "??").choice), "1", "unknown is not down");
    }
}

#[test]
fn a_calculated_check_counts_its_parts() {
    let calculated = |at_least, invert| HealthCheck::Calculated {
        at_least: NonZeroU16::new(at_least).unwrap(),
        of: vec![part("1"), part("2"), part("3")],
        invert,
    };
    for (healths, two, not_two) in [
        ("uuu", Up, Down),
        ("uud", Up, Down),
        ("udd", Down, Up),
        ("u?d", Unknown, Unknown),
        ("uu?", Up, Down),
        ("dd?", Down, Up),
        ("???", Unknown, Unknown),
    ] {
        for (invert, expected) in [(false, two), (true, not_two)] {
            let mut record =
                record("x", Policy::Simple(vec![Endpoint { value: value(9), check: None }]));
            record.check = Some(calculated(2, invert));
            assert_eq!(first(&zone(vec![record]), healths).health, expected, "{healths} {invert}");
        }
    }
    let since = |healths: &[(Health, u64)], at_least| {
        let seen = healths.iter().map(|&(health, since)| Seen {
            health,
            since: at(since),
            moves_soon: false,
        });
        calculated_since(seen.collect(), at_least)
    };
    // Two of three are up since the second of them came up.
    assert_eq!(since(&[(Up, 30), (Up, 10), (Up, 20)], 2), at(20));
    assert_eq!(since(&[(Up, 30), (Up, 10), (Down, 20)], 2), at(30));
    // Fewer than two are up since the second of them went down.
    assert_eq!(since(&[(Down, 30), (Down, 10), (Up, 20)], 2), at(30));
}

fn calculated_since(seen: Vec<Seen>, at_least: usize) -> Instant {
    calculated(seen, at_least, false).since
}

#[test]
fn the_ttl_is_lower_while_something_is_down_or_soon_moved() {
    let zone = zone(vec![record("x", failover(vec![checked(1), checked(2)]))]);
    let ttl = |healths: &str| first(&zone, healths).ttl.as_secs();
    assert_eq!((ttl("uu"), ttl("??"), ttl("ud"), ttl("du"), ttl("dd")), (60, 60, 30, 30, 30));
    let soon = |_: Asked<'_>| Seen { health: Up, moves_soon: true, ..Seen::default() };
    assert_eq!(answers(&zone, &soon, &Sticky::default())[0].ttl, seconds(30));
    // Not back at the primary yet.
    let mut sticky = Sticky::default();
    sticky.chosen.insert(FailoverId::of(&zone.records[0]), "192.0.2.2".to_owned());
    assert_eq!(answers(&zone, &sight("uu"), &sticky)[0].ttl, seconds(30));
    // A person says so: of this record, and it is not degraded by that.
    let (mut sticky, id) = (Sticky::default(), FailoverId::of(&zone.records[0]));
    sticky.lowered.insert(id.clone(), at(9));
    let lowered = answers(&zone, &sight("uu"), &sticky).remove(0);
    assert_eq!((lowered.ttl, lowered.degraded), (seconds(30), false));
    assert!(lowered.why.line.ends_with("ttl 30s as a person asked"), "{}", lowered.why);
    sticky.lowered = BTreeMap::from([(FailoverId { name: "y".to_owned(), ..id }, at(9))]);
    assert_eq!(answers(&zone, &sight("uu"), &sticky)[0].ttl, seconds(60));
}

/// Leads one failover through time: each step is a moment, `health@since` of each entry, and who serves then.
fn check_sticky(failback: Failback, pins: &[(&str, Option<u64>)], steps: &[(u64, &str, &str)]) {
    let entries = vec![checked(1), checked(2), checked(3)];
    let zone = zone(vec![record("x", Policy::Failover { entries, failback, follows: None })]);
    let id = FailoverId::of(&zone.records[0]);
    let mut sticky = Sticky::default();
    for &(label, until) in pins {
        let pin = Pin { label: label.to_owned(), until: until.map(at) };
        sticky.pins.insert(id.clone(), pin);
    }
    for &(now, healths, expected) in steps {
        let seen: Vec<Seen> = healths
            .split(' ')
            .map(|word| Seen {
                health: match &word[..1] {
                    "u" => Up,
                    "d" => Down,
                    _ => Unknown,
                },
                since: at(word[1..].parse().unwrap()),
                moves_soon: false,
            })
            .collect();
        let sight = |asked: Asked<'_>| match asked {
            Asked::Part(part) => seen[part.name.parse::<usize>().unwrap() - 1],
            Asked::Value(_) => Seen::default(),
        };
        sticky = decide(&zone, &sight, &sticky, &Places::new(), at(now)).sticky;
        let choice = &answers(&zone, &sight, &sticky)[0].choice;
        assert_eq!(show(choice), expected, "at {now}s: {healths}");
        // What is decided stays so while nothing changes.
        assert_eq!(decide(&zone, &sight, &sticky, &Places::new(), at(now)).sticky, sticky);
    }
}

#[test]
fn a_failover_goes_back_once_the_primary_was_up_long_enough() {
    let steps = [
        (0, "u0 u0 u0", "1"),
        (10, "d10 u0 u0", "2"),
        (20, "u20 u0 u0", "2"),
        (49, "u20 u0 u0", "2"),
        (50, "u20 u0 u0", "1"),
        (60, "d60 u0 u0", "2"),
        (70, "u70 u0 u0", "2"),
        (80, "d80 u0 u0", "2"),
        (85, "u85 u0 u0", "2"),
        (100, "u85 d100 u0", "1"),
        (110, "d110 d100 u0", "3"),
        (120, "d110 u120 u0", "3"),
        (150, "d110 u120 u0", "2"),
        (151, "?151 u120 u0", "2"),
        (300, "?151 u120 u0", "2"),
        // All down: who served last.
        (301, "d301 d301 d301", "2"),
        (302, "d301 d301 u302", "3"),
    ];
    check_sticky(Failback::After(seconds(30)), &[], &steps);
}

#[test]
fn a_manual_failback_waits_for_a_person() {
    let steps = [(10, "d10 u0 u0", "2"), (20, "u20 u0 u0", "2"), (9999, "u20 u0 u0", "2")];
    check_sticky(Failback::Manual, &[], &steps);
    // A pin moves it, until it is over or what it names is down.
    let pin = [("192.0.2.3", Some(50))];
    let steps = [
        (0, "u0 u0 u0", "3"),
        (10, "u0 u0 d10", "1"),
        (20, "u0 u0 u20", "3"),
        (50, "u0 u0 u20", "3"),
        (60, "u0 u0 d60", "1"),
        (70, "u0 u0 u70", "1"),
    ];
    check_sticky(Failback::Manual, &pin, &steps);
}

#[test]
fn a_decision_says_when_time_alone_will_change_it() {
    let zone = zone(vec![record("x", failover(vec![checked(1), checked(2)]))]);
    let mut sticky = Sticky::default();
    sticky.chosen.insert(FailoverId::of(&zone.records[0]), "192.0.2.2".to_owned());
    let up = |_: Asked<'_>| Seen { health: Up, since: at(100), moves_soon: false };
    assert_eq!(decide(&zone, &up, &sticky, &Places::new(), at(110)).look_again, Some(at(130)));
    let decided = decide(&zone, &up, &sticky, &Places::new(), at(130));
    assert_eq!((decided.sticky, decided.look_again), (Sticky::default(), None));
    // An entry that is gone is forgotten.
    sticky.chosen.insert(FailoverId::of(&zone.records[0]), "192.0.2.77".to_owned());
    assert_eq!(decide(&zone, &up, &sticky, &Places::new(), at(110)).sticky, Sticky::default());
}

#[test]
fn an_explanation_says_who_chose_what_and_why() {
    let site = inner(Policy::Multivalue(vec![endpoint(1), endpoint(2)]));
    let zone = zone(vec![record("api", failover(vec![site, checked(3), plain(4)]))]);
    let why = explain(&first(&zone, "dd?"), Some("10.0.0.1".parse().unwrap()));
    expect_test::expect![[r#"
        api A, ttl 30s
          failover: 192.0.2.3 serves, the secondary; 2 of 3 healthy
            multivalue: 0 of 2 healthy
              192.0.2.1: service.1 is down
              192.0.2.2: service.2 is down
            192.0.2.3: service.3 was not judged yet, counts as healthy
            192.0.2.4: no check, always healthy
          a client at 10.0.0.1 gets 192.0.2.3
    "#]]
    .assert_eq(&why.to_string());
}

#[test]
fn all_that_a_zone_asks_for_is_listed() {
    let probe = Box::new(ValueProbe {
        id: "x.example.com A 192.0.2.1:80".to_owned(),
        host: "192.0.2.1".to_owned(),
        port: NonZeroU16::new(80).unwrap(),
        probe: probe(10, 4, 3),
    });
    let mut one = plain(1);
    one.check = Some(HealthCheck::Value(probe.clone()));
    let zone = zone(vec![record("x", failover(vec![one, checked(2)]))]);
    assert_eq!(value_probes(&zone), BTreeMap::from([(probe.id.as_str(), &*probe)]));
    assert_eq!(parts(&zone), BTreeSet::from([&part("2")]));
    let topology = Topology::default();
    let worst = of_record(&topology, &zone.records[0], seconds(1)).unwrap();
    // 10 s × 3 + 4 s + 1 s + 60 s.
    assert_eq!(worst.total(), seconds(95));
    assert_eq!(of_record(&topology, &record("y", failover(vec![plain(1)])), seconds(1)), None);
}

fn probe(every: u64, timeout: u64, fall: u16) -> Probe {
    let count = |count| NonZeroU16::new(count).unwrap();
    Probe {
        check: Check::Tcp { address: None },
        every: seconds(every),
        timeout: seconds(timeout),
        thresholds: Thresholds { rise: count(2), fall: count(fall) },
        delay: Duration::ZERO,
    }
}

#[test]
fn the_worst_case_of_an_address_is_its_lease_or_its_silence() {
    let nodes = vec!["a".to_owned(), "b".to_owned()];
    let mut address = Address {
        ips: vec![network("10.0.0.100/24")],
        interface: "eth0".to_owned(),
        priorities: priorities_by_order(&nodes),
        nodes,
        mode: AddressMode::Vrrp(Vrrp {
            id: NonZeroU8::MIN,
            advert: Interval::of_centiseconds(100).unwrap(),
            peers: Peers::Multicast,
            checksum: None,
        }),
        preempt: Preempt::Never,
        group: None,
        track: Vec::new(),
    };
    let of = |address: &Address| {
        of_address(&Topology::default(), address, seconds(2), Duration::from_millis(50)).total()
    };
    // 3 s + (256 - 140) / 256 s.
    assert_eq!(of(&address), Duration::from_nanos(3_453_125_000));
    address.mode = AddressMode::Lease {
        follows: None,
        split_brain: crate::topology::SplitBrain::Refuse,
        announce: None,
    };
    assert_eq!(of(&address), Duration::from_millis(2050));
}

fn votes(text: &str) -> Votes {
    Votes::of(text.chars().map(|c| match c {
        'u' => Up,
        'd' => Down,
        _ => Unknown,
    }))
}

#[test]
fn a_verdict_counts_live_vantage_points() {
    for (text, majority, above) in [
        ("", None, None),
        ("u", Some(Up), Some(Up)),
        ("d", Some(Down), Some(Down)),
        ("?", None, None),
        ("ud", None, Some(Up)),
        ("uud", Some(Up), Some(Up)),
        ("ddu", Some(Down), Some(Up)),
        ("dd?", Some(Down), None),
        ("d??", None, None),
        ("ddd", Some(Down), Some(Down)),
        // One of six is 16.7 %, one of five 20 %.
        ("dddddu", Some(Down), Some(Down)),
        ("ddddu", Some(Down), Some(Up)),
        ("ddddd?", Some(Down), Some(Down)),
        ("dddd?", Some(Down), None),
    ] {
        assert_eq!(verdict(votes(text), VerdictRule::Majority), majority, "{text}");
        assert_eq!(verdict(votes(text), VerdictRule::Above(0.18)), above, "{text}");
    }
}

#[test]
fn one_node_without_its_uplink_changes_nothing() {
    let things = ["web", "api", "db"];
    let all = |health| things.iter().map(|&thing| (thing, health)).collect::<BTreeMap<_, _>>();
    for rule in [VerdictRule::Majority, VerdictRule::Above(0.18)] {
        for nodes in 2..=7 {
            let mut verdicts = Verdicts::resume(all(Up));
            let names: Vec<String> = (0..nodes).map(|nth| format!("n{nth}")).collect();
            names.iter().for_each(|name| verdicts.hear(name, all(Up)));
            for name in &names {
                verdicts.hear(name, all(Down));
                assert_eq!(verdicts.changes(|_| rule), [], "{name} of {nodes} by {rule:?}");
                verdicts.hear(name, all(Unknown));
                assert_eq!(verdicts.changes(|_| rule), []);
                verdicts.lose(name);
                assert_eq!(verdicts.changes(|_| rule), []);
                verdicts.hear(name, all(Up));
            }
            // What all see goes through.
            names.iter().for_each(|name| verdicts.hear(name, all(Down)));
            let changes = verdicts.changes(|_| rule);
            assert_eq!(changes.len(), things.len());
            changes.into_iter().for_each(|(thing, health)| verdicts.commit(thing, health));
            assert_eq!(verdicts.changes(|_| rule), []);
            assert_eq!(verdicts.agreed(&"web"), Down);
        }
    }
}

#[test]
fn what_was_agreed_on_stays_after_a_restart() {
    let mut verdicts = Verdicts::resume(BTreeMap::from([("web", Down)]));
    verdicts.hear("a", BTreeMap::from([("web", Unknown)]));
    verdicts.hear("b", BTreeMap::new());
    assert_eq!(verdicts.changes(|_| VerdictRule::Majority), []);
    assert_eq!((verdicts.agreed(&"web"), verdicts.agreed(&"api")), (Down, Unknown));
    verdicts.retain(|key| *key != "web");
    assert_eq!(verdicts.agreed(&"web"), Unknown);
}

/// xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled".
struct Rng(Cell<u64>);

impl Rng {
    fn new(seed: u64) -> Rng {
        Rng(Cell::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1))
    }

    fn below(&self, end: u64) -> u64 {
        let mut state = self.0.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.0.set(state);
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % end
    }

    fn count(&self, end: u8) -> u8 {
        u8::try_from(self.below(end.into())).unwrap()
    }
}

/// How many services there are: values are 1 to this.
const VALUES: u8 = 9;

fn random_entry(rng: &Rng, depth: u8) -> Entry {
    if 0 < depth && rng.below(3) == 0 {
        return inner(random_policy(rng, depth - 1));
    }
    checked(1 + rng.count(VALUES))
}

fn random_policy(rng: &Rng, depth: u8) -> Policy {
    let count = 1 + rng.count(4);
    let entries = || -> Vec<Entry> { (0..count).map(|_| random_entry(rng, depth)).collect() };
    match rng.below(5) {
        0 => failover(entries()),
        1 => Policy::Weighted(
            entries().into_iter().map(|entry| (rng.below(3).try_into().unwrap(), entry)).collect(),
        ),
        2 => Policy::Multivalue((0..count).map(|_| endpoint(1 + rng.count(VALUES))).collect()),
        3 => {
            let regions = ["eu", "us", "ap", "sa"].map(str::to_owned);
            Policy::Latency(regions.into_iter().zip(entries()).collect())
        }
        _ => {
            let networks = ["10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "10.1.1.0/24"];
            let networks = networks.map(|text| vec![network(text)]);
            let default = Box::new(random_entry(rng, depth));
            Policy::Geo { entries: networks.into_iter().zip(entries()).collect(), default }
        }
    }
}

fn random_sight(rng: &Rng) -> Vec<Seen> {
    let seen = |_| Seen {
        health: [Up, Down, Down, Unknown][usize::from(rng.count(4))],
        since: at(rng.below(100)),
        moves_soon: false,
    };
    (0..VALUES).map(seen).collect()
}

fn look(seen: &[Seen]) -> impl Fn(Asked<'_>) -> Seen + '_ {
    |asked| match asked {
        Asked::Part(part) => seen[part.name.parse::<usize>().unwrap() - 1],
        Asked::Value(_) => Seen::default(),
    }
}

/// The values that a policy may lead to.
fn leaves(policy: &Policy) -> BTreeSet<u8> {
    let last = |value: &RecordValue| match value {
        RecordValue::A(ip) => ip.octets()[3],
        RecordValue::Aaaa(_) | RecordValue::Cname(_) | RecordValue::Txt(_) => 0,
    };
    let mut all = BTreeSet::new();
    if let Policy::Multivalue(list) = policy {
        all.extend(list.iter().map(|endpoint| last(&endpoint.value)));
    }
    for entry in policy.entries() {
        match &entry.what {
            Branch::Value(value) => drop(all.insert(last(value))),
            Branch::Policy(inner) => all.extend(leaves(inner)),
        }
    }
    all
}

#[test]
fn the_laws_hold_of_any_tree_and_any_health() {
    for seed in 0..4000 {
        let rng = Rng::new(seed);
        let zone = zone(vec![record("x", random_policy(&rng, 3))]);
        let leaves = leaves(&zone.records[0].policy);
        let mut sticky = Sticky::default();
        let mut now = 100;
        for _ in 0..8 {
            let seen = random_sight(&rng);
            let is_down = |last: u8| seen[usize::from(last) - 1].health == Down;
            let look = look(&seen);
            now += rng.below(40);
            sticky = decide(&zone, &look, &sticky, &Places::new(), at(now)).sticky;
            let all = answers(&zone, &look, &sticky);
            let got = &all[0];
            let values: BTreeSet<u8> =
                (1..=VALUES).filter(|&v| got.choice.values().contains(&value(v))).collect();

            // Open: never nothing, for no client.
            assert!(!values.is_empty(), "seed {seed}: {}", got.why);
            for client in ["10.1.1.1", "10.2.0.1", "10.200.0.1", "8.8.8.8", "::1"] {
                let choice = got.choice.for_client(client.parse().unwrap());
                assert!(!choice.values().is_empty(), "seed {seed}: {client}: {}", got.why);
            }
            // Nothing that is down while anything in the tree is not; down upward only if all is.
            let all_down = leaves.iter().all(|&last| is_down(last));
            assert_eq!(got.health == Down, all_down, "seed {seed}: {}", got.why);
            if !all_down {
                assert!(values.iter().all(|&last| !is_down(last)), "seed {seed}: {}", got.why);
            }
            // The same health gives the same answers, and a decision that stands.
            assert_eq!(answers(&zone, &look, &sticky), all, "seed {seed}");
            assert_eq!(
                decide(&zone, &look, &sticky, &Places::new(), at(now)).sticky,
                sticky,
                "seed {seed}"
            );
            // A name server that has not heard of the decision yet answers nothing that is down either.
            let late = &answers(&zone, &look, &Sticky::default())[0];
            let late_down =
                leaves.iter().any(|&v| is_down(v) && late.choice.values().contains(&value(v)));
            assert!(all_down || !late_down, "seed {seed}: {}", late.why);
            // Monotone: one more that is up makes nothing upward worse.
            let one = usize::from(rng.count(VALUES));
            let mut better = seen.clone();
            better[one] = Seen { health: Up, since: at(now), moves_soon: false };
            let rank = |health| match health {
                Down => 0,
                Unknown => 1,
                Up => 2,
            };
            let after = answers(&zone, &self::look(&better), &sticky).remove(0).health;
            assert!(rank(got.health) <= rank(after), "seed {seed}");
            // Unknown is as good as up: the same is answered.
            let known: Vec<Seen> = seen
                .iter()
                .map(|&one| Seen {
                    health: if one.health == Unknown { Up } else { one.health },
                    ..one
                })
                .collect();
            assert_eq!(
                answers(&zone, &self::look(&known), &sticky)[0].choice,
                got.choice,
                "seed {seed}"
            );
        }
    }
}

/// A leader, what is agreed on, and nodes that say what they see.
struct Led {
    lead: Lead,
    agreed: AgreedNames,
    topology: Topology,
    index: u64,
}

impl Led {
    fn new(records: Vec<Record>) -> Led {
        let dns = BTreeMap::from([("example.com".to_owned(), zone(records))]);
        let topology = Topology { dns, ..Topology::default() };
        Led { lead: Lead::default(), agreed: AgreedNames::default(), topology, index: 0 }
    }

    /// Each word is what a node sees of the services 1, 2, ..: u, d and ?.
    fn hear(&mut self, words: &str) {
        for (node, word) in words.split(' ').enumerate() {
            let sights = word.chars().enumerate().map(|(nth, letter)| {
                let health = match letter {
                    'u' => Up,
                    'd' => Down,
                    _ => Unknown,
                };
                (format!("service.{}", nth + 1), (health, "said so".to_owned()))
            });
            self.lead.hear(&format!("n{node}"), sights.collect());
        }
    }

    /// One look, agreed on at once; whether anything was.
    fn look(&mut self, now: u64) -> bool {
        let wall = Timestamp(1_000_000);
        let look = self.lead.look(at(now), wall, &self.topology, &Known::default(), &self.agreed);
        let Some(command) = look.command else { return false };
        self.index += 1;
        let stamp = crate::agreed::Stamp { index: self.index, wall };
        self.agreed = self.agreed.changed(stamp, &command).unwrap();
        true
    }

    /// What is answered, and the serial.
    fn answers(&self) -> (String, u32) {
        let zone = &self.topology.dns["example.com"];
        let answers = agreed_answers("example.com", zone, &self.agreed).remove(0);
        (show(&answers.choice), self.agreed.zones["example.com"].serial)
    }
}

#[test]
fn an_answer_moves_when_most_nodes_see_that_it_has_to() {
    let mut led = Led::new(vec![record("api", failover(vec![checked(1), checked(2)]))]);
    led.hear("?? ?? ??");
    assert!(led.look(0), "the zone is agreed on first");
    assert_eq!(led.answers(), ("1".to_owned(), 1000));
    led.hear("uu uu uu");
    assert!(led.look(1));
    assert_eq!(led.answers(), ("1".to_owned(), 1000), "nobody could notice");
    led.hear("du uu uu");
    assert!(!led.look(2), "one of three may be what is cut off");
    led.hear("du du uu");
    assert!(led.look(3));
    assert_eq!(led.answers(), ("2".to_owned(), 1001));
    assert_eq!(led.agreed.chosen.values().collect::<Vec<_>>(), ["192.0.2.2"]);
    assert!(!led.look(4), "it is agreed on once");
}

#[test]
fn who_is_not_heard_is_not_counted() {
    let mut led = Led::new(vec![record("api", failover(vec![checked(1), checked(2)]))]);
    led.hear("uu uu uu");
    led.look(0);
    led.hear("du du uu");
    led.lead.lose("n0");
    led.look(1);
    assert_eq!(led.answers().0, "1", "one of two is not most");
    led.lead.lose("n2");
    led.look(2);
    assert_eq!(led.answers().0, "2");
}

#[test]
fn what_was_agreed_on_stays_while_nobody_knows_better() {
    let mut led = Led::new(vec![record("api", failover(vec![checked(1), checked(2)]))]);
    led.hear("du du uu");
    led.look(0);
    assert_eq!(led.answers().0, "2");
    led.lead = Lead::default();
    led.hear("?? ?? ??");
    assert!(!led.look(1), "a new leader knows nothing yet");
    assert_eq!(led.answers().0, "2");
}

#[test]
fn an_answer_goes_back_once_the_first_was_up_for_long_enough() {
    let mut led = Led::new(vec![record("api", failover(vec![checked(1), checked(2)]))]);
    led.hear("du du du");
    led.look(0);
    led.hear("uu uu uu");
    led.look(10);
    assert_eq!(led.answers().0, "2", "it waits");
    assert!(!led.look(39));
    assert!(led.look(40));
    assert_eq!(led.answers().0, "1");
    assert!(led.agreed.chosen.is_empty());
}

#[test]
fn a_zone_that_is_gone_leaves_nothing_behind() {
    let mut led = Led::new(vec![record("api", failover(vec![checked(1), checked(2)]))]);
    led.hear("du du du");
    led.look(0);
    led.topology.dns.clear();
    assert!(led.look(1));
    let left = AgreedNames { epoch: led.agreed.epoch, ..AgreedNames::default() };
    assert_eq!(led.agreed, left);
    assert!(!led.look(2));
}

#[test]
fn what_is_judged_by_old_news_changes_nothing() {
    let mut led = Led::new(vec![record("api", failover(vec![checked(1), checked(2)]))]);
    led.hear("uu uu uu");
    led.look(0);
    let old = led.agreed.clone();
    led.hear("du du du");
    led.look(1);
    let look = led.lead.look(at(2), Timestamp(0), &led.topology, &Known::default(), &old);
    let stamp = crate::agreed::Stamp { index: 9, wall: Timestamp(0) };
    let refused = led.agreed.changed(stamp, &look.command.unwrap());
    assert_eq!(refused, Err(crate::agreed::Refusal::OtherEpoch { current: 2 }));
}

#[test]
fn a_policy_is_found_again_by_its_name() {
    let mut led = Led::new(vec![record(
        "api",
        failover(vec![inner(failover(vec![checked(1), checked(2)])), checked(3)]),
    )]);
    led.hear("duu duu duu");
    led.look(0);
    assert_eq!(led.agreed.chosen.keys().collect::<Vec<_>>(), ["example.com api A 0"]);
    assert_eq!(led.answers().0, "2");
}

#[test]
fn a_name_that_follows_a_part_is_where_that_is_and_stays_while_nobody_knows() {
    let mut led = Led::new(vec![record(
        "api",
        Policy::Failover {
            entries: vec![plain(1), plain(2)],
            failback: Failback::Manual,
            follows: Some(part("pair")),
        },
    )]);
    led.look(0);
    assert_eq!(led.answers().0, "1");
    let go = |place: Option<usize>, led: &mut Led| {
        let places = place.map(|place| ("service.pair".to_owned(), place)).into_iter().collect();
        let known = Known { places, ..Known::default() };
        let look = led.lead.look(at(1), Timestamp(0), &led.topology, &known, &led.agreed);
        if let Some(command) = look.command {
            led.index += 1;
            let stamp = crate::agreed::Stamp { index: led.index, wall: Timestamp(0) };
            led.agreed = led.agreed.changed(stamp, &command).unwrap();
        }
        led.answers().0
    };
    assert_eq!(go(Some(1), &mut led), "2");
    assert_eq!(go(None, &mut led), "2", "the last place that is known stays");
    assert_eq!(go(Some(0), &mut led), "1");
}

#[test]
fn a_signed_zone_counts_up_before_signatures_of_secondaries_run_out() {
    let mut led = Led::new(vec![record("api", Policy::Simple(vec![endpoint(1)]))]);
    led.topology.dns.get_mut("example.com").unwrap().dnssec = true;
    led.look(0);
    let day = 86_400_000;
    let after = |days: i64, led: &mut Led| {
        let wall = Timestamp(1_000_000 + days * day);
        led.lead.look(at(0), wall, &led.topology, &Known::default(), &led.agreed).command
    };
    assert_eq!(after(1, &mut led), None);
    let Some(command) = after(3, &mut led) else { panic!("nothing after three days") };
    let stamp = crate::agreed::Stamp { index: 2, wall: Timestamp(1_000_000 + 3 * day) };
    let serial = led.answers().1;
    led.agreed = led.agreed.changed(stamp, &command).unwrap();
    assert!(serial < led.answers().1);
    assert_eq!(after(4, &mut led), None, "once is enough");
    led.topology.dns.get_mut("example.com").unwrap().dnssec = false;
    led.look(0);
    assert_eq!(after(9, &mut led), None, "nobody has signatures of it");
}

#[test]
fn a_ttl_that_a_person_lowers_is_as_ever_again_by_itself() {
    let mut led = Led::new(vec![record("api", Policy::Simple(vec![endpoint(1)]))]);
    led.look(0);
    let wall = |second: i64| Timestamp(1_000_000 + second * 1000);
    let lower = |until: Option<Timestamp>, led: &mut Led| {
        let change = NameChange::Lowered { record: "example.com api A".to_owned(), until };
        let zones = BTreeSet::from(["example.com".to_owned()]);
        let from = led.agreed.epoch;
        let command = NamesCommand::Change { from, changes: vec![change], zones };
        let stamp = crate::agreed::Stamp { index: from + 1, wall: wall(0) };
        led.agreed = led.agreed.changed(stamp, &command)?;
        Ok(())
    };
    let answered = |led: &Led| {
        let zone = &led.topology.dns["example.com"];
        let ttl = agreed_answers("example.com", zone, &led.agreed)[0].ttl.as_secs();
        (ttl, led.answers().1, lowered("example.com", &zone.records[0], &led.agreed))
    };
    assert_eq!(answered(&led), (60, 1000, None));
    assert_eq!(lower(Some(wall(30)), &mut led), Ok(()));
    assert_eq!(answered(&led), (30, 1001, Some(wall(30))));
    let look = |second: i64, led: &mut Led| {
        let now = at(second.try_into().unwrap());
        led.lead.look(now, wall(second), &led.topology, &Known::default(), &led.agreed)
    };
    assert_eq!(look(29, &mut led), Look { command: None, again: Some(at(30)) });
    let over = look(30, &mut led).command.unwrap();
    let before = led.agreed.clone();
    let stamp = crate::agreed::Stamp { index: 9, wall: wall(30) };
    led.agreed = led.agreed.changed(stamp, &over).unwrap();
    assert_eq!(answered(&led), (60, 1030, None));
    let facts: Vec<String> = changes(&before, &led.agreed).iter().map(Fact::to_string).collect();
    assert_eq!(facts, ["is remembered for as long as ever again"]);

    let most = i64::try_from(LOWERED_MAX.as_secs()).unwrap();
    assert_eq!(lower(Some(wall(most + 1)), &mut led), Err(crate::agreed::Refusal::Duration));
    assert_eq!(lower(Some(wall(most)), &mut led), Ok(()));
    assert_eq!(lower(None, &mut led), Ok(()));
    assert_eq!(answered(&led).0, 60);
    // Whoever takes the zone away leaves nothing behind.
    assert_eq!(lower(Some(wall(30)), &mut led), Ok(()));
    led.topology.dns.clear();
    led.look(1);
    assert!(led.agreed.lowered.is_empty());
}

#[test]
fn a_pair_that_changes_sides_is_not_taken_for_down() {
    let sight = |why: &str| {
        let service =
            crate::observers::ServiceSight { state: ServiceState::Down, why: why.to_owned() };
        let services = BTreeMap::from([("shop".to_owned(), service)]);
        sights(&Report { services, ..Report::default() })["service.shop"].0
    };
    assert_eq!(sight("1 of 1 backends is down"), Down);
    assert_eq!(sight("changes sides: waits until every node has left the other one"), Unknown);
}
