//! The steady requests, sent from a thread of their own so that nothing else delays them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use super::deeds::POSTS_PERCENT;
use super::ledger::Noted;
use crate::load::{self, Plan};

pub(super) const RATE_PER_SECOND: f64 = 400.0;
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// They take turns, so that none is idle for long.
const CONNECTIONS_MIN: usize = 20;
/// Clients come and go.
const REQUESTS_PER_CONNECTION: u32 = 50;

#[derive(Debug)]
pub(super) struct Load {
    pub(super) posts_percent: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
    samples: Receiver<Noted>,
}

impl Load {
    pub(super) fn start(target: SocketAddr) -> Load {
        let posts_percent = Arc::new(AtomicU32::new(POSTS_PERCENT));
        let plan = Plan {
            timeout: CLIENT_TIMEOUT,
            connections_min: CONNECTIONS_MIN,
            requests_per_connection: REQUESTS_PER_CONNECTION,
            posts_percent: Arc::clone(&posts_percent),
            ..Plan::gets(target, "/", RATE_PER_SECOND)
        };
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let (sender, samples) = channel();
        let thread = std::thread::spawn(move || {
            load::run(&plan, &told, |sample| {
                // Whoever does not listen any more does not want to know.
                let _unheard = sender.send(Noted::from(sample)).is_err();
            })
        });
        Load { posts_percent, stop, thread: Some(thread), samples }
    }

    /// Waits for what is under way, and returns what became of every request.
    pub(super) fn finish(mut self) -> Result<Vec<Noted>> {
        self.halt()?;
        Ok(self.samples.try_iter().collect())
    }

    fn halt(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().ok().context("the load thread panicked").flatten()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ended = self.halt().is_ok();
    }
}
