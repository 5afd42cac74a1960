//! The one place that prints.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Prints to standard output. A reader that has gone away (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    print_on(text).map(drop)
}

/// The same for those who go on printing. False: the reader has gone away.
pub(crate) fn print_on(text: &str) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("print to standard output"),
    }
}

/// Waits until whoever reads our standard output has gone away: for those who have nothing to print for long.
pub(crate) async fn reader_gone() {
    let out = std::io::stdout();
    loop {
        let mut fds = [PollFd::new(&out, PollFlags::empty())];
        let gone = poll(&mut fds, Some(&Timespec::default())).is_ok()
            && fds[0].revents().intersects(PollFlags::ERR | PollFlags::NVAL);
        if gone {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Columns and rows of the terminal; `None` if there is none.
pub(crate) fn terminal_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// ANSI colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ink {
    pub(crate) colour: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Bold,
    Faint,
    Red,
    Green,
    Yellow,
}

impl Ink {
    pub(crate) fn on(self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Bold => "1",
            Paint::Faint => "2",
            Paint::Red => "31",
            Paint::Green => "32",
            Paint::Yellow => "33",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Without control characters: what a backend answered must not steer the terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
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
