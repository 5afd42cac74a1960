//! What an agent must remember over a restart of the machine: who serves each pair, and under which epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use outlast_core::pair::{Epoch, Side};
use serde::{Deserialize, Serialize};

/// The version of the file's form; others are refused by name.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Saved {
    v: u32,
    pairs: BTreeMap<String, SavedPair>,
}

#[derive(Serialize, Deserialize)]
struct SavedPair {
    active: SavedSide,
    epoch: u64,
    /// Nobody routes to it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    moving: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SavedSide {
    Primary,
    Backup,
}

/// Who serves each pair and under which epoch, and to which of them nobody may route yet.
pub(super) type Remembered = (BTreeMap<String, (Side, Epoch)>, BTreeSet<String>);

/// Reads the pairs, and to which of them nobody may route yet; none if there is no file yet.
pub(super) fn load(data_dir: &Path) -> anyhow::Result<Remembered> {
    let path = data_dir.join("pairs.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok((BTreeMap::new(), BTreeSet::new()));
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let saved: Saved = serde_json::from_slice(&text).with_context(|| {
        format!("understand {}; move it away to begin with every primary serving", path.display())
    })?;
    anyhow::ensure!(
        saved.v == VERSION,
        "{} has version {}, this binary reads {VERSION}",
        path.display(),
        saved.v
    );
    let moving = saved.pairs.iter().filter(|(_, pair)| pair.moving);
    let moving = moving.map(|(name, _)| name.clone()).collect();
    let pairs = saved.pairs.into_iter().map(|(name, pair)| {
        let side = match pair.active {
            SavedSide::Primary => Side::Primary,
            SavedSide::Backup => Side::Backup,
        };
        (name, (side, Epoch(pair.epoch)))
    });
    Ok((pairs.collect(), moving))
}

/// The pairs with epochs that are at least those under which a standby's command was obeyed: `pairs.json` may have been
/// moved away, and who obeyed an order refuses all older ones.
pub(super) fn with_obeyed(
    mut pairs: BTreeMap<String, (Side, Epoch)>,
    obeyed: BTreeMap<String, Epoch>,
) -> BTreeMap<String, (Side, Epoch)> {
    for (service, obeyed) in obeyed {
        let (_, epoch) = pairs.entry(service).or_insert((Side::Primary, obeyed));
        *epoch = obeyed.max(*epoch);
    }
    pairs
}

/// Writes the pairs so that a crash leaves either the old file or the new one.
pub(super) fn save(
    data_dir: &Path,
    pairs: &BTreeMap<String, (Side, Epoch)>,
    moving: &BTreeSet<String>,
) -> anyhow::Result<()> {
    let pairs = pairs.iter().map(|(name, (side, epoch))| {
        let active = match side {
            Side::Primary => SavedSide::Primary,
            Side::Backup => SavedSide::Backup,
        };
        (name.clone(), SavedPair { active, epoch: epoch.0, moving: moving.contains(name) })
    });
    let text = serde_json::to_vec_pretty(&Saved { v: VERSION, pairs: pairs.collect() })?;
    write_whole(data_dir, "pairs.json", &text)
}

/// Writes a file of the data directory so that a crash leaves either the old one or the new one; returns once it is on disk.
pub(super) fn write_whole(data_dir: &Path, name: &str, text: &[u8]) -> anyhow::Result<()> {
    let (path, new) = (data_dir.join(name), data_dir.join(format!("{name}.new")));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(data_dir)?.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = std::env::temp_dir().join(format!("outlast-state-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(load(&dir).unwrap(), (BTreeMap::new(), BTreeSet::new()));
        let pairs = BTreeMap::from([("billing".to_owned(), (Side::Backup, Epoch(7)))]);
        let moving = BTreeSet::from(["billing".to_owned()]);
        save(&dir, &pairs, &moving).unwrap();
        assert_eq!(load(&dir).unwrap(), (pairs.clone(), moving));
        let obeyed = [("billing".to_owned(), Epoch(9)), ("web".to_owned(), Epoch(2))];
        let raised = with_obeyed(pairs.clone(), obeyed.into());
        assert_eq!(raised["billing"], (Side::Backup, Epoch(9)));
        assert_eq!(raised["web"], (Side::Primary, Epoch(2)));
        assert_eq!(with_obeyed(pairs.clone(), [("billing".to_owned(), Epoch(3))].into()), pairs);
        std::fs::write(dir.join("pairs.json"), "{\"v\":9,\"pairs\":{}}").unwrap();
        assert!(load(&dir).unwrap_err().to_string().contains("version 9"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
