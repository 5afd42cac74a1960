//! An authoritative name server whose answers are made beforehand.
//!
//! [`table::Table::build`] makes the answers of all zones, signatures included; [`respond::respond`] is what a message is answered
//! with, as a function. [`server::Server`] is that with sockets: UDP on a thread for each core, TCP, transfers, updates.
//! [`remote::update`] changes records in other people's servers; [`elsewhere`] keeps a zone's records there as they are wanted.
#![forbid(unsafe_code)]

mod cookie;
pub mod dnssec;
mod edns;
pub mod elsewhere;
mod limit;
pub mod name;
pub mod remote;
pub mod respond;
pub mod server;
pub mod table;
mod transfer;
mod tsig;
pub mod update;
mod wire;
pub mod zone;

pub use cookie::CookieSecrets;
pub use limit::RateLimit;
pub use tsig::{Algorithm, BadTsigKey, TsigKey};
