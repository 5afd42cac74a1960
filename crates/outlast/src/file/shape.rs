//! What a table of the file may hold: the words that the tables in `shapes` are written in.
//!
//! One table of keys drives the reader, its complaints and the JSON Schema.

use outlast_core::topology::PartKind;

/// The keys that one kind of table may have.
#[derive(Debug)]
pub(crate) struct Shape {
    /// As it is written in the file, `[service.NAME]` or `probe`; unique.
    pub(crate) title: &'static str,
    pub(crate) about: &'static str,
    pub(crate) keys: &'static [Key],
}

impl Shape {
    /// Whether this is the whole file, whose keys are sections.
    pub(crate) fn is_file(&self) -> bool {
        self.title == "outlast.toml"
    }

    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) absent: Absent,
    pub(crate) about: &'static str,
    /// What the same thing is called elsewhere: a reader who writes that is told our word.
    pub(crate) elsewhere: &'static [&'static str],
}

/// What it means that a key is not there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Absent {
    /// A mistake.
    Missing,
    /// What `about` says.
    Fine,
    /// The same as this.
    Default(Literal),
}

/// A value as it could stand in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Literal {
    Text(&'static str),
    Count(u64),
    Number(f64),
    Switch(bool),
}

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A string that is not empty; the example shows one.
    Text(&'static str),
    /// A string that may be empty.
    AnyText,
    /// One of these strings.
    Words(&'static [&'static str]),
    Switch,
    /// A whole number.
    Count {
        min: u64,
        max: u64,
    },
    /// A number, with or without a fraction.
    Number {
        min: f64,
        max: f64,
    },
    /// A number above 0 and at most 1.
    Share,
    Duration {
        zero: bool,
    },
    Size {
        min: u64,
        max: u64,
    },
    Ip,
    /// IP address and port.
    Listen,
    /// IP address and prefix length.
    Network,
    /// A name in another section.
    NodeName,
    /// Another part of the file, of one of these kinds: `postgres.orders`.
    Part(&'static [PartKind]),
    ObjectiveName,
    /// A program and its arguments, as one string or an array.
    Command,
    List(&'static Kind),
    /// A table whose keys are free.
    Map(&'static Kind),
    /// A table whose keys are percentiles: `p95`.
    Percentiles,
    Table(&'static Shape),
    /// A table of tables, each with a name: `[service.NAME]`.
    Named(&'static Shape),
    Any(&'static [Kind]),
}

impl Key {
    pub(crate) const fn new(name: &'static str, kind: Kind, about: &'static str) -> Key {
        Key { name, kind, absent: Absent::Fine, about, elsewhere: &[] }
    }

    pub(crate) const fn required(self) -> Key {
        Key { absent: Absent::Missing, ..self }
    }

    /// A default that is a string in the file: also durations and sizes.
    pub(crate) const fn or(self, text: &'static str) -> Key {
        Key { absent: Absent::Default(Literal::Text(text)), ..self }
    }

    pub(crate) const fn or_count(self, count: u64) -> Key {
        Key { absent: Absent::Default(Literal::Count(count)), ..self }
    }

    pub(crate) const fn or_number(self, number: f64) -> Key {
        Key { absent: Absent::Default(Literal::Number(number)), ..self }
    }

    pub(crate) const fn or_switch(self, switch: bool) -> Key {
        Key { absent: Absent::Default(Literal::Switch(switch)), ..self }
    }

    pub(crate) fn default_text(&self) -> Option<&'static str> {
        if let Absent::Default(Literal::Text(text)) = self.absent { Some(text) } else { None }
    }

    pub(crate) const fn elsewhere(self, elsewhere: &'static [&'static str]) -> Key {
        Key { elsewhere, ..self }
    }
}

impl Kind {
    /// The kinds that a value may be of, each plain.
    pub(crate) fn alternatives(&'static self) -> &'static [Kind] {
        if let Kind::Any(kinds) = self { kinds } else { std::slice::from_ref(self) }
    }

    /// Whether numbers are of this kind.
    pub(crate) fn is_numeric(&self) -> bool {
        matches!(self, Kind::Count { .. } | Kind::Number { .. } | Kind::Share)
    }

    /// Whether this is a share of a whole: a percentage is a likely mistake.
    pub(crate) fn is_share(&self) -> bool {
        matches!(self, Kind::Share) || matches!(self, Kind::Number { max, .. } if *max == 1.0)
    }

    /// Whether a number is in range.
    pub(crate) fn holds(&self, number: f64) -> bool {
        if let Kind::Number { min, max } = self {
            (*min..=*max).contains(&number)
        } else {
            matches!(self, Kind::Share) && number > 0.0 && number <= 1.0
        }
    }

    /// Whether a whole number is in range.
    pub(crate) fn counts(&self, count: u64) -> bool {
        if let Kind::Count { min, max } = self { (*min..=*max).contains(&count) } else { false }
    }

    pub(crate) fn of_words(&self) -> Option<&'static [&'static str]> {
        if let Kind::Words(words) = self { Some(words) } else { None }
    }

    pub(crate) fn of_items(&self) -> Option<&'static Kind> {
        if let Kind::List(kind) = self { Some(kind) } else { None }
    }

    pub(crate) fn of_parts(&self) -> Option<&'static [PartKind]> {
        if let Kind::Part(kinds) = self { Some(kinds) } else { None }
    }

    pub(crate) fn of_table(&self) -> Option<&'static Shape> {
        if let Kind::Table(shape) = self { Some(shape) } else { None }
    }

    pub(crate) fn of_named(&self) -> Option<&'static Shape> {
        if let Kind::Named(shape) = self { Some(shape) } else { None }
    }

    /// What the values of a table with free keys are.
    pub(crate) fn of_entries(&self) -> Option<&'static Kind> {
        const LATENCY: Kind = Kind::Duration { zero: false };
        if let Kind::Map(kind) = self {
            Some(kind)
        } else {
            matches!(self, Kind::Percentiles).then_some(&LATENCY)
        }
    }

    /// What to write, for a person: `a duration, like "5s"`.
    pub(crate) fn wanted(&self) -> String {
        match self {
            Kind::Text(example) => format!("a string, like \"{example}\""),
            Kind::AnyText => "a string in quotes".to_owned(),
            Kind::Words(words) => one_of(words.iter().map(|word| format!("\"{word}\""))),
            Kind::Switch => "true or false".to_owned(),
            Kind::Count { min, max } => match u32::try_from(*max) {
                Ok(u32::MAX) | Err(_) => format!("a whole number, {min} or more"),
                Ok(max) => format!("a whole number from {min} to {max}"),
            },
            Kind::Number { min, .. } if *min == f64::MIN => "a number".to_owned(),
            Kind::Number { min, max } if *max == f64::MAX => format!("a number, {min} or more"),
            Kind::Number { min, max } => format!("a number from {min} to {max}"),
            Kind::Share => "a share above 0 and at most 1, like 0.999".to_owned(),
            Kind::Duration { .. } => "a duration, like \"5s\"".to_owned(),
            Kind::Size { .. } => "a size, like \"16MiB\"".to_owned(),
            Kind::Ip => "an IP address, like \"10.0.0.1\"".to_owned(),
            Kind::Listen => "an IP address and a port, like \"0.0.0.0:80\"".to_owned(),
            Kind::Network => "a network, like \"10.0.0.0/8\"".to_owned(),
            Kind::NodeName => "the name of a node".to_owned(),
            Kind::Part(kinds) => {
                let word = kinds.first().map_or("service", |kind| kind.word());
                format!("the name of a part, like \"{word}.NAME\"")
            }
            Kind::ObjectiveName => "the name of an objective, like \"objective.web\"".to_owned(),
            Kind::Command => {
                "a command, like \"/usr/bin/api --port 3000\" or [\"/usr/bin/api\", \"--port\", \"3000\"]"
                    .to_owned()
            }
            Kind::List(kind) => format!("a list in square brackets, each {}", kind.wanted()),
            Kind::Map(_) => "a table, like { NAME = \"value\" }".to_owned(),
            Kind::Percentiles => "a table, like { p95 = \"200ms\" }".to_owned(),
            Kind::Table(shape) => match shape.keys.first() {
                Some(key) => format!("a table, like {{ {} = … }}", key.name),
                None => "a table".to_owned(),
            },
            Kind::Named(shape) => format!("a section {}", shape.title),
            Kind::Any(kinds) => one_of(kinds.iter().map(Kind::wanted)),
        }
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(crate) fn one_of(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    match items.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// Longer words than this are not compared.
const WORD_MAX: usize = 40;
/// More candidates than this are not looked at.
const CANDIDATES_MAX: usize = 200;

/// The candidate that was most likely meant, if one is near.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if word.len() > WORD_MAX {
        return None;
    }
    let reach = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .take(CANDIDATES_MAX)
        .filter(|candidate| candidate.len() <= WORD_MAX)
        .map(|candidate| (edits(word, candidate), candidate))
        // With nothing in common, nothing is near.
        .filter(|&(edits, candidate)| edits <= reach && edits < word.len().min(candidate.len()))
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many letters must be put in, taken out, replaced or swapped with their neighbour.
fn edits(a: &str, b: &str) -> usize {
    let fold = |text: &str| -> Vec<char> {
        text.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
    };
    let (a, b) = (fold(a), fold(b));
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &y) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(x != y)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && x == b[j - 1] && a[i - 1] == y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_the_one_that_was_meant() {
        let keys = ["every", "timeout", "fall", "rise", "listen", "backends"];
        for (word, meant) in [
            ("evry", Some("every")),
            ("eveyr", Some("every")),
            ("time_out", Some("timeout")),
            ("Listen", Some("listen")),
            ("backend", Some("backends")),
            ("x", None),
            ("d", None),
            ("", None),
            ("colour", None),
        ] {
            assert_eq!(nearest(word, keys), meant, "{word}");
        }
        assert_eq!(nearest(&"a".repeat(1 << 20), keys), None);
        assert_eq!(nearest("db3", ["db1", "db2"]), Some("db1"));
    }

    #[test]
    fn alternatives_are_listed_as_people_do() {
        let list = |items: &[&str]| one_of(items.iter().map(|&item| item.to_owned()));
        assert_eq!(list(&[]), "");
        assert_eq!(list(&["a"]), "a");
        assert_eq!(list(&["a", "b", "c"]), "a, b or c");
    }
}
