//! PostgreSQL's own protocol (version 3, chapter 55 of its documentation): sessions that may outlive their server.
//!
//! `startup` reads what a client says first, `place` finds it a server or has it wait, `login` begins the session, `relay` moves
//! its messages and `talk` reads them on the way, so that `session` can begin it again elsewhere when nothing is lost by that.

mod cancel;
mod login;
pub mod params;
mod place;
pub mod refusal;
mod relay;
mod resume;
pub mod scram;
mod session;
pub mod startup;
pub mod talk;
mod wire;
pub mod words;

use std::time::Duration;

use tokio::net::TcpStream;

use self::place::{Search, Unplaced};
use self::refusal::Refusal;
use self::startup::{Opening, TLS_REQUEST};
use self::wire::{Wire, keep_alive, part};
use crate::http1::Door;
use crate::io::{Io, Rest};
use crate::seats::Seat;
use crate::stats::ErrorKind;
use crate::{tcp, worker};

/// No tunnel ends because nothing moves: databases are quiet for days. Keep-alives find out who has gone.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Questions for encryption that one client may ask before it begins.
const QUESTIONS_MAX: usize = 3;

/// Serves one client of a database.
pub(crate) async fn serve(io: Io, door: Door) {
    let Io::Tcp(stream) = io else { return };
    let Some(service) = worker::service(&door.service) else { return };
    keep_alive(&stream);
    let _seat = Seat::take().await;
    let mut client = Wire::new(stream);
    for _ in 0..QUESTIONS_MAX {
        let opening = tokio::time::timeout(service.spec.timeouts.head, opening(&mut client)).await;
        let refused = match opening {
            Ok(Some(Ok(Opening::Startup(startup)))) => {
                return Box::pin(session::serve(client, startup, door)).await;
            }
            Ok(Some(Ok(Opening::Cancel(packet)))) => return cancel::pass_on(&packet, &door).await,
            Ok(Some(Ok(Opening::DirectTls))) => return Box::pin(tunnel(client, door)).await,
            Ok(Some(Ok(Opening::Tls))) => match Box::pin(ask_for_tls(&mut client, &door)).await {
                Tls::No => continue,
                Tls::Over => return,
                Tls::Tunnel(place, server) => return through(client, server, &place).await,
                Tls::Refused(refusal) => Some(refusal),
            },
            // Not passed through: its names would not fit.
            Ok(Some(Ok(Opening::Gss))) => match client.send(b"N").await {
                Ok(()) => continue,
                Err(_gone) => return,
            },
            Ok(Some(Ok(Opening::Unknown(major, minor)))) => {
                Some(Refusal::unknown_protocol(major, minor))
            }
            Ok(Some(Err(what))) => Some(Refusal::malformed(what)),
            Ok(None) | Err(_) => None,
        };
        service.state.own.failed(ErrorKind::BadRequest);
        if let Some(refusal) = refused {
            part(client.stream, &refusal).await;
        }
        return;
    }
}

/// Tells a client that came in beyond the limit.
pub(crate) async fn turn_away(stream: TcpStream) {
    part(stream, &Refusal::limit()).await;
}

/// Reads the first packet; `None` if the client has gone.
async fn opening(client: &mut Wire) -> Option<Result<Opening, &'static str>> {
    loop {
        match startup::read(&client.buffer) {
            Ok(Some((opening, length))) => {
                client.consume(length);
                // What is sent before the answer to a question could be read as if it came encrypted (CVE-2021-23214).
                let asks = matches!(opening, Opening::Tls | Opening::Gss);
                let early = asks && !client.buffer.is_empty();
                return Some(if early {
                    Err("received unencrypted data after a request for encryption")
                } else {
                    Ok(opening)
                });
            }
            Ok(None) => {}
            Err(malformed) => return Some(Err(malformed.0)),
        }
        if !client.fill().await.unwrap_or(false) {
            return None;
        }
    }
}

/// What a server says of TLS.
enum Tls {
    No,
    Tunnel(place::Place, TcpStream),
    Refused(Refusal),
    Over,
}

async fn ask_for_tls(client: &mut Wire, door: &Door) -> Tls {
    let mut search = Search::new(door);
    loop {
        let (place, mut server) = match search.next(&client.stream).await {
            Ok(found) => found,
            Err(Unplaced::Refused(refusal)) => return Tls::Refused(refusal),
            Err(Unplaced::ClientGone) => return Tls::Over,
        };
        if place.read_only {
            return Tls::Refused(Refusal::tls_at_primary());
        }
        let Some(Ok(answer)) = place.unless_cut(answer(&mut server)).await else { continue };
        if client.send(&[answer]).await.is_err() {
            return Tls::Over;
        }
        match answer {
            b'S' => return Tls::Tunnel(place, server),
            b'N' => return Tls::No,
            _ => return Tls::Over,
        }
    }
}

/// One byte and not more: TLS begins after it.
async fn answer(server: &mut TcpStream) -> std::io::Result<u8> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    server.write_all(&TLS_REQUEST).await?;
    server.read_u8().await
}

/// A client that begins with TLS, without a question.
async fn tunnel(client: Wire, door: Door) {
    let mut search = Search::new(&door);
    // There is no way to tell a reason before TLS has begun.
    let Ok((place, server)) = search.next(&client.stream).await else { return };
    if !place.read_only {
        through(client, server, &place).await;
    }
}

/// Bytes both ways that nobody here can read.
async fn through(client: Wire, server: TcpStream, place: &place::Place) {
    place.backend().state.counters.tunnels.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut rest = Rest::default();
    rest.push(&client.buffer);
    let (client, server) = (Io::Tcp(client.stream), Io::Tcp(server));
    tcp::run(client, rest, server, Rest::default(), NEVER, place.cut()).await;
}
