//! The agent's care for its data plane: adopt or start it, feed it tables, replace it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outlast_core::event::Fact;
use outlast_proxy::table::Table;
use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::sync::mpsc;

use super::shared::ProxyView;
use crate::dataplane::link::{self, FromLink, Link};
use crate::dataplane::wire::ToProxy;

/// A proxy that was replaced has this long to finish what is open.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// A proxy that died is started again at most this often.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// The data plane of one agent.
#[derive(Debug)]
pub(super) struct DataPlane {
    data_dir: PathBuf,
    threads: usize,
    inbox: mpsc::Sender<FromLink>,
    link: Option<Link>,
    /// Proxies that have closed their connection and whose exit status is still to be taken.
    ended: Vec<u32>,
    draining: BTreeMap<u32, Link>,
    /// Held beside the proxy's own: when it dies, clients wait in the queue instead of being refused.
    pub(super) sockets: BTreeMap<SocketAddr, Arc<OwnedFd>>,
    /// Addresses whose sockets the present proxy has.
    given: Vec<SocketAddr>,
    sent: Option<Table>,
    generation: u64,
    /// The table that the proxy last said it has.
    in_force: u64,
    refused: Option<String>,
    last_start: Option<Instant>,
}

impl DataPlane {
    /// Finds the running proxy and takes its sockets; nothing is started or ended yet. Returns the table that was in force,
    /// if it can be read.
    pub(super) fn find(
        data_dir: PathBuf,
        threads: usize,
        inbox: mpsc::Sender<FromLink>,
    ) -> anyhow::Result<(DataPlane, Option<Table>)> {
        let mut plane = DataPlane {
            data_dir,
            threads,
            inbox,
            link: None,
            ended: Vec::new(),
            draining: BTreeMap::new(),
            sockets: BTreeMap::new(),
            given: Vec::new(),
            sent: None,
            generation: 0,
            in_force: 0,
            refused: None,
            last_start: None,
        };
        let (draining, serving): (Vec<Link>, Vec<Link>) =
            link::find(&plane.data_dir).into_iter().partition(|l| l.hello.draining);
        for link in draining {
            plane.watch_draining(link);
        }
        let mut found: Vec<(Link, Option<Table>)> = serving
            .into_iter()
            .map(|link| {
                let table = serde_json::from_value::<Table>(link.hello.table.clone()).ok();
                (link, table)
            })
            .collect();
        // An agent that died while it replaced its proxy leaves two: the one that has a table serves.
        found.sort_by_key(|(link, table)| {
            let serves = table.as_ref().is_some_and(|t| !t.services.is_empty());
            (!serves, link.hello.build != crate::build_id())
        });
        let mut inherited = None;
        for (link, table) in found {
            let sockets =
                link.take_sockets().context("take the listening sockets from the running proxy")?;
            if plane.link.is_none() && table.is_some() && link.hello.build == crate::build_id() {
                plane.given = sockets.iter().map(|(address, _)| *address).collect();
                plane.generation = table.as_ref().map_or(0, |t| t.generation);
                plane.link = Some(link);
            } else {
                // It drains once its successor has a table: see `succeed`.
                plane.draining.insert(link.hello.pid, link);
            }
            for (address, socket) in sockets {
                plane.sockets.entry(address).or_insert(socket);
            }
            inherited = inherited.or(table);
        }
        Ok((plane, inherited))
    }

    /// Carries on with the proxy that was found, or starts one.
    pub(super) fn begin(&mut self, facts: &mut Vec<Fact>) -> anyhow::Result<()> {
        let Some(link) = &self.link else { return self.start(facts) };
        link.listen(self.inbox.clone()).context("listen to the proxy")?;
        facts.push(Fact::ProxyAdopted { pid: link.hello.pid });
        Ok(())
    }

    fn start(&mut self, facts: &mut Vec<Fact>) -> anyhow::Result<()> {
        self.last_start = Some(Instant::now());
        let link = link::start(&self.data_dir, self.threads)?;
        link.listen(self.inbox.clone()).context("listen to the proxy")?;
        facts.push(Fact::ProxyStarted { pid: link.hello.pid });
        self.link = Some(link);
        self.given.clear();
        self.sent = None;
        Ok(())
    }

