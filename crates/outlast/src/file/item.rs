//! One value of the file: read as what it must be, or a complaint and `None`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use outlast_core::topology::{Command, Network, PartRef};
use outlast_core::units;
use toml::Spanned;
use toml::de::{DeString, DeValue};

use super::complaint::quote;
use super::desk::{Desk, Span};
use super::names::{Names, listed};
use super::section::Section;
use super::shape::{Kind, nearest, one_of};
use super::words;

/// A value, where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item<'t> {
    pub(crate) desk: &'t Desk<'t>,
    pub(crate) names: &'t Names,
    pub(crate) value: &'t Spanned<DeValue<'t>>,
    pub(crate) key: &'t str,
    pub(crate) kind: &'static Kind,
}

impl<'t> Item<'t> {
    pub(crate) fn span(&self) -> Span {
        self.value.span()
    }

    pub(crate) fn complain(&self, message: impl Display, help: impl Display) {
        self.desk.complain(self.span(), message, help);
    }

    /// Complains that the value is none of the kinds that it may be.
    pub(crate) fn complain_of_kind<T>(&self) -> Option<T> {
        let found = match self.value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date or a time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.complain(
            format!("`{}` cannot be {found}", self.key),
            format!("write {}", self.kind.wanted()),
        );
        None
    }

    fn complain_of_range<T>(&self) -> Option<T> {
        let shown = self.desk.text().get(self.span()).unwrap_or_default();
        let kinds = self.kind.alternatives().iter().filter(|kind| kind.is_numeric());
        self.complain(
            format!("`{}` is out of range: {}", self.key, quote(shown).trim_matches('`')),
            format!("write {}", one_of(kinds.map(Kind::wanted))),
        );
        None
    }

