//! A history as a file: a call a line.

use outlast_core::linear::{Call, Operation};
use serde_json::{Value, json};

/// A call as a line of a file.
pub(crate) fn line(call: &Call) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("clients write text");
    let held = |value: &Option<Vec<u8>>| value.as_deref().map(text);
    let (word, what) = match &call.operation {
        Operation::Get { seen } => ("get", json!({ "seen": held(seen) })),
        Operation::Put { value } => ("put", json!({ "value": text(value) })),
        Operation::Delete => ("delete", json!({})),
        Operation::Cas { expected, value, done } => {
            ("cas", json!({ "expected": held(expected), "value": text(value), "done": done }))
        }
    };
    let mut line = json!({
        "client": call.client,
        "key": text(&call.key),
        "invoked": call.invoked,
        "returned": call.returned,
        "call": word,
    });
    let fields = line.as_object_mut().expect("it is one");
    fields.extend(what.as_object().expect("it is one").clone());
    line.to_string()
}

/// What [`line`] wrote; `None` if it is no call.
pub(crate) fn parse(line: &str) -> Option<Call> {
    let line: Value = serde_json::from_str(line).ok()?;
    let bytes = |name: &str| line[name].as_str().map(|text| text.as_bytes().to_vec());
    let operation = match line["call"].as_str()? {
        "get" => Operation::Get { seen: bytes("seen") },
        "put" => Operation::Put { value: bytes("value")? },
        "delete" => Operation::Delete,
        "cas" => Operation::Cas {
            expected: bytes("expected"),
            value: bytes("value")?,
            done: line["done"].as_bool()?,
        },
        _ => return None,
    };
    Some(Call {
        client: line["client"].as_u64()?,
        key: bytes("key")?,
        operation,
        invoked: line["invoked"].as_u64()?,
        returned: line["returned"].as_u64(),
    })
}
