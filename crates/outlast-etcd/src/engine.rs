//! The loop of a node's part in the agreement.
//!
//! It owns the machine. Calls to etcd run beside it and come back as what they have found; nothing that is slow is
//! waited for. Every node appends for itself, so that no node's death keeps the others from having something agreed on.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outlast_consensus::{
    Applied, Index, Machine, NodeId, ProposeError, Refusal, Role, Standing, boottime,
};
use outlast_core::agreed::Hash;
use outlast_core::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::chair::{Chair, Wish};
use crate::client::{Client, Trouble};
use crate::form::{Base, Batch, Keys, Place, Reign};
use crate::mark::{self, Mark};
use crate::news::{News, follow};
use crate::part::{Event, Handed, ReadAnswer, Roll, Settings, nobody, random};
use crate::queue::{Append, Queue, Return};
use crate::store::{Fault, PART_BYTES, Picture, Store};

/// What it takes in before it does what follows from it.
const TAKEN_MAX: usize = 1_024;

/// Reads that wait; they share looks.
const READS_MAX: usize = 16_384;

/// News of the watch that wait.
const NEWS_MAX: usize = 256;

/// How often a node looks, even if the watch brings nothing.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// How old the last answer of a majority may be before nobody is said to lead.
const FRESH_MAX: Duration = Duration::from_millis(2_500);

/// How long whoever proposes or reads is kept waiting without an answer from etcd.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(3);

/// How long a majority may seem to have forgotten what this node has applied, before it is believed. Some versions of etcd
/// answer with what is old for a moment after a member stood still (etcd #20418).
const FORGETFUL_MAX: Duration = Duration::from_secs(5);

/// How long a node that has found another's batch in place of its own leaves it to the leader to append: nodes that compete
/// get less done together than one of them alone.
const YIELD: Duration = Duration::from_secs(1);

/// Pauses after calls that failed, from the first to the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Between two tries to save a snapshot.
const SAVE_AGAIN: Duration = Duration::from_secs(10);

/// How old the picture that others see may become.
const PICTURE_EVERY: Duration = Duration::from_millis(200);

/// How often the mark on the disk is brought up to date.
const MARK_EVERY: Duration = Duration::from_secs(5);

/// Between two turns that nothing but time asks for.
const TURN_MIN: Duration = Duration::from_millis(1);

/// How long a leader that ends tries to say so.
const RESIGN_MAX: Duration = Duration::from_millis(500);

/// How long a node that ends tries to remember how far it came.
const REMEMBER_MAX: Duration = Duration::from_secs(1);

struct Read {
    answer: ReadAnswer,
    since: Instant,
    /// Once it is known: what has to be applied here first.
    until: Option<Index>,
}

/// What a call has found.
enum Found {
    Looked { from: Option<Place>, began: Instant, result: Result<Option<Picture>, Fault> },
    Founded(Result<(), Fault>),
    Appended { append: Append, result: Result<(Instant, Option<Picture>), Fault> },
    Sat { wish: Wish, handed: Option<Handed>, result: Result<(u64, Option<(Reign, u64)>), Fault> },
    Saved(Result<bool, Fault>),
    Marked { mark: Mark, result: io::Result<()> },
}

pub(crate) struct Driver<M> {
    store: Store,
    machine: M,
    settings: Settings,
    roll: Roll,
    publish: watch::Sender<Standing>,
    acts_until: Arc<AtomicU64>,
    random: u64,
    mark_path: PathBuf,
    /// As it stands on the disk.
    mark: Option<Mark>,
    /// When it was saved last, and whether it is being saved: one at a time.
    marked: Instant,
    marking: bool,
    calls: JoinSet<Found>,
    /// What is applied here; `None`: nothing yet.
    place: Option<Place>,
    /// The highest end of the log that was seen.
    head: Index,
    base: Base,
    /// Batches behind that snapshot: where each ends and how long it is; and all of them together.
    log: VecDeque<(Index, u64)>,
    log_bytes: u64,
    chair: Chair,
    /// When the last question was asked that a majority has answered.
    fresh: Option<Instant>,
    /// Since when answers lack what is applied here.
    forgetful_since: Option<Instant>,
    began: Instant,
    led: bool,
    queue: Queue,
    yield_until: Instant,
    reads: Vec<Read>,
    looking: bool,
    look_at: Instant,
    sitting: bool,
    saving: bool,
    save_at: Instant,
    failures: u32,
    /// After failures: when calls may be tried again.
    try_at: Instant,
    trouble: Option<String>,
    pictured: Option<(Instant, bool, u64, Option<u64>)>,
}

