//! Whatever is wrong with its input, the rebuilder says so in one line that names the place and the remedy, with exit
//! code 2 for usage and 1 for the rest.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use lab::janitor::Prefix;
use lab::process::{Process, command, wait_for};

fn rebuilder() -> PathBuf {
    lab::rebuilder::binary().unwrap()
}

fn run(arguments: &[&str]) -> Output {
    Command::new(rebuilder()).args(arguments).output().unwrap()
}

/// The only line on standard error that is no log line, after the exit code was checked.
fn complaint(out: &Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("rebuilder: ")).collect();
    assert_eq!(lines.len(), 1, "one line: {stderr}");
    lines[0].to_owned()
}

/// A capture (pcap, µs, little-endian, Ethernet) with one whole packet and one that the file ends in.
fn cut_capture() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&[0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
    let frame = [0_u8; 60];
    for captured in [60_usize, 30] {
        bytes.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0]);
        bytes.extend_from_slice(&frame[..captured]);
    }
    bytes
}

#[test]
fn a_capture_that_cannot_be_read_is_named() {
    let directory = Prefix::new().unwrap().directory().unwrap();
    let absent = directory.path().join("absent.pcap");
    let line = complaint(&run(&["inspect", absent.to_str().unwrap()]), 1);
    assert!(line.contains("absent.pcap"), "{line}");
    let line = complaint(&run(&["inspect", directory.path().to_str().unwrap()]), 1);
    assert!(line.contains(directory.path().to_str().unwrap()), "{line}");
}

#[test]
fn what_is_no_capture_is_refused() {
    let directory = Prefix::new().unwrap().directory().unwrap();
    for (name, content) in [("notes.txt", b"this is no capture at all, but a text".as_slice()), ("empty.pcap", b"")] {
        let file = directory.path().join(name);
        fs::write(&file, content).unwrap();
        let out = run(&["inspect", "--json", file.to_str().unwrap()]);
        let line = complaint(&out, 1);
        assert!(line.contains(name) && line.contains("pcap"), "{line}");
        assert!(out.stdout.is_empty());
    }
}

#[test]
fn a_capture_that_ends_inside_a_record_is_an_error_with_its_offset() {
    let directory = Prefix::new().unwrap().directory().unwrap();
    let file = directory.path().join("cut.pcap");
    fs::write(&file, cut_capture()).unwrap();
    let out = run(&["inspect", "--summary", file.to_str().unwrap()]);
    let line = complaint(&out, 1);
    // The second record begins behind the file's header and the first one.
    assert!(line.contains("cut.pcap") && line.contains(&(24 + 16 + 60).to_string()), "{line}");
    let summary: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(summary["packets"], 1, "all that was whole is still told");
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    for (arguments, named) in [
        (["inspect"].as_slice(), "FILE"),
        (&["run"], "--forward"),
        (&["run", "--forward", "analyser"], "analyser"),
        (&["run", "--forward", "ftp://127.0.0.1:80"], "ftp"),
        (&["run", "--forward", "http://127.0.0.1:80", "--listen", "4789"], "4789"),
        (&["run", "--forward", "http://127.0.0.1:80", "--vni", "16777216"], "16777216"),
        (&["inspect", "--json", "--summary", "x"], "--summary"),
        (&["dissect"], "dissect"),
    ] {
        let line = complaint(&run(arguments), 2);
        assert!(line.contains(named), "{arguments:?}: {line}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = udp.local_addr().unwrap().to_string();
    let line =
        complaint(&run(&["run", "--forward", "http://127.0.0.1:9", "--listen", &listen, "--admin", "127.0.0.1:0"]), 1);
    assert!(line.contains(&listen), "{line}");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = tcp.local_addr().unwrap().to_string();
    let line =
        complaint(&run(&["run", "--forward", "http://127.0.0.1:9", "--listen", "127.0.0.1:0", "--admin", &admin]), 1);
    assert!(line.contains(&admin), "{line}");
}

#[test]
fn a_missing_privilege_is_named() {
    if lab::skip::no_lab("a_missing_privilege_is_named") {
        return;
    }
    // A binary that nobody may reach would fail for another reason.
    let directory = Prefix::new().unwrap().directory().unwrap();
    let copy = directory.path().join("rebuilder");
    fs::copy(rebuilder(), &copy).unwrap();
    let out = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set", "-all", "--"])
        .arg(&copy)
        .args(["run", "--forward", "http://127.0.0.1:9", "--listen", "127.0.0.1:89", "--admin", "127.0.0.1:0"])
        .output()
        .unwrap();
    let line = complaint(&out, 1);
    assert!(line.contains("127.0.0.1:89") && line.contains("CAP_NET_BIND_SERVICE"), "{line}");
}

#[test]
fn an_unreachable_analyser_is_told_and_does_not_stop_the_rebuilder() {
    let directory = Prefix::new().unwrap().directory().unwrap();
    // A port that was just free, and that nothing listens on.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let analyser = format!("127.0.0.1:{port}");
    let mut start = command(rebuilder());
    start.args([
        "run",
        "--forward",
        &format!("http://{analyser}"),
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ]);
    let mut process = Process::start("rebuilder", start, directory.path()).unwrap();
    let told = wait_for("a line about the analyser", Duration::from_secs(15), || {
        process.must_be_running()?;
        let output = process.output();
        let line = output.lines().find(|line| line.contains("WARN") && line.contains(&analyser));
        Ok(line.map(ToOwned::to_owned))
    });
    assert!(told.is_ok(), "{}", process.output());
    process.must_be_running().unwrap();
    process.signal(15);
    assert_eq!(process.wait(Duration::from_secs(35)).unwrap().code(), Some(0), "{}", process.output());
}

#[test]
fn a_replay_to_nowhere_is_named() {
    let directory = Prefix::new().unwrap().directory().unwrap();
    let file = directory.path().join("cut.pcap");
    fs::write(&file, cut_capture()).unwrap();
    let line = complaint(&run(&["replay", file.to_str().unwrap(), "--to", "nowhere"]), 1);
    assert!(line.contains("nowhere"), "{line}");
}
