//! What comes in from one node: frames become messages, and the other side gets as much credit as is taken away.

use outlast_core::codec::Malformed;

use crate::limits::{COST, HELD_MAX, MESSAGE_MAX};
use crate::outbox::window;
use crate::wire::{Frame, Head, Lane};

/// What a frame came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Got {
    /// Of a message there is more to come.
    Part,
    Message {
        lane: Lane,
        head: Head,
        body: Vec<u8>,
    },
    Ping(u64),
    Pong(u64),
    Credit {
        lane: Lane,
        bytes: u32,
    },
    Goodbye(String),
}

/// The messages of one connection that are being put together.
#[derive(Debug, Default)]
pub struct Inflow {
    parts: [Option<(Head, Vec<u8>)>; Lane::ALL.len()],
}

/// What is held in one lane of one node, and what that node may still send. It outlives a connection: whoever connects
/// again and again does not get more than one share.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Of the message that is being put together.
    partial: usize,
    /// Of messages that nobody has taken yet.
    untaken: usize,
    /// Received and not yet given back as credit.
    owed: usize,
    /// Of the window, what the other side has used and not got back.
    used: usize,
}

impl Held {
    /// A connection begins; the other side has no credit until it is given.
    pub(crate) fn begin(&mut self, lane: Lane) {
        *self = Held { partial: 0, untaken: self.untaken, owed: window(lane), used: window(lane) };
    }

    /// A piece arrived. False: the other side sent what it had no credit for.
    #[must_use]
    pub(crate) fn receive(&mut self, lane: Lane, bytes: usize) -> bool {
        self.partial += bytes;
        self.owed += bytes + COST;
        self.used += bytes + COST;
        self.used <= window(lane)
    }

    /// The message is whole; it waits to be taken, or was taken at once.
    pub(crate) fn complete(&mut self, waits: Option<usize>) {
        self.partial = 0;
        self.untaken += waits.map_or(0, |bytes| bytes + COST);
    }

    /// A message that waited was taken.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.untaken -= bytes + COST;
    }

    /// Credit for the other side, once there is enough of it to be worth a frame and what is here is not too much.
    pub(crate) fn credit(&mut self, lane: Lane) -> Option<usize> {
        if self.bytes() > HELD_MAX || self.owed < window(lane) / 4 {
            return None;
        }
        self.used -= self.owed;
        Some(std::mem::take(&mut self.owed))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.partial + self.untaken
    }
}

impl Inflow {
    /// Takes a frame. Data has been charged with `Held::receive` by the caller, who knows its lane.
    pub fn take(&mut self, frame: Frame<'_>) -> Result<Got, Malformed> {
        Ok(match frame {
            Frame::Ping(number) => Got::Ping(number),
            Frame::Pong(number) => Got::Pong(number),
            Frame::Credit { lane, bytes } => Got::Credit { lane, bytes },
            Frame::Goodbye(reason) => Got::Goodbye(reason.to_owned()),
            Frame::Data { lane, more, payload } => return self.data(lane, more, payload),
        })
    }

    fn data(&mut self, lane: Lane, more: bool, payload: &[u8]) -> Result<Got, Malformed> {
        let part = &mut self.parts[lane.index()];
        match (part.take(), more) {
            (None, false) => {
                let (head, body) = Head::split(lane, payload)?;
                Ok(Got::Message { lane, head, body: body.to_vec() })
            }
            (None, true) => {
                let (head, body) = Head::split(lane, payload)?;
                *part = Some((head, body.to_vec()));
                Ok(Got::Part)
            }
            (Some((head, mut body)), more) => {
                if body.len() + payload.len() > MESSAGE_MAX {
                    return Err(Malformed("a message beyond the limit"));
                }
                body.extend_from_slice(payload);
                if more {
                    *part = Some((head, body));
                    return Ok(Got::Part);
                }
                Ok(Got::Message { lane, head, body })
            }
        }
    }
}

#[cfg(test)]
mod tests;
