//! The agent's journal as this program follows it: what the agent says happened is the proof that it did.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::children::wait_until;

/// Everything in the journal so far.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    events: Vec<Value>,
    /// Bytes that have been read.
    read: usize,
}

impl Journal {
    pub(super) fn new(path: PathBuf) -> Journal {
        Journal { path, events: Vec::new(), read: 0 }
    }

    /// Where the journal ends now: what comes behind it is new.
    pub(super) fn mark(&mut self) -> usize {
        self.catch_up();
        self.events.len()
    }

    fn catch_up(&mut self) {
        let text = std::fs::read(&self.path).unwrap_or_default();
        let fresh = text.get(self.read..).unwrap_or_default();
        let whole = fresh.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = fresh[..whole].split(|byte| *byte == b'\n');
        self.events.extend(lines.filter_map(|line| serde_json::from_slice(line).ok()));
        self.read += whole;
    }

    /// The events behind a mark that have this name.
    pub(super) fn since(&mut self, mark: usize, name: &str) -> Vec<&Value> {
        self.catch_up();
        self.events[mark..].iter().filter(|event| event["event"] == name).collect()
    }

    /// Waits for an event behind a mark.
    pub(super) async fn wait(
        &mut self,
        mark: usize,
        name: &str,
        limit: Duration,
        mut fits: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let mut found = None;
        let seen = wait_until(limit, async || {
            found = self.since(mark, name).into_iter().find(|event| fits(event)).cloned();
            found.is_some()
        });
        if !seen.await {
            let since: Vec<String> = self.events[mark..].iter().map(ToString::to_string).collect();
            bail!("the journal has no {name} within {limit:?}; it has\n{}", since.join("\n"));
        }
        found.with_context(|| format!("no {name}"))
    }

    /// Waits until the agent believes this of a backend.
    pub(super) async fn wait_health(
        &mut self,
        mark: usize,
        backend: &str,
        to: &str,
        limit: Duration,
    ) -> Result<()> {
        let fits = |event: &Value| event["backend"] == backend && event["to"] == to;
        self.wait(mark, "health_changed", limit, fits).await.map(drop)
    }

    /// The serving proxy's process, as last told.
    pub(super) fn proxy(&mut self) -> Result<i32> {
        self.catch_up();
        let told = self.events.iter().rev().find_map(|event| match event["event"].as_str()? {
            "proxy_started" | "proxy_adopted" => event["pid"].as_i64(),
            "proxy_replaced" => event["new"].as_i64(),
            _ => None,
        });
        let pid = told.and_then(|pid| i32::try_from(pid).ok());
        pid.context("the journal names no proxy")
    }
}
