//! Two mirrored instances, the relay that perturbs the copies, the rebuilder, and an analyser that keeps what it gets.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lab::data_plane::{DataPlane, instance, servers};
use lab::fabric::session::{Action, Rule, Session, http_session};
use lab::judge::{Sent, Verdict, judge};
use lab::network::Options;
use lab::nginx::Entry;
use lab::perturb::{Counts, Ledger, Settings};
use lab::process::wait_for;
use lab::rebuilder::Metrics;
use lab::verbatim::{Taken, Verbatim};
use lab::world::Snapshot;

use super::live::Tcpdump;
use super::traffic::{Load, Traffic};

/// A frame of MTU 9001 is longer than what AWS mirrors of it by default.
const JUMBO: u32 = 9001;
const ORDINARY: u32 = 1500;

/// All that a run gives.
pub(crate) struct Outcome {
    pub(crate) sent: Vec<Sent>,
    pub(crate) log: Vec<Entry>,
    pub(crate) taken: Vec<Taken>,
    unlogged: usize,
    pub(crate) ledger: Ledger,
    pub(crate) counts: Counts,
    /// All that the rebuilder wrote.
    pub(crate) output: String,
    took: Duration,
    settled: Duration,
    /// What tcpdump has written.
    pub(crate) capture: Option<PathBuf>,
    /// Last, because its directory holds the capture.
    _plane: DataPlane,
}

impl Outcome {
    /// What the judge says of it.
    pub(crate) fn judge(&self) -> Verdict {
        judge(&self.sent, &self.ledger, &self.taken)
    }

    /// Prints what a run has given.
    pub(crate) fn report(&self, name: &str, verdict: &Verdict) {
        let seconds = self.took.as_secs_f64();
        let rate = |count: u64| count as f64 / seconds;
        println!(
            "{name}: {} requests in {seconds:.1} s ({:.0}/s), {} mirrored packets ({:.0}/s), judged after {:.1} s",
            verdict.requests,
            rate(verdict.requests),
            self.counts.received,
            rate(self.counts.received),
            self.settled.as_secs_f64(),
        );
        println!("  {:?}; unlogged {}", self.counts, self.unlogged);
        let mut shown = verdict.clone();
        shown.faults.clear();
        println!("  {shown:?}");
        println!("  {}", self.output.lines().last().unwrap_or_default());
        for fault in &verdict.faults {
            println!("  FAULT {fault}");
        }
    }
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

/// What the rebuilder waits for the beginning of a connection (DESIGN §2 rule 1), the shortest of its times. A frame that
/// the relay has held for longer is no reordered one but a lost one, and the relay's books do not know it.
const LONGEST_FAIR: Duration = Duration::from_millis(50);

/// One run; another one where this machine has stalled the relay for longer than a frame may be late. Only the relay's own
/// clock decides that, never what came of it.
pub(crate) fn run(settings: Settings, load: Load) -> Outcome {
    for _ in 0..2 {
        let outcome = attempt(settings, load);
        let held = outcome.counts.held_longest;
        if held < LONGEST_FAIR {
            return outcome;
        }
        println!("the relay was stalled for {held:?}: once more");
    }
    attempt(settings, load)
}

/// Two instances, of which the client reaches the first with segments of 1,500 bytes only and the second with jumbo
/// ones; both are mirrored, the second in both directions.
fn attempt(settings: Settings, load: Load) -> Outcome {
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
        ..Snapshot::default()
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
