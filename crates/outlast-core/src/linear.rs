//! Says whether what clients saw of a key-value store can be explained by one order of their calls: is it linearizable?
//!
//! Each call takes effect at one moment between its beginning and its answer. A call without an answer may take effect at
//! any later time or never. The keys are judged one by one, which is the same as all together (Herlihy and Wing 1990).
//!
//! The search is that of Wing and Gong with Lowe's memory ("Testing for linearizability", 2017): take a call that may come
//! next, see whether its answer fits, go on; never try the same set of calls with the same value again. Two shortcuts keep
//! it small. A call that only looks and fits is taken at once, since nothing is gained by waiting. A write without an
//! answer is only taken just before somebody sees it, since otherwise it may as well not have been.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// What a client asked for, and what it was told. Of a call without an answer, what it was told is not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Get {
        seen: Option<Vec<u8>>,
    },
    Put {
        value: Vec<u8>,
    },
    Delete,
    /// Writes if the key is as expected; `None` expects it to be absent.
    Cas {
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        done: bool,
    },
}

/// One call of one client. A call that was refused for certain took no effect and does not belong into a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub client: u64,
    pub key: Vec<u8>,
    pub operation: Operation,
    /// Times of one clock that all clients share, in any unit.
    pub invoked: u64,
    /// `None`: there was no answer.
    pub returned: Option<u64>,
}

/// What the keys held before the first call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Empty,
    /// Nobody knows.
    Anything,
}

/// What the checker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    Violated(Box<Violation>),
    /// The search was given up at its limit; no other key is violated.
    Undecided {
        key: Vec<u8>,
    },
}

/// Calls that no order explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub key: Vec<u8>,
    /// What the key held before these.
    pub start: Start,
    /// By their beginning. One that began before the others is shown without its answer: it may have taken effect before.
    pub calls: Vec<Call>,
    /// What was seen last and that no call of the whole history has written.
    pub never_written: Option<Vec<u8>>,
}

/// Enough for thousands of calls by some ten clients at a time.
pub const TRIES_MAX: usize = 500_000;

/// A violation of more calls than this is not made smaller one by one.
const SHRINK_MAX: usize = 200;

/// Judges a history; tries at most so many combinations of calls and value for each search.
pub fn check(calls: &[Call], start: Start, tries_max: usize) -> Verdict {
    let mut keys = BTreeMap::<&[u8], Vec<&Call>>::new();
    for call in calls {
        keys.entry(&call.key).or_default().push(call);
    }
    let mut verdict = Verdict::Linearizable;
    for (key, mut calls) in keys {
        calls.sort_by_key(|call| call.invoked);
        match search(&calls, start, tries_max) {
            Found::Order => {}
            Found::None => return Verdict::Violated(Box::new(explain(&calls, start, tries_max))),
            Found::TooMany => verdict = Verdict::Undecided { key: Vec::from(key) },
        }
    }
    verdict
}

/// What is under a key: nothing, this value of the history, or nobody knows what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Held {
    Absent,
    Value(u32),
    Unknown,
}

/// An operation with its values as numbers. A deletion writes that there is nothing.
#[derive(Clone, Copy, Debug)]
enum Move {
    Look {
        seen: Held,
    },
    Write {
        value: Held,
    },
    Swap {
        expected: Held,
        value: Held,
    },
    /// A swap that found something else.
    Differ {
        expected: Held,
    },
}

impl Move {
    /// What is under the key afterwards, if the answer fits what was there before.
    fn after(self, held: Held) -> Option<Held> {
        let is = |wanted| held == wanted || held == Held::Unknown;
        match self {
            Move::Look { seen } => is(seen).then_some(seen),
            Move::Write { value } => Some(value),
            Move::Swap { expected, value } => is(expected).then_some(value),
            Move::Differ { expected } => (held != expected).then_some(held),
        }
    }

    /// Its answer depends on what was there before.
    fn looks(self) -> bool {
        match self {
            Move::Look { .. } | Move::Swap { .. } | Move::Differ { .. } => true,
            Move::Write { .. } => false,
        }
    }

