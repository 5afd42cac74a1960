//! `/health` and its kin, in the form of draft-inadarei-api-health-check-06 (`application/health+json`).
//!
//! Live says that the process answers, and looks at nothing else: whoever restarts on it must not restart the whole
//! fleet because a backend is down. Ready says whether traffic may be sent here. Health says everything.

use std::collections::BTreeMap;
use std::time::Duration;

use outlast_core::health::Health;
use outlast_core::time::Timestamp;
use outlast_core::units::show_duration;
use outlast_core::view::{ProcessState, ProcessView, ServiceState, ServiceView};
use outlast_host::vitals::{DISK, Level, Limits, MEMORY, Usage};
use serde::Serialize;
use serde_json::Value;

use super::scene::Scene;

/// The loop publishes every second; an older picture vouches for nothing.
const PICTURE_AGE_MAX: Duration = Duration::from_secs(15);

/// Why a part that the file declares cannot pass.
pub(super) const UNWATCHED: &str = "not watched by this version";

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Is anything wrong?
    Whole,
    /// Does the process answer?
    Live,
    /// May traffic be sent here?
    Ready,
    /// Has the agent come up?
    Started,
}

/// How much whoever asks may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// The names of the checks and how they went.
    Names,
    /// Reasons and values too.
    Full,
}

/// How a check went, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Pass,
    Warn,
    Fail,
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// The answer: how it went, and the JSON that says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub verdict: Verdict,
    pub body: String,
}

/// One check of the answer.
#[derive(Clone, Debug)]
struct Check {
    /// `service:web`
    name: String,
    /// `component`, `datastore` or `system`.
    kind: &'static str,
    verdict: Verdict,
    observed: Option<(Value, Option<&'static str>)>,
    since: Option<Timestamp>,
    output: String,
}

impl Check {
    fn new(name: impl Into<String>, kind: &'static str, verdict: Verdict) -> Check {
        let (name, output) = (name.into(), String::new());
        Check { name, kind, verdict, observed: None, since: None, output }
    }

    fn saying(mut self, output: impl Into<String>) -> Check {
        self.output = output.into();
        self
    }

    fn observing(mut self, value: impl Into<Value>) -> Check {
        self.observed = Some((value.into(), None));
        self
    }

