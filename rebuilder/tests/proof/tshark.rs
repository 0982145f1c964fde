//! The requests that tshark finds in the same captures: method, target and version, as a multiset for each capture.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use rebuilder::pipeline::PipelineOptions;
use rebuilder::receive::LinkType;

use crate::captures;
use crate::run::{Run, run};
use crate::simulator::{self, Mirror};
use crate::wire::{self, Owned};

/// Method, target, version.
type Requests = BTreeMap<[Vec<u8>; 3], usize>;

/// Captures in which tshark finds other requests, and why that is right.
const EXPLAINED: &[(&str, &str)] = &[
    (
        "suricata-verify__http-connect__http-connect-fragmented__input.pcap",
        "tshark looks into the tunnel behind a CONNECT; rule 5: only a further CONNECT is a request there",
    ),
    (
        "suricata-verify__http-connect__http-connect-simple__input.pcap",
        "the same",
    ),
];

/// Separates fields, and the requests of one frame: bytes that stand in no request line.
const FIELD: &str = "\u{1}";
const VALUE: &str = "\u{2}";

fn tshark(test: &str, file: &Path) -> Option<Requests> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-Y", "http.request", "-T", "fields"]);
    command.args(["-o", "tcp.reassemble_out_of_order:TRUE"]);
    command.args(["-E", &format!("separator={FIELD}")]);
    command.args(["-E", &format!("aggregator={VALUE}")]);
    for field in ["method", "uri", "version"] {
        command.args(["-e", &format!("http.request.{field}")]);
    }
    let Ok(output) = command.arg("-r").arg(file).output() else {
        captures::skipped(test, "tshark is not installed (apt-get install tshark)");
        return None;
    };
    let mut requests = Requests::new();
    for line in output.stdout.split(|b| *b == b'\n') {
        let fields: Vec<Vec<&[u8]>> = line
            .split(|b| *b == FIELD.as_bytes()[0])
            .map(|field| field.split(|b| *b == VALUE.as_bytes()[0]).collect())
            .collect();
        let [methods, targets, versions] = &fields[..] else {
            continue;
        };
        assert!(methods.len() == targets.len() && targets.len() == versions.len());
        for ((method, target), version) in methods.iter().zip(targets).zip(versions) {
            let key = [method.to_vec(), target.to_vec(), version.to_vec()];
            *requests.entry(key).or_default() += 1;
        }
    }
    Some(requests)
}

fn ours(run: &Run) -> Requests {
    let mut requests = Requests::new();
    for request in &run.requests {
        let (major, minor) = request.version;
        let key = [
            request.bytes(&request.method).to_vec(),
            request.bytes(&request.target).to_vec(),
            format!("HTTP/{major}.{minor}").into_bytes(),
        ];
        *requests.entry(key).or_default() += 1;
    }
    requests
}

fn difference(theirs: &Requests, ours: &Requests) -> Vec<String> {
    let text = |key: &[Vec<u8>; 3]| key.join(&b' ').escape_ascii().to_string();
    let count = |of: &Requests, key: &[Vec<u8>; 3]| of.get(key).copied().unwrap_or(0);
    theirs
        .keys()
        .chain(ours.keys().filter(|key| !theirs.contains_key(*key)))
        .filter(|key| count(theirs, key) != count(ours, key))
        .map(|key| {
            format!(
                "{}: tshark {}, we {}",
                text(key),
                count(theirs, key),
                count(ours, key)
            )
        })
        .collect()
}

/// Of the captures in which we find requests every second one, and those listed: tshark takes a fifth of a second to
/// begin. All of the corpus, where we find none too, with `PROOF_TSHARK=all`.
#[test]
fn tshark_finds_the_same_requests_in_the_corpus() {
    let test = "tshark_finds_the_same_requests_in_the_corpus";
    let Some(files) = captures::corpus_files(test) else {
        return;
    };
    let all = std::env::var_os("PROOF_TSHARK").is_some_and(|what| what == "all");
    let explained: BTreeMap<_, _> = EXPLAINED.iter().copied().collect();
    let mut chosen = Vec::new();
    let mut with_requests = 0;
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let ours = ours(&run(&captures::frames(file), &PipelineOptions::default()));
        with_requests += usize::from(!ours.is_empty());
        let sampled = !ours.is_empty() && with_requests % 2 == 0;
        if all || sampled || explained.contains_key(name) || ours.values().sum::<usize>() > 9 {
            chosen.push((file, name, ours));
        }
    }
    assert!(chosen.len() >= 100);
    let compare = |half: usize| {
        let mut found = Vec::new();
        for (file, name, ours) in chosen.iter().skip(half).step_by(2) {
            let theirs = tshark(test, file)?;
            let requests: usize = theirs.values().sum();
            found.push((*name, requests, difference(&theirs, ours)));
        }
        Some(found)
    };
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| compare(0));
        (compare(1), one.join().unwrap())
    });
    let (Some(one), Some(other)) = (one, other) else {
        return;
    };
    let mut requests = 0;
    for (name, of_tshark, difference) in one.iter().chain(&other) {
        requests += of_tshark;
        match explained.get(name) {
            None => assert!(difference.is_empty(), "{name}: {difference:#?}"),
            Some(why) => assert!(
                !difference.is_empty(),
                "{name} is listed ({why}) and does not differ: take it off the list"
            ),
        }
    }
    println!("{} captures, {requests} requests of tshark", chosen.len());
    assert!(requests >= 1_000, "only {requests} requests were compared");
}

/// A pcap file (draft-ietf-opsawg-pcap) of Ethernet frames.
fn write_pcap(file: &mut impl std::io::Write, frames: &[Owned]) {
    let mut bytes = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&[0, 0, 4, 0, 1, 0, 0, 0]);
    for frame in frames {
        assert_eq!(frame.link, LinkType::Ethernet);
        let len = u32::try_from(frame.data.len()).unwrap();
        let seconds = u32::try_from(frame.ts.0 / 1_000_000_000).unwrap();
        let micros = u32::try_from(frame.ts.0 % 1_000_000_000 / 1_000).unwrap();
        for word in [seconds, micros, len, len] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&frame.data);
    }
    file.write_all(&bytes).unwrap();
}

#[test]
fn tshark_finds_the_same_requests_in_generated_captures() {
    let test = "tshark_finds_the_same_requests_in_generated_captures";
    let (_, frames) = simulator::connections(77, 20, 8);
    // In order: of segments out of order tshark shows some requests twice or three times, even with
    // `tcp.reassemble_out_of_order`.
    for (one_sided, wrapped) in [(false, false), (true, true)] {
        let mirror = Mirror {
            one_sided,
            ..Mirror::default()
        };
        let frames: Vec<Owned> = mirror
            .copy(5, &frames)
            .iter()
            .map(|sent| {
                let inner = simulator::bare(sent);
                if wrapped {
                    wire::mirrored(&inner, 5).unwrap()
                } else {
                    inner
                }
            })
            .collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write_pcap(&mut file, &frames);
        let Some(theirs) = tshark(test, file.path()) else {
            return;
        };
        let ours = ours(&run(&frames, &PipelineOptions::default()));
        assert_eq!(
            difference(&theirs, &ours),
            Vec::<String>::new(),
            "one-sided: {one_sided}, wrapped: {wrapped}"
        );
        assert_eq!(theirs.values().sum::<usize>(), 160);
    }
}
