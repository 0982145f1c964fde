//! "How a disputed request is framed", line by line; chunked bodies stand in `chunks.rs`. What is expected is written down
//! from the design's table, RFC 9112 §6, and the obfuscations that smuggling research uses (CL.TE, TE.CL, TE.TE, CL.0,
//! `Expect` of 2025).

use super::super::Framing;
use super::*;

const NEXT: &str = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";

/// Framing, bytes of the body, and whether it is disputed: of a POST with these fields before `behind`, of which the first
/// `len` bytes must be its body and the rest a request of its own.
#[track_caller]
fn framed(version: &str, fields: &str, behind: &str, expected: Framing, disputed: bool) {
    let head = format!("POST /p HTTP/{version}\r\nHost: x\r\n{fields}\r\n\r\n");
    let outcome = one(format!("{head}{behind}{NEXT}"));
    assert_eq!(outcome.lines(), ["POST /p", "GET /next"], "{fields:?}");
    let request = &outcome.requests[0];
    assert_eq!(request.framing, expected, "{fields:?}");
    assert_eq!(request.raw.len(), head.len() + behind.len(), "{fields:?}");
    for request in &outcome.requests {
        assert_eq!(
            request.flags.contains(Flags::DISPUTED),
            disputed,
            "{fields:?}"
        );
    }
}

const CHUNKS: &str = "3\r\nabc\r\n0\r\n\r\n";

#[test]
fn transfer_encoding_with_content_length_is_chunked() {
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\nContent-Length: 4",
        "Transfer-Encoding: chunked\r\nContent-Length: bogus",
        "Transfer-Encoding: chunked\r\nContent-Length:",
        "transfer-encoding:CHUNKED\r\ncontent-length:13",
    ] {
        framed("1.1", fields, CHUNKS, Framing::Chunked, true);
    }
}

#[test]
fn an_unknown_coding_leaves_the_length_or_no_body() {
    for coding in [
        "xchunked",
        "chunkedx",
        "x-chunked",
        "chunk",
        "identity",
        "gzip",
        "chunked, gzip",
        "chunked, identity",
        "\"chunked\"",
        "'chunked'",
        "chunked;q=1",
        "chunked; a=b",
        "chunked chunked",
        "\u{b}chunked",
        "chunked\u{b}",
        "\u{c}chunked",
        "chunked\0",
        "ch\runked",
        "c\u{0}hunked",
        "[chunked]",
        "",
        "\u{a0}chunked",
    ] {
        framed(
            "1.1",
            &format!("Transfer-Encoding: {coding}"),
            "",
            Framing::None,
            true,
        );
        let fields = format!("Transfer-Encoding: {coding}\r\nContent-Length: 5");
        framed("1.1", &fields, "abcde", Framing::Length(5), true);
        let fields = format!("Content-Length: 5\r\nTransfer-Encoding: {coding}");
        framed("1.1", &fields, "abcde", Framing::Length(5), true);
    }
}

#[test]
fn a_coding_that_somebody_may_read_as_chunked_is_chunked_and_disputed() {
    for fields in [
        // The last coding counts (RFC 9112 §6.1).
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: xchunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        // Empty members are none for some readers.
        "Transfer-Encoding: , chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding:",
        "Transfer-Encoding:\r\nTransfer-Encoding: chunked",
        // What a lenient reader skips.
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding:\r\n\tchunked",
        "X: y\nTransfer-Encoding: chunked",
    ] {
        framed("1.1", fields, CHUNKS, Framing::Chunked, true);
    }
    // A tab is white space like another (RFC 9110 §5.5), a coding is read in any case (§10.1.4).
    for fields in [
        "Transfer-Encoding:\tchunked",
        "Transfer-Encoding: \t chunked \t ",
        "Transfer-Encoding:chunked",
        "TRANSFER-ENCODING: cHuNkEd",
    ] {
        framed("1.1", fields, CHUNKS, Framing::Chunked, false);
    }
    framed(
        "1.0",
        "Transfer-Encoding: chunked",
        CHUNKS,
        Framing::Chunked,
        true,
    );
    framed(
        "1.0",
        "Connection: keep-alive\r\nTransfer-Encoding: chunked",
        CHUNKS,
        Framing::Chunked,
        true,
    );
}

