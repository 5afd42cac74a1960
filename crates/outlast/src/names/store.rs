//! What a node answers by, on its disk: after a restart the first answer is the last one that was agreed on.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use outlast_core::agreed::AgreedNames;
use outlast_core::codec::{Code as _, Malformed, Reader};

use crate::cluster::NameSecrets;

const FILE: &str = "names.bin";

/// The version of the file's form; others are not read.
const VERSION: u8 = 1;

/// What was known last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) agreed: Arc<AgreedNames>,
    pub(super) secrets: NameSecrets,
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
    if reader.byte()? != VERSION {
        return Err(Malformed("a version that is not known here"));
    }
    let agreed = AgreedNames::decode(&mut reader)?;
    let secrets = BTreeMap::decode(&mut reader)?;
    reader.end()?;
    Ok(Kept { agreed: Arc::new(agreed), secrets: NameSecrets(secrets) })
}

/// Whole or not at all. Keys are in it: it is readable for nobody else.
pub(super) fn save(data_dir: &Path, kept: &Kept) -> std::io::Result<()> {
    let mut bytes = vec![VERSION];
    kept.agreed.encode(&mut bytes);
    kept.secrets.0.encode(&mut bytes);
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
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_rubbish_is_not() {
        let dir = std::env::temp_dir().join(format!("outlast-names-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(load(&dir), Kept::default());
        let agreed = AgreedNames { epoch: 7, ..AgreedNames::default() };
        let secrets = NameSecrets(BTreeMap::from([("cookies".to_owned(), vec![1; 16])]));
        let kept = Kept { agreed: Arc::new(agreed), secrets };
        save(&dir, &kept).unwrap();
        assert_eq!(load(&dir), kept);
        std::fs::write(dir.join(FILE), b"\x01rubbish").unwrap();
        assert_eq!(load(&dir), Kept::default());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
