//! The data plane: HTTP, TCP and PostgreSQL, from listening sockets that somebody else opened to the backends of a table.
//!
//! [`Proxy::start`] starts the worker threads, [`Proxy::apply`] puts a [`table::Table`] in force, [`Proxy::drain`] lets it end.
//! It decides nothing but what every request asks: which backend, once more or not, and when traffic itself shows that a
//! backend is bad. What is served only while somebody vouches for it ([`Proxy::vouch`]) ends by itself, under the eyes of a
//! [`Guard`].

mod answers;
pub mod balance;
pub mod body;
pub mod budget;
pub mod eject;
mod fence;
mod guard;
pub mod head;
mod http1;
mod http2;
mod io;
mod lease;
mod live;
pub mod postgres;
pub mod proxy_protocol;
mod seats;
mod server;
mod settle;
pub mod stats;
pub mod table;
mod tcp;
mod tls;
mod worker;

pub use guard::Guard;
pub use live::Notice;
pub use server::{Proxy, Refused};
pub use settle::{Applying, Unsettled};

/// Whether a table could be put in force: its certificates and keys work.
pub fn check(table: &table::Table) -> Result<(), String> {
    table.services.iter().try_for_each(|service| tls::server_config(service).map(drop))
}
