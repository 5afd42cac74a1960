//! One node's part in a virtual router: which of several nodes answers for its addresses, by VRRP version 3 (RFC 9568).
//!
//! ```text
//!            start                  nothing heard for long enough
//!   Idle ─────────────▶ Backup ───────────────────────────────────▶ Active
//!    ▲                     ▲                                           │
//!    │  stop, fault        └────────── a higher priority heard ────────┤
//!    └─────────────────────────────────── stop, fault ─────────────────┘
//! ```
//!
//! Nodes that do not hear each other are active at the same time: whoever cannot have that needs the mode `lease`.
//!
//! More is done here than the standard asks for, so that nobody is left with a wrong entry after a partition:
//! who steps down says one more word, and who remains announces the addresses again when it hears a lower one.

use alloc::vec::Vec;
use core::net::IpAddr;
use core::num::{NonZeroU8, NonZeroU16};
use core::time::Duration;

#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;

pub mod wire;

#[cfg(test)]
mod tests;

/// The owner of the addresses has this priority (RFC 9568 5.2.4).
pub const OWNER: NonZeroU8 = NonZeroU8::MAX;

/// Who has nothing else to say has this one.
pub const PRIORITY: NonZeroU8 = NonZeroU8::new(100).expect("it is not zero");

/// Of an active router that ends (RFC 9568 5.2.4).
pub const LEAVES: u8 = 0;

/// The time between two advertisements, in hundredths of a second: a field of 12 bits (RFC 9568 5.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(NonZeroU16);

impl Interval {
    pub const MAX: u16 = 4095;

    /// `None` if the field has no room for it, or it is zero.
    pub fn of_centiseconds(centiseconds: u16) -> Option<Interval> {
        let within = centiseconds <= Interval::MAX;
        NonZeroU16::new(centiseconds).filter(|_| within).map(Interval)
    }

    pub fn centiseconds(self) -> u16 {
        self.0.get()
    }

    pub fn duration(self) -> Duration {
        Duration::from_millis(u64::from(self.0.get()) * 10)
    }
}

/// What people want of this node's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub priority: NonZeroU8,
    pub interval: Interval,
    /// A backup of a higher priority takes over from an active router that is well.
    pub preempt: bool,
    /// It does so no earlier than this after its start.
    pub preempt_delay: Duration,
    /// An active router announces the addresses again this often: who was active beyond a partition may have told others.
    pub refresh: Duration,
}

/// What another router of the same number has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    pub from: IpAddr,
    /// The address from which this node speaks there: among equal priorities the highest one wins.
    pub own: IpAddr,
    pub priority: u8,
    pub interval: Interval,
}

/// All that can happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Start,
    Stop,
    Heard(Heard),
    /// What is tracked changes its priority; `None`: it cannot do its work and must not be active.
    Weigh(Option<NonZeroU8>),
    Tick,
}

/// All that it can want, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Advertise {
        priority: u8,
    },
    /// Add the addresses, and announce them.
    Take,
    /// Say again where the addresses are: gratuitous ARP, unsolicited neighbour advertisements.
    Announce,
    /// Remove the addresses.
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It takes no part. `Initialize` in the standard.
    Idle,
    Backup,
    Active,
}

/// One node's part in one virtual router.
#[derive(Clone, Debug)]
pub struct Router {
    settings: Settings,
    /// With what is tracked; `None` while something is wrong.
    priority: Option<NonZeroU8>,
    state: State,
    /// It was told to take part.
    runs: bool,
    /// That of the active router; one's own before one is heard.
    active_interval: Interval,
    /// Active: when to advertise again. Backup: when to take over.
    due: Instant,
    preempts_from: Instant,
    announced: Instant,
    /// Active: when the addresses are announced again.
    announces: Instant,
}

impl Router {
    pub fn new(settings: Settings) -> Router {
        Router {
            settings,
            priority: Some(settings.priority),
            state: State::Idle,
            runs: false,
            active_interval: settings.interval,
            due: Instant::default(),
            preempts_from: Instant::default(),
            announced: Instant::default(),
            announces: Instant::default(),
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// With what is tracked; `None` while something is wrong.
    pub fn priority(&self) -> Option<NonZeroU8> {
        self.priority
    }

    /// When [`Router::step`] wants to be called although nothing has happened.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Idle => None,
            State::Backup => Some(self.due),
            State::Active => Some(self.due.min(self.announces)),
        }
    }

