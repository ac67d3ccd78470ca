//! A layer that copies events into a bounded queue, and the thread that replays them.

use std::{
    fmt::{self, Debug},
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
};

use tracing::{
    Dispatch, Event, Metadata, Subscriber,
    field::{DisplayValue, Field, Value, Visit, display},
};
use tracing_subscriber::{Layer, layer::Context};

use super::FLUSH;

/// Makes what events are replayed into; `None`: not now, ask again later.
pub(super) type Make = Box<dyn FnMut() -> Option<Dispatch> + Send>;

/// The layer. Never blocks.
pub(super) struct Forward {
    queue: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

/// What a person reads of an event there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reader {
    /// The message and the fields, as whatever comes next writes them.
    Both,
    /// The message alone, as `journalctl` shows it: what the fields say is said there, too.
    MessageAlone,
}

/// Keeps the thread running; see [`super::init`].
#[derive(Debug)]
pub struct Guard {
    queue: Option<SyncSender<Item>>,
    /// Closed by the thread when it has ended.
    ended: Receiver<()>,
    dropped: Arc<AtomicU64>,
}

enum Item {
    Event(Owned),
    End,
}

/// An event with its values rendered or copied, by field index.
struct Owned {
    metadata: &'static Metadata<'static>,
    values: Vec<Option<Copied>>,
}

enum Copied {
    /// What `%`, `?` or the message rendered to.
    Rendered(DisplayValue<String>),
    Text(String),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
}

impl Forward {
    pub(super) fn start(make: Make, reader: Reader) -> io::Result<(Self, Guard)> {
        let (queue, items) = mpsc::sync_channel(MAX_QUEUED);
        let (end, ended) = mpsc::channel();
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&dropped);
        thread::Builder::new()
            .name("diagnostics".to_owned())
            .spawn(move || {
                Replay {
                    make,
                    reader,
                    into: None,
                    dropped: counter,
                    reported: 0,
                }
                .run(&items);
                drop(end);
            })?;
        let guard = Guard {
            queue: Some(queue.clone()),
            ended,
            dropped: Arc::clone(&dropped),
        };
        Ok((Self { queue, dropped }, guard))
    }
}

impl<S: Subscriber> Layer<S> for Forward {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut owned = Owned {
            metadata: event.metadata(),
            values: Vec::new(),
        };
        owned
            .values
            .resize_with(owned.metadata.fields().len(), || None);
        event.record(&mut owned);
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Item::Event(owned)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Guard {
    /// Events lost since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(queue) = self.queue.take() else {
            return;
        };
        // A full queue has an end too: the thread is stuck, and no one waits for it.
        if queue.try_send(Item::End).is_ok() {
            // Ended or too slow: both are an error here, and both are fine.
            let _ = self.ended.recv_timeout(FLUSH);
        }
    }
}

struct Replay {
    make: Make,
    reader: Reader,
    into: Option<Dispatch>,
    dropped: Arc<AtomicU64>,
    reported: u64,
}

impl Replay {
    fn run(&mut self, items: &Receiver<Item>) {
        for item in items {
            match item {
                Item::Event(owned) => self.replay(owned),
                Item::End => return,
            }
        }
    }

    fn replay(&mut self, mut owned: Owned) {
        if self.into.is_none() {
            self.into = (self.make)();
        }
        let Some(into) = &self.into else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if self.reader == Reader::MessageAlone {
            owned.say_fields();
        }
        owned.send(into);
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped > self.reported {
            let lost = dropped - self.reported;
            self.reported = dropped;
            tracing::dispatcher::with_default(into, || tracing::warn!(lost, "diagnostics dropped"));
        }
    }
}

impl Owned {
    /// The same event again, of the same call site, with the same fields.
    fn send(&self, into: &Dispatch) {
        let values: Vec<Option<&dyn Value>> = self
            .values
            .iter()
            .map(|value| value.as_ref().map(Copied::as_value))
            .collect();
        let values = self.metadata.fields().value_set_all(&values);
        into.event(&Event::new(self.metadata, &values));
    }

    /// Says in the message what the fields hold: `message (name=value): error`.
    fn say_fields(&mut self) {
        let mut others = Vec::new();
        let (mut message, mut why) = (None, String::new());
        for (field, value) in self.metadata.fields().iter().zip(&self.values) {
            let Some(value) = value else {
                continue;
            };
            match field.name() {
                "message" => message = Some((field.index(), value.text())),
                "error" | "reason" | "problem" | "failed" => {
                    why = format!("{why}: {}", value.text())
                }
                name => others.push(format!("{name}={}", value.text())),
            }
        }
        let Some((place, mut text)) = message else {
            return;
        };
        if !others.is_empty() {
            text = format!("{text} ({})", others.join(", "));
        }
        text.push_str(&why);
        // One line, and nothing that a terminal obeys: a value may be a stranger's.
        text = text.replace(char::is_control, "?");
        self.values[place] = Some(Copied::Rendered(display(text)));
    }

