//! `rebuilder inspect`, clause by clause of its contract ("rebuilder inspect" in README.md). Every expected value is written by
//! hand; digests are those of `sha256sum`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod program;
mod wire;

use std::io::Write as _;
use std::process::Command;

use serde_json::{Value, json};
use wire::{ACK, RST, Record, Sender, a_second_apart, at, mirrored, pcap, tcp};

const SERVER: &str = "10.0.0.2:80";

/// Exit code, standard output and standard error of `rebuilder inspect FILE …`.
fn inspect_file(file: &[u8], arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut capture = tempfile::NamedTempFile::new().unwrap();
    capture.write_all(file).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_rebuilder"))
        .arg("inspect")
        .arg(capture.path())
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// The rows of `--json`; the file is sound.
fn rows(records: &[Record]) -> Vec<Value> {
    let (code, out, err) = inspect_file(&pcap(records), &["--json"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    out.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

/// The frames of one connection, a second apart from 1,700,000,000 s on: SYN, one for each payload, FIN.
fn connection(payloads: &[&[u8]]) -> Vec<Record> {
    let mut sender = Sender::new("10.1.0.7:40000", SERVER);
    let mut frames = vec![sender.syn()];
    frames.extend(payloads.iter().map(|p| sender.data(p)));
    frames.push(sender.fin());
    a_second_apart(frames)
}

/// The only row of one connection.
fn only(payloads: &[&[u8]]) -> Value {
    let mut rows = rows(&connection(payloads));
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

fn targets(rows: &[Value]) -> Vec<&str> {
    rows.iter()
        .map(|row| row["target"].as_str().unwrap())
        .collect()
}

const NO_FLAG: [&str; 0] = [];

#[test]
fn a_row_holds_these_fields_and_no_others() {
    let raw = b"POST /a?b=%20 HTTP/1.1\r\nHost: x\r\nA:  \tb c\t \r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(
        only(&[raw]),
        json!({
            "ts": 1_700_000_001.0,
            "vni": null,
            "client": "10.1.0.7:40000",
            "server": "10.0.0.2:80",
            "origin": "10.1.0.7",
            "method": "POST",
            "target": "/a?b=%20",
            "version": "1.1",
            "headers": [["Host", "x"], ["A", "b c"], ["Content-Length", "3"]],
            "body_len": 3,
            "raw_len": 69,
            "raw_sha256": "e1548de7041ff0042f99f1c9c2ffadf631aeae8f902a16ad1ce5d49914929aa4",
            "flags": [],
        })
    );
}

#[test]
fn addresses_of_ipv6_stand_in_brackets_and_the_origin_has_no_port() {
    let mut sender = Sender::new("[2001:db8::7]:40000", "[2001:db8::2]:8080");
    let get = "GET / HTTP/1.0\r\n\r\n";
    let rows = rows(&a_second_apart(vec![sender.syn(), sender.data(get)]));
    assert_eq!(rows[0]["client"], "[2001:db8::7]:40000");
    assert_eq!(rows[0]["server"], "[2001:db8::2]:8080");
    assert_eq!(rows[0]["origin"], "2001:db8::7");
    assert_eq!(rows[0]["version"], "1.0");
    assert_eq!(rows[0]["flags"], json!(["hop"]));
}

#[test]
fn rows_stand_in_the_order_of_the_packets_that_completed_them_and_within_one_in_stream_order() {
    let mut one = Sender::new("10.1.0.1:40000", SERVER);
    let mut two = Sender::new("10.1.0.2:40000", SERVER);
    let get = |target: &str| format!("GET /{target} HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut frames = vec![one.syn(), two.syn()];
    // Begun first, completed last.
    frames.push(one.data("POST /one HTTP/1.1\r\nContent-Length: 4\r\n\r\nab"));
    // Three in one packet, the first of which began before.
    frames.push(two.data("GET /two/a HTTP/1.1\r\nHo"));
    frames.push(two.data(format!("st: x\r\n\r\n{}{}", get("two/b"), get("two/c"))));
    // Out of order: the first of these two completes nothing, the second completes both.
    let early = one.data("cd");
    let late = one.data(get("one/behind"));
    frames.extend([late, early]);
    let rows = rows(&a_second_apart(frames));
    assert_eq!(
        targets(&rows),
        ["/two/a", "/two/b", "/two/c", "/one", "/one/behind"]
    );
    let times: Vec<f64> = rows
        .iter()
        .map(|r| r["ts"].as_f64().unwrap() - 1.7e9)
        .collect();
    // Of their first bytes: /one/behind's came before the packet that completed it.
    assert_eq!(times, [3.0, 4.0, 4.0, 2.0, 5.0]);
}

/// Flows still open are flushed at the end of the file: in the order in which they began, every time.
#[test]
fn connections_that_are_open_at_the_end_are_flushed_in_the_order_in_which_they_began() {
    let mut frames = Vec::new();
    for n in 0..200 {
        let mut sender = Sender::new(&format!("10.1.{}.7:{}", n % 7, 40_000 + n), SERVER);
        let post = format!("POST /{n} HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc");
        frames.extend([sender.syn(), sender.data(post)]);
    }
    // All within a second: none ends because it is idle.
    let records: Vec<Record> = (0..)
        .zip(frames)
        .map(|(n, frame)| at(1_700_000_000_000_000_000 + n, frame))
        .collect();
    let expected: Vec<String> = (0..200).map(|n| format!("/{n}")).collect();
    for _ in 0..3 {
        assert_eq!(targets(&rows(&records)), expected);
    }
}

#[test]
fn the_time_is_that_of_the_first_seen_copy_of_the_first_byte() {
    let mut sender = Sender::new("10.1.0.7:40000", SERVER);
    let syn = sender.syn();
    let first = sender.data("\r\nGET /a HTTP/1.1\r\n");
    let rest = sender.data("Host: x\r\n\r\n");
    // Mirrored twice, 50 ms apart, and once more behind the end.
    let records = [
        at(1_700_000_000_000_000_001, syn),
        at(1_700_000_000_100_000_000, first.clone()),
        at(1_700_000_000_150_000_000, first.clone()),
        at(1_700_000_000_200_000_000, rest),
        at(1_700_000_000_300_000_000, first),
    ];
    let rows = rows(&records);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["ts"], 1_700_000_000.1);
}

#[test]
fn the_vni_is_that_of_the_outermost_vxlan_header_and_vni_excludes_bare_packets() {
    let frames = |port: u16, target: &str| {
        let mut sender = Sender::new(&format!("10.1.0.7:{port}"), SERVER);
        let get = format!("GET /{target} HTTP/1.1\r\nHost: x\r\n\r\n");
        vec![sender.syn(), sender.data(get), sender.fin()]
    };
    let wrap =
        |vni, frames: Vec<Vec<u8>>| frames.iter().map(|f| mirrored(vni, f)).collect::<Vec<_>>();
    let all = [
        frames(40_000, "bare"),
        wrap(4242, frames(40_001, "wrapped")),
        wrap(16_777_215, wrap(7, frames(40_002, "nested"))),
        wrap(0, frames(40_003, "zero")),
    ];
    let file = pcap(&a_second_apart(all.concat()));
    let read = |arguments: &[&str]| -> Vec<(String, Value)> {
        let (code, out, _) = inspect_file(&file, &[&["--json"], arguments].concat());
        assert_eq!(code, Some(0));
        out.lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap())
            .map(|r| (r["target"].as_str().unwrap().to_owned(), r["vni"].clone()))
            .collect()
    };
    let row = |target: &str, vni: Value| (target.to_owned(), vni);
    assert_eq!(
        read(&[]),
        [
            row("/bare", Value::Null),
            row("/wrapped", json!(4242)),
            row("/nested", json!(16_777_215)),
            row("/zero", json!(0)),
        ]
    );
    assert_eq!(read(&["--vni", "4242"]), [row("/wrapped", json!(4242))]);
    assert_eq!(read(&["--vni", "7"]), []);
    assert_eq!(
        read(&["--vni", "0", "--vni", "16777215"]),
        [row("/nested", json!(16_777_215)), row("/zero", json!(0))]
    );
}

#[test]
fn header_lines_stand_as_captured_folds_and_lines_without_colon_included() {
    let row = only(&[
        b"GET /a HTTP/1.1\r\nHost:x\r\nFold: a \r\n\t b\r\n c\r\nEmpty:\r\nBlank: \t \r\nno colon\r\n\
          A: b: c\r\nA : d\r\n: e\r\nHost: y\r\n\r\n",
    ]);
    assert_eq!(
        row["headers"],
        json!([
            ["Host", "x"],
            ["Fold", "a \r\n\t b\r\n c"],
            ["Empty", ""],
            ["Blank", ""],
            ["no colon", null],
            ["A", "b: c"],
            ["A ", "d"],
            ["", "e"],
            ["Host", "y"],
        ])
    );
    assert_eq!(row["flags"], json!(["disputed"]));
}

#[test]
fn bytes_from_0x80_up_stand_as_the_code_point_of_the_same_number() {
    let row =
        only(&[b"GET /\x80\xe4\xff\xc3\xa4 HTTP/1.1\r\n\xe4: \xff\x80 \"\\\r\n\xe2\x82\r\n\r\n"]);
    assert_eq!(row["target"], "/\u{80}\u{e4}\u{ff}\u{c3}\u{a4}");
    assert_eq!(
        row["headers"],
        json!([["\u{e4}", "\u{ff}\u{80} \"\\"], ["\u{e2}\u{82}", null]])
    );
}

#[test]
fn the_method_and_the_target_are_the_bytes_of_the_line() {
    let row = only(&[b"GE!T  /a b  HTTP/1.1\r\n\r\n"]);
    assert_eq!(
        (&row["method"], &row["target"]),
        (&json!("GE!T"), &json!(" /a b "))
    );
}

#[test]
fn what_has_no_request_line_of_http_gives_no_row_and_one_outcome_a_packet() {
    for (bytes, outcome) in [
        (
            &b"OPTIONS rtsp://a/b RTSP/1.0\r\nCSeq: 1\r\n\r\n"[..],
            "not_http",
        ),
        (b"INVITE sip:a@b SIP/2.0\r\nVia: x\r\n\r\n", "not_http"),
        (b"GET /\r\n", "not_http"),
        (b"EHLO a.example\r\nMAIL FROM:<a@b>\r\n", "not_http"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not_http"),
        (b"USER anonymous\r\n", "not_http"),
        (b"*1\r\n$4\r\nPING\r\n", "not_http"),
        (
            b"\x00\x00\x00\x10\x00\x03\x00\x00user\x00a\x00\x00",
            "not_http",
        ),
        (
            b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00",
            "not_http",
        ),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "tls"),
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
            "http2",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "response"),
    ] {
        let records = connection(&[bytes, b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n"]);
        let (code, out, _) = inspect_file(&pcap(&records), &["--summary"]);
        let summary: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (code, &summary["requests"]),
            (Some(0), &json!(0)),
            "{}",
            bytes.escape_ascii()
        );
        assert_eq!(
            summary["packets_by_outcome"],
            json!({ "control": 2, outcome: 2 }),
            "{}",
            bytes.escape_ascii()
        );
    }
}

/// nginx takes `HTTP/1.10` for 1.1. The contract gives it no row; an analyser gets it all the same.
#[test]
fn a_version_of_more_digits_gives_no_row_and_is_forwarded() {
    let gets: &[u8] =
        b"GET /long HTTP/1.10\r\nHost: x\r\n\r\nGET /behind HTTP/1.1\r\nHost: x\r\n\r\n";
    let records = connection(&[gets]);
    let found = rows(&records);
    assert_eq!(targets(&found), ["/behind"]);
    assert_eq!(found[0]["flags"], json!(["disputed"]));
    let (_, out, _) = inspect_file(&pcap(&records), &["--summary"]);
    let summary: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&summary["requests"], &summary["requests_by_flag"]),
        (&json!(1), &json!({ "disputed": 1 }))
    );

    let (address, received) = program::analyser();
    let rebuilder = program::Rebuilder::start(address, &[]);
    rebuilder.send(records.iter().map(|r| &r.frame));
    let mut got: Vec<_> = (0..2)
        .map(|_| received.recv_timeout(program::PATIENCE).unwrap())
        .map(|got| {
            (
                got.target().to_owned(),
                got.field("X-Mirror-Flags").map(str::to_owned),
            )
        })
        .collect();
    got.sort();
    let disputed = Some("disputed".to_owned());
    assert_eq!(
        got,
        [
            ("/behind".to_owned(), disputed.clone()),
            ("/long".to_owned(), disputed)
        ]
    );
    rebuilder.shows("rebuilder_requests_extracted_total 2");
}

#[test]
fn chunk_framing_is_removed_from_body_len_and_trailers_are_not_listed() {
    let row = only(&[
        b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nDigest: z\r\n\r\n",
    ]);
    assert_eq!(row["headers"], json!([["Transfer-Encoding", "chunked"]]));
    assert_eq!(row["body_len"], 13);
    assert_eq!(row["raw_len"], 91);
    assert_eq!(
        row["raw_sha256"],
        "83c9c34fb2031685414a5d621cfbb4a4b1a6e8539ad51bf6c49bf2b642906726"
    );
}

#[test]
fn raw_is_everything_since_the_request_before_but_a_proxy_header() {
    let records = connection(&[
        b"PROXY TCP4 203.0.113.9 10.0.0.2 4660 80\r\n\r\n\r\nGET /1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
    ]);
    let rows = rows(&records);
    assert_eq!(targets(&rows), ["/1", "/2"]);
    let figures: Vec<(Value, Value)> = rows
        .iter()
        .map(|r| (r["raw_len"].clone(), r["raw_sha256"].clone()))
        .collect();
    assert_eq!(
        figures,
        [
            (
                json!(32),
                json!("b70d642759adca1c345310a3fa2c0093aca4180e9435e4cbe50259330bc5d18a")
            ),
            (
                json!(30),
                json!("dec1a3fd02b1a5a08408cbea2650dd82c80fde767021628be0c810054e4c8504")
            ),
        ]
    );
    // Whom the header names is the origin of both, and the TCP peer stays the client.
    for row in &rows {
        assert_eq!(
            (&row["origin"], &row["client"]),
            (&json!("203.0.113.9"), &json!("10.1.0.7:40000"))
        );
    }
}

#[test]
fn the_origin_follows_trust_and_proxy_from() {
    let xff = b"GET /x HTTP/1.1\r\nX-Forwarded-For: 198.51.100.1, 203.0.113.9\r\n\r\n";
    let file = pcap(&connection(&[xff]));
    let proxied = [&b"PROXY TCP4 203.0.113.8 10.0.0.2 1 80\r\n"[..], xff].concat();
    let proxied = pcap(&connection(&[&proxied]));
    for (file, arguments, origin) in [
        (&file, &[][..], "10.1.0.7"),
        (&file, &["--trust", "10.1.0.0/16"], "203.0.113.9"),
        (
            &file,
            &["--trust", "10.1.0.0/16,203.0.113.0/24"],
            "198.51.100.1",
        ),
        (&file, &["--trust", "10.2.0.0/16"], "10.1.0.7"),
        (&proxied, &[], "203.0.113.8"),
        (&proxied, &["--proxy-from", "10.1.0.0/16"], "203.0.113.8"),
        (&proxied, &["--proxy-from", "10.2.0.0/16"], "10.1.0.7"),
        (
            &proxied,
            &["--proxy-from", "10.2.0.0/16", "--trust", "10.1.0.7"],
            "203.0.113.9",
        ),
    ] {
        let (code, out, _) = inspect_file(file, &[&["--json"], arguments].concat());
        let row: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (code, &row["origin"]),
            (Some(0), &json!(origin)),
            "{arguments:?}"
        );
    }
}

