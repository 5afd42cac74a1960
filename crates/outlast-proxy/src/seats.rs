//! Who has to look up when a worker gets new orders: every connection of its thread.
//!
//! A connection that waits for its client or its backend hears of nothing else. It takes a seat for life, and whoever changes
//! something wakes all seats; each then looks whether the change is its concern. A request costs nothing by this.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

thread_local! {
    static SEATS: RefCell<Seats> = const { RefCell::new(Seats { wakers: Vec::new(), free: Vec::new() }) };
}

struct Seats {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// A task's place among those that are woken; to be dropped on the thread that took it.
#[derive(Debug)]
pub(crate) struct Seat(usize);

impl Seat {
    /// A seat for the running task, whose waker stays the same as long as it lives.
    pub(crate) async fn take() -> Seat {
        poll_fn(|cx| {
            let waker = Some(cx.waker().clone());
            Poll::Ready(SEATS.with_borrow_mut(|seats| {
                if let Some(place) = seats.free.pop() {
                    seats.wakers[place] = waker;
                    return Seat(place);
                }
                seats.wakers.push(waker);
                Seat(seats.wakers.len() - 1)
            }))
        })
        .await
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let waker = SEATS.with_borrow_mut(|seats| {
            seats.free.push(self.0);
            seats.wakers[self.0].take()
        });
        // Outside of the borrow: the last waker of a task may drop the task.
        drop(waker);
    }
}

/// Wakes every task of this thread that has a seat.
pub(crate) fn wake_all() {
    SEATS.with_borrow(|seats| seats.wakers.iter().flatten().for_each(Waker::wake_by_ref));
}
