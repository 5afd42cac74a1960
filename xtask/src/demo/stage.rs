//! Everything that runs during the demo: three backends, and in front of them three agents of one cluster, or HAProxy.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::backend::Behaviour;
use crate::children::{Child, Spec, TempDir, wait_until};
use crate::{http, out, tools};

const NODES: [&str; 3] = ["a", "b", "c"];
const SERVICE_PORTS: [u16; 3] = [8400, 8402, 8404];
const FACE_PORTS: [u16; 3] = [8401, 8403, 8405];
const LINK_PORTS: [u16; 3] = [8431, 8432, 8433];
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

    /// How many of it run.
    fn count(&self) -> usize {
        match self {
            Front::Outlast(_) => NODES.len(),
            Front::Haproxy(_) => 1,
        }
    }

    /// The configuration of one of them, and the words that start it; the file's name comes behind them.
    fn configure(&self, dir: &str, ports: &Ports, at: usize) -> (String, String, Vec<String>) {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match self {
            Front::Outlast(_) => {
                let node = NODES[at];
                let file = format!("outlast-{node}.toml");
                (file, topology(dir, ports, at), words(&["run", "--node", node]))
            }
            Front::Haproxy(_) => {
                ("haproxy.cfg".to_owned(), haproxy_config(ports), words(&["-db", "-f"]))
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

/// One agent, or HAProxy.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) child: Child,
    program: PathBuf,
    words: Vec<String>,
    face: SocketAddr,
}

impl Agent {
    /// What it says of the cluster.
    async fn agreement(&self) -> Option<Value> {
        let (status, text) = http::ask(self.face, "GET /v1/status", "", ASK_LIMIT).await.ok()?;
        let said: Value = serde_json::from_str(&text).ok().filter(|_| status == 200)?;
        Some(said["agreement"].clone())
    }

    /// Whether it takes part and knows who leads.
    async fn takes_part(&self) -> bool {
        let said = self.agreement().await.unwrap_or_default();
        said["phase"] == "running" && !said["leader"].is_null()
    }
}

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) backends: Vec<Backend>,
    pub(super) agents: Vec<Agent>,
    /// Agents that were killed: their data planes, which others have adopted, are in their process groups.
    gone: Vec<Child>,
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
        let mut agents = Vec::new();
        for (at, node) in NODES.iter().enumerate().take(front.count()) {
            let (file, text, mut words) = front.configure(path, &ports, at);
            let file_path = dir.path().join(&file);
            std::fs::write(&file_path, text).with_context(|| format!("write {file}"))?;
            words.push(file_path.to_str().context("the file's name is not text")?.to_owned());
            let name = match front {
                Front::Outlast(_) => (*node).to_owned(),
                Front::Haproxy(_) => front.name().to_owned(),
            };
            let (program, face) = (front.program().clone(), ports.faces[at]);
            let child = start(&name, &program, &words, &dir)?;
            agents.push(Agent { name, child, program, words, face });
        }
        Ok(Stage { backends, agents, gone: Vec::new(), front_name: front.name(), ports, dir })
    }

    /// Where clients ask.
    pub(super) fn services(&self) -> Vec<SocketAddr> {
        self.ports.services[..self.agents.len()].to_vec()
    }

    /// Whether there is a cluster, whose agents can be killed.
    pub(super) fn is_cluster(&self) -> bool {
        self.agents.len() > 1
    }

    /// The agent that all that run take for the leader, within a limit.
    pub(super) async fn leader(&self, except: Option<usize>) -> Result<usize> {
        let mut leads = None;
        let found = wait_until(START_LIMIT, async || {
            let mut named = Vec::new();
            for (_, agent) in self.agents.iter().enumerate().filter(|(at, _)| Some(*at) != except) {
                let said = agent.agreement().await.unwrap_or_default();
                named.push(said["leader"].as_str().map(str::to_owned));
            }
            let first = named.first().cloned().flatten();
            let all = named.iter().all(|name| *name == first);
            leads = first
                .filter(|_| all)
                .and_then(|name| self.agents.iter().position(|a| a.name == name));
            leads.is_some_and(|leader| Some(leader) != except)
        });
        let found = found.await;
        leads.filter(|_| found).context("the agents do not agree on a leader")
    }

    /// SIGKILL for an agent; its data plane goes on.
    pub(super) fn kill_agent(&mut self, at: usize) -> Result<()> {
        self.agents[at].child.kill()
    }

    /// Starts an agent that was killed, and waits until it takes part again.
    pub(super) async fn restart_agent(&mut self, at: usize) -> Result<()> {
        let agent = &mut self.agents[at];
        let fresh = start(&agent.name, &agent.program, &agent.words, &self.dir)?;
        self.gone.push(std::mem::replace(&mut agent.child, fresh));
        let agent = &self.agents[at];
        if !wait_until(START_LIMIT, async || agent.takes_part().await).await {
            bail!("agent {} does not come back{}", agent.name, agent.child.log_tail());
        }
        Ok(())
    }

    pub(super) async fn wait_until_it_answers(&mut self) -> Result<()> {
        for (service, agent) in self.services().into_iter().zip(&mut self.agents) {
            let answers = wait_until(START_LIMIT, async || {
                let ended = !agent.child.is_running();
                ended || matches!(http::ask(service, "GET /", "", ASK_LIMIT).await, Ok((200, _)))
            });
            let answered = answers.await;
            agent.child.check_running()?;
            if !answered {
                let tail = agent.child.log_tail();
                bail!("{} does not answer on {service} within {START_LIMIT:?}{tail}", agent.name);
            }
        }
        for backend in &mut self.backends {
            backend.child.check_running()?;
        }
        if self.is_cluster() {
            self.leader(None).await?;
        }
        Ok(())
    }

    /// An error, with the end of its log, if an agent has ended that was not killed.
    pub(super) fn check_front(&mut self, killed: Option<usize>) -> Result<()> {
        let agents = self.agents.iter_mut().enumerate();
        let mut living = agents.filter(|(at, _)| Some(*at) != killed);
        living.try_for_each(|(_, agent)| agent.child.check_running())
    }

    /// The end of what each agent has written.
    pub(super) fn front_log(&self) -> String {
        let logs = self.agents.iter().map(|agent| match agent.child.log_tail() {
            tail if tail.is_empty() => format!("{} has written no log", agent.name),
            tail => format!("the last that {} wrote{tail}", agent.name),
        });
        logs.collect::<Vec<_>>().join("\n")
    }

    pub(super) fn introduce(&self) {
        for (agent, service) in self.agents.iter().zip(self.services()) {
            let (name, pid) = (&agent.name, agent.child.pid());
            out::line(format!("service at {name:<8} http://{service}/   pid {pid}"));
            if self.front_name == "outlast" {
                out::line(format!(
                    "status page of {name}    http://{}/   <- open it in a browser",
                    agent.face
                ));
            }
        }
        for backend in &self.backends {
            let (name, work, pid) = (&backend.name, backend.work, backend.child.pid());
            out::line(format!("backend {name}          http://{work}/   pid {pid}"));
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
        let mut clean = true;
        for agent in self.agents {
            clean &= agent.child.stop().await;
        }
        // Whatever is left of those that were killed ends with their groups.
        drop(self.gone);
        for backend in self.backends {
            backend.child.stop().await;
        }
        clean
    }
}

