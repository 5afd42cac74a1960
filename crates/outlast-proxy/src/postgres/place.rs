//! A place at a server: found now, or waited for while a failover or switchover is under way.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::refusal::Refusal;
use super::wire::keep_alive;
use crate::eject::Outcome;
use crate::fence::Pass;
use crate::http1::{Door, is_our_own_lack};
use crate::io::Io;
use crate::live::{BackendRun, Flight, LiveBackend, LiveService, ServiceState, take};
use crate::stats::ErrorKind;
use crate::tcp::Cut;
use crate::worker;

/// Whoever waits looks again after so long, and up to as long again, if nothing has been told.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A session's place at a server, for as long as it may keep it.
pub(crate) struct Place {
    service: Arc<LiveService>,
    index: usize,
    _flight: Flight,
    pass: Pass,
    lease: Option<Pass>,
    /// The primary stands in for a standby.
    pub(crate) read_only: bool,
}

impl Place {
    pub(crate) fn backend(&self) -> &LiveBackend {
        &self.service.backends[self.index]
    }

    pub(crate) fn service(&self) -> &LiveService {
        &self.service
    }

    /// Has the agent look at once: the server has ended a session by itself.
    pub(crate) fn suspect(&self) {
        let world = worker::with(|w| w.world.clone());
        self.service.suspect(&world, self.backend());
    }

    pub(crate) fn cut(&self) -> Cut<'_> {
        Cut::of(&self.service, self.backend(), self.pass, self.lease)
    }

    /// Does something unless the place is lost.
    pub(crate) async fn unless_cut<F: Future>(&self, work: F) -> Option<F::Output> {
        self.cut().unless(pin!(work)).await
    }
}

/// One client's search for a place.
pub(crate) struct Search<'a> {
    door: &'a Door,
    tried: Vec<usize>,
    began: Instant,
    waiting: Option<Waiting>,
    counted: bool,
}

/// Why a search has ended without a place.
pub(crate) enum Unplaced {
    Refused(Refusal),
    /// Nobody waits any more.
    ClientGone,
}

