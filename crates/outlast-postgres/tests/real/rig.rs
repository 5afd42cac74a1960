//! Nodes for tests: real servers in directories of their own, ended whatever becomes of the test.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outlast_postgres::{Address, Mode, Postgres, Settings, Tls, Upstream};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Set in the environment of a test binary that is to be a keeper.
pub(crate) const AS_KEEPER: &str = "OUTLAST_TEST_KEEPER";
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
const SECRET: &str = r"se:cr\et'";

/// The directories of programs to test with: version 15 always, others where they are asked for and there.
pub(crate) fn versions() -> Vec<PathBuf> {
    let first = std::env::var_os("OUTLAST_PG_BIN")
        .map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from);
    let programs = first.join("postgres");
    assert!(programs.exists(), "PostgreSQL 15 is missing: no {}", programs.display());
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-tools/postgres");
    let more = std::env::var("OUTLAST_PG_VERSIONS").unwrap_or_default();
    let more = more.split([',', ' ']).filter(|version| !version.is_empty() && *version != "15");
    let more = more.map(|version| {
        let named = std::env::var_os(format!("OUTLAST_PG{version}_BIN"));
        named.map_or_else(|| tools.join(version).join("bin"), PathBuf::from)
    });
    std::iter::once(first).chain(more.filter_map(|bin| bin.canonicalize().ok())).collect()
}

/// Whether a server was built with OpenSSL.
pub(crate) fn speaks_tls(bin: &Path) -> bool {
    let program = fs::read(bin.join("postgres")).unwrap();
    program.windows(6).any(|bytes| bytes == b"libssl")
}

/// Runs a test with each version.
pub(crate) async fn each<F: Future<Output = ()>>(test: impl Fn(PathBuf) -> F) {
    for bin in versions() {
        println!("with {}", bin.display());
        test(bin).await;
    }
}

/// Some nodes of one database, and the directory that all of it is in.
#[derive(Debug)]
pub(crate) struct Rig {
    dir: PathBuf,
    pub(crate) nodes: Vec<Node>,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) pg: Postgres,
    bin: PathBuf,
}

impl Rig {
    /// Nodes `n-1`, `n-2`… with nothing on disk.
    pub(crate) fn new(bin: &Path, count: usize) -> Rig {
        Rig::with(bin, count, &[])
    }

    pub(crate) fn with(bin: &Path, count: usize, parameters: &[(&str, &str)]) -> Rig {
        Rig::built(bin, count, parameters, |_, _| None)
    }

    /// Nodes that speak TLS with certificates for their names.
    pub(crate) fn with_tls(bin: &Path, count: usize) -> Rig {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        // By default issuer and subject have one name, which looks as if it had signed itself.
        ca.distinguished_name.push(DnType::CommonName, "CA of a test");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = ca.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(ca, key);
        Rig::built(bin, count, &[], |node, home| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![format!("{node}.node.test")]).unwrap();
            let cert = params.signed_by(&key, &issuer).unwrap().pem();
            let write = |name: &str, text: &str| {
                let path = home.join(name);
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                path
            };
            Some(Tls {
                ca: write("ca", &pem),
                cert: write("cert", &cert),
                key: write("key", &key.serialize_pem()),
                node_suffix: Some(".node.test".to_owned()),
            })
        })
    }

    fn built(
        bin: &Path,
        count: usize,
        parameters: &[(&str, &str)],
        tls: impl Fn(&str, &Path) -> Option<Tls>,
    ) -> Rig {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("outlast-pg-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let held: Vec<TcpListener> =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: BTreeMap<String, Address> = held
            .iter()
            .enumerate()
            .map(|(n, listener)| {
                let port = listener.local_addr().unwrap().port();
                (format!("n-{}", n + 1), Address { host: "127.0.0.1".to_owned(), port })
            })
            .collect();
        drop(held);
        let mut all: BTreeMap<String, String> =
            [("shared_buffers", "16MB"), ("dynamic_shared_memory_type", "mmap")]
                .iter()
                .chain(parameters)
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
        all.insert("max_wal_size".to_owned(), "256MB".to_owned());
        let nodes = addresses.iter().map(|(name, address)| {
            let home = dir.join(name);
            fs::create_dir_all(&home).unwrap();
            let peers = addresses.clone().into_iter().filter(|(peer, _)| peer != name).collect();
            let settings = Settings {
                database: "orders".to_owned(),
                node: name.clone(),
                data_dir: home.join("data"),
                run_dir: home.join("run"),
                bin_dir: bin.to_owned(),
                os_user: is_root().then(|| "postgres".to_owned()),
                listen: Some("127.0.0.1".parse().unwrap()),
                port: address.port,
                peers,
                parameters: all.clone(),
                tls: tls(name, &home),
                replication_secret: SECRET.to_owned(),
                hba: Vec::new(),
                keeper: keeper(),
            };
            Node { pg: Postgres::new(settings).unwrap(), bin: bin.to_owned() }
        });
        Rig { nodes: nodes.collect(), dir: dir.clone() }
    }

    /// The first node as a primary, the others cloned from it and streaming.
    pub(crate) async fn running(bin: &Path, count: usize) -> Rig {
        Rig::new(bin, count).run().await
    }

    /// Has the first node run as a primary, and the others follow it.
    pub(crate) async fn run(self) -> Rig {
        let (count, rig) = (self.nodes.len(), self);
        rig.nodes[0].create().await;
        rig.nodes[0].start_primary().await;
        let names: Vec<String> = (2..=count).map(|n| format!("n-{n}")).collect();
        rig.nodes[0].pg.ensure_slots(&names).await.unwrap();
        for node in &rig.nodes[1..] {
            node.pg.clone_from(&rig.nodes[0].upstream(), &mut |_| {}).await.unwrap();
            node.start_standby(&rig.nodes[0]).await;
        }
        for name in &names {
            rig.nodes[0].until_streams(name).await;
        }
        rig
    }
}

