//! A retry budget: retries may be a share of requests, with a floor, so that a dying pool is not flooded.
//!
//! A token bucket after Finagle's `RetryBudget`: each request puts in its share, each retry takes one token; a floor drips in
//! by itself; tokens older than the window are lost by capping the bucket.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Retries a second that are always allowed.
const FLOOR_PER_SECOND: i64 = 10;

/// How many seconds of tokens the bucket holds.
const WINDOW_SECONDS: i64 = 10;

/// One token, so that shares can be counted in integers.
const TOKEN: i64 = 1000;

/// The tokens of one service. Shared by all workers without a lock.
#[derive(Debug)]
pub struct Budget {
    tokens: AtomicI64,
    /// Milliseconds, on the caller's clock, up to which the floor has been paid.
    paid_ms: AtomicI64,
}

impl Budget {
    pub fn new(now_ms: i64) -> Budget {
        Budget {
            tokens: AtomicI64::new(FLOOR_PER_SECOND * WINDOW_SECONDS * TOKEN),
            paid_ms: AtomicI64::new(now_ms),
        }
    }

    /// A request was accepted.
    pub fn deposit(&self, share: f64) {
        #[expect(clippy::cast_possible_truncation, reason = "a share of at most a few tokens")]
        let add = (share.clamp(0.0, 10.0) * 1000.0) as i64;
        // The cap may be missed by a race of a few tokens; it is no exact science.
        if self.tokens.load(Relaxed) < TOKEN * 10_000 {
            self.tokens.fetch_add(add, Relaxed);
        }
    }

    /// Takes a token for one retry; false if there is none.
    pub fn withdraw(&self, now_ms: i64) -> bool {
        let paid = self.paid_ms.load(Relaxed);
        let due = (now_ms - paid).clamp(0, WINDOW_SECONDS * 1000);
        if due > 0 && self.paid_ms.compare_exchange(paid, now_ms, Relaxed, Relaxed).is_ok() {
            let cap = FLOOR_PER_SECOND * WINDOW_SECONDS * TOKEN;
            let add = (due * FLOOR_PER_SECOND * TOKEN / 1000)
                .min((cap - self.tokens.load(Relaxed)).max(0));
            self.tokens.fetch_add(add, Relaxed);
        }
        if self.tokens.fetch_sub(TOKEN, Relaxed) >= TOKEN {
            return true;
        }
        self.tokens.fetch_add(TOKEN, Relaxed);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn withdraw_all(budget: &Budget, now_ms: i64) -> u32 {
        let mut count = 0;
        while budget.withdraw(now_ms) {
            count += 1;
        }
        count
    }

    #[test]
    fn retries_are_a_share_of_requests_above_a_floor() {
        let budget = Budget::new(0);
        assert_eq!(withdraw_all(&budget, 0), 100);
        (0..1000).for_each(|_| budget.deposit(0.2));
        assert_eq!(withdraw_all(&budget, 0), 200);
        assert_eq!(withdraw_all(&budget, 1000), 10);
        assert_eq!(withdraw_all(&budget, 100_000), 100);
    }
}
