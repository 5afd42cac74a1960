//! What a node must know to run its instance of a database.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The role that the agent itself uses, through the unix socket only.
pub(crate) const CONTROL_ROLE: &str = "outlast";
/// The role with which nodes replicate, rewind and clone from one another.
pub(crate) const REPLICATION_ROLE: &str = "outlast_replication";
/// Bytes of a unix socket's path (sun_path, less its end).
pub(crate) const SOCKET_PATH_MAX: usize = 107;

/// One node's instance of one database.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    pub database: String,
    /// This node; also its `application_name` at the primary.
    pub node: String,
    /// The cluster's directory. It must not be a mount point itself: copies are made beside it and take its name.
    pub data_dir: PathBuf,
    /// The agent's own directory for this database: sockets, key, output. It needs no large disk and no lasting one.
    pub run_dir: PathBuf,
    /// Where `postgres`, `initdb`, `pg_controldata`, `pg_rewind` and `pg_basebackup` are.
    pub bin_dir: PathBuf,
    /// The account of the operating system that PostgreSQL runs as, if it is not ours.
    pub os_user: Option<String>,
    /// The address to listen at; `None` is every one.
    pub listen: Option<IpAddr>,
    pub port: u16,
    /// The other nodes that have this database.
    pub peers: BTreeMap<String, Address>,
    /// What the user wants set. What [`crate::refused`] names is not taken.
    pub parameters: BTreeMap<String, String>,
    pub tls: Option<Tls>,
    /// Who may connect from where: lines of `pg_hba.conf`, behind those that the nodes need.
    pub hba: Vec<String>,
    /// The password with which nodes replicate from one another.
    pub replication_secret: String,
    /// The command that runs [`crate::keeper::run`]; the run directory is added as its last argument.
    pub keeper: Vec<OsString>,
}

/// Where an instance is reached by its peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// An IP address, or a name that resolves in both directions.
    pub host: String,
    pub port: u16,
}

/// Files of PEM. PostgreSQL's account need not be able to read them: it gets copies, at each start and reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    /// What stands behind a node's name in its certificate (`.node.example`), if it is not issued for the host.
    pub node_suffix: Option<String>,
}

impl Tls {
    /// Each file, and the name of its copy in the run directory.
    pub(crate) fn copies(&self) -> [(&Path, &'static str); 3] {
        [(&self.ca, "ca.pem"), (&self.cert, "cert.pem"), (&self.key, "key.pem")]
    }
}

/// Whom a standby follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    pub node: String,
    pub address: Address,
    /// The reign under which it relays the primary's log; `None`: it is the primary.
    #[serde(default)]
    pub relays: Option<u64>,
}

/// Without the secret, which would stand in some log one day.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Settings");
        shown.field("database", &self.database).field("node", &self.node);
        shown.field("data_dir", &self.data_dir).field("run_dir", &self.run_dir);
        shown.field("port", &self.port).finish_non_exhaustive()
    }
}

impl Settings {
    /// The directory of the server's own socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.run_dir.join("sql")
    }

    /// The server's own socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket_dir().join(format!(".s.PGSQL.{}", self.port))
    }

    /// What the server writes to stdout and stderr.
    pub fn output(&self) -> PathBuf {
        self.run_dir.join("output.log")
    }

    /// The key to every upstream. Without it no receiver can be accepted anywhere.
    pub(crate) fn passfile(&self) -> PathBuf {
        self.run_dir.join("replication.pass")
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// A path beside the data directory: `DATA_DIR.SUFFIX`.
    pub(crate) fn beside(&self, suffix: &str) -> PathBuf {
        beside(&self.data_dir, suffix)
    }
}

pub(crate) fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}
