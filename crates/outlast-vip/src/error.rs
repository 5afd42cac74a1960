//! What can be in the way, said so that somebody can do something about it.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// Why an address could not be taken, kept, announced or dropped.
#[derive(Debug)]
pub enum Error {
    /// What was asked for makes no sense.
    Asked(String),
    /// The lease was over before anything was done.
    Over,
    /// The interface is not there, or cannot be asked for.
    Interface { name: String, error: io::Error },
    /// The kernel refused.
    Kernel { doing: String, error: io::Error },
    /// The process that is to act after this one's death does not run as it should.
    Guardian { doing: &'static str, error: io::Error },
}

impl Error {
    pub(crate) fn kernel(doing: impl Into<String>, error: io::Error) -> Error {
        Error::Kernel { doing: doing.into(), error }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Asked(what) => f.write_str(what),
            Error::Over => f.write_str(
                "the lease was over before the address could be taken: give it longer, or look why this machine is late",
            ),
            Error::Interface { name, error } => write!(
                f,
                "look at the interface `{name}`: {error}; `ip link` lists those that there are, and `[address]` has to name one"
            ),
            Error::Kernel { doing, error } => {
                write!(f, "{doing}: {error}")?;
                advice(error).map_or(Ok(()), |advice| write!(f, "; {advice}"))
            }
            Error::Guardian { doing, error } => write!(
                f,
                "{doing}: {error}; without a guardian an address whose agent dies stays until its lease ends"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Interface { error, .. }
            | Error::Kernel { error, .. }
            | Error::Guardian { error, .. } => Some(error),
            Error::Asked(_) | Error::Over => None,
        }
    }
}

/// What is known to help.
fn advice(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error)? {
        Errno::PERM => Some(
            "give the agent CAP_NET_ADMIN and CAP_NET_RAW (systemd: `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW`), or run it as root",
        ),
        Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::AFNOSUPPORT => Some(
            "this kernel has no nftables, or none for ARP: `modprobe nf_tables`, or take a kernel with NF_TABLES, NF_TABLES_INET and NF_TABLES_ARP",
        ),
        Errno::ACCESS => Some("is IPv6 switched off there (net.ipv6.conf.*.disable_ipv6)?"),
        _ => None,
    }
}
