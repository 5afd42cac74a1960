//! A request's body on its way from the client, kept as long as it may have to be sent again.

use crate::body::Decoder;
use crate::head::Refusal;
use crate::io::Rest;
use crate::live::LiveService;

/// Bytes of a request body that are kept to send them again.
const REPLAY_MAX: usize = 64 << 10;

/// A request body on its way.
#[derive(Debug)]
pub(super) struct BodyIn {
    pub(super) decoder: Decoder,
    /// Everything read of it so far, while that is little enough to send again.
    pub(super) replay: Option<Vec<u8>>,
    /// Anything of it has been read.
    pub(super) touched: bool,
    pub(super) bytes: u64,
    /// The client still waits for `100 Continue`.
    pub(super) owes_continue: bool,
}

impl BodyIn {
    /// Takes the body's part of `bytes` for sending; returns how many those were.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        pending: &mut Rest,
        service: &LiveService,
    ) -> Result<usize, Refusal> {
        let taken =
            self.decoder.advance(bytes).map_err(|m| Refusal { status: 400, reason: m.0 })?;
        self.touched = true;
        self.bytes += taken as u64;
        let max = service.spec.limits.body_bytes;
        if max > 0 && self.bytes > max {
            return Err(Refusal { status: 413, reason: "body too large" });
        }
        match &mut self.replay {
            Some(replay) => replay.extend_from_slice(&bytes[..taken]),
            None => pending.push(&bytes[..taken]),
        }
        Ok(taken)
    }

    /// Gives up the replay of a body that is too large for it; returns what of it has not been sent.
    pub(super) fn outgrown(&mut self, sent: usize) -> Option<Vec<u8>> {
        if self.replay.as_ref().is_none_or(|r| r.len() <= REPLAY_MAX) {
            return None;
        }
        self.replay.take().map(|mut replay| replay.split_off(sent))
    }
}
