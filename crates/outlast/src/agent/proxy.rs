//! The agent's care for its data plane: it adopts or starts it, feeds it tables, and does to it what the core decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use outlast_core::event::Fact;
use outlast_core::proxies::{Action, Input, Out, Proxies};
use outlast_core::time::Instant;
use outlast_host::handle::Handle;
use outlast_proxy::table::{BackendState, Table};
use rustix::process::Signal;
use tokio::sync::mpsc;

use super::shared::ProxyView;
use super::table::Inherited;
use crate::dataplane::link::{self, FromLink, Link};
use crate::dataplane::wire::ToProxy;

/// The data plane of one agent.
#[derive(Debug)]
pub(super) struct DataPlane {
    data_dir: PathBuf,
    threads: usize,
    inbox: mpsc::Sender<FromLink>,
    proxies: Proxies,
    links: BTreeMap<u32, Link>,
    /// What `begin` is to tell the core.
    found: Vec<Input>,
    /// Proxies whose exit status is still to be taken.
    ended: Vec<Arc<Handle>>,
    /// Held beside the proxy's own: when it dies, clients wait in the queue instead of being refused.
    pub(super) sockets: BTreeMap<SocketAddr, Arc<OwnedFd>>,
    /// Addresses whose sockets the present proxy has.
    given: BTreeSet<SocketAddr>,
    sent: Option<Table>,
    generation: u64,
    /// The table that the proxy last said it has.
    in_force: Option<u64>,
    refused: Option<String>,
    /// Until when this node vouches for what it knows, on the boottime clock. `None`: this agent has not said anything, and a
    /// data plane that it adopted holds to what an earlier one said.
    vouched: Option<Instant>,
}

impl DataPlane {
    /// Finds the running proxy and takes its sockets; nothing is started or ended yet. Returns the table that was in force,
    /// if it can be read.
    pub(super) fn find(
        data_dir: PathBuf,
        threads: usize,
        inbox: mpsc::Sender<FromLink>,
    ) -> anyhow::Result<(DataPlane, Option<Inherited>)> {
        let mut plane = DataPlane {
            data_dir,
            threads,
            inbox,
            proxies: Proxies::default(),
            links: BTreeMap::new(),
            found: Vec::new(),
            ended: Vec::new(),
            sockets: BTreeMap::new(),
            given: BTreeSet::new(),
            sent: None,
            generation: 0,
            in_force: None,
            refused: None,
            vouched: None,
        };
        let (draining, serving): (Vec<Link>, Vec<Link>) =
            link::find(&plane.data_dir).into_iter().partition(|l| l.hello.draining);
        for link in draining {
            plane.hold(link, |pid| Input::Found { pid, draining: true });
        }
        let mut found: Vec<(Link, Option<Inherited>)> = serving
            .into_iter()
            .map(|link| {
                let table = Inherited::read(&link.hello.table);
                (link, table)
            })
            .collect();
        // An agent that died while it replaced its proxy leaves two: the one that has a table serves.
        found.sort_by_key(|(link, table)| {
            let serves = table.as_ref().is_some_and(Inherited::serves);
            (!serves, link.hello.build != crate::build_id())
        });
        let (mut inherited, mut adopted) = (None, false);
        for (link, table) in found {
            let sockets =
                link.take_sockets().context("take the listening sockets from the running proxy")?;
            let same_build = link.hello.build == crate::build_id();
            if !adopted && table.is_some() && same_build {
                adopted = true;
                plane.given = sockets.iter().map(|(address, _)| *address).collect();
                plane.generation = table.as_ref().map_or(0, |t| t.generation);
                plane.hold(link, |pid| Input::Adopted { pid });
            } else {
                // It ends once its successor has a table.
                plane.hold(link, |pid| Input::Found { pid, draining: false });
            }
            for (address, socket) in sockets {
                plane.sockets.entry(address).or_insert(socket);
            }
            inherited = inherited.or(table);
        }
        Ok((plane, inherited))
    }

    fn hold(&mut self, link: Link, said: impl FnOnce(u32) -> Input) {
        self.found.push(said(link.hello.pid));
        self.links.insert(link.hello.pid, link);
    }

