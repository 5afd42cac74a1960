//! The verbs that ask a running lab.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use outlast::dataplane::wire;
use outlast_core::units::parse_duration;
use outlast_host::lab::{Ground, Join, join};
use rustix::fs::{FlockOperation, flock};

use super::args::{
    CutArgs, DelayArgs, ExecArgs, For, HealArgs, KillArgs, LogsArgs, LossArgs, NodeArgs, PauseArgs,
    StatusArgs, Which,
};
use super::place;
use super::tell;
use super::wire::{Answer, Ask, Status};
use crate::cli::Format;
use crate::output::{self, Ink};
use crate::{AGENT_FILE, Outcome};

/// The slowest answer is that to `start` or `stop`.
const ANSWER_MAX: Duration = Duration::from_secs(90);
/// How long a lab may take to be gone once it is told to go.
const DOWN_MAX: Duration = Duration::from_secs(60);
/// Between two looks at a log that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Bytes read of a log at a time.
const CHUNK: u64 = 64 << 10;

fn ask(which: &Which, ask: &Ask) -> anyhow::Result<(Answer, Vec<OwnedFd>)> {
    let dir = place::find(which)?;
    let socket = place::socket(&dir);
    let stream = UnixStream::connect(&socket).with_context(|| {
        format!("no lab runs in {}; start one with `outlast lab up FILE`", dir.display())
    })?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    wire::send(&stream, ask, &[]).context("ask the lab")?;
    let answer = wire::receive::<Answer>(&stream).context("hear the lab's answer")?;
    answer.context("the lab ended before it answered")
}

/// For questions whose answer is a sentence.
fn order(which: &Which, what: &Ask) -> anyhow::Result<Outcome> {
    match ask(which, what)?.0 {
        Answer::Done(said) => {
            output::print(&format!("{said}\n"))?;
            Ok(Outcome::Fine)
        }
        Answer::Refused(why) => {
            output::complain(&format!("error: {why}\n"));
            Ok(Outcome::Mistakes)
        }
        Answer::Status(_) | Answer::Door { .. } => bail!("the lab answered something else"),
    }
}

pub(super) fn ask_status(which: &Which) -> anyhow::Result<Status> {
    match ask(which, &Ask::Status)?.0 {
        Answer::Status(status) => Ok(status),
        Answer::Refused(why) => bail!("{why}"),
        Answer::Done(_) | Answer::Door { .. } => bail!("the lab answered something else"),
    }
}

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<Outcome> {
    let status = ask_status(&args.which)?;
    match args.format {
        Format::Json => output::print(&format!("{:#}\n", serde_json::to_value(&status)?))?,
        Format::Table => {
            let ink = Ink { colour: output::output_may_have_colour() };
            output::print(&tell::table(&status, ink))?;
        }
    }
    Ok(Outcome::Fine)
}

/// Ends the lab, and returns when nothing of it is left.
pub(super) fn down(which: &Which) -> anyhow::Result<Outcome> {
    let dir = place::find(which)?;
    let lock = File::open(dir.join("lab.lock")).with_context(|| {
        format!("no lab runs in {}; start one with `outlast lab up FILE`", dir.display())
    })?;
    let which = Which { name: None, dir: Some(dir) };
    let outcome = order(&which, &Ask::Down)?;
    let until = Instant::now() + DOWN_MAX;
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if until < Instant::now() {
            bail!("the lab was told to end, but something of it still runs");
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "bounded by DOWN_MAX; there is no runtime here"
        )]
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(outcome)
}

pub(super) fn exec(args: &ExecArgs) -> anyhow::Result<Outcome> {
    let (answer, fds) = ask(&args.which, &Ask::Enter { node: args.node.clone() })?;
    let (rootless, file, program) = match answer {
        Answer::Door { rootless, file, program } => (rootless, file, program),
        Answer::Refused(why) => {
            output::complain(&format!("error: {why}\n"));
            return Ok(Outcome::Unable);
        }
        Answer::Done(_) | Answer::Status(_) => bail!("the lab answered something else"),
    };
    let door = fds.first().context("the lab did not open the door")?;
    let (name, arguments) = args.command.split_first().context("name a command after --")?;
    let mut command = Command::new(name);
    command.args(arguments).env(AGENT_FILE, &file).env("PATH", path(&program));
    if let Some(dir) = file.parent() {
        command.current_dir(dir);
    }
    let ground = if rootless { Ground::Rootless } else { Ground::Root };
    let mut child = join(door.as_fd(), Join { ground }, &mut command)
        .with_context(|| format!("run {} in {}", name.display(), args.node))?;
    let status = child.wait().context("wait for the command")?;
    // As a shell says it.
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(Outcome::Code(u8::try_from(code).unwrap_or(1)))
}

