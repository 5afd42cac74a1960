//! Real agents on a network of their own, while machines die and freeze and the network breaks; clients write down what
//! they see, and one order must explain it all.
//!
//! As ourselves only: what a storm shows does not depend on who holds the lab. `cargo xtask history` says with
//! `OUTLAST_HISTORY_…` how long, how many nodes, which seed and where to write.

mod plan;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::{Duration, Instant};

use outlast_core::linear::{Call, Operation, Start, TRIES_MAX, Verdict, check};
use serde_json::{Value, json};

use super::{LIMIT, Lab, POLL, said, users, wait_until};
use crate::clients::{Client, History, held, read_all};
use plan::Order;

/// Clients that stay with one node, for each node.
const CLIENTS_PER_NODE: u64 = 2;
/// So long before the longest time without a write, orders are shown that may have caused it.
const CAUSE: Duration = Duration::from_secs(2);
/// Where, inside a node, its data lies.
const DATA: &str = "/var/lib/outlast-of-a-test";
/// Where members of etcd listen.
const ETCD_CLIENTS: u16 = 2379;
const ETCD_PEERS: u16 = 2380;
/// An agent that is asked how it is answers within this time, or is asked again.
const STATUS_MAX: Duration = Duration::from_secs(2);

/// A word of the environment, or what holds without it.
fn asked<T: FromStr>(name: &str, usual: T) -> T {
    match std::env::var(format!("OUTLAST_HISTORY_{name}")) {
        Ok(word) => word.parse().unwrap_or_else(|_| panic!("{name} cannot be `{word}`")),
        Err(_) => usual,
    }
}

/// By what the nodes agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Embedded,
    /// A member of etcd on each node, which its agent starts and which shares its fate.
    Etcd,
}

impl FromStr for Engine {
    type Err = ();

    fn from_str(word: &str) -> Result<Engine, ()> {
        match word {
            "embedded" => Ok(Engine::Embedded),
            "etcd" => Ok(Engine::Etcd),
            _ => Err(()),
        }
    }
}

/// What is to happen.
struct Storm {
    engine: Engine,
    seed: u64,
    nodes: Vec<String>,
    orders: Vec<Order>,
    fresh: bool,
    /// Where plan, history, report and what is left of the agents go.
    dir: PathBuf,
}

