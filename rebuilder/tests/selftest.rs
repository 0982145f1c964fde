//! `rebuilder self-test`, as a process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod program;
mod wire;

use std::process::Command;

use program::{Rebuilder, analyser};

/// Exit code, stdout, stderr. The analyser is one that nobody can reach: the test must not need it.
fn self_test(arguments: &[&str]) -> (Option<i32>, String, String) {
    run(Command::new(env!("CARGO_BIN_EXE_rebuilder")), arguments)
}

fn run(mut command: Command, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = command
        .args(["self-test", "--forward", "http://192.0.2.9:9"])
        .args(arguments)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn each_worker_gives_a_whole_request() {
    for receive in ["auto", "socket"] {
        for workers in ["1", "3"] {
            let (code, out, err) = self_test(&["--receive", receive, "--workers", workers]);
            assert_eq!(code, Some(0), "{err}");
            assert!(
                out.contains(&format!(" gave {workers} whole requests")),
                "{out}"
            );
        }
    }
}

#[test]
fn settings_that_leave_others_out_do_not_leave_it_out() {
    let (code, out, err) = self_test(&[
        "--vni",
        "5",
        "--port",
        "8000-8010",
        "--trust",
        "0.0.0.0/0",
        "--proxy-from",
        "10.0.0.0/8",
        "--checksum",
        "drop",
        "--incomplete",
        "drop",
        "--ignore-health-checks",
        "0.0.0.0/0",
        "--xff",
        "append",
        "--hop-by-hop",
        "keep",
        "--flow-scope",
        "vni",
    ]);
    assert_eq!(code, Some(0), "{out}{err}");
}

#[test]
fn a_rebuilder_that_runs_is_not_in_its_way_nor_disturbed() {
    let (forward, _received) = analyser();
    let running = Rebuilder::start(forward, &[]);
    let listen = running.listen.to_string();
    let (code, _, err) = self_test(&["--listen", &listen]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(running.sum("rebuilder_packets_total"), 0);
}

#[test]
fn what_cannot_hold_a_request_fails_in_one_line_with_the_stage_and_the_remedy() {
    let cases = [
        (
            ["--held-bytes", "1K"],
            "self-test: rebuilding: ",
            "raise --held-bytes",
        ),
        (
            ["--queue-bytes", "10"],
            "self-test: forwarding: ",
            "queue_full",
        ),
    ];
    for (arguments, stage, remedy) in cases {
        let (code, out, err) = self_test(&arguments);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.starts_with(&format!("rebuilder: {stage}")), "{err}");
        assert!(err.contains(remedy), "{err}");
    }
}

#[test]
fn a_ring_that_is_not_permitted_fails_at_the_start() {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-net_raw", "--inh-caps=-net_raw"]);
    let mut probe = Command::new("setpriv");
    probe.args(["--bounding-set=-net_raw", "--inh-caps=-net_raw", "true"]);
    if !probe.status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: setpriv may not drop a capability");
        return;
    }
    command.arg(env!("CARGO_BIN_EXE_rebuilder"));
    let (code, _, err) = run(command, &["--receive", "ring"]);
    assert_eq!(code, Some(1), "{err}");
    let line = err.lines().last().unwrap();
    assert!(
        line.starts_with("rebuilder: self-test: starting: UDP 127.0.0.1:"),
        "{err}"
    );
    assert!(line.contains("CAP_NET_RAW"), "{err}");
}

#[test]
fn certificates_that_cannot_be_read_fail_although_none_is_needed_for_the_test() {
    let output = Command::new(env!("CARGO_BIN_EXE_rebuilder"))
        .args(["self-test", "--forward", "https://192.0.2.9"])
        .args(["--forward-ca", "/nonexistent"])
        .output()
        .unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.contains("--forward-ca /nonexistent"), "{line}");
}
