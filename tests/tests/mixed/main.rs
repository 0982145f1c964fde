//! Requests of every kind, mirrored by the kernel, with the copies reordered, duplicated, cut and lost on their way:
//! what the analyser gets is what was sent, byte for byte, or said to be damaged, or counted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod live;
mod raw;
mod tools;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lab::data_plane::{CLIENT, DataPlane, instance, servers};
use lab::fabric::session::{Action, Rule, Session, http_session};
use lab::judge::{Request, Sent, Verdict, judge};
use lab::network::Options;
use lab::nginx::Entry;
use lab::perturb::{Counts, Ledger, Settings};
use lab::process::wait_for;
use lab::random::Random;
use lab::rebuilder::{Metrics, binary, last_figure};
use lab::verbatim::{Taken, Verbatim};
use lab::world::Snapshot;

use live::Tcpdump;
use raw::{Cut, Raw};
use tools::{Curl, Wrk};

/// A frame of MTU 9001 is longer than what AWS mirrors of it by default.
const JUMBO: u32 = 9001;
const ORDINARY: u32 = 1500;
const PACKET_LENGTH: u32 = 8500;
/// Payload that is not cut: less than [`PACKET_LENGTH`] with headers.
const UNCUT: usize = 8400;

/// How much of each kind is sent.
#[derive(Clone, Copy)]
struct Load {
    /// At least so many requests in all.
    requests: usize,
    /// Answers that each of the two wrk waits for, for two seconds at most.
    wrk: u64,
    /// curls of 50 pages each.
    curls: usize,
    /// Small files that curl posts.
    curl_posts: usize,
    /// For each of the two raw clients: connections with pipelined requests.
    pipelines: usize,
    /// Requests sent byte by byte.
    byte_by_byte: usize,
    /// Bodies with baits, up to 2 MB.
    bodies: usize,
    /// Bodies with baits of 20 MB.
    large: usize,
    /// They are sent at 3 MB/s, so that what waits behind a hole stays below its cap.
    paced: bool,
    /// A bait every so many segments.
    bait_every: usize,
    /// How much of each frame is mirrored; all where there is none.
    packet_length: Option<u32>,
    /// tcpdump writes what the rebuilder gets.
    captured: bool,
    /// No segment with heads in it is so long that the mirror cuts it. What a cut head costs besides itself depends on
    /// what shares its segments: the requests behind it, up to the next one that begins a segment.
    whole_heads: bool,
}

/// All that a run gives.
struct Outcome {
    sent: Vec<Sent>,
    log: Vec<Entry>,
    taken: Vec<Taken>,
    unlogged: usize,
    ledger: Ledger,
    counts: Counts,
    /// All that the rebuilder wrote.
    output: String,
    took: Duration,
    settled: Duration,
    /// What tcpdump has written.
    capture: Option<PathBuf>,
    /// Last, because its directory holds the capture.
    _plane: DataPlane,
}

/// A session that mirrors both directions.
fn both_ways(id: &str, eni: &str, packet_length: Option<u32>) -> Session {
    let mut session = http_session(id, eni, 1, &[80]);
    session.packet_length = packet_length;
    session.filter.egress = session
        .filter
        .ingress
        .iter()
        .map(|rule| Rule {
            action: Action::Accept,
            source_ports: rule.destination_ports,
            destination_ports: None,
            ..rule.clone()
        })
        .collect();
    session
}

