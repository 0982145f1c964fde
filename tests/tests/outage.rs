//! The analyser may stop: packets are still taken, memory stays under its cap, nothing is lost without a number, and
//! delivery resumes. A session may be deleted: the copy stops.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::time::Duration;

use lab::client::{Connection, wrk};
use lab::data_plane::{DataPlane, Web};
use lab::network::Options;
use lab::process::wait_for;
use lab::rebuilder::Rebuilder;
use lab::recorder::{Recorder, Records};

const MIB: u64 = 1 << 20;
/// The caps that the rebuilder is given: requests that wait, requests in flight, bytes held for reassembly.
const CAPS: [(&str, u64); 3] = [
    ("--queue-bytes", 8 * MIB),
    ("--inflight-bytes", 8 * MIB),
    ("--held-bytes", 16 * MIB),
];
/// What the allocator may lose between blocks, and the fixed tables.
const SLACK: u64 = 16 * MIB;

struct Bench {
    rebuilder: Rebuilder,
    records: Records,
    web: Web,
    plane: DataPlane,
}

impl Bench {
    /// A mirrored instance and a rebuilder with these caps; no analyser yet.
    fn new(caps: &[(&str, u64)]) -> Self {
        let plane = DataPlane::new(Options::default()).unwrap();
        let mut flags: Vec<String> = caps
            .iter()
            .flat_map(|(flag, cap)| [(*flag).to_owned(), cap.to_string()])
            .collect();
        flags.extend(["--workers".to_owned(), "1".to_owned()]);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Self {
            rebuilder: plane.rebuild(80, &flags).unwrap(),
            records: Records::default(),
            web: plane.web().unwrap(),
            plane,
        }
    }

    fn analyser(&self) -> Recorder {
        Recorder::start(&self.plane.analyser, 80, &self.records, Duration::ZERO).unwrap()
    }

    /// Sends `count` POSTs with bodies of `length` over one connection, each after the answer to the last.
    fn post(&self, count: usize, length: usize) {
        let mut connection = Connection::open(&self.plane.client, self.web.servers[0]).unwrap();
        let body = vec![b'x'; length];
        for number in 0..count {
            let target = format!("/order/{length}/{number}-{}", self.sent());
            let head = format!(
                "POST {target} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {length}\r\n\r\n"
            );
            connection.send(&[head.as_bytes(), &body].concat()).unwrap();
            assert_eq!(connection.answers(1).unwrap(), [200]);
        }
    }

    /// How many requests nginx has answered.
    fn sent(&self) -> u64 {
        self.web.access_log().unwrap().len() as u64
    }

    fn counts(&self) -> String {
        let metrics = self.rebuilder.metrics().unwrap();
        format!(
            "sent {}, mirrored {:?}, packets {:?}, requests {:?}, received {}",
            self.sent(),
            self.web.packets().ok(),
            metrics.outcomes("rebuilder_packets_total"),
            metrics.outcomes("rebuilder_requests_total"),
            self.records.count()
        )
    }

    /// Waits until every request that was sent has an outcome.
    fn settle(&self) {
        let settled = wait_for(
            "every request has an outcome",
            Duration::from_secs(60),
            || Ok((self.rebuilder.metrics()?.requests() == self.sent()).then_some(())),
        );
        assert!(settled.is_ok(), "{}", self.counts());
    }
}

