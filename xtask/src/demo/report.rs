//! The status line, the table at the end, and the verdict.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::ledger::{Ledger, Tally, Window};
use crate::out;

/// Of the requests that should have been sent.
const RATE_SHARE_MIN: f64 = 0.95;
const BACKENDS: [&str; 3] = ["b1", "b2", "b3"];

/// Counts since the start; latencies, and how much each backend served, of the last five seconds.
pub(super) fn status(ledger: &Ledger) -> String {
    let recent = ledger.recent();
    let serving: Vec<_> = recent.served.iter().map(|(name, n)| format!("{name} {n}")).collect();
    format!(
        "{:7.1} s  {} requests, {} failed | p50 {}, p99 {} | {}",
        ledger.started.elapsed().as_secs_f64(),
        ledger.total.requests(),
        ledger.total.failed,
        millis(recent.latencies.quantile(0.5)),
        millis(recent.latencies.quantile(0.99)),
        serving.join(", "),
    )
}

/// Why the run does not count as a success; empty if it does.
pub(super) fn complaints(ledger: &Ledger, all_backends: bool, rate_per_second: f64) -> Vec<String> {
    let mut complaints = Vec::new();
    let total = &ledger.total;
    if total.failed > 0 {
        let failed = total.failed;
        complaints.push(format!("{failed} requests failed: {}", counts(&total.failures)));
    }
    let end = ledger.ended.unwrap_or_else(Instant::now);
    let expected = (end - ledger.started).as_secs_f64() * rate_per_second;
    #[expect(clippy::cast_precision_loss, reason = "far fewer requests than 2^52")]
    let share = total.requests() as f64 / expected;
    if share < RATE_SHARE_MIN {
        complaints.push(format!("only {:.0} % of the requests were sent", share * 100.0));
    }
    for name in BACKENDS.iter().filter(|name| all_backends && !total.served.contains_key(**name)) {
        complaints.push(format!("{name} never served"));
    }
    for window in &ledger.windows {
        let what = format!("{} {}", window.name, window.victim);
        complaints.extend(window.doubts.iter().map(|doubt| format!("{what}: {doubt}")));
        if window.revived.is_some() && window.back_after.is_none() {
            complaints.push(format!("{what}: the backend did not serve again"));
        }
    }
    complaints
}

pub(super) fn render(ledger: &Ledger, complaints: &[String]) -> String {
    let head = [
        "fault",
        "requests",
        "failed",
        "> 100 ms",
        "p99",
        "max",
        "calm after",
        "back after",
        "served by",
    ];
    let rows: Vec<_> = ledger.windows.iter().map(row).collect();
    let verdict = match complaints {
        [] => "no request failed, and every fault really happened".to_owned(),
        some => format!("NOT GOOD:\n  {}", some.join("\n  ")),
    };
    let total = totals(&ledger.total);
    format!(
        "\n{}\n\ncalm after: from the fault until no request failed or took more than 100 ms\n\
         back after: from the repair until the backend served again\n\n{total}\n{verdict}",
        out::table(&head, &rows)
    )
}

fn row(window: &Window) -> Vec<String> {
    let tally = &window.tally;
    vec![
        format!("{} {}", window.name, window.victim),
        tally.requests().to_string(),
        tally.failed.to_string(),
        tally.delayed.to_string(),
        millis(tally.latencies.quantile(0.99)),
        millis(tally.latency_max),
        seconds(window.troubled_for),
        window.back_after.map_or_else(|| "-".to_owned(), seconds),
        counts(&tally.served),
    ]
}

fn totals(total: &Tally) -> String {
    format!(
        "{} requests, {} failed, p50 {}, p99 {}, max {}, served by {}",
        total.requests(),
        total.failed,
        millis(total.latencies.quantile(0.5)),
        millis(total.latencies.quantile(0.99)),
        millis(total.latency_max),
        counts(&total.served)
    )
}

fn counts(of: &BTreeMap<String, u64>) -> String {
    of.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_requests_is_no_success() {
        let mut ledger = Ledger::new();
        ledger.started = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        ledger.open_window("kill", "b1");
        ledger.windows[0].doubts.push("process 7 is still there".to_owned());
        ledger.windows[0].revived = Some(Instant::now());
        assert_eq!(
            complaints(&ledger, true, 200.0),
            [
                "only 0 % of the requests were sent",
                "b1 never served",
                "b2 never served",
                "b3 never served",
                "kill b1: process 7 is still there",
                "kill b1: the backend did not serve again",
            ]
        );
    }
}
