//! As much of PostgreSQL's protocol as a client needs that is trusted by its address.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const CONNECT_MAX: Duration = Duration::from_secs(2);
const PROTOCOL: i32 = 196_608;

/// A write on a server that takes none.
pub(crate) const READ_ONLY: &str = "25006";

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The server says no; `state` is its SQLSTATE.
    Refused { state: String, text: String },
    /// The connection is gone, or never was. What was asked may have been done.
    Lost(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Lost(error.to_string())
    }
}

pub(crate) type Row = Vec<Option<String>>;

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    stream: TcpStream,
}

impl Session {
    /// `answers`: how long each answer may take.
    pub(crate) fn open(at: SocketAddr, answers: Duration) -> Result<Session, Failure> {
        let stream = TcpStream::connect_timeout(&at, CONNECT_MAX)?;
        stream.set_read_timeout(Some(answers))?;
        stream.set_nodelay(true)?;
        let mut session = Session { stream };
        let mut body = PROTOCOL.to_be_bytes().to_vec();
        body.extend(b"user\0postgres\0database\0postgres\0application_name\0a test\0\0");
        session.send(&[], &body)?;
        session.answer()?;
        Ok(session)
    }

    pub(crate) fn ask(&mut self, sql: &str) -> Result<Vec<Row>, Failure> {
        let body = [sql.as_bytes(), b"\0"].concat();
        self.send(b"Q", &body)?;
        self.answer()
    }

    fn send(&mut self, tag: &[u8], body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len() + 4).expect("what we send is short");
        self.stream.write_all(&[tag, &length.to_be_bytes(), body].concat())
    }

    /// Reads until the server is ready for the next question.
    fn answer(&mut self) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            let mut head = [0; 5];
            if let Err(error) = self.stream.read_exact(&mut head) {
                // After a fatal error nothing follows.
                return Err(refused.unwrap_or_else(|| error.into()));
            }
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let mut body = vec![0; usize::try_from(length).unwrap().saturating_sub(4)];
            self.stream.read_exact(&mut body)?;
            match head[0] {
                b'D' => rows.push(row(&body)),
                b'E' => refused = Some(refusal(&body)),
                b'R' if body != 0_i32.to_be_bytes() => {
                    return Err(Failure::Lost("a password is asked for".to_owned()));
                }
                b'Z' => return refused.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }
}

fn row(body: &[u8]) -> Row {
    let (count, mut rest) = body.split_first_chunk::<2>().expect("a row has a count");
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk::<4>().expect("a column has a length");
        rest = behind;
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        columns.push(length.map(|length| {
            let (value, behind) = rest.split_at(length);
            rest = behind;
            String::from_utf8_lossy(value).into_owned()
        }));
    }
    columns
}

fn refusal(body: &[u8]) -> Failure {
    let field = |kind: u8| {
        let found = body.split(|byte| *byte == 0).find(|field| field.first() == Some(&kind));
        found.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).unwrap_or_default()
    };
    Failure::Refused { state: field(b'C'), text: field(b'M') }
}

/// Asks once, on a session of its own.
pub(crate) fn ask(at: SocketAddr, answers: Duration, sql: &str) -> Result<Vec<Row>, Failure> {
    Session::open(at, answers)?.ask(sql)
}
