//! Questions between nodes and their answers: each has a deadline, and so many at once and no more.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::connection::Connection;
use crate::limits::SILENT_MAX;
use crate::outbox::{NotTaken, Parcel};
use crate::wire::{Head, Lane};

/// A question of another node.
#[derive(Debug)]
pub struct Request {
    pub from: Arc<str>,
    pub bytes: Vec<u8>,
    pub reply: Reply,
}

/// Where the answer goes. Dropped unused, it tells the other side that there will be none.
#[derive(Debug)]
pub struct Reply {
    /// `None` once it was used.
    connection: Option<Arc<Connection>>,
    id: u64,
}

impl Reply {
    pub(crate) fn new(connection: Arc<Connection>, id: u64) -> Reply {
        connection.unanswered.fetch_add(1, Relaxed);
        Reply { connection: Some(connection), id }
    }

    /// Answers. While the queue to that node is full it waits; whoever asked has gone if that lasts.
    pub async fn send(mut self, bytes: Vec<u8>) -> Result<(), SendError> {
        let connection = self.connection.take().expect("it is used once");
        connection.unanswered.fetch_sub(1, Relaxed);
        let head = Head::Answer { id: self.id, good: true };
        let push = connection.push_when_room(Lane::Answers, head, bytes);
        match tokio::time::timeout(SILENT_MAX, push).await {
            Ok(pushed) => pushed.map_err(SendError::from),
            Err(_elapsed) => Err(SendError::Full),
        }
    }

    /// Says why there is no answer.
    pub fn refuse(mut self, reason: &str) {
        self.refuse_once(reason);
    }

    fn refuse_once(&mut self, reason: &str) {
        if let Some(connection) = self.connection.take() {
            connection.unanswered.fetch_sub(1, Relaxed);
            let head = Head::Answer { id: self.id, good: false };
            let body = crate::wire::shortened(reason).as_bytes().to_vec();
            // If the queue is full or the connection is over, the deadline tells the other side.
            drop(connection.push(Lane::Answers, Parcel { head, body }));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.refuse_once("it was not answered");
    }
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// There is no connection to that node.
    Down,
    /// The queue is full: the network or the other side is too slow.
    Full,
    /// The message is longer than [`crate::limits::MESSAGE_MAX`].
    TooLarge,
    /// There is no such node in the topology.
    Unknown,
}

impl From<NotTaken> for SendError {
    fn from(why: NotTaken) -> SendError {
        match why {
            NotTaken::Full => SendError::Full,
            NotTaken::TooLarge => SendError::TooLarge,
            NotTaken::Closed => SendError::Down,
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Down => "there is no connection to that node",
            SendError::Full => "too much waits to be sent to that node",
            SendError::TooLarge => "the message is too large",
            SendError::Unknown => "there is no such node",
        })
    }
}

impl std::error::Error for SendError {}

/// Why a request has no answer. Only with `NotSent` is it certain that nothing was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    NotSent(SendError),
    /// The other side said no, and why; what it did before that it knows best.
    Refused(String),
    /// The connection ended before the answer; the request may have taken effect.
    Lost,
    /// No answer in time; the request may have taken effect, or still will.
    Deadline,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::NotSent(why) => write!(f, "not sent: {why}"),
            RequestError::Refused(why) => write!(f, "refused: {why}"),
            RequestError::Lost => f.write_str("the connection ended before the answer"),
            RequestError::Deadline => f.write_str("no answer in time"),
        }
    }
}

impl std::error::Error for RequestError {}
