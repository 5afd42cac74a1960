//! Where complaints are handed in while a file is read.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::ops::Range;

use super::complaint::{Complaint, KEPT_MAX, column_of};

/// A place in the file, in bytes.
pub(crate) type Span = Range<usize>;

/// Collects complaints, and knows which would only be consequences of others.
#[derive(Debug)]
pub(crate) struct Desk<'t> {
    text: &'t str,
    /// Where each line begins.
    line_starts: Vec<usize>,
    list: RefCell<Vec<Complaint>>,
    uncounted: Cell<usize>,
    /// Lines that do not parse: what is said of them already is enough.
    garbled_lines: Vec<usize>,
    /// Whole tables may be lost: nothing can be said of what is missing.
    pub(crate) incomplete: bool,
}

impl<'t> Desk<'t> {
    pub(crate) fn new(text: &'t str) -> Desk<'t> {
        let after_newline = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n');
        let line_starts = std::iter::once(0).chain(after_newline.map(|(at, _)| at + 1)).collect();
        Desk {
            text,
            line_starts,
            list: RefCell::default(),
            uncounted: Cell::new(0),
            garbled_lines: Vec::new(),
            incomplete: false,
        }
    }

    /// Notes a line that does not parse; false if it was noted before.
    pub(crate) fn garbled(&mut self, place: usize) -> bool {
        let line = self.line_of(place);
        let new = self.garbled_lines.last() != Some(&line);
        if new && self.garbled_lines.len() < KEPT_MAX {
            self.garbled_lines.push(line);
        }
        new
    }

    /// The line of a place, from 1.
    fn line_of(&self, place: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= place)
    }

    /// Whether more complaints would only be counted: no need to find good words for them.
    pub(crate) fn is_full(&self) -> bool {
        self.list.borrow().len() >= KEPT_MAX
    }

    pub(crate) fn text(&self) -> &'t str {
        self.text
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    pub(crate) fn into_list(self) -> (Vec<Complaint>, usize) {
        (self.list.into_inner(), self.uncounted.get())
    }

    /// Says what is wrong and what to write instead.
    pub(crate) fn complain(&self, span: Span, message: impl Display, help: impl Display) {
        self.complain_with(span, message, help, None);
    }

    /// Also points at another place.
    pub(crate) fn complain_with(
        &self,
        span: Span,
        message: impl Display,
        help: impl Display,
        also: Option<(Span, String)>,
    ) {
        let line = self.line_of(span.start);
        if self.garbled_lines.binary_search(&line).is_err() {
            self.keep(line, span, message, help, also);
        }
    }

    /// Complains that something is not there; without effect if parts of the file are lost.
    pub(crate) fn complain_of_absence(
        &self,
        span: Span,
        message: impl Display,
        help: impl Display,
    ) {
        if !self.incomplete {
            self.complain(span, message, help);
        }
    }

    /// Complains of text that is not TOML.
    pub(crate) fn complain_of_syntax(&self, span: Span, message: impl Display, help: impl Display) {
        self.keep(self.line_of(span.start), span, message, help, None);
    }

    fn keep(
        &self,
        line: usize,
        span: Span,
        message: impl Display,
        help: impl Display,
        also: Option<(Span, String)>,
    ) {
        if self.is_full() {
            self.uncounted.set(self.uncounted.get() + 1);
            return;
        }
        let mut list = self.list.borrow_mut();
        list.push(Complaint {
            line,
            column: column_of(self.text, span.start),
            message: message.to_string(),
            help: help.to_string(),
            span,
            also,
        });
    }
}
