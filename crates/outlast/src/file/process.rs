//! Reads `[process.NAME]` and `[external.NAME]`.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use outlast_core::topology::{External, HttpTarget, PartKind, PartRef, Probe, Process};

use super::complaint::quote;
use super::item::Item;
use super::probe::{self, Subject};
use super::section::Section;
use super::shapes;
use super::together::Notes;
use super::words;

pub(super) fn process(section: &Section<'_>, name: &str, notes: &mut Notes) -> Option<Process> {
    let nodes = section.nodes();
    let command = section.item("command").map(|item| item.command());
    let directory = section.absolute_path("directory");
    let environment = section.optional("environment", environment);
    let user = section.optional("user", |item| item.text().map(str::to_owned));
    let image = section.optional("image", |item| item.text().map(str::to_owned));
    let startup = section.optional("startup", |item| one_success(item, "startup"));
    let liveness = section.optional("liveness", |item| one_success(item, "liveness"));
    let readiness =
        section.optional("readiness", |item| probe::read(&item.section()?, &Subject::Process));
    let stop_timeout = section.duration("stop_timeout");
    let limits = section.optional("limits", |item| {
        let limits = item.section()?;
        let memory = limits.optional("memory", |item| item.size());
        let cpu = limits.optional("cpu", |item| item.number());
        Some((memory?, cpu?))
    });
    let me = PartRef { kind: PartKind::Process, name: name.to_owned() };
    let needs = notes.needs(me, section.parts("needs"));
    let (memory_limit, cpu_limit) = limits?.unwrap_or_default();
    Some(Process {
        nodes: nodes?,
        command: command??,
        directory: directory?,
        environment: environment?.unwrap_or_default(),
        user: user?,
        image: image?,
        startup: startup?,
        liveness: liveness?,
        readiness: readiness?,
        stop_timeout: stop_timeout?,
        memory_limit,
        cpu_limit,
        needs: needs?,
    })
}

/// A probe that is content with one success, as in Kubernetes.
fn one_success(item: Item<'_>, which: &str) -> Option<Probe> {
    let section = item.section()?;
    let probe = probe::read(&section, &Subject::Process);
    if section.count::<u16>("rise").is_some_and(|rise| rise > 1) {
        section.desk.complain(
            section.span_of("rise"),
            format!("a {which} probe has `rise = 1`, as in Kubernetes"),
            "write 1, or take it out",
        );
    }
    probe
}

fn environment(item: Item<'_>) -> Option<BTreeMap<String, String>> {
    let read = |(key, value): (&str, Item<'_>)| {
        let text = value.text();
        if key.is_empty() || key.contains(['=', '\0']) {
            value.complain(
                format!("{} cannot be the name of a variable", quote(key)),
                "a name has no = and is not empty",
            );
            return None;
        }
        Some((key.to_owned(), text?.to_owned()))
    };
    let read: Vec<Option<(String, String)>> =
        item.entries()?.into_iter().map(|(key, value)| read((key.get_ref(), value))).collect();
    read.into_iter().collect()
}

pub(super) fn external(section: &Section<'_>) -> Option<External> {
    let url = section.optional("url", |item| {
        item.parsed(words::http_url)?;
        let url = item.text()?;
        Some((url.to_owned(), words::http_target(url).ok()?))
    });
    let probe = section.item("probe").map(|item| {
        let target = url.clone().flatten().map(|(_, target)| target);
        let unknown = url.is_none();
        probe_of_external(&item, target, unknown)
    });
    let reliability = section.reliability();
    let instances = section.count("instances").and_then(NonZeroU16::new);
    let at_least = section.count("at_least").and_then(NonZeroU16::new);
    if let (Some(instances), Some(at_least)) = (instances, at_least)
        && at_least > instances
    {
        section.desk.complain(
            section.span_of("at_least"),
            format!("`at_least` can never be met: `instances` is {instances}"),
            format!("write at most {instances}, or more `instances`"),
        );
    }
    let url = url?;
    let probe = match (probe, &url) {
        (Some(probe), _) => Some(probe?),
        (None, Some((_, target))) => {
            let defaults = section.absent(&shapes::SERVICE_PROBE);
            Some(probe::read(&defaults, &Subject::External { url: Some(target.clone()) })?)
        }
        (None, None) => None,
    };
    Some(External {
        url: url.map(|(url, _)| url),
        probe,
        reliability: reliability?,
        instances: instances?,
        at_least: at_least?,
    })
}

fn probe_of_external(item: &Item<'_>, url: Option<HttpTarget>, url_is_bad: bool) -> Option<Probe> {
    // What a bad URL would have said stands in for it: its own complaint is enough.
    let stand_in = || words::http_target("http://127.0.0.1/").ok();
    let url = if url_is_bad { stand_in() } else { url };
    probe::read(&item.section()?, &Subject::External { url })
}
