//! What else must be well where an address is: interfaces, parts, scripts.

use std::path::Path;
use std::time::Duration;

use outlast_core::health::{Belief, Health};
use outlast_core::topology::{Check, PartKind, PartRef, Tracked};
use outlast_core::view::{ServiceState, View};
use outlast_host::probe::Prober;
use tokio::sync::mpsc;

use super::Home;
use super::hands::{Heard, Which};

/// How often interfaces are looked at. Those of the address itself are not waited for: the kernel tells of them.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Says whenever something that is tracked goes down or is up again.
pub(super) async fn watch(
    home: Home,
    unit: Which,
    index: usize,
    what: Tracked,
    tell: mpsc::Sender<Heard>,
) {
    let say = Say { unit, index, tell, last: None };
    match what {
        Tracked::Interface(name) => watch_interface(&name, say).await,
        Tracked::Part(part) => watch_part(home, &part, say).await,
        Tracked::Script { command, every, timeout, thresholds } => {
            let (check, prober) = (Check::Command(command), Prober::new());
            let (mut belief, mut say) = (Belief::new(thresholds), say);
            loop {
                let answer = prober.ask(&check, None, timeout).await;
                if let Some(health) = belief.observe(answer.ok) {
                    let down = health == Health::Down;
                    say.say(down.then(|| format!("its script says no: {}", answer.reason))).await;
                }
                tokio::time::sleep(every).await;
            }
        }
    }
}

struct Say {
    unit: Which,
    index: usize,
    tell: mpsc::Sender<Heard>,
    last: Option<String>,
}

impl Say {
    async fn say(&mut self, down: Option<String>) {
        if down == self.last {
            return;
        }
        self.last.clone_from(&down);
        let heard = Heard::Tracked { unit: self.unit.clone(), index: self.index, down };
        self.tell.send(heard).await.ok();
    }
}

async fn watch_interface(name: &str, mut say: Say) {
    let path = Path::new("/sys/class/net").join(name).join("carrier");
    loop {
        // One that is switched off cannot be read.
        let up = std::fs::read_to_string(&path).is_ok_and(|carrier| carrier.trim() == "1");
        say.say((!up).then(|| format!("interface {name} is down"))).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn watch_part(home: Home, part: &PartRef, mut say: Say) {
    let mut picture = home.picture.clone();
    loop {
        let down = is_down(&picture.borrow_and_update().view, part);
        say.say(down.then(|| format!("{part} is down, as this node sees it"))).await;
        if picture.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Nobody acts on what is unknown.
fn is_down(view: &View, part: &PartRef) -> bool {
    match part.kind {
        PartKind::Service => {
            view.services.get(&part.name).is_some_and(|service| service.state == ServiceState::Down)
        }
        PartKind::Process
        | PartKind::Postgres
        | PartKind::Redis
        | PartKind::Store
        | PartKind::Address
        | PartKind::External => false,
    }
}
