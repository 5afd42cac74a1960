//! A client's session, which may outlive its server: it is begun once, and begun again without the client wherever nothing is
//! lost by that.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

use super::cancel::Renamed;
use super::login::{self, Begun, Means, NotBegun};
use super::place::{Place, Search, Unplaced};
use super::refusal::Refusal;
use super::relay::{self, Left, TERMINATE};
use super::resume::{self, Not};
use super::startup::Startup;
use super::talk::Talk;
use super::wire::{Wire, part};
use crate::http1::Door;
use crate::io::{Io, Rest};
use crate::worker;

/// A session has begun by then, or does not begin: PostgreSQL itself waits as long (`authentication_timeout`).
const LOGIN_LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Session {
    pub(crate) door: Door,
    startup: Startup,
    pub(crate) client: TcpStream,
    pub(crate) to_client: Rest,
    pub(crate) to_server: Rest,
    /// What the client said before it was listened to.
    pub(crate) early: Vec<u8>,
    pub(crate) talk: Talk,
    pub(crate) client_ended: bool,
    means: Means,
    cancel_key: Vec<u8>,
    renamed: Option<Renamed>,
}

/// Begins a session for a client that has said who it is, and serves it to its end.
pub(crate) async fn serve(mut client: Wire, startup: Startup, door: Door) {
    match begin(&mut client, &startup, &door).await {
        Ok((begun, place, server)) => {
            let mut session = Session::new(client, startup, door, begun);
            let end = session.run(place, server).await;
            session.renamed = None;
            match end {
                Left::Over | Left::Resting => {}
                Left::Refused(refusal) => part(session.client, &refusal).await,
                Left::Torn => Io::Tcp(session.client).reset(),
            }
        }
        Err(Some(refusal)) => part(client.stream, &refusal).await,
        Err(None) => {}
    }
}

/// Finds a server that takes the session; the client waits for one as long as it is held.
async fn begin(
    client: &mut Wire,
    startup: &Startup,
    door: &Door,
) -> Result<(Begun, Place, Wire), Option<Refusal>> {
    let mut search = Search::new(door);
    loop {
        let (place, stream) = search.next(&client.stream).await.map_err(refusal)?;
        let packet = if place.read_only { startup.read_only() } else { startup.packet().to_vec() };
        let port = place.service().spec.postgres.as_ref();
        let verifier = port.and_then(|port| login::verifier(&port.verifiers, &startup.user));
        let mut server = Wire::new(stream);
        let mut heard = false;
        let beginning =
            Box::pin(login::begin(client, &mut server, &packet, verifier.as_ref(), &mut heard));
        let limited = tokio::time::timeout(LOGIN_LIMIT, beginning);
        match place.unless_cut(limited).await.map(|begun| {
            begun.unwrap_or_else(|_late| Err(NotBegun::Refused(Refusal::lost_login())))
        }) {
            Some(Ok(begun)) => {
                place.backend().state.counters.tunnels.fetch_add(1, Relaxed);
                return Ok((begun, place, server));
            }
            Some(Err(NotBegun::Elsewhere)) => {}
            Some(Err(NotBegun::Over)) => return Err(None),
            Some(Err(NotBegun::Refused(refusal))) => return Err(Some(refusal)),
            None if !heard => {}
            // The client has heard something of it: it cannot begin anew in silence.
            None => return Err(Some(Refusal::lost_login())),
        }
    }
}

fn refusal(unplaced: Unplaced) -> Option<Refusal> {
    match unplaced {
        Unplaced::Refused(refusal) => Some(refusal),
        Unplaced::ClientGone => None,
    }
}

impl Session {
    fn new(client: Wire, startup: Startup, door: Door, begun: Begun) -> Session {
        let mut talk = Talk::new(begun.known);
        if startup.replication {
            talk.bind("replication");
        }
        Session {
            door,
            startup,
            client: client.stream,
            to_client: Rest::default(),
            to_server: Rest::default(),
            early: client.buffer,
            talk,
            client_ended: false,
            means: begun.means,
            cancel_key: begun.cancel_key,
            renamed: None,
        }
    }

