//! What is asked of Linux's network that no safe crate has in one piece: netlink with its links and addresses, the sets and
//! rules of nftables, packet sockets and raw sockets, and many datagrams in one call.
//!
//! It says how the kernel is asked, and decides nothing. Everything belongs to the network namespace of the thread that
//! opened it.

pub mod datagrams;
pub mod netlink;
pub mod nft;
pub mod packet;
mod ready;
pub mod route;