impl<'a> Search<'a> {
    pub(crate) fn new(door: &'a Door) -> Search<'a> {
        Search { door, tried: Vec::new(), began: Instant::now(), waiting: None, counted: false }
    }

    /// A place and a connection to its server; waits for them as long as the service holds its clients. Whoever comes again
    /// could not begin there: others are tried first.
    pub(crate) async fn next(
        &mut self,
        client: &TcpStream,
    ) -> Result<(Place, TcpStream), Unplaced> {
        loop {
            let service = worker::service(&self.door.service)
                .ok_or_else(|| Unplaced::Refused(Refusal::unserved()))?;
            if service.state.over.load(Relaxed) {
                return Err(Unplaced::Refused(Refusal::ends()));
            }
            let seen = fences();
            if let Some(found) = self.look(&service).await? {
                self.waiting = None;
                return Ok(found);
            }
            self.wait(&service, client, seen).await?;
        }
    }

    /// Tries every server that may take a session now.
    async fn look(
        &mut self,
        service: &Arc<LiveService>,
    ) -> Result<Option<(Place, TcpStream)>, Unplaced> {
        let Some(port) = &service.spec.postgres else { return Ok(None) };
        let key = crate::balance::hash(self.door.client.ip().to_string().as_bytes());
        let world = worker::with(|w| w.world.clone());
        while !port.paused && !service.unvouched() {
            let Some(index) = service.pick(&world, &self.tried, worker::random(), key) else {
                break;
            };
            self.tried.push(index);
            match self.connect(service, index).await {
                Some(Ok(found)) => {
                    service.observe(&world, index, Outcome::Good);
                    return Ok(Some(found));
                }
                // The place was lost meanwhile: the table has changed.
                None => break,
                Some(Err(error)) if is_our_own_lack(&error) => {
                    service.state.own.failed(ErrorKind::Limit);
                    return Err(Unplaced::Refused(Refusal::limit()));
                }
                Some(Err(_refused)) => {
                    service.backends[index].state.counters.failed(ErrorKind::Connect);
                    service.observe(&world, index, Outcome::Failure);
                }
            }
        }
        Ok(None)
    }

    async fn connect(
        &self,
        service: &Arc<LiveService>,
        index: usize,
    ) -> Option<io::Result<(Place, TcpStream)>> {
        let backend = &service.backends[index];
        let mut flight = Flight::enter(service);
        flight.goes_to(&backend.state);
        let read_only = service.fallback() == Some(index);
        // Taken before the connection is made, so that a fence in between is not missed.
        let (pass, lease) = (backend.state.tunnels.pass(), service.lease_pass());
        let place =
            Place { service: service.clone(), index, _flight: flight, pass, lease, read_only };
        let connected = place
            .unless_cut(worker::connect(service, backend, self.door.client, self.door.local))
            .await?;
        Some(match connected {
            Ok(Io::Tcp(stream)) => {
                keep_alive(&stream);
                Ok((place, stream))
            }
            Ok(Io::Server(_) | Io::Client(_) | Io::Memory(_)) => {
                Err(io::Error::other("TLS to a server of PostgreSQL"))
            }
            Err(error) => Err(error),
        })
    }

    /// How long this client is held.
    pub(crate) fn hold(&self) -> Duration {
        let service = worker::service(&self.door.service);
        let port = service.as_ref().and_then(|service| service.spec.postgres.as_ref());
        port.map_or(Duration::ZERO, |port| port.hold)
    }

    /// Waits for another table, or a moment.
    async fn wait(
        &mut self,
        service: &LiveService,
        client: &TcpStream,
        seen: u64,
    ) -> Result<(), Unplaced> {
        let hold = service.spec.postgres.as_ref().map_or(Duration::ZERO, |port| port.hold);
        let left = hold.saturating_sub(self.began.elapsed());
        if left.is_zero() {
            let kind =
                if service.unvouched() { ErrorKind::Unvouched } else { ErrorKind::NoBackend };
            service.state.own.failed(kind);
            return Err(Unplaced::Refused(Refusal::held()));
        }
        if has_left(client) {
            service.state.own.failed(ErrorKind::ClientGone);
            return Err(Unplaced::ClientGone);
        }
        if self.waiting.is_none() {
            let Some(waiting) = Waiting::join(service) else {
                service.state.own.failed(ErrorKind::Limit);
                return Err(Unplaced::Refused(Refusal::queue()));
            };
            self.waiting = Some(waiting);
            if !std::mem::replace(&mut self.counted, true) {
                service.state.held.fetch_add(1, Relaxed);
            }
        }
        self.tried.clear();
        let pause = LOOK_EVERY.mul_f64(1.0 + share(worker::random())).min(left);
        let told = poll_fn(|_cx| if fences() == seen { Poll::Pending } else { Poll::Ready(()) });
        drop(tokio::time::timeout(pause, told).await);
        Ok(())
    }
}

/// A number in [0, 1).
fn share(random: u64) -> f64 {
    f64::from(u32::try_from(random >> 32).unwrap_or_default()) / (f64::from(u32::MAX) + 1.0)
}

/// Which change of the table this worker has seen last, as far as sessions are concerned.
pub(crate) fn fences() -> u64 {
    worker::with(|w| w.live.fences)
}

/// Whether the other side has closed, whatever is still unread.
pub(crate) fn has_left(stream: &TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut asked = [PollFd::new(stream, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&at_once)).is_ok_and(|count| count > 0)
}

/// A place in the bounded queue of clients that wait for a server.
struct Waiting(Arc<ServiceState>);

impl Waiting {
    fn join(service: &LiveService) -> Option<Waiting> {
        if !take(&service.state.queued, service.spec.limits.queue) {
            return None;
        }
        Some(Waiting(service.state.clone()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Relaxed);
    }
}

/// A session that a pause waits for.
pub(crate) struct Working(Arc<BackendRun>);

impl Working {
    pub(crate) fn begin(run: &Arc<BackendRun>) -> Working {
        run.work_begins();
        Working(run.clone())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.work_ends();
    }
}