/// Of a truncated one `raw` is the prefix up to the first missing byte.
#[test]
fn a_request_with_a_hole_is_truncated_at_its_first_missing_byte() {
    let mut sender = Sender::new("10.1.0.7:40000", SERVER);
    let mut frames = vec![
        sender.syn(),
        sender.data("POST /t HTTP/1.1\r\nContent-Length: 20\r\n\r\n01234"),
    ];
    sender.lose(5);
    frames.push(sender.data("abcdefghij"));
    frames.push(sender.data("GET /next HTTP/1.1\r\nHost: x\r\n\r\n"));
    let rows = rows(&a_second_apart(frames));
    assert_eq!(targets(&rows), ["/t", "/next"]);
    assert_eq!(rows[0]["flags"], json!(["truncated"]));
    assert_eq!(rows[0]["body_len"], 5);
    assert_eq!(rows[0]["raw_len"], 45);
    assert_eq!(
        rows[0]["raw_sha256"],
        "cab57e4257816bc26abbaf6531901bb14ce0b5164ad98daffab9d8be1b53f95d"
    );
    assert_eq!(rows[1]["flags"], json!(NO_FLAG));
}

#[test]
fn what_the_client_ended_is_aborted_and_what_the_file_ended_is_truncated() {
    let post = "POST /p HTTP/1.1\r\nContent-Length: 20\r\n\r\n01234";
    let ended = |how: &dyn Fn(&mut Sender) -> Vec<Vec<u8>>| {
        let mut sender = Sender::new("10.1.0.7:40000", SERVER);
        let mut frames = vec![sender.syn(), sender.data(post)];
        frames.extend(how(&mut sender));
        let rows = rows(&a_second_apart(frames));
        assert_eq!(rows.len(), 1);
        assert_eq!(
            (&rows[0]["body_len"], &rows[0]["raw_len"]),
            (&json!(5), &json!(45))
        );
        rows[0]["flags"].clone()
    };
    assert_eq!(ended(&|s| vec![s.fin()]), json!(["aborted"]));
    assert_eq!(
        ended(&|s| vec![tcp(s.src, s.dst, s.seq, RST | ACK, &[])]),
        json!(["aborted"])
    );
    assert_eq!(ended(&|_| vec![]), json!(["truncated"]));
    // A FIN behind a hole: the client had sent more than was captured.
    assert_eq!(
        ended(&|s| {
            s.lose(3);
            vec![s.fin()]
        }),
        json!(["truncated"])
    );
}

