//! PostgreSQL that fails over: real agents and real servers on addresses of loopback, run as a user runs them.
//!
//! The names A-n are scenarios of Patroni's and pg_auto_failover's own suites, taken over; those of traps are faults that
//! other tools were found to have. With `OUTLAST_REAL=1` the tests run; without it they say that they did not.

#![cfg(test)]

use std::io::Write as _;

mod agents;
mod alone;
mod begin;
mod cluster;
mod crowd;
mod death;
mod disk;
mod fences;
mod freeze;
mod isolation;
mod ledger;
mod live;
mod majority;
mod pause;
mod processes;
mod regions;
mod reinit;
mod rest;
mod restart;
mod restore;
mod rights;
mod rule;
mod said;
mod schedule;
mod settings;
mod slots;
mod sql;
mod switchover;
mod twice;
mod versions;
mod wait;
mod witness;

/// Whether these tests are to run. Then PostgreSQL has to be there.
fn are_real() -> bool {
    let real = std::env::var_os("OUTLAST_REAL").is_some_and(|value| value == "1");
    if !real {
        // Past what keeps the output of tests that pass to itself.
        let said = b"NOT RUN: with OUTLAST_REAL=1 this test starts real PostgreSQL servers\n";
        std::io::stderr().write_all(said).ok();
    }
    real
}
