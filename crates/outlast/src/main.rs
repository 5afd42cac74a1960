//! `outlast`: one binary, one topology file.

mod check;
mod cli;
mod output;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Verb};

/// What a run came to, as the shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Fine,
    /// The file has mistakes.
    Mistakes,
    /// It could not even be tried.
    Unable,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.verb {
        Verb::Check(args) => check::run(&args),
        Verb::Schema => schema(),
    };
    let outcome = outcome.unwrap_or_else(|error| {
        output::complain(&format!("error: {error:#}\n"));
        Outcome::Unable
    });
    ExitCode::from(match outcome {
        Outcome::Fine => 0,
        Outcome::Mistakes => 1,
        Outcome::Unable => 2,
    })
}

fn schema() -> anyhow::Result<Outcome> {
    output::print(&format!("{:#}\n", outlast::file::schema()))?;
    Ok(Outcome::Fine)
}
