//! The file's shape as a JSON Schema, for editors.

use outlast_core::units;
use serde_json::{Map, Value, json};

use super::shape::{Absent, Key, Kind, Literal, Shape};
use super::shapes::FILE;

/// The schema of `outlast.toml`, JSON Schema draft 2020-12.
pub fn schema() -> Value {
    let mut shapes = Map::new();
    let mut schema = of_shape(&FILE, &mut shapes);
    if let Value::Object(schema) = &mut schema {
        schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        schema.insert("$defs".to_owned(), Value::Object(shapes));
    }
    schema
}

/// A table; the shapes that it refers to are put into `shapes`.
fn of_shape(shape: &'static Shape, shapes: &mut Map<String, Value>) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in shape.keys {
        properties.insert(key.name.to_owned(), of_key(key, shapes));
        if matches!(key.absent, Absent::Missing) {
            required.push(json!(key.name));
        }
    }
    let mut schema = json!({
        "title": shape.title,
        "description": shape.about,
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    if let Value::Object(schema) = &mut schema
        && !required.is_empty()
    {
        schema.insert("required".to_owned(), Value::Array(required));
    }
    schema
}

fn of_key(key: &'static Key, shapes: &mut Map<String, Value>) -> Value {
    let mut schema = of_kind(&key.kind, shapes);
    if let Value::Object(schema) = &mut schema {
        schema.insert("description".to_owned(), json!(key.about));
        if let Absent::Default(literal) = key.absent {
            let default = match literal {
                Literal::Text(text) => json!(text),
                Literal::Count(count) => json!(count),
                Literal::Number(number) => json!(number),
                Literal::Switch(switch) => json!(switch),
            };
            schema.insert("default".to_owned(), default);
        }
    }
    schema
}

fn of_kind(kind: &'static Kind, shapes: &mut Map<String, Value>) -> Value {
    match kind {
        Kind::Text(example) => json!({ "type": "string", "minLength": 1, "examples": [example] }),
        Kind::AnyText | Kind::ObjectiveName | Kind::NodeName => json!({ "type": "string" }),
        Kind::Words(words) => json!({ "enum": words }),
        Kind::Switch => json!({ "type": "boolean" }),
        Kind::Count { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Number { min, max } => {
            let mut schema = json!({ "type": "number" });
            for (word, limit) in [("minimum", *min), ("maximum", *max)] {
                if limit.abs() < f64::MAX {
                    schema[word] = json!(limit);
                }
            }
            schema
        }
        Kind::Share => json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 1 }),
        Kind::Duration { .. } => {
            let units: Vec<&str> = units::duration_units().collect();
            let pattern = format!("^(0|([0-9]+(\\.[0-9]+)?({}))+)$", units.join("|"));
            json!({ "type": "string", "pattern": pattern, "examples": ["5s"] })
        }
        Kind::Size { .. } => {
            let units: Vec<&str> = units::size_units().collect();
            let pattern = format!("^(0|[0-9]+(\\.[0-9]+)?({}))$", units.join("|"));
            json!({ "type": "string", "pattern": pattern, "examples": ["16MiB"] })
        }
        Kind::Ip => json!({ "type": "string", "examples": ["10.0.0.1"] }),
        Kind::Listen => {
            json!({ "type": "string", "pattern": "^.+:[0-9]+$", "examples": ["0.0.0.0:80"] })
        }
        Kind::Network => json!({ "type": "string", "examples": ["10.0.0.0/8"] }),
        Kind::Part(kinds) => {
            let words: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
            let pattern = format!("^({})\\.[A-Za-z0-9_-]+$", words.join("|"));
            json!({ "type": "string", "pattern": pattern })
        }
        Kind::Command => json!({ "anyOf": [
            { "type": "string", "minLength": 1 },
            { "type": "array", "items": { "type": "string" }, "minItems": 1 },
        ] }),
        Kind::List(kind) => json!({ "type": "array", "items": of_kind(kind, shapes) }),
        Kind::Map(kind) => {
            json!({ "type": "object", "additionalProperties": of_kind(kind, shapes) })
        }
        Kind::Percentiles => {
            let limit = of_kind(&Kind::Duration { zero: false }, shapes);
            json!({
                "type": "object",
                "patternProperties": { "^p[0-9]+(\\.[0-9]+)?$": limit },
                "additionalProperties": false,
            })
        }
        Kind::Table(shape) => reference(shape, shapes),
        Kind::Named(shape) => {
            let names = if shape.title.starts_with("[dns") { "" } else { "^[A-Za-z0-9_-]{1,63}$" };
            json!({
                "type": "object",
                "propertyNames": { "pattern": names },
                "additionalProperties": reference(shape, shapes),
            })
        }
        Kind::Any(kinds) => {
            let kinds: Vec<Value> = kinds.iter().map(|kind| of_kind(kind, shapes)).collect();
            json!({ "anyOf": kinds })
        }
    }
}

/// Refers to a shape's definition, and makes it if it is the first to do so.
fn reference(shape: &'static Shape, shapes: &mut Map<String, Value>) -> Value {
    let name: String =
        shape.title.chars().filter(|c| c.is_ascii_alphanumeric() || "._".contains(*c)).collect();
    if !shapes.contains_key(&name) {
        shapes.insert(name.clone(), Value::Null);
        let schema = of_shape(shape, shapes);
        shapes.insert(name.clone(), schema);
    }
    json!({ "$ref": format!("#/$defs/{name}") })
}
