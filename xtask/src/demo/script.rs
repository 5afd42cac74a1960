//! The order of events: every fault once on every backend, or random ones without end.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};

use super::fault::Fault;
use super::ledger::{Ledger, Noted};
use super::report;
use super::stage::Stage;
use crate::out;

/// All backends serve within this time before the first fault.
const WARM_UP_LIMIT: Duration = Duration::from_secs(20);
/// Fifteen faults of this length and a warm-up make two minutes.
const SLOT: Duration = Duration::from_millis(7_700);
const FAULT_TIME: Duration = Duration::from_secs(4);
/// The next fault waits for the victim of the last one, but not for ever.
const BACK_LIMIT: Duration = Duration::from_secs(25);
/// A backend that fails again and again is left out for longer each time.
const RANDOM_BACK_LIMIT: Duration = Duration::from_secs(330);
const RANDOM_FAULT_MS: std::ops::Range<u64> = 2_000..8_000;
const RANDOM_PAUSE_MS: std::ops::Range<u64> = 500..4_000;
const TURN: Duration = Duration::from_millis(100);
const STATUS_EVERY_TERMINAL: Duration = Duration::from_millis(200);
const STATUS_EVERY_FILE: Duration = Duration::from_secs(5);

pub(super) struct Show<'a> {
    stage: &'a mut Stage,
    ledger: &'a mut Ledger,
    samples: &'a Receiver<Noted>,
    status_due: Instant,
}

impl<'a> Show<'a> {
    pub(super) fn new(
        stage: &'a mut Stage,
        ledger: &'a mut Ledger,
        samples: &'a Receiver<Noted>,
    ) -> Self {
        Show { stage, ledger, samples, status_due: Instant::now() }
    }

    pub(super) async fn every_fault_once(&mut self) -> Result<()> {
        self.warm_up().await?;
        for fault in Fault::ALL {
            for at in 0..self.stage.backends.len() {
                let end = Instant::now() + SLOT;
                self.befall(fault, at, FAULT_TIME).await?;
                self.watch_until(end).await?;
                self.wait_until_back(BACK_LIMIT).await?;
            }
        }
        Ok(())
    }

    /// Returns only when something is wrong.
    pub(super) async fn random_faults(&mut self, seed: Option<u64>) -> Result<()> {
        let mut random = Random::new(seed);
        out::line(format!("random faults, seed {}; Ctrl-C ends", random.seed));
        self.warm_up().await?;
        loop {
            let fault = Fault::ALL[random.index(Fault::ALL.len())];
            let at = random.index(self.stage.backends.len());
            self.befall(fault, at, random.millis(RANDOM_FAULT_MS)).await?;
            self.wait_until_back(RANDOM_BACK_LIMIT).await?;
            self.watch_until(Instant::now() + random.millis(RANDOM_PAUSE_MS)).await?;
        }
    }

    async fn warm_up(&mut self) -> Result<()> {
        self.say("requests begin");
        let limit = Instant::now() + WARM_UP_LIMIT;
        while self.ledger.recent().served.len() < self.stage.backends.len() {
            if Instant::now() > limit {
                bail!("not every backend serves after {WARM_UP_LIMIT:?}");
            }
            self.turn().await?;
        }
        self.watch_until(Instant::now() + Duration::from_secs(2)).await
    }

    /// One fault on one backend, from beginning to end.
    async fn befall(&mut self, fault: Fault, at: usize, time: Duration) -> Result<()> {
        let name = self.stage.backends[at].name.clone();
        self.ledger.open_window(fault.name(), &name);
        let end = Instant::now() + time;
        self.say(format!("{name} {}", fault.deed()));
        fault.inject(&mut self.stage.backends[at]).await?;
        self.check(fault, at).await?;
        self.watch_until(end).await?;
        if fault == Fault::Freeze {
            // It must have been so all the time.
            self.check(fault, at).await?;
        }
        fault.undo(self.stage, at).await?;
        self.say(format!("{name} {}", fault.undeed()));
        if let Some(window) = self.ledger.window() {
            window.revived = Some(Instant::now());
        }
        Ok(())
    }

    /// Notes when the fault is not there, and goes on watching while it asks.
    async fn check(&mut self, fault: Fault, at: usize) -> Result<()> {
        let (ledger, samples) = (&mut *self.ledger, self.samples);
        let verifying = fault.verify(&self.stage.backends[at]);
        tokio::pin!(verifying);
        let verified = loop {
            tokio::select! {
                verified = &mut verifying => break verified,
                () = tokio::time::sleep(TURN) => {
                    ledger.take(samples);
                    show_status(ledger, &mut self.status_due);
                }
            }
        };
        if let Err(error) = verified
            && let Some(window) = self.ledger.window()
        {
            window.doubts.push(format!("{error:#}"));
        }
        Ok(())
    }

    async fn wait_until_back(&mut self, limit: Duration) -> Result<()> {
        let limit = Instant::now() + limit;
        while self.ledger.window().is_some_and(|window| window.back_after.is_none()) {
            if Instant::now() > limit {
                return Ok(());
            }
            self.turn().await?;
        }
        Ok(())
    }

    async fn watch_until(&mut self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            self.turn().await?;
        }
        Ok(())
    }

    /// A tenth of a second of watching.
    async fn turn(&mut self) -> Result<()> {
        tokio::time::sleep(TURN).await;
        self.ledger.take(self.samples);
        show_status(self.ledger, &mut self.status_due);
        self.stage.check_front()
    }

    fn say(&self, text: impl std::fmt::Display) {
        let elapsed = self.ledger.started.elapsed().as_secs_f64();
        out::line(format!("{elapsed:7.1} s  {text}"));
    }
}

fn show_status(ledger: &Ledger, due: &mut Instant) {
    if *due > Instant::now() {
        return;
    }
    let every = if out::is_terminal() { STATUS_EVERY_TERMINAL } else { STATUS_EVERY_FILE };
    *due = Instant::now() + every;
    out::status(report::status(ledger));
}

/// The same seed, the same faults (xorshift64*).
struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    fn new(seed: Option<u64>) -> Random {
        let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = seed.unwrap_or_else(|| u64::from(clock().subsec_nanos()));
        Random { seed, state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).expect("below a count that fits")
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(range.start + self.next() % (range.end - range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_reaches_everything() {
        let draw = |seed| {
            let mut random = Random::new(Some(seed));
            (0..100).map(|_| random.index(5)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!((0..5).all(|fault| draw(7).contains(&fault)));
        let pause = Random::new(Some(1)).millis(RANDOM_PAUSE_MS).as_millis();
        assert!((500..4000).contains(&pause));
    }
}
