//! A lab with three machines that may hold the address and a fourth that asks it, under outlast or under keepalived.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::report::Column;
use super::sight::Sight;
use crate::children::{Child, Spec, TempDir, wait_until};
use crate::postgres::{monotonic, sample_for};
use crate::tools;

pub(super) const NODES: [&str; 3] = ["a", "b", "c"];
const CLIENT: &str = "d";
/// Nobody's: who claims the address is asked for in its name.
const ASKER_IP: &str = "10.0.0.250";
const IP: &str = "10.0.0.100";
const INTERFACE: &str = "eth0";
/// keepalived's machine of the higher priority: the holder whenever it is well.
const PREFERRED: &str = "a";

const START_LIMIT: Duration = Duration::from_secs(60);
const VERB_LIMIT: Duration = Duration::from_secs(60);
const WHOLE_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks of a wait that may take seconds.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What the client has seen is written by then.
const WRITTEN: Duration = Duration::from_millis(100);
/// The address is whole once one machine has answered alone for so long.
const CALM: Duration = Duration::from_secs(1);
/// A longer pause is no calm.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// A machine that has come back takes part in all things again after this.
const SETTLE: Duration = Duration::from_secs(3);
/// Between two looks at the machines' own addresses.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// Tells labs of one run from each other.
static LABS: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) column: Column,
    outlast: PathBuf,
    name: String,
    keepers: Vec<Option<Child>>,
    echoes: Vec<Option<Child>>,
    client: Child,
    pub(super) sight: Sight,
    kernels: Kernels,
    lab: Child,
    dir: TempDir,
}

impl Stage {
    pub(super) async fn up(column: Column, outlast: &Path) -> Result<Stage> {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("addresses-{}-{number}", std::process::id());
        let dir = TempDir::new(&format!("addresses{number}"))?;
        let file = dir.path().join("outlast.toml");
        std::fs::write(&file, topology(column)).context("write the topology")?;
        let words = ["lab", "up", path(&file)?, "--name", &name, "--dir"].map(str::to_owned);
        let words = [words.to_vec(), vec![path(&dir.path().join("lab"))?.to_owned()]].concat();
        let mut lab = start("lab", outlast, &words, dir.path())?;
        let up = wait_until(START_LIMIT, async || {
            !lab.is_running() || status(outlast, &name).await.is_ok_and(|said| said["up"] == true)
        });
        let up = up.await;
        lab.check_running()?;
        ensure!(up, "the lab is not up within {START_LIMIT:?}{}", lab.log_tail());
        let words = [["--ip", IP], ["--asker", ASKER_IP], ["--interface", INTERFACE]].concat();
        let words = [vec!["vipclient"], words].concat();
        let client = ours("client", CLIENT, &words, outlast, &name, dir.path())?;
        let sight = Sight::open(&dir.path().join("client.log"))?;
        let kernels = Kernels::watch();
        let (keepers, echoes) = (NODES.map(|_| None).into(), NODES.map(|_| None).into());
        let outlast = outlast.to_owned();
        let mut stage =
            Stage { column, outlast, name, keepers, echoes, client, sight, kernels, lab, dir };
        stage.revive().await?;
        Ok(stage)
    }

    /// Ends all of it.
    pub(super) async fn down(self) -> Result<()> {
        let ended = self.verb(&["down"]).await;
        drop(self.kernels);
        drop(self.client);
        self.lab.stop().await;
        ended.map(drop)
    }

    /// `outlast lab WORDS` of this lab; what it says.
    pub(super) async fn verb(&self, words: &[&str]) -> Result<String> {
        verb(&self.outlast, &self.name, words).await
    }

    /// A command in a machine; whether it went well.
    async fn run(&self, node: &str, words: &[&str]) -> Result<bool> {
        let mut command = tokio::process::Command::new(&self.outlast);
        command.args(["lab", "exec", node, "--name", &self.name, "--"]).args(words);
        Ok(output(command, words).await?.status.success())
    }

    /// SIGTERM for the oldest process of a machine with such a command line.
    pub(super) async fn terminate(&self, node: &str, pattern: &str) -> Result<()> {
        let hit = self.run(node, &["pkill", "-TERM", "-o", "-f", pattern]).await?;
        ensure!(hit, "in {node} nothing runs as `{pattern}`");
        Ok(())
    }

