//! A primary that the network cuts off, in the lab: both ways, and each way alone.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::geteuid;
use serde_json::{Value, json};

use crate::are_real;
use crate::cluster::programs;
use crate::ledger::{Account, TABLE, Writer};
use crate::wait::{self, BEGIN, REJOIN, SOON, TAKEOVER};

/// Another member serves, and clients have reached it, within this time.
const BLACKOUT_MAX: Duration = Duration::from_secs(8);

/// `d` has no PostgreSQL and no voice: clients are there.
const FILE: &str = r#"
[cluster]
name = "three"
data_dir = "/var/lib/outlast-of-a-test"
face = "0.0.0.0:8900"
proxy_threads = 1
[node.a]
address = "10.0.0.1"
[node.b]
address = "10.0.0.2"
[node.c]
address = "10.0.0.3"
[node.d]
address = "10.0.0.4"
[consensus]
voters = ["a", "b", "c"]
[postgres.orders]
nodes = ["a", "b", "c"]
listen = { write = "0.0.0.0:6432", read = "0.0.0.0:6433" }
hba = ["host all all 10.0.0.0/8 trust"]
"#;

const MEMBERS: [&str; 3] = ["a", "b", "c"];

/// Set in a machine: where to write to, and which row is the first.
const PORT: &str = "OUTLAST_TEST_PORT";
const FIRST: &str = "OUTLAST_TEST_FIRST";

/// It is there once a machine has written enough.
const ENOUGH: &str = "/var/lib/outlast-of-a-test/enough";

/// No test takes longer.
const WRITES_MAX: Duration = Duration::from_secs(300);

/// A lab with a database. Dropped, it is down.
pub(crate) struct Lab {
    dir: PathBuf,
}

