//! Real servers: PostgreSQL in directories of their own, ended with the test.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};

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

/// A cluster that was never started, to be copied.
static TEMPLATE: Mutex<Weak<Directory>> = Mutex::new(Weak::new());

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

fn template() -> Arc<Directory> {
    let mut held = TEMPLATE.lock().unwrap();
    if let Some(template) = held.upgrade() {
        return template;
    }
    let template = directory();
    let made = command("initdb")
        .args([
            "--auth=trust",
            "--no-sync",
            "--username=postgres",
            "--encoding=UTF8",
            "--no-locale",
            "-D",
        ])
        .arg(template.0.join("data"))
        .status();
    assert!(made.unwrap().success(), "initdb");
    // `ada` has to know her password.
    let rules = "host all ada 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nlocal all all trust\n";
    std::fs::write(template.0.join("data/pg_hba.conf"), rules).unwrap();
    let template = Arc::new(template);
    *held = Arc::downgrade(&template);
    template
}

/// A running server, called by its `cluster_name`.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    name: &'static str,
    home: Directory,
    process: Child,
    _template: Arc<Directory>,
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
        let template = template();
        let home = directory();
        let data = home.0.join("data");
        let copied = Command::new("cp").arg("-a").arg(template.0.join("data")).arg(&data).status();
        assert!(copied.unwrap().success(), "cp");
        prepare(&data);
        for file in std::fs::read_dir(&data).unwrap() {
            own(&file.unwrap().path());
        }
        let process = Server::run(name, address, &data);
        let server = Server { address, name, home, process, _template: template };
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
