//! The one table of metrics: the scrape, the reference page and its test are printed from it.

use outlast_core::event::Target;
use outlast_core::health::Health;
use outlast_core::pair::Side;
use outlast_core::topology::Protocol;
use outlast_core::view::{BackendView, ProcessState, ServiceState};
use outlast_host::probe::Code;
use outlast_host::vitals::Usage;
use outlast_proxy::stats::{ErrorKind, PostgresStats, ServiceStats, Snapshot};

use super::super::scene::Scene;
use super::Kind::{Counter, Gauge, Histogram, Info};
use super::{Metric, Sample, Value};

/// In place of a backend: what the proxy answered by itself.
const NO_BACKEND: &str = "none";

const SERVICE: &[&str] = &["service"];
const BACKEND: &[&str] = &["service", "backend"];

/// Every metric there is.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "outlast_dns_responses_total",
        kind: Counter,
        unit: None,
        labels: &["outcome"],
        help: "What the name server did with messages: answer, no_data, no_such_name, referral, refused, error, slipped \
               and limited (rate limit), no_query, slow (transfers, updates, signed messages), slow_dropped.",
        read: |scene| {
            let totals = &scene.picture.names.totals;
            let all = [
                ("answer", totals.answers),
                ("no_data", totals.no_data),
                ("no_such_name", totals.no_such_name),
                ("referral", totals.referrals),
                ("refused", totals.refused),
                ("error", totals.errors),
                ("slipped", totals.slipped),
                ("limited", totals.limited),
                ("no_query", totals.no_queries),
                ("slow", totals.slow),
                ("slow_dropped", totals.slow_dropped),
            ];
            let serves = !scene.picture.topology.dns.is_empty();
            all.into_iter().filter(|_| serves).map(|(word, value)| whole([word], value)).collect()
        },
    },
    Metric {
        name: "outlast_dns_zone_serial",
        kind: Gauge,
        unit: None,
        labels: &["zone"],
        help: "Serial of each zone that this node answers for; different values on two nodes for long mean that one is \
               cut off.",
        read: |scene| {
            let serials = scene.picture.names.serials.iter();
            serials.map(|(zone, serial)| whole([zone], u64::from(*serial))).collect()
        },
    },
    Metric {
        name: "outlast_dns_zone_trouble",
        kind: Gauge,
        unit: None,
        labels: &["zone"],
        help: "1: this node does not answer for the zone as it should.",
        read: |scene| {
            let zones = scene.picture.topology.dns.keys();
            let trouble = &scene.picture.names.trouble;
            zones.map(|zone| whole([zone], u64::from(trouble.contains_key(zone)))).collect()
        },
    },
    Metric {
        name: "http_requests_total",
        kind: Counter,
        unit: None,
        labels: &["service", "backend", "code"],
        help: "HTTP requests answered, by class of the status that the client got.",
        read: |scene| {
            let codes = ["1xx", "2xx", "3xx", "4xx", "5xx"];
            each_http(scene, |counts| {
                let class = |(place, code): (usize, &&str)| {
                    ((*code).to_owned(), counts.answers.get(place).copied().unwrap_or(0))
                };
                codes.iter().enumerate().map(class).collect()
            })
        },
    },
    Metric {
        name: "http_request_duration_seconds",
        kind: Histogram,
        unit: Some("seconds"),
        labels: BACKEND,
        help: "From the start of a request to the end of its answer, retries included; by the backend that answered.",
        read: |scene| {
            counted_http(scene)
                .into_iter()
                .map(|(service, backend, counts)| {
                    let (counts, sum_seconds) =
                        (counts.latency.clone(), counts.latency_sum_us as f64 / 1e6);
                    let value = Value::Histogram { counts, sum_seconds };
                    Sample { labels: vec![service, backend], value }
                })
                .collect()
        },
    },
    Metric {
        name: "http_errors_total",
        kind: Counter,
        unit: None,
        labels: &["service", "backend", "kind"],
        help: "Tries that failed, by backend and by what went wrong; a retry may still have served the client. Backend none: the request failed as a whole.",
        read: |scene| each_http(scene, errors),
    },
    Metric {
        name: "outlast_tcp_errors_total",
        kind: Counter,
        unit: None,
        labels: &["service", "backend", "kind"],
        help: "Connections of TCP services that failed, by backend and by what went wrong.",
        read: |scene| each(counted(scene, Protocol::Tcp), errors),
    },
    Metric {
        name: "outlast_tunnels_total",
        kind: Counter,
        unit: None,
        labels: BACKEND,
        help: "Connections passed through byte by byte: those of TCP services, upgraded HTTP ones (WebSocket), and sessions of PostgreSQL at a server.",
        read: |scene| tunnels(scene, |counts| counts.tunnels),
    },
    Metric {
        name: "outlast_tunnel_received_bytes_total",
        kind: Counter,
        unit: Some("bytes"),
        labels: BACKEND,
        help: "Bytes from clients to backends through tunnels.",
        read: |scene| tunnels(scene, |counts| counts.bytes_in),
    },
    Metric {
        name: "outlast_tunnel_sent_bytes_total",
        kind: Counter,
        unit: Some("bytes"),
        labels: BACKEND,
        help: "Bytes from backends to clients through tunnels.",
        read: |scene| tunnels(scene, |counts| counts.bytes_out),
    },
    Metric {
        name: "outlast_postgres_errors_total",
        kind: Counter,
        unit: None,
        labels: &["service", "backend", "kind"],
        help: "Sessions at the ports of databases that failed, by backend and by what went wrong: kind cut_off was cut, for example because its primary was one no more. Backend none: the client was refused.",
        read: |scene| each(ports(scene).flat_map(of_service).collect(), errors),
    },
    Metric {
        name: "outlast_postgres_held_total",
        kind: Counter,
        unit: None,
        labels: SERVICE,
        help: "Clients of a database's port that had to wait for a server.",
        read: |scene| each_port(scene, |postgres| postgres.held),
    },
    Metric {
        name: "outlast_postgres_waiting",
        kind: Gauge,
        unit: None,
        labels: SERVICE,
        help: "Clients of a database's port that wait for a server now.",
        read: |scene| each_port(scene, |postgres| postgres.waiting),
    },
    Metric {
        name: "outlast_postgres_resumed_total",
        kind: Counter,
        unit: None,
        labels: SERVICE,
        help: "Sessions that lost their server and went on at another one without noticing.",
        read: |scene| each_port(scene, |postgres| postgres.resumed),
    },
    Metric {
        name: "outlast_postgres_bound_total",
        kind: Counter,
        unit: None,
        labels: SERVICE,
        help: "Sessions that lost their server and ended, because something that they had begun or set was bound to it.",
        read: |scene| each_port(scene, |postgres| postgres.bound),
    },
    Metric {
        name: "outlast_retries_total",
        kind: Counter,
        unit: None,
        labels: SERVICE,
        help: "Requests tried again on another backend.",
        read: |scene| each_service(scene, |s| s.retries),
    },
    Metric {
        name: "outlast_retries_denied_total",
        kind: Counter,
        unit: None,
        labels: SERVICE,
        help: "Retries that the retry budget did not allow.",
        read: |scene| each_service(scene, |s| s.retries_denied),
    },
    Metric {
        name: "outlast_requests_in_flight",
        kind: Gauge,
        unit: None,
        labels: SERVICE,
        help: "Requests that are being served now.",
        read: |scene| each_service(scene, |s| s.in_flight),
    },
    Metric {
        name: "outlast_connections",
        kind: Gauge,
        unit: None,
        labels: SERVICE,
        help: "Client connections that are open now.",
        read: |scene| each_service(scene, |s| s.connections),
    },
    Metric {
        name: "outlast_backend_requests_in_flight",
        kind: Gauge,
        unit: None,
        labels: BACKEND,
        help: "Requests that a backend works on now.",
        read: |scene| {
            let each = |service: &ServiceStats| {
                let each =
                    service.backends.iter().map(|b| whole([&service.name, &b.name], b.in_flight));
                each.collect::<Vec<_>>()
            };
            scene.stats.services.iter().flat_map(each).collect()
        },
    },
    Metric {
        name: "outlast_backend_up",
        kind: Gauge,
        unit: None,
        labels: BACKEND,
        help: "1 if the probes say that the backend is up, 0 if they say that it is down; absent while that is unknown.",
        read: |scene| {
            each_backend(scene, |backend| match backend.health {
                Health::Unknown => None,
                Health::Up => Some(true),
                Health::Down => Some(false),
            })
        },
    },
    Metric {
        name: "outlast_backend_health",
        kind: Gauge,
        unit: None,
        labels: &["service", "backend", "health"],
        help: "1 for the health that a backend is believed to have, 0 for the others.",
        read: |scene| {
            let services = scene.picture.view.services.iter();
            let backends = services.flat_map(|(name, s)| s.backends.iter().map(move |b| (name, b)));
            backends
                .flat_map(|(service, backend)| {
                    states([service, &backend.name], &HEALTHS, backend.health)
                })
                .collect()
        },
    },
    Metric {
        name: "outlast_backend_ejected",
        kind: Gauge,
        unit: None,
        labels: BACKEND,
        help: "1 while a backend gets no requests because traffic showed that it fails.",
        read: |scene| each_backend(scene, |backend| Some(backend.ejected)),
    },
    Metric {
        name: "outlast_backend_draining",
        kind: Gauge,
        unit: None,
        labels: BACKEND,
        help: "1 while a backend gets no new requests because a person said so.",
        read: |scene| each_backend(scene, |backend| Some(backend.draining)),
    },
    Metric {
        name: "outlast_service_state",
        kind: Gauge,
        unit: None,
        labels: &["service", "state"],
        help: "1 for the state that a service is in, 0 for the others.",
        read: |scene| {
            let services = scene.picture.view.services.iter();
            let state = |name: &str, service| match scene.unknown(name) {
                Some(_why) => ServiceState::Unknown,
                None => scene.state(name, service),
            };
            services.flat_map(|(name, s)| states([name], &SERVICE_STATES, state(name, s))).collect()
        },
    },
    Metric {
        name: "outlast_pair_active",
        kind: Gauge,
        unit: None,
        labels: &["service", "side"],
        help: "1 for the side of a pair that serves, 0 for the other.",
        read: |scene| {
            let services = scene.picture.view.services.iter();
            let active = services.filter_map(|(name, s)| Some((name, s.active?.0)));
            active
                .flat_map(|(name, side)| states([name], &[Side::Primary, Side::Backup], side))
                .collect()
        },
    },
    Metric {
        name: "outlast_pair_epoch",
        kind: Gauge,
        unit: None,
        labels: SERVICE,
        help: "Goes up with every failover and failback of a pair.",
        read: |scene| {
            let services = scene.picture.view.services.iter();
            services.filter_map(|(name, s)| Some(whole([name], s.active?.1.0))).collect()
        },
    },
    Metric {
        name: "outlast_probe_results_total",
        kind: Counter,
        unit: None,
        labels: &["target", "result", "reason"],
        help: "Probes by what they found: success or failure, and why.",
        read: |scene| {
            scene
                .picture
                .probes
                .iter()
                .map(|((target, code), &count)| {
                    let result = if *code == Code::Ok { "success" } else { "failure" };
                    whole([&target_text(target), result, code.word()], count)
                })
                .collect()
        },
    },
    Metric {
        name: "outlast_external_health",
        kind: Gauge,
        unit: None,
        labels: &["external", "health"],
        help: "1 for the health that an external part is believed to have, 0 for the others.",
        read: |scene| {
            let externals = scene.picture.view.externals.iter();
            externals.flat_map(|(name, part)| states([name], &HEALTHS, part.health)).collect()
        },
    },
    Metric {
        name: "outlast_process_state",
        kind: Gauge,
        unit: None,
        labels: &["process", "state"],
        help: "1 for the state that a program is in, 0 for the others.",
        read: |scene| {
            let processes = scene.picture.view.processes.iter();
            processes.flat_map(|(name, p)| states([name], &PROCESS_STATES, p.state)).collect()
        },
    },
    Metric {
        name: "outlast_process_ready",
        kind: Gauge,
        unit: None,
        labels: &["process"],
        help: "1 if a program's readiness probe succeeds.",
        read: |scene| {
            let processes = scene.picture.view.processes.iter();
            processes.map(|(name, p)| whole([name], u64::from(p.ready))).collect()
        },
    },
    Metric {
        name: "outlast_process_restarts_total",
        kind: Counter,
        unit: None,
        labels: &["process"],
        help: "How often a program was started again after it had ended or was killed.",
        read: |scene| {
            let processes = scene.picture.view.processes.iter();
            processes.map(|(name, p)| whole([name], p.restarts)).collect()
        },
    },
    Metric {
        name: "outlast_proxy_processes",
        kind: Gauge,
        unit: None,
        labels: &["state"],
        help: "Processes of the data plane: the serving one, and those that finish what they have.",
        read: |scene| {
            let proxy = &scene.picture.proxy;
            let draining = proxy.draining.len() as u64;
            vec![whole(["serving"], u64::from(proxy.pid.is_some())), whole(["draining"], draining)]
        },
    },
    Metric {
        name: "outlast_proxy_table_refused",
        kind: Gauge,
        unit: None,
        labels: &[],
        help: "1 while the proxy goes on with an old table because it refused the new one.",
        read: |scene| vec![whole([""; 0], u64::from(scene.picture.proxy.refused.is_some()))],
    },
    Metric {
        name: "outlast_lease_left_seconds",
        kind: Gauge,
        unit: Some("seconds"),
        labels: &[],
        help: "For how long the data plane may still serve what needs the lease of this node, unless it is renewed; absent without a lease.",
        read: |scene| {
            scene.stats.lease.left.map(|left| real(left.as_secs_f64())).into_iter().collect()
        },
    },
    Metric {
        name: "outlast_lease_ended_total",
        kind: Counter,
        unit: None,
        labels: &[],
        help: "How often the lease of this node has ended; what was under way under it was cut (kind cut_off of errors).",
        read: |scene| vec![whole([""; 0], scene.stats.lease.ended)],
    },
    Metric {
        name: "outlast_service_vouched",
        kind: Gauge,
        unit: None,
        labels: SERVICE,
        help: "0 while a service is not served because this node holds no lease; 1 otherwise.",
        read: |scene| each_service(scene, |s| u64::from(!s.unvouched)),
    },
    Metric {
        name: "outlast_disk_used_ratio",
        kind: Gauge,
        unit: Some("ratio"),
        labels: &[],
        help: "How full the file system of the data directory is, 0 to 1.",
        read: |scene| share(scene.picture.vitals.disk),
    },
    Metric {
        name: "outlast_memory_used_ratio",
        kind: Gauge,
        unit: Some("ratio"),
        labels: &[],
        help: "How full the memory of the machine, or of the agent's cgroup, is, 0 to 1.",
        read: |scene| share(scene.picture.vitals.memory),
    },
    Metric {
        name: "outlast_stats_age_seconds",
        kind: Gauge,
        unit: Some("seconds"),
        labels: &[],
        help: "How old the data plane's counters in this answer are.",
        read: |scene| vec![real(scene.stats_age.as_secs_f64())],
    },
    Metric {
        name: "outlast_start_time_seconds",
        kind: Gauge,
        unit: Some("seconds"),
        labels: &[],
        help: "When the agent was started, in seconds since 1970.",
        read: |scene| vec![real(scene.started_at.0 as f64 / 1000.0)],
    },
    Metric {
        name: "outlast_topology_generation",
        kind: Gauge,
        unit: None,
        labels: &[],
        help: "Counts the topologies that the agent has put in force since it was started.",
        read: |scene| vec![whole([""; 0], scene.picture.view.generation)],
    },
    Metric {
        name: "outlast_stopping",
        kind: Gauge,
        unit: None,
        labels: &[],
        help: "1 from the moment that the agent was told to stop.",
        read: |scene| vec![whole([""; 0], u64::from(scene.stopping))],
    },
    Metric {
        name: "outlast_build_info",
        kind: Info,
        unit: None,
        labels: &["version", "cluster", "node"],
        help: "Which outlast this is.",
        read: |scene| {
            vec![whole([scene.version, &scene.picture.topology.cluster.name, &scene.node], 1)]
        },
    },
];

