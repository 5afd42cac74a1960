//! How a connection begins: TLS, greetings, and the decision who may stay.
//!
//! Both sides greet at once and judge each other. The one with the smaller name has the last word, so that of two
//! connections that the same two nodes open at the same time both keep the same one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use outlast_core::codec::Malformed;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, CertificateError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::event::{Refusal, RefusalKind};
use crate::identity::{Identity, Role, describe, node_names};
use crate::limits::{FAREWELL_BYTES_MAX, FAREWELL_MAX, GREETING_MAX, REASON_MAX};
use crate::wire::{Greeting, Hello, PREAMBLE};

/// A stream between two nodes, encrypted or, within one machine, not.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn inner(&mut self) -> Pin<&mut (dyn Both + Unpin)> {
        match self {
            Stream::Plain(stream) => Pin::new(stream),
            Stream::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }
}

trait Both: AsyncRead + AsyncWrite {}
impl<T: AsyncRead + AsyncWrite> Both for T {}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.inner().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.inner().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }
}

/// The certificates by which the other side was believed, to be judged again later.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) certificates: Arc<[CertificateDer<'static>]>,
    pub(crate) role: Role,
}

/// What we expect and may say; the same for each connection of a node.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) ours: Hello,
    /// The node that was dialled; `None` if it dialled.
    pub(crate) dialled: Option<String>,
}

/// A stream after the greeting, and what was read beyond that.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) stream: Stream,
    pub(crate) leftover: Vec<u8>,
}

/// Makes TLS of a dialled connection.
pub(crate) async fn connect(
    stream: TcpStream,
    node: &str,
    identity: Option<&Identity>,
) -> Result<(Stream, Option<Chain>), Refusal> {
    let Some(identity) = identity else { return Ok((Stream::Plain(stream), None)) };
    // The name is compared in the greeting; rustls only wants one.
    let name = ServerName::try_from("node.outlast.internal").expect("it is a DNS name");
    let connecting = TlsConnector::from(identity.client.clone()).connect(name, stream);
    match connecting.into_fallible().await {
        Ok(stream) => {
            let chain = stream.get_ref().1.peer_certificates();
            let chain = chain.map(|c| Chain { certificates: c.into(), role: Role::Server });
            Ok((Stream::Tls(Box::new(stream.into())), chain))
        }
        Err((error, mut stream)) => {
            part(&mut stream).await;
            Err(tls_refusal(&error, &format!("node `{node}`")))
        }
    }
}

/// Makes TLS of an accepted connection, if this node speaks it.
pub(crate) async fn accept(
    mut stream: TcpStream,
    identity: Option<&Identity>,
) -> Result<(Stream, Option<Chain>), Refusal> {
    const TLS_HANDSHAKE: u8 = 22;
    let mut first = [0];
    if stream.peek(&mut first).await.map_err(|e| broken(&e, "the other side"))? == 0 {
        return Err(Refusal::new(RefusalKind::Broken, "it closed the connection without a word"));
    }
    let Some(identity) = identity else {
        if first == [TLS_HANDSHAKE] {
            part(&mut stream).await;
            return Err(Refusal::new(
                RefusalKind::Tls,
                "it speaks TLS, this node does not: give this node certificates too (`outlast certs issue`) and write \
                 them as `tls` in [cluster]",
            ));
        }
        return Ok((Stream::Plain(stream), None));
    };
    if first == [PREAMBLE[0]] {
        let refusal = Refusal::new(
            RefusalKind::NoTls,
            "it speaks without TLS, this cluster uses TLS: give that node a certificate (`outlast certs issue`) and \
             write it as `tls` in [cluster]",
        );
        let mut plain = Stream::Plain(stream);
        refuse(&mut plain, &PREAMBLE, &refusal).await;
        return Err(refusal);
    }
    match TlsAcceptor::from(identity.server.clone()).accept(stream).into_fallible().await {
        Ok(stream) => {
            let chain = stream.get_ref().1.peer_certificates();
            let chain = chain.map(|c| Chain { certificates: c.into(), role: Role::Client });
            Ok((Stream::Tls(Box::new(stream.into())), chain))
        }
        Err((error, mut stream)) => {
            part(&mut stream).await;
            Err(tls_refusal(&error, "the other side"))
        }
    }
}

