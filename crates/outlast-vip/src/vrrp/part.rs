//! Drives one node's part in a virtual router: what is heard and when it is goes into the machine of `outlast_core::vrrp`, and
//! what it wants is done.
//!
//! Several virtual routers that move together are one part with several voices: all of them are active, or none. Who is heard
//! by any of them is there.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::task::Poll;
use std::time::Duration;

use outlast_core::time::Instant;
use outlast_core::vrrp::wire::{Advert, Dialect};
use outlast_core::vrrp::{Action, Event, Heard, Interval, LEAVES, Router, Settings, State};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::{Refused, Said, Speaker};
use crate::address::Place;
use crate::announce::Timetable;
use crate::clock::boottime;
use crate::error::Error;
use crate::guard::Guard;

/// The addresses are held for three intervals from an advertisement on: a process that is stopped or dead loses them before
/// others take it for dead, which they do after the skew besides. With intervals below 100 ms it is this long, so that
/// who is late by that does not go dark; for the rest of it there may be two.
pub const HOLD_MIN: Duration = Duration::from_millis(300);
/// They are refreshed no more often within that time.
const REFRESHES: u32 = 4;
/// Of so many others it is known what they have said last.
pub const HEARD_MAX: usize = 64;

/// What another router has said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    pub number: NonZeroU8,
    /// [`LEAVES`]: it has ended.
    pub priority: u8,
    pub interval: Interval,
    pub dialect: Dialect,
    pub at: Instant,
}

/// How a part does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub state: State,
    /// With what is tracked; `None` while something is wrong.
    pub priority: Option<NonZeroU8>,
    /// What it could not say to others, the last time.
    pub unsaid: Option<String>,
    /// How often it was late, so that the kernel let the addresses go before it did.
    pub lost: u64,
    /// By the address that it came from.
    pub heard: BTreeMap<IpAddr, Word>,
    /// What was not understood last, and when.
    pub refused: Option<(Refused, Instant)>,
}

/// A virtual router, as this node speaks it.
#[derive(Debug)]
pub struct Voice {
    pub number: NonZeroU8,
    /// What it says of the time between two of its advertisements. All voices of a part speak with one rhythm.
    pub interval: Interval,
    /// `None`: as whoever was heard last.
    pub checksum: Option<Dialect>,
    /// In IPv6 the first one has to be a link-local one (RFC 9568 5.2.9).
    pub addresses: Vec<IpAddr>,
    pub speaker: Speaker,
}

/// A voice, and what has come of it.
#[derive(Debug)]
struct Spoken {
    voice: Voice,
    /// Of whoever was heard last.
    dialect: Dialect,
    /// That of whoever was heard last; its own before.
    interval: Interval,
}

/// One node's part in one virtual router, or in several that move together.
#[derive(Debug)]
pub struct Part {
    settings: Settings,
    router: Router,
    voices: Vec<Spoken>,
    guard: Guard,
    timetable: Timetable,
    refreshed: Instant,
    /// Others have been told that it is there; the kernel is told next.
    refreshes: bool,
    status: watch::Sender<Status>,
}

impl Part {
    /// Takes no part yet. The unit is the name of the guard that it puts up in the kernel.
    pub fn new(
        unit: &str,
        settings: Settings,
        voices: Vec<Voice>,
        places: &[Place],
    ) -> Result<Part, Error> {
        let router = Router::new(settings);
        let status = Status {
            state: State::Idle,
            priority: router.priority(),
            unsaid: None,
            lost: 0,
            heard: BTreeMap::new(),
            refused: None,
        };
        let spoken = |voice: Voice| Spoken {
            dialect: voice.checksum.unwrap_or_default(),
            interval: voice.interval,
            voice,
        };
        Ok(Part {
            settings,
            router,
            voices: voices.into_iter().map(spoken).collect(),
            guard: Guard::open(unit, places)?,
            timetable: Timetable::begin(boottime()),
            refreshed: boottime(),
            refreshes: false,
            status: watch::Sender::new(status),
        })
    }