    /// Carries on with the proxy that was found, or starts one and waits for it.
    pub(super) fn begin(&mut self, now: Instant, facts: &mut Vec<Fact>) -> anyhow::Result<()> {
        for link in self.links.values() {
            link.listen(self.inbox.clone()).context("listen to the proxy")?;
        }
        let mut out = Out::default();
        for input in std::mem::take(&mut self.found) {
            self.proxies.step(now, input, &mut out);
        }
        self.proxies.step(now, Input::Tick, &mut out);
        let start = out.actions.contains(&Action::Start);
        out.actions.retain(|action| *action != Action::Start);
        self.carry_out(now, out, facts);
        if start {
            let link = link::start(&self.data_dir, self.threads)?;
            self.started(now, link, facts);
        }
        Ok(())
    }

    /// Tells the core what happened, and does what it says.
    pub(super) fn step(&mut self, now: Instant, input: Input, facts: &mut Vec<Fact>) {
        let mut out = Out::default();
        self.proxies.step(now, input, &mut out);
        self.carry_out(now, out, facts);
    }

    fn carry_out(&mut self, now: Instant, out: Out, facts: &mut Vec<Fact>) {
        facts.extend(out.facts);
        for action in out.actions {
            match action {
                Action::Start => {
                    let (dir, inbox) = (self.data_dir.clone(), self.inbox.clone());
                    if let Err(error) = link::start_behind(dir, self.threads, inbox) {
                        self.not_started(now, &error.to_string(), facts);
                    }
                }
                Action::Drain { pid, deadline } => {
                    if let Some(link) = self.links.get(&pid) {
                        link.send(ToProxy::Drain { deadline }, Vec::new());
                    }
                }
                Action::Terminate { pid } => self.signal(pid, Signal::TERM),
                Action::Kill { pid } => self.signal(pid, Signal::KILL),
            }
        }
    }

    fn signal(&self, pid: u32, signal: Signal) {
        let Some(link) = self.links.get(&pid) else { return };
        if let Err(error) = link.handle.signal(signal) {
            tracing::error!(pid, %error, "signal a proxy");
        }
    }

    /// A proxy that was to be started has greeted: it gets everything anew.
    pub(super) fn started(&mut self, now: Instant, link: Link, facts: &mut Vec<Fact>) {
        let pid = link.hello.pid;
        if let Err(error) = link.listen(self.inbox.clone()) {
            // It cannot be followed, so it must not serve.
            link.handle.signal(Signal::KILL).ok();
            self.ended.push(link.handle.clone());
            self.not_started(now, &format!("listen to it: {error}"), facts);
            return;
        }
        self.links.insert(pid, link);
        self.forget_what_it_has();
        self.pass_on_lease(pid);
        self.step(now, Input::Started { pid }, facts);
    }

    pub(super) fn not_started(&mut self, now: Instant, reason: &str, facts: &mut Vec<Fact>) {
        tracing::error!(reason, "start a proxy");
        self.step(now, Input::NotStarted, facts);
    }

    /// A new connection to a proxy that had lost its old one: what was under way may not have arrived.
    pub(super) fn regained(&mut self, now: Instant, link: Link, facts: &mut Vec<Fact>) {
        let pid = link.hello.pid;
        if let Err(error) = link.listen(self.inbox.clone()) {
            let reason = format!("listen to it: {error}");
            self.step(now, Input::Unreachable { pid, reason }, facts);
            return;
        }
        self.links.insert(pid, link);
        if self.proxies.serving() == Some(pid) {
            self.forget_what_it_has();
            self.pass_on_lease(pid);
        } else if self.vouched == Some(Instant::default()) {
            self.pass_on_lease(pid);
        }
        self.step(now, Input::Regained { pid }, facts);
    }

    fn forget_what_it_has(&mut self) {
        self.given.clear();
        self.sent = None;
        self.in_force = None;
        self.refused = None;
    }

    /// Lets the serving data plane serve what needs the lease of this node until that moment of the boottime clock
    /// (`outlast_consensus::boottime`, [`Held::ends`](outlast_core::agreed::Held::ends)): an absolute one, which only
    /// processes of one machine may pass on. `None` gives the lease up at once. A successor gets it before its first table.
    ///
    /// One that drains gets no tables any more, so nobody can vouch for what it knows: what it still has at pairs ends with
    /// the lease that it had. A lease that is given up is given up there, too.
    pub(super) fn vouch(&mut self, until: Option<Instant>) {
        self.vouched = Some(until.unwrap_or_default());
        let given_up = until.is_none();
        for &pid in
            self.links.keys().filter(|&&pid| given_up || self.proxies.serving() == Some(pid))
        {
            self.pass_on_lease(pid);
        }
    }

    /// Those that drain.
    pub(super) fn leaving(&self) -> impl Iterator<Item = u32> {
        self.proxies.leaving()
    }