    /// Takes in what has happened; what has to be done is added to `out`.
    pub fn step(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Start if self.runs => {}
            Event::Start => {
                self.runs = true;
                self.preempts_from = now + self.settings.preempt_delay;
                self.begin(now, out);
            }
            Event::Stop => {
                self.runs = false;
                self.end(out);
            }
            Event::Weigh(None) => {
                self.priority = None;
                self.end(out);
            }
            Event::Weigh(Some(priority)) => self.weigh(now, priority, out),
            Event::Heard(heard) => self.hear(now, heard, out),
            Event::Tick => {}
        }
        if self.deadline().is_some_and(|due| due <= now) {
            self.act(now, out);
        }
    }

    /// RFC 9568 6.4.1.
    fn begin(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(priority) = self.priority else { return };
        if priority == OWNER {
            self.take(now, out);
            return;
        }
        self.active_interval = self.settings.interval;
        self.wait(now, priority);
    }

    fn end(&mut self, out: &mut Vec<Action>) {
        if self.state == State::Active {
            // Whoever hears it takes over at once; so the addresses are free before.
            out.push(Action::Release);
            out.push(Action::Advertise { priority: LEAVES });
        }
        self.state = State::Idle;
    }

    fn weigh(&mut self, now: Instant, priority: NonZeroU8, out: &mut Vec<Action>) {
        let before = self.priority.replace(priority);
        match (self.state, before) {
            (State::Idle, None) if self.runs => {
                // What was wrong may come back: it does not take over at once.
                self.preempts_from = now + self.settings.preempt_delay;
                self.begin(now, out);
            }
            // The others are to know at once.
            (State::Active, Some(before)) if before != priority => self.advertise(now, out),
            (State::Idle | State::Backup | State::Active, _) => {}
        }
    }

    fn hear(&mut self, now: Instant, heard: Heard, out: &mut Vec<Action>) {
        let Some(priority) = self.priority else { return };
        match self.state {
            State::Idle => {}
            State::Backup => self.hear_as_backup(now, heard, priority),
            State::Active => self.hear_as_active(now, heard, priority, out),
        }
    }

    /// RFC 9568 6.4.2.
    fn hear_as_backup(&mut self, now: Instant, heard: Heard, priority: NonZeroU8) {
        let preempts = self.settings.preempt && self.preempts_from <= now;
        if heard.priority == LEAVES {
            self.due = now + skew(self.active_interval, priority);
        } else if !preempts || priority.get() <= heard.priority {
            self.active_interval = heard.interval;
            self.wait(now, priority);
        }
    }

    /// RFC 9568 6.4.3.
    fn hear_as_active(
        &mut self,
        now: Instant,
        heard: Heard,
        priority: NonZeroU8,
        out: &mut Vec<Action>,
    ) {
        if heard.priority == LEAVES {
            self.advertise(now, out);
            return;
        }
        let own = (priority.get(), heard.own);
        if own < (heard.priority, heard.from) {
            // Who stays hears that there were two, and announces the addresses once they are gone from here.
            out.push(Action::Release);
            let says = true;
            #[cfg(test)]
            let says = instead(Bug::SilentStepDown, says, false);
            if says {
                out.push(Action::Advertise { priority: priority.get() });
            }
            self.active_interval = heard.interval;
            self.wait(now, priority);
            return;
        }
        // There are two: the other one is to step down, and everybody is to know whose the addresses are. What comes too
        // soon after the last time is said later, and not left out: it may be the other one's last word.
        let quiet_until = self.announced + self.settings.interval.duration();
        self.announces = self.announces.min(quiet_until.max(now));
    }

    /// Its time has come.
    fn act(&mut self, now: Instant, out: &mut Vec<Action>) {
        match self.state {
            State::Idle => {}
            State::Backup => self.take(now, out),
            State::Active => {
                self.advertise(now, out);
                if self.announces <= now {
                    self.announced(now);
                    out.push(Action::Announce);
                }
            }
        }
    }

    fn take(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.state = State::Active;
        self.advertise(now, out);
        self.announced(now);
        out.push(Action::Take);
    }

    fn announced(&mut self, now: Instant) {
        self.announced = now;
        self.announces = now + self.settings.refresh;
    }

    fn advertise(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(priority) = self.priority else { return };
        out.push(Action::Advertise { priority: priority.get() });
        self.due = now + self.settings.interval.duration();
    }

    fn wait(&mut self, now: Instant, priority: NonZeroU8) {
        self.state = State::Backup;
        self.due = now + down_after(self.active_interval, priority);
    }
}

/// How much later a lower priority acts (RFC 9568 6.1, `Skew_Time`).
fn skew(active: Interval, priority: NonZeroU8) -> Duration {
    active.duration() * (256 - u32::from(priority.get())) / 256
}

/// After how long without a word the active router is taken for dead (RFC 9568 6.1, `Active_Down_Interval`).
pub fn down_after(active: Interval, priority: NonZeroU8) -> Duration {
    3 * active.duration() + skew(active, priority)
}
