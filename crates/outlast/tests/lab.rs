//! `outlast lab` for real: machines, the network between them, every fault, and that nothing is left.
//!
//! As root each test runs twice: as root, and without it, as `nobody` in a user namespace. Where the machine says that user
//! namespaces are off, the second is left out, and that is said; where it does not say so, they have to work.

#![cfg(test)]

mod addresses;
mod clients;
mod names;
mod storm;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

/// Everything that is waited for comes within this time, on the slowest machine.
const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// A user without rights, everywhere.
const NOBODY: u32 = 65534;

/// Three nodes in two networks, each with a face that the others can reach.
const THREE: &str = r#"
[cluster]
name = "three"
data_dir = "/var/lib/outlast-of-a-test"
face = "0.0.0.0:8900"
proxy_threads = 1
[node.a]
address = "10.0.0.1"
[node.b]
address = "10.0.0.2"
[node.c]
address = "10.9.1.1"
"#;

const TWO: &str = r#"
[cluster]
name = "two"
data_dir = "/var/lib/outlast-of-a-test"
face = "[::]:8900"
proxy_threads = 1
[node.left]
address = "fd00:1::1"
[node.right]
address = "fd00:2::1"
"#;

/// Looks again and again until there is something; fails with `what` if there is nothing within [`LIMIT`].
fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {LIMIT:?}");
        #[expect(clippy::disallowed_methods, reason = "between two looks at a condition")]
        std::thread::sleep(POLL);
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait(what, || holds().then_some(()));
}

/// The users that a test runs as: ourselves, and a user without rights if we may become one.
fn users() -> Vec<Option<u32>> {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|t| t.trim() == value);
    let hurdles = [
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/user/max_user_namespaces", "0"),
    ];
    let hurdle = hurdles.iter().find(|(path, value)| is(path, value));
    match (geteuid().is_root(), hurdle) {
        (true, None) => vec![None, Some(NOBODY)],
        (true, Some((path, value))) => {
            println!("not tested without root: {path} is {value}");
            vec![None]
        }
        (false, None) => vec![None],
        (false, Some((path, value))) => {
            panic!("run this test as root, or allow user namespaces: {path} is {value}")
        }
    }
}

/// Runs a test as each user, side by side: most of it is waiting.
fn each_user(test: impl Fn(Option<u32>) + Sync) {
    std::thread::scope(|scope| {
        for user in users() {
            let test = &test;
            scope.spawn(move || test(user));
        }
    });
}

/// Runs a test as ourselves alone: what it is about is the same for others.
fn one_user(test: impl Fn(Option<u32>)) {
    if let Some(user) = users().first() {
        test(*user);
    }
}

/// A place for labs of one user, and the lab in it. All of it is gone when it is dropped.
struct Lab {
    dir: PathBuf,
    program: PathBuf,
    user: Option<u32>,
    owner: Option<Child>,
}

impl Lab {
    fn new(user: Option<u32>) -> Lab {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = format!("outlast-lab-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        let mut program = PathBuf::from(env!("CARGO_BIN_EXE_outlast"));
        if user.is_some() {
            // The target directory may be where only we can look.
            let copy = dir.join("bin/outlast");
            fs::create_dir(dir.join("bin")).unwrap();
            // By a process of its own: while this one has it open for writing, another test may start a child that keeps it
            // so, and then nobody can run it.
            assert!(Command::new("cp").arg(&program).arg(&copy).status().unwrap().success());
            program = copy;
        }
        Lab { dir, program, user, owner: None }
    }

    /// A lab of this file that is up.
    fn up(user: Option<u32>, file: &str) -> Lab {
        let lab = Lab::new(user);
        lab.write(file);
        lab.good(&["up", "lab.toml", "--detach"]);
        lab
    }

    fn write(&self, file: &str) {
        fs::write(self.dir.join("lab.toml"), file).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("lab").args(words).current_dir(&self.dir).env("XDG_STATE_HOME", &self.dir);
        command.stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What a verb says that is obeyed.
    fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?} as {:?}: {}", self.user, said(&output));
        said(&output)
    }

