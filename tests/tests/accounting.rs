//! Nothing is lost without a number: requests = outcomes + in flight in every single scrape, under load and while the
//! rebuilder drains, and a packet that comes too late is counted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{SocketAddrV4, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::data_plane::DataPlane;
use lab::network::Options;
use lab::process::wait_for;
use lab::rebuilder::Metrics;
use lab::recorder::{Recorder, Records};
use lab::vxlan::{Flow, Mirror};

const CLIENT: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(198, 51, 100, 7), 40000);
const SERVER: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(172, 31, 0, 1), 80);

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\n\r\n").into_bytes()
}

fn in_flight(metrics: &Metrics) -> f64 {
    metrics.value("rebuilder_requests_in_flight")
}

#[test]
fn every_scrape_adds_up_under_load() {
    if lab::skip::no_lab("every_scrape_adds_up_under_load") {
        return;
    }
    const REQUESTS: u64 = 20_000;
    let plane = DataPlane::new(Options::default()).unwrap();
    let records = Records::default();
    let _recorder = Recorder::start(&plane.analyser, 80, &records, Duration::ZERO).unwrap();
    let rebuilder = plane.rebuild(80, &["--workers", "2"]).unwrap();
    let over = AtomicBool::new(false);
    let (mut scrapes, mut busy) = (0, 0);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut mirror = Mirror::new(&plane.vpc, "172.31.0.1").unwrap();
            let mut flows: Vec<Flow> = (0..20)
                .map(|n| {
                    let client = SocketAddrV4::new(*CLIENT.ip(), 40000 + n);
                    Flow::open(&mut mirror, client, SERVER).unwrap()
                })
                .collect();
            for number in 0..REQUESTS {
                let flow = &mut flows[usize::try_from(number % 20).unwrap()];
                flow.send(&mut mirror, &get(&format!("/{number}"))).unwrap();
                if number % 50 == 0 {
                    std::thread::sleep(Duration::from_millis(3));
                }
            }
            over.store(true, Ordering::Release);
        });
        while !over.load(Ordering::Acquire) || in_flight(&rebuilder.metrics().unwrap()) > 0.0 {
            // Fails where the requests do not add up.
            let metrics = rebuilder.metrics().unwrap();
            scrapes += 1;
            busy += u64::from(in_flight(&metrics) > 0.0);
        }
        load.join().unwrap();
    });
    let settled = wait_for("all delivered", Duration::from_secs(30), || {
        Ok((rebuilder.metrics()?.delivered() == REQUESTS).then_some(()))
    });
    assert!(settled.is_ok(), "{:?}", rebuilder.metrics().unwrap());
    println!("{scrapes} scrapes, {busy} with requests in flight");
    assert!(busy > 20, "{busy} of {scrapes} scrapes fell into the load");
}

#[test]
fn what_comes_during_a_drain_is_counted_and_a_second_sigterm_cuts_it_short() {
    if lab::skip::no_lab("what_comes_during_a_drain_is_counted_and_a_second_sigterm_cuts_it_short")
    {
        return;
    }
    let plane = DataPlane::new(Options::default()).unwrap();
    // Takes connections into its backlog and never answers.
    let _deaf = plane
        .analyser
        .namespace
        .run(|| TcpListener::bind("0.0.0.0:80"))
        .unwrap()
        .unwrap();
    let mut rebuilder = plane.rebuild(80, &["--workers", "1"]).unwrap();
    let mut mirror = Mirror::new(&plane.vpc, "172.31.0.1").unwrap();
    let mut flow = Flow::open(&mut mirror, CLIENT, SERVER).unwrap();
    flow.send(&mut mirror, &get("/in-flight")).unwrap();
    wait_for("the request is rebuilt", Duration::from_secs(5), || {
        Ok((in_flight(&rebuilder.metrics()?) > 0.5).then_some(()))
    })
    .unwrap();

    rebuilder.process().signal(libc::SIGTERM);
    wait_for("the drain", Duration::from_secs(5), || {
        Ok(rebuilder.get("/healthz").is_err().then_some(()))
    })
    .unwrap();
    // What had arrived by the signal is still read, so wait until that is over.
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..7 {
        flow.send(&mut mirror, &get("/too-late")).unwrap();
    }
    let counted = wait_for("all packets are counted", Duration::from_secs(5), || {
        let metrics = rebuilder.metrics()?;
        Ok((metrics.packets() == mirror.sent()).then_some(metrics))
    })
    .unwrap();
    let outcomes = counted.outcomes("rebuilder_packets_total");
    assert_eq!(outcomes.get("draining"), Some(&7), "{outcomes:?}");
    assert!(
        rebuilder.process().ended().unwrap().is_none(),
        "it waits for the answer"
    );

    let begun = Instant::now();
    let (code, output) = rebuilder.drain(Duration::from_secs(5)).unwrap();
    assert_eq!(code, Some(0), "{output}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{output}");
    let ended = output.lines().last().unwrap_or_default();
    for figure in ["packets=9", "requests=1", "draining=7", "unanswered=1"] {
        assert!(ended.contains(figure), "{figure} in {output}");
    }
}

/// Whoever stops a rebuilder has its books checked. They are read on both sides: a packet that reached the host and has no
/// outcome is found, while it runs, by its last line, and by whoever only drops it.
#[test]
fn the_harness_finds_a_packet_that_has_no_outcome() {
    if lab::skip::no_lab("the_harness_finds_a_packet_that_has_no_outcome") {
        return;
    }
    let plane = DataPlane::new(Options::default()).unwrap();
    // To a port that nobody listens on.
    let start = || plane.rebuild(80, &[]).unwrap();
    let tunnel = plane.vpc.tunnel("aside", "172.31.0.1", 1).unwrap();
    let aside = || {
        let to = format!("{}:9", lab::network::REBUILDER_UNDERLAY);
        let sent = tunnel
            .wire
            .run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", to));
        assert_eq!(sent.unwrap().unwrap(), 1);
    };

    let rebuilder = start();
    rebuilder.accounts().unwrap();
    aside();
    let error = rebuilder.accounts_within(Duration::from_secs(1));
    assert!(format!("{:#}", error.unwrap_err()).contains("0 counted or dropped"));
    let error = rebuilder.drain(Duration::from_secs(5)).unwrap_err();
    assert!(
        error.to_string().contains("packets on the link"),
        "{error:#}"
    );

    let rebuilder = start();
    aside();
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(rebuilder)));
    let said = dropped.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("rule 10 does not hold"), "{said}");
}
