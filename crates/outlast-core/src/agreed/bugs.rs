//! Faults built into what is agreed on purpose, so that tests can show that the laws find them.

use std::cell::Cell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A lease expires although it was renewed after that was judged.
    ExpiresBlindly,
    /// A new grant to the same node goes on under the old epoch.
    EpochKept,
    /// A node whose disk is lost gets its old id back.
    WipedDiskKeepsId,
    /// A node that has not voted counts as one that said yes.
    SilenceIsConsent,
    /// A step that failed half-way is not undone.
    FailedIsNotUndone,
    /// A coordinator whose lease is over is obeyed.
    StaleCoordinator,
    /// The bytes of a value that was overwritten stay counted.
    OverwriteLeaks,
    /// A snapshot has no queues of locks.
    QueueNotKept,
    /// A session that is over keeps its place in queues.
    DeadWaiter,
    /// A session's keys stay when it is over.
    KeysOutliveSession,
    /// An entry that comes twice is applied twice.
    AppliedTwice,
    /// A move under an epoch that was used before is obeyed.
    OldMoveWins,
    /// A primary renews its lease although its reign is over.
    RenewedAfterElection,
    /// A primary is appointed although members that may know more are silent.
    Uncovered,
    /// An address is moved although it has moved since that was judged.
    MovedBlindly,
    /// Answers are changed although they have changed since that was judged.
    AnsweredBlindly,
}

std::thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// The right value, or the wrong one if this bug is planted.
pub(crate) fn instead<T>(bug: Bug, right: T, wrong: T) -> T {
    if PLANTED.get() == Some(bug) { wrong } else { right }
}

/// Does something while a bug is planted.
pub(crate) fn with<T>(bug: Bug, mut what: impl FnMut() -> T) -> T {
    struct Dug;
    impl Drop for Dug {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
    PLANTED.set(Some(bug));
    let _dug = Dug;
    what()
}