    /// What a verb says that is refused.
    fn bad(&self, words: &[&str], code: i32) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", said(&output));
        said(&output)
    }

    fn exec(&self, node: &str, command: &[&str]) -> Output {
        self.run(&[&["exec", node, "--"], command].concat())
    }

    /// Soon the face of a node answers from inside another one.
    fn reach(&self, from: &str, to: &str) {
        let what = format!("{from} reaches {to} as {:?}", self.user);
        wait_until(&what, || self.reaches(from, to));
    }

    /// Whether it answers at once.
    fn reaches(&self, from: &str, to: &str) -> bool {
        let url = format!("http://{to}:8900/health");
        let curl = ["curl", "-s", "-o", "/dev/null", "-m", "0.7", &url];
        let output = self.exec(from, &curl);
        let code = output.status.code();
        // 28: no answer in time; 7: not even an address. Everything else would be a fault of the test.
        assert!(matches!(code, Some(0 | 7 | 28)), "{from} to {to}: {}", said(&output));
        code == Some(0)
    }

    /// Sends echo requests; how many came back, and the shortest and the mean round trip in ms.
    fn ping(&self, from: &str, to: &str, count: u32) -> (u32, f64, f64) {
        let (count, interval) = (count.to_string(), "0.005");
        let output = self.exec(from, &["ping", "-c", &count, "-i", interval, "-W", "2", to]);
        let text = said(&output);
        let back = text.split(", ").find_map(|t| t.strip_suffix(" received")?.parse().ok());
        let back = back.unwrap_or_else(|| panic!("ping says: {text}"));
        let times = text.split(" = ").nth(1).unwrap_or("0/0/");
        let times: Vec<f64> = times.split('/').take(2).map(|t| t.parse().unwrap()).collect();
        (back, times[0], times[1])
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.good(&["status", "--format", "json"])).unwrap()
    }

    fn node(&self, name: &str) -> Value {
        let status = self.status();
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["name"] == name).unwrap().clone()
    }

    fn has_faults(&self) -> bool {
        !self.status()["faults"].as_array().unwrap().is_empty()
    }

    /// The namespaces that the keeper and the machines live in, as far as they are not our own.
    fn namespaces(&self) -> BTreeSet<String> {
        let status = self.status();
        let nodes = status["nodes"].as_array().unwrap();
        let machines = nodes.iter().filter_map(|node| node["pid"].as_u64());
        let mut pids: Vec<u64> = machines.collect();
        pids.extend(pids.clone().into_iter().map(parent));
        let all = pids.into_iter().flat_map(|pid| namespaces_of(&pid.to_string()));
        let own = namespaces_of("self");
        all.filter(|space| !own.contains(space)).collect()
    }

    fn has_left_nothing(&self, namespaces: &BTreeSet<String>) {
        wait_until("no process is left in the lab's namespaces", || {
            processes().iter().all(|pid| namespaces_of(pid).is_disjoint(namespaces))
        });
        let dir = self.dir.display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&dir), "a mount is left");
        assert!(!Path::new("/sys/class/net/lab").exists(), "a bridge is left");
        assert!(!Path::new("/var/lib/outlast-of-a-test").exists(), "a directory is left");
        wait_until("no process is left that knows the lab's directory", || {
            let knows = |pid: &String| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(&dir)
            };
            !processes().iter().any(knows)
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut owner) = self.owner.take() {
            owner.kill().ok();
            owner.wait().ok();
        }
        let labs = fs::read_dir(self.dir.join("outlast/labs")).into_iter().flatten().flatten();
        for lab in labs {
            self.run(&["down", "--name", &lab.file_name().to_string_lossy()]);
        }
        fs::remove_dir_all(&self.dir).ok();
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

fn processes() -> Vec<String> {
    let names = fs::read_dir("/proc").unwrap().flatten().map(|e| e.file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|n| n.parse::<u32>().is_ok()).collect()
}

