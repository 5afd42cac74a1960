//! The keeper's own life: one thread, one `poll`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    Pid, PidfdFlags, WaitOptions, getpid, pidfd_open, set_child_subreaper, setsid, wait,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::{Answer, Ask, Exit, KILL_LIMIT, LINE_MAX, LINGER, Standing, Start, VERSION, socket};
use crate::cgroup::Cgroup;
use crate::clock::Moment;
use crate::error::{Doing, Error};
use crate::proc::Tree;

/// Connections at once: the agent asks one thing at a time, and waits with another.
const GUESTS_MAX: usize = 8;
/// How long a predecessor that was told to leave may take, and how often that is looked at.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(5);
/// Longest sleep: what the postmaster has left behind is collected at least this often.
const TICK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Runs the keeper for this run directory until its postmaster is gone and has been told of, or nobody came to hear it.
pub fn run(run_dir: &Path) -> Result<(), Error> {
    // Where there is a session already, it is left; a leader of a group stays what it is.
    setsid().ok();
    set_child_subreaper(Some(getpid())).doing("adopt what the postmaster leaves behind")?;
    std::env::set_current_dir("/").doing("leave the directory")?;
    let _lock = lock(run_dir)?;
    let listener = listen(run_dir)?;
    let timer =
        timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
            .doing("make the fuse's timer")?;
    // Without the right to it, the keeper is only as safe from being swapped out as others are. Not what is mapped
    // later: beyond the limit, that would fail.
    let locked = mlockall(MlockAllFlags::CURRENT).is_ok();
    let mut keeper =
        Keeper { timer, locked, child: None, group: None, exit: None, fuse: None, burnt: false };
    keeper.live(&listener)?;
    if let Some(group) = keeper.group {
        group.remove();
    }
    fs::remove_file(socket(run_dir)).ok();
    Ok(())
}

/// Two keepers of one directory would each start a postmaster.
fn lock(run_dir: &Path) -> Result<File, Error> {
    let path = run_dir.join("keeper.lock");
    let file = File::create(&path).doing(format!("open {}", path.display()))?;
    let end = Instant::now() + PREDECESSOR_LIMIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => {}
            locked => return locked.map(|()| file).doing("be the only keeper"),
        }
        std::thread::park_timeout(LOOK);
    }
}