/// Runs until `stop` resolves or nobody is left who could ask for anything.
pub(crate) fn run<M: Machine>(
    driver: Driver<M>,
    events: mpsc::Receiver<Event>,
    stop: oneshot::Receiver<()>,
) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            runtime.block_on(driver.run(events, stop));
            // What hangs in a disk or in a name server is not waited for.
            runtime.shutdown_background();
        }
        Err(error) => {
            let failed = Some(format!("start a runtime: {error}"));
            driver.publish.send_replace(Standing { failed, ..nobody() });
        }
    }
}

impl<M: Machine> Driver<M> {
    pub(crate) fn new(
        settings: Settings,
        machine: M,
        (mark_path, mark): (PathBuf, Option<Mark>),
        publish: watch::Sender<Standing>,
        acts_until: Arc<AtomicU64>,
    ) -> Driver<M> {
        let (random, now) = (random(), boottime());
        let keys = Keys::of(&settings.cluster);
        let cluster = mark.as_ref().map(|mark| mark.etcd);
        let (endpoints, tls) = (settings.endpoints.clone(), settings.tls.clone());
        let client = Client::new(endpoints, tls, keys.head(), random, cluster);
        Driver {
            store: Store { client: Arc::new(client), keys },
            machine,
            roll: (settings.roll)(),
            settings,
            publish,
            acts_until,
            random,
            mark_path,
            mark,
            marked: now,
            marking: false,
            calls: JoinSet::new(),
            place: None,
            head: 0,
            base: Base::default(),
            log: VecDeque::new(),
            log_bytes: 0,
            chair: Chair::default(),
            fresh: None,
            forgetful_since: None,
            began: now,
            led: false,
            queue: Queue::new(random),
            yield_until: now,
            reads: Vec::new(),
            looking: false,
            look_at: now,
            sitting: false,
            saving: false,
            save_at: now,
            failures: 0,
            try_at: now,
            trouble: None,
            pictured: None,
        }
    }

    async fn run(mut self, mut events: mpsc::Receiver<Event>, mut stop: oneshot::Receiver<()>) {
        let (tell, mut news) = mpsc::channel(NEWS_MAX);
        let watch = tokio::task::spawn(follow(self.store.clone(), tell, self.random));
        let failed = loop {
            let now = boottime();
            self.act(now);
            let wait = self.deadline(now).since(boottime());
            let turned = tokio::select! {
                _ = &mut stop => Err(End::Stopped),
                event = events.recv() => {
                    let mut end = self.event(event);
                    for _ in 1..TAKEN_MAX {
                        let (Ok(()), Ok(event)) = (&end, events.try_recv()) else { break };
                        end = self.event(Some(event));
                    }
                    end
                }
                Some(found) = self.calls.join_next() => match found {
                    Ok(found) => self.found(found),
                    Err(error) => Err(End::Failed(format!("a call to etcd: {error}"))),
                },
                Some(told) = news.recv() => self.told(told),
                () = tokio::time::sleep(wait) => Ok(()),
            };
            match turned {
                Ok(()) => {}
                Err(End::Stopped) => break None,
                Err(End::Failed(why)) => break Some(why),
            }
        };
        watch.abort();
        self.acts_until.store(0, Ordering::Release);
        self.machine.leads(false);
        if failed.is_none()
            && let Some(wish) = self.chair.give_up(0)
        {
            // Others need not wait for the end of the lease.
            tokio::time::timeout(RESIGN_MAX, self.store.sit(wish)).await.ok();
        }
        tokio::time::timeout(REMEMBER_MAX, self.remember_last()).await.ok();
        if let Some(why) = &failed {
            tracing::error!(why, "take part in what is agreed through etcd");
        }
        let last = self.standing(boottime());
        let (role, leader) = (Role::Follower, None);
        let last = Standing { role, leader, may_act: false, serves: false, failed, ..last };
        self.publish.send_replace(last);
        // Everybody who waits is told by their channel's end.
    }