#[test]
fn a_field_that_only_some_read_as_framing_frames_nothing_and_is_disputed() {
    for fields in [
        "Transfer_Encoding: chunked",
        "transfer_encoding: chunked",
        "Content_Length: 5",
        "Transfer-Encoding\0: chunked",
        "\0Transfer-Encoding: chunked",
        "Transfer-Encoding\u{b}: chunked",
        "X:x\rTransfer-Encoding: chunked",
        "Transfer Encoding: chunked",
        "Content-Length\u{b}: 5",
    ] {
        framed("1.1", fields, "", Framing::None, true);
    }
    // A fold of the field before it is no field.
    framed(
        "1.1",
        "X: y\r\n Transfer-Encoding: chunked",
        "",
        Framing::None,
        true,
    );
    framed(
        "1.1",
        "X: y\r\n\tContent-Length: 5",
        "",
        Framing::None,
        true,
    );
    // Neither is a name that no reader takes for one of the two.
    framed(
        "1.1",
        "Transfer-Encodings: chunked\r\nX-Content-Length: 5",
        "",
        Framing::None,
        false,
    );
}

/// No reader frames by such a field; a strict one refuses it and closes.
#[test]
fn a_field_whose_name_is_no_token_or_whose_value_holds_a_control_disputes_its_own_request_alone() {
    for fields in [
        "\"Content-Length\": 5",
        "[Transfer-Encoding]: chunked",
        "X(a): b",
        "X@a/b: c",
        "\u{dc}ber: a",
        "A: b\u{1}c",
        "A: \u{7f}",
        "A: \u{b}b",
    ] {
        let outcome = one(format!("GET /a HTTP/1.1\r\n{fields}\r\n\r\n{NEXT}"));
        assert_eq!(outcome.lines(), ["GET /a", "GET /next"]);
        assert_eq!(
            outcome.flags(),
            [Flags::DISPUTED, Flags::empty()],
            "{fields:?}"
        );
    }
}

#[test]
fn of_several_lengths_the_first_that_is_digits_counts() {
    for (fields, length) in [
        ("Content-Length: 5\r\nContent-Length: 5", 5),
        ("Content-Length: 5\r\nContent-Length: 6", 5),
        ("Content-Length: 6\r\nContent-Length: 5", 6),
        ("Content-Length: 5, 5", 5),
        ("Content-Length: 5,6", 5),
        ("Content-Length: 5,", 5),
        ("Content-Length: ,5", 5),
        ("Content-Length: +6\r\nContent-Length: 5", 5),
        ("Content-Length: 0x6, 6 6, 5, 7", 5),
        ("Content-Length: 0\r\nContent-Length: 5", 0),
        ("Content-Length:\r\nContent-Length: 5", 5),
        ("Content-Length : 5", 5),
        ("Content-Length:\r\n 5", 5),
    ] {
        let length = Framing::Length(length);
        let body = match length {
            Framing::Length(n) => &"abcdef"[..usize::try_from(n).unwrap()],
            _ => "",
        };
        framed("1.1", fields, body, length, true);
    }
}

#[test]
fn a_length_is_digits_that_fit_64_bits_and_anything_else_is_no_body() {
    for value in [
        "+5",
        "-5",
        "-0",
        "5.",
        "5.0",
        "5e0",
        "0x5",
        "5h",
        "5 5",
        "5;a",
        "\"5\"",
        "'5'",
        "",
        "five",
        "5\0",
        "\u{b}5",
        "\u{665}",
        "18446744073709551616",
        "99999999999999999999999999",
        "5\rX: 1",
    ] {
        framed(
            "1.1",
            &format!("Content-Length: {value}"),
            "",
            Framing::None,
            true,
        );
    }
    for (value, length) in [
        ("5", 5),
        ("05", 5),
        ("0000000000000000000000000005", 5),
        ("\t5\t", 5),
        ("0", 0),
        ("000", 0),
    ] {
        let body = &"abcde"[..usize::try_from(length).unwrap()];
        framed(
            "1.1",
            &format!("Content-Length: {value}"),
            body,
            Framing::Length(length),
            false,
        );
    }
    let head = "POST /p HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n";
    let outcome = one(format!("{head}{NEXT}"));
    assert_eq!(outcome.only().framing, Framing::Length(u64::MAX));
    assert_eq!(outcome.only().flags, Flags::ABORTED);
}

