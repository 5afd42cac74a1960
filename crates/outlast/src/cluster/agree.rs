//! How this node has something agreed on, and makes sure that what it reads is newest, wherever the leader is.

use std::time::Duration;

use outlast_consensus::{Agreement, NodeId, ProposeError, Standing};
use outlast_core::agreed::{ClientId, Command, Entry, KvCommand, Refusal, Reply};
use outlast_core::codec::Code as _;
use outlast_link::RequestError;
use tokio::time::Instant;

use super::ask::{Answer, Ask};
use super::found::OWN_KEYS;
use super::thread::{ANSWER_MAX, Hub};
use crate::agent::shared::wall;

/// Between two tries, unless the leader changes before.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Who sends commands, so that each takes effect once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    id: ClientId,
    sequence: u64,
}

/// Why something was not agreed on or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing has happened.
    Unavailable(String),
    /// It may have happened.
    Unknown(String),
}

/// What became of an entry.
#[derive(Debug)]
struct Told {
    index: u64,
    reply: Reply,
    /// An earlier try had no answer, and may have been agreed on.
    sent_before: bool,
}

impl Told {
    fn was_forgotten(&self) -> bool {
        matches!(self.reply, Reply::Refused { why: Refusal::Forgotten })
    }

    /// An answer that holds for all tries. Who was forgotten between two of them may have had the first one done.
    fn once(self) -> Result<(u64, Reply), Failure> {
        if self.sent_before && self.was_forgotten() {
            let why = "an earlier try had no answer, and what became of it was forgotten meanwhile";
            return Err(Failure::Unknown(why.to_owned()));
        }
        Ok((self.index, self.reply))
    }
}

impl Hub {
    /// Has a command of this node's own agreed on.
    pub(super) async fn write_as_node(&self, command: Command) -> Result<(u64, Reply), Failure> {
        let mut client = self.client.lock().await;
        self.write(&mut client, command, ANSWER_MAX).await
    }

    /// Has a client's command agreed on, once, wherever the leader is.
    pub(super) async fn write(
        &self,
        client: &mut Option<Client>,
        command: Command,
        limit: Duration,
    ) -> Result<(u64, Reply), Failure> {
        let deadline = Instant::now() + limit;
        let was_known = client.is_some();
        let done = self.write_once(client, command.clone(), deadline).await?;
        if was_known && client.is_none() {
            // Many others were introduced since; who is forgotten had nothing done, and begins anew.
            return self.write_once(client, command, deadline).await;
        }
        Ok(done)
    }

    /// Without the client if it was forgotten.
    async fn write_once(
        &self,
        client: &mut Option<Client>,
        command: Command,
        deadline: Instant,
    ) -> Result<(u64, Reply), Failure> {
        let known = match client {
            Some(client) => client,
            None => {
                let introduce = entry(ClientId::NOBODY, 0, Command::Introduce);
                let introduced = self.propose(&introduce, deadline).await;
                // Being introduced twice harms nobody, and the command itself was not sent yet.
                let introduced = introduced.map_err(|failure| match failure {
                    Failure::Unavailable(why) | Failure::Unknown(why) => Failure::Unavailable(why),
                })?;
                match introduced {
                    (_, Reply::Introduced { client: id }) => {
                        client.insert(Client { id: ClientId(id), sequence: 0 })
                    }
                    (_, other) => {
                        return Err(Failure::Unavailable(format!("introduce: {other:?}")));
                    }
                }
            }
        };
        known.sequence += 1;
        let told = self.bring(&entry(known.id, known.sequence, command), deadline).await?;
        client.take_if(|_| told.was_forgotten());
        told.once()
    }

    /// Has an entry agreed on that does no harm if it comes twice.
    pub(super) async fn propose(
        &self,
        entry: &Entry,
        deadline: Instant,
    ) -> Result<(u64, Reply), Failure> {
        self.bring(entry, deadline).await.map(|told| (told.index, told.reply))
    }

