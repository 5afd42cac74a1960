//! Engines in one process against real etcd servers.

mod servers;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast_consensus::{Agreement as _, Index, Machine, Members, NodeId, ProposeError, Standing};
use outlast_core::codec::{Code as _, Malformed};
use outlast_etcd::{Endpoint, Etcd, Roll, Settings, Tls};
use servers::{ServerTls, Servers};

/// Everything that is waited for comes within this time, on the slowest machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Bytes of the log after which a snapshot is saved.
const LOG_BYTES: u64 = 3 << 19;

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {LIMIT:?}");
        #[expect(clippy::disallowed_methods, reason = "between two looks at a condition")]
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Keeps all entries, and whether it leads.
#[derive(Clone, Debug, Default)]
struct Kept {
    entries: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Indices that did not follow the one before.
    gaps: Arc<Mutex<Vec<Index>>>,
    leads: Arc<AtomicBool>,
    restored: Arc<AtomicBool>,
}

impl Kept {
    fn all(&self) -> Vec<Vec<u8>> {
        self.entries.lock().expect("it holds, or the test fails here").clone()
    }
}

impl Machine for Kept {
    fn apply(&mut self, index: Index, command: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut entries = self.entries.lock().expect("it holds, or the test fails here");
        entries.push(command.to_vec());
        // The first state has one entry.
        if entries.len() as u64 != index {
            self.gaps.lock().expect("it holds, or the test fails here").push(index);
        }
        Ok(index.to_bytes())
    }

    fn reached(&mut self, _index: Index) {}

    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let all = self.all();
        Box::new(move || {
            let mut to = Vec::new();
            outlast_core::codec::encode_list(all.iter(), &mut to);
            to
        })
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let mut from = outlast_core::codec::Reader::new(bytes);
        *self.entries.lock().expect("it holds, or the test fails here") =
            outlast_core::codec::decode_list(&mut from)?;
        self.restored.store(true, Ordering::Release);
        from.end()
    }

    fn leads(&mut self, leads: bool) {
        self.leads.store(leads, Ordering::Release);
    }
}

struct Node {
    etcd: Etcd,
    kept: Kept,
    data_dir: PathBuf,
}

impl Node {
    fn start(servers: &Servers, cluster: &str, id: u64, snapshot_after: u64) -> Node {
        Node::start_with(servers, cluster, id, snapshot_after, None)
    }

    fn start_with(
        servers: &Servers,
        cluster: &str,
        id: u64,
        snapshot_after: u64,
        tls: Option<Tls>,
    ) -> Node {
        Node::start_at(servers, &endpoints(servers), cluster, id, snapshot_after, tls)
    }

    fn start_at(
        servers: &Servers,
        endpoints: &[Endpoint],
        cluster: &str,
        id: u64,
        snapshot_after: u64,
        tls: Option<Tls>,
    ) -> Node {
        let data_dir = servers.dir.join(format!("{cluster}-{id}"));
        std::fs::create_dir_all(&data_dir).expect("it holds, or the test fails here");
        let kept = Kept::default();
        let mut first = Vec::new();
        outlast_core::codec::encode_list([b"first".to_vec()].iter(), &mut first);
        let settings = Settings {
            cluster: cluster.to_owned(),
            endpoints: endpoints.to_vec(),
            tls,
            data_dir: data_dir.clone(),
            begin: (1, first),
            roll: Box::new(move || Roll {
                own: Some(NodeId(id)),
                members: Members::voters([1, 2, 3]),
            }),
            snapshot_after,
            snapshot_after_bytes: LOG_BYTES,
        };
        Node {
            etcd: Etcd::start(settings, kept.clone()).expect("it holds, or the test fails here"),
            kept,
            data_dir,
        }
    }

    fn standing(&self) -> Standing {
        self.etcd.standing().borrow().clone()
    }

    fn propose(&self, command: &str) -> Result<Index, ProposeError> {
        let done = block_on(self.etcd.propose(command.as_bytes().to_vec()))?;
        // What the machine said is what is told here.
        Ok(Index::from_bytes(&done.reply).unwrap_or_default().min(done.index))
    }

    /// Until it works.
    fn agree(&self, command: &str) -> Index {
        let mut index = None;
        wait_until("something is agreed on", || {
            index = self.propose(command).ok();
            assert_eq!(self.standing().failed, None);
            index.is_some()
        });
        index.expect("it holds, or the test fails here")
    }

