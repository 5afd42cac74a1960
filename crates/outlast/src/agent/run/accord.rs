//! The topology that all nodes have agreed on: kept on this disk, checked and taken here when the cluster says so.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, ensure};
use outlast_core::event::Fact;
use outlast_core::topology::{ConsensusKind, Topology};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::Loop;
use super::reload::Prepared;
use crate::agent::state;
use crate::cluster::identity;
use crate::cluster::topology::{Errand, Running};
use crate::database::Trials;

/// Errands that wait for the loop; the cluster gives one at a time.
pub(super) const ERRANDS_MAX: usize = 16;

/// Beside the log: whoever loses one loses the other, and begins with the operator's file.
const NAME: &str = "topology.json";

/// The version of the file's form; others are refused by name.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Saved {
    v: u32,
    version: u64,
    text: String,
}

/// What this node runs when it starts.
pub(super) struct Start {
    pub(super) running: Running,
    pub(super) topology: Topology,
    /// Where the agreement is.
    pub(super) consensus: ConsensusKind,
    /// Relative paths count from here.
    pub(super) base: PathBuf,
    pub(super) data_dir: PathBuf,
}

/// The agreed topology that this node took last, or else the operator's file, which says where the data is in any case.
pub(super) fn start(file: &Path) -> anyhow::Result<Start> {
    let read = super::reload::read_file(file);
    let place = match &read {
        Ok((_, topology, base)) => Some((base.clone(), base.join(&topology.cluster.data_dir))),
        Err(_) => place(file),
    };
    let saved = place.as_ref().map_or(Ok(None), |(_, data_dir)| load(data_dir))?;
    let (Some((base, data_dir)), Some(saved)) = (place, saved) else {
        let (text, topology, base) =
            read.map_err(|text| anyhow::anyhow!("the topology file cannot be run\n{text}"))?;
        let data_dir = base.join(&topology.cluster.data_dir);
        let running = Running::new(0, text, None);
        let consensus = topology.consensus.kind.clone();
        return Ok(Start { running, topology, consensus, base, data_dir });
    };
    let path = identity::dir(&data_dir).join(NAME);
    let agreed = crate::file::parse(&path.display().to_string(), &saved.text);
    let topology = agreed.map_err(|complaints| {
        anyhow::anyhow!(
            "this binary cannot read version {} of the topology, which is in force; run the binary that could\n{complaints}",
            saved.version
        )
    })?;
    let file_differs = differs(file, &topology, saved.version);
    let running = Running::new(saved.version, saved.text, file_differs);
    let file = read.ok().map(|(_, topology, _)| topology.consensus.kind);
    let consensus = reached(topology.consensus.kind.clone(), file);
    Ok(Start { running, topology, consensus, base, data_dir })
}

/// How etcd is reached is what the operator's file says, if that can be read: no agreement can change it while none of the
/// endpoints that were agreed on answers.
fn reached(agreed: ConsensusKind, file: Option<ConsensusKind>) -> ConsensusKind {
    match (&agreed, file) {
        (ConsensusKind::Etcd { .. }, Some(file @ ConsensusKind::Etcd { .. })) => file,
        (ConsensusKind::Etcd { .. } | ConsensusKind::Embedded, _) => agreed,
    }
}

/// Where the file is, and where it says that the data is, whatever else is wrong with it.
pub(super) fn place(file: &Path) -> Option<(PathBuf, PathBuf)> {
    let text = std::fs::read_to_string(file).ok()?;
    let absolute = std::path::absolute(file).ok()?;
    let base = absolute.parent().map(Path::to_path_buf).unwrap_or_default();
    let data_dir = base.join(crate::file::data_dir(&text)?);
    Some((base, data_dir))
}

/// Reads what was taken last; `None` before the first.
fn load(data_dir: &Path) -> anyhow::Result<Option<Saved>> {
    let path = identity::dir(data_dir).join(NAME);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let saved: Saved = serde_json::from_slice(&text).with_context(|| {
        format!(
            "understand {}; move it away, and this node begins with its file and takes what is in force from the others",
            path.display()
        )
    })?;
    ensure!(
        saved.v == VERSION,
        "{} has version {}, this binary reads {VERSION}",
        path.display(),
        saved.v
    );
    Ok(Some(saved))
}

fn save(data_dir: &Path, version: u64, text: &str) -> anyhow::Result<()> {
    let saved = Saved { v: VERSION, version, text: text.to_owned() };
    state::write_whole(&identity::dir(data_dir), NAME, &serde_json::to_vec_pretty(&saved)?)
}

/// How the operator's file differs from what is in force, and what to do.
fn differs(file: &Path, in_force: &Topology, version: u64) -> Option<String> {
    let absolute = std::path::absolute(file);
    let shown = absolute.as_deref().unwrap_or(file).display();
    match super::reload::read_file(file) {
        Ok((_, topology, _)) if topology == *in_force => None,
        Ok(_) => Some(format!(
            "{shown} says something else than version {version}, which is in force: `outlast apply {shown}` shows the difference and takes it to all nodes"
        )),
        Err(reason) => {
            let first = reason.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            Some(format!(
                "{shown} has mistakes, and version {version} is in force: {}; see `outlast check {shown}`",
                first.trim()
            ))
        }
    }
}

