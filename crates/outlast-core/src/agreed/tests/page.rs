//! `docs/agreed.md` names every command and every limit. `UPDATE_EXPECT=1` writes its limits.

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;

use expect_test::expect_file;

use super::laws;
use super::random::Senders;
use crate::agreed::*;

const PAGE: &str = include_str!("../../../../../docs/agreed.md");

#[test]
fn the_page_names_every_limit() {
    let before = PAGE.split("## Limits").next().unwrap_or(PAGE);
    let mut page = format!("{before}## Limits\n\nWhat would go over a limit is refused.\n\n");
    page.push_str("| at most | |\n| ---: | --- |\n");
    for limit in Limit::ALL {
        page.push_str(&format!("| {} | {} |\n", limit.most(), limit.words()));
    }
    page.push_str("\nOf these the oldest are dropped:\n\n| kept | |\n| ---: | --- |\n");
    for (kept, words) in [
        (CLIENTS_KEPT, "clients, by when they were last heard of"),
        (ANSWERS_KEPT, "answers of each client"),
        (CHANGES_KEPT, "changes of keys and locks"),
        (HISTORY_KEPT, "lines of history; older ones are in each node's journal"),
        (ENDED_KEPT, "procedures that have ended"),
    ] {
        page.push_str(&format!("| {kept} | {words} |\n"));
    }
    expect_file!["../../../../../docs/agreed.md"].assert_eq(&page);
}

/// The name of a command and whether it needs no client.
fn named(command: &Command) -> (String, bool) {
    let debug = format!("{command:?}");
    let mut words = debug.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let name = match command {
        Command::Introduce | Command::Record { .. } => String::from(first),
        Command::Node(_)
        | Command::Topology(_)
        | Command::Lease(_)
        | Command::Notice(_)
        | Command::Procedure(_)
        | Command::Kv(_)
        | Command::Session(_)
        | Command::Lock(_)
        | Command::Side(_)
        | Command::Database(_)
        | Command::Address(_)
        | Command::Names(_) => format!("{first}::{second}"),
    };
    (name, command.repeatable())
}

#[test]
fn the_page_names_every_command() {
    let (mut agreed, mut senders) = (Agreed::default(), Senders::default());
    let mut commands = BTreeMap::new();
    for (index, dice) in (1..).zip(laws::dice(3, 6000)) {
        let entry = senders.entry(&agreed, dice);
        commands.extend([named(&entry.command)]);
        agreed.apply(index, &entry);
    }
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let rows = rows.map(|(name, rest)| (String::from(name), rest.starts_with(" ∞")));
    assert_eq!(rows.collect::<BTreeSet<_>>(), commands.into_iter().collect());
}
