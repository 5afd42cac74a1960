//! Three nodes that agree: outlast's agents beside etcd, each with a sync before it acknowledges.
//!
//! The same load on the leader of both: one client and 64, values of 200 bytes, writes and newest reads. Then the leader
//! is killed while one client writes through another node, and the longest time without an acknowledgement counts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Finished, Options, measure};
use crate::children::{Child, Household, Spec, TempDir, wait_until};
use crate::etcd::Connection;
use crate::{out, procs, tools};

const NODES: usize = 3;
const CLIENTS: u16 = 64;
const VALUE_BYTES: u16 = 200;
const START_LIMIT: Duration = Duration::from_secs(30);
const ASK_LIMIT: Duration = Duration::from_secs(60);
/// Before the leader is killed, and after.
const BEFORE_KILL: Duration = Duration::from_secs(1);
const KILL_LOAD: Duration = Duration::from_secs(5);

/// Goals of the issue, as ratios to etcd where they are any.
const WRITES_RATIO_MIN: f64 = 3.0;
const READS_RATIO_MIN: f64 = 3.0;
const LATENCY_RATIO_MAX: f64 = 1.0;
const PAUSE_SECONDS_MAX: f64 = 0.6;
const IDLE_CORE_MAX: f64 = 0.005;
const MEMORY_MAX: f64 = 30.0;

/// What one engine did in one round.
#[derive(Clone, Debug, Default)]
struct Figures {
    write_1_per_second: f64,
    write_1_p50_ms: f64,
    write_64_per_second: f64,
    read_64_per_second: f64,
    pause_seconds: Vec<f64>,
    /// Of outlast only: cores, MiB and elections under load.
    idle_cores: f64,
    memory_mib: f64,
    spurious: f64,
}

struct Sizes {
    load: Duration,
    kills: usize,
    idle: Duration,
    busy: Duration,
}

pub(super) fn run(options: Options, outlast: Option<PathBuf>) -> Result<Option<Finished>> {
    let sizes = if options.quick {
        let load = Duration::from_secs(2);
        Sizes { load, kills: 1, idle: Duration::from_secs(5), busy: Duration::from_secs(5) }
    } else {
        let load = Duration::from_secs(4);
        Sizes { load, kills: 2, idle: Duration::from_secs(15), busy: Duration::from_secs(60) }
    };
    let outlast = outlast.context("this compares outlast with etcd: leave --peers-only out")?;
    let rounds = measure(compare(options, &sizes, &outlast))?;
    Ok(rounds.map(|rounds| finish(&rounds)))
}

async fn compare(
    options: Options,
    sizes: &Sizes,
    outlast: &Path,
) -> Result<Vec<(Figures, Figures)>> {
    let mut rounds = Vec::new();
    for round in 0..options.rounds {
        out::line(format!("round {} of {}: etcd", round + 1, options.rounds));
        let theirs = measure_etcd(sizes).await.context("measure etcd")?;
        out::line(format!("round {} of {}: outlast", round + 1, options.rounds));
        // Idle and busy times are the same in each round; once is enough.
        let ours = measure_outlast(sizes, outlast, round == 0).await.context("measure outlast")?;
        out::line(format!(
            "  writes/s with 64 clients: {:.0} and {:.0}; p50 of one client: {:.2} and {:.2} ms",
            theirs.write_64_per_second,
            ours.write_64_per_second,
            theirs.write_1_p50_ms,
            ours.write_1_p50_ms
        ));
        rounds.push((theirs, ours));
    }
    Ok(rounds)
}

// outlast.

struct Nodes {
    program: PathBuf,
    agents: Vec<Child>,
    dir: TempDir,
    /// Dropped last: ends whatever is left.
    _household: Household,
}

impl Nodes {
    async fn start(outlast: &Path) -> Result<Nodes> {
        let household = Household::found()?;
        let dir = TempDir::new("consensus")?;
        let port = free_ports(1)?[0];
        let mut text =
            String::from("[cluster]\nname = \"bench\"\ndata_dir = \"data\"\nface = \"off\"\n");
        text += &format!("port = {port}\nproxy_threads = 1\n");
        for at in 1..=NODES {
            text += &format!("[node.n{at}]\naddress = \"127.0.0.{at}\"\n");
        }
        for at in 1..=NODES {
            let home = dir.path().join(format!("n{at}"));
            std::fs::create_dir_all(&home)?;
            std::fs::write(home.join("outlast.toml"), &text)?;
        }
        let mut nodes =
            Nodes { program: outlast.to_owned(), agents: Vec::new(), dir, _household: household };
        for at in 1..=NODES {
            let agent = nodes.start_agent(at)?;
            nodes.agents.push(agent);
        }
        nodes.leader().await?;
        Ok(nodes)
    }

