//! Opaque tokens (RFC 7662) through the whole gateway: only their issuer can say whose
//! they are, and what goes wrong between it and the gateway is no token's fault.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use thv::time::Clock;
use tokio::task::JoinSet;

use crate::{
    house::{House, house},
    identity::{caller, claims, is_refused, is_served, is_told, last_decision, now},
    issuer::{AS_JSON, Issuer, Reply, raw},
    provider::pass,
    wire::Answer,
};

const ASK: &str = "/introspect";
/// How long an issuer's no is remembered, and then some.
const NEGATIVE: Duration = Duration::from_secs(11);
/// How long it is left alone when it could say nothing.
const RETRY: Duration = Duration::from_secs(5);

/// A house that asks its issuer about tokens which are no JWT; its wall clock is `later` ahead.
struct Asking {
    issuer: Issuer,
    house: House,
    later: Arc<AtomicU64>,
}

impl Asking {
    async fn open() -> Self {
        let issuer = Issuer::with(&[]).await;
        let (later, system) = (Arc::new(AtomicU64::new(0)), Clock::system());
        let offset = later.clone();
        let house = house()
            .trusting(&issuer.name())
            .clock(Clock::new(move || {
                system.now() + offset.load(Ordering::Relaxed)
            }))
            .credential("sso", "s p+c\n")
            .issuer(&format!(
                "clients = [\"editor\"]\nintrospection = {{ url = \"{}\", client-id = \"thv:1\", credential = \"sso\" }}\n",
                issuer.url(ASK)
            ))
            .open()
            .await;
        let asking = Self {
            issuer,
            house,
            later,
        };
        asking.says(|_| {});
        asking
    }

    /// From now on it says this of every token: a good answer, changed.
    fn says(&self, change: impl FnOnce(&mut Value)) {
        let mut answer = claims(&self.house);
        answer["active"] = json!(true);
        change(&mut answer);
        self.issuer.set(ASK, Reply::Json(answer));
    }

    async fn shows(&self, token: &str) -> Answer {
        caller(&self.house, token.to_owned()).initialize().await
    }

    /// Let in, if only to be told that there is no such session: nothing is started for it.
    async fn lets_in(&self, token: &str) -> bool {
        let mut caller = caller(&self.house, token.to_owned());
        caller.session = Some("0".repeat(32));
        caller.call("echo", json!({})).await.status == 404
    }

    fn asked(&self) -> usize {
        self.issuer.asked(ASK)
    }

    /// Neither accepted nor called invalid (503), and an alarm with these words.
    fn is_put_off(&self, answer: &Answer, why: &str) {
        let said = (
            "the identity provider cannot be reached",
            "provider-unavailable",
        );
        is_told(
            &self.house,
            answer,
            (503, None),
            said,
            "provider-unavailable",
        );
        assert_eq!(answer.header("retry-after"), Some("5"));
        let records = self.house.records.all();
        let alarm = records
            .iter()
            .rfind(|record| record.contains("THV_EVENT=keys-unavailable "));
        assert!(
            alarm.is_some_and(|alarm| alarm.contains(why)),
            "{why}: {alarm:?}"
        );
    }
}

/// tok-106, tok-107: only the truth value `true` is a yes.
#[tokio::test]
async fn a_token_of_which_its_issuer_says_no_is_refused() {
    let asking = Asking::open().await;
    for (number, said) in [
        json!(false),
        json!("true"),
        json!("True"),
        json!(1),
        json!(null),
        json!([true]),
        json!({}),
    ]
    .into_iter()
    .enumerate()
    {
        asking.says(|answer| answer["active"] = said);
        let answer = asking.shows(&format!("opaque-{number}")).await;
        is_refused(&asking.house, &answer, "token-inactive");
    }
    asking.says(|answer| {
        answer.as_object_mut().unwrap().remove("active");
    });
    is_refused(
        &asking.house,
        &asking.shows("missing").await,
        "token-inactive",
    );
    asking.says(|_| {});
    is_served(&asking.house, "good+1/~", "alice").await;
    // As a form, under this server's own name (RFC 7662 §2.1), encoded before it is joined.
    let heard = asking.issuer.heard().pop().unwrap();
    assert!(
        heard.ends_with("\r\n\r\ntoken=good%2B1%2F~&token_type_hint=access_token"),
        "{heard}"
    );
    assert!(heard.contains("Basic dGh2JTNBMTpzJTIwcCUyQmM="), "{heard}");
}

