//! Ends open work at a backend that must not serve any more.
//!
//! A table closes a fence; whoever works at the backend holds a pass from before and finds that it is no longer good. Asking
//! costs one atomic read, so that every step of every request can ask.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Whether work may go on at a backend. Counted up by each change: even is open, odd is closed.
#[derive(Debug, Default)]
pub(crate) struct Fence(AtomicU32);

/// What work was let in with: the count at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass(u32);

impl Fence {
    /// Ends what is open and lets nothing in. False: it was closed already.
    pub(crate) fn close(&self) -> bool {
        let open = !self.closed();
        if open {
            self.0.fetch_add(1, SeqCst);
        }
        open
    }

    /// Lets new work in.
    pub(crate) fn open(&self) {
        if self.closed() {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// Ends what is open and lets new work in.
    pub(crate) fn cut(&self) {
        self.close();
        self.open();
    }

    pub(crate) fn closed(&self) -> bool {
        !self.0.load(SeqCst).is_multiple_of(2)
    }

    pub(crate) fn pass(&self) -> Pass {
        Pass(self.0.load(SeqCst))
    }

    /// Whether work with this pass has to end, though the fence may have been opened again since.
    pub(crate) fn stops(&self, pass: Pass) -> bool {
        let now = self.0.load(SeqCst);
        now != pass.0 || !now.is_multiple_of(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_ends_with_the_first_change_and_none_is_good_behind_a_closed_fence() {
        let fence = Fence::default();
        let early = fence.pass();
        fence.open();
        assert!(!fence.stops(early));
        assert!(fence.close());
        assert!(!fence.close());
        let behind = fence.pass();
        assert!(fence.stops(early) && fence.stops(behind));
        fence.open();
        let late = fence.pass();
        assert!(fence.stops(early) && fence.stops(behind) && !fence.stops(late));
        fence.cut();
        assert!(fence.stops(late) && !fence.stops(fence.pass()));
    }
}
