//! A control connection: through the unix socket, as the agent's own role, one query after another.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::settings::{CONTROL_ROLE, Settings};
use crate::wire::{self, Complaint, Decoder, Malformed, Message};

/// The server's own end for a statement of ours, beyond the end that we set here.
const STATEMENT_TIMEOUT_MARGIN: Duration = Duration::from_secs(1);
/// Bytes that are read at once.
const READ: usize = 8 << 10;
/// Rows of one answer.
const ROWS_MAX: usize = 100_000;
/// The database that every cluster has from its beginning.
const DATABASE: &str = "postgres";

/// SQLSTATE `too_many_connections`.
pub(crate) const TOO_MANY: &str = "53300";

/// Columns as text.
pub(crate) type Row = Vec<Option<String>>;

/// Why there was no answer.
#[derive(Debug)]
pub(crate) enum SqlError {
    /// Nobody listens.
    Io(io::Error),
    Server(Complaint),
    Malformed(Malformed),
    /// No answer within this time.
    TimedOut(Duration),
}

impl SqlError {
    pub(crate) fn sqlstate(&self) -> Option<&str> {
        match self {
            SqlError::Server(complaint) => Some(&complaint.sqlstate),
            SqlError::Io(_) | SqlError::Malformed(_) | SqlError::TimedOut(_) => None,
        }
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SqlError::Io(error) => error.fmt(f),
            SqlError::Server(complaint) => {
                write!(f, "{} (SQLSTATE {})", complaint.message, complaint.sqlstate)
            }
            SqlError::Malformed(malformed) => malformed.fmt(f),
            SqlError::TimedOut(limit) => write!(f, "no answer within {} ms", limit.as_millis()),
        }
    }
}

impl From<io::Error> for SqlError {
    fn from(error: io::Error) -> SqlError {
        SqlError::Io(error)
    }
}

impl From<Malformed> for SqlError {
    fn from(malformed: Malformed) -> SqlError {
        SqlError::Malformed(malformed)
    }
}

/// A connection that is used by one at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    /// The server's process for it.
    pid: Option<u32>,
}

impl Connection {
    /// Opens a new connection. A statement that the server still works at when `limit` is over ends there, too.
    pub(crate) async fn open(
        settings: &Settings,
        limit: Duration,
        options: &[(&str, &str)],
    ) -> Result<Connection, SqlError> {
        let open = Connection::open_unlimited(settings, limit, options);
        timeout(limit, open).await.map_err(|_elapsed| SqlError::TimedOut(limit))?
    }

    async fn open_unlimited(
        settings: &Settings,
        limit: Duration,
        options: &[(&str, &str)],
    ) -> Result<Connection, SqlError> {
        let stream = UnixStream::connect(settings.socket()).await?;
        let mut connection = Connection { stream, decoder: Decoder::default(), pid: None };
        let statement = (limit + STATEMENT_TIMEOUT_MARGIN).as_millis().to_string();
        let mut parameters = vec![
            ("user", CONTROL_ROLE),
            ("database", DATABASE),
            ("application_name", CONTROL_ROLE),
            ("client_encoding", "UTF8"),
            // A function of the same name in `public` must not be ours (trap 45).
            ("search_path", "pg_catalog"),
            // What we write for ourselves waits for nobody.
            ("synchronous_commit", "local"),
            ("statement_timeout", &statement),
            ("lock_timeout", "0"),
            ("DateStyle", "ISO"),
        ];
        parameters.extend_from_slice(options);
        connection.stream.write_all(&wire::startup(&parameters)).await?;
        loop {
            let message = connection.receive().await?;
            match message.tag {
                b'R' if message.body == [0, 0, 0, 0] => {}
                b'R' => {
                    let message = "asked for a password at its own socket".to_owned();
                    let sqlstate = "28000".to_owned();
                    return Err(SqlError::Server(Complaint { sqlstate, message }));
                }
                b'K' => connection.pid = wire::backend_pid(&message.body),
                b'E' => return Err(SqlError::Server(Complaint::parse(&message.body))),
                b'Z' => return Ok(connection),
                // Parameters and notices.
                _ => {}
            }
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Asks; the rows of all statements of the query, in order.
    pub(crate) async fn query(&mut self, sql: &str, limit: Duration) -> Result<Vec<Row>, SqlError> {
        timeout(limit, self.query_unlimited(sql))
            .await
            .map_err(|_elapsed| SqlError::TimedOut(limit))?
    }

    async fn query_unlimited(&mut self, sql: &str) -> Result<Vec<Row>, SqlError> {
        self.stream.write_all(&wire::query(sql)).await?;
        let (mut rows, mut complaint) = (Vec::new(), None);
        loop {
            let message = self.receive().await?;
            match message.tag {
                b'D' if rows.len() < ROWS_MAX => rows.push(wire::row(&message.body)?),
                b'E' => {
                    let said = Complaint::parse(&message.body);
                    if said.sqlstate.starts_with("57P") {
                        // The server ends the connection with it.
                        return Err(SqlError::Server(said));
                    }
                    complaint = Some(said);
                }
                b'Z' => return complaint.map_or(Ok(rows), |said| Err(SqlError::Server(said))),
                _ => {}
            }
        }
    }

    /// Says good-bye; nobody waits for it.
    pub(crate) async fn close(mut self) {
        self.stream.write_all(&wire::terminate()).await.ok();
    }

    async fn receive(&mut self) -> Result<Message, SqlError> {
        loop {
            if let Some(message) = self.decoder.message()? {
                return Ok(message);
            }
            // On the heap: the futures that hold it are handed around.
            let mut bytes = vec![0; READ];
            match self.stream.read(&mut bytes).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => self.decoder.feed(&bytes[..count]),
            }
        }
    }
}

/// A text as a literal of SQL, whatever `standard_conforming_strings` says.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    match quoted.contains('\\') {
        true => format!("E'{}'", quoted.replace('\\', "\\\\")),
        false => format!("'{quoted}'"),
    }
}

/// A name as SQL writes it.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_names_are_quoted() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}