    /// Whether a pause waits for it: a stream of the log has no transactions.
    pub(crate) fn works(&self) -> bool {
        !self.startup.replication
    }

    /// Goes from server to server until the session ends.
    async fn run(&mut self, place: Place, server: Wire) -> Left {
        let mut at = (place, server);
        loop {
            match relay::run(self, &at.0, at.1).await {
                Left::Resting => {}
                end @ (Left::Over | Left::Refused(_) | Left::Torn) => return end,
            }
            // Given up before anything is waited for.
            drop(at.0);
            self.renamed = None;
            match self.rest().await {
                Left::Resting => {}
                end @ (Left::Over | Left::Refused(_) | Left::Torn) => return end,
            }
            at = match self.resume().await {
                Ok(at) => at,
                Err(Some(refusal)) if self.to_client.is_empty() => return Left::Refused(refusal),
                Err(_) => return Left::Over,
            };
        }
    }

    /// Without a server, until the client wants something.
    async fn rest(&mut self) -> Left {
        poll_fn(|cx| {
            if ready!(self.poll_tell(cx)).is_err() {
                return Poll::Ready(Left::Over);
            }
            let over = worker::service(&self.door.service)
                .is_none_or(|service| service.state.over.load(Relaxed));
            if over {
                return Poll::Ready(Left::Refused(Refusal::ends()));
            }
            if let Some(&first) = self.early.first() {
                return Poll::Ready(if first == TERMINATE[0] { Left::Over } else { Left::Resting });
            }
            let mut first = [0];
            let mut peeked = ReadBuf::new(&mut first);
            match ready!(self.client.poll_peek(cx, &mut peeked)) {
                Ok(0) | Err(_) => Poll::Ready(Left::Over),
                Ok(_) if first[0] == TERMINATE[0] => Poll::Ready(Left::Over),
                Ok(_) => Poll::Ready(Left::Resting),
            }
        })
        .await
    }

    /// Begins once more at whichever server takes it.
    async fn resume(&mut self) -> Result<(Place, Wire), Option<Refusal>> {
        let door = self.door.clone();
        let mut search = Search::new(&door);
        loop {
            let (place, stream) = search.next(&self.client).await.map_err(refusal)?;
            let mut server = Wire::new(stream);
            let beginning = Box::pin(self.begin_again(&place, &mut server));
            let limited = tokio::time::timeout(search.hold(), beginning);
            let begun = place.unless_cut(limited).await;
            match begun.map(|begun| begun.unwrap_or(Err(Not::Yet))) {
                Some(Ok(key)) => {
                    let state = &place.service().state;
                    state.resumed.fetch_add(1, Relaxed);
                    place.backend().state.counters.tunnels.fetch_add(1, Relaxed);
                    let id = place.backend().state.id;
                    self.renamed = Some(Renamed::begin(place.service(), &self.cancel_key, id, key));
                    return Ok((place, server));
                }
                Some(Err(Not::Ever(reason))) => {
                    place.service().state.bound.fetch_add(1, Relaxed);
                    return Err(Some(Refusal::bound(reason)));
                }
                // The client has heard nothing of it: the next server may have the session.
                Some(Err(Not::Yet)) | None => {}
            }
        }
    }

    async fn begin_again(&mut self, place: &Place, server: &mut Wire) -> Result<Vec<u8>, Not> {
        let packet =
            if place.read_only { self.startup.read_only() } else { self.startup.packet().to_vec() };
        let port = place.service().spec.postgres.as_ref();
        let verifier = port.and_then(|port| login::verifier(&port.verifiers, &self.startup.user));
        let (known, news) = (&mut self.talk.known, &mut self.to_client);
        resume::begin(server, &packet, &self.means, verifier.as_ref(), known, news).await
    }

    /// Tells the client what it is still to get.
    pub(crate) fn poll_tell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.to_client.is_empty() {
            let count =
                ready!(Pin::new(&mut self.client).poll_write(cx, self.to_client.as_slice()))?;
            self.to_client.consume(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the client something now, as far as that goes; it is still to get the rest.
    pub(crate) fn tell_at_once(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let written = match Pin::new(&mut self.client).poll_write(cx, bytes) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.to_client.push(&bytes[written..]);
        Ok(())
    }
}
