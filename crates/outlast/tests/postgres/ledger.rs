//! A client that writes row after row through the ports, and knows which of them were acknowledged.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::sql::{Failure, Session};

/// Between two writes.
const EVERY: Duration = Duration::from_millis(20);

/// For so long an answer may be awaited: longer than any takeover.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The first row that a writer writes; those below are a test's own.
const FIRST: u64 = 1000;

pub(crate) const TABLE: &str = "create table ledger (id bigint primary key)";

/// What the writer knows.
#[derive(Clone, Debug, Default)]
struct Book {
    tried: BTreeSet<u64>,
    acknowledged: Vec<(u64, Instant)>,
    failures: Vec<(Instant, Failure)>,
    ports: Vec<SocketAddr>,
}

/// A thread that writes until this is dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    book: Arc<Mutex<Book>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Writes through the first of these ports that works.
    pub(crate) fn start(ports: Vec<SocketAddr>) -> Writer {
        Writer::start_at(FIRST, ports)
    }

    /// The same from this row on: others may have those before.
    pub(crate) fn start_at(first: u64, ports: Vec<SocketAddr>) -> Writer {
        let book = Arc::new(Mutex::new(Book { ports, ..Book::default() }));
        let (stop, stopped) = mpsc::channel();
        let writes = book.clone();
        let thread = std::thread::spawn(move || write(first, &writes, &stopped));
        Writer { book, stop: Some(stop), thread: Some(thread) }
    }

    /// From now on these ports.
    pub(crate) fn use_ports(&self, ports: Vec<SocketAddr>) {
        self.book.lock().unwrap().ports = ports;
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.book.lock().unwrap().acknowledged.len()
    }

    pub(crate) fn failures(&self) -> Vec<Failure> {
        self.book.lock().unwrap().failures.iter().map(|(_, failure)| failure.clone()).collect()
    }

    /// How long ago each row was acknowledged.
    pub(crate) fn ages(&self) -> Vec<Duration> {
        self.book.lock().unwrap().acknowledged.iter().map(|(_, at)| at.elapsed()).collect()
    }

    /// The longest time without an acknowledgement since then, up to the last one.
    pub(crate) fn blackout(&self, since: Instant) -> Duration {
        let book = self.book.lock().unwrap();
        let times = book.acknowledged.iter().map(|(_, at)| *at).filter(|at| since <= *at);
        let mut last = since;
        let mut longest = Duration::ZERO;
        for at in times {
            longest = longest.max(at - last);
            last = at;
        }
        longest
    }

    /// Ends the writing; what was tried, and what was acknowledged.
    pub(crate) fn end(mut self) -> Account {
        self.join();
        let book = self.book.lock().unwrap();
        let acknowledged = book.acknowledged.iter().map(|(id, _)| *id).collect();
        Account { tried: book.tried.clone(), acknowledged }
    }

    fn join(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking(), "the writer has failed");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.join();
    }
}

fn write(first: u64, book: &Mutex<Book>, stopped: &mpsc::Receiver<()>) {
    let mut session: Option<Session> = None;
    let mut turn = 0;
    for id in first.. {
        if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        let ports = book.lock().unwrap().ports.clone();
        let port = ports[turn % ports.len()];
        let opened = session.take().map_or_else(|| Session::open(port, ANSWER_MAX), Ok);
        let written = opened.and_then(|mut session| {
            book.lock().unwrap().tried.insert(id);
            session.ask(&format!("insert into ledger values ({id})"))?;
            Ok(session)
        });
        let mut book = book.lock().unwrap();
        match written {
            Ok(open) => {
                book.acknowledged.push((id, Instant::now()));
                session = Some(open);
            }
            Err(failure) => {
                book.failures.push((Instant::now(), failure));
                turn += 1;
            }
        }
    }
}

/// What a writer leaves behind.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) tried: BTreeSet<u64>,
    pub(crate) acknowledged: BTreeSet<u64>,
}

impl Account {
    /// Nothing acknowledged is missing, and nothing is there that was never tried.
    pub(crate) fn check(&self, present: &BTreeSet<u64>) {
        let lost: Vec<_> = self.acknowledged.difference(present).collect();
        let unknown: Vec<_> = present.difference(&self.tried).collect();
        let of = self.acknowledged.len();
        assert!(lost.is_empty(), "{} of {of} acknowledged rows are lost: {lost:?}", lost.len());
        assert!(unknown.is_empty(), "rows that nobody wrote: {unknown:?}");
        assert!(of > 0, "nothing was acknowledged at all");
    }
}
