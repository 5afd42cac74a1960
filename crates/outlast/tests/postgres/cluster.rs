//! Nodes of one cluster on one machine: each has an address, an agent, and a member of the database `orders`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::ledger::{Account, TABLE, Writer};
use crate::processes;
use crate::sql::{self, Failure, Row};
use crate::wait::{BEGIN, REJOIN, SOON, TAKEOVER, look};

/// Every node has an address of its own: nobody else's ports are in the way.
const AGENT: u16 = 7911;
const FACE: u16 = 7900;
const SERVER: u16 = 7432;
const WRITE: u16 = 7632;
const READ: u16 = 7633;
const NAMES: u16 = 7953;

/// A host that is no node.
const NO_NODE: u8 = 100;

/// How long a question of a test may take.
const ANSWER: Duration = Duration::from_secs(10);

/// What differs between clusters.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: &'static [&'static str],
    /// The nodes that have PostgreSQL.
    pub(crate) members: &'static [&'static str],
    /// More lines of `[postgres.orders]`, and sections after it; NAMES stands for [`Cluster::names`].
    pub(crate) lines: &'static str,
}

pub(crate) const THREE: Plan =
    Plan { nodes: &["a", "b", "c"], members: &["a", "b", "c"], lines: "" };

/// Dropped, it ends everything that it has started.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
    pub(crate) plan: Plan,
    /// Where PostgreSQL's programs are.
    pub(crate) bin: PathBuf,
    number: u8,
    agents: Vec<Option<Child>>,
}

pub(crate) fn bin_dir() -> PathBuf {
    let dir = std::env::var_os("OUTLAST_PG_BIN");
    dir.map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from)
}

/// Where PostgreSQL's programs are, as lines of the topology.
pub(crate) fn programs() -> String {
    programs_in(&bin_dir())
}

fn programs_in(dir: &Path) -> String {
    let said = Command::new(dir.join("postgres")).arg("--version").output();
    let said = said.unwrap_or_else(|error| panic!("no PostgreSQL in {}: {error}", dir.display()));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.split_whitespace().find_map(|word| word.split('.').next()?.parse().ok());
    let version: u16 = version.unwrap_or_else(|| panic!("which version is {said}?"));
    format!("version = {version}\nbin_dir = \"{}\"\n", dir.display())
}

impl Cluster {
    /// Starts the agents of all nodes.
    pub(crate) fn start(plan: Plan) -> Cluster {
        Cluster::start_with(plan, bin_dir())
    }

    fn start_with(plan: Plan, bin: PathBuf) -> Cluster {
        let mut cluster = Cluster::with(plan, bin);
        for node in cluster.plan.nodes {
            cluster.start_agent(node);
        }
        cluster
    }

    /// The same, once the database serves, with all members and a table.
    pub(crate) fn serving(plan: Plan) -> Cluster {
        Cluster::serving_with(plan, bin_dir())
    }

    /// The same with other programs.
    pub(crate) fn serving_with(plan: Plan, bin: PathBuf) -> Cluster {
        let cluster = Cluster::start_with(plan, bin);
        cluster.until(BEGIN, "the database serves with all members", Cluster::is_whole);
        cluster.write(TABLE).unwrap();
        cluster
    }

    /// Writes the files, and starts nothing.
    pub(crate) fn new(plan: Plan) -> Cluster {
        Cluster::with(plan, bin_dir())
    }