/// This very program, told to be a keeper; the run directory is its last argument.
fn keeper() -> Vec<OsString> {
    let this = std::env::current_exe().unwrap();
    let mut words: Vec<OsString> = vec!["env".into(), format!("{AS_KEEPER}=1").into(), this.into()];
    words.extend(["--exact", "keeper_process", "--nocapture"].map(OsString::from));
    words
}

impl Node {
    pub(crate) fn upstream(&self) -> Upstream {
        let settings = self.pg.settings();
        let address = Address { host: "127.0.0.1".to_owned(), port: settings.port };
        Upstream { node: settings.node.clone(), address, relays: None }
    }

    /// Makes the cluster: the first of a version by the driver, the others as copies of that.
    pub(crate) async fn create(&self) {
        static MADE: tokio::sync::Mutex<BTreeSet<PathBuf>> =
            tokio::sync::Mutex::const_new(BTreeSet::new());
        let mut made = MADE.lock().await;
        let name = self.bin.display().to_string().replace('/', "-");
        let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cluster{name}"));
        let data = &self.pg.settings().data_dir;
        if made.contains(&self.bin) {
            drop(made);
            copy(&template, data);
            return;
        }
        self.pg.create().await.unwrap();
        fs::remove_dir_all(&template).ok();
        copy(data, &template);
        made.insert(self.bin.clone());
    }

    /// Says one line to the keeper; its answer.
    pub(crate) fn ask_keeper(&self, line: &str) -> String {
        let mut stream =
            UnixStream::connect(self.pg.settings().run_dir.join("keeper.sock")).unwrap();
        let mut answer = String::new();
        // One that is not heard to the end is cut off.
        stream.write_all(format!("{line}\n").as_bytes()).ok();
        stream.read_to_string(&mut answer).ok();
        answer
    }

