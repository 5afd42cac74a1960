//! Complains of text that is not TOML, in words for the person who wrote it.

use toml::de::{DeTable, DeValue, Error};

use super::complaint::quote;
use super::desk::{Desk, Span};

/// What the parser says, what we say, and what to write instead.
const SAYINGS: [(&str, &str, &str); 18] = [
    ("duplicate key", "", "keep one of the two"),
    ("string values must be quoted", "this is no value", "put text in quotes, like \"5s\""),
    ("unclosed table", "a section's header is not closed", "write ] at its end"),
    ("unclosed array table", "a section's header is not closed", "write ]] at its end"),
    ("unclosed inline table", "a table in braces is not closed", "write } at its end"),
    ("unclosed array", "a list is not closed", "write ] at its end"),
    (
        "invalid basic string",
        "a string is not closed or has a character that it must not have",
        "close it with \"",
    ),
    (
        "missing comma between array elements",
        "two values of a list run together",
        "write a comma between them",
    ),
    (
        "missing comma between key-value pairs",
        "two keys of a table run together",
        "write a comma between them",
    ),
    ("extra comma", "there is a comma too many", "take it out"),
    ("key with no value", "a key has no value", "write it as `key = value`"),
    ("missing assignment", "a key has no value", "write it as `key = value`"),
    ("missing value", "a key has no value", "write one behind the ="),
    ("unquoted keys cannot be empty", "a key is missing before the =", "write its name"),
    (
        "unexpected key or value",
        "something stands behind the value",
        "begin a new line for it, or take it out",
    ),
    ("missing escaped value", "this backslash means nothing", "double it, or put the text in '…'"),
    ("recursion limit", "tables are nested too deeply", "no key of this file is that deep"),
    ("cannot recurse further", "tables are nested too deeply", "no key of this file is that deep"),
];

/// Hands in one complaint for each line with errors, and notes how far the rest of the file can be judged.
pub(super) fn complain(desk: &mut Desk<'_>, root: &DeTable<'_>, mut errors: Vec<Error>) {
    errors.sort_by_key(|error| error.span().map(|span| span.start));
    let mut scalars = Vec::new();
    if !errors.is_empty() {
        collect_scalars(root, &mut scalars);
        scalars.sort_by_key(|span| span.start);
    }
    for error in errors {
        let span = error.span().unwrap_or_default();
        if !error.message().starts_with("duplicate key") && !is_within(&scalars, &span) {
            desk.incomplete = true;
        }
        if desk.garbled(span.start) {
            complain_of(desk, span, error.message());
        }
    }
}

fn complain_of(desk: &Desk<'_>, span: Span, parsed: &str) {
    let there = desk.text().get(span.clone()).unwrap_or_default();
    let line_end =
        desk.text().get(span.start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let saying = SAYINGS.iter().find(|(prefix, ..)| parsed.starts_with(prefix));
    match saying {
        Some(("duplicate key", _, help)) => {
            desk.complain_of_syntax(span, format!("{} is written twice", quote(there)), help);
        }
        Some(("string values must be quoted", ..)) if there.is_empty() => {
            desk.complain_of_syntax(span, "a key has no value", "write one behind the =");
        }
        Some(("string values must be quoted", message, help)) => {
            let word: String =
                line_end.split(['#', ',', ']', '}']).next().unwrap_or_default().trim().into();
            let plain = !word.contains(['"', '\'', '\\']) && word.len() <= 60;
            let help = if plain { format!("write \"{word}\"") } else { (*help).to_owned() };
            desk.complain_of_syntax(span, message, help);
        }
        Some((_, message, help)) => desk.complain_of_syntax(span, message, help),
        None => {
            let (what, wanted) = parsed.split_once(", expected ").unwrap_or((parsed, ""));
            let wanted = if wanted.is_empty() || wanted == "nothing" {
                "take it out, or write it as TOML does".to_owned()
            } else {
                format!("expected {wanted}")
            };
            desk.complain_of_syntax(span, format!("this is not TOML: {what}"), wanted);
        }
    }
}

/// The places of all values that hold no others.
fn collect_scalars(table: &DeTable<'_>, scalars: &mut Vec<Span>) {
    let mut open: Vec<(&DeValue<'_>, Span)> =
        table.values().map(|value| (value.get_ref(), value.span())).collect();
    while let Some((value, span)) = open.pop() {
        match value {
            DeValue::Table(table) => {
                open.extend(table.values().map(|value| (value.get_ref(), value.span())));
            }
            DeValue::Array(array) => {
                open.extend(array.iter().map(|value| (value.get_ref(), value.span())));
            }
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => scalars.push(span),
        }
    }
}

/// Whether the span lies in one of the sorted, separate `scalars`: then no more than that value is lost.
fn is_within(scalars: &[Span], span: &Span) -> bool {
    let after = scalars.partition_point(|scalar| scalar.start <= span.start);
    let before = after.checked_sub(1).and_then(|at| scalars.get(at));
    before.is_some_and(|scalar| span.end <= scalar.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_value_loses_no_more_than_itself() {
        for (text, incomplete) in [
            ("[a]\nx = 5s\n", false),
            ("[a]\nx = \n", false),
            ("[a]\nx = \"y\n", false),
            ("x = 1\nx = 2\n", false),
            ("[a\nx = 1\n", true),
            ("x = [1, 2\ny = 3\n", true),
            ("x = { y = 1\nz = 3\n", true),
        ] {
            let (root, errors) = DeTable::parse_recoverable(text);
            let mut desk = Desk::new(text);
            complain(&mut desk, root.get_ref(), errors);
            assert_eq!(desk.incomplete, incomplete, "{text}");
            assert!(!desk.is_empty(), "{text}");
        }
    }
}
