//! Where a body ends: content length, chunked coding, or the end of the connection.
//!
//! Bytes of a body are passed on as they are; the decoder only says how many of them belong to it. It is strict (RFC 9112
//! section 7.1, CRLF only), so that whoever reads them next cannot see other borders than we did.

/// Why a body cannot be trusted any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// Responses only.
    UntilClose,
}

/// Bytes of a chunk's size line, extensions included.
const CHUNK_LINE_MAX: u16 = 512;

/// Bytes of all trailer lines.
const TRAILERS_MAX: u16 = 8192;

/// Counts a body's bytes to its end.
#[derive(Clone, Debug)]
pub enum Decoder {
    /// This many bytes are still to come.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

impl Decoder {
    pub fn new(framing: Framing) -> Decoder {
        match framing {
            Framing::None => Decoder::Length(0),
            Framing::Length(length) => Decoder::Length(length),
            Framing::Chunked => Decoder::Chunked(Chunked::default()),
            Framing::UntilClose => Decoder::UntilClose,
        }
    }

    /// Whether the body is complete.
    pub fn done(&self) -> bool {
        match self {
            Decoder::Length(left) => *left == 0,
            Decoder::Chunked(chunked) => chunked.state == State::Done,
            Decoder::UntilClose => false,
        }
    }

    /// Takes what belongs to the body off the front of `input`; returns how many bytes that were.
    pub fn advance(&mut self, input: &[u8]) -> Result<usize, Malformed> {
        match self {
            Decoder::Length(left) => {
                let take = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= take as u64;
                Ok(take)
            }
            Decoder::Chunked(chunked) => chunked.advance(input, |_data| {}),
            Decoder::UntilClose => Ok(input.len()),
        }
    }

    /// As `advance`, and appends the payload without its coding to `payload`.
    pub fn decode(&mut self, input: &[u8], payload: &mut Vec<u8>) -> Result<usize, Malformed> {
        match self {
            Decoder::Length(_) | Decoder::UntilClose => {
                let taken = self.advance(input)?;
                payload.extend_from_slice(&input[..taken]);
                Ok(taken)
            }
            Decoder::Chunked(chunked) => {
                chunked.advance(input, |data| payload.extend_from_slice(data))
            }
        }
    }
}

/// The chunked transfer coding, byte by byte.
#[derive(Clone, Debug, Default)]
pub struct Chunked {
    state: State,
    /// Bytes left of the present chunk, or its size as read so far.
    size: u64,
    /// Bytes of the present line, or of all trailers.
    line: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    SizeStart,
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line, or of the last line.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

impl Chunked {
    fn advance(&mut self, input: &[u8], mut data: impl FnMut(&[u8])) -> Result<usize, Malformed> {
        let mut at = 0;
        while self.state != State::Done {
            if self.state == State::Data {
                let rest = &input[at..];
                let take =
                    usize::try_from(self.size).map_or(rest.len(), |size| size.min(rest.len()));
                data(&rest[..take]);
                self.size -= take as u64;
                at += take;
                if self.size > 0 {
                    break;
                }
                self.state = State::DataCr;
            }
            let Some(&byte) = input.get(at) else { break };
            self.state = self.byte(byte)?;
            at += 1;
        }
        Ok(at)
    }

