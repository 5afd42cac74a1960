//! What is wrong with a file, said so that it can be mended: place, fault, and what to write instead.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

/// More complaints than this are counted, not shown.
const SHOWN_MAX: usize = 100;
/// More complaints than this are not even kept.
pub(crate) const KEPT_MAX: usize = 1000;
/// A line longer than this is not quoted.
const LINE_MAX: usize = 4096;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Complaint {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: String,
    /// Where the fault stands, in bytes.
    #[serde(skip)]
    pub span: Range<usize>,
    /// Another place that has to do with it, and what is there.
    #[serde(skip)]
    pub also: Option<(Range<usize>, String)>,
}

/// Every mistake of a file, in the order of their places.
#[derive(Clone, Debug)]
pub struct Complaints {
    file_name: String,
    text: String,
    list: Vec<Complaint>,
    uncounted: usize,
}

impl Complaints {
    pub(crate) fn new(
        file_name: &str,
        text: &str,
        mut list: Vec<Complaint>,
        uncounted: usize,
    ) -> Complaints {
        list.sort_by_key(|complaint| complaint.span.start);
        Complaints { file_name: file_name.to_owned(), text: text.to_owned(), list, uncounted }
    }

    /// The complaints, without those beyond the first thousand.
    pub fn list(&self) -> &[Complaint] {
        &self.list
    }

    /// How many mistakes there are in all.
    pub fn count(&self) -> usize {
        self.list.len() + self.uncounted
    }

    /// All of it as text: a snippet of the file for each complaint, then how many there are.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for complaint in self.list.iter().take(SHOWN_MAX) {
            text.push_str(&self.render_one(&renderer, complaint));
            text.push_str("\n\n");
        }
        let more = self.count().saturating_sub(SHOWN_MAX);
        if more > 0 {
            text.push_str(&format!("and {more} more\n\n"));
        }
        let mistakes = if self.count() == 1 { "mistake" } else { "mistakes" };
        text.push_str(&format!("{}: {} {mistakes}\n", self.file_name, self.count()));
        text
    }

    fn render_one(&self, renderer: &Renderer, complaint: &Complaint) -> String {
        let title = Level::ERROR.primary_title(complaint.message.as_str());
        let also = complaint.also.as_ref();
        let start =
            also.map_or(complaint.span.start, |(span, _)| span.start.min(complaint.span.start));
        let end = also.map_or(complaint.span.end, |(span, _)| span.end.max(complaint.span.end));
        let lines = whole_lines(&self.text, start..end);
        // The same length, without the marks that Windows puts at the end of lines.
        let excerpt = self.text.get(lines.clone()).unwrap_or_default().replace("\r\n", " \n");
        let excerpt = excerpt.trim_end_matches('\r');
        let too_long = excerpt.lines().any(|line| line.len() > LINE_MAX);
        if excerpt.trim().is_empty() || too_long {
            let place = format!("{}:{}:{}", self.file_name, complaint.line, complaint.column);
            let group = Group::with_title(title)
                .element(Level::NOTE.no_name().message(format!("--> {place}")))
                .element(Level::HELP.message(complaint.help.as_str()));
            return renderer.render(&[group]);
        }
        let within = |span: &Range<usize>| {
            let at = |place: usize| {
                (place.clamp(lines.start, lines.end) - lines.start).min(excerpt.len())
            };
            at(span.start)..at(span.end)
        };
        let mut snippet = Snippet::source(excerpt)
            .path(self.file_name.as_str())
            .line_start(line_of(&self.text, lines.start))
            .annotation(
                AnnotationKind::Primary
                    .span(within(&complaint.span))
                    .label(complaint.help.as_str()),
            );
        if let Some((span, label)) = also {
            snippet = snippet
                .annotation(AnnotationKind::Context.span(within(span)).label(label.as_str()));
        }
        renderer.render(&[title.element(snippet)])
    }
}

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Complaints {}

/// The whole lines that a span touches, without the last line's end.
fn whole_lines(text: &str, span: Range<usize>) -> Range<usize> {
    let bytes = text.as_bytes();
    let start = span.start.min(bytes.len());
    let end = span.end.clamp(start, bytes.len());
    let newline = |&byte: &u8| byte == b'\n';
    let first = bytes[..start].iter().rposition(newline).map_or(0, |at| at + 1);
    let last = bytes[end..].iter().position(newline).map_or(bytes.len(), |at| end + at);
    first..last
}

/// The line of a place, from 1.
fn line_of(text: &str, place: usize) -> usize {
    let before = &text.as_bytes()[..place.min(text.len())];
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

/// The column of a place, from 1, in characters.
pub(crate) fn column_of(text: &str, place: usize) -> usize {
    let start = whole_lines(text, place..place).start;
    let before = &text.as_bytes()[start..place.clamp(start, text.len())];
    1 + before.iter().filter(|&&byte| byte & 0xC0 != 0x80).count()
}

/// Quotes a piece of the file in a message: short, on one line.
pub(crate) fn quote(text: &str) -> String {
    const QUOTE_MAX: usize = 60;
    let mut short: String = text
        .chars()
        .take(QUOTE_MAX)
        .map(|c| if c.is_control() || is_invisible(c) { '\u{FFFD}' } else { c })
        .collect();
    if text.chars().nth(QUOTE_MAX).is_some() {
        short.push('…');
    }
    format!("`{short}`")
}

/// Characters that change how the text around them is shown.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{2069}' | '\u{FEFF}')
}
