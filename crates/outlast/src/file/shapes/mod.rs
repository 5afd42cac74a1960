//! Every section and key of `outlast.toml`, with its default and what it means.

mod address;
mod dns;
mod service;

use outlast_core::topology::PartKind;

pub(crate) use address::*;
pub(crate) use dns::*;
pub(crate) use service::*;

use super::shape::{Key, Kind, Shape};

const DURATION: Kind = Kind::Duration { zero: false };
const DURATION_OR_ZERO: Kind = Kind::Duration { zero: true };
const MONEY: Kind = Kind::Number { min: 0.0, max: f64::MAX };
const NODES: Kind = Kind::List(&Kind::NodeName);
const PARTS: Kind = Kind::List(&Kind::Part(&PartKind::ALL));
const COUNT_U16: Kind = Kind::Count { min: 1, max: u16::MAX as u64 };
const LINK_PORT: Kind = Kind::Count { min: 1, max: 65_535 };
const FILE_PATH: Kind = Kind::Text("/etc/outlast/node.pem");
const HTTP_URL: Kind = Kind::Text("https://api.example.com/health");
const OFF: Kind = Kind::Words(&["off"]);

const AVAILABILITY: Key = Key::new(
    "availability",
    Kind::Share,
    "Share of time that one of it is there: 0.999. Not together with `mtbf`.",
);
const MTBF: Key = Key::new("mtbf", DURATION, "Mean time between failures; needs `mttr`.");
const MTTR: Key = Key::new("mttr", DURATION, "Mean time to repair; needs `mtbf`.");
const PART_NODES: Key =
    Key::new("nodes", NODES, "Names of the nodes that it runs on; all nodes if absent.")
        .elsewhere(&["hosts", "node"]);

pub(crate) static FILE: Shape = Shape {
    title: "outlast.toml",
    about: "One file, analysed by `outlast check`, run by `outlast run`, measured by `outlast slo`, drilled by `outlast drill`.",
    keys: &[
        Key::new("cluster", Kind::Table(&CLUSTER), "What belongs to all nodes."),
        Key::new("consensus", Kind::Table(&CONSENSUS), "How the nodes agree who is primary.")
            .elsewhere(&["raft", "etcd", "quorum"]),
        Key::new(
            "node",
            Kind::Named(&NODE),
            "The machines; without any the file is about one machine.",
        )
        .elsewhere(&["host", "server", "machine"]),
        Key::new(
            "service",
            Kind::Named(&SERVICE),
            "What clients reach, and the backends that serve it.",
        )
        .elsewhere(&["frontend", "backend", "proxy", "upstream"]),
        Key::new(
            "process",
            Kind::Named(&PROCESS),
            "Programs that the agent starts and keeps alive.",
        )
        .elsewhere(&["program", "command"]),
        Key::new("postgres", Kind::Named(&POSTGRES), "PostgreSQL clusters.").elsewhere(&[
            "postgresql",
            "database",
            "db",
        ]),
        Key::new("redis", Kind::Named(&REDIS), "Redis with its replicas.")
            .elsewhere(&["sentinel", "valkey"]),
        Key::new("store", Kind::Named(&STORE), "The replicated key-value store."),
        Key::new("address", Kind::Named(&ADDRESS), "IP addresses that move to a healthy node.")
            .elsewhere(&["vip", "virtual_ip", "ip", "vrrp"]),
        Key::new("dns", Kind::Named(&DNS), "Zones that outlast answers for."),
        Key::new("external", Kind::Named(&EXTERNAL), "Parts that somebody else runs.")
            .elsewhere(&["dependency", "third_party"]),
        Key::new("objective", Kind::Named(&OBJECTIVE), "What a service is to achieve (SLO).")
            .elsewhere(&["slo"]),
        Key::new("agreement", Kind::Named(&AGREEMENT), "What is promised to customers (SLA).")
            .elsewhere(&["sla"]),
        Key::new("cost", Kind::Table(&COST), "What an outage costs."),
        Key::new("notify", Kind::Named(&NOTIFY), "Who is told.")
            .elsewhere(&["alert", "notification"]),
        Key::new("backup", Kind::Named(&BACKUP), "Copies of data, kept elsewhere."),
    ],
};