fn namespaces_of(pid: &str) -> BTreeSet<String> {
    let links = ["user", "pid", "net", "mnt", "uts", "ipc"];
    let link = |kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    links.iter().filter_map(link).map(|link| link.display().to_string()).collect()
}

fn parent(pid: u64) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap()..].split(' ').nth(2).unwrap().parse().unwrap()
}

/// How a process ended, soon.
fn ended(mut child: Child) -> ExitStatus {
    wait("a process ends", || child.try_wait().unwrap())
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn every_node_is_a_machine_of_its_own_that_the_others_reach() {
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        for (from, to) in [("a", "b"), ("b", "c"), ("c", "a"), ("c", "10.0.0.2")] {
            lab.reach(from, to);
        }
        for name in ["a", "b", "c"] {
            assert_eq!(said(&lab.exec(name, &["hostname"])), format!("{name}\n"));
            let status = said(&lab.exec(name, &["outlast", "status"]));
            assert!(status.contains(&format!("node {name}")), "{status}");
            assert_eq!(lab.node(name)["state"], "running");
        }
        // The same path, and yet its own; as /tmp is.
        for at in ["/var/lib/outlast-of-a-test/mine", "/tmp/mine", "/run/mine", "/dev/shm/mine"] {
            assert!(lab.exec("a", &["touch", at]).status.success());
            assert!(!lab.exec("b", &["test", "-e", at]).status.success());
        }
        assert_eq!(lab.status()["rootless"], !geteuid().is_root() || user.is_some());
        let (log, _) = (lab.good(&["logs", "b"]), ());
        assert!(log.contains("node=\"b\""), "{log}");
    });
}

#[test]
fn addresses_of_version_6_and_of_different_networks_work() {
    each_user(|user| {
        let lab = Lab::up(user, TWO);
        lab.reach("left", "[fd00:2::1]");
        lab.reach("right", "left");
        lab.good(&["cut", "left", "right"]);
        assert!(!lab.reaches("left", "right"));
    });
}

#[test]
fn exec_ends_with_the_status_of_its_command() {
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        let code = |script: &str| {
            let output = lab.exec("a", &["sh", "-c", script]);
            println!("{script}: {}", said(&output));
            output.status.code()
        };
        assert_eq!(code("exit 0"), Some(0));
        assert_eq!(code("exit 7"), Some(7));
        assert_eq!(code("kill -9 $$"), Some(137));
        assert_eq!(lab.exec("a", &["/no/such/program"]).status.code(), Some(2));
        assert_eq!(lab.exec("x", &["true"]).status.code(), Some(2));
        let alone = said(&lab.exec("a", &["sh", "-c", "ls -d /proc/[0-9]* | wc -l"]));
        assert!(alone.trim().parse::<u32>().unwrap() < 12, "{alone} processes");
    });
}

#[test]
fn a_cut_cuts_both_ways_or_one_and_heals_by_hand_or_by_itself() {
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        lab.good(&["cut", "a,b", "c"]);
        assert!(!lab.reaches("a", "c") && !lab.reaches("c", "b"));
        lab.reach("a", "b");
        let healed = lab.good(&["heal", "cut"]);
        assert!(healed.contains("cut a,b | c"), "{healed}");
        lab.reach("a", "c");
        lab.reach("c", "b");

        // One way: what a asks arrives at b, but no answer of b arrives at a.
        assert_eq!(lab.ping("a", "b", 5).0, 5);
        lab.good(&["cut", "b", "a", "--one-way"]);
        let before = echoes(&lab, "b");
        assert_eq!(lab.ping("a", "b", 5).0, 0);
        assert!(before < echoes(&lab, "b"), "nothing arrived at b");
        let before = echoes(&lab, "a");
        assert_eq!(lab.ping("b", "a", 5).0, 0);
        assert_eq!(before, echoes(&lab, "a"), "something arrived at a");
        lab.reach("a", "c");
        lab.reach("c", "b");
        lab.good(&["heal", "a"]);
        lab.reach("a", "b");

        lab.good(&["cut", "a", "--for", "3s"]);
        assert!(!lab.reaches("a", "b"));
        lab.reach("b", "c");
        wait_until("the cut heals by itself", || lab.reaches("b", "a"));
        wait_until("and is not in the list any more", || !lab.has_faults());
    });
}

