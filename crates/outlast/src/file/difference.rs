//! What is different between two topology files, section by section, in the words of the file.
//!
//! A key that is absent is the same as its default, and a duration or a size is the same however it is written.

use std::collections::{BTreeMap, BTreeSet};

use outlast_core::units::{parse_duration, parse_size};
use toml::{Table, Value};

use super::shape::{Absent, Key, Kind, Literal, Shape};
use super::shapes::FILE;

/// Everything that is different.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    pub parts: Vec<Part>,
}

/// A section of the file that is different.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// `cluster`, `service.web`.
    pub part: String,
    pub what: Change,
    pub keys: Vec<KeyChange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Removed,
    Changed,
}

/// A key whose value is different.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyChange {
    /// Within its section: `probe.every`.
    pub key: String,
    pub old: Side,
    pub new: Side,
}

/// What a key is on one side.
#[derive(Clone, Debug, PartialEq)]
pub enum Side {
    Absent,
    /// Nobody wrote it.
    Default(Value),
    Written(Value),
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// How many parts are added, changed and removed.
    pub fn counts(&self) -> [usize; 3] {
        let count = |what| self.parts.iter().filter(|part| part.what == what).count();
        [count(Change::Added), count(Change::Changed), count(Change::Removed)]
    }
}

/// What is different between two files that parse.
pub fn difference(old: &str, new: &str) -> Difference {
    let read = |text: &str| toml::from_str::<Table>(text).unwrap_or_default();
    let (old, new) = (read(old), read(new));
    let mut parts = Vec::new();
    for key in FILE.keys {
        let (old, new) = (table(old.get(key.name)), table(new.get(key.name)));
        if let Some(shape) = key.kind.of_table() {
            parts.extend(part(key.name, shape, old, new));
        }
        if let Some(shape) = key.kind.of_named() {
            let inner = |of: Option<&Table>, name: &str| -> Option<Table> {
                of?.get(name)?.as_table().cloned()
            };
            let names = old.into_iter().chain(new).flat_map(Table::keys).collect::<BTreeSet<_>>();
            for name in names {
                let (old, new) = (inner(old, name), inner(new, name));
                let title = format!("{}.{name}", key.name);
                parts.extend(part(&title, shape, old.as_ref(), new.as_ref()));
            }
        }
    }
    Difference { parts }
}

fn table(value: Option<&Value>) -> Option<&Table> {
    value?.as_table()
}

fn part(
    title: &str,
    shape: &'static Shape,
    old: Option<&Table>,
    new: Option<&Table>,
) -> Option<Part> {
    let what = match (old, new) {
        (None, None) => return None,
        (None, Some(_)) => Change::Added,
        (Some(_), None) => Change::Removed,
        (Some(_), Some(_)) => Change::Changed,
    };
    let (old, new) = (leaves(shape, old), leaves(shape, new));
    let names = old.keys().chain(new.keys()).collect::<BTreeSet<_>>();
    let keys = names.into_iter().filter_map(|name| {
        let (old, new) = (old.get(name), new.get(name));
        let (_, key) = old.or(new)?;
        // In a part that comes or goes, what nobody wrote is not shown.
        let side = |leaf: Option<&(Value, &Key)>| match (leaf, default(key)) {
            (Some((value, _)), _) => Side::Written(value.clone()),
            (None, Some(value)) if what == Change::Changed => Side::Default(value),
            (None, _) => Side::Absent,
        };
        let (old, new) = (side(old), side(new));
        let change = KeyChange { key: name.clone(), old, new };
        (!is_same(&change.old, &change.new, &key.kind)).then_some(change)
    });
    let keys: Vec<KeyChange> = keys.collect();
    let differs = what != Change::Changed || !keys.is_empty();
    differs.then(|| Part { part: title.to_owned(), what, keys })
}