/// Two instances, of which the client reaches the first with segments of 1,500 bytes only and the second with jumbo
/// ones; both are mirrored, the second in both directions.
fn run(settings: Settings, load: Load) -> Outcome {
    let (plane, mut relay) = DataPlane::perturbed(Options { mtu: JUMBO }, settings).unwrap();
    let analyser = Verbatim::start(&plane.analyser, 80).unwrap();
    let rebuilder = plane.rebuild(80, &[]).unwrap();
    let tcpdump = load
        .captured
        .then(|| Tcpdump::start(&plane.rebuilder, plane.vpc.directory()));
    let (ordinary, jumbo) = (instance(1), instance(2));
    let mut one_way = http_session("tms-1", ordinary.primary_eni(), 1, &[80]);
    one_way.packet_length = load.packet_length;
    let cloud = Arc::new(Mutex::new(Snapshot {
        instances: vec![ordinary.clone(), jumbo.clone()],
        sessions: vec![
            one_way,
            both_ways("tms-2", jumbo.primary_eni(), load.packet_length),
        ],
    }));
    let world = plane.mirrored(&cloud).unwrap();
    let [plain, long] = [&ordinary, &jumbo].map(|web| servers(web).unwrap());
    for server in plain {
        let prefix = if server.is_ipv6() { 128 } else { 32 };
        let route = format!("route add {}/{prefix} dev eth0 mtu {ORDINARY}", server.ip());
        plane.client.namespace.ip(&route).unwrap();
    }

    let begun = Instant::now();
    let traffic = Traffic::send(
        &plane,
        [plain[0], plain[1], long[0], long[1]],
        settings.seed,
        load,
    );
    let took = begun.elapsed();
    let log = wait_for("nginx's logs", Duration::from_secs(10), || {
        let mut log = world.access_log(&ordinary.id)?;
        log.extend(world.access_log(&jumbo.id)?);
        let known = traffic
            .sent
            .iter()
            .map(|it| it.requests.len())
            .sum::<usize>()
            + traffic.curl.len();
        let by_wrk = log
            .iter()
            .filter(|entry| entry.target().starts_with("/wrk/"))
            .count();
        Ok((log.len() == known + by_wrk).then_some(log))
    })
    .unwrap();
    let mut sent = traffic.sent;
    sent.extend(traffic.curl.connections(&log));
    let mut id = 1 << 40;
    for wrk in &traffic.wrks {
        sent.extend(wrk.connections(&log, &mut id));
    }

    // Everything mirrored has gone through the relay, has an outcome, and holes have grown old.
    wait_for(
        "the relay has handed on all",
        Duration::from_secs(20),
        || {
            let mirrored = world.packets_of("tms-1")? + world.packets_of("tms-2")?;
            let counts = relay.counts();
            Ok((counts.received == mirrored && counts.held == 0).then_some(()))
        },
    )
    .unwrap();
    rebuilder.accounts().unwrap();
    thread::sleep(if settings.drop > 0 {
        Duration::from_millis(2500)
    } else {
        Duration::ZERO
    });
    let metrics = rebuilder.accounts().unwrap();
    let mirrored = world.packets_of("tms-1").unwrap() + world.packets_of("tms-2").unwrap();
    let (counts, ledger) = relay.stop().unwrap();
    assert_eq!(
        counts.received, mirrored,
        "void: the relay has not seen all that was mirrored"
    );
    told(&metrics);
    let output = rebuilder.drained().unwrap();
    let settled = begun.elapsed();
    let capture = tcpdump.map(Tcpdump::stop);
    let mut taken = analyser.stop();
    let unlogged = traffic
        .wrks
        .iter()
        .map(|wrk| wrk.unlogged(&log, &mut taken))
        .sum();
    Outcome {
        sent,
        log,
        taken,
        unlogged,
        ledger,
        counts,
        output,
        capture,
        took,
        settled,
        _plane: plane,
    }
}

fn told(metrics: &Metrics) {
    println!(
        "  packets: {:?}",
        metrics.outcomes("rebuilder_packets_total")
    );
    println!(
        "  requests: {:?}",
        metrics.outcomes("rebuilder_requests_total")
    );
    for name in [
        "cut_frames",
        "gaps",
        "gap_bytes",
        "shed_bytes",
        "conflict_bytes",
        "incomplete_heads",
        "cut_requests",
        "lost_framings",
        "skipped_bytes",
        "requests_resent",
        "requests_quarantined",
        "kernel_drops",
    ] {
        print!(
            " {name} {}",
            metrics.count(&format!("rebuilder_{name}_total"))
        );
    }
    println!();
}

/// What was sent, as far as the clients know.
struct Traffic {
    sent: Vec<Sent>,
    curl: tools::Known,
    wrks: Vec<Wrk>,
}

