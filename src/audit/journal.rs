//! The journal's native socket, spoken to without ever waiting for it.
//!
//! `sd_journal_send` says "sent" when journald is absent and blocks when its
//! queue is full; this one says so instead. The socket is connected, which saves
//! looking up the path for each record; a journald that comes back is found
//! again by its path.

use std::{
    io::{self, IoSlice},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, MultiHeaders, UnixAddr, sendmmsg, sendmsg},
};

use super::queue::{Sent, Sink};
use crate::sys::memfd;

pub(super) struct Socket {
    socket: UnixDatagram,
    path: PathBuf,
    /// When the path was looked up last.
    connected: Option<Instant>,
}

impl Socket {
    /// Nothing has to listen at `path` yet.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            connected: None,
        })
    }

    /// One record as a datagram.
    fn send_datagram(&mut self, record: &[u8]) -> io::Result<()> {
        self.look()?;
        let sent = self.socket.send(record).map(drop);
        match sent {
            Err(error) if is_gone(&error) => {
                self.connect()?;
                self.socket.send(record).map(drop)
            }
            sent => sent,
        }
    }

    /// Several records, a datagram each, by one system call; says how many went.
    fn send_datagrams(&mut self, records: &[&[u8]]) -> io::Result<usize> {
        self.look()?;
        let parts: Vec<_> = records
            .iter()
            .map(|record| [IoSlice::new(record)])
            .collect();
        let to_whom_it_is_connected = vec![None::<()>; records.len()];
        let mut headers = MultiHeaders::preallocate(records.len(), None);
        let sent = sendmmsg(
            self.socket.as_raw_fd(),
            &mut headers,
            &parts,
            to_whom_it_is_connected,
            [],
            MsgFlags::MSG_DONTWAIT,
        )?;
        Ok(sent.count())
    }

    /// Connects to whoever listens there now, even where the one before has not closed its socket.
    fn look(&mut self) -> io::Result<()> {
        match self.connected {
            Some(since) if since.elapsed() < LOOK_AGAIN => Ok(()),
            _ => self.connect(),
        }
    }

    fn connect(&mut self) -> io::Result<()> {
        self.connected = None;
        self.socket.connect(&self.path)?;
        self.connected = Some(Instant::now());
        Ok(())
    }

    /// A record that is too large for a datagram goes as a sealed file.
    fn send_file(&self, record: &[u8]) -> io::Result<()> {
        let file = memfd::sealed(record)?;
        self.send_fd(file.as_fd())
    }

    fn send_fd(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let address = UnixAddr::new(&self.path)?;
        let fds = [file.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg(
            self.socket.as_raw_fd(),
            &[],
            &rights,
            MsgFlags::MSG_DONTWAIT,
            Some(&address),
        )?;
        Ok(())
    }
}

impl Sink for Socket {
    fn send(&mut self, record: &[u8]) -> Sent {
        let sent = self.send_datagram(record);
        let too_large = |error: &io::Error| error.raw_os_error() == Some(Errno::EMSGSIZE as i32);
        match sent {
            Err(error) if too_large(&error) => match self.send_file(record) {
                Err(error) if too_large(&error) => Sent::Never,
                other => outcome(&other),
            },
            other => outcome(&other),
        }
    }

    fn send_first(&mut self, records: &[&[u8]]) -> usize {
        self.send_datagrams(records).unwrap_or_default()
    }
}

/// Absent, stopped, full, restarting, out of descriptors: all of it passes.
fn outcome(sent: &io::Result<()>) -> Sent {
    if sent.is_ok() { Sent::Yes } else { Sent::Later }
}

/// Whether the socket that it was connected to is there no more.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotConnected
    )
}