/// Greets and judges. `judge` is asked once the greeting is there, `last_word` at the end by the side that has it.
pub(crate) async fn greet<T>(
    mut stream: Stream,
    chain: Option<Chain>,
    expected: &Expected,
    judge: impl FnOnce(&Hello) -> Result<u32, Refusal>,
    last_word: impl FnOnce(&Hello, u32, Option<&Chain>) -> Result<T, Refusal>,
) -> Result<(Greeted, T), Refusal> {
    let who =
        expected.dialled.as_ref().map_or("the other side".to_owned(), |n| format!("node `{n}`"));
    let mut out = PREAMBLE.to_vec();
    Greeting::Hello(expected.ours.clone()).write(&mut out);
    send(&mut stream, &out).await.map_err(|e| io_refusal(&e, &who))?;
    let mut read = Vec::new();
    let preamble = read_preamble(&mut stream, &mut read, &who).await;
    let hello = match preamble {
        Ok(()) => read_hello(&mut stream, &mut read, &who).await,
        Err(refusal) => Err(refusal),
    };
    let verdict = hello.and_then(|hello| {
        check_names(&hello, chain.as_ref(), expected)?;
        let version = judge(&hello)?;
        Ok((hello, version))
    });
    let (hello, version) = match verdict {
        Ok(good) => good,
        Err(refusal) => {
            // Whoever refused us, or has gone, need not hear it.
            if !matches!(
                refusal.kind,
                RefusalKind::ByPeer | RefusalKind::AlreadyConnected | RefusalKind::Broken
            ) {
                refuse(&mut stream, &[], &refusal).await;
            }
            return Err(refusal);
        }
    };
    let who = format!("node `{}`", hello.node);
    let last_word_is_ours = expected.ours.node < hello.node;
    if !last_word_is_ours {
        say_accepted(&mut stream, &who).await?;
    }
    match read_greeting(&mut stream, &mut read, &who).await? {
        Greeting::Accepted => {}
        Greeting::Refused { again, reason } => return Err(refused_by_peer(&who, again, &reason)),
        Greeting::Hello(_) => {
            return Err(Refusal::new(RefusalKind::Malformed, format!("{who} greeted twice")));
        }
    }
    let outcome = match last_word(&hello, version, chain.as_ref()) {
        Ok(outcome) => outcome,
        Err(refusal) => {
            refuse(&mut stream, &[], &refusal).await;
            return Err(refusal);
        }
    };
    if last_word_is_ours {
        say_accepted(&mut stream, &who).await?;
    }
    Ok((Greeted { stream, leftover: read }, outcome))
}

/// The name in the certificate, in the greeting and of whom we dialled are one.
fn check_names(hello: &Hello, chain: Option<&Chain>, expected: &Expected) -> Result<(), Refusal> {
    let said = &hello.node;
    if let Some(chain) = chain {
        let names = chain.certificates.first().map(node_names);
        let names = names.and_then(Result::ok).unwrap_or_default();
        if !names.contains(said) {
            let of = match &names[..] {
                [] => "a certificate that names no node".to_owned(),
                [name, ..] => format!("the certificate of node `{}`", plain(name)),
            };
            let text = format!("it says that it is node `{}` and shows {of}", plain(said));
            return Err(Refusal::new(RefusalKind::OtherNode, text));
        }
    }
    if let Some(dialled) = &expected.dialled
        && dialled != said
    {
        let text = format!(
            "at the address of node `{dialled}` there is node `{}`: compare the addresses in the topology file",
            plain(said)
        );
        return Err(Refusal::new(RefusalKind::OtherNode, text));
    }
    Ok(())
}

async fn say_accepted(stream: &mut Stream, who: &str) -> Result<(), Refusal> {
    let mut out = Vec::new();
    Greeting::Accepted.write(&mut out);
    send(stream, &out).await.map_err(|e| io_refusal(&e, who))
}

