//! Decides which proxy carries the traffic of a node: when one is started, replaced, asked to drain, and ended by force.
//!
//! Every proxy that runs has a deadline or serves. A lost connection is not a death, and silence is counted in questions
//! that the agent itself was awake to ask.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::event::Fact;
use crate::time::Instant;
use crate::units::show_duration;

/// A proxy is started again at most this often.
pub const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// Questions in a row that the serving proxy leaves unanswered before it is replaced. They are asked every second, so
/// this is about ten seconds: no load keeps a thread that only answers this from running for so long.
pub const SILENT_ASKS_MAX: u32 = 10;

/// Questions that lie closer together count as one.
pub const ASK_GAP_MIN: Duration = Duration::from_millis(500);

/// If more than this lies between two questions, it was the agent that did not run: nothing is held against the proxy.
pub const ASK_GAP_MAX: Duration = Duration::from_secs(3);

/// A proxy that was replaced has this long to finish what is open.
pub const DRAIN_MAX: Duration = Duration::from_secs(30);

/// The same for one that has stopped answering: what is open on it gets no answer anyway.
pub const SILENT_DRAIN_MAX: Duration = Duration::from_secs(5);

/// A proxy that was asked to end by a signal, because it can be told nothing, has this long.
pub const TERMINATE_MAX: Duration = Duration::from_secs(5);

/// A proxy that ends at its own deadline is killed if it has not ended this long after it.
pub const KILL_GRACE: Duration = Duration::from_secs(5);

/// A successor takes over at the latest after this, however little it knows of the backends.
pub const HANDOVER_MAX: Duration = Duration::from_secs(30);

/// What the outside tells. Closed: there is no other way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A running proxy was found that can go on serving.
    Adopted {
        pid: u32,
    },
    /// A running proxy was found that a successor must replace, or that drains already.
    Found {
        pid: u32,
        draining: bool,
    },
    /// The proxy that was to be started has greeted.
    Started {
        pid: u32,
    },
    NotStarted,
    /// The serving proxy is asked something now.
    Asked,
    /// A proxy has said something.
    Heard {
        pid: u32,
    },
    /// The connection to a living proxy broke; it is being tried again.
    Lost {
        pid: u32,
    },
    Regained {
        pid: u32,
    },
    /// It lives, and cannot be reached.
    Unreachable {
        pid: u32,
        reason: String,
    },
    /// It has exited.
    Gone {
        pid: u32,
        reason: String,
    },
    /// It has put the newest table in force.
    InForce {
        pid: u32,
    },
    /// The serving proxy is to be replaced by one that is started anew.
    Replace,
    /// No proxy is to serve any more; open work has this long.
    Stop {
        deadline: Duration,
    },
    Tick,
}

/// What is to be done. Closed: there is no other way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a proxy; answer with `Started` or `NotStarted`.
    Start,
    /// Tell it to finish what is open within this time, and to end.
    Drain { pid: u32, deadline: Duration },
    /// SIGTERM: it can be told nothing.
    Terminate { pid: u32 },
    /// SIGKILL.
    Kill { pid: u32 },
}

/// What comes of a step, in the order of doing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Out {
    pub facts: Vec<Fact>,
    pub actions: Vec<Action>,
}

/// Whether a living proxy can be told anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Linked,
    Lost,
    Unreachable,
}

#[derive(Clone, Debug)]
struct Serving {
    pid: u32,
    since: Instant,
    reach: Reach,
    /// Questions in a row that it has not answered, and when the first of them was asked.
    unanswered: u32,
    silent_since: Option<Instant>,
    /// Why it is to be replaced.
    condemned: Option<Condemned>,
    /// It has had a table.
    fed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condemned {
    /// It does not answer: if it does after all before its successor has come, it stays.
    Silent,
    Unreachable,
    Asked,
}

/// A proxy that does not serve, or not for long.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    reach: Reach,
    silent: bool,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Serves until its successor has a table.
    AtHandover,
    /// Has been told to end; is killed at this moment.
    By(Instant),
    Killed,
}

/// The proxies of one node.
#[derive(Debug, Default)]
pub struct Proxies {
    serving: Option<Serving>,
    leaving: BTreeMap<u32, Leaving>,
    starting: bool,
    stopping: bool,
    not_before: Instant,
    asked_at: Option<Instant>,
}

impl Proxies {
    /// The newest proxy that has greeted: the one that is given tables.
    pub fn serving(&self) -> Option<u32> {
        self.serving.as_ref().map(|s| s.pid)
    }

    /// Proxies that are on their way out.
    pub fn leaving(&self) -> impl Iterator<Item = u32> {
        self.leaving.keys().copied()
    }

    /// Since when the serving proxy has answered nothing, if it has been asked more than once.
    pub fn silent_since(&self) -> Option<Instant> {
        self.serving.as_ref().filter(|s| s.unanswered > 1).and_then(|s| s.silent_since)
    }

