//! Which requests share a connection: disputed ones and those behind which the analyser may close never do, and what
//! happens to them holds up nobody else.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use proptest::prelude::*;

use super::*;
use RequestOutcome::*;

#[test]
fn a_disputed_request_is_alone_on_its_connection_and_our_side_is_shut_behind_it() {
    let (sent, received) = channel();
    let peer = Peer::new(move |mut stream, _| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        sent.send(all).unwrap();
        stream.write_all(OK).unwrap();
    });
    let mut worker = Worker::new(peer.address, short());
    // Two lengths: whoever takes the second sees another request in the body.
    let mut request = captured(
        b"POST /d HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\nContent-Length: 0\r\n\r\nGET /smuggled HTTP/1",
    );
    request.flags = Flags::DISPUTED;
    worker.submit(&request);
    worker.submit(&disputed("/e"));
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 2)]);
    assert_eq!(peer.connections(), 2);
    let mut bodies: Vec<Vec<u8>> = (0..2).map(|_| received.recv().unwrap()).collect();
    bodies.sort();
    assert!(bodies[0].starts_with(b"GET /e "));
    assert!(bodies[1].ends_with(b"\r\n\r\nGET /smuggled HTTP/1"));
    let flags = b"X-Mirror-Flags: disputed\r\n";
    assert!(
        bodies
            .iter()
            .all(|b| b.windows(flags.len()).any(|w| w == flags))
    );
}

#[test]
fn quarantine_is_capped_and_one_source_takes_a_quarter_of_it_at_most() {
    let open = Arc::new(Mutex::new((0_usize, 0_usize)));
    let count = Arc::clone(&open);
    let peer = Peer::new(move |mut stream, _| {
        {
            let mut open = count.lock().unwrap();
            open.0 += 1;
            open.1 = open.1.max(open.0);
        }
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        if target(&all) == "/slow" {
            std::thread::sleep(Duration::from_millis(300));
        }
        count.lock().unwrap().0 -= 1;
        let _ = stream.write_all(OK);
    });
    let mut worker = Worker::new(
        peer.address,
        ForwardOptions {
            quarantine_connections: 8,
            shut_after: Duration::from_millis(20),
            ..ForwardOptions::default()
        },
    );
    for _ in 0..6 {
        worker.submit(&from([10, 9, 9, 9], disputed("/slow")));
    }
    worker.submit(&from([10, 1, 1, 1], disputed("/quick")));
    worker.run(5, |w| w.of(Delivered2xx) == 1);
    assert!(
        worker.forwarder.in_flight() == 6,
        "the other source did not wait for the slow ones"
    );
    assert!(
        open.lock().unwrap().1 <= 3,
        "two of one source, one of the other"
    );
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 7)]);
    assert!(open.lock().unwrap().1 <= 3);
}

#[test]
fn nothing_follows_a_request_after_which_the_analyser_may_leave_http() {
    let seen = Arc::new(Mutex::new(Vec::<Vec<String>>::new()));
    let log = Arc::clone(&seen);
    let peer = Peer::new(move |mut stream, number| {
        let mut pending = Vec::new();
        loop {
            let request = read_request(&mut stream, &mut pending);
            let mut log = log.lock().unwrap();
            let len = log.len().max(number + 1);
            log.resize(len, Vec::new());
            let Some(request) = request else { return };
            log[number].push(target(&request));
            drop(log);
            if stream.write_all(OK).is_err() {
                return;
            }
        }
    });
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    for i in 0..20 {
        worker.submit(&get(&format!("/{i}")));
        worker.submit(&captured(
            b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ));
        worker.submit(&captured(
            b"CONNECT shop:443 HTTP/1.1\r\nHost: shop:443\r\n\r\n",
        ));
    }
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 60)]);
    for connection in seen.lock().unwrap().iter() {
        let last = |t: &String| t == "/ws" || t == "shop:443";
        let leaving = connection.iter().filter(|t| last(t)).count();
        assert!(leaving <= 1 && (leaving == 0 || last(&connection[connection.len() - 1])));
    }
}

/// A request behind which nginx closes.
fn leaving(target: &str) -> Request<'static> {
    captured(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes())
}

