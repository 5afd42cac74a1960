//! `[dns."ZONE"]`: a name server, and what decides its answers.

use outlast_core::topology::{PartKind, WEIGHT_MAX};

use super::{DURATION, DURATION_OR_ZERO, FAILBACK, FILE_PATH, OFF, RECORD_PROBE};
use crate::file::shape::{Key, Kind, Shape};

pub(crate) const RECORD_TYPES: &[&str] = &["A", "AAAA", "CNAME", "TXT"];
pub(crate) const RECORD_POLICIES: &[&str] =
    &["simple", "failover", "weighted", "multivalue", "latency", "geo", "alias"];
pub(crate) const WHEN_ALL_DOWN: &[&str] = &["open", "closed", "sorry"];

const NAME_SERVER: Kind = Kind::Text("ns1.example.com");
const NETWORKS: Kind = Kind::List(&Kind::Network);

pub(super) static DNS: Shape = Shape {
    title: "[dns.\"ZONE\"]",
    about: "A zone that outlast answers for.",
    keys: &[
        Key::new("listen", Kind::Listen, "Where the name server listens, UDP and TCP."),
        Key::new("records", Kind::List(&Kind::Table(&RECORD)), "The zone's records.").required(),
        Key::new(
            "ns",
            Kind::List(&NAME_SERVER),
            "Names of the zone's name servers; the zone itself if absent.",
        )
        .elsewhere(&["nameservers", "name_servers"]),
        Key::new("soa", Kind::Table(&SOA), "The zone's start of authority."),
        Key::new(
            "secondaries",
            Kind::List(&Kind::Text("10.0.0.9:53")),
            "Who is told of changes (NOTIFY) and may fetch the zone (AXFR, IXFR); port 53 if absent.",
        )
        .elsewhere(&["secondary", "also_notify", "allow_transfer", "slaves"]),
        Key::new("keys", FILE_PATH, "The file that holds the TSIG keys.")
            .elsewhere(&["key", "tsig", "key_file"]),
        Key::new(
            "update",
            Kind::List(&Kind::Text("admin-key")),
            "Names of keys whose holders may change the zone (RFC 2136).",
        )
        .elsewhere(&["allow_update", "update_policy"]),
        Key::new(
            "elsewhere",
            Kind::List(&Kind::Table(&ELSEWHERE)),
            "Other name servers that the same records are kept in: { rfc2136 = \"192.0.2.53\", key = \"admin-key\" } or { route53 = \"Z1234567890ABC\" }.",
        )
        .elsewhere(&["providers", "push", "external", "targets"]),
        Key::new("dnssec", Kind::Switch, "Whether answers are signed.").or_switch(false),
        Key::new(
            "rate_limit",
            Kind::Any(&[Kind::Count { min: 1, max: 1_000_000 }, OFF]),
            "Answers a second to one network of clients; beyond it some are cut short or dropped.",
        )
        .or_count(200)
        .elsewhere(&["rrl", "responses_per_second"]),
        Key::new("cookies", Kind::Switch, "Whether DNS cookies (RFC 7873) are spoken.")
            .or_switch(true),
        Key::new(
            "healthy_above",
            Kind::Share,
            "A thing is up if more than this share of the nodes say so: Route 53 has 0.18. More than half must agree if absent.",
        ),
        Key::new(
            "regions",
            Kind::Map(&NETWORKS),
            "Where clients are, by their networks: { eu-west = [\"192.0.2.0/24\"] }.",
        ),
        Key::new(
            "latencies",
            Kind::Map(&Kind::Map(&DURATION)),
            "From a client's region to another: { eu-west = { us-east = \"80ms\" } }; both ways alike unless said.",
        ),
    ],
};

static ELSEWHERE: Shape = Shape {
    title: "dns.elsewhere",
    about: "Another name server that the zone's records are kept in: exactly one of `rfc2136` and `route53`.",
    keys: &[
        Key::new(
            "rfc2136",
            Kind::Text("192.0.2.53:53"),
            "The zone's primary server there, which takes updates (BIND, Knot, PowerDNS); port 53 if absent.",
        )
        .elsewhere(&["server", "address", "nsupdate", "update"]),
        Key::new(
            "key",
            Kind::Text("admin-key"),
            "With rfc2136: the key in `keys` that updates are signed with.",
        )
        .elsewhere(&["tsig", "tsig_key"]),
        Key::new(
            "route53",
            Kind::Text("Z1234567890ABC"),
            "The id of the hosted zone in AWS Route 53.",
        )
        .elsewhere(&["hosted_zone", "hosted_zone_id", "zone_id", "aws"]),
    ],
};

pub(crate) static SOA: Shape = Shape {
    title: "dns.soa",
    about: "The start of authority, but for the serial number, which counts changes.",
    keys: &[
        Key::new("mname", NAME_SERVER, "The first name server; the first of `ns` if absent.")
            .elsewhere(&["primary", "ns"]),
        Key::new(
            "rname",
            Kind::Text("hostmaster@example.com"),
            "Who is responsible; hostmaster of the zone if absent.",
        )
        .elsewhere(&["mail", "email", "hostmaster"]),
        Key::new("refresh", DURATION, "How often secondaries look for changes.").or("1h"),
        Key::new("retry", DURATION, "How soon they try again.").or("10m"),
        Key::new("expire", DURATION, "How long they answer alone.").or("7d"),
        Key::new(
            "minimum",
            DURATION_OR_ZERO,
            "How long others may remember that a name is not there.",
        )
        .or("30s")
        .elsewhere(&["negative_ttl", "nxdomain"]),
    ],
};

