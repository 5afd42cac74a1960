//! This node's lease to route to pairs: asked for, renewed every second, and given up in time.

use std::sync::Arc;
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::agent::{ROUTING_LEASE as LEASE, routing_role};
use outlast_core::agreed::{ClientId, Command, Entry, Held, LeaseCommand, Moment, Reply};
use outlast_core::time::Instant;
use tokio::sync::watch;

use super::agree::Failure;
use super::share::News;
use super::thread::Hub;
use crate::agent::shared::wall;

/// What the agent's loop wants of this node's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseWish {
    /// Ask for it and renew it.
    Hold,
    /// Do not renew it: its end is what the others can rely on.
    RunOut,
    /// Give it back at once: no data plane of this node runs.
    GiveBack,
}

const RENEW_EVERY: Duration = Duration::from_secs(1);

/// After a refusal, or where no majority answers.
const AGAIN: Duration = Duration::from_millis(200);

pub(super) fn moment() -> Moment {
    Moment { now: boottime(), wall: wall() }
}

/// How long until a moment of the clock that counts suspension.
pub(super) fn until(at: Instant) -> Duration {
    at.since(boottime())
}

impl Hub {
    /// Holds the lease for as long as it is wanted.
    pub(super) async fn hold_lease(self: Arc<Self>, mut wanted: watch::Receiver<LeaseWish>) {
        let mut client = None;
        loop {
            if wanted.wait_for(|wish| *wish == LeaseWish::Hold).await.is_err() {
                return std::future::pending().await;
            }
            // Whom the leader does not hear cannot say that it has left a side; it must not be waited for.
            let id = self.consensus().and(self.identity().id).filter(|_| self.hears_leader());
            let Some(id) = id else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let role = routing_role(&self.settings.node);
            let sent = moment();
            let grant = LeaseCommand::Grant { role: role.clone(), node: id, ttl: LEASE };
            match self.write(&mut client, Command::Lease(grant), LEASE / 2).await {
                Ok((index, Reply::Granted { epoch })) => {
                    // What was agreed before the grant has to be known here first.
                    let mut reached = self.replica.reached.subscribe();
                    let here = reached.wait_for(|&reached| index <= reached);
                    if tokio::time::timeout(LEASE / 2, here).await.is_ok_and(|here| here.is_ok()) {
                        let agreement = self.replica.agreement.borrow().as_ref().clone();
                        self.news.send(News::Agreed(agreement)).await.ok();
                        self.keep(Held::granted(epoch, LEASE, sent), &role, id, &mut wanted).await;
                        self.news.send(News::Lease(None)).await.ok();
                    }
                }
                Ok((_, other)) => tracing::debug!(%other, "ask for the lease of this node"),
                // The status says that no majority answers.
                Err(failure) => tracing::debug!(?failure, "ask for the lease of this node"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Has a command agreed on that does no harm if it comes twice.
    pub(super) async fn repeat(
        &self,
        command: LeaseCommand,
        limit: Duration,
    ) -> Result<(u64, Reply), Failure> {
        let command = Command::Lease(command);
        let entry = Entry { origin: ClientId::NOBODY, sequence: 0, wall: wall(), command };
        self.propose(&entry, tokio::time::Instant::now() + limit).await
    }

    /// The data plane keeps it to its end, unless it is gone before.
    async fn let_end(
        &self,
        held: Held,
        wish: LeaseWish,
        role: &str,
        node: u64,
        wanted: &mut watch::Receiver<LeaseWish>,
    ) {
        if wish != LeaseWish::GiveBack {
            let gone = wanted.wait_for(|wish| *wish == LeaseWish::GiveBack);
            let gone = tokio::time::timeout(until(held.ends()), gone).await;
            if gone.is_err() {
                return;
            }
        }
        let (role, epoch) = (role.to_owned(), held.epoch());
        self.repeat(LeaseCommand::Release { role, node, epoch }, LEASE / 2).await.ok();
    }

    fn hears_leader(&self) -> bool {
        let Some(consensus) = self.consensus() else { return false };
        let (own, leader) = {
            let standing = consensus.standing();
            let now = standing.borrow();
            (now.id, now.leader)
        };
        let Some(leader) = leader.filter(|leader| *leader != own) else { return leader.is_some() };
        let names = self.replica.names();
        let peers = self.links().peers();
        let peer = names.get(&leader.0).and_then(|name| peers.get(name));
        peer.is_some_and(|peer| peer.connection.is_some())
    }

    /// Renews it until it is over, lost or no longer wanted.
    async fn keep(
        &self,
        mut held: Held,
        role: &str,
        node: u64,
        wanted: &mut watch::Receiver<LeaseWish>,
    ) {
        let epoch = held.epoch();
        let mut told = None;
        while held.check(moment()).is_ok() {
            if told != Some(held.ends()) {
                told = Some(held.ends());
                self.news.send(News::Lease(told)).await.ok();
            }
            let pause = RENEW_EVERY.min(until(held.ends()));
            let other = wanted.wait_for(|wish| *wish != LeaseWish::Hold);
            let other = tokio::time::timeout(pause, other).await;
            let other = other.map(|wish| wish.map_or(LeaseWish::RunOut, |wish| *wish)).ok();
            if let Some(wish) = other {
                self.let_end(held, wish, role, node, wanted).await;
                return;
            }
            if !self.hears_leader() {
                continue;
            }
            let sent = moment();
            if held.check(sent).is_err() {
                return;
            }
            let renew = LeaseCommand::Renew { role: role.to_owned(), node, epoch };
            match self.repeat(renew, until(held.ends())).await {
                Ok((_, Reply::Done)) => held.renewed(sent, moment()),
                Ok((_, other)) => {
                    tracing::warn!(%other, "this node's lease is lost");
                    return;
                }
                // What is left of it is used for further tries.
                Err(failure) => tracing::debug!(?failure, "renew the lease of this node"),
            }
        }
    }
}
