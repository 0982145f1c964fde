//! The forwarder and a real nginx that is not on the loopback device, at 5,000 requests a second for a while: as few
//! connections as nginx allows, and nothing lost where it closes them.
//!
//! `LAB_KEPT_ALIVE_SECONDS` says for how long, each; 1800 for the record, 50 otherwise; the two run side by side.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::network::{Host, Interface, Options, Vpc};
use lab::nginx::Nginx;
use lab::process::wait_for;
use rebuilder::forward::{Addresses, ForwardOptions, Forwarder};
use rebuilder::http::{Extractor, HttpOptions, Request};
use rebuilder::stream::{Chunk, DirectionId, Endpoints};
use rebuilder::telemetry::{Counter, RequestOutcome, WorkerCounters};
use rebuilder::time::Timestamp;

const ANALYSER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const REQUESTS_A_SECOND: usize = 5000;

fn duration() -> Duration {
    let given = std::env::var("LAB_KEPT_ALIVE_SECONDS");
    Duration::from_secs(given.map_or(50, |seconds| seconds.parse().unwrap()))
}

/// Makes the requests that a connection would give. Each has a number in its target, and a client of that number.
struct Requests {
    extractor: Extractor,
    ends: Endpoints,
}

impl Requests {
    fn new() -> Self {
        let ends = Endpoints {
            vni: None,
            src: "192.0.2.10:40000".parse().unwrap(),
            dst: "10.1.2.3:80".parse().unwrap(),
        };
        let mut extractor = Extractor::new(HttpOptions::default());
        let open = Chunk::Open { midstream: false };
        extractor.chunk(DirectionId::new(1, 1), &ends, open, &mut |_| {});
        Self { extractor, ends }
    }

    fn make(&mut self, target: &str, number: usize) -> Request<'static> {
        let text = format!(
            "GET {target} HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: lab\r\nAccept: */*\r\n\r\n"
        );
        let chunk = Chunk::Data {
            bytes: text.as_bytes(),
            ts: Timestamp(1),
            segment_start: true,
            conflict: false,
        };
        let mut made = Vec::new();
        let (dir, ends) = (DirectionId::new(1, 1), &self.ends);
        self.extractor.chunk(dir, ends, chunk, &mut |request| {
            made.push(request.into_owned());
        });
        let mut request = made.pop().unwrap();
        request.origin = client(number);
        // Two hundred load balancers.
        request.endpoints.src =
            SocketAddr::from(([192, 0, 2, u8::try_from(number % 200).unwrap()], 40000));
        request
    }
}

fn client(number: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).unwrap()).into()
}

/// Sends requests at the rate and for the time of this test, from a host of its own; their number, and what was counted.
fn send(
    host: &Host,
    options: ForwardOptions,
    target: impl Fn(usize) -> String + Sync,
) -> (usize, Arc<WorkerCounters>) {
    let counters = Arc::new(WorkerCounters::default());
    let to = SocketAddr::from((ANALYSER, 80));
    let options = ForwardOptions {
        addresses: Arc::new(Addresses::new(vec![to])),
        ..options
    };
    let all = usize::try_from(duration().as_secs()).unwrap() * REQUESTS_A_SECOND;
    let run = || {
        let mut forwarder = Forwarder::new(options, Arc::clone(&counters)).unwrap();
        let mut requests = Requests::new();
        let begun = Instant::now();
        let end = begun + duration() + Duration::from_secs(30);
        let mut sent = 0;
        while sent < all || !forwarder.idle() {
            let now = Instant::now();
            assert!(now < end, "{} are not answered", forwarder.in_flight());
            let milliseconds = usize::try_from((now - begun).as_millis()).unwrap();
            while sent < all.min(milliseconds * REQUESTS_A_SECOND / 1000) {
                forwarder.submit(&requests.make(&target(sent), sent));
                sent += 1;
            }
            forwarder.poll(Duration::from_millis(1), now);
        }
    };
    host.namespace.run(run).unwrap();
    (all, counters)
}