/// How long what listens at the path is taken for the same.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, thread, time::Duration};

    use crate::audit::{
        Audit, Decision, Event, Reason, RequestId,
        fixture::{Journald, Received, server},
    };

    const LONG: Duration = Duration::from_secs(30);

    fn decision(policy: &str) -> Event {
        Event::Decision(Decision::allowed(
            RequestId::random(),
            [policy.to_owned()].into(),
        ))
    }

    /// The numbers that arrived, and those that are reported lost.
    fn numbers(received: &[Received]) -> (Vec<u64>, u64) {
        let number = |record: &Received, name| {
            record
                .field(name)
                .map(|value| value.parse::<u64>().unwrap())
        };
        let arrived = received
            .iter()
            .filter_map(|record| number(record, "THV_SEQ"))
            .collect();
        (
            arrived,
            received
                .iter()
                .filter_map(|record| number(record, "THV_DROPPED"))
                .sum(),
        )
    }

    #[test]
    fn a_record_arrives_at_once_with_its_fields() {
        let journald = Journald::start();
        let audit = Audit::journal(journald.path(), &server()).unwrap();
        let id = RequestId::random();
        audit.record(&Event::Decision(Decision::denied(
            id,
            Reason::TokenExpired,
            401,
        )));
        let record = journald.receive();
        for (name, value) in [
            (
                "MESSAGE",
                "denied (token-expired); `thv token explain github` shows what it says and what is wanted",
            ),
            ("MESSAGE_ID", "10a520fad1d245a3b4612a4aafe999fa"),
            ("PRIORITY", "5"),
            ("SYSLOG_IDENTIFIER", "thv"),
            ("THV_SERVER", "github"),
            ("THV_DECISION", "deny"),
            ("THV_REASON", "token-expired"),
            ("THV_STATUS", "401"),
            ("THV_REQUEST_ID", &id.to_string()),
            ("THV_SEQ", "1"),
        ] {
            assert_eq!(record.field(name), Some(value), "{name}");
        }
        assert_eq!(record.field("THV_SUBJECT"), None);
    }

    #[test]
    fn records_of_one_turn_arrive_together_and_in_order() {
        let journald = Journald::start();
        let audit = Audit::journal_in_turns(journald.path(), &server()).unwrap();
        for n in 0..3 {
            audit.record(&decision(&n.to_string()));
        }
        assert!(journald.is_empty());
        audit.hand_on();
        let received: Vec<_> = (0..3).map(|_| journald.receive()).collect();
        assert_eq!(numbers(&received), (vec![1, 2, 3], 0));
        // A turn that is long waits for nobody.
        for n in 0..100 {
            audit.record(&decision(&n.to_string()));
        }
        assert!(!journald.is_empty());
        let first: Vec<_> = (0..64).map(|_| journald.receive()).collect();
        audit.hand_on();
        let last: Vec<_> = (64..100).map(|_| journald.receive()).collect();
        assert_eq!(numbers(&[first, last].concat()), ((4..=103).collect(), 0));
        // What the last has left goes with the process.
        assert!(audit.flush(LONG));
        audit.record(&decision("last"));
        drop(audit);
        assert_eq!(journald.receive().field("THV_SEQ"), Some("104"));
    }

    /// fault-45, by turns.
    #[test]
    fn a_record_that_is_too_large_for_a_datagram_keeps_its_place_in_a_turn() {
        let journald = Journald::start();
        let audit = Audit::journal_in_turns(journald.path(), &server()).unwrap();
        let large = Event::PolicyError {
            request_id: RequestId::random(),
            policies: vec!["p".to_owned()],
            errors: vec!["x".repeat(16 << 10); 30],
        };
        for event in [
            &decision("a"),
            &decision("b"),
            &large,
            &decision("c"),
            &large,
        ] {
            audit.record(event);
        }
        audit.hand_on();
        let received: Vec<_> = (0..5).map(|_| journald.receive()).collect();
        assert_eq!(numbers(&received), ((1..=5).collect(), 0));
        let as_files: Vec<_> = received.iter().map(|record| record.as_file).collect();
        assert_eq!(as_files, [false, false, true, false, true]);
    }

    /// fault-42, by turns.
    #[test]
    fn a_journald_that_reads_nothing_hears_later_what_it_missed_by_turns_as_well() {
        let journald = Journald::start();
        let audit = Audit::journal_in_turns(journald.path(), &server()).unwrap();
        for n in 1..=5_000 {
            audit.record(&decision("p"));
            // Of seven at once some may go and the others not.
            if n % 7 == 0 || n % 100 == 0 {
                audit.hand_on();
            }
        }
        let mut received = Vec::new();
        while numbers(&received).0.last() != Some(&5_000) {
            received.push(journald.receive());
        }
        let (arrived, dropped) = numbers(&received);
        assert_eq!(arrived.len() as u64 + dropped, 5_000);
        assert!(dropped > 0 && arrived.is_sorted());
        assert!(audit.flush(LONG));
    }

    /// fault-41: what was recorded while journald was away arrives when it is back, in order, with its own time.
    #[test]
    fn records_wait_for_a_journald_that_is_not_there() {
        let journald = Journald::prepare();
        let audit = Audit::journal(journald.path(), &server()).unwrap();
        for n in 0..100 {
            audit.record(&decision(&n.to_string()));
        }
        assert_eq!((audit.backlog().waiting, audit.backlog().dropped), (100, 0));
        let before = crate::audit::queue::now().as_micros();
        let journald = journald.bind();
        let received: Vec<_> = (0..100).map(|_| journald.receive()).collect();
        for (n, record) in received.iter().enumerate() {
            assert_eq!(record.field("THV_POLICY"), Some(n.to_string().as_str()));
            assert!(
                record
                    .field("THV_TIME_USEC")
                    .unwrap()
                    .parse::<u128>()
                    .unwrap()
                    <= before
            );
        }
        assert_eq!(numbers(&received), ((1..=100).collect(), 0));
        assert!(audit.flush(LONG));
    }

    /// fault-42: journald is stopped, its queue full. Nobody waits, and what is lost is counted and said.
    #[test]
    fn a_journald_that_reads_nothing_holds_up_nobody_and_hears_later_what_it_missed() {
        let journald = Journald::start();
        let audit = Audit::journal(journald.path(), &server()).unwrap();
        let before = std::time::Instant::now();
        for _ in 0..10_000 {
            audit.record(&decision("p"));
        }
        let took = before.elapsed();
        assert!(took < LONG, "{took:?}");
        let backlog = audit.backlog();
        // One more may be in the thread's hands.
        assert!((1024..=1025).contains(&backlog.waiting), "{backlog:?}");
        assert!(backlog.dropped > 8_000);

        let mut received = Vec::new();
        while numbers(&received).0.last() != Some(&10_000) {
            received.push(journald.receive());
        }
        let (arrived, dropped) = numbers(&received);
        assert_eq!(arrived.len() as u64 + dropped, 10_000);
        assert_eq!(dropped, audit.backlog().dropped);
        assert!(arrived.is_sorted());
        // Two where the thread was about to send one while more was lost.
        let reports = received
            .iter()
            .filter(|record| record.field("THV_DROPPED").is_some());
        let reports: Vec<_> = reports.collect();
        assert_eq!(
            reports[0].field("MESSAGE_ID"),
            Some("06153da70e5449debddcf126b126ea53")
        );
        // First and last name the hole exactly.
        let all: BTreeSet<u64> = arrived.iter().copied().collect();
        let named = |name| {
            reports
                .iter()
                .map(move |report| report.field(name).unwrap().parse().unwrap())
        };
        let hole: Vec<u64> = (1..=10_000)
            .filter(|number| !all.contains(number))
            .collect();
        assert_eq!(
            (hole.first().copied(), hole.last().copied()),
            (
                named("THV_DROPPED_FIRST").min(),
                named("THV_DROPPED_LAST").max()
            )
        );
        assert!(audit.flush(LONG));
    }

    /// fault-43: the socket goes and comes back, under load from many threads.
    #[test]
    fn no_record_is_lost_or_doubled_when_journald_restarts() {
        let journald = Journald::start();
        let audit = Audit::journal(journald.path(), &server()).unwrap();
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let audit = audit.clone();
                thread::spawn(move || (0..100).for_each(|_| audit.record(&decision("p"))))
            })
            .collect();
        let mut received: Vec<_> = (0..50).map(|_| journald.receive()).collect();
        let (journald, rest) = journald.restart();
        received.extend(rest);
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        while received.len() < 400 {
            received.push(journald.receive());
        }
        assert!(audit.flush(LONG));
        assert_eq!(numbers(&received), ((1..=400).collect(), 0));
    }

    /// fault-44: what a child shouts while journald is slow does not push out what is known about it.
    #[test]
    fn noise_of_a_child_does_not_displace_decisions() {
        let journald = Journald::prepare();
        let audit = Audit::journal(journald.path(), &server()).unwrap();
        let noise = Event::ChildStderr {
            child: 1,
            pid: 2,
            line: b"noise".to_vec(),
        };
        for n in 0..20_000 {
            audit.record(&noise);
            if n % 100 == 0 {
                audit.record(&decision("p"));
            }
        }
        let journald = journald.bind();
        let mut received = Vec::new();
        while received
            .iter()
            .filter(|record: &&Received| record.field("THV_DECISION").is_some())
            .count()
            < 200
        {
            received.push(journald.receive());
        }
        let (arrived, dropped) = numbers(&received);
        assert_eq!(arrived.len() as u64 + dropped, 20_200);
    }

    /// fault-45: line breaks, and sizes beyond a line's and beyond a datagram's.
    #[test]
    fn a_large_record_with_line_breaks_arrives_whole() {
        let journald = Journald::start();
        let audit = Audit::journal(journald.path(), &server()).unwrap();
        let error = "line\nTHV_DECISION=allow\n".repeat(600);
        let errors = |count| Event::PolicyError {
            request_id: RequestId::random(),
            policies: vec!["p".to_owned()],
            errors: vec![error.clone(); count],
        };
        for (count, as_file) in [(1, false), (5, false), (30, true)] {
            audit.record(&errors(count));
            let record = journald.receive();
            assert_eq!(record.as_file, as_file, "{count}");
            let found: Vec<_> = record
                .fields
                .iter()
                .filter(|(name, _)| name == "THV_ERROR")
                .collect();
            assert!(found.len() == count && found.iter().all(|(_, value)| *value == error));
            assert_eq!(record.field("THV_DECISION"), None);
        }
    }
}