    /// The candidate that was most likely meant, if anybody is still to be told.
    pub(crate) fn near<'a>(
        &self,
        word: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> Option<&'a str> {
        if self.desk.is_full() { None } else { nearest(word, candidates) }
    }

    /// The string, if it is one; no complaint.
    pub(crate) fn as_text(&self) -> Option<&'t str> {
        self.value.get_ref().as_str()
    }

    /// A string; empty only where that makes sense.
    pub(crate) fn text(&self) -> Option<&'t str> {
        let text = self.as_text().or_else(|| self.complain_of_kind())?;
        let may_be_empty =
            self.kind.alternatives().iter().any(|kind| matches!(kind, Kind::AnyText));
        if text.trim().is_empty() && !may_be_empty {
            self.complain(
                format!("`{}` is empty", self.key),
                format!("write {}", self.kind.wanted()),
            );
            return None;
        }
        if text.contains('\0') {
            self.complain(format!("`{}` contains a NUL character", self.key), "leave it out");
            return None;
        }
        Some(text)
    }

    /// Text in a small language: `parse` says what is wrong with it and what to write instead.
    pub(crate) fn parsed<T>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, words::Fault>,
    ) -> Option<T> {
        let text = self.text()?;
        parse(text).map_err(|fault| self.complain(fault.message, fault.help)).ok()
    }

    pub(crate) fn switch(&self) -> Option<bool> {
        self.as_switch().or_else(|| self.complain_of_kind())
    }

    /// True or false, if it is one of them; no complaint.
    pub(crate) fn as_switch(&self) -> Option<bool> {
        self.value.get_ref().as_bool()
    }

    /// A number as it is written, whole or not; no complaint.
    pub(crate) fn as_digits(&self) -> Option<String> {
        let value = self.value.get_ref();
        let whole = value.as_integer();
        let whole = whole.map(|n| i64::from_str_radix(n.as_str(), n.radix()).ok());
        match whole {
            Some(whole) => whole.map(|n| n.to_string()),
            None => value.as_float().map(|n| n.as_str().to_owned()),
        }
    }

    /// A number in the range of its kind.
    pub(crate) fn number(&self) -> Option<f64> {
        let value = self.value.get_ref();
        if value.as_integer().is_none() && value.as_float().is_none() {
            return self.complain_of_kind();
        }
        let Some(number) = self.as_digits().and_then(|digits| digits.parse::<f64>().ok()) else {
            return self.complain_of_range();
        };
        let kinds = self.kind.alternatives();
        if number.is_finite() && kinds.iter().any(|kind| kind.holds(number)) {
            return Some(number);
        }
        if kinds.iter().any(Kind::is_share) && (2.0..=100.0).contains(&number) {
            self.complain(
                format!("`{}` is out of range: {number}", self.key),
                format!("a share is at most 1: for {number} % write {}", words::share(number)),
            );
            return None;
        }
        self.complain_of_range()
    }

    /// A whole number in the range of its kind.
    pub(crate) fn count(&self) -> Option<u64> {
        let Some(digits) = self.value.get_ref().as_integer() else {
            return self.complain_of_kind();
        };
        let count = u64::from_str_radix(digits.as_str(), digits.radix()).ok();
        let fits = |count: &u64| self.kind.alternatives().iter().any(|kind| kind.counts(*count));
        count.filter(fits).or_else(|| self.complain_of_range())
    }

    pub(crate) fn duration(&self) -> Option<Duration> {
        let duration = self.parsed(words::duration)?;
        let zero_is_fine = self
            .kind
            .alternatives()
            .iter()
            .any(|kind| matches!(kind, Kind::Duration { zero: true }));
        if duration.is_zero() && !zero_is_fine {
            self.complain(
                format!("`{}` cannot be zero", self.key),
                "write a duration, like \"5s\"",
            );
            return None;
        }
        Some(duration)
    }

    pub(crate) fn size(&self) -> Option<u64> {
        let size = self.parsed(words::size)?;
        for kind in self.kind.alternatives() {
            if let Kind::Size { min, max } = kind
                && !(*min..=*max).contains(&size)
            {
                let range = match *max {
                    u64::MAX => format!("{} or more", units::show_size(*min)),
                    max => format!("{} to {}", units::show_size(*min), units::show_size(max)),
                };
                self.complain(
                    format!("`{}` is out of range: {}", self.key, units::show_size(size)),
                    format!("write a size of {range}"),
                );
                return None;
            }
        }
        Some(size)
    }

    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.parsed(words::ip)
    }

    pub(crate) fn listen(&self) -> Option<SocketAddr> {
        self.parsed(words::listen)
    }

    pub(crate) fn network(&self) -> Option<Network> {
        self.parsed(words::network)
    }

    /// One of the words of its kind.
    pub(crate) fn word(&self) -> Option<&'static str> {
        let text = self.text()?;
        let words = || self.kind.alternatives().iter().filter_map(Kind::of_words).flatten();
        let found = words().copied().find(|word| *word == text);
        if found.is_none() {
            let help = match self.near(text, words().copied()) {
                Some(word) => format!("write \"{word}\""),
                None => format!("write {}", self.kind.wanted()),
            };
            self.complain(format!("`{}` cannot be {}", self.key, quote(text)), help);
        }
        found
    }

    /// A program and its arguments.
    pub(crate) fn command(&self) -> Option<Command> {
        let Some(array) = self.value.get_ref().as_array() else {
            if self.as_text().is_none() {
                return self.complain_of_kind();
            }
            return self.parsed(words::command);
        };
        let words: Vec<Option<&str>> = array
            .iter()
            .map(|value| Item { value, kind: &Kind::AnyText, ..*self }.text())
            .collect();
        let words = words.into_iter().collect::<Option<Vec<&str>>>()?;
        if words.first().is_none_or(|program| program.trim().is_empty()) {
            self.complain(
                format!("`{}` names no program", self.key),
                "write it first, like [\"/usr/bin/api\", \"--port\", \"3000\"]",
            );
            return None;
        }
        Some(Command(words.into_iter().map(str::to_owned).collect()))
    }

    /// The items of a list.
    pub(crate) fn list(&self) -> Option<Vec<Item<'t>>> {
        let Some(array) = self.value.get_ref().as_array() else { return self.complain_of_kind() };
        let kind = self.kind.alternatives().iter().find_map(Kind::of_items)?;
        Some(array.iter().map(|value| Item { value, kind, ..*self }).collect())
    }

    /// The items of a list that holds at least one.
    pub(crate) fn some_list(&self) -> Option<Vec<Item<'t>>> {
        let list = self.list()?;
        if list.is_empty() {
            self.complain(
                format!("`{}` is an empty list", self.key),
                "name at least one, or leave the key out",
            );
            return None;
        }
        Some(list)
    }

    /// The items of a list that is not empty, each read by `read`; nothing may stand there twice.
    pub(crate) fn distinct<T>(&self, read: impl Fn(&Item<'t>) -> Option<T>) -> Option<Vec<T>> {
        let mut seen: BTreeMap<&str, Span> = BTreeMap::new();
        let mut all = Some(Vec::new());
        for item in self.some_list()? {
            if let Some(text) = item.as_text()
                && let Some(first) = seen.insert(text, item.span())
            {
                self.desk.complain_with(
                    item.span(),
                    format!("{} is listed twice in `{}`", quote(text), self.key),
                    "take one of the two out",
                    Some((first, "here first".to_owned())),
                );
            }
            let value = read(&item);
            all = all.zip(value).map(|(mut all, value)| {
                all.push(value);
                all
            });
        }
        all
    }

    pub(crate) fn is_list(&self) -> bool {
        self.value.get_ref().as_array().is_some()
    }

    /// A table with the keys of its kind's shape.
    pub(crate) fn section(&self) -> Option<Section<'t>> {
        let Some(table) = self.value.get_ref().as_table() else { return self.complain_of_kind() };
        let shape = self.kind.alternatives().iter().find_map(Kind::of_table)?;
        Some(Section::open(self.desk, self.names, shape, None, table, self.span()))
    }

    /// The entries of a table whose keys are free.
    pub(crate) fn entries(&self) -> Option<Vec<(&'t Spanned<DeString<'t>>, Item<'t>)>> {
        let Some(table) = self.value.get_ref().as_table() else { return self.complain_of_kind() };
        let kind = self.kind.alternatives().iter().find_map(Kind::of_entries)?;
        Some(
            table
                .iter()
                .map(|(key, value)| (key, Item { value, kind, key: key.get_ref(), ..*self }))
                .collect(),
        )
    }

    /// The name of a node of this file.
    pub(crate) fn node_name(&self) -> Option<String> {
        let name = self.text()?;
        if self.names.nodes.contains(name) {
            return Some(name.to_owned());
        }
        let near = self.near(name, self.names.nodes.iter().map(String::as_str));
        let help = match near {
            Some(node) => format!("write \"{node}\""),
            None if self.names.nodes.is_empty() => {
                "name the machines first, in sections [node.NAME]".to_owned()
            }
            None => format!("name one of {}", listed(self.names.nodes.iter().map(String::as_str))),
        };
        self.desk.complain_of_absence(
            self.span(),
            format!("there is no node {}", quote(name)),
            help,
        );
        None
    }

    /// Another part of this file.
    pub(crate) fn part(&self) -> Option<PartRef> {
        let kinds = self.kind.alternatives().iter().find_map(Kind::of_parts)?;
        let text = self.text()?;
        let words = || kinds.iter().map(|kind| kind.word());
        let Some((word, name)) = text.split_once('.') else {
            let known = kinds.iter().find(|&&kind| self.names.has(kind, text));
            let help = match known {
                Some(kind) => format!("write \"{}.{text}\"", kind.word()),
                None => {
                    format!("write the section and the name, like \"{}.NAME\"", kinds[0].word())
                }
            };
            self.complain(format!("{} does not say which section it is in", quote(text)), help);
            return None;
        };
        let Some(kind) = kinds.iter().copied().find(|kind| kind.word() == word) else {
            let help = match self.near(word, words()) {
                Some(near) => format!("write \"{near}.{}\"", quote(name).trim_matches('`')),
                None => format!("name a part in one of {}", listed(words())),
            };
            self.complain(
                format!("`{}` cannot name a part in section {}", self.key, quote(word)),
                help,
            );
            return None;
        };
        let known = self.names.of(kind);
        if self.names.has(kind, name) {
            return Some(PartRef { kind, name: name.to_owned() });
        }
        let elsewhere = kinds.iter().find(|&&other| self.names.has(other, name));
        let help = match (self.near(name, known.clone()), elsewhere) {
            (_, Some(other)) => format!("write \"{}.{name}\"", other.word()),
            (Some(near), None) => format!("write \"{word}.{near}\""),
            (None, None) if known.clone().next().is_none() => {
                format!("define it in a section [{word}.{}]", quote(name).trim_matches('`'))
            }
            (None, None) => format!("name one of {}", listed(known)),
        };
        self.desk.complain_of_absence(
            self.span(),
            format!("there is no {word} {}", quote(name)),
            help,
        );
        None
    }
}
