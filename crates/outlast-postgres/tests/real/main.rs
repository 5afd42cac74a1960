//! The driver against real servers. Each test names the trap that it is about, by its number in the project's notes.
//!
//! PostgreSQL 15 must be there (`OUTLAST_PG_BIN` says where, if not in Debian's place). `OUTLAST_PG_VERSIONS=16,18` adds
//! those that lie in `target/test-tools/postgres`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "how long things took is read by people")]

mod alone;
mod pair;
mod rig;

/// Not a test: what the tests start as their keeper.
#[test]
fn keeper_process() {
    if std::env::var_os(rig::AS_KEEPER).is_some() {
        let run_dir = std::env::args_os().next_back().unwrap();
        outlast_postgres::keeper::run(run_dir.as_ref()).unwrap();
    }
}