/// A client that lies with a length of its own body (CL.0): for us its bytes are a body, whatever the server made of it.
#[test]
fn a_body_that_the_server_may_ignore_is_a_body() {
    for method in ["GET", "HEAD", "OPTIONS", "DELETE", "POST"] {
        let raw = format!(
            "{method} /p HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{NEXT}",
            NEXT.len()
        );
        let outcome = run(&[seg(&raw[..raw.len() - NEXT.len()]), seg(NEXT), seg(NEXT)]);
        assert_eq!(
            outcome.lines(),
            [format!("{method} /p"), "GET /next".to_owned()]
        );
        assert_eq!(outcome.requests[0].raw, raw.as_bytes());
        assert_eq!(outcome.flags(), [Flags::empty(); 2]);
    }
}

#[test]
fn bytes_that_a_strict_reader_refuses_are_read_as_if_tolerated() {
    for (head, headers) in [
        (
            "GET /a HTTP/1.1\nHost: x\nA: b\n\n",
            vec![("Host", "x"), ("A", "b")],
        ),
        (
            "GET /a HTTP/1.1\r\nHo\0st: x\r\n\r\n",
            vec![("Ho\0st", "x")],
        ),
        (
            "GET /a HTTP/1.1\r\nHost: x\0y\r\n\r\n",
            vec![("Host", "x\0y")],
        ),
        (
            "GET /a HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
            vec![("Host", "x\rA: b")],
        ),
        (
            "GET /a HTTP/1.1\r\nHost: x\r\n y\r\n\tz\r\n\r\n",
            vec![("Host", "x\r\n y\r\n\tz")],
        ),
        ("GET /a HTTP/1.1\r\nHost : x\r\n\r\n", vec![("Host ", "x")]),
        (
            "GET /a HTTP/1.1\r\nHost\t: x\r\n\r\n",
            vec![("Host\t", "x")],
        ),
        (
            "GET /a HTTP/1.1\r\n Host: x\r\nA: b\r\n\r\n",
            vec![(" Host", "x"), ("A", "b")],
        ),
        ("GET /a HTTP/1.1\r\n: x\r\n\r\n", vec![("", "x")]),
    ] {
        let outcome = one(format!("{head}{NEXT}"));
        assert_eq!(outcome.lines(), ["GET /a", "GET /next"], "{head:?}");
        assert_eq!(outcome.flags(), [Flags::DISPUTED; 2], "{head:?}");
        let request = &outcome.requests[0];
        assert_eq!(request.raw, head.as_bytes());
        let seen: Vec<(&[u8], &[u8])> = request
            .headers
            .iter()
            .map(|h| {
                (
                    request.bytes(&h.name),
                    request.bytes(h.value.as_ref().unwrap()),
                )
            })
            .collect();
        let expected: Vec<(&[u8], &[u8])> = headers
            .iter()
            .map(|(n, v)| (n.as_bytes(), v.as_bytes()))
            .collect();
        assert_eq!(seen, expected, "{head:?}");
    }
}

#[test]
fn the_target_stands_between_the_first_and_the_last_space_of_the_line() {
    for (line, target) in [
        ("GET /a b HTTP/1.1", "/a b"),
        ("GET  /a HTTP/1.1", " /a"),
        ("GET /a  HTTP/1.1", "/a "),
        ("GET /a HTTP/1.1 HTTP/1.1", "/a HTTP/1.1"),
        ("GET /a\tb HTTP/1.1", "/a\tb"),
        ("GET /a HTTP/1.1  ", "/a"),
        ("GET \r HTTP/1.1", "\r"),
    ] {
        let outcome = one(format!("{line}\r\nHost: x\r\n\r\n{NEXT}"));
        let request = &outcome.requests[0];
        assert_eq!(
            request.bytes(&request.target),
            target.as_bytes(),
            "{line:?}"
        );
        assert_eq!(outcome.flags(), [Flags::DISPUTED; 2], "{line:?}");
    }
}

#[test]
fn what_follows_a_disputed_request_is_disputed_to_the_end_of_its_direction() {
    let odd = "GET /odd HTTP/1.1\nHost: x\n\n";
    let mut events = vec![seg(NEXT), seg(odd)];
    events.extend((0..50).map(|_| seg(NEXT)));
    // Not even a gap and a fresh start of the framing end it: what two readers had left over may differ.
    events.extend([Gap(100), seg(NEXT), seg(NEXT)]);
    let flags = run(&events).flags();
    assert_eq!(flags.len(), 54);
    assert_eq!(flags[0], Flags::empty());
    assert!(flags[1..].iter().all(|f| f.contains(Flags::DISPUTED)));
}