/// Looks through what nginx logged: every request is there, under its own client, and as often again as was said. Gives
/// the number of connections.
fn judge(nginx: &Nginx, all: usize, resent: u64) -> usize {
    // nginx logs behind its answer.
    let lines = || anyhow::Ok(nginx.deliveries()?.count());
    let complete = || Ok((lines()? >= all).then_some(()));
    wait_for("the log", Duration::from_secs(60), complete).unwrap();
    let mut seen = vec![0_u32; all];
    let mut connections = BTreeSet::new();
    let mut times = 0;
    for line in nginx.deliveries().unwrap() {
        let line = line.unwrap();
        let mut fields = line.split(' ');
        let (connection, target) = (fields.next().unwrap(), fields.next().unwrap());
        let number: usize = target.rsplit('/').next().unwrap().parse().unwrap();
        let status = if target.starts_with("/drop/") {
            "444"
        } else {
            "200"
        };
        let real_ip = client(number).to_string();
        assert_eq!(
            [fields.next(), fields.next()],
            [Some(real_ip.as_str()), Some(status)],
            "{line}"
        );
        connections.insert(connection.parse::<u64>().unwrap());
        seen[number] += 1;
        times += 1;
    }
    let missing = seen.iter().filter(|&&times| times == 0).count();
    assert_eq!(missing, 0, "lost");
    assert!(
        times - all as u64 <= resent,
        "{times} deliveries of {all}, {resent} sent again"
    );
    connections.len()
}

fn hosts(vpc: &Vpc) -> [Host; 2] {
    [("sender", "10.9.0.1"), ("analyser", "10.9.0.2")]
        .map(|(role, address)| vpc.host(role, &[Interface::new(role, &[address])]).unwrap())
}

#[test]
fn five_thousand_requests_a_second_need_no_hundred_connections() {
    if lab::skip::no_lab("five_thousand_requests_a_second_need_no_hundred_connections") {
        return;
    }
    let vpc = Vpc::new(Options::default()).unwrap();
    let [sender, analyser] = hosts(&vpc);
    let nginx = Nginx::closing_analyser(&analyser, "open", vpc.directory(), 1_000_000_000).unwrap();
    let (all, counters) = send(&sender, ForwardOptions::default(), |number| {
        format!("/{number}")
    });
    assert_eq!(
        counters.requests_of(RequestOutcome::Delivered2xx),
        all as u64
    );
    let resent = counters.counter(Counter::Resent);
    let connections = judge(&nginx, all, resent);
    println!("{all} requests, {connections} connections, {resent} sent again");
    assert!(connections < 100, "{connections}");
    assert_eq!(connections as u64, counters.counter(Counter::Connects));
}

#[test]
fn where_nginx_closes_nothing_is_lost_and_no_neighbour_is_changed() {
    if lab::skip::no_lab("where_nginx_closes_nothing_is_lost_and_no_neighbour_is_changed") {
        return;
    }
    let vpc = Vpc::new(Options::default()).unwrap();
    let [sender, analyser] = hosts(&vpc);
    let nginx = Nginx::closing_analyser(&analyser, "closing", vpc.directory(), 1000).unwrap();
    // One in a hundred makes it close: half of these are answered, and half are not.
    let kind = |number: usize| match number % 200 {
        50 => "/close/",
        150 => "/drop/",
        _ => "/",
    };
    let target = |number: usize| format!("{}{number}", kind(number));
    let (all, counters) = send(&sender, ForwardOptions::default(), target);
    let refused = (0..all).filter(|&number| kind(number) == "/drop/").count();
    let delivered = counters.requests_of(RequestOutcome::Delivered2xx);
    let outcomes: Vec<(RequestOutcome, u64)> = RequestOutcome::ALL
        .iter()
        .map(|&outcome| (outcome, counters.requests_of(outcome)))
        .filter(|&(_, times)| times > 0)
        .collect();
    assert_eq!(
        outcomes,
        [
            (RequestOutcome::Delivered2xx, (all - refused) as u64),
            (RequestOutcome::RefusedByAnalyser, refused as u64)
        ]
    );
    let resent = counters.counter(Counter::Resent);
    let connections = judge(&nginx, all, resent);
    println!(
        "{all} requests, {delivered} delivered, {connections} connections, {resent} sent again"
    );
    // At least those that were closed on: by count, by word, and without one.
    assert!(
        connections >= all / 1000 + all / 200 + refused,
        "{connections}"
    );
}