/// Echo requests that have arrived at a machine.
fn echoes(lab: &Lab, node: &str) -> u64 {
    let text = said(&lab.exec(node, &["grep", "^Icmp:", "/proc/net/snmp"]));
    let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
    let at = rows[0].iter().position(|&name| name == "InEchos").unwrap();
    rows[1][at].parse().unwrap()
}

#[test]
fn the_kernel_heals_a_cut_even_if_the_keeper_does_nothing() {
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        lab.reach("a", "b");
        let keeper = parent(lab.node("a")["pid"].as_u64().unwrap());
        let keeper = Pid::from_raw(i32::try_from(keeper).unwrap()).unwrap();
        // A shell inside, because the door is closed while the keeper stands still.
        let script = "cd /var/lib/outlast-of-a-test; touch inside; while [ ! -e go ]; do :; done; ask() { curl -s -m 0.7 http://b:8900/health >/dev/null; }; ask && exit 1; echo cut; i=0; while ! ask; do i=$((i+1)); [ $i -gt 60 ] && exit 2; done; echo healed";
        let inside = lab.command(&["exec", "a", "--", "sh", "-c", script]);
        let inside = { inside }.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let data = lab.dir.join("outlast/labs/three/nodes/a/data");
        wait_until("the shell is inside", || data.join("inside").exists());
        lab.good(&["cut", "a", "--for", "5s"]);
        kill_process(keeper, Signal::STOP).unwrap();
        fs::write(data.join("go"), "").unwrap();
        let output = inside.wait_with_output().unwrap();
        kill_process(keeper, Signal::CONT).unwrap();
        assert_eq!(said(&output), "cut\nhealed\n", "{:?}", output.status);
    });
}

#[test]
fn loss_and_delay_are_what_was_asked_for_and_go_one_way() {
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        assert_eq!(lab.ping("a", "b", 20).0, 20);
        // 200 tries, half of them lost: 60 to 140 come back, but once in ten million runs.
        lab.good(&["loss", "a", "b", "50%"]);
        let (back, ..) = lab.ping("a", "b", 200);
        assert!((60..=140).contains(&back), "{back} of 200 came back");
        assert_eq!(lab.ping("a", "c", 20).0, 20);
        lab.good(&["loss", "b", "a", "100%"]);
        assert_eq!(lab.ping("a", "b", 5).0, 0);
        lab.good(&["heal"]);

        lab.good(&["delay", "a", "b", "80ms", "--jitter", "20ms"]);
        let (back, shortest, mean) = lab.ping("a", "b", 40);
        assert_eq!(back, 40);
        // The first one waits for the answer to another question. No upper bound: the machine may be busy.
        assert!(60.0 <= shortest && 75.0 <= mean, "{shortest} ms at least, {mean} ms on average");
        let (_, shortest, _) = lab.ping("a", "c", 20);
        assert!(shortest < 60.0, "the way to c is slow as well: {shortest} ms");
        // Large packets and their checksums arrive whole, and lost ones are lost here too.
        lab.good(&["loss", "a", "b", "1%"]);
        assert!(lab.exec("a", &["sh", "-c", &copy("b")]).status.success(), "a copy to b");
        lab.good(&["heal", "loss"]);
        lab.good(&["cut", "a", "b"]);
        assert!(!lab.reaches("a", "b"), "what is cut is not carried");
        lab.good(&["heal"]);
        let (back, shortest, _) = lab.ping("a", "b", 20);
        assert!(back == 20 && shortest < 60.0, "{back} back, {shortest} ms");
    });
}