impl Storm {
    fn new(name: &str, seed: u64, node_count: usize, lasts: Duration) -> Storm {
        let names = ["a", "b", "c", "d", "e"].map(str::to_owned);
        let nodes = names[..node_count].to_vec();
        let dir = format!("history-{name}-{}", std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(dir);
        let orders = plan::draw(seed, &nodes, lasts);
        Storm { engine: Engine::Embedded, seed, orders, nodes, fresh: true, dir }
    }

    /// As the environment says.
    fn asked() -> Storm {
        let lasts = Duration::from_secs(asked("SECONDS", 20));
        let mut storm = Storm::new("asked", asked("SEED", 7), asked("NODES", 3), lasts);
        storm.dir = asked("DIR", storm.dir);
        storm.fresh = asked("FRESH", true);
        storm.engine = asked("ENGINE", Engine::Embedded);
        if let Ok(file) = std::env::var("OUTLAST_HISTORY_PLAN") {
            let text = std::fs::read_to_string(&file).expect("the plan can be read");
            storm.orders = plan::parse(&text).expect("the plan is one that was written down");
        }
        storm
    }

    fn topology(&self) -> String {
        let mut text =
            format!("[cluster]\nname = \"storm\"\ndata_dir = \"{DATA}\"\nproxy_threads = 1\n");
        let nodes: Vec<(&String, String)> =
            self.nodes.iter().zip(1..).map(|(node, at)| (node, format!("10.0.0.{at}"))).collect();
        for (node, address) in &nodes {
            text += &format!("[node.{node}]\naddress = \"{address}\"\n");
        }
        if self.engine == Engine::Embedded {
            text += &format!("[consensus]\nvoters = {:?}\n", self.nodes);
        }
        if self.engine == Engine::Etcd {
            let urls = |port: u16| nodes.iter().map(move |(_, at)| format!("http://{at}:{port}"));
            let members = nodes.iter().zip(urls(ETCD_PEERS));
            let members: Vec<_> = members.map(|((node, _), url)| format!("{node}={url}")).collect();
            let endpoints: Vec<String> = urls(ETCD_CLIENTS).collect();
            text += &format!("[consensus]\nkind = \"etcd\"\nendpoints = {endpoints:?}\n");
            for ((node, _), (client, peer)) in
                nodes.iter().zip(urls(ETCD_CLIENTS).zip(urls(ETCD_PEERS)))
            {
                let command = format!(
                    "etcd --name {node} --data-dir {DATA}/etcd --listen-client-urls {client} \
                     --advertise-client-urls {client} --listen-peer-urls {peer} \
                     --initial-advertise-peer-urls {peer} --initial-cluster {} \
                     --heartbeat-interval 50 --election-timeout 500 --log-level error --logger zap",
                    members.join(",")
                );
                let words: Vec<&str> = command.split(' ').collect();
                text +=
                    &format!("[process.etcd-{node}]\nnodes = [\"{node}\"]\ncommand = {words:?}\n");
            }
        }
        text
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::create_dir_all(&self.dir).expect("the directory can be made");
        std::fs::write(self.dir.join(name), text).expect("the directory can be written to");
    }

    /// Lets it all happen; fails if the lab cannot do what is ordered, or the nodes do not agree again.
    fn run(&self) -> Seen {
        let plan: Vec<String> = self.orders.iter().map(Order::to_string).collect();
        self.write("plan.txt", &plan.join("\n"));
        let lab = self.up();
        let place = lab.dir.join("outlast/labs/storm/nodes");
        let dirs: Vec<PathBuf> = self.nodes.iter().map(|n| place.join(n).join("data")).collect();
        wait_until("a leader before the storm", || led(&dirs));
        let history = History::new();
        let mut clients = Vec::new();
        for (number, dir) in (0_u64..).zip(&dirs) {
            for place in 0..CLIENTS_PER_NODE {
                let mut client = Client::new(number * CLIENTS_PER_NODE + place, &history);
                client.fresh = self.fresh;
                clients.push(client.live(vec![dir.clone()]));
            }
        }
        let given = self.give(&lab, &history);
        lab.good(&["heal"]);
        let healed = history.now();
        let agreed = soon(|| led(&dirs).then_some(()));
        history.end();
        for client in clients {
            client.join().expect("a client that finds a mistake says which");
        }
        let mut calls = history.take();
        let keys: BTreeSet<Vec<u8>> = calls.iter().map(|call| call.key.clone()).collect();
        let keys: Vec<Vec<u8>> = keys.into_iter().collect();
        let last = soon(|| read_all(&history, &dirs, &keys));
        let same = soon(|| {
            let all: Vec<_> = dirs.iter().map(|dir| held(dir)).collect();
            (all[0].is_some() && all.iter().all(|held| *held == all[0])).then_some(())
        });
        self.keep(&place);
        let logs = self.nodes.iter().map(|n| place.join(n).join("agent.log"));
        let panics: usize = logs
            .map(|log| std::fs::read_to_string(log).unwrap_or_default().matches("panicked").count())
            .sum();
        let status = lab.status();
        let running = status["nodes"].as_array().map_or(0, |nodes| {
            nodes.iter().filter(|n| n["state"] == "running" && n["agent"] == "running").count()
        });
        let first_of_last = calls.len();
        calls.extend(last.iter().flatten().cloned());
        let lines: Vec<String> = calls.iter().map(record::line).collect();
        self.write("history.jsonl", &lines.join("\n"));
        let obeyed: Vec<String> = given.iter().map(Order::to_string).collect();
        self.write("obeyed.txt", &obeyed.join("\n"));
        Seen {
            leaders: leaders(&dirs),
            agrees: agreed.is_some() && last.is_some() && same.is_some(),
            panics,
            running,
            unavailable: history.unavailable(),
            verdict: check(&calls, Start::Empty, TRIES_MAX),
            calls,
            first_of_last,
            given,
            healed,
        }
    }

    /// A lab in the foreground: it ends with us.
    fn up(&self) -> Lab {
        let mut lab = Lab::new(users().first().copied().flatten());
        lab.write(&self.topology());
        let owner = lab.command(&["up", "lab.toml"]);
        lab.owner = Some({ owner }.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_until("the lab is up", || {
            let output = lab.run(&["status", "--format", "json"]);
            output.status.success() && said(&output).contains("\"up\": true")
        });
        lab
    }

    /// Gives each order when its time has come; when each was obeyed.
    fn give(&self, lab: &Lab, history: &History) -> Vec<Order> {
        let begun = Instant::now();
        let begun_in_history = Duration::from_nanos(history.now());
        let mut given = Vec::new();
        for order in &self.orders {
            #[expect(clippy::disallowed_methods, reason = "the plan says when")]
            std::thread::sleep((begun + order.at).saturating_duration_since(Instant::now()));
            let words: Vec<&str> = order.words.iter().map(String::as_str).collect();
            lab.good(&words);
            given.push(Order { at: begun_in_history + begun.elapsed(), ..order.clone() });
        }
        given
    }

    /// What each agent has logged and noted, beyond the lab's life.
    fn keep(&self, place: &Path) {
        for node in &self.nodes {
            let to = self.dir.join(node);
            std::fs::create_dir_all(&to).expect("the directory can be made");
            let journal = journal(&place.join(node).join("data"));
            std::fs::write(to.join("journal.jsonl"), journal).expect("it can be written");
            std::fs::copy(place.join(node).join("agent.log"), to.join("agent.log")).ok();
        }
    }
}

/// The first answer; `None` if there is none within [`LIMIT`].
fn soon<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + LIMIT;
    loop {
        let found = look();
        if found.is_some() || until <= Instant::now() {
            return found;
        }
        #[expect(clippy::disallowed_methods, reason = "between two looks at a condition")]
        std::thread::sleep(POLL);
    }
}

/// Everything that a journal holds, rotated parts too.
fn journal(data: &Path) -> String {
    let files = std::fs::read_dir(data.join("journal")).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = files.map(|file| file.path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap_or_default()).collect()
}

/// Whether all nodes take part and name the same leader.
fn led(dirs: &[PathBuf]) -> bool {
    let named: Option<BTreeSet<String>> = dirs
        .iter()
        .map(|dir| {
            let agreement = agreement(dir)?;
            (agreement["phase"] == "running").then_some(())?;
            agreement["leader"].as_str().map(str::to_owned)
        })
        .collect();
    named.is_some_and(|named| named.len() == 1)
}

fn agreement(dir: &Path) -> Option<Value> {
    let mut stream = UnixStream::connect(dir.join("admin.sock")).ok()?;
    stream.set_read_timeout(Some(STATUS_MAX)).ok()?;
    stream
        .write_all(b"GET /v1/status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let status: Value = serde_json::from_str(body).ok()?;
    Some(status["agreement"].clone())
}

/// How many leaders there have been, and on how many nodes.
fn leaders(dirs: &[PathBuf]) -> (usize, usize) {
    let journals: String = dirs.iter().map(|dir| journal(dir)).collect();
    let events = journals.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let elected: BTreeMap<u64, String> = events
        .filter(|event| event["event"] == "leader_elected")
        .filter_map(|e| Some((e["term"].as_u64()?, e["leader"].as_str()?.to_owned())))
        .collect();
    let nodes: BTreeSet<&String> = elected.values().collect();
    (elected.len(), nodes.len())
}

/// What has happened.
struct Seen {
    calls: Vec<Call>,
    /// From here on they are the reads at the end.
    first_of_last: usize,
    unavailable: u64,
    /// When each order was obeyed, on the clients' clock.
    given: Vec<Order>,
    healed: u64,
    leaders: (usize, usize),
    agrees: bool,
    panics: usize,
    /// Nodes whose agent runs at the end.
    running: usize,
    verdict: Verdict,
}

fn is_write(call: &Call) -> bool {
    match &call.operation {
        Operation::Put { .. } | Operation::Delete | Operation::Cas { done: true, .. } => true,
        Operation::Get { .. } | Operation::Cas { done: false, .. } => false,
    }
}

fn seconds(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64()
}

/// Seconds, to the millisecond.
fn milli(nanos: u64) -> f64 {
    (seconds(nanos) * 1e3).round() / 1e3
}

impl Seen {
    /// The longest time in which no write was acknowledged to anybody: from, until.
    fn gap(&self) -> (u64, u64) {
        let writes = self.calls.iter().filter(|call| is_write(call));
        let mut ends: Vec<u64> = writes.filter_map(|call| call.returned).collect();
        ends.push(self.healed);
        ends.sort_unstable();
        let mut gaps: Vec<(u64, u64)> =
            std::iter::once(0).chain(ends.iter().copied()).zip(ends.iter().copied()).collect();
        gaps.sort_by_key(|(from, until)| until - from);
        gaps.last().copied().unwrap_or_default()
    }

    /// The same while a majority of the nodes could agree.
    fn good_gap(&self, nodes: &[String]) -> u64 {
        let writes = self.calls.iter().filter(|call| is_write(call));
        let mut ends: Vec<u64> = writes.filter_map(|call| call.returned).collect();
        ends.sort_unstable();
        let longest = |(from, until): (Duration, Duration)| {
            let [from, until] =
                [from, until].map(|at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
            let within = ends.iter().copied().filter(|end| (from..until).contains(end));
            let ends: Vec<u64> = std::iter::once(from).chain(within).chain([until]).collect();
            ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
        };
        let end = Duration::from_nanos(self.healed);
        let times = plan::good_times(&self.given, nodes, end);
        times.into_iter().map(longest).max().unwrap_or_default()
    }

    fn verdict(&self) -> String {
        match &self.verdict {
            Verdict::Linearizable => "linearizable".to_owned(),
            Verdict::Violated(violation) => violation.to_string(),
            Verdict::Undecided { key } => {
                format!("undecided: too many open calls on {}", String::from_utf8_lossy(key))
            }
        }
    }

    fn report(&self, storm: &Storm) -> Value {
        let mut faults = BTreeMap::<&str, u64>::new();
        for kind in self.given.iter().filter_map(Order::fault) {
            *faults.entry(kind).or_default() += 1;
        }
        let answered = |call: &&Call| call.returned.is_some();
        let acknowledged = self.calls.iter().filter(|c| is_write(c)).filter(answered);
        let mut took: Vec<u64> =
            acknowledged.filter_map(|call| Some(call.returned? - call.invoked)).collect();
        took.sort_unstable();
        let part = |of_a_thousand: usize| {
            let at = took.len() * of_a_thousand / 1000;
            took.get(at).map(|&nanos| (seconds(nanos) * 1e4).round() / 10.0)
        };
        let (from, until) = self.gap();
        let cause = Duration::from_nanos(from).saturating_sub(CAUSE)..Duration::from_nanos(until);
        let during: Vec<String> =
            self.given.iter().filter(|o| cause.contains(&o.at)).map(Order::to_string).collect();
        let keys: BTreeSet<&[u8]> = self.calls.iter().map(|call| &*call.key).collect();
        json!({
            "v": 1,
            "build": if cfg!(debug_assertions) { "debug" } else { "release" },
            "engine": format!("{:?}", storm.engine).to_lowercase(),
            "seed": storm.seed,
            "nodes": storm.nodes.len(),
            "reads": if storm.fresh { "fresh" } else { "local" },
            "seconds": milli(self.healed),
            "calls": self.calls.len(),
            "keys": keys.len(),
            "reads_at_the_end": self.calls.len() - self.first_of_last,
            "acknowledged_writes": took.len(),
            "unknown": self.calls.iter().filter(|call| call.returned.is_none()).count(),
            "nothing_done": self.unavailable,
            "faults": faults,
            "write_ms": { "p50": part(500), "p99": part(990), "p999": part(999) },
            "longest_without_a_write_with_a_majority_seconds": milli(self.good_gap(&storm.nodes)),
            "longest_without_a_write_seconds": milli(until - from),
            "longest_without_a_write_from": milli(from),
            "longest_without_a_write_during": during,
            "terms_with_a_leader": self.leaders.0,
            "nodes_that_led": self.leaders.1,
            "agents_running_at_the_end": self.running,
            "panics": self.panics,
            "all_agree_at_the_end": self.agrees,
            "verdict": self.verdict(),
        })
    }

    /// Histories in which something is wrong for certain: an acknowledged write is gone, at the end or from the middle, or
    /// a read is stale. Only the calls of one key are in each.
    fn doctored(&self) -> Vec<(&'static str, Vec<Call>)> {
        let (during, last) = self.calls.split_at(self.first_of_last);
        let mut made = Vec::new();
        let puts = || {
            during.iter().filter_map(|call| match &call.operation {
                Operation::Put { value } => Some((call, value, call.returned?)),
                Operation::Get { .. } | Operation::Delete | Operation::Cas { .. } => None,
            })
        };
        let is_seen = |call: &Call, value: &Vec<u8>| {
            let seen = Operation::Get { seen: Some(value.clone()) };
            during.iter().any(|c| c.key == call.key && c.operation == seen && c.returned.is_some())
        };
        let of =
            |key: &[u8]| self.calls.iter().filter(|c| c.key == key).cloned().collect::<Vec<_>>();
        if let Some((put, ..)) = puts().find(|(put, value, _)| is_seen(put, value)) {
            let mut calls = of(&put.key);
            calls.retain(|call| call != put);
            made.push(("an acknowledged write that was seen is taken out", calls));
        }
        // Written and then written over for certain, before anybody read at the end.
        let old = puts().find(|(put, _, end)| {
            puts().any(|(next, ..)| next.key == put.key && next.invoked > *end)
        });
        if let Some((put, value, _)) = old {
            let stale = |call: &mut Call| {
                call.operation = Operation::Get { seen: Some(value.clone()) };
            };
            let is_last = |call: &Call| last.contains(call);
            let mut calls = of(&put.key);
            calls.iter_mut().filter(|call| is_last(call)).for_each(stale);
            made.push(("all reads at the end show what was written over", calls));
            let mut calls = of(&put.key);
            calls.iter_mut().rev().find(|call| is_last(call)).map(stale);
            made.push(("one read at the end is stale", calls));
        }
        made
    }
}

/// A report for people.
fn show(report: &Value) -> String {
    let list = |name: &str| {
        let entries = report[name].as_object().expect("it is one").iter();
        entries.map(|(word, value)| format!("{word} {value}")).collect::<Vec<_>>().join(", ")
    };
    let during = report["longest_without_a_write_during"].as_array().expect("it is one").iter();
    let during: Vec<&str> = during.filter_map(Value::as_str).collect();
    let word = |name: &str| report[name].as_str().unwrap_or_default();
    let number = |name: &str| report[name].as_f64().unwrap_or_default();
    let (seed, nodes) = (&report["seed"], &report["nodes"]);
    format!(
        "storm     seed {seed}, {nodes} nodes, {:.0} s, {} engine, {} reads, {} build\n\
         faults    {}\n\
         calls     {} on {} keys: {} writes acknowledged, {} unknown, {} of which nothing was done\n\
         writes    in ms: {}; longest without one: {:.2} s while a majority could agree,\n          \
         {:.2} s at all, from {:.2} s on: [{}]\n\
         leaders   {} terms, {} nodes\n\
         end       {} agents run, {} panics, all agree: {}, {} reads\n\
         verdict   {}\n",
        number("seconds"),
        word("engine"),
        word("reads"),
        word("build"),
        list("faults"),
        report["calls"],
        report["keys"],
        report["acknowledged_writes"],
        report["unknown"],
        report["nothing_done"],
        list("write_ms"),
        number("longest_without_a_write_with_a_majority_seconds"),
        number("longest_without_a_write_seconds"),
        number("longest_without_a_write_from"),
        during.join("; "),
        report["terms_with_a_leader"],
        report["nodes_that_led"],
        report["agents_running_at_the_end"],
        report["panics"],
        report["all_agree_at_the_end"],
        report["reads_at_the_end"],
        word("verdict"),
    )
}

#[test]
fn one_order_explains_what_clients_saw_while_machines_died_and_the_network_broke() {
    if users().is_empty() {
        return;
    }
    let storm = Storm::asked();
    println!("plan, history and report: {}", storm.dir.display());
    let seen = storm.run();
    let report = seen.report(&storm);
    storm.write("report.json", &format!("{report:#}\n"));
    println!("{}", show(&report));
    // What is written is what was judged.
    let written = std::fs::read_to_string(storm.dir.join("history.jsonl")).unwrap();
    let read: Option<Vec<Call>> = written.lines().map(record::parse).collect();
    assert!(read.is_some_and(|read| read == seen.calls), "the history does not read as it was");
    assert_eq!(seen.verdict(), "linearizable");
    assert!(seen.agrees, "the nodes do not agree again");
    assert_eq!((seen.running, seen.panics), (storm.nodes.len(), 0), "agents that run, and panics");
    assert!(seen.calls.len() > 200, "only {} calls", seen.calls.len());
    let doctored = seen.doctored();
    assert_eq!(doctored.len(), 3, "something to take out");
    for (what, calls) in doctored {
        let verdict = check(&calls, Start::Empty, TRIES_MAX);
        assert!(matches!(verdict, Verdict::Violated(_)), "{what}: {verdict:?}");
    }
    if std::env::var_os("OUTLAST_HISTORY_DIR").is_none() {
        std::fs::remove_dir_all(&storm.dir).ok();
    }
}

/// The check can fail: nodes are asked for what they have, which is old while news is on its way.
#[test]
fn reads_that_are_not_fresh_are_found_to_be_stale() {
    if users().is_empty() {
        return;
    }
    let mut storm = Storm::new("stale", 3, 3, Duration::from_secs(6));
    storm.fresh = false;
    let seen = storm.run();
    assert!(matches!(seen.verdict, Verdict::Violated(_)), "{}", seen.verdict());
    std::fs::remove_dir_all(&storm.dir).ok();
}

/// A history that was written down, perhaps changed by hand since.
#[test]
#[ignore = "judges the file that OUTLAST_HISTORY_FILE names"]
fn one_order_explains_a_history_that_was_written_down() {
    let file = std::env::var("OUTLAST_HISTORY_FILE").expect("OUTLAST_HISTORY_FILE names a history");
    let text = std::fs::read_to_string(&file).expect("it can be read");
    let calls: Option<Vec<Call>> = text.lines().map(record::parse).collect();
    let calls = calls.expect("each line is a call");
    match check(&calls, Start::Empty, TRIES_MAX) {
        Verdict::Linearizable => println!("{} calls: linearizable", calls.len()),
        Verdict::Violated(violation) => panic!("{violation}"),
        Verdict::Undecided { key } => panic!("undecided: {}", String::from_utf8_lossy(&key)),
    }
}
