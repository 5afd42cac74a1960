//! The holder of a lease says so by VRRP, for those who listen: switches, people with tcpdump, a keepalived that looks on.
//!
//! Nothing is decided by it, and nothing is heard here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use outlast_consensus::boottime;
use outlast_core::address::{Voice, announcing, moving};
use outlast_core::time::Instant;
use outlast_core::topology::{PRIORITY_MAX, Topology};
use outlast_core::vrrp::LEAVES;
use outlast_core::vrrp::wire::Advert;
use outlast_vip::vrrp::Mouth;

use super::hands::{AGAIN, Hands};
use super::vrrp::heading;

/// All that this node may have to announce, by unit.
#[derive(Debug, Default)]
pub(super) struct Announcers {
    units: BTreeMap<String, Vec<Announcer>>,
    /// Nobody speaks from these.
    moving: Vec<IpAddr>,
}

impl Announcers {
    /// As the topology has them now. What is not announced any more is taken back.
    pub(super) fn follow(&mut self, topology: &Topology, node: &str) {
        let wanted = announcing(topology, node);
        self.moving = moving(topology);
        let voices = |all: &Vec<Announcer>| -> Vec<Voice> {
            all.iter().map(|announcer| announcer.voice.clone()).collect()
        };
        for (unit, announcers) in &mut self.units {
            if wanted.get(unit) != Some(&voices(announcers)) {
                announcers.iter_mut().for_each(|announcer| announcer.pass(false, &self.moving));
                announcers.clear();
            }
        }
        self.units.retain(|_, announcers| !announcers.is_empty());
        for (unit, voices) in wanted {
            let all = || voices.into_iter().map(Announcer::new).collect();
            self.units.entry(unit).or_insert_with(all);
        }
    }

    /// Says what is due.
    pub(super) fn pass(&mut self, units: &BTreeMap<String, Hands>) {
        for (unit, announcers) in &mut self.units {
            let holds = units.get(unit).is_some_and(|hands| hands.seen().holds.is_some());
            announcers.iter_mut().for_each(|announcer| announcer.pass(holds, &self.moving));
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.units.values().flatten().filter_map(Announcer::deadline).min()
    }
}

#[derive(Debug)]
struct Announcer {
    voice: Voice,
    mouth: Option<Mouth>,
    /// When it is said again; `None` while somebody else holds it.
    due: Option<Instant>,
    /// It could not be said, which has been told.
    fails: bool,
}

impl Announcer {
    fn new(voice: Voice) -> Announcer {
        Announcer { voice, mouth: None, due: None, fails: false }
    }

    fn deadline(&self) -> Option<Instant> {
        self.due
    }

    fn pass(&mut self, holds: bool, moving: &[IpAddr]) {
        let now = boottime();
        match (holds, self.due) {
            (true, Some(due)) if now < due => {}
            (true, _) => {
                let said = self.say(PRIORITY_MAX.get(), moving);
                self.due = Some(now + self.pause(said));
            }
            (false, Some(_)) => {
                self.due = None;
                self.say(LEAVES, moving);
            }
            (false, None) => {}
        }
    }

    fn pause(&self, said: bool) -> std::time::Duration {
        let advert = self.voice.vrrp.advert.duration();
        if said { advert } else { advert.max(AGAIN) }
    }

    /// False: nobody heard it.
    fn say(&mut self, priority: u8, moving: &[IpAddr]) -> bool {
        let said = self.try_to_say(priority, moving);
        if let Err(error) = &said {
            // The interface may be another one by now.
            self.mouth = None;
            if !self.fails {
                let address = &self.voice.name;
                tracing::warn!(address, error, "announce the holder of an address by VRRP");
            }
        }
        self.fails = said.is_err();
        said.is_ok()
    }

    fn try_to_say(&mut self, priority: u8, moving: &[IpAddr]) -> Result<(), String> {
        let addresses: Vec<IpAddr> = self.voice.ips.iter().map(|ip| ip.address).collect();
        let mouth = match self.mouth.take() {
            Some(mouth) => mouth,
            None => {
                let (own, to) = heading(&self.voice, moving)?;
                Mouth::open(&self.voice.interface, own, &to).map_err(|error| error.to_string())?
            }
        };
        let vrrp = &self.voice.vrrp;
        let advert = Advert { router: vrrp.id, priority, interval: vrrp.advert, addresses };
        let said = mouth.say(&advert, vrrp.checksum.unwrap_or_default());
        self.mouth = Some(mouth);
        said.map_err(|error| error.to_string())
    }
}
