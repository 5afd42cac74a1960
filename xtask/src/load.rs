//! Open-loop HTTP load: requests are due at fixed times, whatever the answers do, and latency counts from when a
//! request was due. A server that stalls is charged for every request that it made wait.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::http;

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: SocketAddr,
    pub(crate) path: String,
    pub(crate) rate_per_second: f64,
    /// Requests wait when all are in use. Below 65,536.
    pub(crate) connections_max: usize,
    /// From when the request was due.
    pub(crate) timeout: Duration,
    /// So many connections are opened before one is used again, and then they take turns; 0: as few as will do.
    pub(crate) connections_min: usize,
    /// A connection is closed after so many requests, so that new ones come all the time; 0: never.
    pub(crate) requests_per_connection: u32,
    /// Of a hundred requests, so many are POSTs with a small body. A change takes effect with the next request.
    pub(crate) posts_percent: Arc<AtomicU32>,
}

impl Plan {
    /// GETs on as few connections as will do.
    pub(crate) fn gets(target: SocketAddr, path: &str, rate_per_second: f64) -> Plan {
        Plan {
            target,
            path: path.to_owned(),
            rate_per_second,
            connections_max: 1024,
            timeout: Duration::from_secs(5),
            connections_min: 0,
            requests_per_connection: 0,
            posts_percent: Arc::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Post,
}

/// What became of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample<'a> {
    pub(crate) due: Instant,
    pub(crate) latency: Duration,
    pub(crate) method: Method,
    pub(crate) outcome: Outcome,
    /// Of an answer with status 200.
    pub(crate) body: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Status(u16),
    Refused,
    /// Closed or reset before the whole answer was there.
    Cut,
    Timeout,
    Malformed,
}

/// A connection that nobody used for so long is closed by us, before the server may close it under a request.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How often limits are looked after.
const HOUSEKEEPING: Duration = Duration::from_millis(10);
/// The body of a POST.
const POST_BODY: &str = "a small order of one thing, to be done once";
const EVENTS: usize = 256;
const READ_BYTES: usize = 64 << 10;

/// Sends until told to stop, then waits for what is under way. Every request ends in the sink, once.
pub(crate) fn run(plan: &Plan, stop: &AtomicBool, sink: impl FnMut(Sample<'_>)) -> Result<()> {
    let mut engine = Engine::new(plan, sink)?;
    let interval = Duration::from_secs_f64(1.0 / plan.rate_per_second);
    let mut due = Instant::now();
    let mut housekeeping = due;
    loop {
        let stopped = stop.load(Ordering::Relaxed);
        let now = Instant::now();
        while !stopped && due <= now {
            engine.fall_due(due);
            due += interval;
        }
        engine.dispatch();
        if housekeeping <= now {
            engine.enforce_limits(now);
            housekeeping = now + HOUSEKEEPING;
        }
        if stopped && engine.is_quiet() {
            return Ok(());
        }
        let next = if stopped { housekeeping } else { due.min(housekeeping) };
        engine.wait(next.saturating_duration_since(Instant::now()))?;
    }
}

/// A request and when it was due.
#[derive(Clone, Copy, Debug)]
struct Job {
    due: Instant,
    method: Method,
}

enum State {
    Connecting { job: Job },
    Busy { job: Job },
    Idle { since: Instant },
}

struct Connection {
    socket: OwnedFd,
    /// Tells its events from those of an earlier connection in the same place.
    serial: u64,
    state: State,
    received: Vec<u8>,
    requests: u32,
}

impl Connection {
    fn job(&self) -> Option<Job> {
        match self.state {
            State::Connecting { job } | State::Busy { job } => Some(job),
            State::Idle { .. } => None,
        }
    }
}

/// What a read led to.
enum Progress {
    More,
    Done { outcome: Outcome, body: std::ops::Range<usize>, reusable: bool },
}

struct Engine<'a, S> {
    plan: &'a Plan,
    sink: S,
    get: Vec<u8>,
    post: Vec<u8>,
    /// Hundredths of a POST that are owed.
    posts_owed: u32,
    epoll: OwnedFd,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    serial: u64,
    /// The longest idle first; the last is used next.
    idle: VecDeque<usize>,
    waiting: VecDeque<Job>,
    events: Vec<epoll::Event>,
    buffer: Vec<u8>,
}

impl<'a, S: FnMut(Sample<'_>)> Engine<'a, S> {
    fn new(plan: &'a Plan, sink: S) -> Result<Self> {
        let (path, host) = (&plan.path, plan.target);
        let get = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let length = POST_BODY.len();
        let post = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{POST_BODY}"
        );
        Ok(Engine {
            plan,
            sink,
            get: get.into_bytes(),
            post: post.into_bytes(),
            posts_owed: 0,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("create epoll")?,
            connections: (0..plan.connections_max).map(|_| None).collect(),
            free: (0..plan.connections_max).rev().collect(),
            serial: 0,
            idle: VecDeque::new(),
            waiting: VecDeque::new(),
            events: Vec::with_capacity(EVENTS),
            buffer: vec![0; READ_BYTES],
        })
    }

    fn is_quiet(&self) -> bool {
        let open = self.connections.iter().flatten();
        self.waiting.is_empty() && open.filter_map(Connection::job).next().is_none()
    }

    fn fall_due(&mut self, due: Instant) {
        self.posts_owed += self.plan.posts_percent.load(Ordering::Relaxed).min(100);
        let method = if self.posts_owed >= 100 { Method::Post } else { Method::Get };
        if method == Method::Post {
            self.posts_owed -= 100;
        }
        self.waiting.push_back(Job { due, method });
    }

    /// Gives waiting requests to idle connections, or to new ones.
    fn dispatch(&mut self) {
        while let Some(&job) = self.waiting.front() {
            if let Some(at) = self.take_idle() {
                self.waiting.pop_front();
                self.send(at, job);
            } else if let Some(at) = self.free.pop() {
                self.waiting.pop_front();
                self.open(at, job);
            } else {
                return;
            }
        }
    }

    fn take_idle(&mut self) -> Option<usize> {
        let open = self.connections.len() - self.free.len();
        match self.plan.connections_min {
            0 => self.idle.pop_back(),
            min if open < min => None,
            _ => self.idle.pop_front(),
        }
    }

    fn open(&mut self, at: usize, job: Job) {
        self.serial += 1;
        let serial = self.serial;
        match connect(&self.epoll, self.plan.target, event_data(at, serial)) {
            Ok(socket) => {
                let state = State::Connecting { job };
                let (received, requests) = (Vec::new(), 0);
                self.connections[at] =
                    Some(Connection { socket, serial, state, received, requests });
            }
            Err(_errno) => {
                self.free.push(at);
                self.report(job, Outcome::Refused, &[]);
            }
        }
    }

    fn send(&mut self, at: usize, job: Job) {
        let Some(connection) = &mut self.connections[at] else { return };
        connection.state = State::Busy { job };
        connection.requests += 1;
        let request = match job.method {
            Method::Get => &self.get,
            Method::Post => &self.post,
        };
        let sent = rustix::net::send(&connection.socket, request, SendFlags::NOSIGNAL);
        // A request is far smaller than an empty send buffer, so it goes whole or not at all.
        if sent != Ok(request.len()) {
            self.end(at, Outcome::Cut);
        }
    }

    fn wait(&mut self, limit: Duration) -> Result<()> {
        let limit = Timespec::try_from(limit).expect("a few milliseconds fit");
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let room = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, room, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("wait for events"),
        }
        for event in &events {
            let (at, serial) = place_and_serial(event.data);
            self.ready(at, serial);
        }
        self.events = events;
        Ok(())
    }

    fn ready(&mut self, at: usize, serial: u64) {
        let Some(connection) = self.connections[at].as_ref().filter(|c| c.serial == serial) else {
            return;
        };
        match connection.state {
            State::Connecting { job } => self.connected(at, job),
            State::Busy { .. } => self.receive(at),
            // The server has closed it, or talks unasked: neither is of use.
            State::Idle { .. } => self.close(at),
        }
    }

    fn connected(&mut self, at: usize, job: Job) {
        let Some(connection) = &self.connections[at] else { return };
        if !matches!(rustix::net::sockopt::socket_error(&connection.socket), Ok(Ok(()))) {
            return self.end(at, Outcome::Refused);
        }
        let data = event_data(at, connection.serial);
        let listening = epoll::modify(&self.epoll, &connection.socket, data, epoll::EventFlags::IN);
        match listening {
            Ok(()) => self.send(at, job),
            Err(_errno) => self.end(at, Outcome::Refused),
        }
    }

    fn receive(&mut self, at: usize) {
        let Some(connection) = &mut self.connections[at] else { return };
        match rustix::net::recv(&connection.socket, &mut self.buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => self.end(at, Outcome::Cut),
            Ok((count, _)) => {
                connection.received.extend_from_slice(&self.buffer[..count]);
                match progress(&connection.received) {
                    Progress::More => {}
                    Progress::Done { outcome, body, reusable } => {
                        self.answered(at, outcome, body, reusable);
                    }
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_errno) => self.end(at, Outcome::Cut),
        }
    }

    fn answered(
        &mut self,
        at: usize,
        outcome: Outcome,
        body: std::ops::Range<usize>,
        reusable: bool,
    ) {
        let Some(connection) = &mut self.connections[at] else { return };
        let Some(job) = connection.job() else { return };
        let full = self.plan.requests_per_connection;
        let reusable = reusable && (full == 0 || connection.requests < full);
        let mut received = std::mem::take(&mut connection.received);
        self.report(job, outcome, received.get(body).unwrap_or_default());
        if !reusable {
            return self.close(at);
        }
        received.clear();
        if let Some(connection) = &mut self.connections[at] {
            connection.received = received;
            connection.state = State::Idle { since: Instant::now() };
        }
        self.idle.push_back(at);
        self.dispatch();
    }

    /// The request on this connection has failed, and the connection with it.
    fn end(&mut self, at: usize, outcome: Outcome) {
        let job = self.connections[at].as_ref().and_then(Connection::job);
        self.close(at);
        if let Some(job) = job {
            self.report(job, outcome, &[]);
        }
    }

    fn close(&mut self, at: usize) {
        self.connections[at] = None;
        self.idle.retain(|idle| *idle != at);
        self.free.push(at);
    }

    fn enforce_limits(&mut self, now: Instant) {
        for at in 0..self.connections.len() {
            let Some(connection) = &self.connections[at] else { continue };
            match connection.state {
                State::Connecting { job } | State::Busy { job }
                    if now - job.due > self.plan.timeout =>
                {
                    self.end(at, Outcome::Timeout);
                }
                State::Idle { since } if now - since > IDLE_MAX => self.close(at),
                State::Connecting { .. } | State::Busy { .. } | State::Idle { .. } => {}
            }
        }
        while let Some(&job) = self.waiting.front()
            && now - job.due > self.plan.timeout
        {
            self.waiting.pop_front();
            self.report(job, Outcome::Timeout, &[]);
        }
    }

    fn report(&mut self, job: Job, outcome: Outcome, body: &[u8]) {
        let Job { due, method } = job;
        (self.sink)(Sample { due, latency: due.elapsed(), method, outcome, body });
    }
}

