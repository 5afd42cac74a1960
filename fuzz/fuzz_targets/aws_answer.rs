//! Answers of AWS: any bytes are a tree or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast_aws::Element;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(tree) = Element::read(bytes) {
        let _ = Element::read(&tree.document("urn:x"));
    }
});
