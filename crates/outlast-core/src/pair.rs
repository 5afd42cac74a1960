//! Decides which side of an active-passive pair serves: failover, failback, never two at once.
//!
//! ```text
//!                 primary down, backup up                       backup ready
//!   Steady(P) ───────────────────────────▶ Preparing(B) ──────────────────────▶ Steady(B)
//!      ▲            (cold: backup need not be up)   │ start failed, too late,        │
//!      │                                            ▼ or primary up again            │
//!      │◀────────────────────────────────────── Steady(P)                            │
//!      │             primary up for `failback.after`, or backup down and primary up  │
//!      └─────────────────────────────────────────────────────────────────────────────┘
//! ```

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::health::Health;
use crate::time::Instant;
use crate::topology::{Failback, Standby};

/// Fences orders: whoever obeys one refuses all older ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// The two sides of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    Primary,
    Backup,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Side::Primary => "primary",
            Side::Backup => "backup",
        })
    }
}

/// The stages of a failover, each reported with the time it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// From the first failed probe to the belief that the primary is down.
    Detect,
    /// The start or activate command.
    Start,
    /// From the end of the command until the backup's probe says up.
    Ready,
    /// Until readers had the new route.
    Switch,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Stage::Detect => "detect",
            Stage::Start => "start",
            Stage::Ready => "ready",
            Stage::Switch => "switch",
        })
    }
}

/// What the pair is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Steady,
    /// The backup's command runs; `began` is the first failed probe of the primary.
    Commanding {
        epoch: Epoch,
        began: Instant,
        since: Instant,
        deadline: Instant,
    },
    /// The command is done; the backup's probe has not said up yet.
    Awaiting {
        epoch: Epoch,
        began: Instant,
        since: Instant,
        deadline: Instant,
    },
}

/// What is seen of both sides at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub primary: Health,
    pub backup: Health,
    /// When the primary's present run of failures began.
    pub primary_failing_since: Option<Instant>,
}

/// What the outside tells a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Beliefs changed, or time went on.
    Look(Seen),
    /// The command of this epoch ended.
    CommandDone { epoch: Epoch, result: Result<(), String> },
    /// A person asks for the primary to serve again.
    Failback,
}

/// What a pair wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Route to this side from now on.
    Route {
        epoch: Epoch,
        to: Side,
    },
    /// Run the standby's start or activate command.
    Command {
        epoch: Epoch,
    },
    /// Stop a cold standby that is no longer needed.
    Stop {
        epoch: Epoch,
    },
    Started {
        epoch: Epoch,
        reason: String,
    },
    Stage {
        epoch: Epoch,
        stage: Stage,
        took: Duration,
    },
    Finished {
        epoch: Epoch,
        took: Duration,
    },
    Failed {
        epoch: Epoch,
        reason: String,
    },
    FailedBack {
        epoch: Epoch,
        reason: String,
    },
    BothDown,
    BothDownEnded,
}

/// How long an activate command of a warm standby may take.
const ACTIVATE_LIMIT: Duration = Duration::from_secs(60);

/// Wait this long after a failed failover before trying again.
const FAILED_PAUSE: Duration = Duration::from_secs(30);

/// The state of one pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    standby: Standby,
    failback: Failback,
    active: Side,
    epoch: Epoch,
    phase: Phase,
    /// Since when the primary has been up without a break.
    primary_up_since: Option<Instant>,
    both_down: bool,
    not_before: Instant,
    failback_asked: bool,
    seen: Seen,
}

impl Pair {
    /// A pair that carries on with the side and epoch that were last agreed.
    pub fn new(standby: Standby, failback: Failback, active: Side, epoch: Epoch) -> Pair {
        Pair {
            standby,
            failback,
            active,
            epoch,
            phase: Phase::Steady,
            primary_up_since: None,
            both_down: false,
            not_before: Instant::default(),
            failback_asked: false,
            seen: Seen {
                primary: Health::Unknown,
                backup: Health::Unknown,
                primary_failing_since: None,
            },
        }
    }