fn listen(run_dir: &Path) -> Result<UnixListener, Error> {
    let path = socket(run_dir);
    fs::remove_file(&path).ok();
    let listener = UnixListener::bind(&path).doing(format!("listen at {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .doing("close the socket to others")?;
    listener.set_nonblocking(true).doing("listen without blocking")?;
    Ok(listener)
}

struct Child {
    pid: Pid,
    /// Readable once it has exited.
    pidfd: OwnedFd,
    start: Start,
}

struct Keeper {
    timer: OwnedFd,
    locked: bool,
    child: Option<Child>,
    /// What the postmaster was started in.
    group: Option<Cgroup>,
    exit: Option<Exit>,
    fuse: Option<Moment>,
    burnt: bool,
}

/// A connection.
struct Guest {
    stream: UnixStream,
    heard: Vec<u8>,
    /// It waits for the end of the postmaster.
    waits: bool,
    done: bool,
}

impl Keeper {
    fn live(&mut self, listener: &UnixListener) -> Result<(), Error> {
        let mut guests: Vec<Guest> = Vec::new();
        let mut idle_since = Moment::now();
        loop {
            self.sleep(listener, &guests)?;
            self.burn();
            self.collect();
            while guests.len() < GUESTS_MAX
                && let Ok((stream, _)) = listener.accept()
            {
                stream.set_nonblocking(true).ok();
                guests.push(Guest { stream, heard: Vec::new(), waits: false, done: false });
            }
            let mut leave = false;
            for guest in &mut guests {
                leave |= self.serve(guest);
            }
            guests.retain(|guest| !guest.done);
            if self.child.is_some() {
                idle_since = Moment::now();
            }
            let idle = Moment::now().nanos.saturating_sub(idle_since.nanos);
            if leave || u128::from(idle) > LINGER.as_nanos() {
                return Ok(());
            }
        }
    }

    /// Waits until something happens, for a tick at most.
    fn sleep(&self, listener: &UnixListener, guests: &[Guest]) -> Result<(), Error> {
        let mut fds =
            vec![PollFd::new(listener, PollFlags::IN), PollFd::new(&self.timer, PollFlags::IN)];
        fds.extend(self.child.iter().map(|child| PollFd::new(&child.pidfd, PollFlags::IN)));
        fds.extend(guests.iter().map(|guest| PollFd::new(&guest.stream, PollFlags::IN)));
        match poll(&mut fds, Some(&TICK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).doing("wait for something to happen"),
        }
        // What the timer counts is of no interest: the clock itself is asked.
        rustix::io::read(&self.timer, &mut [0; 8]).ok();
        Ok(())
    }

    /// Answers what a guest asks; whether the keeper was told to leave.
    fn serve(&mut self, guest: &mut Guest) -> bool {
        if guest.waits {
            if self.child.is_none() {
                guest.answer(&Answer::Standing(self.standing()));
            } else {
                guest.listen();
            }
            return false;
        }
        let Some(line) = guest.listen() else { return false };
        let ask = match serde_json::from_slice(&line) {
            Ok(ask) => ask,
            Err(error) => {
                guest.answer(&Answer::Refused(format!("not a question: {error}")));
                return false;
            }
        };
        match ask {
            Ask::Wait if self.child.is_some() => {
                guest.waits = true;
                return false;
            }
            Ask::Start(_) | Ask::Fuse(_) | Ask::How | Ask::Wait | Ask::Leave => {}
        }
        let leaves = matches!(ask, Ask::Leave) && self.child.is_none();
        guest.answer(&match self.obey(ask) {
            Ok(()) => Answer::Standing(self.standing()),
            Err(error) => Answer::Refused(error.to_string()),
        });
        leaves
    }

    fn obey(&mut self, ask: Ask) -> Result<(), Error> {
        match ask {
            Ask::Start(start) => self.start(*start),
            Ask::Fuse(_) if self.burnt => Err(Error::new("the fuse has burnt down")),
            Ask::Fuse(fuse) => self.set_fuse(fuse),
            Ask::How | Ask::Wait => Ok(()),
            Ask::Leave if self.child.is_none() => Ok(()),
            Ask::Leave => Err(Error::new("the postmaster still runs")),
        }
    }

    fn start(&mut self, start: Start) -> Result<(), Error> {
        if self.child.is_some() || self.exit.is_some() {
            return Err(Error::new("a keeper starts one postmaster"));
        }
        self.set_fuse(start.fuse)?;
        let mut command = Command::new(&start.program);
        command.args(&start.arguments).env_clear().stdin(Stdio::null());
        start.account.take(&mut command);
        command.envs(start.environment.iter().map(|(name, value)| (name, value)));
        let spawned = self.spawn_in_group(&mut command, start.cgroup.as_deref());
        let child = spawned.doing(format!("run {}", start.program.display()))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Error::new("the postmaster has no number"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).doing("hold the postmaster")?;
        self.child = Some(Child { pid, pidfd, start });
        // After the start, so that the postmaster does not inherit it: the kernel is to end this process last.
        fs::write("/proc/self/oom_score_adj", "-1000").ok();
        Ok(())
    }

    fn spawn_in_group(
        &mut self,
        command: &mut Command,
        dir: Option<&Path>,
    ) -> io::Result<std::process::Child> {
        let group = dir.map(Cgroup::at).transpose();
        let group = group.inspect_err(|error| complain(&error.to_string())).ok().flatten();
        let Some(group) = group else { return command.spawn() };
        let (spawned, stands) = group.within(|| command.spawn());
        match stands {
            Ok(()) => self.group = Some(group),
            Err(error) => complain(&error.to_string()),
        }
        spawned
    }

    /// Kills all of the tree, and says whether nothing is left.
    fn end_tree(&self, data_dir: &Path) -> bool {
        if let Some(group) = &self.group {
            group.kill();
        }
        let root = u32::try_from(getpid().as_raw_nonzero().get()).ok();
        Tree { root, with_root: false, data_dir }.kill(KILL_LIMIT)
    }

    fn set_fuse(&mut self, fuse: Option<Moment>) -> Result<(), Error> {
        self.fuse = fuse;
        let at = fuse.map_or(0, |moment| moment.nanos.max(1));
        let seconds = i64::try_from(at / 1_000_000_000).unwrap_or(i64::MAX);
        let nanos = i64::try_from(at % 1_000_000_000).unwrap_or(0);
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: seconds, tv_nsec: nanos };
        let timer = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &timer).doing("set the fuse")?;
        Ok(())
    }

    /// Kills all if the fuse's moment has come, and again in each round until nothing is left.
    fn burn(&mut self) {
        if self.child.is_none() || self.fuse.is_none_or(|fuse| Moment::now() < fuse) {
            return;
        }
        self.burnt = true;
        if let Err(error) = self.kill() {
            complain(&format!("the fuse has burnt down: {error}"));
        }
    }

    fn kill(&mut self) -> Result<(), Error> {
        let Some(child) = &self.child else { return Ok(()) };
        let gone = self.end_tree(&child.start.data_dir);
        self.collect();
        if gone { Ok(()) } else { Err(Error::new("a process does not die of SIGKILL")) }
    }

    /// Collects what has exited. When the postmaster has, whatever it left behind is killed (trap 4).
    fn collect(&mut self) {
        let mut ended = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if self.child.as_ref().is_some_and(|child| child.pid == pid) {
                let (code, signal) = (status.exit_status(), status.terminating_signal());
                ended = Some(Exit { code, signal, burnt: self.burnt });
            }
        }
        let Some(exit) = ended else { return };
        let Some(child) = self.child.take() else { return };
        if !self.end_tree(&child.start.data_dir) {
            complain("a process of a dead postmaster does not die of SIGKILL");
        }
        self.exit = Some(exit);
        self.set_fuse(None).ok();
    }

    fn standing(&self) -> Standing {
        let number = |pid: Pid| pid.as_raw_nonzero().get().unsigned_abs();
        Standing {
            v: VERSION,
            keeper: number(getpid()),
            postmaster: self.child.as_ref().map(|child| number(child.pid)),
            data_dir: self.child.as_ref().map(|child| child.start.data_dir.clone()),
            fuse: self.fuse,
            exit: self.exit,
            locked: self.locked,
        }
    }
}

impl Guest {
    /// Takes in what has arrived; the line once it is whole.
    fn listen(&mut self) -> Option<Vec<u8>> {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    self.done = true;
                    return None;
                }
                Ok(count) => self.heard.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.done = true;
                    return None;
                }
            }
            if self.heard.len() > LINE_MAX {
                self.done = true;
                return None;
            }
        }
        let end = self.heard.iter().position(|byte| *byte == b'\n')?;
        Some(self.heard.drain(..=end).collect())
    }

    /// Says one line, and is done. A guest that does not read does not hold the keeper up: the line fits its socket.
    fn answer(&mut self, answer: &Answer) {
        if let Ok(mut line) = serde_json::to_vec(answer) {
            line.push(b'\n');
            self.stream.write_all(&line).ok();
        }
        self.done = true;
    }
}

/// To the output file, which was opened before.
fn complain(what: &str) {
    writeln!(io::stderr(), "keeper: {what}").ok();
}