    /// SIGKILL for all of them. They stand still before, so that none of them can tidy up after another.
    pub(super) async fn kill(&self, node: &str, pattern: &str) -> Result<()> {
        let script = "pkill -STOP -f \"$0\"; pkill -KILL -f \"$0\"";
        let hit = self.run(node, &["sh", "-c", script, pattern]).await?;
        ensure!(hit, "in {node} nothing runs as `{pattern}`");
        Ok(())
    }

    /// Starts whatever does not run.
    async fn revive(&mut self) -> Result<()> {
        let said = status(&self.outlast, &self.name).await?;
        for (at, node) in NODES.iter().enumerate() {
            let about = about(&said, node)?;
            // A machine that is off, or one without its agent.
            if about["state"] != "running" || about["agent"] != "running" {
                self.verb(&["start", node]).await?;
            }
            if !self.echoes[at].as_mut().is_some_and(Child::is_running) {
                let words = ["vipecho", node];
                let name = format!("echo-{node}");
                let dir = self.dir.path();
                self.echoes[at] = Some(ours(&name, node, &words, &self.outlast, &self.name, dir)?);
            }
            if !self.keepers[at].as_mut().is_some_and(Child::is_running) {
                self.keepers[at] = self.keeper(node)?;
            }
        }
        let said = status(&self.outlast, &self.name).await?;
        let pids = NODES.map(|node| about(&said, node).ok()?["pid"].as_u64());
        self.kernels.look_at(pids.into_iter().flatten().collect());
        Ok(())
    }

    /// keepalived on a machine that has one.
    fn keeper(&self, node: &str) -> Result<Option<Child>> {
        let Some(config) = keepalived_config(self.column, node) else { return Ok(None) };
        let keepalived = tools::which("keepalived").context("keepalived is not found")?;
        // The machine's own /tmp: it is empty after power has been lost.
        let script = "printf %s \"$1\" >/tmp/k.conf && rm -f /tmp/k.pid /tmp/v.pid && \
                      exec \"$0\" --dont-fork --log-console --log-detail --vrrp --use-file /tmp/k.conf \
                      --pid /tmp/k.pid --vrrp_pid /tmp/v.pid";
        let words = ["sh", "-c", script, path(&keepalived)?, &config];
        let name = format!("keepalived-{node}");
        let (outlast, lab, dir) = (&self.outlast, &self.name, self.dir.path());
        inside(&name, node, &words, outlast, lab, dir).map(Some)
    }

    /// All machines run, one answers alone, and for keepalived it is the one that should; its name.
    pub(super) async fn whole(&mut self) -> Result<String> {
        self.verb(&["heal"]).await?;
        self.revive().await?;
        sample_for(SETTLE).await;
        let limit = Instant::now() + WHOLE_LIMIT;
        loop {
            self.client.check_running()?;
            self.lab.check_running()?;
            let to = self.catch_up().await?;
            let from = to.saturating_sub(nanos(CALM));
            let holder = self.sight.steady(from, to, PAUSE_MAX);
            let fits = |node: &String| self.column == Column::Outlast || node == PREFERRED;
            if let Some(holder) = holder.filter(fits) {
                return Ok(holder);
            }
            if limit < Instant::now() {
                bail!("nobody answers steadily within {WHOLE_LIMIT:?}{}", self.why());
            }
            sample_for(LOOK_EVERY).await;
        }
    }

    /// Reads all that the client has seen until now, which is returned.
    pub(super) async fn catch_up(&mut self) -> Result<u64> {
        let now = monotonic();
        sample_for(WRITTEN).await;
        self.sight.look()?;
        Ok(now)
    }

    /// The end of what the keepers have logged.
    fn why(&self) -> String {
        let keepers = self.keepers.iter().flatten().map(Child::log_tail);
        let agents = NODES.map(|node| {
            let text = self.agent_log(node);
            text.lines().last().map(|line| format!("\n{node}: {line}")).unwrap_or_default()
        });
        keepers.chain(agents).collect()
    }

    fn agent_log(&self, node: &str) -> String {
        let log = self.dir.path().join("lab/nodes").join(node).join("agent.log");
        // Bytes of a line that is being written may be no text yet.
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
    }

    /// Who leads the agreement, by the newest term that anybody has logged.
    pub(super) fn leader(&self) -> Option<String> {
        let logs = NODES.map(|node| self.agent_log(node));
        let all = logs.iter().flat_map(|log| log.lines().filter_map(led));
        all.max().map(|(_, name)| name)
    }

