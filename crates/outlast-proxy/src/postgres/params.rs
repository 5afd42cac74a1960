//! What a client knows of its server's settings (ParameterStatus), in one piece of memory.

/// Settings that are remembered; PostgreSQL 18 reports 16.
const PARAMETERS_MAX: usize = 64;

/// Name and value, each ended by a zero byte, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    bytes: Vec<u8>,
}

impl Parameters {
    /// Takes the body of a ParameterStatus; true if the client did not know that yet.
    pub fn set(&mut self, body: &[u8]) -> bool {
        let Some((name, value)) = pair(body) else { return false };
        if self.value(name) == Some(value) {
            return false;
        }
        let others: Vec<u8> = self
            .iter()
            .filter(|(n, _)| *n != name)
            .take(PARAMETERS_MAX - 1)
            .flat_map(|(n, v)| [n, b"\0", v, b"\0"].concat())
            .collect();
        self.bytes = others;
        for piece in [name, b"\0", value, b"\0"] {
            self.bytes.extend_from_slice(piece);
        }
        self.bytes.shrink_to_fit();
        true
    }

    pub fn value(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut words = self.bytes.split(|&b| b == 0);
        std::iter::from_fn(move || {
            Some((words.next().filter(|name| !name.is_empty())?, words.next()?))
        })
    }
}

fn pair(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut words = body.strip_suffix(b"\0")?.split(|&b| b == 0);
    let found = (words.next().filter(|name| !name.is_empty())?, words.next()?);
    words.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_told() {
        let mut known = Parameters::default();
        assert!(known.set(b"TimeZone\0UTC\0"));
        assert!(known.set(b"application_name\0\0"));
        assert!(!known.set(b"TimeZone\0UTC\0"));
        assert!(known.set(b"TimeZone\0Europe/Berlin\0"));
        assert_eq!(known.value(b"TimeZone"), Some(b"Europe/Berlin".as_slice()));
        assert_eq!(known.value(b"application_name"), Some(b"".as_slice()));
        assert_eq!(known.value(b"x"), None);
        assert!(!known.set(b"no pair"));
        assert!(!known.set(b"\0x\0"));
    }
}