/// tok-108: what is active is judged by the same rules as a token that says so itself.
#[tokio::test]
async fn an_active_token_for_somebody_else_is_refused() {
    let asking = Asking::open().await;
    let (issuer, audience, wrong) = ("token-issuer", "token-audience", "token-claim");
    let changes = [
        (issuer, "iss", Value::Null),
        (issuer, "iss", json!("https://evil.example")),
        (issuer, "iss", json!(format!("{}/", asking.issuer.name()))),
        (audience, "aud", Value::Null),
        (audience, "aud", json!("https://other.example")),
        (audience, "aud", json!([])),
        (wrong, "exp", Value::Null),
        (wrong, "exp", json!("soon")),
        ("token-expired", "exp", json!(now() - 100)),
        ("token-not-yet-valid", "nbf", json!(now() + 100)),
        ("token-client", "client_id", Value::Null),
        ("token-client", "client_id", json!("other")),
        (wrong, "sub", json!("")),
        (wrong, "scope", json!(7)),
        (wrong, "cnf", json!({ "jkt": "x" })),
        ("token-binding", "token_type", json!("DPoP")),
        ("token-type", "token_type", json!("refresh_token")),
    ];
    for (number, (reason, name, value)) in changes.into_iter().enumerate() {
        asking.says(|answer| {
            if name == "exp" {
                // It was issued before it ended.
                answer["iat"] = json!(now() - 300);
            }
            match value {
                Value::Null => {
                    answer.as_object_mut().unwrap().remove(name);
                }
                value => answer[name] = value,
            }
        });
        let answer = asking.shows(&format!("opaque-{number}")).await;
        is_refused(&asking.house, &answer, reason);
    }
    asking.says(|_| {});
    is_served(&asking.house, "good", "alice").await;
}

/// tok-109, tok-110, tok-112: what goes wrong between the gateway and the issuer lets nobody in and calls nobody a liar.
#[tokio::test]
async fn an_issuer_that_cannot_say_makes_no_token_bad() {
    let asking = Asking::open().await;
    let good = json!({ "active": true }).to_string();
    let jwt = "Content-Type: application/token-introspection+jwt\r\n";
    for (status, headers, body, why) in [
        (
            "401 Unauthorized",
            AS_JSON,
            "{}",
            "refuses this server's client",
        ),
        (
            "403 Forbidden",
            AS_JSON,
            &*good,
            "refuses this server's client",
        ),
        ("500 Internal Server Error", AS_JSON, &*good, "500"),
        ("503 Service Unavailable", "", "", "503"),
        ("302 Found", "Location: /elsewhere\r\n", "", "redirects"),
        (
            "200 OK",
            jwt,
            "e30.e30.e30",
            "application/token-introspection+jwt",
        ),
        ("200 OK", jwt, &*good, "application/token-introspection+jwt"),
        ("200 OK", "Content-Type: text/html\r\n", &*good, "text/html"),
        ("200 OK", AS_JSON, "e30.e30.e30", "no JSON object"),
        ("200 OK", AS_JSON, "[true]", "no JSON object"),
        ("200 OK", AS_JSON, "", "no JSON object"),
    ] {
        asking.issuer.set(ASK, raw(status, headers, body));
        let asked = asking.asked();
        asking.is_put_off(&asking.shows("opaque").await, why);
        assert_eq!(asking.asked(), asked + 1, "{why}");
        pass(RETRY).await;
    }
    // An outage is asked about once, not once a token.
    asking
        .issuer
        .set(ASK, raw("500 Internal Server Error", "", ""));
    let asked = asking.asked();
    for number in 0..20 {
        let answer = asking.shows(&format!("opaque-{number}")).await;
        asking.is_put_off(&answer, "500");
    }
    assert_eq!(asking.asked(), asked + 1);
    pass(RETRY).await;
    asking.says(|_| {});
    is_served(&asking.house, "opaque", "alice").await;
}

