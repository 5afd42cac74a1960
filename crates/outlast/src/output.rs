//! The one place that prints.

use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::Context;

/// Prints to standard output. A reader that has gone away (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("print to standard output"),
    }
}

/// Prints to standard error; if that fails there is nobody to tell.
pub(crate) fn complain(text: &str) {
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}

/// Whether what is printed may be coloured: on a terminal, unless NO_COLOR says no.
pub(crate) fn output_may_have_colour() -> bool {
    std::io::stdout().is_terminal() && !colour_refused()
}

/// Whether complaints may be coloured: on a terminal, unless NO_COLOR says no.
pub(crate) fn complaints_may_have_colour() -> bool {
    std::io::stderr().is_terminal() && !colour_refused()
}

fn colour_refused() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
