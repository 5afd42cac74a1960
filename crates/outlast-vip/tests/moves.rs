//! Addresses that really move, in a network of namespaces: what a client sees, and what the kernel does by itself.
//!
//! Needs no root: without it all of it lies in a user namespace. Where the machine allows neither, it fails.

#![cfg(test)]

#[path = "moves/bench.rs"]
mod bench;
#[path = "moves/cases.rs"]
mod cases;
#[path = "moves/field.rs"]
mod field;
#[path = "moves/keepalived.rs"]
mod keepalived;
#[path = "moves/shark.rs"]
mod shark;
#[path = "moves/vrrp.rs"]
mod vrrp;

use std::io;
use std::process::{Command, ExitCode};

use outlast_host::lab::{Keeper, die_with_parent, enter_ground, on_its_own};
use rustix::mount::{MountFlags, mount};

type Case = (&'static str, fn(&field::Field));

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--list") => list(),
        Some("keeper") => keeper(&arguments[1..]),
        Some("machine") => machine(),
        Some("guardian") => cases::guardian_process(),
        Some("holder") => cases::holder_process(),
        _ => owner(&arguments),
    }
}

fn cases() -> impl Iterator<Item = &'static Case> {
    let vrrp = vrrp::CASES.iter().chain(keepalived::CASES).chain(shark::CASES);
    cases::CASES.iter().chain(vrrp).chain(bench::CASES)
}

fn list() -> ExitCode {
    for (name, _) in cases() {
        println!("{name}: test");
    }
    ExitCode::SUCCESS
}

/// Starts the keeper in namespaces of its own.
fn owner(arguments: &[String]) -> ExitCode {
    enter_ground().unwrap_or_else(|refused| panic!("{refused}"));
    let mut command = Command::new(std::env::current_exe().expect("we run"));
    command.arg("keeper").args(arguments);
    let keeper = Keeper::start(command).unwrap_or_else(|refused| panic!("{refused}"));
    let ended = keeper.wait().expect("wait for the keeper");
    if ended.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Leads all cases, one after the other.
fn keeper(arguments: &[String]) -> ExitCode {
    die_with_parent().expect("die with the owner");
    on_its_own().expect("keep mounts to ourselves");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None).expect("mount /proc");
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_meant = |name: &str| {
        let fits = |filter: &&String| {
            if exact { filter.as_str() == name } else { name.contains(filter.as_str()) }
        };
        filters.is_empty() || filters.iter().any(fits)
    };
    let field = field::Field::build();
    let mut failed = Vec::new();
    for (name, case) in cases().filter(|(name, _)| is_meant(name)) {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&field)));
        println!("test {name} ... {}", if done.is_ok() { "ok" } else { "FAILED" });
        if done.is_err() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        println!("failed: {failed:?}");
        ExitCode::FAILURE
    }
}

/// The first process of a machine: nothing but a place to be, until the keeper ends.
fn machine() -> ExitCode {
    io::copy(&mut io::stdin(), &mut io::sink()).expect("wait for the keeper's end");
    ExitCode::SUCCESS
}