    fn with(plan: Plan, bin: PathBuf) -> Cluster {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = format!("outlast-postgres-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        fs::create_dir_all(&dir).unwrap();
        // PostgreSQL runs under another account.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let agents = plan.nodes.iter().map(|_| None).collect();
        let cluster = Cluster { dir, plan, bin, number, agents };
        for node in cluster.plan.nodes {
            cluster.write_file(node, cluster.plan.lines);
        }
        cluster
    }

    /// Writes the topology file of a node, with these lines for the database.
    pub(crate) fn write_file(&self, node: &str, lines: &str) {
        let at = |port| self.at(node, port);
        let mut text = format!(
            "[cluster]\nname = \"shop\"\ndata_dir = \"{}\"\nport = {AGENT}\nface = \"{}\"\n",
            self.home(node).display(),
            at(FACE)
        );
        for node in self.plan.nodes {
            text += &format!("[node.{node}]\naddress = \"{}\"\n", self.at(node, 0).ip());
        }
        text += &format!(
            "[postgres.orders]\nnodes = {:?}\n{}data_dir = \"{}\"\nport = {SERVER}\nlisten = {{ write = \"{}\", read = \"{}\" }}\nhba = [\"host all all 127.0.0.0/8 trust\"]\n{lines}\n",
            self.plan.members,
            programs_in(&self.bin),
            self.data(node).display(),
            at(WRITE),
            at(READ),
            lines = lines.replace("NAMES", &self.names().to_string())
        );
        fs::write(self.file(node), text).unwrap();
    }

    pub(crate) fn file(&self, node: &str) -> PathBuf {
        self.dir.join(format!("{node}.toml"))
    }

    /// The agent's own directory.
    pub(crate) fn home(&self, node: &str) -> PathBuf {
        self.dir.join(node)
    }

    /// PostgreSQL's directory.
    pub(crate) fn data(&self, node: &str) -> PathBuf {
        self.dir.join(format!("{node}-orders"))
    }

    fn index(&self, node: &str) -> usize {
        self.plan.nodes.iter().position(|name| *name == node).expect("one of ours")
    }

    fn at(&self, node: &str, port: u16) -> SocketAddr {
        self.at_host(u8::try_from(self.index(node) + 1).unwrap(), port)
    }

    fn at_host(&self, host: u8, port: u16) -> SocketAddr {
        // Test programs that run side by side have different numbers here.
        let program = u8::try_from(std::process::id() % 120).unwrap() + 80;
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, program, self.number, host)), port)
    }

    pub(crate) fn write_port(&self, node: &str) -> SocketAddr {
        self.at(node, WRITE)
    }

    pub(crate) fn read_port(&self, node: &str) -> SocketAddr {
        self.at(node, READ)
    }

    /// Past the ports, to PostgreSQL itself.
    pub(crate) fn server(&self, node: &str) -> SocketAddr {
        self.at(node, SERVER)
    }

    /// Where one of the name servers listens: all are to, and the others of this machine come too late.
    pub(crate) fn names(&self) -> SocketAddr {
        self.at_host(NO_NODE, NAMES)
    }

    /// What is answered to a name.
    pub(crate) fn name(&self, name: &str) -> String {
        let (at, port) = (format!("@{}", self.names().ip()), NAMES.to_string());
        let mut command = Command::new("dig");
        command.args([&at, "-p", &port, "+short", "+tries=1", "+time=1", name, "A"]);
        let output = command.output().expect("bind9-dnsutils is installed");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(crate) fn write_ports(&self, but: &[&str]) -> Vec<SocketAddr> {
        let nodes = self.plan.nodes.iter().filter(|node| !but.contains(node));
        nodes.map(|node| self.write_port(node)).collect()
    }
}

