//! Lets the client of a measurement into a server as the peers' configuration does: trusted by its address.
//!
//! outlast keeps a part of `pg_hba.conf` for itself and leaves the rest to the user; here we are the user.

use std::path::Path;

use anyhow::{Context, Result};

use super::USER;
use crate::children::User;

const FILE: &str = "pg_hba.conf";
/// The last line of the part that is not ours.
const END: &str = "# outlast end";

fn line() -> String {
    format!("host all {USER} 127.0.0.0/8 trust")
}

/// Opens the door where it is closed; true if the server must read the file again.
pub(crate) fn open(data_dir: &Path) -> Result<bool> {
    let file = data_dir.join(FILE);
    // A node whose database is not there yet, or does not run, has no door.
    if !data_dir.join("postmaster.pid").exists() {
        return Ok(false);
    }
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(false) };
    let Some(text) = opened(&text) else { return Ok(false) };
    let fresh = data_dir.join("pg_hba.conf.bench");
    std::fs::write(&fresh, text).with_context(|| format!("write {}", fresh.display()))?;
    User::find(USER)?.give(&fresh)?;
    std::fs::rename(&fresh, &file).with_context(|| format!("replace {}", file.display()))?;
    Ok(true)
}

/// The text with our line as the first that is the user's, so that nothing of outlast's is overruled; `None` if it is
/// there.
fn opened(text: &str) -> Option<String> {
    let ours = line();
    if text.lines().any(|line| line == ours) {
        return None;
    }
    let mut lines: Vec<&str> = text.lines().collect();
    let end = lines.iter().position(|line| *line == END);
    lines.insert(end.map_or(0, |end| end + 1), &ours);
    Some(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_line_stands_below_the_part_of_outlast_and_above_all_else() {
        let text =
            format!("# begin\nhost all all all reject\n{END}\nhost all all 127.0.0.1/32 scram\n");
        let opened_once = opened(&text).unwrap();
        assert_eq!(
            opened_once,
            format!(
                "# begin\nhost all all all reject\n{END}\n{}\nhost all all 127.0.0.1/32 scram\n",
                line()
            )
        );
        assert_eq!(opened(&opened_once), None);
        assert_eq!(
            opened("local all all peer\n").unwrap(),
            format!("{}\nlocal all all peer\n", line())
        );
    }
}
