//! From standby to primary, and what a primary must prove.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Doing, Error};
use crate::look::{Fault, LOOK_LIMIT, LookError};
use crate::postgres::Postgres;
use crate::settings::{CONTROL_ROLE, REPLICATION_ROLE, Settings};
use crate::sql::{Connection, Row, SqlError, literal};

/// How often a promotion is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// To make or refresh the roles.
const ROLES_LIMIT: Duration = Duration::from_secs(10);

/// Roles whose sessions can be moved between servers; those of more must log in again.
const VERIFIERS_MAX: usize = 1000;

/// What is committed when a write is tried.
const WRITE: &str = "SELECT pg_logical_emit_message(true, 'outlast', '')";

/// Which commit is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// On this node's disk.
    Local,
    /// On as many nodes as are waited for.
    Synchronous,
}

impl Postgres {
    /// Commits a message in the log, through a new connection if there is one to be had. Works in the quiet state, too.
    pub async fn write_probe(&self, write: Write, limit: Duration) -> Result<(), LookError> {
        match self.write_anew(write, limit).await {
            Err(error) if error.fault == Fault::TooMany && write == Write::Local => {
                self.write_through_spare(limit).await
            }
            written => written,
        }
    }

    async fn write_through_spare(&self, limit: Duration) -> Result<(), LookError> {
        let mut connection = self.enter(limit).await?;
        for sql in [
            "SET default_transaction_read_only = off",
            WRITE,
            "RESET default_transaction_read_only",
        ] {
            connection.query(sql, limit).await?;
        }
        self.keep_spare(connection).await;
        Ok(())
    }

    async fn write_anew(&self, write: Write, limit: Duration) -> Result<(), LookError> {
        let commit = match write {
            Write::Local => "local",
            Write::Synchronous => "on",
        };
        let options = [("synchronous_commit", commit), ("default_transaction_read_only", "off")];
        let mut connection = Connection::open(&self.settings, limit, &options).await?;
        match connection.query(WRITE, limit).await {
            Ok(_) => {
                connection.close().await;
                Ok(())
            }
            Err(error) => {
                if let (SqlError::TimedOut(_), Some(pid)) = (&error, connection.pid()) {
                    // It would wait for its standbys for ever, and the next one beside it.
                    self.terminate(pid).await;
                }
                Err(error.into())
            }
        }
    }

    async fn terminate(&self, pid: u32) {
        let sql = format!("SELECT pg_terminate_backend({pid})");
        if let Err(error) = self.ask(&sql, LOOK_LIMIT).await {
            tracing::warn!(pid, %error, "cannot end a session of ours");
        }
    }

    /// Asks one thing through a new connection.
    pub(crate) async fn ask(&self, sql: &str, limit: Duration) -> Result<Vec<Row>, LookError> {
        let mut connection = Connection::open(&self.settings, limit, &[]).await?;
        let rows = connection.query(sql, limit).await?;
        connection.close().await;
        Ok(rows)
    }