impl Traffic {
    /// Two raw clients, curl and two wrk at the same time; then as many pipelined requests as lack of the number.
    fn send(plane: &DataPlane, servers: [SocketAddr; 4], seed: u64, load: Load) -> Self {
        let (client, directory) = (&plane.client, plane.vpc.directory());
        let locals = CLIENT.map(|address| address.parse().unwrap());
        // On a thread inside: sockets belong to the namespace in which they are made.
        let raw = |number: u16, send: &(dyn Fn(&mut Raw) + Sync)| {
            let mut raw = Raw {
                random: Random::new(seed ^ (u64::from(number) + 1) << 20),
                locals,
                servers,
                port: 10_000 + 5_000 * number,
                id: u64::from(number) << 32,
                bait_every: load.bait_every,
                sent: Vec::new(),
            };
            client
                .namespace
                .run(move || {
                    send(&mut raw);
                    raw.sent
                })
                .unwrap()
        };
        let mut all = thread::scope(|scope| {
            let raw = &raw;
            let raws: Vec<_> = (0..2)
                .map(|number| scope.spawn(move || raw(number, &|raw| everything(raw, load))))
                .collect();
            let wrks: Vec<_> = [("plain", servers[0]), ("jumbo", servers[3])]
                .map(|(name, server)| {
                    scope.spawn(move || Wrk::run(client, directory, name, server, load.wrk, 2))
                })
                .into_iter()
                .collect();
            let mut curl = Curl {
                client,
                directory,
                servers,
                port: 26_000,
                id: 1 << 36,
                random: Random::new(seed),
                known: tools::Known::default(),
            };
            for _ in 0..load.curls {
                curl.gets(50);
            }
            for number in 0..load.curl_posts {
                curl.post([1, 100, 5_000, 60_000, 900_000][number % 5]);
            }
            Self {
                sent: raws
                    .into_iter()
                    .flat_map(|raw| raw.join().unwrap())
                    .collect(),
                curl: curl.known,
                wrks: wrks.into_iter().map(|wrk| wrk.join().unwrap()).collect(),
            }
        });
        let by_wrk: u64 = all.wrks.iter().map(|wrk| wrk.answers).sum();
        let raw_and_curl =
            all.sent.iter().map(|it| it.requests.len()).sum::<usize>() + all.curl.len();
        let lacking = load
            .requests
            .saturating_sub(raw_and_curl + usize::try_from(by_wrk).unwrap());
        all.sent.extend(raw(2, &|raw| {
            for _ in 0..lacking.div_ceil(51) {
                pipelines(raw, load.whole_heads);
            }
        }));
        all
    }
}

/// In portions of so many bytes at most, where one request is not more.
fn portions(requests: Vec<Request>, most: usize) -> Vec<Vec<Request>> {
    let (mut portions, mut length): (Vec<Vec<Request>>, _) = (Vec::new(), 0);
    for request in requests {
        length += request.bytes.len();
        match portions.last_mut().filter(|_| length <= most) {
            Some(portion) => portion.push(request),
            None => {
                length = request.bytes.len();
                portions.push(vec![request]);
            }
        }
    }
    portions
}

/// One connection with 51 requests, twice 25 of them at once. `whole`: or in portions that the mirror does not cut.
fn pipelines(raw: &mut Raw, whole: bool) {
    let server = raw.server();
    let mut connection = raw.open(server);
    for _ in 0..2 {
        let requests: Vec<Request> = (0..25)
            .map(|_| match raw.random.below(8) {
                0 => {
                    let length = raw.random.below(3000);
                    raw.post(length, None)
                }
                1 => {
                    let length = raw.random.below(3000);
                    let chunks = 1 + raw.random.below(20);
                    raw.chunked(length, chunks, None)
                }
                _ => raw.get(),
            })
            .collect();
        let most = if whole && server >= 2 {
            UNCUT
        } else {
            usize::MAX
        };
        for requests in portions(requests, most) {
            raw.pipeline(&mut connection, requests);
        }
    }
    let last = raw.closing();
    raw.send(&mut connection, last, Cut::Anyhow);
}

