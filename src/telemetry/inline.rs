//! A writer of lines to the journal for a process without threads.
//!
//! One datagram a line, never waited for. `tracing-journald` is not used here,
//! because its socket blocks.

use std::{
    io::{self, Write},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Makes a writer for each event.
pub(super) struct Datagrams {
    /// `None`: out of descriptors at the start. Lines are lost then.
    socket: Option<UnixDatagram>,
    path: PathBuf,
}

/// Gathers one event's line, and sends it when dropped.
pub(super) struct Datagram<'a> {
    to: &'a Datagrams,
    priority: u8,
    line: Vec<u8>,
}

impl Datagrams {
    pub(super) fn new(path: &Path) -> Self {
        let socket = UnixDatagram::unbound()
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .ok();
        Self {
            socket,
            path: path.to_owned(),
        }
    }
}

impl<'a> MakeWriter<'a> for Datagrams {
    type Writer = Datagram<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Datagram {
            to: self,
            priority: INFO,
            line: Vec::new(),
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        let priority = match *metadata.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => INFO,
            _ => 7,
        };
        Datagram {
            to: self,
            priority,
            line: Vec::new(),
        }
    }
}

impl Write for Datagram<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MAX_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Datagram<'_> {
    fn drop(&mut self) {
        let message = self.line.trim_ascii_end();
        let Some(socket) = self.to.socket.as_ref().filter(|_| !message.is_empty()) else {
            return;
        };
        let mut record = format!(
            "SYSLOG_IDENTIFIER=thv\nPRIORITY={}\nMESSAGE\n",
            self.priority
        )
        .into_bytes();
        record.extend_from_slice(&(message.len() as u64).to_le_bytes());
        record.extend_from_slice(message);
        record.push(b'\n');
        // Full, stopped or absent: the line is lost, the process goes on.
        let _ = socket.send_to(&record, &self.to.path);
    }
}

const INFO: u8 = 6;
/// Bytes of one line.
const MAX_LINE: usize = 8192;

#[cfg(test)]
mod tests {
    use tracing::{error, info, subscriber::with_default};
    use tracing_subscriber::{Registry, fmt, layer::SubscriberExt};

    use super::*;

    fn log_to(path: &Path, log: impl FnOnce()) {
        let lines = fmt::layer()
            .with_ansi(false)
            .without_time()
            .with_level(false)
            .with_target(false);
        with_default(
            Registry::default().with(lines.with_writer(Datagrams::new(path))),
            log,
        );
    }

    #[test]
    fn a_line_is_one_record_with_its_priority() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        log_to(&path, || error!(child = 7, "cannot\nstart"));
        let mut buffer = [0; 1024];
        let length = journal.recv(&mut buffer).unwrap();
        let message = b"cannot\nstart child=7";
        let mut expected = b"SYSLOG_IDENTIFIER=thv\nPRIORITY=3\nMESSAGE\n".to_vec();
        expected.extend_from_slice(&(message.len() as u64).to_le_bytes());
        expected.extend_from_slice(message);
        expected.push(b'\n');
        assert_eq!(
            String::from_utf8_lossy(&buffer[..length]),
            String::from_utf8_lossy(&expected)
        );
    }

    #[test]
    fn a_journal_that_is_absent_or_full_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        log_to(&path, || info!("nobody there"));
        let journal = UnixDatagram::bind(&path).unwrap();
        log_to(&path, || (0..10_000).for_each(|_| info!("nobody reads")));
        assert!(journal.recv(&mut [0; 1024]).is_ok());
    }
}
