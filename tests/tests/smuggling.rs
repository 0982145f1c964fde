//! A request that two servers may frame differently, or that makes the analyser close, costs no other request anything:
//! whoever shares the rebuilder's connections gets his own answer, once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lab::analyser::Analyser;
use lab::client::Connection;
use lab::data_plane::{DataPlane, Web};
use lab::network::Options;
use lab::nginx::{Entry, Nginx};
use lab::process::wait_for;
use lab::rebuilder::{Metrics, Rebuilder};
use lab::relay::Relay;
use lab::vxlan::{Flow, Mirror};

/// One at a time: one of them measures.
static ALONE: Mutex<()> = Mutex::new(());

/// Where the relay listens, before the analyser.
const RELAY: u16 = 8081;
/// What the analyser answers to `/STATUS/…`.
const STATUSES: [u16; 4] = [200, 302, 404, 503];

/// A mirrored instance, a rebuilder with one worker, so that all requests meet, and the real analyser.
struct Bench {
    rebuilder: Rebuilder,
    analyser: Analyser,
    web: Web,
    plane: DataPlane,
}

impl Bench {
    /// `port` of the analyser's host is what the rebuilder forwards to.
    fn new(port: u16) -> Self {
        let plane = DataPlane::new(Options::default()).unwrap();
        Self {
            analyser: Analyser::start(&plane.analyser, plane.vpc.directory()).unwrap(),
            web: plane.web().unwrap(),
            rebuilder: rebuilder(&plane, port, &[]),
            plane,
        }
    }

    fn connect(&self) -> Connection {
        Connection::open(&self.plane.client, self.web.servers[0]).unwrap()
    }

    /// Sends these bytes on a connection of their own. What the instance says to them is not looked at.
    fn alone(&self, bytes: &[u8]) {
        let mut connection = self.connect();
        // It may close before it has read all; what was sent until then was mirrored.
        let _ = connection.send(bytes);
        let _ = connection.finish();
    }

    /// Sends `requests` on `connections` kept-alive connections at once, 20 pipelined at a time, while `meanwhile` runs.
    fn neighbours(&self, requests: &[Vec<u8>], connections: usize, meanwhile: impl FnOnce()) {
        std::thread::scope(|scope| {
            for share in requests.chunks(requests.len().div_ceil(connections)) {
                scope.spawn(|| {
                    let mut connection = self.connect();
                    for batch in share.chunks(20) {
                        connection.send(&batch.concat()).unwrap();
                        let answers = connection.answers(batch.len()).unwrap();
                        assert_eq!(answers, vec![200; batch.len()]);
                    }
                });
            }
            meanwhile();
        });
    }

    /// The metrics when so many requests have their outcome.
    fn settled(&self, requests: usize) -> Metrics {
        self.rebuilder.settled(requests as u64).unwrap()
    }

    /// nginx's own log, once it holds so many lines.
    fn log(&self, lines: usize) -> Vec<Entry> {
        wait_for("the analyser's log", Duration::from_secs(10), || {
            let log = self.analyser.access_log()?;
            Ok((log.len() >= lines).then_some(log))
        })
        .unwrap()
    }
}

fn rebuilder(plane: &DataPlane, port: u16, flags: &[&str]) -> Rebuilder {
    plane
        .rebuild(port, &[&["--workers", "1"], flags].concat())
        .unwrap()
}