const HEALTHS: [Health; 3] = [Health::Up, Health::Down, Health::Unknown];
const SERVICE_STATES: [ServiceState; 4] =
    [ServiceState::Up, ServiceState::Degraded, ServiceState::Down, ServiceState::Unknown];
const PROCESS_STATES: [ProcessState; 5] = [
    ProcessState::Starting,
    ProcessState::Running,
    ProcessState::Stopping,
    ProcessState::Waiting,
    ProcessState::Stopped,
];

fn whole<const N: usize>(labels: [&str; N], value: u64) -> Sample {
    Sample { labels: labels.map(str::to_owned).to_vec(), value: Value::Whole(value) }
}

fn real(value: f64) -> Sample {
    Sample { labels: Vec::new(), value: Value::Real(value) }
}

fn share(usage: Option<Usage>) -> Vec<Sample> {
    usage.map(|usage| real(usage.share())).into_iter().collect()
}

/// One sample for each state there is: 1 for the present one.
fn states<T: Copy + PartialEq + ToString, const N: usize>(
    labels: [&str; N],
    all: &[T],
    present: T,
) -> Vec<Sample> {
    let one = |&state: &T| {
        let labels = labels.into_iter().map(str::to_owned).chain([state.to_string()]).collect();
        Sample { labels, value: Value::Whole(u64::from(state == present)) }
    };
    all.iter().map(one).collect()
}

