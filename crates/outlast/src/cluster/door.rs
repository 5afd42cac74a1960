//! The cluster's socket for this machine: `agreed.sock` in the data directory.
//!
//! A length (four bytes, big-endian), then a question or an answer in the form of `outlast_core::codec`. Questions of one
//! connection are answered in their order; a connection is one client, so that each of its commands takes effect once
//! however often the leader changes meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use outlast_core::agreed::{
    Change, Command, Database, Fact, Item, Node, Notice, PAGE_KEYS_MAX, Reply, Watched,
};
use outlast_core::codec::{Code, Malformed, Reader, decode_list, encode_list};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::agree::{Client, Failure, is_own};
use super::ask::version;
use super::thread::Hub;
use super::topology::TopologyState;
use crate::agent::admin::{no_agent, socket_path};

/// Bytes of one question or answer.
const MESSAGE_MAX: usize = 4 << 20;

/// Connections at the same time.
const CLIENTS_MAX: usize = 1024;

/// How long the cluster may take to agree on something, or to say what is newest.
const AGREE_MAX: Duration = Duration::from_secs(10);

/// Changes in one answer to a watcher.
const CHANGES_MAX: usize = 256;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    Write {
        command: Command,
    },
    /// `fresh`: nothing newer is known anywhere; else as this node has it.
    Get {
        key: Vec<u8>,
        fresh: bool,
    },
    List {
        prefix: Vec<u8>,
        after: Option<Vec<u8>>,
        fresh: bool,
    },
    /// All changes below `prefix` from `from` on; zero: from now on. Answers come until the connection ends.
    Watch {
        prefix: Vec<u8>,
        from: u64,
    },
    /// Who belongs to the cluster.
    Nodes {
        fresh: bool,
    },
    /// Hands the lead to this node, if the one that is asked leads.
    Lead {
        node: String,
    },
    /// What is in force, with its text if that is wanted, and what became of the version that is asked about.
    Topology {
        fresh: bool,
        text: bool,
        about: u64,
    },
    /// What is agreed on databases, what people told the cluster, and what has happened.
    Databases {
        fresh: bool,
        /// From this index of the log on.
        history: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Replied {
        index: u64,
        reply: Reply,
    },
    Item {
        item: Option<Item>,
    },
    Page {
        items: Vec<(Vec<u8>, Item)>,
        more: bool,
    },
    Changes {
        changes: Vec<Change>,
        next: u64,
    },
    Nodes {
        nodes: Vec<(u64, Node)>,
    },
    Topology {
        state: TopologyState,
        /// The node that was asked.
        node: String,
    },
    Databases {
        all: BTreeMap<String, Database>,
        notices: BTreeMap<u64, Notice>,
        history: VecDeque<Fact>,
        names: BTreeMap<u64, String>,
    },
    /// Some changes are no longer kept: read anew and watch from here.
    Compacted {
        first: u64,
    },
    Done,
    /// Nothing has happened.
    Unavailable {
        reason: String,
    },
    /// It may have happened, or may happen yet.
    Unknown {
        reason: String,
    },
}

/// Where the socket is.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("agreed.sock")
}

