//! Zones kept in Route 53, against moto; boto3 says what came of it.

#![cfg(test)]

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use outlast_core::health::Thresholds;
use outlast_core::names::{FailoverId, Sticky};
use outlast_core::time::Instant;
use outlast_core::topology::{
    Authority, Branch, Check, Endpoint, Entry, Failback, HealthCheck, HttpCheck, HttpTarget,
    Network, Policy, Probe, Record, RecordKind, RecordValue, StatusSet, ValueProbe, WhenAllDown,
};
use outlast_dns::elsewhere::{Outline, Provider as _, Route53, Trouble, Wanted, outline, push};

use emulator::Moto;
use wants::{api, entry, record, simple, value, wanted, wanted_with};

#[path = "../../outlast-aws/tests/emulator/mod.rs"]
mod emulator;
mod wants;

/// A zone in an emulator.
struct Stage {
    moto: Moto,
    route53: Route53,
}

impl Stage {
    fn new() -> Option<Stage> {
        let moto = Moto::start()?;
        let id = moto.boto3("print(route53.create_hosted_zone(Name='example.com', CallerReference='1')['HostedZone']['Id'].split('/')[-1])");
        // Somebody else's record and health check.
        moto.boto3(&format!(
            "route53.change_resource_record_sets(HostedZoneId='{id}', ChangeBatch={{'Changes': [{{'Action': 'CREATE', 'ResourceRecordSet': \
             {{'Name': 'theirs.example.com', 'Type': 'A', 'TTL': 5, 'ResourceRecords': [{{'Value': '203.0.113.1'}}]}}}}]}})\n\
             route53.create_health_check(CallerReference='theirs', HealthCheckConfig={{'Type': 'TCP', 'IPAddress': '54.1.1.1', 'Port': 80}})"
        ));
        let route53 =
            Route53 { client: moto.client("us-east-1"), zone_id: id, cluster: "shop".to_owned() };
        Some(Stage { moto, route53 })
    }

    /// What boto3 sees, but for SOA, NS and what is somebody else's.
    fn seen(&self) -> String {
        self.moto.boto3(&format!(
            "checks = {{c['Id']: c for c in route53.list_health_checks()['HealthChecks']}}\n\
             def show(id):\n  c = checks[id]['HealthCheckConfig']; k = ('Type', 'IPAddress', 'FullyQualifiedDomainName', 'Port', 'ResourcePath', \
             'SearchString', 'RequestInterval', 'FailureThreshold', 'Inverted', 'Disabled')\n  return ' '.join(str(c[n]) for n in k if c.get(n) not in (None, False))\n\
             for s in route53.list_resource_record_sets(HostedZoneId='{}')['ResourceRecordSets']:\n  \
             if s['Type'] in ('SOA', 'NS') or s['Name'].startswith('theirs'): continue\n  \
             w = [s['Name'], s['Type']] + [str(s[k]) for k in ('TTL', 'Failover', 'Weight', 'Region', 'MultiValueAnswer') if k in s]\n  \
             w += [r['Value'] for r in s.get('ResourceRecords', [])]\n  \
             if 'AliasTarget' in s: w += ['alias', s['AliasTarget']['DNSName'], str(s['AliasTarget']['EvaluateTargetHealth'])]\n  \
             if 'HealthCheckId' in s: w += ['[' + show(s['HealthCheckId']) + ']']\n  \
             print(' '.join(w))\n\
             print(len(checks), 'checks')",
            self.route53.zone_id
        ))
    }
}

fn said(result: &Result<Outline, Trouble>) -> String {
    result.as_ref().unwrap_or_else(|trouble| panic!("{trouble}")).to_string()
}

fn count(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("not zero")
}

/// A value that is asked as the chapter's primary is.
fn asked(host: &str, check: Check, every: u64, fall: u16) -> Option<HealthCheck> {
    let probe = Probe {
        check,
        every: Duration::from_secs(every),
        timeout: Duration::from_secs(4),
        thresholds: Thresholds { rise: count(3), fall: count(fall) },
        delay: Duration::ZERO,
    };
    let id = format!("api.example.com A {host}:443");
    Some(HealthCheck::Value(Box::new(ValueProbe {
        id,
        host: host.to_owned(),
        port: count(443),
        probe,
    })))
}

fn http(target: HttpTarget, body: Option<&str>) -> Check {
    Check::Http(HttpCheck {
        target,
        method: "GET".to_owned(),
        status: StatusSet(vec![(200, 399)]),
        body: body.map(str::to_owned),
        headers: Vec::new(),
        tls_verify: true,
    })
}

