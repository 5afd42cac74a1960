//! Reads other name servers that a zone's records are kept in.

use std::collections::BTreeMap;

use outlast_core::topology::Elsewhere;

use crate::file::desk::Span;
use crate::file::item::Item;
use crate::file::section::Section;
use crate::file::words;

pub(super) fn list(item: &Item<'_>) -> Option<Vec<Elsewhere>> {
    let mut seen: BTreeMap<Elsewhere, Span> = BTreeMap::new();
    let mut all = Some(Vec::new());
    for item in item.some_list()? {
        let read = item.section().and_then(|section| one(&section));
        if let Some(one) = &read
            && let Some(first) = seen.insert(one.clone(), item.span())
        {
            item.desk.complain_with(
                item.span(),
                format!("{one} is listed twice in `elsewhere`"),
                "take one of the two out",
                Some((first, "here first".to_owned())),
            );
        }
        all = all.zip(read).map(|(mut all, one)| {
            all.push(one);
            all
        });
    }
    all
}

fn one(section: &Section<'_>) -> Option<Elsewhere> {
    match (section.has("rfc2136"), section.has("route53")) {
        (true, true) => {
            section.refuse(
                &["route53"],
                "cannot stand beside `rfc2136`",
                "write it as another table",
            );
            None
        }
        (true, false) => {
            let server = section.item("rfc2136").and_then(|item| item.parsed(words::name_server));
            let Some(key) = section.item("key") else {
                section.complain_of_missing("key");
                return None;
            };
            let key = key.parsed(words::domain)?;
            Some(Elsewhere::Rfc2136 { server: server?, key })
        }
        (false, true) => {
            section.refuse(
                &["key"],
                "goes with `rfc2136`",
                "take it out; credentials for AWS come from where its own tools look for them",
            );
            section.item("route53")?.parsed(words::hosted_zone).map(Elsewhere::Route53)
        }
        (false, false) => {
            section.complain_of_none(
                &["rfc2136", "route53"],
                "this does not say where",
                "write { rfc2136 = \"192.0.2.53\", key = \"admin-key\" } or { route53 = \"Z1234567890ABC\" }",
            );
            None
        }
    }
}

/// Updates are signed, and the key's secret lies in a file.
pub(super) fn complain_of_no_keys(section: &Section<'_>) {
    let list = section.item("elsewhere").filter(Item::is_list).and_then(|item| item.list());
    for item in list.unwrap_or_default() {
        let key = item.value.get_ref().as_table().and_then(|table| table.get("key"));
        if let Some(key) = key {
            section.desk.complain(
                key.span(),
                "`key` needs `keys`",
                "name the file of keys in the zone, too: keys = \"/etc/outlast/tsig.keys\"",
            );
        }
    }
}
