//! What the next life of the agent must know to adopt a running program.
//!
//! Written before the program is started (with the mark that will find it) and again once its number is known, so that
//! an agent that dies in between leaves no instance that nobody knows of.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use outlast_core::topology::Process;
use serde::{Deserialize, Serialize};

use super::tree::Mark;

/// The version of the file's format.
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) v: u32,
    /// The machine's boot: numbers and ticks mean nothing after the next.
    pub(super) boot: String,
    /// The mark in the environment of the instance and all it starts.
    pub(super) token: String,
    /// Known once the instance runs.
    pub(super) pid: Option<u32>,
    pub(super) began_ticks: Option<u64>,
    pub(super) recipe: Recipe,
    /// Whether the startup probe has succeeded.
    pub(super) started: bool,
    pub(super) ready: bool,
    pub(super) restarts: u64,
}

/// What makes an instance the right one: if any of it changes, the program must be started anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recipe {
    argv: Vec<String>,
    directory: Option<String>,
    environment: BTreeMap<String, String>,
    user: Option<String>,
}

impl Recipe {
    pub(super) fn of(process: &Process) -> Recipe {
        Recipe {
            argv: process.command.0.clone(),
            directory: process.directory.clone(),
            environment: process.environment.clone(),
            user: process.user.clone(),
        }
    }
}

impl Record {
    /// Of an instance that is about to be started.
    pub(super) fn intent(process: &Process, restarts: u64) -> io::Result<Record> {
        Ok(Record {
            v: VERSION,
            boot: boot()?,
            token: token()?,
            pid: None,
            began_ticks: None,
            recipe: Recipe::of(process),
            started: false,
            ready: false,
            restarts,
        })
    }

    /// The record of an instance that may still run; `None` if there is none, or none of this boot.
    pub(super) fn read(path: &Path) -> io::Result<Option<Record>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record: Record = serde_json::from_slice(&text)?;
        if record.v != VERSION {
            return Err(io::Error::other(format!("format {} is not known here", record.v)));
        }
        Ok((record.boot == boot()?).then_some(record))
    }

    pub(super) fn mark(&self) -> Mark<'_> {
        Mark { token: &self.token, since_ticks: self.began_ticks }
    }

    /// Replaces the file whole: a reader finds the old one or the new one. Only the owner reads it: an environment may
    /// hold secrets.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let next = path.with_extension("next");
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
        serde_json::to_writer(&mut file, self)?;
        file.write_all(b"\n")?;
        fs::rename(&next, path)
    }
}

/// A mark that nothing else bears.
pub(crate) fn token() -> io::Result<String> {
    read_line("/proc/sys/kernel/random/uuid")
}

fn boot() -> io::Result<String> {
    read_line("/proc/sys/kernel/random/boot_id")
}

fn read_line(path: &str) -> io::Result<String> {
    fs::read_to_string(path).map(|line| line.trim().to_owned())
}
