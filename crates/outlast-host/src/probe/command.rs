//! Asks by running a program: exit status 0 is a yes.

use outlast_core::topology::{Backend, Command};

use super::{Code, Fault, Limit, fault, internal};
use crate::command::{Ended, Leftovers, run};
use crate::text::{show_io, show_status};

/// What stands for the backend's `host:port` in an argument.
const BACKEND: &str = "{backend}";

/// Asks once; the sentence of a success.
pub(super) async fn ask(
    command: &Command,
    backend: Option<&Backend>,
    limit: &Limit,
) -> Result<String, Fault> {
    let argv = arguments(command, backend)?;
    match run(&argv, limit.left(), Leftovers::Kill).await {
        Ended::Exited { status, last_line } => {
            let sentence = with_line(show_status(status), &last_line);
            if status.success() { Ok(sentence) } else { Err(fault(Code::Exit, sentence)) }
        }
        Ended::TimedOut { last_line } => {
            let Fault { code, reason } = limit.silent("");
            Err(fault(code, with_line(reason, &last_line)))
        }
        Ended::NotRun(error) => {
            let program = argv.first().map_or("", String::as_str);
            let code = if super::dial::ours(&error) { Code::Internal } else { Code::Exit };
            Err(fault(code, format!("run {program}: {}", show_io(&error))))
        }
    }
}

fn with_line(sentence: String, line: &str) -> String {
    if line.is_empty() { sentence } else { format!("{sentence}: {line}") }
}

/// The command with the backend's address put in.
fn arguments(command: &Command, backend: Option<&Backend>) -> Result<Vec<String>, Fault> {
    let put = |argument: &String| match backend {
        Some(backend) => Ok(argument.replace(BACKEND, &backend.authority())),
        None if argument.contains(BACKEND) => {
            Err(internal(format!("the command names {BACKEND}, but there is no backend to ask")))
        }
        None => Ok(argument.clone()),
    };
    command.0.iter().map(put).collect()
}
