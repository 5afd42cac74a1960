//! One look at the server, through a new connection: a kept one would go on answering where nobody else is let in.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use crate::lsn::Lsn;
use crate::parameters::Demands;
use crate::postgres::Postgres;
use crate::sql::{Connection, Row, SqlError};

/// How long a look may take.
pub const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// How it is where nobody listens, or does so no longer.
const NOBODY: [ErrorKind; 4] = [
    ErrorKind::ConnectionRefused,
    ErrorKind::NotFound,
    ErrorKind::ConnectionReset,
    ErrorKind::UnexpectedEof,
];

/// Why there was nothing to be seen. Decisions branch on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens.
    Refused,
    /// Somebody may listen and does not answer.
    TimedOut,
    /// The server starts, recovers or shuts down (57P03).
    Starting,
    /// Even the reserved connections are in use (53300).
    TooMany,
    Other,
}

/// A look that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookError {
    pub fault: Fault,
    pub text: String,
}

impl fmt::Display for LookError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for LookError {}

impl From<SqlError> for LookError {
    fn from(error: SqlError) -> LookError {
        let fault = match (&error, error.sqlstate()) {
            (_, Some("57P03")) => Fault::Starting,
            (_, Some("53300")) => Fault::TooMany,
            (SqlError::TimedOut(_), _) => Fault::TimedOut,
            (SqlError::Io(error), _) if NOBODY.contains(&error.kind()) => Fault::Refused,
            (SqlError::Io(_), _) => Fault::Other,
            (SqlError::Server(_) | SqlError::Malformed(_), _) => Fault::Other,
        };
        LookError { fault, text: error.to_string() }
    }
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub system: u64,
    pub role: Role,
    /// Of the log that is written or received.
    pub timeline: u32,
    /// Rows of `pg_stat_replication`: who streams from here.
    pub standbys: Vec<Standby>,
    /// `synchronous_standby_names` as in force.
    pub sync: String,
    /// `default_transaction_read_only`
    pub read_only: bool,
    pub slots: Vec<Slot>,
    /// Parameters that take effect only with a restart.
    pub pending_restart: Vec<String>,
    /// The values that standbys must not be below, as in force here.
    pub demands: Demands,
    /// Sessions that are not ours.
    pub clients: u64,
    /// How long the commit that has waited longest for standbys has waited.
    pub oldest_wait: Option<Duration>,
}

/// What the server is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Primary {
        written: Lsn,
        flushed: Lsn,
    },
    Standby {
        /// Received and on disk; `None` if nothing was received since the start.
        received: Option<Lsn>,
        replayed: Option<Lsn>,
        paused: bool,
        apply_delay: Duration,
        /// Its replay waits at this moment because of one of these two.
        holds: bool,
        receiver: Option<Receiver>,
    },
}

/// The process that receives the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiver {
    pub pid: u32,
    /// `streaming` proves nothing for as long as the receiver's timeout.
    pub status: String,
    pub host: Option<String>,
    pub port: Option<u16>,
    /// The end of the upstream's log, as it said last.
    pub latest_end: Option<Lsn>,
}

/// One that streams from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standby {
    pub pid: u32,
    /// `application_name`: the node.
    pub name: String,
    /// `streaming`, `catchup`, `startup`, `backup`, `stopping`
    pub state: String,
    /// `async`, `potential`, `sync`, `quorum`
    pub sync_state: String,
    pub flushed: Option<Lsn>,
    pub replayed: Option<Lsn>,
    /// How long ago what it has replayed last was written here, as it was when it said so; `None` while it is idle.
    pub replay_lag: Option<Duration>,
}

/// A replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    pub active: bool,
    /// `None` if it has not kept anything yet.
    pub wal_status: Option<WalStatus>,
    pub restart_lsn: Option<Lsn>,
}

/// Whether a slot still keeps what its user needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalStatus {
    Reserved,
    Extended,
    Unreserved,
    Lost,
}

impl Seen {
    /// How far the log on this node's disk reaches: on a standby the greater of received and replayed (trap 30).
    pub fn reach(&self) -> Lsn {
        match self.role {
            Role::Primary { flushed, .. } => flushed,
            Role::Standby { received, replayed, .. } => {
                received.unwrap_or_default().max(replayed.unwrap_or_default())
            }
        }
    }

    pub fn in_recovery(&self) -> bool {
        matches!(self.role, Role::Standby { .. })
    }
}