    /// Sends a table, with the sockets that the proxy does not have yet, if it differs from the last one.
    pub(super) fn apply(&mut self, mut table: Table) {
        let Some(link) = &self.link else { return };
        if let Some(sent) = &self.sent {
            table.generation = sent.generation;
            if *sent == table {
                return;
            }
        }
        self.generation += 1;
        table.generation = self.generation;
        let wanted: Vec<SocketAddr> = table.services.iter().map(|s| s.listen).collect();
        let new: Vec<SocketAddr> = wanted
            .iter()
            .filter(|a| !self.given.contains(a) && self.sockets.contains_key(a))
            .copied()
            .collect();
        let fds = new.iter().filter_map(|a| self.sockets.get(a).cloned()).collect();
        if link.send(ToProxy::Apply { table: Box::new(table.clone()), sockets: new }, fds) {
            self.sockets.retain(|a, _| wanted.contains(a));
            self.given = self.sockets.keys().copied().collect();
            self.sent = Some(table);
        }
    }

    /// A table has been put in force: predecessors may go.
    pub(super) fn succeed(&mut self, pid: u32, generation: u64, facts: &mut Vec<Fact>) {
        self.refused = None;
        if self.link.as_ref().is_none_or(|l| l.hello.pid != pid) {
            return;
        }
        self.in_force = generation;
        let waiting: Vec<u32> =
            self.draining.iter().filter(|(_, l)| !l.hello.draining).map(|(&pid, _)| pid).collect();
        for old in waiting {
            if let Some(link) = self.draining.remove(&old) {
                facts.push(Fact::ProxyReplaced { old, new: pid });
                self.retire(link);
            }
        }
    }

    pub(super) fn refuse(&mut self, reason: String) {
        self.refused = Some(reason);
    }

    /// Lets a proxy finish and end.
    fn retire(&mut self, mut link: Link) {
        link.send(ToProxy::Drain { deadline: DRAIN_MAX }, Vec::new());
        link.hello.draining = true;
        self.watch_draining(link);
    }

    fn watch_draining(&mut self, link: Link) {
        if let Err(error) = link.listen(self.inbox.clone()) {
            tracing::warn!(%error, "listen to a draining proxy");
        }
        self.draining.insert(link.hello.pid, link);
    }

    /// Whether the proxy has the newest table in force.
    pub(super) fn settled(&self) -> bool {
        self.link.is_some() && self.in_force == self.generation
    }

    /// Asks for counters; they come back through the inbox.
    pub(super) fn ask_stats(&self) {
        if let Some(link) = &self.link {
            link.send(ToProxy::GiveStats, Vec::new());
        }
        for link in self.draining.values() {
            link.send(ToProxy::GiveStats, Vec::new());
        }
    }

    /// A proxy has gone. True if it was the serving one.
    pub(super) fn gone(&mut self, pid: u32) -> bool {
        self.ended.push(pid);
        self.reap();
        self.draining.remove(&pid);
        let serving = self.link.as_ref().is_some_and(|l| l.hello.pid == pid);
        if serving {
            self.link = None;
        }
        serving
    }

    /// When a new proxy is to be started in place of one that died; `None` while there is one.
    pub(super) fn restart_in(&self) -> Option<Duration> {
        let since = self.last_start.map_or(RESTART_PAUSE, |t| t.elapsed());
        self.link.is_none().then(|| RESTART_PAUSE.saturating_sub(since))
    }

    /// Starts a new proxy if it is time to.
    pub(super) fn restart(&mut self, facts: &mut Vec<Fact>) -> anyhow::Result<()> {
        if self.restart_in() == Some(Duration::ZERO) { self.start(facts) } else { Ok(()) }
    }

    /// Tells the serving proxy to finish within `deadline` and end.
    pub(super) fn drain(&mut self, deadline: Duration) {
        if let Some(link) = self.link.take() {
            link.send(ToProxy::Drain { deadline }, Vec::new());
            self.draining.insert(link.hello.pid, link);
        }
        self.sockets.clear();
    }

    /// Open work is cut off now.
    pub(super) fn drain_now(&self) {
        for link in self.draining.values() {
            link.send(ToProxy::Drain { deadline: Duration::ZERO }, Vec::new());
        }
    }

    pub(super) fn all_gone(&self) -> bool {
        self.link.is_none() && self.draining.is_empty()
    }

    /// Takes the exit status of proxies that have ended, also of those that an earlier image of this process started. A
    /// proxy closes its connection a moment before it has ended, so this is to be called again.
    pub(super) fn reap(&mut self) {
        self.ended.retain(|&pid| {
            let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
            // An error: not our child, so somebody else's to reap.
            matches!(waitpid(raw, WaitOptions::NOHANG), Ok(None))
        });
    }

    pub(super) fn view(&self) -> ProxyView {
        ProxyView {
            pid: self.link.as_ref().map(|l| l.hello.pid),
            draining: self.draining.keys().copied().collect(),
            refused: self.refused.clone(),
        }
    }
}