fn ip(text: &str) -> RecordValue {
    RecordValue::A(text.parse().expect("an address"))
}

fn at(text: &str, check: Option<HealthCheck>) -> Entry {
    Entry { what: Branch::Value(ip(text)), check }
}

fn https_primary() -> Option<HealthCheck> {
    let authority = Authority { host: "primary.example.com".to_owned(), port: count(443) };
    let target = HttpTarget::Url { tls: true, authority, path: "/health".to_owned() };
    asked("54.123.45.67", http(target, None), 30, 3)
}

fn failover(entries: Vec<Entry>) -> Policy {
    Policy::Failover { entries, failback: Failback::After(Duration::from_secs(30)), follows: None }
}

fn chapter() -> Record {
    let entries = vec![at("54.123.45.67", https_primary()), at("52.234.56.78", None)];
    record("api", RecordKind::A, failover(entries))
}

#[tokio::test]
async fn the_failover_of_the_chapter_is_kept() {
    let Some(stage) = Stage::new() else { return };
    let now = wanted(vec![chapter()], &[]);
    let plan = "\
+ health check api.example.com A 54.123.45.67:443: https://primary.example.com:443/health every 30 s, 3 in a row
+ api.example.com. 60 A 54.123.45.67, primary, if healthy: https://primary.example.com:443/health every 30 s, 3 in a row
+ api.example.com. 60 A 52.234.56.78, secondary
";
    assert_eq!(said(&outline(&stage.route53, &now).await), plan);
    assert_eq!(stage.seen(), "1 checks", "a dry run changes nothing");
    assert_eq!(said(&push(&stage.route53, &now).await), plan);
    assert_eq!(
        stage.seen(),
        "api.example.com. A 60 PRIMARY 54.123.45.67 [HTTPS primary.example.com 443 /health 30 3]\n\
         api.example.com. A 60 SECONDARY 52.234.56.78\n\
         2 checks"
    );
    assert_eq!(said(&push(&stage.route53, &now).await), "", "once more");

    // Another address behind the same name: the health check is used again.
    let entries = vec![at("54.123.45.68", https_primary()), at("52.234.56.78", None)];
    let other = wanted(vec![record("api", RecordKind::A, failover(entries))], &[]);
    let changed = said(&push(&stage.route53, &other).await);
    assert_eq!(changed.lines().count(), 2, "{changed}");
    assert!(stage.seen().starts_with("api.example.com. A 60 SECONDARY 52.234.56.78\napi.example.com. A 60 PRIMARY 54.123.45.68 ["), "{}", stage.seen());

    // No longer wanted: the sets go, then the health check; what is somebody else's stays.
    let gone = wanted(Vec::new(), &[]).after(&other);
    let changed = said(&push(&stage.route53, &gone).await);
    assert_eq!(changed.lines().filter(|line| line.starts_with('-')).count(), 3, "{changed}");
    assert_eq!(stage.seen(), "1 checks");
    let theirs = stage.moto.boto3(&format!(
        "print([s['Name'] for s in route53.list_resource_record_sets(HostedZoneId='{}')['ResourceRecordSets'] if s['Type'] == 'A'])",
        stage.route53.zone_id
    ));
    assert_eq!(theirs, "['theirs.example.com.']");
}