#[test]
fn versions_of_two_digits_are_a_request_and_of_more_digits_one_that_inspect_does_not_list() {
    for (version, numbers, long) in [
        ("HTTP/1.0", (1, 0), false),
        ("HTTP/1.1", (1, 1), false),
        ("HTTP/0.9", (0, 9), false),
        ("HTTP/1.2", (1, 2), false),
        ("HTTP/2.0", (2, 0), false),
        ("HTTP/9.9", (9, 9), false),
        ("HTTP/1.10", (1, 10), true),
        ("HTTP/1.01", (1, 1), true),
        ("HTTP/01.1", (1, 1), true),
        ("HTTP/1.999", (1, 255), true),
        ("HTTP/11.00000000000000000000000", (11, 0), true),
    ] {
        let outcome = one(format!("GET /a {version}\r\nHost: x\r\n\r\n{NEXT}"));
        assert_eq!(outcome.lines(), ["GET /a", "GET /next"], "{version:?}");
        let request = &outcome.requests[0];
        assert_eq!(
            (request.version, request.long_version),
            (numbers, long),
            "{version:?}"
        );
        let plain = matches!(version, "HTTP/1.0" | "HTTP/1.1");
        assert_eq!(
            request.flags.contains(Flags::DISPUTED),
            !plain,
            "{version:?}"
        );
    }
    for version in [
        "HTTP/1",
        "HTTP/1.",
        "HTTP/.1",
        "HTTP/1,1",
        "HTTP/1.1x",
        "HTTP/1.1.1",
        "HTTP/+1.1",
        "HTTP/1.-1",
        "http/1.1",
        "Http/1.1",
        "HTTP/1.\u{661}",
        "HTTP /1.1",
        "HTTPS/1.1",
        "RTSP/1.0",
        "SIP/2.0",
        "ICY/1.0",
        "",
    ] {
        let outcome = one(format!("GET /a {version}\r\nHost: x\r\n\r\n{NEXT}"));
        assert_eq!(outcome.lines(), [""; 0], "{version:?}");
        // What means HTTP may be taken for it by somebody, so the bytes behind are still looked at.
        let interest = if version.to_ascii_uppercase().contains("HTTP/") {
            Interest::Wanted
        } else {
            opaque(PacketOutcome::NotHttp)
        };
        assert_eq!(outcome.interest, interest, "{version:?}");
    }
}

#[test]
fn expect_100_continue_frames_nothing_with_and_without_its_answer() {
    let head = "PUT /p HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    // The body comes at once, after the answer (which we do not see), or not at all: then the client has closed.
    for (events, len, flags) in [
        (
            vec![seg(format!("{head}abc")), seg(NEXT)],
            3,
            vec![Flags::empty(); 2],
        ),
        (
            vec![seg(head), seg("a"), seg("bc"), seg(NEXT)],
            3,
            vec![Flags::empty(); 2],
        ),
        (vec![seg(head)], 0, vec![Flags::ABORTED]),
    ] {
        let outcome = run(&events);
        assert_eq!(outcome.flags(), flags);
        assert_eq!(outcome.requests[0].body_len, len);
    }
    let chunked = head.replace("Content-Length: 3", "Transfer-Encoding: chunked");
    assert_eq!(
        run(&[seg(chunked), seg(CHUNKS), seg(NEXT)]).flags(),
        [Flags::empty(); 2]
    );
}

/// After 417 a client may go on with its next request; a server that had promised to read the body takes it for that.
#[test]
fn a_request_line_where_an_expected_body_should_begin_is_disputed() {
    let length = NEXT.len();
    let head = |expect: &str| {
        format!("PUT /p HTTP/1.1\r\nHost: x\r\n{expect}Content-Length: {length}\r\n\r\n")
    };
    let outcome = run(&[seg(head("Expect: 100-continue\r\n")), seg(NEXT), seg(NEXT)]);
    assert_eq!(outcome.lines(), ["PUT /p", "GET /next"]);
    assert_eq!(outcome.flags(), [Flags::DISPUTED, Flags::empty()]);
    // Without an expectation it is a body like another.
    assert_eq!(
        run(&[seg(head("")), seg(NEXT), seg(NEXT)]).flags(),
        [Flags::empty(); 2]
    );
}

