//! The names that a file gives to its parts, collected before anything refers to them.

use std::collections::{BTreeMap, BTreeSet};

use outlast_core::topology::PartKind;
use toml::de::DeTable;

/// Who is who in a file; also parts with mistakes in them are there.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) nodes: BTreeSet<String>,
    pub(crate) objectives: BTreeSet<String>,
    parts: BTreeMap<PartKind, BTreeSet<String>>,
}

impl Names {
    pub(crate) fn collect(file: &DeTable<'_>) -> Names {
        let section = |word: &str| -> BTreeSet<String> {
            let table = file.get(word).and_then(|section| section.get_ref().as_table());
            table.into_iter().flat_map(DeTable::keys).map(|key| key.get_ref().to_string()).collect()
        };
        Names {
            nodes: section("node"),
            objectives: section("objective"),
            parts: PartKind::ALL.into_iter().map(|kind| (kind, section(kind.word()))).collect(),
        }
    }

    pub(crate) fn has(&self, kind: PartKind, name: &str) -> bool {
        self.parts.get(&kind).is_some_and(|names| names.contains(name))
    }

    /// The names of one section.
    pub(crate) fn of(&self, kind: PartKind) -> impl Iterator<Item = &str> + Clone {
        self.parts.get(&kind).into_iter().flatten().map(String::as_str)
    }
}

/// `a`, `b` and so on; not more than a dozen.
pub(crate) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const LISTED_MAX: usize = 12;
    let mut names = names.map(super::complaint::quote);
    let mut list: Vec<String> = names.by_ref().take(LISTED_MAX).collect();
    if names.next().is_some() {
        list.push("…".to_owned());
    }
    list.join(", ")
}