    /// Brings an entry to the leader until it is agreed on. The entry carries its number, so it takes effect once.
    async fn bring(&self, entry: &Entry, deadline: Instant) -> Result<Told, Failure> {
        let mut sent = false;
        let mut why = "this node takes no part in the cluster yet".to_owned();
        let mut standing = self.consensus().map(Agreement::standing);
        while Instant::now() < deadline {
            if let (Some(consensus), Some(standing)) = (self.consensus(), &mut standing) {
                let (serves, own, leader) = {
                    let now = standing.borrow_and_update();
                    (now.serves, now.id, now.leader)
                };
                let here = if serves {
                    let proposal = consensus.propose(entry.to_bytes());
                    match tokio::time::timeout_at(deadline, proposal).await {
                        Ok(result) => Some(proposed(result)),
                        Err(_elapsed) => Some(Answer::Unknown),
                    }
                } else {
                    None
                };
                let answer = match here {
                    // What others keep winning here, the one who leads may get through.
                    Some(Answer::Busy) if leader.is_some_and(|leader| leader != own) => None,
                    here => here,
                };
                let answer = match answer {
                    Some(answer) => answer,
                    None => {
                        let ask = Ask::Propose { entry: entry.clone() }.to_bytes();
                        self.asked_of_leader(leader, ask, deadline).await
                    }
                };
                match answer {
                    Answer::Done { index, reply } => {
                        return Ok(Told { index, reply, sent_before: sent });
                    }
                    Answer::Unknown => {
                        sent = true;
                        why =
                            standing.borrow().trouble.clone().unwrap_or_else(|| {
                                "the leader went while it was under way".to_owned()
                            });
                    }
                    Answer::NotLeader { .. } => why = no_majority(&standing.borrow()),
                    Answer::Busy => why = "too much is under way".to_owned(),
                    Answer::Refused { reason } => why = reason,
                    Answer::Who(_)
                    | Answer::Index { .. }
                    | Answer::Told { .. }
                    | Answer::Grants(_) => {
                        why = "an answer to another question".to_owned();
                    }
                }
                if standing.borrow().failed.is_some() {
                    why = "this node takes no part in the cluster any more".to_owned();
                    break;
                }
                tokio::select! {
                    Ok(()) = standing.changed() => {}
                    () = tokio::time::sleep(TRY_AGAIN) => {}
                }
            } else {
                tokio::time::sleep(TRY_AGAIN).await;
                standing = self.consensus().map(Agreement::standing);
            }
        }
        Err(if sent { Failure::Unknown(why) } else { Failure::Unavailable(why) })
    }

