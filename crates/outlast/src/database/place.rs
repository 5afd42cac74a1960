//! Where one member's PostgreSQL lives on this node, and what it must know.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use outlast_core::topology::{Postgres as Part, Topology};
use outlast_host::steady;
use outlast_postgres::{Address, Settings, Tls, Upstream};

use super::Home;
use crate::file::OWN_DIRS;
use crate::rights;

/// Where the system's packages put PostgreSQL's programs, with the version in place of `{}`.
const BIN_DIRS: [&str; 3] =
    ["/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin", "/usr/local/pgsql/bin"];

/// What the agent knows of the members on its node lies in this directory of its own, one of [`OWN_DIRS`].
const MEMBERS: &str = "postgres";

/// The hidden verb of this binary that keeps PostgreSQL.
pub const KEEP: &str = "postgres-keeper";

/// Runs the keeper for a run directory.
pub fn keep(run_dir: &Path) -> anyhow::Result<()> {
    rights::give_up_as_keeper();
    outlast_postgres::keeper::run(run_dir).map_err(|error| anyhow::anyhow!("{error}"))
}

/// What the thread does first that ends PostgreSQL in time: it runs even when the machine is short of memory or of time, as
/// far as it allows that.
pub(super) fn steady() {
    if let Err(error) = steady::stay_in_memory() {
        tracing::warn!(
            %error,
            "keep the fence of PostgreSQL in memory; it may be late on a machine that is short of memory"
        );
    }
    if let Err(error) = steady::go_first() {
        tracing::info!(%error, "put the fence of PostgreSQL before other threads; it goes on without that");
    }
}

/// The directory of a database among the agent's own files.
pub(super) fn own_dir(home: &Home, database: &str) -> anyhow::Result<PathBuf> {
    let dir = home.data_dir.join(MEMBERS).join(database);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// The other account must be able to pass through, but not to look around.
fn let_pass(home: &Home) -> anyhow::Result<()> {
    let set = |path: &Path, mode| {
        let done = std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
        done.with_context(|| format!("set the rights of {}", path.display()))
    };
    set(&home.data_dir, 0o711)?;
    // What lies in that of the members is for that account, too.
    for private in OWN_DIRS.into_iter().filter(|own| *own != MEMBERS) {
        let path = home.data_dir.join(private);
        if path.is_dir() {
            set(&path, 0o700)?;
        }
    }
    Ok(())
}

/// Sockets and the like: on no data disk, and within reach of the account that runs PostgreSQL.
fn run_dir(home: &Home, database: &str) -> anyhow::Result<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return Ok(home.data_dir.join(MEMBERS).join(database).join("run"));
    }
    let dir = Path::new("/run/outlast").join(token(home)?);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir.join(database))
}

/// A name that no other data directory of this machine has, nor one that lay in its place before.
fn token(home: &Home) -> anyhow::Result<String> {
    let path = home.data_dir.join(MEMBERS).join("run-name");
    if let Ok(token) = std::fs::read_to_string(&path) {
        return Ok(token.trim().to_owned());
    }
    let token = crate::cluster::identity::random_hex::<8>()?;
    std::fs::write(&path, format!("{token}\n"))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(token)
}

pub(super) fn bin_dir(part: &Part) -> anyhow::Result<PathBuf> {
    if let Some(dir) = &part.bin_dir {
        return Ok(PathBuf::from(dir));
    }
    let version = part.version.to_string();
    let mut dirs = BIN_DIRS.iter().map(|dir| PathBuf::from(dir.replace("{}", &version)));
    dirs.find(|dir| dir.join("postgres").is_file()).with_context(|| {
        format!("find PostgreSQL {version}: install it, or say in `bin_dir` where its programs are")
    })
}

/// Where a member is reached by the others. `relays`: the reign under which it relays.
pub(super) fn upstream(
    topology: &Topology,
    part: &Part,
    node: &str,
    relays: Option<u64>,
) -> Option<Upstream> {
    let address = topology.nodes.get(node)?.address.to_string();
    Some(Upstream {
        node: node.to_owned(),
        address: Address { host: address, port: part.port.get() },
        relays,
    })
}

/// Everything that the driver has to know.
pub(super) fn settings(
    home: &Home,
    topology: &Topology,
    database: &str,
    part: &Part,
    secret: String,
) -> anyhow::Result<Settings> {
    let root = rustix::process::geteuid().is_root();
    if root {
        let_pass(home)?;
    }
    let others = part.nodes.iter().filter(|node| **node != home.node);
    let peers: BTreeMap<String, Address> = others
        .filter_map(|node| Some((node.clone(), upstream(topology, part, node, None)?.address)))
        .collect();
    let program = std::env::current_exe().context("find this program")?;
    let at = |path: &String| home.base.join(path);
    Ok(Settings {
        database: database.to_owned(),
        node: home.node.clone(),
        data_dir: home.base.join(&part.data_dir),
        run_dir: run_dir(home, database)?,
        bin_dir: bin_dir(part)?,
        os_user: root.then(|| part.user.clone()),
        listen: topology.nodes.get(&home.node).map(|node| node.address),
        port: part.port.get(),
        peers,
        parameters: part.parameters.clone(),
        hba: part.hba.clone(),
        tls: topology.cluster.tls.as_ref().map(|tls| Tls {
            ca: at(&tls.ca),
            cert: at(&tls.cert),
            key: at(&tls.key),
            node_suffix: Some(outlast_link::NODE_SUFFIX.to_owned()),
        }),
        replication_secret: secret,
        keeper: vec![program.into_os_string(), OsString::from(KEEP)],
    })
}