/// What happens to nodes.
impl Cluster {
    pub(crate) fn start_agent(&mut self, node: &str) {
        let log = self.dir.join(format!("{node}.log"));
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_outlast"))
            .arg("run")
            .arg(self.file(node))
            .args(["--node", node])
            .env("RUST_LOG", "info,outlast=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("cargo has built it");
        let index = self.index(node);
        self.agents[index] = Some(child);
    }

    pub(crate) fn agent(&self, node: &str) -> i32 {
        let agent = self.agents[self.index(node)].as_ref().expect("it runs");
        i32::try_from(agent.id()).expect("the kernel's number fits")
    }

    /// The agent alone: its PostgreSQL, its keeper and its proxy go on.
    pub(crate) fn kill_agent(&mut self, node: &str) {
        let index = self.index(node);
        if let Some(mut agent) = self.agents[index].take() {
            agent.kill().ok();
            agent.wait().ok();
        }
    }

    /// As if somebody had pulled the plug: everything of the node at once.
    pub(crate) fn kill_node(&mut self, node: &str) {
        let mut rest = self.processes(node);
        rest.extend(self.agents[self.index(node)].is_some().then(|| self.agent(node)));
        processes::signal(&rest, Signal::KILL);
        self.kill_agent(node);
        look(SOON, || {
            let rest = self.processes(node);
            processes::signal(&rest, Signal::KILL);
            rest.is_empty().then_some(())
        })
        .expect("what is killed ends");
    }

    /// All of a node but its agent: proxy, keeper, PostgreSQL.
    pub(crate) fn processes(&self, node: &str) -> Vec<i32> {
        let mut all = self.proxy(node);
        all.extend(self.keeper(node));
        all.extend(processes::of_server(&self.data(node)));
        all
    }

    pub(crate) fn proxy(&self, node: &str) -> Vec<i32> {
        processes::with_words(&format!("proxy\0--data-dir\0{}", self.home(node).display()))
    }

    pub(crate) fn keeper(&self, node: &str) -> Vec<i32> {
        let run = self.run_dir(node).join("orders");
        processes::with_words(&format!("postgres-keeper\0{}", run.display()))
    }

    fn run_dir(&self, node: &str) -> PathBuf {
        let own = self.home(node).join("postgres");
        match fs::read_to_string(own.join("run-name")) {
            Ok(name) => Path::new("/run/outlast").join(name.trim()),
            Err(_) => own,
        }
    }

    pub(crate) fn postmaster(&self, node: &str) -> Option<i32> {
        processes::postmaster(&self.data(node))
    }

    /// A verb of `outlast` on a node, under way.
    pub(crate) fn begin_verb(&self, node: &str, words: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_outlast"))
            .args(words)
            .arg("--data-dir")
            .arg(self.home(node))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cargo has built it")
    }

    /// The same to its end: whether it was obeyed, and what it said.
    pub(crate) fn verb(&self, node: &str, words: &[&str]) -> (bool, String) {
        let output = self.begin_verb(node, words).wait_with_output().expect("it is our child");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

/// What nodes say.
impl Cluster {
    /// What a node says of the database, if its agent answers.
    pub(crate) fn says(&self, node: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.home(node).join("admin.sock")).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let request = "GET /v1/status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let status: Value = serde_json::from_str(body).ok()?;
        Some(status["postgres"]["orders"].clone())
    }

    fn running(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.plan.nodes.iter().copied().filter(|node| self.agents[self.index(node)].is_some())
    }

    /// The primary that serves, as all running agents but these say.
    pub(crate) fn primary_but(&self, but: &[&str]) -> Option<&'static str> {
        let mut named = BTreeSet::new();
        for node in self.running().filter(|node| !but.contains(node)) {
            let says = self.says(node)?;
            named.insert(says["open"].as_bool()?.then(|| says["primary"].clone())?.to_string());
        }
        let primary = named.pop_first().filter(|_| named.is_empty())?;
        self.plan.nodes.iter().copied().find(|node| primary == format!("\"{node}\""))
    }

    pub(crate) fn primary(&self) -> Option<&'static str> {
        self.primary_but(&[])
    }

    /// By its own account: what others know of it may be old.
    pub(crate) fn is_standby_of(&self, node: &str, primary: &str) -> bool {
        let Some(says) = self.says(node) else { return false };
        let member = &says["members"][node];
        member["state"] == "standby" && member["follows"] == *primary
    }

    /// It serves, all members are there, and all that are to acknowledge count.
    pub(crate) fn is_whole(&self) -> bool {
        let Some(primary) = self.primary() else { return false };
        let Some(says) = self.says(primary) else { return false };
        let others = self.plan.members.iter().filter(|node| **node != primary);
        let mut others = others.map(|node| (node, &says["members"][node]));
        let settled = says["rule_changes"] == false;
        settled
            && others.all(|(node, member)| {
                self.is_standby_of(node, primary)
                    && self.running().all(|other| self.knows_of(other, node, primary))
                    && (member["sync"] == true
                        || self.plan.lines.contains("async")
                        || self.plan.lines.contains(&format!("{node} = 0")))
            })
    }

    /// Whether a standby and its primary were heard there: whoever leads there goes by that.
    fn knows_of(&self, there: &str, standby: &str, primary: &str) -> bool {
        let Some(says) = self.says(there) else { return false };
        let member = &says["members"][standby];
        member["follows"] == *primary && member["lag_seconds"].is_number()
    }

    pub(crate) fn timeline(&self) -> u64 {
        let primary = self.primary().expect("somebody is primary");
        self.says(primary).unwrap()["timeline"].as_u64().unwrap()
    }

    pub(crate) fn epoch(&self) -> u64 {
        let primary = self.primary().expect("somebody is primary");
        self.says(primary).unwrap()["epoch"].as_u64().unwrap()
    }

    /// Waits until something holds; says what each node said last if it does not.
    pub(crate) fn until(&self, limit: Duration, what: &str, holds: impl Fn(&Cluster) -> bool) {
        self.wait(limit, what, |cluster| holds(cluster).then_some(()));
    }

