//! Runs the commands of a standby: start, activate, stop. Each order's epoch is written to disk before it is obeyed, and one
//! that is older than one that was obeyed is refused: a late order cannot undo a newer one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context as _;
use outlast_core::pair::{self, Epoch, Stale};
use outlast_core::topology::{Command, Pool, Standby, Topology};
use outlast_host::command::{Ended, Leftovers, run_logged};
use outlast_host::process::Output;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::run::Said;
use super::state::write_whole;
use crate::cluster::{Answering, StandbyOrder};

/// A stop command may take this long; nobody waits for it.
const STOP_MAX: Duration = Duration::from_secs(60);

/// An activate command may take this long.
const ACTIVATE_MAX: Duration = Duration::from_secs(60);

/// Bytes at the end of a log that are looked at for its last line.
const SHOWN_MAX: u64 = 4096;

/// The file with the highest epoch that was obeyed for each service.
const OBEYED: &str = "obeyed.json";

/// The version of that file's form; others are refused by name.
const VERSION: u32 = 1;

/// One order at a time reads and writes the file.
static WRITING: Mutex<()> = Mutex::new(());

/// What was obeyed, on disk.
#[derive(Clone, Debug)]
pub(super) struct Fence {
    data_dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Obeyed {
    v: u32,
    epochs: BTreeMap<String, u64>,
}

/// Why an order is not obeyed.
#[derive(Debug)]
enum Refusal {
    Stale(Stale),
    /// The disk would not take the epoch.
    NotWritten(anyhow::Error),
}

impl Fence {
    pub(super) fn at(data_dir: &Path) -> Fence {
        Fence { data_dir: data_dir.to_owned() }
    }

    /// The highest epoch that was obeyed for each service.
    pub(super) fn all(&self) -> anyhow::Result<BTreeMap<String, Epoch>> {
        let path = self.data_dir.join(OBEYED);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(BTreeMap::new());
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let obeyed: Obeyed = serde_json::from_slice(&text).with_context(|| {
            format!(
                "understand {}; move it away only if no order to a standby is under way",
                path.display()
            )
        })?;
        anyhow::ensure!(
            obeyed.v == VERSION,
            "{} has version {}, this binary reads {VERSION}",
            path.display(),
            obeyed.v
        );
        Ok(obeyed.epochs.into_iter().map(|(service, epoch)| (service, Epoch(epoch))).collect())
    }

    /// Whether an order may be obeyed; its epoch is on disk when this returns. Blocks.
    fn admit(&self, service: &str, epoch: Epoch) -> Result<(), Refusal> {
        let _one_at_a_time = WRITING.lock().expect("no panic while held");
        let mut all = self.all().map_err(Refusal::NotWritten)?;
        let obeyed = all.get(service).copied();
        pair::admit(obeyed.unwrap_or_default(), epoch).map_err(Refusal::Stale)?;
        if obeyed == Some(epoch) {
            return Ok(());
        }
        all.insert(service.to_owned(), epoch);
        let epochs = all.into_iter().map(|(service, epoch)| (service, epoch.0)).collect();
        let text = serde_json::to_vec_pretty(&Obeyed { v: VERSION, epochs });
        let text = text.map_err(|error| Refusal::NotWritten(error.into()))?;
        write_whole(&self.data_dir, OBEYED, &text).map_err(Refusal::NotWritten)
    }
}

/// The command of an order, and how long it may take; `None`: there is nothing to run.
pub(super) fn job(topology: &Topology, order: &StandbyOrder) -> Option<(Command, Duration)> {
    let Some(Pool::Pair(pair)) = topology.services.get(&order.service).map(|s| &s.pool) else {
        return None;
    };
    match (&pair.standby, order.stop) {
        (Standby::Cold { start, start_limit, .. }, false) => Some((start.clone(), *start_limit)),
        (Standby::Warm { activate: Some(activate) }, false) => {
            Some((activate.clone(), ACTIVATE_MAX))
        }
        (Standby::Cold { stop: Some(stop), .. }, true) => Some((stop.clone(), STOP_MAX)),
        (Standby::Hot | Standby::Warm { .. } | Standby::Cold { .. }, _) => None,
    }
}

/// Starts the command of an order; whoever gave it hears of its end.
pub(super) fn obey_for(
    topology: &Topology,
    data_dir: &Path,
    order: &StandbyOrder,
    inbox: mpsc::Sender<Said>,
    answer: Answering,
) {
    let job = job(topology, order);
    let order = Order::of(data_dir, &order.service, Epoch(order.epoch));
    // Bounded by its limit; reports its own end.
    drop(tokio::task::spawn(async move {
        let result = match job {
            Some((command, limit)) => order.obey(&command, limit, &inbox).await,
            None => Ok(()),
        };
        // Who gave the order may have gone.
        answer.send(result.map(|()| "done".to_owned())).ok();
    }));
}

/// What is to be done about one service's standby.
#[derive(Clone, Debug)]
struct Order {
    service: String,
    epoch: Epoch,
    fence: Fence,
    /// Where the command writes. A file, not a pipe: what the command leaves running may keep it, and neither waits for us
    /// to read nor ends when we go.
    log: PathBuf,
}

impl Order {
    fn of(data_dir: &Path, service: &str, epoch: Epoch) -> Order {
        let log = data_dir.join(format!("standby-{service}.log"));
        Order { service: service.to_owned(), epoch, fence: Fence::at(data_dir), log }
    }