    pub fn is_starting(&self) -> bool {
        self.starting
    }

    pub fn all_gone(&self) -> bool {
        self.serving.is_none() && self.leaving.is_empty() && !self.starting
    }

    /// Whether the serving proxy may be given its first table. While a predecessor serves well, a successor that does
    /// not know yet which backends are up would take its clients only to refuse them.
    pub fn may_feed(&self, now: Instant, all_known: bool) -> bool {
        let Some(serving) = &self.serving else { return false };
        let serves =
            |l: &Leaving| l.end == End::AtHandover && l.reach == Reach::Linked && !l.silent;
        serving.fed
            || all_known
            || !self.leaving.values().any(serves)
            || HANDOVER_MAX <= now.since(serving.since)
    }

    /// The serving proxy was given a table.
    pub fn fed(&mut self) {
        if let Some(serving) = &mut self.serving {
            serving.fed = true;
        }
    }

    /// When `step` wants to be called again even if nothing happens.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let kills = self.leaving.values().filter_map(|l| match l.end {
            End::By(at) => Some(at),
            End::AtHandover | End::Killed => None,
        });
        let start = self.wants_start().then_some(self.not_before);
        kills.chain(start).min().map(|at| at.max(now))
    }

    pub fn step(&mut self, now: Instant, input: Input, out: &mut Out) {
        match input {
            Input::Adopted { pid } => {
                self.serving = Some(Serving { fed: true, ..Serving::new(pid, now) });
                out.facts.push(Fact::ProxyAdopted { pid });
            }
            Input::Found { pid, draining } => {
                let end =
                    if draining { End::By(now + DRAIN_MAX + KILL_GRACE) } else { End::AtHandover };
                self.leaving.insert(pid, Leaving { reach: Reach::Linked, silent: false, end });
            }
            Input::Started { pid } => self.started(now, pid, out),
            Input::NotStarted => {
                self.starting = false;
                self.not_before = now + RESTART_PAUSE;
            }
            Input::Asked => self.asked(now, out),
            Input::Heard { pid } => self.heard(pid),
            Input::Lost { pid } => self.reach(pid, Reach::Lost),
            Input::Regained { pid } => {
                self.reach(pid, Reach::Linked);
                self.heard(pid);
                out.facts.push(Fact::ProxyAdopted { pid });
            }
            Input::Unreachable { pid, reason } => self.unreachable(now, pid, reason, out),
            Input::Gone { pid, reason } => {
                self.leaving.remove(&pid);
                if self.serving() == Some(pid) {
                    self.serving = None;
                    out.facts.push(Fact::ProxyLost { pid, reason });
                }
            }
            Input::InForce { pid } => self.in_force(now, pid, out),
            Input::Replace => self.condemn(Condemned::Asked),
            Input::Stop { deadline } => self.stop(now, deadline, out),
            Input::Tick => {}
        }
        self.settle(now, out);
    }

    fn wants_start(&self) -> bool {
        let wanted = self.serving.as_ref().is_none_or(|s| s.condemned.is_some());
        wanted && !self.starting && !self.stopping
    }

    fn settle(&mut self, now: Instant, out: &mut Out) {
        if self.wants_start() && self.not_before <= now {
            self.starting = true;
            self.not_before = now + RESTART_PAUSE;
            out.actions.push(Action::Start);
        }
        for (&pid, leaving) in &mut self.leaving {
            match leaving.end {
                End::By(at) if at <= now => {
                    leaving.end = End::Killed;
                    let reason = "it had not ended at its deadline".to_owned();
                    out.facts.push(Fact::ProxyKilled { pid, reason });
                    out.actions.push(Action::Kill { pid });
                }
                End::By(_) | End::AtHandover | End::Killed => {}
            }
        }
    }

    fn started(&mut self, now: Instant, pid: u32, out: &mut Out) {
        self.starting = false;
        out.facts.push(Fact::ProxyStarted { pid });
        self.step_aside();
        self.serving = Some(Serving::new(pid, now));
        if self.stopping {
            // It comes too late: it has nothing open.
            self.step_aside();
            self.end(now, pid, Duration::ZERO, out);
        }
    }

    fn asked(&mut self, now: Instant, out: &mut Out) {
        let gap = self.asked_at.map_or(ASK_GAP_MIN, |before| now.since(before));
        if gap < ASK_GAP_MIN {
            return;
        }
        self.asked_at = Some(now);
        let Some(serving) = &mut self.serving else { return };
        if ASK_GAP_MAX < gap {
            serving.unanswered = 0;
            serving.silent_since = None;
        }
        let since = *serving.silent_since.get_or_insert(now);
        if serving.unanswered >= SILENT_ASKS_MAX && serving.condemned.is_none() {
            let reason = alloc::format!(
                "it has left {} questions unanswered, for {}",
                serving.unanswered,
                show_duration(now.since(since))
            );
            serving.condemned = Some(Condemned::Silent);
            out.facts.push(Fact::ProxySilent { pid: serving.pid, reason });
        }
        serving.unanswered = serving.unanswered.saturating_add(1);
    }

    fn heard(&mut self, pid: u32) {
        if let Some(serving) = self.serving.as_mut().filter(|s| s.pid == pid) {
            serving.unanswered = 0;
            serving.silent_since = None;
            match serving.condemned {
                // Its successor, if it is on its way already, takes over in good order.
                Some(Condemned::Silent | Condemned::Unreachable) => serving.condemned = None,
                Some(Condemned::Asked) | None => {}
            }
        }
        if let Some(leaving) = self.leaving.get_mut(&pid) {
            leaving.silent = false;
        }
    }

    fn reach(&mut self, pid: u32, reach: Reach) {
        if let Some(serving) = self.serving.as_mut().filter(|s| s.pid == pid) {
            serving.reach = reach;
        }
        if let Some(leaving) = self.leaving.get_mut(&pid) {
            leaving.reach = reach;
        }
    }

    fn unreachable(&mut self, now: Instant, pid: u32, reason: String, out: &mut Out) {
        self.reach(pid, Reach::Unreachable);
        if self.serving() == Some(pid) {
            self.condemn(Condemned::Unreachable);
            out.facts.push(Fact::ProxySilent { pid, reason });
        } else if self.serving.as_ref().is_some_and(|s| s.fed)
            && self.leaving.get(&pid).is_some_and(|l| l.end == End::AtHandover)
        {
            self.retire(now, pid, out);
        }
    }

    fn condemn(&mut self, why: Condemned) {
        if let Some(serving) = &mut self.serving {
            serving.condemned = Some(why);
        }
    }

    /// The table is in force: predecessors may go.
    fn in_force(&mut self, now: Instant, new: u32, out: &mut Out) {
        if self.serving() != Some(new) {
            return;
        }
        let waiting = self.leaving.iter().filter(|(_, l)| l.end == End::AtHandover);
        for old in waiting.map(|(&pid, _)| pid).collect::<Vec<_>>() {
            out.facts.push(Fact::ProxyReplaced { old, new });
            self.retire(now, old, out);
        }
    }

    /// Lets a proxy finish and end, as far as it can be told.
    fn retire(&mut self, now: Instant, pid: u32, out: &mut Out) {
        let Some(leaving) = self.leaving.get_mut(&pid) else { return };
        let (action, kill_after) = match (leaving.reach, leaving.silent) {
            (Reach::Linked, false) => {
                (Action::Drain { pid, deadline: DRAIN_MAX }, DRAIN_MAX + KILL_GRACE)
            }
            (Reach::Linked, true) => {
                (Action::Drain { pid, deadline: SILENT_DRAIN_MAX }, SILENT_DRAIN_MAX)
            }
            (Reach::Lost | Reach::Unreachable, _) => (Action::Terminate { pid }, TERMINATE_MAX),
        };
        leaving.end = End::By(now + kill_after);
        out.actions.push(action);
    }

    /// What served becomes one of those that wait for their end.
    fn step_aside(&mut self) {
        if let Some(Serving { pid, reach, condemned, .. }) = self.serving.take() {
            let silent = condemned == Some(Condemned::Silent);
            self.leaving.insert(pid, Leaving { reach, silent, end: End::AtHandover });
        }
    }

    fn stop(&mut self, now: Instant, deadline: Duration, out: &mut Out) {
        self.stopping = true;
        self.step_aside();
        for pid in self.leaving().collect::<Vec<_>>() {
            self.end(now, pid, deadline, out);
        }
    }

    /// Ends a proxy within this time, and no later than it was to end before.
    fn end(&mut self, now: Instant, pid: u32, deadline: Duration, out: &mut Out) {
        let Some(leaving) = self.leaving.get_mut(&pid) else { return };
        let by = match leaving.reach {
            Reach::Linked => now + deadline + KILL_GRACE,
            Reach::Lost | Reach::Unreachable => now + TERMINATE_MAX,
        };
        leaving.end = match leaving.end {
            End::Killed => return,
            End::By(before) => End::By(before.min(by)),
            End::AtHandover => End::By(by),
        };
        out.actions.push(match leaving.reach {
            Reach::Linked => Action::Drain { pid, deadline },
            Reach::Lost | Reach::Unreachable => Action::Terminate { pid },
        });
    }
}

impl Serving {
    fn new(pid: u32, since: Instant) -> Serving {
        Serving {
            pid,
            since,
            reach: Reach::Linked,
            unanswered: 0,
            silent_since: None,
            condemned: None,
            fed: false,
        }
    }
}

#[cfg(test)]
mod tests;
