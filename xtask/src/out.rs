//! Everything that people see: lines that stay, and one status line that is rewritten on a terminal.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// A status line stands on the terminal without a line end.
static STATUS_OPEN: AtomicBool = AtomicBool::new(false);
const CLEAR_LINE: &str = "\r\x1b[K";

/// Prints a line that stays.
pub(crate) fn line(text: impl Display) {
    let clear = if STATUS_OPEN.swap(false, Ordering::Relaxed) { CLEAR_LINE } else { "" };
    write(&format!("{clear}{text}\n"));
}

/// Shows what is true now; on a terminal the next output replaces it.
pub(crate) fn status(text: impl Display) {
    if !is_terminal() {
        return line(text);
    }
    STATUS_OPEN.store(true, Ordering::Relaxed);
    // A line that wraps could not be cleared again.
    let shown: String = text.to_string().chars().take(terminal_width() - 1).collect();
    write(&format!("{CLEAR_LINE}{shown}"));
}

fn terminal_width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 1).unwrap_or(80)
}

/// A reader that went away must not end the run.
fn write(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _unread = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err();
}

/// Status lines may come often: each replaces the one before.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Rows under a head, columns as wide as their widest cell; the first column to the left, the others to the right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let all = || std::iter::once(&head).chain(rows);
    let width = |column: usize| {
        all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let render = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    all().map(render).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["kill b1".to_owned(), "7".to_owned()]];
        assert_eq!(table(&["fault", "requests"], &rows), "fault    requests\nkill b1         7");
    }
}
