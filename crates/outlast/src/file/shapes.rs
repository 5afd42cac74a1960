//! Every section and key of `outlast.toml`, with its default and what it means.

use outlast_core::topology::PartKind;

use super::shape::{Key, Kind, Shape};

const DURATION: Kind = Kind::Duration { zero: false };
const DURATION_OR_ZERO: Kind = Kind::Duration { zero: true };
const MONEY: Kind = Kind::Number { min: 0.0, max: f64::MAX };
const NODES: Kind = Kind::List(&Kind::NodeName);
const PARTS: Kind = Kind::List(&Kind::Part(&PartKind::ALL));
const COUNT_U16: Kind = Kind::Count { min: 1, max: u16::MAX as u64 };
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
            "face",
            Kind::Any(&[Kind::Listen, OFF]),
            "Where /health, /metrics and the status page are served.",
        )
        .or("127.0.0.1:9400")
        .elsewhere(&["listen", "metrics", "health", "status", "admin"]),
    ],
};

static CLUSTER_TLS: Shape = Shape {
    title: "cluster.tls",
    about: "PEM files for mutual TLS.",
    keys: &[
        Key::new("ca", FILE_PATH, "The CA that signed the certificates of all nodes.").required(),
        Key::new("cert", FILE_PATH, "This node's certificate chain.")
            .required()
            .elsewhere(&["certificate", "crt"]),
        Key::new("key", FILE_PATH, "The certificate's private key.")
            .required()
            .elsewhere(&["private_key"]),
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
        Key::new("voters", NODES, "The nodes that vote, with kind embedded; all nodes if absent."),
        Key::new(
            "endpoints",
            Kind::List(&Kind::Text("https://10.0.0.1:2379")),
            "URLs of etcd, with kind etcd.",
        ),
    ],
};

