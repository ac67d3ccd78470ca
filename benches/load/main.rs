//! What a request costs: a gateway with tokens, policies and records on, in front of an echo
//! server a session in thv's own sandbox, beside the floor: hyper answering the same bytes.
//!
//! `cargo bench --bench load -- [--only TEXT] [--sessions 1,16,64,500] [--rounds 3]
//! [--seconds 3] [--many 2000] [--alg RS256|ES256] [--thv PATH]`. Processor time is that of the
//! gateway's own process; ratios in one run are what counts, and both have the load in short
//! turns. This one program is load, echo server and floor.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a bench that cannot go on has failed, and what it prints is what it is for"
)]

mod client;
mod echo;
mod floor;
mod house;
mod measure;
#[path = "../../tests/it/signer.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod signer;
mod tokens;

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, task::JoinSet, time::sleep};

use client::{Caller, Era, Shared};
use house::{Ends, House};
use measure::{cpu, median, percentile, resident};
use tokens::Issuer;

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("echo") => return echo::run().unwrap(),
        Some("floor") => return floor::run(arguments.next().unwrap().into_bytes().into()),
        _ => {}
    }
    house::enter();
    let wanted = Wanted::read();
    let issuer = match wanted.alg.as_str() {
        "ES256" => Issuer::new("ES256"),
        _ => Issuer::new("RS256"),
    };
    let house = House::build(wanted.thv.clone().into(), &issuer.keys());
    let most = wanted
        .sessions
        .iter()
        .copied()
        .max()
        .unwrap_or(1)
        .max(wanted.many);
    let bench = Bench {
        tokens: (0..most.max(1))
            .map(|person| issuer.token(person))
            .collect(),
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap(),
        house,
        wanted,
    };
    println!(
        "tokens {}, {} rounds of {} s, thv {}\n",
        bench.wanted.alg, bench.wanted.rounds, bench.wanted.seconds, bench.wanted.thv
    );
    for (name, part) in [
        ("start", Bench::start as fn(&Bench)),
        ("legacy", Bench::legacy),
        ("modern", Bench::modern),
        ("many", Bench::many),
    ] {
        if bench.wanted.only.as_deref().is_none_or(|only| only == name) {
            part(&bench);
        }
    }
}

/// What was typed.
struct Wanted {
    only: Option<String>,
    sessions: Vec<usize>,
    rounds: usize,
    seconds: f64,
    many: usize,
    alg: String,
    thv: String,
}

impl Wanted {
    fn read() -> Self {
        let typed: Vec<String> = std::env::args().collect();
        let value = |name: &str| {
            let at = typed.iter().position(|argument| argument == name)?;
            Some(typed.get(at + 1).expect("a value after the flag").clone())
        };
        let or = |name: &str, other: &str| value(name).unwrap_or_else(|| other.to_owned());
        Self {
            only: value("--only"),
            sessions: or("--sessions", "1,16,64,500")
                .split(',')
                .map(|number| number.parse().unwrap())
                .collect(),
            rounds: or("--rounds", "3").parse::<usize>().unwrap().clamp(1, 50),
            seconds: or("--seconds", "3")
                .parse::<f64>()
                .unwrap()
                .clamp(0.5, 60.0),
            many: or("--many", "2000").parse::<usize>().unwrap().min(3_900),
            alg: or("--alg", "RS256"),
            thv: or("--thv", env!("CARGO_BIN_EXE_thv")),
        }
    }
}

struct Bench {
    wanted: Wanted,
    house: House,
    tokens: Vec<String>,
    runtime: Runtime,
}

/// One measurement of one subject.
#[derive(Default)]
struct Cell {
    rate: f64,
    p50: f64,
    p99: f64,
    /// Microseconds of the subject's own processor time a request.
    cpu: f64,
    /// KiB between requests with one session and with all of them, and under load.
    one: f64,
    all: f64,
    loaded: f64,
    errors: u64,
    answered: u64,
    /// Records that came for each answered request.
    records: f64,
}