/// Counters of every backend of every service of a protocol, and of what the proxy answered by itself.
fn counted(scene: &Scene, protocol: Protocol) -> Vec<(String, String, &Snapshot)> {
    // A service that has left the file still has its counts; it was most likely HTTP.
    let of = |name: &str| scene.spec(name).map_or(Protocol::Http, |spec| spec.protocol);
    let services = scene.stats.services.iter().filter(|s| !is_postgres(&s.name));
    services.filter(|s| of(&s.name) == protocol).flat_map(of_service).collect()
}

/// Whether it is the port of a database: no service of the file has a dot in its name.
fn is_postgres(service: &str) -> bool {
    service.starts_with("postgres.")
}

fn ports(scene: &Scene) -> impl Iterator<Item = &ServiceStats> {
    scene.stats.services.iter().filter(|s| is_postgres(&s.name))
}

fn each_port(scene: &Scene, read: impl Fn(&PostgresStats) -> u64) -> Vec<Sample> {
    ports(scene).map(|s| whole([&s.name], read(&s.postgres))).collect()
}

fn of_service(service: &ServiceStats) -> Vec<(String, String, &Snapshot)> {
    let backends = service.backends.iter().map(|b| (b.name.clone(), &b.counts));
    let all = backends.chain([(NO_BACKEND.to_owned(), &service.own)]);
    all.map(|(backend, counts)| (service.name.clone(), backend, counts)).collect()
}

