//! How a lab is, for people.

use std::time::Duration;

use outlast_core::units::show_duration;

use super::wire::{AgentState, NodeState, NodeStatus, Status};
use crate::output::{Ink, Paint};

/// What is said when a lab is up.
pub(super) fn welcome(status: &Status) -> String {
    let ink = Ink { colour: crate::output::output_may_have_colour() };
    let node = status.nodes.first().map_or("NODE", |node| node.name.as_str());
    format!(
        "{}\n  outlast lab exec {node} -- outlast status\n  outlast lab cut {node}\n  outlast lab status\n  outlast lab down\n",
        table(status, ink)
    )
}

/// `outlast lab status`
pub(super) fn table(status: &Status, ink: Ink) -> String {
    let how = if status.rootless { "rootless, " } else { "" };
    let mut text = format!(
        "lab {}  {how}{} in {}\n",
        ink.on(Paint::Bold, &status.name),
        status.file.display(),
        status.dir.display()
    );
    let widest = |of: fn(&NodeStatus) -> usize, least: usize| {
        status.nodes.iter().map(of).max().unwrap_or(0).max(least)
    };
    let name = widest(|node| node.name.len(), 4);
    let address = widest(|node| node.address.len(), 7);
    let head = format!(
        "  {:name$}  {:address$}  {:8}  {:>8}  {:>8}  agent",
        "node", "address", "state", "for", "pid"
    );
    text += &format!("{}\n", ink.on(Paint::Faint, &head));
    for node in &status.nodes {
        let state = format!("{:8}", node.state.word());
        let state = match node.state {
            NodeState::Running => ink.on(Paint::Green, &state),
            NodeState::Starting | NodeState::Paused | NodeState::Stopping | NodeState::Stopped => {
                ink.on(Paint::Yellow, &state)
            }
            NodeState::Dead => ink.on(Paint::Red, &state),
        };
        let pid = node.pid.map_or("-".to_owned(), |pid| pid.to_string());
        text += &format!(
            "  {:name$}  {:address$}  {state}  {:>8}  {pid:>8}  {}\n",
            node.name,
            node.address,
            seconds(node.for_seconds),
            agent(node)
        );
    }
    if status.faults.is_empty() {
        return text + "no faults\n";
    }
    text += &format!("{}\n", ink.on(Paint::Faint, "  fault  heals in  what"));
    for fault in &status.faults {
        text +=
            &format!("  {:5}  {:>8}  {}\n", fault.id, seconds(fault.heals_in_seconds), fault.text);
    }
    text
}

fn agent(node: &NodeStatus) -> String {
    let agent = match node.agent {
        AgentState::None => "-".to_owned(),
        AgentState::Starting => "starting".to_owned(),
        AgentState::Running => "answers".to_owned(),
        AgentState::Ended(code) => format!("ended with status {code}"),
    };
    match node.back_in_seconds {
        Some(left) => format!("{agent}, power comes back in {}", seconds(left)),
        None => agent,
    }
}

/// Whole seconds, rounded up: a fault that has not healed has some left.
fn seconds(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.max(0.0).ceil()).unwrap_or_default();
    show_duration(whole)
}

#[cfg(test)]
mod tests {
    use super::super::wire::FaultStatus;
    use super::*;
    use expect_test::expect;

    #[test]
    fn nodes_and_faults_are_rows() {
        let node = |name: &str, state, agent, pid, back| NodeStatus {
            name: name.to_owned(),
            address: "10.0.0.1".to_owned(),
            state,
            for_seconds: 61.2,
            pid,
            agent,
            back_in_seconds: back,
        };
        let mut status = Status {
            v: 1,
            name: "shop".to_owned(),
            file: "/p/shop.toml".into(),
            dir: "/d/shop".into(),
            rootless: true,
            owner: 4700,
            up: true,
            nodes: vec![
                node("a", NodeState::Running, AgentState::Running, Some(4711), None),
                node("berlin", NodeState::Dead, AgentState::None, None, Some(3.1)),
                node("c", NodeState::Paused, AgentState::Ended(137), Some(4712), None),
            ],
            faults: vec![FaultStatus {
                id: "f1".to_owned(),
                kind: "cut".to_owned(),
                text: "cut a | all others".to_owned(),
                heals_in_seconds: 41.7,
            }],
        };
        let ink = Ink { colour: false };
        expect![[r#"
            lab shop  rootless, /p/shop.toml in /d/shop
              node    address   state          for       pid  agent
              a       10.0.0.1  running       1m2s      4711  answers
              berlin  10.0.0.1  dead          1m2s         -  -, power comes back in 4s
              c       10.0.0.1  paused        1m2s      4712  ended with status 137
              fault  heals in  what
              f1          42s  cut a | all others
        "#]]
        .assert_eq(&table(&status, ink));
        status.faults.clear();
        assert!(table(&status, ink).ends_with("no faults\n"));
    }
}
