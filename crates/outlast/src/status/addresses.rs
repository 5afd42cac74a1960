//! The part of `outlast status` that is about addresses that move.

use std::collections::BTreeMap;

use outlast::agent::face::address_status::AddressStatus;

use crate::output::{Ink, Paint, plain};

/// Who holds each address, and why this node cannot if it cannot.
pub(super) fn block(all: &BTreeMap<String, AddressStatus>, ink: Ink) -> String {
    let mut text = format!("{}\n", ink.on(Paint::Bold, "addresses"));
    for (name, address) in all {
        let ips = plain(&address.ips.join(", "));
        let held = match &address.holder {
            Some(holder) if address.here => format!("held by {}, here", plain(holder)),
            Some(holder) => format!("held by {}", plain(holder)),
            None => ink.on(Paint::Yellow, "nobody holds it"),
        };
        let why = address.why.as_ref().map(|why| format!(": {}", plain(why))).unwrap_or_default();
        text += &format!("  {}  {ips}  {held} under epoch {}{why}\n", plain(name), address.epoch);
        if let Some(unagreed) = &address.unagreed {
            text += &format!("    {}\n", ink.on(Paint::Yellow, &plain(unagreed)));
        }
        if let Some(trouble) = &address.trouble {
            let trouble = format!("this node: {}", plain(trouble));
            text += &format!("    {}\n", ink.on(Paint::Yellow, &trouble));
        }
    }
    text
}
