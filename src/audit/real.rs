//! Against the real systemd-journald, in a mount namespace of the test's own.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{Aim, Audit, Decision, Event, JOURNAL, Reason, RequestId, fixture::server};
use crate::{auth::Identity, sys::testing::own_run};

const PROGRAM: &str = "/lib/systemd/systemd-journald";
const LONG: Duration = Duration::from_secs(30);

/// A running journald; ends with it.
struct Journald(Child);

impl Journald {
    /// Starts one for this thread, which leaves the others' mount namespace for it.
    fn start() -> Result<Self, String> {
        if !Path::new(PROGRAM).exists() {
            return Err(format!("{PROGRAM} is not installed"));
        }
        own_run()?;
        fs::create_dir_all("/run/systemd/journal").unwrap();
        fs::create_dir_all("/run/log/journal").unwrap();
        let child = Command::new(PROGRAM)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut journald = Self(child);
        while !journald.sync() {
            if let Some(status) = journald.0.try_wait().unwrap() {
                return Err(format!("{PROGRAM} does not run here ({status})"));
            }
        }
        Ok(journald)
    }

    /// Whether everything sent so far can be read.
    fn sync(&self) -> bool {
        Command::new("journalctl")
            .arg("--sync")
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    }

    /// What `journalctl -o json` finds by these fields.
    fn find(&self, fields: &[&str]) -> Vec<Value> {
        assert!(self.sync());
        let output = Command::new("journalctl")
            .args(["-o", "json", "--all"])
            .args(fields)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs on a thread of its own, or says why it cannot.
fn with_journald(test: impl FnOnce(&Journald) + Send + 'static) {
    let run = || match Journald::start() {
        Ok(journald) => test(&journald),
        Err(why) => eprintln!("skipped: {why}"),
    };
    thread::spawn(run).join().unwrap();
}

#[test]
fn the_real_journal_finds_exactly_the_refused_requests_with_subject_and_policy() {
    with_journald(|journald| {
        let audit = Audit::journal(JOURNAL.as_ref(), &server()).unwrap();
        let who = Identity::example("https://sso", "alice\nTHV_DECISION=allow");
        let denied = RequestId::random();
        audit.record(&Event::Decision(Decision::allowed(
            RequestId::random(),
            ["github:a".into()].into(),
        )));
        audit.record(&Event::Decision(Decision {
            who: Some(who.into()),
            method: Some("tools/call".into()),
            aim: Aim::Tool("rm".into()),
            policies: ["github:b".into(), "github:c".into()].into(),
            ..Decision::denied(denied, Reason::Policy, 403)
        }));
        audit.record(&Event::Decision(Decision::denied(
            RequestId::random(),
            Reason::TokenMissing,
            401,
        )));
        audit.record(&Event::ChildStderr {
            child: 1,
            pid: 2,
            line: b"THV_DECISION=deny\n\xff".to_vec(),
        });

        assert_eq!(journald.find(&["THV_SERVER=github"]).len(), 4);
        let found = journald.find(&["THV_DECISION=deny"]);
        assert_eq!(
            found
                .iter()
                .map(|record| &record["THV_REASON"])
                .collect::<Vec<_>>(),
            ["policy", "token-missing"]
        );
        assert_eq!(found[0]["THV_SUBJECT"], "alice\nTHV_DECISION=allow");
        assert_eq!(found[0]["THV_DECISION"], "deny");
        assert_eq!(
            found[0]["THV_POLICY"],
            serde_json::json!(["github:b", "github:c"])
        );
        assert_eq!(found[0]["SYSLOG_IDENTIFIER"], "thv");
        assert_eq!(found[1]["THV_SUBJECT"], Value::Null);
        assert_eq!(
            journald.find(&[&format!("THV_REQUEST_ID={denied}")]).len(),
            1
        );
        assert_eq!(journald.find(&["THV_POLICY=github:c"]).len(), 1);
        assert_eq!(
            journald.find(&["THV_STREAM=stderr"])[0]["MESSAGE"],
            "THV_DECISION=deny\\u{a}\u{fffd}"
        );
    });
}

/// Those of one turn come together; each is an entry of its own, whatever stands in the others.
#[test]
fn the_real_journal_takes_the_records_of_a_turn_one_by_one() {
    with_journald(|journald| {
        let audit = Audit::journal_in_turns(JOURNAL.as_ref(), &server()).unwrap();
        let policy = |number: usize| match number % 3 {
            0 => format!("p{number}"),
            1 => format!("p{number}\n\nTHV_POLICY=forged\n\n"),
            _ => "x".repeat(number * 100),
        };
        let wanted: Vec<String> = (0..60).map(policy).collect();
        for policy in &wanted {
            audit.record(&Event::Decision(Decision::allowed(
                RequestId::random(),
                [policy.clone()].into(),
            )));
        }
        audit.hand_on();
        // A journal that is slow has the rest a little later.
        assert!(audit.flush(LONG));
        let found = journald.find(&["THV_DECISION=allow"]);
        let came: Vec<&str> = found
            .iter()
            .map(|record| record["THV_POLICY"].as_str().unwrap())
            .collect();
        assert!(came == wanted, "{} of {}", came.len(), wanted.len());
    });
}

/// fault-45: as a datagram and as a sealed file.
#[test]
fn the_real_journal_takes_large_records_whole() {
    with_journald(|journald| {
        let audit = Audit::journal(JOURNAL.as_ref(), &server()).unwrap();
        for count in [4, 40] {
            let errors = (0..count)
                .map(|n| format!("{n}\n{}", "x".repeat(15_000)))
                .collect();
            audit.record(&Event::PolicyError {
                request_id: RequestId::random(),
                policies: Vec::new(),
                errors,
            });
        }
        let found = journald.find(&["THV_EVENT=policy-error"]);
        let sizes: Vec<_> = found
            .iter()
            .map(|record| record["THV_ERROR"].as_array().unwrap().len())
            .collect();
        assert_eq!(sizes, [4, 40]);
        let all: Vec<_> = found[1]["THV_ERROR"]
            .as_array()
            .unwrap()
            .iter()
            .map(|error| error.as_str().unwrap().len())
            .collect();
        assert!(all.iter().all(|length| *length > 15_000), "{all:?}");
    });
}

/// fault-42: SIGSTOP, more records than wait, SIGCONT.
#[test]
fn a_stopped_real_journal_holds_up_nobody_and_gets_everything_or_a_count() {
    with_journald(|journald| {
        let audit = Audit::journal(JOURNAL.as_ref(), &server()).unwrap();
        journald.signal(Signal::SIGSTOP);
        for _ in 0..3_000 {
            audit.record(&Event::Decision(Decision::denied(
                RequestId::random(),
                Reason::TokenExpired,
                401,
            )));
        }
        let backlog = audit.backlog();
        assert!((1024..=1025).contains(&backlog.waiting), "{backlog:?}");
        journald.signal(Signal::SIGCONT);
        assert!(audit.flush(LONG));
        let arrived: Vec<u64> = journald
            .find(&["THV_DECISION=deny"])
            .iter()
            .map(|record| record["THV_SEQ"].as_str().unwrap().parse().unwrap())
            .collect();
        assert!(arrived.is_sorted());
        let reports = journald.find(&["THV_EVENT=records-dropped"]);
        // Two where the thread was about to send one while more was lost.
        assert!((1..=2).contains(&reports.len()), "{reports:?}");
        let numbers = |name: &'static str| {
            let number =
                move |report: &Value| report[name].as_str().unwrap().parse::<u64>().unwrap();
            reports.iter().map(number)
        };
        assert_eq!(numbers("THV_DROPPED").sum::<u64>(), audit.backlog().dropped);
        let hole: Vec<u64> = (1..=3_000)
            .filter(|number| arrived.binary_search(number).is_err())
            .collect();
        let (first, last) = (numbers("THV_DROPPED_FIRST"), numbers("THV_DROPPED_LAST"));
        let named = first.min().unwrap()..=last.max().unwrap();
        assert_eq!(hole, named.collect::<Vec<_>>());
    });
}

#[test]
fn the_catalog_is_accepted_by_journalctl() {
    let root = tempfile::tempdir().unwrap();
    let catalog = root.path().join("usr/lib/systemd/catalog");
    fs::create_dir_all(&catalog).unwrap();
    fs::create_dir_all(root.path().join("var/lib/systemd/catalog")).unwrap();
    fs::write(
        catalog.join("thv.catalog"),
        include_str!("../../systemd/catalog/thv.catalog"),
    )
    .unwrap();
    let journalctl = |argument: &str| {
        Command::new("journalctl")
            .arg(format!("--root={}", root.path().display()))
            .arg(argument)
            .output()
    };
    match journalctl("--update-catalog") {
        Ok(output) => assert!(
            output.status.success() && output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => return eprintln!("skipped: journalctl is not installed ({error})"),
    }
    let list = String::from_utf8(journalctl("--list-catalog").unwrap().stdout).unwrap();
    assert_eq!(list.lines().count(), super::Kind::ALL.len(), "{list}");
    assert!(list.lines().all(|line| line.contains("thv: ")), "{list}");
}
