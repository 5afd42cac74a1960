//! Somebody who asks every name server all the time, and notes when what was answered.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::MissedTickBehavior;

use super::wire::{self, Answer};
use crate::postgres::monotonic;

/// Between two questions to one server.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(5);
/// Who asks came too late by this much: the machine is too busy to measure on.
const LATE: Duration = Duration::from_millis(40);
/// Answers that are kept until they are taken: some minutes of two dozen servers.
const SEEN_MAX: usize = 4_000_000;

/// One answer of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) at: u64,
    /// The place of its socket in the list.
    pub(super) target: usize,
    pub(super) answer: Answer,
}

#[derive(Debug, Default)]
struct Notes {
    seen: Vec<Seen>,
    late: Duration,
}

/// Dropped, it asks no more.
#[derive(Debug)]
pub(super) struct Watch {
    notes: Arc<Mutex<Notes>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Each socket is connected to the server that it asks.
    pub(super) fn start(sockets: Vec<UdpSocket>, name: &str) -> Result<Watch> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (notes, stop) = (Arc::<Mutex<Notes>>::default(), Arc::<AtomicBool>::default());
        let asker = Asker { name: name.to_owned(), notes: notes.clone(), stop: stop.clone() };
        let run = move || runtime.block_on(asker.ask(sockets));
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(run);
        Ok(Watch { notes, stop, thread: Some(thread.context("start a thread")?) })
    }

    /// What was seen since it was last taken.
    pub(super) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.notes.lock().expect("nobody panics while holding it").seen)
    }

    /// How late it was at most since that was last asked, where that is worth a word.
    pub(super) fn late(&self) -> Duration {
        std::mem::take(&mut self.notes.lock().expect("nobody panics while holding it").late)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("who asks does not panic");
        }
    }
}

struct Asker {
    name: String,
    notes: Arc<Mutex<Notes>>,
    stop: Arc<AtomicBool>,
}

impl Asker {
    async fn ask(self, sockets: Vec<UdpSocket>) {
        let mut targets = Vec::new();
        let mut hearing = tokio::task::JoinSet::new();
        for (target, socket) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(true).expect("a socket can be told not to block");
            let socket = tokio::net::UdpSocket::from_std(socket).expect("a runtime is there");
            let socket = Arc::new(socket);
            targets.push(socket.clone());
            hearing.spawn(hear(socket, target, self.notes.clone()));
        }
        let mut tick = tokio::time::interval(ASK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut id, mut last) = (0_u16, Instant::now());
        while !self.stop.load(Ordering::Relaxed) {
            tick.tick().await;
            let late = last.elapsed().saturating_sub(ASK_EVERY);
            last = Instant::now();
            if LATE < late {
                let mut notes = self.notes.lock().expect("nobody panics while holding it");
                notes.late = notes.late.max(late);
            }
            id = id.wrapping_add(1);
            let question = wire::question(id, &self.name);
            for socket in &targets {
                // No way leads there, or nobody is there: it is seen by what does not come back.
                let _lost = socket.try_send(&question).is_err();
            }
        }
    }
}

/// Notes what one server answers, for as long as somebody asks.
async fn hear(socket: Arc<tokio::net::UdpSocket>, target: usize, notes: Arc<Mutex<Notes>>) {
    let mut buffer = [0; wire::DATAGRAM_MAX];
    loop {
        // An error says that an earlier question could not be delivered.
        let Ok(length) = socket.recv(&mut buffer).await else { continue };
        let Some((_, answer)) = wire::read(&buffer[..length]) else { continue };
        let mut notes = notes.lock().expect("nobody panics while holding it");
        if notes.seen.len() < SEEN_MAX {
            notes.seen.push(Seen { at: monotonic(), target, answer });
        }
    }
}
