//! Benchmarks against the systems that people use today, both sides in the same run.

pub(crate) mod addresses;
mod arena;
mod consensus;
mod dns;
mod failover;
mod figures;
mod meter;
mod peers;
mod proxy;
mod resilience;
mod stream;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::{Verdict, children, out, workspace};

pub(crate) const HELP: &str = "\
bench NAME [--rounds N] [--quick]   measure, side by side with other systems where there are any

  proxy              what a request costs: outlast, HAProxy and nginx in front of the same backend
  consensus          three nodes of outlast and of etcd: writes, newest reads, and how long writes pause when the
                     leader is killed (five rounds: ten minutes)
  resilience         no failed request and no reset connection over 100 restarts of backends one by one, 20 reloads,
                     10 upgrades of the binary and 10 kills of the agent, under load (a minute and a half)
  failover           PostgreSQL whose primary is killed, frozen and moved: Patroni with etcd and HAProxy in its default and
                     its tightest legal settings, and outlast (three rounds: an hour and a half)

  addresses          an address that moves, whose holder is killed, frozen, switched off, cut off and stopped: keepalived in its
                     default and a fast setting, and outlast, in a lab (20 rounds: two hours)
  dns                names that move and what an answer costs: gdnsd, PowerDNS, Knot and NSD, and outlast, on machines of the
                     bench's own (20 rounds: half an hour)

  --quick            shorter: for a first look, too coarse for a verdict
  --rounds N         proxy, consensus: paired rounds (default 5; 2 with --quick); failover: default 3, 1 with --quick;
                     addresses, dns: default 20, 3 with --quick
  --outlast FILE     a binary that is built already
  --peers-only       proxy, failover, addresses, dns: leave outlast out; shows what the machine and the other systems do
  --ours-only        failover, addresses, dns: leave the others out
  --only LETTERS     failover: A agent and PostgreSQL killed, E a host that also leads the agreement killed, B agent and
                     PostgreSQL frozen and woken later, C planned switchover, D postmaster alone killed, F PostgreSQL
                     alone frozen
                     addresses: A agent and service killed, B machine frozen, C power off, D holder cut off, E candidates
                     parted, F planned move, H dark after a heal, L all cores busy
                     dns: A the primary killed, B a name server cut off, C a name server restarted (five times a round),
                     D what a query costs (5 rounds at most), E a million malformed messages
  --drill [N]        failover: N random faults on outlast, one after the other (default 100), instead; with --peers-only
                     on Patroni in its tightest legal settings
  --seed N           of the drill; printed at the start; dns: of when faults come and of what is malformed

Installs what it needs (Debian or Ubuntu, as root). Traffic stays on loopback, or
in a lab's own network. The last line is one JSON object with
all figures and goals; the exit status is 1 when a goal is missed.";

/// How much to measure, and whom.
#[derive(Clone, Debug)]
struct Options {
    rounds: usize,
    quick: bool,
    peers_only: bool,
    ours_only: bool,
    /// Letters of scenarios.
    only: Option<String>,
    /// How many random faults, instead of a comparison.
    drill: usize,
    seed: Option<u64>,
    /// A binary that is built already: what needs a lab needs it even where outlast takes no part.
    given: Option<PathBuf>,
}

struct Bench {
    name: &'static str,
    packages: &'static [&'static str],
    rounds: usize,
    rounds_quick: usize,
    /// Makes so much load itself that it must be optimized.
    is_load: bool,
    run: fn(Options, Option<PathBuf>) -> Result<Option<Finished>>,
}

/// What a benchmark found, printed.
struct Finished {
    /// For people.
    table: String,
    /// One line for programs.
    json: String,
    /// Every goal is met.
    holds: bool,
}

/// Of a drill that does not say how many.
const DRILL_FAULTS: usize = 100;

