//! XML as a tree: read from answers, written into questions.

use std::fmt::Write as _;

use quick_xml::events::Event;

/// How deep elements may lie in each other.
const DEPTH_MAX: usize = 32;

/// Elements of one answer.
const ELEMENTS_MAX: usize = 200_000;

/// An element with its text or its inner elements; attributes and name spaces are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    pub text: String,
    pub inner: Vec<Element>,
}

impl Element {
    /// One with text.
    pub fn text(name: &str, text: impl Into<String>) -> Element {
        Element { name: name.to_owned(), text: text.into(), inner: Vec::new() }
    }

    /// One with inner elements.
    pub fn of(name: &str, inner: Vec<Element>) -> Element {
        Element { name: name.to_owned(), text: String::new(), inner }
    }

    /// The first inner element of that name.
    pub fn get(&self, name: &str) -> Option<&Element> {
        self.inner.iter().find(|element| element.name == name)
    }

    /// The text of the first inner element of that name, if there is any.
    pub fn word(&self, name: &str) -> Option<&str> {
        self.get(name).map(|element| element.text.as_str()).filter(|text| !text.is_empty())
    }

    /// The inner elements of the first inner element of that name.
    pub fn list(&self, name: &str) -> &[Element] {
        self.get(name).map_or(&[], |element| &element.inner)
    }

    /// Reads a whole document; what is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Element, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let mut reader = quick_xml::Reader::from_str(text);
        let mut open: Vec<Element> = Vec::new();
        let mut count = 0;
        loop {
            match reader.read_event().map_err(|error| error.to_string())? {
                Event::Start(start) => {
                    count += 1;
                    if open.len() >= DEPTH_MAX || count > ELEMENTS_MAX {
                        return Err("the XML is too large".to_owned());
                    }
                    open.push(Element::text(start.local_name().as_ref(), ""));
                }
                Event::Empty(empty) => {
                    let element = Element::text(empty.local_name().as_ref(), "");
                    match open.last_mut() {
                        Some(outer) => outer.inner.push(element),
                        None => return Ok(element),
                    }
                }
                Event::Text(text) => {
                    if let Some(inside) = open.last_mut() {
                        inside.text.push_str(&text);
                    }
                }
                Event::GeneralRef(reference) => {
                    let found = match reference.resolve_char_ref() {
                        Ok(Some(character)) => Some(character),
                        Ok(None) | Err(_) => named(&reference),
                    };
                    let found = found.ok_or("an unknown entity")?;
                    if let Some(inside) = open.last_mut() {
                        inside.text.push(found);
                    }
                }
                Event::CData(data) => {
                    if let Some(inside) = open.last_mut() {
                        inside.text.push_str(&data);
                    }
                }
                Event::End(_) => {
                    let mut element = open.pop().ok_or("an end without a beginning")?;
                    // Blanks between elements are no text.
                    element.text = match element.inner.is_empty() {
                        true => element.text,
                        false => String::new(),
                    };
                    match open.last_mut() {
                        Some(outer) => outer.inner.push(element),
                        None => return Ok(element),
                    }
                }
                Event::Eof => return Err("the XML is cut".to_owned()),
                Event::DocType(_) => return Err("a document type".to_owned()),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            }
        }
    }

    /// Writes a whole document whose root is in this name space.
    pub fn document(&self, space: &str) -> Vec<u8> {
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>");
        self.write(&mut text, &format!(" xmlns=\"{space}\""));
        text.into_bytes()
    }

    fn write(&self, text: &mut String, attributes: &str) {
        let name = &self.name;
        text.push('<');
        text.push_str(name);
        text.push_str(attributes);
        text.push('>');
        for character in self.text.chars() {
            match character {
                '<' => text.push_str("&lt;"),
                '>' => text.push_str("&gt;"),
                '&' => text.push_str("&amp;"),
                '"' => text.push_str("&quot;"),
                other if other.is_control() => {
                    // A `String` takes everything.
                    write!(text, "&#{};", u32::from(other)).unwrap_or_default();
                }
                other => text.push(other),
            }
        }
        for inner in &self.inner {
            inner.write(text, "");
        }
        text.push_str("</");
        text.push_str(name);
        text.push('>');
    }
}

/// The five entities that XML has without a document type.
fn named(entity: &str) -> Option<char> {
    match entity {
        "lt" => Some('<'),
        "gt" => Some('>'),
        "amp" => Some('&'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let tree = Element::of(
            "A",
            vec![
                Element::text("B", "\"x\" <&>' \u{e9}"),
                Element::of("C", vec![Element::text("D", "")]),
            ],
        );
        let text = tree.document("urn:x");
        assert_eq!(Element::read(&text), Ok(tree));
    }

    #[test]
    fn answers_as_aws_writes_them_are_read() {
        let text = b"<?xml version=\"1.0\"?>\n<x:R xmlns:x=\"u\">\n  <Id>/hostedzone/Z1</Id>\n  <L><M>1</M><M/></L>\n\
            <T><![CDATA[a<b]]>&#65;</T></x:R>";
        let tree = Element::read(text).unwrap();
        assert_eq!((tree.name.as_str(), tree.word("Id")), ("R", Some("/hostedzone/Z1")));
        assert_eq!((tree.list("L").len(), tree.word("T")), (2, Some("a<bA")));
    }

    #[test]
    fn what_is_no_xml_is_refused() {
        let deep = "<a>".repeat(100);
        for text in ["", "{}", "<a>", "<a></b>", "<!DOCTYPE a><a/>", "<a>&nbsp;</a>", &deep] {
            assert!(Element::read(text.as_bytes()).is_err(), "{text}");
        }
    }

    /// Documents that were good once: no panic, and what is read is written and read again.
    #[test]
    fn broken_documents_are_refused_or_mean_something() {
        let good = Element::of("A", vec![Element::text("B", "x & y"), Element::text("C", "")]);
        let good = good.document("urn:x");
        // A generator of Knuth's, so that each run is the same.
        let mut state = 20_261_129_u64;
        let mut below = |limit: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % limit
        };
        for _ in 0..50_000 {
            let mut bytes = good.clone();
            for _ in 0..=below(4) {
                let place = below(bytes.len());
                bytes[place] = b"<>/&;!-[]?x\0\xff "[below(14)];
            }
            if let Ok(read) = Element::read(&bytes) {
                Element::read(&read.document("urn:x")).ok();
            }
        }
    }
}
