//! The agent's side: one question, one answer.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Answer, Ask, Exit, LINE_MAX, Standing};

/// How a keeper that is not there answers.
const GONE: [io::ErrorKind; 4] = [
    io::ErrorKind::NotFound,
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::BrokenPipe,
];

/// Why there is no answer of a keeper's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AskError {
    /// There is no keeper.
    Gone,
    /// It does not answer.
    Silent,
    Refused(String),
    Other(String),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AskError::Gone => f.write_str("there is no keeper"),
            AskError::Silent => f.write_str("the keeper does not answer"),
            AskError::Refused(why) => write!(f, "the keeper refuses: {why}"),
            AskError::Other(what) => f.write_str(what),
        }
    }
}

/// How a postmaster's life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exited {
    Postmaster(Exit),
    /// The keeper itself is gone: whatever it kept is without a fuse, and has to be killed.
    Keeper,
}

/// Asks the keeper of this run directory.
pub(crate) async fn ask(run_dir: &Path, ask: &Ask, limit: Duration) -> Result<Standing, AskError> {
    timeout(limit, ask_unlimited(run_dir, ask)).await.map_err(|_elapsed| AskError::Silent)?
}

/// Waits until the postmaster is gone, or its keeper.
pub(crate) async fn exited(run_dir: &Path) -> Exited {
    match ask_unlimited(run_dir, &Ask::Wait).await {
        Ok(Standing { exit: Some(exit), .. }) => Exited::Postmaster(exit),
        Ok(Standing { exit: None, .. }) | Err(_) => Exited::Keeper,
    }
}

async fn ask_unlimited(run_dir: &Path, ask: &Ask) -> Result<Standing, AskError> {
    let said = |error: io::Error| match GONE.contains(&error.kind()) {
        true => AskError::Gone,
        false => AskError::Other(format!("ask the keeper: {error}")),
    };
    let mut line = serde_json::to_vec(ask).map_err(|e| AskError::Other(e.to_string()))?;
    line.push(b'\n');
    let mut stream = UnixStream::connect(super::socket(run_dir)).await.map_err(said)?;
    stream.write_all(&line).await.map_err(said)?;
    let mut answer = String::new();
    let limit = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
    BufReader::new(stream.take(limit)).read_line(&mut answer).await.map_err(said)?;
    if answer.is_empty() {
        return Err(AskError::Gone);
    }
    match serde_json::from_str(&answer) {
        Ok(Answer::Standing(standing)) => Ok(standing),
        Ok(Answer::Refused(why)) => Err(AskError::Refused(why)),
        Err(error) => Err(AskError::Other(format!("read the keeper's answer: {error}"))),
    }
}
