//! An event in the journal's two forms.

use std::{fmt::Display, io::Write as _, time::Duration};

use serde_json::{Map, Value};

use super::{
    Event, Record,
    record::{Fields, describe},
};

/// The journal's native form: `NAME=value`, or with a length where the value holds a line break.
/// A datagram has one: journald's code reads several, an empty line after each, but since
/// systemd 253 it takes the first alone.
pub(super) fn native(
    event: &Event,
    server: &str,
    time: Duration,
    number: Option<u64>,
    out: &mut Vec<u8>,
) {
    out.reserve(USUAL_SIZE);
    describe(event, server, time, number, &mut Native(out));
}

struct Native<'a>(&'a mut Vec<u8>);

impl Fields for Native<'_> {
    fn put(&mut self, name: &'static str, value: impl Display) {
        let start = self.0.len();
        // Never fails: it is a Vec.
        let _ = writeln!(self.0, "{name}={value}");
        let value = start + name.len() + 1..self.0.len() - 1;
        if self.0[value.clone()].contains(&b'\n') {
            let value = self.0[value].to_vec();
            self.0.truncate(start);
            self.bytes(name, &value);
        }
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.bytes(name, value.as_bytes());
    }
}

impl Native<'_> {
    fn bytes(&mut self, name: &str, value: &[u8]) {
        self.0.extend_from_slice(name.as_bytes());
        if value.contains(&b'\n') {
            self.0.push(b'\n');
            self.0
                .extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

/// One line of JSON: strings, and arrays of strings for names that stand there more than once.
pub(super) fn json(
    event: &Event,
    server: &str,
    time: Duration,
    number: Option<u64>,
    out: &mut Vec<u8>,
) {
    let record = Record::of(event, server, time, number);
    let mut object = Map::new();
    for (name, value) in record.fields() {
        let value = Value::from(value);
        match object.get_mut(name) {
            None => drop(object.insert(name.to_owned(), value)),
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    out.extend_from_slice(Value::Object(object).to_string().as_bytes());
    out.push(b'\n');
}

/// Of most records.
const USUAL_SIZE: usize = 1024;
