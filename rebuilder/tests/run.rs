//! The program as a process.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `rebuilder run … 2>&1 | head -1` once left a process that SIGTERM did not end: its log line met a closed pipe.
#[test]
fn sigterm_ends_it_although_nobody_reads_its_log_any_more() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rebuilder"))
        .args(["run", "--forward", "http://127.0.0.1:9", "--workers", "1"])
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // Reads `ready`, then closes the pipe.
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let id = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: a signal to a child that has not been waited for, so the number is still its own.
    assert_eq!(unsafe { libc::kill(id, libc::SIGTERM) }, 0);
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(10) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("still running 10 s after SIGTERM; it had said: {line}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0), "it had said: {line}");
}

#[test]
fn a_variable_that_is_set_and_empty_counts_as_absent() {
    let run = |value: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_rebuilder"))
            // Fails at once and after the command line was read: the address is nobody's.
            .args([
                "run",
                "--forward",
                "http://127.0.0.1:9",
                "--listen",
                "192.0.2.1:4789",
            ])
            .env("REBUILDER_WORKERS", value)
            .env("REBUILDER_TRUST", "")
            .env("REBUILDER_VNI", "")
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, said) = run("");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("192.0.2.1"), "{said}");
    let (code, said) = run("none");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--workers"), "{said}");
}
