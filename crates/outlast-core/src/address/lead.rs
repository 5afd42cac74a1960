//! The leader's side: who holds what, and for how long.

use alloc::borrow::ToOwned as _;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use core::time::Duration;

use super::{
    FRESH, GATHER, GRANT, Grant, Grants, HEALED, OVERHANG, PATIENCE, Question, Said, Unit,
};
use crate::agreed::{AddressCommand, AgreedAddress, rate_error};
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;

/// What the leader knows beside what it was asked.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// Nodes that do not seem to be there: no connection, or they led until they were not heard any more.
    pub suspects: BTreeSet<String>,
    /// For units that follow something: the node where that is.
    pub wanted: BTreeMap<String, String>,
    /// People want nothing to move by itself.
    pub paused: bool,
}

/// What to have agreed on, and who is to ask at once instead of in its time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub command: Option<AddressCommand>,
    pub nudge: Option<String>,
}

/// What a member said last.
#[derive(Clone, Debug)]
struct Heard {
    at: Instant,
    /// Since when it has been there without a pause.
    since: Instant,
    said: Said,
}

#[derive(Clone, Debug, Default)]
struct Matter {
    heard: BTreeMap<String, Heard>,
    /// Until when what was granted here lasts, under which epoch.
    granted: Option<(u64, Instant)>,
    /// The holder has said that it holds nothing, and was granted nothing since.
    given_back: bool,
    /// Where it is about to go: the holder is asked to let go.
    leaving: Option<(String, String)>,
    /// A move away from this epoch was proposed, and why: it may still come true.
    proposed: Option<(u64, String)>,
    /// The holder in force was told that it is.
    nudged: Option<u64>,
    /// Who would be better than the holder, and since when.
    better: Option<(String, Instant)>,
    /// When it was decided on first in this reign.
    since: Option<Instant>,
}

/// One reign of a leader.
#[derive(Clone, Debug)]
pub struct Lead {
    since: Instant,
    /// Until then, what an earlier leader has granted may last.
    quiet: Instant,
    /// Which units this node takes them to have.
    plans: Option<u64>,
    /// The last question of each node: life, number, and when.
    asked: BTreeMap<String, (u64, u64, Instant)>,
    matters: BTreeMap<String, Matter>,
}

/// When what lasts for so long from now on is over by any clock.
fn over(now: Instant, lasts: Duration) -> Instant {
    now + lasts + rate_error(lasts)
}

impl Lead {
    /// This node leads from now on. `handed`: the leader before it may have ended before its time was up.
    pub fn began(now: Instant, handed: bool) -> Lead {
        let wait = if handed { GRANT } else { OVERHANG };
        #[cfg(test)]
        let wait = instead(Bug::HandedNotHeeded, wait, OVERHANG);
        #[cfg(test)]
        let wait = instead(Bug::NewLeaderHurries, wait, Duration::ZERO);
        let (asked, matters) = (BTreeMap::new(), BTreeMap::new());
        Lead { since: now, quiet: over(now, wait), plans: None, asked, matters }
    }

    /// Which units there are, with which addresses. When that changes, an address may be in another unit than before: what
    /// was granted has to be over first.
    pub fn plans_are(&mut self, now: Instant, plans: u64) {
        if self.plans.replace(plans).is_some_and(|before| before != plans) {
            self.quiet = self.quiet.max(over(now, GRANT));
        }
    }

