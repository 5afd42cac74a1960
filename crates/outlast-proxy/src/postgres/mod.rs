//! PostgreSQL's own protocol (version 3, documentation chapter 55): sessions that outlive their backend.

use crate::http1::Door;
use crate::io::Io;

/// Serves one client of a database.
pub(crate) async fn serve(io: Io, door: Door) {
    drop((io, door));
}
