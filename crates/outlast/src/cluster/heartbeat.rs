//! The key with which the nodes of a pair seal their heartbeats: agreed on once, and kept on each node's disk, so that a
//! node that starts while nothing can be agreed on has it.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outlast_core::agreed::{Command, Expected, KvCommand};
use outlast_core::topology::Topology;

use super::identity::{self, random_hex};
use super::thread::Hub;

/// Random bytes of it.
const KEY_BYTES: usize = 32;

/// Where it stands in what is agreed.
const KEY: &[u8] = b"outlast/heartbeat/key";

/// Between two looks while it is not agreed on, or not known here.
const AGAIN: Duration = Duration::from_millis(200);

/// The key, as text.
#[derive(Clone, PartialEq, Eq)]
pub struct HeartbeatKey(pub(crate) String);

impl std::fmt::Debug for HeartbeatKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeartbeatKey")
    }
}

fn path(data_dir: &Path) -> PathBuf {
    identity::dir(data_dir).join("heartbeat.key")
}

/// What an earlier run has kept.
pub(super) fn kept(data_dir: &Path) -> Option<HeartbeatKey> {
    match std::fs::read_to_string(path(data_dir)) {
        Ok(text) if text.len() == KEY_BYTES * 2 => Some(HeartbeatKey(text)),
        Ok(_) => {
            tracing::warn!("the key for heartbeats on this disk is damaged; it is agreed on anew");
            None
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(%error, "read the key for heartbeats");
            None
        }
    }
}

fn keep(data_dir: &Path, key: &HeartbeatKey) -> std::io::Result<()> {
    let dir = identity::dir(data_dir);
    let beside = dir.join("heartbeat.key.new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(key.0.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path(data_dir))?;
    std::fs::File::open(&dir)?.sync_all()
}

/// Whether an address of this topology needs one.
fn is_wanted(topology: &Topology) -> bool {
    topology.addresses.values().any(|address| address.pair().is_some())
}

impl Hub {
    /// Has the nodes agree on a key if an address needs one, and keeps what was agreed on at hand and on the disk.
    pub(super) async fn share_heartbeat_key(self: Arc<Self>) {
        let mut topology = self.desk.topology.clone();
        if topology.wait_for(|topology| is_wanted(topology)).await.is_err() {
            return std::future::pending().await;
        }
        loop {
            let agreed = self.replica.read(|agreed| {
                let value = agreed.space().items().get(KEY)?.value.to_vec();
                Some(HeartbeatKey(String::from_utf8(value).ok()?))
            });
            match agreed {
                Some(key) => {
                    if self.desk.key.borrow().as_ref() != Some(&key) {
                        self.take_heartbeat_key(key);
                    }
                    // It never changes.
                    return std::future::pending().await;
                }
                None if *self.replica.caught_up.borrow() => self.propose_heartbeat_key().await,
                None => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn take_heartbeat_key(&self, key: HeartbeatKey) {
        if let Err(error) = keep(&self.settings.data_dir, &key) {
            tracing::error!(%error, "keep the key for heartbeats: after a restart this node cannot hear the other one before they have agreed");
        }
        self.desk.key.send_replace(Some(key));
    }

    async fn propose_heartbeat_key(&self) {
        let key = match random_hex::<KEY_BYTES>() {
            Ok(key) => key,
            Err(error) => return tracing::error!(%error, "make a key for heartbeats"),
        };
        let command = KvCommand::Cas {
            key: KEY.to_vec(),
            expected: Expected::Absent,
            value: key.into_bytes(),
            session: None,
        };
        // Another node may have been first.
        if let Err(failure) = self.write_as_node(Command::Kv(command)).await {
            tracing::debug!(?failure, "agree on a key for heartbeats");
        }
    }
}
