//! How services are, going by what is believed, and the whole picture for readers.

use alloc::borrow::ToOwned as _;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::Agent;
use crate::event::Target;
use crate::health::Health;
use crate::pair::{Pair, Side};
use crate::time::Instant;
use crate::topology::{self, PartKind, PartRef, Pool, Service};
use crate::view::{BackendView, PartView, ServiceState, ServiceView, View};

impl Agent {
    fn backend_health(&self, service: &str, backend: &str) -> Health {
        self.watches
            .get(&Target::Backend { service: service.to_owned(), backend: backend.to_owned() })
            .map_or(Health::Unknown, |w| w.belief.health())
    }

    /// The health of a part that a service names; `Unknown` for parts that nobody watches yet.
    fn part_health(&self, part: &PartRef) -> Health {
        match part.kind {
            PartKind::Service => match self.judge_needs(&part.name).0 {
                ServiceState::Unknown => Health::Unknown,
                ServiceState::Up | ServiceState::Degraded => Health::Up,
                ServiceState::Down => Health::Down,
            },
            PartKind::External => {
                let target = Target::External { name: part.name.clone() };
                self.watches.get(&target).map_or(Health::Unknown, |w| w.belief.health())
            }
            PartKind::Process => match self.processes.get(&part.name) {
                Some(process) if process.ready => Health::Up,
                Some(_) => Health::Down,
                None => Health::Unknown,
            },
            PartKind::Postgres | PartKind::Redis | PartKind::Store | PartKind::Address => {
                Health::Unknown
            }
        }
    }

    /// Whether clients of a service are served, and why.
    pub(super) fn judge(&self, name: &str) -> (ServiceState, String) {
        let (state, why) = self.judge_needs(name);
        let may_use = self.topology.services.get(name).map_or(&[][..], |s| &s.may_use);
        let missing: Vec<String> = may_use
            .iter()
            .filter(|part| self.part_health(part) == Health::Down)
            .map(ToString::to_string)
            .collect();
        match state {
            ServiceState::Up | ServiceState::Degraded if !missing.is_empty() => {
                (ServiceState::Degraded, alloc::format!("goes on without {}", missing.join(", ")))
            }
            ServiceState::Unknown
            | ServiceState::Up
            | ServiceState::Degraded
            | ServiceState::Down => (state, why),
        }
    }

    /// The same without what the service may use: that never decides between up and down, and may go round in a circle.
    /// `needs` has no circles: the parser saw to that.
    fn judge_needs(&self, name: &str) -> (ServiceState, String) {
        let Some(service) = self.topology.services.get(name) else {
            return (ServiceState::Unknown, "not in the topology".to_owned());
        };
        let need_that_is =
            |health| service.needs.iter().find(|need| self.part_health(need) == health);
        if let Some(need) = need_that_is(Health::Down) {
            return (ServiceState::Down, alloc::format!("needs {need}, which is down"));
        }
        let (state, why) = self.judge_backends(name, service);
        let unknown = service
            .needs
            .iter()
            .find(|need| self.is_watched(need) && self.part_health(need) == Health::Unknown);
        match (state, unknown) {
            (ServiceState::Up | ServiceState::Degraded, Some(need)) => {
                (ServiceState::Unknown, alloc::format!("needs {need}, which is not known yet"))
            }
            (
                ServiceState::Up
                | ServiceState::Degraded
                | ServiceState::Unknown
                | ServiceState::Down,
                _,
            ) => (state, why),
        }
    }

    /// Whether anything will ever be known of a part on this node.
    fn is_watched(&self, part: &PartRef) -> bool {
        match part.kind {
            PartKind::Service => true,
            PartKind::External => {
                self.watches.contains_key(&Target::External { name: part.name.clone() })
            }
            PartKind::Process
            | PartKind::Postgres
            | PartKind::Redis
            | PartKind::Store
            | PartKind::Address => false,
        }
    }

