//! The few calls of Route 53, RDS and CloudWatch that outlast makes, with as little as they need: requests are signed here
//! (Signature Version 4), sent over the HTTP and TLS that the rest of outlast has, and their XML is read into a tree.
//!
//! [`Credentials`](credentials::Credentials) are never shown: neither in `Debug` nor in logs nor in errors.
#![forbid(unsafe_code)]

pub mod client;
pub mod credentials;
mod error;
mod http;
mod ini;
pub mod rds;
pub mod route53;
mod sign;
mod xml;

pub use client::Client;
pub use error::AwsError;
pub use xml::Element;
