//! Starts a program, holds it, stops it with all it has started, and finds it again after the agent's own restart.
//!
//! A program runs in a process group of its own and outlives the agent: nothing ties its life to ours, its output goes
//! to a file, and a record on disk says which process it is. (Under systemd the agent's unit needs `KillMode=process`.)
//!
//! Signals go to the whole group. When the leader has exited, whatever is left of the group is killed, and so is
//! whatever left the group but still bears the instance's mark in its environment; a cgroup, if there is one, is killed
//! too. What leaves the group *and* clears its environment *and* runs without a cgroup is not found.

mod cgroup;
mod output;
mod record;
mod supervisor;
#[cfg(test)]
mod tests;
mod tree;
mod user;

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use outlast_core::container::Adopted;
use outlast_core::topology::Process;
use rustix::process::Signal;

pub use cgroup::Cgroups;
pub use output::{OUTPUT_KEPT, OUTPUT_MAX, Output};
pub use supervisor::{News, Report, Setting, Supervisor};

use crate::leader::Leader;
use crate::text::{show_io, show_status};
use cgroup::{Cgroup, Limits};
pub(crate) use record::token;
use record::{Recipe, Record};
use tree::Stat;
pub(crate) use tree::{MARK, Mark};
use user::User;

/// Variables that are between systemd and the agent.
const OURS_ALONE: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
];

/// Where one program's files are: `data_dir/processes/NAME/`.
#[derive(Clone, Debug)]
struct Files {
    record: PathBuf,
    output: Output,
}

impl Files {
    fn of(data_dir: &Path, name: &str) -> io::Result<Files> {
        let dir = data_dir.join("processes").join(name);
        fs::create_dir_all(&dir)?;
        Ok(Files { record: dir.join("instance.json"), output: Output::at(dir.join("output.log")) })
    }
}

/// A running instance of a program. Dropping it leaves it running.
#[derive(Debug)]
struct Instance {
    leader: Leader,
    /// Missing of an adopted instance: its exit status is for others to collect.
    child: Option<Child>,
    cgroup: Option<Cgroup>,
    oom_kills_before: u64,
    record: Record,
    record_path: PathBuf,
}

impl Instance {
    /// Starts the program. Blocks for as long as fork, exec and a few small files take.
    fn start(
        name: &str,
        process: &Process,
        files: &Files,
        cgroups: &Cgroups,
        restarts: u64,
    ) -> Result<Instance, String> {
        let mut command = command(process)?;
        let cgroup = limit(name, process, cgroups);
        if let Some(cgroup) = &cgroup {
            cgroup.take(&mut command).map_err(|e| format!("join the cgroup: {}", show_io(&e)))?;
        }
        if let Err(error) = files.output.rotate() {
            tracing::warn!(process = name, %error, "cannot rotate the output of a program");
        }
        let said = |what: &str, error: &io::Error| format!("{what}: {}", show_io(error));
        let output = files.output.open().map_err(|e| said("open the output file", &e))?;
        let errors = output.try_clone().map_err(|e| said("open the output file", &e))?;
        let mut record = Record::intent(process, restarts).map_err(|e| said("read /proc", &e))?;
        command.env(MARK, &record.token).stdout(output).stderr(errors);
        record.write(&files.record).map_err(|e| said("write the instance's record", &e))?;

        let oom_kills_before = cgroup.as_ref().map_or(0, Cgroup::oom_kills);
        let program = &process.command.0[0];
        let mut child = command.spawn().map_err(|e| said(&format!("run {program}"), &e))?;
        let leader = match Leader::hold(child.id()) {
            Ok(leader) => leader,
            Err(error) => {
                // It must not run unheld: two could then run at once.
                drop(child.kill());
                drop(child.wait());
                return Err(said("hold the new process", &error));
            }
        };
        record.pid = Some(child.id());
        record.began_ticks = Stat::read(child.id()).map(|stat| stat.began_ticks);
        let record_path = files.record.clone();
        let instance =
            Instance { leader, child: Some(child), cgroup, oom_kills_before, record, record_path };
        instance.save(name);
        Ok(instance)
    }

    /// Finds the instance that an earlier life of the agent started, if it still runs.
    ///
    /// It is the same process if boot, number and start time are. What it calls itself does not matter: a program may
    /// change its own title. What it was started with does, and is in the record.
    fn adopt(name: &str, process: &Process, files: &Files, cgroups: &Cgroups) -> Option<Instance> {
        let mut record = match Record::read(&files.record) {
            Ok(record) => record?,
            Err(error) => {
                tracing::warn!(process = name, %error, "cannot read the record of an instance");
                return None;
            }
        };
        // Without a number, the agent died between the start and the writing of it.
        let pid = record.pid.or_else(|| record.mark().leader());
        let leader = pid.and_then(|pid| {
            let leader = Leader::hold(pid).ok()?;
            let stat = Stat::read(pid)?;
            if record.began_ticks.is_some_and(|began| began != stat.began_ticks) {
                return None;
            }
            if !stat.is_alive() {
                // An agent that has replaced its own image is still the parent, and has to collect it.
                leader.collect();
                return None;
            }
            record.pid = Some(pid);
            record.began_ticks = Some(stat.began_ticks);
            Some(leader)
        });
        let Some(leader) = leader else {
            record.mark().kill();
            return None;
        };
        let cgroup = limit(name, process, cgroups);
        let oom_kills_before = cgroup.as_ref().map_or(0, Cgroup::oom_kills);
        let record_path = files.record.clone();
        let instance =
            Instance { leader, child: None, cgroup, oom_kills_before, record, record_path };
        instance.save(name);
        Some(instance)
    }