/// What is measured, and its callers.
struct Subject<'a> {
    process: &'a Ends,
    shared: Arc<Shared>,
    callers: JoinSet<Vec<u32>>,
    /// While it was measured.
    took: Duration,
    cpu: Duration,
    answered: u64,
}

impl<'a> Subject<'a> {
    fn new(process: &'a Ends, callers: Vec<Caller>, shared: &Arc<Shared>, check: bool) -> Self {
        let mut running = JoinSet::new();
        for caller in callers {
            running.spawn(caller.run(shared.clone(), check));
        }
        Self {
            process,
            shared: shared.clone(),
            callers: running,
            took: Duration::ZERO,
            cpu: Duration::ZERO,
            answered: 0,
        }
    }

    /// Its callers call for a while, of which that much is measured.
    async fn takes_its_turn(&mut self, turn: Duration) {
        let pid = self.process.pid();
        let now = || {
            let answered = self.shared.answered.load(Ordering::Relaxed);
            (Instant::now(), cpu(pid), answered)
        };
        self.shared.calling.send_replace(true);
        sleep(WARM).await;
        self.shared.recording.store(true, Ordering::Relaxed);
        let before = now();
        sleep(turn).await;
        let after = now();
        self.shared.recording.store(false, Ordering::Relaxed);
        self.shared.calling.send_replace(false);
        self.took += after.0 - before.0;
        self.cpu += after.1 - before.1;
        self.answered += after.2 - before.2;
    }

    async fn end(self) -> Cell {
        let loaded = resident(self.process.pid()).0;
        self.shared.over.store(true, Ordering::Relaxed);
        self.shared.calling.send_replace(true);
        let mut took = self.callers.join_all().await.concat();
        took.sort_unstable();
        let answered = self.answered as f64;
        let millis = |hundredths| percentile(&took, hundredths).as_secs_f64() * 1e3;
        Cell {
            rate: answered / self.took.as_secs_f64(),
            cpu: self.cpu.as_secs_f64() * 1e6 / answered,
            p50: millis(50),
            p99: millis(99),
            loaded: loaded as f64,
            errors: self.shared.errors.load(Ordering::Relaxed),
            answered: self.shared.answered.load(Ordering::Relaxed),
            ..Cell::default()
        }
    }
}

impl Bench {
    fn legacy(&self) {
        self.table(Era::Legacy);
    }

    fn modern(&self) {
        self.table(Era::Modern);
    }

    fn table(&self, era: Era) {
        println!(
            "{era:?}\n{:>8} | {:>7} {:>7} {:>7} {:>6} {:>6} {:>6} {:>7} {:>6} {:>6} | {:>7} {:>7} {:>7} {:>6} {:>7} | {:>5}",
            "sessions",
            "req/s",
            "p50 ms",
            "p99 ms",
            "CPU µs",
            "1 MiB",
            "N MiB",
            "KiB/ses",
            "load",
            "rec/rq",
            "floor/s",
            "p50 ms",
            "p99 ms",
            "CPU µs",
            "KiB/con",
            "ratio"
        );
        for &sessions in &self.wanted.sessions {
            let (mut ours, mut floors) = (Vec::new(), Vec::new());
            for _ in 0..self.wanted.rounds {
                let (cell, floor) = self.round(sessions, era);
                ours.push(cell);
                floors.push(floor);
            }
            let of = |cells: &[Cell], field: fn(&Cell) -> f64| {
                median(&mut cells.iter().map(field).collect::<Vec<_>>())
            };
            let (our, floor) = (|field| of(&ours, field), |field| of(&floors, field));
            let mut ratios: Vec<f64> = ours
                .iter()
                .zip(&floors)
                .map(|(a, b)| a.cpu / b.cpu)
                .collect();
            let further = (our(|c| c.all) - our(|c| c.one)) / sessions as f64;
            println!(
                "{sessions:>8} | {:>7.0} {:>7.2} {:>7.2} {:>6.1} {:>6.1} {:>6.1} {:>7.1} {:>6.1} {:>6.2} | {:>7.0} {:>7.2} {:>7.2} {:>6.1} {:>7.1} | {:>5.2}{}",
                our(|c| c.rate),
                our(|c| c.p50),
                our(|c| c.p99),
                our(|c| c.cpu),
                our(|c| c.one) / 1024.0,
                our(|c| c.all) / 1024.0,
                further,
                our(|c| c.loaded) / 1024.0,
                our(|c| c.records),
                floor(|c| c.rate),
                floor(|c| c.p50),
                floor(|c| c.p99),
                floor(|c| c.cpu),
                (floor(|c| c.all) - floor(|c| c.one)) / sessions as f64,
                median(&mut ratios),
                match ours
                    .iter()
                    .chain(&floors)
                    .map(|cell| cell.errors)
                    .sum::<u64>()
                {
                    0 => String::new(),
                    errors => format!("  {errors} ERRORS"),
                }
            );
        }
        let losses = self.house.records.losses.load(Ordering::Relaxed);
        println!("records that say that others are lost: {losses}\n");
    }

