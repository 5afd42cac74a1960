//! What needs keys, time or more than one message: transfers, updates, signed questions.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Counters, UpdateRequest, World};
use crate::respond::{Asker, Later, MESSAGE_MAX, Rcode, Reply, Transport, UDP_MAX, respond};
use crate::transfer::Transfer;
use crate::tsig::{Signer, TsigKey};
use crate::update::{Update, UpdateAnswer};
use crate::wire::Message;

/// For how long whoever decides on an update may take.
pub(super) const UPDATE_TIMEOUT: Duration = Duration::from_secs(10);

/// For how long a client may leave what is sent unread.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that are left for the signature of an answer over UDP.
const SIGNATURE_ROOM: usize = 500;

/// A datagram that is answered later, over the socket that it came from.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) message: Vec<u8>,
    pub(super) later: Later,
    pub(super) source: SocketAddr,
    pub(super) socket: Arc<UdpSocket>,
}

/// Where answers go.
#[derive(Debug)]
pub(super) enum Way<'c> {
    Udp(&'c UdpSocket, SocketAddr),
    Tcp(&'c mut TcpStream, SocketAddr),
}

impl Way<'_> {
    fn source(&self) -> SocketAddr {
        match self {
            Way::Udp(_, source) | Way::Tcp(_, source) => *source,
        }
    }

    fn transport(&self) -> Transport {
        match self {
            Way::Udp(..) => Transport::Udp,
            Way::Tcp(..) => Transport::Tcp,
        }
    }

    /// Sends one message; false if the client is gone.
    async fn send(&mut self, message: &[u8]) -> bool {
        match self {
            Way::Udp(socket, source) => socket.send_to(message, *source).is_ok(),
            Way::Tcp(stream, _) => send(stream, message).await,
        }
    }
}

/// Sends a message with its length before it (RFC 1035 4.2.2); false if the client is gone or does not read.
pub(super) async fn send(stream: &mut TcpStream, message: &[u8]) -> bool {
    let Ok(length) = u16::try_from(message.len()) else { return false };
    let bytes = [&length.to_be_bytes()[..], message].concat();
    matches!(timeout(WRITE_TIMEOUT, stream.write_all(&bytes)).await, Ok(Ok(())))
}

/// What answers later need.
#[derive(Clone, Debug)]
pub(super) struct Slow {
    pub(super) world: Arc<World>,
    pub(super) updates: mpsc::Sender<UpdateRequest>,
    pub(super) counters: Arc<Counters>,
}

impl Slow {
    /// Answers a message that could not be answered at once; false if the client is gone.
    pub(super) async fn answer(&self, message: Vec<u8>, later: Later, way: &mut Way<'_>) -> bool {
        match later {
            Later::Signed => match self.world.keys.verify(message) {
                Ok((message, signer)) => self.signed(&message, signer, way).await,
                Err(refusal) => refusal.is_empty() || way.send(&refusal).await,
            },
            Later::Transfer => self.transfer(&message, None, way).await,
            // Who sends it without a key may change nothing (RFC 2136 3.3).
            Later::Update => way.send(&Message::answer(&message, Rcode::REFUSED, 0).0).await,
        }
    }

    /// Answers a message whose signature was good.
    async fn signed(&self, message: &[u8], mut signer: Signer, way: &mut Way<'_>) -> bool {
        let room = match way.transport() {
            Transport::Udp => usize::from(UDP_MAX) - SIGNATURE_ROOM,
            Transport::Tcp => MESSAGE_MAX - SIGNATURE_ROOM,
        };
        let mut out = vec![0; room];
        let asker = Asker {
            address: way.source().ip(),
            transport: way.transport(),
            now: super::now(),
            chance: super::seed(),
        };
        let table = self.world.table();
        match respond(message, asker, &table, &self.world.state, &mut out) {
            Reply::Send(length, _) => match signer.sign(&out[..length]) {
                Some(answer) => way.send(&answer).await,
                None => false,
            },
            Reply::Drop(_) => true,
            Reply::Later(Later::Transfer) => self.transfer(message, Some(signer), way).await,
            Reply::Later(Later::Update) => self.update(message, signer, way).await,
            // The signature has been taken off.
            Reply::Later(Later::Signed) => false,
        }
    }

    /// Sends a zone or its changes.
    async fn transfer(
        &self,
        message: &[u8],
        mut signer: Option<Signer>,
        way: &mut Way<'_>,
    ) -> bool {
        let may = match &signer {
            Some(signer) => signer.key().may_transfer,
            None => self.world.config.transfer_to.contains(&way.source().ip()),
        };
        let transfer = if may {
            let table = self.world.table();
            let history = self.world.history.lock().unwrap_or_else(PoisonError::into_inner);
            Transfer::begin(message, &table, &history)
        } else {
            Err(Rcode::REFUSED)
        };
        let mut transfer = match transfer {
            Ok(transfer) => transfer,
            Err(rcode) => {
                let refusal = Message::answer(message, rcode, 0).0;
                return send_signed(way, &mut signer, refusal).await;
            }
        };
        while let Some(message) = transfer.next() {
            if !send_signed(way, &mut signer, message).await {
                return false;
            }
        }
        true
    }

    /// Has an update decided on, and tells what came of it.
    async fn update(&self, message: &[u8], signer: Signer, way: &mut Way<'_>) -> bool {
        let rcode = match self.read_update(message, signer.key()) {
            Ok(update) => self.decide(update, way.source()).await.rcode(),
            Err(rcode) => rcode,
        };
        send_signed(way, &mut Some(signer), Message::answer(message, rcode, 0).0).await
    }

    fn read_update(&self, message: &[u8], key: &TsigKey) -> Result<Update, Rcode> {
        let update = Update::read(message, &key.name)?;
        if self.world.table().zone(update.zone.wire()).is_none() {
            return Err(Rcode::NOTAUTH);
        }
        if key.may_update { Ok(update) } else { Err(Rcode::REFUSED) }
    }

    async fn decide(&self, update: Update, source: SocketAddr) -> UpdateAnswer {
        let (answer, decided) = oneshot::channel();
        if self.updates.try_send(UpdateRequest { update, source, answer }).is_err() {
            return UpdateAnswer::Failed;
        }
        match timeout(UPDATE_TIMEOUT, decided).await {
            Ok(Ok(answer)) => answer,
            _ => UpdateAnswer::Failed,
        }
    }
}

/// Sends a message, signed if the question was.
async fn send_signed(way: &mut Way<'_>, signer: &mut Option<Signer>, message: Vec<u8>) -> bool {
    let message = match signer {
        Some(signer) => signer.sign(&message),
        None => Some(message),
    };
    match message {
        Some(message) => way.send(&message).await,
        None => false,
    }
}