fn counted_http(scene: &Scene) -> Vec<(String, String, &Snapshot)> {
    counted(scene, Protocol::Http)
}

/// Samples with a third label.
fn each(
    counted: Vec<(String, String, &Snapshot)>,
    read: impl Fn(&Snapshot) -> Vec<(String, u64)>,
) -> Vec<Sample> {
    let samples = counted.into_iter().flat_map(|(service, backend, counts)| {
        let values = read(counts).into_iter();
        let one = |(word, value): (String, u64)| whole([&service, &backend, &word], value);
        values.map(one).collect::<Vec<_>>()
    });
    samples.collect()
}

fn each_http(scene: &Scene, read: impl Fn(&Snapshot) -> Vec<(String, u64)>) -> Vec<Sample> {
    each(counted_http(scene), read)
}

fn errors(counts: &Snapshot) -> Vec<(String, u64)> {
    let one = |(place, kind): (usize, ErrorKind)| {
        (kind.word().to_owned(), counts.errors.get(place).copied().unwrap_or(0))
    };
    ErrorKind::ALL.into_iter().enumerate().map(one).collect()
}

fn tunnels(scene: &Scene, read: impl Fn(&Snapshot) -> u64) -> Vec<Sample> {
    let services = counted_http(scene).into_iter().chain(counted(scene, Protocol::Tcp));
    let all = services.chain(ports(scene).flat_map(of_service));
    let backends = all.filter(|(_, backend, _)| backend != NO_BACKEND);
    backends.map(|(service, backend, counts)| whole([&service, &backend], read(counts))).collect()
}

fn each_service(scene: &Scene, read: impl Fn(&ServiceStats) -> u64) -> Vec<Sample> {
    scene.stats.services.iter().map(|s| whole([&s.name], read(s))).collect()
}

fn each_backend(scene: &Scene, read: impl Fn(&BackendView) -> Option<bool>) -> Vec<Sample> {
    let services = scene.picture.view.services.iter();
    let backends = services.flat_map(|(name, s)| s.backends.iter().map(move |b| (name, b)));
    let one = |(service, backend): (&String, &BackendView)| {
        Some(whole([service, &backend.name], u64::from(read(backend)?)))
    };
    backends.filter_map(one).collect()
}

fn target_text(target: &Target) -> String {
    target.to_string()
}
