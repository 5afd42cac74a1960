//! Three nodes of outlast that keep one database writable, on addresses of their own on this machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::door;
use super::machine::{Machine, Part, Program};
use super::stack::{Addresses, NODES, SERVER_PORT, Stack, State};
use crate::children::{Household, TempDir};
use crate::tools;

const NAMES: [&str; NODES] = ["a", "b", "c"];
/// The database's name in the topology.
const DATABASE: &str = "orders";
const WRITE_PORT: u16 = 6432;
const READ_PORT: u16 = 6433;
/// Where agents talk to each other.
const LINK_PORT: u16 = 7400;
const VERB_LIMIT: Duration = Duration::from_secs(5);
const SWITCHOVER_LIMIT: Duration = Duration::from_secs(60);
/// An agent's heartbeat and probes are faster; a fault meets any moment of this.
const PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Ours {
    outlast: PathBuf,
    /// Commits wait for another node.
    quorum: bool,
    addresses: Addresses,
    machines: Vec<Machine>,
    /// Ends whatever is left, before the directory goes.
    _household: Household,
    dir: TempDir,
}

impl Ours {
    pub(crate) async fn start(outlast: &Path, quorum: bool) -> Result<Ours> {
        let mut stack = Ours::prepare(outlast, quorum).await?;
        for (at, node) in NAMES.iter().enumerate() {
            let args = ["run", text(&stack.file(at))?, "--node", node].map(str::to_owned).to_vec();
            let program = Program { path: stack.outlast.clone(), args, user: None };
            let data_dir = stack.home(at).join(DATABASE);
            let name = format!("outlast-{node}");
            let machine = Machine::start(&name, program, data_dir, stack.dir.path()).await?;
            stack.machines.push(machine);
        }
        Ok(stack)
    }

    /// Everything but the agents. A binary that does not know databases says so here, and not by a cluster that never
    /// begins.
    pub(crate) async fn prepare(outlast: &Path, quorum: bool) -> Result<Ours> {
        let household = Household::found()?;
        let dir = TempDir::new("postgres")?;
        tools::open_to_all(dir.path())?;
        let stack = Ours {
            outlast: outlast.to_owned(),
            quorum,
            addresses: Addresses::choose(),
            machines: Vec::new(),
            _household: household,
            dir,
        };
        for at in 0..NODES {
            std::fs::create_dir(stack.home(at)).context("create a node's directory")?;
            std::fs::write(stack.file(at), stack.topology(at)).context("write a topology")?;
        }
        stack.refuse_what_cannot_work().await?;
        Ok(stack)
    }

    async fn refuse_what_cannot_work(&self) -> Result<()> {
        let checked = self.outlast(&["check", text(&self.file(0))?], VERB_LIMIT).await?;
        ensure!(
            checked.status.success(),
            "this outlast cannot keep a database writable yet; it says of [postgres.{DATABASE}]:\n{}",
            said(&checked)
        );
        let verb = self.outlast(&["switchover", "--help"], VERB_LIMIT).await?;
        ensure!(verb.status.success(), "this outlast has no verb `switchover` yet");
        Ok(())
    }

    fn home(&self, at: usize) -> PathBuf {
        self.dir.path().join(NAMES[at])
    }