    pub fn active(&self) -> Side {
        self.active
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Takes changed settings and keeps who serves.
    pub fn retune(&mut self, standby: Standby, failback: Failback) {
        self.standby = standby;
        self.failback = failback;
    }

    /// One sentence about what is under way, if anything is.
    pub fn next(&self, now: Instant) -> Option<String> {
        match (&self.phase, self.failback) {
            (Phase::Commanding { .. }, _) => Some("the backup is being started".to_owned()),
            (Phase::Awaiting { .. }, _) => Some("waiting until the backup is ready".to_owned()),
            (Phase::Steady, Failback::After(after)) => {
                let up_since = self.primary_up_since.filter(|_| self.active == Side::Backup)?;
                let left = after.saturating_sub(now.since(up_since));
                Some(alloc::format!(
                    "failback to the primary in {}",
                    crate::units::show_duration(left)
                ))
            }
            (Phase::Steady, Failback::Manual) => (self.active == Side::Backup).then(|| {
                "stays on the backup until `outlast failback` (failback is manual)".to_owned()
            }),
        }
    }

    /// When `step` wants to be called again even if nothing happens.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let at = match (&self.phase, self.failback) {
            (Phase::Commanding { deadline, .. } | Phase::Awaiting { deadline, .. }, _) => {
                Some(*deadline)
            }
            (Phase::Steady, Failback::After(after)) if self.active == Side::Backup => {
                self.primary_up_since.map(|since| since + after)
            }
            (Phase::Steady, _) => (self.seen.primary == Health::Down
                && self.active == Side::Primary)
                .then_some(self.not_before),
        };
        at.filter(|&at| now < at)
    }

    /// Feeds one input; pushes what must be done, in the order of doing.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Look(seen) => {
                self.seen = seen;
                self.primary_up_since = match seen.primary {
                    Health::Up => self.primary_up_since.or(Some(now)),
                    Health::Down | Health::Unknown => None,
                };
            }
            Input::CommandDone { epoch, result } => self.command_done(now, epoch, result, out),
            Input::Failback => self.failback_asked = true,
        }
        self.report_both_down(out);
        match self.phase.clone() {
            Phase::Steady => self.decide(now, out),
            Phase::Commanding { epoch, deadline, .. } | Phase::Awaiting { epoch, deadline, .. }
                if deadline <= now =>
            {
                self.give_up(now, epoch, "the backup was not ready in time", out);
            }
            Phase::Commanding { .. } => {}
            Phase::Awaiting { epoch, began, since, .. } => {
                if self.seen.primary == Health::Up {
                    self.give_up(now, epoch, "the primary is up again", out);
                } else if self.seen.backup == Health::Up {
                    out.push(Action::Stage { epoch, stage: Stage::Ready, took: now.since(since) });
                    self.switch(now, epoch, began, out);
                }
            }
        }
    }

    fn decide(&mut self, now: Instant, out: &mut Vec<Action>) {
        match self.active {
            Side::Primary => {
                self.failback_asked = false;
                if self.seen.primary == Health::Down && self.not_before <= now {
                    self.start_failover(now, out);
                }
            }
            Side::Backup => {
                let reason = match self.failback {
                    _ if self.seen.primary != Health::Up => return,
                    _ if self.seen.backup == Health::Down => "the backup is down".to_owned(),
                    _ if self.failback_asked => "asked for".to_owned(),
                    Failback::Manual => return,
                    Failback::After(after) => {
                        let Some(since) = self.primary_up_since else { return };
                        if now.since(since) < after {
                            return;
                        }
                        alloc::format!(
                            "primary has been up for {}",
                            crate::units::show_duration(after)
                        )
                    }
                };
                self.failback_asked = false;
                self.epoch = self.epoch.next();
                self.active = Side::Primary;
                out.push(Action::Route { epoch: self.epoch, to: Side::Primary });
                out.push(Action::FailedBack { epoch: self.epoch, reason });
                if matches!(self.standby, Standby::Cold { stop: Some(_), .. }) {
                    out.push(Action::Stop { epoch: self.epoch });
                }
            }
        }
    }

    fn start_failover(&mut self, now: Instant, out: &mut Vec<Action>) {
        let cold = matches!(self.standby, Standby::Cold { .. });
        if !cold && self.seen.backup != Health::Up {
            return;
        }
        let epoch = self.epoch.next();
        self.epoch = epoch;
        let began = self.seen.primary_failing_since.unwrap_or(now);
        out.push(Action::Started { epoch, reason: "the primary is down".to_owned() });
        out.push(Action::Stage { epoch, stage: Stage::Detect, took: now.since(began) });
        let limit = match &self.standby {
            _ if cold && self.seen.backup == Health::Up => None,
            Standby::Cold { start_limit, .. } => Some(*start_limit),
            Standby::Warm { activate: Some(_) } => Some(ACTIVATE_LIMIT),
            Standby::Hot | Standby::Warm { activate: None } => None,
        };
        match limit {
            Some(limit) => {
                self.phase = Phase::Commanding { epoch, began, since: now, deadline: now + limit };
                out.push(Action::Command { epoch });
            }
            None => self.switch(now, epoch, began, out),
        }
    }

    fn command_done(
        &mut self,
        now: Instant,
        done: Epoch,
        result: Result<(), String>,
        out: &mut Vec<Action>,
    ) {
        let Phase::Commanding { epoch, began, since, deadline } = self.phase.clone() else {
            return;
        };
        // The answer to an order that was given up.
        if done != epoch {
            return;
        }
        match result {
            Ok(()) => {
                out.push(Action::Stage { epoch, stage: Stage::Start, took: now.since(since) });
                self.phase = Phase::Awaiting { epoch, began, since: now, deadline };
            }
            Err(reason) => self.give_up(now, epoch, &reason, out),
        }
    }

    fn switch(&mut self, now: Instant, epoch: Epoch, began: Instant, out: &mut Vec<Action>) {
        self.phase = Phase::Steady;
        self.active = Side::Backup;
        out.push(Action::Route { epoch, to: Side::Backup });
        out.push(Action::Finished { epoch, took: now.since(began) });
    }

    fn give_up(&mut self, now: Instant, epoch: Epoch, reason: &str, out: &mut Vec<Action>) {
        self.phase = Phase::Steady;
        self.not_before = now + FAILED_PAUSE;
        out.push(Action::Failed { epoch, reason: reason.to_owned() });
        if matches!(self.standby, Standby::Cold { stop: Some(_), .. }) {
            out.push(Action::Stop { epoch });
        }
    }

    fn report_both_down(&mut self, out: &mut Vec<Action>) {
        let cold = matches!(self.standby, Standby::Cold { .. });
        // A cold backup is meant to be down while the primary serves.
        let both = self.seen.primary == Health::Down
            && self.seen.backup == Health::Down
            && !(cold && self.active == Side::Primary && self.not_before == Instant::default());
        if both != self.both_down {
            self.both_down = both;
            out.push(if both { Action::BothDown } else { Action::BothDownEnded });
        }
    }
}
