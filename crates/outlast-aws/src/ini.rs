//! The files `~/.aws/config` and `~/.aws/credentials`.

use std::collections::BTreeMap;

/// Sections of a file, each with its keys; keys in small letters.
pub(crate) type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// Reads a file as AWS's own tools do: a comment begins with `#` or `;` at a line's beginning or after a blank; what is further
/// in than its key belongs to that key and is passed over. A section that comes again goes on.
pub(crate) fn read(text: &str) -> Sections {
    let mut sections = Sections::new();
    let mut current = None;
    for line in text.lines() {
        let is_inner = line.starts_with([' ', '\t']);
        let line = without_comment(line);
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest.split(']').next().unwrap_or_default();
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(name.clone()).or_default();
            current = Some(name);
        } else if let (false, Some((key, value)), Some(name)) =
            (is_inner, line.split_once('='), &current)
        {
            let section = sections.entry(name.clone()).or_default();
            section.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    sections
}

fn without_comment(line: &str) -> &str {
    let starts = [" #", " ;", "\t#", "\t;"];
    let line = line.trim_end();
    if line.trim_start().starts_with(['#', ';']) {
        return "";
    }
    let end = starts.iter().filter_map(|start| line.find(start)).min().unwrap_or(line.len());
    line[..end].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_keys_and_comments_are_told_apart() {
        let text = "# all\n[default]\naws_access_key_id = A=1 ; mine\n[profile  prod]\nRegion=eu-west-1\n\
            s3 =\n  region = inner\n[default]\naws_secret_access_key=x#y\nnothing\n";
        let sections = read(text);
        let get = |section: &str, key: &str| sections[section].get(key).map(String::as_str);
        assert_eq!(get("default", "aws_access_key_id"), Some("A=1"));
        assert_eq!(get("default", "aws_secret_access_key"), Some("x#y"));
        assert_eq!(get("profile prod", "region"), Some("eu-west-1"));
    }
}
