//! Whether a statement leaves something behind in its session that another session would not have.
//!
//! Text is read as it passes, word by word, without being kept. What cannot be ruled out counts: a session that is wrongly
//! taken for bound is only closed, one that is wrongly moved would give wrong answers. What functions do is not seen.

/// Text beyond this is not read; the session is bound.
pub const TEXT_MAX: usize = 64 << 10;

/// Longer words are none of ours.
const WORD_MAX: usize = 32;

/// They bind as the first word of a statement: as other words they are names, or parts of other statements.
const COMMANDS: [&[u8]; 7] = [b"reset", b"prepare", b"listen", b"load", b"discard", b"do", b"call"];

/// They bind wherever they stand.
const ANYWHERE: [&[u8]; 7] =
    [b"temp", b"temporary", b"pg_temp", b"set_config", b"setseed", b"currval", b"lastval"];

/// What may follow SET and ends with the transaction.
const LOCAL: [&[u8]; 3] = [b"local", b"transaction", b"constraints"];

/// Reads one statement text.
#[derive(Clone, Debug, Default)]
pub struct Words {
    word: [u8; WORD_MAX],
    length: usize,
    seen: usize,
    /// Words of this statement so far.
    count: u32,
    comment: Comment,
    /// Something else than space and comments was there.
    begun: bool,
    /// The byte before, if it may begin a comment or end one.
    before: u8,
    /// A comment may have hidden the beginning of a statement from now on.
    murky: bool,
    after_set: bool,
    after_with: bool,
    bound: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Comment {
    #[default]
    None,
    Line,
    /// They nest.
    Block(u16),
}

impl Words {
    /// Reads on; the text may come in any pieces.
    pub fn read(&mut self, text: &[u8]) {
        self.seen = self.seen.saturating_add(text.len());
        if self.seen > TEXT_MAX {
            self.bound = true;
        }
        if !self.bound {
            text.iter().for_each(|&byte| self.byte(byte));
        }
    }

    /// The text has ended; whether it binds its session.
    pub fn end(&mut self) -> bool {
        self.word_ends();
        // SET as the last word of all is no statement.
        std::mem::take(self).bound
    }

    fn byte(&mut self, byte: u8) {
        let before = std::mem::replace(&mut self.before, byte);
        match self.comment {
            Comment::Line => {
                if byte == b'\n' || byte == b'\r' {
                    self.comment = Comment::None;
                }
            }
            Comment::Block(depth) => {
                self.comment = match (before, byte) {
                    (b'*', b'/') if depth == 0 => Comment::None,
                    (b'*', b'/') => Comment::Block(depth - 1),
                    (b'/', b'*') => Comment::Block(depth.saturating_add(1)),
                    _ => return,
                };
                // One byte does not belong to two marks.
                self.before = 0;
            }
            Comment::None => self.plain(before, byte),
        }
    }

    fn plain(&mut self, before: u8, byte: u8) {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80 {
            if let Some(place) = self.word.get_mut(self.length) {
                *place = byte.to_ascii_lowercase();
            }
            self.length += 1;
            self.begun = true;
            return;
        }
        self.word_ends();
        self.begun |= !(byte.is_ascii_whitespace() || matches!(byte, b'-' | b'/' | b'*'));
        match (before, byte) {
            (b'-', b'-') | (b'/', b'*') => self.comment_begins(byte),
            (_, b';') => (self.count, self.after_set, self.after_with) = (0, false, false),
            // A quote or a bracket: what follows is no first word of a statement.
            (_, b'\'' | b'"' | b'(') if !self.murky => self.count = self.count.max(1),
            _ => {}
        }
    }

    /// At the beginning of a text, a comment is one for certain. Later it may be part of a literal, and skipping it could skip
    /// a statement.
    fn comment_begins(&mut self, byte: u8) {
        if self.begun {
            self.murky = true;
            return;
        }
        self.comment = if byte == b'-' { Comment::Line } else { Comment::Block(0) };
        self.before = 0;
    }