pub(crate) static CLUSTER: Shape = Shape {
    title: "[cluster]",
    about: "What belongs to all nodes.",
    keys: &[
        Key::new("name", Kind::Text("shop"), "The cluster's name.").or("outlast"),
        Key::new(
            "data_dir",
            Kind::Text("/var/lib/outlast"),
            "Where outlast keeps its state; a relative path is relative to the file.",
        )
        .or("/var/lib/outlast"),
        Key::new(
            "tls",
            Kind::Table(&CLUSTER_TLS),
            "Mutual TLS between the agents and for the admin API.",
        ),
        Key::new(
            "port",
            LINK_PORT,
            "The TCP port at which agents reach each other; a node may have its own.",
        )
        .or_count(8901)
        .elsewhere(&["peer_port", "link_port"]),
        Key::new(
            "face",
            Kind::Any(&[Kind::Listen, OFF]),
            "Where /health, /metrics and the status page are served. Whoever reaches it sees the names and addresses of all parts: keep it on loopback or on a network of your own; nothing can be changed through it.",
        )
        .or("127.0.0.1:9400")
        .elsewhere(&["listen", "metrics", "health", "status", "admin"]),
        Key::new(
            "proxy_threads",
            Kind::Count { min: 1, max: 256 },
            "Worker threads of the proxy; one per core if absent.",
        )
        .elsewhere(&["threads", "workers", "nbthread"]),
    ],
};

static CLUSTER_TLS: Shape = Shape {
    title: "cluster.tls",
    about: "PEM files for mutual TLS.",
    keys: &[
        Key::new("ca", FILE_PATH, "The CA that signed the certificates of all nodes, or several.")
            .required(),
        Key::new("cert", FILE_PATH, "This node's certificate chain.")
            .required()
            .elsewhere(&["certificate", "crt"]),
        Key::new("key", FILE_PATH, "The certificate's private key.")
            .required()
            .elsewhere(&["private_key"]),
        Key::new(
            "crl",
            Kind::Text("/etc/outlast/ca.crl"),
            "Certificates that were revoked; none while there is no such file.",
        )
        .elsewhere(&["revoked"]),
    ],
};

pub(crate) const CONSENSUS_KINDS: &[&str] = &["embedded", "etcd"];

pub(crate) static CONSENSUS: Shape = Shape {
    title: "[consensus]",
    about: "How the nodes agree who is primary.",
    keys: &[
        Key::new(
            "kind",
            Kind::Words(CONSENSUS_KINDS),
            "Raft inside the agents, or an etcd that you already run.",
        )
        .or("embedded"),
        Key::new(
            "voters",
            NODES,
            "The nodes that vote, with kind embedded; the first three by name if absent.",
        ),
        Key::new(
            "endpoints",
            Kind::List(&Kind::Text("https://10.0.0.1:2379")),
            "URLs of etcd, with kind etcd.",
        ),
        Key::new("tls", Kind::Table(&CONSENSUS_TLS), "How etcd is reached at https:// endpoints."),
    ],
};

static CONSENSUS_TLS: Shape = Shape {
    title: "consensus.tls",
    about: "PEM files for TLS with etcd.",
    keys: &[
        Key::new("ca", FILE_PATH, "The CA that signed the certificates of etcd, or several.")
            .required()
            .elsewhere(&["cacert", "trusted_ca"]),
        Key::new("cert", FILE_PATH, "This node's certificate chain, where etcd asks for one.")
            .elsewhere(&["certificate", "crt"]),
        Key::new("key", FILE_PATH, "The certificate's private key.").elsewhere(&["private_key"]),
    ],
};

static NODE: Shape = Shape {
    title: "[node.NAME]",
    about: "One machine with one agent.",
    keys: &[
        Key::new("address", Kind::Ip, "The address at which the other nodes reach it.")
            .required()
            .elsewhere(&["ip", "host", "addr"]),
        Key::new(
            "port",
            LINK_PORT,
            "The TCP port at which other agents reach its agent; the cluster's if absent.",
        ),
        Key::new("region", Kind::Text("eu-west"), "Nodes of one region may fail together."),
        Key::new("zone", Kind::Text("eu-west-1a"), "Nodes of one zone may fail together.")
            .elsewhere(&["availability_zone", "az", "rack"]),
        AVAILABILITY,
        MTBF,
        MTTR,
        Key::new("cost_per_month", MONEY, "In the currency of [cost].")
            .elsewhere(&["cost", "price"]),
    ],
};