/// A script that sends a megabyte to a node, whose face refuses it: what counts is that it was taken.
fn copy(to: &str) -> String {
    format!(
        "head -c 1000000 /dev/zero | curl -s -m 20 -o /dev/null -w '%{{size_upload}}' -H 'Expect:' -X POST --data-binary @- http://{to}:8900/health; [ $? -eq 0 ] || [ $? -eq 55 ]"
    )
}

#[test]
fn a_killed_node_is_gone_at_once_and_comes_back_with_its_data() {
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        let at = "/var/lib/outlast-of-a-test/mine";
        assert!(lab.exec("b", &["sh", "-c", &format!("echo kept > {at}")]).status.success());
        let inside = { lab.command(&["exec", "b", "--", "sleep", "600"]) }.spawn().unwrap();
        wait_until("a command runs inside", || {
            said(&lab.exec("b", &["sh", "-c", "cat /proc/[0-9]*/comm"])).contains("sleep")
        });
        lab.good(&["cut", "b", "c"]);
        lab.good(&["kill", "b"]);
        let status = ended(inside);
        assert_eq!(status.code(), Some(137), "what was run inside is gone too");
        assert_eq!(lab.node("b")["state"], "dead");
        assert!(!lab.reaches("a", "b"));
        assert!(lab.bad(&["exec", "b", "--", "true"], 2).contains("b is off"));
        assert!(lab.bad(&["pause", "b"], 1).contains("b is dead"));
        lab.good(&["start", "b"]);
        assert_eq!(said(&lab.exec("b", &["cat", at])), "kept\n");
        lab.reach("a", "b");
        assert!(!lab.reaches("b", "c"), "the cut is still there");
        lab.good(&["heal"]);
        lab.reach("b", "c");

        lab.good(&["kill", "a", "--for", "1s"]);
        wait_until("the power comes back", || {
            lab.node("a")["state"] == "running" && lab.node("a")["agent"] == "running"
        });
    });
}

#[test]
fn a_stopped_node_ends_politely_and_an_agent_that_died_can_be_started_again() {
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        lab.good(&["stop", "c"]);
        assert_eq!(lab.node("c")["state"], "stopped");
        let events = lab.good(&["logs", "c"]);
        assert!(events.contains("stopped forced=false"), "{events}");
        lab.good(&["start", "c"]);
        lab.reach("a", "c");

        let script = "kill -9 $(pgrep -f '^[^ ]*outlast run')";
        lab.exec("c", &["sh", "-c", script]);
        wait_until("the agent's end is seen", || lab.node("c")["agent"]["ended"] == 137);
        assert_eq!(lab.node("c")["state"], "running", "the machine goes on without it");
        lab.good(&["start", "c"]);
        assert_eq!(lab.node("c")["agent"], "running");
    });
}

#[test]
fn a_paused_node_stands_still_until_it_is_resumed_or_its_time_is_over() {
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        let count = "while :; do echo x >> /var/lib/outlast-of-a-test/count; done";
        let inside = lab.command(&["exec", "b", "--", "sh", "-c", count]);
        let inside = { inside }.spawn().unwrap();
        let name = lab.dir.join("outlast/labs/three/nodes/b/data/count");
        let size = || fs::metadata(&name).map_or(0, |m| m.len());
        wait_until("it counts", || 0 < size());
        lab.good(&["pause", "b"]);
        assert_eq!(lab.node("b")["state"], "paused");
        let stopped_at = size();
        assert!(!lab.reaches("a", "b"));
        assert!(lab.bad(&["exec", "b", "--", "true"], 2).contains("b is paused"));
        assert!(lab.bad(&["start", "b"], 1).contains("b is paused"));
        assert_eq!(size(), stopped_at, "it went on");
        lab.good(&["resume", "b"]);
        wait_until("it counts again", || stopped_at < size());
        lab.reach("a", "b");
        assert!(lab.bad(&["resume", "b"], 1).contains("b is not paused"));

        lab.good(&["pause", "b", "--for", "1s"]);
        wait_until("it goes on by itself", || lab.node("b")["state"] == "running");
        // A paused one can be killed.
        lab.good(&["pause", "b"]);
        lab.good(&["kill", "b"]);
        assert!(!lab.has_faults());
        assert_eq!(ended(inside).code(), Some(137));
    });
}