    /// Tells of every change, and of everything that is heard.
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
                (voice, said) = hear_any(&mut self.voices) => match said? {
                    Ok(said) => self.hear(voice, said)?,
                    Err(refused) => self.refuse(voice, refused),
                },
                () = sleep(wait) => {}
            }
            // However much is heard, what is due is done.
            self.tick()?;
        }
    }

    fn hear(&mut self, voice: usize, said: Said) -> Result<(), Error> {
        let Some(spoken) = self.voices.get_mut(voice) else { return Ok(()) };
        let Said { advert: Advert { router, priority, interval, .. }, from, dialect } = said;
        if router != spoken.voice.number {
            return Ok(());
        }
        spoken.dialect = spoken.voice.checksum.unwrap_or(dialect);
        spoken.interval = interval;
        let own = spoken.voice.speaker.own();
        let word = Word { number: router, priority, interval, dialect, at: boottime() };
        self.status.send_modify(|status| note(&mut status.heard, from, word));
        self.begin_again_if_late()?;
        // Who speaks slowly with one voice is there for as long as that lasts.
        let slowest = self.voices.iter().map(|spoken| spoken.interval).max();
        let interval = slowest.unwrap_or(interval);
        self.step(Event::Heard(Heard { from, own, priority, interval }))
    }

    /// What others say of other routers is not ours to understand.
    fn refuse(&self, voice: usize, refused: Refused) {
        let number = self.voices.get(voice).map(|spoken| spoken.voice.number);
        if refused.number == number {
            self.status.send_modify(|status| status.refused = Some((refused, boottime())));
        }
    }

    /// Until something is to be done although nothing happens.
    fn wait(&self) -> Duration {
        if self.refreshes {
            return Duration::ZERO;
        }
        let now = boottime();
        let active =
            (self.router.state() == State::Active).then(|| self.timetable.next().since(now));
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
        if self.refreshes {
            match self.guard.refresh(now + self.hold()) {
                Ok(()) => (self.refreshed, self.refreshes) = (now, false),
                // The kernel was told too late, and then to forget it: it is told again at once.
                Err(Error::Over) => {}
                Err(error) => return Err(error),
            }
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
        self.status.send_modify(|status| status.lost = status.lost.saturating_add(1));
        self.step(Event::Stop)?;
        self.step(Event::Start)
    }

    fn step(&mut self, event: Event) -> Result<(), Error> {
        let mut wanted = Vec::new();
        self.router.step(boottime(), event, &mut wanted);
        let done = wanted.into_iter().map(|action| self.act(action)).fold(Ok(()), Result::and);
        let (state, priority) = (self.router.state(), self.router.priority());
        self.status.send_if_modified(|status| {
            let changes = (status.state, status.priority) != (state, priority);
            (status.state, status.priority) = (state, priority);
            changes
        });
        done
    }

    fn act(&mut self, action: Action) -> Result<(), Error> {
        match action {
            Action::Advertise { priority } => {
                let is_early = boottime() < self.refreshed + self.hold() / REFRESHES;
                self.refreshes = priority != LEAVES && self.guard.holds() && !is_early;
                self.advertise(priority);
            }
            Action::Take => {
                let now = boottime();
                self.timetable = Timetable::begin(now);
                match self.guard.take(now + self.hold()) {
                    Ok(()) => (self.refreshed, self.refreshes) = (now, false),
                    // The kernel was told too late: that is seen at once, and all begins anew.
                    Err(Error::Over) => self.refreshes = true,
                    Err(error) => return Err(error),
                }
            }
            Action::Announce => {
                let now = boottime();
                self.timetable.again(now);
                self.announce(now);
            }
            Action::Release => {
                self.refreshes = false;
                self.guard.drop_all()?;
            }
        }
        Ok(())
    }

    fn advertise(&self, priority: u8) {
        let say = |Spoken { voice, dialect, .. }: &Spoken| {
            let addresses = voice.addresses.clone();
            let (router, interval) = (voice.number, voice.interval);
            voice.speaker.say(&Advert { router, priority, interval, addresses }, *dialect)
        };
        let said = self.voices.iter().map(say).fold(Ok(()), Result::and);
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

/// The next word that any of them hears. It may be given up at any time without losing one.
async fn hear_any(voices: &mut [Spoken]) -> (usize, Result<Result<Said, Refused>, Error>) {
    let speakers = voices.iter_mut().map(|spoken| &mut spoken.voice.speaker).enumerate();
    let mut hearing: Vec<_> = speakers
        .map(|(index, speaker)| Box::pin(async move { (index, speaker.listen().await) }))
        .collect();
    poll_fn(|context| {
        let mut polled = hearing.iter_mut().map(|one| one.as_mut().poll(context));
        polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

/// Who was heard longest ago makes room.
fn note(heard: &mut BTreeMap<IpAddr, Word>, from: IpAddr, word: Word) {
    if HEARD_MAX <= heard.len()
        && !heard.contains_key(&from)
        && let Some(oldest) = heard.iter().min_by_key(|(_, word)| word.at).map(|(ip, _)| *ip)
    {
        heard.remove(&oldest);
    }
    heard.insert(from, word);
}

impl Word {
    /// It has said that it ends.
    pub fn leaves(&self) -> bool {
        self.priority == LEAVES
    }
}
