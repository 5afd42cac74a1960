//! Whether PostgreSQL on this node takes the settings of a topology that is voted on.

use std::path::PathBuf;
use std::time::Duration;

use outlast_core::topology::{Postgres as Part, Topology};
use outlast_postgres::{Trial, try_parameters};

use super::place;

/// All trials of one topology; whoever waits for the vote waits for longer.
const TRIALS_MAX: Duration = Duration::from_secs(10);

/// The settings of some databases, with what they are tried on.
#[derive(Debug)]
pub struct Trials(Vec<One>);

#[derive(Debug)]
struct One {
    database: String,
    part: Part,
    bin_dir: PathBuf,
}

impl Trials {
    /// Of the databases of this node for which `next` has other settings than `now`, or other programs: what is in force already
    /// holds up nothing else. Where the programs are missing, nothing can be tried.
    pub fn of(node: &str, now: &Topology, next: &Topology) -> Trials {
        let here = |part: &&Part| part.nodes.iter().any(|member| member == node);
        let tried = |part: &Part| (part.parameters.clone(), part.version, part.bin_dir.clone());
        let parts = next.postgres.iter().filter(|(name, part)| {
            let before = now.postgres.get(*name).filter(here);
            here(part) && before.map(tried) != Some(tried(part))
        });
        let with_program = parts.filter_map(|(database, part)| match place::bin_dir(part) {
            Ok(bin_dir) => Some(One { database: database.clone(), part: part.clone(), bin_dir }),
            Err(error) => {
                tracing::warn!(database, %error, "try the settings");
                None
            }
        });
        Trials(with_program.collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tries them; the error says what PostgreSQL does not take. What cannot be tried is no reason against it.
    pub async fn run(self) -> Result<(), String> {
        let tried = tokio::time::timeout(TRIALS_MAX, self.try_all()).await;
        tried.unwrap_or_else(|_elapsed| {
            let seconds = TRIALS_MAX.as_secs();
            tracing::warn!(seconds, "the settings of PostgreSQL were not tried in time");
            Ok(())
        })
    }

    async fn try_all(self) -> Result<(), String> {
        for One { database, part, bin_dir } in self.0 {
            let user = rustix::process::geteuid().is_root().then_some(part.user);
            match try_parameters(bin_dir, user, part.parameters).await {
                Trial::Taken => {}
                Trial::Refused(why) => {
                    return Err(format!(
                        "PostgreSQL does not take `parameters` of postgres.{database}: {why}"
                    ));
                }
                Trial::Untried(error) => tracing::warn!(database, %error, "try the settings"),
            }
        }
        Ok(())
    }
}
