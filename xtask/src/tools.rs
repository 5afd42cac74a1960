//! What tests and benchmarks need besides Rust: Debian packages and a Python environment, installed when missing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{out, workspace};

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
    Package { name: "wrk", why: "closed-loop HTTP load" },
    Package {
        name: "prometheus",
        why: "promtool reads our /metrics and alert rules as Prometheus does",
    },
    Package { name: "curl", why: "asks the nodes of a lab from inside other nodes" },
    Package { name: "iputils-ping", why: "measures loss and delay between the nodes of a lab" },
    Package { name: "procps", why: "finds an agent inside a node of a lab, to kill it" },
    Package { name: "python3-venv", why: "a place of its own for the Python packages below" },
];

/// Python packages, in an environment of their own below the target directory.
pub(crate) const PIP: &[Package] = &[Package {
    name: "kubernetes-validate",
    why: "checks exported manifests against the Kubernetes schemas",
}];

/// Stops package scripts from starting a daemon on the machine that only wants the program.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The programs of the Python environment.
pub(crate) fn venv_bin() -> PathBuf {
    workspace::target().join("test-tools/venv/bin")
}

/// Installs everything in both tables that is not there yet.
pub(crate) fn install_all() -> Result<()> {
    install_apt(APT)?;
    install_pip(PIP)
}

/// Installs those of `names` that are missing; each must stand in the table.
pub(crate) fn install_some(names: &[&str]) -> Result<()> {
    install_apt(&APT.iter().copied().filter(|p| names.contains(&p.name)).collect::<Vec<_>>())
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
    let _no_daemons = NoDaemons::hold()?;
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

fn install_pip(packages: &[Package]) -> Result<()> {
    let bin = venv_bin();
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
    out::line(format!("installing {} into target/test-tools/venv", names.join(" ")));
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

/// While this lives, package scripts start no daemon. A policy that someone else made is left alone.
struct NoDaemons {
    ours: bool,
}

impl NoDaemons {
    fn hold() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(NoDaemons { ours: false });
        }
        // 101: action forbidden by policy (invoke-rc.d).
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n")
            .with_context(|| format!("write {POLICY}"))?;
        let hold = NoDaemons { ours: true };
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(POLICY, mode)
            .with_context(|| format!("make {POLICY} executable"))?;
        Ok(hold)
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = std::fs::remove_file(POLICY)
        {
            out::line(format!("remove {POLICY} by hand: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_stands_once_and_has_a_reason() {
        let names: BTreeSet<_> = APT.iter().chain(PIP).map(|p| p.name).collect();
        assert_eq!(names.len(), APT.len() + PIP.len());
        assert!(APT.iter().chain(PIP).all(|p| !p.why.is_empty()));
    }
}