    fn read(&self) -> Vec<Vec<u8>> {
        wait_until("a read", || block_on(self.etcd.read()).is_ok());
        self.kept.all()
    }
}

fn endpoints(servers: &Servers) -> Vec<Endpoint> {
    servers
        .endpoints()
        .iter()
        .map(|url| Endpoint::parse(url).expect("it holds, or the test fails here"))
        .collect()
}

fn block_on<T>(answering: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("it holds, or the test fails here")
        .block_on(answering)
}

fn three(servers: &Servers, cluster: &str, snapshot_after: u64) -> Vec<Node> {
    (1..=3).map(|id| Node::start(servers, cluster, id, snapshot_after)).collect()
}

fn leader(nodes: &[Node]) -> u64 {
    let mut leader = 0;
    wait_until("a leader that all name", || {
        let named: Vec<_> = nodes.iter().map(|node| node.standing().leader).collect();
        let acts = nodes.iter().filter(|node| node.etcd.may_act()).count();
        leader = named[0].map_or(0, |leader| leader.0);
        leader != 0 && named.iter().all(|name| *name == named[0]) && acts == 1
    });
    leader
}

#[test]
fn all_nodes_have_one_log_whoever_appends() {
    let servers = Servers::start("order", 1, None);
    let nodes = three(&servers, "order", u64::MAX);
    std::thread::scope(|scope| {
        for at in 0..nodes.len() {
            for client in 0..4 {
                let nodes = &nodes;
                scope.spawn(move || {
                    for turn in 0..20 {
                        let command = format!("{client} {turn} at {at}");
                        wait_until("it is agreed on", || match nodes[at].propose(&command) {
                            Ok(_) => true,
                            // Others win here: the leader is asked to append it.
                            Err(ProposeError::Busy) => {
                                let leader = nodes.iter().find(|node| node.etcd.may_act());
                                leader.is_some_and(|leader| leader.propose(&command).is_ok())
                            }
                            Err(_) => false,
                        });
                    }
                });
            }
        }
    });
    let all = nodes[0].read();
    // What was repeated may be there more than once; nothing is left out.
    assert!(all.len() > 240, "{}", all.len());
    for node in &nodes {
        assert_eq!(node.read(), all);
        assert!(node.kept.gaps.lock().unwrap().is_empty());
    }
    leader(&nodes);
}

#[test]
fn a_snapshot_takes_the_place_of_the_log_and_a_new_node_begins_with_it() {
    let servers = Servers::start("snapshot", 1, None);
    let nodes = three(&servers, "snapshot", 40);
    leader(&nodes);
    // More than one part.
    let long = "x".repeat(30 << 10);
    for turn in 0..60 {
        nodes[turn % 3].agree(&format!("{turn} {long}"));
    }
    wait_until("a snapshot", || nodes.iter().all(|node| node.standing().snapshot >= 40));
    let late = Node::start(&servers, "snapshot", 4, u64::MAX);
    assert!(late.read() == nodes[0].read(), "the new node has something else");
    assert!(late.kept.restored.load(Ordering::Acquire));
    // And it goes on from there.
    nodes[1].agree("last");
    assert_eq!(late.read().last().unwrap(), b"last");
    assert!(late.kept.gaps.lock().unwrap().is_empty());
}

#[test]
fn a_log_of_many_bytes_gives_way_to_snapshots_one_after_the_other() {
    let servers = Servers::start("bytes", 1, None);
    let nodes = three(&servers, "bytes", u64::MAX);
    let one = &nodes[usize::try_from(leader(&nodes) - 1).unwrap()];
    let long = "x".repeat(60 << 10);
    let mut snapshot = 1;
    for turn in 0..3 {
        for at in 0..30 {
            one.agree(&format!("{turn} {at} {long}"));
        }
        wait_until("a snapshot", || nodes.iter().all(|node| node.standing().snapshot > snapshot));
        snapshot = nodes[0].standing().snapshot;
    }
    let late = Node::start(&servers, "bytes", 4, u64::MAX);
    assert!(late.read() == nodes[0].read(), "the new node has something else");
    assert!(late.kept.restored.load(Ordering::Acquire));
    assert!(late.kept.gaps.lock().unwrap().is_empty());
}

