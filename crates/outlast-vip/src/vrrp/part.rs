//! Drives one node's part in a virtual router: what is heard and when it is goes into the machine of `outlast_core::vrrp`, and
//! what it wants is done.

use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use outlast_core::time::Instant;
use outlast_core::vrrp::wire::{Advert, Dialect};
use outlast_core::vrrp::{Action, Event, Heard, Router, Settings, State};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::{Said, Speaker};
use crate::address::Place;
use crate::announce::Timetable;
use crate::clock::boottime;
use crate::error::Error;
use crate::guard::Guard;

/// The addresses are held for so long at one time at least, and for three intervals if these are longer: a process that is
/// stopped or dead loses them after that.
pub const HOLD_MIN: Duration = Duration::from_secs(1);
/// They are refreshed this often within that time.
const REFRESHES: u32 = 4;

/// How a part does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub state: State,
    /// What it could not say to others, the last time.
    pub unsaid: Option<String>,
}

/// One node's part in one virtual router.
#[derive(Debug)]
pub struct Part {
    number: NonZeroU8,
    settings: Settings,
    addresses: Vec<IpAddr>,
    router: Router,
    speaker: Speaker,
    guard: Guard,
    /// Of whoever was heard last.
    dialect: Dialect,
    timetable: Timetable,
    refreshes: Instant,
    status: watch::Sender<Status>,
}

impl Part {
    /// Takes no part yet. In IPv6 the first address has to be a link-local one (RFC 9568 5.2.9).
    pub fn new(
        number: NonZeroU8,
        settings: Settings,
        speaker: Speaker,
        places: &[Place],
    ) -> Result<Part, Error> {
        let status = Status { state: State::Idle, unsaid: None };
        Ok(Part {
            number,
            settings,
            addresses: places.iter().map(|place| place.network.address).collect(),
            router: Router::new(settings),
            speaker,
            guard: Guard::open(&format!("vrrp{number}"), places)?,
            dialect: Dialect::default(),
            timetable: Timetable::begin(boottime()),
            refreshes: boottime(),
            status: watch::Sender::new(status),
        })
    }

    /// Tells of every change.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Takes part until nobody can send orders any more, or something cannot be done; whatever ends it, the addresses are let
    /// go and the others told.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Event>) -> Result<(), Error> {
        let ran = self.take_part(&mut orders).await;
        let left = self.step(Event::Stop);
        ran.and(left).and(self.guard.close())
    }

    async fn take_part(&mut self, orders: &mut mpsc::Receiver<Event>) -> Result<(), Error> {
        self.step(Event::Start)?;
        loop {
            let wait = self.wait();
            tokio::select! {
                // What others have said counts before what is done because nothing was heard.
                biased;
                order = orders.recv() => match order {
                    Some(order) => self.step(order)?,
                    None => return Ok(()),
                },
                said = self.speaker.hear() => self.hear(said?)?,
                () = sleep(wait) => {}
            }
            // However much is heard, what is due is done.
            self.tick()?;
        }
    }

    fn hear(&mut self, said: Said) -> Result<(), Error> {
        let Said { advert: Advert { router, priority, interval, .. }, from, dialect } = said;
        if router != self.number {
            return Ok(());
        }
        self.dialect = dialect;
        self.begin_again_if_late()?;
        self.step(Event::Heard(Heard { from, priority, interval }))
    }

    /// Until something is to be done although nothing happens.
    fn wait(&self) -> Duration {
        let now = boottime();
        let active = (self.router.state() == State::Active)
            .then(|| self.refreshes.min(self.timetable.next()).since(now));
        let due = self.router.deadline().map(|due| due.since(now));
        [active, due].into_iter().flatten().min().unwrap_or(Duration::MAX)
    }

    fn tick(&mut self) -> Result<(), Error> {
        self.begin_again_if_late()?;
        self.step(Event::Tick)?;
        let now = boottime();
        if self.router.state() != State::Active {
            return Ok(());
        }
        if self.refreshes <= now {
            self.guard.refresh(now + self.hold())?;
            self.refreshes = now + self.hold() / REFRESHES;
        }
        if self.timetable.next() <= now {
            self.announce(now);
        }
        Ok(())
    }

    /// If this process was late, the kernel has let the addresses go, and another one may be active.
    fn begin_again_if_late(&mut self) -> Result<(), Error> {
        if self.router.state() != State::Active || self.guard.holds() {
            return Ok(());
        }
        self.step(Event::Stop)?;
        self.step(Event::Start)
    }

    fn step(&mut self, event: Event) -> Result<(), Error> {
        let mut wanted = Vec::new();
        self.router.step(boottime(), event, &mut wanted);
        let done = wanted.into_iter().map(|action| self.act(action)).fold(Ok(()), Result::and);
        let state = self.router.state();
        self.status.send_if_modified(|status| {
            let changes = status.state != state;
            status.state = state;
            changes
        });
        done
    }

    fn act(&mut self, action: Action) -> Result<(), Error> {
        match action {
            Action::Advertise { priority } => self.advertise(priority),
            Action::Take => {
                let now = boottime();
                self.guard.take(now + self.hold())?;
                self.refreshes = now + self.hold() / REFRESHES;
                self.timetable = Timetable::begin(now);
            }
            Action::Announce => {
                let now = boottime();
                self.timetable.again(now);
                self.announce(now);
            }
            Action::Release => self.guard.drop_all()?,
        }
        Ok(())
    }

    fn advertise(&self, priority: u8) {
        let addresses = self.addresses.clone();
        let interval = self.settings.interval;
        let advert = Advert { router: self.number, priority, interval, addresses };
        let said = self.speaker.say(&advert, self.dialect);
        self.said(said);
    }

    fn announce(&mut self, now: Instant) {
        let said = self.guard.announce();
        self.timetable.said(now);
        self.said(said);
    }

    /// What was not said is said again soon; meanwhile people can see why.
    fn said(&self, said: Result<(), Error>) {
        let unsaid = said.err().map(|error| error.to_string());
        self.status.send_if_modified(|status| {
            let changes = status.unsaid != unsaid;
            status.unsaid = unsaid;
            changes
        });
    }

    fn hold(&self) -> Duration {
        HOLD_MIN.max(3 * self.settings.interval.duration())
    }
}