#[test]
fn requests_that_leave_cost_no_shared_connection() {
    let peer = Peer::new(|stream, _| answer_all(stream));
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    for i in 0..200 {
        worker.submit(&get(&format!("/{i}")));
        if i % 10 == 0 {
            worker.submit(&leaving("/leaving"));
        }
    }
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 220)]);
    assert_eq!(worker.count(Counter::Resent), 0);
    let connections = peer.connections();
    assert!(
        (21..=24).contains(&connections),
        "20 and up to 4: {connections}"
    );
}

/// An analyser that answers everything but this target, and leaves the connection open.
fn silent_to(silence: &'static str) -> Peer {
    Peer::new(move |stream, _| {
        answer(stream, |request| {
            if target(request) == silence {
                std::thread::sleep(Duration::from_secs(10));
                return None;
            }
            Some(OK.to_vec())
        });
    })
}

#[test]
fn what_the_analyser_keeps_waiting_alone_holds_up_no_shared_request() {
    // It answers neither disputed nor leaving requests.
    let peer = silent_to("/kept");
    let cap = 64 * 1024;
    let mut worker = Worker::new(
        peer.address,
        ForwardOptions {
            inflight_bytes: cap,
            ..ForwardOptions::default()
        },
    );
    // Each of the two is larger than the whole cap.
    let mut large = post("/kept", &vec![b'x'; 2 * cap]);
    large.flags = Flags::DISPUTED;
    worker.submit(&large);
    let body = "x".repeat(2 * cap);
    let no_host = format!(
        "POST /kept HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    worker.submit(&captured(no_host.as_bytes()));
    for _ in 0..20 {
        worker.submit(&disputed("/kept"));
        worker.submit(&leaving("/kept"));
    }
    worker.run(5, |w| w.forwarder.inflight_bytes() > 4 * cap);
    let before = Instant::now();
    for i in 0..300 {
        worker.submit(&get(&format!("/{i}")));
    }
    worker.run(5, |w| w.of(Delivered2xx) == 300);
    assert!(before.elapsed() < Duration::from_secs(1));
    assert_eq!(worker.forwarder.in_flight(), 42);
}

#[test]
fn a_flood_of_disputed_requests_is_counted_and_leaves_room_for_the_others() {
    let peer = silent_to("/disputed");
    let mut worker = Worker::new(
        peer.address,
        ForwardOptions {
            queue_bytes: 256 * 1024,
            ..ForwardOptions::default()
        },
    );
    for i in 0..2000_u16 {
        let source = [10, 0, 0, i.to_be_bytes()[1] % 7];
        worker.submit(&from(source, disputed("/disputed")));
        if i % 10 == 0 {
            worker.submit(&get("/shared"));
            worker.step();
        }
    }
    assert!(worker.of(QuarantineFull) > 1000, "{:?}", worker.outcomes());
    worker.run(5, |w| w.of(Delivered2xx) == 200);
    let waiting = worker.forwarder.queued_bytes();
    assert!(
        (96..=128).contains(&(waiting / 1024)),
        "half of the queue: {waiting}"
    );
    assert_eq!(worker.count(Counter::Quarantined), 64);
    let sum = 200 + worker.of(QuarantineFull) + worker.forwarder.in_flight() as u64;
    assert_eq!(sum, 2200);
}

#[test]
fn while_shared_requests_wait_quarantine_has_no_more_connections_than_they() {
    let released = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let busy = Arc::clone(&released);
    let peer = Peer::new(move |mut stream, _| {
        let mut pending = Vec::new();
        while read_request(&mut stream, &mut pending).is_some() {
            while !busy.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if stream.write_all(OK).is_err() {
                return;
            }
        }
    });
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    for i in 0..20 {
        worker.submit(&get(&format!("/{i}")));
    }
    worker.run(5, |w| w.count(Counter::Connects) == 4);
    for source in 0..100 {
        worker.submit(&from([10, 0, 0, source], disputed("/disputed")));
    }
    for _ in 0..20 {
        worker.step();
    }
    assert_eq!(worker.count(Counter::Quarantined), 4);
    released.store(true, Ordering::Relaxed);
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 120)]);
}

