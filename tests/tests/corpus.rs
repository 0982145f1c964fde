//! Public captures with a known answer, where they are laid beside the checkout.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Captures that may differ from what three readers agree on, each with the reason why we still differ; at most four.
/// One that is listed and does not differ fails too.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// Rows flagged `truncated` do not count for the comparison. The corpus holds none, so nothing hides behind that rule.
const TRUNCATED: usize = 0;

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
    assert_eq!(expected.len(), 342, "the corpus is another one");
    let (mut exact, mut truncated) = (0, 0);
    let (mut wrong, mut crashed) = (BTreeMap::new(), Vec::new());
    for (name, answer) in &expected {
        let file = corpus.join("pcaps").join(name);
        let digest = Sha256::digest(std::fs::read(&file).unwrap());
        let begins: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            answer["sha256_16"], begins,
            "{name} is not the file that was read"
        );
        let mut want = Requests::new();
        for pair in answer["requests"].as_array().unwrap() {
            add(&mut want, &pair[0], &pair[1]);
        }
        let (status, out, err) = inspect(&binary, &file, "--json");
        // 1 is the answer to a capture that ends inside a record.
        if !matches!(status.code(), Some(0 | 1)) || err.contains("panicked") {
            crashed.push(format!("{name}: {status}: {err}"));
            continue;
        }
        let mut got = Requests::new();
        for row in out.lines() {
            let row: Value = serde_json::from_str(row).unwrap();
            let flags = row["flags"].as_array().unwrap();
            if flags.iter().any(|flag| flag == "truncated") {
                truncated += 1;
            } else {
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
            wrong.insert(
                name.as_str(),
                format!("{status}: {err}\n  expected {lacking:?}\n  got      {beyond:?}"),
            );
        }
    }
    println!("{exact} of {} captures exact", expected.len());
    assert_eq!(crashed, Vec::<String>::new());
    assert_eq!(truncated, TRUNCATED, "rows that were not compared");
    let listed: Vec<_> = EXCEPTIONS.iter().map(|(name, _)| *name).collect();
    assert!(listed.len() <= 4);
    assert!(
        wrong.keys().copied().eq(listed.iter().copied()),
        "{exact} of {} captures are exact, all but {listed:?} must be:\n{wrong:#?}",
        expected.len(),
    );
}

#[test]
fn a_real_aws_mirror_session_of_100_packets_holds_no_request_and_each_packet_one_outcome() {
    let test =
        "a_real_aws_mirror_session_of_100_packets_holds_no_request_and_each_packet_one_outcome";
    let Some(corpus) = corpus(test) else { return };
    let binary = lab::rebuilder::binary().unwrap();
    let file = corpus.join("pcaps/suricata-verify__vxlan-decoder-03__vxlan.pcap");
    let summary = lab::inspect::summary(&binary, &file).unwrap();
    assert_eq!((summary.packets, summary.requests), (100, 0));
    let (status, rows, err) = inspect(&binary, &file, "--json");
    assert!(status.success() && rows.is_empty(), "{rows}{err}");
}
