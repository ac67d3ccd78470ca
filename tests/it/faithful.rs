//! Bytes in are bytes out, through the whole gateway: what no serializer would write, of either era and over either
//! transport, in both directions. What may be another is what the manual lists, and is said here byte for byte.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    house::{Caller, House, call, house},
    modern,
    wire::{self, Answer, PATIENCE},
};

/// Texts as JSON allows them, the same in each run.
struct Odd(u64);

impl Odd {
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    fn below(&mut self, limit: usize) -> usize {
        // Knuth's constants; the high bits are good enough.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    /// White space between tokens: a line has no line feed in it.
    fn space(&mut self, line: bool) -> &'static str {
        let one = ["", "", "", " ", "\t ", " \n", "\r\n "];
        let found = self.one(&one);
        if line && found.contains('\n') {
            "\r"
        } else {
            found
        }
    }

    fn inside(&mut self) -> String {
        let parts = [
            "a",
            "é",
            "e\u{301}",
            "😀",
            "\u{2028}",
            "\u{feff}",
            r"\u0041",
            r"\u00e9",
            r"\ud83d\ude00",
            r"\uD83D\uDE00",
            r"\/",
            "/",
            r"\u0000",
            r"\n",
            r"\r\n",
            r#"\""#,
            r"\\",
            "data: ",
            "\u{7f}",
            r"\u2028",
            "id",
        ];
        (0..self.below(4)).map(|_| self.one(&parts)).collect()
    }

    fn text(&mut self) -> String {
        format!("\"{}\"", self.inside())
    }

    fn value(&mut self, depth: usize, line: bool) -> String {
        let numbers = [
            "1e400",
            "-0",
            "-0.0e-0",
            "1.0",
            "1E+2",
            "0.10e-07",
            "9007199254740993",
            "18446744073709551616",
            "-1e-999",
            "3.141592653589793238462643383279502884197",
            "true",
            "false",
            "null",
            "{}",
            "[]",
            "[ ]",
            "{\t}",
        ];
        match self.below(if depth == 0 { 3 } else { 6 }) {
            0 | 1 => self.one(&numbers).to_owned(),
            2 => self.text(),
            3 => {
                let of: Vec<String> = (0..self.below(4))
                    .map(|_| self.spaced(depth, line))
                    .collect();
                format!("[{}]", of.join(","))
            }
            _ => {
                let count = self.below(4);
                // Names in no order, none twice.
                let of: Vec<String> = (0..count)
                    .map(|at| {
                        let (a, name, b) = (self.space(line), self.inside(), self.space(line));
                        let value = self.spaced(depth, line);
                        format!("{a}\"{name}{}\"{b}:{value}", count - at)
                    })
                    .collect();
                format!("{{{}}}", of.join(","))
            }
        }
    }

    fn spaced(&mut self, depth: usize, line: bool) -> String {
        let (a, b) = (self.space(line), self.space(line));
        format!("{a}{}{b}", self.value(depth - 1, line))
    }

    fn id(&mut self) -> String {
        match self.below(4) {
            0 => "-7".to_owned(),
            1 => "9223372036854775807".to_owned(),
            _ => self.text(),
        }
    }
}

/// Line breaks between tokens are spaces on the other side, each byte of them one.
fn flat(text: &str) -> String {
    text.replace("\r\n", "  ").replace(['\r', '\n'], " ")
}

const VERSION: &str = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28""#;
const CLIENT: &str = r#""io.modelcontextprotocol/clientInfo":{"name":"it","version":"1"}"#;
const CAN: &str = r#""io.modelcontextprotocol/clientCapabilities":{}"#;
const SERVER: &str =
    r#""_meta":{"io.modelcontextprotocol/serverInfo":{"name": "exact","version":"1"}}"#;

/// What speaks what.
#[derive(Clone, Copy, Debug)]
struct Way {
    client_is_modern: bool,
    server_is_modern: bool,
    over_http: bool,
    scope: &'static str,
}

/// A message with an id and a token in their places.
type Spelled = Box<dyn Fn(&str, &str) -> String>;

/// One message of each direction in every spelling, and what it has to be on the other side.
struct Exchange {
    request: Spelled,
    /// The same under a number of the gateway's, which is its token, too.
    heard: Spelled,
    progress: Option<[String; 2]>,
    answer: [String; 2],
    id: String,
    token: String,
}

