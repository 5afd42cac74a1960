//! One connection to one node: a task that reads, writes and keeps watch, and a handle for everybody else.
//!
//! The task is the only one that touches the socket. Whoever sends puts a message into the outbox and wakes it, so that
//! all that was queued in one turn goes out in one write; what comes in goes from the task straight to whoever waits.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use outlast_core::codec::Malformed;
use tokio::io::{AsyncRead as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf};
use tokio::sync::{Notify, oneshot};
use tokio::time::Interval;

use crate::event::PeerHello;
use crate::handshake::{Chain, Stream, part, plain};
use crate::identity::{certificate_error, describe};
use crate::inflow::{Got, Inflow};
use crate::limits::{FAREWELL_MAX, READ_MAX, REQUESTS_MAX, TURNS_MAX};
use crate::links::Shared;
use crate::outbox::{NotTaken, Outbox, Parcel};
use crate::peer::Peer;
use crate::requests::{Reply, Request, RequestError};
use crate::wire::{Frame, Head, Lane};

/// Locks for a moment, never across an await. A thread that panicked in between left nothing half done: all that
/// happens under these locks is a push or a take.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What everybody may do with a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) node: Arc<str>,
    pub(crate) hello: PeerHello,
    pub(crate) since: Instant,
    pub(crate) chain: Option<Chain>,
    outbox: Mutex<Outbox>,
    /// Told when a full queue has room again, and at the end.
    room: Notify,
    waiting: Mutex<Waiting>,
    /// Requests of the other side that are not answered yet.
    pub(crate) unanswered: AtomicUsize,
    /// Counters for people. Times in microseconds since the connection began.
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    heard: AtomicU64,
    round_trip: AtomicU64,
    doubted: AtomicU64,
    /// It must not be here any more: what is queued and what comes in is of no interest.
    expelled: AtomicBool,
    ended: AtomicBool,
}

/// What comes of a request.
pub(crate) type Answer = Result<Vec<u8>, RequestError>;

/// Requests of ours that wait for their answers.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    requests: BTreeMap<u64, oneshot::Sender<Answer>>,
    over: bool,
}