#[test]
fn without_a_majority_of_etcd_nothing_is_agreed_on_and_then_all_goes_on() {
    let mut servers = Servers::start("majority", 3, None);
    let nodes = three(&servers, "majority", u64::MAX);
    leader(&nodes);
    nodes[0].agree("before");
    servers.kill(0);
    nodes[1].agree("one is gone");
    servers.kill(1);
    for node in &nodes {
        wait_until("nobody leads", || {
            let now = node.standing();
            now.leader.is_none() && now.trouble.is_some() && !node.etcd.may_act()
        });
        assert!(node.propose("meanwhile").is_err());
        assert!(block_on(node.etcd.read()).is_err());
        assert!(node.standing().quorum_age.unwrap() > Duration::from_secs(1));
    }
    servers.run(0);
    leader(&nodes);
    let after = nodes[2].agree("after");
    assert!(nodes[0].read().len() as u64 >= after);
}

#[test]
fn the_lead_goes_on_when_its_holder_ends_and_can_be_handed_over() {
    let servers = Servers::start("lead", 1, None);
    let mut nodes = three(&servers, "lead", u64::MAX);
    let first = leader(&nodes);
    let at =
        |nodes: &[Node], id: u64| nodes.iter().position(|node| node.standing().id.0 == id).unwrap();
    let next = first % 3 + 1;
    let refused = block_on(nodes[at(&nodes, next)].etcd.transfer(NodeId(first)));
    assert!(refused.is_err(), "only who leads can hand the lead over");
    wait_until("it is handed over", || {
        block_on(nodes[at(&nodes, first)].etcd.transfer(NodeId(next))).is_ok()
    });
    assert_eq!(leader(&nodes), next);
    let term = nodes[0].standing().term;
    let as_leader = |id: u64, term| {
        block_on(nodes[at(&nodes, id)].etcd.propose_as_leader(term, b"decided".to_vec()))
    };
    assert!(as_leader(next, term).is_ok());
    for (id, term) in [(next, term - 1), (first, term), (first, term - 1)] {
        assert_eq!(as_leader(id, term).unwrap_err(), ProposeError::NotLeader(Some(NodeId(next))));
    }
    let gone = nodes.remove(at(&nodes, next));
    assert!(gone.kept.leads.load(Ordering::Acquire));
    let begun = Instant::now();
    drop(gone);
    let now = leader(&nodes);
    assert!(now != next && nodes[0].standing().term > term);
    println!("{:?} without a leader", begun.elapsed());
}

#[test]
fn clusters_of_two_names_in_one_etcd_do_not_mix() {
    let servers = Servers::start("names", 1, None);
    // The one whose keys come later is there first.
    let other = Node::start(&servers, "other", 1, u64::MAX);
    other.agree("of the other");
    let one = Node::start(&servers, "one", 1, u64::MAX);
    one.agree("of one");
    assert_eq!(one.read(), [b"first".to_vec(), b"of one".to_vec()]);
    assert_eq!(other.read(), [b"first".to_vec(), b"of the other".to_vec()]);
}

fn failed(node: &Node) -> String {
    let mut why = None;
    wait_until("it fails", || {
        why = node.standing().failed;
        why.is_some()
    });
    why.expect("it holds, or the test fails here")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("it holds, or the test fails here");
    for entry in std::fs::read_dir(from).expect("it holds, or the test fails here").flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("it holds, or the test fails here");
        }
    }
}

#[test]
fn an_etcd_that_has_forgotten_is_refused_while_running_and_after_a_restart() {
    let mut servers = Servers::start("forgets", 1, None);
    let home = servers.dir.join("m0");
    let node = Node::start(&servers, "forgets", 1, u64::MAX);
    node.agree("one");
    servers.kill(0);
    let kept = servers.dir.join("copy");
    copy(&home, &kept);
    servers.run(0);
    node.agree("two");
    // As from a copy that was made before.
    servers.kill(0);
    std::fs::remove_dir_all(&home).unwrap();
    copy(&kept, &home);
    servers.run(0);
    let why = failed(&node);
    assert!(why.contains("another log") && why.contains("etcd.json"), "{why}");
    assert_eq!(node.propose("three"), Err(ProposeError::Stopped));
    drop(node);
    // With nothing at all.
    servers.kill(0);
    std::fs::remove_dir_all(&home).unwrap();
    servers.run(0);
    let again = Node::start(&servers, "forgets", 1, u64::MAX);
    let why = failed(&again);
    assert!(why.contains("has nothing of what was agreed on"), "{why}");
    // Unless that is meant.
    std::fs::remove_file(again.data_dir.join("etcd.json")).unwrap();
    drop(again);
    let anew = Node::start(&servers, "forgets", 1, u64::MAX);
    assert_eq!(anew.agree("one"), 2);
}