    fn home(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("n{at}"))
    }

    fn start_agent(&self, at: usize) -> Result<Child> {
        let file = self.home(at).join("outlast.toml");
        let args =
            ["run", &file.display().to_string(), "--node", &format!("n{at}")].map(str::to_owned);
        Child::start(&Spec {
            name: &format!("n{at}"),
            program: &self.program,
            args: &args,
            dir: self.dir.path(),
            core: None,
            has_children: true,
        })
    }

    /// Lines of a node's journal that name a new leader, the last one's name last.
    fn elections(&self, at: usize) -> Vec<String> {
        let journal = self.home(at).join("data/journal/journal.jsonl");
        let text = std::fs::read_to_string(journal).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let events = lines.filter(|line| line["event"] == "leader_elected");
        events.filter_map(|line| line["leader"].as_str().map(str::to_owned)).collect()
    }

    /// The node that all living ones take for the leader.
    async fn leader(&mut self) -> Result<usize> {
        let mut leader = None;
        let agreed = wait_until(START_LIMIT, async || {
            let living: Vec<usize> =
                (1..=NODES).filter(|&at| self.agents[at - 1].is_running()).collect();
            let named: Vec<Option<String>> =
                living.iter().map(|&at| self.elections(at).pop()).collect();
            let same = named.iter().all(|name| name.is_some() && *name == named[0]);
            leader = named[0].as_ref().and_then(|name| name.strip_prefix('n')?.parse().ok());
            same && leader.is_some_and(|leader| living.contains(&leader))
        });
        let agreed = agreed.await;
        ensure!(agreed, "the nodes have no leader{}", self.agents[0].log_tail());
        leader.context("a leader that all name")
    }

    async fn load(&self, at: usize, clients: u16, time: Duration, read: bool) -> Result<Value> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(["kv", "bench", "--format", "json"]);
        command.args(["--clients", &clients.to_string(), "--size", &VALUE_BYTES.to_string()]);
        command.args(["--time", &format!("{}ms", time.as_millis())]);
        command.args(read.then_some("--read"));
        command.arg("--data-dir").arg(self.home(at).join("data")).kill_on_drop(true);
        let output = tokio::time::timeout(ASK_LIMIT, command.output()).await;
        let output = output.context("the load does not end")?.context("start the load")?;
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&line).with_context(|| {
            format!("read what the load says: {}", String::from_utf8_lossy(&output.stderr))
        })
    }
}

async fn measure_outlast(sizes: &Sizes, outlast: &Path, once: bool) -> Result<Figures> {
    let mut nodes = Nodes::start(outlast).await?;
    let mut figures = Figures::default();
    if once {
        let pids: Vec<i32> = (0..NODES).map(|at| agent_of(nodes.agents[at].pid())).collect();
        let cpu = |pid: &i32| procs::stat(*pid).map(|stat| stat.cpu()).unwrap_or_default();
        // A cluster that has just begun is not idle yet.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before: Vec<Duration> = pids.iter().map(cpu).collect();
        tokio::time::sleep(sizes.idle).await;
        let used =
            pids.iter().map(cpu).zip(before).map(|(after, before)| after.saturating_sub(before));
        let most = used.max().unwrap_or_default();
        figures.idle_cores = most.as_secs_f64() / sizes.idle.as_secs_f64();
        figures.memory_mib = pids
            .iter()
            .filter_map(|pid| procs::peak_memory(*pid).ok())
            .map(|bytes| bytes as f64 / f64::from(1 << 20))
            .fold(0.0, f64::max);
        let before: usize = (1..=NODES).map(|at| nodes.elections(at).len()).sum();
        keep_cores_busy(sizes.busy).await?;
        let after: usize = (1..=NODES).map(|at| nodes.elections(at).len()).sum();
        figures.spurious = (after - before) as f64;
    }
    let leader = nodes.leader().await?;
    let one = nodes.load(leader, 1, sizes.load, false).await?;
    figures.write_1_per_second = number(&one, "per_second")?;
    figures.write_1_p50_ms = number(&one, "p50_ms")?;
    let many = nodes.load(leader, CLIENTS, sizes.load, false).await?;
    figures.write_64_per_second = number(&many, "per_second")?;
    let reads = nodes.load(leader, CLIENTS, sizes.load, true).await?;
    figures.read_64_per_second = number(&reads, "per_second")?;
    for _ in 0..sizes.kills {
        let leader = nodes.leader().await?;
        let other = (1..=NODES).find(|&at| at != leader).context("another node")?;
        let killed = async {
            tokio::time::sleep(BEFORE_KILL).await;
            let pid = agent_of(nodes.agents[leader - 1].pid());
            rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid).context("a pid")?,
                rustix::process::Signal::KILL,
            )
            .context("kill the leader")
        };
        let (seen, killed) = tokio::join!(nodes.load(other, 1, KILL_LOAD, false), killed);
        killed?;
        figures.pause_seconds.push(number(&seen?, "gap_ms")? / 1e3);
        let gone = wait_until(START_LIMIT, async || !nodes.agents[leader - 1].is_running()).await;
        ensure!(gone, "the killed agent lives on");
        nodes.agents[leader - 1] = nodes.start_agent(leader)?;
        nodes.leader().await?;
    }
    Ok(figures)
}