    fn since(mut self, since: Timestamp) -> Check {
        self.since = Some(since).filter(|&s| s != Timestamp::default());
        self
    }
}

/// Answers from the published picture alone.
pub fn health(scene: &Scene, question: Question, detail: Detail) -> Answer {
    let (verdict, checks) = match question {
        Question::Live => (Verdict::Pass, Vec::new()),
        Question::Started => judged(vec![proxy_check(scene), picture_check(scene)]),
        Question::Whole => judged(every_check(scene)),
        Question::Ready => ready(scene),
    };
    Answer { verdict, body: body(scene, verdict, &checks, detail) }
}

/// As bad as the worst.
fn judged(checks: Vec<Check>) -> (Verdict, Vec<Check>) {
    (checks.iter().map(|c| c.verdict).max().unwrap_or(Verdict::Pass), checks)
}

fn every_check(scene: &Scene) -> Vec<Check> {
    let view = &scene.picture.view;
    let mut checks = vec![agent_check(scene, Verdict::Warn), picture_check(scene)];
    checks.push(proxy_check(scene));
    checks
        .extend(view.services.iter().map(|(name, s)| service_check(scene, name, s, Verdict::Warn)));
    checks.extend(view.processes.iter().map(|(name, p)| process_check(name, p)));
    checks.extend(view.externals.iter().map(|(name, part)| {
        // What hurts is the service that needs it, and that one says so itself.
        let verdict = match part.health {
            Health::Up => Verdict::Pass,
            Health::Unknown | Health::Down => Verdict::Warn,
        };
        Check::new(format!("external:{name}"), "component", verdict)
            .observing(part.health.to_string())
            .since(part.since)
            .saying(&part.reason)
    }));
    checks.extend(scene.unwatched().into_iter().map(|(kind, name)| {
        let component = if ["address", "dns"].contains(&kind) { "component" } else { "datastore" };
        Check::new(format!("{kind}:{name}"), component, Verdict::Warn).saying(UNWATCHED)
    }));
    let vitals = &scene.picture.vitals;
    checks.push(usage_check("disk:utilization", "disk", vitals.disk, DISK));
    checks.push(usage_check("memory:utilization", "memory", vitals.memory, MEMORY));
    checks
}

/// Ready while something can be served, and nothing is unknown that was to be served.
fn ready(scene: &Scene) -> (Verdict, Vec<Check>) {
    let view = &scene.picture.view;
    let own =
        [agent_check(scene, Verdict::Fail), picture_check(scene), proxy_check(scene)].to_vec();
    let services = view.services.iter();
    let services = services.map(|(name, s)| service_check(scene, name, s, Verdict::Fail));
    let services: Vec<Check> = services.collect();
    let states = || view.services.iter().map(|(name, s)| scene.state(name, s));
    let none_serves = !view.services.is_empty()
        && !states().any(|s| matches!(s, ServiceState::Up | ServiceState::Degraded));
    let unknown = states().any(|s| s == ServiceState::Unknown);
    let lost = none_serves || unknown || own.iter().any(|c| c.verdict == Verdict::Fail);
    let (worst, checks) = judged([own, services].concat());
    // One service that is down is no reason to send the others' clients away.
    (if lost { Verdict::Fail } else { worst.min(Verdict::Warn) }, checks)
}

fn agent_check(scene: &Scene, stopping: Verdict) -> Check {
    let check = Check::new("agent:state", "component", Verdict::Pass).since(scene.started_at);
    if let Some(reason) = scene.picture.view.not_saved.as_ref().filter(|_| !scene.stopping) {
        return Check { verdict: Verdict::Warn, ..check }
            .observing("running")
            .saying(format!("no pair changes sides until it can be written to disk: {reason}"));
    }
    if !scene.stopping {
        return check.observing("running");
    }
    Check { verdict: stopping, ..check }.observing("stopping").saying("the agent is stopping")
}

fn picture_check(scene: &Scene) -> Check {
    let check = Check::new("agent:picture", "component", Verdict::Pass);
    let age = scene.ago(scene.picture.at);
    match age {
        _ if scene.picture.view.generation == 0 => Check { verdict: Verdict::Fail, ..check }
            .saying("no topology has been put in force yet"),
        Some(age) if age > PICTURE_AGE_MAX && !scene.stopping => {
            let age = show_duration(Duration::from_secs(age.as_secs()));
            Check { verdict: Verdict::Fail, ..check }
                .saying(format!("the agent has decided nothing for {age}; look at its log"))
        }
        Some(_) | None => check,
    }
}

fn proxy_check(scene: &Scene) -> Check {
    let proxy = &scene.picture.proxy;
    let check = Check::new("proxy:state", "component", Verdict::Pass);
    if let Some(silent) = scene.silent() {
        return Check { verdict: Verdict::Fail, ..check }
            .observing("silent")
            .saying(format!("the proxy has not answered for {} s", silent.as_secs()));
    }
    match (proxy.pid, &proxy.refused) {
        (Some(_), None) => check.observing("serving"),
        (Some(_), Some(refused)) => Check { verdict: Verdict::Warn, ..check }
            .observing("serving")
            .saying(format!("goes on with its old table, the new one was refused: {refused}")),
        (None, _) if scene.stopping => {
            Check { verdict: Verdict::Warn, ..check }.observing("draining")
        }
        (None, _) => {
            let verdict = if scene.listens() { Verdict::Fail } else { Verdict::Warn };
            Check { verdict, ..check }.observing("gone").saying("no proxy runs; one is started")
        }
    }
}

fn service_check(scene: &Scene, name: &str, service: &ServiceView, unknown: Verdict) -> Check {
    let state = scene.state(name, service);
    let verdict = match state {
        ServiceState::Up => Verdict::Pass,
        ServiceState::Degraded => Verdict::Warn,
        ServiceState::Down => Verdict::Fail,
        ServiceState::Unknown => unknown,
    };
    let withheld = scene.withheld(name).map(|why| format!("{why}; ")).unwrap_or_default();
    let next = service.next.as_ref().map(|next| format!("; {next}")).unwrap_or_default();
    Check::new(format!("service:{name}"), "component", verdict)
        .observing(state.to_string())
        .since(service.since)
        .saying(format!("{withheld}{}{next}", service.why))
}

fn process_check(name: &str, process: &ProcessView) -> Check {
    let verdict = match process.state {
        ProcessState::Running if process.ready => Verdict::Pass,
        ProcessState::Running
        | ProcessState::Starting
        | ProcessState::Stopping
        | ProcessState::Stopped => Verdict::Warn,
        // It ended, and nobody asked it to.
        ProcessState::Waiting => Verdict::Fail,
    };
    Check::new(format!("process:{name}"), "component", verdict)
        .observing(process.state.to_string())
        .since(process.since)
        .saying(&process.reason)
}

fn usage_check(name: &str, what: &str, usage: Option<Usage>, limits: Limits) -> Check {
    let Some(usage) = usage else {
        return Check::new(name, "system", Verdict::Warn)
            .saying(format!("how full the {what} is cannot be read"));
    };
    let share = usage.share();
    let verdict = match limits.level(share) {
        Level::Pass => Verdict::Pass,
        Level::Warn => Verdict::Warn,
        Level::Fail => Verdict::Fail,
    };
    let percent = (share * 1000.0).round() / 10.0;
    let mut check =
        Check::new(name, "system", verdict).saying(format!("the {what} is {percent} % full"));
    check.observed = Some((percent.into(), Some("percent")));
    check
}

fn body(scene: &Scene, verdict: Verdict, checks: &[Check], detail: Detail) -> String {
    let full = detail == Detail::Full;
    let cluster = &scene.picture.topology.cluster.name;
    let at = scene.picture.at.to_string();
    let shown = checks.iter().map(|check| {
        let line = CheckLine { status: check.verdict.word(), ..CheckLine::default() };
        let line = if full { CheckLine::full(check, &at) } else { line };
        (check.name.as_str(), [line])
    });
    let body = Body {
        status: verdict.word(),
        version: full.then_some(scene.version),
        service_id: full.then(|| format!("{cluster}/{}", scene.node)),
        description: full.then(|| format!("outlast node {} of cluster {cluster}", scene.node)),
        checks: shown.collect(),
    };
    let mut text = serde_json::to_string_pretty(&body).expect("plain data always serializes");
    text.push('\n');
    text
}

/// The answer in the draft's order of fields.
#[derive(Serialize)]
struct Body<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    #[serde(rename = "serviceId", skip_serializing_if = "Option::is_none")]
    service_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    checks: BTreeMap<&'a str, [CheckLine<'a>; 1]>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    component_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observed_value: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observed_unit: Option<&'static str>,
    status: &'static str,
    /// Since when it is as it is: an addition of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a str>,
}

impl<'a> CheckLine<'a> {
    fn full(check: &'a Check, at: &'a str) -> CheckLine<'a> {
        // A check that passes has nothing to say: section 4.8 of the draft.
        let speaks = check.verdict != Verdict::Pass && !check.output.is_empty();
        CheckLine {
            component_type: Some(check.kind),
            observed_value: check.observed.as_ref().map(|(value, _)| value),
            observed_unit: check.observed.as_ref().and_then(|(_, unit)| *unit),
            status: check.verdict.word(),
            since: check.since.map(|since| since.to_string()),
            time: Some(at),
            output: speaks.then_some(check.output.as_str()),
        }
    }
}