    /// Answers a question, as a leader that alone can lead until `acts_until`. `agreed` must have everything that was
    /// agreed on before this node led, and what it has proposed itself as far as that is applied.
    pub fn asked<'a>(
        &mut self,
        now: Instant,
        node: &str,
        question: &Question,
        acts_until: Instant,
        agreed: impl Fn(&str) -> Option<&'a AgreedAddress>,
    ) -> Grants {
        let mut grants = Grants::default();
        if acts_until <= now || !self.is_newest(now, node, question) {
            return grants;
        }
        let lasts = GRANT.min(acts_until.since(now) + OVERHANG);
        #[cfg(test)]
        let lasts = instead(Bug::GrantsTooLong, lasts, GRANT * 2);
        if self.plans.is_some_and(|plans| plans != question.plans) {
            // It means other addresses by these names, so that it can have none of them.
            let held = question.units.iter().filter_map(|(unit, said)| Some((unit, said.holds?)));
            grants.units.extend(held.map(|(unit, epoch)| (unit.clone(), Grant::LetGo { epoch })));
            return grants;
        }
        // Where units have changed, an address may have been granted to another node as part of another unit: who does not
        // hold its own already has to wait for the end of that.
        let quiet = self.quiet <= now;
        for (unit, said) in &question.units {
            let matter = self.matters.entry(unit.clone()).or_default();
            let lasts = Some(lasts).filter(|_| quiet || said.holds.is_some());
            let grant = matter.asked(now, node, said, lasts, agreed(unit));
            grants.units.extend(grant.map(|grant| (unit.clone(), grant)));
        }
        grants
    }

    /// Whether no later question of this node has come: what an older one says is not true any more. One of an earlier
    /// life of its agent counts only once nothing can be left of what the later one was granted.
    fn is_newest(&mut self, now: Instant, node: &str, question: &Question) -> bool {
        let (life, number) = (question.life, question.number);
        let newest = self.asked.get(node).is_none_or(|&(newest, last, at)| {
            (newest, last) < (life, number) || life < newest && over(at, GRANT) <= now
        });
        #[cfg(test)]
        let newest = instead(Bug::OldQuestionCounts, newest, true);
        if newest {
            self.asked.insert(node.to_owned(), (life, number, now));
        }
        newest
    }

    /// What has to happen to a unit, and who has to know.
    pub fn decide(
        &mut self,
        now: Instant,
        name: &str,
        unit: &Unit,
        agreed: Option<&AgreedAddress>,
        scene: &Scene,
    ) -> Decision {
        let matter = self.matters.entry(name.to_owned()).or_default();
        let epoch = agreed.map_or(0, |agreed| agreed.epoch);
        matter.forget_what_is_past(epoch);
        let holder = agreed.and_then(|agreed| agreed.holder.as_ref());
        let counts = |node: &String| {
            Some(node) == holder || unit.members.iter().any(|member| member.node == *node)
        };
        matter.heard.retain(|node, _| counts(node));
        let look = Look { now, since: self.since, quiet: self.quiet, unit, agreed, scene, name };
        let to = matter.next(&look);
        let nudge = matter.nudge(&look);
        let command = to.map(|(to, why)| {
            matter.proposed = Some((epoch, why.clone()));
            AddressCommand::Move { unit: name.to_owned(), from: epoch, to: Some(to), why }
        });
        Decision { command, nudge }
    }

    /// What to have agreed on of a unit that is not in the topology any more.
    pub fn retire(
        &mut self,
        now: Instant,
        name: &str,
        agreed: &AgreedAddress,
    ) -> Option<AddressCommand> {
        let matter = self.matters.entry(name.to_owned()).or_default();
        let over = matter.granted.is_none_or(|(_, until)| until <= now) && self.quiet <= now;
        let (unit, from) = (name.to_owned(), agreed.epoch);
        let over = over && self.since + PATIENCE <= now;
        if over {
            matter.proposed = Some((from, "it was not in the topology".to_owned()));
        }
        over.then_some(AddressCommand::Forget { unit, from })
    }

    /// When there will be something to decide if nobody asks before that.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let ends = self.matters.values().filter_map(|matter| matter.granted);
        let ends = ends.map(|(_, until)| until).chain([self.quiet, self.since + GATHER]);
        ends.filter(|&at| now < at).min()
    }
}

/// What one decision is about.
struct Look<'a> {
    now: Instant,
    since: Instant,
    quiet: Instant,
    unit: &'a Unit,
    agreed: Option<&'a AgreedAddress>,
    scene: &'a Scene,
    name: &'a str,
}

