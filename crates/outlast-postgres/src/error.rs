//! What went wrong, as a chain that people read: `promote db2: connect to the server: refused`.

use std::fmt;

/// A chain of "verb thing", outermost first. Nobody branches on it; what is branched on has an enum of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Error {
        Error(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Says what was being done when it went wrong.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Error>;
}

impl<T, E: fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Error> {
        self.map_err(|error| Error(format!("{what}: {}", plain(&error.to_string()))))
    }
}

/// An error of the operating system without its number: `no such file or directory`.
fn plain(text: &str) -> String {
    let Some((text, _number)) = text.split_once(" (os error") else { return text.to_owned() };
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_what_was_done_from_the_outside_in() {
        let missing: Result<(), _> = Err(std::io::Error::from_raw_os_error(2));
        let error = missing.doing("read the file").doing("start db1").unwrap_err();
        assert_eq!(error.to_string(), "start db1: read the file: no such file or directory");
    }
}