    fn file(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("outlast-{}.toml", NAMES[at]))
    }

    /// Where a node takes writes.
    fn entry(&self, at: usize) -> SocketAddr {
        SocketAddr::new(self.addresses.node(at), WRITE_PORT)
    }

    /// One topology; what differs is where each node listens and keeps its files, as this is one machine.
    fn topology(&self, at: usize) -> String {
        let home = self.home(at);
        let home = home.display();
        let node = |at: usize| {
            format!("[node.{}]\naddress = \"{}\"\n", NAMES[at], self.addresses.node(at))
        };
        let nodes: String = (0..NODES).map(node).collect();
        format!(
            r#"[cluster]
name = "failover"
data_dir = "{home}/data"
port = {LINK_PORT}
face = "off"

{nodes}
[postgres.{DATABASE}]
nodes = ["a", "b", "c"]
version = 15
data_dir = "{home}/{DATABASE}"
port = {SERVER_PORT}
listen = {{ write = "{write}", read = "{address}:{READ_PORT}" }}
durability = "{durability}"
"#,
            write = self.entry(at),
            address = self.addresses.node(at),
            durability = if self.quorum { "quorum" } else { "async" },
        )
    }

    async fn outlast(&self, words: &[&str], limit: Duration) -> Result<Output> {
        let mut command = tokio::process::Command::new(&self.outlast);
        command.args(words).stdin(std::process::Stdio::null()).kill_on_drop(true);
        let ran = tokio::time::timeout(limit, command.output()).await;
        let what = || format!("outlast {}", words.first().copied().unwrap_or_default());
        ran.with_context(|| format!("{} does not end within {limit:?}", what()))?.with_context(what)
    }

    /// A verb at a node that must be obeyed.
    async fn verb(&self, at: usize, words: &[&str], limit: Duration) -> Result<String> {
        let data_dir = self.home(at).join("data");
        let words = [words, &["--data-dir", text(&data_dir)?]].concat();
        let output = self.outlast(&words, limit).await?;
        if !output.status.success() {
            bail!("outlast {} at {}: {}", words[0], NAMES[at], said(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A copy and a rewound server have the files of another one.
    fn let_clients_in(&self) -> Result<()> {
        for (at, machine) in self.machines.iter().enumerate() {
            if !machine.is_frozen() && door::open(&self.home(at).join(DATABASE))? {
                machine.reload();
            }
        }
        Ok(())
    }

    /// What the first node says that answers and knows a primary.
    async fn status(&self) -> Result<Value> {
        let mut known = None;
        let mut fault = None;
        for at in 0..NODES {
            // One that stands still would only cost time.
            if self.machines[at].is_frozen() {
                continue;
            }
            match self.verb(at, &["status", "--format", "json"], VERB_LIMIT).await {
                Ok(said) => {
                    let said: Value = serde_json::from_str(&said).context("read a status")?;
                    if state(&said, self.quorum).primary.is_some() {
                        return Ok(said);
                    }
                    known = Some(said);
                }
                Err(error) => fault = Some(error),
            }
        }
        known.map_or_else(|| Err(fault.context("no node could be asked")?), Ok)
    }
}

impl Stack for Ours {
    fn machines(&mut self) -> &mut [Machine] {
        &mut self.machines
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The primary's own entry dies with its host; clients that live elsewhere know the other two.
    fn entries(&self, primary: usize) -> Vec<SocketAddr> {
        (0..NODES).filter(|at| *at != primary).map(|at| self.entry(at)).collect()
    }

    fn all_entries(&self) -> Vec<SocketAddr> {
        (0..NODES).map(|at| self.entry(at)).collect()
    }

    fn node(&self, at: usize) -> String {
        NAMES[at].to_owned()
    }

    async fn state(&mut self) -> Result<State> {
        self.let_clients_in()?;
        Ok(state(&self.status().await?, self.quorum))
    }

    /// The lead cannot be moved by hand; the database can.
    async fn lead_from_primary(&mut self) -> Result<()> {
        let status = self.status().await?;
        let leader = status["agreement"]["leader"].as_str().and_then(at_of);
        let leader = leader.context("the agents have no leader")?;
        let primary = state(&status, self.quorum).primary.context("there is no primary")?;
        if leader != primary { self.switchover(primary, leader).await } else { Ok(()) }
    }

    async fn switchover(&mut self, from: usize, to: usize) -> Result<()> {
        let words = ["switchover", DATABASE, "--to", NAMES[to]];
        self.verb(from, &words, SWITCHOVER_LIMIT).await.map(drop)
    }

    /// One process of ours is all there is.
    fn kill_beside(&mut self, _at: usize) -> Result<()> {
        Ok(())
    }

    async fn revive(&mut self, at: usize) -> Result<()> {
        if self.machines[at].pids(Part::Agent).is_empty() {
            self.machines[at].start_again().await?;
        }
        Ok(())
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn keepers(&mut self, at: usize) -> Vec<i32> {
        self.machines[at].keepers()
    }

    async fn stop(self) {
        for machine in self.machines {
            machine.stop().await;
        }
    }
}

/// What a status says of the database.
fn state(status: &Value, quorum: bool) -> State {
    let members = status["postgres"][DATABASE]["members"].as_array();
    let members = members.map(Vec::as_slice).unwrap_or_default();
    let at = |member: &Value| member["node"].as_str().and_then(at_of);
    let leads = |member: &&Value| member["role"] == "primary";
    let synchronous = |member: &Value| {
        member["sync"] == true || matches!(member["sync"].as_str(), Some("sync" | "quorum"))
    };
    // An old one may not know yet that it is over.
    let primary = members.iter().filter(leads).max_by_key(|member| member["epoch"].as_u64());
    let stands_by = |member: &&Value| member["role"] == "standby";
    let candidate = members
        .iter()
        .filter(stands_by)
        .filter(|member| !quorum || synchronous(member))
        .min_by_key(|member| member["lag_bytes"].as_u64().unwrap_or(u64::MAX));
    let standbys = members.iter().filter(stands_by).count();
    let timeline = primary.map(|member| &member["timeline"]);
    let lacks = if members.is_empty() {
        Some(format!("the status says nothing of postgres.{DATABASE}"))
    } else if primary.is_none() {
        Some("there is no primary".to_owned())
    } else if standbys != NODES - 1 {
        Some(format!("{standbys} standbys are there"))
    } else if let Some(other) = members.iter().find(|member| timeline != Some(&member["timeline"]))
    {
        Some(format!("{} is on timeline {}", other["node"], other["timeline"]))
    } else if candidate.is_none() {
        Some("no standby is synchronous".to_owned())
    } else {
        None
    };
    State { primary: primary.and_then(at), candidate: candidate.and_then(at), lacks }
}

fn at_of(name: &str) -> Option<usize> {
    NAMES.iter().position(|node| *node == name)
}

fn said(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}{}", out.trim_end(), err.trim_end())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the temporary directory's name is not text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn member(node: &str, role: &str, epoch: u64, timeline: u64, sync: bool) -> Value {
        json!({
            "node": node, "role": role, "state": "running", "epoch": epoch, "timeline": timeline,
            "lag_bytes": 0, "sync": sync,
        })
    }

    fn status(members: &[Value]) -> Value {
        json!({ "postgres": { "orders": { "members": members } } })
    }

    #[test]
    fn the_primary_of_the_newest_epoch_counts() {
        let old = member("a", "primary", 3, 1, false);
        let new = member("b", "primary", 4, 2, false);
        let standby = member("c", "standby", 4, 2, true);
        let torn = state(&status(&[old, new.clone(), standby.clone()]), true);
        assert_eq!((torn.primary, torn.candidate), (Some(1), Some(2)));
        assert!(torn.lacks.is_some());
        let back = member("a", "standby", 4, 2, false);
        let whole = state(&status(&[back, new, standby]), true);
        assert_eq!(whole, State { primary: Some(1), candidate: Some(2), lacks: None });
    }

    #[test]
    fn nobody_is_a_candidate_in_quorum_mode_who_is_not_synchronous() {
        let members = [
            member("a", "primary", 1, 1, false),
            member("b", "standby", 1, 1, false),
            member("c", "standby", 1, 1, false),
        ];
        assert_eq!(state(&status(&members), true).candidate, None);
        assert_eq!(state(&status(&members), false).candidate, Some(1));
        let nothing = state(&json!({}), true).lacks.unwrap();
        assert!(nothing.contains("says nothing of postgres.orders"), "{nothing}");
    }
}
