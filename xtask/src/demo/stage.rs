//! Everything that runs during the demo: three backends, and the proxy in front of them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::backend::Behaviour;
use crate::children::{Child, Spec, TempDir, wait_until};
use crate::{http, out, tools};

const SERVICE_PORT: u16 = 8400;
const FACE_PORT: u16 = 8401;
const BACKEND_PORTS: [(u16, u16); 3] = [(8411, 8421), (8412, 8422), (8413, 8423)];
const START_LIMIT: Duration = Duration::from_secs(20);
pub(super) const ASK_LIMIT: Duration = Duration::from_secs(5);

/// The program between clients and backends.
#[derive(Debug)]
pub(super) enum Front {
    Outlast(PathBuf),
    Haproxy(PathBuf),
}

impl Front {
    pub(super) fn haproxy() -> Result<Front> {
        tools::install_some(&["haproxy"])?;
        Ok(Front::Haproxy(tools::which("haproxy").context("haproxy is installed but not found")?))
    }

    fn name(&self) -> &'static str {
        match self {
            Front::Outlast(_) => "outlast",
            Front::Haproxy(_) => "haproxy",
        }
    }

    fn program(&self) -> &PathBuf {
        match self {
            Front::Outlast(program) | Front::Haproxy(program) => program,
        }
    }

    /// Its configuration file's name and text, and the words that start it.
    fn configure(&self, dir: &str, ports: &Ports) -> (&'static str, String, Vec<String>) {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match self {
            Front::Outlast(_) => {
                ("outlast.toml", topology(dir, ports), words(&["run", "outlast.toml"]))
            }
            Front::Haproxy(_) => {
                ("haproxy.cfg", haproxy_config(ports), words(&["-db", "-f", "haproxy.cfg"]))
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) work: SocketAddr,
    control: SocketAddr,
    pub(super) child: Child,
}

impl Backend {
    fn start(name: &str, work: SocketAddr, control: SocketAddr, dir: &TempDir) -> Result<Backend> {
        let words = ["backend", "--name", name, "--port"].map(str::to_owned);
        let ports = [work.port().to_string(), "--control".to_owned(), control.port().to_string()];
        let child = Child::start(&Spec {
            name,
            program: &std::env::current_exe().context("find ourselves")?,
            args: &[&words[..], &ports[..]].concat(),
            dir: dir.path(),
            core: None,
            has_children: false,
        })?;
        Ok(Backend { name: name.to_owned(), work, control, child })
    }

    /// Changes how it answers from now on.
    pub(super) async fn behave(&self, behaviour: Behaviour) -> Result<()> {
        let (status, text) =
            http::ask(self.control, "POST /behave", behaviour.word(), ASK_LIMIT).await?;
        if status != 200 {
            bail!("{} does not want to be {}: {text}", self.name, behaviour.word());
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) backends: Vec<Backend>,
    front: Child,
    front_name: &'static str,
    ports: Ports,
    dir: TempDir,
}

impl Stage {
    pub(super) fn set(front: &Front) -> Result<Stage> {
        let ports = Ports::choose()?;
        let dir = TempDir::new("demo")?;
        let starts = ports.backends.iter().enumerate().map(|(at, &(work, control))| {
            Backend::start(&format!("b{}", at + 1), work, control, &dir)
        });
        let backends = starts.collect::<Result<Vec<_>>>()?;
        let path = dir.path().to_str().context("the temporary directory's name is not text")?;
        let (file, text, mut words) = front.configure(path, &ports);
        let file_path = dir.path().join(file);
        std::fs::write(&file_path, text).with_context(|| format!("write {file}"))?;
        if let Some(last) = words.last_mut() {
            *last = file_path.to_str().context("the file's name is not text")?.to_owned();
        }
        let child = Child::start(&Spec {
            name: front.name(),
            program: front.program(),
            args: &words,
            dir: dir.path(),
            core: None,
            has_children: true,
        })?;
        Ok(Stage { backends, front: child, front_name: front.name(), ports, dir })
    }

    pub(super) fn service(&self) -> SocketAddr {
        self.ports.service
    }

    pub(super) async fn wait_until_it_answers(&mut self) -> Result<()> {
        let service = self.ports.service;
        let answers = wait_until(START_LIMIT, async || {
            let ended = !self.front.is_running();
            ended || matches!(http::ask(service, "GET /", "", ASK_LIMIT).await, Ok((200, _)))
        });
        let answered = answers.await;
        self.check_front()?;
        for backend in &mut self.backends {
            backend.child.check_running()?;
        }
        if !answered {
            bail!(
                "{} does not answer on {service} within {START_LIMIT:?}{}",
                self.front_name,
                self.front.log_tail()
            );
        }
        Ok(())
    }