fn everything(raw: &mut Raw, load: Load) {
    for _ in 0..load.pipelines {
        pipelines(raw, load.whole_heads);
    }
    // Split at every byte boundary of the head.
    let mut at = 1;
    while at > 0 {
        let server = raw.server();
        let mut connection = raw.open(server);
        for _ in 0..10 {
            let request = raw.post(40, None);
            if at < request.head {
                raw.send(&mut connection, request, Cut::At(at));
                at += 1;
            } else {
                raw.send(&mut connection, request, Cut::Anyhow);
                at = 0;
                break;
            }
        }
    }
    for number in 0..load.byte_by_byte {
        let server = raw.server();
        let mut connection = raw.open(server);
        let request = if number % 2 == 0 {
            raw.post(30, None)
        } else {
            raw.chunked(30, 7, None)
        };
        raw.send(&mut connection, request, Cut::Bytes);
        let next = raw.post(3, None);
        raw.send(&mut connection, next, Cut::Bytes);
    }
    for number in 0..load.bodies {
        let server = number % 4;
        let mut connection = raw.open(server);
        let segment = connection.segment_size().unwrap();
        let length =
            20_usize.pow(1 + u32::try_from(number / 4 % 4).unwrap()) + raw.random.below(2_000);
        let request = if number % 3 == 0 {
            raw.chunked(length, 1, Some(segment))
        } else {
            raw.post(length, Some(segment))
        };
        raw.send(&mut connection, request, Cut::Aligned);
        let behind = vec![
            raw.post(10, None),
            raw.chunked(20, 3, None),
            raw.post(0, None),
        ];
        raw.pipeline(&mut connection, behind);
    }
    for number in 0..load.large {
        let mut connection = raw.open(number % 4);
        let segment = connection.segment_size().unwrap();
        let request = raw.post(20_000_000, Some(segment));
        let cut = if load.paced { Cut::Paced } else { Cut::Aligned };
        raw.send(&mut connection, request, cut);
    }
}

/// Prints what a run has given.
fn report(name: &str, outcome: &Outcome, verdict: &Verdict) {
    let seconds = outcome.took.as_secs_f64();
    let rate = |count: u64| count as f64 / seconds;
    println!(
        "{name}: {} requests in {seconds:.1} s ({:.0}/s), {} mirrored packets ({:.0}/s), judged after {:.1} s",
        verdict.requests,
        rate(verdict.requests),
        outcome.counts.received,
        rate(outcome.counts.received),
        outcome.settled.as_secs_f64(),
    );
    println!("  {:?}; unlogged {}", outcome.counts, outcome.unlogged);
    let mut shown = verdict.clone();
    shown.faults.clear();
    println!("  {shown:?}");
    println!("  {}", outcome.output.lines().last().unwrap_or_default());
    for fault in &verdict.faults {
        println!("  FAULT {fault}");
    }
}

/// nginx's own list is the same as the clients'.
fn agrees_with_nginx(outcome: &Outcome) {
    let mut by_client: Vec<(String, String)> = outcome
        .sent
        .iter()
        .flat_map(|it| &it.requests)
        .map(|request| {
            let (method, target) = request.line();
            (
                String::from_utf8_lossy(method).into_owned(),
                String::from_utf8_lossy(target).into_owned(),
            )
        })
        .collect();
    let mut by_nginx: Vec<(String, String)> = outcome
        .log
        .iter()
        .map(|entry| (entry.method().to_owned(), entry.target().to_owned()))
        .collect();
    by_client.sort_unstable();
    by_nginx.sort_unstable();
    assert!(
        by_client == by_nginx,
        "the clients sent {} requests, nginx logged {}",
        by_client.len(),
        by_nginx.len()
    );
}

const REORDERED_AND_DUPLICATED: Settings = Settings {
    seed: 0x6d69_7865_6421,
    reorder: 100,
    duplicate: 100,
    drop: 0,
    second_vni: Some(815),
    tags: true,
};