    fn pid(&self) -> u32 {
        self.leader.pid()
    }

    /// Whether it was started as the topology now says.
    fn is_as(&self, process: &Process) -> bool {
        self.record.recipe == Recipe::of(process)
    }

    /// What was believed of it.
    fn adopted(&self) -> Adopted {
        let Record { started, ready, restarts, .. } = self.record;
        Adopted { pid: self.pid(), ran: self.ran(), started, ready, restarts }
    }

    /// How long it has run, by the kernel's count.
    fn ran(&self) -> Duration {
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime = uptime.split_whitespace().next().and_then(|text| text.parse::<f64>().ok());
        let ticks = rustix::param::clock_ticks_per_second();
        let began = self.record.began_ticks.map(|began| began as f64 / ticks as f64);
        let ran = uptime.zip(began).map_or(0.0, |(uptime, began)| uptime - began);
        Duration::try_from_secs_f64(ran).unwrap_or(Duration::ZERO)
    }

    /// Writes down what is believed of it, for the agent's next life.
    fn believe(&mut self, name: &str, started: bool, ready: bool) {
        if (self.record.started, self.record.ready) != (started, ready) {
            (self.record.started, self.record.ready) = (started, ready);
            self.save(name);
        }
    }

    /// A record that cannot be written costs the adoption, not the program.
    fn save(&self, name: &str) {
        if let Err(error) = self.record.write(&self.record_path) {
            tracing::warn!(process = name, %error, "cannot write the record of an instance");
        }
    }

    /// Asks the whole group to end.
    fn terminate(&self) -> io::Result<()> {
        self.leader.signal_group(Signal::TERM)
    }

    /// Kills the group and the cgroup. What else bears the mark is killed once the leader is gone.
    fn kill(&self) -> io::Result<()> {
        if let Some(cgroup) = &self.cgroup {
            // Before Linux 5.14 there is no such file; the group and the mark do then.
            cgroup.kill().ok();
        }
        self.leader.signal_group(Signal::KILL)
    }

    /// Waits until the leader has exited.
    async fn exited(&self) {
        if let Err(error) = self.leader.exited().await {
            // Without the reactor there is no agent either.
            tracing::error!(pid = self.pid(), %error, "cannot wait for a program");
            std::future::pending::<()>().await;
        }
    }

    /// After the leader has exited: kills what is left, and says how it ended. Blocks for a look through /proc.
    fn reap(mut self) -> String {
        if let Err(error) = self.kill() {
            tracing::warn!(pid = self.pid(), %error, "cannot kill the group of a program");
        }
        self.record.mark().kill();
        let status = match self.child.as_mut().map(Child::wait) {
            Some(Ok(status)) => show_status(status),
            Some(Err(error)) => format!("status unknown: {}", show_io(&error)),
            None => self.leader.collect().map_or_else(
                || "status unknown, because an earlier agent started it".to_owned(),
                show_status,
            ),
        };
        fs::remove_file(&self.record_path).ok();
        let oom_kills = self.cgroup.as_ref().map_or(0, Cgroup::oom_kills);
        if oom_kills > self.oom_kills_before {
            return format!("{status}: it reached its memory limit");
        }
        status
    }
}

/// The command as the topology says, not yet with an output.
fn command(process: &Process) -> Result<Command, String> {
    let (program, arguments) = process.command.0.split_first().ok_or("the command is empty")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    for name in OURS_ALONE {
        command.env_remove(name);
    }
    if let Some(name) = &process.user {
        run_as(&mut command, &User::find(name)?)?;
    }
    if let Some(directory) = &process.directory {
        if !Path::new(directory).is_dir() {
            return Err(format!("there is no directory {directory}"));
        }
        command.current_dir(directory);
    }
    command.envs(&process.environment);
    Ok(command)
}

/// Only root becomes somebody else. Supplementary groups are dropped.
fn run_as(command: &mut Command, user: &User) -> Result<(), String> {
    let own = rustix::process::geteuid();
    if own.is_root() {
        command.uid(user.uid).gid(user.gid);
    } else if own.as_raw() != user.uid {
        return Err(format!("only root can run a program as another user (`{}`)", user.name));
    }
    command.env("USER", &user.name).env("LOGNAME", &user.name).env("HOME", &user.home);
    Ok(())
}

/// The program's cgroup, if it has limits and they can be enforced.
fn limit(name: &str, process: &Process, cgroups: &Cgroups) -> Option<Cgroup> {
    let limits = Limits { memory: process.memory_limit, cpu: process.cpu_limit };
    if !limits.any() {
        return None;
    }
    match cgroups.group(name, limits) {
        Ok(group) => Some(group),
        Err(why) => {
            tracing::warn!(process = name, %why, "the limits of a program are not enforced");
            None
        }
    }
}
