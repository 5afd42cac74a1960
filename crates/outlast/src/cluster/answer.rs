//! What other nodes tell and ask this one.

use std::sync::Arc;

use outlast_core::agreed::{Agreed, Command, Expected, KvCommand, Reply};
use outlast_core::codec::Code as _;
use outlast_link::{Inbox, Request, Requests};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::agree::{Failure, proposed, refused};
use super::ask::{Answer, Ask, Who};
use super::found::claim_key;
use super::thread::{ANSWER_MAX, Hub};

/// Questions of other nodes that are worked on at the same time.
const QUESTIONS_MAX: usize = 1024;

impl Hub {
    pub(super) async fn deliver(self: Arc<Self>, mut inbox: Inbox) {
        while let Some(incoming) = inbox.next().await {
            let Some(consensus) = self.consensus() else { continue };
            let name: &str = &incoming.from;
            let known = self.replica.names();
            let honest = consensus.deliver(&incoming.bytes, &mut |from| match known.get(&from.0) {
                Some(registered) => registered == name,
                // A node that has no registry yet hears from those who bring it.
                None => {
                    let mut heard = self.heard.lock().expect("no panic while held");
                    heard.entry(from.0).or_insert_with(|| name.to_owned()) == name
                }
            });
            if let Err(error) = honest {
                tracing::warn!(node = name, %error, "drop what is no message of this node");
            }
        }
    }

    pub(super) async fn drop_all(self: Arc<Self>, mut inbox: Inbox) {
        while inbox.next().await.is_some() {}
    }

    pub(super) async fn answer_all(self: Arc<Self>, mut requests: Requests) {
        let room = Arc::new(Semaphore::new(QUESTIONS_MAX));
        let mut open = JoinSet::new();
        while let Some(request) = requests.next().await {
            while open.try_join_next().is_some() {}
            let Ok(place) = room.clone().try_acquire_owned() else {
                request.reply.refuse("too many questions at once");
                continue;
            };
            let hub = self.clone();
            open.spawn(async move {
                hub.answer(request).await;
                drop(place);
            });
        }
    }

    pub(super) async fn answer(&self, request: Request) {
        let answer = match Ask::from_bytes(&request.bytes) {
            Ok(ask) => self.answer_to(&request.from, ask).await,
            Err(error) => return request.reply.refuse(&error.to_string()),
        };
        // Who asked may have gone.
        request.reply.send(answer.to_bytes()).await.ok();
    }

    pub(super) async fn answer_to(&self, from: &str, ask: Ask) -> Answer {
        match ask {
            Ask::WhoAreYou { .. } => {
                let (your_id, your_claim) = self.replica.read(|agreed| {
                    let id = agreed.registry().id_of(from);
                    (id, id.and_then(|id| claim_of(agreed, id)))
                });
                Answer::Who(Who {
                    // A log in etcd is none that another node could join by asking here.
                    joined: !self.agrees_through_etcd()
                        && (self.consensus().is_some() || self.identity().id.is_some()),
                    plan: self.founding.plan,
                    token: self.identity().token,
                    your_id,
                    your_claim,
                })
            }
            Ask::Propose { entry } => match self.consensus() {
                None => Answer::NotLeader { leader: None },
                Some(_) if entry.command.check().is_err() => {
                    Answer::Refused { reason: "the command is too large".to_owned() }
                }
                Some(consensus) => {
                    let proposal = consensus.propose(entry.to_bytes());
                    // Whoever asked has given up by then; it may still take effect.
                    match tokio::time::timeout(ANSWER_MAX, proposal).await {
                        Ok(result) => proposed(result),
                        Err(_elapsed) => Answer::Unknown,
                    }
                }
            },
            Ask::ReadIndex => match self.consensus() {
                None => Answer::NotLeader { leader: None },
                Some(consensus) => match tokio::time::timeout(ANSWER_MAX, consensus.read()).await {
                    Ok(Ok(index)) => Answer::Index { index },
                    Ok(Err(error)) => refused(error),
                    Err(_elapsed) => Answer::Busy,
                },
            },
            Ask::Claim { id, token } => {
                let ours = self.replica.read(|agreed| agreed.registry().id_of(from) == Some(id));
                if !ours {
                    return Answer::Refused { reason: format!("{id} is not the id of `{from}`") };
                }
                self.claimed(id, token).await
            }
        }
    }

    /// Notes which disk has an id; asked again for the same disk, the answer is the same.
    pub(super) async fn claimed(&self, id: u64, token: u64) -> Answer {
        let (key, value) = (claim_key(id), token.to_string().into_bytes());
        let claim = KvCommand::Cas {
            key: key.clone(),
            expected: Expected::Absent,
            value: value.clone(),
            session: None,
        };
        match self.write_as_node(Command::Kv(claim)).await {
            Ok((index, reply)) => {
                let ours = self.replica.read(|agreed| {
                    agreed.space().items().get(&key).is_some_and(|item| item.value == value)
                });
                let reply = if ours { Reply::Written { version: 1 } } else { reply };
                Answer::Done { index, reply }
            }
            Err(Failure::Unavailable(_)) => Answer::Busy,
            Err(Failure::Unknown(_)) => Answer::Unknown,
        }
    }
}

/// The token of the disk that has this id.
fn claim_of(agreed: &Agreed, id: u64) -> Option<u64> {
    let item = agreed.space().items().get(&claim_key(id))?;
    std::str::from_utf8(&item.value).ok()?.parse().ok()
}