static PROCESS: Shape = Shape {
    title: "[process.NAME]",
    about: "A program that the agent starts and keeps alive.",
    keys: &[
        PART_NODES,
        Key::new("command", Kind::Command, "The program and its arguments; no shell between.")
            .required()
            .elsewhere(&["exec", "cmd", "start", "run"]),
        Key::new("directory", Kind::Text("/srv/api"), "Where it is started.").elsewhere(&[
            "cwd",
            "workdir",
            "working_directory",
        ]),
        Key::new("environment", Kind::Map(&Kind::AnyText), "Variables, on top of the agent's own.")
            .elsewhere(&["env"]),
        Key::new("user", Kind::Text("api"), "Whom it runs as; the agent's user if absent."),
        Key::new(
            "image",
            Kind::Text("registry.example.com/api:1.2"),
            "For the Deployment that `outlast export kubernetes` prints.",
        ),
        Key::new(
            "startup",
            Kind::Table(&PROCESS_PROBE),
            "Until it succeeds once, the other probes wait.",
        )
        .elsewhere(&["startupProbe", "startup_probe"]),
        Key::new(
            "liveness",
            Kind::Table(&PROCESS_PROBE),
            "When it is down, the process is restarted.",
        )
        .elsewhere(&["livenessProbe", "liveness_probe", "probe"]),
        Key::new(
            "readiness",
            Kind::Table(&PROCESS_PROBE),
            "When it is down, the process gets no traffic.",
        )
        .elsewhere(&["readinessProbe", "readiness_probe"]),
        Key::new("stop_timeout", DURATION_OR_ZERO, "Between SIGTERM and SIGKILL.")
            .or("30s")
            .elsewhere(&["grace_period", "terminationGracePeriodSeconds"]),
        Key::new("limits", Kind::Table(&PROCESS_LIMITS), "What it may use.")
            .elsewhere(&["resources"]),
        Key::new("needs", PARTS, "Parts without which it is down.").elsewhere(&[
            "depends_on",
            "requires",
            "dependencies",
        ]),
    ],
};

static PROCESS_LIMITS: Shape = Shape {
    title: "process.limits",
    about: "What a process may use.",
    keys: &[
        Key::new(
            "memory",
            Kind::Size { min: 1 << 20, max: u64::MAX },
            "Beyond it the process is killed.",
        ),
        Key::new("cpu", Kind::Number { min: 0.001, max: 10_000.0 }, "Cores: 0.5 is half of one."),
    ],
};

pub(crate) const DURABILITIES: &[&str] = &["async", "quorum"];
pub(crate) const REGION_FAILOVERS: &[&str] = &["manual", "automatic"];

static POSTGRES: Shape = Shape {
    title: "[postgres.NAME]",
    about: "A PostgreSQL cluster: one primary, the other nodes standbys.",
    keys: &[
        PART_NODES,
        Key::new("version", Kind::Count { min: 12, max: 99 }, "The major version.").required(),
        Key::new(
            "data_dir",
            Kind::Text("/var/lib/outlast/orders"),
            "An absolute path; the cluster's data_dir and the name if absent.",
        ),
        Key::new(
            "listen",
            Kind::Table(&POSTGRES_LISTEN),
            "Where clients connect; they are passed on to the right node.",
        ),
        Key::new(
            "durability",
            Kind::Words(DURABILITIES),
            "quorum: an acknowledged write is on `acks` other nodes. If absent: quorum, or async on a single node.",
        ),
        Key::new(
            "acks",
            COUNT_U16,
            "With durability quorum: on how many other nodes a write must be.",
        )
        .or_count(1),
        Key::new(
            "acks_min",
            Kind::Count { min: 0, max: u16::MAX as u64 },
            "With fewer members there than `acks` asks for, writes go on with this many. If absent: as `acks`, writes wait.",
        ),
        Key::new(
            "lag_limit",
            Kind::Size { min: 0, max: u64::MAX },
            "A standby further behind is not promoted by itself.",
        )
        .or("16MiB")
        .elsewhere(&["max_lag", "maximum_lag_on_failover"]),
        Key::new(
            "priorities",
            Kind::Map(&Kind::Count { min: 0, max: 1000 }),
            "By node: the highest becomes primary among members that are equally far; 0 never does. 100 if absent.",
        )
        .elsewhere(&["priority", "failover_priority", "candidate_priority"]),
        Key::new(
            "home",
            Kind::Text("eu-west"),
            "The region in which it is made. Members of others follow asynchronously; if absent, all are equal.",
        )
        .elsewhere(&["primary_region", "home_region"]),
        Key::new(
            "region_failover",
            Kind::Words(REGION_FAILOVERS),
            "automatic: another region takes over by itself where that of the primary is lost. manual: `outlast failover --region` does.",
        )
        .or("manual"),
        Key::new("bin_dir", Kind::Text("/usr/lib/postgresql/15/bin"), "Where PostgreSQL's programs are.")
            .elsewhere(&["bindir", "pgbin"]),
        Key::new(
            "port",
            COUNT_U16,
            "Where PostgreSQL itself listens, on each node's address.",
        )
        .or_count(5432),
        Key::new("user", Kind::Text("postgres"), "The system's user that runs PostgreSQL; it refuses root.")
            .or("postgres"),
        Key::new("hold", DURATION_OR_ZERO, "How long clients of a port wait for a primary before they are refused.")
            .or("30s"),
        Key::new(
            "hba",
            Kind::List(&Kind::Text("host all all 10.0.0.0/8 scram-sha-256")),
            "Who may connect from where, as lines of pg_hba.conf. If absent: everybody who has a password.",
        )
        .elsewhere(&["pg_hba"]),
        Key::new(
            "read_from_primary",
            Kind::Switch,
            "Whether the primary serves the read port while no standby can.",
        )
        .or_switch(false),
        Key::new(
            "parameters",
            Kind::Map(&Kind::Any(&[
                Kind::AnyText,
                Kind::Number { min: f64::MIN, max: f64::MAX },
                Kind::Switch,
            ])),
            "Settings for postgresql.conf.",
        )
        .elsewhere(&["settings", "config"]),
        AVAILABILITY,
        MTBF,
        MTTR,
    ],
};