/// tok-110: one that says nothing is given its five seconds, once.
#[tokio::test]
async fn an_issuer_that_is_silent_costs_its_deadline_once() {
    let asking = Asking::open().await;
    asking.issuer.set(ASK, Reply::Silence);
    let start = Instant::now();
    asking.is_put_off(&asking.shows("opaque").await, "within 5 seconds");
    let deadline = Duration::from_secs(5)..Duration::from_secs(15);
    assert!(deadline.contains(&start.elapsed()), "{:?}", start.elapsed());
    let start = Instant::now();
    asking.is_put_off(&asking.shows("another").await, "within 5 seconds");
    assert!(start.elapsed() < Duration::from_secs(4));
    pass(RETRY).await;
    asking.says(|_| {});
    assert!(asking.lets_in("opaque").await);
    let last = last_decision(&asking.house);
    assert!(last.contains("THV_SUBJECT=alice "), "{last}");
}

/// tok-111: a yes holds for a minute at most and never beyond `exp`, a no for ten seconds, each for its token alone.
#[tokio::test]
async fn what_an_issuer_said_holds_for_a_while() {
    let asking = Asking::open().await;
    let later = |seconds| asking.later.store(seconds, Ordering::Relaxed);
    for (at, asked) in [(0, 1), (50, 1), (61, 2), (100, 2), (125, 3)] {
        later(at);
        assert!(asking.lets_in("opaque").await, "{at}");
        assert_eq!(asking.asked(), asked, "{at} seconds later");
    }
    later(0);
    assert!(asking.lets_in("another").await);
    assert_eq!(asking.asked(), 4, "one token says nothing of another");

    // Ten seconds are left of it: beyond them the issuer is asked each time, whose clock decides.
    later(200);
    asking.says(|answer| answer["exp"] = json!(now() + 210));
    assert!(asking.lets_in("short").await && asking.lets_in("short").await);
    assert_eq!(asking.asked(), 5);
    later(211);
    assert!(asking.lets_in("short").await && asking.lets_in("short").await);
    assert_eq!(asking.asked(), 7, "within the leeway it is not remembered");
    asking.says(|answer| answer["active"] = json!(false));
    assert!(!asking.lets_in("short").await);

    let asked = asking.asked();
    for _ in 0..3 {
        assert!(!asking.lets_in("short").await);
        is_refused(&asking.house, &asking.shows("no").await, "token-inactive");
    }
    assert_eq!(asking.asked(), asked + 1, "its no is remembered, too");
    pass(NEGATIVE).await;
    asking.says(|answer| answer["exp"] = json!(now() + 400));
    assert!(asking.lets_in("no").await);
    assert_eq!(asking.asked(), asked + 2);
}

/// tok-111: and however many are refused, they push nobody out and nothing grows without bound.
#[tokio::test]
async fn thousands_of_refused_tokens_cost_no_good_one_its_place() {
    let asking = Asking::open().await;
    assert!(asking.lets_in("good").await);
    asking.says(|answer| answer["active"] = json!(false));
    for batch in 0..100 {
        let mut strangers = JoinSet::new();
        for number in 0..50 {
            let mut stranger = caller(&asking.house, format!("made-up-{batch}-{number}"));
            strangers.spawn(async move { stranger.initialize().await.status });
        }
        for status in strangers.join_all().await {
            assert!(matches!(status, 401 | 503), "{status}");
        }
    }
    let asked = asking.asked();
    assert!(asking.lets_in("good").await);
    assert_eq!(asking.asked(), asked, "its yes is still remembered");
    let last = last_decision(&asking.house);
    assert!(last.contains("THV_SUBJECT=alice "), "{last}");
    assert_eq!(asking.house.children_started(), 0);
}