    /// Runs a command to its end, if no newer order was obeyed; past its limit it is killed with all it started. The epoch
    /// goes along, so that the command can refuse an order, too.
    async fn obey(
        &self,
        command: &Command,
        limit: Duration,
        inbox: &mpsc::Sender<Said>,
    ) -> Result<(), String> {
        let order = self.clone();
        let admitted =
            tokio::task::spawn_blocking(move || order.fence.admit(&order.service, order.epoch));
        match admitted.await {
            Ok(Ok(())) => {}
            Ok(Err(Refusal::Stale(stale))) => {
                let Stale { epoch, obeyed } = stale;
                let service = self.service.clone();
                inbox.send(Said::OrderRefused { service, epoch, obeyed }).await.ok();
                return Err(stale.to_string());
            }
            Ok(Err(Refusal::NotWritten(error))) => {
                return Err(format!("its epoch could not be written down: {error:#}"));
            }
            Err(error) => return Err(format!("write its epoch down: {error}")),
        }
        let program = command.0.first().map_or("", String::as_str);
        let shown = self.log.display();
        let log = Output::at(self.log.clone());
        if let Err(error) = log.rotate() {
            tracing::warn!(%error, log = %shown, "rotate the log of a standby's commands");
        }
        let file = log.open().map_err(|e| format!("open {shown}: {e}"))?;
        let before = file.metadata().map_or(0, |m| m.len());
        let environment = [
            ("OUTLAST_SERVICE", self.service.clone()),
            ("OUTLAST_EPOCH", self.epoch.0.to_string()),
        ];
        match run_logged(&command.0, &environment, file, limit, Leftovers::Keep).await {
            Ended::Exited { status, .. } if status.success() => Ok(()),
            Ended::Exited { status, .. } => {
                Err(format!("`{program}` ended with {status}: {}", last_line(&self.log, before)))
            }
            Ended::TimedOut { .. } => {
                Err(format!("`{program}` took longer than {limit:?} and was killed"))
            }
            Ended::NotRun(error) => Err(format!("start `{program}`: {error}")),
        }
    }
}

/// The last line that was written behind the first `before` bytes, as far as it is worth showing.
fn last_line(log: &Path, before: u64) -> String {
    let mut said = Vec::new();
    let mut read = || -> std::io::Result<()> {
        let mut file = File::open(log)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(before.max(end.saturating_sub(SHOWN_MAX))))?;
        file.take(SHOWN_MAX).read_to_end(&mut said).map(drop)
    };
    // Without it, the exit status is all that can be told.
    read().ok();
    let said = String::from_utf8_lossy(&said);
    said.lines().last().unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_is_on_disk_before_it_is_obeyed_and_an_older_one_is_refused() {
        let dir = std::env::temp_dir().join(format!("outlast-fence-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (inbox, mut said) = mpsc::channel(8);
        // Each command tells what is on disk while it runs.
        let obey = async |service: &str, epoch: u64| {
            let script = "cat obeyed.json >>seen; echo $OUTLAST_EPOCH >>ran";
            let script = format!("cd {} && {script}", dir.display());
            let command = Command(["sh", "-c", &script].map(str::to_owned).to_vec());
            let limit = Duration::from_secs(20);
            Order::of(&dir, service, Epoch(epoch)).obey(&command, limit, &inbox).await
        };
        assert_eq!(obey("billing", 3).await, Ok(()));
        assert!(std::fs::read_to_string(dir.join("seen")).unwrap().contains("\"billing\": 3"));
        assert_eq!(obey("billing", 3).await, Ok(()), "an order may be given twice");
        assert_eq!(obey("billing", 5).await, Ok(()));
        assert_eq!(obey("web", 1).await, Ok(()), "each service has epochs of its own");
        assert_eq!(
            obey("billing", 4).await,
            Err("epoch 4 is older than 5, which was obeyed before".to_owned())
        );
        let refused = said.try_recv().unwrap();
        let (epoch, obeyed) = (Epoch(4), Epoch(5));
        let expected = Said::OrderRefused { service: "billing".to_owned(), epoch, obeyed };
        assert_eq!(format!("{refused:?}"), format!("{expected:?}"));
        assert_eq!(std::fs::read_to_string(dir.join("ran")).unwrap(), "3\n3\n5\n1\n");
        // What cannot be written down is not obeyed.
        std::fs::create_dir(dir.join("obeyed.json.new")).unwrap();
        let refused = obey("billing", 6).await.unwrap_err();
        assert!(refused.starts_with("its epoch could not be written down: "), "{refused}");
        std::fs::write(dir.join("obeyed.json"), "{\"v\":9,\"epochs\":{}}").unwrap();
        assert!(obey("billing", 6).await.unwrap_err().contains("version 9"));
        assert_eq!(std::fs::read_to_string(dir.join("ran")).unwrap(), "3\n3\n5\n1\n");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
