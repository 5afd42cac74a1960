//! How an instance begins: a new cluster, and a start.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::adopt::{Adoption, KEEPER_LIMIT};
use crate::clock::Moment;
use crate::conf::{Mode, Shape};
use crate::control::State;
use crate::data::Disk;
use crate::error::{Doing, Error};
use crate::files;
use crate::keeper::{Ask, Start, ask};
use crate::look::{Fault, LookError};
use crate::lsn::Lsn;
use crate::postgres::{Held, Postgres, ProcessState, Starting};
use crate::proc::{self, Process};
use crate::role::role_statements;
use crate::settings::{Tls, Upstream};
use crate::slots::remove_relay_slots;
use crate::sql::Connection;
use crate::tool::Tool;
use crate::trial::Trial;

/// `initdb` says what it does as it goes; its longest step is the sync of all files.
const CREATE_SILENCE: Duration = Duration::from_secs(120);
/// A crash recovery in single-user mode says nothing until it is done.
const SINGLE_SILENCE: Duration = Duration::from_secs(3600);
/// A new keeper listens within this time.
const KEEPER_START: Duration = Duration::from_secs(5);
/// A start in which the recovery has not moved for so long is stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);
/// How often a starting server is asked.
const LOOK: Duration = Duration::from_millis(20);
const LOOK_LIMIT: Duration = Duration::from_secs(3);
/// Bytes of the output before it is moved away.
const OUTPUT_MAX: u64 = 16 << 20;
/// Bytes of the output's end that an error carries.
const TAIL: u64 = 600;

impl Postgres {
    /// Makes a new cluster in an empty place, with our roles.
    pub async fn create(&self) -> Result<(), Error> {
        self.refuse_running("create the cluster")?;
        match self.inspect().await? {
            Disk::Missing | Disk::Empty => {}
            Disk::Cluster(_) => return Err(Error::new("create the cluster: there is one")),
            Disk::Foreign(why) | Disk::Broken(why) => {
                return Err(Error::new(format!("create the cluster: {why}")));
            }
        }
        self.create_cluster().await.doing("create the cluster")
    }

    async fn create_cluster(&self) -> Result<(), Error> {
        // Else it would be made to be cleared away again.
        if let Trial::Refused(why) = self.try_settings().await {
            return Err(Error::new(format!("PostgreSQL does not take the `parameters`: {why}")));
        }
        let this = self.clone();
        self.on_disk(move || {
            this.prepare_run_dir()?;
            this.make_data_dir(&this.settings.data_dir)?;
            this.mark_unfit("the creation of the cluster was interrupted")
        })
        .await?;
        let tool = Tool::new(self.settings.program("initdb"), &self.account, CREATE_SILENCE);
        let fixed = [
            "--data-checksums",
            "--encoding=UTF8",
            "--auth-local=peer",
            "--auth-host=scram-sha-256",
            "--username=postgres",
            "--no-instructions",
            "-D",
        ];
        tool.args(fixed).args([self.settings.data_dir.as_os_str()]).run(&mut |_| {}).await?;
        self.reshape(Shape::default()).await?;
        self.single_user(&role_statements(&self.settings)).await?;
        let this = self.clone();
        self.on_disk(move || {
            this.unmark()?;
            this.know()
        })
        .await
    }

    /// Makes our roles in a cluster that somebody else made, that was shut down cleanly and is no standby; or in a base backup
    /// of a primary, which is recovered to the end of the log that it has.
    pub async fn install_roles(&self) -> Result<(), Error> {
        self.refuse_running("install the roles")?;
        let control = self.control().await?;
        let has = |name: &str| self.settings.data_dir.join(name).exists();
        let backup = control.state == State::InProduction && has("backup_label");
        if (control.state != State::ShutDown && !backup) || has("standby.signal") {
            return Err(Error::new("install the roles: it was not shut down as a primary"));
        }
        let this = self.clone();
        self.on_disk(move || this.prepare_run_dir()).await?;
        self.shape(|_| {}).await?;
        self.single_user(&role_statements(&self.settings)).await.doing("install the roles")
    }