/// Connections to `port` that are in `TIME_WAIT` on our side (proc(5): state 06 in /proc/net/tcp).
fn waiting_ports(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    let ours = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next().is_some_and(|f| f.ends_with(&remote)) && fields.next() == Some("06")
    };
    table.lines().filter(ours).count()
}

#[test]
fn connections_for_one_request_use_up_no_ports() {
    let peer = Peer::new(|stream, _| answer_all(stream));
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    for _ in 0..50 {
        worker.submit(&disputed("/disputed"));
        worker.submit(&leaving("/leaving"));
    }
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 100)]);
    assert_eq!(peer.connections(), 100);
    assert_eq!(waiting_ports(peer.address.port()), 0);
}

/// What the scripted analyser does on one connection.
#[derive(Clone, Copy, Debug)]
enum Script {
    Good,
    /// Answers so many, then closes.
    ClosesAfter(usize),
    /// Answers so many, then nothing more.
    SilentAfter(usize),
    /// Answers so many and half of the next.
    BreaksAfter(usize),
    /// Answers so many; the last says that it closes, and it does.
    SaysCloseAfter(usize),
    /// Answers each twice.
    Twice,
    /// Puts so many interim answers before each.
    Interim(usize),
}

fn script() -> impl Strategy<Value = Script> {
    prop_oneof![
        Just(Script::Good),
        (0_usize..4).prop_map(Script::ClosesAfter),
        (0_usize..4).prop_map(Script::SilentAfter),
        (0_usize..4).prop_map(Script::BreaksAfter),
        (0_usize..4).prop_map(Script::SaysCloseAfter),
        Just(Script::Twice),
        (1_usize..100).prop_map(Script::Interim),
    ]
}

/// What one connection carried, and what became of it.
#[derive(Debug, Default)]
struct Seen {
    bytes: Vec<u8>,
    /// When each request was read; those that had come behind the last of them were when it ended.
    read: Vec<Instant>,
    ended: Option<Instant>,
    answered: usize,
    /// It was answered no further and kept open.
    silent: bool,
    /// It broke inside an answer or after one that said so: who was not answered is not to blame.
    excused: bool,
}

impl Seen {
    /// The names in it, in order; a request has its name once, in its target.
    fn names(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.bytes);
        text.split("/name-")
            .skip(1)
            .filter_map(|rest| Some(rest.split_once(' ')?.0.to_owned()))
            .collect()
    }
}

fn serve(mut stream: TcpStream, script: Script, seen: &Mutex<Seen>) {
    let mut pending = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut pending) {
        let answered = {
            let mut seen = seen.lock().unwrap();
            seen.bytes.extend_from_slice(&request);
            seen.read.push(Instant::now());
            seen.answered
        };
        let (answer, goes_on) = match script {
            Script::ClosesAfter(n) if answered >= n => (Vec::new(), false),
            Script::SilentAfter(n) if answered >= n => {
                seen.lock().unwrap().silent = true;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest);
                pending.append(&mut rest);
                (Vec::new(), false)
            }
            Script::BreaksAfter(n) if answered >= n => (
                b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_vec(),
                false,
            ),
            Script::SaysCloseAfter(n) if answered >= n => (
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec(),
                false,
            ),
            Script::Twice => (OK.repeat(2), true),
            Script::Interim(n) => (
                [b"HTTP/1.1 100 Continue\r\n\r\n".repeat(n), OK.to_vec()].concat(),
                true,
            ),
            _ => (OK.to_vec(), true),
        };
        let written = stream.write_all(&answer).is_ok();
        let mut seen = seen.lock().unwrap();
        if !goes_on || !written {
            seen.excused = !answer.is_empty();
            // What had come behind it.
            seen.bytes.append(&mut pending);
            seen.ended = Some(Instant::now());
            return;
        }
        seen.answered += 1;
    }
}