    fn event(&mut self, event: Option<Event>) -> Result<(), End> {
        let now = boottime();
        match event {
            None => return Err(End::Stopped),
            Some(Event::Propose { command, reign, answer }) => {
                // Whoever leads appends under its term, whatever it is.
                let term = self.term();
                if reign.is_some_and(|reign| term != Some(reign) || !self.acts(now)) {
                    let leader = self.chair.leader(now).map(NodeId);
                    answer.send(Err(ProposeError::NotLeader(leader))).ok();
                } else if self.yields(now) {
                    answer.send(Err(ProposeError::Busy)).ok();
                } else {
                    self.queue.push(now, term, command, answer);
                }
            }
            Some(Event::Read { answer }) if READS_MAX <= self.reads.len() => {
                answer.send(Err(ProposeError::Busy)).ok();
            }
            Some(Event::Read { answer }) => {
                self.reads.push(Read { answer, since: now, until: None });
            }
            Some(Event::Transfer { to, answer }) => self.transfer(now, to, answer),
        }
        Ok(())
    }

    fn transfer(&mut self, now: Instant, to: NodeId, answer: Handed) {
        let leader = self.chair.leader(now).map(NodeId);
        let refused = if self.chair.acts_until().is_none() {
            Some(Refusal::NotLeader { leader })
        } else if self.sitting {
            Some(Refusal::Busy)
        } else if !self.roll.members.voters.contains(&to) || self.roll.own == Some(to) {
            Some(Refusal::NoChange)
        } else {
            None
        };
        match (refused, self.chair.give_up(to.0)) {
            (None, Some(wish)) => self.sit(now, wish, Some(answer)),
            (refused, _) => {
                answer.send(Err(refused.unwrap_or(Refusal::NotLeader { leader }))).ok();
            }
        }
    }

    /// Begins what is due.
    fn act(&mut self, now: Instant) {
        self.give_up_waiting(now);
        self.lead(now);
        if self.try_at <= now {
            // What is not remembered could be forgotten unnoticed; so nothing is done before that.
            let remembers = self.mark.is_some();
            if remembers {
                self.append();
            }
            if !self.looking
                && (self.look_at <= now || self.reads.iter().any(|r| r.until.is_none()))
            {
                self.look();
            }
            if remembers
                && !self.sitting
                && let Some(wish) = self.chair.wish(now, self.candidate())
            {
                self.sit(now, wish, None);
            }
            self.save(now);
        }
        self.remember(now);
        self.show(now);
    }

    fn deadline(&self, now: Instant) -> Instant {
        let mut next = self.pictured.map_or(now, |(at, ..)| at + PICTURE_EVERY);
        if !self.looking {
            next = next.min(self.look_at);
        }
        if let Some(at) = self.chair.deadline(now, self.candidate()).filter(|_| !self.sitting) {
            next = next.min(at);
        }
        if let Some(until) = self.chair.acts_until().filter(|&until| now < until) {
            next = next.min(until);
        }
        // What failed is not tried before that; what is shown is shown in time.
        let next = if now < self.try_at { self.try_at.min(now + PICTURE_EVERY) } else { next };
        // No turn is free: one that would come at once again comes a little later.
        next.max(now + TURN_MIN)
    }

    // Who leads.

    /// This node's id, if it may lead.
    fn candidate(&self) -> Option<u64> {
        // Who is behind would begin to lead with what is old; who leads goes on.
        let there = self.place.is_some_and(|place| self.head <= place.index);
        let own = self.roll.own.filter(|own| self.roll.members.voters.contains(own));
        own.filter(|_| there || self.chair.acts_until().is_some()).map(|own| own.0)
    }

    /// Lets the machine and everybody who asks know whether this node leads.
    fn lead(&mut self, now: Instant) {
        let until = self.chair.acts_until();
        let nanos = until
            .map_or(0, |until| u64::try_from(until.since_start().as_nanos()).unwrap_or(u64::MAX));
        self.acts_until.store(nanos, Ordering::Release);
        let leads = until.is_some_and(|until| now < until);
        if leads != self.led {
            self.led = leads;
            self.machine.leads(leads);
        }
    }

    fn sit(&mut self, now: Instant, wish: Wish, handed: Option<Handed>) {
        // Before anything is sent that lets another one lead.
        self.lead(now);
        self.chair.sent(now, wish.reign);
        self.sitting = true;
        let store = self.store.clone();
        self.calls.spawn(async move {
            let result = store.sit(wish).await;
            Found::Sat { wish, handed, result }
        });
    }

    // What is proposed.