    fn put(&mut self, field: &Field, value: Copied) {
        if let Some(place) = self.values.get_mut(field.index()) {
            *place = Some(value);
        }
    }
}

impl Visit for Owned {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(
            field,
            Copied::Rendered(display(capped(format_args!("{value:?}")))),
        );
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Copied::Text(capped(format_args!("{value}"))));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Copied::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Copied::Unsigned(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Copied::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Copied::Bool(value));
    }
}

impl Copied {
    fn text(&self) -> String {
        match self {
            Self::Rendered(text) => text.to_string(),
            Self::Text(text) => text.clone(),
            Self::Signed(value) => value.to_string(),
            Self::Unsigned(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
        }
    }

    fn as_value(&self) -> &dyn Value {
        match self {
            Self::Rendered(text) => text,
            Self::Text(text) => text,
            Self::Signed(value) => value,
            Self::Unsigned(value) => value,
            Self::Float(value) => value,
            Self::Bool(value) => value,
        }
    }
}

impl Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Item")
    }
}

fn capped(text: fmt::Arguments<'_>) -> String {
    let mut out = Capped(String::new());
    // An error means that it was cut.
    let _ = fmt::Write::write_fmt(&mut out, text);
    out.0
}

/// Text that stops growing at [`MAX_VALUE`] bytes.
struct Capped(String);

impl fmt::Write for Capped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_VALUE - self.0.len();
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        let end = (0..=room)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        self.0.push_str(&text[..end]);
        Err(fmt::Error)
    }
}

