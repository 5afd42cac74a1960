//! Takes a changed topology file, or refuses it and says why.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outlast_core::agent::Action;
use outlast_core::event::Fact;
use outlast_core::topology::{Pool, Topology};
use tokio::net::TcpListener;

use super::Loop;
use crate::agent::table::{self, Certificates};
use crate::agent::{face, start, state};

/// Reads and parses the file; the error is what a person should see.
pub(super) fn read_file(path: &Path) -> Result<(String, Topology, PathBuf), String> {
    let text =
        std::fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let topology =
        crate::file::parse(&path.display().to_string(), &text).map_err(|c| c.to_string())?;
    let absolute = std::path::absolute(path).map_err(|e| e.to_string())?;
    let base = absolute.parent().map(Path::to_path_buf).unwrap_or_default();
    Ok((text, topology, base))
}

/// A topology that this node can run, with all that it needs.
pub(super) struct Prepared {
    pub(super) topology: Topology,
    certificates: Certificates,
    opened: BTreeMap<SocketAddr, Arc<OwnedFd>>,
    /// Where the face moves to, if it moves.
    face: Option<Option<TcpListener>>,
}

impl Loop {
    /// Takes the changed file, or keeps the old topology and says why.
    pub(super) fn reload(&mut self) -> Result<String, String> {
        let result = self.try_reload();
        if let Err(reason) = &result {
            let first =
                reason.lines().find(|l| !l.trim().is_empty()).unwrap_or_default().to_owned();
            self.record(Fact::TopologyRefused { reason: first });
        }
        result
    }

    fn try_reload(&mut self) -> Result<String, String> {
        self.accord.may_reload(&self.options.file)?;
        let (text, topology, _) = read_file(&self.options.file)?;
        let prepared = self.prepare(topology)?;
        let said = self.put_in_force(prepared)?;
        self.accord.runs(0, text);
        Ok(said)
    }

    /// Opens what a topology needs, beside what is open; nothing changes yet.
    pub(super) fn prepare(&self, topology: Topology) -> Result<Prepared, String> {
        if !topology.nodes.is_empty() && !topology.nodes.contains_key(&self.node) {
            return Err(format!(
                "the file no longer has this node, `{}`; to leave, stop the agent",
                self.node
            ));
        }
        if self.base.join(&topology.cluster.data_dir) != self.data_dir {
            return Err("`data_dir` cannot change while the agent runs; restart it".to_owned());
        }
        if let Some(service) = self.moved_pair(&topology) {
            return Err(format!(
                "service.{service} is a pair, and nodes would change its servers at different times: give the changed pair another name"
            ));
        }
        if let Some(why) = self.moved_database(&topology) {
            return Err(why);
        }
        let certificates =
            table::certificates(&topology, &self.base).map_err(|e| format!("{e:#}"))?;
        let trial = table::table(
            0,
            &topology,
            &outlast_core::view::View::default(),
            &self.names.known,
            &certificates,
            self.core.is_joint(),
        );
        outlast_proxy::check(&trial)?;
        if let Some(reason) = start::overlap(&topology, &self.plane.sockets) {
            return Err(reason);
        }
        let opened =
            start::open_missing(&topology, &self.plane.sockets).map_err(|e| format!("{e:#}"))?;
        let moves = topology.cluster.face != self.topology.cluster.face;
        let face = moves.then(|| face::listener(topology.cluster.face)).transpose();
        let face = face.map_err(|e| format!("{e:#}"))?;
        Ok(Prepared { topology, certificates, opened, face })
    }

    /// What of a database that exists would be somewhere else.
    fn moved_database(&self, next: &Topology) -> Option<String> {
        self.agreement.databases.keys().find_map(|name| {
            let (is, will) = (self.topology.postgres.get(name)?, next.postgres.get(name)?);
            let key = match () {
                () if is.version != will.version => "version",
                () if is.data_dir != will.data_dir => "data_dir",
                () if is.port != will.port => "port",
                () if is.user != will.user => "user",
                () => return None,
            };
            Some(format!(
                "`{key}` of postgres.{name} cannot change, because the database exists and nothing moves it: \
                 make a database of another name with it, and bring the data there (docs/postgres.md)"
            ))
        })
    }

    /// A pair of several nodes that would get other servers: which of them serves is agreed on by side.
    fn moved_pair(&self, next: &Topology) -> Option<String> {
        let servers = |topology: &Topology, name: &String| match &topology.services.get(name)?.pool
        {
            Pool::Pair(pair) => Some((pair.primary.clone(), pair.backup.clone())),
            Pool::Balanced { .. } => None,
        };
        let names = self.topology.services.keys().filter(|_| self.core.is_joint());
        let mut moved = names.filter(|name| {
            let (before, after) = (servers(&self.topology, name), servers(next, name));
            before.is_some() && after.is_some() && before != after
        });
        moved.next().cloned()
    }

    /// Runs a topology from now on.
    pub(super) fn put_in_force(&mut self, prepared: Prepared) -> Result<String, String> {
        let Prepared { topology, certificates, opened, face } = prepared;
        let mut actions = Vec::new();
        let (before, now) = (self.core.clone(), self.now());
        self.core.reload(topology, now, &mut actions);
        // Pairs may have got other servers: who serves is written down before anybody acts on it, or all stays as it was.
        if actions.contains(&Action::SavePairs)
            && let Err(error) = state::save(&self.data_dir, &self.core.pairs(), self.core.moving())
        {
            self.core = before;
            return Err(format!("{error:#}; who serves each pair must be written down first"));
        }
        if let Some(listener) = face {
            self.face.move_to(listener);
        }
        self.plane.sockets.extend(opened);
        self.certificates = certificates;
        self.topology = Arc::new(self.core.topology().clone());
        self.probes.follow(&self.topology);
        self.processes.follow(&self.topology);
        self.in_force.send_replace(self.topology.clone());
        if let Some(databases) = &self.databases {
            databases.follow(self.topology.clone());
        }
        self.resolve();
        let mut facts = Vec::new();
        self.plane.set_threads(now.instant, super::proxy_threads(&self.topology), &mut facts);
        self.record_all(facts);
        let said = actions.iter().find_map(|a| match a {
            Action::Record(fact @ Fact::TopologyApplied { .. }) => Some(fact.to_string()),
            Action::Record(_)
            | Action::SavePairs
            | Action::Publish
            | Action::StandbyCommand { .. }
            | Action::StandbyStop { .. }
            | Action::Agree(_) => None,
        });
        self.act(actions);
        let mut said = vec![said.unwrap_or_default()];
        said.extend(self.say_what_is_missing());
        Ok(said.join("\nwarning: "))
    }
}