    pub(crate) fn parent_of(pid: u32) -> u32 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
        line.trim().parse().unwrap()
    }

    pub(crate) async fn start_primary(&self) {
        self.pg.start(Mode::Primary, None, &mut |_| {}).await.unwrap();
    }

    pub(crate) async fn start_standby(&self, follow: &Node) {
        let mode = Mode::Standby { follow: Some(follow.upstream()) };
        self.pg.start(mode, None, &mut |_| {}).await.unwrap();
    }

    /// Until this node sends its log to that one.
    pub(crate) async fn until_streams(&self, name: &str) {
        until(&format!("{name} streams"), async || {
            let seen = self.pg.look().await.unwrap();
            seen.standbys.iter().any(|s| s.name == name && s.state == "streaming")
        })
        .await;
    }

    /// Until that node has replayed all that this one has written by now.
    pub(crate) async fn until_caught_up(&self, standby: &Node) {
        let reach = self.pg.look().await.unwrap().reach();
        until("the standby has caught up", async || {
            let seen = standby.pg.look().await.unwrap();
            matches!(seen.role, outlast_postgres::Role::Standby { replayed, .. } if replayed >= Some(reach))
        })
        .await;
    }

    /// Runs statements as the database's own superuser; what they return.
    pub(crate) fn sql(&self, sql: &str) -> Result<String, String> {
        let output = self.client("psql").args(["-AtqX", "-c", sql]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Starts statements that may not end.
    pub(crate) fn sql_in_background(&self, sql: &str) -> Kept {
        let mut command = self.client("psql");
        Kept(command.args(["-AtqX", "-c", sql]).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Begins to insert rows into table `t` as fast as it goes.
    pub(crate) fn load(&self) -> Kept {
        self.sql("CREATE TABLE IF NOT EXISTS t (n bigserial)").unwrap();
        let script = self.pg.settings().run_dir.join("load.sql");
        fs::write(&script, "INSERT INTO t DEFAULT VALUES;\n").unwrap();
        let mut command = self.client("pgbench");
        command.args(["-n", "-c", "3", "-T", "60", "-f"]).arg(script).stdout(Stdio::null());
        Kept(command.spawn().unwrap())
    }

    fn client(&self, program: &str) -> Command {
        let settings = self.pg.settings();
        let mut command = Command::new(self.bin.join(program));
        if is_root() {
            let (uid, gid) = account("postgres");
            command.uid(uid).gid(gid);
        }
        command.current_dir("/").stdin(Stdio::null()).stderr(Stdio::piped());
        command
            .env("PGHOST", settings.socket_dir())
            .env("PGPORT", settings.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .env("PGCONNECT_TIMEOUT", "5");
        command
    }

    /// The processes that work in the data directory, found without the crate's own means.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let here = |pid: &u32| {
            let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
            cwd.is_ok_and(|cwd| cwd == self.pg.settings().data_dir)
        };
        let pids = fs::read_dir("/proc").unwrap();
        let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(here).collect()
    }

    /// Those of them that are not dead and waiting to be collected: a frozen keeper collects nobody.
    pub(crate) fn alive(&self) -> Vec<u32> {
        let stat = |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let alive = |pid: &u32| stat(*pid).rsplit(") ").next().is_some_and(|s| !s.starts_with('Z'));
        self.processes().into_iter().filter(alive).collect()
    }

    /// The same node as another life of the agent would have it.
    pub(crate) fn another_life(&self) -> Postgres {
        Postgres::new(self.pg.settings().clone()).unwrap()
    }
}

/// The processes that were started with this in their words.
pub(crate) fn with_words(words: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap();
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let line = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    pids.filter(|pid| String::from_utf8_lossy(&line(*pid)).starts_with(words)).collect()
}

/// Copies a directory with its owners and rights.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

/// A child that is ended with the test.
#[derive(Debug)]
pub(crate) struct Kept(pub(crate) Child);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let nodes: Vec<Postgres> = self.nodes.iter().map(|node| node.pg.clone()).collect();
        let end = move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for pg in nodes {
                    pg.adopt().await.ok();
                    pg.kill().await.ok();
                }
            });
        };
        std::thread::spawn(end).join().ok();
        if std::thread::panicking() {
            for node in &self.nodes {
                let output = fs::read_to_string(node.pg.settings().output()).unwrap_or_default();
                let lines: Vec<&str> = output.lines().collect();
                let tail = &lines[lines.len().saturating_sub(40)..];
                println!("{}:\n{}", node.pg.settings().node, tail.join("\n"));
            }
        }
        fs::remove_dir_all(&self.dir).ok();
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

fn account(name: &str) -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
    let fields: Vec<&str> = line.split(':').collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, is: impl AsyncFn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is().await {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Says how long something took; for the figures in a report.
pub(crate) async fn timed<T>(what: &str, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.await;
    println!("TIMED {what}: {} ms", began.elapsed().as_millis());
    done
}