    /// The term in which this node leads, if it does.
    fn term(&self) -> Option<u64> {
        self.chair.acts_until().map(|_| self.chair.reign.term)
    }

    /// Whether this node may do now what only the leader does.
    fn acts(&self, now: Instant) -> bool {
        self.chair.acts_until().is_some_and(|until| now < until)
    }

    fn append(&mut self) {
        let Some(place) = self.place else { return };
        let (may, term) = (self.roll.own.is_some(), self.term());
        let Some(append) = self.queue.append(place, may, term) else { return };
        let store = self.store.clone();
        self.calls.spawn(async move {
            let result = store.append(&append).await;
            Found::Appended { append, result }
        });
    }

    /// Whether another node is there to append for this one.
    fn yields(&self, now: Instant) -> bool {
        let leader = self.chair.leader(now).map(NodeId);
        now < self.yield_until && leader.is_some_and(|leader| Some(leader) != self.roll.own)
    }

    /// Tells those who have waited for too long.
    fn give_up_waiting(&mut self, now: Instant) {
        self.queue.give_up(now);
        let late = |read: &mut Read| read.since + WAIT_MAX <= now || read.answer.is_closed();
        for read in self.reads.extract_if(.., late) {
            read.answer.send(Err(ProposeError::NotLeader(None))).ok();
        }
    }

    // What is there.

    fn look(&mut self) {
        self.looking = true;
        let (store, from, began) = (self.store.clone(), self.place, boottime());
        let mark = self.mark.clone().filter(|_| from.is_none());
        self.calls.spawn(async move {
            let result = store.look(from, mark.as_ref()).await;
            Found::Looked { from, began, result }
        });
    }

    fn found(&mut self, found: Found) -> Result<(), End> {
        let now = boottime();
        match found {
            Found::Looked { from, began, result } => {
                self.looking = false;
                match self.answered(now, result)? {
                    None => {}
                    Some(None) => self.nothing_there()?,
                    Some(Some(picture)) => {
                        self.look_at = now + LOOK_EVERY;
                        let (head, asked) = (picture.head.index, picture.asked);
                        if self.saw(now, from, picture)? {
                            self.fresh = self.fresh.max(Some(asked));
                            self.answer_reads(began, head);
                        }
                    }
                }
            }
            Found::Founded(result) => {
                self.looking = false;
                self.answered(now, result)?;
            }
            Found::Appended { append, result } => self.appended(now, &append, result)?,
            Found::Sat { wish, handed, result } => {
                self.sitting = false;
                let sat = self.answered(now, result)?;
                if let Some((revision, instead)) = sat {
                    match instead {
                        None => self.chair.agreed(now, wish.reign, revision),
                        Some((reign, revision)) => self.chair.observe(now, reign, revision),
                    }
                }
                if let Some(handed) = handed {
                    let done = matches!(sat, Some((_, None)));
                    handed.send(if done { Ok(()) } else { Err(Refusal::Busy) }).ok();
                }
            }
            Found::Saved(result) => {
                self.saving = false;
                match self.answered(now, result)? {
                    Some(true) => tracing::debug!("a snapshot has taken the place of the log"),
                    Some(false) | None => self.save_at = now + SAVE_AGAIN,
                }
                self.look_at = now;
            }
            Found::Marked { mark, result } => self.remembered(mark, result)?,
        }
        Ok(())
    }

    fn appended(
        &mut self,
        now: Instant,
        append: &Append,
        result: Result<(Instant, Option<Picture>), Fault>,
    ) -> Result<(), End> {
        let end = match &result {
            Err(Fault::Trouble(Trouble::Unknown(_))) => Return::Unknown,
            Err(Fault::Trouble(Trouble::Never(_))) => Return::Never,
            Ok(_) | Err(Fault::Trouble(Trouble::Nothing(_)) | Fault::Broken(_)) => Return::Known,
        };
        let under_way = self.queue.returned(append.number, end);
        match self.answered(now, result)? {
            None => {}
            Some((asked, None)) => {
                self.fresh = self.fresh.max(Some(asked));
                // Else the watch was faster.
                if under_way {
                    self.take(append.at.index + 1, &append.bytes)?;
                }
            }
            Some((_, Some(picture))) => {
                let (head, term) = (picture.head, picture.chair.0.term);
                if self.saw(now, Some(append.at), picture)? && head == append.at {
                    self.queue.fenced(append.number, term);
                }
            }
        }
        Ok(())
    }

