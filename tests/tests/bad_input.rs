//! Whatever is wrong with its input, the rebuilder says so in one line that names the place and the remedy, with exit
//! code 2 for usage and 1 for the rest.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use lab::inspect::Summary;
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
    let lines: Vec<&str> = stderr
        .lines()
        .filter(|line| line.starts_with("rebuilder: "))
        .collect();
    assert_eq!(lines.len(), 1, "one line: {stderr}");
    lines[0].to_owned()
}

/// A capture (pcap, µs, little-endian, Ethernet) with one whole packet and one that the file ends in.
fn cut_capture() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&[
        0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0,
    ]);
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
    for (name, content) in [
        (
            "notes.txt",
            b"this is no capture at all, but a text".as_slice(),
        ),
        ("empty.pcap", b""),
    ] {
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
    assert!(
        line.contains("cut.pcap") && line.contains(&(24 + 16 + 60).to_string()),
        "{line}"
    );
    let summary = Summary::read(&out.stdout).unwrap();
    assert_eq!(summary.packets, 1, "all that was whole is still told");
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    for (arguments, named) in [
        (["inspect"].as_slice(), "FILE"),
        (&["run"], "--forward"),
        (&["run", "--forward", "analyser"], "analyser"),
        (&["run", "--forward", "ftp://127.0.0.1:80"], "ftp"),
        (
            &[
                "run",
                "--forward",
                "http://127.0.0.1:80",
                "--listen",
                "4789",
            ],
            "4789",
        ),
        (
            &[
                "run",
                "--forward",
                "http://127.0.0.1:80",
                "--vni",
                "16777216",
            ],
            "16777216",
        ),
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
    let line = complaint(
        &run(&[
            "run",
            "--forward",
            "http://127.0.0.1:9",
            "--listen",
            &listen,
            "--admin",
            "127.0.0.1:0",
        ]),
        1,
    );
    assert!(line.contains(&listen), "{line}");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = tcp.local_addr().unwrap().to_string();
    let line = complaint(
        &run(&[
            "run",
            "--forward",
            "http://127.0.0.1:9",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            &admin,
        ]),
        1,
    );
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
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--bounding-set",
            "-all",
            "--",
        ])
        .arg(&copy)
        .args([
            "run",
            "--forward",
            "http://127.0.0.1:9",
            "--listen",
            "127.0.0.1:89",
            "--admin",
            "127.0.0.1:0",
        ])
        .output()
        .unwrap();
    let line = complaint(&out, 1);
    assert!(
        line.contains("127.0.0.1:89") && line.contains("CAP_NET_BIND_SERVICE"),
        "{line}"
    );
}

/// One Ethernet frame of a TCP connection from 10.0.0.1:1024 to 10.0.0.2:80, checksums left out.
fn segment(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let length = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
    frame.extend_from_slice(&[
        0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    frame.extend_from_slice(&[4, 0, 0, 80]);
    frame.extend_from_slice(&sequence.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn an_unreachable_analyser_is_told_and_does_not_stop_the_rebuilder() {
    let directory = Prefix::new().unwrap().directory().unwrap();
    let mut capture = cut_capture()[..24].to_vec();
    let request = b"GET /lost HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    for frame in [segment(1, 0x02, b""), segment(2, 0x18, request)] {
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        capture.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        capture.extend_from_slice(&[length, length].concat());
        capture.extend_from_slice(&frame);
    }
    let file = directory.path().join("request.pcap");
    fs::write(&file, capture).unwrap();

    // Ports that were just free, and that nothing listens on.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let listen = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let analyser = format!("127.0.0.1:{port}");
    let mut start = command(rebuilder());
    start.args([
        "run",
        "--forward",
        &format!("http://{analyser}"),
        "--listen",
        &listen,
        "--admin",
        "127.0.0.1:0",
    ]);
    start.args(["--drain-timeout", "1s"]);
    let mut process = Process::start("rebuilder", start, directory.path()).unwrap();
    wait_for("the rebuilder is ready", Duration::from_secs(10), || {
        process.must_be_running()?;
        Ok(process.output().contains("ready").then_some(()))
    })
    .unwrap();
    let out = run(&["replay", file.to_str().unwrap(), "--to", &listen]);
    assert!(out.status.success(), "{out:?}");
    let warnings = |process: &Process| -> Vec<String> {
        let output = process.output();
        output
            .lines()
            .filter(|line| line.contains("WARN") && line.contains(&analyser))
            .map(ToOwned::to_owned)
            .collect()
    };
    let told = wait_for("a line about the analyser", Duration::from_secs(15), || {
        process.must_be_running()?;
        Ok((!warnings(&process).is_empty()).then_some(()))
    });
    assert!(told.is_ok(), "{}", process.output());
    // It goes on trying, and does not say so at every try: once when it starts, once when a request waits.
    std::thread::sleep(Duration::from_secs(2));
    process.must_be_running().unwrap();
    assert!(warnings(&process).len() <= 2, "{}", process.output());
    process.signal(15);
    assert_eq!(
        process.wait(Duration::from_secs(15)).unwrap().code(),
        Some(0),
        "{}",
        process.output()
    );
}

#[test]
fn a_replay_to_nowhere_is_named() {
    let directory = Prefix::new().unwrap().directory().unwrap();
    let file = directory.path().join("cut.pcap");
    fs::write(&file, cut_capture()).unwrap();
    let line = complaint(
        &run(&["replay", file.to_str().unwrap(), "--to", "nowhere"]),
        1,
    );
    assert!(line.contains("nowhere"), "{line}");
}