/// The agent itself, behind the leash that ends it with us.
fn agent_of(leash: i32) -> i32 {
    let tree = procs::tree(leash);
    let runs = |stat: &&procs::Stat| procs::command_line(stat.pid).iter().any(|word| word == "run");
    let agent = tree.iter().filter(runs).find(|stat| {
        procs::command_line(stat.pid).first().is_some_and(|word| word.ends_with("/outlast"))
    });
    agent.map_or(leash, |stat| stat.pid)
}

/// One spinning thread for each core, at the nodes' own priority.
async fn keep_cores_busy(time: Duration) -> Result<()> {
    let cores = std::thread::available_parallelism().context("count cores")?.get();
    let until = Instant::now() + time;
    let mut spinning = tokio::task::JoinSet::new();
    for _ in 0..cores {
        spinning.spawn_blocking(move || {
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        });
    }
    spinning.join_all().await;
    Ok(())
}

// etcd.

struct Etcd {
    members: Vec<Child>,
    clients: Vec<SocketAddr>,
    args: Vec<Vec<String>>,
    program: PathBuf,
    dir: TempDir,
}

impl Etcd {
    async fn start() -> Result<Etcd> {
        let program = tools::which("etcd").context("etcd is not installed")?;
        let dir = TempDir::new("etcd")?;
        let ports = free_ports(2 * NODES)?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let everybody: Vec<String> =
            (0..NODES).map(|at| format!("n{at}={}", url(ports[at]))).collect();
        let mut args = Vec::new();
        let mut clients = Vec::new();
        for at in 0..NODES {
            let (peer, client) = (url(ports[at]), url(ports[NODES + at]));
            let home = dir.path().join(format!("n{at}"));
            clients.push(SocketAddr::from(([127, 0, 0, 1], ports[NODES + at])));
            args.push(
                [
                    "--name",
                    &format!("n{at}"),
                    "--data-dir",
                    &home.display().to_string(),
                    "--listen-peer-urls",
                    &peer,
                    "--initial-advertise-peer-urls",
                    &peer,
                    "--listen-client-urls",
                    &client,
                    "--advertise-client-urls",
                    &client,
                    "--initial-cluster",
                    &everybody.join(","),
                    "--logger",
                    "zap",
                ]
                .map(str::to_owned)
                .to_vec(),
            );
        }
        let mut etcd = Etcd { members: Vec::new(), clients, args, program, dir };
        for at in 0..NODES {
            let member = etcd.start_member(at)?;
            etcd.members.push(member);
        }
        etcd.leader().await?;
        Ok(etcd)
    }

    fn start_member(&self, at: usize) -> Result<Child> {
        Child::start(&Spec {
            name: &format!("n{at}"),
            program: &self.program,
            args: &self.args[at],
            dir: self.dir.path(),
            core: None,
            has_children: false,
        })
    }

    async fn leader(&self) -> Result<usize> {
        let mut leader = None;
        let found = wait_until(START_LIMIT, async || {
            // All of them, also one that has just been started again.
            let mut answering = 0;
            for at in 0..NODES {
                let asked = async { Connection::open(self.clients[at]).await?.leads().await };
                let asked = tokio::time::timeout(Duration::from_secs(1), asked).await;
                answering += usize::from(matches!(asked, Ok(Ok(_))));
                if matches!(asked, Ok(Ok(true))) {
                    leader = Some(at);
                }
            }
            leader.is_some() && answering == NODES
        });
        let found = found.await;
        ensure!(found, "etcd has no leader{}", self.members[0].log_tail());
        leader.context("a leader")
    }
}

