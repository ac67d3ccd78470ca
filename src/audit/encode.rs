//! A record in the journal's two forms.

use serde_json::{Map, Value};

use super::Record;

/// The journal's native form: `NAME=value`, or with a length where the value holds a line break.
pub(super) fn native(record: &Record) -> Vec<u8> {
    let size: usize = record
        .fields()
        .map(|(name, value)| name.len() + value.len() + 10)
        .sum();
    let mut out = Vec::with_capacity(size);
    for (name, value) in record.fields() {
        out.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            out.push(b'\n');
            out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            out.push(b'=');
        }
        out.extend_from_slice(value.as_bytes());
        out.push(b'\n');
    }
    out
}

/// One line of JSON: strings, and arrays of strings for names that stand there more than once.
pub(super) fn json(record: &Record) -> Vec<u8> {
    let mut object = Map::new();
    for (name, value) in record.fields() {
        let value = Value::from(value);
        match object.get_mut(name) {
            None => drop(object.insert(name.to_owned(), value)),
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    let mut line = Value::Object(object).to_string().into_bytes();
    line.push(b'\n');
    line
}