/// A benchmark is a line here and a module.
const BENCHES: &[Bench] = &[
    Bench {
        name: "proxy",
        packages: &["haproxy", "nginx", "wrk"],
        rounds: 5,
        rounds_quick: 2,
        is_load: true,
        run: proxy::run,
    },
    Bench {
        name: "consensus",
        packages: &["etcd-server"],
        rounds: 5,
        rounds_quick: 2,
        is_load: true,
        run: consensus::run,
    },
    Bench {
        name: "resilience",
        packages: &[],
        rounds: 1,
        rounds_quick: 1,
        is_load: true,
        run: resilience::run,
    },
    Bench {
        name: "failover",
        packages: failover::PACKAGES,
        rounds: 3,
        rounds_quick: 1,
        is_load: false,
        run: failover::run,
    },
    Bench {
        name: "addresses",
        packages: addresses::PACKAGES,
        rounds: 20,
        rounds_quick: 3,
        is_load: false,
        run: addresses::run,
    },
    Bench {
        name: "dns",
        packages: dns::PACKAGES,
        rounds: 20,
        rounds_quick: 3,
        is_load: false,
        run: dns::run,
    },
];

pub(crate) fn run(mut args: Args) -> Result<Verdict> {
    let quick = args.flag("--quick");
    let rounds = args.option("--rounds")?;
    let (peers_only, ours_only) = (args.flag("--peers-only"), args.flag("--ours-only"));
    anyhow::ensure!(!(peers_only && ours_only), "--peers-only and --ours-only leave nobody");
    let given: Option<PathBuf> = args.option("--outlast")?;
    let (only, seed) = (args.option("--only")?, args.option("--seed")?);
    let drill = args.option_or("--drill", DRILL_FAULTS)?.unwrap_or(0);
    let names = args.rest()?;
    let known: Vec<_> = BENCHES.iter().map(|bench| bench.name).collect();
    let [name] = names.as_slice() else { bail!("name one of: {}", known.join(", ")) };
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == name) else {
        bail!("there is no benchmark `{name}`; name one of: {}", known.join(", "));
    };
    let rounds = rounds.unwrap_or(if quick { bench.rounds_quick } else { bench.rounds });
    anyhow::ensure!(rounds > 0, "--rounds must be at least 1");
    let options =
        Options { rounds, quick, peers_only, ours_only, only, drill, seed, given: given.clone() };
    if bench.is_load && cfg!(debug_assertions) {
        return run_optimized(name, &options, given.as_deref());
    }
    crate::tools::install_some(bench.packages)?;
    let outlast = (!options.peers_only).then(|| workspace::outlast(given)).transpose()?;
    let Some(finished) = (bench.run)(options, outlast)? else {
        out::line("interrupted");
        return Ok(Verdict::Bad);
    };
    out::line(finished.table);
    out::line(finished.json);
    Ok(if finished.holds { Verdict::Good } else { Verdict::Bad })
}

/// The load comes from this program, so it must not be slow itself.
fn run_optimized(name: &str, options: &Options, outlast: Option<&Path>) -> Result<Verdict> {
    let rounds = options.rounds.to_string();
    let mut words = vec!["run", "--release", "--quiet", "--locked", "--package", "xtask", "--"];
    words.extend(["bench", name, "--rounds", rounds.as_str()]);
    words.extend(options.quick.then_some("--quick"));
    words.extend(options.peers_only.then_some("--peers-only"));
    out::line("building the load generator (release)");
    let mut command = workspace::cargo(&words);
    command.args(outlast.into_iter().flat_map(|file| [Path::new("--outlast"), file]));
    let status = command.status().context("start cargo run")?;
    match status.code() {
        Some(0) => Ok(Verdict::Good),
        Some(1) => Ok(Verdict::Bad),
        _ => bail!("the benchmark did not come to an end: {status}"),
    }
}

/// Runs a benchmark's measurements on this thread until they are done or someone presses Ctrl-C.
fn measure<T>(work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(children::unless_interrupted(work))?.transpose()
}
