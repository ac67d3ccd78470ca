//! An event in the journal's two forms.

use std::{fmt::Display, io::Write as _};

use memchr::memchr_iter;
use serde_json::{Map, Value};

use super::{
    Kind, Record,
    queue::Encode,
    record::{Fields, describe, put_common},
};

/// The journal's native form: `NAME=value`, or with a length where the value holds a line break.
/// A datagram has one: journald's code reads several, an empty line after each, but since
/// systemd 253 it takes the first alone.
pub(super) fn native(server: &str) -> Encode {
    let (server, mut common) = (server.to_owned(), Vec::new());
    Box::new(move |event, time, number, out| {
        out.reserve(USUAL_SIZE);
        let start = out.len();
        let mut fields = Native {
            out,
            common: &mut common,
            count: 0,
            may_break: false,
        };
        describe(event, &server, time, number, &mut fields);
        // A break in a value is rare, and to look for one in each costs more than all of them at once.
        let breaks = memchr_iter(b'\n', &fields.out[start..]).count();
        if breaks != fields.count {
            fields.out.truncate(start);
            fields.may_break = true;
            describe(event, &server, time, number, &mut fields);
        }
    })
}

/// What all records of a kind and a priority say: it is written down once, as each request has two.
struct Common {
    of: (Kind, u8),
    fields: usize,
    written: Vec<u8>,
}

struct Native<'a> {
    out: &'a mut Vec<u8>,
    common: &'a mut Vec<Common>,
    /// Fields that were put.
    count: usize,
    /// Values may hold line breaks, and are looked at.
    may_break: bool,
}

impl Fields for Native<'_> {
    fn put(&mut self, name: &'static str, value: impl Display) {
        if self.may_break {
            return self.text(name, &value.to_string());
        }
        self.count += 1;
        // Never fails: it is a Vec.
        let _ = writeln!(self.out, "{name}={value}");
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.count += 1;
        let out = &mut *self.out;
        out.extend_from_slice(name.as_bytes());
        if self.may_break && value.contains('\n') {
            out.push(b'\n');
            out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            out.push(b'=');
        }
        out.extend_from_slice(value.as_bytes());
        out.push(b'\n');
    }

    fn common(&mut self, of: (Kind, u8), server: &str) {
        if let Some(known) = self.common.iter().find(|known| known.of == of) {
            self.out.extend_from_slice(&known.written);
            self.count += known.fields;
            return;
        }
        let (start, before) = (self.out.len(), self.count);
        put_common(self, of, server);
        self.common.push(Common {
            of,
            fields: self.count - before,
            written: self.out[start..].to_vec(),
        });
    }
}

/// One line of JSON: strings, and arrays of strings for names that stand there more than once.
pub(super) fn json(server: &str) -> Encode {
    let server = server.to_owned();
    Box::new(move |event, time, number, out| {
        let record = Record::of(event, &server, time, number);
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
    })
}

/// Of most records.
const USUAL_SIZE: usize = 1024;