/// When the operator's file was changed last, and how long it is.
fn stamp(file: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

struct Held {
    version: u64,
    /// What ran when it was prepared.
    beside: u64,
    prepared: Prepared,
}

/// What the loop knows of the agreement on its topology.
pub(super) struct Accord {
    /// Nothing comes where there is only one node.
    errands: mpsc::Receiver<Errand>,
    running: watch::Sender<Running>,
    /// What this node has said yes to, and keeps open for it: clients that come early wait in the kernel.
    held: Option<Held>,
    /// Of the operator's file when it was last compared.
    seen: Option<(SystemTime, u64)>,
}

impl Accord {
    pub(super) fn new(
        errands: mpsc::Receiver<Errand>,
        running: watch::Sender<Running>,
        file: &Path,
    ) -> Accord {
        Accord { errands, running, held: None, seen: stamp(file) }
    }

    /// Never, where nobody asks.
    pub(super) async fn errand(&mut self) -> Errand {
        match self.errands.recv().await {
            Some(errand) => errand,
            None => std::future::pending().await,
        }
    }

    /// What is agreed on by all is changed by all.
    pub(super) fn may_reload(&self, file: &Path) -> Result<(), String> {
        let version = self.running.borrow().version;
        if version > 0 {
            return Err(format!(
                "version {version} of the topology is in force on all nodes, and no node changes it alone; use `outlast apply {}`",
                file.display()
            ));
        }
        match &self.held {
            Some(held) => Err(format!(
                "version {} of the topology is being voted on; wait until that is over",
                held.version
            )),
            None => Ok(()),
        }
    }

    /// The agent ends: whoever asks is told at once.
    pub(super) fn close(&mut self) {
        self.errands.close();
        while self.errands.try_recv().is_ok() {}
        self.held = None;
    }

    /// Notes what the agent runs now.
    pub(super) fn runs(&self, version: u64, text: String) {
        self.running.send_replace(Running::new(version, text, None));
    }

    pub(super) fn version(&self) -> u64 {
        self.running.borrow().version
    }

    /// The text that is agreed on; `None`: the operator's file runs.
    pub(super) fn agreed_text(&self) -> Option<String> {
        let running = self.running.borrow();
        (running.version > 0).then(|| running.text.to_string())
    }
}

impl Loop {
    pub(super) fn hear_errand(&mut self, errand: Errand) {
        match errand {
            Errand::Check { version, text, answer } => {
                // One at a time: an older one is over.
                self.accord.held = None;
                let prepared = read(version, &text).and_then(|topology| self.prepare(topology));
                let beside = self.accord.version();
                let checked = prepared.map(|prepared| {
                    let trials = Trials::of(&self.node, &self.topology, &prepared.topology);
                    self.accord.held = Some(Held { version, beside, prepared });
                    trials
                });
                match checked {
                    Ok(trials) if trials.is_empty() => drop(answer.send(Ok(()))),
                    // Beside the loop, which waits for no program; ends with the answer, which has a limit.
                    Ok(trials) => drop(tokio::task::spawn(async move {
                        answer.send(trials.run().await).ok();
                    })),
                    Err(reason) => drop(answer.send(Err(reason))),
                }
            }
            Errand::Take { version, text, answer } => {
                answer.send(self.take(version, text)).ok();
            }
            Errand::LetGo { version } => {
                self.accord.held.take_if(|held| held.version == version);
            }
        }
    }

    fn take(&mut self, version: u64, text: String) -> Result<(), String> {
        let runs = self.accord.version();
        let held = self.accord.held.take();
        // What was prepared beside another topology is let go before it is prepared anew.
        let fits = |held: &Held| held.version == version && held.beside == runs;
        let prepared = match held.filter(fits) {
            Some(held) => held.prepared,
            None => self.prepare(read(version, &text)?)?,
        };
        // First on the disk: who restarts goes on with it.
        save(&self.data_dir, version, &text).map_err(|error| format!("{error:#}"))?;
        self.put_in_force(prepared)?;
        self.accord.runs(version, text);
        self.compare_file();
        Ok(())
    }

    /// Compares the operator's file with what is in force, if it was changed.
    pub(super) fn look_at_file(&mut self) {
        let stamp = stamp(&self.options.file);
        if self.accord.version() > 0 && stamp != self.accord.seen {
            self.accord.seen = stamp;
            self.compare_file();
        }
    }

    fn compare_file(&mut self) {
        let version = self.accord.version();
        let file_differs = differs(&self.options.file, &self.topology, version);
        let changed = self.accord.running.send_if_modified(|running| {
            let changed = running.file_differs != file_differs;
            running.file_differs.clone_from(&file_differs);
            changed
        });
        if changed {
            self.say_that_file_differs();
        }
    }

    /// Writes it down if the operator's file is not what runs.
    pub(super) fn say_that_file_differs(&mut self) {
        let (version, reason) = {
            let running = self.accord.running.borrow();
            (running.version, running.file_differs.clone())
        };
        if let Some(reason) = reason {
            self.record(Fact::FileDiffers { version, reason });
        }
    }
}

fn read(version: u64, text: &str) -> Result<Topology, String> {
    let name = format!("version {version}");
    crate::file::parse(&name, text).map_err(|complaints| complaints.to_string())
}

/// What the loop and the cluster tell each other through.
pub(super) fn lines(
    running: Running,
    file: PathBuf,
) -> (Accord, watch::Receiver<Running>, mpsc::Sender<Errand>) {
    let (errands_in, errands) = mpsc::channel(ERRANDS_MAX);
    let (running, reader) = watch::channel(running);
    (Accord::new(errands, running, &file), reader, errands_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_is_reached_as_the_file_says_and_the_kind_is_what_was_agreed_on() {
        let etcd = |at: &str| ConsensusKind::Etcd { endpoints: vec![at.to_owned()], tls: None };
        let own = ConsensusKind::Embedded;
        for (agreed, file, expected) in [
            (etcd("old"), Some(etcd("new")), etcd("new")),
            (etcd("old"), Some(own.clone()), etcd("old")),
            (etcd("old"), None, etcd("old")),
            (own.clone(), Some(etcd("new")), own.clone()),
            (own.clone(), None, own),
        ] {
            assert_eq!(reached(agreed, file), expected);
        }
    }
}
