//! Carries out orders on the modelled PostgreSQL: one after the other, slowly, sometimes in vain.

use super::postgres::{Disk, Mode};
use super::{NAMES, Slip, World};
use crate::agreed::Position;
use crate::database::{Disk as SeenDisk, Local, MemberState, Order, Server};

/// An order that is being carried out.
#[derive(Debug)]
pub(super) struct Running {
    order: Order,
    epoch: u64,
    ends: u64,
    fails: bool,
}

/// The driver's memory is lost with the agent, except for what it keeps on disk.
#[derive(Debug, Default)]
pub(super) struct Driver {
    running: Option<Running>,
}

/// On disk.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) obeyed: u64,
    pub(super) promoted: Option<u64>,
    pub(super) lineage: Option<u64>,
    /// What it was before a copy that may come to nothing.
    pub(super) lineage_before: Option<u64>,
}

fn takes(order: &Order) -> (u64, u64) {
    match order {
        Order::Kill { .. } => (20, 150),
        Order::Create | Order::StartPrimary { .. } | Order::StartStandby { .. } => (100, 900),
        Order::Promote { .. } => (100, 600),
        Order::StopReceiving { .. }
        | Order::Follow { .. }
        | Order::SetRule { .. }
        | Order::Close { .. }
        | Order::Open
        | Order::MakeSource
        | Order::Verify { .. } => (10, 120),
        Order::Rewind { .. } => (800, 4_000),
        Order::Clone { .. } => (1_500, 6_000),
    }
}

pub(super) fn node_of(name: &str) -> usize {
    NAMES.iter().position(|other| *other == name).expect("a node of this name")
}

impl World {
    /// What the driver sees.
    pub(super) fn local(&self, node: usize) -> Local {
        let this = &self.nodes[node];
        let pg = &this.postgres;
        let now = self.now;
        let server = match pg.mode {
            _ if pg.is_hung(now) => Server::Hung,
            Mode::Down => Server::Down,
            Mode::Starting => Server::Starting,
            Mode::Standby => Server::Standby,
            Mode::Primary => Server::Primary,
        };
        let disk = match pg.disk {
            Disk::Empty => SeenDisk::Empty,
            Disk::Broken => SeenDisk::Broken,
            Disk::Data { standby } => SeenDisk::Data { standby },
        };
        let running = this.driver.running.as_ref().map(|running| &running.order);
        let busy = running.and_then(|order| match order {
            Order::Rewind { .. } => Some(MemberState::Rewinding),
            Order::Clone { .. } | Order::Create => Some(MemberState::Cloning),
            Order::StartPrimary { .. }
            | Order::StartStandby { .. }
            | Order::Promote { .. }
            | Order::StopReceiving { .. }
            | Order::Follow { .. }
            | Order::SetRule { .. }
            | Order::Close { .. }
            | Order::Open
            | Order::MakeSource
            | Order::Verify { .. }
            | Order::Kill { .. } => None,
        });
        let runs = pg.runs(now);
        let has_data = matches!(pg.disk, Disk::Data { .. });
        let streams = (0..self.size).filter(|&other| {
            let standby = &self.nodes[other].postgres;
            standby.upstream == Some(node)
                && standby.connection.is_some_and(|(life, _)| life == pg.life)
        });
        Local {
            disk,
            server,
            busy,
            system: has_data.then_some(7),
            // How far a log reaches that nobody reads is not known.
            reaches: if runs { pg.reaches() } else { Position::default() },
            lineage: this.kept.lineage,
            stopped: pg.stopped,
            upstream: pg.upstream.map(|node| NAMES[node].into()),
            receives: pg.connection.is_some() && pg.mode == Mode::Standby,
            promoted: this.kept.promoted,
            writes: pg.mode == Mode::Primary && runs && pg.stalled_until <= now,
            rule: (pg.mode == Mode::Primary).then(|| pg.rule.clone()),
            confirmed: self.slip == Some(Slip::ConfirmedEarly)
                || pg.is_acked(pg.ruled_at, &NAMES[..self.size]),
            verified: pg.verified,
            closed: pg.closed,
            streams_to: streams.map(|node| NAMES[node].into()).collect(),
            is_source: pg.is_source,
            unfit: None,
            storage_stuck: pg.stalled_until > now + 4_000,
            trouble: Default::default(),
            free_bytes: 0,
        }
    }

