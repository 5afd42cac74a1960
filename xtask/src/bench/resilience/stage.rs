//! What runs: three backends, an agent with its proxy, and the files that it reads.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions};

use super::journal::Journal;
use crate::children::{Child, Household, Spec, TempDir, wait_until};
use crate::{http, procs};

pub(super) const START_LIMIT: Duration = Duration::from_secs(20);
pub(super) const ASK_LIMIT: Duration = Duration::from_secs(5);
/// A verb of the command line answers within this time.
const VERB_LIMIT: Duration = Duration::from_secs(60);
/// Below the ports that the kernel gives to outgoing connections: nothing takes one while its owner is restarted.
const PORTS: std::ops::Range<u16> = 8500..9500;

/// The two good files between which a reload changes, and a bad one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Plain,
    /// Other timeouts and a second service with a listener of its own.
    Extended,
    Bad,
}

#[derive(Debug)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) url: String,
    work: SocketAddr,
    control: SocketAddr,
    pub(super) child: Child,
}

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) backends: Vec<Backend>,
    pub(super) agent: Child,
    pub(super) journal: Journal,
    pub(super) service: SocketAddr,
    pub(super) second: SocketAddr,
    pub(super) face: SocketAddr,
    pub(super) program: PathBuf,
    file: PathBuf,
    dir: TempDir,
    /// Dropped last: ends whatever is left.
    _household: Household,
}

impl Stage {
    pub(super) fn set(outlast: &Path) -> Result<Stage> {
        let household = Household::found()?;
        let dir = TempDir::new("resilience")?;
        let mut ports = free_ports(9)?.into_iter();
        let mut port = || ports.next().context("too few ports");
        let (service, second, face) = (port()?, port()?, port()?);
        let mut backends = Vec::new();
        for at in 1..=3 {
            backends.push(Backend::start(&format!("b{at}"), port()?, port()?, dir.path())?);
        }
        // A copy, so that it can be replaced.
        let program = dir.path().join("outlast");
        std::fs::copy(outlast, &program).context("copy the binary")?;
        let file = dir.path().join("outlast.toml");
        let journal = Journal::new(dir.path().join("data/journal/journal.jsonl"));
        let text = topology(Version::Plain, dir.path(), service, second, face, &backends);
        std::fs::write(&file, text).context("write the topology file")?;
        let agent = start_agent(&program, &file, dir.path())?;
        Ok(Stage {
            backends,
            agent,
            journal,
            service,
            second,
            face,
            program,
            file,
            dir,
            _household: household,
        })
    }

    pub(super) fn write(&self, version: Version) -> Result<()> {
        let text = topology(
            version,
            self.dir.path(),
            self.service,
            self.second,
            self.face,
            &self.backends,
        );
        std::fs::write(&self.file, text).context("write the topology file")
    }

    pub(super) async fn wait_until_all_serve(&mut self) -> Result<()> {
        for at in 0..self.backends.len() {
            let url = self.backends[at].url.clone();
            let up = self.journal.wait_health(0, &url, "up", START_LIMIT).await;
            self.agent.check_running()?;
            self.backends[at].child.check_running()?;
            up?;
        }
        let service = self.service;
        let answers = wait_until(START_LIMIT, async || {
            ask(service).await.is_ok_and(|(status, _)| status == 200)
        });
        ensure!(answers.await, "nobody answers on {service}{}", self.agent.log_tail());
        Ok(())
    }

    pub(super) fn start_agent(&mut self) -> Result<()> {
        self.agent = start_agent(&self.program, &self.file, self.dir.path())?;
        Ok(())
    }

    /// Waits until `/v1/status` answers over the admin socket, and returns what it says.
    pub(super) async fn status(&mut self) -> Result<String> {
        let socket = self.dir.path().join("data/admin.sock");
        let mut said = None;
        let answered = wait_until(START_LIMIT, async || {
            said = ask_admin(&socket, "/v1/status").await.ok();
            said.is_some()
        });
        let answered = answered.await;
        self.agent.check_running()?;
        ensure!(answered, "the agent does not answer /v1/status{}", self.agent.log_tail());
        said.context("no status")
    }

