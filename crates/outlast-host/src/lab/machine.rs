//! What the first process of a machine does for all others there.

use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};

/// A process that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    pub pid: u32,
    /// As a shell says it: above 128 it was a signal.
    pub code: i32,
}

/// Collects one child that has ended, our own or left to us by its parent; `None` if none has.
pub fn reap() -> io::Result<Option<Reaped>> {
    match wait(WaitOptions::NOHANG) {
        Ok(Some((pid, status))) => {
            let signal = status.terminating_signal().map(|signal| 128 + signal);
            let code = status.exit_status().or(signal).unwrap_or(0);
            Ok(Some(Reaped { pid: pid.as_raw_nonzero().get().unsigned_abs(), code }))
        }
        Ok(None) | Err(Errno::CHILD | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends a signal to every process of the machine but ourselves, in one stroke: none can fork its way past it.
pub fn signal_all(signal: Signal) -> io::Result<()> {
    // The group of process 1 stands for everyone, kill(2).
    match kill_process_group(Pid::INIT, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
