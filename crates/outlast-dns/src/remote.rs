//! Changes records in other people's servers (RFC 2136): the client's side.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::name::Name;
use crate::respond::{HEAD, QR, UDP_MAX, UPDATE, is_cut};
use crate::tsig::{Asked, TsigKey};
use crate::update::{Change, Prerequisite, write};

/// How often a datagram is sent.
pub const TRIES: u32 = 3;

/// For how long the answer to one is waited for.
pub const UDP_WAIT: Duration = Duration::from_secs(2);

/// For how long a connection may take, its answer included.
pub const TCP_WAIT: Duration = Duration::from_secs(10);

/// Why an update is not known to be done.
#[derive(Debug)]
pub enum RemoteError {
    /// It cannot be written as one message.
    TooLarge,
    /// The server said no, by this code (RFC 6895 2.3), and signed that.
    Refused(u8),
    /// Something said no without a signature: the server does not know the key, or it was somebody else.
    NotSigned(u8),
    /// No answer came in time; it may be done.
    NoAnswer,
    /// The network said no; it may be done.
    Network(io::Error),
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteError::TooLarge => f.write_str("the update does not fit into one message"),
            RemoteError::Refused(code) => {
                write!(f, "the server refuses the update with code {code}")
            }
            RemoteError::NotSigned(code) => {
                write!(f, "code {code}, not signed: the server does not take the key")
            }
            RemoteError::NoAnswer => f.write_str("the server does not answer"),
            RemoteError::Network(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for RemoteError {}

/// Changes a zone in its primary server. What has prerequisites is sent once, over TCP: a datagram that is sent again may find
/// them changed by itself.
pub async fn update(
    server: SocketAddr,
    zone: &Name,
    key: &TsigKey,
    prerequisites: &[Prerequisite],
    changes: &[Change],
) -> Result<(), RemoteError> {
    let id = rand_id().ok_or_else(|| RemoteError::Network(io::Error::other("no randomness")))?;
    let message = write(id, zone, prerequisites, changes).ok_or(RemoteError::TooLarge)?;
    let (message, asked) = Asked::sign(key.clone(), &message).ok_or(RemoteError::TooLarge)?;
    let question = Question { server, id, message, asked };
    let fits = question.message.len() <= usize::from(UDP_MAX);
    if prerequisites.is_empty()
        && fits
        && let Some(result) = question.over_udp().await?
    {
        return result;
    }
    let answer = timeout(TCP_WAIT, question.over_tcp()).await;
    let answer = answer.map_err(|_elapsed| RemoteError::NoAnswer)?.map_err(RemoteError::Network)?;
    question.judge(&answer).unwrap_or(Err(RemoteError::NoAnswer))
}

/// An update on its way.
struct Question {
    server: SocketAddr,
    id: u16,
    message: Vec<u8>,
    asked: Asked,
}

impl Question {
    /// What an answer says; none if it is not one to this question.
    fn judge(&self, answer: &[u8]) -> Option<Result<(), RemoteError>> {
        let is_ours = answer.len() >= HEAD
            && answer[..2] == self.id.to_be_bytes()
            && answer[2] & QR != 0
            && (answer[2] >> 3) & 0xf == UPDATE;
        if !is_ours {
            return None;
        }
        let code = answer[3] & 0xf;
        Some(match (self.asked.is_answer(answer), code) {
            (true, 0) => Ok(()),
            (true, code) => Err(RemoteError::Refused(code)),
            (false, code) => Err(RemoteError::NotSigned(code)),
        })
    }

    /// Asks by datagrams; none if it has to be asked over TCP.
    async fn over_udp(&self) -> Result<Option<Result<(), RemoteError>>, RemoteError> {
        let any = match self.server {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any).await.map_err(RemoteError::Network)?;
        socket.connect(self.server).await.map_err(RemoteError::Network)?;
        let mut worst = RemoteError::NoAnswer;
        for _ in 0..TRIES {
            socket.send(&self.message).await.map_err(RemoteError::Network)?;
            match timeout(UDP_WAIT, self.listen(&socket, &mut worst)).await {
                Ok(done) => return done.map_err(RemoteError::Network),
                Err(_elapsed) => {}
            }
        }
        Ok(Some(Err(worst)))
    }

    /// Waits for a signed answer. What is not signed may come from anybody, so that it only counts if nothing better comes.
    async fn listen(
        &self,
        socket: &UdpSocket,
        worst: &mut RemoteError,
    ) -> io::Result<Option<Result<(), RemoteError>>> {
        let mut answer = [0; UDP_MAX as usize];
        loop {
            let length = socket.recv(&mut answer).await?;
            let answer = &answer[..length];
            match self.judge(answer) {
                Some(_) if is_cut(answer) => return Ok(None),
                Some(Err(error @ RemoteError::NotSigned(_))) => *worst = error,
                Some(result) => return Ok(Some(result)),
                None => {}
            }
        }
    }

    async fn over_tcp(&self) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.server).await?;
        let length = u16::try_from(self.message.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &self.message].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

/// An identifier that nobody guesses.
fn rand_id() -> Option<u16> {
    let mut id = [0; 2];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut id).ok()?;
    Some(u16::from_be_bytes(id))
}