impl Look<'_> {
    fn holder(&self) -> Option<&str> {
        self.agreed.and_then(|agreed| agreed.holder.as_deref())
    }

    fn base(&self, node: &str) -> Option<i32> {
        let member = self.unit.members.iter().find(|member| member.node == node);
        member.map(|member| member.priority)
    }

    fn wanted(&self) -> Option<&str> {
        self.scene.wanted.get(self.name).map(String::as_str)
    }
}

impl Matter {
    fn asked(
        &mut self,
        now: Instant,
        node: &str,
        said: &Said,
        lasts: Option<Duration>,
        agreed: Option<&AgreedAddress>,
    ) -> Option<Grant> {
        self.hear(now, node, said);
        let holds = agreed.filter(|agreed| agreed.holder.as_deref() == Some(node));
        let Some(AgreedAddress { epoch, .. }) = holds else {
            let holder = agreed.and_then(|agreed| agreed.holder.as_deref());
            if self.is_lone(said) && !holder.is_some_and(|holder| self.says_it_holds(now, holder)) {
                // It goes on by itself until that is agreed on, or the holder says that it holds it, too.
                return None;
            }
            return said.holds.map(|epoch| Grant::LetGo { epoch });
        };
        let epoch = *epoch;
        self.given_back = said.holds.is_none();
        let taken = self.given_back && self.lone(now, Some(node)).is_some();
        if taken || self.leaving.is_some() || !said.able {
            return Some(Grant::LetGo { epoch });
        }
        let proposed = self.proposed.as_ref().is_some_and(|(from, _)| *from == epoch);
        #[cfg(test)]
        let proposed = instead(Bug::GrantsWhileMoving, proposed, false);
        let lasts = lasts.filter(|_| !proposed)?;
        self.given_back = false;
        let until = over(now, lasts);
        let until = self.granted.map_or(until, |(_, before)| before.max(until));
        self.granted = Some((epoch, until));
        let tell = self
            .heard
            .values()
            .any(|heard| FRESH < now.since(heard.at) || now.since(heard.since) < HEALED);
        Some(Grant::Hold { epoch, lasts, tell })
    }

    /// Whether a node holds it and nobody has granted it that.
    fn is_lone(&self, said: &Said) -> bool {
        let lone = said.alone && said.holds.is_some();
        #[cfg(test)]
        let lone = instead(Bug::TakesOverNotHeeded, lone, false);
        lone
    }

    /// Another node than the holder that has taken over while nobody led.
    fn lone(&self, now: Instant, holder: Option<&str>) -> Option<&String> {
        let heard = self.heard.iter().filter(|(node, _)| Some(node.as_str()) != holder);
        let mut heard = heard.filter(|(_, heard)| now.since(heard.at) <= FRESH);
        heard.find(|(_, heard)| self.is_lone(&heard.said)).map(|(node, _)| node)
    }

    fn says_it_holds(&self, now: Instant, node: &str) -> bool {
        let heard = self.heard.get(node).filter(|heard| now.since(heard.at) <= FRESH);
        heard.is_some_and(|heard| heard.said.holds.is_some())
    }

    fn hear(&mut self, now: Instant, node: &str, said: &Said) {
        let before = self.heard.get(node).filter(|heard| now.since(heard.at) <= FRESH);
        let since = before.map_or(now, |heard| heard.since);
        self.heard.insert(node.to_owned(), Heard { at: now, since, said: said.clone() });
    }

    fn forget_what_is_past(&mut self, epoch: u64) {
        if self.proposed.as_ref().is_some_and(|(from, _)| *from != epoch) {
            (self.proposed, self.leaving, self.better) = (None, None, None);
        }
        if self.granted.is_some_and(|(of, _)| of != epoch) {
            // It was over, or given back, before the move was proposed; or a leader before us has moved it.
            (self.granted, self.given_back) = (None, false);
        }
    }

    /// Whether nobody can be answering on the unit under the epoch in force.
    fn is_free(&self, look: &Look<'_>) -> bool {
        if look.holder().is_none() || self.given_back {
            return true;
        }
        let over = self.granted.is_none_or(|(_, until)| until <= look.now);
        #[cfg(test)]
        let over = instead(Bug::MovesEarly, over, true);
        over && look.quiet <= look.now
    }