/// More connections wait for their first byte than SYNs are remembered: which are forgotten, and so joined midway, must
/// not depend on anything but the file.
#[test]
fn the_same_file_gives_the_same_rows_each_time() {
    let mut senders: Vec<Sender> = (0..70_000_u32)
        .map(|n| {
            let [_, a, b, c] = n.to_be_bytes();
            Sender::new(&format!("10.{a}.{b}.{c}:40000"), SERVER)
        })
        .collect();
    let syns: Vec<_> = senders.iter_mut().map(Sender::syn).collect();
    let requests = senders
        .iter_mut()
        .map(|sender| sender.data("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
    let records: Vec<Record> = syns
        .into_iter()
        .chain(requests)
        .enumerate()
        .map(|(n, frame)| at(1_700_000_000_000_000_000 + n as u64, frame))
        .collect();
    let file = pcap(&records);
    let figures = || {
        let (code, out, err) = inspect_file(&file, &["--summary"]);
        assert_eq!((code, err.as_str()), (Some(0), ""));
        let mut summary: Value = serde_json::from_str(&out).unwrap();
        summary.as_object_mut().unwrap().remove("elapsed_s");
        summary
    };
    let first = figures();
    assert_eq!(first["requests"], 70_000);
    assert!(first["requests_by_flag"]["midstream"].as_u64() > Some(1_000));
    assert_eq!(first, figures());
}

#[test]
fn an_incomplete_head_gives_no_row() {
    let get = b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = b"GET /cut HTTP/1.1\r\nHost: x\r\n";
    assert_eq!(targets(&rows(&connection(&[get, head]))), ["/whole"]);
    assert_eq!(targets(&rows(&connection(&[head]))), [""; 0]);
}

#[test]
fn every_flag_of_the_closed_list_is_given_in_its_order() {
    // No SYN; a hole in the first; found again; copies that disagree; two lengths; a field of ours; HTTP/1.0; the end of the file.
    let mut sender = Sender::new("10.1.0.7:40000", SERVER);
    let mut frames = vec![sender.data("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /lost HTTP")];
    sender.lose(100);
    let last = b"POST /2 HTTP/1.0\r\nX-Mirror-Flags: a\r\nContent-Length: 9\r\nContent-Length: 8\r\n\r\nabc";
    let mut other = last.to_vec();
    other[8] = b'X';
    // A byte before it is missing, so both copies wait, and the first one wins.
    let (seq, mut late) = (sender.seq, sender.clone());
    let held = sender.data(&last[..20]);
    frames.extend([held, tcp(late.src, late.dst, seq, ACK, &other[..20])]);
    late.lose(20);
    frames.push(late.data(&last[20..]));
    let rows = rows(&a_second_apart(frames));
    assert_eq!(targets(&rows), ["/1", "/2"]);
    assert_eq!(rows[0]["flags"], json!(["midstream"]));
    assert_eq!(
        rows[1]["flags"],
        json!([
            "midstream",
            "truncated",
            "resynced",
            "ambiguous",
            "disputed",
            "spoofed",
            "hop"
        ])
    );
}

#[test]
fn a_file_that_ends_inside_a_record_gives_all_rows_so_far_one_line_with_the_offset_and_exit_1() {
    let records = connection(&[
        b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /2 HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc",
        b"defghi",
    ]);
    let whole = pcap(&records);
    let last = pcap(&records[..3]).len();
    // Inside the header of the fourth record, and inside its frame.
    for cut in [last + 1, last + 15, last + 17] {
        let (code, out, err) = inspect_file(&whole[..cut], &["--json"]);
        let rows: Vec<Value> = out
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(code, Some(1));
        assert_eq!(targets(&rows), ["/1", "/2"]);
        assert_eq!(rows[1]["flags"], json!(["truncated"]));
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.contains(&last.to_string()), "no {last} in {err}");
    }
}

#[test]
fn a_link_type_that_is_not_read_is_an_outcome_with_one_line_and_exit_0() {
    let mut file = pcap(&connection(&[b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"]));
    // 147: DLT_USER0.
    file[20..24].copy_from_slice(&147u32.to_le_bytes());
    let (code, out, err) = inspect_file(&file, &["--summary"]);
    let summary: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &summary["packets_by_outcome"]),
        (Some(0), &json!({ "link_type": 3 }))
    );
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains("147"), "{err}");
}

#[test]
fn the_summary_is_one_object_of_these_figures() {
    let mut sender = Sender::new("10.1.0.7:40000", SERVER);
    let get = sender.clone().data("GET /1 HTTP/1.0\r\n\r\n");
    let frames = vec![
        sender.syn(),
        sender.data("GET /1 HTTP/1.0\r\n\r\n"),
        sender.data("GET /2 HTTP/1.1\r\nX-Real-IP: a\r\n\r\n"),
        // ARP.
        [&[0xff; 12][..], &[0x08, 0x06], &[0; 28]].concat(),
        sender.fin(),
    ];
    assert_eq!(get.len(), 73);
    // 54 bytes of headers each: SYN, 19 and 33 bytes of payload, 42 bytes of ARP, FIN.
    let bytes = 54 + (54 + 19) + (54 + 33) + 42 + 54;
    let (code, out, err) = inspect_file(&pcap(&a_second_apart(frames)), &["--summary"]);
    assert_eq!((code, err.as_str(), out.lines().count()), (Some(0), "", 1));
    let mut summary: Value = serde_json::from_str(&out).unwrap();
    let elapsed = summary
        .as_object_mut()
        .unwrap()
        .remove("elapsed_s")
        .unwrap();
    assert!(
        elapsed.as_f64().is_some_and(|s| (0.0..10.0).contains(&s)),
        "{elapsed}"
    );
    assert_eq!(
        summary,
        json!({
            "packets": 5,
            "packets_by_outcome": { "control": 2, "stream": 2, "not_ip": 1 },
            "requests": 2,
            "requests_by_flag": { "hop": 1, "disputed": 1, "spoofed": 1 },
            "flows": 1,
            "bytes": bytes,
        })
    );
}
