//! What a member remembers over a restart: the reign under which its PostgreSQL was made primary, and the highest epoch that
//! it has obeyed.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use outlast_core::database::Descent;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// The file of one database.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    path: PathBuf,
    pub(super) memory: Memory,
}

/// What is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    v: u32,
    /// Written down before PostgreSQL is made primary.
    pub(super) promoted: Option<u64>,
    /// The reign of whose primary's log this one is a part.
    #[serde(default)]
    pub(super) lineage: Option<u64>,
    /// No order under a lower one is carried out.
    pub(super) obeyed: u64,
    /// The turn of an upkeep that was carried out last.
    #[serde(default)]
    pub(super) turned: Option<u64>,
    /// The directory is that of a standby, whatever its control file says.
    pub(super) standby: bool,
}

impl Memory {
    pub(super) fn descent(&self) -> Descent {
        Descent { lineage: self.lineage, promoted: self.promoted }
    }

    pub(super) fn set_descent(&mut self, descent: Descent) {
        (self.lineage, self.promoted) = (descent.lineage, descent.promoted);
    }
}

impl Kept {
    pub(super) fn open(dir: &Path) -> anyhow::Result<Kept> {
        let path = dir.join("member.json");
        let memory = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("read {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Memory::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Kept { path, memory })
    }

    /// Changes it on disk first.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Memory)) -> anyhow::Result<()> {
        let mut next = Memory { v: VERSION, ..self.memory.clone() };
        change(&mut next);
        if next != self.memory {
            self.write(&next).with_context(|| format!("write {}", self.path.display()))?;
            self.memory = next;
        }
        Ok(())
    }

    fn write(&self, memory: &Memory) -> anyhow::Result<()> {
        let draft = self.path.with_extension("new");
        let mut file = std::fs::File::create(&draft)?;
        file.write_all(&serde_json::to_vec(memory)?)?;
        file.sync_all()?;
        std::fs::rename(&draft, &self.path)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        std::fs::File::open(dir)?.sync_all()?;
        Ok(())
    }
}
