//! Packets through a virtual wire: the rebuilder by its ring and by a socket, beside loops that only receive.
//!
//! Whoever receives has a processor of its own; the sender, and what the requests are forwarded to, have the other one.
//! Counted is what the receiver costs, user and system. What the kernel does until a packet lies in a ring or in a
//! socket's buffer happens where it came in, so it is charged to the sender, and that is stated beside.
//!
//! All subjects are run in turn, several times. Ratios are of one turn, and what is printed is their median.

mod road;
mod sender;
mod subject;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::cpu::{self, Cost, Reading};

use self::road::Road;
use self::sender::{Pace, Sender};
use self::subject::{Loop, Rebuilder, Run};
use crate::capture::REQUESTS;
use crate::offline::Capture;
use crate::table::Row;

/// How often all subjects are run.
const TURNS: usize = 3;
/// How often the capture is sent in a run at full speed.
const PASSES: usize = 3;
/// Packets a second of a quiet instance, and how long it is measured.
const QUIET: f64 = 50_000.0;
const QUIET_PACKETS: usize = 250_000;
/// How long after their end connections are forgotten (`StreamOptions::linger`), and a little.
const FORGOTTEN: Duration = Duration::from_millis(2500);
/// A train of a quiet instance: a congestion window (RFC 6928).
const TRAIN: usize = 10;
/// Packets that wait in the rings before the workers may begin, and the ring that holds them all.
const WAITING: usize = 600_000;
const HOLDS_ALL: &str = "640M";
/// Of each of two workers: more than its share, which differs with the connections that it gets.
const HOLDS_HALF: &str = "400M";

/// A ring that a machine with much traffic is given.
const RING: [&str; 4] = ["--receive", "ring", "--ring-bytes", "256M"];
const SOCKET: [&str; 2] = ["--receive", "socket"];

/// One turn.
struct Turn {
    offline: Cost,
    ring: Run,
    socket: Run,
    recvfrom: Run,
    recvmmsg: Run,
    /// Evenly spaced, and in trains.
    quiet: [Quiet; 2],
    one: Cost,
    two: Cost,
}

struct Quiet {
    rebuilder: Run,
    ring: Run,
    recvmmsg: Run,
}

/// What a packet of a run costs the receiver.
fn each(run: &Run) -> f64 {
    run.cost.cpu().as_secs_f64() / count(run.received).max(1.0)
}

fn count(packets: u64) -> f64 {
    u32::try_from(packets).map_or(f64::INFINITY, f64::from)
}

fn whole(packets: u64) -> usize {
    usize::try_from(packets).unwrap_or(usize::MAX)
}

/// The rows of the table.
pub(crate) fn run(capture: &Capture) -> anyhow::Result<Vec<Row>> {
    let road = Road::new()?;
    let mut sender = Sender::new(&capture.path)?;
    let mut turns = Vec::new();
    for n in 1..=TURNS {
        eprintln!("live: turn {n} of {TURNS}");
        turns.push(turn(&road, &mut sender, capture)?);
    }
    Ok(rows(&turns, capture.packets))
}

fn turn(road: &Road, sender: &mut Sender, capture: &Capture) -> anyhow::Result<Turn> {
    let offline = offline(road, capture)?;
    let full = |sender: &mut Sender, flags: &[&str]| {
        let rebuilder = Rebuilder::start(road, &road.processors[..1], flags)?;
        rebuilder.run(sender, PASSES * capture.packets, Pace::Full)
    };
    let ring = full(sender, &RING)?;
    ensure!(
        ring.dropped > 0 || ring.requests == (PASSES * REQUESTS) as u64,
        "all packets were processed, and of {} requests {} were found",
        PASSES * REQUESTS,
        ring.requests
    );
    let socket = full(sender, &SOCKET)?;
    let [recvfrom, recvmmsg] = [Loop::Recvfrom, Loop::Recvmmsg]
        .map(|subject| subject.run(road, sender, capture.packets, Pace::Full));
    let quiet = [1, TRAIN].map(|train| quiet(road, sender, capture.packets, train));
    let [even, trains] = quiet;
    Ok(Turn {
        offline,
        ring,
        socket,
        recvfrom: recvfrom?,
        recvmmsg: recvmmsg?,
        quiet: [even?, trains?],
        one: backlog(road, sender, &road.processors[..1], HOLDS_ALL)?,
        two: backlog(road, sender, &road.processors, HOLDS_HALF)?,
    })
}