impl Connection {
    pub(crate) fn new(node: Arc<str>, hello: PeerHello, chain: Option<Chain>) -> Connection {
        Connection {
            node,
            hello,
            since: Instant::now(),
            chain,
            outbox: Mutex::default(),
            room: Notify::new(),
            waiting: Mutex::default(),
            unanswered: AtomicUsize::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            round_trip: AtomicU64::new(0),
            doubted: AtomicU64::new(0),
            expelled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    /// Queues a message, or gives it back.
    pub(crate) fn push(&self, lane: Lane, parcel: Parcel) -> Result<(), (NotTaken, Vec<u8>)> {
        let waker = lock(&self.outbox).push(lane, parcel)?;
        wake(waker);
        Ok(())
    }

    /// Queues a message as soon as there is room. The caller sets the limit of time.
    pub(crate) async fn push_when_room(
        &self,
        lane: Lane,
        head: Head,
        mut body: Vec<u8>,
    ) -> Result<(), NotTaken> {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Before looking, so that what is told in between is not missed.
            room.as_mut().enable();
            match self.push(lane, Parcel { head, body }) {
                Ok(()) => return Ok(()),
                Err((NotTaken::Full, back)) => body = back,
                Err((why @ (NotTaken::TooLarge | NotTaken::Closed), _)) => return Err(why),
            }
            room.await;
        }
    }

    /// Opens a place for the answer to a request.
    pub(crate) fn expect_answer(&self) -> Result<(u64, oneshot::Receiver<Answer>), NotTaken> {
        let mut waiting = lock(&self.waiting);
        if waiting.over {
            return Err(NotTaken::Closed);
        }
        if waiting.requests.len() >= REQUESTS_MAX {
            return Err(NotTaken::Full);
        }
        let (sender, receiver) = oneshot::channel();
        let id = waiting.next;
        waiting.next += 1;
        waiting.requests.insert(id, sender);
        Ok((id, receiver))
    }

    pub(crate) fn forget_answer(&self, id: u64) {
        lock(&self.waiting).requests.remove(&id);
    }

    /// Ends it once what is queued has gone out.
    pub(crate) fn close(&self, reason: &str) {
        let waker = lock(&self.outbox).close(reason);
        wake(waker);
        self.room.notify_waiters();
    }

    /// Ends it at once: nothing that comes in is taken any more, and what is queued does not go out.
    pub(crate) fn expel(&self, reason: &str) {
        self.expelled.store(true, Relaxed);
        self.close(reason);
    }

    pub(crate) fn grant(&self, lane: Lane, bytes: usize) {
        let waker = lock(&self.outbox).grant(lane, bytes);
        wake(waker);
    }

    /// Asks the other side to show that it is alive, soon.
    pub(crate) fn doubt(&self) {
        if self.doubted.load(Relaxed) == 0 {
            self.doubted.store(self.now().max(1), Relaxed);
            let waker = {
                let mut outbox = lock(&self.outbox);
                outbox.ping(self.now());
                outbox.wake()
            };
            wake(waker);
        }
    }

    fn now(&self) -> u64 {
        micros(self.since.elapsed())
    }

    pub(crate) fn silent_for(&self) -> Duration {
        Duration::from_micros(self.now().saturating_sub(self.heard.load(Relaxed)))
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        let micros = self.round_trip.load(Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        lock(&self.outbox).queued_bytes()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended.load(Relaxed)
    }

    fn answer(&self, id: u64, answer: Answer) {
        // An answer that came too late finds nobody; that is fine.
        if let Some(sender) = lock(&self.waiting).requests.remove(&id) {
            drop(sender.send(answer));
        }
    }

    /// Lets everybody who waits know that it is over.
    pub(crate) fn end(&self, reason: &str) {
        self.ended.store(true, Relaxed);
        self.close(reason);
        let mut waiting = lock(&self.waiting);
        waiting.over = true;
        let given_up = std::mem::take(&mut waiting.requests);
        drop(waiting);
        drop(given_up);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Why a connection ended, as people read it.
pub(crate) type Reason = String;

/// The task of a connection.
pub(crate) struct Runner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) peer: Arc<Peer>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) stream: Stream,
    inflow: Inflow,
    read: Box<[u8]>,
    start: usize,
    end: usize,
    batch: Vec<u8>,
    written: usize,
    unflushed: bool,
    ticks: Interval,
    /// When the last ping went out.
    pinged: Option<Instant>,
    verified: Instant,
    closing_since: Option<Instant>,
}

impl Runner {
    pub(crate) fn new(
        shared: Arc<Shared>,
        peer: Arc<Peer>,
        connection: Arc<Connection>,
        stream: Stream,
        leftover: &[u8],
    ) -> Runner {
        let mut read = vec![0; READ_MAX].into_boxed_slice();
        read[..leftover.len()].copy_from_slice(leftover);
        let mut ticks = tokio::time::interval(shared.config.timing.ping_every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Runner {
            shared,
            peer,
            connection,
            stream,
            inflow: Inflow::default(),
            read,
            start: 0,
            end: leftover.len(),
            batch: Vec::new(),
            written: 0,
            unflushed: false,
            ticks,
            pinged: None,
            verified: Instant::now(),
            closing_since: None,
        }
    }

    /// Serves the connection until it ends, and says why it did.
    pub(crate) async fn run(mut self) -> Reason {
        let reason = match self.frames() {
            Ok(()) => poll_fn(|cx| self.poll(cx)).await,
            Err(reason) => reason,
        };
        self.over(&reason);
        // Whoever does not listen any more is not waited for.
        drop(tokio::time::timeout(FAREWELL_MAX, self.part(&reason)).await);
        reason
    }

    fn over(&self, reason: &str) {
        self.connection.end(reason);
        self.peer.ended(&self.shared, &self.connection, reason);
    }

    /// Tells the other side why, if it still listens, and closes so that this arrives.
    async fn part(&mut self, reason: &str) -> std::io::Result<()> {
        let mut last = self.batch.split_off(self.written);
        if !lock(&self.connection.outbox).parted() {
            Frame::Goodbye(reason).write(&mut last);
        }
        self.stream.write_all(&last).await?;
        part(&mut self.stream).await;
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        for _ in 0..TURNS_MAX {
            match self.turn(cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(reason) => return Poll::Ready(reason),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Does what can be done now. False: there was nothing, and whoever has something will wake us.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Reason> {
        if self.connection.expelled.load(Relaxed)
            && let Some(reason) = lock(&self.connection.outbox).closed()
        {
            return Err(reason.to_owned());
        }
        let mut moved = false;
        if self.ticks.poll_tick(cx).is_ready() {
            self.tick()?;
            moved = true;
        }
        moved |= self.read(cx)?;
        moved |= self.write(cx)?;
        Ok(moved)
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, Reason> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.read.len() {
            self.read.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut buffer = ReadBuf::new(&mut self.read[self.end..]);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) => return Err(describe_io(&error)),
            Poll::Ready(Ok(())) => {}
        }
        let count = buffer.filled().len();
        if count == 0 {
            return Err("the other side closed the connection".to_owned());
        }
        self.end += count;
        self.connection.bytes_in.fetch_add(count as u64, Relaxed);
        self.connection.heard.store(self.connection.now(), Relaxed);
        self.frames()?;
        Ok(true)
    }

    /// Handles all whole frames that were read.
    fn frames(&mut self) -> Result<(), Reason> {
        let malformed = |Malformed(what)| format!("the other side sends malformed bytes: {what}");
        while let Some((frame, used)) =
            Frame::read(&self.read[self.start..self.end]).map_err(malformed)?
        {
            if let Frame::Data { lane, more: _, payload } = frame
                && !self.peer.receive(&self.connection, lane, payload.len())
            {
                return Err("the other side sends more than it may".to_owned());
            }
            let got = self.inflow.take(frame).map_err(malformed)?;
            self.start += used;
            self.got(got)?;
        }
        Ok(())
    }

    fn got(&self, got: Got) -> Result<(), Reason> {
        let connection = &self.connection;
        match got {
            Got::Part => {}
            Got::Ping(number) => lock(&connection.outbox).pong(number),
            Got::Pong(sent) => {
                let trip = connection.now().saturating_sub(sent).max(1);
                let known = connection.round_trip.load(Relaxed);
                let smooth = if known == 0 { trip } else { (known * 7 + trip) / 8 };
                connection.round_trip.store(smooth.max(1), Relaxed);
            }
            Got::Credit { lane, bytes } => {
                if !lock(&connection.outbox).credit(lane, bytes) {
                    return Err("the other side gives more credit than there is".to_owned());
                }
            }
            Got::Goodbye(why) => return Err(format!("the other side ended it: {}", plain(&why))),
            Got::Message { lane, head, body } => self.message(lane, head, body),
        }
        Ok(())
    }

    fn message(&self, lane: Lane, head: Head, body: Vec<u8>) {
        match (lane, head) {
            (Lane::Answers, Head::Answer { id, good }) => {
                self.peer.taken_at_once(lane);
                let answer = if good {
                    Ok(body)
                } else {
                    Err(RequestError::Refused(plain(&String::from_utf8_lossy(&body))))
                };
                self.connection.answer(id, answer);
            }
            (Lane::Requests, Head::Request(id)) => {
                let reply = Reply::new(self.connection.clone(), id);
                if self.connection.unanswered.load(Relaxed) > REQUESTS_MAX {
                    self.peer.taken_at_once(lane);
                    reply.refuse("too many requests at once");
                } else {
                    self.peer.waits(lane, body.len());
                    let request =
                        Request { from: self.connection.node.clone(), bytes: body, reply };
                    self.shared.deliver_request(request, &self.peer);
                }
            }
            (Lane::Consensus | Lane::Beliefs | Lane::Bulk | Lane::Requests | Lane::Answers, _) => {
                self.peer.waits(lane, body.len());
                self.shared.deliver(lane, body, &self.peer);
            }
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, Reason> {
        // What TLS still holds goes out before more is chosen: its order can no longer be changed.
        if self.written == self.batch.len() && self.unflushed && !self.flush(cx)? {
            return Ok(false);
        }
        if self.written == self.batch.len() {
            self.batch.clear();
            self.written = 0;
            let mut outbox = lock(&self.connection.outbox);
            let room_again = outbox.fill(&mut self.batch);
            if self.batch.is_empty() {
                outbox.sleep(cx.waker());
            }
            drop(outbox);
            if room_again {
                self.connection.room.notify_waiters();
            }
        }
        let mut moved = false;
        while self.written < self.batch.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.batch[self.written..]) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Err(error)) => return Err(describe_io(&error)),
                Poll::Ready(Ok(0)) => return Err("the other side takes nothing".to_owned()),
                Poll::Ready(Ok(count)) => {
                    self.written += count;
                    self.connection.bytes_out.fetch_add(count as u64, Relaxed);
                    self.unflushed = true;
                    moved = true;
                }
            }
        }
        if self.unflushed && !self.flush(cx)? {
            return Ok(moved);
        }
        let outbox = lock(&self.connection.outbox);
        if self.written == self.batch.len()
            && outbox.parted()
            && let Some(reason) = outbox.closed()
        {
            return Err(reason.to_owned());
        }
        Ok(moved)
    }

    /// True once everything is with the kernel.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<bool, Reason> {
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) => return Err(describe_io(&error)),
            Poll::Ready(Ok(())) => self.unflushed = false,
        }
        Ok(true)
    }

    /// Keeps watch: is the other side alive, is its certificate still good?
    fn tick(&mut self) -> Result<(), Reason> {
        let connection = &self.connection;
        let timing = &self.shared.config.timing;
        let silent = connection.silent_for();
        if silent >= timing.silent_max {
            return Err(format!("nothing was heard for {silent:.1?}"));
        }
        let doubted = connection.doubted.load(Relaxed);
        if doubted > 0 {
            if connection.heard.load(Relaxed) > doubted {
                connection.doubted.store(0, Relaxed);
            } else if connection.now() - doubted >= micros(timing.doubted_max) {
                return Err(
                    "it did not answer when another connection of that node came".to_owned()
                );
            }
        }
        if self.verified.elapsed() >= timing.verify_every {
            self.verified = Instant::now();
            self.shared.verify(connection);
        }
        let mut outbox = lock(&connection.outbox);
        if let Some(reason) = outbox.closed() {
            let since = *self.closing_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= crate::limits::STOP_MAX {
                return Err(reason.to_owned());
            }
        }
        // Whoever speaks lives; the other side asks us just so. Most of the time, because an answer comes a little later
        // than the look that asked for it.
        let is_quiet = silent >= timing.ping_every / 2 || doubted > 0;
        if is_quiet || self.pinged.is_none_or(|at| at.elapsed() >= timing.measure_every) {
            self.pinged = Some(Instant::now());
            outbox.ping(connection.now());
        }
        Ok(())
    }
}

/// A task that is cut off, or has a mistake in it, leaves nobody waiting for a connection that is no more.
impl Drop for Runner {
    fn drop(&mut self) {
        if !self.connection.is_over() {
            self.over("its task was ended");
        }
    }
}

/// Judges a connection's certificate again; `None` if it is good.
pub(crate) fn certificate_fault(
    chain: &Chain,
    judge: &crate::identity::Judge,
) -> Option<(rustls::CertificateError, String)> {
    let (first, between) = chain.certificates.split_first()?;
    let now = rustls::pki_types::UnixTime::now();
    let why = judge.judge(first, between, now, chain.role).err()?;
    let why = certificate_error(&why);
    let text = describe(&why);
    Some((why, text))
}

fn describe_io(error: &std::io::Error) -> Reason {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return "the other side closed the connection".to_owned();
    }
    error.to_string()
}
