//! JSON values as YAML in block style.
//!
//! A string stands plain only when no YAML reader, 1.1 or 1.2, can take it for anything else; every other is quoted.

use serde_json::Value;

/// What YAML 1.1 takes for a truth value or nothing, in lower case.
const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];

/// One document, without `---`, ending in a new line.
pub(super) fn to_yaml(value: &Value) -> String {
    lines(value).join("\n") + "\n"
}

fn lines(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().flat_map(|(key, value)| entry(&scalar(key), value)).collect()
        }
        Value::Array(items) if !items.is_empty() => items.iter().flat_map(item).collect(),
        Value::String(text) => vec![scalar(text)],
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            vec![value.to_string()]
        }
    }
}

/// `key: scalar`, or `key:` and what is in it below.
fn entry(key: &str, value: &Value) -> Vec<String> {
    let inner = lines(value);
    match inner.as_slice() {
        [only] if !is_block(value) => vec![format!("{key}: {only}")],
        _ => {
            [format!("{key}:")].into_iter().chain(inner.iter().map(|l| format!("  {l}"))).collect()
        }
    }
}

/// `- ` and what is in it beside.
fn item(value: &Value) -> Vec<String> {
    let marks = ["- "].into_iter().chain(std::iter::repeat("  "));
    marks.zip(lines(value)).map(|(mark, line)| format!("{mark}{line}")).collect()
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// A string, plain if that is safe, else in double quotes.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { quoted(text) }
}

/// The escapes are those that JSON and YAML share, so that the text is a JSON string too.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // Not printable in YAML, or taken for the end of a line or of the encoding's mark.
            '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}