static POSTGRES_LISTEN: Shape = Shape {
    title: "postgres.listen",
    about: "Where clients connect.",
    keys: &[
        Key::new("write", Kind::Listen, "Leads to the primary.").elsewhere(&["primary", "rw"]),
        Key::new("read", Kind::Listen, "Leads to the standbys.")
            .elsewhere(&["replica", "ro", "standby"]),
    ],
};

static REDIS: Shape = Shape {
    title: "[redis.NAME]",
    about: "Redis: one primary, the other nodes replicas.",
    keys: &[
        PART_NODES,
        Key::new(
            "sentinel",
            Kind::Listen,
            "Where the Sentinel protocol is spoken; not at all if absent.",
        )
        .elsewhere(&["listen"]),
        AVAILABILITY,
        MTBF,
        MTTR,
    ],
};

pub(crate) const STORE_MODES: &[&str] = &["quorum", "active-active"];

static STORE: Shape = Shape {
    title: "[store.NAME]",
    about: "The replicated key-value store; it speaks RESP, the protocol of Redis.",
    keys: &[
        PART_NODES,
        Key::new(
            "mode",
            Kind::Words(STORE_MODES),
            "quorum: always consistent; active-active: always writable.",
        )
        .or("quorum"),
        Key::new("listen", Kind::Listen, "Where clients connect.")
            .required()
            .elsewhere(&["bind", "port"]),
        AVAILABILITY,
        MTBF,
        MTTR,
    ],
};

static EXTERNAL: Shape = Shape {
    title: "[external.NAME]",
    about: "A part that somebody else runs, or that outlast only counts.",
    keys: &[
        Key::new("url", HTTP_URL, "Asked over HTTP, every 5s."),
        Key::new(
            "probe",
            Kind::Table(&SERVICE_PROBE),
            "Another probe; what it leaves out comes from `url`.",
        ),
        AVAILABILITY,
        MTBF,
        MTTR,
        Key::new("instances", COUNT_U16, "How many of it there are, each as reliable as said.")
            .or_count(1),
        Key::new("at_least", COUNT_U16, "How many of them must work.").or_count(1),
    ],
};

static OBJECTIVE: Shape = Shape {
    title: "[objective.NAME]",
    about: "What a part is to achieve (SLO).",
    keys: &[
        Key::new("service", Kind::Part(&PartKind::ALL), "The part that is measured: service.NAME.")
            .required()
            .elsewhere(&["of", "target"]),
        Key::new("availability", Kind::Share, "Share of good requests or time: 0.9995.")
            .elsewhere(&["target", "uptime"]),
        Key::new("latency", Kind::Percentiles, "Percentiles and what they must not exceed."),
        Key::new("window", DURATION, "The time over which it holds, up to now.")
            .or("30d")
            .elsewhere(&["period"]),
        Key::new("rto", DURATION_OR_ZERO, "Recovery time objective: how long an outage may last."),
        Key::new("rpo", DURATION_OR_ZERO, "Recovery point objective: how much may be lost."),
    ],
};

