//! Real captures, laid beside the checkout (`../shared`, or `MIRRORFLEET_SHARED`); skipped where they are absent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use crate::decode::{DecodeOptions, Decoder};
use crate::receive::capture::{CaptureError, CaptureReader};
use crate::telemetry::PacketOutcome;

pub(super) fn captures() -> Option<Vec<PathBuf>> {
    let shared = std::env::var_os("MIRRORFLEET_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    let folder = shared.join("corpus/pcaps");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: no captures in {}", folder.display());
        return None;
    };
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    Some(files)
}

/// Packets, and outcomes; segments count under "segment".
fn decode(path: &std::path::Path) -> (u64, BTreeMap<&'static str, u64>, Option<CaptureError>) {
    let mut reader = CaptureReader::open(path).unwrap();
    let mut decoder = Decoder::new(DecodeOptions::default());
    let mut packets = 0;
    let mut outcomes = BTreeMap::new();
    let error = loop {
        match reader.next() {
            Ok(Some(frame)) => {
                packets += 1;
                let outcome = decoder
                    .decode(&frame)
                    .map_or_else(PacketOutcome::label, |_| "segment");
                *outcomes.entry(outcome).or_default() += 1;
            }
            Ok(None) => break None,
            Err(e) => break Some(e),
        }
    };
    (packets, outcomes, error)
}

fn tool(program: &str, args: &[&str], files: &[PathBuf]) -> Option<String> {
    let Ok(out) = Command::new(program).args(args).args(files).output() else {
        eprintln!("SKIPPED: {program} is not installed");
        return None;
    };
    Some(String::from_utf8(out.stdout).unwrap())
}

#[test]
fn every_packet_of_every_capture_is_read_and_has_one_outcome() {
    let Some(files) = captures() else { return };
    let mut counted = BTreeMap::new();
    for file in &files {
        let (packets, outcomes, error) = decode(file);
        assert_eq!(packets, outcomes.values().sum::<u64>());
        if let Some(e) = &error {
            eprintln!("{e}");
        }
        let name = file.to_str().unwrap().to_owned();
        counted.insert(name, (packets, error.is_some()));
    }
    // File name, a tab, the number of packets: what Wireshark's own reader counts.
    let Some(table) = tool("capinfos", &["-T", "-r", "-M", "-c"], &files) else {
        return;
    };
    let mut compared = 0;
    for line in table.lines() {
        let (name, packets) = line.split_once('\t').unwrap();
        assert_eq!(
            counted[name].0,
            packets.parse::<u64>().unwrap(),
            "packets of {name}"
        );
        compared += 1;
    }
    let cut = counted.values().filter(|c| c.1).count();
    eprintln!("{compared} of {} compared, {cut} cut", files.len());
    assert!(compared + cut >= files.len());
}

#[test]
fn the_real_aws_session_gives_its_hundred_packets_and_the_segments_that_tshark_sees() {
    let Some(files) = captures() else { return };
    let name = "suricata-verify__vxlan-decoder-03__vxlan.pcap";
    let file = files.iter().find(|f| f.ends_with(name)).unwrap();
    let (packets, outcomes, error) = decode(file);
    assert!(error.is_none());
    assert_eq!(packets, 100);
    let file = std::slice::from_ref(file);
    let Some(tcp) = tool("tshark", &["-Y", "tcp", "-r"], file) else {
        return;
    };
    assert_eq!(outcomes["segment"], tcp.lines().count() as u64);
    assert_eq!(outcomes.len(), 2);
    assert_eq!(outcomes["not_tcp"], 100 - outcomes["segment"]);
}

#[test]
fn a_geneve_capture_gives_the_segments_that_tshark_sees() {
    let Some(files) = captures() else { return };
    for name in ["geneve-47101.pcap", "geneve-inner-tcp-bad-checksum.pcap"] {
        let ends = |file: &&PathBuf| file.to_str().is_some_and(|path| path.ends_with(name));
        let file = files.iter().find(ends).unwrap();
        let (_, outcomes, _) = decode(file);
        let file = std::slice::from_ref(file);
        let Some(tcp) = tool("tshark", &["-Y", "geneve && tcp", "-r"], file) else {
            return;
        };
        assert!(tcp.lines().count() > 0);
        assert_eq!(outcomes["segment"], tcp.lines().count() as u64);
    }
}