#[tokio::test]
async fn every_policy_is_said_as_route_53_says_it_or_refused() {
    let Some(stage) = Stage::new() else { return };
    let tcp = |host| asked(host, Check::Tcp { address: None }, 10, 20);
    let text = http(HttpTarget::Path("/".to_owned()), Some("fine"));
    let alias = |target: &str, evaluate| Policy::Alias { target: target.to_owned(), evaluate };
    let inside = |target: &str| Entry { what: Branch::Policy(alias(target, true)), check: None };
    let network = Network { address: [198, 51, 100, 0].into(), prefix: 24 };
    let mut closed = record("closed", RecordKind::A, failover(vec![entry(1), entry(2)]));
    closed.when_all_down = WhenAllDown::Closed;
    let records = vec![
        record("www", RecordKind::A, alias("share", false)),
        record(
            "share",
            RecordKind::A,
            Policy::Weighted(vec![
                (1, at("54.0.0.1", tcp("54.0.0.1"))),
                (1000, at("54.0.0.2", asked("54.0.0.2", text, 5, 2))),
                (0, at("54.0.0.3", None)),
            ]),
        ),
        record(
            "many",
            RecordKind::Aaaa,
            Policy::Multivalue(vec![
                Endpoint { value: RecordValue::Aaaa("2001:db8::1".parse().unwrap()), check: None },
                Endpoint { value: RecordValue::Aaaa("2001:db8::2".parse().unwrap()), check: None },
            ]),
        ),
        record(
            "near",
            RecordKind::A,
            Policy::Latency(vec![
                ("eu-west-1".to_owned(), at("54.0.0.4", None)),
                ("us-east-1".to_owned(), inside("share")),
            ]),
        ),
        record(
            "text",
            RecordKind::Txt,
            simple(vec![RecordValue::Txt("a \"b\" \u{e9}".to_owned())]),
        ),
        record(
            "*.far",
            RecordKind::Cname,
            simple(vec![RecordValue::Cname("Target.example.net.".to_owned())]),
        ),
        closed,
        record(
            "farther",
            RecordKind::A,
            Policy::Latency(vec![("moon".to_owned(), at("54.0.0.5", None))]),
        ),
        record(
            "geo",
            RecordKind::A,
            Policy::Geo { entries: vec![(vec![network], entry(3))], default: Box::new(entry(4)) },
        ),
        record("three", RecordKind::A, failover(vec![entry(1), entry(2), entry(3)])),
        record(
            "deep",
            RecordKind::A,
            failover(vec![
                Entry { what: Branch::Policy(Policy::Multivalue(vec![])), check: None },
                entry(2),
            ]),
        ),
    ];
    let now = wanted(records, &["2"]);
    let done = said(&push(&stage.route53, &now).await);
    for line in [
        "warning: share.example.com. A: weights are sent as shares of 255",
        "warning: share.example.com. A: Route 53 asks 54.0.0.1 every 10 s, and 10 answers in a row turn it",
        "warning: share.example.com. A: Route 53 asks 54.0.0.2 every 10 s, and 2 answers in a row turn it",
        "warning: near.example.com. A: Route 53 measures latencies itself, whatever `latencies` says",
        "warning: closed.example.com. A: when all is down, Route 53 answers as if all were healthy, whatever `when_all_down` says",
        "left alone: farther.example.com. A: Route 53 measures latency to regions of AWS, and `moon` is not one like `eu-west-1`",
        "left alone: geo.example.com. A: Route 53 knows countries, not networks of clients; keep policy geo here, or leave it out there",
        "left alone: three.example.com. A: Route 53 has a primary and a secondary, not 3; name two, or make the second an alias of another failover",
        "left alone: deep.example.com. A: Route 53 has no policies in policies; give the inner multivalue a record of its own, and put an alias of it here",
        "+ www.example.com. A as share.example.com.",
        "+ health check service.2: unhealthy say our nodes",
    ] {
        assert!(done.lines().any(|said| said == line), "{line}\n{done}");
    }
    assert_eq!(
        stage.seen(),
        "closed.example.com. A 60 PRIMARY 192.0.2.1 [TCP example.com 80 30 1 True]\n\
         closed.example.com. A 60 SECONDARY 192.0.2.2 [TCP example.com 80 30 1 True True]\n\
         *.far.example.com. CNAME 60 target.example.net\n\
         many.example.com. AAAA 60 True 2001:db8::1\n\
         many.example.com. AAAA 60 True 2001:db8::2\n\
         near.example.com. A 60 eu-west-1 54.0.0.4\n\
         near.example.com. A us-east-1 alias share.example.com True\n\
         share.example.com. A 60 1 54.0.0.1 [TCP 54.0.0.1 443 10 10]\n\
         share.example.com. A 60 255 54.0.0.2 [HTTP_STR_MATCH 54.0.0.2 443 / fine 10 2]\n\
         share.example.com. A 60 0 54.0.0.3\n\
         text.example.com. TXT 60 \"a \\\"b\\\" \\303\\251\"\n\
         www.example.com. A alias share.example.com False\n\
         5 checks"
    );
    let again = said(&push(&stage.route53, &now).await);
    assert!(!again.lines().any(|line| line.starts_with(['+', '-', '~'])), "{again}");
}