    pub(crate) fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        mut found: impl FnMut(&Cluster) -> Option<T>,
    ) -> T {
        let began = Instant::now();
        let found = look(limit, || found(self)).unwrap_or_else(|| {
            panic!("{what}: not within {limit:?}\n{}", self.picture());
        });
        println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
        found
    }

    /// Everything that helps to understand a failure.
    fn picture(&self) -> String {
        let mut text = String::new();
        for node in self.plan.members {
            let sessions = "select pid, state, wait_event, left(query, 60) from pg_stat_activity where application_name = 'a test'";
            text += &format!("{node}: {:?}\n", sql::ask(self.server(node), ANSWER, sessions));
            let slots =
                "select slot_name, active, restart_lsn, wal_status from pg_replication_slots";
            text += &format!("  its slots {:?}\n", sql::ask(self.server(node), ANSWER, slots));
        }
        for node in self.plan.nodes {
            let log = fs::read_to_string(self.dir.join(format!("{node}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            text += &format!("--- {node} says {}\n{tail}\n", self.says(node).unwrap_or_default());
        }
        text
    }

    /// Waits until a member other than `old` serves.
    pub(crate) fn successor(&self, old: &str) -> &'static str {
        self.wait(TAKEOVER, "another member serves", |cluster| {
            cluster.primary_but(&[old]).filter(|primary| *primary != old)
        })
    }

    pub(crate) fn rejoins(&self, node: &str) {
        self.until(REJOIN, &format!("{node} is a standby again"), |cluster| {
            let primary = cluster.primary();
            primary.is_some_and(|primary| primary != node && cluster.is_standby_of(node, primary))
        });
    }
}

/// What clients do.
impl Cluster {
    /// Through the write port of the first node whose agent runs.
    pub(crate) fn write(&self, sql: &str) -> Result<Vec<Row>, Failure> {
        let node = self.running().next().expect("an agent runs");
        sql::ask(self.write_port(node), ANSWER, sql)
    }

    pub(crate) fn writer(&self, but: &[&str]) -> Writer {
        let writer = Writer::start(self.write_ports(but));
        self.flows(&writer);
        writer
    }

    /// Rows are acknowledged from now on.
    pub(crate) fn flows(&self, writer: &Writer) {
        let before = writer.acknowledged();
        let flows = look(TAKEOVER, || (before + 20 < writer.acknowledged()).then_some(()));
        assert!(
            flows.is_some(),
            "no row is acknowledged: {:?}\n{}",
            writer.failures(),
            self.picture()
        );
    }

    /// The rows that a server has.
    pub(crate) fn rows(&self, node: &str) -> Result<BTreeSet<u64>, Failure> {
        let rows = sql::ask(self.server(node), ANSWER, "select id from ledger")?;
        let ids = rows.into_iter().filter_map(|row| row.first()?.as_ref()?.parse().ok());
        Ok(ids.collect())
    }

    /// Compares what a writer knows with what the primary has.
    pub(crate) fn audit(&self, writer: Writer) -> Account {
        let account = writer.end();
        let primary = self.wait(SOON, "somebody is primary", Cluster::primary);
        account.check(&self.rows(primary).unwrap());
        println!("{} rows acknowledged, none lost", account.acknowledged.len());
        account
    }
}

/// What lies on disks.
impl Cluster {
    /// Puts a database of its own in the place of a member's data, whose agent is down.
    pub(crate) fn make_foreign(&self, node: &str) {
        let data = self.data(node);
        let owner = fs::metadata(&data).unwrap();
        fs::remove_dir_all(&data).unwrap();
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&data, Some(owner.uid()), Some(owner.gid())).unwrap();
        let made = Command::new(self.bin.join("initdb"))
            .args(["--no-sync", "--username=postgres", "-D"])
            .arg(&data)
            .current_dir(&self.dir)
            .uid(owner.uid())
            .gid(owner.gid())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.plan.nodes {
            let frozen = self.processes(node);
            processes::signal(&frozen, Signal::CONT);
            self.kill_node(node);
            let run = self.run_dir(node);
            // Nobody is left who would take it away.
            if let Ok(group) = fs::read_to_string(run.join("orders/cgroup")) {
                fs::remove_dir(group.trim()).ok();
            }
            if run.starts_with("/run/outlast") {
                fs::remove_dir_all(run).ok();
            }
        }
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.dir).ok();
        }
    }
}
