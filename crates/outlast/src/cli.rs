//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Keeps a service and its data up when parts of it fail: one binary per node, one topology file.
#[derive(Debug, Parser)]
#[command(name = "outlast", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const AFTER_HELP: &str = "\
Examples:
  outlast check outlast.toml            what is wrong with the file, and what it promises
  outlast check --format json | jq .    the same for programs
  outlast schema > outlast.schema.json  what an editor needs to complete and check the file

`outlast VERB --help` says more about a verb.";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Says everything that is wrong with a topology file, or what can be expected of it.
    #[command(after_help = AFTER_HELP_OF_CHECK)]
    Check(CheckArgs),
    /// Prints the JSON Schema of the topology file: its sections, keys, defaults and what they mean.
    #[command(after_help = AFTER_HELP_OF_SCHEMA)]
    Schema,
}

const AFTER_HELP_OF_CHECK: &str = "\
Every mistake is named at once, with its line and what to write instead.

Examples:
  outlast check                         reads outlast.toml
  outlast check cluster/shop.toml
  outlast check - < shop.toml           reads standard input
  outlast check --format json           mistakes as {\"line\", \"column\", \"message\", \"help\"}

Exit status:
  0  the file makes sense
  1  it has mistakes
  2  it cannot be read";

const AFTER_HELP_OF_SCHEMA: &str = "\
Examples:
  outlast schema > outlast.schema.json
  outlast schema | jq '.[\"$defs\"][\"service.NAME\"].properties | keys'

For an editor with a TOML language server, write as the first line of outlast.toml:
  #:schema ./outlast.schema.json";

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The topology file; - is standard input.
    #[arg(default_value = "outlast.toml", value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// The same as --format table.
    #[arg(long, conflicts_with = "format")]
    pub(crate) table: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}
