//! A node whose cluster agrees through etcd: there is nothing to found with others and no disk that a log could be lost
//! with. Whoever comes first writes down the nodes of its file; everybody else finds them there.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use outlast_consensus::{Members, NodeId};
use outlast_core::topology::{ConsensusKind, EtcdTls};
use outlast_etcd::{Endpoint, Etcd, Roll, SNAPSHOT_AFTER, SNAPSHOT_AFTER_BYTES, Tls};

use super::duties;
use super::replica::{Feeder, Replica};
use super::thread::{ASK_EVERY, Hub};
use super::view::Phase;

impl Hub {
    pub(super) fn agrees_through_etcd(&self) -> bool {
        match self.settings.topology.consensus.kind {
            ConsensusKind::Embedded => false,
            ConsensusKind::Etcd { .. } => true,
        }
    }

    /// Takes part, and says how far it has come.
    pub(super) async fn take_part_through_etcd(
        self: Arc<Self>,
        endpoints: &[String],
        tls: Option<&EtcdTls>,
    ) {
        if let Err(error) = self.start_etcd(endpoints, tls) {
            let reason = format!("{error:#}");
            tracing::error!(reason, "take part in the cluster");
            self.set_phase(Phase::Failed { reason });
            return std::future::pending().await;
        }
        tokio::join!(self.clone().say_where(), duties::look_after(self.clone()));
    }

    fn start_etcd(&self, endpoints: &[String], tls: Option<&EtcdTls>) -> anyhow::Result<()> {
        let at = |path: &String| self.settings.base.join(path);
        let endpoints = endpoints.iter().map(|url| {
            Endpoint::parse(url).with_context(|| format!("`{url}` is no endpoint of etcd"))
        });
        let (begin, _) = self.founding.begin(&BTreeMap::new());
        let (replica, own) = (self.replica.clone(), self.settings.node.clone());
        let settings = outlast_etcd::Settings {
            cluster: self.settings.topology.cluster.name.clone(),
            endpoints: endpoints.collect::<anyhow::Result<_>>()?,
            tls: tls.map(|tls| Tls {
                ca: at(&tls.ca),
                own: tls.own.as_ref().map(|(cert, key)| (at(cert), at(key))),
            }),
            data_dir: self.settings.data_dir.clone(),
            begin: (begin.index, begin.data.to_vec()),
            roll: Box::new(move || roll(&replica, &own)),
            snapshot_after: SNAPSHOT_AFTER,
            snapshot_after_bytes: SNAPSHOT_AFTER_BYTES,
        };
        let etcd = Etcd::start(settings, Feeder::new(self.replica.clone()));
        self.consensus.set(Box::new(etcd.context("agree through etcd")?)).ok();
        Ok(())
    }

    /// Ends when this node takes no part any more.
    async fn say_where(self: Arc<Self>) {
        loop {
            let standing = self.consensus().map(|consensus| consensus.standing().borrow().clone());
            let Some(standing) = standing.filter(|standing| standing.failed.is_none()) else {
                return;
            };
            let own = &self.settings.node;
            let id = self.replica.read(|agreed| agreed.registry().id_of(own));
            // It belongs to the name, not to a disk: nothing has to be written down.
            self.identity.lock().expect("no panic while held").id = id;
            self.set_phase(if id.is_some() {
                Phase::Running
            } else if standing.commit == 0 {
                let why = standing.trouble.unwrap_or_else(|| "waits for etcd".to_owned());
                Phase::Joining { reason: why }
            } else {
                let reason = format!(
                    "the cluster does not know this node: on one of its nodes run `outlast node add {own}`"
                );
                Phase::Joining { reason }
            });
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// Who takes part, by the registry. Nobody votes here: a voter is who may lead.
fn roll(replica: &Replica, own: &str) -> Roll {
    replica.read(|agreed| {
        let mut members = Members::default();
        for (&id, node) in agreed.registry().nodes() {
            let kind = if node.role.votes() { &mut members.voters } else { &mut members.learners };
            kind.insert(NodeId(id));
        }
        Roll { own: agreed.registry().id_of(own).map(NodeId), members }
    })
}
