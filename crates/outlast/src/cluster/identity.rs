//! Who this node is to the others: the id that goes with its disk.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

/// `identity.json` beside the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) v: u32,
    pub(super) cluster: String,
    pub(super) node: String,
    /// Given by the cluster, never twice; `None` until then.
    pub(super) id: Option<u64>,
    /// Stands for this disk: who comes with an empty one has another.
    pub(super) token: u64,
}

pub(crate) fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join("consensus")
}

/// Reads it, or makes it for a disk that is new.
pub(super) fn load(data_dir: &Path, cluster: &str, node: &str) -> anyhow::Result<Identity> {
    let path = dir(data_dir).join("identity.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (cluster, node) = (cluster.to_owned(), node.to_owned());
            let identity = Identity { v: 1, cluster, node, id: None, token: token()? };
            save(data_dir, &identity)?;
            return Ok(identity);
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let identity: Identity =
        serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))?;
    ensure!(
        identity.v == 1,
        "{} is of version {}; this binary knows 1",
        path.display(),
        identity.v
    );
    ensure!(
        identity.cluster == cluster && identity.node == node,
        "{} belongs to node `{}` of cluster `{}`, and this is node `{node}` of cluster `{cluster}`; \
         give each node a `data_dir` of its own",
        dir(data_dir).display(),
        identity.node,
        identity.cluster
    );
    Ok(identity)
}

/// The same node with a disk that has lost its log.
pub(super) fn renew(data_dir: &Path, before: &Identity) -> anyhow::Result<Identity> {
    let identity = Identity { id: None, token: token()?, ..before.clone() };
    save(data_dir, &identity)?;
    Ok(identity)
}

/// A number that nobody can foresee.
pub(crate) fn token() -> anyhow::Result<u64> {
    random().map(u64::from_le_bytes)
}

pub(super) fn random<const BYTES: usize>() -> anyhow::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let random =
        std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    random.context("read random bytes")?;
    Ok(bytes)
}

/// Random bytes as text.
pub(crate) fn random_hex<const BYTES: usize>() -> anyhow::Result<String> {
    Ok(random::<BYTES>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn save(data_dir: &Path, identity: &Identity) -> anyhow::Result<()> {
    let dir = dir(data_dir);
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(&dir)?;
        let beside = dir.join("identity.new");
        let mut file = std::fs::File::create(&beside)?;
        serde_json::to_writer(&mut file, identity)?;
        file.sync_all()?;
        std::fs::rename(&beside, dir.join("identity.json"))?;
        std::fs::File::open(&dir)?.sync_all()
    };
    write().with_context(|| format!("write {}", dir.join("identity.json").display()))
}
