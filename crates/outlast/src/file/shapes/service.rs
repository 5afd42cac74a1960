//! `[service.NAME]` and what is in it; also the probes of all parts.

use outlast_core::topology::PartKind;

use super::{
    AVAILABILITY, COUNT_U16, DURATION, DURATION_OR_ZERO, FILE_PATH, MTBF, MTTR, OFF, PARTS,
};
use crate::file::shape::{Key, Kind, Shape};

pub(crate) const PROTOCOLS: &[&str] = &["http", "tcp"];
pub(crate) const BALANCES: &[&str] = &["round-robin", "random", "least-requests", "hash"];
pub(crate) const STANDBYS: &[&str] = &["hot", "warm", "cold"];
pub(crate) const FORWARDED: &[&str] = &["x-forwarded", "rfc7239", "both", "off"];
const BACKEND: Kind = Kind::Text("http://10.0.0.1:3000");

pub(super) static SERVICE: Shape = Shape {
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
        Key::new("forwarded", Kind::Words(FORWARDED), "The headers that tell a backend about the client. Headers of a request with `_` in their names are dropped: a backend could take them for these.")
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

pub(super) static RECORD_PROBE: Shape = Shape {
    title: "dns.records.probe",
    about: "How a record's values are asked how they are (exactly one of `http`, `tcp`, `command` and `grpc`), or of which parts so many are to be healthy (`at_least` and `of`).",
    keys: &[
        HTTP,
        TCP,
        COMMAND,
        GRPC,
        ADDRESS_OF_GRPC,
        Key::new("port", COUNT_U16, "Where the value is asked; 80 with http if absent."),
        EVERY.or("10s"),
        TIMEOUT.or("4s"),
        FALL,
        RISE.or_count(3),
        DELAY,
        STATUS_SET.or("200-399"),
        BODY,
        HEADERS,
        METHOD,
        TLS_VERIFY,
        TLS,
        Key::new("at_least", COUNT_U16, "With `of`: how many of them are to be healthy.")
            .or_count(1)
            .elsewhere(&["health_threshold"]),
        Key::new("of", Kind::List(&Kind::Part(&PartKind::ALL)), "The parts that are counted.")
            .elsewhere(&["children", "child_health_checks"]),
        Key::new("invert", Kind::Switch, "With `of`: healthy when they are not.")
            .or_switch(false)
            .elsewhere(&["inverted"]),
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
