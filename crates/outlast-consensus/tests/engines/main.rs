//! Engines of several nodes in one process, on real files: they agree, stop, tear, hang, come and go.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod disks;
mod harness;
mod life;
mod room;
