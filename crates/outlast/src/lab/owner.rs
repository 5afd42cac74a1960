//! `outlast lab up`: the owner. It checks the file, starts the keeper and holds it: when the owner ends, all ends.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use outlast::dataplane::wire;
use outlast_host::lab::{Ground, Keeper, enter_ground};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::args::{UpArgs, Which};
use super::place::{self, Place};
use super::plan::Node;
use super::plan::{self, Plan};
use super::wire::{FromKeeper, ToKeeper};
use super::{tell, verbs};
use crate::{Outcome, output};
use outlast::authority::{self, Authority, Subject};
use outlast::cluster::LAB_CERTS;

/// How long a lab in the background may take until it is up.
const UP_MAX: Duration = Duration::from_secs(120);
/// What the keeper says and nobody has read yet.
const SAID_MAX: usize = 64;

pub(super) fn up(args: &UpArgs) -> anyhow::Result<Outcome> {
    let name = args.file.display().to_string();
    let text = std::fs::read_to_string(&args.file)
        .with_context(|| format!("read {name}; `outlast lab up FILE` names another file"))?;
    let topology = match outlast::file::parse(&name, &text) {
        Ok(topology) => topology,
        Err(complaints) => {
            output::complain(&format!("{complaints}\n"));
            return Ok(Outcome::Mistakes);
        }
    };
    let file = args.file.canonicalize().with_context(|| format!("look up {name}"))?;
    let file_dir = file.parent().context("the file lies in no directory")?;
    let nodes = match plan::nodes(&topology, file_dir) {
        Ok(nodes) => nodes,
        Err(faults) => {
            for fault in faults {
                output::complain(&format!("error: {name}: {fault}\n"));
            }
            return Ok(Outcome::Mistakes);
        }
    };
    let called = args.name.clone().or_else(|| {
        let name = &topology.cluster.name;
        place::check_name(name).is_ok().then(|| name.clone())
    });
    let called = called.unwrap_or_else(|| "lab".to_owned());
    place::check_name(&called)?;
    if args.detach {
        return in_background(args, &called);
    }
    if args.in_background {
        rustix::process::setsid().context("leave the terminal")?;
    }
    let place = Place::take(&called, args.dir.as_deref(), args.keep)?;
    let absent: Vec<PathBuf> = nodes
        .iter()
        .flat_map(|node| node.private.iter().map(|(at, _)| at.clone()))
        .filter(|at| at.starts_with(file_dir) && !at.exists())
        .collect();
    if outlast::cluster::wanted(&topology) && topology.cluster.tls.is_none() {
        certify(&place.dir, &topology.cluster.name, &nodes)
            .context("make certificates for the lab")?;
    }
    let outcome = hold(&place, |rootless| Plan {
        name: called.clone(),
        dir: place.dir.clone(),
        file: file.clone(),
        program: program(),
        rootless,
        owner: std::process::id(),
        nodes: nodes.clone(),
    });
    remove_empty(&absent, file_dir);
    let kept = args.keep.then(|| place.dir.clone());
    // A lab that could not be built has logs that say why.
    let left = place.leave(args.keep || outcome.is_err());
    let outcome = outcome?;
    left?;
    if let Some(dir) = kept {
        output::print(&format!("data and logs are kept in {}\n", dir.display()))?;
    }
    Ok(outcome)
}

/// Gives each node of a file without `tls` a certificate, so that it can link to the others as in earnest.
fn certify(lab: &Path, cluster: &str, nodes: &[Node]) -> anyhow::Result<()> {
    let authority = Authority { dir: lab.join("certs") };
    // A lab that kept its data knows them already.
    if authority.dir.join("ca.pem").exists() {
        return Ok(());
    }
    authority.init(cluster, authority::CA_DAYS)?;
    let subjects: Vec<Subject> = nodes
        .iter()
        .map(|node| Subject { node: node.name.clone(), address: Some(node.address) })
        .collect();
    for issued in authority.issue(&subjects, authority::NODE_DAYS)? {
        let node = nodes.iter().find(|node| node.name == issued.node);
        let Some(dir) = node.and_then(|node| node.data_place(lab)) else { continue };
        let dir = dir.join(LAB_CERTS);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        for (from, name) in [
            (&authority.dir.join("ca.pem"), "ca.pem"),
            (&issued.cert, "node.pem"),
            (&issued.key, "node.key"),
        ] {
            std::fs::copy(from, dir.join(name)).with_context(|| format!("copy {name}"))?;
        }
    }
    Ok(())
}

/// Takes away the places that machines made for their data beside the file. What is not empty stays.
fn remove_empty(dirs: &[PathBuf], file_dir: &Path) {
    for dir in dirs {
        for dir in dir.ancestors().take_while(|dir| *dir != file_dir) {
            if std::fs::remove_dir(dir).is_err() {
                break;
            }
        }
    }
}