/// As `outlast kv bench` measures, over as many connections as helps etcd: eight clients share one.
async fn load_etcd(at: SocketAddr, clients: u16, time: Duration, read: bool) -> Result<Loaded> {
    let begun = Instant::now();
    let mut open = Vec::new();
    for _ in 0..clients.div_ceil(8) {
        open.push(Connection::open(at).await?);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..clients {
        let connection = open[usize::from(number) % open.len()].clone();
        tasks.spawn(async move {
            let value = vec![b'x'; usize::from(VALUE_BYTES)];
            let mut took = Vec::new();
            for turn in 0_u64.. {
                if time <= begun.elapsed() {
                    break;
                }
                let key = format!("bench/{number}/{}", turn % 16);
                let asked = Instant::now();
                let done = if read {
                    connection.get(key.as_bytes()).await
                } else {
                    connection.put(key.as_bytes(), &value).await
                };
                done?;
                took.push(asked.elapsed());
            }
            Ok::<_, anyhow::Error>(took)
        });
    }
    let mut took = Vec::new();
    for part in tasks.join_all().await {
        took.extend(part?);
    }
    took.sort_unstable();
    let p50 = took.get(took.len() / 2).copied().unwrap_or_default();
    Ok(Loaded { per_second: took.len() as f64 / begun.elapsed().as_secs_f64(), p50 })
}

struct Loaded {
    per_second: f64,
    p50: Duration,
}

async fn measure_etcd(sizes: &Sizes) -> Result<Figures> {
    let mut etcd = Etcd::start().await?;
    let mut figures = Figures::default();
    let leader = etcd.leader().await?;
    let one = load_etcd(etcd.clients[leader], 1, sizes.load, false).await?;
    (figures.write_1_per_second, figures.write_1_p50_ms) =
        (one.per_second, one.p50.as_secs_f64() * 1e3);
    let many = load_etcd(etcd.clients[leader], CLIENTS, sizes.load, false).await?;
    figures.write_64_per_second = many.per_second;
    let reads = load_etcd(etcd.clients[leader], CLIENTS, sizes.load, true).await?;
    figures.read_64_per_second = reads.per_second;
    for _ in 0..sizes.kills {
        let leader = etcd.leader().await?;
        let others: Vec<SocketAddr> =
            (0..NODES).filter(|&at| at != leader).map(|at| etcd.clients[at]).collect();
        let killed = async {
            tokio::time::sleep(BEFORE_KILL).await;
            etcd.members[leader].signal(rustix::process::Signal::KILL)
        };
        let (pause, killed) = tokio::join!(longest_pause(&others, KILL_LOAD), killed);
        killed?;
        figures.pause_seconds.push(pause?.as_secs_f64());
        let gone = wait_until(START_LIMIT, async || !etcd.members[leader].is_running()).await;
        ensure!(gone, "the killed member lives on");
        etcd.members[leader] = etcd.start_member(leader)?;
        etcd.leader().await?;
    }
    Ok(figures)
}

/// One client that goes on at the other node when one does not answer soon: the best that a client can do.
async fn longest_pause(nodes: &[SocketAddr], time: Duration) -> Result<Duration> {
    const PATIENCE: Duration = Duration::from_millis(100);
    let begun = Instant::now();
    let mut connections = Vec::new();
    for &node in nodes {
        connections.push(Connection::open(node).await?);
    }
    let (mut at, mut last, mut longest) = (0, Instant::now(), Duration::ZERO);
    while begun.elapsed() < time {
        let asked = connections[at].put(b"bench/pause", b"x");
        if matches!(tokio::time::timeout(PATIENCE, asked).await, Ok(Ok(()))) {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        } else {
            at = (at + 1) % connections.len();
            // One that answers with an error would be asked in a circle.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    if last.elapsed() > time / 2 {
        bail!("etcd has not gone on after its leader died");
    }
    Ok(longest)
}

// The verdict.

fn number(value: &Value, name: &str) -> Result<f64> {
    value[name].as_f64().with_context(|| format!("the load says no `{name}`: {value}"))
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Vec<std::net::TcpListener> = (0..count)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()
        .context("find free ports")?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn finish(rounds: &[(Figures, Figures)]) -> Finished {
    let theirs =
        |of: fn(&Figures) -> f64| median(rounds.iter().map(|(etcd, _)| of(etcd)).collect());
    let ours = |of: fn(&Figures) -> f64| median(rounds.iter().map(|(_, own)| of(own)).collect());
    let ratio = |of: fn(&Figures) -> f64| {
        median(rounds.iter().map(|(etcd, own)| of(own) / of(etcd)).collect())
    };
    let pauses = |of: fn(&(Figures, Figures)) -> &Figures| {
        median(rounds.iter().flat_map(|round| of(round).pause_seconds.clone()).collect())
    };
    let (their_pause, our_pause) = (pauses(|round| &round.0), pauses(|round| &round.1));
    let first = rounds.first().map(|(_, own)| own.clone()).unwrap_or_default();
    let write_64: fn(&Figures) -> f64 = |figures| figures.write_64_per_second;
    let read_64: fn(&Figures) -> f64 = |figures| figures.read_64_per_second;
    let p50: fn(&Figures) -> f64 = |figures| figures.write_1_p50_ms;
    let write_1: fn(&Figures) -> f64 = |figures| figures.write_1_per_second;
    let goals = [
        ("write_64_ratio_min", WRITES_RATIO_MIN, WRITES_RATIO_MIN <= ratio(write_64)),
        ("read_64_ratio_min", READS_RATIO_MIN, READS_RATIO_MIN <= ratio(read_64)),
        ("write_1_p50_ratio_max", LATENCY_RATIO_MAX, ratio(p50) <= LATENCY_RATIO_MAX),
        ("pause_seconds_max", PAUSE_SECONDS_MAX, our_pause <= PAUSE_SECONDS_MAX),
        ("idle_cores_max", IDLE_CORE_MAX, first.idle_cores <= IDLE_CORE_MAX),
        ("memory_mib_max", MEMORY_MAX, first.memory_mib <= MEMORY_MAX),
        ("spurious_elections_max", 0.0, first.spurious <= 0.0),
    ];
    let holds = goals.iter().all(|(_, _, met)| *met);
    let line = |name: &str, theirs: f64, ours: f64, ratio: f64| {
        format!("{name:<44} {theirs:>10.2} {ours:>10.2} {ratio:>8.2}")
    };
    let mut table = vec![format!("{:<44} {:>10} {:>10} {:>8}", "", "etcd", "outlast", "ratio")];
    table.push(line("writes/s, 64 clients", theirs(write_64), ours(write_64), ratio(write_64)));
    table.push(line("writes/s, one client", theirs(write_1), ours(write_1), ratio(write_1)));
    table.push(line("p50 of a write, one client, ms", theirs(p50), ours(p50), ratio(p50)));
    table.push(line("newest reads/s, 64 clients", theirs(read_64), ours(read_64), ratio(read_64)));
    table.push(line(
        "pause of writes, leader killed, s",
        their_pause,
        our_pause,
        our_pause / their_pause,
    ));
    table.push(format!("idle agent: {:.4} cores, {:.1} MiB", first.idle_cores, first.memory_mib));
    table.push(format!("elections while all cores were busy: {:.0}", first.spurious));
    for (name, goal, met) in &goals {
        table.push(format!("{} {name} {goal}", if *met { "met   " } else { "MISSED" }));
    }
    let json = json!({
        "bench": "consensus",
        "figures": {
            "etcd": { "write_64_per_second": theirs(write_64), "write_1_per_second": theirs(write_1),
                      "write_1_p50_ms": theirs(p50), "read_64_per_second": theirs(read_64),
                      "pause_seconds": their_pause },
            "outlast": { "write_64_per_second": ours(write_64), "write_1_per_second": ours(write_1),
                         "write_1_p50_ms": ours(p50), "read_64_per_second": ours(read_64),
                         "pause_seconds": our_pause, "idle_cores": first.idle_cores,
                         "memory_mib": first.memory_mib, "spurious_elections": first.spurious },
            "ratio": { "write_64": ratio(write_64), "write_1": ratio(write_1),
                       "write_1_p50": ratio(p50), "read_64": ratio(read_64) },
            "rounds": rounds.len(),
        },
        "goals": goals.iter().map(|(name, goal, _)| ((*name).to_owned(), json!(goal)))
            .collect::<serde_json::Map<_, _>>(),
        "holds": holds,
    });
    Finished { table: table.join("\n"), json: json.to_string(), holds }
}
