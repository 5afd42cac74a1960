//! Complains of text that is not TOML, in words for the person who wrote it.

use toml::de::{DeTable, DeValue, Error};

use super::complaint::quote;
use super::desk::{Desk, Span};

/// What the parser says, what we say, and what to write instead.
const SAYINGS: [(&str, &str, &str); 17] = [
    ("duplicate key", "", "keep one of the two"),
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
        "write a comma before it, or close the list with ]",
    ),
    (
        "missing comma between key-value pairs",
        "two keys of a table run together",
        "write a comma before it, or close the table with }",
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
    // Of a section that is there twice, each key may be there twice too.
    let mut duplicate_section_end = 0;
    for error in errors {
        let span = error.span().unwrap_or_default();
        let scalar = scalar_at(&scalars, &span);
        if error.message().starts_with("duplicate key") {
            if span.start < duplicate_section_end {
                continue;
            }
            duplicate_section_end = end_of_section(desk.text(), span.start);
        } else if scalar.as_ref().is_none_or(|scalar| is_key_and_value(desk.text(), scalar)) {
            desk.incomplete = true;
        }
        if desk.garbled(span.start) {
            complain_of(desk, span, scalar, error.message());
        }
    }
}

fn complain_of(desk: &Desk<'_>, span: Span, scalar: Option<Span>, parsed: &str) {
    let text_at = |span: Span| desk.text().get(span).unwrap_or_default();
    if let Some(scalar) = scalar
        && !text_at(scalar.clone()).starts_with(['"', '\''])
    {
        return complain_of_value(desk, scalar);
    }
    match SAYINGS.iter().find(|(prefix, ..)| parsed.starts_with(prefix)) {
        Some(("duplicate key", _, help)) => {
            let key = quote(text_at(span.clone()));
            desk.complain_of_syntax(span, format!("{key} is written twice"), help);
        }
        Some((_, message, help)) => desk.complain_of_syntax(span, message, help),
        None => {
            let (what, wanted) = parsed.split_once(", expected ").unwrap_or((parsed, ""));
            let help = match wanted {
                "" | "nothing" => "take it out, or write it as TOML does".to_owned(),
                wanted => format!("expected {wanted}"),
            };
            desk.complain_of_syntax(span, format!("this is not TOML: {what}"), help);
        }
    }
}

/// Where the section ends whose header is at `place`; `place` itself if there is no header.
fn end_of_section(text: &str, place: usize) -> usize {
    let (before, after) = text.split_at_checked(place).unwrap_or((text, ""));
    let line = before.rsplit('\n').next().unwrap_or_default();
    if !line.trim_start().starts_with('[') {
        return place;
    }
    let lines = after.split_inclusive('\n').scan(place, |at, line| {
        *at += line.len();
        Some((*at - line.len(), line))
    });
    let next = lines.skip(1).find(|(_, line)| line.trim_start().starts_with('['));
    next.map_or(text.len(), |(at, _)| at)
}

/// What stands where a value should, up to the next mark that ends one.
fn word_at(text: &str, place: usize) -> &str {
    let rest = text.get(place..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    rest.split(['#', ',', ']', '}']).next().unwrap_or_default().trim()
}

/// Whether what should be a value reads `key = value`: a list before it is still open.
fn is_key_and_value(text: &str, scalar: &Span) -> bool {
    let word = word_at(text, scalar.start);
    !word.starts_with(['"', '\'']) && word.contains('=')
}

/// A value that is neither a string nor anything else: most often its quotes are missing.
fn complain_of_value(desk: &Desk<'_>, scalar: Span) {
    const WORD_MAX: usize = 60;
    let word = word_at(desk.text(), scalar.start);
    if word.is_empty() {
        return desk.complain_of_syntax(scalar, "a key has no value", "write one behind the =");
    }
    let span = scalar.start..scalar.start + word.len();
    if is_key_and_value(desk.text(), &scalar) {
        desk.complain_of_syntax(span, "a list is not closed before this", "write ] before it");
    } else if word.starts_with('0') && word.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = word.trim_start_matches('0');
        let number = if number.is_empty() { "0" } else { number };
        desk.complain_of_syntax(span, "a number does not begin with 0", format!("write {number}"));
    } else if word.len() <= WORD_MAX && !word.contains(['"', '\'', '\\']) {
        desk.complain_of_syntax(span, "text stands in quotes", format!("write \"{word}\""));
    } else {
        desk.complain_of_syntax(span, "this is no value", "put text in quotes, like \"5s\"");
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

/// Which of the sorted, separate `scalars` the span lies in: then no more than that value is lost.
fn scalar_at(scalars: &[Span], span: &Span) -> Option<Span> {
    let after = scalars.partition_point(|scalar| scalar.start <= span.start);
    let before = after.checked_sub(1).and_then(|at| scalars.get(at));
    before.filter(|scalar| span.end <= scalar.end).cloned()
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
