//! What the rebuilder sees is other people's requests: no byte of one comes into its log, its metrics or a core dump, at
//! any log level, whatever becomes of the request.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod program;
mod wire;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread;
use std::time::Instant;

use program::{PATIENCE, Rebuilder};
use wire::Sender;

const CANARY: &str = "Canary7Qx";

/// Answers in turn with a refusal that repeats the request, with what is no answer, with nothing, and by closing at once.
fn moody_analyser() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (turn, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut request = [0; 4096];
                if turn % 4 == 3 {
                    return;
                }
                while let Ok(length @ 1..) = stream.read(&mut request) {
                    let echo =
                        String::from_utf8_lossy(&request[..length]).replace(['\r', '\n'], " ");
                    let answer = match turn % 4 {
                        0 => format!(
                            "HTTP/1.1 400 {echo}\r\nServer: {CANARY}\r\nContent-Length: 0\r\n\r\n"
                        ),
                        1 => echo,
                        _ => continue,
                    };
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
        }
    });
    address
}

/// Streams of one client each, by what they come to.
fn streams() -> Vec<Vec<u8>> {
    let c = CANARY;
    let texts = [
        format!("GET /{c}?{c} HTTP/1.1\r\nHost: {c}\r\nCookie: {c}\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: h\r\n{c}: {c}\r\nContent-Length: 9\r\n\r\n{c}"),
        format!(
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n9;{c}={c}\r\n{c}\r\n0\r\n{c}: {c}\r\n\r\n"
        ),
        format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{c}\r\n{c}\r\n"),
        format!(
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: {c}\r\nContent-Length: 9\r\n\r\n{c}"
        ),
        format!("{c} / HTTP/1.1\r\nHost: h\0{c}\r\n\r\n"),
        format!("GET /{c} HTTP/9.9{c}\r\n\r\n{c}\r\n"),
        format!("GET /{c}\r\n\r\n"),
        format!("CONNECT {c}:443 HTTP/1.1\r\nHost: {c}\r\n\r\n{c}"),
        format!("GET /{c} HTTP/1.1\r\nHost: h\r\nUpgrade: {c}\r\nConnection: upgrade\r\n\r\n{c}"),
        format!("PROXY TCP4 {c} 10.0.0.1 1 2\r\nGET /{c} HTTP/1.1\r\nHost: h\r\n\r\n"),
        format!("PROXY UNKNOWN {c}\r\nGET /{c} HTTP/1.1\r\nX-Real-IP: {c}\r\nHost: h\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: {c}\r\n\r\n"),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{c}"),
        format!("HTTP/1.1 200 {c}\r\nContent-Length: 9\r\n\r\n{c}"),
        format!("SSH-2.0-{c}\r\n"),
        format!("\u{16}\u{3}\u{1}{c}"),
        // Cut off by the end of the capture: in a head, in a body.
        format!("GET /{c} HTTP/1.1\r\nHost: {c}\r\nX-{c}: "),
        format!("POST /{c} HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n{c}"),
    ];
    texts.into_iter().map(String::into_bytes).collect()
}

/// The canary as it stands, in any case, and as numbers, which is how `{:?}` of bytes would show it.
fn assert_without(text: &str, place: &str) {
    let bytes = CANARY.as_bytes();
    let decimal: Vec<String> = bytes.iter().map(u8::to_string).collect();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let text = text.to_ascii_lowercase();
    // A part is enough to be one too many.
    for part in [&CANARY[..6], &decimal[..6].join(", "), &hex[..12]] {
        assert!(
            !text.contains(&part.to_ascii_lowercase()),
            "{place}:\n{text}"
        );
    }
}

#[test]
fn no_byte_of_a_request_is_in_logs_or_metrics() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rebuilder"));
    command.env("REBUILDER_LOG", "trace");
    let more = [
        "--trust",
        "0.0.0.0/0",
        "--proxy-from",
        "0.0.0.0/0",
        "--answer-timeout",
        "300ms",
        "--drain-timeout",
        "2s",
    ];
    let mut rebuilder = Rebuilder::start_as(command, moody_analyser(), &more);
    let streams = streams();
    let mut frames = Vec::new();
    for (n, stream) in streams.iter().enumerate() {
        // Whole, and with a hole in the middle.
        for hole in [false, true] {
            let client = format!("10.0.{}.{}:4000", n, u8::from(hole));
            let mut sender = Sender::new(&client, "10.1.0.1:80");
            frames.push(sender.syn());
            let (front, back) = stream.split_at(stream.len() / 2);
            frames.push(sender.data(front));
            if hole {
                sender.lose(3);
            }
            frames.push(sender.data(back));
            frames.push(sender.fin());
        }
    }
    rebuilder.send(&frames);
    let begun = Instant::now();
    let seen = |metric: &str| rebuilder.sum(metric);
    while seen("rebuilder_packets_total") < frames.len() as u64
        || seen("rebuilder_connects_total") < 8
        || seen("rebuilder_answer_timeouts_total") < 1
        || seen("rebuilder_requests_extracted_total") < 10
    {
        assert!(begun.elapsed() < PATIENCE, "{}", rebuilder.metrics());
        thread::sleep(std::time::Duration::from_millis(50));
    }
    let metrics = rebuilder.metrics();
    assert_eq!(rebuilder.end(), Some(0));
    let log = rebuilder.says();
    assert!(
        log.contains("connection to the analyser ended"),
        "not the whole log:\n{log}"
    );
    assert_without(&metrics, "metrics");
    assert_without(&log, "log");
}

#[test]
fn a_crash_leaves_no_core_dump() {
    let unlimited = |program: &str| {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "ulimit -c unlimited 2>/dev/null; exec \"$0\" \"$@\"",
            program,
        ]);
        command.current_dir(std::env::temp_dir());
        command
    };
    // Whether this machine writes any.
    let mut sleep = unlimited("sleep").arg("60").spawn().unwrap();
    thread::sleep(std::time::Duration::from_millis(200));
    let pid = libc::pid_t::try_from(sleep.id()).unwrap();
    // SAFETY: a signal to a child that has not been waited for, so the number is still its own.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGABRT) }, 0);
    let other = sleep.wait().unwrap();
    let _ = std::fs::remove_file(std::env::temp_dir().join("core"));
    let _ = std::fs::remove_file(std::env::temp_dir().join(format!("core.{pid}")));
    if !other.core_dumped() {
        println!("SKIPPED: a_crash_leaves_no_core_dump: this machine writes no core dumps");
        return;
    }
    let program = unlimited(env!("CARGO_BIN_EXE_rebuilder"));
    let mut rebuilder = Rebuilder::start_as(program, moody_analyser(), &[]);
    let ended = rebuilder.end_by(libc::SIGABRT);
    assert_eq!(ended.signal(), Some(libc::SIGABRT));
    assert!(!ended.core_dumped());
}
