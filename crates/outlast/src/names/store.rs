//! What a node answers by, on its disk: after a restart the first answer is the last one that was agreed on.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use outlast_core::agreed::{AddedRecord, AgreedNames};
use outlast_core::codec::{Code as _, Malformed, Reader};

use crate::cluster::NameSecrets;

const FILE: &str = "names.bin";

/// The version of the file's form; others are not read. Version 1 did not say whether the node was alone.
const VERSION: u8 = 2;

/// What is said of a file that is not read, with what is lost by it.
const OLD: Malformed = Malformed(
    "an older outlast has written it, in a form that is not read any more; if this node was alone, import the records that \
     updates had added again, and tell the parents of signed zones the new DS",
);

/// What was known last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) agreed: Arc<AgreedNames>,
    pub(super) secrets: NameSecrets,
    /// Nobody else had to agree on it.
    pub(super) alone: bool,
    /// Records, by zone, that updates have added while this node was alone, and that the others do not have yet.
    pub(super) to_bring: BTreeMap<String, BTreeSet<AddedRecord>>,
}

impl Kept {
    /// Where a node that was alone has got company: what was added is still to be agreed on.
    pub(super) fn in_company(self) -> Kept {
        if !self.alone {
            return self;
        }
        let zones = self.agreed.zones.iter().filter(|(_, zone)| !zone.records.is_empty());
        let mut to_bring = self.to_bring.clone();
        for (name, zone) in zones {
            to_bring.entry(name.clone()).or_default().extend(zone.records.iter().cloned());
        }
        Kept { alone: false, to_bring, ..self }
    }
}

/// Nothing, if there is nothing or it cannot be read: then this node answers once it has heard from the others.
pub(super) fn load(data_dir: &Path) -> Kept {
    let path = data_dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Kept::default(),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "read what name servers answered last");
            return Kept::default();
        }
    };
    decode(&bytes).unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "understand what name servers answered last");
        Kept::default()
    })
}

fn decode(bytes: &[u8]) -> Result<Kept, Malformed> {
    let mut reader = Reader::new(bytes);
    match reader.byte()? {
        VERSION => {}
        1 => return Err(OLD),
        _ => return Err(Malformed("a version that is not known here")),
    }
    let agreed = AgreedNames::decode(&mut reader)?;
    let secrets = BTreeMap::decode(&mut reader)?;
    let alone = bool::decode(&mut reader)?;
    let to_bring = BTreeMap::decode(&mut reader)?;
    reader.end()?;
    Ok(Kept { agreed: Arc::new(agreed), secrets: NameSecrets(secrets), alone, to_bring })
}

/// Whole or not at all. Keys are in it: it is readable for nobody else.
pub(super) fn save(data_dir: &Path, kept: &Kept) -> std::io::Result<()> {
    let mut bytes = vec![VERSION];
    kept.agreed.encode(&mut bytes);
    kept.secrets.0.encode(&mut bytes);
    kept.alone.encode(&mut bytes);
    kept.to_bring.encode(&mut bytes);
    let beside = data_dir.join("names.new");
    let mut options = std::fs::File::options();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, data_dir.join(FILE))?;
    std::fs::File::open(data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use outlast_core::agreed::AgreedZone;

    use super::*;

    #[test]
    fn what_was_added_alone_is_still_to_be_brought_along_and_what_was_agreed_on_is_not() {
        let record = AddedRecord { owner: vec![0], rtype: 1, ttl: 60, data: vec![192, 0, 2, 1] };
        let records = BTreeSet::from([record]);
        let zone = AgreedZone { records: records.clone(), ..AgreedZone::default() };
        let zones = [("example.com", zone), ("example.net", AgreedZone::default())];
        let zones = zones.map(|(name, zone)| (name.to_owned(), zone)).into();
        let agreed = Arc::new(AgreedNames { zones, ..AgreedNames::default() });
        let agreed_on = Kept { agreed, ..Kept::default() };
        assert_eq!(agreed_on.clone().in_company(), agreed_on);
        let to_bring = BTreeMap::from([("example.com".to_owned(), records)]);
        let company = Kept { alone: true, ..agreed_on.clone() }.in_company();
        assert_eq!(company, Kept { to_bring, ..agreed_on });
        // Once more: the first time may have been cut short.
        assert_eq!(company.clone().in_company(), company);
        // What waits already goes on waiting.
        let zones = company.to_bring.keys().map(|_| "example.org".to_owned());
        let waits: BTreeMap<_, _> = zones.zip(company.to_bring.values().cloned()).collect();
        let again = Kept { alone: true, to_bring: waits, ..company.clone() }.in_company();
        assert_eq!(again.to_bring.len(), 2);
    }

    #[test]
    fn what_is_kept_is_read_again_and_rubbish_is_not() {
        let dir = std::env::temp_dir().join(format!("outlast-names-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(load(&dir), Kept::default());
        let agreed = AgreedNames { epoch: 7, ..AgreedNames::default() };
        let secrets = NameSecrets(BTreeMap::from([("cookies".to_owned(), vec![1; 16])]));
        let record = AddedRecord { owner: vec![0], rtype: 1, ttl: 60, data: vec![192, 0, 2, 1] };
        let to_bring = BTreeMap::from([("example.com".to_owned(), BTreeSet::from([record]))]);
        let kept = Kept { agreed: Arc::new(agreed), secrets, alone: true, to_bring };
        save(&dir, &kept).unwrap();
        assert_eq!(load(&dir), kept);
        for (bytes, wanted) in
            [(&b"\x02rubbish"[..], ""), (b"\x01old", "import"), (b"\x09", "not known")]
        {
            std::fs::write(dir.join(FILE), bytes).unwrap();
            assert_eq!(load(&dir), Kept::default());
            let said = decode(bytes).unwrap_err().to_string();
            assert!(said.contains(wanted), "{said}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
