use std::collections::BTreeSet;

use expect_test::{expect, expect_file};

use super::super::tests::scene;
use super::*;

#[test]
fn the_older_form() {
    let text = print(&scene(), Form::Text);
    let shown: Vec<&str> = text.lines().filter(|line| !line.contains("_bucket{")).collect();
    expect_file!["../expected/metrics.txt"].assert_eq(&(shown.join("\n") + "\n"));
}

#[test]
fn the_newer_form_differs_in_what_it_must() {
    let (old, new) = (print(&scene(), Form::Text), print(&scene(), Form::OpenMetrics));
    let samples = |text: &str| {
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(samples(&old), samples(&new));
    let old: BTreeSet<&str> = old.lines().collect();
    let shown: Vec<&str> = new.lines().filter(|line| !old.contains(line)).collect();
    expect![[r#"
        # HELP http_requests HTTP requests answered, by class of the status that the client got.
        # TYPE http_requests counter
        # UNIT http_request_duration_seconds seconds
        # HELP http_errors Tries that failed, by backend and by what went wrong; a retry may still have served the client. Backend none: the request failed as a whole.
        # TYPE http_errors counter
        # HELP outlast_tcp_errors Connections of TCP services that failed, by backend and by what went wrong.
        # TYPE outlast_tcp_errors counter
        # HELP outlast_tunnels Connections passed through byte by byte: those of TCP services, upgraded HTTP ones (WebSocket), and sessions of PostgreSQL at a server.
        # TYPE outlast_tunnels counter
        # HELP outlast_tunnel_received_bytes Bytes from clients to backends through tunnels.
        # TYPE outlast_tunnel_received_bytes counter
        # UNIT outlast_tunnel_received_bytes bytes
        # HELP outlast_tunnel_sent_bytes Bytes from backends to clients through tunnels.
        # TYPE outlast_tunnel_sent_bytes counter
        # UNIT outlast_tunnel_sent_bytes bytes
        # HELP outlast_postgres_errors Sessions at the ports of databases that failed, by backend and by what went wrong: kind cut_off was cut, for example because its primary was one no more. Backend none: the client was refused.
        # TYPE outlast_postgres_errors counter
        # HELP outlast_postgres_held Clients of a database's port that had to wait for a server.
        # TYPE outlast_postgres_held counter
        # HELP outlast_postgres_resumed Sessions that lost their server and went on at another one without noticing.
        # TYPE outlast_postgres_resumed counter
        # HELP outlast_postgres_bound Sessions that lost their server and ended, because something that they had begun or set was bound to it.
        # TYPE outlast_postgres_bound counter
        # HELP outlast_retries Requests tried again on another backend.
        # TYPE outlast_retries counter
        # HELP outlast_retries_denied Retries that the retry budget did not allow.
        # TYPE outlast_retries_denied counter
        # HELP outlast_probe_results Probes by what they found: success or failure, and why.
        # TYPE outlast_probe_results counter
        # HELP outlast_process_restarts How often a program was started again after it had ended or was killed.
        # TYPE outlast_process_restarts counter
        # HELP outlast_lease_ended How often the lease of this node has ended; what was under way under it was cut (kind cut_off of errors).
        # TYPE outlast_lease_ended counter
        # UNIT outlast_disk_used_ratio ratio
        # UNIT outlast_memory_used_ratio ratio
        # UNIT outlast_stats_age_seconds seconds
        # UNIT outlast_start_time_seconds seconds
        # HELP outlast_build Which outlast this is.
        # TYPE outlast_build info
        # EOF"#]].assert_eq(&shown.join("\n"));
}

#[test]
fn a_histogram_adds_up() {
    let text = print(&scene(), Form::Text);
    let wanted =
        "http_request_duration_seconds_bucket{service=\"web\",backend=\"http://10.0.0.1:3000\"";
    let shown: Vec<&str> = text.lines().filter(|line| line.starts_with(wanted)).collect();
    expect![[r#"
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="0.001"} 0
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="0.0025"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="0.005"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="0.01"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="0.025"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="0.05"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="0.1"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="0.2"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="0.25"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="0.5"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="1.0"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="2.5"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="5.0"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="10.0"} 1234575
        http_request_duration_seconds_bucket{service="web",backend="http://10.0.0.1:3000",le="+Inf"} 1234575"#]].assert_eq(&shown.join("\n"));
}

#[test]
fn labels_are_escaped() {
    assert_eq!(escaped("a\\b\"c\nd é", true), "a\\\\b\\\"c\\nd é");
    assert_eq!(escaped("say \"x\"\\", false), "say \"x\"\\\\");
}

#[test]
fn the_client_says_which_form_it_likes() {
    use Form::{OpenMetrics, Text};
    for (accept, form) in [
        ("", Text),
        ("*/*", Text),
        ("text/plain", Text),
        ("text/html,application/xhtml+xml,*/*;q=0.8", Text),
        ("application/openmetrics-text", OpenMetrics),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", OpenMetrics),
        ("Application/OpenMetrics-Text;VERSION=\"1.0.0\"", OpenMetrics),
        ("application/openmetrics-text;version=0.0.1", Text),
        ("application/openmetrics-text;version=2.0.0,text/plain;q=0.1", Text),
        ("application/openmetrics-text;q=0", Text),
        ("application/openmetrics-text;q=0.3,text/plain;q=0.5", Text),
        // Prometheus 2.42.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OpenMetrics,
        ),
        // Prometheus 3 with protobuf first.
        (
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=1.0.0;q=0.3,*/*;q=0.1",
            OpenMetrics,
        ),
    ] {
        assert_eq!(Form::negotiate(accept), form, "{accept}");
    }
}

#[test]
fn the_table_keeps_the_rules_of_naming() {
    let mut names = BTreeSet::new();
    for Metric { name, kind, unit, labels, help, .. } in METRICS {
        assert!(names.insert(name), "{name} stands twice");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert!(name.starts_with("outlast_") || name.starts_with("http_"), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert_eq!(name.ends_with("_info"), *kind == Kind::Info, "{name}");
        let family = name.trim_end_matches("_total");
        for suffix in ["_count", "_sum", "_bucket", "_created"] {
            assert!(!family.ends_with(suffix), "{name}");
        }
        for known in ["seconds", "bytes", "ratio"] {
            assert_eq!(family.ends_with(&format!("_{known}")), *unit == Some(known), "{name}");
        }
        assert!(help.ends_with('.') && !help.contains(['"', '\n', '|']), "{name}: {help}");
        assert!(!labels.contains(&"le"), "{name}");
    }
}

#[test]
fn the_reference_page_is_printed_from_the_table() {
    expect_file!["../../../../../../docs/metrics.md"].assert_eq(&reference());
}