/// Every row begins with a word that says what it is, so that one question brings all of it.
const QUESTION: &str = "
SELECT 'self', (SELECT system_identifier FROM pg_control_system()), pg_is_in_recovery(),
  CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
  CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn() END,
  CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END,
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() END,
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END,
  CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END,
  (SELECT setting FROM pg_settings WHERE name = 'recovery_min_apply_delay'),
  current_setting('synchronous_standby_names'), current_setting('default_transaction_read_only'),
  (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename IS DISTINCT FROM 'outlast'),
  (SELECT (extract(epoch FROM clock_timestamp() - min(coalesce(query_start, state_change))) * 1000)::bigint
     FROM pg_stat_activity WHERE wait_event = 'SyncRep'),
  EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event IN ('RecoveryPause', 'RecoveryApplyDelay'));
SELECT 'receiver', pid, status, sender_host, sender_port, latest_end_lsn, received_tli
  FROM pg_stat_wal_receiver WHERE pid IS NOT NULL;
SELECT 'standby', pid, application_name, state, sync_state, flush_lsn, replay_lsn,
  (extract(epoch FROM replay_lag) * 1000)::bigint FROM pg_stat_replication ORDER BY pid;
SELECT 'slot', slot_name, active, wal_status, restart_lsn FROM pg_replication_slots ORDER BY slot_name;
SELECT 'pending', name FROM pg_settings WHERE pending_restart ORDER BY name;
SELECT 'demands', current_setting('max_connections'), current_setting('max_worker_processes'),
  current_setting('max_wal_senders'), current_setting('max_prepared_transactions'),
  current_setting('max_locks_per_transaction');
";

impl Postgres {
    /// Looks at the server. What it sees was true at one moment of the last [`LOOK_LIMIT`].
    pub async fn look(&self) -> Result<Seen, LookError> {
        self.look_within(LOOK_LIMIT).await
    }

    pub async fn look_within(&self, limit: Duration) -> Result<Seen, LookError> {
        let look = self.look_unlimited(limit);
        tokio::time::timeout(limit, look)
            .await
            .map_err(|_elapsed| LookError::from(SqlError::TimedOut(limit)))?
    }

    async fn look_unlimited(&self, limit: Duration) -> Result<Seen, LookError> {
        let mut connection = self.enter(limit).await?;
        let rows = connection.query(QUESTION, limit).await?;
        let mut answer = Answer::read(&rows)?;
        if answer.timeline.is_none() {
            answer.timeline = received_timeline(&mut connection, limit).await?;
        }
        self.keep_spare(connection).await;
        answer.seen()
    }
}

/// The timeline of a standby without a receiver: that of the newest file of the log with its last place.
async fn received_timeline(
    connection: &mut Connection,
    limit: Duration,
) -> Result<Option<u32>, LookError> {
    let sql = "
WITH reach AS (SELECT greatest(coalesce(pg_last_wal_receive_lsn(), '0/0'), coalesce(pg_last_wal_replay_lsn(), '0/0')) - '0/0'::pg_lsn AS at,
    (SELECT bytes_per_wal_segment FROM pg_control_init()) AS size),
  segment AS (SELECT div(greatest(at - 1, 0), size)::bigint AS n, size FROM reach),
  name AS (SELECT upper(lpad(to_hex(n / (4294967296 / size)), 8, '0') || lpad(to_hex(n % (4294967296 / size)), 8, '0')) AS name FROM segment)
SELECT coalesce((SELECT max(left(f.name, 8)) FROM pg_ls_waldir() f, name WHERE length(f.name) = 24 AND right(f.name, 16) = name.name),
  (SELECT upper(lpad(to_hex(timeline_id), 8, '0')) FROM pg_control_checkpoint()))";
    let rows = connection.query(sql, limit).await?;
    Ok(rows.first().and_then(|row| Columns(row).timeline(0)))
}

/// What the server answered, not yet put together.
#[derive(Default)]
struct Answer {
    own: Option<Row>,
    receiver: Option<Receiver>,
    timeline: Option<u32>,
    standbys: Vec<Standby>,
    slots: Vec<Slot>,
    pending_restart: Vec<String>,
    demands: Demands,
}

