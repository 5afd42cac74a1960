//! What processes cost while nothing happens: CPU time to the nanosecond, and memory.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::sample_for;

/// Of one node, PostgreSQL itself aside.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    /// Of one core.
    pub(crate) cpu_percent: f64,
    pub(crate) rss_mib: f64,
    /// Shared pages count in parts.
    pub(crate) pss_mib: f64,
    /// What a node has of its own: pages of a program's file count once, however many processes run it.
    pub(crate) node_mib: f64,
}

impl Cost {
    pub(crate) fn json(self) -> Value {
        let rounded = |value: f64| (value * 100.0).round() / 100.0;
        json!({ "cpu_percent": rounded(self.cpu_percent), "rss_mib": rounded(self.rss_mib), "pss_mib": rounded(self.pss_mib), "node_mib": rounded(self.node_mib) })
    }
}

/// Watches groups of processes at the same time.
pub(crate) async fn measure(groups: &[Vec<i32>], time: Duration) -> Vec<Cost> {
    let all = || groups.iter().map(|pids| pids.iter().map(|pid| cpu(*pid)).sum::<Duration>());
    let before: Vec<Duration> = all().collect();
    let elapsed = sample_for(time).await;
    let used = all().zip(before).map(|(after, before)| after.saturating_sub(before));
    let cost = |(used, pids): (Duration, &Vec<i32>)| {
        let memory = |field: &str| pids.iter().map(|pid| memory(*pid, field)).sum::<f64>();
        Cost {
            cpu_percent: 100.0 * used.as_secs_f64() / elapsed.as_secs_f64(),
            rss_mib: memory("Rss:"),
            pss_mib: memory("Pss:"),
            node_mib: of_node(pids),
        }
    };
    used.zip(groups).map(cost).collect()
}

/// Of all threads that run now.
fn cpu(pid: i32) -> Duration {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let of = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    };
    threads.flatten().filter_map(|entry| of(entry.path())).sum()
}

/// Anonymous memory of all, and the file pages of each program once.
fn of_node(pids: &[i32]) -> f64 {
    let mut files: BTreeMap<std::path::PathBuf, f64> = BTreeMap::new();
    let mut own = 0.0;
    for pid in pids {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let of = |field: &str| mib(&text, field).unwrap_or_default();
        own += of("RssAnon:") + of("RssShmem:");
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let most = files.entry(program).or_default();
        *most = most.max(of("RssFile:"));
    }
    own + files.values().sum::<f64>()
}

fn memory(pid: i32, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    mib(&text, field).unwrap_or_default()
}

fn mib(text: &str, field: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_by_its_whole_name() {
        let text = "7f00 rw-p [rollup]\nRss:            2048 kB\nPss:            1024 kB\nPss_Anon: 5 kB\n";
        assert_eq!(mib(text, "Rss:"), Some(2.0));
        assert_eq!(mib(text, "Pss:"), Some(1.0));
        assert_eq!(mib(text, "Swap:"), None);
    }

    #[test]
    fn this_process_has_used_some_cpu() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(cpu(own) > Duration::ZERO);
        assert!(memory(own, "Rss:") > 0.0);
    }
}