    fn byte(&mut self, byte: u8) -> Result<State, Malformed> {
        Ok(match (self.state, byte) {
            (State::SizeStart, _) => {
                self.size = digit(byte).ok_or(Malformed("chunk size is not a number"))?;
                self.line = 1;
                State::Size
            }
            (State::Size, b';') => State::Extension,
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Size, _) => {
                let digit = digit(byte).ok_or(Malformed("chunk size is not a number"))?;
                self.size = self
                    .size
                    .checked_mul(16)
                    .and_then(|s| s.checked_add(digit))
                    .ok_or(Malformed("chunk size is too large"))?;
                self.count(CHUNK_LINE_MAX)?;
                State::Size
            }
            (State::Extension, b'\t' | b' '..=b'~') => {
                self.count(CHUNK_LINE_MAX)?;
                State::Extension
            }
            (State::SizeLf, b'\n') => {
                self.line = 0;
                if self.size == 0 { State::TrailerStart } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::SizeStart,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerStart | State::TrailerName, byte) if token(byte) => {
                self.count(TRAILERS_MAX)?;
                State::TrailerName
            }
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => {
                self.count(TRAILERS_MAX)?;
                State::TrailerValue
            }
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            (State::Extension, _) => return Err(Malformed("bad byte in a chunk extension")),
            (State::TrailerStart | State::TrailerName | State::TrailerValue, _) => {
                return Err(Malformed("bad byte in a trailer"));
            }
            (
                State::SizeLf | State::DataCr | State::DataLf | State::TrailerLf | State::EndLf,
                _,
            ) => {
                return Err(Malformed("chunk line does not end in CRLF"));
            }
            (State::Data | State::Done, _) => unreachable!("handled before a byte is looked at"),
        })
    }

    fn count(&mut self, max: u16) -> Result<(), Malformed> {
        self.line += 1;
        if self.line > max { Err(Malformed("chunk line or trailers too long")) } else { Ok(()) }
    }
}

/// The value of a hexadecimal digit.
fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

/// A character of a token (RFC 9110 section 5.6.2).
pub(crate) fn token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `wire` in pieces of `step` bytes; returns payload and the bytes that belonged to the body.
    fn run(wire: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), Malformed> {
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut payload = Vec::new();
        let mut taken = 0;
        for piece in wire.chunks(step) {
            let n = decoder.decode(piece, &mut payload)?;
            taken += n;
            if n < piece.len() {
                break;
            }
        }
        Ok((payload, taken, decoder.done()))
    }

    #[test]
    fn chunks_decode_however_they_arrive() {
        let wire = b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1";
        for step in 1..=wire.len() {
            assert_eq!(
                run(wire, step),
                Ok((b"hello world".to_vec(), wire.len() - 14, true)),
                "step {step}"
            );
        }
    }

    #[test]
    fn a_cut_body_is_not_done() {
        let wire = b"5\r\nhello\r\n0\r\n\r\n";
        for end in 0..wire.len() {
            assert!(!run(&wire[..end], 3).unwrap().2, "{end}");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for wire in [
            "0x2\r\nab\r\n",
            "fffffffffffffffff\r\n",
            "2\nab\r\n",
            "2\r\nabc\r\n",
            "2\r\nab\n",
            "-1\r\n",
            " 2\r\n",
            "2 \r\nab",
            "+2\r\nab",
            "\r\n",
            "2;\x00\r\n",
            "0\r\nX\x01: y\r\n\r\n",
            "0\r\n: y\r\n\r\n",
            "0\r\nX\r\n\r\n",
            "0\r\nX: y\n\r\n",
            "0\r\n\n",
        ] {
            assert!(run(wire.as_bytes(), 1).is_err(), "{wire:?}");
        }
        let long = format!("2;{}\r\n", "a".repeat(600));
        assert!(run(long.as_bytes(), 7).is_err());
    }

    proptest! {
        #[test]
        fn what_was_chunked_comes_back(chunks: Vec<Vec<u8>>, step in 1usize..64) {
            let mut wire = Vec::new();
            for chunk in chunks.iter().filter(|c| !c.is_empty()) {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(run(&wire, step), Ok((chunks.concat(), wire.len(), true)));
        }

        #[test]
        fn the_result_does_not_depend_on_how_bytes_arrive(wire: Vec<u8>, step in 1usize..16) {
            let whole = run(&wire, wire.len().max(1));
            let pieces = run(&wire, step);
            prop_assert_eq!(whole.is_err(), pieces.is_err());
            if let (Ok(whole), Ok(pieces)) = (whole, pieces) {
                prop_assert_eq!(whole, pieces);
            }
        }
    }
}
