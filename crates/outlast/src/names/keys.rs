//! The file of TSIG keys, in the form that `tsig-keygen` and `nsupdate -k` write and read:
//!
//! ```text
//! key "admin-key" { algorithm hmac-sha256; secret "…base64…"; };
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outlast_dns::name::Name;
use outlast_dns::{Algorithm, TsigKey};

/// Bytes of a file of keys.
const FILE_MAX: u64 = 1 << 20;

/// The keys of a file, by their names.
pub(crate) fn load(path: &Path) -> anyhow::Result<BTreeMap<Name, TsigKey>> {
    let shown = path.display();
    let length = std::fs::metadata(path).with_context(|| format!("read {shown}"))?.len();
    ensure!(
        length <= FILE_MAX,
        "{shown} has {length} bytes; a file of keys has at most {FILE_MAX}"
    );
    let text = std::fs::read_to_string(path).with_context(|| format!("read {shown}"))?;
    read(&text).with_context(|| {
        format!("understand {shown}; write keys as `tsig-keygen NAME` prints them")
    })
}

fn read(text: &str) -> anyhow::Result<BTreeMap<Name, TsigKey>> {
    let mut words = words(text).into_iter();
    let mut keys = BTreeMap::new();
    while let Some(word) = words.next() {
        if word == ";" {
            continue;
        }
        ensure!(word == "key", "`{word}` stands where `key` should");
        let name = words.next().context("a key without a name")?;
        let name: Name = name.parse().with_context(|| format!("the name of key `{name}`"))?;
        ensure!(words.next().as_deref() == Some("{"), "no {{ after the name of key `{name}`");
        let (mut algorithm, mut secret) = (None, None);
        loop {
            match words.next().as_deref() {
                Some("algorithm") => algorithm = words.next(),
                Some("secret") => secret = words.next(),
                Some(";") => {}
                Some("}") => break,
                Some(other) => bail!("`{other}` in key `{name}`"),
                None => bail!("key `{name}` has no end"),
            }
        }
        let algorithm = algorithm.with_context(|| format!("key `{name}` has no algorithm"))?;
        let algorithm = match algorithm.to_ascii_lowercase().trim_end_matches('.') {
            "hmac-sha1" => Algorithm::Sha1,
            "hmac-sha256" => Algorithm::Sha256,
            "hmac-sha384" => Algorithm::Sha384,
            "hmac-sha512" => Algorithm::Sha512,
            other => bail!("key `{name}` has the algorithm `{other}`; use hmac-sha256"),
        };
        let secret = secret.with_context(|| format!("key `{name}` has no secret"))?;
        let secret = STANDARD
            .decode(&secret)
            .with_context(|| format!("the secret of key `{name}` is not base64"))?;
        ensure!(!secret.is_empty(), "the secret of key `{name}` is empty");
        let key = TsigKey::new(&name, algorithm, &secret)?;
        ensure!(keys.insert(name.clone(), key).is_none(), "key `{name}` stands there twice");
    }
    Ok(keys)
}

/// Words, and each of `{`, `}` and `;` as one; comments are left out.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let mut quoted = false;
    for line in text.lines() {
        let mut letters = line.chars().peekable();
        while let Some(letter) = letters.next() {
            let comment = letter == '#' || (letter == '/' && letters.peek() == Some(&'/'));
            match letter {
                '"' => quoted = !quoted,
                _ if quoted => word.push(letter),
                _ if comment => break,
                '{' | '}' | ';' => {
                    words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                    words.push(letter.to_string());
                }
                _ if letter.is_whitespace() => {
                    words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                }
                _ => word.push(letter),
            }
        }
        words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_tsig_keygen_writes_them() {
        let text = "# comment\nkey \"admin-key\" {\n\talgorithm hmac-sha256;\n\tsecret \"c2VjcmV0LWtleS1vZi0zMi1ieXRlcy1pbi1hbGw=\";\n};\n\
                    key other { algorithm HMAC-SHA512.; secret c2VjcmV0LWtleS1vZi0zMi1ieXRlcy1pbi1hbGw=; }; // end\n";
        let keys = read(text).unwrap();
        let names: Vec<String> = keys.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["admin-key.", "other."]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, wanted) in [
            ("zone x {};", "`zone` stands where `key` should"),
            ("key a { algorithm hmac-sha256; };", "has no secret"),
            ("key a { secret \"AAAA\"; };", "has no algorithm"),
            ("key a { algorithm hmac-md5; secret \"AAAA\"; };", "use hmac-sha256"),
            ("key a { algorithm hmac-sha256; secret \"A?\"; };", "not base64"),
            ("key a { algorithm hmac-sha256; secret \"AAAA\";", "has no end"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