async fn send(stream: &mut Stream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

async fn read_preamble(stream: &mut Stream, read: &mut Vec<u8>, who: &str) -> Result<(), Refusal> {
    loop {
        let length = read.len().min(PREAMBLE.len());
        if read[..length] != PREAMBLE[..length] {
            let text = match read.first() {
                Some(&form) if read.get(1..length) == Some(&PREAMBLE[1..length]) => format!(
                    "{who} greets in form {form}, this build knows form {}: upgrade one version at a time",
                    PREAMBLE[0]
                ),
                Some(_) | None => format!("{who} does not greet like a node of outlast"),
            };
            return Err(Refusal::new(RefusalKind::Malformed, text));
        }
        if length == PREAMBLE.len() {
            read.drain(..length);
            return Ok(());
        }
        read_more(stream, read, who).await?;
    }
}

async fn read_hello(stream: &mut Stream, read: &mut Vec<u8>, who: &str) -> Result<Hello, Refusal> {
    match read_greeting(stream, read, who).await? {
        Greeting::Hello(hello) => Ok(hello),
        Greeting::Refused { again, reason } => Err(refused_by_peer(who, again, &reason)),
        Greeting::Accepted => {
            Err(Refusal::new(RefusalKind::Malformed, format!("{who} did not say who it is")))
        }
    }
}

async fn read_greeting(
    stream: &mut Stream,
    read: &mut Vec<u8>,
    who: &str,
) -> Result<Greeting, Refusal> {
    loop {
        match Greeting::read(read) {
            Ok(Some((greeting, used))) => {
                read.drain(..used);
                return Ok(greeting);
            }
            Ok(None) => read_more(stream, read, who).await?,
            Err(Malformed(what)) => {
                let text = format!("{who} greets with malformed bytes: {what}");
                return Err(Refusal::new(RefusalKind::Malformed, text));
            }
        }
    }
}

async fn read_more(stream: &mut Stream, read: &mut Vec<u8>, who: &str) -> Result<(), Refusal> {
    // A greeting that is not whole after so many bytes was refused by its length; frames may follow it.
    let mut piece = [0; GREETING_MAX];
    match stream.read(&mut piece).await {
        Ok(0) => {
            let text = format!("{who} closed the connection in the middle of the greeting");
            Err(Refusal::new(RefusalKind::Broken, text))
        }
        Ok(count) => {
            read.extend_from_slice(&piece[..count]);
            Ok(())
        }
        Err(error) => Err(io_refusal(&error, who)),
    }
}

fn refused_by_peer(who: &str, again: bool, reason: &str) -> Refusal {
    let kind = if again { RefusalKind::AlreadyConnected } else { RefusalKind::ByPeer };
    Refusal::new(kind, format!("{who} refuses us: {}", plain(reason)))
}

/// Says why, and waits a moment so that the reason is read before the connection is gone.
pub(crate) async fn refuse(stream: &mut Stream, before: &[u8], refusal: &Refusal) {
    let mut out = before.to_vec();
    let again = refusal.kind == RefusalKind::AlreadyConnected;
    Greeting::Refused { again, reason: refusal.text.clone() }.write(&mut out);
    if tokio::time::timeout(FAREWELL_MAX, send(stream, &out)).await.is_ok_and(|sent| sent.is_ok()) {
        part(stream).await;
    }
}

/// Closes so that what was written arrives: a socket that is closed with unread bytes in it resets the connection.
pub(crate) async fn part(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let farewell = async {
        stream.shutdown().await?;
        let mut left = FAREWELL_BYTES_MAX;
        let mut piece = [0; 1024];
        while left > 0 {
            match stream.read(&mut piece).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        std::io::Result::Ok(())
    };
    // Whoever has gone, or does not go, is left.
    drop(tokio::time::timeout(FAREWELL_MAX, farewell).await);
}

/// A text of the other side, without what could steer a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().take(REASON_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub(crate) fn deadline_refusal(limit: Duration) -> Refusal {
    Refusal::new(RefusalKind::Deadline, format!("no greeting within {limit:?}"))
}

pub(crate) fn broken(error: &std::io::Error, who: &str) -> Refusal {
    Refusal::new(RefusalKind::Broken, format!("{who}: {error}"))
}

fn io_refusal(error: &std::io::Error, who: &str) -> Refusal {
    tls_refusal(error, who)
}

/// What an error of TLS means for people.
#[expect(clippy::wildcard_enum_match_arm, reason = "not our enum, and it grows")]
pub(crate) fn tls_refusal(error: &std::io::Error, who: &str) -> Refusal {
    let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) else {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return Refusal::new(
                RefusalKind::Broken,
                format!(
                    "{who} closed the connection before it was encrypted; perhaps it runs without `tls` in [cluster]"
                ),
            );
        }
        return broken(error, who);
    };
    match tls {
        rustls::Error::InvalidCertificate(why) => {
            let kind = match why {
                CertificateError::Expired => RefusalKind::Expired,
                CertificateError::NotValidYet => RefusalKind::NotValidYet,
                CertificateError::Revoked => RefusalKind::Revoked,
                CertificateError::UnknownIssuer => RefusalKind::OtherCa,
                _ => RefusalKind::BadCertificate,
            };
            Refusal::new(kind, format!("the certificate of {who} is refused: {}", describe(why)))
        }
        rustls::Error::NoCertificatesPresented => Refusal::new(
            RefusalKind::NoCertificate,
            format!("{who} shows no certificate: only nodes of this cluster may connect"),
        ),
        rustls::Error::AlertReceived(alert) => {
            let text = match alert {
                AlertDescription::CertificateExpired => {
                    "our certificate has expired, or a clock is wrong: `outlast certs rotate`"
                }
                AlertDescription::CertificateRevoked => {
                    "our certificate was revoked: `outlast certs issue` makes a new one"
                }
                AlertDescription::UnknownCA => {
                    "our certificate is from another CA than that side trusts: compare the two ca.pem"
                }
                AlertDescription::CertificateRequired => "it wants a certificate and we have none",
                AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
                    "our certificate is not good there"
                }
                _ => return Refusal::new(RefusalKind::ByPeer, format!("{who} refuses us: {tls}")),
            };
            Refusal::new(RefusalKind::ByPeer, format!("{who} refuses us: {text}"))
        }
        rustls::Error::InvalidMessage(_) => {
            Refusal::new(RefusalKind::NoTls, format!("{who} does not speak TLS ({tls})"))
        }
        _ => Refusal::new(RefusalKind::Malformed, format!("{who} breaks the rules of TLS: {tls}")),
    }
}
