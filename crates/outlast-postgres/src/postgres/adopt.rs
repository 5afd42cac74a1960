//! After the agent's own restart: finds the keeper and the postmaster that an earlier life started.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::clock::Moment;
use crate::error::{Doing, Error};
use crate::keeper::{Ask, AskError, Standing, ask};
use crate::postgres::{Held, Postgres};
use crate::proc::{self, Process};

/// The keeper answers from memory.
pub(crate) const KEEPER_LIMIT: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// Nothing runs.
    Nothing,
    /// A postmaster runs under its keeper, with this fuse.
    Kept { fuse: Option<Moment> },
    /// A postmaster runs in the data directory without a keeper: it has no fuse, and is to be ended.
    Unkept,
}

impl Postgres {
    /// Finds what runs. Changes nothing, and never removes `postmaster.pid` (trap 43).
    pub async fn adopt(&self) -> Result<Adoption, Error> {
        let kept = ask(&self.settings.run_dir, &Ask::How, KEEPER_LIMIT).await;
        match kept {
            Ok(Standing { keeper, postmaster: Some(pid), data_dir, fuse, .. }) => {
                self.hold(Held {
                    keeper: Process::find(keeper),
                    postmaster: Process::find(pid),
                    cwd: data_dir,
                    cgroup: self.find_cgroup(),
                });
                self.set_fence(fuse);
                Ok(Adoption::Kept { fuse })
            }
            Ok(Standing { postmaster: None, .. }) | Err(AskError::Gone) => {
                let dir = self.settings.data_dir.clone();
                let found = self.on_disk(move || {
                    let cwd = fs::canonicalize(&dir).unwrap_or_else(|_error| dir.clone());
                    Ok((postmaster_of(&dir, &cwd)?, cwd))
                });
                let (postmaster, cwd) = found.await.doing("read postmaster.pid")?;
                let cgroup = self.find_cgroup();
                self.hold(Held { keeper: None, postmaster, cwd: Some(cwd), cgroup });
                Ok(if postmaster.is_some() { Adoption::Unkept } else { Adoption::Nothing })
            }
            Err(error) => Err(error).doing("adopt what runs"),
        }
    }
}

/// The process that `postmaster.pid` names, if its number has not come to mean another: it works in the data directory.
fn postmaster_of(data_dir: &Path, cwd: &Path) -> Result<Option<Process>, Error> {
    let text = crate::files::read_or_empty(&data_dir.join("postmaster.pid"))?;
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<i64>().ok()) else {
        return Ok(None);
    };
    // A single-user server writes its number negated.
    let Ok(pid) = u32::try_from(pid.unsigned_abs()) else { return Ok(None) };
    let process = Process::find(pid).filter(|_| proc::works_in(pid, cwd));
    Ok(process.filter(|process| process.stat().is_some_and(proc::Stat::is_alive)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trap 43.
    #[test]
    fn a_recycled_number_is_not_taken_for_the_postmaster_and_the_file_stays() {
        let dir = std::env::temp_dir().join(format!("outlast-postgres-pid-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("postmaster.pid");
        fs::write(&file, format!("{}\n/data\n", std::process::id())).unwrap();
        assert_eq!(postmaster_of(&dir, &dir), Ok(None));
        let here = std::env::current_dir().unwrap();
        let found = postmaster_of(&dir, &here).unwrap();
        assert_eq!(found, Process::find(std::process::id()));
        assert!(file.exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