/// Events that wait for the thread; beyond it, the new one is dropped and counted.
const MAX_QUEUED: usize = 1024;
/// Bytes of one value.
const MAX_VALUE: usize = 4096;

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::unix::net::UnixDatagram,
        path::Path,
        sync::Mutex,
        time::{Duration, Instant},
    };

    use tracing::{debug, info, subscriber::with_default, warn};
    use tracing_subscriber::{
        Registry,
        field::RecordFields,
        fmt::{self as lines, FormatFields, format::Writer},
        layer::SubscriberExt,
    };

    use super::*;
    use crate::sys::testing::own_run;

    /// A layer that sends as tracing-journald does: on a blocking socket.
    struct Blocking(UnixDatagram, std::path::PathBuf);

    impl<S: Subscriber> Layer<S> for Blocking {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut owned = Owned {
                metadata: event.metadata(),
                values: vec![None, None, None, None],
            };
            event.record(&mut owned);
            let texts: Vec<_> = owned
                .values
                .iter()
                .flatten()
                .map(|value| match value {
                    Copied::Rendered(text) => text.to_string(),
                    Copied::Unsigned(number) => number.to_string(),
                    _ => String::new(),
                })
                .collect();
            self.0.send_to(texts.join(" ").as_bytes(), &self.1).unwrap();
        }
    }

    fn unread(dir: &Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(dir.join("socket")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        socket
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 65536];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// fault-42: the journal's socket is open and nobody reads it.
    #[test]
    fn a_journal_that_reads_nothing_holds_up_nobody_who_logs() {
        let dir = tempfile::tempdir().unwrap();
        let journal = unread(dir.path());
        let path = dir.path().join("socket");
        let make: Make = Box::new(move || {
            Some(
                Registry::default()
                    .with(Blocking(UnixDatagram::unbound().unwrap(), path.clone()))
                    .into(),
            )
        });
        let (forward, guard) = Forward::start(make, Reader::Both).unwrap();
        let before = Instant::now();
        with_default(Registry::default().with(forward), || {
            (0..10_000_u64).for_each(|n| info!(n, "line"))
        });
        let took = before.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert!(guard.dropped() > 8_000, "{}", guard.dropped());

        // What was kept arrives once it is read, and so does the count of what was not.
        let mut lost = 0;
        let mut kept = 0;
        while kept + lost < 10_000 {
            match receive(&journal).strip_prefix("diagnostics dropped ") {
                Some(count) => lost += count.parse::<u64>().unwrap(),
                None => kept += 1,
            }
        }
        assert_eq!(lost, guard.dropped());
        drop(guard);
    }

    #[test]
    fn a_journal_that_appears_later_gets_what_is_logged_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let make: Make = Box::new(move || {
            path.exists().then(|| {
                Registry::default()
                    .with(Blocking(UnixDatagram::unbound().unwrap(), path.clone()))
                    .into()
            })
        });
        let (forward, guard) = Forward::start(make, Reader::Both).unwrap();
        with_default(Registry::default().with(forward), || {
            info!("too early");
            while guard.dropped() == 0 {
                thread::yield_now();
            }
            let journal = unread(dir.path());
            info!("in time");
            assert_eq!(
                [receive(&journal), receive(&journal)],
                ["in time", "diagnostics dropped 1"]
            );
        });
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_replayed_as_it_was_logged() {
        fn text(buffer: &Buffer) -> String {
            String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
        }
        fn layer(buffer: &Buffer) -> Dispatch {
            let buffer = buffer.clone();
            Registry::default()
                .with(
                    lines::layer()
                        .with_ansi(false)
                        .without_time()
                        .with_writer(move || buffer.clone()),
                )
                .into()
        }
        let log = || {
            warn!(issuer = %"https://sso", age = ?Duration::from_secs(3), count = 7_u64, delta = -7, ratio = 0.5, ok = true, "key refresh failed");
            info!(target: "elsewhere", "no fields but {}", 1 + 1);
            debug!(missing = None::<u64>, "an empty field");
        };
        let (direct, replayed) = (Buffer::default(), Buffer::default());
        tracing::dispatcher::with_default(&layer(&direct), log);
        let into = layer(&replayed);
        let (forward, guard) =
            Forward::start(Box::new(move || Some(into.clone())), Reader::Both).unwrap();
        with_default(Registry::default().with(forward), log);
        drop(guard);
        assert_eq!(text(&replayed), text(&direct));
        assert!(
            text(&direct).contains("issuer=https://sso age=3s count=7 delta=-7 ratio=0.5 ok=true")
        );
    }

    /// `journalctl` shows the message alone: of a server that cannot be reached it would not say which, and why.
    #[test]
    fn where_only_the_message_is_read_it_says_what_the_fields_hold() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let lines = lines::layer()
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .with_level(false)
            .fmt_fields(MessageAlone)
            .with_writer(move || writer.clone());
        let into: Dispatch = Registry::default().with(lines).into();
        let make: Make = Box::new(move || Some(into.clone()));
        let (forward, guard) = Forward::start(make, Reader::MessageAlone).unwrap();
        with_default(Registry::default().with(forward), || {
            warn!(error = %"`sso.example.com`: Connection refused\n\u{1b}[31m", "the server cannot be reached");
            warn!(issuer = %"https://sso", age = 7_u64, error = %"gone", "key refresh failed");
            info!("nothing to add");
        });
        drop(guard);
        let said = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            said.lines().collect::<Vec<_>>(),
            [
                "the server cannot be reached: `sso.example.com`: Connection refused??[31m",
                "key refresh failed (issuer=https://sso, age=7): gone",
                "nothing to add",
            ]
        );
    }

    /// Writes the message, as `journalctl` does.
    struct MessageAlone;

    impl<'w> FormatFields<'w> for MessageAlone {
        fn format_fields<R: RecordFields>(&self, mut to: Writer<'w>, fields: R) -> fmt::Result {
            struct Message(String);
            impl Visit for Message {
                fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                    if field.name() == "message" {
                        self.0 = format!("{value:?}");
                    }
                }
            }
            let mut message = Message(String::new());
            fields.record(&mut message);
            to.write_str(&message.0)
        }
    }

    #[test]
    fn a_value_is_cut_where_it_gets_too_long() {
        let mut text = Capped(String::new());
        assert!(fmt::Write::write_str(&mut text, &"x".repeat(MAX_VALUE)).is_ok());
        assert!(fmt::Write::write_str(&mut text, "y").is_err());
        let mut text = Capped(String::new());
        assert!(fmt::Write::write_str(&mut text, &"ä€".repeat(MAX_VALUE)).is_err());
        assert!(text.0.len() <= MAX_VALUE && text.0.len() > MAX_VALUE - 4);
    }

    /// The real tracing-journald, whose socket path is fixed: with a /run of the test's own.
    #[test]
    fn tracing_journald_behind_the_queue_sends_our_fields_and_stalls_nobody() {
        let test = move || {
            if let Err(why) = own_run() {
                return eprintln!("skipped: {why}");
            }
            std::fs::create_dir_all("/run/systemd/journal").unwrap();
            let journal = unread(Path::new("/run/systemd/journal"));
            let (forward, guard) =
                Forward::start(Box::new(super::super::journal), Reader::MessageAlone).unwrap();
            with_default(Registry::default().with(forward), || {
                info!(issuer = %"https://sso", "first");
                (0..10_000).for_each(|_| debug!("noise"));
            });
            assert!(guard.dropped() > 8_000);
            // The first datagram is tracing-journald's own empty probe.
            assert_eq!(receive(&journal), "");
            let first = receive(&journal);
            for part in [
                "PRIORITY\n\u{1}\0\0\0\0\0\0\x006\n",
                "SYSLOG_IDENTIFIER\n",
                "MESSAGE\n",
                "first (issuer=https://sso)\n",
                "ISSUER\n",
                "https://sso\n",
                "CODE_FILE\n",
            ] {
                assert!(first.contains(part), "{part}: {first}");
            }
            // A report of what was dropped may come in between.
            let noise = std::iter::repeat_with(|| receive(&journal))
                .find(|record| record.contains("noise"))
                .unwrap();
            assert!(noise.contains("PRIORITY\n\u{1}\0\0\0\0\0\0\x007\n"));
        };
        // A thread of its own, because it leaves the namespace of the others.
        thread::spawn(test).join().unwrap();
    }
}