    /// An error, with the end of its log, if the proxy has ended.
    pub(super) fn check_front(&mut self) -> Result<()> {
        self.front.check_running()
    }

    /// The end of what the proxy has written.
    pub(super) fn front_log(&self) -> String {
        match self.front.log_tail() {
            tail if tail.is_empty() => format!("{} has written no log", self.front_name),
            tail => format!("the last that {} wrote{tail}", self.front_name),
        }
    }

    pub(super) fn introduce(&self) {
        out::line(format!("service       http://{}/", self.ports.service));
        if self.front_name == "outlast" {
            out::line(format!(
                "status page   http://{}/   <- open this in a browser",
                self.ports.face
            ));
        }
        for backend in &self.backends {
            let (name, work, pid) = (&backend.name, backend.work, backend.child.pid());
            out::line(format!("backend {name}    http://{work}/   pid {pid}"));
        }
    }

    /// Starts a backend that was killed, on its old ports.
    pub(super) async fn restart(&mut self, at: usize) -> Result<()> {
        let old = &self.backends[at];
        let fresh = Backend::start(&old.name, old.work, old.control, &self.dir)?;
        let (name, work) = (fresh.name.clone(), fresh.work);
        self.backends[at] = fresh;
        let listens = wait_until(START_LIMIT, async || {
            http::ask(work, "GET /health", "", ASK_LIMIT).await.is_ok()
        });
        if !listens.await {
            bail!("{name} does not come back{}", self.backends[at].child.log_tail());
        }
        Ok(())
    }

    /// Ends everything; false if the proxy did not end as it should.
    pub(super) async fn strike(self) -> bool {
        let clean = self.front.stop().await;
        for backend in self.backends {
            backend.child.stop().await;
        }
        clean
    }
}

#[derive(Debug)]
struct Ports {
    service: SocketAddr,
    face: SocketAddr,
    /// For work and for control.
    backends: Vec<(SocketAddr, SocketAddr)>,
}

impl Ports {
    fn choose() -> Result<Ports> {
        let pairs = BACKEND_PORTS.iter().map(|&(work, control)| {
            Ok((free_port(work, "a backend")?, free_port(control, "a backend's control")?))
        });
        let backends = pairs.collect::<Result<_>>()?;
        let service = free_port(SERVICE_PORT, "the service")?;
        Ok(Ports { service, face: free_port(FACE_PORT, "the status page")?, backends })
    }
}

/// The wanted port, or another one if somebody has it.
fn free_port(wanted: u16, purpose: &str) -> Result<SocketAddr> {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if TcpListener::bind(loopback(wanted)).is_ok() {
        return Ok(loopback(wanted));
    }
    let other = TcpListener::bind(loopback(0)).and_then(|listener| listener.local_addr());
    let other = other.with_context(|| format!("find a port for {purpose}"))?;
    out::line(format!("port {wanted} is taken; {purpose} gets {} instead", other.port()));
    Ok(other)
}

fn topology(dir: &str, ports: &Ports) -> String {
    let urls: Vec<_> =
        ports.backends.iter().map(|(work, _)| format!("\"http://{work}\"")).collect();
    format!(
        r#"[cluster]
name = "demo"
data_dir = "{dir}/data"
face = "{face}"

[service.web]
listen = "{service}"
backends = [{urls}]
probe = {{ http = "/health", every = "500ms", timeout = "300ms", fall = 2, rise = 2 }}
retry = {{ attempts = 3, try_timeout = "500ms" }}
"#,
        face = ports.face,
        service = ports.service,
        urls = urls.join(", "),
    )
}

/// As near to the topology above as HAProxy comes.
fn haproxy_config(ports: &Ports) -> String {
    let servers: Vec<_> = ports
        .backends
        .iter()
        .enumerate()
        .map(|(at, (work, _))| {
            format!("    server b{} {work} check inter 500ms fall 2 rise 2\n", at + 1)
        })
        .collect();
    format!(
        "defaults
    mode http
    option redispatch 1
    option forwardfor
    retries 2
    retry-on all-retryable-errors
    timeout connect 500ms
    timeout server 500ms
    timeout client 60s
    timeout check 300ms
frontend web
    bind {}
    default_backend web
backend web
    balance roundrobin
    option httpchk GET /health
{}",
        ports.service,
        servers.concat()
    )
}
