//! Namespaces: the ground that a lab stands on, its keeper, its machines, and how to step into one.

#![expect(
    unsafe_code,
    reason = "namespaces are entered between fork and exec, and unshare can part threads from their descriptors"
)]

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getegid, geteuid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, setsid,
};
use rustix::thread::{
    ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe,
};

/// Whether the lab stands in a user namespace of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// We may do all that is needed as we are.
    Root,
    /// In a user namespace: root inside, nobody special outside.
    Rootless,
}

/// The kernel, or who set it up, does not allow a lab.
#[derive(Debug)]
pub struct Refused {
    doing: &'static str,
    error: io::Error,
    advice: Vec<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this machine does not allow a lab: {}: {}", self.doing, self.error)?;
        self.advice.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// What may be in the way of namespaces, where it is read, what it says then, and what to do.
const HURDLES: [(&str, &str, &str); 4] = [
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor keeps user namespaces from ordinary users (Ubuntu): run it as root, or `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "user namespaces are for root only: run it as root, or `sudo sysctl kernel.unprivileged_userns_clone=1`",
    ),
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "user namespaces are switched off: `sudo sysctl user.max_user_namespaces=10000`",
    ),
    (
        "/proc/sys/user/max_net_namespaces",
        "0",
        "network namespaces are switched off: `sudo sysctl user.max_net_namespaces=10000`",
    ),
];

impl Refused {
    fn at(doing: &'static str, error: io::Error) -> Refused {
        let is = |path: &str, value: &str| {
            fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
        };
        let mut advice: Vec<String> = HURDLES
            .iter()
            .filter(|(path, value, _)| is(path, value))
            .map(|(_, _, advice)| (*advice).to_owned())
            .collect();
        if Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists() {
            advice.push("this is a container; give it `--privileged`, or `--cap-add SYS_ADMIN --cap-add NET_ADMIN` with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`".to_owned());
        }
        if advice.is_empty() {
            advice.push("it needs user, network, mount and process namespaces: run it as root, or ask who set this machine up".to_owned());
        }
        Refused { doing, error, advice }
    }
}

/// CAP_NET_ADMIN and CAP_SYS_ADMIN of linux/capability.h.
const NEEDED: u64 = 1 << 12 | 1 << 21;

/// What root may do can be taken from it, and be given to others: the capabilities count, not the name.
fn ground() -> Ground {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    match effective {
        Some(have) if have & NEEDED == NEEDED => Ground::Root,
        Some(_) | None => Ground::Rootless,
    }
}

/// Enters a user namespace if that is needed for a lab. The process must have one thread only.
pub fn enter_ground() -> Result<Ground, Refused> {
    let ground = ground();
    if ground == Ground::Rootless {
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        // SAFETY: no descriptor table is parted from another (CLONE_FILES is not asked for).
        unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }
            .map_err(|errno| Refused::at("make a user namespace", errno.into()))?;
        let put = |path: &str, text: &str| {
            fs::write(path, text)
                .map_err(|error| Refused::at("become root in a user namespace", error))
        };
        put("/proc/self/setgroups", "deny")?;
        put("/proc/self/uid_map", &format!("0 {user} 1"))?;
        put("/proc/self/gid_map", &format!("0 {group} 1"))?;
    }
    Ok(ground)
}

/// The keeper of a lab, and the thread that started it.
///
/// That thread has to live as long as the keeper: its end is what the kernel calls the death of the parent.
#[derive(Debug)]
pub struct Keeper {
    pidfd: OwnedFd,
    thread: JoinHandle<io::Result<ExitStatus>>,
}

