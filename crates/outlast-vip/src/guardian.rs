//! A process that ends what its parent holds as soon as that one is dead.
//!
//! The kernel closes the pipe between the two when the parent dies, however it does. What the guardian hears before is the
//! description of a unit and, if all is in order, a word of goodbye:
//!
//! ```text
//! unit NAME
//! address ADDRESS/PREFIX INTERFACE
//! ...
//! ready
//! goodbye
//! ```

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use outlast_core::topology::Network;
use outlast_kernel::route::Route;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, setsid};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::address::{ADDRESSES_MAX, Kept, Place, check};
use crate::error::Error;
use crate::tables::Tables;

/// Until the guardian has said that it is ready.
pub const READY_MAX: Duration = Duration::from_secs(5);
/// Until it has ended, after a goodbye.
pub const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// How often it tries to end what its parent held.
const TRIES_MAX: u32 = 3;
/// The longest line of a description, and of all of it.
const DESCRIPTION_MAX: u64 = 64 << 10;

const READY: &str = "ready";
const GOODBYE: &str = "goodbye";

/// The parent's end: as long as it is there, the guardian does nothing.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
    /// Closed by the kernel when this process dies.
    pipe: Option<ChildStdin>,
    pidfd: OwnedFd,
}

impl Guardian {
    /// Starts it for this unit: the command has to call [`guardian`] with its standard input and output.
    pub fn spawn(mut command: Command, unit: &str, places: &[Place]) -> Result<Guardian, Error> {
        check(unit, places)?;
        let failed = |doing| move |error| Error::Guardian { doing, error };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed("start the guardian"))?;
        let pipe = child.stdin.take();
        let pidfd = hold(&child).map_err(failed("hold the guardian"))?;
        let mut guardian = Guardian { child, pipe, pidfd };
        guardian
            .tell(&describe(unit, places))
            .and_then(|()| guardian.wait_until_ready())
            .map_err(failed("wait for the guardian to be ready"))?;
        Ok(guardian)
    }

    /// Whether it has ended, by itself or because somebody has killed it: then another one is needed.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Has it end without doing anything: the addresses are dropped, or somebody else cares for them now.
    pub fn goodbye(mut self) -> Result<(), Error> {
        let said = self.tell(&format!("{GOODBYE}\n"));
        said.map_err(|error| Error::Guardian { doing: "let the guardian go", error })
    }

    fn tell(&mut self, text: &str) -> io::Result<()> {
        let pipe = self.pipe.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.write_all(text.as_bytes())
    }

    fn wait_until_ready(&mut self) -> io::Result<()> {
        let mut stdout = self.child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        if !becomes_readable(stdout.as_fd(), READY_MAX)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut said = [0; READY.len()];
        stdout.read_exact(&mut said)?;
        if said == *READY.as_bytes() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// Can be waited for: it is readable once the guardian has ended.
impl AsFd for Guardian {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Without a goodbye the guardian drops the addresses, as after a death.
impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // One that does not end is told to, so that it is collected and holds nobody up. It has no children.
        if !matches!(becomes_readable(self.pidfd.as_fd(), GOODBYE_MAX), Ok(true)) {
            self.child.kill().ok();
        }
        self.child.wait().ok();
    }
}

/// How the work of a guardian has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its parent had no more need of it.
    Goodbye,
    /// Its parent died, and the addresses are dropped.
    Dropped,
}

/// The work of the guardian's process: reads what its parent says, from one end of a pipe, and says that it is ready at the
/// other. It leaves the parent's session, and ends for no signal that can be heard.
pub fn guardian(from: impl Read, mut to: impl Write) -> Result<Ended, Error> {
    let failed = |doing| move |error| Error::Guardian { doing, error };
    let _deaf = Deaf::become_deaf().map_err(failed("ignore signals"))?;
    leave_session().map_err(failed("leave the session of the parent"))?;
    let mut from = BufReader::new(from.take(DESCRIPTION_MAX));
    let charge = Charge::read(&mut from)?;
    to.write_all(READY.as_bytes())
        .and_then(|()| to.flush())
        .map_err(failed("say that the guardian is ready"))?;
    // What cannot be read is no goodbye.
    let mut last = String::new();
    if from.read_line(&mut last).is_ok() && last.trim_end() == GOODBYE {
        return Ok(Ended::Goodbye);
    }
    charge.drop_all().map(|()| Ended::Dropped)
}

/// What the guardian ends, with all that it needs for that at hand.
struct Charge {
    tables: Tables,
    route: Route,
    addresses: Vec<Kept>,
}

