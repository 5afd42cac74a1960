//! What waits to be sent to one node: a bounded queue for each channel, emptied in the order of urgency.
//!
//! Whoever sends puts a message here; the connection's task takes batches of frames. Nothing here waits or knows a
//! socket, so that what goes out when is a plain function of what was put in.

use std::collections::VecDeque;
use std::task::Waker;

use crate::limits::{BATCH_MAX, COST, FRAME_MAX, MESSAGE_MAX, QUEUE_MAX, WINDOW, WINDOW_OF_BULK};
use crate::wire::{Frame, Head, Lane, data};

/// A message and, for requests and answers, the words before it.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    Full,
    TooLarge,
    Closed,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Parcel>,
    bytes: usize,
    /// Of the first one that waits, how much has gone.
    gone: usize,
    /// What the other side can take; nothing until it says so.
    credit: usize,
}

/// The bytes of a lane that may be on their way.
pub(crate) fn window(lane: Lane) -> usize {
    match lane {
        Lane::Consensus | Lane::Beliefs | Lane::Answers | Lane::Requests => WINDOW,
        Lane::Bulk => WINDOW_OF_BULK,
    }
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queues: [Queue; Lane::ALL.len()],
    ping: Option<u64>,
    pong: Option<u64>,
    grants: [u32; Lane::ALL.len()],
    /// No more is taken; what waits still goes out, and then this reason.
    goodbye: Option<String>,
    parted: bool,
    waker: Option<Waker>,
    head: Vec<u8>,
}

impl Outbox {
    /// Takes a message; whom to wake, if anybody sleeps.
    pub(crate) fn push(
        &mut self,
        lane: Lane,
        parcel: Parcel,
    ) -> Result<Option<Waker>, (NotTaken, Vec<u8>)> {
        if parcel.body.len() > MESSAGE_MAX {
            return Err((NotTaken::TooLarge, parcel.body));
        }
        if self.goodbye.is_some() {
            return Err((NotTaken::Closed, parcel.body));
        }
        let queue = &mut self.queues[lane.index()];
        if queue.bytes >= QUEUE_MAX {
            return Err((NotTaken::Full, parcel.body));
        }
        queue.bytes += parcel.body.len() + COST;
        queue.waiting.push_back(parcel);
        Ok(self.waker.take())
    }

    pub(crate) fn ping(&mut self, number: u64) {
        self.ping = Some(number);
    }

    /// Answers a ping; of several that came at once the newest.
    pub(crate) fn pong(&mut self, number: u64) {
        self.pong = Some(number);
    }

    /// Lets the other side send more.
    pub(crate) fn grant(&mut self, lane: Lane, bytes: usize) -> Option<Waker> {
        let grant = &mut self.grants[lane.index()];
        *grant = grant.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.waker.take()
    }

    /// The other side lets us send more. False: more than it can ever have taken.
    #[must_use]
    pub(crate) fn credit(&mut self, lane: Lane, bytes: u32) -> bool {
        let queue = &mut self.queues[lane.index()];
        queue.credit = queue.credit.saturating_add(bytes as usize);
        queue.credit <= window(lane)
    }

    /// Takes nothing more; what waits goes out and then the reason.
    pub(crate) fn close(&mut self, reason: &str) -> Option<Waker> {
        self.goodbye.get_or_insert_with(|| reason.to_owned());
        self.waker.take()
    }

    /// Why it takes nothing more.
    pub(crate) fn closed(&self) -> Option<&str> {
        self.goodbye.as_deref()
    }

    /// Whether the goodbye is in a batch.
    pub(crate) fn parted(&self) -> bool {
        self.parted
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queues.iter().map(|queue| queue.bytes).sum()
    }

    pub(crate) fn wake(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    /// Whom to wake when there is something to send.
    pub(crate) fn sleep(&mut self, waker: &Waker) {
        match &self.waker {
            Some(known) if known.will_wake(waker) => {}
            Some(_) | None => self.waker = Some(waker.clone()),
        }
    }

    /// Appends what goes out next: urgent frames up to [`BATCH_MAX`], and of bulk one frame, so that it neither holds up
    /// the others for longer nor starves. True: a queue that was full has room again.
    pub(crate) fn fill(&mut self, batch: &mut Vec<u8>) -> bool {
        if self.parted {
            return false;
        }
        if let Some(number) = self.pong.take() {
            Frame::Pong(number).write(batch);
        }
        if let Some(number) = self.ping.take() {
            Frame::Ping(number).write(batch);
        }
        for lane in Lane::ALL {
            let bytes = std::mem::take(&mut self.grants[lane.index()]);
            if bytes > 0 {
                Frame::Credit { lane, bytes }.write(batch);
            }
        }
        let mut room_again = false;
        let mut unsent = false;
        for lane in Lane::ALL {
            let queue = &mut self.queues[lane.index()];
            let was_full = queue.bytes >= QUEUE_MAX;
            let mut frames_max = if lane == Lane::Bulk { 1 } else { usize::MAX };
            while frames_max > 0
                && (batch.len() < BATCH_MAX || lane == Lane::Bulk)
                && queue.next_frame(lane, &mut self.head, batch)
            {
                frames_max -= 1;
            }
            unsent |= !queue.waiting.is_empty();
            room_again |= was_full && queue.bytes < QUEUE_MAX;
        }
        if let Some(reason) = &self.goodbye
            && !unsent
        {
            Frame::Goodbye(reason).write(batch);
            self.parted = true;
        }
        room_again
    }
}

impl Queue {
    /// Appends the next frame, if there is one and it may go.
    fn next_frame(&mut self, lane: Lane, head: &mut Vec<u8>, batch: &mut Vec<u8>) -> bool {
        let Some(parcel) = self.waiting.front() else { return false };
        head.clear();
        if self.gone == 0 {
            parcel.head.write(head);
        }
        let rest = &parcel.body[self.gone..];
        let piece = &rest[..rest.len().min(FRAME_MAX - head.len())];
        let charge = head.len() + piece.len() + COST;
        if charge > self.credit {
            return false;
        }
        self.credit -= charge;
        let more = piece.len() < rest.len();
        data(lane, more, head, piece, batch);
        self.gone += piece.len();
        if !more {
            self.bytes -= parcel.body.len() + COST;
            self.gone = 0;
            self.waiting.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests;
