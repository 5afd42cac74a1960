//! An etcd cluster for one test: real servers on free ports of loopback, each with a directory of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

/// Everything that is waited for comes within this time, on the slowest machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Certificates with which the servers show themselves, and ask for those of their clients.
#[derive(Clone, Debug)]
pub(crate) struct ServerTls {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl ServerTls {
    /// A new CA, and what it has signed for servers and clients on this machine.
    pub(crate) fn make(dir: &Path) -> ServerTls {
        let good = "certificates can be made";
        let ca_key = KeyPair::generate().expect(good);
        let mut ca = CertificateParams::new(Vec::new()).expect(good);
        ca.distinguished_name.push(DnType::CommonName, "CA of etcd");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).expect(good).pem();
        let key = KeyPair::generate().expect(good);
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect(good);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(&key, &Issuer::new(ca, ca_key)).expect(good).pem();
        std::fs::create_dir_all(dir).expect("it is ours");
        let file = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).expect("it is ours");
            path
        };
        ServerTls {
            ca: file("ca.pem", ca_pem),
            cert: file("etcd.pem", cert),
            key: file("etcd.key", key.serialize_pem()),
        }
    }
}

/// Members of one cluster; dropped, they end.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) dir: PathBuf,
    pub(crate) ports: Vec<u16>,
    tls: bool,
    args: Vec<Vec<String>>,
    running: Vec<Option<Child>>,
}

impl Servers {
    pub(crate) fn start(name: &str, members: usize, tls: Option<&ServerTls>) -> Servers {
        let dir = std::env::temp_dir().join(format!("outlast-etcd-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory can be made");
        let ports: Vec<u16> = (0..members).map(|_| free_port()).collect();
        let peers: Vec<u16> = (0..members).map(|_| free_port()).collect();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let all: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(at, port)| format!("m{at}=http://127.0.0.1:{port}"))
            .collect();
        let args = (0..members).map(|at| {
            let client = format!("{scheme}://127.0.0.1:{}", ports[at]);
            let peer = format!("http://127.0.0.1:{}", peers[at]);
            let mut args: Vec<String> = [
                "--name",
                &format!("m{at}"),
                "--data-dir",
                &dir.join(format!("m{at}")).display().to_string(),
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                "--initial-cluster",
                &all.join(","),
                "--initial-cluster-token",
                name,
                "--initial-cluster-state",
                "new",
                "--heartbeat-interval",
                "50",
                "--election-timeout",
                "500",
                "--log-level",
                "error",
                "--logger",
                "zap",
            ]
            .map(str::to_owned)
            .to_vec();
            if let Some(tls) = tls {
                let shown = |path: &PathBuf| path.display().to_string();
                args.extend(["--cert-file".to_owned(), shown(&tls.cert)]);
                args.extend(["--key-file".to_owned(), shown(&tls.key)]);
                args.extend(["--trusted-ca-file".to_owned(), shown(&tls.ca)]);
                args.push("--client-cert-auth".to_owned());
            }
            args
        });
        let args = args.collect();
        let running = (0..members).map(|_| None).collect();
        let mut servers = Servers { dir, ports, tls: tls.is_some(), args, running };
        for at in 0..members {
            servers.run(at);
        }
        servers
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        let scheme = if self.tls { "https" } else { "http" };
        self.ports.iter().map(|port| format!("{scheme}://127.0.0.1:{port}")).collect()
    }

    /// Starts a member that does not run.
    pub(crate) fn run(&mut self, at: usize) {
        let mut options = std::fs::File::options();
        let log = options.create(true).append(true).open(self.dir.join(format!("m{at}.log")));
        let log = log.expect("it is ours");
        let started = Command::new("etcd")
            .args(&self.args[at])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let child = started.unwrap_or_else(|error| {
            panic!("start etcd: {error}; `cargo xtask test` installs it (Debian: etcd-server)")
        });
        self.running[at] = Some(child);
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self, at: usize) {
        let mut child = self.running[at].take().expect("it runs");
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            child.kill().ok();
            child.wait().ok();
        }
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.dir).ok();
        }
    }
}

/// A port that nobody has, below those that the kernel gives to outgoing connections.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test programs that run side by side begin at different places.
    let first = 30_000 - u16::try_from(std::process::id() % 100).expect("below 100") * 20;
    let until = Instant::now() + LIMIT;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
        assert!(Instant::now() < until, "no free port");
    }
}