const PLACE_BITS: u32 = 16;

fn event_data(at: usize, serial: u64) -> epoll::EventData {
    epoll::EventData::new_u64(serial << PLACE_BITS | at as u64)
}

fn place_and_serial(data: epoll::EventData) -> (usize, u64) {
    let place = data.u64() & ((1 << PLACE_BITS) - 1);
    (usize::try_from(place).expect("sixteen bits fit"), data.u64() >> PLACE_BITS)
}

/// Starts to connect; the event comes when the connection stands or has failed.
fn connect(epoll: &OwnedFd, target: SocketAddr, data: epoll::EventData) -> Result<OwnedFd, Errno> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno),
    }
    epoll::add(epoll, &socket, data, epoll::EventFlags::IN | epoll::EventFlags::OUT)?;
    Ok(socket)
}

/// Whether a whole answer is there, and what it says.
fn progress(received: &[u8]) -> Progress {
    let ended = |outcome| Progress::Done { outcome, body: 0..0, reusable: false };
    let Some(end) = http::head_end(received) else {
        return if received.len() > http::HEAD_MAX {
            ended(Outcome::Malformed)
        } else {
            Progress::More
        };
    };
    let Ok(head) = std::str::from_utf8(&received[..end]) else { return ended(Outcome::Malformed) };
    match http::status(head) {
        Some(200) => {}
        Some(status) => return ended(Outcome::Status(status)),
        None => return ended(Outcome::Malformed),
    }
    let Some(length) = http::content_length(head) else { return ended(Outcome::Malformed) };
    match received.len().cmp(&(end + length)) {
        std::cmp::Ordering::Less => Progress::More,
        std::cmp::Ordering::Equal => {
            let reusable = !http::closes(head);
            Progress::Done { outcome: Outcome::Ok, body: end..end + length, reusable }
        }
        std::cmp::Ordering::Greater => ended(Outcome::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Runs load against a server made of one answer for each connection, in turn; returns the outcomes.
    fn outcomes(answers: &[&'static str], requests: usize, timeout: Duration) -> Vec<Outcome> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let answers = answers.to_vec();
        let server = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                while stream.read(&mut request).is_ok_and(|count| count > 0) {
                    if answer.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
        let plan = Plan { connections_max: 1, timeout, ..Plan::gets(target, "/", 500.0) };
        let stop = AtomicBool::new(false);
        let mut seen = Vec::new();
        run(&plan, &stop, |sample| {
            seen.push(sample.outcome);
            stop.store(seen.len() >= requests, Ordering::Relaxed);
        })
        .unwrap();
        server.join().unwrap();
        seen.truncate(requests);
        seen
    }

    const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    const LONG: Duration = Duration::from_secs(5);

    #[test]
    fn good_answers_share_a_connection() {
        assert_eq!(outcomes(&[FINE], 20, LONG), [Outcome::Ok; 20]);
    }

    #[test]
    fn whatever_is_not_a_whole_200_is_a_failure() {
        let busy = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
        let odd = "HTTP/1.1 200 OK\r\n\r\n";
        let short = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi";
        assert_eq!(outcomes(&[busy], 1, LONG), [Outcome::Status(503)]);
        assert_eq!(outcomes(&[odd], 1, LONG), [Outcome::Malformed]);
        assert_eq!(outcomes(&[""], 1, LONG), [Outcome::Cut]);
        assert_eq!(outcomes(&[short], 1, Duration::from_millis(50)), [Outcome::Timeout]);
    }

    #[test]
    fn connections_take_turns_and_posts_are_their_share() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let plan = Plan {
            connections_min: 4,
            requests_per_connection: 5,
            posts_percent: Arc::new(AtomicU32::new(25)),
            ..Plan::gets(listener.local_addr().unwrap(), "/", 500.0)
        };
        let accepted = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&accepted);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut request = [0; 4096];
                    while stream.read(&mut request).is_ok_and(|count| count > 0) {
                        stream.write_all(FINE.as_bytes()).unwrap();
                    }
                });
            }
        });
        let stop = AtomicBool::new(false);
        let mut methods = Vec::new();
        run(&plan, &stop, |sample| {
            assert_eq!(sample.outcome, Outcome::Ok);
            methods.push(sample.method);
            stop.store(methods.len() >= 40, Ordering::Relaxed);
        })
        .unwrap();
        let posts = methods.iter().filter(|method| **method == Method::Post).count();
        assert!((9..=12).contains(&posts), "{posts} of {}", methods.len());
        assert!((8..=12).contains(&accepted.load(Ordering::Relaxed)), "{accepted:?}");
    }

    #[test]
    fn nobody_listening_is_refused() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let plan = Plan { connections_max: 1, ..Plan::gets(closed, "/", 100.0) };
        let stop = AtomicBool::new(false);
        let mut outcome = None;
        run(&plan, &stop, |sample| {
            outcome = Some(sample.outcome);
            stop.store(true, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(outcome, Some(Outcome::Refused));
    }
}