    /// Asks for one setting; of a session that is open, if no other can be.
    pub(crate) async fn setting(&self, name: &str, limit: Duration) -> Result<String, LookError> {
        let mut connection = self.enter(limit).await?;
        let rows = connection.query(&format!("SELECT current_setting('{name}')"), limit).await?;
        self.keep_spare(connection).await;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()?).unwrap_or_default())
    }

    /// Asks for one value.
    pub(crate) async fn value(&self, sql: &str, limit: Duration) -> Result<String, LookError> {
        let rows = self.ask(sql, limit).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()?).unwrap_or_default())
    }

    /// What the roles' passwords are compared with, by role: from that, who has shown that they know a password can be let
    /// in elsewhere. Ours are left out.
    pub async fn verifiers(&self) -> Result<BTreeMap<String, String>, LookError> {
        let sql = format!(
            "SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin AND rolpassword LIKE 'SCRAM-SHA-256$%'
             AND rolname NOT IN ('{CONTROL_ROLE}', '{REPLICATION_ROLE}') ORDER BY rolname LIMIT {VERIFIERS_MAX}"
        );
        let rows = self.ask(&sql, LOOK_LIMIT).await?;
        let pair = |row: Row| {
            let mut row = row.into_iter();
            Some((row.next()??, row.next()??))
        };
        Ok(rows.into_iter().filter_map(pair).collect())
    }

    /// Makes the standby a primary. Returns its timeline once it takes writes. Idempotent.
    pub async fn promote(&self, limit: Duration) -> Result<u32, Error> {
        let end = Instant::now() + limit;
        // Replay that stands still would be promoted where it stands, or never (trap 31).
        let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_promote(false) END;
            SELECT pg_wal_replay_resume() WHERE pg_is_in_recovery() AND pg_is_wal_replay_paused()";
        self.ask(sql, limit.min(LOOK_LIMIT)).await.doing("promote")?;
        loop {
            let sql = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END";
            let timeline = self.value(sql, LOOK_LIMIT).await.doing("promote")?;
            if let Ok(timeline) = u32::from_str_radix(&timeline, 16) {
                self.set_key(false).doing("promote")?;
                let change = |shape: &mut crate::conf::Shape| {
                    shape.upstream = None;
                    shape.primary = true;
                };
                self.shape(change).await.doing("promote")?;
                return Ok(timeline);
            }
            if Instant::now() >= end {
                return Err(Error::new(format!("promote: not done within {} s", limit.as_secs())));
            }
            sleep(LOOK).await;
        }
    }

    /// Writes a checkpoint and waits until the control file is on the timeline of the log (trap 32). From then on
    /// others can rewind from here. Returns the timeline.
    pub async fn checkpoint(&self, limit: Duration) -> Result<u32, Error> {
        let end = Instant::now() + limit;
        self.ask("CHECKPOINT", limit).await.doing("write a checkpoint")?;
        loop {
            let sql = "SELECT timeline_id, left(pg_walfile_name(pg_current_wal_lsn()), 8) FROM pg_control_checkpoint()";
            let rows = self.ask(sql, LOOK_LIMIT).await.doing("read the control file")?;
            if let Some([Some(control), Some(log)]) = rows.first().map(Vec::as_slice)
                && let (Ok(control), Ok(log)) =
                    (control.parse::<u32>(), u32::from_str_radix(log, 16))
                && control == log
            {
                return Ok(log);
            }
            if Instant::now() >= end {
                return Err(Error::new("the control file stays on an older timeline"));
            }
            sleep(LOOK).await;
        }
    }

    /// Makes or refreshes our roles on a primary.
    pub async fn ensure_roles(&self) -> Result<(), Error> {
        let options = [
            ("default_transaction_read_only", "off"),
            // The secret is not to stand in the output.
            ("log_statement", "none"),
            ("log_min_error_statement", "panic"),
            ("log_min_duration_statement", "-1"),
        ];
        let mut connection = Connection::open(&self.settings, ROLES_LIMIT, &options)
            .await
            .doing("ensure the roles")?;
        for statement in role_statements(&self.settings) {
            connection.query(&statement, ROLES_LIMIT).await.doing("ensure the roles")?;
        }
        connection.close().await;
        Ok(())
    }
}

/// What makes our roles, one statement a line. Running it twice changes nothing.
pub(crate) fn role_statements(settings: &Settings) -> Vec<String> {
    let make = |role: &str| {
        format!(
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{role}') \
             THEN CREATE ROLE {role}; END IF; END $$"
        )
    };
    let secret = literal(&settings.replication_secret);
    let mut statements = vec![
        make(CONTROL_ROLE),
        format!("ALTER ROLE {CONTROL_ROLE} SUPERUSER LOGIN PASSWORD NULL"),
        "SET password_encryption = 'scram-sha-256'".to_owned(),
        make(REPLICATION_ROLE),
        format!("ALTER ROLE {REPLICATION_ROLE} NOSUPERUSER REPLICATION LOGIN PASSWORD {secret}"),
    ];
    // What pg_rewind calls.
    for function in [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ] {
        statements
            .push(format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {REPLICATION_ROLE}"));
    }
    statements
}