/// Our own binary: where it lies, so that a newer one there can be upgraded to.
fn program() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_else(|_unknown| PathBuf::from("/proc/self/exe"));
    if exe.exists() { exe } else { PathBuf::from("/proc/self/exe") }
}

/// Starts the keeper and stays until it has ended.
fn hold(place: &Place, plan: impl Fn(bool) -> Plan) -> anyhow::Result<Outcome> {
    let (ours, theirs) = UnixStream::pair().context("make a socket for the keeper")?;
    // Nothing may have started a thread by now.
    let ground = enter_ground()?;
    let plan = plan(ground == Ground::Rootless);
    let mut command = Command::new("/proc/self/exe");
    command.args(["lab", "keeper"]).stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let keeper = Keeper::start(command)?;
    wire::send(&ours, &ToKeeper::Build(Box::new(plan)), &[place.lock.as_fd()])
        .context("tell the keeper what to build")?;
    crate::verbs::block_on(watch(keeper, ours))
}

/// Passes on what the keeper says, and Ctrl-C to the keeper.
async fn watch(keeper: Keeper, line: UnixStream) -> anyhow::Result<Outcome> {
    let (sender, mut said) = mpsc::channel(SAID_MAX);
    let reader = line.try_clone().context("listen to the keeper")?;
    std::thread::Builder::new().name("from-keeper".to_owned()).spawn(move || {
        while let Ok(Some((message, _))) = wire::receive::<FromKeeper>(&reader) {
            if sender.blocking_send(message).is_err() {
                return;
            }
        }
    })?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let (mut failed, mut asked) = (None, false);
    loop {
        tokio::select! {
            message = said.recv() => match message {
                // A reader of our output that has gone does not end the lab.
                Some(FromKeeper::Said(text)) => drop(output::print(&format!("{text}\n"))),
                Some(FromKeeper::Up(status)) => drop(output::print(&tell::welcome(&status))),
                Some(FromKeeper::Failed(why)) => failed = Some(why),
                None => break,
            },
            _ = interrupt.recv() => end(&keeper, &line, &mut asked),
            _ = terminate.recv() => end(&keeper, &line, &mut asked),
            _ = hangup.recv() => end(&keeper, &line, &mut asked),
        }
    }
    let status = keeper.wait().context("wait for the keeper's end")?;
    if let Some(why) = failed {
        bail!("{why}");
    }
    if !status.success() && !asked {
        bail!("the lab's keeper ended, {status}; everything in the lab ended with it");
    }
    Ok(Outcome::Fine)
}

/// The first time politely, the second time at once.
fn end(keeper: &Keeper, line: &UnixStream, asked: &mut bool) {
    let told = wire::send(line, &ToKeeper::Down, &[]);
    if *asked || told.is_err() {
        // The kernel ends all that it holds.
        keeper.kill().ok();
    }
    *asked = true;
}

/// Starts the lab in a process of its own, and returns as soon as it is up.
fn in_background(args: &UpArgs, name: &str) -> anyhow::Result<Outcome> {
    let log = tempfile_log()?;
    let mut command = Command::new(program());
    command.args(["lab", "up", "--in-background", "--name", name]).arg(&args.file);
    if let Some(dir) = &args.dir {
        command.arg("--dir").arg(dir);
    }
    if args.keep {
        command.arg("--keep");
    }
    let mut owner = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn()
        .context("start the lab in the background")?;
    let which = Which { name: Some(name.to_owned()), dir: args.dir.clone() };
    let until = Instant::now() + UP_MAX;
    while Instant::now() < until {
        if let Some(status) = owner.try_wait().context("look after the lab")? {
            output::complain(&said(&log)?);
            return Ok(if status.code() == Some(1) { Outcome::Mistakes } else { Outcome::Unable });
        }
        if let Ok(status) = verbs::ask_status(&which)
            && status.up
            && status.owner == owner.id()
        {
            output::print(&tell::welcome(&status))?;
            return Ok(Outcome::Fine);
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "bounded by UP_MAX; there is no runtime here"
        )]
        std::thread::sleep(Duration::from_millis(10));
    }
    owner.kill().ok();
    bail!("the lab was not up after {} seconds:\n{}", UP_MAX.as_secs(), said(&log)?)
}

/// Where a lab in the background writes: a file without a name, which goes with it.
fn tempfile_log() -> anyhow::Result<std::fs::File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let log = memfd_create("outlast-lab", MemfdFlags::CLOEXEC).context("make a log")?;
    Ok(log.into())
}

fn said(log: &std::fs::File) -> anyhow::Result<String> {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = vec![0; 64 << 10];
    let len = log.read_at(&mut bytes, 0).context("read the lab's log")?;
    Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
}