pub(super) fn bind(data_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = path(data_dir);
    // The lock on the directory is ours, so a socket that lies there is a leftover.
    std::fs::remove_file(&path).ok();
    let listener = UnixListener::bind(&path).with_context(|| format!("bind {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .context("protect the cluster's socket")?;
    Ok(listener)
}

/// Never ends while the listener works.
pub(super) async fn listen(hub: Arc<Hub>, listener: UnixListener) {
    let room = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let hub = hub.clone();
                // Ends with its connection, or with the process.
                drop(tokio::task::spawn(async move {
                    // A client that goes early is no fault of ours.
                    serve(&hub, stream).await.ok();
                    drop(place);
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "accept a client of the cluster's socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(hub: &Hub, stream: UnixStream) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut client = None;
    while let Some(bytes) = receive(&mut reader).await? {
        let question = Question::from_bytes(&bytes).map_err(io::Error::other)?;
        let said = match question {
            Question::Write { command } => write(hub, &mut client, command).await,
            Question::Get { key, fresh } => match ready(hub, fresh).await {
                Ok(()) => {
                    let item = hub.replica.read(|agreed| agreed.space().items().get(&key).cloned());
                    Said::Item { item }
                }
                Err(failure) => failed(failure),
            },
            Question::List { prefix, after, fresh } => match ready(hub, fresh).await {
                Ok(()) => list(hub, &prefix, after.as_deref()),
                Err(failure) => failed(failure),
            },
            Question::Watch { prefix, from } => {
                return watch(hub, &mut reader, &mut writer, &prefix, from).await;
            }
            Question::Nodes { fresh } => match ready(hub, fresh).await {
                Ok(()) => {
                    let nodes = hub.replica.read(|agreed| {
                        let nodes = agreed.registry().nodes().iter();
                        nodes.map(|(&id, node)| (id, node.clone())).collect()
                    });
                    Said::Nodes { nodes }
                }
                Err(failure) => failed(failure),
            },
            Question::Lead { node } => lead(hub, &node).await,
            Question::Topology { fresh, text, about } => match ready(hub, fresh).await {
                Ok(()) => {
                    let node = hub.settings.node.clone();
                    Said::Topology { state: hub.topology_state(text, about), node }
                }
                Err(failure) => failed(failure),
            },
            Question::Databases { fresh, history } => match ready(hub, fresh).await {
                Ok(()) => databases(hub, history),
                Err(failure) => failed(failure),
            },
        };
        send(&mut writer, &said).await?;
    }
    Ok(())
}

fn databases(hub: &Hub, history: u64) -> Said {
    hub.replica.read(|agreed| {
        let lines = agreed.history().since(history).cloned().collect::<VecDeque<Fact>>();
        let nodes = agreed.registry().nodes().iter();
        Said::Databases {
            all: agreed.databases().all().clone(),
            notices: agreed.notices().up().clone(),
            history: lines,
            names: nodes.map(|(&id, node)| (id, node.name.clone())).collect(),
        }
    })
}

async fn write(hub: &Hub, client: &mut Option<Client>, command: Command) -> Said {
    if is_own(&command) {
        let reason = "keys below `outlast/` are the cluster's own".to_owned();
        return Said::Unavailable { reason };
    }
    if let Err(refusal) = command.check() {
        return Said::Replied { index: 0, reply: refusal.into() };
    }
    match hub.write(client, command, AGREE_MAX).await {
        Ok((index, reply)) => Said::Replied { index, reply },
        Err(failure) => failed(failure),
    }
}

async fn ready(hub: &Hub, fresh: bool) -> Result<(), Failure> {
    if fresh { hub.catch_up(AGREE_MAX).await.map(drop) } else { Ok(()) }
}

fn list(hub: &Hub, prefix: &[u8], after: Option<&[u8]>) -> Said {
    hub.replica.read(|agreed| {
        let page = agreed.space().items().page(prefix, after, PAGE_KEYS_MAX);
        let items = page.items.iter().map(|&(key, item)| (key.to_vec(), item.clone())).collect();
        Said::Page { items, more: page.more }
    })
}

async fn lead(hub: &Hub, node: &str) -> Said {
    let id = hub.replica.read(|agreed| agreed.registry().id_of(node));
    let (Some(id), Some(consensus)) = (id, hub.consensus()) else {
        return Said::Unavailable { reason: format!("there is no node `{node}` in the cluster") };
    };
    match consensus.transfer(outlast_consensus::NodeId(id)).await {
        Ok(()) => Said::Done,
        Err(refusal) => Said::Unavailable { reason: format!("the lead stays: {refusal:?}") },
    }
}

async fn watch(
    hub: &Hub,
    reader: &mut (impl tokio::io::AsyncRead + Unpin),
    writer: &mut (impl tokio::io::AsyncWrite + Unpin),
    prefix: &[u8],
    from: u64,
) -> io::Result<()> {
    let mut reached = hub.replica.reached.subscribe();
    let mut next = if from == 0 { hub.replica.read(|agreed| agreed.index() + 1) } else { from };
    loop {
        let known = hub.replica.read(|agreed| agreed.changes(next, prefix, CHANGES_MAX));
        match known {
            Watched::Changes { changes, next: after } => {
                let more = !changes.is_empty();
                next = after;
                if more {
                    let changes = changes.into_vec();
                    send(writer, &Said::Changes { changes, next }).await?;
                    continue;
                }
            }
            Watched::Compacted { first } => {
                send(writer, &Said::Compacted { first }).await?;
                next = first;
                continue;
            }
        }
        let mut end = [0];
        tokio::select! {
            changed = reached.changed() => if changed.is_err() { return Ok(()); },
            // Anything from a watcher, its end too, ends the watch.
            _ = reader.read(&mut end) => return Ok(()),
        }
    }
}

fn failed(failure: Failure) -> Said {
    match failure {
        Failure::Unavailable(reason) => Said::Unavailable { reason },
        Failure::Unknown(reason) => Said::Unknown { reason },
    }
}

async fn receive(reader: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    if reader.read_exact(&mut length[..1]).await.is_err() {
        return Ok(None);
    }
    reader.read_exact(&mut length[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if MESSAGE_MAX < length {
        return Err(io::Error::other("a message that is too long"));
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}

async fn send(
    writer: &mut (impl tokio::io::AsyncWrite + Unpin),
    what: &impl Code,
) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    what.encode(&mut bytes);
    let length = u32::try_from(bytes.len() - 4).map_err(io::Error::other)?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    writer.write_all(&bytes).await
}

/// A connection to the cluster's part of the agent on this machine.
#[derive(Debug)]
pub struct Visitor {
    stream: BufReader<UnixStream>,
}

impl Visitor {
    pub async fn connect(data_dir: &Path) -> anyhow::Result<Visitor> {
        let path = path(data_dir);
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(error) => return Err(error).context(nobody(data_dir).await),
        };
        Ok(Visitor { stream: BufReader::new(stream) })
    }

    pub async fn ask(&mut self, question: &Question) -> anyhow::Result<Said> {
        send(&mut self.stream, question).await.context("ask the agent")?;
        self.next().await
    }

    /// The next answer to a watch.
    pub async fn next(&mut self) -> anyhow::Result<Said> {
        let bytes = receive(&mut self.stream).await.context("hear the agent")?;
        let bytes = bytes.context("the agent has closed the connection")?;
        Said::from_bytes(&bytes).context("understand the agent")
    }
}

/// Why the socket may be silent.
async fn nobody(data_dir: &Path) -> String {
    let agent = socket_path(data_dir);
    if UnixStream::connect(&agent).await.is_err() {
        return no_agent(&agent);
    }
    format!(
        "the agent runs, but not its part in the cluster, at {}: it has one where the topology has more than one [node]",
        path(data_dir).display()
    )
}

const VERSION: u8 = 1;

impl Code for Question {
    fn encode(&self, to: &mut Vec<u8>) {
        to.push(VERSION);
        match self {
            Question::Write { command } => {
                to.push(1);
                command.encode(to);
            }
            Question::Get { key, fresh } => {
                to.push(2);
                key.encode(to);
                fresh.encode(to);
            }
            Question::List { prefix, after, fresh } => {
                to.push(3);
                prefix.encode(to);
                after.encode(to);
                fresh.encode(to);
            }
            Question::Watch { prefix, from } => {
                to.push(4);
                prefix.encode(to);
                from.encode(to);
            }
            Question::Lead { node } => {
                to.push(5);
                node.encode(to);
            }
            Question::Nodes { fresh } => {
                to.push(6);
                fresh.encode(to);
            }
            Question::Topology { fresh, text, about } => {
                to.push(7);
                fresh.encode(to);
                text.encode(to);
                about.encode(to);
            }
            Question::Databases { fresh, history } => {
                to.push(8);
                fresh.encode(to);
                history.encode(to);
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Question, Malformed> {
        version(from)?;
        Ok(match from.byte()? {
            1 => Question::Write { command: Code::decode(from)? },
            2 => Question::Get { key: Code::decode(from)?, fresh: Code::decode(from)? },
            3 => Question::List {
                prefix: Code::decode(from)?,
                after: Code::decode(from)?,
                fresh: Code::decode(from)?,
            },
            4 => Question::Watch { prefix: Code::decode(from)?, from: Code::decode(from)? },
            5 => Question::Lead { node: Code::decode(from)? },
            6 => Question::Nodes { fresh: Code::decode(from)? },
            7 => Question::Topology {
                fresh: Code::decode(from)?,
                text: Code::decode(from)?,
                about: Code::decode(from)?,
            },
            8 => Question::Databases { fresh: Code::decode(from)?, history: Code::decode(from)? },
            _ => return Err(Malformed("a question that is not known here")),
        })
    }
}

impl Code for Said {
    fn encode(&self, to: &mut Vec<u8>) {
        to.push(VERSION);
        match self {
            Said::Replied { index, reply } => {
                to.push(1);
                index.encode(to);
                reply.encode(to);
            }
            Said::Item { item } => {
                to.push(2);
                item.encode(to);
            }
            Said::Page { items, more } => {
                to.push(3);
                (items.len() as u64).encode(to);
                for (key, item) in items {
                    key.encode(to);
                    item.encode(to);
                }
                more.encode(to);
            }
            Said::Changes { changes, next } => {
                to.push(4);
                encode_list(changes.iter(), to);
                next.encode(to);
            }
            Said::Compacted { first } => {
                to.push(5);
                first.encode(to);
            }
            Said::Done => to.push(6),
            Said::Unavailable { reason } => {
                to.push(7);
                reason.encode(to);
            }
            Said::Unknown { reason } => {
                to.push(8);
                reason.encode(to);
            }
            Said::Nodes { nodes } => {
                to.push(9);
                (nodes.len() as u64).encode(to);
                for (id, node) in nodes {
                    id.encode(to);
                    node.encode(to);
                }
            }
            Said::Topology { state, node } => {
                to.push(10);
                state.encode(to);
                node.encode(to);
            }
            Said::Databases { all, notices, history, names } => {
                to.push(11);
                all.encode(to);
                notices.encode(to);
                history.encode(to);
                names.encode(to);
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Said, Malformed> {
        version(from)?;
        Ok(match from.byte()? {
            1 => Said::Replied { index: Code::decode(from)?, reply: Code::decode(from)? },
            2 => Said::Item { item: Code::decode(from)? },
            3 => {
                let count = from.count()?;
                let mut items = Vec::new();
                for _ in 0..count {
                    items.push((Code::decode(from)?, Code::decode(from)?));
                }
                Said::Page { items, more: Code::decode(from)? }
            }
            4 => Said::Changes { changes: decode_list(from)?, next: Code::decode(from)? },
            5 => Said::Compacted { first: Code::decode(from)? },
            6 => Said::Done,
            7 => Said::Unavailable { reason: Code::decode(from)? },
            8 => Said::Unknown { reason: Code::decode(from)? },
            9 => {
                let count = from.count()?;
                let mut nodes = Vec::new();
                for _ in 0..count {
                    nodes.push((Code::decode(from)?, Code::decode(from)?));
                }
                Said::Nodes { nodes }
            }
            10 => Said::Topology { state: Code::decode(from)?, node: Code::decode(from)? },
            11 => Said::Databases {
                all: Code::decode(from)?,
                notices: Code::decode(from)?,
                history: Code::decode(from)?,
                names: Code::decode(from)?,
            },
            _ => return Err(Malformed("an answer that is not known here")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_finds_no_agent_is_asked_whether_one_runs() {
        let error = Visitor::connect(Path::new("/nonexistent")).await.unwrap_err();
        let said = format!("{error:#}");
        assert!(said.starts_with("no agent answers at /nonexistent/admin.sock"), "{said}");
        assert!(said.contains("is `outlast run` running with this file"), "{said}");
    }
}