/// The same packets from a file, on the same processor.
fn offline(road: &Road, capture: &Capture) -> anyhow::Result<Cost> {
    let mut inspect = lab::process::command("taskset");
    inspect.args(["--cpu-list", &road.processors[0].to_string()]);
    inspect.arg(lab::rebuilder::binary()?);
    inspect.args([
        "inspect".as_ref(),
        "--summary".as_ref(),
        capture.path.as_os_str(),
    ]);
    let (cost, output) = cpu::of(&mut inspect)?;
    ensure!(output.status.success(), "inspect: {}", output.status);
    Ok(cost)
}

/// So many packets a second: the rebuilder, the ring that it reads, and a loop that blocks in recvmmsg.
fn quiet(road: &Road, sender: &mut Sender, packets: usize, train: usize) -> anyhow::Result<Quiet> {
    let pace = Pace::Even { rate: QUIET, train };
    let rebuilder = {
        let rebuilder = Rebuilder::start(road, &road.processors[..1], &RING)?;
        // It has run for days, so it has had more connections than these: room for them is there.
        rebuilder.run(sender, packets, Pace::Full)?;
        thread::sleep(FORGOTTEN);
        rebuilder.run(sender, QUIET_PACKETS, pace)?
    };
    let mut of = |subject: Loop| subject.run(road, sender, QUIET_PACKETS, pace);
    Ok(Quiet {
        rebuilder,
        ring: of(Loop::Ring)?,
        recvmmsg: of(Loop::Recvmmsg)?,
    })
}

/// What it takes to empty rings that were filled while nobody read: so that the sender's processor is free for a second
/// worker, and how fast it can send is no limit.
fn backlog(
    road: &Road,
    sender: &mut Sender,
    processors: &[usize],
    ring: &str,
) -> anyhow::Result<Cost> {
    let workers = processors.len().to_string();
    let flags = [
        "--receive",
        "ring",
        "--ring-bytes",
        ring,
        "--workers",
        &workers,
    ];
    let rebuilder = Rebuilder::start(road, processors, &flags)?;
    let idle = rebuilder.before()?;
    rebuilder.signal(libc::SIGSTOP);
    let sent = sender.send(road, WAITING, Pace::Full)?;
    // Held for as little as that, it has missed no beat.
    let before = rebuilder.reading()?;
    rebuilder.signal(libc::SIGCONT);
    let cost = until_idle(&rebuilder, &before)?;
    let run = rebuilder.settled(sent, &idle)?;
    ensure!(run.dropped == 0, "the rings were too small: {run:?}");
    Ok(cost)
}

/// What a process takes until it has hardly anything to do.
fn until_idle(rebuilder: &Rebuilder, before: &Reading) -> anyhow::Result<Cost> {
    const STEP: Duration = Duration::from_millis(1);
    /// It is idle when it takes less than [`IDLE`] in so long: while it waits for packets it takes a fiftieth of that.
    const WINDOW: Duration = Duration::from_millis(40);
    const IDLE: Duration = Duration::from_millis(6);
    let begun = Instant::now();
    // The last reading at which it was busy.
    let mut busy = rebuilder.reading()?;
    loop {
        thread::sleep(STEP);
        let now = rebuilder.reading()?;
        let since = now.since(&busy);
        if since.wall >= WINDOW {
            return Ok(busy.since(before));
        }
        if since.cpu() >= IDLE || since.cpu() > since.wall / 2 {
            busy = now;
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(30),
            "it does not get idle"
        );
    }
}

/// The value in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The one of them whose processor time is in the middle.
fn middle<T: Clone>(all: impl Iterator<Item = T>, cpu: impl Fn(&T) -> f64) -> Option<T> {
    let mut all: Vec<T> = all.collect();
    all.sort_by(|a, b| cpu(a).total_cmp(&cpu(b)));
    all.get(all.len() / 2).cloned()
}

/// A row of a run, the one in the middle of all turns.
fn row(turns: &[Turn], what: &str, pick: &dyn Fn(&Turn) -> Run, note: &str) -> Option<Row> {
    let run = middle(turns.iter().map(pick), each)?;
    let lost = run.sent.packets.saturating_sub(run.received);
    let mut notes = vec![note.to_owned(), format!("{:.0} packets/s", run.sent.rate())];
    if lost > 0 {
        let share = 100.0 * count(lost) / count(run.sent.packets);
        notes.push(format!("{share:.1} % lost"));
    }
    if run.sent.pace == Pace::Full {
        let before = run.sent.each().as_nanos();
        notes.push(format!("the kernel before it, and the sender: {before} ns"));
    }
    notes.retain(|note| !note.is_empty());
    let row = Row::of(what, &run.cost, whole(run.received), whole(run.requests));
    Some(row.noting(notes.join("; ")))
}

