//! Asks a thing how it is, once, and says in one sentence what it answered.
//!
//! A probe is always a fresh question: a new connection, a new TLS handshake, a new process. It never outlasts its
//! timeout and never decides; counting is the business of a `Belief`.

mod command;
mod dial;
mod grpc;
mod http;
mod spread;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use outlast_core::topology::{Authority, Backend, Check};
use outlast_core::units::show_duration;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

pub use grpc::serving_status;
pub use spread::{first_offset, round};

use dial::{Cover, Speech, Tls};

/// What a probe found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub ok: bool,
    /// The kind of the reason, for metrics.
    pub code: Code,
    /// One short sentence for people: `status 500, expected 200-299`.
    pub reason: String,
    pub took: Duration,
}

/// Why a probe answered as it did. `Internal` is the prober's own trouble and says nothing about the thing probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    Ok,
    Refused,
    Timeout,
    Reset,
    Unreachable,
    Dns,
    Tls,
    Certificate,
    /// An HTTP status that is not expected.
    Status,
    Body,
    /// The answer is not of the protocol asked for.
    Protocol,
    /// A command's exit status.
    Exit,
    Grpc,
    Other,
    /// No descriptors, no memory, no free port, a check that cannot be asked: discard the answer.
    Internal,
}

impl Code {
    pub const ALL: [Code; 15] = [
        Code::Ok,
        Code::Refused,
        Code::Timeout,
        Code::Reset,
        Code::Unreachable,
        Code::Dns,
        Code::Tls,
        Code::Certificate,
        Code::Status,
        Code::Body,
        Code::Protocol,
        Code::Exit,
        Code::Grpc,
        Code::Other,
        Code::Internal,
    ];

    /// The stable word, as a metric's label has it.
    pub fn word(self) -> &'static str {
        match self {
            Code::Ok => "ok",
            Code::Refused => "refused",
            Code::Timeout => "timeout",
            Code::Reset => "reset",
            Code::Unreachable => "unreachable",
            Code::Dns => "dns",
            Code::Tls => "tls",
            Code::Certificate => "certificate",
            Code::Status => "status",
            Code::Body => "body",
            Code::Protocol => "protocol",
            Code::Exit => "exit",
            Code::Grpc => "grpc",
            Code::Other => "other",
            Code::Internal => "internal",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Asks. One is enough for a whole agent: it holds what all probes share, the TLS settings.
#[derive(Clone, Debug)]
pub struct Prober {
    tls: Tls,
}

impl Prober {
    /// Trusts the machine's own root certificates.
    pub fn new() -> Prober {
        Prober::trusting([])
    }

    /// Trusts the machine's own root certificates and these.
    pub fn trusting(extra: impl IntoIterator<Item = CertificateDer<'static>>) -> Prober {
        Prober { tls: Tls::trusting(extra) }
    }

    /// Asks once. `backend` is what the check is about, where the check does not name an address itself.
    pub async fn ask(&self, check: &Check, backend: Option<&Backend>, timeout: Duration) -> Answer {
        let asked = Instant::now();
        let limit = Limit { until: asked + timeout, timeout };
        let result = match check {
            Check::Http(check) => {
                limit.keep("", Box::pin(http::ask(&self.tls, check, backend, &limit))).await
            }
            Check::Tcp { address } => match place(address.as_ref(), backend) {
                Ok(place) => {
                    dial::connect(&place, &limit).await.map(|_connection| "connected".to_owned())
                }
                Err(fault) => Err(fault),
            },
            Check::Command(argv) => command::ask(argv, backend, &limit).await,
            Check::Grpc { service, address, tls, tls_verify } => {
                match place(address.as_ref(), backend) {
                    Ok(place) => {
                        let encrypt = *tls || (address.is_none() && backend.is_some_and(|b| b.tls));
                        let (name, verify) = (&place.host, *tls_verify);
                        let cover =
                            encrypt.then_some(Cover { name, verify, speech: Speech::Http2 });
                        let asked = grpc::ask(&self.tls, &place, cover, service, &limit);
                        limit.keep("", Box::pin(asked)).await
                    }
                    Err(fault) => Err(fault),
                }
            }
        };
        let (code, reason) = match result {
            Ok(reason) => (Code::Ok, reason),
            Err(fault) => (fault.code, fault.reason),
        };
        Answer { ok: code == Code::Ok, code, reason, took: asked.elapsed() }
    }
}

impl Default for Prober {
    fn default() -> Prober {
        Prober::new()
    }
}

/// Why a probe failed.
#[derive(Debug)]
struct Fault {
    code: Code,
    reason: String,
}

fn fault(code: Code, reason: impl Into<String>) -> Fault {
    Fault { code, reason: reason.into() }
}

fn internal(reason: impl Into<String>) -> Fault {
    fault(Code::Internal, reason)
}

/// When a probe must have answered.
#[derive(Debug)]
struct Limit {
    until: Instant,
    timeout: Duration,
}

impl Limit {
    /// Runs one stage of a probe; `stage` begins the sentence if its time runs out.
    async fn keep<T>(
        &self,
        stage: &str,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        match tokio::time::timeout_at(self.until, work).await {
            Ok(result) => result,
            Err(_elapsed) => Err(self.silent(stage)),
        }
    }

    fn silent(&self, stage: &str) -> Fault {
        let within = show_duration(self.timeout);
        fault(Code::Timeout, format!("{stage}no answer within {within}"))
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// The address to ask at: the check's own, else the backend's.
fn place(address: Option<&Authority>, backend: Option<&Backend>) -> Result<Authority, Fault> {
    match (address, backend) {
        (Some(address), _) => Ok(address.clone()),
        (None, Some(backend)) => Ok(authority(backend)),
        (None, None) => Err(internal("the check has no address and there is no backend to ask")),
    }
}

fn authority(backend: &Backend) -> Authority {
    Authority { host: backend.host.clone(), port: backend.port }
}

/// What probes say they are.
fn user_agent() -> &'static str {
    concat!("outlast/", env!("CARGO_PKG_VERSION"))
}
