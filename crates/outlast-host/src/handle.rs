//! A process of ours or of an earlier life of ours, held so that its number cannot come to mean another process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

/// A process, whatever becomes of its number.
#[derive(Debug)]
pub struct Handle {
    pid: Pid,
    fd: OwnedFd,
}

impl Handle {
    /// Takes hold of a process. The caller knows that the number still means it: an unreaped child, say.
    pub fn hold(pid: u32) -> io::Result<Handle> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        Handle::of(pid.ok_or_else(|| io::Error::from(Errno::SRCH))?)
    }

    /// Takes hold of the process that listens at the other end, even one that does not answer.
    pub fn of_peer(stream: &UnixStream) -> io::Result<Handle> {
        let handle = Handle::of(sockopt::socket_peercred(stream)?.pid)?;
        // Its end was open after its number was looked up: so the number was still its own.
        match recv(stream, &mut [0; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::AGAIN) => Ok(handle),
            Err(error) => Err(error.into()),
        }
    }

    fn of(pid: Pid) -> io::Result<Handle> {
        Ok(Handle { pid, fd: pidfd_open(pid, PidfdFlags::empty())? })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it has not exited; a zombie has.
    pub fn is_alive(&self) -> bool {
        !self.exits_within(Duration::ZERO)
    }

    /// Waits until it has exited, for this long at most. Blocks.
    pub fn exits_within(&self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).ok();
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        // Interrupted: the caller looks again, or it is as good as not yet.
        poll(&mut fds, limit.as_ref()).is_ok_and(|ready| ready > 0)
    }

    /// To a process that has exited it is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The exit status, if it has exited, was a child of ours and nobody has collected it.
    pub fn collect(&self) -> Option<ExitStatus> {
        collect(self.fd.as_fd())
    }
}

/// Takes the exit status of the process behind a pidfd.
pub(crate) fn collect(pidfd: BorrowedFd<'_>) -> Option<ExitStatus> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let ended = waitid(WaitId::PidFd(pidfd), options).ok()??;
    // As wait(2) packs it.
    let raw = match (ended.exit_status(), ended.terminating_signal()) {
        (Some(code), _) => (code & 0xff) << 8,
        (None, signal) => signal?,
    };
    Some(ExitStatus::from_raw(raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    #[expect(clippy::zombie_processes, reason = "collecting it is what is tested")]
    fn a_held_process_is_alive_until_it_is_killed_and_is_collected_once() {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let handle = Handle::hold(child.id()).unwrap();
        assert!(handle.is_alive() && handle.pid() == child.id());
        assert_eq!(handle.collect(), None);
        // A stopped process is alive, and can be killed.
        handle.signal(Signal::STOP).unwrap();
        assert!(handle.is_alive());
        handle.signal(Signal::KILL).unwrap();
        assert!(handle.exits_within(LIMIT) && !handle.is_alive());
        assert_eq!(handle.collect().and_then(|status| status.signal()), Some(9));
        assert_eq!(handle.collect(), None);
        handle.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn the_peer_of_a_connection_is_held_as_long_as_it_is_there() {
        let (near, far) = UnixStream::pair().unwrap();
        assert_eq!(Handle::of_peer(&near).unwrap().pid(), std::process::id());
        drop(far);
        assert!(Handle::of_peer(&near).is_err());
    }
}
