use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::*;
use crate::dataplane::process::socket_path;
use crate::dataplane::wire::{self, FromProxy, Hello};

const LIMIT: Duration = Duration::from_secs(20);

const SOON: Instant = Instant::from_start(Duration::from_secs(10));
const LATER: Instant = Instant::from_start(Duration::from_secs(20));

/// A proxy that greets and takes notes. Its process is that of the test.
struct Fake {
    door: UnixListener,
}

impl Fake {
    fn at(dir: &Path) -> Fake {
        Fake { door: UnixListener::bind(socket_path(dir, std::process::id())).unwrap() }
    }

    /// Greets whoever connects, as this build or as another one; gives its sockets, if it is asked to.
    fn greet(&self, build: &str, sockets: bool) -> UnixStream {
        let (agent, _) = self.door.accept().unwrap();
        agent.set_read_timeout(Some(LIMIT)).unwrap();
        let table = serde_json::to_value(Table::default()).unwrap();
        let (pid, build) = (std::process::id(), build.to_owned());
        let hello = Hello { pid, build, draining: false, table };
        wire::send(&agent, &FromProxy::Hello(hello), &[]).unwrap();
        if sockets {
            assert!(matches!(next(&agent), ToProxy::GiveSockets));
            wire::send(&agent, &FromProxy::Sockets { addresses: Vec::new() }, &[]).unwrap();
        }
        agent
    }
}

fn next(agent: &UnixStream) -> ToProxy {
    wire::receive(agent).unwrap().expect("a message").0
}

#[track_caller]
fn says_vouch(agent: &UnixStream, expected: Instant) {
    let said = next(agent);
    assert!(
        matches!(said, ToProxy::Vouch { until } if until == expected.since_start()),
        "{said:?}"
    );
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("outlast-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// An agent's care for a proxy of this build that was there before.
fn adopted(scratch: &Scratch, fake: &Fake) -> (DataPlane, UnixStream, mpsc::Receiver<FromLink>) {
    let (sender, inbox) = mpsc::channel(16);
    let (mut plane, agent) = std::thread::scope(|scope| {
        let greeted = scope.spawn(|| fake.greet(crate::build_id(), true));
        let (plane, inherited) = DataPlane::find(scratch.0.clone(), 1, sender).unwrap();
        assert!(inherited.is_some());
        (plane, greeted.join().unwrap())
    });
    plane.begin(Instant::default(), &mut Vec::new()).unwrap();
    assert_eq!(plane.serving(), Some(std::process::id()));
    (plane, agent, inbox)
}

fn table(generation: u64) -> Table {
    Table { generation, services: Vec::new() }
}

#[test]
fn a_proxy_that_is_found_again_gets_the_lease_before_its_table() {
    let scratch = Scratch::new("regained");
    let fake = Fake::at(&scratch.0);
    let (mut plane, agent, mut inbox) = adopted(&scratch, &fake);
    // An adopted proxy holds to what was said before: nothing is said to it until this agent knows something.
    plane.apply(Instant::default(), table(1), false);
    assert!(matches!(next(&agent), ToProxy::Apply { .. }));
    plane.vouch(Some(SOON));
    says_vouch(&agent, SOON);
    plane.vouch(Some(LATER));
    says_vouch(&agent, LATER);
    drop(agent);
    let agent = fake.greet(crate::build_id(), false);
    let link = loop {
        let news = inbox.blocking_recv().expect("it is found again");
        if let FromLink::Regained { link } = news {
            break link;
        }
        assert!(matches!(news, FromLink::Lost { .. }), "{news:?}");
    };
    plane.regained(Instant::default(), *link, &mut Vec::new());
    plane.apply(Instant::default(), table(1), false);
    says_vouch(&agent, LATER);
    assert!(matches!(next(&agent), ToProxy::Apply { .. }));
    plane.vouch(None);
    says_vouch(&agent, Instant::default());
}

#[test]
fn a_successor_gets_the_lease_before_its_first_table() {
    for (build, understands) in [(crate::build_id(), true), ("another", false)] {
        let scratch = Scratch::new("successor");
        let fake = Fake::at(&scratch.0);
        let (mut plane, old, _inbox) = adopted(&scratch, &fake);
        plane.vouch(Some(SOON));
        says_vouch(&old, SOON);
        let (link, agent) = std::thread::scope(|scope| {
            let greeted = scope.spawn(|| fake.greet(build, false));
            let path = socket_path(&scratch.0, std::process::id());
            (Link::connect(&path).unwrap(), greeted.join().unwrap())
        });
        plane.started(Instant::default(), link, &mut Vec::new());
        plane.apply(Instant::default(), table(1), true);
        if understands {
            says_vouch(&agent, SOON);
        }
        assert!(matches!(next(&agent), ToProxy::Apply { .. }));
    }
}