impl Keeper {
    /// Starts it, as the first process of a process namespace, with a network and mounts of its own.
    pub fn start(mut command: Command) -> Result<Keeper, Refused> {
        let (sender, started) = sync_channel(1);
        let hold = move || {
            // SAFETY: no descriptor table is parted from another.
            let parted = unsafe { unshare_unsafe(UnshareFlags::NEWPID) };
            let parted =
                parted.map_err(|errno| Refused::at("make a process namespace", errno.into()));
            let spawned = parted.and_then(|()| {
                let spawned = apart(&mut command).spawn();
                spawned.map_err(|error| Refused::at("make network and mount namespaces", error))
            });
            // It may hold the other end of a pipe whose closing is waited for.
            drop(command);
            match spawned {
                Ok(mut child) => {
                    sender.send(Ok(child.id())).ok();
                    child.wait()
                }
                Err(refused) => {
                    sender.send(Err(refused)).ok();
                    Err(io::Error::other("it was not started"))
                }
            }
        };
        let lost = |error| Refused::at("start a thread", error);
        let thread = thread::Builder::new().name("keeper".to_owned()).spawn(hold).map_err(lost)?;
        let pid = started.recv().map_err(|gone| lost(io::Error::other(gone)))??;
        // Until its thread is joined its number is most likely still its own; a keeper that ended early is found out then.
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH);
        let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let pidfd = pidfd.map_err(|errno| Refused::at("hold the keeper", errno.into()))?;
        Ok(Keeper { pidfd, thread })
    }

    /// Ends it, and with it all that the lab is.
    pub fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.pidfd, Signal::KILL)?)
    }

    /// Waits for its end.
    pub fn wait(self) -> io::Result<ExitStatus> {
        self.thread.join().map_err(|_panic| io::Error::other("the keeper's thread panicked"))?
    }
}

/// Starts the first process of a new machine: processes, network, mounts and name of its own.
pub fn spawn_machine(mut command: Command) -> io::Result<Child> {
    // For one child only, so on a thread that starts nothing else.
    let spawn = thread::Builder::new().name("new-machine".to_owned()).spawn(move || {
        // SAFETY: no descriptor table is parted from another.
        unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
        apart(&mut command).spawn()
    })?;
    spawn.join().map_err(|_panic| io::Error::other("the thread that starts a machine panicked"))?
}

/// Has the command run in namespaces of its own, and out of reach of the terminal's Ctrl-C.
fn apart(command: &mut Command) -> &mut Command {
    let parts =
        UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    let enter = move || {
        // SAFETY: no descriptor table is parted from another; the child has one thread.
        unsafe { unshare_unsafe(parts) }?;
        setsid().map(|_session| ())?;
        Ok(())
    };
    // SAFETY: between fork and exec there are two system calls and no allocation, no lock.
    unsafe { command.pre_exec(enter) }
}

/// Has the kernel kill this process as soon as the thread that started it has ended.
pub fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// How to step into a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    pub ground: Ground,
}

/// Starts a command inside the machine whose first process this is. The command is killed if this process dies.
///
/// This process must have one thread. It is good for nothing afterwards but to wait: it can start no thread, and leaves
/// Ctrl-C to the command, which has the same terminal.
pub fn join(machine: BorrowedFd<'_>, how: Join, command: &mut Command) -> io::Result<Child> {
    let mut spaces = ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::PROCESS_ID;
    match how.ground {
        Ground::Root => {}
        Ground::Rootless => spaces |= ThreadNameSpaceType::USER,
    }
    move_into_thread_name_spaces(machine, spaces)?;
    // SAFETY: between fork and exec there is one system call, and no allocation, no lock.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
    let child = command.spawn()?;
    // SAFETY: to ignore a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    Ok(child)
}

/// Looks up how processes are numbered outside of our process namespace.
#[derive(Debug)]
pub struct HostPids(OwnedFd);

impl HostPids {
    /// Before /proc is mounted anew: the one that is there belongs to the outside.
    pub fn open() -> io::Result<HostPids> {
        Ok(HostPids(File::open("/proc")?.into()))
    }

    /// The outside's number of the process that a pidfd holds.
    pub fn of(&self, pidfd: BorrowedFd<'_>) -> io::Result<u32> {
        let path = format!("self/fdinfo/{}", pidfd.as_raw_fd());
        let file = openat(&self.0, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = String::new();
        File::from(file).take(4096).read_to_string(&mut text)?;
        let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
        pid.ok_or_else(|| io::Error::other("the process is not there any more"))
    }
}
