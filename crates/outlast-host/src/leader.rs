//! A process that leads a process group of its own, held so that its number cannot come to mean another process.
//!
//! The kernel side is a pidfd (Linux 5.3). It becomes readable when the process has exited, whether it is our child or
//! was adopted.

#![expect(unsafe_code, reason = "registering a descriptor with the reactor is unsafe in tokio")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub(crate) struct Leader {
    pid: Pid,
    fd: AsyncFd<OwnedFd>,
}

impl Leader {
    /// Takes hold of a process. The caller knows that the number still means it: an unreaped child, say.
    pub(crate) fn hold(pid: u32) -> io::Result<Leader> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::from(Errno::SRCH))?;
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` is open and stays the same descriptor for as long as the `AsyncFd` owns it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Leader { pid, fd })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until the leader has exited; its group may live on.
    pub(crate) async fn exited(&self) -> io::Result<()> {
        self.fd.readable().await.map(|_ready| ())
    }

    /// The exit status of a leader that has exited, if it was a child of ours and nobody has collected it.
    pub(crate) fn collect(&self) -> Option<ExitStatus> {
        crate::handle::collect(self.fd.get_ref().as_fd())
    }

    /// Sends a signal to every process of the group; to none is no error.
    ///
    /// The number of a group stays taken while a member lives or the leader is unreaped. For an adopted leader that has
    /// exited with all its members it may be given away; who kills its group does so as soon as the exit is seen.
    pub(crate) fn signal_group(&self, signal: Signal) -> io::Result<()> {
        match kill_process_group(self.pid, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
