//! Well-framed requests at a steady rate, and disputed ones at a higher one: what the latter cost the former.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::analyser::Analyser;
use lab::data_plane::DataPlane;
use lab::network::Options;
use lab::nginx::{Entry, Nginx};
use lab::process::wait_for;
use lab::vxlan::{Flow, Mirror};

use super::{one_at_a_time, rebuilder};

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
            sent.insert(target, lab::now());
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

/// Seconds between the sending of each request and nginx's log line, sorted.
struct Latencies(Vec<f64>);

impl Latencies {
    fn new(sent: &BTreeMap<String, f64>, log: &[Entry]) -> Self {
        let mut all: Vec<f64> = log
            .iter()
            .filter_map(|entry| Some(entry.at - sent.get(entry.target())?))
            .collect();
        all.sort_by(f64::total_cmp);
        Self(all)
    }

    /// A percentile in milliseconds, which is the resolution of nginx's clock.
    fn ms(&self, percent: usize) -> f64 {
        (self.0[(self.0.len() - 1) * percent / 100] * 1000.0).max(1.0)
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "median {:.1} ms, 99 % {:.1} ms",
            self.ms(50),
            self.ms(99)
        )
    }
}

/// The analyser that inspects is the bottleneck: what it cannot take of a flood is counted, and others get their answers.
#[test]
fn a_flood_beyond_what_the_analyser_can_take_is_counted_and_slows_nobody_down() {
    if lab::skip::no_lab(
        "a_flood_beyond_what_the_analyser_can_take_is_counted_and_slows_nobody_down",
    ) {
        return;
    }
    let _alone = one_at_a_time();
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
    let [quiet, loaded] = [&before, &during].map(|sent| Latencies::new(sent, &log));
    assert_eq!((quiet.0.len(), loaded.0.len()), (3 * SHARED, 3 * SHARED));
    println!(
        "{SHARED} well-framed requests/s: {quiet}; with {DISPUTED} disputed/s, of which {refused} found no room: {loaded}",
    );
    rebuilder.drained().unwrap();
}

#[test]
fn the_shared_path_keeps_its_speed_while_5000_disputed_requests_a_second_arrive() {
    if lab::skip::no_lab(
        "the_shared_path_keeps_its_speed_while_5000_disputed_requests_a_second_arrive",
    ) {
        return;
    }
    let _alone = one_at_a_time();
    const SHARED: usize = 1000;
    const DISPUTED: usize = 5000;
    let plane = DataPlane::new(Options::default()).unwrap();
    let nginx = Nginx::plain_analyser(&plane.analyser, "plain", plane.vpc.directory()).unwrap();
    let rebuilder = rebuilder(&plane, 80, &["--queue-bytes", "16M"]);
    let mut mirror = Mirror::new(&plane.vpc, "172.31.0.1").unwrap();
    let before = offer(&mut mirror, "alone", SHARED, 0);
    rebuilder.settled(before.len() as u64).unwrap();
    let (mut connections, mut waiting) = (0, 0);
    let over = AtomicBool::new(false);
    let during = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let during = offer(&mut mirror, "flooded", SHARED, DISPUTED);
            over.store(true, Ordering::Relaxed);
            during
        });
        while !over.load(Ordering::Relaxed) {
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
    let [quiet, loaded] = [&before, &during].map(|sent| Latencies::new(sent, &log));
    assert_eq!((quiet.0.len(), loaded.0.len()), (3 * SHARED, 3 * SHARED));
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
        "{SHARED} well-framed requests/s from the wire to nginx's log: {quiet}; with {DISPUTED} disputed/s: {loaded}, \
         ratio of the medians {:.2}; disputed: {} delivered, {refused} refused, at most {connections} connections and \
         {waiting} bytes waiting",
        loaded.ms(50) / quiet.ms(50),
        quarantined.len(),
    );
    // Bounds for a busy machine and an unoptimised program; the figures above say what it was.
    assert!(loaded.ms(50) < quiet.ms(50) + 500.0);
    assert!(loaded.ms(99) < quiet.ms(99) + 3000.0);
    rebuilder.drained().unwrap();
}
