//! Three readers of the same mirrored wire: tshark, `rebuilder inspect`, and `rebuilder run` while it happened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use lab::network::{Host, REBUILDER_LINK};
use lab::process::{Process, run, wait_for};
use lab::verbatim::Taken;

/// Method and target, how often.
pub(crate) type Requests = BTreeMap<(String, String), usize>;

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
pub(crate) fn by_tshark(file: &Path) -> Requests {
    let mut requests = Requests::new();
    for in_order in ["TRUE", "FALSE"] {
        let mut command = Command::new("tshark");
        command.args(["-n", "-Y", "http.request", "-T", "fields"]);
        command.args(["-o", &format!("tcp.reassemble_out_of_order:{in_order}")]);
        command.args(["-E", &format!("separator={FIELD}")]);
        command.args(["-E", &format!("aggregator={VALUE}")]);
        command.args(["-e", "http.request.method", "-e", "http.request.uri"]);
        let text = run(command.arg("-r").arg(file)).unwrap();
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
pub(crate) fn by_inspect(binary: &Path, file: &Path) -> Requests {
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
pub(crate) fn by_analyser(taken: &[Taken]) -> Requests {
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
pub(crate) fn difference(one: &Requests, other: &Requests) -> Vec<String> {
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