    /// What a member says that is there and able.
    fn fit(&self, now: Instant, node: &str) -> Option<&Said> {
        let heard = self.heard.get(node)?;
        let there = now.since(heard.at) <= FRESH && heard.said.able;
        there.then_some(&heard.said)
    }

    /// Who should hold the unit if this one does not.
    fn best(&self, look: &Look<'_>, but: Option<&str>) -> Option<(String, i32)> {
        let all = look.unit.members.iter().map(|member| member.node.as_str());
        let all = all.filter(|node| Some(*node) != but);
        let all = all.filter(|node| !look.unit.follows || look.wanted() == Some(*node));
        let fit = all.filter_map(|node| Some((node, self.fit(look.now, node)?.priority)));
        // The first of equals.
        let best = fit.reduce(|best, next| if best.1 < next.1 { next } else { best });
        best.map(|(node, priority)| (node.to_owned(), priority))
    }

    /// Where the unit goes now, and why.
    fn next(&mut self, look: &Look<'_>) -> Option<(String, String)> {
        let lone = self.lone(look.now, look.holder()).cloned();
        if let Some((_, why)) = &self.proposed {
            // It may or may not have been agreed on; nobody is granted anything before that is known.
            let to = lone.or_else(|| self.best(look, None).map(|(to, _)| to));
            return to.map(|to| (to, why.clone()));
        }
        if let Some(to) = lone {
            (self.leaving, self.better) = (None, None);
            // Whether the holder holds it, too, has to be known first.
            let resolved = match look.holder() {
                None => true,
                Some(holder) if self.is_gone(look, holder) => true,
                Some(holder) => self.heard.contains_key(holder) && self.given_back,
            };
            let free = resolved && self.is_free(look);
            return free.then(|| (to, "it took over while nobody could agree".to_owned()));
        }
        if look.scene.paused {
            (self.leaving, self.better) = (None, None);
            return None;
        }
        let Some(holder) = look.holder() else {
            let all = look.unit.members.iter();
            let all = all.filter(|member| self.fit(look.now, &member.node).is_some()).count();
            let since = *self.since.get_or_insert(look.now);
            let gathered = all == look.unit.members.len() || since + GATHER <= look.now;
            return self
                .best(look, None)
                .filter(|_| gathered && look.quiet <= look.now)
                .map(|(to, _)| (to, "nobody held it".to_owned()));
        };
        if self.is_gone(look, holder) {
            let best = self.best(look, Some(holder)).filter(|_| self.is_free(look));
            return best.map(|(to, _)| (to, format!("{holder} does not answer")));
        }
        self.leaving = self.reason(look, holder);
        let (to, why) = self.leaving.clone().filter(|_| self.is_free(look))?;
        Some((to, why))
    }

    /// Whether the holder was given up: it has had its time to ask.
    fn is_gone(&self, look: &Look<'_>, holder: &str) -> bool {
        match self.heard.get(holder) {
            Some(heard) => over(heard.at, GRANT) <= look.now,
            None => {
                let member = look.base(holder).is_some();
                let suspect = !member || look.scene.suspects.contains(holder);
                suspect || look.since + PATIENCE <= look.now
            }
        }
    }

    /// Who is to have it instead of a holder that is there, and why.
    fn reason(&mut self, look: &Look<'_>, holder: &str) -> Option<(String, String)> {
        let (best, priority) = self.best(look, Some(holder))?;
        if look.unit.follows {
            return Some((best, format!("what it follows is not on {holder}")));
        }
        let Some(said) = self.fit(look.now, holder) else {
            let said_so = self.heard.get(holder).is_some_and(|heard| !heard.said.able);
            return said_so.then(|| (best, format!("{holder} cannot hold it")));
        };
        let Some(base) = look.base(holder) else {
            return Some((best, format!("{holder} is no member any more")));
        };
        let worse = said.priority < priority;
        if worse && said.priority < base {
            return Some((best, format!("something is amiss at {holder}")));
        }
        let delay = look.unit.preempt.filter(|_| worse);
        let Some(delay) = delay else {
            self.better = None;
            return None;
        };
        let since = match &self.better {
            Some((node, since)) if *node == best => *since,
            Some(_) | None => look.now,
        };
        self.better = Some((best.clone(), since));
        let due = delay <= look.now.since(since);
        due.then(|| (best, format!("it has a higher priority than {holder}")))
    }

