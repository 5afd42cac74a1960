//! The agreed topology in `outlast status`.

use outlast::agent::face::topology_status::TopologyStatus;

use crate::output::{Ink, Paint, plain};

/// Which version is in force, who does not run it, what is being voted on, and whether the file says something else.
pub(super) fn topology(status: &TopologyStatus, ink: Ink) -> String {
    let title = ink.on(Paint::Bold, "topology");
    let mut text = match status.version {
        0 => {
            // What was agreed on before is gone: etcd was emptied, or a log was moved away.
            let what = match status.runs {
                0 => "each node runs its own file".to_owned(),
                runs => {
                    format!("none is in force, and this node runs its last one, version {runs}")
                }
            };
            format!("{title}  {what}; `outlast apply` makes one of all\n")
        }
        version => {
            let others: Vec<String> = status
                .nodes
                .iter()
                .filter(|(_, node)| !node.in_force)
                .map(|(name, node)| match node.version {
                    0 => format!("{} has not said that it runs it", plain(name)),
                    same if same == version => {
                        format!("{} runs another version {version}", plain(name))
                    }
                    other => format!("{} runs version {other}", plain(name)),
                })
                .collect();
            let who = match others.is_empty() {
                true => "all nodes run it".to_owned(),
                false => ink.on(Paint::Yellow, &others.join("; ")),
            };
            format!("{title}  version {version} is in force; {who}\n")
        }
    };
    let mut note = |said: String| text += &format!("  {}\n", ink.on(Paint::Yellow, &plain(&said)));
    for (name, node) in &status.nodes {
        if let Some(trouble) = &node.trouble {
            note(format!("{name} cannot run {trouble}"));
        }
    }
    if let Some(proposal) = &status.proposal {
        let silent = status.nodes.keys().filter(|name| !proposal.votes.contains_key(*name));
        let silent: Vec<&str> = silent.map(String::as_str).collect();
        let missing = match silent.is_empty() {
            true => String::new(),
            false => format!("; no answer yet from {}", silent.join(", ")),
        };
        note(format!(
            "version {}, proposed on node {}, is being voted on{missing}",
            proposal.version, proposal.by
        ));
    }
    if let Some(differs) = &status.file_differs {
        note(differs.clone());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use outlast::agent::face::topology_status::{NodeRunsStatus, ProposalStatus};

    #[track_caller]
    fn check(status: &TopologyStatus, expect: Expect) {
        expect.assert_eq(&topology(status, Ink { colour: false }));
    }

    #[test]
    fn who_does_not_run_what_is_in_force_is_named() {
        let mut status = TopologyStatus::default();
        check(
            &status,
            expect![[r#"
            topology  each node runs its own file; `outlast apply` makes one of all
        "#]],
        );
        status.runs = 7;
        check(
            &status,
            expect![[r#"
            topology  none is in force, and this node runs its last one, version 7; `outlast apply` makes one of all
        "#]],
        );
        status.version = 4;
        for name in ["a", "b", "c"] {
            let node = NodeRunsStatus { version: 4, in_force: true, trouble: None };
            status.nodes.insert(name.to_owned(), node);
        }
        check(
            &status,
            expect![[r#"
            topology  version 4 is in force; all nodes run it
        "#]],
        );
        let trouble = Some("version 4: listen on 127.0.0.1:80: in use".to_owned());
        status
            .nodes
            .insert("b".to_owned(), NodeRunsStatus { version: 3, in_force: false, trouble });
        status.proposal = Some(ProposalStatus {
            version: 5,
            by: "a".to_owned(),
            votes: [("a".to_owned(), "yes".to_owned())].into(),
        });
        status.file_differs = Some("shop.toml differs".to_owned());
        check(
            &status,
            expect![[r#"
            topology  version 4 is in force; b runs version 3
              b cannot run version 4: listen on 127.0.0.1:80: in use
              version 5, proposed on node a, is being voted on; no answer yet from b, c
              shop.toml differs
        "#]],
        );
    }
}
