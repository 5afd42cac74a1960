//! One table of the file, read by its shape: unknown and missing keys, defaults, typed values.

use std::cell::RefCell;
use std::fmt::Display;
use std::time::Duration;

use outlast_core::topology::{PartRef, Reliability};
use outlast_core::units;
use toml::Spanned;
use toml::de::{DeString, DeTable};

use super::complaint::quote;
use super::desk::{Desk, Span};
use super::item::Item;
use super::names::{Names, listed};
use super::shape::{Absent, Key, Kind, Literal, Shape, nearest};
use super::words;

/// A table with the keys of a shape; without a table, all its defaults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section<'t> {
    pub(crate) desk: &'t Desk<'t>,
    pub(crate) names: &'t Names,
    pub(crate) shape: &'static Shape,
    pub(crate) table: Option<&'t DeTable<'t>>,
    /// Of `[service.web]` the `web`.
    name: Option<&'t str>,
    start: usize,
    end: usize,
}

impl<'t> Section<'t> {
    /// Opens a table; complains of keys that it must not have and of keys that it lacks.
    pub(crate) fn open(
        desk: &'t Desk<'t>,
        names: &'t Names,
        shape: &'static Shape,
        name: Option<&'t str>,
        table: &'t DeTable<'t>,
        span: Span,
    ) -> Section<'t> {
        let section = Section {
            desk,
            names,
            shape,
            table: Some(table),
            name,
            start: span.start,
            end: span.end,
        };
        section.complain_of_unknown_keys();
        section.complain_of_missing_keys();
        section
    }

    /// The table that nobody wrote: everything in it is at its default.
    pub(crate) fn absent(&self, shape: &'static Shape) -> Section<'t> {
        Section { shape, table: None, name: None, ..*self }
    }

    /// Where it is: of `[service.web]` its header.
    pub(crate) fn span(&self) -> Span {
        self.start..self.end
    }

    /// What it is called in messages: `[service.web]`, or an inner table by its key.
    fn title(&self) -> String {
        let title = self.shape.title;
        match self.name {
            Some(name) => {
                title.replace("NAME", &quote(name)).replace("ZONE", &quote(name)).replace('`', "")
            }
            None if title.starts_with('[') => title.to_owned(),
            None => format!("`{}`", title.rsplit('.').next().unwrap_or(title)),
        }
    }

    fn unknown_keys(&self) -> impl Iterator<Item = &'t Spanned<DeString<'t>>> {
        let shape = self.shape;
        let keys = self.table.into_iter().flat_map(DeTable::keys);
        keys.filter(move |key| shape.key(key.get_ref()).is_none())
    }

    fn complain_of_unknown_keys(&self) {
        for key in self.unknown_keys() {
            let help =
                if self.desk.is_full() { String::new() } else { self.suggest(key.get_ref()) };
            let message = match self.shape.is_file() {
                true => format!("there is no section {}", quote(key.get_ref())),
                false => format!("{} has no key {}", self.title(), quote(key.get_ref())),
            };
            self.desk.complain_of_absence(key.span(), message, help);
        }
    }

    /// The key of this table that was probably meant by one that does not exist.
    fn meant(&self, word: &str) -> Option<&'static str> {
        let keys = self.shape.keys;
        let translated = keys.iter().find(|key| key.elsewhere.contains(&word));
        let near = || nearest(word, keys.iter().map(|key| key.name));
        translated.map(|key| key.name).or_else(near)
    }

    /// Whether one of our keys is called like that elsewhere.
    fn is_translated(&self, word: &str) -> bool {
        self.shape.keys.iter().any(|key| key.elsewhere.contains(&word))
    }

    /// Whether a missing key was probably written in another way: that is complained of already.
    pub(crate) fn is_misspelt(&self, name: &str) -> bool {
        /// Nobody writes so many by mistake.
        const LOOKED_AT_MAX: usize = 100;
        self.unknown_keys().take(LOOKED_AT_MAX).any(|key| self.meant(key.get_ref()) == Some(name))
    }

    /// What to write instead of a key that does not exist.
    fn suggest(&self, word: &str) -> String {
        const LISTED_MAX: usize = 12;
        let keys = self.shape.keys;
        let deeper = keys.iter().find_map(|key| {
            let inner = key.kind.alternatives().iter().find_map(Kind::of_table)?;
            let inner_key = inner.keys.iter().find(|inner_key| inner_key.name == word)?;
            Some((key.name, inner_key.name))
        });
        match (deeper, self.meant(word)) {
            (_, Some(name)) if self.shape.is_file() => format!("write `{name}`"),
            (_, Some(name)) if self.is_translated(word) => format!("write `{name}`"),
            (Some((section, inner)), _) if self.shape.is_file() => {
                format!("write `{inner}` below [{section}]")
            }
            (Some((outer, inner)), _) => format!("write it as `{outer} = {{ {inner} = … }}`"),
            (None, Some(name)) => format!("write `{name}`"),
            (None, None) if keys.len() <= LISTED_MAX => {
                format!("its keys are {}", listed(keys.iter().map(|key| key.name)))
            }
            (None, None) => "take it out; `outlast schema` lists all that there is".to_owned(),
        }
    }

    fn complain_of_missing_keys(&self) {
        for key in self.shape.keys {
            if matches!(key.absent, Absent::Missing) && !self.has(key.name) {
                self.complain_of_missing(key.name);
            }
        }
    }

    /// Complains that a key is needed here.
    pub(crate) fn complain_of_missing(&self, name: &'static str) {
        if !self.is_misspelt(name) {
            self.desk.complain_of_absence(
                self.span(),
                format!("`{name}` is missing in {}", self.title()),
                format!("add `{name}`: {}", self.key(name).kind.wanted()),
            );
        }
    }

    /// Complains that none of several keys is there, each of which would do.
    pub(crate) fn complain_of_none(
        &self,
        names: &[&'static str],
        message: impl Display,
        help: impl Display,
    ) {
        if !names.iter().any(|name| self.is_misspelt(name)) {
            self.desk.complain_of_absence(self.span(), message, help);
        }
    }

    fn key(&self, name: &'static str) -> &'static Key {
        self.shape.key(name).expect("readers ask for keys of the shape")
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(name))
    }

    /// The value of a key, if it is there.
    pub(crate) fn item(&self, name: &'static str) -> Option<Item<'t>> {
        let key = self.key(name);
        let value = self.table?.get(name)?;
        Some(Item { desk: self.desk, names: self.names, value, key: key.name, kind: &key.kind })
    }

    /// The place of a key's value; of the table if the key is not there.
    pub(crate) fn span_of(&self, name: &'static str) -> Span {
        self.item(name).map_or(self.span(), |item| item.span())
    }

    /// The place of a key itself.
    pub(crate) fn span_of_key(&self, name: &'static str) -> Span {
        let entry = self.table.and_then(|table| table.get_key_value(name));
        entry.map_or(self.span(), |(key, _)| key.span())
    }

    /// Complains of keys that make no sense here.
    pub(crate) fn refuse(&self, names: &[&'static str], why: impl Display, help: impl Display) {
        for &name in names {
            if self.has(name) {
                self.desk.complain(self.span_of_key(name), format!("`{name}` {why}"), &help);
            }
        }
    }

    fn default(&self, name: &'static str) -> Option<Literal> {
        match self.key(name).absent {
            Absent::Default(literal) => Some(literal),
            Absent::Missing | Absent::Fine => None,
        }
    }

    fn default_text(&self, name: &'static str) -> Option<&'static str> {
        if let Some(Literal::Text(text)) = self.default(name) { Some(text) } else { None }
    }

    pub(crate) fn text(&self, name: &'static str) -> Option<String> {
        let text = match self.item(name) {
            Some(item) => item.text()?,
            None => self.default_text(name)?,
        };
        Some(text.to_owned())
    }

    pub(crate) fn word(&self, name: &'static str) -> Option<&'static str> {
        match self.item(name) {
            Some(item) => item.word(),
            None => self.default_text(name),
        }
    }

    pub(crate) fn duration(&self, name: &'static str) -> Option<Duration> {
        match self.item(name) {
            Some(item) => item.duration(),
            None => units::parse_duration(self.default_text(name)?).ok(),
        }
    }

    pub(crate) fn size(&self, name: &'static str) -> Option<u64> {
        match self.item(name) {
            Some(item) => item.size(),
            None => units::parse_size(self.default_text(name)?).ok(),
        }
    }

    /// A whole number; the shape's range makes it fit `T`.
    pub(crate) fn count<T: TryFrom<u64>>(&self, name: &'static str) -> Option<T> {
        let count = match self.item(name) {
            Some(item) => item.count()?,
            None => match self.default(name)? {
                Literal::Count(count) => count,
                Literal::Text(_) | Literal::Number(_) | Literal::Switch(_) => return None,
            },
        };
        T::try_from(count).ok()
    }

    pub(crate) fn number(&self, name: &'static str) -> Option<f64> {
        match self.item(name) {
            Some(item) => item.number(),
            None => match self.default(name)? {
                Literal::Number(number) => Some(number),
                Literal::Text(_) | Literal::Count(_) | Literal::Switch(_) => None,
            },
        }
    }

    pub(crate) fn switch(&self, name: &'static str) -> Option<bool> {
        match self.item(name) {
            Some(item) => item.switch(),
            None => match self.default(name)? {
                Literal::Switch(switch) => Some(switch),
                Literal::Text(_) | Literal::Count(_) | Literal::Number(_) => None,
            },
        }
    }

    /// A key without a default, read by `read`: `Some(None)` if it is absent, `None` if it is wrong.
    pub(crate) fn optional<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(Item<'t>) -> Option<T>,
    ) -> Option<Option<T>> {
        match self.item(name) {
            Some(item) => read(item).map(Some),
            None => Some(None),
        }
    }

    /// An inner table; all its defaults if it is absent.
    pub(crate) fn inner(&self, name: &'static str, shape: &'static Shape) -> Option<Section<'t>> {
        match self.item(name) {
            Some(item) => item.section(),
            None => Some(self.absent(shape)),
        }
    }

    /// The nodes of a part: those named, else all.
    pub(crate) fn nodes(&self) -> Option<Vec<String>> {
        match self.item("nodes") {
            Some(item) => item.distinct(Item::node_name),
            None => Some(self.names.nodes.iter().cloned().collect()),
        }
    }

    /// Parts that are named in a list: those that are there, and whether all are.
    pub(crate) fn parts(&self, name: &'static str) -> (Vec<(PartRef, Span)>, bool) {
        let good = RefCell::new(Vec::new());
        let all = self.optional(name, |item| {
            item.distinct(|item| {
                good.borrow_mut().push((item.part()?, item.span()));
                Some(())
            })
        });
        (good.into_inner(), all.is_some())
    }

    /// `availability`, or `mtbf` and `mttr`, or nothing.
    pub(crate) fn reliability(&self) -> Option<Option<Reliability>> {
        let availability = self.optional("availability", |item| item.number());
        let mtbf = self.optional("mtbf", |item| item.duration());
        let mttr = self.optional("mttr", |item| item.duration());
        if self.has("availability") {
            self.refuse(
                &["mtbf", "mttr"],
                "cannot stand beside `availability`",
                "keep either `availability` or both `mtbf` and `mttr`",
            );
        } else if self.has("mtbf") != self.has("mttr") {
            let (there, lacking) =
                if self.has("mtbf") { ("mtbf", "mttr") } else { ("mttr", "mtbf") };
            if !self.is_misspelt(lacking) {
                self.desk.complain_of_absence(
                    self.span_of_key(there),
                    format!("`{there}` needs `{lacking}`"),
                    format!(
                        "add it, like {lacking} = \"{}\"",
                        if lacking == "mttr" { "1h" } else { "90d" }
                    ),
                );
            }
        }
        match (availability?, mtbf?, mttr?) {
            (Some(share), None, None) => Some(Some(Reliability::Availability(share))),
            (None, Some(mtbf), Some(mttr)) => Some(Some(Reliability::Mtbf { mtbf, mttr })),
            (None, None, None) => Some(None),
            (Some(_), ..) | (None, Some(_), None) | (None, None, Some(_)) => None,
        }
    }

    /// An absolute path.
    pub(crate) fn absolute_path(&self, name: &'static str) -> Option<Option<String>> {
        self.optional(name, |item| item.parsed(words::absolute_path))
    }
}
