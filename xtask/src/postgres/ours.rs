//! Three nodes of outlast that keep one database writable, on addresses of their own on this machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

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
hba = ["host all {user} 127.0.0.0/8 trust"]
"#,
            write = self.entry(at),
            address = self.addresses.node(at),
            user = super::USER,
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
    let database = &status["postgres"][DATABASE];
    let Some(members) = database["members"].as_object() else {
        let lacks = Some(format!("the status says nothing of postgres.{DATABASE}"));
        return State { primary: None, candidate: None, lacks };
    };
    let primary = database["primary"].as_str().filter(|_| database["open"] == true);
    let follows = |member: &Value| {
        member["state"] == "standby" && primary.is_some() && member["follows"].as_str() == primary
    };
    let standbys = members.iter().filter(|(node, _)| Some(node.as_str()) != primary);
    let candidate = standbys
        .clone()
        .filter(|(_, member)| follows(member) && (!quorum || member["sync"] == true))
        .min_by_key(|(_, member)| member["lag_bytes"].as_u64().unwrap_or(u64::MAX));
    let astray = standbys.clone().find(|(_, member)| !follows(member));
    let lacks = if primary.is_none() {
        Some("there is no primary".to_owned())
    } else if members.len() != NODES {
        Some(format!("{} members are there", members.len()))
    } else if let Some((node, member)) = astray {
        Some(format!("{node} is {}", member["state"]))
    } else if database["rule_changes"] == true {
        Some("the rule for acknowledgements is about to change".to_owned())
    } else if quorum && standbys.clone().any(|(_, member)| member["sync"] != true) {
        Some("not every standby is synchronous".to_owned())
    } else if !database["switchover"].is_null() {
        Some("a switchover is under way".to_owned())
    } else {
        None
    };
    State {
        primary: primary.and_then(at_of),
        candidate: candidate.and_then(|(node, _)| at_of(node)),
        lacks,
    }
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

    fn status(primary: Option<&str>, astray: Option<&str>) -> Value {
        let member = |node: &str| {
            let leads = primary == Some(node);
            let state = if leads { "primary" } else { "standby" };
            let follows = primary.filter(|_| !leads && astray != Some(node));
            json!({ "state": state, "follows": follows, "sync": !leads, "lag_bytes": 0 })
        };
        let members = json!({ "a": member("a"), "b": member("b"), "c": member("c") });
        let database = json!({
            "primary": primary, "open": primary.is_some(), "rule_changes": false, "switchover": null, "members": members,
        });
        json!({ "postgres": { DATABASE: database } })
    }

    #[test]
    fn a_database_is_whole_with_a_primary_that_all_others_follow() {
        let whole = state(&status(Some("b"), None), true);
        assert_eq!((whole.primary, whole.lacks), (Some(1), None));
        assert!(whole.candidate.is_some_and(|candidate| candidate != 1));
        let torn = state(&status(Some("b"), Some("c")), true);
        assert_eq!((torn.primary, torn.candidate), (Some(1), Some(0)));
        assert!(torn.lacks.is_some());
        assert!(state(&status(None, None), true).lacks.is_some());
        assert!(state(&json!({}), true).lacks.is_some());
    }
}
