//! The topologies that a run goes through.

use std::borrow::ToOwned as _;
use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;
use std::vec::Vec;

use super::Rng;
use crate::health::Thresholds;
use crate::topology::*;

pub(crate) fn backend(name: &str) -> Backend {
    Backend {
        url: name.to_owned(),
        tls: false,
        host: name.to_owned(),
        port: NonZeroU16::new(80).unwrap(),
    }
}

pub(crate) fn service(pool: Pool, probe: Probe) -> Service {
    let second = Duration::from_secs(1);
    Service {
        listen: None,
        protocol: Protocol::Http,
        tls: Vec::new(),
        pool,
        probe,
        retry: Retry {
            attempts: NonZeroU16::MIN,
            backoff: second,
            budget: 0.2,
            try_timeout: second,
            on: RetryOn { connect: true, reset: true, timeout: false, status_5xx: false },
        },
        eject: Eject {
            failures: 5,
            rate_5xx: None,
            rate_min: 20,
            time: second * 10,
            max_time: second * 60,
        },
        timeouts: Timeouts {
            connect: second,
            head: second,
            body: second,
            idle: second,
            backend_idle: second,
            tunnel: second,
            drain: second,
            queue: second,
        },
        limits: Limits {
            head_bytes: 1,
            headers: 1,
            body_bytes: 0,
            connections: NonZeroU32::MIN,
            requests: NonZeroU32::MIN,
            per_backend: 0,
            queue: 0,
        },
        panic: None,
        slow_start: Duration::ZERO,
        forwarded: Forwarded::Off,
        trusted: Vec::new(),
        proxy_protocol: ProxyProtocol::default(),
        needs: Vec::new(),
        may_use: Vec::new(),
        at_least: NonZeroU16::MIN,
        reliability: None,
        critical: true,
    }
}

pub(crate) fn probe(every: u64, rise: u16, fall: u16) -> Probe {
    let every = Duration::from_secs(every);
    Probe {
        check: Check::Tcp { address: None },
        every,
        timeout: every / 2,
        thresholds: Thresholds {
            rise: NonZeroU16::new(rise).unwrap(),
            fall: NonZeroU16::new(fall).unwrap(),
        },
        delay: Duration::ZERO,
    }
}

pub(crate) fn pair(primary: &str, backup: &str, standby: Standby, failback: Failback) -> Pool {
    Pool::Pair(Pair { primary: backend(primary), backup: backend(backup), standby, failback })
}

pub(crate) fn balanced(names: &[&str]) -> Pool {
    Pool::Balanced {
        backends: names.iter().map(|name| backend(name)).collect(),
        balance: Balance::RoundRobin,
    }
}

pub(crate) fn part(kind: PartKind, name: &str) -> PartRef {
    PartRef { kind, name: name.to_owned() }
}

pub(crate) fn external(probe: Option<Probe>) -> External {
    External {
        url: None,
        probe,
        reliability: None,
        instances: NonZeroU16::MIN,
        at_least: NonZeroU16::MIN,
    }
}

/// What may change at a reload.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    pub(crate) every: u64,
    rise: u16,
    fall: u16,
    has_cold: bool,
    cold_is_balanced: bool,
    hot_swapped: bool,
    hot_backup: &'static str,
    warm_primary: &'static str,
    failbacks: [Failback; 3],
    activates: bool,
    stops: bool,
    start_limit: u64,
    web: usize,
}

const FAILBACKS: [Failback; 4] = [
    Failback::After(Duration::ZERO),
    Failback::After(Duration::from_secs(30)),
    Failback::After(Duration::from_secs(60)),
    Failback::Manual,
];

impl Variant {
    pub(crate) fn new(rng: &mut Rng) -> Variant {
        Variant {
            every: rng.pick(&[2, 4, 8]),
            rise: u16::try_from(rng.between(1, 4)).unwrap(),
            fall: u16::try_from(rng.between(1, 4)).unwrap(),
            has_cold: true,
            cold_is_balanced: false,
            hot_swapped: false,
            hot_backup: "hot-b",
            warm_primary: "warm-a",
            failbacks: [rng.pick(&FAILBACKS), rng.pick(&FAILBACKS), rng.pick(&FAILBACKS)],
            activates: rng.per_mille(500),
            stops: rng.per_mille(700),
            start_limit: rng.pick(&[20, 60, 120]),
            web: 3,
        }
    }

    /// Changes one thing.
    pub(crate) fn change(&mut self, rng: &mut Rng) {
        match rng.between(0, 9) {
            0 => self.has_cold = !self.has_cold,
            1 => self.cold_is_balanced = !self.cold_is_balanced,
            2 => self.hot_swapped = !self.hot_swapped,
            3 => self.hot_backup = rng.pick(&["hot-b", "hot-c"]),
            4 => self.warm_primary = rng.pick(&["warm-a", "warm-c"]),
            5 => {
                let which = usize::try_from(rng.between(0, 3)).unwrap();
                self.failbacks[which] = rng.pick(&FAILBACKS);
            }
            6 => self.activates = !self.activates,
            7 => self.web = rng.pick(&[2, 3, 4]),
            _ => {
                self.rise = u16::try_from(rng.between(1, 4)).unwrap();
                self.fall = u16::try_from(rng.between(1, 4)).unwrap();
            }
        }
    }

    pub(crate) fn topology(&self) -> Topology {
        let probe = || probe(self.every, self.rise, self.fall);
        let command = |name: &str| Command(std::vec![name.to_owned()]);
        let (a, b) = match self.hot_swapped {
            false => ("hot-a", self.hot_backup),
            true => (self.hot_backup, "hot-a"),
        };
        let hot = pair(a, b, Standby::Hot, self.failbacks[0]);
        let activate = self.activates.then(|| command("activate"));
        let warm = Standby::Warm { activate };
        let warm = pair(self.warm_primary, "warm-b", warm, self.failbacks[1]);
        let cold = Standby::Cold {
            start: command("start"),
            stop: self.stops.then(|| command("stop")),
            start_limit: Duration::from_secs(self.start_limit),
        };
        let cold = match self.cold_is_balanced {
            false => pair("cold-a", "cold-b", cold, self.failbacks[2]),
            true => balanced(&["cold-a"]),
        };
        let mut web = service(balanced(&["web-1", "web-2", "web-3", "web-4"][..self.web]), probe());
        web.at_least = NonZeroU16::new(2).unwrap();
        web.needs = std::vec![part(PartKind::Service, "hot"), part(PartKind::External, "cloud")];
        web.may_use = std::vec![part(PartKind::Service, "cold"), part(PartKind::External, "mail")];
        let mut hot = service(hot, probe());
        hot.may_use = std::vec![part(PartKind::Service, "web")];
        let mut services = BTreeMap::from([
            ("web".to_owned(), web),
            ("hot".to_owned(), hot),
            ("warm".to_owned(), service(warm, probe())),
        ]);
        if self.has_cold {
            services.insert("cold".to_owned(), service(cold, probe()));
        }
        let externals = BTreeMap::from([
            ("cloud".to_owned(), external(Some(probe()))),
            ("mail".to_owned(), external(None)),
        ]);
        Topology { services, externals, ..Topology::default() }
    }
}
