//! Machines of the bench's own: network namespaces on one switch. They are gone when their holders are, and those end with
//! the bench.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::children::{Child, Spec, wait_until};
use crate::tools;

/// A namespace is there, or a command on it is done, within this.
const LIMIT: Duration = Duration::from_secs(20);

const NOBODY: &str = "02:00:00:00:00:99";

/// A machine: its name is that of its port on the switch, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: &'static str,
    pub(super) ip: Ipv4Addr,
}

impl Place {
    pub(super) const fn new(name: &'static str, last: u8) -> Place {
        Place { name, ip: Ipv4Addr::new(10, 53, 0, last) }
    }
}

/// Keeps a namespace.
#[derive(Debug)]
struct Holder(Child);

impl Holder {
    async fn start(name: &str, dir: &Path) -> Result<Holder> {
        let program = tools::which("unshare").context("unshare is not found")?;
        let args = ["--net", "sleep", "infinity"].map(str::to_owned);
        let name = format!("place-{name}");
        let spec = Spec {
            name: &name,
            program: &program,
            args: &args,
            dir,
            core: None,
            has_children: false,
        };
        let mut child = Child::start(&spec)?;
        // It becomes `sleep` once the namespace is there.
        let comm = format!("/proc/{}/comm", child.pid());
        let is_there = || std::fs::read_to_string(&comm).is_ok_and(|comm| comm.trim() == "sleep");
        let up = wait_until(LIMIT, async || !child.is_running() || is_there()).await;
        child.check_running()?;
        ensure!(up, "{name} is not there within {LIMIT:?}");
        Ok(Holder(child))
    }

    fn file(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.pid()))
    }

    fn nsenter(&self) -> String {
        format!("--net={}", self.file().display())
    }
}

#[derive(Debug)]
pub(super) struct Net {
    switch: Holder,
    places: Vec<(Place, Holder)>,
    nsenter: PathBuf,
}

impl Net {
    pub(super) async fn up(places: &[Place], dir: &Path) -> Result<Net> {
        ensure!(rustix::process::geteuid().is_root(), "only root can make network namespaces");
        let switch = Holder::start("switch", dir).await?;
        let nsenter = tools::which("nsenter").context("nsenter is not found")?;
        let mut net = Net { switch, places: Vec::new(), nsenter };
        net.ip(&net.switch, "link add br0 type bridge").await?;
        net.ip(&net.switch, "link set br0 up").await?;
        for place in places {
            let holder = Holder::start(place.name, dir).await?;
            let (port, ip, switch) = (place.name, place.ip, net.switch.0.pid());
            let pair = format!("link add eth0 type veth peer name {port} netns {switch}");
            for words in [
                pair.as_str(),
                &format!("address add {ip}/24 dev eth0"),
                "link set eth0 up",
                "link set lo up",
            ] {
                net.ip(&holder, words).await?;
            }
            net.ip(&net.switch, &format!("link set dev {port} master br0")).await?;
            net.ip(&net.switch, &format!("link set dev {port} up")).await?;
            net.places.push((*place, holder));
        }
        Ok(net)
    }

    /// Pulls the plug of a machine, or puts it back.
    pub(super) async fn plug(&self, place: Place, is_in: bool) -> Result<()> {
        let state = if is_in { "up" } else { "down" };
        self.ip(&self.switch, &format!("link set dev {} {state}", place.name)).await
    }

    /// Has what one machine sends to another get lost on the way, or not any more.
    pub(super) async fn way(&self, from: Place, to: Place, is_open: bool) -> Result<()> {
        let words = match is_open {
            // To a neighbour that nobody is.
            false => format!("neighbor replace {} lladdr {NOBODY} dev eth0 nud permanent", to.ip),
            true => format!("neighbor flush to {} dev eth0 nud all", to.ip),
        };
        self.ip(self.holder(from)?, &words).await
    }

    async fn ip(&self, holder: &Holder, words: &str) -> Result<()> {
        let mut command = tokio::process::Command::new(&self.nsenter);
        command.args([&holder.nsenter(), "--", "ip"]).args(words.split(' '));
        command.stdin(Stdio::null()).kill_on_drop(true);
        let done = tokio::time::timeout(LIMIT, command.output()).await;
        let done = done.with_context(|| format!("ip {words} is not done within {LIMIT:?}"))?;
        let done = done.with_context(|| format!("run ip {words}"))?;
        if !done.status.success() {
            bail!("ip {words}: {}", String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(())
    }

    fn holder(&self, place: Place) -> Result<&Holder> {
        let found = self.places.iter().find(|(known, _)| *known == place);
        Ok(&found.with_context(|| format!("there is no machine {}", place.name))?.1)
    }

    /// A program on a machine. It is this process itself that becomes the program, so that signals reach that.
    pub(super) fn start(
        &self,
        place: Place,
        name: &str,
        program: &Path,
        args: &[String],
        dir: &Path,
    ) -> Result<Child> {
        let program = program.to_str().context("a program's name is not text")?.to_owned();
        let words = [self.holder(place)?.nsenter(), "--".to_owned(), program];
        let words = [words.to_vec(), args.to_vec()].concat();
        let spec = Spec {
            name,
            program: &self.nsenter,
            args: &words,
            dir,
            core: None,
            has_children: true,
        };
        Child::start(&spec)
    }

    /// What is made on a machine, like a socket, stays there, wherever it is used.
    pub(super) fn inside<T: Send>(
        &self,
        place: Place,
        make: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let file = self.holder(place)?.file();
        let work = move || {
            let space = File::open(&file).context("open a namespace")?;
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
                .context("enter a namespace")?;
            make()
        };
        // The thread ends there: nothing else runs in the wrong place.
        std::thread::scope(|scope| scope.spawn(work).join().ok().context("a thread panicked")?)
    }
}
