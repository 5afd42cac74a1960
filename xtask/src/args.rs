//! The words after a verb: flags, options with a value, and the rest.

use std::str::FromStr;

use anyhow::{Context, Result, bail};

#[derive(Debug)]
pub(crate) struct Args {
    words: Vec<String>,
}

impl Args {
    pub(crate) fn new(words: impl Iterator<Item = String>) -> Self {
        Args { words: words.collect() }
    }

    pub(crate) fn asks_for_help(&self) -> bool {
        self.before_dashes().iter().any(|word| word == "--help" || word == "-h")
    }

    /// Takes `--name` if it is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let at = self.before_dashes().iter().position(|word| word == name);
        at.map(|at| self.words.remove(at)).is_some()
    }

    /// Takes `--name VALUE` if it is there.
    pub(crate) fn option<T: FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(at) = self.before_dashes().iter().position(|word| word == name) else {
            return Ok(None);
        };
        self.words.remove(at);
        if at >= self.before_dashes().len() {
            bail!("{name} needs a value");
        }
        let value = self.words.remove(at);
        let parsed = value.parse().ok().with_context(|| format!("{name} cannot be `{value}`"))?;
        Ok(Some(parsed))
    }

    /// Takes `--name` if it is there, with its value if a number stands behind it.
    pub(crate) fn option_or<T: FromStr>(&mut self, name: &str, otherwise: T) -> Result<Option<T>> {
        let at = self.before_dashes().iter().position(|word| word == name);
        let value = at.and_then(|at| self.before_dashes().get(at + 1));
        let has_value = value.is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        if has_value {
            return self.option(name);
        }
        Ok(self.flag(name).then_some(otherwise))
    }

    /// What is left, once all flags and options have been taken.
    pub(crate) fn rest(self) -> Result<Vec<String>> {
        if let Some(word) = self.before_dashes().iter().find(|word| word.starts_with("--")) {
            bail!("there is no option {word}; --help lists them");
        }
        // Later ones belong to the program behind the first.
        let dashes = self.before_dashes().len();
        let words = self.words.into_iter().enumerate();
        Ok(words.filter(|(at, _)| *at != dashes).map(|(_, word)| word).collect())
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<()> {
        match self.rest()?.first() {
            Some(word) => bail!("`{word}` is not expected here; --help lists what is"),
            None => Ok(()),
        }
    }

    fn before_dashes(&self) -> &[String] {
        let end = self.words.iter().position(|word| word == "--").unwrap_or(self.words.len());
        &self.words[..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_taken_wherever_they_stand() {
        let mut a = args("proxy --rounds 3 --quick");
        assert_eq!(a.option::<u32>("--rounds").unwrap(), Some(3));
        assert!(a.flag("--quick"));
        assert!(!a.flag("--quick"));
        assert_eq!(a.rest().unwrap(), ["proxy"]);
    }

    #[test]
    fn unknown_and_unfinished_options_are_refused() {
        assert!(args("--rounds").option::<u32>("--rounds").is_err());
        assert!(args("--rounds x").option::<u32>("--rounds").is_err());
        assert!(args("--roudns 3").rest().is_err());
        assert!(args("word").finish().is_err());
    }

    #[test]
    fn a_value_may_be_left_out_where_there_is_another() {
        assert_eq!(args("--drill 7 failover").option_or("--drill", 100).unwrap(), Some(7));
        let mut a = args("--drill failover");
        assert_eq!(a.option_or("--drill", 100).unwrap(), Some(100));
        assert_eq!(a.option_or("--drill", 100).unwrap(), None);
        assert_eq!(a.rest().unwrap(), ["failover"]);
    }

    #[test]
    fn words_after_two_dashes_are_not_ours() {
        let mut a = args("--cpu 1 -- wrk --help");
        assert!(!a.asks_for_help());
        assert_eq!(a.option::<u8>("--cpu").unwrap(), Some(1));
        assert_eq!(a.rest().unwrap(), ["wrk", "--help"]);
        let a = args("-- reaper --user x -- outlast --node a");
        let expected = ["reaper", "--user", "x", "--", "outlast", "--node", "a"];
        assert_eq!(a.rest().unwrap(), expected);
    }
}
