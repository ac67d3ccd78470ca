//! The cases of h2spec, a conformance test of HTTP/2 that is not ours, by prior knowledge and by TLS.
//!
//! `tests/run` builds it from what tests/peers/h2spec names, and says where in `THV_PEERS`.

use std::{path::PathBuf, process::Command};

use crate::{
    house::{House, house},
    tls,
};

/// How many cases there are: fewer would mean that it has not run.
const CASES: usize = 130;

/// Cases that may fail, by section and the beginning of the title, and why that is right.
const MAY_FAIL: &[(&str, &str, &str)] = &[
    (
        "http2/3.5",
        "Sends invalid connection preface",
        "without TLS what is no preface is HTTP/1.1, and is refused as that",
    ),
    (
        "http2/8.1.2.1",
        "Sends a HEADERS frame that contains a pseudo-header field as trailers",
        "the library leaves it out, and what comes behind a body is dropped here, whatever it is; see `http2.rs`",
    ),
    // The answer does not depend on a body, so it may be whole before that has come, and what comes
    // then is for a stream that has ended; where a body is read, see `http2.rs`.
    (
        "http2/8.1.2.6",
        "Sends a HEADERS frame with the &#34;content-length&#34; header field which does not equal",
        "answered before it came",
    ),
];

fn program() -> Option<PathBuf> {
    let place = std::env::var_os("THV_PEERS").map(PathBuf::from);
    let program = place.map(|place| place.join("peers/go/h2spec"));
    let program = program.filter(|program| program.exists());
    if program.is_none() {
        eprintln!("left out: h2spec, as THV_PEERS does not say where it is");
    }
    program
}

/// One case: its section, its title, and whether it failed.
type Case = (String, String, bool);

/// Runs it against the house, all cases, those that are only recommended included.
async fn cases(program: PathBuf, house: &House, more: &[&str]) -> Vec<Case> {
    let report = house.root().join("h2spec.xml");
    let mut command = Command::new(program);
    command
        .args([
            "--host",
            "127.0.0.1",
            "--port",
            &house.address.port().to_string(),
        ])
        // Whose answer has a body without a token.
        .args(["--path", "/.well-known/oauth-protected-resource"])
        .args(["--strict", "--timeout", "3", "--junit-report"])
        .arg(&report)
        .args(more);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    let text = std::fs::read_to_string(&report).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stdout));
    });
    let attribute = |case: &str, name: &str| {
        let rest = case.split_once(&format!("{name}=\"")).unwrap().1;
        rest.split('"').next().unwrap().to_owned()
    };
    let all = text.split("<testcase ").skip(1).map(|case| {
        let failed = case.contains("<failure") || case.contains("<error");
        let what = (attribute(case, "package"), attribute(case, "classname"));
        if failed {
            eprintln!("{what:?}: {}", case.split("</testcase>").next().unwrap());
        }
        (what.0, what.1, failed)
    });
    all.collect()
}

/// All cases hold, but those that may fail. One whose frames come when the answer has been given
/// and the stream is over has tested nothing, so what fails is tried again: it has to hold once.
async fn check(program: PathBuf, house: &House, more: &[&str]) {
    let may = |section: &str, title: &str| {
        let mut known = MAY_FAIL.iter();
        known.any(|(of, begins, _)| *of == section && title.starts_with(begins))
    };
    let mut wrong: Option<Vec<(String, String)>> = None;
    for _ in 0..TRIES {
        let cases = cases(program.clone(), house, more).await;
        assert!(cases.len() >= CASES, "only {} cases were run", cases.len());
        let failed: Vec<_> = cases
            .into_iter()
            .filter(|(section, title, failed)| *failed && !may(section, title))
            .map(|(section, title, _)| (section, title))
            .collect();
        let still = match wrong {
            None => failed,
            Some(before) => before
                .into_iter()
                .filter(|case| failed.contains(case))
                .collect(),
        };
        if still.is_empty() {
            return;
        }
        wrong = Some(still);
    }
    panic!("{wrong:#?}");
}

/// How often what depends on who is faster is tried.
const TRIES: usize = 10;

/// conn-13, conn-14: each case of h2spec, by prior knowledge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_of_h2spec_by_prior_knowledge() {
    if let Some(program) = program() {
        let house = house().open().await;
        check(program, &house, &[]).await;
    }
}

/// conn-13, conn-14: the same by TLS, where the protocol is agreed on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_of_h2spec_by_tls() {
    if let Some(program) = program() {
        let house = tls::secured().open().await;
        check(program, &house, &["--tls", "--insecure"]).await;
    }
}