/// A request of one of five kinds; the name begins with the kind.
fn named(kind: u8, number: usize) -> Request<'static> {
    let raw = match kind {
        0 => format!("GET /name-0-{number} HTTP/1.1\r\nHost: h\r\n\r\n"),
        1 => format!(
            "POST /name-1-{number} HTTP/1.1\r\nHost: h\r\nContent-Length: 3000\r\n\r\n{}",
            "x".repeat(3000)
        ),
        2 => format!("GET /name-2-{number} HTTP/1.1\r\n\r\n"),
        // To whoever takes the second length, what follows is another request.
        3 => format!(
            "POST /name-3-{number} HTTP/1.1\r\nHost: h\r\nContent-Length: 26\r\nContent-Length: 0\r\n\r\n\
             GET /smuggled HTTP/1.1\r\n\r\n"
        ),
        _ => format!("GET /name-4-{number} HTTP/1.1\r\nHost: h\r\n\r\n"),
    };
    let mut request = captured(raw.as_bytes());
    if kind == 4 {
        request.flags = Flags::DISPUTED;
    }
    request
}

fn cases() -> u32 {
    let given = std::env::var("PROPTEST_CASES").ok();
    given.and_then(|n| n.parse().ok()).unwrap_or(16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 50, ..ProptestConfig::default() })]

    /// Quarantine is the only path of a disputed request: whatever else is sent and whatever the analyser does, no
    /// connection ever carries another request before or behind it. The same holds for a request behind which the
    /// analyser may close, and for one that a connection ended on.
    #[test]
    fn a_request_that_goes_alone_never_shares_a_connection(
        scripts in prop::collection::vec(script(), 1..30),
        requests in prop::collection::vec((0_u8..5, 0_u8..3, any::<bool>()), 1..60),
        pipeline in 1_usize..20,
    ) {
        let log = Arc::new(Mutex::new(BTreeMap::<usize, Arc<Mutex<Seen>>>::new()));
        let peer = {
            let log = Arc::clone(&log);
            Peer::new(move |stream, number| {
                // What comes after the scripts is served, so that the test ends.
                let script = scripts.get(number).copied().unwrap_or(Script::Good);
                let seen = Arc::<Mutex<Seen>>::default();
                log.lock().unwrap().insert(number, Arc::clone(&seen));
                serve(stream, script, &seen);
            })
        };
        let mut worker = Worker::new(peer.address, ForwardOptions { pipeline, ..short() });
        for (number, &(kind, source, step)) in requests.iter().enumerate() {
            worker.submit(&from([10, 0, 0, source], named(kind, number)));
            if step {
                worker.step();
            }
        }
        worker.run_idle(20);
        let ended: u64 = worker.outcomes().iter().map(|&(_, n)| n).sum();
        prop_assert_eq!(ended, requests.len() as u64);
        prop_assert_eq!(worker.of(Delivered2xx) + worker.of(RefusedByAnalyser), ended);

        let timeouts = worker.count(Counter::AnswerTimeouts);
        // The peer's threads end with the connections.
        drop(worker);
        std::thread::sleep(Duration::from_millis(30));
        let log = log.lock().unwrap();
        // Where the machine is so busy that an answer came too late, the two sides do not agree who was to blame.
        let silent = log.values().filter(|seen| seen.lock().unwrap().silent).count();
        let blame_is_known = timeouts == silent as u64;
        // In the order in which they ended: a request may go from a younger connection to an older one.
        let mut ends: Vec<_> = log.iter().collect();
        ends.sort_by_key(|(_, seen)| {
            let ended = seen.lock().unwrap().ended;
            (ended.is_none(), ended)
        });
        let mut charged = BTreeMap::<String, Instant>::new();
        for (number, seen) in ends {
            let seen = seen.lock().unwrap();
            let names = seen.names();
            let alone = |name: &String| !name.starts_with(['0', '1']);
            prop_assert!(names.len() <= 1 || !names.iter().any(alone), "{number}: {names:?}");
            for (place, name) in names.iter().enumerate() {
                let read = seen.read.get(place).copied().or(seen.ended);
                let before = charged.get(name).is_some_and(|charged| read.is_none_or(|read| read > *charged));
                prop_assert!(names.len() == 1 || !before, "{name} was charged before: {names:?}");
            }
            if let Some(name) = names.get(seen.answered).filter(|_| blame_is_known && !seen.excused)
                && let Some(ended) = seen.ended
            {
                charged.insert(name.clone(), ended);
            }
        }
    }
}
