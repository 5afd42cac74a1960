//! What is seen of the cluster: facts for the journal, the picture for everybody else.

use std::sync::Arc;
use std::time::Duration;

use outlast_core::event::Fact;
use outlast_link::LinkEvent;
use tokio::sync::mpsc;

use super::share::News;
use super::thread::Hub;
use super::view::{ClusterView, PeerView, Phase};

/// How often the picture of the cluster is drawn anew.
const VIEW_EVERY: Duration = Duration::from_millis(500);

impl Hub {
    pub(super) fn record(&self, fact: Fact) {
        if self.news.try_send(News::Fact(fact)).is_err() {
            tracing::warn!("the journal does not keep up with the cluster");
        }
    }

    pub(super) async fn hear_links(self: Arc<Self>, mut events: mpsc::Receiver<LinkEvent>) {
        while let Some(event) = events.recv().await {
            let fact = match event {
                LinkEvent::Up { node, hello } => {
                    if hello.id != 0 {
                        // Until a leader brings the registry, this is how a node with another id is found.
                        let mut heard = self.heard.lock().expect("no panic while held");
                        heard.insert(hello.id, node.clone());
                    }
                    Fact::LinkUp { node, build: hello.build }
                }
                LinkEvent::Down { node, reason, .. } => Fact::LinkDown { node, reason },
                LinkEvent::Unreachable { node, address, reason } => {
                    Fact::LinkDown { node, reason: format!("{address}: {reason}") }
                }
                LinkEvent::Refused { node, address, refusal, unreported } => {
                    let more = match unreported {
                        0 => String::new(),
                        more => format!(" (and {more} times more)"),
                    };
                    Fact::LinkRefused { node, reason: format!("{address}: {refusal}{more}") }
                }
                LinkEvent::IdentityTaken { fault: None } => Fact::CertificatesTaken,
                LinkEvent::IdentityTaken { fault: Some(reason) }
                | LinkEvent::IdentityRefused { reason } => Fact::CertificatesRefused { reason },
            };
            self.record(fact);
        }
        std::future::pending::<()>().await;
    }

    /// Draws the picture again and again, and notes who leads.
    pub(super) async fn draw(self: Arc<Self>) {
        let mut led_by: Option<Option<String>> = None;
        let mut failed = false;
        loop {
            self.show();
            let view = self.publish.borrow().clone();
            let leader = view.leader().map(str::to_owned);
            if view.phase == Phase::Running && led_by.as_ref() != Some(&leader) {
                let term = view.standing.as_ref().map_or(0, |standing| standing.term);
                match &leader {
                    Some(leader) => {
                        self.record(Fact::LeaderElected { leader: leader.clone(), term });
                    }
                    None if led_by.is_some() => self.record(Fact::LeaderLost),
                    None => {}
                }
                led_by = Some(leader);
            }
            let reason = view.standing.as_ref().and_then(|standing| standing.failed.clone());
            if let Some(reason) = reason.filter(|_| !failed) {
                failed = true;
                self.set_phase(Phase::Failed { reason });
            }
            let changed = async {
                match self.consensus() {
                    Some(consensus) => {
                        let mut standing = consensus.standing();
                        standing.mark_unchanged();
                        let before = standing.borrow().leader;
                        if standing.wait_for(|now| now.leader != before).await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(VIEW_EVERY) => {}
                () = changed => {}
            }
        }
    }

    pub(super) fn show(&self) {
        let phase = self.phase.lock().expect("no panic while held").clone();
        let standing = self.consensus().map(|consensus| consensus.standing().borrow().clone());
        // Where they could not even be begun, that is what there is to show.
        let links = self.links.get().map(|links| links.peers()).unwrap_or_default();
        let peers = links.into_iter().map(|(name, status)| {
            let connection = status.connection.as_ref();
            let peer = PeerView {
                address: status.address.to_string(),
                linked: connection.is_some(),
                lasts: connection.map(|connection| connection.lasts),
                reason: status.reason.clone(),
                silent_for: connection.map(|connection| connection.silent_for),
                round_trip: connection.and_then(|connection| connection.round_trip),
                build: connection.map(|connection| connection.hello.build.clone()),
            };
            (name, peer)
        });
        let peers = peers.collect();
        let names = self.replica.names().as_ref().clone();
        let topology = self.topology_state(false, 0);
        let view = ClusterView { phase, standing, names, peers, topology };
        self.publish.send_replace(Arc::new(view));
    }
}
