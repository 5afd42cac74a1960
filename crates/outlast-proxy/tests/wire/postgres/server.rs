//! Real servers: PostgreSQL in directories of their own, ended with the test.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::client::Client;
use crate::harness::{listen, until};

/// Where Debian keeps its versions.
const LIBRARY: &str = "/usr/lib/postgresql";

/// A directory that goes with whoever holds it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Counted up when clusters are made in another way.
const TEMPLATE_VERSION: u32 = 1;

static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// The programs of the newest version; a test that cannot find them must not pass.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir(LIBRARY).expect("PostgreSQL is installed");
    let newest =
        versions.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()).max();
    Path::new(LIBRARY).join(newest.expect("a version of PostgreSQL").to_string()).join("bin")
}

/// A program run by a user that PostgreSQL accepts: it refuses root.
fn command(program: &str) -> Command {
    let mut command = Command::new(programs().join(program));
    if let Some((uid, gid)) = owner() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The user and group `postgres`, if we are root.
fn owner() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("a user postgres");
    let mut ids = line.split(':').skip(2).map(|id| id.parse().unwrap());
    Some((ids.next().unwrap(), ids.next().unwrap()))
}

fn directory() -> Directory {
    let number = NUMBER.fetch_add(1, SeqCst);
    let path =
        std::env::temp_dir().join(format!("outlast-postgres-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    own(&path);
    Directory(path)
}

fn own(path: &Path) {
    if let Some((uid, gid)) = owner() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// A cluster that was never started, to be copied; kept for the next run, because making one takes seconds.
fn template() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let version = programs().parent().and_then(Path::file_name).unwrap().display().to_string();
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("postgres-{version}-{TEMPLATE_VERSION}"));
        if !kept.exists() {
            make_template(&kept);
        }
        kept
    })
}

fn make_template(kept: &Path) {
    let home = directory();
    let data = home.0.join("data");
    let made = command("initdb")
        .args([
            "--auth=trust",
            "--no-sync",
            "--username=postgres",
            "--encoding=UTF8",
            "--no-locale",
        ])
        .arg("-D")
        .arg(&data)
        .status();
    assert!(made.unwrap().success(), "initdb");
    // `ada` has to know her password.
    let rules = "host all ada 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
    std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
    // Another process may have made one meanwhile: whichever comes first is used.
    let own = kept.with_extension(std::process::id().to_string());
    copy(&data, &own);
    if std::fs::rename(&own, kept).is_err() {
        std::fs::remove_dir_all(&own).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success(), "cp");
}

/// A running server, called by its `cluster_name`.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    name: &'static str,
    home: Directory,
    process: Child,
}

impl Server {
    /// A primary.
    pub(crate) fn start(name: &'static str) -> Server {
        Server::with(name, free(), |_| {})
    }

    /// One that replays nothing, and refuses writes as every standby does.
    pub(crate) fn standby(name: &'static str) -> Server {
        Server::with(name, free(), |data| std::fs::write(data.join("standby.signal"), "").unwrap())
    }

    pub(crate) fn with(
        name: &'static str,
        address: SocketAddr,
        prepare: impl FnOnce(&Path),
    ) -> Server {
        let home = directory();
        let data = home.0.join("data");
        copy(template(), &data);
        prepare(&data);
        for file in std::fs::read_dir(&data).unwrap() {
            own(&file.unwrap().path());
        }
        let process = Server::run(name, address, &data);
        let server = Server { address, name, home, process };
        until("PostgreSQL runs", || Client::try_begin(address, &[("user", "postgres")]).is_ok());
        server
    }

    fn run(name: &str, address: SocketAddr, data: &Path) -> Child {
        let settings = [
            format!("port={}", address.port()),
            format!("cluster_name={name}"),
            "listen_addresses=127.0.0.1".to_owned(),
            "unix_socket_directories=".to_owned(),
            "fsync=off".to_owned(),
            "shared_buffers=1MB".to_owned(),
            "autovacuum=off".to_owned(),
            "logging_collector=off".to_owned(),
        ];
        let mut command = command("postgres");
        command.arg("-D").arg(data);
        for setting in &settings {
            command.arg("-c").arg(setting);
        }
        command.spawn().expect("start PostgreSQL")
    }

    /// Ends it as `kill -QUIT` does, without waiting for sessions.
    pub(crate) fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT).ok();
        self.process.wait().unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        self.process = Server::run(self.name, self.address, &self.home.0.join("data"));
    }

    /// A session without the proxy.
    pub(crate) fn client(&self) -> Client {
        Client::begin(self.address, "postgres")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.stop();
        }
    }
}

/// An address that nobody listens on.
pub(crate) fn free() -> SocketAddr {
    listen().local_addr().unwrap()
}