    fn pass_on_lease(&self, pid: u32) {
        let (Some(until), Some(link)) = (self.vouched, self.links.get(&pid)) else { return };
        // One of another build would not understand it. One that takes nothing any more keeps what it has until its end.
        if link.hello.build == crate::build_id() {
            link.send(ToProxy::Vouch { until: until.since_start() }, Vec::new());
        }
    }

    /// The serving proxy is replaced by one with as many threads.
    pub(super) fn set_threads(&mut self, now: Instant, threads: usize, facts: &mut Vec<Fact>) {
        if self.threads != threads {
            self.threads = threads;
            self.step(now, Input::Replace, facts);
        }
    }

    /// Sends a table, with the sockets that the proxy does not have yet, if it differs from the last one. `urgent`: it
    /// does not wait until everything is known.
    pub(super) fn apply(&mut self, now: Instant, mut table: Table, urgent: bool) {
        let Some(link) = self.proxies.serving().and_then(|pid| self.links.get(&pid)) else {
            return;
        };
        if !self.proxies.may_feed(now, urgent || all_known(&table)) {
            return;
        }
        if let Some(sent) = &self.sent {
            table.generation = sent.generation;
            if *sent == table {
                return;
            }
        }
        self.generation += 1;
        table.generation = self.generation;
        let wanted: BTreeSet<SocketAddr> = table.services.iter().map(|s| s.listen).collect();
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
            self.proxies.fed();
        }
    }

    /// A table has been put in force: predecessors may go.
    pub(super) fn succeed(
        &mut self,
        now: Instant,
        pid: u32,
        generation: u64,
        facts: &mut Vec<Fact>,
    ) {
        if self.proxies.serving() == Some(pid) {
            self.refused = None;
            self.in_force = Some(generation);
            self.step(now, Input::InForce { pid }, facts);
        }
    }

    pub(super) fn refuse(&mut self, pid: u32, reason: String) {
        if self.proxies.serving() == Some(pid) {
            self.refused = Some(reason);
        }
    }

    /// Whether the proxy has the newest table in force.
    pub(super) fn settled(&self) -> bool {
        self.proxies.serving().is_some() && self.in_force == Some(self.generation)
    }

    /// Asks for counters; they come back through the inbox. A proxy that is asked again and again in vain is replaced.
    pub(super) fn ask_stats(&mut self, now: Instant, facts: &mut Vec<Fact>) {
        for link in self.links.values() {
            link.send(ToProxy::GiveStats, Vec::new());
        }
        self.step(now, Input::Asked, facts);
    }

    /// A proxy has exited.
    pub(super) fn gone(&mut self, now: Instant, pid: u32, reason: String, facts: &mut Vec<Fact>) {
        if let Some(link) = self.links.remove(&pid) {
            self.ended.push(link.handle.clone());
        }
        self.reap();
        self.step(now, Input::Gone { pid, reason }, facts);
    }

    /// How long until the core wants to be asked again.
    pub(super) fn wake_in(&self, now: Instant) -> Option<Duration> {
        self.proxies.deadline(now).map(|at| at.since(now))
    }

    /// Ends every proxy; open work has until `deadline`.
    pub(super) fn stop(&mut self, now: Instant, deadline: Duration, facts: &mut Vec<Fact>) {
        self.step(now, Input::Stop { deadline }, facts);
        self.sockets.clear();
    }

    pub(super) fn all_gone(&self) -> bool {
        self.proxies.all_gone()
    }

    pub(super) fn is_starting(&self) -> bool {
        self.proxies.is_starting()
    }

    /// Takes the exit status of proxies that have ended, also of those that an earlier image of this process started.
    pub(super) fn reap(&mut self) {
        // Without a status it is somebody else's to take, or was taken.
        self.ended.retain(|handle| {
            handle.is_alive() || {
                handle.collect();
                false
            }
        });
    }

    pub(super) fn serving(&self) -> Option<u32> {
        self.proxies.serving()
    }

    pub(super) fn view(&self, now: Instant) -> ProxyView {
        ProxyView {
            pid: self.proxies.serving(),
            draining: self.proxies.leaving().collect(),
            refused: self.refused.clone(),
            silent: self.proxies.silent_since().map(|since| now.since(since)),
        }
    }
}

/// Whether a table says of every backend how it is.
fn all_known(table: &Table) -> bool {
    let mut backends = table.services.iter().flat_map(|s| &s.backends);
    backends.all(|b| b.state != BackendState::Unknown)
}

#[cfg(test)]
mod tests;