static NODE: Shape = Shape {
    title: "[node.NAME]",
    about: "One machine with one agent.",
    keys: &[
        Key::new("address", Kind::Ip, "The address at which the other nodes reach it.")
            .required()
            .elsewhere(&["ip", "host", "addr"]),
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

pub(crate) const PROTOCOLS: &[&str] = &["http", "tcp"];
pub(crate) const BALANCES: &[&str] = &["round-robin", "random", "least-requests", "hash"];
pub(crate) const STANDBYS: &[&str] = &["hot", "warm", "cold"];
pub(crate) const FORWARDED: &[&str] = &["x-forwarded", "rfc7239", "both", "off"];
const BACKEND: Kind = Kind::Text("http://10.0.0.1:3000");

static SERVICE: Shape = Shape {
    title: "[service.NAME]",
    about: "What clients reach, and the backends that serve it: `backends` (all serve) or `primary` and `backup` (one serves, one waits).",
    keys: &[
        Key::new("listen", Kind::Listen, "Where the proxy listens; without it the service is probed and counted, not proxied.")
            .elsewhere(&["bind", "port", "address"]),
        Key::new("protocol", Kind::Words(PROTOCOLS), "http, or tcp when the backends are tcp://.")
            .elsewhere(&["mode"]),
        Key::new(
            "tls",
            Kind::Any(&[Kind::Table(&SERVICE_TLS), Kind::List(&Kind::Table(&SERVICE_TLS))]),
            "Certificates to terminate TLS with, chosen by SNI; the first is the default.",
        )
        .elsewhere(&["ssl", "certificate"]),
        Key::new("backends", Kind::List(&BACKEND), "http://, https:// or tcp://, then host:port. All that are healthy serve.")
            .elsewhere(&["servers", "upstreams", "targets", "endpoints", "nodes"]),
        Key::new("balance", Kind::Words(BALANCES), "How requests are shared out.")
            .or("round-robin")
            .elsewhere(&["algorithm", "policy", "lb"]),
        Key::new(
            "hash_on",
            Kind::Text("header:X-User"),
            "With balance hash: ip, path, header:NAME or cookie:NAME.",
        )
        .or("ip"),
        Key::new("primary", BACKEND, "The backend that serves.").elsewhere(&["active", "leader", "main"]),
        Key::new("backup", BACKEND, "The backend that takes over when the primary is down.")
            .elsewhere(&["secondary", "passive"]),
        Key::new("standby", Kind::Words(STANDBYS), "How ready the backup is before it is needed.").or("hot"),
        Key::new("start", Kind::Command, "Starts a cold standby."),
        Key::new("stop", Kind::Command, "Stops a cold standby when the primary is back."),
        Key::new("start_limit", DURATION, "A cold standby must be up this long after its start.").or("10m"),
        Key::new("activate", Kind::Command, "Makes a warm standby ready to serve."),
        Key::new(
            "failback",
            Kind::Any(&[Kind::Table(&FAILBACK), Kind::Words(&["manual"])]),
            "When the primary serves again; \"manual\": only when a person says so. After 30s if absent.",
        ),
        Key::new("probe", Kind::Table(&SERVICE_PROBE), "How each backend is asked how it is; a TCP connect if absent.")
            .elsewhere(&["check", "healthcheck", "health_check", "health", "readiness", "liveness"]),
        Key::new("retry", Kind::Table(&RETRY), "When and how often a request is tried again on another backend."),
        Key::new(
            "eject",
            Kind::Any(&[Kind::Table(&EJECT), OFF]),
            "When traffic itself shows that a backend is bad, it gets none for a while.",
        )
        .elsewhere(&["circuit_breaker", "outlier_detection"]),
        Key::new("timeouts", Kind::Table(&TIMEOUTS), "Every wait of the proxy.").elsewhere(&["timeout"]),
        Key::new("limits", Kind::Table(&SERVICE_LIMITS), "Every size of the proxy."),
        Key::new(
            "panic",
            Kind::Any(&[Kind::Number { min: 0.0, max: 1.0 }, OFF]),
            "At this share of usable backends or below, health is ignored; 0 is when none is usable.",
        )
        .or_number(0.0),
        Key::new("slow_start", DURATION_OR_ZERO, "A backend that comes up gets its full share after this long.").or("0s"),
        Key::new("forwarded", Kind::Words(FORWARDED), "The headers that tell a backend about the client.")
            .or("x-forwarded"),
        Key::new("trusted", Kind::List(&Kind::Network), "Peers whose forwarding and PROXY headers are believed.")
            .elsewhere(&["trusted_proxies"]),
        Key::new("proxy_protocol", Kind::Table(&PROXY_PROTOCOL), "HAProxy's PROXY protocol."),
        Key::new("needs", PARTS, "Parts without which this service is down.")
            .elsewhere(&["depends_on", "requires", "dependencies"]),
        Key::new("may_use", PARTS, "Parts without which this service is degraded.").elsewhere(&["wants", "optional"]),
        Key::new("at_least", COUNT_U16, "How many backends must be up for the service to be up.").or_count(1),
        AVAILABILITY,
        MTBF,
        MTTR,
        Key::new("critical", Kind::Switch, "Whether its loss counts when single points of failure are sought.")
            .or_switch(true),
    ],
};

static SERVICE_TLS: Shape = Shape {
    title: "service.tls",
    about: "PEM files of one certificate.",
    keys: &[
        Key::new("cert", FILE_PATH, "The certificate chain.")
            .required()
            .elsewhere(&["certificate", "crt"]),
        Key::new("key", FILE_PATH, "Its private key.").required().elsewhere(&["private_key"]),
    ],
};

pub(crate) static FAILBACK: Shape = Shape {
    title: "failback",
    about: "When the primary serves again.",
    keys: &[
        Key::new("after", DURATION_OR_ZERO, "The primary must stay up this long first.").or("30s")
    ],
};

pub(crate) const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "OPTIONS"];
const STATUS: Kind = Kind::Count { min: 100, max: 599 };
const HTTP: Key = Key::new(
    "http",
    Kind::Text("/health"),
    "Asks over HTTP: a path on what is probed, or a whole URL.",
)
.elsewhere(&["path", "url", "httpGet", "https"]);
const TCP: Key = Key::new(
    "tcp",
    Kind::Any(&[Kind::Text("127.0.0.1:3000"), Kind::Switch]),
    "Opens a connection: true for what is probed, or host:port.",
)
.elsewhere(&["tcpSocket", "port"]);
const COMMAND: Key = Key::new(
    "command",
    Kind::Command,
    "Runs a command; exit status 0 is success. {backend} stands for host:port.",
)
.elsewhere(&["exec", "script", "cmd"]);
const GRPC: Key = Key::new(
    "grpc",
    Kind::AnyText,
    "Asks grpc.health.v1 for this service; \"\" is the whole server.",
);
const ADDRESS_OF_GRPC: Key = Key::new(
    "address",
    Kind::Text("127.0.0.1:3000"),
    "With grpc: host:port, if not of what is probed.",
);
const TIMEOUT: Key = Key::new(
    "timeout",
    DURATION,
    "An answer that takes longer is a failure; shorter than `every`.",
)
.elsewhere(&["timeoutSeconds"]);
const EVERY: Key =
    Key::new("every", DURATION, "From the start of one probe to the start of the next.")
        .elsewhere(&["interval", "period", "periodSeconds"]);
const FALL: Key = Key::new("fall", COUNT_U16, "Failures in a row until it is believed down.")
    .or_count(3)
    .elsewhere(&[
        "failureThreshold",
        "failure_threshold",
        "unhealthy_threshold",
        "retries",
        "failures",
    ]);
const RISE: Key = Key::new("rise", COUNT_U16, "Successes in a row until it is believed up.")
    .elsewhere(&["successThreshold", "success_threshold", "healthy_threshold"]);
const DELAY: Key =
    Key::new("delay", DURATION_OR_ZERO, "Waits this long after the start of what is probed.")
        .or("0s")
        .elsewhere(&["initialDelaySeconds", "initial_delay", "grace"]);
const STATUS_SET: Key = Key::new(
    "status",
    Kind::Any(&[
        STATUS,
        Kind::Text("200-299,304"),
        Kind::List(&Kind::Any(&[STATUS, Kind::Text("200-299")])),
    ]),
    "With http: the status codes that are success.",
)
.elsewhere(&["expect", "codes", "expected_status"]);
const BODY: Key = Key::new(
    "body",
    Kind::Text("ok"),
    "With http: text that the first 64 KiB of the body must contain.",
)
.elsewhere(&["contains", "match"]);
const HEADERS: Key = Key::new("headers", Kind::Map(&Kind::AnyText), "With http: headers to send.")
    .elsewhere(&["httpHeaders"]);
const METHOD: Key = Key::new("method", Kind::Words(METHODS), "With http: the method.").or("GET");
const TLS_VERIFY: Key = Key::new(
    "tls_verify",
    Kind::Switch,
    "With https or grpc over TLS: whether the certificate must be valid.",
)
.or_switch(true);
const TLS: Key = Key::new("tls", Kind::Switch, "With grpc: whether to speak TLS.").or_switch(false);

pub(crate) static SERVICE_PROBE: Shape = Shape {
    title: "service.probe",
    about: "How a thing is asked how it is: exactly one of `http`, `tcp`, `command` and `grpc`.",
    keys: &[
        HTTP,
        TCP,
        COMMAND,
        GRPC,
        ADDRESS_OF_GRPC,
        EVERY.or("5s"),
        TIMEOUT.or("2s"),
        FALL,
        RISE.or_count(2),
        DELAY,
        STATUS_SET.or("200-299"),
        BODY,
        HEADERS,
        METHOD,
        TLS_VERIFY,
        TLS,
    ],
};

/// The defaults of Kubernetes.
pub(crate) static PROCESS_PROBE: Shape = Shape {
    title: "process.probe",
    about: "How a process is asked how it is, with the defaults of Kubernetes: exactly one of `http`, `tcp`, `command` and `grpc`.",
    keys: &[
        HTTP,
        TCP,
        COMMAND,
        GRPC,
        ADDRESS_OF_GRPC,
        EVERY.or("10s"),
        TIMEOUT.or("1s"),
        FALL,
        RISE.or_count(1),
        DELAY,
        STATUS_SET.or("200-399"),
        BODY,
        HEADERS,
        METHOD,
        TLS_VERIFY,
        TLS,
    ],
};

pub(crate) const RETRY_ON: &[&str] = &["connect", "reset", "timeout", "5xx"];

pub(crate) static RETRY: Shape = Shape {
    title: "retry",
    about: "When and how often a request is tried again on another backend.",
    keys: &[
        Key::new("attempts", COUNT_U16, "Tries in all, the first one included.")
            .or_count(3)
            .elsewhere(&["retries", "tries", "max_attempts", "count"]),
        Key::new("backoff", DURATION_OR_ZERO, "Before the second retry; doubles, with jitter.")
            .or("100ms"),
        Key::new(
            "budget",
            Kind::Number { min: 0.0, max: 1.0 },
            "Retries per request, as a share, over ten seconds.",
        )
        .or_number(0.2),
        Key::new("try_timeout", DURATION, "Until the response head has arrived, for each try.")
            .or("10s")
            .elsewhere(&["timeout", "per_try_timeout"]),
        Key::new(
            "on",
            Kind::List(&Kind::Words(RETRY_ON)),
            "What is worth a retry: connect, reset, timeout, 5xx; all four if absent.",
        ),
    ],
};

pub(crate) static EJECT: Shape = Shape {
    title: "eject",
    about: "When traffic itself shows that a backend is bad, it gets none for a while. Never the last one.",
    keys: &[
        Key::new(
            "failures",
            Kind::Count { min: 0, max: u32::MAX as u64 },
            "Connect errors, resets and timeouts in a row; 0 turns it off.",
        )
        .or_count(5),
        Key::new(
            "rate_5xx",
            Kind::Any(&[Kind::Share, OFF]),
            "Share of 5xx answers among at least `rate_min` requests within ten seconds.",
        )
        .or_number(0.5),
        Key::new("rate_min", Kind::Count { min: 1, max: u32::MAX as u64 }, "See `rate_5xx`.")
            .or_count(20),
        Key::new("time", DURATION, "The first ejection lasts this long; it doubles each time.")
            .or("5s"),
        Key::new("max_time", DURATION, "The longest ejection.").or("300s"),
    ],
};

pub(crate) static TIMEOUTS: Shape = Shape {
    title: "timeouts",
    about: "Every wait of the proxy.",
    keys: &[
        Key::new("connect", DURATION, "Until a backend accepts a connection.").or("2s"),
        Key::new("head", DURATION, "From the first byte of a request to the end of its head.")
            .or("10s"),
        Key::new("body", DURATION, "Between two reads or writes of a body, either side.").or("30s"),
        Key::new("idle", DURATION, "Between two requests of one client.")
            .or("60s")
            .elsewhere(&["keepalive"]),
        Key::new("backend_idle", DURATION, "Of a pooled connection to a backend.").or("30s"),
        Key::new("tunnel", DURATION, "Without a byte either way, of a TCP or upgraded connection.")
            .or("1h"),
        Key::new(
            "drain",
            DURATION_OR_ZERO,
            "How long open work may go on when its backend or the proxy is to leave.",
        )
        .or("30s"),
        Key::new("queue", DURATION_OR_ZERO, "In the queue for a free slot.").or("1s"),
    ],
};

pub(crate) static SERVICE_LIMITS: Shape = Shape {
    title: "service.limits",
    about: "Every size of the proxy.",
    keys: &[
        Key::new(
            "head",
            Kind::Size { min: 1 << 10, max: 1 << 20 },
            "Of a request or response head.",
        )
        .or("32KiB"),
        Key::new("headers", COUNT_U16, "In one head.").or_count(100),
        Key::new(
            "body",
            Kind::Size { min: 0, max: u64::MAX },
            "Of a request body; 0 is unlimited.",
        )
        .or("0"),
        Key::new(
            "connections",
            Kind::Count { min: 1, max: u32::MAX as u64 },
            "Of clients, for the service.",
        )
        .or_count(20_000),
        Key::new(
            "requests",
            Kind::Count { min: 1, max: u32::MAX as u64 },
            "In flight, for the service.",
        )
        .or_count(10_000),
        Key::new(
            "per_backend",
            Kind::Count { min: 0, max: u32::MAX as u64 },
            "In flight to one backend; 0 is unlimited.",
        )
        .or_count(0),
        Key::new(
            "queue",
            Kind::Count { min: 0, max: u32::MAX as u64 },
            "Requests that may wait for a free slot.",
        )
        .or_count(1000),
    ],
};

pub(crate) const PROXY_VERSIONS: &[&str] = &["v1", "v2"];

pub(crate) static PROXY_PROTOCOL: Shape = Shape {
    title: "proxy_protocol",
    about: "HAProxy's PROXY protocol.",
    keys: &[
        Key::new("accept", Kind::Switch, "Clients of `trusted` networks must send it.")
            .or_switch(false),
        Key::new(
            "send",
            Kind::Words(PROXY_VERSIONS),
            "The version to send to backends; none if absent.",
        ),
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
            "lag_limit",
            Kind::Size { min: 0, max: u64::MAX },
            "A standby further behind is not promoted by itself.",
        )
        .or("16MiB")
        .elsewhere(&["max_lag", "maximum_lag_on_failover"]),
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

static ADDRESS: Shape = Shape {
    title: "[address.NAME]",
    about: "An IP address that moves to a healthy node.",
    keys: &[
        Key::new("ip", Kind::Text("10.0.0.100/24"), "The address and its prefix length.")
            .required()
            .elsewhere(&["address", "vip", "cidr"]),
        Key::new("interface", Kind::Text("eth0"), "The network interface that gets it.")
            .required()
            .elsewhere(&["device", "dev", "nic"]),
        PART_NODES,
        Key::new(
            "vrrp_id",
            Kind::Count { min: 1, max: 255 },
            "The virtual router's number, to speak VRRP.",
        )
        .elsewhere(&["virtual_router_id", "vrid"]),
    ],
};

static DNS: Shape = Shape {
    title: "[dns.\"ZONE\"]",
    about: "A zone that outlast answers for.",
    keys: &[
        Key::new("listen", Kind::Listen, "Where the name server listens, UDP and TCP."),
        Key::new("records", Kind::List(&Kind::Table(&RECORD)), "The zone's records.").required(),
    ],
};

pub(crate) const RECORD_TYPES: &[&str] = &["A", "AAAA", "CNAME", "TXT"];
pub(crate) const RECORD_POLICIES: &[&str] = &["simple", "failover"];

static RECORD: Shape = Shape {
    title: "dns.records",
    about: "One name and what it leads to.",
    keys: &[
        Key::new("name", Kind::Text("api"), "Within the zone; @ is the zone itself.").required(),
        Key::new("type", Kind::Words(RECORD_TYPES), "What the values are.").required(),
        Key::new(
            "policy",
            Kind::Words(RECORD_POLICIES),
            "simple: all `values`; failover: `primary`, or `secondary` when the probe is down.",
        )
        .or("simple"),
        Key::new("values", Kind::List(&Kind::Text("54.123.45.67")), "With policy simple.")
            .elsewhere(&["value", "addresses"]),
        Key::new(
            "primary",
            Kind::Text("54.123.45.67"),
            "With policy failover: the answer while the probe is up.",
        ),
        Key::new(
            "secondary",
            Kind::Text("52.234.56.78"),
            "With policy failover: the answer while it is down.",
        )
        .elsewhere(&["backup"]),
        Key::new("ttl", DURATION_OR_ZERO, "How long others may remember the answer.").or("60s"),
        Key::new("probe", Kind::Part(&PartKind::ALL), "The part whose health decides.")
            .elsewhere(&["health", "check", "service"]),
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
