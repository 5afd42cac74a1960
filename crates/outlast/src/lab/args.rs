//! The words of `outlast lab` on the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use outlast_core::units::parse_duration;

use crate::cli::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum LabVerb {
    /// Starts every node of a file, each as a machine of its own; ends them all on Ctrl-C.
    #[command(after_help = AFTER_HELP_OF_UP)]
    Up(UpArgs),
    /// Ends a lab and all that is in it.
    Down(Which),
    /// Shows the nodes, the faults, and when each fault heals by itself.
    #[command(after_help = AFTER_HELP_OF_STATUS)]
    Status(StatusArgs),
    /// Runs a command inside a node, and ends with its exit status.
    #[command(after_help = AFTER_HELP_OF_EXEC)]
    Exec(ExecArgs),
    /// Shows what the agent of a node has logged.
    Logs(LogsArgs),
    /// Cuts nodes off from others: no packet passes.
    #[command(after_help = AFTER_HELP_OF_CUT)]
    Cut(CutArgs),
    /// Loses some of the packets that a node sends.
    #[command(after_help = AFTER_HELP_OF_LOSS)]
    Loss(LossArgs),
    /// Delays the packets that a node sends.
    #[command(after_help = AFTER_HELP_OF_DELAY)]
    Delay(DelayArgs),
    /// Takes faults back before their time is over.
    #[command(after_help = AFTER_HELP_OF_HEAL)]
    Heal(HealArgs),
    /// Takes the power from a node: everything in it is gone at once, and nobody is told.
    #[command(after_help = AFTER_HELP_OF_KILL)]
    Kill(KillArgs),
    /// Stops a node politely: its agent drains and ends, then the machine is off.
    Stop(NodeArgs),
    /// Starts a node that is off, with the data that it had; or its agent, if only that has ended.
    Start(NodeArgs),
    /// Freezes everything in a node (SIGSTOP), as a machine that hangs.
    #[command(after_help = AFTER_HELP_OF_PAUSE)]
    Pause(PauseArgs),
    /// Lets a paused node go on.
    Resume(NodeArgs),
    /// Started by `outlast lab up`.
    #[command(hide = true)]
    Keeper,
    /// Started by the keeper.
    #[command(hide = true)]
    Machine,
}

pub(crate) const AFTER_HELP: &str = "\
A lab is the cluster of a file on this one machine: each node has its own network
address, processes, data directory and /tmp. It needs no root where the kernel
allows user namespaces, touches neither your network nor your files, and is gone
when it ends.

Examples:
  outlast lab up examples/lab.toml      starts it; Ctrl-C ends it
  outlast lab exec a -- outlast status  in a second terminal: what node a believes
  outlast lab cut a                     a is alone, for one minute
  outlast lab status                    and it heals by itself
  outlast lab kill b                    power loss; `outlast lab start b` turns it on again
  outlast lab down

`outlast lab VERB --help` says more about a verb.";

const AFTER_HELP_OF_UP: &str = "\
Examples:
  outlast lab up                        outlast.toml, until Ctrl-C
  outlast lab up shop.toml --detach     in the background, until `outlast lab down`
  outlast lab up shop.toml --keep       data and logs stay, and are there again next time

Every fault ends when the lab ends. The lab ends when this process ends, even by
SIGKILL.

Exit status:
  0  it was up, and was ended as asked
  1  the file cannot be a lab
  2  it could not be started, or broke";

const AFTER_HELP_OF_STATUS: &str = "\
Examples:
  outlast lab status
  outlast lab status --format json | jq '.nodes[] | select(.state != \"running\")'";

const AFTER_HELP_OF_EXEC: &str = "\
The command sees the node's network, processes and data. `outlast` in it finds
the lab's file by itself.

Examples:
  outlast lab exec a -- outlast status
  outlast lab exec a -- curl -s http://10.0.0.2:8080/
  outlast lab exec a -- bash            look around
  outlast lab exec a -- pkill -9 -f 'outlast run'

Exit status: that of the command; above 128 it ended by a signal. 2 also if it
could not be run.";

