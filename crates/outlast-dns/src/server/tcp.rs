//! Everything but plain UDP, on one thread: connections (RFC 7766), what is answered later, and telling secondaries.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::slow::{Datagram, Slow, Way, send};
use super::udp::Cached;
use super::{Name, notify};
use crate::respond::{Asker, MESSAGE_MAX, Reply, Transport, respond};

/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1_000;

/// For how long a connection may rest (RFC 7766 6.2.3), and how long a message may take to come in.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages over UDP that are answered later at a time.
const DATAGRAMS_MAX: usize = 64;

/// How long a failed accept (no descriptors left) waits before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Runs until the server stops.
pub(super) fn run(
    slow: Slow,
    listeners: Vec<TcpListener>,
    datagrams: mpsc::Receiver<Datagram>,
    changes: watch::Receiver<Vec<Name>>,
    mut stopped: watch::Receiver<bool>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "the name server has no TCP"),
    };
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut tasks = JoinSet::new();
        tasks.spawn_local(notify::run(slow.world.clone(), changes));
        tasks.spawn_local(answer_datagrams(slow.clone(), datagrams));
        for listener in listeners {
            tasks.spawn_local(accept(slow.clone(), listener, seats.clone()));
        }
        // Whatever is still open is dropped with its task.
        drop(stopped.wait_for(|stopped| *stopped).await);
        tasks.shutdown().await;
    });
}

/// Answers datagrams, a bounded number at a time.
async fn answer_datagrams(slow: Slow, mut datagrams: mpsc::Receiver<Datagram>) {
    let mut tasks = JoinSet::new();
    while let Some(Datagram { message, later, source, socket }) = datagrams.recv().await {
        if tasks.len() >= DATAGRAMS_MAX {
            tasks.join_next().await;
        }
        let slow = slow.clone();
        tasks.spawn_local(async move {
            slow.answer(message, later, &mut Way::Udp(&socket, source)).await;
        });
        while tasks.try_join_next().is_some() {}
    }
}

/// Accepts connections as long as there are seats.
async fn accept(slow: Slow, listener: TcpListener, seats: Arc<Semaphore>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the name server has no TCP"),
    };
    let mut tasks = JoinSet::new();
    loop {
        let Ok(seat) = seats.clone().acquire_owned().await else { return };
        let Ok((stream, source)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let slow = slow.clone();
        tasks.spawn_local(async move {
            serve(&slow, stream, source).await;
            drop(seat);
        });
        while tasks.try_join_next().is_some() {}
    }
}

/// Answers what comes over a connection, in order, until it rests too long.
async fn serve(slow: &Slow, mut stream: TcpStream, source: SocketAddr) {
    // Without it, an answer might wait for the acknowledgement of the one before.
    drop(stream.set_nodelay(true));
    let mut cached = Cached::new(&slow.world);
    while let Ok(Some(message)) = timeout(IDLE_TIMEOUT, read(&mut stream)).await {
        cached.refresh(&slow.world, &slow.world.version);
        let asker = Asker {
            address: source.ip(),
            transport: Transport::Tcp,
            now: super::now(),
            chance: super::seed(),
        };
        // Not kept while the connection rests.
        let mut out = vec![0; MESSAGE_MAX];
        let reply = respond(&message, asker, &cached.table, &slow.world.state, &mut out);
        slow.counters.count(reply);
        let goes_on = match reply {
            Reply::Send(length, _) => send(&mut stream, &out[..length]).await,
            // Who sends what is no query speaks something else.
            Reply::Drop(_) => false,
            Reply::Later(later) => {
                slow.answer(message, later, &mut Way::Tcp(&mut stream, source)).await
            }
        };
        if !goes_on {
            return;
        }
    }
}

/// The next message; none at the end.
async fn read(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = stream.read_u16().await.ok()?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await.ok()?;
    Some(message)
}
