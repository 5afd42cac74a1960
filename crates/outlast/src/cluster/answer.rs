//! What other nodes tell and ask this one.

use std::sync::Arc;

use outlast_core::agreed::{Agreed, Command, Expected, KvCommand, Reply};
use outlast_core::codec::Code as _;
use outlast_link::{Inbox, Request, Requests};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::agree::{Failure, proposed, refused};
use super::ask::{Answer, Ask, Who};
use super::found::claim_key;
use super::share::{Answering, Asked, News};
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
                let known = self.replica.read(|agreed| claim_stands(agreed, from, id, token));
                if let Err(reason) = known {
                    return Answer::Refused { reason };
                }
                self.claimed(from, id, token).await
            }
            Ask::Failback { service } => {
                self.ask_loop(|answer| Asked::Failback { service, answer }).await
            }
            Ask::Standby(order) => self.ask_loop(|answer| Asked::Standby(order, answer)).await,
            Ask::Address(question) => self.grant(from, &question),
            Ask::Hurry => {
                self.be_nudged();
                Answer::Told { text: String::new() }
            }
        }
    }

    /// Has the agent's loop do something, which has its own limit.
    async fn ask_loop(&self, ask: impl FnOnce(Answering) -> Asked) -> Answer {
        let (answer, answered) = oneshot::channel();
        if self.news.send(News::Asked(ask(answer))).await.is_err() {
            return Answer::Busy;
        }
        match answered.await {
            Ok(Ok(text)) => Answer::Told { text },
            Ok(Err(reason)) => Answer::Refused { reason },
            Err(_) => Answer::Unknown,
        }
    }

    /// Notes which disk has an id; asked again for the same disk, the answer is the same.
    async fn claimed(&self, from: &str, id: u64, token: u64) -> Answer {
        let claim = KvCommand::Cas {
            key: claim_key(id),
            expected: Expected::Absent,
            value: token.to_string().into_bytes(),
            session: None,
        };
        match self.write_as_node(Command::Kv(claim)).await {
            Ok((index, reply)) => {
                // The leader was ahead of us: what we knew of the node may have been over before the claim.
                let mut reached = self.replica.reached.subscribe();
                let here = reached.wait_for(|reached| index <= *reached);
                match tokio::time::timeout(ANSWER_MAX, here).await {
                    Ok(Ok(_)) => self.replica.read(|agreed| {
                        let stands = claim_stands(agreed, from, id, token);
                        stands.map_or_else(
                            |reason| Answer::Refused { reason },
                            |ours| {
                                let written = Reply::Written { version: 1 };
                                Answer::Done { index, reply: if ours { written } else { reply } }
                            },
                        )
                    }),
                    // Asked again, it comes to the same.
                    Ok(Err(_)) | Err(_) => Answer::Busy,
                }
            }
            Err(Failure::Unavailable(_)) => Answer::Busy,
            Err(Failure::Unknown(_)) => Answer::Unknown,
        }
    }
}

/// Whether this disk has the id, seen no earlier than its claim. Refused if the id is not that node's any more: a node
/// that went on under an id that was removed would wait for a leader for ever.
fn claim_stands(agreed: &Agreed, node: &str, id: u64, token: u64) -> Result<bool, String> {
    if agreed.registry().id_of(node) == Some(id) {
        Ok(claim_of(agreed, id) == Some(token))
    } else {
        Err(format!("{id} is not the id of `{node}`"))
    }
}

/// The token of the disk that has this id.
fn claim_of(agreed: &Agreed, id: u64) -> Option<u64> {
    let item = agreed.space().items().get(&claim_key(id))?;
    std::str::from_utf8(&item.value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use outlast_core::agreed::{ClientId, Entry, NodeCommand, NodeRole};
    use outlast_core::time::Timestamp;

    use super::*;

    #[test]
    fn an_id_that_was_removed_before_its_claim_arrived_is_not_given() {
        let mut agreed = Agreed::default();
        let apply = |agreed: &mut Agreed, origin, sequence, command| {
            let entry = Entry { origin, sequence, wall: Timestamp(0), command };
            agreed.apply(agreed.index() + 1, &entry)
        };
        let introduced = apply(&mut agreed, ClientId::NOBODY, 0, Command::Introduce);
        let Reply::Introduced { client } = introduced else { panic!("{introduced}") };
        let client = ClientId(client);
        let join = |name: &str| NodeCommand::Join {
            name: name.to_owned(),
            role: NodeRole::Voter,
            address: "127.0.0.1:1".to_owned(),
            replaces: None,
        };
        for (sequence, name) in [(1, "a"), (2, "b")] {
            apply(&mut agreed, client, sequence, Command::Node(join(name)));
        }
        let id = agreed.registry().id_of("b").expect("it has joined");
        let claim = KvCommand::Cas {
            key: claim_key(id),
            expected: Expected::Absent,
            value: b"7".to_vec(),
            session: None,
        };
        // A node that lags sees the registry as it is here, and sends the claim.
        assert_eq!(claim_stands(&agreed, "b", id, 7), Ok(false));
        let mut in_time = agreed.clone();
        apply(&mut in_time, client, 3, Command::Kv(claim.clone()));
        assert_eq!(claim_stands(&in_time, "b", id, 7), Ok(true));
        assert_eq!(claim_stands(&in_time, "b", id, 8), Ok(false), "another disk has it");
        // The leader has removed the id before the claim comes.
        apply(&mut agreed, client, 3, Command::Node(NodeCommand::Remove { id }));
        apply(&mut agreed, client, 4, Command::Kv(claim));
        claim_stands(&agreed, "b", id, 7).unwrap_err();
    }
}
