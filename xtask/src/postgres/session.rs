//! One connection to PostgreSQL, and one statement at a time on it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire::{self, Decoder, Message};
use super::{DATABASE, USER};

/// Why a statement was not answered, as far as a client must know.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The server said no; the connection may still be good.
    Refused { sqlstate: String, text: String },
    /// The connection broke, or never came about.
    Broken(anyhow::Error),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Refused { sqlstate, text } => write!(f, "{text} ({sqlstate})"),
            Fault::Broken(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for Fault {}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Fault::Broken(error.into())
    }
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        Fault::Broken(error)
    }
}

pub(crate) type Row = Vec<Option<String>>;

#[derive(Debug)]
pub(crate) struct Session {
    stream: TcpStream,
    decoder: Decoder,
    /// On the heap, as sessions live in futures.
    buffer: Vec<u8>,
}

impl Session {
    pub(crate) async fn open(address: SocketAddr) -> Result<Session, Fault> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut session = Session { stream, decoder: Decoder::default(), buffer: vec![0; 8 << 10] };
        session.stream.write_all(&wire::startup(USER, DATABASE)).await?;
        loop {
            match session.message().await? {
                Message::Ready => return Ok(session),
                Message::Authentication(0) | Message::Other(_) | Message::Row(_) => {}
                Message::Authentication(kind) => {
                    return Err(anyhow::anyhow!("the server wants a proof of kind {kind}").into());
                }
                Message::Error { sqlstate, text } => {
                    return Err(Fault::Refused { sqlstate, text });
                }
            }
        }
    }

    /// The rows of the answer. After a refusal the connection can be used again.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<Row>, Fault> {
        self.stream.write_all(&wire::query(sql)).await?;
        let (mut rows, mut refused) = (Vec::new(), None);
        loop {
            match self.message().await {
                Ok(Message::Row(row)) => rows.push(row),
                Ok(Message::Error { sqlstate, text }) => {
                    refused.get_or_insert(Fault::Refused { sqlstate, text });
                }
                Ok(Message::Ready) => return refused.map_or(Ok(rows), Err),
                Ok(Message::Other(_) | Message::Authentication(_)) => {}
                // What was said last before it broke says more.
                Err(broken) => return Err(refused.unwrap_or(broken)),
            }
        }
    }

    async fn message(&mut self) -> Result<Message, Fault> {
        loop {
            if let Some(message) = self.decoder.message()? {
                return Ok(message);
            }
            let count = self.stream.read(&mut self.buffer).await?;
            if count == 0 {
                return Err(anyhow::anyhow!("the server closed the connection").into());
            }
            self.decoder.feed(&self.buffer[..count]);
        }
    }
}

/// One statement on a connection of its own, within a limit.
pub(crate) async fn ask(at: SocketAddr, sql: &str, limit: Duration) -> anyhow::Result<Vec<Row>> {
    use anyhow::Context;
    let asked = async { Session::open(at).await?.query(sql).await };
    let answer = tokio::time::timeout(limit, asked).await.context("no answer in time");
    answer.and_then(|rows| Ok(rows?)).with_context(|| format!("ask PostgreSQL at {at}"))
}