    /// Runs a verb that speaks to the agent; whether it was obeyed, and what it printed.
    pub(super) async fn verb(&self, verb: &str) -> Result<(bool, String)> {
        let data_dir = self.dir.path().join("data");
        let mut command = tokio::process::Command::new(&self.program);
        command.arg(verb).arg("--data-dir").arg(data_dir).kill_on_drop(true);
        let output = tokio::time::timeout(VERB_LIMIT, command.output()).await;
        let output = output.with_context(|| format!("outlast {verb} takes too long"))??;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).trim().to_owned()))
    }

    /// Puts another binary in the place of the present one: the same with one byte behind it.
    pub(super) fn replace_binary(&self) -> Result<()> {
        let new = self.program.with_extension("new");
        std::fs::copy(&self.program, &new).context("copy the binary")?;
        let mut file = std::fs::File::options().append(true).open(&new)?;
        file.write_all(b"\n").context("change the binary")?;
        drop(file);
        std::fs::rename(&new, &self.program).context("replace the binary")
    }

    pub(super) fn restart_backend(&mut self, at: usize) -> Result<()> {
        let old = &self.backends[at];
        let fresh = Backend::start(&old.name, old.work, old.control, self.dir.path())?;
        self.backends[at] = fresh;
        Ok(())
    }

    /// Ends everything; false if something did not end by itself.
    pub(super) async fn strike(self) -> bool {
        // Nobody sends any more: the pause before the drain is not needed.
        let told = self.agent.signal(Signal::INT).is_ok();
        let clean = self.agent.stop().await;
        for backend in self.backends {
            backend.child.stop().await;
        }
        let left = self._household.members();
        told && clean && left.is_empty()
    }
}

impl Backend {
    fn start(name: &str, work: SocketAddr, control: SocketAddr, dir: &Path) -> Result<Backend> {
        let words = ["backend", "--name", name, "--port"].map(str::to_owned);
        let ports = [work.port().to_string(), "--control".to_owned(), control.port().to_string()];
        let child = Child::start(&Spec {
            name,
            program: &std::env::current_exe().context("find ourselves")?,
            args: &[&words[..], &ports[..]].concat(),
            dir,
            core: None,
            has_children: false,
        })?;
        let url = format!("http://{work}");
        Ok(Backend { name: name.to_owned(), url, work, control, child })
    }
}

fn start_agent(program: &Path, file: &Path, dir: &Path) -> Result<Child> {
    let file = file.to_str().context("the file's name is not text")?.to_owned();
    Child::start(&Spec {
        name: "agent",
        program,
        args: &["run".to_owned(), file],
        dir,
        core: None,
        has_children: true,
    })
}

/// One GET on a connection of its own.
pub(super) async fn ask(to: SocketAddr) -> Result<(u16, String)> {
    http::ask(to, "GET /", "", ASK_LIMIT).await
}

/// A GET at the admin socket; an error unless the answer is 200.
async fn ask_admin(socket: &Path, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let exchange = async {
        let mut stream = tokio::net::UnixStream::connect(socket).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(ASK_LIMIT, exchange).await.context("timeout")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    match http::status(head) {
        Some(200) => Ok(body.to_owned()),
        other => bail!("{path} answers {other:?}"),
    }
}

fn free_ports(count: usize) -> Result<Vec<SocketAddr>> {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let free: Vec<_> =
        PORTS.map(loopback).filter(|at| TcpListener::bind(at).is_ok()).take(count).collect();
    ensure!(free.len() == count, "no {count} free ports in {PORTS:?}");
    Ok(free)
}

fn topology(
    version: Version,
    dir: &Path,
    service: SocketAddr,
    second: SocketAddr,
    face: SocketAddr,
    backends: &[Backend],
) -> String {
    let urls: Vec<_> = backends.iter().map(|b| format!("\"{}\"", b.url)).collect();
    let urls = urls.join(", ");
    let probe =
        r#"probe = { http = "/health", every = "100ms", timeout = "90ms", fall = 2, rise = 1 }"#;
    let try_timeout = if version == Version::Plain { "1s" } else { "900ms" };
    let extended =
        format!("\n[service.second]\nlisten = \"{second}\"\nbackends = [{urls}]\n{probe}\n");
    format!(
        r#"[cluster]
name = "resilience"
data_dir = "{dir}/data"
face = "{face}"

[service.web]
listen = "{service}"
backends = [{urls}]
{probe}
retry = {{ attempts = 3, try_timeout = "{try_timeout}" }}
{rest}"#,
        dir = dir.display(),
        rest = match version {
            Version::Plain => "",
            Version::Extended => &extended,
            Version::Bad => "timeouts = { idle = \"soon\" }\n",
        }
    )
}

/// Takes the exit status of an orphan that became ours, if it has ended; true if there is no such process any more.
pub(super) fn is_gone(pid: i32) -> bool {
    let Some(raw) = Pid::from_raw(pid) else { return true };
    let _not_ours = rustix::process::waitpid(Some(raw), WaitOptions::NOHANG).is_err();
    procs::stat(pid).is_none()
}
