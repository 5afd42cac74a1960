//! Tries settings on PostgreSQL's own program before anything rests on them.
//!
//! One that it does not take makes it refuse the whole file: nothing is read anew any more, and nothing starts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::account::Account;
use crate::conf::quoted;
use crate::error::{Doing as _, Error};
use crate::files;
use crate::parameters::{Demands, lasting};
use crate::postgres::{DISK_LIMIT, Postgres};
use crate::tool::Tool;

/// The program reads two small files and says one line.
const TRIAL_LIMIT: Duration = Duration::from_secs(5);
/// The file with the settings.
const FILE: &str = "trial.conf";
/// How the program's complaints begin, behind time and process.
const MARKS: [&str; 3] = ["LOG:  ", "ERROR:  ", "FATAL:  "];
/// What explains the complaint before it.
const HINT: &str = "HINT:  ";
/// What the program says last of a file that it does not take.
const REFUSED: &str = "contains errors";
/// Characters of its complaints that are passed on.
const REASON_MAX: usize = 600;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    Taken,
    /// PostgreSQL does not take them; in its own words.
    Refused(String),
    /// Nothing is known of them.
    Untried(Error),
}

/// Tries the parameters of a database that need not be there yet. `os_user` is the account that will run it, if that is not ours.
pub async fn try_parameters(
    bin_dir: PathBuf,
    os_user: Option<String>,
    parameters: BTreeMap<String, String>,
) -> Trial {
    let find = move || Account::find(os_user.as_deref());
    match blocking(find).await {
        Ok(account) => trial(&bin_dir, &account, parameters).await,
        Err(error) => Trial::Untried(error),
    }
}

impl Postgres {
    /// Tries the parameters of the settings. Touches nothing of the instance.
    pub async fn try_settings(&self) -> Trial {
        trial(&self.settings.bin_dir, &self.account, self.settings.parameters.clone()).await
    }
}

async fn trial(bin_dir: &Path, account: &Account, parameters: BTreeMap<String, String>) -> Trial {
    let program = bin_dir.join("postgres");
    let mut said = String::new();
    let run = async {
        let owner = account.clone();
        let place = blocking(move || Place::make(&owner, &parameters)).await?;
        let tool = Tool::new(program, account, TRIAL_LIMIT);
        let file = format!("--config-file={}", place.0.join(FILE).display());
        let tool = tool.args(["-C", "max_connections", &file, "-D"]).args([place.0.as_os_str()]);
        tool.run(&mut |text| said.push_str(text)).await
    };
    match run.await.doing("try the settings") {
        Ok(_) => Trial::Taken,
        Err(error) => refusal(&said).map_or(Trial::Untried(error), Trial::Refused),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::time::timeout(DISK_LIMIT, tokio::task::spawn_blocking(work)).await;
    done.doing("wait for the disk")?.doing("wait for the disk")?
}

/// Why the program has refused the file, in its words without the places that are gone by the time anybody reads them; `None`
/// if it was something else that it could not do.
fn refusal(said: &str) -> Option<String> {
    let mut reasons: Vec<String> = Vec::new();
    let mut refused = false;
    for line in said.lines() {
        if let Some((_, hint)) = line.split_once(HINT)
            && let Some(last) = reasons.last_mut()
        {
            *last += &format!(" ({})", hint.trim_end_matches('.'));
        }
        let Some(text) = MARKS.iter().find_map(|mark| Some(line.split_once(mark)?.1)) else {
            continue;
        };
        if text.ends_with(REFUSED) {
            refused = true;
            continue;
        }
        reasons.push(text.split(" in file \"").next().unwrap_or(text).to_owned());
    }
    let all = if reasons.is_empty() { REFUSED.to_owned() } else { reasons.join("; ") };
    let clean = all.chars().map(|c| if c.is_control() { ' ' } else { c });
    refused.then(|| clean.take(REASON_MAX).collect())
}

/// A directory of our own, which goes with this.
struct Place(PathBuf);

impl Place {
    /// With a file of the settings that do not depend on node and moment.
    fn make(account: &Account, parameters: &BTreeMap<String, String>) -> Result<Place, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outlast-trial-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        // Of an earlier process with this number, if it is ours to remove.
        fs::remove_dir_all(&dir).ok();
        fs::DirBuilder::new().mode(0o700).create(&dir).doing(format!("make {}", dir.display()))?;
        let place = Place(dir);
        let all = lasting(parameters, Demands::wished(parameters), false);
        let lines = all.iter().map(|(name, value)| format!("{name} = {}\n", quoted(value)));
        files::replace(&place.0.join(FILE), &lines.collect::<String>(), account)?;
        // It is looked for, and missed aloud.
        files::replace(&place.0.join("postgresql.auto.conf"), "\n", account)?;
        account.own(&place.0)?;
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_says_of_a_file_becomes_a_reason() {
        let at = "2026-11-29 01:22:42.558 GMT [18516]";
        let said = format!(
            "{at} LOG:  unrecognized configuration parameter \"a\" in file \"/t/x.conf\" line 1\n\
             {at} LOG:  invalid value for parameter \"wal_level\": \"much\"\n\
             {at} HINT:  Available values: minimal, replica, logical.\n\
             {at} FATAL:  configuration file \"/t/x.conf\" contains errors\n"
        );
        let reason = "unrecognized configuration parameter \"a\"; invalid value for parameter \"wal_level\": \"much\" \
                      (Available values: minimal, replica, logical)";
        assert_eq!(refusal(&said).as_deref(), Some(reason));
        let other = format!("{at} FATAL:  could not access directory \"/t\": Permission denied\n");
        assert_eq!(refusal(&other), None);
        assert_eq!(refusal("postgres: error while loading shared libraries: libx.so.1\n"), None);
    }
}
