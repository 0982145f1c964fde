//! Three readers of the same mirrored wire: tshark, `rebuilder inspect`, and `rebuilder run` while it happened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use lab::network::{Host, REBUILDER_LINK};
use lab::perturb::Settings;
use lab::process::{self, Process, wait_for};
use lab::rebuilder::binary;
use lab::verbatim::Taken;

use super::REORDERED_AND_DUPLICATED;
use super::bench::{Outcome, run};
use super::traffic::Load;

/// Method and target, how often.
type Requests = BTreeMap<(String, String), usize>;

/// Separates fields, and the requests of one frame: bytes that stand in no request line.
const FIELD: &str = "\u{1}";
const VALUE: &str = "\u{2}";

/// At which tcpdump writes what it has and tells what it has lost.
const SIGINT: i32 = 2;

/// tcpdump on the link of mirrored packets.
pub(crate) struct Tcpdump {
    process: Process,
    file: PathBuf,
}

impl Tcpdump {
    pub(crate) fn start(host: &Host, directory: &Path) -> Self {
        let file = directory.join("mirrored.pcap");
        let mut command = host.namespace.command("tcpdump");
        // 128 MiB of buffer: all that this test sends.
        command.args([
            "-i",
            REBUILDER_LINK,
            "-s",
            "0",
            "-B",
            "131072",
            "-Z",
            "root",
            "-w",
        ]);
        command.arg(&file).arg("udp port 4789");
        let process = Process::start("tcpdump", command, directory).unwrap();
        wait_for("tcpdump", Duration::from_secs(10), || {
            Ok(process.output().contains("listening on").then_some(()))
        })
        .unwrap();
        Self { process, file }
    }

    /// The capture, which has lost nothing, or the test is void.
    pub(crate) fn stop(mut self) -> PathBuf {
        // The kernel hands what it has collected to tcpdump once a second.
        thread::sleep(Duration::from_millis(1500));
        self.process.signal(SIGINT);
        self.process.wait(Duration::from_secs(20)).unwrap();
        let said = self.process.output();
        assert!(
            said.contains("\n0 packets dropped by kernel"),
            "void: {said}"
        );
        self.file
    }
}

/// What tshark finds, each request once. It is asked to put segments in order, and to take them as they come: either way it
/// misses one now and then of which a segment was sent twice.
fn by_tshark(file: &Path) -> Requests {
    let mut requests = Requests::new();
    for in_order in ["TRUE", "FALSE"] {
        let mut command = Command::new("tshark");
        command.args(["-n", "-Y", "http.request", "-T", "fields"]);
        command.args(["-o", &format!("tcp.reassemble_out_of_order:{in_order}")]);
        command.args(["-E", &format!("separator={FIELD}")]);
        command.args(["-E", &format!("aggregator={VALUE}")]);
        command.args(["-e", "http.request.method", "-e", "http.request.uri"]);
        let text = process::run(command.arg("-r").arg(file)).unwrap();
        for line in text.lines() {
            let (methods, targets) = line.split_once(FIELD).unwrap();
            let (methods, targets) = (methods.split(VALUE), targets.split(VALUE));
            for (method, target) in methods.zip(targets) {
                // No target was sent twice. Where a chunked body ends at the end of a segment, tshark shows some
                // requests in both of the packets of which it puts them together.
                requests.insert((method.to_owned(), target.to_owned()), 1);
            }
        }
    }
    requests
}

/// What `rebuilder inspect --json` finds.
fn by_inspect(binary: &Path, file: &Path) -> Requests {
    let mut requests = Requests::new();
    for row in lab::inspect::rows(binary, file).unwrap() {
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        *requests
            .entry((text("method"), text("target")))
            .or_default() += 1;
    }
    requests
}

/// What the analyser has got.
fn by_analyser(taken: &[Taken]) -> Requests {
    let mut requests = Requests::new();
    for it in taken {
        let head = String::from_utf8_lossy(&it.head);
        let line = head.lines().next().unwrap_or_default();
        let (method, rest) = line.split_once(' ').unwrap();
        let (target, _) = rest.rsplit_once(' ').unwrap();
        *requests
            .entry((method.to_owned(), target.to_owned()))
            .or_default() += 1;
    }
    requests
}

/// The first few that one has and the other has not, or not as often.
fn difference(one: &Requests, other: &Requests) -> Vec<String> {
    let count = |of: &Requests, key| of.get(key).copied().unwrap_or(0);
    one.keys()
        .chain(other.keys())
        .filter(|key| count(one, key) != count(other, key))
        .map(|key| {
            format!(
                "{} {}: {} and {}",
                key.0,
                key.1,
                count(one, key),
                count(other, key)
            )
        })
        .take(10)
        .collect()
}

/// Runs a small load while tcpdump writes what the rebuilder gets, and gives what run has found, what inspect finds in the
/// capture, and the capture.
fn captured(name: &str, settings: Settings, byte_by_byte: usize) -> (Requests, Outcome) {
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
    let verdict = outcome.judge();
    outcome.report(name, &verdict);
    assert_eq!((verdict.fault_count, verdict.exact), (0, verdict.requests));
    let (file, binary) = (outcome.capture.as_ref().unwrap(), binary().unwrap());
    let summary = lab::inspect::summary(&binary, file).unwrap();
    assert_eq!(
        summary.packets, outcome.counts.handed_on,
        "void: tcpdump has lost packets"
    );
    let (run, inspect) = (by_analyser(&outcome.taken), by_inspect(&binary, file));
    assert_eq!(difference(&inspect, &run), Vec::<String>::new());
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
    let tshark = by_tshark(outcome.capture.as_ref().unwrap());
    println!("  {} requests, {} by tshark", run.len(), tshark.len());
    assert_eq!(difference(&tshark, &run), Vec::<String>::new());
}