impl Way {
    fn exchange(self, odd: &mut Odd) -> Exchange {
        let (id, token) = (odd.id(), odd.id());
        let [s, t, u] = [0; 3].map(|_| odd.space(false));
        // Over HTTP a server's messages may have lines, too.
        let line = !self.over_http;
        let [a, b] = [0; 2].map(|_| odd.space(line));
        let [one, two, three] = [0; 3].map(|_| odd.value(4, line));
        let part = |text: &str| text.replace("@1@", &one).replace("@2@", &two);
        let is_stream = odd.below(2) == 0;
        // In events a line's end is one, however it is written.
        let flat_answer = |text: &str| match is_stream && self.over_http {
            true => flat(&text.replace("\r\n", "\n")),
            false => flat(text),
        };
        let progress = is_stream.then(|| {
            let said = format!(
                r#"{a}{{"params":{{"progressToken"{b}:@TOKEN@{a},"progress":1.0,"x":{three}}},{b}"jsonrpc":"2.0","method":"notifications/progress"}}"#
            );
            [said.clone(), flat_answer(&said).replace("@TOKEN@", &token)]
        });
        let members = part(&format!(
            r#"{a}"n\u0061me"{b}:{b}@1@,{b}"structuredContent" :@2@{a}"#
        ));
        let fails = odd.below(4) == 0;
        let result = |members: &str| {
            let what = if fails {
                part(&format!(
                    r#""error":{{"code":-32000,{a}"message":"m\u00e9","data":{b}@1@{a}}}"#
                ))
            } else {
                format!(r#""result"{a}:{b}{{{members}}}"#)
            };
            let id = format!(r#""id"{b}:{a}@ID@{b}"#);
            format!(r#"{b}{{{what},{a}{id},"jsonrpc":"2.0"}}{a}"#)
        };
        // What a server of that era says besides, and what its client hears in place of that.
        let (said, told) = match (self.server_is_modern, self.client_is_modern) {
            (true, true) => (
                r#""resultType":"complete","#,
                r#""resultType":"complete","#.to_owned(),
            ),
            (true, false) => (r#""resultType":"complete","#, String::new()),
            (false, true) => ("", format!(r#""resultType":"complete",{SERVER},"#)),
            (false, false) => ("", String::new()),
        };
        let answer = [
            result(&format!("{said}{members}")),
            flat_answer(&result(&format!("{told}{members}"))).replace("@ID@", &id),
        ];

        let arguments = odd.value(4, false);
        let lines: Vec<&str> = progress
            .iter()
            .map(|it| it[0].as_str())
            .chain([answer[0].as_str()])
            .collect();
        let say = STANDARD.encode(lines.join("\0"));
        let last = odd.below(2) == 0;
        let text = move |meta: &str, id: &str, token: &str| {
            let meta = format!(r#"{{{meta}{t}"k":-0,{s}"progressToken"{u}:{s}{token}{t}}}"#);
            let params = format!(
                r#""params"{s}:{t}{{"arguments":{u}{{"odd":{s}{arguments}{t},"say":"{say}"}},{s}"_meta":{meta},"name"{u}:"ex\u0061ct"{s}}}"#
            );
            let id = format!(r#""id"{t}:{u}{id}{s}"#);
            let (first, second) = if last { (params, id) } else { (id, params) };
            format!(r#"{s}{{{first},{u}"jsonrpc":"2.0",{t}"method"{s}:"tools/call",{second}}}{t}"#)
        };
        let said = if self.client_is_modern {
            format!("{VERSION},{s}{CAN},")
        } else {
            String::new()
        };
        let heard = match (self.client_is_modern, self.server_is_modern) {
            (false, true) => format!("{VERSION},{CAN},{CLIENT},"),
            (true, false) => String::new(),
            _ => said.clone(),
        };
        let sent = text.clone();
        Exchange {
            request: Box::new(move |id, token| sent(&said, id, token)),
            heard: Box::new(move |id, token| flat(&text(&heard, id, token))),
            progress,
            answer,
            id,
            token,
        }
    }

    async fn open(self) -> House {
        let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/servers/exact.py");
        let mut command = vec!["/usr/bin/python3", "-u", server];
        command.extend(self.over_http.then_some("8080"));
        command.extend(self.server_is_modern.then_some("--modern"));
        let http = "transport = \"http\"\nport = 8080\n";
        let http = if self.over_http { http } else { "" };
        let top = format!("scope = \"{}\"\n{http}", self.scope);
        house().command(&command).top(&top).open().await
    }

    async fn ask(self, caller: &Caller, tool: &str, body: &str) -> Answer {
        let request = if self.client_is_modern {
            modern::bytes(caller, "tools/call", Some(tool), body)
        } else {
            caller.bytes("POST", body)
        };
        wire::exchange(caller.address, &request).await
    }

    async fn heard(self, caller: &Caller) -> Vec<String> {
        let body = if self.client_is_modern {
            modern::body(1, "tools/call", json!({ "name": "heard" }), json!({}))
        } else {
            call(1, "heard", json!({}))
        };
        let said = self.ask(caller, "heard", &body).await.said();
        let lines: Vec<String> = serde_json::from_str(&said).unwrap();
        lines
            .iter()
            .map(|line| String::from_utf8(STANDARD.decode(line).unwrap()).unwrap())
            .collect()
    }

    /// Messages both ways, each compared byte for byte.
    async fn check(self, rounds: u64) {
        let house = self.open().await;
        let caller = if self.client_is_modern {
            house.caller("alice")
        } else {
            house.session("alice").await
        };
        for round in 0..rounds {
            let exchange = self.exchange(&mut Odd(round));
            let request = (exchange.request)(&exchange.id, &exchange.token);
            let answer = self.ask(&caller, "exact", &request).await;
            assert_eq!(answer.status, 200, "{self:?} {round}: {request} {answer:?}");
            let text = String::from_utf8(answer.body).unwrap();
            let told: Vec<&str> = if text.contains("data: {")
                || text.starts_with("id: ")
                || text.starts_with("event: ")
            {
                text.split("\n\n")
                    .filter_map(|event| event.split_once("\ndata: ").or(event.split_once("data: ")))
                    .map(|(_, data)| data)
                    .filter(|data| !data.is_empty())
                    .collect()
            } else {
                vec![&text]
            };
            let [_, last] = &exchange.answer;
            let wanted = exchange.progress.iter().map(|it| &it[1]).chain([last]);
            let wanted: Vec<&str> = wanted.map(String::as_str).collect();
            assert_eq!(told, wanted, "{self:?} {round}");
            let heard = self.heard(&caller).await;
            assert_eq!(heard.len(), 1, "{self:?} {round}");
            let before = (exchange.heard)("\0", "\0");
            let before = before.find('\0').unwrap();
            let number = heard[0].get(before..).unwrap_or_default();
            let end = number.find(|sign: char| !sign.is_ascii_digit());
            let number = number[..end.unwrap_or(0)].to_owned();
            assert_eq!(
                heard[0],
                (exchange.heard)(&number, &number),
                "{self:?} {round}"
            );
        }
    }
}

/// json-12, json-14, json-19, json-22, sse-1: a client and a server of one version hear each other to the byte.
#[tokio::test]
async fn what_one_version_says_is_heard_byte_for_byte() {
    for is_modern in [false, true] {
        for over_http in [false, true] {
            let way = Way {
                client_is_modern: is_modern,
                server_is_modern: is_modern,
                over_http,
                scope: "session",
            };
            way.check(60).await;
        }
    }
}

/// json-22, json-23: between two versions what they have otherwise is another, and not one byte besides.
#[tokio::test]
async fn what_is_said_across_versions_is_heard_byte_for_byte() {
    for client_is_modern in [false, true] {
        for over_http in [false, true] {
            let way = Way {
                client_is_modern,
                server_is_modern: !client_is_modern,
                over_http,
                scope: "session",
            };
            way.check(60).await;
        }
    }
}

/// json-19, json-22, inc-7: where a child is shared its ids and tokens are other ones, and not one byte besides.
#[tokio::test]
async fn what_a_shared_child_hears_and_says_is_the_same_byte_for_byte() {
    for scope in ["user", "server"] {
        for eras in [[false, false], [true, true], [false, true], [true, false]] {
            let way = Way {
                client_is_modern: eras[0],
                server_is_modern: eras[1],
                over_http: false,
                scope,
            };
            way.check(30).await;
        }
    }
}

/// json-12, json-22: a question of a server's reaches its client as it was asked, under its own id, and the answer
/// goes back as it was given.
#[tokio::test]
async fn a_question_and_its_answer_pass_byte_for_byte() {
    let way = Way {
        client_is_modern: false,
        server_is_modern: false,
        over_http: false,
        scope: "session",
    };
    let house = way.open().await;
    let alice = house.session("alice").await;
    for round in 0..40 {
        let mut odd = Odd(round);
        let (id, [s, t]) = (odd.id(), [0; 2].map(|_| odd.space(true)));
        let value = odd.value(4, true);
        let question = format!(
            r#"{t}{{"params"{s}:{{"message":"?","x":{t}{value}}},{s}"id"{t}:{s}{id}{t},"jsonrpc":"2.0","method":"elicitation/create"{s}}}{t}"#
        );
        let say = format!("{question}\0{{\"jsonrpc\":\"2.0\",\"id\":@ID@,\"result\":{{}}}}");
        let arguments = json!({ "say": STANDARD.encode(say), "asks": true });
        let request = alice.bytes("POST", &call(round, "exact", arguments));
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(&request).await.unwrap();
        let mut answer = Vec::new();
        let asked = async {
            while !String::from_utf8_lossy(&answer).contains("elicitation/create") {
                assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
            }
        };
        timeout(PATIENCE, asked).await.expect("no question");
        let [u, v] = [0; 2].map(|_| odd.space(false));
        let given = odd.value(4, false);
        let reply = format!(
            r#"{u}{{"result"{v}:{u}{{"action":"accept","content":{{"x":{given}}}}},{v}"jsonrpc":"2.0","id":{u}{id}{v}}}{u}"#
        );
        assert_eq!(alice.post(&reply).await.status, 202, "{round}: {reply}");
        let read = stream.read_to_end(&mut answer);
        timeout(PATIENCE, read).await.unwrap().unwrap();
        let text = wire::parse(&answer).text();
        let told = format!("data: {}\n\n", flat(&question));
        assert!(text.contains(&told), "{round}: {text:?} {told:?}");
        let heard = way.heard(&alice).await;
        assert_eq!(heard.last().unwrap(), &flat(&reply), "{round}");
        assert_eq!(heard.len(), 2);
    }
}