    /// Who has to ask now: who is to let go, and who has just got the unit.
    fn nudge(&mut self, look: &Look<'_>) -> Option<String> {
        let holder = look.holder()?;
        let epoch = look.agreed.map(|agreed| agreed.epoch);
        let new = self.granted.is_none() && self.nudged != epoch;
        if self.leaving.is_some() && !self.given_back {
            return Some(holder.to_owned());
        }
        if !new {
            return None;
        }
        self.nudged = epoch;
        Some(holder.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Member;

    const MS: Duration = Duration::from_millis(1);

    /// An IP address went from a unit of one node to that of another: it may still be answered on there.
    #[test]
    fn who_holds_nothing_waits_where_units_have_changed() {
        let start = Instant::from_start(Duration::from_secs(9));
        let mut lead = Lead::began(start, false);
        lead.plans_are(start, 1);
        let agreed =
            AgreedAddress { holder: Some("b".to_owned()), epoch: 7, ..AgreedAddress::default() };
        let mut number = 0;
        let mut granted = |lead: &mut Lead, at: Instant, plans: u64, holds: Option<u64>| {
            number += 1;
            let said = Said { able: true, priority: 1, holds, alone: false };
            let units = [("y".to_owned(), said)].into();
            let question = Question { life: 1, number, plans, units };
            let grants = lead.asked(at, "b", &question, at + GRANT, |_| Some(&agreed));
            grants.units.get("y").copied()
        };
        let holds = |grant: Option<Grant>| matches!(grant, Some(Grant::Hold { epoch: 7, .. }));
        let later = start + MS * 500;
        assert!(holds(granted(&mut lead, later, 1, None)));
        lead.plans_are(later, 2);
        // One that means other addresses has none of them.
        assert_eq!(granted(&mut lead, later, 1, Some(7)), Some(Grant::LetGo { epoch: 7 }));
        // It has built its unit anew, and holds nothing of it.
        assert_eq!(granted(&mut lead, later + MS * 10, 2, None), None);
        assert!(holds(granted(&mut lead, later + MS * 310, 2, None)));
        // One whose unit is what it was goes on meanwhile.
        lead.plans_are(later + MS * 400, 3);
        assert!(holds(granted(&mut lead, later + MS * 410, 3, Some(7))));
    }

    #[test]
    fn who_is_no_member_any_more_has_to_let_go() {
        let start = Instant::from_start(Duration::from_secs(9));
        let mut lead = Lead::began(start, false);
        let agreed =
            AgreedAddress { holder: Some("a".to_owned()), epoch: 7, ..AgreedAddress::default() };
        let members = [Member { node: "b".to_owned(), priority: 1 }].into();
        let unit = Unit { members, ..Unit::default() };
        let ask = |lead: &mut Lead, node: &str, number: u64, holds: Option<u64>| {
            let said = Said { able: true, priority: 1, holds, alone: false };
            let question =
                Question { life: 1, number, plans: 0, units: [("y".to_owned(), said)].into() };
            let at = start + MS * 500;
            lead.asked(at, node, &question, at + GRANT, |_| Some(&agreed));
            lead.decide(at, "y", &unit, Some(&agreed), &Scene::default())
        };
        ask(&mut lead, "a", 1, Some(7));
        let told = ask(&mut lead, "b", 1, None);
        assert_eq!((told.command, told.nudge.as_deref()), (None, Some("a")));
        let moved = ask(&mut lead, "a", 2, None).command;
        assert!(matches!(moved, Some(AddressCommand::Move { to: Some(to), .. }) if to == "b"));
    }
}
