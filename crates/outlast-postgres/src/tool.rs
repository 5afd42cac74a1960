//! Runs one of PostgreSQL's own programs to its end, or kills it with all it started when its time is over.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::time::timeout;

use crate::account::Account;
use crate::error::{Doing, Error};

/// Bytes of a program's output that are kept: the last ones.
const OUTPUT_MAX: usize = 256 << 10;
/// Bytes that are read at once.
const READ: usize = 4 << 10;
/// Characters of it that an error carries.
const QUOTE_MAX: usize = 400;

/// A program to run.
#[derive(Debug)]
pub(crate) struct Tool<'a> {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(&'static str, OsString)>,
    pub(crate) account: &'a Account,
    pub(crate) input: String,
    /// How long it may be without a word; of a program that says nothing, how long it may take.
    pub(crate) silence_max: Duration,
}

/// Variables of ours that must not reach a program of PostgreSQL's.
const NOT_INHERITED: [&str; 12] = [
    "PGDATA",
    "PGHOST",
    "PGPORT",
    "PGUSER",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGDATABASE",
    "PGOPTIONS",
    "PGSERVICE",
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
];

impl<'a> Tool<'a> {
    pub(crate) fn new(program: PathBuf, account: &'a Account, silence_max: Duration) -> Tool<'a> {
        let (arguments, environment, input) = (Vec::new(), Vec::new(), String::new());
        Tool { program, arguments, environment, account, input, silence_max }
    }

    pub(crate) fn args<A: Into<OsString>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Runs it; what it wrote to stdout. `heard` gets what it writes to stderr, as it comes.
    pub(crate) async fn run(self, heard: &mut (dyn FnMut(&str) + Send)) -> Result<String, Error> {
        let name = self.program.display().to_string();
        self.run_inner(heard).await.doing(format!("run {name}"))
    }

    async fn run_inner(self, heard: &mut (dyn FnMut(&str) + Send)) -> Result<String, Error> {
        let mut child = Group::of(
            self.command().spawn().map_err(|e| Error::new(e.to_string())).doing("start")?,
        );
        let mut stdin = child.child.stdin.take();
        let mut stdout = child.child.stdout.take();
        let mut stderr = child.child.stderr.take();
        if let Some(stdin) = &mut stdin {
            // A program that ends before it has read all says why itself.
            stdin.write_all(self.input.as_bytes()).await.ok();
        }
        drop(stdin);
        let (mut said, mut complained) = (Vec::new(), Vec::new());
        // On the heap: the future that holds them is handed around.
        let (mut one, mut two) = (vec![0; READ], vec![0; READ]);
        loop {
            let next = async {
                tokio::select! {
                    count = read(&mut stdout, &mut one), if stdout.is_some() => (true, count),
                    count = read(&mut stderr, &mut two), if stderr.is_some() => (false, count),
                }
            };
            let (is_stdout, count) = timeout(self.silence_max, next)
                .await
                .map_err(|_elapsed| silent(self.silence_max))?;
            match (is_stdout, count) {
                (true, 0) => stdout = None,
                (false, 0) => stderr = None,
                (true, count) => keep(&mut said, &one[..count]),
                (false, count) => {
                    heard(&String::from_utf8_lossy(&two[..count]));
                    keep(&mut complained, &two[..count]);
                }
            }
            if stdout.is_none() && stderr.is_none() {
                break;
            }
        }
        let status = timeout(self.silence_max, child.child.wait())
            .await
            .map_err(|_elapsed| silent(self.silence_max))?
            .doing("wait")?;
        child.ended = true;
        if !status.success() {
            return Err(Error::new(format!("{status}: {}", tail(&complained))));
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    fn command(&self) -> tokio::process::Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir("/").process_group(0);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        self.account.take(&mut command);
        command.env("LC_ALL", "C").env("PGCONNECT_TIMEOUT", "5");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.into()
    }
}

/// A child that is killed with its whole group if it is dropped before it has ended.
struct Group {
    child: Child,
    ended: bool,
}

impl Group {
    fn of(child: Child) -> Group {
        Group { child, ended: false }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let (false, Some(pid)) = (self.ended, pid) {
            kill_process_group(pid, Signal::KILL).ok();
        }
    }
}

async fn read<R: AsyncRead + Unpin>(from: &mut Option<R>, bytes: &mut [u8]) -> usize {
    match from {
        Some(from) => from.read(bytes).await.unwrap_or(0),
        None => 0,
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    kept.extend_from_slice(bytes);
    let surplus = kept.len().saturating_sub(OUTPUT_MAX);
    kept.drain(..surplus);
}

fn silent(limit: Duration) -> Error {
    Error::new(format!("not a word for {} s", limit.as_secs()))
}

/// The end of foreign text, made fit for a sentence.
fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let letters: Vec<char> = text.trim().chars().map(clean).collect();
    letters[letters.len().saturating_sub(QUOTE_MAX)..].iter().collect()
}