/// That the traffic is what this test says it is, as the relay has seen it.
fn is_what_it_says(outcome: &Outcome, load: &Load) {
    let (mut over_ipv6, mut one_byte, mut at_start, mut cut) = (0, 0, 0, 0);
    for it in &outcome.sent {
        let flow = outcome.ledger.flow(it.from, it.to).unwrap();
        over_ipv6 += if it.to.is_ipv6() {
            it.requests.len()
        } else {
            0
        };
        (one_byte, cut) = (one_byte + flow.one_byte, cut + flow.cut_bytes);
        at_start += baits(it).filter(|&at| flow.begins_segment(at)).count();
    }
    let requests = outcome.sent.iter().flat_map(|it| &it.requests);
    let largest = requests.map(|it| it.bytes.len()).max().unwrap();
    println!(
        "  {over_ipv6} over IPv6, {one_byte} segments of one byte, {at_start} segments begin with a body's request line, \
         {} copies with VLAN tags, {cut} bytes cut by the mirror, the largest request {largest} bytes",
        outcome.counts.tagged
    );
    assert!(over_ipv6 > load.requests / 10);
    assert!(one_byte > 150 * load.byte_by_byte as u64);
    assert!(at_start * load.bait_every > 4_000);
    assert!(outcome.counts.tagged > 1000);
    assert!(cut > 50_000 && largest > 20_000_000);
}

/// Where in the stream the request lines stand that bodies carry.
fn baits(it: &Sent) -> impl Iterator<Item = u64> {
    let mut begin = 0;
    it.requests.iter().flat_map(move |request| {
        let here = begin;
        begin += request.bytes.len() as u64;
        request.baits.iter().map(move |&at| here + at)
    })
}

#[test]
fn twenty_thousand_requests_survive_reordering_and_duplication_byte_for_byte() {
    let test = "twenty_thousand_requests_survive_reordering_and_duplication_byte_for_byte";
    if lab::skip::no_lab(test) || lab::skip::no_tool(test, "wrk") {
        return;
    }
    let load = Load {
        requests: 20_000,
        wrk: 4_000,
        curls: 60,
        curl_posts: 40,
        pipelines: 80,
        byte_by_byte: 30,
        bodies: 24,
        large: 2,
        paced: false,
        bait_every: 1,
        packet_length: Some(PACKET_LENGTH),
        captured: false,
        whole_heads: true,
    };
    let outcome = run(REORDERED_AND_DUPLICATED, load);
    let verdict = judge(&outcome.sent, &outcome.ledger, &outcome.taken);
    report("reordered and duplicated", &outcome, &verdict);
    is_what_it_says(&outcome, &load);
    agrees_with_nginx(&outcome);
    assert_eq!(verdict.fault_count, 0);
    assert!(verdict.requests >= 20_000);
    assert_eq!((verdict.exact, verdict.in_bodies), (verdict.untouched, 0));
    assert_eq!(verdict.truncated + verdict.lost, verdict.touched);
    assert_eq!(
        last_figure(&outcome.output, "skipped_bytes").unwrap(),
        verdict.skipped_bytes
    );
}

/// What must hold when copies are lost as well.
fn copies_are_lost(name: &str, per_mille: u32, paced: bool) {
    let load = Load {
        requests: 5_000,
        wrk: 1_000,
        curls: 16,
        curl_posts: 20,
        pipelines: 20,
        byte_by_byte: 15,
        bodies: 40,
        large: 1,
        paced,
        bait_every: 4,
        packet_length: Some(PACKET_LENGTH),
        captured: false,
        whole_heads: false,
    };
    let settings = Settings {
        seed: REORDERED_AND_DUPLICATED.seed + u64::from(per_mille),
        drop: per_mille,
        ..REORDERED_AND_DUPLICATED
    };
    let outcome = run(settings, load);
    let verdict = judge(&outcome.sent, &outcome.ledger, &outcome.taken);
    report(name, &outcome, &verdict);
    is_what_it_says(&outcome, &load);
    agrees_with_nginx(&outcome);
    assert_eq!(verdict.fault_count, 0);
    assert!(verdict.requests >= 5_000);
    // Each is exact, flagged, or its bytes are counted.
    assert_eq!(verdict.exact + verdict.passed_over, verdict.untouched);
    assert_eq!(verdict.truncated + verdict.lost, verdict.touched);
    let figure = |name| last_figure(&outcome.output, name).unwrap();
    let (skipped, shed) = (figure("skipped_bytes"), figure("shed_bytes"));
    if paced {
        assert_eq!((skipped, shed), (verdict.skipped_bytes, 0));
    } else {
        // A copy that is refused at a cap is counted each time that it comes.
        assert!((skipped..=skipped + shed).contains(&verdict.skipped_bytes));
        assert!(shed > 0, "the uploads have not reached the cap of a flow");
    }
}