/// What has one place at a time.
static FOLLOWED: [PartKind; 3] = [PartKind::Service, PartKind::Postgres, PartKind::Address];

/// A plain value, or one with what is said of it, or an inner policy.
static ENTRIES: Kind = Kind::Any(ENTRY_KINDS);
static ENTRY_KINDS: &[Kind] = &[Kind::Text("54.123.45.67"), Kind::Table(&ENTRY)];
static FAILBACK_KINDS: &[Kind] = &[Kind::Table(&FAILBACK), Kind::Words(&["manual"])];
static PROBE_KINDS: &[Kind] = &[Kind::Part(&PartKind::ALL), Kind::Table(&RECORD_PROBE)];

const POLICY: Key = Key::new(
    "policy",
    Kind::Words(RECORD_POLICIES),
    "simple: all `values`. failover: the first that is healthy, `primary` then `secondary`, or `values` in order. weighted: one of the healthy, by `weight`. multivalue: up to 8 healthy. latency: the healthy one whose `region` is nearest. geo: by the client's network. alias: as `target`.",
);

const fn values() -> Key {
    Key::new(
        "values",
        Kind::List(&ENTRIES),
        "What is answered, or chosen from; a plain value or { value = … }.",
    )
    .elsewhere(&["addresses", "records"])
}

const fn primary() -> Key {
    Key::new("primary", Kind::Any(ENTRY_KINDS), "With policy failover: the answer while it is up.")
}

const fn secondary() -> Key {
    Key::new(
        "secondary",
        Kind::Any(ENTRY_KINDS),
        "With policy failover: the answer while the primary is down.",
    )
    .elsewhere(&["backup"])
}

const fn default() -> Key {
    Key::new(
        "default",
        Kind::Any(ENTRY_KINDS),
        "With policy geo: for clients of all other networks.",
    )
}

const TARGET: Key = Key::new(
    "target",
    Kind::Text("www"),
    "With policy alias: a record of this zone and of the same type.",
)
.elsewhere(&["alias", "alias_target"]);

const EVALUATE: Key =
    Key::new("evaluate", Kind::Switch, "With policy alias: whether it is down when the target is.")
        .or_switch(true)
        .elsewhere(&["evaluate_target_health"]);

const fn failback() -> Key {
    Key::new(
        "failback",
        Kind::Any(FAILBACK_KINDS),
        "With policy failover: how long the primary must be up before it serves again, or manual; after 30s if absent.",
    )
}

const fn probe() -> Key {
    Key::new(
    "probe",
    Kind::Any(PROBE_KINDS),
    "What decides on health: a part; a probe of each value; or { at_least = 2, of = [\"service.web\", …] }. Of a failover a part is about the primary.",
)
.elsewhere(&["health", "check", "service", "health_check"])
}

static RECORD: Shape = Shape {
    title: "dns.records",
    about: "One name and what it leads to.",
    keys: &[
        Key::new("name", Kind::Text("api"), "Within the zone; @ is the zone itself.").required(),
        Key::new("type", Kind::Words(RECORD_TYPES), "What the values are.").required(),
        POLICY.or("simple"),
        values().elsewhere(&["value", "addresses"]),
        primary(),
        secondary(),
        default(),
        TARGET,
        EVALUATE,
        failback(),
        Key::new(
            "follows",
            Kind::Part(&FOLLOWED),
            "With policy failover, instead of `probe`: the part whose place decides. A service with `primary` and `backup`: two values in that order; a postgres or an address: one value for each of its nodes, in their order.",
        ),
        probe(),
        Key::new("ttl", DURATION_OR_ZERO, "How long others may remember the answer.").or("60s"),
        Key::new(
            "ttl_degraded",
            DURATION_OR_ZERO,
            "The same while something of it is down or about to be moved, or after `outlast dns lower-ttl`; half of `ttl`, but not below 5s, if absent.",
        ),
        Key::new(
            "when_all_down",
            Kind::Words(WHEN_ALL_DOWN),
            "What is answered when nothing is healthy. open: as if all were. closed: nothing. sorry: the values in `sorry`.",
        )
        .or("open")
        .elsewhere(&["fallback", "fail_open"]),
        Key::new(
            "sorry",
            Kind::Any(&[Kind::Text("54.123.45.67"), Kind::List(&Kind::Text("54.123.45.67"))]),
            "With `when_all_down = \"sorry\"`: what is answered then.",
        ),
    ],
};

static ENTRY: Shape = Shape {
    title: "dns.records.values",
    about: "One of several answers: a value, or an inner policy.",
    keys: &[
        Key::new("value", Kind::Text("54.123.45.67"), "The value; or else `policy`.")
            .elsewhere(&["address", "ip"]),
        POLICY,
        values(),
        primary(),
        secondary(),
        default(),
        TARGET,
        EVALUATE,
        failback(),
        probe(),
        Key::new(
            "weight",
            Kind::Count { min: 0, max: WEIGHT_MAX as u64 },
            "With policy weighted; 0: only while all others are down.",
        )
        .or_count(1),
        Key::new("region", Kind::Text("eu-west"), "With policy latency or geo: one of `regions`."),
        Key::new("networks", NETWORKS, "With policy geo: of which clients.")
            .elsewhere(&["clients", "subnets"]),
    ],
};
