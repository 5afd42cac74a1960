//! `outlast lab machine`: the first process of a node. It sets the machine up, runs the agent, and collects what ends.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use outlast::agent::admin;
use outlast::dataplane::wire;
use outlast_host::lab::{dress, furnish, reap, signal_all};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::plan::Node;
use super::wire::{FromMachine, ToMachine};
use crate::Outcome;

/// What the keeper says and we have not done yet.
const TOLD_MAX: usize = 16;
/// How often an agent that starts is asked whether it answers.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// How long the agent may take to end when it is asked to; its own limit is 30 seconds.
const STOP_MAX: Duration = Duration::from_secs(40);

pub(super) fn run() -> anyhow::Result<Outcome> {
    // Tied to the keeper by its process namespace, so there is nothing to do for that.
    let stdin = std::io::stdin();
    let line = rustix::io::fcntl_dupfd_cloexec(stdin, 3).context("take the keeper's line")?;
    let line = UnixStream::from(line);
    let said = match live(&line) {
        Ok(()) => return Ok(Outcome::Fine),
        Err(error) => format!("{error:#}"),
    };
    wire::send(&line, &FromMachine::Failed(said.clone()), &[]).ok();
    bail!("{said}")
}

fn live(line: &UnixStream) -> anyhow::Result<()> {
    let Some((ToMachine::Be { node, lab, file, program }, _)) =
        wire::receive::<ToMachine>(line).context("hear from the keeper")?
    else {
        bail!("the keeper did not say which machine this is; `outlast lab up` starts machines");
    };
    rustix::system::sethostname(node.name.as_bytes()).context("name the machine")?;
    furnish(&node.private_dirs(&lab), &file, &[program.clone(), node.dir(&lab)])
        .map_err(anyhow::Error::msg)?;
    let machine = Machine { log: node.log(&lab), node: *node, file, program, line, agent: None };
    crate::verbs::block_on(machine.serve())
}

struct Machine<'l> {
    node: Node,
    file: PathBuf,
    program: PathBuf,
    log: PathBuf,
    line: &'l UnixStream,
    agent: Option<Agent>,
}

struct Agent {
    pid: u32,
    answers: bool,
}

impl Machine<'_> {
    async fn serve(mut self) -> anyhow::Result<()> {
        let mut children = signal(SignalKind::child()).context("listen for ends of processes")?;
        let (sender, mut told) = mpsc::channel(TOLD_MAX);
        let reader = self.line.try_clone().context("listen to the keeper")?;
        std::thread::Builder::new().name("from-keeper".to_owned()).spawn(move || {
            while let Ok(Some((message, _))) = wire::receive::<ToMachine>(&reader) {
                if sender.blocking_send(message).is_err() {
                    return;
                }
            }
        })?;
        let mut tick = tokio::time::interval(ASK_EVERY);
        let mut stop_by = None;
        loop {
            let is_asked = self.agent.as_ref().is_some_and(|agent| !agent.answers);
            tokio::select! {
                message = told.recv() => match message {
                    Some(ToMachine::Plugged) => {
                        dress(&self.node.interface, self.node.address)
                            .context("set up the machine's network")?;
                        self.start_agent()?;
                    }
                    Some(ToMachine::StartAgent) => self.start_agent()?,
                    Some(ToMachine::Stop) => match &self.agent {
                        Some(agent) => {
                            send_signal(agent.pid, Signal::TERM);
                            stop_by = Some(tokio::time::Instant::now() + STOP_MAX);
                        }
                        None => return Ok(()),
                    },
                    Some(ToMachine::Freeze) => {
                        signal_all(Signal::STOP).context("freeze the machine")?;
                        self.say(&FromMachine::Frozen)?;
                    }
                    Some(ToMachine::Thaw) => {
                        signal_all(Signal::CONT).context("let the machine go on")?;
                    }
                    Some(ToMachine::Be { .. }) => bail!("the keeper says twice which machine this is"),
                    None => bail!("the keeper has gone"),
                },
                _ = children.recv() => {
                    let ended = self.collect()?;
                    if ended && stop_by.is_some() {
                        return Ok(());
                    }
                }
                _ = tick.tick(), if is_asked => self.look_whether_it_answers()?,
                () = until(stop_by) => return Ok(()),
            }
        }
    }

    fn start_agent(&mut self) -> anyhow::Result<()> {
        if self.agent.is_some() {
            return Ok(());
        }
        let log =
            File::options().create(true).append(true).open(&self.log).context("open the log")?;
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        let child = Command::new(&self.program)
            .arg("run")
            .arg(&self.file)
            .args(["--node", &self.node.name])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("open the log")?)
            .stderr(log)
            .spawn()
            .context("start the agent")?;
        let pid = child.id();
        self.agent = Some(Agent { pid, answers: false });
        self.say(&FromMachine::AgentStarted { pid })
    }

    /// Collects all that has ended; whether the agent was among it.
    fn collect(&mut self) -> anyhow::Result<bool> {
        let mut ended = false;
        while let Some(reaped) = reap().context("collect what has ended")? {
            if self.agent.as_ref().is_some_and(|agent| agent.pid == reaped.pid) {
                self.agent = None;
                ended = true;
                self.say(&FromMachine::AgentEnded { code: reaped.code })?;
            }
        }
        Ok(ended)
    }

    fn look_whether_it_answers(&mut self) -> anyhow::Result<()> {
        let answers = UnixStream::connect(admin::socket_path(&self.node.data_dir)).is_ok();
        if let Some(agent) = self.agent.as_mut().filter(|_| answers) {
            agent.answers = true;
            self.say(&FromMachine::AgentAnswers)?;
        }
        Ok(())
    }

    fn say(&self, message: &FromMachine) -> anyhow::Result<()> {
        wire::send(self.line, message, &[]).context("tell the keeper")
    }
}

async fn until(end: Option<tokio::time::Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// To a child that has not been collected yet, so that the number means it.
fn send_signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        kill_process(pid, signal).ok();
    }
}
