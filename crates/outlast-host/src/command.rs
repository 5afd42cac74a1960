//! Runs a short command to its end: no shell, a group of its own, killed with the whole group, and with what left the group
//! but bears the command's mark, when its time is over.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::leader::Leader;
use crate::process::{MARK, Mark, token};
use crate::text::quote;

/// Bytes of the output's end that are kept to find its last line.
const TAIL_MAX: usize = 4 << 10;
/// Bytes taken from the pipe after the command has exited: a pipe holds no more.
const REST_MAX: usize = 64 << 10;

/// How a command ended.
#[derive(Debug)]
pub enum Ended {
    /// With the last line that it wrote to stdout or stderr.
    Exited { status: ExitStatus, last_line: String },
    /// It was killed with its group.
    TimedOut { last_line: String },
    /// It was never run.
    NotRun(io::Error),
}

/// What becomes of processes that the command leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// They are killed: a probe leaves nothing.
    Kill,
    /// They live on if the command exits in time: it was there to start them. Their output must go elsewhere.
    Keep,
}

/// Runs `argv` until it exits or `timeout` is over. If this future is dropped, the group is killed.
pub async fn run(argv: &[String], timeout: Duration, leftovers: Leftovers) -> Ended {
    match Running::start(argv, &[], None) {
        Ok(running) => running.see_end(timeout, leftovers).await,
        Err(error) => Ended::NotRun(error),
    }
}

/// The same with variables in its environment, and with its output in a file: what the command leaves running may keep
/// that, and neither waits for us to read nor ends when we go. The last line is for the caller to find in the file.
pub async fn run_logged(
    argv: &[String],
    environment: &[(&str, String)],
    output: File,
    timeout: Duration,
    leftovers: Leftovers,
) -> Ended {
    match Running::start(argv, environment, Some(output)) {
        Ok(running) => running.see_end(timeout, leftovers).await,
        Err(error) => Ended::NotRun(error),
    }
}

/// A command under way. Dropped before it was reaped, it is killed with its group and all that bears its mark.
#[derive(Debug)]
struct Running {
    leader: Leader,
    /// Nothing if it writes to a file.
    output: Option<Receiver>,
    token: String,
    child: Option<Child>,
}

impl Running {
    fn start(
        argv: &[String],
        environment: &[(&str, String)],
        file: Option<File>,
    ) -> io::Result<Running> {
        let (program, arguments) =
            argv.split_first().ok_or_else(|| io::Error::other("the command is empty"))?;
        let token = token()?;
        let mut command = std::process::Command::new(program);
        command.args(arguments).stdin(Stdio::null()).process_group(0).env(MARK, &token);
        for (name, value) in environment {
            command.env(name, value);
        }
        let output = match file {
            Some(file) => {
                command.stdout(file.try_clone()?).stderr(file);
                None
            }
            None => {
                let (reader, writer) = io::pipe()?;
                command.stdout(writer.try_clone()?).stderr(writer);
                Some(Receiver::from_owned_fd(reader.into())?)
            }
        };
        let mut child = command.spawn()?;
        // It holds the other end of the pipe: without it, the pipe ends with the command.
        drop(command);
        match Leader::hold(child.id()) {
            Ok(leader) => Ok(Running { leader, output, token, child: Some(child) }),
            Err(error) => {
                drop(child.kill());
                reap_elsewhere(child);
                Err(error)
            }
        }
    }

    async fn see_end(mut self, timeout: Duration, leftovers: Leftovers) -> Ended {
        let mut tail = Tail::default();
        let exited = async {
            let mut chunk = [0; TAIL_MAX];
            loop {
                let Some(output) = &mut self.output else { break self.leader.exited().await };
                tokio::select! {
                    exit = self.leader.exited() => break exit,
                    read = output.read(&mut chunk) => match read {
                        Ok(0) | Err(_) => self.output = None,
                        Ok(len) => tail.push(&chunk[..len]),
                    },
                }
            }
        };
        match tokio::time::timeout(timeout, exited).await {
            Err(_elapsed) => Ended::TimedOut { last_line: tail.last_line() },
            Ok(Err(error)) => Ended::NotRun(error),
            Ok(Ok(())) => {
                if let Some(output) = &self.output {
                    tail.drain(output);
                }
                match self.reap(leftovers) {
                    Ok(status) => Ended::Exited { status, last_line: tail.last_line() },
                    Err(error) => Ended::NotRun(error),
                }
            }
        }
    }

    /// Collects the exit status of a leader that has exited; its number is free from then on.
    fn reap(&mut self, leftovers: Leftovers) -> io::Result<ExitStatus> {
        if leftovers == Leftovers::Kill {
            self.leader.signal_group(Signal::KILL)?;
        }
        self.child.take().expect("a command is reaped once").wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            if let Err(error) = self.leader.signal_group(Signal::KILL) {
                tracing::warn!(pid = child.id(), %error, "cannot kill the group of a command");
            }
            kill_marked(std::mem::take(&mut self.token));
            reap_elsewhere(child);
        }
    }
}