#[test]
fn nothing_is_left_when_it_goes_down() {
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        lab.good(&["cut", "a"]);
        lab.good(&["delay", "b", "50ms"]);
        lab.good(&["pause", "c"]);
        let namespaces = lab.namespaces();
        assert!(namespaces.len() >= 4 * 5, "{namespaces:?}");
        lab.good(&["down"]);
        lab.has_left_nothing(&namespaces);
        wait_until("its directory is gone", || !lab.dir.join("outlast/labs/three").exists());
        assert!(lab.bad(&["status"], 2).contains("no lab runs"));
    });
}

/// A lab in the foreground that is up.
fn owned(user: Option<u32>) -> Lab {
    let mut lab = Lab::new(user);
    lab.write(THREE);
    let owner = lab.command(&["up", "lab.toml"]);
    lab.owner = Some({ owner }.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    wait_until("it is up", || {
        let output = lab.run(&["status", "--format", "json"]);
        output.status.success() && said(&output).contains("\"up\": true")
    });
    lab
}

#[test]
fn nothing_is_left_when_its_owner_is_killed() {
    each_user(|user| {
        let mut lab = owned(user);
        lab.good(&["cut", "a"]);
        lab.good(&["delay", "b", "50ms"]);
        lab.good(&["pause", "c"]);
        let inside = { lab.command(&["exec", "b", "--", "sleep", "600"]) }.spawn().unwrap();
        let namespaces = lab.namespaces();
        let owner = lab.owner.take().unwrap();
        kill(owner.id());
        ended(owner);
        assert!(!ended(inside).success());
        lab.has_left_nothing(&namespaces);
        // What lies in its directory is in nobody's way.
        lab.good(&["up", "lab.toml", "--detach"]);
    });
}

#[test]
fn nothing_is_left_when_its_keeper_is_killed() {
    each_user(|user| {
        let mut lab = owned(user);
        let namespaces = lab.namespaces();
        kill(u32::try_from(parent(lab.node("a")["pid"].as_u64().unwrap())).unwrap());
        let status = ended(lab.owner.take().unwrap());
        assert_eq!(status.code(), Some(2));
        lab.has_left_nothing(&namespaces);
    });
}

#[test]
fn ctrl_c_ends_it_in_order() {
    each_user(|user| {
        let mut lab = owned(user);
        let namespaces = lab.namespaces();
        let owner = lab.owner.take().unwrap();
        let pid = Pid::from_raw(i32::try_from(owner.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        assert_eq!(ended(owner).code(), Some(0));
        lab.has_left_nothing(&namespaces);
        assert!(!lab.dir.join("outlast/labs/three").exists());
    });
}

#[test]
fn two_labs_at_one_time_do_not_meet() {
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        assert!(lab.bad(&["up", "lab.toml", "--detach"], 2).contains("runs already"));
        lab.good(&["up", "lab.toml", "--detach", "--name", "other"]);
        assert!(lab.bad(&["status"], 2).contains("several labs run: other, three"));
        lab.good(&["cut", "a", "--name", "other"]);
        let reaches = |name: &str| {
            let url = "http://10.0.0.2:8900/health";
            let words = ["exec", "a", "--name", name, "--", "curl", "-s", "-m", "1", url];
            lab.run(&words).status.success()
        };
        wait_until("the other lab's cut is not ours", || reaches("three"));
        assert!(!reaches("other"));
        lab.good(&["down", "--name", "other"]);
        lab.reach("a", "b");
    });
}

#[test]
fn data_that_is_kept_is_there_the_next_time() {
    each_user(|user| {
        let lab = Lab::new(user);
        lab.write(THREE);
        let up = ["up", "lab.toml", "--detach", "--keep", "--dir", "here"];
        let at = "/var/lib/outlast-of-a-test/mine";
        lab.good(&up);
        assert!(lab.exec("a", &["touch", at]).status.success());
        lab.good(&["down"]);
        assert!(lab.dir.join("here/nodes/a/data/mine").exists());
        lab.good(&up);
        assert!(lab.exec("a", &["test", "-e", at]).status.success());
        lab.good(&["down", "--dir", "here"]);
        lab.good(&["up", "lab.toml", "--detach", "--dir", "here"]);
        assert!(!lab.exec("a", &["test", "-e", at]).status.success(), "not asked to keep");
        fs::create_dir(lab.dir.join("full")).unwrap();
        fs::write(lab.dir.join("full/mine"), "").unwrap();
        let refused = lab.bad(&["up", "lab.toml", "--detach", "--name", "x", "--dir", "full"], 2);
        assert!(refused.contains("is not empty"), "{refused}");
    });
}

#[test]
fn a_data_directory_beside_the_file_is_made_and_taken_away_again() {
    each_user(|user| {
        let lab = Lab::new(user);
        lab.write(&THREE.replace("/var/lib/outlast-of-a-test", "deep/data"));
        lab.good(&["up", "lab.toml", "--detach"]);
        assert!(lab.dir.join("outlast/labs/three/nodes/a/data/journal").exists());
        assert!(lab.exec("a", &["test", "-e", "deep/data/journal"]).status.success());
        lab.good(&["down"]);
        assert!(!lab.dir.join("deep").exists());
    });
}

#[test]
fn what_cannot_be_done_is_said() {
    let lab = Lab::new(None);
    let check = |file: &str, code: i32, says: &str| {
        lab.write(file);
        let said = lab.bad(&["up", "lab.toml"], code);
        assert!(said.contains(says), "{said}");
    };
    check("[cluster]\nname = \"x\"\n", 1, "has no [node.NAME], and a lab is made of nodes");
    let same = "[node.a]\naddress = \"10.0.0.1\"\n[node.b]\naddress = \"10.0.0.1\"\n";
    check(same, 1, "10.0.0.1");
    check("[node.a]\naddress = \"127.0.0.1\"\n", 1, "which is the same machine everywhere");
    check("[node.a\n", 1, "lab.toml:1");
    check(
        "[cluster]\ndata_dir = \"/no-such-place\"\n[node.a]\naddress = \"10.0.0.1\"\n",
        2,
        "/no-such-place does not exist, and a lab makes nothing in /",
    );
    assert!(lab.bad(&["up", "missing.toml"], 2).contains("read missing.toml"));
    assert!(
        lab.bad(&["cut", "a"], 2).contains("no lab runs; start one with `outlast lab up FILE`")
    );

    lab.write(THREE);
    lab.good(&["up", "lab.toml", "--detach"]);
    for (words, says) in [
        (&["cut", "x"] as &[&str], "there is no node `x` in lab three; its nodes are a, b, c"),
        (&["cut", "a,b", "b"], "b is in two groups"),
        (&["cut", "a,b,c"], "nobody to cut them from"),
        (&["cut", "a", "--for", "2h"], "no fault lasts longer than 1h"),
        (&["delay", "a", "a", "5ms"], "nothing lies between a node and itself"),
        (&["delay", "a", "5m"], "no packet is delayed by more than a minute"),
        (&["heal", "f9"], "there is no fault f9"),
        (&["heal", "everything"], "`everything` is no fault"),
        (&["kill", "x"], "there is no node `x`"),
        (&["start", "x"], "there is no node `x`"),
    ] {
        let said = lab.bad(words, 1);
        assert!(said.contains(says), "{words:?}: {said}");
    }
    for (words, says) in [
        (&["loss", "a", "120%"] as &[&str], "`120%` is no share; write it like 10%"),
        (&["delay", "a", "soon"], "`soon` is no delay; write it like 50ms"),
        (&["logs", "x"], "there is no node `x`"),
        (&["cut", "a", "--for", "soon"], "`soon` is no time"),
    ] {
        let said = lab.bad(words, 2);
        assert!(said.contains(says), "{words:?}: {said}");
    }
    assert!(!lab.has_faults(), "what was refused is not there");
}

#[test]
fn nodes_agree_over_real_links_and_go_on_when_the_leader_is_cut_off() {
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        let leader = |node: &str| -> Option<String> {
            let output = lab.exec(node, &["outlast", "status", "--format", "json"]);
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            status["agreement"]["leader"].as_str().map(str::to_owned)
        };
        let first = wait("a leader", || leader("a"));
        assert!(lab.exec(&first, &["outlast", "kv", "put", "k", "before"]).status.success());
        let other = if first == "a" { "b" } else { "a" };
        lab.good(&["cut", &first, "--for", "20s"]);
        let put = lab.exec(other, &["outlast", "kv", "put", "k", "after"]);
        assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
        // The one that was cut off has what it had, and does not call it newest.
        let old = lab.exec(&first, &["outlast", "kv", "get", "k", "--local"]);
        assert_eq!(String::from_utf8_lossy(&old.stdout).trim(), "before");
        wait_until("it knows that it does not lead", || leader(&first).is_none());
        lab.good(&["heal"]);
        wait_until("it has what the others agreed on", || {
            let get = lab.exec(&first, &["outlast", "kv", "get", "k"]);
            get.stdout == b"after\n"
        });
    });
}