/// The values of a section, those of inner tables by their path.
fn leaves(shape: &'static Shape, table: Option<&Table>) -> BTreeMap<String, (Value, &'static Key)> {
    let mut leaves = BTreeMap::new();
    // A table stands in a table of the file at most a few times; the shapes end.
    let mut open: Vec<(String, &'static Shape, &Table)> =
        table.map(|table| (String::new(), shape, table)).into_iter().collect();
    while let Some((path, shape, table)) = open.pop() {
        for key in shape.keys {
            let Some(value) = table.get(key.name) else { continue };
            let name = format!("{path}{}", key.name);
            let inner = key.kind.alternatives().iter().find_map(Kind::of_table);
            match (inner, value.as_table()) {
                (Some(shape), Some(table)) => open.push((format!("{name}."), shape, table)),
                _ => drop(leaves.insert(name, (value.clone(), key))),
            }
        }
    }
    leaves
}

fn default(key: &Key) -> Option<Value> {
    match key.absent {
        Absent::Default(Literal::Text(text)) => Some(Value::String(text.to_owned())),
        Absent::Default(Literal::Count(count)) => {
            Some(Value::Integer(i64::try_from(count).unwrap_or(i64::MAX)))
        }
        Absent::Default(Literal::Number(number)) => Some(Value::Float(number)),
        Absent::Default(Literal::Switch(switch)) => Some(Value::Boolean(switch)),
        Absent::Missing | Absent::Fine => None,
    }
}

/// Whether both mean the same.
fn is_same(old: &Side, new: &Side, kind: &'static Kind) -> bool {
    let (Some(old), Some(new)) = (old.value(), new.value()) else {
        return old.value().is_none() && new.value().is_none();
    };
    let same = |kind: &Kind| match (old, new) {
        (Value::String(old), Value::String(new)) if matches!(kind, Kind::Duration { .. }) => {
            parse_duration(old).is_ok_and(|old| parse_duration(new) == Ok(old))
        }
        (Value::String(old), Value::String(new)) if matches!(kind, Kind::Size { .. }) => {
            parse_size(old).is_ok_and(|old| parse_size(new) == Ok(old))
        }
        (Value::Integer(whole), Value::Float(number))
        | (Value::Float(number), Value::Integer(whole)) => *whole as f64 == *number,
        _ => old == new,
    };
    old == new || kind.alternatives().iter().any(same)
}

impl Side {
    pub fn value(&self) -> Option<&Value> {
        match self {
            Side::Absent => None,
            Side::Default(value) | Side::Written(value) => Some(value),
        }
    }
}

impl KeyChange {
    /// The change as words: `"1s" → "2s"`; of a part that comes or goes, its value.
    pub fn words(&self, what: Change) -> String {
        let only = match what {
            Change::Added => self.new.value(),
            Change::Removed => self.old.value(),
            Change::Changed => None,
        };
        if let Some(value) = only {
            return shown(value);
        }
        let side = |side: &Side| match side {
            Side::Absent => "absent".to_owned(),
            Side::Default(value) => format!("{} (default)", shown(value)),
            Side::Written(value) => shown(value),
        };
        if let (Some(Value::Array(old)), Some(Value::Array(new))) =
            (self.old.value(), self.new.value())
            && let Some(words) = list_words(old, new)
        {
            return words;
        }
        format!("{} → {}", side(&self.old), side(&self.new))
    }
}

/// What comes into a list and what goes; `None` if that is not all that is different.
fn list_words(old: &[Value], new: &[Value]) -> Option<String> {
    let come: Vec<String> = new.iter().filter(|v| !old.contains(v)).map(shown).collect();
    let go: Vec<String> = old.iter().filter(|v| !new.contains(v)).map(shown).collect();
    let stay = |list: &[Value], other: &[Value]| -> Vec<Value> {
        list.iter().filter(|v| other.contains(v)).cloned().collect()
    };
    if stay(old, new) != stay(new, old) || stay(old, new).is_empty() {
        return None;
    }
    let words =
        [("adds", come), ("takes out", go)].into_iter().filter(|(_, list)| !list.is_empty());
    let words: Vec<String> =
        words.map(|(word, list)| format!("{word} {}", list.join(", "))).collect();
    Some(words.join("; "))
}

/// A value as it stands in a file, on one line.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(switch) => switch.to_string(),
        Value::Datetime(datetime) => datetime.to_string(),
        Value::Array(list) => {
            let list: Vec<String> = list.iter().map(shown).collect();
            format!("[{}]", list.join(", "))
        }
        Value::Table(table) => {
            let list: Vec<String> =
                table.iter().map(|(key, value)| format!("{key} = {}", shown(value))).collect();
            format!("{{ {} }}", list.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const OLD: &str = "[cluster]\nname = \"shop\"\n[service.web]\nlisten = \"127.0.0.1:80\"\nbackends = [\"http://a:1\", \"http://b:1\"]\n\
                       probe = { http = \"/\", every = \"1s\" }\n[service.old]\nlisten = \"127.0.0.1:81\"\nbackends = [\"http://c:1\"]\n";

    #[track_caller]
    fn check(replace: &[(&str, &str)], expect: Expect) {
        let mut new = OLD.to_owned();
        for (from, to) in replace {
            assert!(new.contains(from), "{from}");
            new = new.replace(from, to);
        }
        let parts = difference(OLD, &new).parts.into_iter().map(|part| {
            let keys =
                part.keys.iter().map(|key| format!("  {}: {}\n", key.key, key.words(part.what)));
            format!("{:?} {}\n{}", part.what, part.part, keys.collect::<String>())
        });
        expect.assert_eq(&parts.collect::<String>());
    }

    #[test]
    fn what_means_the_same_is_no_difference() {
        check(&[], expect![[""]]);
        check(&[("every = \"1s\"", "every = \"1000ms\"")], expect![[""]]);
        check(&[("name = \"shop\"", "name = \"shop\"\nport = 8901 # the default")], expect![[""]]);
        check(&[("[cluster]", "# shop\n[cluster]")], expect![[""]]);
    }

    #[test]
    fn sections_and_keys_are_named_with_old_and_new_values() {
        check(
            &[
                ("every = \"1s\"", "every = \"2s\", fall = 5"),
                ("\"http://b:1\"]", "\"http://d:1\"]"),
                ("[service.old]", "[service.new]"),
                ("name = \"shop\"", "name = \"shop\"\nproxy_threads = 2"),
            ],
            expect![[r#"
                Changed cluster
                  proxy_threads: absent → 2
                Added service.new
                  backends: ["http://c:1"]
                  listen: "127.0.0.1:81"
                Removed service.old
                  backends: ["http://c:1"]
                  listen: "127.0.0.1:81"
                Changed service.web
                  backends: adds "http://d:1"; takes out "http://b:1"
                  probe.every: "1s" → "2s"
                  probe.fall: 3 (default) → 5
            "#]],
        );
    }

    #[test]
    fn lists_say_what_comes_and_goes_unless_their_order_changes() {
        check(
            &[("\"http://b:1\"]", "\"http://b:1\", \"http://c:1\"]")],
            expect![[r#"
            Changed service.web
              backends: adds "http://c:1"
        "#]],
        );
        check(
            &[("[\"http://a:1\", \"http://b:1\"]", "[\"http://b:1\", \"http://a:1\"]")],
            expect![[r#"
                Changed service.web
                  backends: ["http://a:1", "http://b:1"] → ["http://b:1", "http://a:1"]
            "#]],
        );
        check(
            &[("[\"http://a:1\", \"http://b:1\"]", "[\"http://x:1\"]")],
            expect![[r#"
            Changed service.web
              backends: ["http://a:1", "http://b:1"] → ["http://x:1"]
        "#]],
        );
    }

    #[test]
    fn a_whole_section_that_comes_or_goes_shows_what_is_written_in_it() {
        check(
            &[("[service.old]\nlisten = \"127.0.0.1:81\"\nbackends = [\"http://c:1\"]\n", "")],
            expect![[r#"
                Removed service.old
                  backends: ["http://c:1"]
                  listen: "127.0.0.1:81"
            "#]],
        );
        check(
            &[("[cluster]", "[node.a]\naddress = \"10.0.0.1\"\n[cluster]")],
            expect![[r#"
            Added node.a
              address: "10.0.0.1"
        "#]],
        );
    }
}