fn rows(turns: &[Turn], packets: usize) -> Vec<Row> {
    let ratio = |of: &dyn Fn(&Turn) -> f64| median(turns.iter().map(of));
    let row = |what: &str, pick: &dyn Fn(&Turn) -> Run, note: &str| row(turns, what, pick, note);
    let mut rows = Vec::new();
    if let Some(cost) = middle(turns.iter().map(|turn| turn.offline), cpu) {
        let what = "the same processor, `inspect --summary`";
        rows.push(Row::of(what, &cost, packets, REQUESTS));
    }
    let user = |cost: &Cost, packets: u64| cost.user.as_secs_f64() / count(packets);
    let more = ratio(&|turn| {
        user(&turn.ring.cost, turn.ring.received) / user(&turn.offline, packets as u64)
    });
    let note = format!("user: {more:.2} × `inspect`'s");
    rows.extend(row("`run --receive ring`", &|turn| turn.ring, &note));
    rows.extend(row("`run --receive socket`", &|turn| turn.socket, ""));
    rows.extend(row("only recvfrom", &|turn| turn.recvfrom, ""));
    rows.extend(row("only recvmmsg", &|turn| turn.recvmmsg, ""));
    for (n, spacing) in ["evenly spaced", "in trains of 10"].into_iter().enumerate() {
        let of = |pick: fn(&Quiet) -> Run| move |turn: &Turn| pick(&turn.quiet[n]);
        let (rebuilder, ring) = (of(|quiet| quiet.rebuilder), of(|quiet| quiet.ring));
        let recvmmsg = of(|quiet| quiet.recvmmsg);
        let against = |pick: &dyn Fn(&Turn) -> Run| {
            let times = ratio(&|turn| each(&pick(turn)) / each(&recvmmsg(turn)));
            format!("{times:.2} × recvmmsg's")
        };
        let what = |who: &str| format!("{spacing}, {who}");
        let note = against(&rebuilder);
        rows.extend(row(&what("`run --receive ring`"), &rebuilder, &note));
        rows.extend(row(&what("only the ring"), &ring, &against(&ring)));
        rows.extend(row(&what("only recvmmsg"), &recvmmsg, ""));
    }
    let more = ratio(&|turn| cpu(&turn.two) / cpu(&turn.one));
    let time = ratio(&|turn| turn.two.wall.as_secs_f64() / turn.one.wall.as_secs_f64());
    let note = format!("{more:.2} × one's, in {time:.2} × the time");
    for (what, pick, note) in [
        (
            "a full ring, 1 worker",
            (|turn| turn.one) as fn(&Turn) -> Cost,
            "",
        ),
        ("two full rings, 2 workers", |turn| turn.two, &note),
    ] {
        if let Some(cost) = middle(turns.iter().map(pick), cpu) {
            rows.push(Row::of(what, &cost, WAITING, 0).noting(note));
        }
    }
    for row in &mut rows {
        row.what = format!("live: {}", row.what);
    }
    rows
}

fn cpu(cost: &Cost) -> f64 {
    cost.cpu().as_secs_f64()
}

/// Five runs of 20 seconds at 80 % of the rate at which the sender can send.
pub(crate) fn loss(capture: &Capture) -> anyhow::Result<()> {
    const RUNS: usize = 5;
    const SECONDS: f64 = 20.0;
    let road = Road::new()?;
    let mut sender = Sender::new(&capture.path)?;
    let start = || Rebuilder::start(&road, &road.processors[..1], &RING);
    let full = start()?.run(&mut sender, PASSES * capture.packets, Pace::Full)?;
    let most = full.sent.rate();
    let pace = Pace::Even {
        rate: 0.8 * most,
        train: TRAIN,
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "some million packets"
    )]
    let packets = (0.8 * most * SECONDS) as usize;
    println!(
        "at most {most:.0} packets/s can be sent; {RUNS} runs of {SECONDS} s at 80 %, ring of 256 MB\n"
    );
    println!("| run | packets/s | sent | processed | ring drops | softnet drops |");
    println!("|---:|---:|---:|---:|---:|---:|");
    let mut lossless = 0;
    for n in 1..=RUNS {
        let run = start()?
            .run(&mut sender, packets, pace)
            .with_context(|| format!("run {n}: sent is not processed + dropped"))?;
        lossless += usize::from(run.received == run.sent.packets);
        println!(
            "| {n} | {:.0} | {} | {} | {} | {} |",
            run.sent.rate(),
            run.sent.packets,
            run.received,
            run.dropped,
            run.softnet
        );
    }
    println!(
        "\nno loss in {lossless} of {RUNS} runs; sent = processed + ring drops + softnet drops in all of them"
    );
    Ok(())
}
