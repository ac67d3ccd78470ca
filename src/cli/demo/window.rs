//! Where the demo's audit records go: kept while it plays, then to stderr as they come.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;

/// A writer for `Audit::stderr`. Clones share what was written.
#[derive(Clone, Default)]
pub(super) struct Window(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    text: Vec<u8>,
    open: bool,
}

impl Window {
    /// The records so far.
    pub(super) fn records(&self) -> Vec<Value> {
        self.kept()
            .text
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }

    /// From now on records are shown instead of kept.
    pub(super) fn open(&self) {
        self.kept().open = true;
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Window {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let mut kept = self.kept();
        if kept.open {
            return io::stderr().write(text);
        }
        kept.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