impl Lab {
    pub(crate) fn up(name: &str) -> Lab {
        let dir = std::env::temp_dir().join(format!("outlast-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let lab = Lab { dir };
        lab.write_file("lab.toml", "");
        lab.good(&["up", "lab.toml", "--detach"]);
        lab
    }

    /// Writes a topology file with these lines more for the database; every machine sees it.
    pub(crate) fn write_file(&self, name: &str, lines: &str) -> String {
        let path = self.dir.join(name);
        fs::write(&path, FILE.to_owned() + &programs() + lines).unwrap();
        path.display().to_string()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outlast"));
        command.arg("lab").args(words).current_dir(&self.dir).env("XDG_STATE_HOME", &self.dir);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn exec(&self, node: &str, words: &[&str]) -> Output {
        self.run(&[&["exec", node, "--"], words].concat())
    }

    pub(crate) fn says(&self, node: &str) -> Option<Value> {
        let output = self.exec(node, &["outlast", "status", "--format", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        Some(status["postgres"]["orders"].clone())
    }

    /// The primary that serves, as the clients' machine knows it.
    pub(crate) fn primary(&self) -> Option<&'static str> {
        let says = self.says("d")?;
        let open = says["open"] == true;
        MEMBERS.into_iter().find(|node| open && says["primary"] == **node)
    }

    pub(crate) fn is_whole(&self) -> bool {
        let Some(primary) = self.primary() else { return false };
        let mut others = MEMBERS.into_iter().filter(|node| *node != primary);
        others.all(|node| {
            let Some(says) = self.says(node) else { return false };
            let member = &says["members"][node];
            member["state"] == "standby" && member["follows"] == *primary && member["sync"] == true
        })
    }

    pub(crate) fn until(&self, limit: Duration, what: &str, holds: impl Fn() -> bool) {
        if wait::look(limit, || holds().then_some(())).is_none() {
            let logs = MEMBERS.map(|node| self.good(&["logs", node]));
            let tails = logs.each_ref().map(|log| &log[log.len().saturating_sub(6000)..]);
            panic!("{what}: not within {limit:?}\n{:?}\n{}", self.says("d"), tails.join("\n---\n"));
        }
    }

    pub(crate) fn sql(&self, address: &str, port: &str, sql: &str) -> String {
        let program = crate::cluster::bin_dir().join("psql");
        let to = ["-h", address, "-p", port, "-U", "postgres", "-Atc", sql];
        let output = self.exec("d", &[&[program.to_str().unwrap()], &to[..]].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Has a machine write to a port until it is enough.
    fn begin_writing(&self, node: &str, port: &str, first: u64) -> Child {
        let program = std::env::current_exe().unwrap();
        let (port, first) = (format!("{PORT}={port}"), format!("{FIRST}={first}"));
        let test = ["--exact", "--nocapture", "isolation::a_machine_writes_until_it_is_enough"];
        let words =
            [&["exec", node, "--", "env", &port, &first, program.to_str().unwrap()], &test[..]];
        self.command(&words.concat()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.run(&["down", "--name", "three"]);
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// What a machine has written.
struct Written {
    account: Account,
    /// When each row was acknowledged.
    at: Vec<Duration>,
}

impl Written {
    fn read(writes: Child) -> Written {
        let output = writes.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let line = said.lines().find_map(|line| line.split_once("WRITTEN ").map(|(_, json)| json));
        let said: Value = serde_json::from_str(line.unwrap_or_else(|| panic!("{said}"))).unwrap();
        let numbers =
            |name: &str| -> Vec<u64> { serde_json::from_value(said[name].clone()).unwrap() };
        let set = |name: &str| -> BTreeSet<u64> { numbers(name).into_iter().collect() };
        let account = Account { tried: set("tried"), acknowledged: set("acknowledged") };
        Written { account, at: numbers("at").into_iter().map(Duration::from_millis).collect() }
    }

    /// The longest time without an acknowledgement in this span.
    fn blackout(&self, from: Duration, to: Duration) -> Duration {
        let within = self.at.iter().copied().filter(|at| (from..=to).contains(at));
        let mut last = from;
        let mut longest = Duration::ZERO;
        for at in within.chain([to]) {
            longest = longest.max(at.saturating_sub(last));
            last = at;
        }
        longest
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// What [`Lab::begin_writing`] runs inside a machine; elsewhere it does nothing.
#[test]
fn a_machine_writes_until_it_is_enough() {
    let (Ok(port), Ok(first)) = (std::env::var(PORT), std::env::var(FIRST)) else { return };
    let writer = Writer::start_at(first.parse().unwrap(), vec![port.parse().unwrap()]);
    wait::look(WRITES_MAX, || Path::new(ENOUGH).exists().then_some(()));
    let at: Vec<u128> = writer.ages().into_iter().map(|age| (now() - age).as_millis()).collect();
    let account = writer.end();
    let written = json!({ "tried": account.tried, "acknowledged": account.acknowledged, "at": at });
    println!("WRITTEN {written}");
}

#[test]
fn an_isolated_primary_is_replaced_and_acknowledges_nothing_that_is_lost() {
    if !are_real() {
        return;
    }
    if !geteuid().is_root() {
        println!("NOT RUN: PostgreSQL in the lab needs root");
        return;
    }
    let lab = Lab::up("cut");
    lab.until(BEGIN, "the database serves with all members", || lab.is_whole());
    lab.sql("10.0.0.4", "6432", TABLE);
    let through_port = lab.begin_writing("d", "10.0.0.4:6432", 1_000);
    // Clients that know nothing of ports: each writes to the server on its own machine, primary or not.
    let direct: Vec<Child> = [("a", 1), ("b", 2), ("c", 3)]
        .map(|(node, host)| {
            lab.begin_writing(node, &format!("10.0.0.{host}:5432"), 1_000_000 * host)
        })
        .into();
    let mut spans = Vec::new();
    for ways in ["both ways", "what it sends", "what it hears"] {
        let old = lab.primary().unwrap();
        let others: Vec<&str> = ["a", "b", "c", "d"].into_iter().filter(|n| *n != old).collect();
        let others = others.join(",");
        let from = now();
        match ways {
            "both ways" => lab.good(&["cut", old, "--for", "5m"]),
            "what it sends" => lab.good(&["cut", old, &others, "--one-way", "--for", "5m"]),
            _ => lab.good(&["cut", &others, old, "--one-way", "--for", "5m"]),
        };
        lab.until(TAKEOVER, &format!("another member serves, cut {ways}"), || {
            lab.primary().is_some_and(|primary| primary != old)
        });
        println!("cut {ways}: {old} replaced after {:.1} s", (now() - from).as_secs_f64());
        lab.good(&["heal"]);
        lab.until(REJOIN, &format!("{old} is a standby again, cut {ways}"), || lab.is_whole());
        spans.push((ways, from, now()));
    }
    for node in ["a", "b", "c", "d"] {
        assert!(lab.exec(node, &["touch", ENOUGH]).status.success());
    }
    let through_port = Written::read(through_port);
    let direct: Vec<Written> = direct.into_iter().map(Written::read).collect();
    let host = MEMBERS.iter().position(|node| Some(*node) == lab.primary()).unwrap() + 1;
    let rows = lab.sql(&format!("10.0.0.{host}"), "5432", "select id from ledger");
    let rows: BTreeSet<u64> = rows.lines().map(|row| row.parse().unwrap()).collect();
    let all = [&through_port].into_iter().chain(&direct);
    let mut sum = Account { tried: BTreeSet::new(), acknowledged: BTreeSet::new() };
    for written in all {
        sum.tried.extend(&written.account.tried);
        sum.acknowledged.extend(&written.account.acknowledged);
    }
    sum.check(&rows);
    println!("{} rows acknowledged, none lost", sum.acknowledged.len());
    for (ways, from, to) in spans {
        let blackout = through_port.blackout(from, to);
        println!("MEASURED isolated, {ways}: blackout {:.2} s", blackout.as_secs_f64());
        assert!(blackout <= BLACKOUT_MAX, "{ways}: {blackout:?}");
    }
    lab.until(SOON, "all count", || lab.is_whole());
}
