//! Carries out one order, and says what came of it.

use std::path::PathBuf;
use std::time::Duration;

use outlast_core::agreed::Confirm;
use outlast_core::database::{MemberState, Order};
use outlast_postgres::{Error, Mode, Moment, Postgres, Quorum, StopHow, Upstream, Write};

/// From the order to a primary that takes writes.
const PROMOTE_MAX: Duration = Duration::from_secs(30);

/// Sessions that are in the middle of something may go on for this long when the server is closed.
const CLOSE_GRACE: Duration = Duration::from_millis(1000);

/// What a restart has to write down before it begins may take this long; after that it takes longer itself.
const FLUSH_MAX: Duration = Duration::from_secs(60);

/// How long PostgreSQL may take to end for a restart.
const RESTART_STOP_MAX: Duration = Duration::from_secs(10);

/// The same before a rewind: it writes down what it has replayed.
const REWIND_STOP_MAX: Duration = Duration::from_secs(60);

/// For so long clients may leave by themselves before.
const LEAVE_MAX: Duration = Duration::from_millis(700);
const LEAVE_LOOK: Duration = Duration::from_millis(10);

const CHECKPOINT_MAX: Duration = Duration::from_secs(300);

const VERIFY_MAX: Duration = Duration::from_secs(10);

/// An order with everything that it needs.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) order: Order,
    /// The node that the order names, as an upstream.
    pub(super) upstream: Option<Upstream>,
    /// Of whose primary's log this member's is a part, once the order is carried out.
    pub(super) reign: u64,
    /// When this node's right to be primary ends.
    pub(super) fuse: Option<Moment>,
    /// Commits of a primary wait for others.
    pub(super) waits: bool,
    /// The data may be of before outlast: it may lack our roles.
    pub(super) takes_over: bool,
}

/// What an order has changed.
#[derive(Clone, Debug)]
pub(super) enum Done {
    Nothing,
    /// There is a directory where none was.
    Made,
    /// PostgreSQL was started anew, and follows this node or nobody.
    Started {
        upstream: Option<String>,
    },
    Stopped {
        election: u64,
        timeline: u32,
        lsn: u64,
    },
    Follows {
        node: String,
    },
    Rule(Confirm),
    Promoted {
        rule: Confirm,
    },
    Closed {
        begun: u64,
        lsn: u64,
    },
    Opened,
    Source,
    Verified {
        epoch: u64,
    },
    /// It is down, and has what the primary had.
    Rewound,
    /// The same, and all of it is new. `aside`: where the old directory is; `turn`: of the upkeep for which it was made.
    Cloned {
        turn: Option<u64>,
        aside: Option<PathBuf>,
    },
    Flushed {
        turn: u64,
    },
    /// It has ended as it was asked to.
    Ended {
        turn: u64,
    },
    Killed,
}

/// What a member is doing meanwhile, if others should know.
pub(super) fn doing(order: &Order) -> MemberState {
    match order {
        Order::Create | Order::StartPrimary { .. } | Order::StartStandby { .. } => {
            MemberState::Starting
        }
        Order::Rewind { .. } => MemberState::Rewinding,
        Order::Clone { .. } => MemberState::Cloning,
        Order::Promote { .. } | Order::StopReceiving { .. } | Order::Follow { .. } => {
            MemberState::Standby
        }
        Order::SetRule { .. }
        | Order::Close { .. }
        | Order::Open
        | Order::MakeSource
        | Order::Verify { .. } => MemberState::Primary,
        Order::Flush { .. } | Order::Stop { .. } => MemberState::Restarting,
        Order::Kill { .. } => MemberState::Hung,
    }
}

/// The node that it names.
pub(super) fn upstream(order: &Order) -> Option<&str> {
    match order {
        Order::StartStandby { follow } => follow.as_deref(),
        Order::Follow { node } | Order::Rewind { from: node } | Order::Clone { from: node, .. } => {
            Some(node)
        }
        Order::Create
        | Order::StartPrimary { .. }
        | Order::Promote { .. }
        | Order::StopReceiving { .. }
        | Order::SetRule { .. }
        | Order::Close { .. }
        | Order::Open
        | Order::MakeSource
        | Order::Verify { .. }
        | Order::Flush { .. }
        | Order::Stop { .. }
        | Order::Kill { .. } => None,
    }
}

/// The name of what may take long and holds up no other order.
pub(super) fn beside(order: &Order) -> Option<&'static str> {
    match order {
        Order::MakeSource => Some("checkpoint"),
        Order::Verify { .. } => Some("verify"),
        Order::Flush { .. } => Some("flush"),
        Order::Create
        | Order::StartPrimary { .. }
        | Order::StartStandby { .. }
        | Order::Promote { .. }
        | Order::StopReceiving { .. }
        | Order::Follow { .. }
        | Order::SetRule { .. }
        | Order::Close { .. }
        | Order::Open
        | Order::Stop { .. }
        | Order::Rewind { .. }
        | Order::Clone { .. }
        | Order::Kill { .. } => None,
    }
}

fn quorum(rule: &Confirm) -> Option<Quorum> {
    (rule.acks > 0).then(|| Quorum {
        count: usize::try_from(rule.acks).unwrap_or(usize::MAX),
        names: rule.of.iter().cloned().collect(),
    })
}