    /// Both are there at once and have their turns at the load, so that a machine that is slower for a
    /// while is so for both.
    fn round(&self, sessions: usize, era: Era) -> (Cell, Cell) {
        let _runner = self.house.runner_on_demand();
        let gateway = self.house.gateway();
        self.runtime.block_on(async {
            let (shared, address) = (Arc::new(Shared::default()), self.house.address);
            let (_first, answer) = self.first(address, era).await;
            let one = between_requests(gateway.pid()).await.0;
            let callers = self.open(address, sessions, era, &shared).await;
            let all = between_requests(gateway.pid()).await.0;
            let ours = Subject::new(&gateway, callers, &shared, true);

            let (floor, address) = floor(&answer);
            let (_first, _) = self.first(address, era).await;
            let its_one = resident(floor.pid()).0;
            let shared = Arc::new(Shared::default());
            let callers = self.open(address, sessions, era, &shared).await;
            let its_all = resident(floor.pid()).0;
            let its = Subject::new(&floor, callers, &shared, false);

            let came = self.house.records.came.load(Ordering::Relaxed);
            let mut cells = self.load(vec![ours, its]).await;
            let (mut its, mut ours) = (cells.pop().unwrap(), cells.pop().unwrap());
            let came = self.house.records.came.load(Ordering::Relaxed) - came;
            ours.records = came as f64 / ours.answered as f64;
            (ours.one, ours.all) = (one as f64, all as f64);
            (its.one, its.all) = (its_one as f64, its_all as f64);
            (ours, its)
        })
    }

    /// A first session, and what it was answered. Nothing may be wrong with that.
    async fn first(&self, address: SocketAddr, era: Era) -> (Caller, String) {
        let mut caller = Caller::open(address, &self.tokens[0], 0, era)
            .await
            .unwrap();
        let answer = caller.call().await.unwrap();
        (caller, answer)
    }

