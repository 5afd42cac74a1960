//! What the verbs ask of a lab, each in turn: it is done, refused with a reason, or waited for.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use outlast_core::units::show_duration;

use super::super::faults::{DEFAULT, Kind, LONGEST, Which, between};
use super::super::node::{Goal, reply};
use super::super::wire::{AgentState, Answer, Ask, NodeState, ToMachine};
use super::{Keeper, OFF_MAX, PAUSE_MAX, UP_MAX};

impl Keeper<'_> {
    pub(super) fn obey(&mut self, ask: Ask, line: UnixStream) {
        let answer = match ask {
            Ask::Status => Ok(Answer::Status(self.status(Instant::now()))),
            Ask::Down => Ok(Answer::Refused("it is going down".to_owned())),
            Ask::Enter { node } => return self.open_door(&node, &line),
            Ask::Cut { groups, one_way, lasts } => self.cut(&groups, one_way, lasts),
            Ask::Loss { from, to, of_a_million, lasts } => {
                self.pairs(&from, to.as_deref()).and_then(|pairs| {
                    let text = format!(
                        "loss {}% of what {from} sends to {}",
                        f64::from(of_a_million) / 1e4,
                        to.as_deref().unwrap_or("all")
                    );
                    self.befall(Kind::Loss { pairs, of_a_million }, text, lasts)
                })
            }
            Ask::Delay { from, to, delay, jitter, lasts } => {
                self.pairs(&from, to.as_deref()).and_then(|pairs| {
                    let around = if jitter.is_zero() {
                        String::new()
                    } else {
                        format!(" ± {}", show_duration(jitter))
                    };
                    let text = format!(
                        "delay of {}{around} in what {from} sends to {}",
                        show_duration(delay),
                        to.as_deref().unwrap_or("all")
                    );
                    self.befall(Kind::Delay { pairs, delay, jitter }, text, lasts)
                })
            }
            Ask::Heal { what } => self.heal(what.as_deref()),
            Ask::Kill { node, back_after } => return self.kill(&node, back_after, line),
            Ask::Stop { node } => return self.stop(&node, line),
            Ask::Start { node } => return self.start(&node, line),
            Ask::Pause { node, lasts } => return self.pause(&node, lasts, line),
            Ask::Resume { node } => self.resume(&node),
        };
        reply(&line, &answer.unwrap_or_else(Answer::Refused), None);
    }

    fn number(&self, name: &str) -> Result<usize, String> {
        self.machines.iter().position(|machine| machine.node.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.machines.iter().map(|m| m.node.name.as_str()).collect();
            format!(
                "there is no node `{name}` in lab {}; its nodes are {}",
                self.plan.name,
                names.join(", ")
            )
        })
    }

    /// What a node sends, to one or to all others.
    fn pairs(&self, from: &str, to: Option<&str>) -> Result<Vec<(usize, usize)>, String> {
        let from = self.number(from)?;
        let others = match to {
            Some(to) => vec![self.number(to)?],
            None => (0..self.machines.len()).filter(|&number| number != from).collect(),
        };
        if others == [from] {
            return Err("nothing lies between a node and itself; name another one".to_owned());
        }
        Ok(between(&[vec![from], others], true))
    }

    fn cut(
        &mut self,
        groups: &[Vec<String>],
        one_way: bool,
        lasts: Duration,
    ) -> Result<Answer, String> {
        let mut numbered = Vec::new();
        let mut seen = Vec::new();
        for group in groups {
            let numbers =
                group.iter().map(|name| self.number(name)).collect::<Result<Vec<_>, _>>()?;
            if let Some(&twice) = numbers.iter().find(|number| seen.contains(*number)) {
                return Err(format!("{} is in two groups", self.machines[twice].node.name));
            }
            seen.extend(&numbers);
            numbered.push(numbers);
        }
        let mut names: Vec<String> = groups.iter().map(|group| group.join(",")).collect();
        if numbered.len() == 1 {
            numbered
                .push((0..self.machines.len()).filter(|number| !seen.contains(number)).collect());
            names.push("all others".to_owned());
        }
        let pairs = between(&numbered, one_way);
        if pairs.is_empty() {
            return Err("there is nobody to cut them from".to_owned());
        }
        let text = format!("cut {}", names.join(if one_way { " > " } else { " | " }));
        self.befall(Kind::Cut { pairs }, text, lasts)
    }

    /// Writes a fault down, then does it; if that cannot be done, nothing of it stays.
    fn befall(&mut self, kind: Kind, text: String, lasts: Duration) -> Result<Answer, String> {
        let lasts = self.limited(lasts)?;
        let id = self.faults.add(kind, text.clone(), Instant::now() + lasts)?;
        if let Err(error) = self.apply() {
            self.faults.heal(Which::One(id));
            self.apply().ok();
            return Err(format!("{error:#}"));
        }
        let said = format!("f{id} {text}, for {}", show_duration(lasts));
        self.say(&said);
        Ok(Answer::Done(said))
    }

    fn limited(&self, lasts: Duration) -> Result<Duration, String> {
        if lasts.is_zero() {
            return Ok(DEFAULT);
        }
        if LONGEST < lasts {
            return Err(format!("no fault lasts longer than {}", show_duration(LONGEST)));
        }
        Ok(lasts)
    }

    fn heal(&mut self, what: Option<&str>) -> Result<Answer, String> {
        let which = match what {
            None => Which::All,
            Some(word @ ("cut" | "loss" | "delay" | "pause")) => Which::Kind(word),
            Some(word) => {
                let node = self.machines.iter().position(|m| m.node.name == word);
                let id = word.strip_prefix('f').and_then(|id| id.parse().ok());
                match (node, id) {
                    (Some(node), _) => Which::Node(node),
                    (None, Some(id)) => Which::One(id),
                    (None, None) => {
                        return Err(format!(
                            "`{word}` is no fault (`outlast lab status` lists them), no kind of fault (cut, loss, delay, pause) and no node"
                        ));
                    }
                }
            }
        };
        let healed = self.faults.heal(which);
        self.take_back(&healed, "healed");
        Ok(match (healed.as_slice(), which) {
            ([], Which::One(id)) => {
                return Err(format!("there is no fault f{id}; it may have healed by itself"));
            }
            ([], Which::All | Which::Kind(_) | Which::Node(_)) => {
                Answer::Done("there was nothing to heal".to_owned())
            }
            (faults, _) => {
                let lines: Vec<String> =
                    faults.iter().map(|f| format!("healed f{} {}", f.id, f.text)).collect();
                Answer::Done(lines.join("\n"))
            }
        })
    }

    fn kill(&mut self, name: &str, back_after: Option<Duration>, line: UnixStream) {
        let done = self.number(name).and_then(|number| {
            let back_after = back_after.map(|after| self.limited(after)).transpose()?;
            let machine = &mut self.machines[number];
            machine.ends_as = NodeState::Dead;
            if machine.live.is_some() {
                machine.kill(&self.bridge).map_err(|error| format!("kill {name}: {error}"))?;
            } else {
                machine.turn(NodeState::Dead);
            }
            machine.back_at = back_after.map(|after| Instant::now() + after);
            Ok(number)
        });
        self.wait_for(done, Goal::Off, OFF_MAX, line);
    }

    fn stop(&mut self, name: &str, line: UnixStream) {
        let done = self.number(name).and_then(|number| {
            let paused = self.faults.no_longer_paused(number);
            self.take_back(&paused, "healed");
            let machine = &mut self.machines[number];
            machine.back_at = None;
            if machine.live.is_some() {
                machine.ends_as = NodeState::Stopped;
                machine.turn(NodeState::Stopping);
                machine.tell(&ToMachine::Stop).map_err(|error| format!("{error:#}"))?;
            }
            Ok(number)
        });
        self.wait_for(done, Goal::Off, OFF_MAX, line);
    }

    fn start(&mut self, name: &str, line: UnixStream) {
        let done = self.number(name).and_then(|number| {
            let machine = &mut self.machines[number];
            match machine.state {
                NodeState::Paused => {
                    return Err(format!(
                        "{name} is paused; `outlast lab resume {name}` lets it go on"
                    ));
                }
                NodeState::Stopping => {
                    return Err(format!("{name} is stopping; start it when it is off"));
                }
                NodeState::Starting => {}
                NodeState::Running => match machine.agent {
                    AgentState::None | AgentState::Starting | AgentState::Running => {}
                    AgentState::Ended(_) => {
                        machine.agent = AgentState::Starting;
                        machine
                            .tell(&ToMachine::StartAgent)
                            .map_err(|error| format!("{error:#}"))?;
                    }
                },
                NodeState::Stopped | NodeState::Dead => {
                    self.power_on(number).map_err(|error| format!("start {name}: {error:#}"))?;
                }
            }
            Ok(number)
        });
        self.wait_for(done, Goal::Up, UP_MAX, line);
    }

    fn pause(&mut self, name: &str, lasts: Duration, line: UnixStream) {
        let done = self.number(name).and_then(|number| {
            let lasts = self.limited(lasts)?;
            match self.machines[number].state {
                NodeState::Running => {}
                NodeState::Paused => return Err(format!("{name} is paused already")),
                NodeState::Starting
                | NodeState::Stopping
                | NodeState::Stopped
                | NodeState::Dead => {
                    return Err(format!("{name} is {}", self.machines[number].state.word()));
                }
            }
            // Written down before it is done: from now on it ends by itself.
            self.faults.no_longer_paused(number);
            let text = format!("pause {name}");
            let id = self.faults.add(Kind::Pause { node: number }, text, Instant::now() + lasts)?;
            if let Err(error) = self.machines[number].tell(&ToMachine::Freeze) {
                self.faults.heal(Which::One(id));
                return Err(format!("{error:#}"));
            }
            self.say(&format!("f{id} pause {name}, for {}", show_duration(lasts)));
            Ok(number)
        });
        self.wait_for(done, Goal::Paused, PAUSE_MAX, line);
    }

    fn resume(&mut self, name: &str) -> Result<Answer, String> {
        let number = self.number(name)?;
        let paused = self.faults.no_longer_paused(number);
        if paused.is_empty() {
            return Err(format!("{name} is not paused"));
        }
        self.take_back(&paused, "healed");
        Ok(Answer::Done(format!("{name} goes on")))
    }

    /// Answers when the machine has come where it was sent, or at once if it was not sent.
    fn wait_for(
        &mut self,
        sent: Result<usize, String>,
        goal: Goal,
        limit: Duration,
        line: UnixStream,
    ) {
        match sent {
            Ok(number) => self.machines[number].wait(line, goal, limit),
            Err(why) => reply(&line, &Answer::Refused(why), None),
        }
    }

    fn open_door(&self, name: &str, line: &UnixStream) {
        let found = self.number(name).and_then(|number| {
            let machine = &self.machines[number];
            // Also while it is being frozen: what came in now would not be.
            let is_paused =
                self.faults.active().iter().any(|f| f.kind == Kind::Pause { node: number });
            match (&machine.live, machine.state) {
                (Some(_), _) if is_paused => {
                    Err(format!("{name} is paused; `outlast lab resume {name}` lets it go on"))
                }
                (Some(_), NodeState::Starting) => Err(format!("{name} is still starting")),
                (
                    Some(live),
                    NodeState::Running
                    | NodeState::Paused
                    | NodeState::Stopping
                    | NodeState::Stopped
                    | NodeState::Dead,
                ) => Ok(&live.pidfd),
                (None, _) => Err(format!("{name} is off; `outlast lab start {name}` turns it on")),
            }
        });
        match found {
            Ok(pidfd) => {
                let door = Answer::Door {
                    rootless: self.plan.rootless,
                    file: self.plan.file.clone(),
                    program: self.plan.program.clone(),
                };
                reply(line, &door, Some(pidfd));
            }
            Err(why) => reply(line, &Answer::Refused(why), None),
        }
    }
}