/// Kills what has left the group, on a thread of its own: a look through /proc may take a while.
fn kill_marked(token: String) {
    std::thread::spawn(move || Mark { token: &token, since_ticks: None }.kill());
}

/// Waits for a killed child on a thread of its own: one that hangs in the kernel must not hold us up.
fn reap_elsewhere(mut child: Child) {
    std::thread::spawn(move || child.wait().map(|_status| ()).ok());
}

/// The end of an output.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let surplus = self.0.len().saturating_sub(TAIL_MAX);
        self.0.drain(..surplus);
    }

    /// Takes what is in the pipe already.
    fn drain(&mut self, output: &Receiver) {
        let mut chunk = [0; TAIL_MAX];
        for _ in 0..REST_MAX / TAIL_MAX {
            match output.try_read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(len) => self.push(&chunk[..len]),
            }
        }
    }

    fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
        quote(line.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::show_status;
    use std::path::Path;
    use std::time::Instant;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    async fn check_run(script: &str, says: &str) {
        let said = match run(&shell(script), TIMEOUT, Leftovers::Kill).await {
            Ended::Exited { status, last_line } => format!("{}: {last_line}", show_status(status)),
            Ended::TimedOut { last_line } => format!("timed out: {last_line}"),
            Ended::NotRun(error) => format!("not run: {error}"),
        };
        assert_eq!(said, says, "{script}");
    }

    /// Waits until a process of this number is gone or a zombie.
    async fn gone(pid: &str) {
        let begun = Instant::now();
        loop {
            let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
            if stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z ")) {
                return;
            }
            assert!(begun.elapsed() < TIMEOUT, "process {pid} lives on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_command_ends_with_its_status_and_its_last_line() {
        check_run("exit 0", "exit status 0: ").await;
        check_run("echo one; echo two >&2; exit 3", "exit status 3: two").await;
        check_run("printf 'no line end'; kill -9 $$", "killed by SIGKILL: no line end").await;
        check_run("seq 100000; echo; echo", "exit status 0: 100000").await;
    }

    #[tokio::test]
    async fn a_command_that_does_not_exist_is_not_run() {
        for argv in [vec![], vec!["/nowhere/check".to_owned()]] {
            assert!(matches!(run(&argv, TIMEOUT, Leftovers::Kill).await, Ended::NotRun(_)));
        }
    }

    #[tokio::test]
    async fn a_command_out_of_time_is_killed_with_all_it_started() {
        let begun = Instant::now();
        let script = "sleep 60 & echo $!; trap '' TERM; wait; sleep 60";
        let ended = run(&shell(script), Duration::from_millis(300), Leftovers::Kill).await;
        assert!(begun.elapsed() < TIMEOUT);
        let Ended::TimedOut { last_line } = ended else { panic!("{ended:?}") };
        gone(&last_line).await;
    }

    #[tokio::test]
    async fn what_left_the_group_is_killed_too_when_the_time_is_over() {
        let scratch = crate::scratch::Scratch::new();
        let log = File::options().create(true).append(true).open(scratch.path("log")).unwrap();
        let script = "setsid sleep 60 & echo $!; echo $WHO >&2; wait";
        let environment = [("WHO", "billing".to_owned())];
        // Its number is in the file before the time is over, or there is nothing to look for.
        let limit = Duration::from_secs(1);
        let argv = shell(script);
        let ended = run_logged(&argv, &environment, log, limit, Leftovers::Keep).await;
        assert!(matches!(ended, Ended::TimedOut { .. }), "{ended:?}");
        let said = std::fs::read_to_string(scratch.path("log")).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        let [pid, "billing"] = lines[..] else { panic!("{said}") };
        gone(pid).await;
    }

    #[tokio::test]
    async fn what_a_command_leaves_behind_is_killed_or_kept_as_told() {
        let script = "sleep 60 >/dev/null 2>&1 & echo $!";
        let ended = run(&shell(script), TIMEOUT, Leftovers::Kill).await;
        let Ended::Exited { last_line, .. } = ended else { panic!("{ended:?}") };
        gone(&last_line).await;

        let ended = run(&shell(script), TIMEOUT, Leftovers::Keep).await;
        let Ended::Exited { last_line, .. } = ended else { panic!("{ended:?}") };
        assert!(Path::new("/proc").join(&last_line).exists());
        std::process::Command::new("kill").args(["-9", &last_line]).status().unwrap();
    }

    #[tokio::test]
    async fn a_command_whose_output_is_held_open_ends_all_the_same() {
        let ended = run(&shell("setsid sleep 5 & echo done"), TIMEOUT, Leftovers::Kill).await;
        assert!(matches!(ended, Ended::Exited { last_line, .. } if last_line == "done"));
    }
}