pub(crate) const PERIODS: &[&str] = &["month"];

static AGREEMENT: Shape = Shape {
    title: "[agreement.NAME]",
    about: "What is promised to customers (SLA).",
    keys: &[
        Key::new("objective", Kind::ObjectiveName, "The objective that it is measured by.")
            .required(),
        Key::new("promise", Kind::Share, "The availability that is promised.")
            .required()
            .elsewhere(&["availability"]),
        Key::new(
            "period",
            Kind::Words(PERIODS),
            "The time that is accounted for: calendar months.",
        )
        .or("month"),
        Key::new(
            "timezone",
            Kind::Text("Europe/Berlin"),
            "Where months begin: a name of the IANA database.",
        )
        .or("UTC"),
        Key::new(
            "credits",
            Kind::List(&Kind::Table(&CREDIT)),
            "What is returned when the promise is broken.",
        ),
    ],
};

static CREDIT: Shape = Shape {
    title: "agreement.credits",
    about: "One step of what is returned.",
    keys: &[
        Key::new("below", Kind::Share, "At an availability below this").required(),
        Key::new(
            "percent",
            Kind::Number { min: 0.0, max: 100.0 },
            "this percentage of the fee is returned.",
        )
        .required(),
    ],
};

pub(crate) static COST: Shape = Shape {
    title: "[cost]",
    about: "What an outage costs.",
    keys: &[
        Key::new("revenue_per_hour", MONEY, "Revenue that an hour of outage loses."),
        Key::new(
            "revenue_per_year",
            MONEY,
            "The same, for a year of 8760 hours; not together with `revenue_per_hour`.",
        ),
        Key::new("currency", Kind::Text("EUR"), "As it is to be shown."),
    ],
};

static NOTIFY: Shape = Shape {
    title: "[notify.NAME]",
    about: "Who is told, and how: at least one channel.",
    keys: &[
        Key::new("pagerduty", Kind::Table(&PAGERDUTY), "PagerDuty, Events API v2."),
        Key::new("slack", Kind::Table(&SLACK), "A Slack webhook."),
        Key::new("email", Kind::Table(&EMAIL), "Mail over SMTP.").elsewhere(&["mail", "smtp"]),
    ],
};

static PAGERDUTY: Shape = Shape {
    title: "notify.pagerduty",
    about: "PagerDuty, Events API v2.",
    keys: &[Key::new("routing_key_file", FILE_PATH, "A file that holds the routing key.")
        .required()
        .elsewhere(&["routing_key", "key"])],
};

static SLACK: Shape = Shape {
    title: "notify.slack",
    about: "A Slack webhook.",
    keys: &[Key::new("webhook_file", FILE_PATH, "A file that holds the webhook's URL.")
        .required()
        .elsewhere(&["webhook", "url"])],
};

static EMAIL: Shape = Shape {
    title: "notify.email",
    about: "Mail over SMTP.",
    keys: &[
        Key::new(
            "smtp",
            Kind::Text("smtp://127.0.0.1:25"),
            "The mail server: smtp:// or smtps://.",
        )
        .required(),
        Key::new("to", Kind::List(&Kind::Text("ops@example.com")), "Who gets it.").required(),
    ],
};

pub(crate) static DATA_PARTS: [PartKind; 3] =
    [PartKind::Postgres, PartKind::Redis, PartKind::Store];

static BACKUP: Shape = Shape {
    title: "[backup.NAME]",
    about: "Copies of data, kept elsewhere.",
    keys: &[
        Key::new("of", Kind::Part(&DATA_PARTS), "What is copied.").required(),
        Key::new(
            "to",
            Kind::Text("s3://bucket/prefix"),
            "Where to: s3://BUCKET/PREFIX, file:///PATH or an absolute path.",
        )
        .required(),
        Key::new(
            "full",
            Kind::Text("02:00 daily"),
            "When the whole is copied: \"02:00 daily\", \"02:00 sunday\" or \"every 24h\".",
        )
        .required(),
        Key::new(
            "incremental",
            Kind::Text("every 4h"),
            "When only changes are copied, written like `full`.",
        ),
        Key::new("keep", DURATION, "How long copies are kept.").or("30d").elsewhere(&["retention"]),
    ],
};