#[test]
fn a_stopped_analyser_costs_counted_requests_and_no_more_memory_than_the_caps() {
    if lab::skip::no_lab(
        "a_stopped_analyser_costs_counted_requests_and_no_more_memory_than_the_caps",
    ) {
        return;
    }
    let mut bench = Bench::new(&CAPS);
    let analyser = bench.analyser();
    bench.post(100, 1000);
    bench.settle();
    let healthy = bench.rebuilder.metrics().unwrap();
    assert_eq!(healthy.delivered(), 100, "{}", bench.counts());
    let (before, _) = bench.rebuilder.process().memory().unwrap();

    drop(analyser);
    // Four times what the caps allow.
    let volume: u64 = 4 * CAPS.iter().map(|(_, cap)| cap).sum::<u64>();
    bench.post(usize::try_from(volume / 100_000).unwrap(), 100_000);
    let mirrored = bench.web.packets().unwrap();
    let read = wait_for("every packet is read", Duration::from_secs(5), || {
        Ok((bench.rebuilder.metrics()?.packets() == mirrored).then_some(()))
    });
    assert!(read.is_ok(), "{}", bench.counts());
    assert!(
        bench.rebuilder.get("/healthz").is_ok(),
        "health does not depend on the analyser"
    );
    let (_, highest) = bench.rebuilder.process().memory().unwrap();
    let caps: u64 = CAPS.iter().map(|(_, cap)| cap).sum();
    assert!(
        highest <= before + caps + SLACK,
        "{} MiB, {} MiB before",
        highest / MIB,
        before / MIB
    );
    let dropped = bench
        .rebuilder
        .metrics()
        .unwrap()
        .outcomes("rebuilder_requests_total");
    assert!(
        dropped.get("queue_full").is_some_and(|&count| count > 100),
        "{}",
        bench.counts()
    );

    // What waited is delivered, and then everything is again.
    let _analyser = bench.analyser();
    bench.settle();
    let resumed = bench.rebuilder.metrics().unwrap();
    assert!(
        resumed.delivered() > healthy.delivered(),
        "{}",
        bench.counts()
    );
    bench.post(100, 500);
    bench.settle();
    let after = bench.rebuilder.metrics().unwrap();
    let drops = after.requests() - after.delivered();
    assert_eq!(bench.sent(), after.delivered() + drops);
    assert_eq!(
        after.delivered(),
        resumed.delivered() + 100,
        "{}",
        bench.counts()
    );
    // Delivery is at least once: what was answered was received.
    let received: BTreeSet<String> = bench
        .records
        .all()
        .into_iter()
        .map(|it| it.target)
        .collect();
    assert!(
        received.len() as u64 >= after.delivered(),
        "{}",
        bench.counts()
    );

    // The session is deleted.
    bench.web.delete_session().unwrap();
    let (packets, requests) = (after.packets(), after.requests());
    bench.post(20, 1000);
    std::thread::sleep(Duration::from_millis(500));
    let metrics = bench.rebuilder.metrics().unwrap();
    assert_eq!(
        (metrics.packets(), metrics.requests()),
        (packets, requests),
        "{}",
        bench.counts()
    );
}

#[test]
fn every_request_of_wrk_is_rebuilt_and_delivered() {
    if lab::skip::no_lab("every_request_of_wrk_is_rebuilt_and_delivered") {
        return;
    }
    const CONNECTIONS: u32 = 4;
    let bench = Bench::new(&[]);
    let _analyser = bench.analyser();
    let url = format!("http://{}/load", bench.web.servers[0]);
    // Every scrape meanwhile has to add up.
    let (answered, scrapes) = std::thread::scope(|scope| {
        let load = scope.spawn(|| wrk(&bench.plane.client, &url, CONNECTIONS, 1));
        let mut scrapes = 0;
        while !load.is_finished() {
            bench.rebuilder.metrics().unwrap();
            scrapes += 1;
        }
        (load.join().unwrap().unwrap(), scrapes)
    });
    assert!(scrapes > 20, "{scrapes}");
    assert!(answered > 500, "{answered}");
    // At its end wrk resets its connections, and nginx may never read what had been sent on them.
    let settled = wait_for(
        "every request has an outcome",
        Duration::from_secs(60),
        || {
            let (rebuilt, sent) = (bench.rebuilder.metrics()?.requests(), bench.sent());
            Ok((sent..=sent + u64::from(CONNECTIONS))
                .contains(&rebuilt)
                .then_some(rebuilt))
        },
    );
    let rebuilt = settled.unwrap_or_else(|_| panic!("{}", bench.counts()));
    assert!(rebuilt >= answered);
    let metrics = bench.rebuilder.metrics().unwrap();
    assert_eq!(metrics.delivered(), rebuilt, "{}", bench.counts());
}