    /// Notes what is to be learnt from the end of any call.
    fn answered<T>(&mut self, now: Instant, result: Result<T, Fault>) -> Result<Option<T>, End> {
        match result {
            Ok(good) => {
                self.chair.heard(now);
                (self.failures, self.trouble) = (0, None);
                Ok(Some(good))
            }
            Err(Fault::Broken(why)) => Err(End::Failed(why)),
            Err(Fault::Trouble(trouble)) => {
                self.failures = self.failures.saturating_add(1);
                self.try_at = now + self.pause();
                self.trouble = Some(trouble.to_string());
                tracing::debug!(%trouble, failures = self.failures, "call etcd");
                Ok(None)
            }
        }
    }

    fn pause(&mut self) -> Duration {
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        pause(self.failures, self.random)
    }

    /// There is no cluster of this name in this etcd.
    fn nothing_there(&mut self) -> Result<(), End> {
        if self.place.is_some() || self.mark.as_ref().is_some_and(|mark| mark.index > 0) {
            let why = format!("etcd has nothing of what was agreed on; {}", self.advice());
            return Err(End::Failed(why));
        }
        let (index, data) = self.settings.begin.clone();
        let hash = Hash::of(&data);
        let chain = Hash::of(&[&hash.0[..], &self.random.to_le_bytes()].concat());
        let base = Base { place: Place { index, chain }, nonce: self.random, parts: 1, hash };
        let store = self.store.clone();
        self.looking = true;
        self.look_at = boottime();
        self.calls.spawn(async move { Found::Founded(store.found(&base, &data).await) });
        Ok(())
    }

    fn advice(&self) -> String {
        format!(
            "if that is meant, stop all agents and delete {} on each node",
            self.mark_path.display()
        )
    }

    /// Takes in what there is. False: it is older than what this node knows.
    fn saw(&mut self, now: Instant, from: Option<Place>, picture: Picture) -> Result<bool, End> {
        let Picture { base, head, chair: (reign, revision), batches, restored, goes_on, .. } =
            picture;
        let known = self.mark.as_ref().map_or(0, |mark| mark.index);
        let from = from.unwrap_or(Place { index: known, ..head });
        if head.index < from.index {
            return self.forgetful(now, head, from);
        }
        self.forgetful_since = None;
        if head.index == from.index && head.chain != from.chain {
            return Err(self.another_log(head, from));
        }
        if self.place.is_none()
            && let Some(mark) = &self.mark
        {
            match goes_on {
                Some(true) => {}
                Some(false) => {
                    return Err(self.another_log(head, Place { index: mark.index, ..head }));
                }
                None => tracing::warn!(
                    index = mark.index,
                    snapshot = base.place.index,
                    "the log in etcd does not reach back to where this node left off: that it is the same is taken on trust"
                ),
            }
        }
        self.head = self.head.max(head.index);
        self.based(base);
        self.chair.observe(now, reign, revision);
        if let Some(data) = restored {
            self.restored(base.place, &data)?;
        }
        for (first, bytes) in batches {
            self.take(first, &bytes)?;
        }
        Ok(true)
    }

    /// A majority never forgets what this node had applied before it asked. If it seems so for long, it is so.
    fn forgetful(&mut self, now: Instant, head: Place, from: Place) -> Result<bool, End> {
        let since = *self.forgetful_since.get_or_insert(now);
        if since + FORGETFUL_MAX <= now {
            return Err(self.another_log(head, from));
        }
        let (here, there) = (from.index, head.index);
        self.failures = self.failures.saturating_add(1);
        self.try_at = now + self.pause();
        self.trouble =
            Some(format!("etcd answers with {there} entries, and {here} were agreed on"));
        // Another member may know better.
        self.store.client.leave();
        Ok(false)
    }

    fn another_log(&self, head: Place, from: Place) -> End {
        End::Failed(format!(
            "what was agreed on up to {} has become another log in etcd, which ends at {}; {}",
            from.index,
            head.index,
            self.advice()
        ))
    }

    fn restored(&mut self, place: Place, data: &[u8]) -> Result<(), End> {
        if self.place.is_some_and(|here| place.index <= here.index) {
            return Ok(());
        }
        let restored = self.machine.restore(data);
        restored.map_err(|error| End::Failed(format!("the snapshot in etcd: {error}")))?;
        self.place = Some(place);
        self.machine.reached(place.index);
        self.roll = (self.settings.roll)();
        self.head = self.head.max(place.index);
        self.queue.overtaken(place);
        self.look_at = boottime();
        Ok(())
    }