const AFTER_HELP_OF_CUT: &str = "\
Examples:
  outlast lab cut a                     a from all others
  outlast lab cut a,b c                 a and b from c; those not named reach all
  outlast lab cut a c --one-way         what a sends to c is lost, what c sends arrives
  outlast lab cut a --for 10s";

const AFTER_HELP_OF_LOSS: &str = "\
Examples:
  outlast lab loss a 10%                of all that a sends
  outlast lab loss a b 2.5%             of what a sends to b; the way back is fine
  outlast lab loss a 50% --for 30s";

const AFTER_HELP_OF_DELAY: &str = "\
Examples:
  outlast lab delay a 50ms              all that a sends takes 50ms more
  outlast lab delay a b 50ms --jitter 10ms
                                        between 40ms and 60ms; packets may overtake each other";

const AFTER_HELP_OF_HEAL: &str = "\
Killed and stopped nodes are not healed but started.

Examples:
  outlast lab heal                      everything
  outlast lab heal f3                   one fault, as `outlast lab status` names it
  outlast lab heal cut                  all of a kind: cut, loss, delay, pause
  outlast lab heal a                    all that befell a";

const AFTER_HELP_OF_KILL: &str = "\
Examples:
  outlast lab kill b                    off until `outlast lab start b`
  outlast lab kill b --for 20s          off for 20 seconds";

const AFTER_HELP_OF_PAUSE: &str = "\
Examples:
  outlast lab pause b                   for one minute, or until `outlast lab resume b`
  outlast lab pause b --for 5s";

/// Which lab is meant.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Which {
    /// The lab's name; need not be given while only one runs.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The lab's directory, instead of its name.
    #[arg(long, value_name = "DIR", conflicts_with = "name")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// The topology file.
    #[arg(default_value = "outlast.toml", value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// What to call the lab; the cluster's name if left out.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Where data and logs lie, a directory for each node; a place in your state directory if left out.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Keep data and logs, and begin with what was kept the last time.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Return as soon as the lab is up; it runs until `outlast lab down`.
    #[arg(long)]
    pub(crate) detach: bool,
    /// This is the process in the background.
    #[arg(long, hide = true)]
    pub(crate) in_background: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The node's name in the file.
    pub(crate) node: String,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The node's name in the file.
    pub(crate) node: String,
    /// Wait for more, until Ctrl-C.
    #[arg(long, short)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) which: Which,
}

/// How long a fault lasts.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct For {
    /// When it heals by itself: 1m if left out, 1h at most.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(crate) time: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct CutArgs {
    /// Nodes that stay together, with commas; several groups are all cut from each other. One alone is cut from all.
    #[arg(required = true, value_name = "NODES")]
    pub(crate) groups: Vec<String>,
    /// Only what the first group sends to the others is lost.
    #[arg(long)]
    pub(crate) one_way: bool,
    #[command(flatten)]
    pub(crate) lasts: For,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct LossArgs {
    /// Who sends, to whom (to all if left out), and how much is lost.
    #[arg(num_args = 2..=3, required = true, value_names = ["FROM", "TO", "PERCENT"])]
    pub(crate) words: Vec<String>,
    #[command(flatten)]
    pub(crate) lasts: For,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct DelayArgs {
    /// Who sends, to whom (to all if left out), and how much longer it takes.
    #[arg(num_args = 2..=3, required = true, value_names = ["FROM", "TO", "TIME"])]
    pub(crate) words: Vec<String>,
    /// Each packet takes up to this much less or more.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0")]
    pub(crate) jitter: Duration,
    #[command(flatten)]
    pub(crate) lasts: For,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct HealArgs {
    /// A fault, a kind of fault, or a node; everything if left out.
    pub(crate) what: Option<String>,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// The node's name in the file.
    pub(crate) node: String,
    /// When the power comes back; not by itself if left out.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(crate) time: Option<Duration>,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// The node's name in the file.
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) lasts: For,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The node's name in the file.
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) which: Which,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .map_err(|_fault| format!("`{text}` is no time; write it like 500ms, 10s or 2m"))
}