/// What Route 53 cannot ask is judged by our nodes, and it is told by turning a health check that asks nobody.
#[tokio::test]
async fn the_verdict_of_our_nodes_is_sent() {
    let Some(stage) = Stage::new() else { return };
    push(&stage.route53, &wanted(vec![api()], &[])).await.expect("done");
    let down = wanted(vec![api()], &["1"]);
    let plan = "~ health check service.1 for api.example.com. A: unhealthy\n";
    assert_eq!(said(&push(&stage.route53, &down).await), plan);
    assert_eq!(
        stage.seen(),
        "api.example.com. A 60 PRIMARY 192.0.2.1 [TCP example.com 80 30 1 True True]\n\
         api.example.com. A 60 SECONDARY 192.0.2.2 [TCP example.com 80 30 1 True]\n\
         3 checks"
    );
    assert_eq!(said(&push(&stage.route53, &down).await), "");
    assert_eq!(
        said(&push(&stage.route53, &wanted(vec![api()], &[])).await),
        "~ health check service.1 for api.example.com. A: healthy\n"
    );

    // Our nodes have decided that the secondary serves on, although the primary is up again.
    let id = FailoverId { name: "api".to_owned(), kind: RecordKind::A, path: Vec::new() };
    let mut sticky = Sticky::default();
    sticky.chosen.insert(id, "192.0.2.2".to_owned());
    let stays = wanted_with(vec![api()], &[], &sticky);
    let plan = "~ health check service.1 for api.example.com. A: unhealthy\n";
    assert_eq!(said(&push(&stage.route53, &stays).await), plan);

    // A person says that it moves soon.
    let www = || record("www", RecordKind::A, simple(vec![value(7)]));
    let id = FailoverId { name: "www".to_owned(), kind: RecordKind::A, path: Vec::new() };
    let lowered = BTreeMap::from([(id, Instant::default())]);
    let lowered = Sticky { lowered, ..Sticky::default() };
    // Not back again: moto refuses to make a set that it has ever made, also in one batch with the end of the other one.
    for (sticky, ttl) in [(Sticky::default(), 60), (lowered, 30)] {
        push(&stage.route53, &wanted_with(vec![www()], &[], &sticky)).await.expect("done");
        let wanted = format!("www.example.com. A {ttl} 192.0.2.7");
        assert!(stage.seen().contains(&wanted), "{wanted}: {}", stage.seen());
    }

    let private = asked("10.0.0.1", Check::Tcp { address: None }, 10, 3);
    let entries = vec![at("10.0.0.1", private), at("52.234.56.78", None)];
    let inside = wanted(vec![record("inside", RecordKind::A, failover(entries))], &[]);
    let done = said(&push(&stage.route53, &inside).await);
    let warning = "warning: inside.example.com. A: Route 53 cannot ask 10.0.0.1: its address is a private one; the verdict of our nodes is sent";
    assert!(done.contains(warning), "{done}");
}

#[tokio::test]
async fn what_a_crash_has_left_is_found_again_and_clusters_do_not_touch_each_other() {
    let Some(stage) = Stage::new() else { return };
    let now = wanted(vec![chapter()], &[]);
    let plan = stage.route53.plan(&now).await.expect("a plan");
    // Half of a plan, as after a crash: the health check is made, the batch is not.
    let crashes = Route53 { zone_id: "Z0MISSING".to_owned(), ..stage.route53.clone() };
    crashes.apply(&plan).await.expect_err("there is no such zone");
    assert_eq!(stage.seen(), "2 checks");
    let done = said(&push(&stage.route53, &now).await);
    assert!(!done.contains("+ health check"), "{done}");
    assert!(stage.seen().ends_with("2 checks"), "{}", stage.seen());

    let other = Route53 { cluster: "bakery".to_owned(), ..stage.route53.clone() };
    let theirs = wanted(vec![record("cake", RecordKind::A, simple(vec![value(7)]))], &[]);
    let done = said(&push(&other, &theirs).await);
    assert_eq!(done, "+ cake.example.com. 60 A 192.0.2.7\n");
    assert!(stage.seen().contains("PRIMARY"), "{}", stage.seen());
}

#[tokio::test]
async fn a_zone_of_another_name_or_none_is_refused() {
    let Some(stage) = Stage::new() else { return };
    let other = Wanted::one("example.org", "a.example.org", value(1), Duration::from_secs(60))
        .expect("names");
    let refused = push(&stage.route53, &other).await;
    assert!(
        matches!(&refused, Err(Trouble::Never(what)) if what.contains("is example.com, not example.org")),
        "{refused:?}"
    );
    let missing = Route53 { zone_id: "Z0MISSING".to_owned(), ..stage.route53.clone() };
    let refused = push(&missing, &wanted(vec![api()], &[])).await;
    assert!(
        matches!(&refused, Err(Trouble::Never(what)) if what.contains("NoSuchHostedZone")),
        "{refused:?}"
    );
}