    /// How often so far the address has been given to another, by what outlast or keepalived itself has noted.
    pub(super) async fn moves(&self) -> Result<usize> {
        if self.column != Column::Outlast {
            let log = |node: &&str| self.dir.path().join(format!("keepalived-{node}.log"));
            let logs = NODES.iter().map(|node| std::fs::read_to_string(log(node)));
            return Ok(logs
                .flatten()
                .map(|log| log.matches("Entering MASTER STATE").count())
                .sum());
        }
        let mut most = 0;
        for node in NODES {
            let words = ["outlast", "events", "--last", "100000", "--format", "json"];
            let mut command = tokio::process::Command::new(&self.outlast);
            command.args(["lab", "exec", node, "--name", &self.name, "--"]).args(words);
            let said = output(command, &words).await?;
            ensure!(said.status.success(), "{node} does not show its journal");
            let text = String::from_utf8_lossy(&said.stdout);
            most = most.max(text.matches("\"event\":\"address_moved\"").count());
        }
        Ok(most)
    }

    /// In how many looks two machines had the address on their interfaces, and how many looks there were.
    pub(super) fn kernels(&self, from: u64, to: u64) -> (usize, usize) {
        self.kernels.between(from, to)
    }
}

/// `... NAME leads, term N`
pub(in crate::bench) fn led(line: &str) -> Option<(u64, String)> {
    let (before, after) = line.split_once(" leads, term ")?;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    let name = before.split_whitespace().last()?;
    Some((digits.parse().ok()?, name.to_owned()))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not written in UTF-8", path.display()))
}

fn start(name: &str, program: &Path, words: &[String], dir: &Path) -> Result<Child> {
    Child::start(&Spec { name, program, args: words, dir, core: None, has_children: true })
}

/// A command in a machine that stays.
fn inside(
    name: &str,
    node: &str,
    words: &[&str],
    outlast: &Path,
    lab: &str,
    dir: &Path,
) -> Result<Child> {
    let exec = ["lab", "exec", node, "--name", lab, "--"];
    let words: Vec<String> = exec.iter().chain(words).map(|word| (*word).to_owned()).collect();
    start(name, outlast, &words, dir)
}

/// A verb of this program in a machine.
fn ours(
    name: &str,
    node: &str,
    words: &[&str],
    outlast: &Path,
    lab: &str,
    dir: &Path,
) -> Result<Child> {
    let program = std::env::current_exe().context("find ourselves")?;
    let words = [vec![path(&program)?], words.to_vec()].concat();
    inside(name, node, &words, outlast, lab, dir)
}

async fn output(
    mut command: tokio::process::Command,
    words: &[&str],
) -> Result<std::process::Output> {
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let what = words.join(" ");
    let done = tokio::time::timeout(VERB_LIMIT, command.output()).await;
    done.with_context(|| format!("`{what}` is not done within {VERB_LIMIT:?}"))?
        .with_context(|| format!("run `{what}`"))
}

