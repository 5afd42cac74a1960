//! The cluster's control file, as `pg_controldata` tells of it.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::lsn::Lsn;
use crate::parameters::Demands;

/// What the control file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// `PG_VERSION` of the directory: 15.
    pub version: u32,
    pub system: u64,
    pub state: State,
    /// The timeline of the last checkpoint. The log may already be on a later one (trap 32).
    pub timeline: u32,
    pub checkpoint: Lsn,
    pub redo: Lsn,
    /// A standby is consistent only from here on; zero of a primary.
    pub min_recovery_end: Lsn,
    pub min_recovery_timeline: u32,
    pub data_checksums: bool,
    pub wal_log_hints: bool,
    /// What a standby must not start below.
    pub demands: Demands,
}

/// In which state the cluster was when the control file was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A primary that runs, or has crashed.
    InProduction,
    ShutDown,
    ShutDownInRecovery,
    /// It was being shut down.
    ShuttingDown,
    /// A primary that recovers from a crash.
    InCrashRecovery,
    /// A standby that runs, or has crashed.
    InArchiveRecovery,
    StartingUp,
}

impl State {
    /// Whether nothing is left to recover.
    pub fn is_clean(self) -> bool {
        matches!(self, State::ShutDown | State::ShutDownInRecovery)
    }

    fn parse(text: &str) -> Option<State> {
        Some(match text {
            "in production" => State::InProduction,
            "shut down" => State::ShutDown,
            "shut down in recovery" => State::ShutDownInRecovery,
            "shutting down" => State::ShuttingDown,
            "in crash recovery" => State::InCrashRecovery,
            "in archive recovery" => State::InArchiveRecovery,
            "starting up" => State::StartingUp,
            _ => return None,
        })
    }
}

impl Control {
    /// Reads what `pg_controldata` writes in the C locale.
    pub(crate) fn parse(version: u32, text: &str) -> Result<Control, Error> {
        let lines = Lines::read(text);
        Ok(Control {
            version,
            system: lines.number("Database system identifier")?,
            state: lines.read_as("Database cluster state", State::parse)?,
            timeline: lines.small("Latest checkpoint's TimeLineID")?,
            checkpoint: lines.lsn("Latest checkpoint location")?,
            redo: lines.lsn("Latest checkpoint's REDO location")?,
            min_recovery_end: lines.lsn("Minimum recovery ending location")?,
            min_recovery_timeline: lines.small("Min recovery ending loc's timeline")?,
            data_checksums: lines.number("Data page checksum version")? > 0,
            wal_log_hints: lines.text("wal_log_hints setting")? == "on",
            demands: Demands {
                max_connections: lines.number("max_connections setting")?,
                max_worker_processes: lines.number("max_worker_processes setting")?,
                max_wal_senders: lines.number("max_wal_senders setting")?,
                max_prepared_transactions: lines.number("max_prepared_xacts setting")?,
                max_locks_per_transaction: lines.number("max_locks_per_xact setting")?,
            },
        })
    }
}

struct Lines<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Lines<'a> {
    fn read(text: &'a str) -> Lines<'a> {
        let pair = |line: &'a str| line.split_once(':').map(|(k, v)| (k.trim(), v.trim()));
        Lines(text.lines().filter_map(pair).collect())
    }

    fn text(&self, key: &str) -> Result<&'a str, Error> {
        self.0
            .get(key)
            .copied()
            .ok_or_else(|| Error::new(format!("pg_controldata says no `{key}`")))
    }

    fn read_as<T>(&self, key: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
        let text = self.text(key)?;
        read(text).ok_or_else(|| Error::new(format!("pg_controldata says `{key}: {text}`")))
    }

    fn number(&self, key: &str) -> Result<u64, Error> {
        self.read_as(key, |text| text.parse().ok())
    }

    fn small(&self, key: &str) -> Result<u32, Error> {
        self.read_as(key, |text| text.parse().ok())
    }

    fn lsn(&self, key: &str) -> Result<Lsn, Error> {
        self.read_as(key, |text| text.parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 15.18, shortened.
    const TEXT: &str = "\
pg_control version number:            1300
Database system identifier:           7577890123456789012
Database cluster state:               in archive recovery
pg_control last modified:             Sat Nov 28 10:00:00 2026
Latest checkpoint location:           0/3000098
Latest checkpoint's REDO location:    0/3000060
Latest checkpoint's REDO WAL file:    000000020000000000000003
Latest checkpoint's TimeLineID:       2
Minimum recovery ending location:     0/3000148
Min recovery ending loc's timeline:   2
wal_level setting:                    replica
wal_log_hints setting:                on
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
Data page checksum version:           1
";

    #[test]
    fn the_control_file_is_read() {
        let control = Control::parse(15, TEXT).unwrap();
        let expected = Control {
            version: 15,
            system: 7_577_890_123_456_789_012,
            state: State::InArchiveRecovery,
            timeline: 2,
            checkpoint: Lsn(0x300_0098),
            redo: Lsn(0x300_0060),
            min_recovery_end: Lsn(0x300_0148),
            min_recovery_timeline: 2,
            data_checksums: true,
            wal_log_hints: true,
            demands: Demands::DEFAULT,
        };
        assert_eq!(control, expected);
        let error = Control::parse(15, &TEXT.replace("in archive recovery", "asleep")).unwrap_err();
        assert!(error.to_string().ends_with("`Database cluster state: asleep`"), "{error}");
        for line in TEXT.lines() {
            // No line is guessed; those that are not used may be missing.
            Control::parse(15, &TEXT.replace(line, "")).map_or_else(drop, |_| ());
        }
    }
}
