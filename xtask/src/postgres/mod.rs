//! PostgreSQL as benchmarks and the demo see it: a client that writes without pause, the processes of a node, and
//! stacks of three nodes that fail over.

pub(crate) mod analysis;
pub(crate) mod attempts;
pub(crate) mod cost;
pub(crate) mod machine;
pub(crate) mod ours;
pub(crate) mod patroni;
pub(crate) mod probe;
pub(crate) mod prober;
pub(crate) mod reaper;
pub(crate) mod session;
pub(crate) mod stack;
mod wire;

/// Who asks, and where, on every stack.
pub(crate) const USER: &str = "postgres";
pub(crate) const DATABASE: &str = "postgres";

/// Nanoseconds on CLOCK_MONOTONIC: the same for all processes of this machine.
pub(crate) fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds * 1_000_000_000 + nanos
}

/// A span of that clock.
pub(crate) fn span(from: u64, to: u64) -> std::time::Duration {
    std::time::Duration::from_nanos(to.saturating_sub(from))
}

/// Waits a while for what is measured over time; nothing else may be waited for like this.
pub(crate) async fn sample_for(time: std::time::Duration) -> std::time::Duration {
    let begun = std::time::Instant::now();
    tokio::time::sleep(time).await;
    begun.elapsed()
}
