//! The project's own commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask bench`.

mod args;
mod backend;
mod bench;
mod children;
mod demo;
mod etcd;
mod fuzz;
mod histogram;
mod history;
mod http;
mod load;
mod out;
mod postgres;
mod procs;
mod random;
mod sim;
mod test;
mod tools;
mod workspace;

use std::process::ExitCode;

use args::Args;

/// What a verb found, apart from errors that kept it from finding out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Bad,
}

struct Verb {
    name: &'static str,
    help: &'static str,
    run: fn(Args) -> anyhow::Result<Verdict>,
}

const VERBS: &[Verb] = &[
    Verb { name: "demo", help: demo::HELP, run: demo::run },
    Verb { name: "test", help: test::HELP, run: test::run },
    Verb { name: "sim", help: sim::HELP, run: sim::run },
    Verb { name: "bench", help: bench::HELP, run: bench::run },
    Verb { name: "tools", help: tools::HELP, run: tools::run },
    Verb { name: "history", help: history::HELP, run: history::run },
    Verb { name: "fuzz", help: fuzz::HELP, run: fuzz::run },
    Verb { name: "backend", help: "", run: backend::run },
    Verb { name: "pgprobe", help: "", run: postgres::prober::run },
    Verb { name: "vipecho", help: "", run: bench::addresses::echo },
    Verb { name: "vipclient", help: "", run: bench::addresses::client },
    Verb { name: "reaper", help: "", run: postgres::reaper::run },
    Verb { name: "leash", help: "", run: children::leash },
];

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_default();
    let args = Args::new(words);
    let Some(verb) = VERBS.iter().find(|verb| verb.name == name) else {
        out::line(usage());
        let asked = ["", "help", "-h", "--help"].contains(&name.as_str());
        return if asked { ExitCode::SUCCESS } else { ExitCode::from(2) };
    };
    if args.asks_for_help() {
        out::line(verb.help);
        return ExitCode::SUCCESS;
    }
    match (verb.run)(args) {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Err(error) => {
            out::line(format!("{name}: {error:#}"));
            ExitCode::from(2)
        }
    }
}

/// The first line of each verb's help; verbs without one are for our own use.
fn usage() -> String {
    let about = VERBS.iter().filter_map(|verb| verb.help.lines().next());
    let lines: Vec<_> = about.map(|line| format!("  {line}")).collect();
    format!("usage: cargo xtask VERB [--help]\n\n{}", lines.join("\n"))
}