impl Answer {
    fn read(rows: &[Row]) -> Result<Answer, LookError> {
        let mut answer = Answer::default();
        for row in rows {
            let columns = Columns(row);
            match columns.text(0).as_str() {
                "self" => {
                    answer.timeline = columns.timeline(3);
                    answer.own = Some(row.clone());
                }
                "receiver" => {
                    answer.timeline = columns.number(6);
                    answer.receiver = Some(columns.receiver()?);
                }
                "standby" => answer.standbys.push(columns.standby()?),
                "slot" => answer.slots.push(columns.slot()),
                "pending" => answer.pending_restart.push(columns.text(1)),
                "demands" => answer.demands = columns.demands()?,
                other => return Err(odd(&format!("a row of `{other}`"))),
            }
        }
        Ok(answer)
    }

    fn seen(self) -> Result<Seen, LookError> {
        let own = self.own.ok_or_else(|| odd("nothing of itself"))?;
        let own = Columns(&own);
        let millis = |at| own.number(at).map(Duration::from_millis);
        let role = match own.is_true(2) {
            false => Role::Primary {
                written: own.lsn(4).ok_or_else(|| odd("no end of the log"))?,
                flushed: own.lsn(5).ok_or_else(|| odd("no end of the log"))?,
            },
            true => Role::Standby {
                received: own.lsn(6),
                replayed: own.lsn(7),
                paused: own.is_true(8),
                apply_delay: millis(9).unwrap_or_default(),
                holds: own.is_true(14),
                receiver: self.receiver,
            },
        };
        Ok(Seen {
            system: own.number(1).ok_or_else(|| odd("no system identifier"))?,
            role,
            timeline: self.timeline.ok_or_else(|| odd("no timeline"))?,
            standbys: self.standbys,
            sync: own.text(10),
            read_only: own.text(11) == "on",
            slots: self.slots,
            pending_restart: self.pending_restart,
            demands: self.demands,
            clients: own.number(12).unwrap_or(0),
            oldest_wait: millis(13),
        })
    }
}

fn odd(what: &str) -> LookError {
    LookError { fault: Fault::Other, text: format!("the server says {what}") }
}

/// A row's columns by number.
struct Columns<'a>(&'a Row);

impl Columns<'_> {
    fn get(&self, at: usize) -> Option<&str> {
        self.0.get(at)?.as_deref()
    }

    fn text(&self, at: usize) -> String {
        self.get(at).unwrap_or_default().to_owned()
    }

    fn number<T: std::str::FromStr>(&self, at: usize) -> Option<T> {
        self.get(at)?.parse().ok()
    }

    fn lsn(&self, at: usize) -> Option<Lsn> {
        self.number(at)
    }

    fn is_true(&self, at: usize) -> bool {
        self.get(at) == Some("t")
    }

    fn timeline(&self, at: usize) -> Option<u32> {
        u32::from_str_radix(self.get(at)?, 16).ok()
    }

    fn receiver(&self) -> Result<Receiver, LookError> {
        Ok(Receiver {
            pid: self.number(1).ok_or_else(|| odd("no number of its receiver"))?,
            status: self.text(2),
            host: self.get(3).map(str::to_owned),
            port: self.number(4),
            latest_end: self.lsn(5),
        })
    }

    fn standby(&self) -> Result<Standby, LookError> {
        Ok(Standby {
            pid: self.number(1).ok_or_else(|| odd("no number of a sender"))?,
            name: self.text(2),
            state: self.text(3),
            sync_state: self.text(4),
            flushed: self.lsn(5),
            replayed: self.lsn(6),
            replay_lag: self.number(7).map(Duration::from_millis),
        })
    }

    fn demands(&self) -> Result<Demands, LookError> {
        let value = |at| self.number(at).ok_or_else(|| odd("no value of a setting"));
        Ok(Demands {
            max_connections: value(1)?,
            max_worker_processes: value(2)?,
            max_wal_senders: value(3)?,
            max_prepared_transactions: value(4)?,
            max_locks_per_transaction: value(5)?,
        })
    }

    fn slot(&self) -> Slot {
        let wal_status = match self.get(3) {
            Some("reserved") => Some(WalStatus::Reserved),
            Some("extended") => Some(WalStatus::Extended),
            Some("unreserved") => Some(WalStatus::Unreserved),
            Some("lost") => Some(WalStatus::Lost),
            _ => None,
        };
        let (name, active) = (self.text(1), self.is_true(2));
        Slot { name, active, wal_status, restart_lsn: self.lsn(4) }
    }
}

#[cfg(test)]
mod tests;