impl Charge {
    fn read(from: &mut impl io::BufRead) -> Result<Charge, Error> {
        let (unit, places) = read_description(from)?;
        check(&unit, &places)?;
        let ips = places.iter().map(|place| place.network.address);
        Ok(Charge {
            tables: Tables::open(&unit, ips)
                .map_err(|error| Error::kernel("open the way to nftables", error))?,
            route: Route::open().map_err(|error| Error::kernel("open netlink", error))?,
            addresses: places.into_iter().map(Kept::new).collect(),
        })
    }

    fn drop_all(&self) -> Result<(), Error> {
        let mut dropped = self.drop_once();
        for _ in 1..TRIES_MAX {
            if dropped.is_ok() {
                break;
            }
            dropped = self.drop_once();
        }
        dropped
    }

    /// All of it, whatever fails; the first failure is said.
    fn drop_once(&self) -> Result<(), Error> {
        let revoked = match self.tables.flush() {
            // Where there is no guard there is none to tell.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(()),
            done => done.map_err(|error| Error::kernel("revoke the lease", error)),
        };
        self.addresses.iter().map(|address| address.remove(&self.route)).fold(revoked, Result::and)
    }
}

/// Hears the signals that end a process, so that they do not end this one.
struct Deaf {
    _signals: Vec<Signal>,
    _runtime: tokio::runtime::Runtime,
}

impl Deaf {
    fn become_deaf() -> io::Result<Deaf> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let signals = {
            let _inside = runtime.enter();
            let kinds = [
                SignalKind::terminate(),
                SignalKind::interrupt(),
                SignalKind::hangup(),
                SignalKind::quit(),
                SignalKind::pipe(),
            ];
            kinds.into_iter().map(signal).collect::<io::Result<_>>()?
        };
        Ok(Deaf { _signals: signals, _runtime: runtime })
    }
}

fn leave_session() -> io::Result<()> {
    match setsid() {
        // It leads a group already, which is its own then.
        Ok(_) | Err(Errno::PERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn hold(child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn becomes_readable(fd: BorrowedFd<'_>, within: Duration) -> io::Result<bool> {
    let within = Timespec {
        tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(within.subsec_nanos()),
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&within)))? != 0)
}

fn describe(unit: &str, places: &[Place]) -> String {
    let mut text = format!("unit {unit}\n");
    for Place { network: Network { address, prefix }, interface } in places {
        writeln!(text, "address {address}/{prefix} {interface}").expect("a String takes all");
    }
    text.push_str(READY);
    text.push('\n');
    text
}

fn read_description(from: &mut impl io::BufRead) -> Result<(String, Vec<Place>), Error> {
    let (mut unit, mut places) = (String::new(), Vec::new());
    // A unit, its addresses, and the end.
    for _ in 0..ADDRESSES_MAX + 2 {
        let mut line = String::new();
        from.read_line(&mut line)
            .map_err(|error| Error::Guardian { doing: "read what to guard", error })?;
        let line = line.trim_end();
        if line == READY {
            return Ok((unit, places));
        } else if let Some(name) = line.strip_prefix("unit ") {
            name.clone_into(&mut unit);
        } else {
            let place = read_place(line).ok_or_else(|| {
                Error::Asked(format!("a guardian cannot guard `{line}`: is it of the same build?"))
            })?;
            places.push(place);
        }
    }
    Err(Error::Asked("what to guard has no end: is the guardian of the same build?".to_owned()))
}

fn read_place(line: &str) -> Option<Place> {
    let (network, interface) = line.strip_prefix("address ")?.split_once(' ')?;
    let (address, prefix) = network.split_once('/')?;
    let network = Network { address: address.parse().ok()?, prefix: prefix.parse().ok()? };
    Some(Place { network, interface: interface.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_read_as_it_was_written() {
        let place = |address: &str, prefix| Place {
            network: Network { address: address.parse().unwrap(), prefix },
            interface: "eth0.7".to_owned(),
        };
        let places = vec![place("10.0.0.9", 24), place("fd00::9", 64)];
        let text = describe("db", &places);
        let read = read_description(&mut text.as_bytes()).unwrap();
        assert_eq!(read, ("db".to_owned(), places));
    }

    #[test]
    fn half_of_a_description_is_none() {
        for text in ["", "unit db\n", "unit db\naddress 10.0.0.9 eth0\nready\n", "ready"] {
            let read = read_description(&mut text.as_bytes());
            assert!(read.is_err() || read.is_ok_and(|(unit, _)| unit.is_empty()), "{text}");
        }
    }
}