    /// This snapshot stands in etcd.
    fn based(&mut self, base: Base) {
        if base.place.index < self.base.place.index {
            return;
        }
        self.base = base;
        while let Some((_, bytes)) = self.log.pop_front_if(|(end, _)| *end <= base.place.index) {
            self.log_bytes -= bytes;
        }
    }

    /// Applies a batch, if it is the next one.
    fn take(&mut self, first: Index, bytes: &[u8]) -> Result<(), End> {
        let Some(place) = self.place else { return Ok(()) };
        if first <= place.index {
            return Ok(());
        }
        if place.index + 1 < first {
            // Something is missing: it is looked for.
            self.look_at = boottime();
            self.head = self.head.max(first);
            return Ok(());
        }
        let failed = |what: String| End::Failed(format!("the log in etcd at {first}: {what}"));
        let batch = Batch::of_value(bytes).map_err(|error| failed(error.to_string()))?;
        if batch.before != place.chain {
            return Err(failed("it does not follow what this node has applied".to_owned()));
        }
        let mut answers = match self.queue.appended(bytes) {
            Some(answers) => answers.into_iter(),
            None => {
                self.yield_until = boottime() + YIELD;
                Vec::new().into_iter()
            }
        };
        for (index, command) in (first..).zip(&batch.entries) {
            let reply = self.machine.apply(index, command);
            let reply = reply.map_err(|error| failed(format!("entry {index}: {error}")))?;
            if let Some(answer) = answers.next() {
                answer.send(Ok(Applied { index, reply })).ok();
            }
        }
        let after = place.after(&batch, bytes);
        self.place = Some(after);
        self.log.push_back((after.index, bytes.len() as u64));
        self.log_bytes += bytes.len() as u64;
        self.head = self.head.max(after.index);
        self.machine.reached(after.index);
        self.roll = (self.settings.roll)();
        if self.yields(boottime()) {
            self.queue.send_away();
        }
        self.answer_ready();
        Ok(())
    }

    /// The log ended here when it was asked for at `began`.
    fn answer_reads(&mut self, began: Instant, head: Index) {
        for read in &mut self.reads {
            // Whoever asked later may know of more.
            if read.until.is_none() && read.since <= began {
                read.until = Some(head);
            }
        }
        self.answer_ready();
    }

    fn answer_ready(&mut self) {
        let Some(place) = self.place else { return };
        let ready = |read: &mut Read| read.until.is_some_and(|until| until <= place.index);
        for read in self.reads.extract_if(.., ready) {
            read.answer.send(Ok(place.index)).ok();
        }
        if place.index < self.head {
            self.look_at = boottime();
        }
    }

    fn told(&mut self, news: News) -> Result<(), End> {
        let now = boottime();
        match news {
            News::Began => self.look_at = now,
            News::Batch { first, bytes } => self.take(first, &bytes)?,
            News::Chair { reign, revision } => self.chair.observe(now, reign, revision),
            News::Base(base) => self.based(base),
            News::Broken(why) => return Err(End::Failed(why)),
        }
        Ok(())
    }

    // What is kept.

    /// A leader saves a snapshot when the log has become long.
    fn save(&mut self, now: Instant) {
        let Some(place) = self.place.filter(|_| self.led && !self.saving) else { return };
        let entries = place.index - self.base.place.index.min(place.index);
        let long = self.settings.snapshot_after <= entries
            || entries > 0 && self.settings.snapshot_after_bytes <= self.log_bytes;
        if !long || now < self.save_at {
            return;
        }
        let write = self.machine.snapshot();
        let (before, nonce) = (self.base, self.random.wrapping_add(place.index));
        self.saving = true;
        let store = self.store.clone();
        self.calls.spawn(async move {
            let written = tokio::task::spawn_blocking(move || {
                let data = write();
                let parts = u32::try_from(data.len().div_ceil(PART_BYTES)).unwrap_or(u32::MAX);
                (Base { place, nonce, parts, hash: Hash::of(&data) }, data)
            });
            Found::Saved(match written.await {
                Ok((base, data)) => store.save(before, base, &data).await,
                Err(error) => Err(Fault::Broken(format!("write a snapshot down: {error}"))),
            })
        });
    }

