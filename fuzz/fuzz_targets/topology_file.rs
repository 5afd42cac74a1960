//! No text brings the topology parser down, and none is refused without a word.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(complaints) = outlast::file::parse("outlast.toml", text) {
        assert!(complaints.count() > 0);
        assert!(!complaints.render(true).is_empty());
    }
});