#[test]
fn a_log_that_went_another_way_and_further_is_refused_after_a_restart() {
    let mut servers = Servers::start("fork", 1, None);
    let home = servers.dir.join("m0");
    let node = Node::start(&servers, "fork", 1, u64::MAX);
    node.agree("one");
    servers.kill(0);
    let kept = servers.dir.join("copy");
    copy(&home, &kept);
    servers.run(0);
    node.agree("two");
    // It remembers that as it ends.
    drop(node);
    servers.kill(0);
    std::fs::remove_dir_all(&home).unwrap();
    copy(&kept, &home);
    servers.run(0);
    let other = Node::start(&servers, "fork", 2, u64::MAX);
    for command in ["another two", "three", "four"] {
        other.agree(command);
    }
    let again = Node::start(&servers, "fork", 1, u64::MAX);
    let why = failed(&again);
    assert!(why.contains("another log"), "{why}");
    // Who ends in good order and finds its own log goes on.
    drop(other);
    let other = Node::start(&servers, "fork", 2, u64::MAX);
    assert_eq!(other.agree("five"), 6);
}

#[test]
fn with_tls_both_sides_show_certificates() {
    let dir = std::env::temp_dir().join(format!("outlast-etcd-pem-{}", std::process::id()));
    let ServerTls { ca, cert, key } = ServerTls::make(&dir);
    let tls = ServerTls { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
    let servers = Servers::start("tls", 1, Some(&tls));
    let own = Some((cert, key));
    let good = Node::start_with(&servers, "tls", 1, u64::MAX, Some(Tls { ca: ca.clone(), own }));
    good.agree("one");
    let bare = Node::start_with(&servers, "tls", 2, u64::MAX, Some(Tls { ca, own: None }));
    wait_until("it is refused", || bare.standing().trouble.is_some());
    assert!(bare.propose("two").is_err());
    assert_eq!(good.read().len(), 2);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_disk_that_hangs_keeps_a_node_from_acting_and_not_from_ending() {
    let servers = Servers::start("hangs", 1, None);
    // Nobody reads from it, so that whoever opens it to write waits for ever.
    let data_dir = servers.dir.join("hangs-1");
    std::fs::create_dir_all(&data_dir).unwrap();
    let made = std::process::Command::new("mkfifo").arg(data_dir.join("etcd.new")).status();
    assert!(made.unwrap().success());
    let node = Node::start(&servers, "hangs", 1, u64::MAX);
    wait_until("it has seen what there is", || node.standing().serves);
    assert!(node.propose("one").is_err() && !node.etcd.may_act());
    let begun = Instant::now();
    drop(node);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn a_machine_that_hangs_and_a_full_inbox_do_not_keep_a_node_from_ending() {
    let servers = Servers::start("stuck", 1, None);
    let node = Node::start(&servers, "stuck", 1, u64::MAX);
    node.agree("one");
    let entries = node.kept.entries.clone();
    let held = entries.lock().unwrap();
    let filled = (0..).any(|_| {
        // Answered at once only if it could not be taken in.
        let mut answering = node.etcd.propose(b"two".to_vec());
        let polled =
            answering.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        std::mem::forget(answering);
        matches!(polled, std::task::Poll::Ready(Err(ProposeError::Busy)))
    });
    assert!(filled);
    let begun = Instant::now();
    drop(node);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    drop(held);
}

/// Between nodes and one member; cuts every connection when it is told, whatever is under way, or falls silent.
struct Relay {
    port: u16,
    silent: Arc<AtomicBool>,
    cut: tokio::sync::watch::Sender<u64>,
    _runtime: tokio::runtime::Runtime,
}

impl Relay {
    fn start(to: u16) -> Relay {
        let good = "a relay can be started";
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().expect(good);
        let (cut, cuts) = tokio::sync::watch::channel(0);
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0)));
        let listener = listener.expect(good);
        let port = listener.local_addr().expect(good).port();
        let silent = Arc::new(AtomicBool::new(false));
        let falls = silent.clone();
        runtime.spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let falls = falls.clone();
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut far) = tokio::net::TcpStream::connect(("127.0.0.1", to)).await
                    else {
                        return;
                    };
                    let silence = async {
                        while !falls.load(Ordering::Acquire) {
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                        // Both sides stay open, and nothing passes any more.
                        () = silence => std::future::pending().await,
                    }
                });
            }
        });
        Relay { port, silent, cut, _runtime: runtime }
    }
}