/// Programs find the `outlast` that the lab runs before any other.
fn path(program: &Path) -> OsString {
    let old = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let dirs = program.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&old));
    std::env::join_paths(dirs).unwrap_or(old)
}

pub(super) fn logs(args: &LogsArgs) -> anyhow::Result<Outcome> {
    let status = ask_status(&args.which)?;
    if !status.nodes.iter().any(|node| node.name == args.node) {
        let names: Vec<&str> = status.nodes.iter().map(|node| node.name.as_str()).collect();
        bail!(
            "there is no node `{}` in lab {}; its nodes are {}",
            args.node,
            status.name,
            names.join(", ")
        );
    }
    let path = status.dir.join("nodes").join(&args.node).join("agent.log");
    let mut log = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let mut at = 0;
    crate::verbs::block_on(async {
        loop {
            // A log that was cut begins anew.
            if log.metadata()?.len() < at {
                at = log.seek(SeekFrom::Start(0))?;
            }
            let mut bytes = Vec::new();
            let len = (&mut log).take(CHUNK).read_to_end(&mut bytes).context("read the log")?;
            at += u64::try_from(len)?;
            if 0 < len {
                if !output::print_on(&String::from_utf8_lossy(&bytes))? {
                    return Ok(Outcome::Fine);
                }
                continue;
            }
            if !args.follow {
                return Ok(Outcome::Fine);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = output::reader_gone() => return Ok(Outcome::Fine),
                _ = tokio::signal::ctrl_c() => return Ok(Outcome::Fine),
            }
        }
    })
}

/// Nothing said is nothing: the lab has a default.
fn lasting(lasts: For) -> Duration {
    lasts.time.unwrap_or_default()
}

pub(super) fn cut(args: &CutArgs) -> anyhow::Result<Outcome> {
    // Who writes `a,b | c`, in quotes for the shell, means two groups.
    let groups = args.groups.iter().flat_map(|words| words.split('|'));
    let groups = groups.map(|group| {
        let names = group.split([',', ' ']).filter(|name| !name.is_empty());
        names.map(str::to_owned).collect::<Vec<_>>()
    });
    let groups = groups.filter(|group| !group.is_empty()).collect();
    order(&args.which, &Ask::Cut { groups, one_way: args.one_way, lasts: lasting(args.lasts) })
}

pub(super) fn loss(args: &LossArgs) -> anyhow::Result<Outcome> {
    let (from, to, amount) = ways(&args.words)?;
    let percent = amount.strip_suffix('%').unwrap_or(&amount).parse::<f64>().ok();
    let percent = percent.filter(|percent| 0.0 < *percent && *percent <= 100.0);
    let percent = percent.with_context(|| format!("`{amount}` is no share; write it like 10%"))?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and a million"
    )]
    let of_a_million = (percent * 1e4).round() as u32;
    order(&args.which, &Ask::Loss { from, to, of_a_million, lasts: lasting(args.lasts) })
}

pub(super) fn delay(args: &DelayArgs) -> anyhow::Result<Outcome> {
    let (from, to, amount) = ways(&args.words)?;
    let delay = parse_duration(&amount).ok().filter(|delay| !delay.is_zero());
    let delay = delay.with_context(|| format!("`{amount}` is no delay; write it like 50ms"))?;
    let (jitter, lasts) = (args.jitter, lasting(args.lasts));
    order(&args.which, &Ask::Delay { from, to, delay, jitter, lasts })
}

/// FROM [TO] AMOUNT
fn ways(words: &[String]) -> anyhow::Result<(String, Option<String>, String)> {
    match words {
        [from, amount] => Ok((from.clone(), None, amount.clone())),
        [from, to, amount] => Ok((from.clone(), Some(to.clone()), amount.clone())),
        _ => bail!("name who sends, perhaps to whom, and how much"),
    }
}

pub(super) fn heal(args: &HealArgs) -> anyhow::Result<Outcome> {
    order(&args.which, &Ask::Heal { what: args.what.clone() })
}

pub(super) fn kill(args: &KillArgs) -> anyhow::Result<Outcome> {
    order(&args.which, &Ask::Kill { node: args.node.clone(), back_after: args.time })
}

pub(super) fn stop(args: &NodeArgs) -> anyhow::Result<Outcome> {
    order(&args.which, &Ask::Stop { node: args.node.clone() })
}

pub(super) fn start(args: &NodeArgs) -> anyhow::Result<Outcome> {
    order(&args.which, &Ask::Start { node: args.node.clone() })
}

pub(super) fn pause(args: &PauseArgs) -> anyhow::Result<Outcome> {
    order(&args.which, &Ask::Pause { node: args.node.clone(), lasts: lasting(args.lasts) })
}

pub(super) fn resume(args: &NodeArgs) -> anyhow::Result<Outcome> {
    order(&args.which, &Ask::Resume { node: args.node.clone() })
}
