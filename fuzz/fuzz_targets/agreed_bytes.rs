//! Entries and snapshots of what is agreed: what is read is written back the same, and a machine from any bytes takes any
//! entry.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast_core::agreed::{Agreed, Command, Entry, LeaseClock, Reply, Watched};
use outlast_core::codec::{Code, Reader};
use outlast_core::time::Instant;

/// Reads one value and says what is left, if its bytes are a value.
fn read<T: Code + PartialEq + std::fmt::Debug>(reader: &mut Reader<'_>) -> Option<T> {
    let mut whole = reader.clone();
    let value = T::decode(reader).ok()?;
    let bytes = value.to_bytes();
    assert_eq!(whole.take(bytes.len()), Ok(bytes.as_slice()), "one value, one form");
    Some(value)
}

fuzz_target!(|bytes: &[u8]| {
    let _: Option<Reply> = read(&mut Reader::new(bytes));
    let _: Option<Watched> = read(&mut Reader::new(bytes));
    let _: Option<Command> = read(&mut Reader::new(bytes));
    let mut reader = Reader::new(bytes);
    let mut agreed = read::<Agreed>(&mut reader).unwrap_or_else(|| {
        reader = Reader::new(bytes);
        Agreed::default()
    });
    while let Some(entry) = read::<Entry>(&mut reader) {
        let index = agreed.index().saturating_add(1);
        let reply = agreed.apply(index, &entry);
        assert_eq!(Reply::from_bytes(&reply.to_bytes()), Ok(reply));
        let mut clock = LeaseClock::default();
        clock.observe(Instant::default(), &agreed);
        let _ = agreed.changes(index, b"", 10);
    }
    let snapshot = agreed.snapshot();
    let restored = Agreed::restore(&snapshot).expect("our own snapshot");
    assert_eq!(restored.snapshot(), snapshot);
});