    fn judge_pair(&self, name: &str, spec: &topology::Pair, pair: &Pair) -> (ServiceState, String) {
        let (backend, other) = match pair.active() {
            Side::Primary => (&spec.primary.url, &spec.backup.url),
            Side::Backup => (&spec.backup.url, &spec.primary.url),
        };
        let side = pair.active();
        if let Some(not) = self.not_routed(name) {
            return not;
        }
        if self.draining.contains(&(name.to_owned(), backend.clone())) {
            return (ServiceState::Down, alloc::format!("the {side} is drained"));
        }
        match (self.backend_health(name, backend), self.backend_health(name, other)) {
            (Health::Up, _) => match side {
                Side::Primary => (ServiceState::Up, "the primary serves".to_owned()),
                Side::Backup => (ServiceState::Degraded, "the backup serves".to_owned()),
            },
            (Health::Unknown, _) => (ServiceState::Unknown, "not probed yet".to_owned()),
            (Health::Down, Health::Down) => {
                (ServiceState::Down, "primary and backup are both down".to_owned())
            }
            (Health::Down, Health::Up | Health::Unknown) => {
                (ServiceState::Down, alloc::format!("the {side} is down"))
            }
        }
    }

    fn judge_backends(&self, name: &str, service: &Service) -> (ServiceState, String) {
        if let (Pool::Pair(spec), Some(pair)) = (&service.pool, self.pairs.get(name)) {
            return self.judge_pair(name, spec, pair);
        }
        let backends = service.pool.backends();
        let healths: Vec<Health> =
            backends.iter().map(|b| self.backend_health(name, &b.url)).collect();
        let count = |health| healths.iter().filter(|&&h| h == health).count();
        let out_of_traffic = backends
            .iter()
            .zip(&healths)
            .filter(|(b, h)| {
                let key = (name.to_owned(), b.url.clone());
                **h == Health::Up
                    && (self.ejected.contains_key(&key) || self.draining.contains(&key))
            })
            .count();
        let (all, up, unknown) =
            (backends.len(), count(Health::Up) - out_of_traffic, count(Health::Unknown));
        let enough = usize::from(service.at_least.get());
        let why = alloc::format!("{up} of {all} backends up");
        if up == all {
            (ServiceState::Up, why)
        } else if up >= enough && unknown == 0 {
            (ServiceState::Degraded, why)
        } else if up >= enough {
            (ServiceState::Up, alloc::format!("{why}, {unknown} not probed yet"))
        } else if up + unknown >= enough && unknown > 0 {
            (ServiceState::Unknown, alloc::format!("{why}, {unknown} not probed yet"))
        } else {
            (ServiceState::Down, alloc::format!("{why}, {enough} needed"))
        }
    }

    /// The whole picture, for readers.
    pub fn view(&self, now: Instant) -> View {
        let services = self
            .topology
            .services
            .iter()
            .map(|(name, service)| (name.clone(), self.service_view(now, name, service)));
        let externals = self.watches.iter().filter_map(|(target, watch)| match target {
            Target::External { name } => Some((
                name.clone(),
                PartView {
                    health: watch.belief.health(),
                    since: watch.since,
                    reason: watch.reason.clone(),
                },
            )),
            Target::Backend { .. } | Target::Value { .. } => None,
        });
        View {
            generation: self.generation,
            services: services.collect(),
            externals: externals.collect(),
            processes: self.processes.clone(),
            not_saved: self.save_trouble.as_ref().map(|trouble| trouble.reason.clone()),
            nodes: self.node_views(now),
        }
    }

    fn service_view(&self, now: Instant, name: &str, service: &Service) -> ServiceView {
        let (state, why) = self.judge(name);
        let pair = self.pairs.get(name);
        let roles = [Side::Primary, Side::Backup];
        let backends = service.pool.backends().into_iter().enumerate().map(|(i, backend)| {
            let key = (name.to_owned(), backend.url.clone());
            let watch = self
                .watches
                .get(&Target::Backend { service: key.0.clone(), backend: key.1.clone() });
            BackendView {
                name: backend.url.clone(),
                health: watch.map_or(Health::Unknown, |w| w.belief.health()),
                since: watch.map(|w| w.since).unwrap_or_default(),
                reason: watch.map(|w| w.reason.clone()).unwrap_or_default(),
                streak: watch.map_or(0, |w| w.belief.streak()),
                draining: self.draining.contains(&key),
                ejected: self.ejected.contains_key(&key),
                role: pair.and(roles.get(i).copied()),
                verdict: self.verdict(now, &Target::Backend { service: key.0, backend: key.1 }),
            }
        });
        ServiceView {
            state,
            since: self.states.get(name).map(|&(_, since)| since).unwrap_or_default(),
            why,
            next: pair.and_then(|p| p.next(now)),
            backends: backends.collect(),
            active: pair.map(|p| (p.active(), p.routed())),
            moving: self.moving.contains(name),
        }
    }
}