    pub(super) fn give(&mut self, node: usize, order: Order, epoch: u64) {
        let this = &mut self.nodes[node];
        if epoch < this.kept.obeyed && self.slip != Some(Slip::OldEpochObeyed) {
            return;
        }
        let kills = matches!(order, Order::Kill { .. });
        if kills
            && matches!(&this.driver.running, Some(r) if !matches!(r.order, Order::Kill { .. }))
        {
            self.abort(node);
        }
        let this = &mut self.nodes[node];
        // What is being done may change what this order was decided on.
        if this.driver.running.is_none() {
            self.begin(node, order, epoch);
        }
    }

    /// What was being done is left as it is.
    pub(super) fn abort(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        this.postgres.promoting = false;
        if let Some(running) = this.driver.running.take()
            && matches!(running.order, Order::StartPrimary { .. } | Order::StartStandby { .. })
        {
            this.postgres.die();
        }
    }

    fn begin(&mut self, node: usize, order: Order, epoch: u64) {
        let (least, most) = takes(&order);
        let slow = if self.rng.per_mille(30) { 6 } else { 1 };
        let slow = if matches!(order, Order::Kill { .. }) { 1 } else { slow };
        let ends = self.now + self.rng.between(least, most) * slow;
        let early = self.slip == Some(Slip::StoppedEarly);
        let late = early && matches!(order, Order::StopReceiving { .. });
        let ends = if late { ends + 1_500 } else { ends };
        let fails = self.rng.per_mille(60) && self.faults.orders_fail;
        self.note(node, &std::format!("begins {order:?} under {epoch}"));
        let this = &mut self.nodes[node];
        this.kept.obeyed = this.kept.obeyed.max(epoch);
        let pg = &mut this.postgres;
        match &order {
            Order::Create | Order::StartPrimary { .. } | Order::Promote { .. } => {
                (this.kept.promoted, this.kept.lineage) = (Some(epoch), Some(epoch));
            }
            Order::Follow { .. } | Order::StartStandby { follow: Some(_) } => {
                this.kept.lineage = Some(epoch);
            }
            Order::Rewind { .. } | Order::Clone { .. } => {
                this.kept.lineage_before = this.kept.lineage.take();
                pg.die();
                let clones = matches!(order, Order::Clone { .. });
                if clones || fails {
                    pg.disk = Disk::Broken;
                }
            }
            Order::StartStandby { follow: None }
            | Order::StopReceiving { .. }
            | Order::SetRule { .. }
            | Order::Close { .. }
            | Order::Open
            | Order::MakeSource
            | Order::Verify { .. }
            | Order::Kill { .. } => {}
        }
        match &order {
            Order::StartPrimary { .. } | Order::StartStandby { .. } if pg.mode == Mode::Down => {
                if matches!(pg.disk, Disk::Data { .. }) {
                    pg.mode = Mode::Starting;
                    let standby = matches!(order, Order::StartStandby { .. });
                    pg.disk = Disk::Data { standby };
                }
            }
            Order::Promote { .. } => {
                pg.promoting = pg.mode == Mode::Standby;
                pg.upstream = None;
                pg.cut_off();
            }
            Order::StopReceiving { election } if self.slip == Some(Slip::StoppedEarly) => {
                pg.stopped = Some(*election);
            }
            Order::StartPrimary { .. }
            | Order::StartStandby { .. }
            | Order::StopReceiving { .. }
            | Order::Follow { .. }
            | Order::SetRule { .. }
            | Order::Close { .. }
            | Order::Open
            | Order::MakeSource
            | Order::Verify { .. }
            | Order::Kill { .. }
            | Order::Create
            | Order::Rewind { .. }
            | Order::Clone { .. } => {}
        }
        if matches!(order, Order::Rewind { .. } | Order::Clone { .. }) {
            self.ledger.copies += 1;
        }
        let lineage = this.kept.lineage;
        this.driver.running = Some(Running { order: order.clone(), epoch, ends, fails });
        self.judge_upstream(node, &order, epoch, lineage);
    }

    pub(super) fn drive(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        let Some(running) = &this.driver.running else { return };
        let waits = this.postgres.is_hung(self.now) && !matches!(running.order, Order::Kill { .. });
        if self.now < running.ends || waits {
            // An order to a server that hangs is given up.
            if waits && running.ends + 2_000 < self.now {
                this.driver.running = None;
            }
            return;
        }
        let running = this.driver.running.take().expect("it was there");
        self.finish(node, &running);
    }