/// The ports let sessions end what they have begun, and then leave: what is closed before meets an error.
async fn let_clients_leave(postgres: &Postgres) {
    let end = tokio::time::Instant::now() + LEAVE_MAX;
    while tokio::time::Instant::now() < end {
        if postgres.look().await.is_ok_and(|seen| seen.clients == 0) {
            return;
        }
        tokio::time::sleep(LEAVE_LOOK).await;
    }
}

/// Who goes down to be made like another is no recruit meanwhile: not for one that cannot be reached.
async fn reach_first(postgres: &Postgres, upstream: Option<&Upstream>) -> Result<(), Error> {
    match upstream {
        Some(upstream) => postgres.reaches(upstream).await,
        None => Ok(()),
    }
}

/// Does it. Every part of it has a limit.
pub(super) async fn carry(postgres: Postgres, job: Job) -> Result<Done, Error> {
    let Job { order, upstream, reign, fuse, waits, takes_over } = job;
    match order {
        Order::Create => {
            postgres.create().await?;
            postgres.install_roles().await?;
            Ok(Done::Made)
        }
        Order::StartPrimary { .. } => {
            // Sessions of one that has crashed may still be there.
            postgres.kill().await?;
            if takes_over {
                // One that was not shut down has to recover first; then the roles are made while it runs.
                if let Err(error) = postgres.install_roles().await {
                    tracing::warn!(%error, "make the roles before the start");
                }
            }
            postgres.set_closed(false).await?;
            postgres.start(Mode::Primary, fuse, &mut |_| {}).await?;
            Ok(Done::Started { upstream: None })
        }
        Order::StartStandby { follow } => {
            postgres.kill().await?;
            // A primary that was closed before it handed over lets clients in again.
            postgres.set_closed(false).await?;
            postgres.wait_once_promoted(waits).await?;
            let mode = Mode::Standby { follow: upstream.filter(|_| follow.is_some()) };
            postgres.start(mode, None, &mut |_| {}).await?;
            Ok(Done::Started { upstream: follow })
        }
        Order::Promote { rule, .. } => {
            postgres.set_fuse(fuse).await?;
            postgres.set_sync(quorum(&rule)).await?;
            postgres.drop_relay_slots(None).await?;
            postgres.promote(PROMOTE_MAX).await?;
            Ok(Done::Promoted { rule })
        }
        Order::StopReceiving { election } => {
            let end = postgres.stop_receiving().await?;
            Ok(Done::Stopped { election, timeline: end.timeline, lsn: end.lsn.0 })
        }
        Order::Follow { node } => {
            if let Some(upstream) = upstream {
                postgres.wait_once_promoted(waits).await?;
                postgres.drop_relay_slots(Some(reign)).await?;
                postgres.follow(upstream).await?;
            }
            Ok(Done::Follows { node })
        }
        Order::SetRule { rule } => {
            postgres.set_sync(quorum(&rule)).await?;
            Ok(Done::Rule(rule))
        }
        Order::Close { begun } => {
            let_clients_leave(&postgres).await;
            let end = postgres.close(CLOSE_GRACE).await?;
            Ok(Done::Closed { begun, lsn: end.0 })
        }
        Order::Open => {
            postgres.open().await?;
            Ok(Done::Opened)
        }
        Order::MakeSource => {
            postgres.checkpoint(CHECKPOINT_MAX).await?;
            Ok(Done::Source)
        }
        Order::Verify { epoch } => {
            match postgres.write_probe(Write::Synchronous, VERIFY_MAX).await {
                Ok(()) => Ok(Done::Verified { epoch }),
                // Those that it waits for are not there yet.
                Err(_) => Ok(Done::Nothing),
            }
        }
        Order::Flush { turn } => {
            if let Err(error) = postgres.checkpoint(FLUSH_MAX).await {
                tracing::warn!(%error, "write all down before a restart");
            }
            Ok(Done::Flushed { turn })
        }
        Order::Stop { turn } => {
            let_clients_leave(&postgres).await;
            postgres.stop(StopHow::Fast { deadline: RESTART_STOP_MAX }).await?;
            Ok(Done::Ended { turn })
        }
        Order::Rewind { .. } => {
            reach_first(&postgres, upstream.as_ref()).await?;
            // What was killed as a standby cannot be rewound.
            postgres.stop(StopHow::Fast { deadline: REWIND_STOP_MAX }).await?;
            if let Some(upstream) = upstream {
                postgres.rewind(&upstream, &mut |_| {}).await?;
            }
            Ok(Done::Rewound)
        }
        Order::Clone { turn, .. } => {
            reach_first(&postgres, upstream.as_ref()).await?;
            postgres.kill().await?;
            let copied = match upstream {
                Some(upstream) => Some(postgres.clone_from(&upstream, &mut |_| {}).await?),
                None => None,
            };
            Ok(Done::Cloned { turn, aside: copied.and_then(|copied| copied.aside) })
        }
        Order::Kill { .. } => {
            postgres.kill().await?;
            Ok(Done::Killed)
        }
    }
}