    /// Makes sure that what is applied here has everything that anybody knew of when this was called.
    pub(super) async fn catch_up(&self, limit: Duration) -> Result<u64, Failure> {
        let deadline = Instant::now() + limit;
        let mut why = "this node takes no part in the cluster yet".to_owned();
        while Instant::now() < deadline {
            if let Some(consensus) = self.consensus() {
                let (serves, leader) = {
                    let standing = consensus.standing();
                    let now = standing.borrow();
                    (now.serves, now.leader)
                };
                let answer = if serves {
                    match tokio::time::timeout_at(deadline, consensus.read()).await {
                        Ok(Ok(index)) => return Ok(index),
                        Ok(Err(error)) => refused(error),
                        Err(_elapsed) => Answer::Busy,
                    }
                } else {
                    self.asked_of_leader(leader, Ask::ReadIndex.to_bytes(), deadline).await
                };
                if let Answer::Index { index } = answer {
                    let mut reached = self.replica.reached.subscribe();
                    let here = reached.wait_for(|reached| index <= *reached);
                    if let Ok(Ok(_)) = tokio::time::timeout_at(deadline, here).await {
                        return Ok(index);
                    }
                    why = "this node is behind the leader".to_owned();
                } else {
                    why = no_majority(&consensus.standing().borrow());
                }
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        Err(Failure::Unavailable(why))
    }

    async fn asked_of_leader(
        &self,
        leader: Option<NodeId>,
        ask: Vec<u8>,
        deadline: Instant,
    ) -> Answer {
        match leader.and_then(|leader| self.replica.names().get(&leader.0).cloned()) {
            None => Answer::NotLeader { leader: None },
            Some(name) => self.asked_while_leading(&name, ask, leader, deadline).await,
        }
    }

    /// Asks the leader; gives up at once when another one leads, because the one that was asked may be out of reach.
    async fn asked_while_leading(
        &self,
        name: &str,
        ask: Vec<u8>,
        leader: Option<NodeId>,
        deadline: Instant,
    ) -> Answer {
        let other = async {
            match self.consensus().map(Agreement::standing) {
                Some(mut standing) => {
                    if standing.wait_for(|now| now.leader != leader).await.is_err() {
                        // This node takes no part any more; the leader may answer all the same.
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = self.asked(name, ask, deadline) => answer,
            // What was asked may have been done.
            () = other => Answer::Unknown,
        }
    }

    pub(super) async fn asked(&self, name: &str, ask: Vec<u8>, deadline: Instant) -> Answer {
        let limit = deadline.saturating_duration_since(Instant::now()).min(ANSWER_MAX);
        match self.links().request(name, ask, limit).await {
            Ok(bytes) => Answer::from_bytes(&bytes)
                .unwrap_or_else(|error| Answer::Refused { reason: error.to_string() }),
            Err(RequestError::NotSent(_)) => Answer::NotLeader { leader: None },
            Err(RequestError::Refused(reason)) => Answer::Refused { reason },
            Err(RequestError::Lost | RequestError::Deadline) => Answer::Unknown,
        }
    }
}

/// Why nothing is agreed on.
fn no_majority(standing: &Standing) -> String {
    match &standing.trouble {
        Some(trouble) => trouble.clone(),
        None => "no leader has a majority of the voters behind it".to_owned(),
    }
}

fn entry(origin: ClientId, sequence: u64, command: Command) -> Entry {
    Entry { origin, sequence, wall: wall(), command }
}

pub(super) fn proposed(result: Result<outlast_consensus::Applied, ProposeError>) -> Answer {
    match result {
        Ok(applied) => match Reply::from_bytes(&applied.reply) {
            Ok(reply) => Answer::Done { index: applied.index, reply },
            Err(error) => Answer::Refused { reason: error.to_string() },
        },
        Err(error) => refused(error),
    }
}

pub(super) fn refused(error: ProposeError) -> Answer {
    match error {
        ProposeError::NotLeader(leader) => Answer::NotLeader { leader: leader.map(|id| id.0) },
        ProposeError::Busy => Answer::Busy,
        ProposeError::Unknown => Answer::Unknown,
        ProposeError::Stopped => Answer::NotLeader { leader: None },
    }
}

/// Whether people's commands may touch this.
pub(super) fn is_own(command: &Command) -> bool {
    match command {
        Command::Kv(
            KvCommand::Put { key, .. } | KvCommand::Delete { key, .. } | KvCommand::Cas { key, .. },
        ) => key.starts_with(OWN_KEYS),
        Command::Introduce
        | Command::Node(_)
        | Command::Topology(_)
        | Command::Lease(_)
        | Command::Notice(_)
        | Command::Procedure(_)
        | Command::Session(_)
        | Command::Lock(_)
        | Command::Side(_)
        | Command::Database(_)
        | Command::Address(_)
        | Command::Names(_)
        | Command::Record { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_forgotten_between_two_tries_does_not_know_what_became_of_the_first() {
        let told = |sent_before, reply| Told { index: 7, reply, sent_before }.once();
        let forgotten = Reply::Refused { why: Refusal::Forgotten };
        assert!(matches!(told(true, forgotten), Err(Failure::Unknown(_))));
        // Nothing had been sent before: nothing has happened.
        assert_eq!(told(false, forgotten), Ok((7, forgotten)));
        // Its number was known: this is the answer to whichever try came first.
        assert_eq!(told(true, Reply::Done), Ok((7, Reply::Done)));
    }
}