    fn finish(&mut self, node: usize, running: &Running) {
        let Running { order, epoch, fails, .. } = running;
        let id = self.new_id();
        let now = self.now;
        let this = &mut self.nodes[node];
        let pg = &mut this.postgres;
        pg.promoting = false;
        match order {
            Order::Create if pg.disk == Disk::Empty => {
                pg.disk = Disk::Data { standby: false };
                pg.append(id);
                pg.flushed = pg.log.len();
                pg.mode = Mode::Primary;
                self.became_primary(node, *epoch);
            }
            Order::StartPrimary { rule, .. } if pg.mode == Mode::Starting => {
                pg.mode = Mode::Primary;
                pg.rule = rule.clone();
                pg.ruled_at = pg.log.len();
                self.became_primary(node, *epoch);
            }
            Order::StartStandby { follow } if pg.mode == Mode::Starting => {
                pg.mode = Mode::Standby;
                pg.flush(now);
                (pg.upstream, pg.follows_under) = (follow.as_deref().map(node_of), *epoch);
            }
            Order::Promote { rule, .. } if pg.mode == Mode::Standby && !fails => {
                pg.promote(id);
                pg.rule = rule.clone();
                pg.ruled_at = pg.log.len();
                self.became_primary(node, *epoch);
            }
            Order::StopReceiving { election } if pg.mode == Mode::Standby => {
                if pg.stalled_until > now {
                    return;
                }
                pg.upstream = None;
                pg.cut_off();
                pg.flush(now);
                pg.stopped = Some(*election);
            }
            Order::Follow { node } if pg.mode == Mode::Standby => {
                pg.cut_off();
                pg.stopped = None;
                (pg.upstream, pg.follows_under) = (Some(node_of(node)), *epoch);
            }
            Order::SetRule { rule } if pg.mode == Mode::Primary => {
                pg.rule = rule.clone();
                pg.ruled_at = pg.log.len();
            }
            Order::Close { begun } if pg.mode == Mode::Primary && pg.stalled_until <= now => {
                pg.flush(now);
                pg.closed = Some(*begun);
            }
            Order::Open => pg.closed = None,
            Order::MakeSource if pg.mode == Mode::Primary => pg.is_source = true,
            // It is a write like any other.
            Order::Verify { epoch } if pg.mode == Mode::Primary && pg.closed.is_none() => {
                pg.verifying = Some((pg.append(id), *epoch));
            }
            Order::Kill { .. } => pg.die(),
            Order::Rewind { from } | Order::Clone { from } => {
                let source = node_of(from);
                let rewinds = matches!(order, Order::Rewind { .. });
                if !fails {
                    self.copy(node, source, rewinds, *epoch);
                }
            }
            // It has come to nothing.
            Order::Create
            | Order::StartPrimary { .. }
            | Order::StartStandby { .. }
            | Order::Promote { .. }
            | Order::StopReceiving { .. }
            | Order::Follow { .. }
            | Order::SetRule { .. }
            | Order::Close { .. }
            | Order::MakeSource
            | Order::Verify { .. } => {}
        }
    }

    /// Makes a data directory like another one.
    fn copy(&mut self, node: usize, source: usize, rewinds: bool, epoch: u64) {
        let there = self.is_up(source) && self.reach(node, source) && self.reach(source, node);
        let from = &self.nodes[source].postgres;
        if !there || from.mode != Mode::Primary || from.is_hung(self.now) || !from.is_source {
            // Nothing was changed: the log is what it was.
            let this = &mut self.nodes[node];
            if this.postgres.disk != Disk::Broken {
                this.kept.lineage = this.kept.lineage_before;
            }
            return;
        }
        let mut log = from.log.clone();
        log.0.truncate(from.flushed);
        let this = &mut self.nodes[node];
        let pg = &mut this.postgres;
        pg.log = if rewinds { pg.log.rewound(&log) } else { log };
        pg.flushed = pg.log.len();
        pg.disk = Disk::Data { standby: true };
        (this.kept.promoted, this.kept.lineage) = (None, Some(epoch));
        self.ledger.lineages.insert((node, epoch));
    }
}