#[test]
fn a_service_listens_on_all_machines_or_on_none() {
    const BUSY: &str = "import socket, sys; s = socket.socket(); s.bind(('0.0.0.0', 8081)); s.listen(); print('busy', flush=True); sys.stdin.read()";
    each_user(|user| {
        let lab = Lab::up(user, THREE);
        let apply = |node: &str, port: u16, limit: &str| {
            let service = format!(
                "\n[service.api]\nlisten = \"0.0.0.0:{port}\"\nbackends = [\"http://127.0.0.1:9\"]\n"
            );
            // In the lab's directory every machine sees it.
            fs::write(lab.dir.join("new.toml"), format!("{THREE}{service}")).unwrap();
            let file = lab.dir.join("new.toml").display().to_string();
            lab.exec(node, &["outlast", "apply", &file, "--yes", "--timeout", limit])
        };
        let listens = |node: &str, port: u16| {
            let url = format!("http://{node}:{port}/");
            lab.exec(node, &["curl", "-s", "-o", "/dev/null", "-m", "2", &url]).status.success()
        };
        wait_until("a leader", || {
            lab.exec("a", &["outlast", "kv", "get", "k"]).status.code() == Some(1)
        });
        let mut busy = lab.command(&["exec", "b", "--", "python3", "-c", BUSY]);
        let mut busy = busy.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 5];
        std::io::Read::read_exact(busy.stdout.as_mut().unwrap(), &mut line).unwrap();
        let output = apply("a", 8081, "30s");
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("b  no: listen on 0.0.0.0:8081 for service.api"), "{text}");
        assert!(text.contains("c  yes"), "{text}");
        wait_until("nobody listens", || !listens("a", 8081) && !listens("c", 8081));
        drop(busy.stdin.take());
        busy.wait().unwrap();
        let output = apply("c", 8081, "30s");
        assert!(output.status.success(), "{}", said(&output));
        for node in ["a", "b", "c"] {
            wait_until("it listens", || listens(node, 8081));
        }
        // A machine that loses its power goes on with what was agreed.
        lab.good(&["kill", "b"]);
        let output = apply("a", 8082, "3s");
        assert!(said(&output).contains("no answer from b within 3s"), "{}", said(&output));
        lab.good(&["start", "b"]);
        wait_until("it listens again", || listens("b", 8081));
        assert!(!listens("a", 8082) && !listens("c", 8082));
    });
}