async fn verb(outlast: &Path, lab: &str, words: &[&str]) -> Result<String> {
    let mut command = tokio::process::Command::new(outlast);
    command.arg("lab").args(words).args(["--name", lab]);
    let said = output(command, words).await?;
    if !said.status.success() {
        bail!("outlast lab {}: {}", words.join(" "), String::from_utf8_lossy(&said.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

async fn status(outlast: &Path, lab: &str) -> Result<Value> {
    let said = verb(outlast, lab, &["status", "--format", "json"]).await?;
    serde_json::from_str(&said).context("read the lab's status")
}

fn about<'v>(status: &'v Value, node: &str) -> Result<&'v Value> {
    let nodes = status["nodes"].as_array().context("the lab has no machines")?;
    let found = nodes.iter().find(|about| about["name"] == node);
    found.with_context(|| format!("the lab has no machine {node}"))
}

/// The same machines for all; only outlast's has the address in its file.
fn topology(column: Column) -> String {
    let machines = NODES.iter().chain([&CLIENT]).zip(1..);
    let nodes: String = machines
        .map(|(name, number)| format!("[node.{name}]\naddress = \"10.0.0.{number}\"\n"))
        .collect();
    let address = match column {
        Column::Outlast => format!(
            "[address.edge]\nip = \"{IP}/24\"\ninterface = \"{INTERFACE}\"\nnodes = [\"a\", \"b\", \"c\"]\n"
        ),
        Column::KeepalivedDefault | Column::KeepalivedFast => String::new(),
    };
    format!(
        "[cluster]\nname = \"addresses\"\ndata_dir = \"/var/lib/outlast-addresses\"\nface = \"0.0.0.0:8900\"\nproxy_threads = 1\n{nodes}[consensus]\nvoters = [\"a\", \"b\", \"c\"]\n{address}"
    )
}

/// Two machines, as its own manual has them; none for the third.
fn keepalived_config(column: Column, node: &str) -> Option<String> {
    let priority = match node {
        "a" => 150,
        "b" => 100,
        _ => return None,
    };
    // Less than a second is there in version 3 of VRRP alone.
    let (version, interval) = match column {
        Column::Outlast => return None,
        Column::KeepalivedDefault => (2, "1"),
        Column::KeepalivedFast => (3, "0.1"),
    };
    Some(format!(
        "global_defs {{\n router_id {node}\n vrrp_version {version}\n}}\nvrrp_instance edge {{\n state BACKUP\n interface {INTERFACE}\n virtual_router_id 51\n priority {priority}\n advert_int {interval}\n virtual_ipaddress {{\n  {IP}/24\n }}\n}}\n"
    ))
}

/// What a thread of ours sees in the machines' kernels: on how many interfaces the address is.
#[derive(Debug)]
struct Kernels(Arc<Mutex<Looks>>);

#[derive(Debug, Default)]
struct Looks {
    /// Of the machines' first processes.
    pids: Vec<u64>,
    /// When, and on how many.
    seen: Vec<(u64, usize)>,
}

/// Looks that are kept: a span of some minutes.
const LOOKS_MAX: usize = 20_000;

impl Kernels {
    fn watch() -> Kernels {
        let looks = Arc::new(Mutex::new(Looks::default()));
        let weak = Arc::downgrade(&looks);
        tokio::spawn(look_on(weak));
        Kernels(looks)
    }

    fn look_at(&self, pids: Vec<u64>) {
        self.0.lock().expect("nobody panics while holding it").pids = pids;
    }

    fn between(&self, from: u64, to: u64) -> (usize, usize) {
        let looks = self.0.lock().expect("nobody panics while holding it");
        let within = looks.seen.iter().filter(|(at, _)| (from..=to).contains(at));
        let counts: Vec<usize> = within.map(|(_, count)| *count).collect();
        (counts.iter().filter(|count| 1 < **count).count(), counts.len())
    }
}

/// Until nobody wants to know any more.
async fn look_on(looks: Weak<Mutex<Looks>>) {
    let mut every = tokio::time::interval(SAMPLE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        every.tick().await;
        let Some(looks) = looks.upgrade() else { return };
        let mut looks = looks.lock().expect("nobody panics while holding it");
        let count = looks.pids.iter().filter(|pid| has_address(**pid)).count();
        looks.seen.push((monotonic(), count));
        let old = looks.seen.len().saturating_sub(LOOKS_MAX);
        looks.seen.drain(..old);
    }
}

/// Whether the address is one of the machine's own.
fn has_address(pid: u64) -> bool {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/fib_trie")).unwrap_or_default();
    is_local(&table)
}

fn is_local(table: &str) -> bool {
    let lines: Vec<&str> = table.lines().map(str::trim).collect();
    lines.windows(2).any(|pair| pair[0] == format!("|-- {IP}") && pair[1] == "/32 host LOCAL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_is_read_from_a_log() {
        let line = "2026-01-01T00:00:00Z  INFO b leads, term 12";
        assert_eq!(led(line), Some((12, "b".to_owned())));
        assert_eq!(led("nobody leads"), None);
    }

    #[test]
    fn an_address_of_ones_own_is_told_from_a_way_to_it() {
        assert!(is_local("  |-- 10.0.0.100\n     /32 host LOCAL\n"));
        assert!(!is_local("  |-- 10.0.0.100\n     /32 link UNICAST\n"));
        assert!(!is_local("  |-- 10.0.0.10\n     /32 host LOCAL\n"));
    }

    #[test]
    fn keepalived_runs_on_two_machines_in_both_settings() {
        let fast = keepalived_config(Column::KeepalivedFast, "b").unwrap();
        assert!(fast.contains("advert_int 0.1\n") && fast.contains("priority 100\n"));
        assert!(keepalived_config(Column::KeepalivedDefault, "a").is_some());
        assert_eq!(keepalived_config(Column::KeepalivedDefault, "c"), None);
        assert_eq!(keepalived_config(Column::Outlast, "a"), None);
    }
}