#[test]
fn with_connections_cut_all_the_time_each_answer_is_true() {
    let servers = Servers::start("cut", 1, None);
    let relay = Relay::start(servers.ports[0]);
    let through = [Endpoint::parse(&format!("http://127.0.0.1:{}", relay.port)).unwrap()];
    let nodes: Vec<Node> =
        (1..=2).map(|id| Node::start_at(&servers, &through, "cut", id, u64::MAX, None)).collect();
    nodes[0].agree("begun");
    let over = AtomicBool::new(false);
    let mut told: Vec<(String, Result<Index, ProposeError>)> = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                #[expect(clippy::disallowed_methods, reason = "between one cut and the next")]
                std::thread::sleep(Duration::from_millis(40));
                relay.cut.send_modify(|cuts| *cuts += 1);
            }
        });
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let node = &nodes[client % 2];
                scope.spawn(move || {
                    let turns = (0..15).map(|turn| format!("{client} {turn}"));
                    turns.map(|name| (name.clone(), node.propose(&name))).collect::<Vec<_>>()
                })
            })
            .collect();
        for client in clients {
            told.extend(client.join().unwrap());
        }
        over.store(true, Ordering::Release);
    });
    let all = nodes[1].read();
    assert_eq!(nodes[0].read(), all);
    for (name, result) in &told {
        let found: Vec<_> =
            (1..).zip(&all).filter(|(_, entry)| **entry == *name.as_bytes()).collect();
        match result {
            Ok(index) => assert!(found.len() == 1 && found[0].0 == *index, "{name}: {found:?}"),
            Err(ProposeError::Unknown) => assert!(found.len() <= 1, "{name}: {found:?}"),
            Err(_) => assert!(found.is_empty(), "{name} did not happen, it was said: {found:?}"),
        }
    }
    let done = told.iter().filter(|(_, result)| result.is_ok()).count();
    println!("{done} of {} done", told.len());
    assert!(done > 5, "{done}");
}

#[test]
fn a_leader_outlives_a_member_of_etcd_that_dies_without_a_word() {
    let servers = Servers::start("silent", 1, None);
    let relays = [Relay::start(servers.ports[0]), Relay::start(servers.ports[0])];
    let at = |relay: &Relay| Endpoint::parse(&format!("http://127.0.0.1:{}", relay.port)).unwrap();
    let both = [at(&relays[0]), at(&relays[1])];
    let node = Node::start_at(&servers, &both, "silent", 1, u64::MAX, None);
    node.agree("before");
    wait_until("it leads", || node.etcd.may_act());
    let term = node.standing().term;
    // It speaks to one of the two. A machine that is slow for once proves nothing.
    let outlived = (0..4)
        .any(|_| relays.each_ref().map(|relay| acts_while_silent(&node, relay)) == [true, true]);
    assert!(outlived);
    assert_eq!(node.standing().term, term);
}

fn acts_while_silent(node: &Node, relay: &Relay) -> bool {
    let begun = Instant::now();
    wait_until("it has renewed its lease", || {
        Duration::from_secs(1) < begun.elapsed() && node.etcd.may_act()
    });
    relay.silent.store(true, Ordering::Release);
    let mut acts = true;
    std::thread::scope(|scope| {
        let agreed = scope.spawn(|| node.agree("meanwhile"));
        wait_until("it is agreed on", || {
            acts &= node.etcd.may_act();
            agreed.is_finished()
        });
    });
    relay.silent.store(false, Ordering::Release);
    acts
}
