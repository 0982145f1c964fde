//! Public captures with a known answer, where they are laid beside the checkout.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Captures that must give exactly the expected requests, of 342.
const AT_LEAST: usize = 320;

type Requests = BTreeMap<(String, String), usize>;

fn add(requests: &mut Requests, method: &Value, target: &Value) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    *requests.entry((text(method), text(target))).or_default() += 1;
}

fn inspect(binary: &Path, file: &Path, form: &str) -> (std::process::ExitStatus, String, String) {
    let out = Command::new(binary)
        .arg("inspect")
        .arg(file)
        .arg(form)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (
        out.status,
        String::from_utf8_lossy(&out.stdout).into_owned(),
        String::from_utf8_lossy(&out.stderr).trim().to_owned(),
    )
}

fn corpus(test: &str) -> Option<std::path::PathBuf> {
    let corpus = lab::skip::shared()
        .map(|shared| shared.join("corpus"))
        .filter(|corpus| corpus.is_dir());
    if corpus.is_none() {
        lab::skip::skipped(
            test,
            "342 captures: no corpus beside the checkout (MIRRORFLEET_SHARED)",
        );
    }
    corpus
}

#[test]
fn public_captures_give_exactly_the_requests_that_three_readers_agree_on() {
    let Some(corpus) =
        corpus("public_captures_give_exactly_the_requests_that_three_readers_agree_on")
    else {
        return;
    };
    let binary = lab::rebuilder::binary().unwrap();
    let expected: BTreeMap<String, Value> =
        serde_json::from_slice(&std::fs::read(corpus.join("expected.json")).unwrap()).unwrap();
    let (mut exact, mut wrong, mut crashed) = (0, Vec::new(), Vec::new());
    for (name, answer) in &expected {
        let mut want = Requests::new();
        for pair in answer["requests"].as_array().unwrap() {
            add(&mut want, &pair[0], &pair[1]);
        }
        let (status, out, err) = inspect(&binary, &corpus.join("pcaps").join(name), "--json");
        // 1 is the answer to a capture that ends inside a record.
        if !matches!(status.code(), Some(0 | 1)) || err.contains("panicked") {
            crashed.push(format!("{name}: {status}: {err}"));
            continue;
        }
        let mut got = Requests::new();
        for row in out.lines() {
            let row: Value = serde_json::from_str(row).unwrap();
            if !row["flags"]
                .as_array()
                .unwrap()
                .iter()
                .any(|flag| flag == "truncated")
            {
                add(&mut got, &row["method"], &row["target"]);
            }
        }
        if got == want {
            exact += 1;
        } else {
            let lacking: Vec<_> = want
                .iter()
                .filter(|&(key, count)| got.get(key) != Some(count))
                .take(3)
                .collect();
            let beyond: Vec<_> = got
                .iter()
                .filter(|&(key, count)| want.get(key) != Some(count))
                .take(3)
                .collect();
            wrong.push(format!(
                "{name}: {status}: {err}\n  expected {lacking:?}\n  got      {beyond:?}"
            ));
        }
    }
    println!(
        "{exact} of {} captures exact; the others:\n{}",
        expected.len(),
        wrong.join("\n")
    );
    assert_eq!(crashed, Vec::<String>::new());
    assert!(
        exact >= AT_LEAST,
        "{exact} of {} captures are exact, {AT_LEAST} must be:\n{}",
        expected.len(),
        wrong.join("\n")
    );
}

#[test]
fn a_real_aws_mirror_session_of_100_packets_holds_no_request_and_each_packet_one_outcome() {
    let test =
        "a_real_aws_mirror_session_of_100_packets_holds_no_request_and_each_packet_one_outcome";
    let Some(corpus) = corpus(test) else { return };
    let binary = lab::rebuilder::binary().unwrap();
    let file = corpus.join("pcaps/suricata-verify__vxlan-decoder-03__vxlan.pcap");
    let (status, out, err) = inspect(&binary, &file, "--summary");
    assert!(status.success(), "{err}");
    let summary: Value = serde_json::from_str(&out).unwrap();
    let outcomes: u64 = summary["packets_by_outcome"]
        .as_object()
        .unwrap()
        .values()
        .map(|count| count.as_u64().unwrap())
        .sum();
    assert_eq!(
        (
            summary["packets"].as_u64(),
            summary["requests"].as_u64(),
            outcomes
        ),
        (Some(100), Some(0), 100)
    );
    let (status, rows, err) = inspect(&binary, &file, "--json");
    assert!(status.success() && rows.is_empty(), "{rows}{err}");
}