#[test]
fn with_one_percent_of_copies_lost_each_request_is_exact_or_flagged_or_counted() {
    let test = "with_one_percent_of_copies_lost_each_request_is_exact_or_flagged_or_counted";
    if lab::skip::no_lab(test) || lab::skip::no_tool(test, "wrk") {
        return;
    }
    copies_are_lost("1 % lost", 10, true);
}

#[test]
fn with_five_percent_of_copies_lost_each_request_is_exact_or_flagged_or_counted() {
    let test = "with_five_percent_of_copies_lost_each_request_is_exact_or_flagged_or_counted";
    if lab::skip::no_lab(test) || lab::skip::no_tool(test, "wrk") {
        return;
    }
    copies_are_lost("5 % lost", 50, false);
}

/// Runs a small load while tcpdump writes what the rebuilder gets, and gives what run has found, what inspect finds in the
/// capture, and the capture.
fn captured(name: &str, settings: Settings, byte_by_byte: usize) -> (live::Requests, Outcome) {
    let load = Load {
        requests: 3_000,
        wrk: 500,
        curls: 10,
        curl_posts: 10,
        pipelines: 10,
        byte_by_byte,
        bodies: 8,
        large: 0,
        paced: false,
        bait_every: 1,
        packet_length: None,
        captured: true,
        whole_heads: false,
    };
    let outcome = run(settings, load);
    let verdict = judge(&outcome.sent, &outcome.ledger, &outcome.taken);
    report(name, &outcome, &verdict);
    assert_eq!((verdict.fault_count, verdict.exact), (0, verdict.requests));
    let (file, binary) = (outcome.capture.as_ref().unwrap(), binary().unwrap());
    let summary = lab::inspect::summary(&binary, file).unwrap();
    assert_eq!(
        summary.packets, outcome.counts.handed_on,
        "void: tcpdump has lost packets"
    );
    let (run, inspect) = (
        live::by_analyser(&outcome.taken),
        live::by_inspect(&binary, file),
    );
    assert_eq!(live::difference(&inspect, &run), Vec::<String>::new());
    assert_eq!(summary.requests, run.values().sum::<usize>() as u64);
    (run, outcome)
}

#[test]
fn inspect_finds_in_a_capture_of_the_wire_what_run_found_on_it() {
    let test = "inspect_finds_in_a_capture_of_the_wire_what_run_found_on_it";
    if lab::skip::no_lab(test) || lab::skip::no_tool(test, "wrk") {
        return;
    }
    captured("captured", REORDERED_AND_DUPLICATED, 5);
}

/// tshark 4.0 finds request lines in bodies where packets are reordered, and misses some requests that came byte by byte:
/// so it gets whole frames, in order, and segments of some size.
#[test]
fn tshark_finds_in_a_capture_of_the_wire_what_run_found_on_it() {
    let test = "tshark_finds_in_a_capture_of_the_wire_what_run_found_on_it";
    if lab::skip::no_lab(test)
        || lab::skip::no_tool(test, "wrk")
        || lab::skip::no_tool(test, "tshark")
    {
        return;
    }
    let in_order = Settings {
        reorder: 0,
        duplicate: 0,
        ..REORDERED_AND_DUPLICATED
    };
    let (run, outcome) = captured("captured in order", in_order, 0);
    let tshark = live::by_tshark(outcome.capture.as_ref().unwrap());
    println!("  {} requests, {} by tshark", run.len(), tshark.len());
    assert_eq!(live::difference(&tshark, &run), Vec::<String>::new());
}