    /// So many callers, each of whom was answered once.
    async fn open(
        &self,
        address: SocketAddr,
        sessions: usize,
        era: Era,
        shared: &Arc<Shared>,
    ) -> Vec<Caller> {
        let mut callers = Vec::new();
        let numbers: Vec<usize> = (0..sessions).collect();
        for some in numbers.chunks(AT_ONCE) {
            let mut opening = JoinSet::new();
            for &number in some {
                let token = self.tokens[number].clone();
                opening.spawn(async move {
                    let mut caller = Caller::open(address, &token, number, era).await?;
                    caller.call().await?;
                    Ok::<_, String>(caller)
                });
            }
            while let Some(opened) = opening.join_next().await {
                match opened.unwrap() {
                    Ok(caller) => callers.push(caller),
                    Err(error) => {
                        println!("not opened: {error}");
                        shared.errors.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        callers
    }

    /// All callers of all subjects calling, those of one subject after those of the other, until
    /// each was measured for as long as is wanted.
    async fn load(&self, mut subjects: Vec<Subject<'_>>) -> Vec<Cell> {
        let mut left = Duration::from_secs_f64(self.wanted.seconds);
        while !left.is_zero() {
            let turn = TURN.min(left);
            left -= turn;
            for subject in &mut subjects {
                subject.takes_its_turn(turn).await;
            }
        }
        let mut cells = Vec::new();
        for subject in subjects {
            cells.push(subject.end().await);
        }
        cells
    }

    /// As many sessions as a large house has, each answered twice.
    fn many(&self) {
        let sessions = self.wanted.many;
        let _runner = self.house.runner_on_demand();
        let gateway = self.house.gateway();
        self.runtime.block_on(async {
            let (shared, address) = (Arc::new(Shared::default()), self.house.address);
            let (_first, _) = self.first(address, Era::Legacy).await;
            let one = between_requests(gateway.pid()).await;
            let began = Instant::now();
            let callers = self.open(address, sessions - 1, Era::Legacy, &shared).await;
            let opened = callers.len() + 1;
            let took = began.elapsed().as_secs_f64();
            let all = between_requests(gateway.pid()).await;
            let subject = Subject::new(&gateway, callers, &shared, true);
            let cell = self.load(vec![subject]).await.remove(0);
            println!(
                "{opened} of {sessions} sessions, opened in {took:.1} s; {} calls answered; {} errors; {:.0} req/s, {:.1} µs CPU a request\n\
                 resident {:.1} MiB with one, {:.1} with all ({:.1} KiB a further session, {:.1} of it anonymous), {:.1} under load\n",
                cell.answered, cell.errors, cell.rate, cell.cpu,
                one.0 as f64 / 1024.0, all.0 as f64 / 1024.0,
                (all.0 - one.0) as f64 / (opened - 1) as f64, (all.1 - one.1) as f64 / (opened - 1) as f64,
                cell.loaded / 1024.0,
            );
        });
    }

    /// From exec(2) to the first answered `initialize`; a shell that passes the socket included.
    fn start(&self) {
        let (mut warm, mut both) = (Vec::new(), Vec::new());
        for _ in 0..STARTS {
            let _runner = self.house.runner();
            let began = Instant::now();
            let _gateway = self.house.gateway();
            warm.push(self.first_answer(began));
        }
        for _ in 0..STARTS {
            let _runner = self.house.runner_on_demand();
            let _gateway = self.house.gateway_on_demand();
            both.push(self.first_answer(Instant::now()));
        }
        for (name, times) in [
            ("gateway, its runner there already", &mut warm),
            ("gateway and runner, both by their sockets", &mut both),
        ] {
            let least = times.iter().copied().fold(f64::INFINITY, f64::min);
            println!(
                "{name:<42} {:>6.1} ms to the first answered initialize (least {least:.1}, of {STARTS})",
                median(times)
            );
        }
        println!();
    }

    fn first_answer(&self, began: Instant) -> f64 {
        self.runtime.block_on(async {
            let mut caller = Caller::connect(self.house.address, &self.tokens[0], 0, Era::Legacy)
                .await
                .unwrap();
            caller.initialize().await.unwrap();
            began.elapsed().as_secs_f64() * 1e3
        })
    }
}

/// The floor, which says that to whatever it is asked.
fn floor(answer: &str) -> (Ends, SocketAddr) {
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    nix::sys::socket::listen(&door, nix::sys::socket::Backlog::new(4096).unwrap()).unwrap();
    let address = door.local_addr().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["floor", answer])
        .stdin(Stdio::from(OwnedFd::from(door)));
    (Ends(command.spawn().unwrap()), address)
}

/// What is resident when nobody has asked anything for a while, sessions and their
/// connections being open: the gateway gives back then what requests have needed.
async fn between_requests(pid: u32) -> (u64, u64) {
    sleep(PAUSE).await;
    resident(pid)
}

/// Sessions that are opened at once.
const AT_ONCE: usize = 16;
const STARTS: usize = 20;
/// Longer than the gateway waits until it gives back memory again (six to seven seconds) and until
/// its timers have touched again what they need, which is a second more: else what is read would
/// differ by that. Shorter than a connection may idle.
const PAUSE: Duration = Duration::from_millis(8_200);
/// At the beginning of each turn, and not measured.
const WARM: Duration = Duration::from_millis(100);
/// So long one of those that are compared has the machine, which may be slower in the next moment.
const TURN: Duration = Duration::from_millis(250);
