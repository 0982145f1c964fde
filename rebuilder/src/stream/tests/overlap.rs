//! Copies that disagree (DESIGN §2 rule 7).

use crate::stream::OverlapPolicy;

use super::*;

fn with(policy: OverlapPolicy) -> Lab {
    Lab::with(StreamOptions {
        overlap: policy,
        ..StreamOptions::default()
    })
}

fn conflicts(log: &[Event]) -> Vec<(Vec<u8>, bool)> {
    log.iter()
        .filter_map(|e| match e {
            Event::Data {
                bytes, conflict, ..
            } => Some((bytes.clone(), *conflict)),
            _ => None,
        })
        .collect()
}

#[test]
fn by_default_the_first_copy_stays_and_is_marked() {
    let mut lab = Lab::after_syn(99);
    lab.push_all(&[seg(103, b"def"), seg(102, b"XdXX"), seg(100, b"ab")]);
    assert_eq!(
        conflicts(lab.log()),
        [
            (b"ab".to_vec(), false),
            (b"X".to_vec(), false),
            (b"def".to_vec(), true)
        ]
    );
}

#[test]
fn under_linux_the_copy_that_begins_earlier_wins_and_is_marked() {
    let mut lab = with(OverlapPolicy::Linux);
    lab.push(&seg(99, b"").syn());
    lab.push_all(&[seg(103, b"defg"), seg(102, b"XdXX"), seg(100, b"ab")]);
    assert_eq!(
        conflicts(lab.log()),
        [
            (b"ab".to_vec(), false),
            (b"XdXX".to_vec(), true),
            (b"g".to_vec(), true)
        ]
    );
}

#[test]
fn copies_that_agree_are_not_marked() {
    for policy in [OverlapPolicy::First, OverlapPolicy::Linux] {
        let mut lab = with(policy);
        lab.push(&seg(99, b"").syn());
        lab.push_all(&[
            seg(103, b"def"),
            seg(102, b"cdef"),
            seg(103, b"defg"),
            seg(100, b"ab"),
        ]);
        assert_eq!(lab.text(), "abcdefg");
        assert!(conflicts(lab.log()).iter().all(|(_, conflict)| !conflict));
        assert_eq!(lab.streams.stats().conflicting_bytes, 0);
    }
}

/// Suricata's tables, when they are laid beside the checkout.
#[test]
fn suricatas_overlap_tables_come_out_the_same() {
    let shared = std::env::var("MIRRORFLEET_SHARED")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").into());
    let path = std::path::Path::new(&shared).join("vectors/overlap_policies.json");
    let Ok(json) = std::fs::read(&path) else {
        eprintln!(
            "SKIPPED: no overlap tables at {}; set MIRRORFLEET_SHARED",
            path.display()
        );
        return;
    };
    let tables: Vec<serde_json::Value> = serde_json::from_slice(&json).unwrap();
    let mut ran = 0;
    for table in &tables {
        let policy = match table["policy"].as_str().unwrap() {
            "OS_POLICY_LINUX" => OverlapPolicy::Linux,
            "OS_POLICY_VISTA" => OverlapPolicy::First,
            _ => continue,
        };
        let steps = table["steps"].as_array().unwrap();
        for isn in [0, 1, u32::MAX, u32::MAX - 10] {
            // After every step, not only the last one. Without a SYN all of it is held, as the tables want it, until the
            // wait is over, and the first byte is where the stream begins.
            for taken in 1..=steps.len() {
                let mut lab = with(policy);
                for step in &steps[..taken] {
                    let rel = u32::try_from(step["rel_seq"].as_u64().unwrap()).unwrap();
                    let data = step["data"].as_str().unwrap().as_bytes();
                    lab.push(&seg(isn.wrapping_add(rel), data));
                }
                lab.finish();
                let expected = steps[taken - 1]["stream_after"].as_str().unwrap();
                let expected = expected.trim_start_matches('.').replace('.', "~");
                assert_eq!(
                    lab.text(),
                    expected,
                    "{} at ISN {isn}, step {taken}",
                    table["name"]
                );
            }
            ran += 1;
        }
    }
    assert_eq!(
        ran, 32,
        "four tables of two policies at four initial sequence numbers"
    );
}
