//! Words for what machines say.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// Characters of foreign text (an output line, a message) that a sentence may carry.
pub(crate) const QUOTE_MAX: usize = 200;

/// Foreign text made fit for a sentence: one line, printable, not long.
pub(crate) fn quote(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut quoted: String = text.trim().chars().map(clean).take(QUOTE_MAX).collect();
    if text.trim().chars().nth(QUOTE_MAX).is_some() {
        quoted.push('…');
    }
    quoted
}

/// An error of the operating system without its number: `no such file or directory`.
pub(crate) fn show_io(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// `exit status 1`, `killed by SIGKILL`
pub(crate) fn show_status(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match signal_name(signal) {
            Some(name) => format!("killed by {name}"),
            None => format!("killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return None,
    };
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_quoted_short_and_on_one_line() {
        assert_eq!(quote("  a\nb\u{1b}[31m \n"), "a b [31m");
        assert_eq!(quote(&"x".repeat(300)).chars().count(), QUOTE_MAX + 1);
    }

    #[test]
    fn statuses_and_errors_read_well() {
        assert_eq!(show_status(ExitStatus::from_raw(1 << 8)), "exit status 1");
        assert_eq!(show_status(ExitStatus::from_raw(9)), "killed by SIGKILL");
        assert_eq!(show_status(ExitStatus::from_raw(64)), "killed by signal 64");
        assert_eq!(show_io(&io::Error::from_raw_os_error(2)), "no such file or directory");
        assert_eq!(show_io(&io::Error::other("Odd")), "odd");
    }
}