    /// Which etcd it is and how far its log has come.
    fn to_remember(&self) -> Option<Mark> {
        let (place, etcd) = (self.place?, self.store.client.cluster()?);
        Some(Mark::of(self.settings.cluster.clone(), etcd, place))
    }

    /// Writes that down: the first time at once, then from time to time.
    fn remember(&mut self, now: Instant) {
        if self.marking || self.mark.is_some() && now < self.marked + MARK_EVERY {
            return;
        }
        // Whoever catches up is not yet where it was.
        let before = self.mark.as_ref().map(|mark| mark.index);
        let Some(mark) = self.to_remember().filter(|mark| before < Some(mark.index)) else {
            return;
        };
        (self.marking, self.marked) = (true, now);
        let path = self.mark_path.clone();
        self.calls.spawn(async move {
            let (path, to_save) = (path, mark.clone());
            let saved = tokio::task::spawn_blocking(move || mark::save(&path, &to_save)).await;
            let result = saved.unwrap_or_else(|error| Err(io::Error::other(error)));
            Found::Marked { mark, result }
        });
    }

    fn remembered(&mut self, mark: Mark, result: io::Result<()>) -> Result<(), End> {
        self.marking = false;
        match result {
            Ok(()) => self.mark = Some(mark),
            Err(error) if self.mark.is_none() => {
                let why = format!("write {}: {error}", self.mark_path.display());
                return Err(End::Failed(why));
            }
            Err(error) => {
                tracing::warn!(%error, "remember how far the log in etcd has come");
            }
        }
        Ok(())
    }

    /// Writes down how far it came in the end.
    async fn remember_last(&mut self) {
        self.marked = Instant::default();
        self.remember(boottime());
        while self.marking
            && let Some(found) = self.calls.join_next().await
        {
            if let Ok(Found::Marked { mark, result }) = found
                && self.remembered(mark, result).is_ok()
            {
                // The one that was under way may be an older one.
                self.remember(boottime());
            }
        }
    }

    // What others see.

    fn show(&mut self, now: Instant) {
        let standing = self.standing(now);
        let leader = standing.leader.map(|leader| leader.0);
        let same = self.pictured.is_some_and(|(at, led, term, seen)| {
            now < at + PICTURE_EVERY && (led, term, seen) == (self.led, standing.term, leader)
        });
        if !same {
            self.pictured = Some((now, self.led, standing.term, leader));
            self.publish.send_replace(standing);
        }
    }

    fn standing(&self, now: Instant) -> Standing {
        let age = self.fresh.map(|fresh| now.since(fresh));
        let fresh = age.is_some_and(|age| age < FRESH_MAX);
        let leader = self.chair.leader(now).filter(|_| fresh).map(NodeId);
        let applied = self.place.map_or(0, |place| place.index);
        let trouble = if fresh {
            self.trouble.clone()
        } else {
            let silent = self.fresh.unwrap_or(self.began);
            let why = self.trouble.clone().unwrap_or_else(|| "it has not been asked".to_owned());
            let silent = now.since(silent).as_secs();
            Some(format!("no majority of etcd has answered for {silent} s: {why}"))
        };
        Standing {
            id: self.roll.own.unwrap_or(NodeId(0)),
            role: if self.led { Role::Leader } else { Role::Follower },
            term: self.chair.reign.term,
            leader,
            members: self.roll.members.clone(),
            commit: self.head,
            last: self.head,
            durable: applied,
            snapshot: self.base.place.index,
            quorum_age: age,
            may_act: self.led,
            // Whoever gave the key back did so before its lease was over.
            handed: self.led,
            serves: self.place.is_some() && self.roll.own.is_some(),
            trouble,
            failed: None,
        }
    }
}

enum End {
    Stopped,
    Failed(String),
}

/// Twice as long after each failure, less up to a half.
pub(crate) fn pause(failures: u32, random: u64) -> Duration {
    let (first, longest) = BACKOFF;
    let whole = first.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(longest);
    whole
        - whole.mul_f64(
            f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX) / 2.0,
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        assert!(pause(1, 0) == BACKOFF.0 && pause(1, u64::MAX) >= BACKOFF.0 / 2);
        assert!(pause(3, 0) == BACKOFF.0 * 4);
        assert_eq!(pause(u32::MAX, 0), BACKOFF.1);
        assert!(pause(u32::MAX, 1 << 63) < BACKOFF.1);
    }
}