/// The `n`-th well-framed request of a kind: its target says how it is answered.
fn neighbour(kind: &str, n: usize) -> (String, Vec<u8>) {
    let status = STATUSES[n % STATUSES.len()];
    let target = format!("/{status}/{kind}/{n}");
    let request = if n.is_multiple_of(3) {
        let body = format!("body-{n}").repeat(n % 40);
        format!(
            "POST {target} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    } else {
        format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    };
    (target, request.into_bytes())
}

/// The status that a target asks for.
fn asked(target: &str) -> Option<u16> {
    target.split('/').nth(1)?.parse().ok()
}

/// Which of the outcomes a status is counted as.
fn outcome(status: u16) -> String {
    format!("delivered_{}xx", status / 100)
}

/// Each is one connection's bytes; `{n}` is a number that no other one has. To one server the rest is a body or does not
/// exist, to another it is a request.
const SMUGGLERS: [(&str, &str); 12] = [
    (
        "CL.TE",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 51\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n",
    ),
    (
        "TE.CL",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n\
         2c\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\nX: 12345\r\n0\r\n\r\n",
    ),
    (
        "TE.TE, an unknown coding",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\
         Transfer-Encoding: x\r\n\r\n5c\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, a prefix",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: xchunked\r\n\r\n\
         5c\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, a space before the colon",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding : chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, a vertical tab",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0bchunked\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, behind a bare LF",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nX: y\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, folded",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, an underscore",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "CL.0",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 44\r\n\r\n\
         GET /smuggled/{n} HTTP/1.1\r\nHost: h\r\nX: 123\r\n\r\n",
    ),
    (
        "CL.CL",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 38\r\n\r\n\
         GET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "a body that a GET has",
        "GET /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 38\r\nContent-Length: 38\r\n\r\n\
         GET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
];

#[test]
fn whoever_shares_connections_with_smugglers_gets_his_own_answers() {
    if lab::skip::no_lab("whoever_shares_connections_with_smugglers_gets_his_own_answers") {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const NEIGHBOURS: usize = 800;
    let bench = Bench::new(RELAY);
    let relay = Relay::start(
        &bench.plane.analyser,
        RELAY,
        SocketAddr::from((Ipv4Addr::LOCALHOST, 80)),
    )
    .unwrap();
    let (targets, requests): (Vec<String>, Vec<Vec<u8>>) =
        (0..NEIGHBOURS).map(|n| neighbour("n", n)).unzip();
    bench.neighbours(&requests, 4, || {
        for round in 0..3 {
            for (number, (_, bytes)) in SMUGGLERS.iter().enumerate() {
                let n = format!("{:04}", 100 * round + number);
                bench.alone(bytes.replace("{n}", &n).as_bytes());
            }
        }
    });
    // How many requests a smuggler is to the rebuilder, its tables say; each of them is delivered.
    let metrics = wait_for("no request is in flight", Duration::from_secs(60), || {
        let metrics = bench.rebuilder.metrics()?;
        let all = metrics.requests() >= (NEIGHBOURS + 3 * SMUGGLERS.len()) as u64;
        Ok((all && metrics.count("rebuilder_requests_in_flight") == 0).then_some(metrics))
    })
    .unwrap();
    assert_eq!(metrics.delivered(), metrics.requests(), "{metrics:?}");

    // What the rebuilder wrote and read on each of its connections.
    let mut answered: BTreeMap<&str, usize> = BTreeMap::new();
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    let (mut shared, mut quarantined) = (0, 0);
    for tape in relay.tapes() {
        let up = String::from_utf8_lossy(&tape.up).into_owned();
        let answers = tape.answers().unwrap();
        let own: Vec<&str> = up
            .lines()
            .filter_map(|line| line.split_once(' ')?.1.strip_suffix(" HTTP/1.1"))
            .filter(|target| target.contains("/n/"))
            .collect();
        if up.contains("/smugg") {
            quarantined += 1;
            assert_eq!(own, [""; 0], "with a disputed request: {up}");
            // One request of ours; what is in it may be two to others.
            assert_eq!(up.matches("X-Server-Port: ").count(), 1, "{up}");
            let first = answers.first().unwrap();
            *expected.entry(outcome(first.status)).or_default() += 1;
            continue;
        }
        shared += usize::from(!own.is_empty());
        assert_eq!(answers.len(), own.len(), "{up}");
        for (target, answer) in own.iter().zip(&answers) {
            assert_eq!(answer.echo.as_deref(), Some(*target));
            assert_eq!(Some(answer.status), asked(target));
            let known = targets.iter().find(|known| known == target).unwrap();
            *answered.entry(known).or_default() += 1;
            *expected.entry(outcome(answer.status)).or_default() += 1;
        }
    }
    assert_eq!(answered.len(), NEIGHBOURS);
    assert!(answered.values().all(|&times| times == 1));
    assert!((1..=4).contains(&shared), "{shared} shared connections");
    assert_eq!(
        quarantined,
        metrics.count("rebuilder_requests_quarantined_total")
    );
    assert!(
        quarantined >= 3 * SMUGGLERS.len() as u64 - 3,
        "{quarantined}"
    );
    assert_eq!(metrics.count("rebuilder_requests_resent_total"), 0);
    // And the rebuilder's own counts are those of these answers.
    assert_eq!(metrics.outcomes("rebuilder_requests_total"), expected);

    // nginx's own log: the same neighbours, and none on a connection of a smuggler.
    let log = bench.log(NEIGHBOURS + usize::try_from(quarantined).unwrap());
    let of = |part: &str| -> BTreeSet<u64> {
        let with = log.iter().filter(|entry| entry.line.contains(part));
        with.map(|entry| entry.connection).collect()
    };
    let (neighbours, smugglers) = (of("/n/"), of("/smugg"));
    assert!(neighbours.is_disjoint(&smugglers));
    assert_eq!(
        log.iter()
            .filter(|entry| entry.line.contains("/n/"))
            .count(),
        NEIGHBOURS
    );
    println!(
        "{NEIGHBOURS} neighbours on {shared} connections, {quarantined} quarantined: {expected:?}"
    );
    bench.rebuilder.drained().unwrap();
}

/// The rows of "Sharing a connection", each with what is sent. `{n}` is a number that no other one has.
fn leavers() -> Vec<(&'static str, String)> {
    let long = "x".repeat(9 * 1024);
    let large = "x".repeat(3 << 19);
    let larger = "x".repeat(3 << 20);
    let small = "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello";
    [
        ("close", "GET /leaver/{n} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"),
        ("HTTP/1.0", "GET /leaver/{n} HTTP/1.0\r\nHost: h\r\n\r\n"),
        ("no Host", "GET /leaver/{n} HTTP/1.1\r\n\r\n"),
        ("several Host", "GET /leaver/{n} HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n"),
        ("CONNECT", "CONNECT leaver:{n} HTTP/1.1\r\nHost: leaver:{n}\r\n\r\n"),
        (
            "Upgrade",
            "GET /leaver/{n} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ),
        ("odd method", "get /leaver/{n} HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("climbing path", "GET /../leaver/{n} HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("disputed", &format!("POST /leaver/{{n}} HTTP/1.1\r\nHost: h\r\n{small}")),
        ("head > 8 KiB", &format!("GET /leaver/{{n}} HTTP/1.1\r\nHost: h\r\nX: {long}\r\n\r\n")),
        (
            "body > 1 MiB",
            &format!("POST /leaver/{{n}} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{large}", large.len()),
        ),
        (
            "body that nginx refuses",
            &format!("POST /leaver/{{n}} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{larger}", larger.len()),
        ),
    ]
    .map(|(row, text)| (row, text.to_owned()))
    .into()
}

/// 1 % of requests are of one row; whatever nginx does about them, every other one is delivered once, with its own
/// status, and those of the row go alone.
/// `before`: requests that the rebuilder has had; `number`: none of the log has it or a later one.
fn one_row(bench: &Bench, before: usize, number: usize, row: &str, bytes: &str) -> usize {
    const NEIGHBOURS: usize = 198;
    const LEAVERS: usize = 2;
    let kind = row.replace([' ', '/', '.', '>'], "-");
    let begun = bench.settled(before);
    let (targets, requests): (Vec<String>, Vec<Vec<u8>>) =
        (0..NEIGHBOURS).map(|n| neighbour(&kind, n)).unzip();
    bench.neighbours(&requests, 3, || {
        for n in 0..LEAVERS {
            bench.alone(
                bytes
                    .replace("{n}", &format!("{:05}", number + n))
                    .as_bytes(),
            );
        }
    });
    let metrics = bench.settled(before + NEIGHBOURS + LEAVERS);
    assert_eq!(
        metrics.delivered(),
        metrics.requests(),
        "{row}: {metrics:?}"
    );

    let of_neighbours = |entry: &&Entry| entry.line.contains(&format!("/{kind}/"));
    let of_row = |entry: &&Entry| {
        (number..number + LEAVERS).any(|n| {
            entry
                .line
                .replace(':', "/")
                .contains(&format!("leaver/{n:05}"))
        })
    };
    let log = wait_for("nginx's log", Duration::from_secs(10), || {
        let log = bench.analyser.access_log()?;
        let whole = log.iter().filter(of_neighbours).count() >= NEIGHBOURS
            && log.iter().filter(of_row).count() >= LEAVERS;
        Ok(whole.then_some(log))
    })
    .unwrap_or_else(|error| panic!("{row}: {error}: {:?}", bench.analyser.access_log()));
    let own: Vec<&Entry> = log.iter().filter(of_neighbours).collect();
    let others: Vec<&Entry> = log.iter().filter(of_row).collect();
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in &own {
        assert_eq!(
            Some(entry.status),
            asked(entry.target()),
            "{row}: {entry:?}"
        );
        *times.entry(entry.target()).or_default() += 1;
    }
    let resent = metrics.count("rebuilder_requests_resent_total")
        - begun.count("rebuilder_requests_resent_total");
    let twice = times.values().filter(|&&times| times > 1).count();
    assert!(
        targets
            .iter()
            .all(|target| times.contains_key(target.as_str())),
        "{row}"
    );
    assert!(
        twice as u64 <= resent,
        "{row}: {twice} twice, {resent} resent"
    );
    // Nobody else on the connection of one of the row, unless our rewriting has made it an ordinary request.
    for entry in &others {
        let with = log
            .iter()
            .filter(|it| it.connection == entry.connection)
            .count();
        if !entry.flags.contains("hop") {
            assert_eq!((with, entry.number), (1, 1), "{row}: {entry:?}");
        }
    }
    let statuses: BTreeSet<u16> = others.iter().map(|entry| entry.status).collect();
    let outcomes = |metrics: &Metrics, status| {
        let outcomes = metrics.outcomes("rebuilder_requests_total");
        outcomes.get(&outcome(status)).copied().unwrap_or(0)
    };
    for status in STATUSES {
        let of_class = |all: &[&Entry]| {
            let of_class = all
                .iter()
                .filter(|it| outcome(it.status) == outcome(status));
            of_class.count() as u64
        };
        let counted = outcomes(&metrics, status) - outcomes(&begun, status);
        if twice == 0 {
            assert_eq!(
                counted,
                of_class(&own) + of_class(&others),
                "{row}: {status}"
            );
        }
    }
    println!("{row}: nginx said {statuses:?}; resent {resent}, logged twice {twice}");
    before + NEIGHBOURS + LEAVERS
}

#[test]
fn requests_that_make_nginx_close_cost_their_neighbours_nothing() {
    if lab::skip::no_lab("requests_that_make_nginx_close_cost_their_neighbours_nothing") {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bench = Bench::new(80);
    let mut sent = 0;
    for (row, bytes) in leavers() {
        sent = one_row(&bench, sent, sent, row, &bytes);
    }
    // As captured, the first two make nginx close as well.
    bench.rebuilder.drained().unwrap();
    bench.rebuilder = rebuilder(&bench.plane, 80, &["--hop-by-hop", "keep"]);
    let mut sent = 0;
    for (row, bytes) in leavers().into_iter().take(2) {
        sent = one_row(&bench, sent, 50_000 + sent, &format!("{row} kept"), &bytes);
    }
    bench.rebuilder.drained().unwrap();
}

/// A percentile in milliseconds, which is the resolution of nginx's clock.
fn ms(all: &[f64], percent: usize) -> f64 {
    (all[(all.len() - 1) * percent / 100] * 1000.0).max(1.0)
}

/// Seconds between the sending of each request and nginx's log line, sorted.
fn latencies(sent: &BTreeMap<String, f64>, log: &[Entry]) -> Vec<f64> {
    let mut all: Vec<f64> = log
        .iter()
        .filter_map(|entry| Some(entry.at - sent.get(entry.target())?))
        .collect();
    all.sort_by(f64::total_cmp);
    all
}

/// The analyser that inspects is the bottleneck: what it cannot take of a flood is counted, and others get their answers.
#[test]
fn a_flood_beyond_what_the_analyser_can_take_is_counted_and_slows_nobody_down() {
    if lab::skip::no_lab(
        "a_flood_beyond_what_the_analyser_can_take_is_counted_and_slows_nobody_down",
    ) {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const SHARED: usize = 200;
    const DISPUTED: usize = 3000;
    let plane = DataPlane::new(Options::default()).unwrap();
    let analyser = Analyser::start(&plane.analyser, plane.vpc.directory()).unwrap();
    let rebuilder = rebuilder(&plane, 80, &["--queue-bytes", "1M"]);
    let mut mirror = Mirror::new(&plane.vpc, "172.31.0.1").unwrap();
    let before = offer(&mut mirror, "alone", SHARED, 0);
    let during = offer(&mut mirror, "flooded", SHARED, DISPUTED);
    let metrics = wait_for(
        "every request has its outcome",
        Duration::from_secs(60),
        || {
            let metrics = rebuilder.metrics()?;
            let all = before.len() + during.len() + 3 * DISPUTED;
            Ok((metrics.requests() == all as u64).then_some(metrics))
        },
    )
    .unwrap();
    let outcomes = metrics.outcomes("rebuilder_requests_total");
    let refused = outcomes.get("quarantine_full").copied().unwrap_or(0);
    assert!(refused > 0, "{outcomes:?}");
    // On a busy machine a disputed one may go unanswered for 5 s, twice.
    let late = outcomes.get("refused_by_analyser").copied().unwrap_or(0);
    assert_eq!(
        metrics.requests(),
        metrics.delivered() + refused + late,
        "{outcomes:?}"
    );
    let log = wait_for("nginx's log", Duration::from_secs(10), || {
        let log = analyser.access_log()?;
        Ok((log.len() as u64 >= metrics.delivered()).then_some(log))
    })
    .unwrap();
    let (quiet, loaded) = (latencies(&before, &log), latencies(&during, &log));
    assert_eq!((quiet.len(), loaded.len()), (3 * SHARED, 3 * SHARED));
    println!(
        "{SHARED} well-framed requests/s: median {:.1} ms, 99 % {:.1} ms; with {DISPUTED} disputed/s, of which {refused} \
         found no room: median {:.1} ms, 99 % {:.1} ms",
        ms(&quiet, 50),
        ms(&quiet, 99),
        ms(&loaded, 50),
        ms(&loaded, 99),
    );
    rebuilder.drained().unwrap();
}

/// Offers `shared` well-framed and `disputed` disputed requests a second for three seconds, and gives when each of the
/// well-framed ones was sent.
fn offer(mirror: &mut Mirror, kind: &str, shared: usize, disputed: usize) -> BTreeMap<String, f64> {
    const SECONDS: usize = 3;
    const TURNS: usize = 200;
    let server = SocketAddrV4::new(Ipv4Addr::new(172, 31, 0, 1), 80);
    let mut flows = |net: [u8; 3], count: u8| -> Vec<Flow> {
        (0..count)
            .map(|host| {
                let address = Ipv4Addr::new(net[0], net[1], net[2], host);
                let port = if kind == "alone" { 40000 } else { 40001 };
                Flow::open(mirror, SocketAddrV4::new(address, port), server).unwrap()
            })
            .collect()
    };
    let mut clients = flows([198, 51, 100], 4);
    let mut floods = flows([203, 0, 113], 40);
    let mut sent = BTreeMap::new();
    let begun = Instant::now();
    let mut number = 0;
    for turn in 0..SECONDS * TURNS {
        for _ in 0..shared / TURNS {
            let target = format!("/{kind}/{number}");
            let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            let flow = number % clients.len();
            sent.insert(target, now());
            clients[flow].send(mirror, request.as_bytes()).unwrap();
            number += 1;
        }
        for n in 0..disputed / TURNS {
            // A bare LF: nginx takes it for a line's end, others do not.
            let request = format!("GET /disputed/{turn}-{n} HTTP/1.1\r\nHost: h\nX: y\r\n\r\n");
            let flow = (turn + n) % floods.len();
            floods[flow].send(mirror, request.as_bytes()).unwrap();
        }
        let next = begun + Duration::from_millis(5) * u32::try_from(turn + 1).unwrap();
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    sent
}

#[test]
fn the_shared_path_keeps_its_speed_while_5000_disputed_requests_a_second_arrive() {
    if lab::skip::no_lab(
        "the_shared_path_keeps_its_speed_while_5000_disputed_requests_a_second_arrive",
    ) {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const SHARED: usize = 1000;
    const DISPUTED: usize = 5000;
    let plane = DataPlane::new(Options::default()).unwrap();
    let nginx = Nginx::plain_analyser(&plane.analyser, "plain", plane.vpc.directory()).unwrap();
    let rebuilder = rebuilder(&plane, 80, &["--queue-bytes", "16M"]);
    let mut mirror = Mirror::new(&plane.vpc, "172.31.0.1").unwrap();
    let before = offer(&mut mirror, "alone", SHARED, 0);
    rebuilder.settled(before.len() as u64).unwrap();
    let (mut connections, mut waiting) = (0, 0);
    let over = std::sync::atomic::AtomicBool::new(false);
    let during = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let during = offer(&mut mirror, "flooded", SHARED, DISPUTED);
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            during
        });
        while !over.load(std::sync::atomic::Ordering::Relaxed) {
            let metrics = rebuilder.metrics().unwrap();
            connections = connections.max(metrics.count("rebuilder_quarantine_connections"));
            waiting = waiting.max(metrics.count("rebuilder_queue_bytes"));
        }
        flood.join().unwrap()
    });
    let all = before.len() + during.len() + 3 * DISPUTED;
    let metrics = rebuilder.settled(all as u64).unwrap();

    // Every well-framed one once, none on a connection with a disputed one.
    let log = wait_for("nginx's log", Duration::from_secs(10), || {
        let log = nginx.access_log()?;
        Ok((log.len() as u64 >= metrics.delivered()).then_some(log))
    })
    .unwrap();
    let (quiet, loaded) = (latencies(&before, &log), latencies(&during, &log));
    assert_eq!((quiet.len(), loaded.len()), (3 * SHARED, 3 * SHARED));
    let of = |disputed: bool| -> BTreeSet<u64> {
        let those = log
            .iter()
            .filter(|it| it.line.contains("/disputed/") == disputed);
        those.map(|it| it.connection).collect()
    };
    let (shared, quarantined) = (of(false), of(true));
    assert!(shared.is_disjoint(&quarantined));
    assert!(shared.len() <= 4, "{} shared connections", shared.len());
    let disputed = log.iter().filter(|it| it.line.contains("/disputed/"));
    assert!(disputed.clone().all(|it| it.number == 1));
    assert_eq!(disputed.count(), quarantined.len(), "a connection each");

    // Quarantine is bounded, and what it cannot take is counted.
    assert!((1..=64).contains(&connections), "{connections}");
    assert!(waiting <= 16 << 20);
    let outcomes = metrics.outcomes("rebuilder_requests_total");
    let refused = outcomes.get("quarantine_full").copied().unwrap_or(0);
    assert_eq!(
        metrics.requests(),
        metrics.delivered() + refused,
        "{outcomes:?}"
    );
    assert_eq!(quarantined.len() as u64 + refused, 3 * DISPUTED as u64);
    println!(
        "{SHARED} well-framed requests/s from the wire to nginx's log: median {:.1} ms, 99 % {:.1} ms; with {DISPUTED} \
         disputed/s: median {:.1} ms, 99 % {:.1} ms, ratio of the medians {:.2}; disputed: {} delivered, {refused} refused, \
         at most {connections} connections and {waiting} bytes waiting",
        ms(&quiet, 50),
        ms(&quiet, 99),
        ms(&loaded, 50),
        ms(&loaded, 99),
        ms(&loaded, 50) / ms(&quiet, 50),
        quarantined.len(),
    );
    // Bounds for a busy machine and an unoptimised program; the figures above say what it was.
    assert!(ms(&loaded, 50) < ms(&quiet, 50) + 500.0);
    assert!(ms(&loaded, 99) < ms(&quiet, 99) + 3000.0);
    rebuilder.drained().unwrap();
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}
