//! A program whose exec hangs for as long as a test likes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

/// Writes a program that becomes `command`, into a directory that a server may be shown.
pub fn program(command: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let everybodys = fs::Permissions::from_mode(0o755);
    fs::set_permissions(place.path(), everybodys.clone()).unwrap();
    let program = place.path().join("program");
    // What it becomes does not have it open any more.
    fs::write(&program, format!("#!/bin/sh\nexec {}\n", command.join(" "))).unwrap();
    fs::set_permissions(&program, everybodys).unwrap();
    (place, program)
}

/// Held on a program: its exec hangs until this is dropped.
pub struct Lease {
    holder: Child,
    said: BufReader<ChildStdout>,
}

impl Lease {
    pub fn on(program: &Path) -> Self {
        let mut holder = Command::new("python3")
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/it/servers/lease.py"
            ))
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(holder.stdout.take().unwrap());
        let mut lease = Self { holder, said };
        lease.hear("held");
        lease
    }

    /// Waits until somebody is about to execute it.
    pub fn is_asked(&mut self) {
        self.hear("asked");
    }

    /// The same, beside other work of this thread's.
    pub async fn asked(mut self) -> Self {
        let asked = tokio::task::spawn_blocking(move || {
            self.is_asked();
            self
        });
        asked.await.unwrap()
    }

    fn hear(&mut self, word: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), word);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