    /// It leaves everything as it is, and fits what is known to be there.
    fn only_looks(self, held: Held) -> bool {
        match self {
            Move::Look { .. } | Move::Differ { .. } => {
                held != Held::Unknown && self.after(held).is_some()
            }
            Move::Write { .. } | Move::Swap { .. } => false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Step {
    invoked: u64,
    /// `u64::MAX` if it may also never take effect.
    returned: u64,
    does: Move,
}

/// How far a search has come: which calls have taken effect, and what is there now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    held: Held,
    /// All answered calls before this one, by beginning, have taken effect.
    until: u32,
    /// Those behind it that have, too.
    beyond: Vec<u32>,
    /// Calls without an answer that have taken effect.
    extra: Vec<u32>,
    /// The last one was such a call, and nobody has seen it yet.
    unseen: bool,
}

enum Found {
    Order,
    None,
    TooMany,
}

/// Searches an order that explains these calls, which are sorted by their beginning.
fn search(calls: &[&Call], start: Start, tries_max: usize) -> Found {
    let (answered, unanswered) = number(calls);
    let held = match start {
        Start::Empty => Held::Absent,
        Start::Anything => Held::Unknown,
    };
    let first = Point { held, until: 0, beyond: Vec::new(), extra: Vec::new(), unseen: false };
    let mut tried = BTreeSet::from([first.clone()]);
    let mut open = Vec::from([first]);
    let mut next = Vec::new();
    while let Some(point) = open.pop() {
        if point.until as usize == answered.len() {
            return Found::Order;
        }
        follow(&point, &answered, &unanswered, &mut next);
        for point in next.drain(..).rev() {
            if tried.insert(point.clone()) {
                open.push(point);
            }
        }
        if tried.len() > tries_max {
            return Found::TooMany;
        }
    }
    Found::None
}

/// Lists where one more call leads, the most promising first.
fn follow(point: &Point, answered: &[Step], unanswered: &[Step], next: &mut Vec<Point>) {
    // Whatever begins after one of the open calls was answered cannot come before that one.
    let mut latest = u64::MAX;
    let mut able = Vec::new();
    for (number, step) in (point.until..).zip(&answered[point.until as usize..]) {
        if step.invoked > latest {
            break;
        }
        if point.beyond.binary_search(&number).is_err() {
            latest = latest.min(step.returned);
            able.push((number, *step));
        }
    }
    able.retain(|(_, step)| step.invoked <= latest);
    if let Some((number, step)) = able.iter().find(|(_, step)| step.does.only_looks(point.held)) {
        next.extend(point.take(*number, *step));
        return;
    }
    able.sort_by_key(|(_, step)| step.returned);
    let fits = |step: &Step| !point.unseen || step.does.looks();
    for (number, step) in able.into_iter().filter(|(_, step)| fits(step)) {
        next.extend(point.take(number, step));
    }
    for (number, step) in (0..).zip(unanswered) {
        if step.invoked > latest {
            break;
        }
        let Err(place) = point.extra.binary_search(&number) else { continue };
        if fits(step)
            && let Some(held) = step.does.after(point.held)
        {
            let mut point = Point { held, unseen: true, ..point.clone() };
            point.extra.insert(place, number);
            next.push(point);
        }
    }
}

impl Point {
    fn take(&self, number: u32, step: Step) -> Option<Point> {
        let held = step.does.after(self.held)?;
        let mut point = Point { held, unseen: false, ..self.clone() };
        let place = point.beyond.partition_point(|&other| other < number);
        point.beyond.insert(place, number);
        let row = (point.until..).zip(&point.beyond).take_while(|(at, taken)| at == *taken).count();
        point.beyond.drain(..row);
        point.until += u32::try_from(row).unwrap_or(u32::MAX);
        Some(point)
    }
}

/// Writes numbers for values and sorts out the calls without an answer; those of them that only look say nothing.
fn number(calls: &[&Call]) -> (Vec<Step>, Vec<Step>) {
    let mut values = BTreeMap::<&[u8], u32>::new();
    let mut valued = |value| {
        let next = u32::try_from(values.len()).unwrap_or(u32::MAX);
        Held::Value(*values.entry(value).or_insert(next))
    };
    let (mut answered, mut unanswered) = (Vec::new(), Vec::new());
    for call in calls {
        let does = match &call.operation {
            Operation::Get { seen } => {
                Move::Look { seen: seen.as_deref().map_or(Held::Absent, &mut valued) }
            }
            Operation::Put { value } => Move::Write { value: valued(value) },
            Operation::Delete => Move::Write { value: Held::Absent },
            Operation::Cas { expected, value, done } => {
                let expected = expected.as_deref().map_or(Held::Absent, &mut valued);
                let value = valued(value);
                if *done || call.returned.is_none() {
                    Move::Swap { expected, value }
                } else {
                    Move::Differ { expected }
                }
            }
        };
        let invoked = call.invoked;
        match (call.returned, does) {
            (Some(returned), _) => answered.push(Step { invoked, returned, does }),
            (None, Move::Look { .. }) => {}
            (None, Move::Write { .. } | Move::Swap { .. } | Move::Differ { .. }) => {
                unanswered.push(Step { invoked, returned: u64::MAX, does });
            }
        }
    }
    (answered, unanswered)
}

/// Looks for few calls that no order explains, among calls of one key that none explains.
fn explain(calls: &[&Call], start: Start, tries_max: usize) -> Violation {
    let violated = |calls: &[Call], start| {
        let calls: Vec<&Call> = calls.iter().collect();
        matches!(search(&calls, start, tries_max), Found::None)
    };
    // The first answer that cannot be explained: if it cannot be by then, it cannot be later.
    let mut ends: Vec<u64> = calls.iter().filter_map(|call| call.returned).collect();
    ends.sort_unstable();
    let end = first(&ends, |end| violated(&until(calls, end), start));
    let last = end.unwrap_or(u64::MAX);
    let upto = until(calls, last);
    // The latest beginning from which on it cannot be explained, whatever was there before.
    let begins: Vec<u64> = upto.iter().rev().map(|call| call.invoked).collect();
    let begin = first(&begins, |begin| violated(&since(&upto, begin), Start::Anything));
    let (mut shown, start) = match begin {
        Some(begin) => (since(&upto, begin), Start::Anything),
        None => (upto, start),
    };
    // What only looks can be left out if it is not needed.
    let mut at = shown.len();
    while at > 0 && shown.len() <= SHRINK_MAX {
        at -= 1;
        if looks_only(&shown[at]) {
            let call = shown.remove(at);
            if !violated(&shown, start) {
                shown.insert(at, call);
            }
        }
    }
    let seen = calls.iter().find(|call| call.returned == Some(last)).and_then(|call| saw(call));
    let written = |value: &[u8]| calls.iter().any(|call| writes(call) == Some(value));
    let never_written = seen.filter(|value| start == Start::Empty && !written(value));
    let never_written = never_written.map(Vec::from);
    Violation {
        key: shown.first().map_or_else(Vec::new, |c| c.key.clone()),
        start,
        calls: shown,
        never_written,
    }
}

/// The first of these of which it is true, if it is true of all that come after one.
fn first(of: &[u64], is_true: impl Fn(u64) -> bool) -> Option<u64> {
    let (mut low, mut high) = (0, of.len());
    while low < high {
        let middle = low.midpoint(high);
        if is_true(of[middle]) { high = middle } else { low = middle + 1 }
    }
    of.get(low).copied()
}

/// What is known at this moment: calls that were not answered by then have no answer.
fn until(calls: &[&Call], end: u64) -> Vec<Call> {
    let begun = calls.iter().filter(|call| call.invoked <= end);
    let known = begun.map(|&call| Call {
        returned: call.returned.filter(|&returned| returned <= end),
        ..call.clone()
    });
    known.filter(|call| call.returned.is_some() || !looks_only(call)).collect()
}

/// What can take effect after this moment: calls that were under way then may have done so before, with any answer.
fn since(calls: &[Call], begin: u64) -> Vec<Call> {
    let lasting =
        calls.iter().filter(|call| call.returned.is_none_or(|returned| returned >= begin));
    let known = lasting.map(|call| Call {
        returned: call.returned.filter(|_| call.invoked >= begin),
        ..call.clone()
    });
    known.filter(|call| call.returned.is_some() || !looks_only(call)).collect()
}

fn looks_only(call: &Call) -> bool {
    match &call.operation {
        Operation::Get { .. } => true,
        Operation::Put { .. } | Operation::Delete => false,
        Operation::Cas { done, .. } => call.returned.is_some() && !done,
    }
}

fn saw(call: &Call) -> Option<&[u8]> {
    match &call.operation {
        Operation::Get { seen } => seen.as_deref(),
        Operation::Cas { expected, done: true, .. } => expected.as_deref(),
        Operation::Put { .. } | Operation::Delete | Operation::Cas { done: false, .. } => None,
    }
}

fn writes(call: &Call) -> Option<&[u8]> {
    match &call.operation {
        Operation::Put { value } | Operation::Cas { value, .. } => Some(value),
        Operation::Get { .. } | Operation::Delete => None,
    }
}

/// So many characters of a key or a value are shown.
const SHOWN_MAX: usize = 40;

fn show(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().count() > SHOWN_MAX {
        shown.push('…');
    }
    alloc::format!("`{shown}`")
}

fn show_held(value: Option<&Vec<u8>>) -> String {
    value.map_or_else(|| String::from("nothing"), |value| show(value))
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.returned {
            Some(returned) => write!(f, "{}..{returned}", self.invoked)?,
            None => write!(f, "{}..?", self.invoked)?,
        }
        write!(f, " client {}: ", self.client)?;
        match &self.operation {
            Operation::Get { seen } => write!(f, "get saw {}", show_held(seen.as_ref())),
            Operation::Put { value } => write!(f, "put {}", show(value)),
            Operation::Delete => f.write_str("delete"),
            Operation::Cas { expected, value, done } => {
                let (expected, value) = (show_held(expected.as_ref()), show(value));
                let word = match (self.returned, done) {
                    (None, _) => "has no answer that counts",
                    (Some(_), true) => "was done",
                    (Some(_), false) => "found something else",
                };
                write!(f, "cas from {expected} to {value} {word}")
            }
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = match self.start {
            Start::Empty => "nothing before",
            Start::Anything => "anything before",
        };
        let key = show(&self.key);
        write!(f, "no order explains these calls of key {key}, which held {before}:")?;
        self.calls.iter().try_for_each(|call| write!(f, "\n  {call}"))?;
        match &self.never_written {
            Some(value) => write!(f, "\nnobody ever wrote {}", show(value)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