    fn word_ends(&mut self) {
        if self.length == 0 {
            return;
        }
        let word = &self.word[..self.length.min(WORD_MAX)];
        let short = self.length <= WORD_MAX;
        let first = self.count == 0 || self.murky;
        let is = |list: &[&[u8]]| short && list.contains(&word);
        let after_set = std::mem::take(&mut self.after_set);
        let after_with = std::mem::take(&mut self.after_with);
        self.bound |= after_set && !is(&LOCAL);
        self.bound |= is(&ANYWHERE) || word.windows(8).any(|part| part == b"advisory");
        self.bound |= first && is(&COMMANDS);
        self.bound |= after_with && is(&[b"hold"]);
        self.after_set = first && is(&[b"set"]);
        self.after_with = is(&[b"with"]);
        self.count = self.count.saturating_add(1);
        self.length = 0;
    }
}

/// Whether a whole text binds its session.
pub fn binds(text: &[u8]) -> bool {
    let mut words = Words::default();
    words.read(text);
    words.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn statements_that_leave_nothing_behind_do_not_bind() {
        for text in [
            "SELECT 1",
            "",
            ";;",
            "UPDATE t SET a = 1 WHERE b = 2",
            "update t as x\nset a=1; select 2; UPDATE u SET b = 'set x'",
            "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2",
            "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING",
            "begin; set local search_path = x; set transaction read only; commit",
            "SET CONSTRAINTS ALL DEFERRED",
            "/* set x */ UPDATE t SET a = 1",
            "-- set search_path\n/* a /* nested; set */ comment */ select 1",
            "ALTER ROLE ada SET work_mem = '1MB'",
            "SELECT call, load, reset FROM t WHERE listen",
            "select templates, temperature, pre_temp from t",
            "DECLARE c CURSOR FOR SELECT 1",
            "WITH a AS (SELECT 1) SELECT * FROM hold",
            "DEALLOCATE x",
        ] {
            assert!(!binds(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn statements_that_may_leave_something_behind_bind() {
        for text in [
            "SET search_path = x",
            "  set\ntimezone to 'UTC'",
            "SELECT 1;SET x = 1",
            "UPDATE t SET a = 1; SET b = 1",
            "/* comment */ SET x = 1",
            "/* * / */ SET x = 1",
            "/*/ set */ SET x = 1",
            "-- comment\nSET x = 1",
            "SELECT '/*'; SET x = 1; SELECT '*/'",
            "SELECT 'a -- '; SET x = 1",
            "SELECT 'a;--'; SET x = 1",
            "SELECT 'a;/*'; SET x = 1",
            "';--'; SET x = 1",
            "SELECT 1 /* c */; /* d */ SET x = 1",
            "SELECT 1; -- c\nSET x = 1",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "BEGIN; SET x = 1; COMMIT",
            "RESET ALL",
            "PREPARE a AS SELECT 1",
            "LISTEN a",
            "LOAD 'x'",
            "DISCARD TEMP",
            "DO $$ begin end $$",
            "CALL p()",
            "CREATE TEMP TABLE t (a int)",
            "create temporary view v as select 1",
            "SELECT 1 INTO TEMP t",
            "CREATE TABLE pg_temp.t (a int)",
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "SELECT set_config('a', 'b', false)",
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_try_advisory_lock(1)",
            "SELECT setseed(0.5)",
            "SELECT currval('s'), lastval()",
        ] {
            assert!(binds(text.as_bytes()), "{text}");
        }
        let long = [b"SELECT '".as_slice(), &vec![b'x'; TEXT_MAX], b"'"].concat();
        assert!(binds(&long), "too long to be read");
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_text_arrives(text in "[a-c;'/*\\- \nsetSETdo]{0,40}", at in 0_usize..40) {
            let bytes = text.as_bytes();
            let at = at.min(bytes.len());
            let mut words = Words::default();
            words.read(&bytes[..at]);
            words.read(&bytes[at..]);
            prop_assert_eq!(words.end(), binds(bytes));
        }
    }
}
