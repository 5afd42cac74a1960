//! Carries out orders on the modelled PostgreSQL: one after the other, slowly, sometimes in vain.

use super::postgres::{Disk, Mode};
use super::{NAMES, Slip, World};
use crate::agreed::Position;
use crate::database::{Descent, Disk as SeenDisk, Local, MemberState, Order, Server};

/// An order that is being carried out.
#[derive(Debug)]
pub(super) struct Running {
    order: Order,
    epoch: u64,
    ends: u64,
    fails: bool,
    /// Which of the source's lives a copy was begun in: it does not outlast that.
    source_life: u64,
}

/// The driver's memory is lost with the agent, except for what it keeps on disk.
#[derive(Debug, Default)]
pub(super) struct Driver {
    running: Option<Running>,
    flushed: Option<u64>,
    /// It has told the server whom to follow, and which rule.
    knows_upstream: bool,
    knows_rule: bool,
}

/// On disk.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) obeyed: u64,
    pub(super) descent: Descent,
    /// What it was before a copy that may come to nothing.
    pub(super) before: Descent,
    pub(super) turned: Option<u64>,
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
        | Order::Flush { .. }
        | Order::Verify { .. } => (10, 120),
        Order::Stop { .. } => (100, 900),
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
            Order::Stop { .. } => Some(MemberState::Restarting),
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
            | Order::Flush { .. }
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
            reaches: if runs { pg.reaches(now) } else { Position::default() },
            lineage: this.kept.descent.lineage,
            stopped: pg.stopped,
            upstream: pg
                .upstream
                .filter(|_| this.driver.knows_upstream)
                .map(|node| NAMES[node].into()),
            replayed: pg.flushed as u64,
            holds: false,
            receives: pg.connection.is_some() && pg.mode == Mode::Standby,
            promoted: this.kept.descent.promoted,
            writes: pg.mode == Mode::Primary && runs && pg.stalled_until <= now,
            rule: (pg.mode == Mode::Primary && this.driver.knows_rule).then(|| pg.rule.clone()),
            confirmed: self.slip == Some(Slip::ConfirmedEarly)
                || this.driver.knows_rule && pg.is_acked(pg.ruled_at, &NAMES[..self.size]),
            verified: pg.verified,
            closed: pg.closed,
            streams_to: streams.map(|node| NAMES[node].into()).collect(),
            lags: Default::default(),
            is_source: pg.is_source,
            slots: self.members().into_iter().map(|node| NAMES[node].into()).collect(),
            keeps_from: pg.keeps_from as u64,
            redo: (pg.mode == Mode::Down).then_some(pg.flushed as u64 / 2),
            unfit: None,
            turned: this.kept.turned,
            flushed: this.driver.flushed,
            needs_restart: Default::default(),
            lowers: false,
            rests: this.mind.as_ref().is_some_and(|_| self.resting.contains(NAMES[node])),
            storage_stuck: pg.stalled_until > now + 4_000,
            trouble: Default::default(),
            free_bytes: 0,
        }
    }

    pub(super) fn give(&mut self, node: usize, order: Order, epoch: u64) {
        let this = &mut self.nodes[node];
        if epoch < this.kept.obeyed {
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

    /// The agent is gone, and with it what is on no disk.
    pub(super) fn forget(&mut self, node: usize) {
        self.abort(node);
        let this = &mut self.nodes[node];
        this.driver = Driver::default();
        let pg = &mut this.postgres;
        (pg.stopped, pg.verified) = (None, None);
        // That it is closed is seen, but not for which switchover.
        pg.closed = pg.closed.map(|_| 0);
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
        this.kept.before = this.kept.descent;
        this.kept.descent = order.begins(this.kept.descent, epoch);
        if matches!(order, Order::Rewind { .. } | Order::Clone { .. }) {
            pg.die();
            if fails || matches!(order, Order::Clone { .. }) {
                pg.disk = Disk::Broken;
            }
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
            | Order::Flush { .. }
            | Order::Stop { .. }
            | Order::Kill { .. }
            | Order::Create
            | Order::Rewind { .. }
            | Order::Clone { .. } => {}
        }
        if matches!(order, Order::Rewind { .. } | Order::Clone { .. }) {
            self.ledger.copies += 1;
        }
        self.judge_upstream(node, &order, epoch);
        let source = match &order {
            Order::Rewind { from } | Order::Clone { from, .. } => Some(node_of(from)),
            Order::Create
            | Order::StartPrimary { .. }
            | Order::StartStandby { .. }
            | Order::Promote { .. }
            | Order::StopReceiving { .. }
            | Order::Follow { .. }
            | Order::SetRule { .. }
            | Order::Close { .. }
            | Order::Open
            | Order::MakeSource
            | Order::Verify { .. }
            | Order::Flush { .. }
            | Order::Stop { .. }
            | Order::Kill { .. } => None,
        };
        let source_life = source.map_or(0, |source| self.nodes[source].postgres.life);
        let running = Running { order, epoch, ends, fails, source_life };
        self.nodes[node].driver.running = Some(running);
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
        let Running { order, epoch, fails, source_life, .. } = running;
        let id = self.new_id();
        let now = self.now;
        let reads = self.rng.pick(&[0, 0, 100, 3_000]);
        let this = &mut self.nodes[node];
        let pg = &mut this.postgres;
        pg.promoting = false;
        let driver = &mut this.driver;
        match order {
            Order::Create if pg.disk == Disk::Empty => {
                pg.disk = Disk::Data { standby: false };
                pg.append(id);
                pg.flushed = pg.log.len();
            }
            Order::StartPrimary { .. } if pg.mode == Mode::Starting => {
                // It goes by the rule that it had; the present one is set next.
                pg.mode = Mode::Primary;
                driver.knows_rule = false;
                self.became_primary(node, *epoch);
            }
            Order::StartStandby { follow } if pg.mode == Mode::Starting => {
                pg.mode = Mode::Standby;
                pg.flush(now);
                (pg.upstream, pg.follows_under) = (follow.as_deref().map(node_of), *epoch);
                pg.read_at = now + reads;
                driver.knows_upstream = true;
            }
            Order::Promote { rule, .. } if pg.mode == Mode::Standby && !fails => {
                pg.promote(id);
                pg.rule = rule.clone();
                pg.ruled_at = pg.log.len();
                driver.knows_rule = true;
                self.became_primary(node, *epoch);
            }
            Order::StopReceiving { election } if pg.mode == Mode::Standby => {
                if pg.stalled_until > now {
                    return;
                }
                pg.upstream = None;
                pg.cut_off();
                pg.flush(now);
                if pg.read_at <= now {
                    pg.stopped = Some(*election);
                }
            }
            Order::Follow { node } if pg.mode == Mode::Standby => {
                pg.cut_off();
                pg.stopped = None;
                (pg.upstream, pg.follows_under) = (Some(node_of(node)), *epoch);
                driver.knows_upstream = true;
            }
            Order::SetRule { rule } if pg.mode == Mode::Primary => {
                pg.rule = rule.clone();
                pg.ruled_at = pg.log.len();
                driver.knows_rule = true;
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
            Order::Flush { turn } => {
                pg.flush(now);
                this.driver.flushed = Some(*turn);
            }
            Order::Stop { turn } => {
                pg.flush(now);
                pg.die();
                this.kept.turned = Some(*turn);
            }
            Order::Rewind { from } | Order::Clone { from, .. } => {
                let source = node_of(from);
                let rewinds = matches!(order, Order::Rewind { .. });
                if !fails {
                    let lives = self.nodes[source].postgres.life == *source_life;
                    self.copy(node, source, rewinds, lives, running);
                }
                let this = &mut self.nodes[node];
                if let Order::Clone { turn: Some(turn), .. } = order
                    && this.kept.descent.lineage.is_some()
                {
                    this.kept.turned = Some(*turn);
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
    fn copy(&mut self, node: usize, source: usize, rewinds: bool, lives: bool, running: &Running) {
        let there = self.is_up(source) && self.reach(node, source) && self.reach(source, node);
        let from = &self.nodes[source].postgres;
        if !there
            || !lives
            || from.mode != Mode::Primary
            || from.is_hung(self.now)
            || !from.is_source
        {
            // Nothing was changed: the log is what it was.
            let this = &mut self.nodes[node];
            if this.postgres.disk != Disk::Broken {
                this.kept.descent = this.kept.before;
            }
            return;
        }
        let mut log = from.log.clone();
        log.0.truncate(from.flushed);
        let kept = from.keeps_from;
        let this = &mut self.nodes[node];
        let pg = &mut this.postgres;
        let redo = pg.flushed / 2;
        pg.log = if rewinds { pg.log.rewound(&log) } else { log };
        pg.flushed = pg.log.len();
        pg.keeps_from = if rewinds { kept.min(pg.flushed) } else { pg.flushed };
        if rewinds && redo < kept {
            // It would never be consistent.
            pg.disk = Disk::Broken;
            return;
        }
        pg.disk = Disk::Data { standby: true };
        this.kept.descent = running.order.ends(this.kept.descent, running.epoch);
        self.note_lineage(node);
    }
}