    /// Runs statements without a server, after crash recovery if that is needed. Nobody can connect meanwhile.
    pub(crate) async fn single_user(&self, statements: &[String]) -> Result<(), Error> {
        let tool = Tool::new(self.settings.program("postgres"), &self.account, SINGLE_SILENCE);
        let mut tool = tool.args(["--single"]);
        for setting in [
            // What was not archived stays to be archived.
            "archive_command=false",
            "synchronous_standby_names=",
            "default_transaction_read_only=off",
            "log_min_error_statement=panic",
        ] {
            tool = tool.args(["-c", setting]);
        }
        tool.input = statements.iter().map(|statement| format!("{statement}\n")).collect();
        let mut said = String::new();
        tool.args(["-D".as_ref(), self.settings.data_dir.as_os_str(), "postgres".as_ref()])
            .run(&mut |text| said.push_str(text))
            .await?;
        let complaint = said.lines().find(|l| l.contains("ERROR:") || l.contains("FATAL:"));
        complaint.map_or(Ok(()), |line| Err(Error::new(line.trim())))
    }

    pub(crate) fn prepare_run_dir(&self) -> Result<(), Error> {
        for dir in [self.settings.run_dir.clone(), self.settings.socket_dir()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&dir)
                .doing(format!("make {}", dir.display()))?;
        }
        self.account.own(&self.settings.socket_dir())?;
        for (from, name) in self.settings.tls.iter().flat_map(Tls::copies) {
            let text = fs::read_to_string(from).doing(format!("read {}", from.display()))?;
            files::replace(&self.settings.run_dir.join(name), &text, &self.account)?;
        }
        Ok(())
    }

    /// Makes a directory that PostgreSQL takes for its data.
    pub(crate) fn make_data_dir(&self, dir: &Path) -> Result<(), Error> {
        fs::create_dir_all(dir).doing(format!("make {}", dir.display()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .doing(format!("close {} to others", dir.display()))?;
        self.account.own(dir)
    }

    /// Starts the instance in this mode, and waits until it lets us in. When the fuse burns down, it is killed.
    ///
    /// What has been a standby, or is a copy, is not started as a primary: it becomes one by [`Postgres::promote`].
    /// After an error it may run: stop it.
    pub async fn start(
        &self,
        mode: Mode,
        fuse: Option<Moment>,
        progress: &mut (dyn FnMut(Starting) + Send),
    ) -> Result<(), Error> {
        if self.adopt().await? != Adoption::Nothing {
            return Err(Error::new("start PostgreSQL: it runs"));
        }
        let upstream = match &mode {
            Mode::Primary => None,
            Mode::Standby { follow } => follow.clone(),
        };
        self.prepare_start(mode).await.doing("prepare the start of PostgreSQL")?;
        self.start_keeper().await.doing("start the keeper")?;
        self.start_postmaster(fuse).await.doing("start PostgreSQL")?;
        if !self.started(progress).await.doing("start PostgreSQL")? {
            return Err(self.give_up_recovery(upstream).await);
        }
        Ok(())
    }

    /// Its recovery does not move. If the primary is there all the same, the log that this one needs to be consistent is there
    /// no more: as it is, it never lets anybody in, and is made anew (traps 37, 47).
    async fn give_up_recovery(&self, upstream: Option<Upstream>) -> Error {
        let seconds = STUCK_AFTER.as_secs();
        let what = format!("start PostgreSQL: its recovery has not moved for {seconds} s");
        let Some(upstream) = upstream else { return Error::new(what) };
        let given_up = async {
            self.reaches(&upstream).await?;
            self.kill().await?;
            let this = self.clone();
            self.on_disk(move || this.mark_unfit("it lacks log that the primary no longer has"))
                .await
        };
        match given_up.await {
            Ok(()) => {
                Error::new(format!("{what}; it lacks log that {} no longer has", upstream.node))
            }
            Err(error) => Error::new(format!("{what}; {error}")),
        }
    }

    async fn prepare_start(&self, mode: Mode) -> Result<(), Error> {
        let state = self.control().await?.state;
        let primary = mode == Mode::Primary;
        if primary {
            let label = self.settings.data_dir.join("backup_label");
            let copied = self.on_disk(move || Ok(label.exists())).await?;
            // It would write on the timeline that it has received (trap 15).
            if copied || matches!(state, State::ShutDownInRecovery | State::InArchiveRecovery) {
                return Err(Error::new("it is a standby: start it as one, and promote it"));
            }
        }
        let this = self.clone();
        self.on_disk(move || {
            this.prepare_run_dir()?;
            this.know()?;
            remove_relay_slots(&this.settings.data_dir)?;
            this.rotate_output()
        })
        .await?;
        let upstream = match mode {
            Mode::Primary => None,
            Mode::Standby { follow } => follow,
        };
        self.set_key(upstream.is_some())?;
        self.shape(move |shape| {
            shape.upstream = upstream;
            shape.primary = primary;
        })
        .await?;
        let dir = self.settings.data_dir.clone();
        let account = self.account.clone();
        self.on_disk(move || match primary {
            true => remove_signals(&dir),
            false => {
                files::remove(&dir.join("recovery.signal"))?;
                files::replace(&dir.join("standby.signal"), "", &account)
            }
        })
        .await
    }

    async fn start_keeper(&self) -> Result<(), Error> {
        // One that lingers has told all it knows.
        ask(&self.settings.run_dir, &Ask::Leave, KEEPER_LIMIT).await.ok();
        let (program, arguments) =
            self.settings.keeper.split_first().ok_or_else(|| Error::new("the command is empty"))?;
        let output = self.open_output()?;
        let errors = output.try_clone().doing("open the output")?;
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).arg(&self.settings.run_dir);
        command.stdin(Stdio::null()).stdout(output).stderr(errors).kill_on_drop(false);
        for name in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS"] {
            command.env_remove(name);
        }
        // Dropped, it lives on, and is collected once it has left.
        let mut child = command.spawn().doing(format!("run {}", program.display()))?;
        let end = Instant::now() + KEEPER_START;
        loop {
            match ask(&self.settings.run_dir, &Ask::How, KEEPER_LIMIT).await {
                Ok(standing) if Some(standing.keeper) == child.id() => {
                    let keeper = Process::find(standing.keeper);
                    self.hold(Held { keeper, ..self.held() });
                    return Ok(());
                }
                // `env` and the like may stand before it.
                Ok(standing) if standing.postmaster.is_none() && standing.exit.is_none() => {
                    let keeper = Process::find(standing.keeper);
                    self.hold(Held { keeper, ..self.held() });
                    return Ok(());
                }
                Ok(_) | Err(_) if Instant::now() < end => {}
                Ok(_) => return Err(Error::new("another keeper does not leave")),
                Err(error) => return Err(error).doing("reach it"),
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Error::new(format!("{status}: {}", self.output_tail())));
            }
            sleep(LOOK).await;
        }
    }

    async fn start_postmaster(&self, fuse: Option<Moment>) -> Result<(), Error> {
        let dir = self.settings.data_dir.clone();
        let find = move || fs::canonicalize(&dir).doing(format!("find {}", dir.display()));
        let data_dir = self.on_disk(find).await?;
        let cgroup = self.make_cgroup();
        let text =
            cgroup.iter().map(|group| format!("{}\n", group.dir().display())).collect::<String>();
        fs::write(self.cgroup_file(), text).doing("note the control group")?;
        self.hold(Held { cgroup: cgroup.clone(), ..self.held() });
        let start = Start {
            program: self.settings.program("postgres").into(),
            arguments: vec!["-D".into(), data_dir.clone().into()],
            environment: vec![
                ("LC_ALL".to_owned(), "C".into()),
                ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".into()),
            ],
            account: self.account.clone(),
            data_dir: data_dir.clone(),
            fuse,
            cgroup: cgroup.map(|group| group.dir().to_owned()),
        };
        let asked = ask(&self.settings.run_dir, &Ask::Start(Box::new(start)), KEEPER_START).await;
        let standing = asked.map_err(|error| Error::new(error.to_string()))?;
        let postmaster = standing.postmaster.and_then(Process::find);
        self.hold(Held { postmaster, cwd: Some(data_dir), ..self.held() });
        self.set_fence(fuse);
        postmaster.map(drop).ok_or_else(|| Error::new(self.output_tail()))
    }

    /// Waits until the server lets us in, for as long as its recovery moves; whether it does let us in.
    async fn started(&self, progress: &mut (dyn FnMut(Starting) + Send)) -> Result<bool, Error> {
        let began = Instant::now();
        let (mut moved, mut replayed) = (began, None);
        loop {
            match Connection::open(&self.settings, LOOK_LIMIT, &[]).await.map_err(LookError::from) {
                Ok(connection) => {
                    connection.close().await;
                    return Ok(true);
                }
                Err(error) => match error.fault {
                    Fault::TooMany => return Ok(true),
                    Fault::Refused | Fault::Starting | Fault::TimedOut => {}
                    Fault::Other => return Err(error).doing("connect"),
                },
            }
            if matches!(self.process_state(), ProcessState::Gone | ProcessState::Zombie) {
                return Err(Error::new(format!("it ended: {}", self.output_tail())));
            }
            let now = self.recovering_at();
            if now != replayed {
                (moved, replayed) = (Instant::now(), now);
            }
            progress(Starting { replayed, since: began.elapsed() });
            if moved.elapsed() >= STUCK_AFTER {
                return Ok(false);
            }
            sleep(LOOK).await;
        }
    }

    /// Where the recovery is, to a file of the log, as its process calls itself.
    fn recovering_at(&self) -> Option<Lsn> {
        let postmaster = self.held().postmaster?.pid;
        proc::children(postmaster).iter().find_map(|(_, title)| recovering(title))
    }

    fn open_output(&self) -> Result<File, Error> {
        let path = self.settings.output();
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(0o640).open(&path);
        file.doing(format!("open {}", path.display()))
    }

    /// Moves the output into `output.log.1` once it is large; call it now and then. What is written between the copy
    /// and the cut is lost.
    pub fn rotate_output(&self) -> Result<(), Error> {
        let path = self.settings.output();
        if fs::metadata(&path).map_or(0, |file| file.len()) < OUTPUT_MAX {
            return Ok(());
        }
        let old = crate::settings::beside(&path, "1");
        fs::copy(&path, &old).doing(format!("copy {}", path.display()))?;
        // The server appends, so that it goes on at the new end.
        let file = OpenOptions::new().write(true).open(&path).doing("open the output")?;
        file.set_len(0).doing(format!("cut {}", path.display()))
    }

    /// The end of what the server wrote.
    pub(crate) fn output_tail(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(self.settings.output()) {
            let length = file.metadata().map_or(0, |file| file.len());
            let from = SeekFrom::Start(length.saturating_sub(TAIL));
            file.seek(from).and_then(|_| file.take(TAIL).read_to_end(&mut text)).ok();
        }
        let text = String::from_utf8_lossy(&text);
        text.lines().map(str::trim).collect::<Vec<_>>().join(" | ")
    }
}

/// Makes a directory one that starts as a primary: for [`Mode::Primary`], and for a recovery in which nobody connects.
pub(crate) fn remove_signals(dir: &Path) -> Result<(), Error> {
    files::remove(&dir.join("standby.signal"))?;
    files::remove(&dir.join("recovery.signal"))
}

/// `postgres: db: startup recovering 000000010000000000000003`, with files of the usual 16 MiB.
fn recovering(title: &str) -> Option<Lsn> {
    let name = title.split("startup recovering ").nth(1)?.get(..24)?;
    let high = u64::from_str_radix(name.get(8..16)?, 16).ok()?;
    let low = u64::from_str_radix(name.get(16..24)?, 16).ok()?;
    Some(Lsn(high << 32 | low << 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_recovery_is_read_from_its_title() {
        let title = "postgres: orders: startup recovering 000000020000000100000003";
        assert_eq!(recovering(title), Some(Lsn(0x1_0300_0000)));
        assert_eq!(recovering("postgres: orders: startup"), None);
        assert_eq!(recovering("postgres: startup recovering 00"), None);
    }
}