#[derive(Debug)]
struct Ports {
    services: Vec<SocketAddr>,
    faces: Vec<SocketAddr>,
    links: Vec<SocketAddr>,
    /// For work and for control.
    backends: Vec<(SocketAddr, SocketAddr)>,
}

impl Ports {
    fn choose() -> Result<Ports> {
        let pairs = BACKEND_PORTS.iter().map(|&(work, control)| {
            Ok((free_port(work, "a backend")?, free_port(control, "a backend's control")?))
        });
        let backends = pairs.collect::<Result<_>>()?;
        let some = |ports: [u16; 3], purpose: &str| -> Result<Vec<SocketAddr>> {
            ports.iter().map(|&port| free_port(port, purpose)).collect()
        };
        Ok(Ports {
            services: some(SERVICE_PORTS, "the service")?,
            faces: some(FACE_PORTS, "the status page")?,
            links: some(LINK_PORTS, "an agent's link")?,
            backends,
        })
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

fn start(name: &str, program: &Path, words: &[String], dir: &TempDir) -> Result<Child> {
    let dir = dir.path();
    Child::start(&Spec { name, program, args: words, dir, core: None, has_children: true })
}

/// The topology of the agents; what differs between them is where each listens on this one machine.
fn topology(dir: &str, ports: &Ports, at: usize) -> String {
    // Each node has an address of its own, as on machines of their own.
    let nodes = NODES.iter().zip(&ports.links).zip(1..).map(|((node, link), number)| {
        format!("[node.{node}]\naddress = \"127.0.0.{number}\"\nport = {}\n", link.port())
    });
    let nodes: String = nodes.collect();
    let urls: Vec<_> =
        ports.backends.iter().map(|(work, _)| format!("\"http://{work}\"")).collect();
    format!(
        r#"[cluster]
name = "demo"
data_dir = "{dir}/{node}"
face = "{face}"

{nodes}
[service.web]
listen = "{service}"
backends = [{urls}]
probe = {{ http = "/health", every = "500ms", timeout = "300ms", fall = 2, rise = 2 }}
retry = {{ attempts = 3, try_timeout = "500ms" }}
"#,
        node = NODES[at],
        face = ports.faces[at],
        service = ports.services[at],
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
        ports.services[0],
        servers.concat()
    )
}