#[test]
fn an_expectation_that_is_not_100_continue_disputes_a_body() {
    for (expect, disputed) in [
        ("Expect: 100-continue", false),
        ("expect:100-CONTINUE", false),
        ("Expect: 100-continue\r\nExpect: 100-continue", true),
        ("Expect: y 100-continue", true),
        ("Expect: 100-continue, x", true),
        ("Expect: \"100-continue\"", true),
        ("Expect: 200-ok", true),
        ("Expect:", true),
    ] {
        for (body, disputed) in [("abc", disputed), ("", false)] {
            let raw = format!(
                "PUT /p HTTP/1.1\r\nHost: x\r\n{expect}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let outcome = one(format!("{raw}{NEXT}"));
            assert_eq!(outcome.requests[0].raw, raw.as_bytes());
            let flags = if disputed {
                Flags::DISPUTED
            } else {
                Flags::empty()
            };
            assert_eq!(outcome.flags(), [flags, Flags::empty()], "{raw:?}");
        }
    }
}

#[test]
fn no_host_and_several_hosts_frame_like_one() {
    for fields in ["A: b", "Host: x\r\nHost: y", "Host: x\r\nHost: x", "Host:"] {
        let outcome = one(format!("GET /a HTTP/1.1\r\n{fields}\r\n\r\n{NEXT}"));
        assert_eq!(outcome.lines(), ["GET /a", "GET /next"]);
        assert_eq!(outcome.flags(), [Flags::empty(); 2], "{fields:?}");
    }
}

#[test]
fn every_form_of_target_is_taken_as_it_stands() {
    for line in [
        "GET http://a.example:8080/x?y=z HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT a.example:443 HTTP/1.1",
        "GET a.example:80 HTTP/1.1",
        "GET /%00%zz/../..;x?a=%27&b[]=<script> HTTP/1.1",
        "GET //x HTTP/1.1",
        "GET ?a HTTP/1.1",
        "GET \\x HTTP/1.1",
        "GET /\"{}|^`' HTTP/1.1",
    ] {
        let outcome = one(format!("{line}\r\nHost: x\r\n\r\n"));
        let target = line.split(' ').nth(1).unwrap();
        let request = outcome.only();
        assert_eq!(request.bytes(&request.target), target.as_bytes());
        assert_eq!(request.flags, Flags::empty(), "{line:?}");
    }
}

#[test]
fn empty_lines_before_a_request_are_its_first_bytes() {
    for (lines, disputed) in [
        ("\r\n", false),
        ("\r\n\r\n\r\n", false),
        ("\n", true),
        ("\r\n\n", true),
    ] {
        let text = format!("{lines}{NEXT}{lines}{NEXT}");
        let outcome = one(&text);
        assert_eq!(outcome.lines(), ["GET /next", "GET /next"]);
        for request in &outcome.requests {
            assert_eq!(request.raw, format!("{lines}{NEXT}").as_bytes());
            assert_eq!(request.line_start, lines.len());
            assert_eq!(
                request.flags.contains(Flags::DISPUTED),
                disputed,
                "{lines:?}"
            );
        }
    }
}

#[test]
fn a_head_of_128_kib_is_given_and_one_byte_more_is_counted() {
    let head = |len: usize| {
        let fixed = "GET /a HTTP/1.1\r\nA: \r\n\r\n".len();
        format!("GET /a HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(len - fixed))
    };
    for size in [1460, 131_072, 262_144] {
        let segments =
            |text: String| -> Vec<Event> { text.as_bytes().chunks(size).map(seg).collect() };
        let outcome = run(&segments(head(131_072)));
        assert_eq!(outcome.only().raw.len(), 131_072);
        assert_eq!(outcome.counters.oversize_heads, 0);
        let outcome = run(&segments(head(131_073)));
        assert_eq!(outcome.lines(), [""; 0]);
        assert_eq!(outcome.counters.oversize_heads, 1);
        assert_eq!(outcome.counters.skipped_bytes, 131_073);
    }
    // A request line alone may be as long.
    let line = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(131_072 - 18));
    assert_eq!(one(&line).only().raw.len(), 131_072);
}
