//! What happens to links, for the journal and for people.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// Something that the owner of the links should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A node can be spoken to.
    Up { node: String, hello: PeerHello },
    /// A node can no longer be spoken to.
    Down { node: String, reason: String, lasted: Duration },
    /// No connection to a node comes about. Reported when the reason changes, not at each attempt.
    Unreachable { node: String, address: SocketAddr, reason: String },
    /// Somebody was refused, by us or we by them.
    Refused { node: Option<String>, address: SocketAddr, refusal: Refusal, unreported: u64 },
    /// Certificates were taken.
    IdentityTaken { fault: Option<String> },
    /// Files of certificates make no sense; what was there before goes on.
    IdentityRefused { reason: String },
}

/// What a node said of itself when the connection began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerHello {
    pub address: SocketAddr,
    pub id: u64,
    pub instance: u64,
    pub build: String,
    /// The protocol version that is spoken.
    pub version: u32,
    /// Whether this node dialled.
    pub dialled: bool,
}

/// Why a connection did not come about: a kind for code, a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub kind: RefusalKind,
    pub text: String,
}

impl Refusal {
    pub(crate) fn new(kind: RefusalKind, text: impl Into<String>) -> Refusal {
        Refusal { kind, text: text.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    /// The certificate is of a CA that we do not trust.
    OtherCa,
    Expired,
    NotValidYet,
    Revoked,
    /// A certificate that is wrong in another way.
    BadCertificate,
    /// TLS without a certificate.
    NoCertificate,
    /// No TLS where TLS is spoken.
    NoTls,
    /// TLS where none is spoken.
    Tls,
    /// Without TLS beyond this machine.
    Insecure,
    /// The certificate names another node than the greeting, or not the one that was dialled.
    OtherNode,
    /// A node that is not in the topology.
    UnknownNode,
    OtherCluster,
    /// Somebody else is connected under this name.
    DuplicateNode,
    /// We have a connection to this node already; nothing is wrong.
    AlreadyConnected,
    /// The address of a peer is our own.
    Ourselves,
    Versions,
    /// Bytes that are no greeting.
    Malformed,
    /// It took too long.
    Deadline,
    /// It ended, or the network did.
    Broken,
    /// Too many strangers at once.
    Crowded,
    /// The other side refused us, and this is what it said.
    ByPeer,
}
