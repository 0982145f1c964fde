//! What is a request, and how its head is split.

use super::*;

fn headers(request: &Request) -> Vec<(String, Option<String>)> {
    let text = |range| String::from_utf8(request.bytes(range).to_vec()).unwrap();
    request
        .headers
        .iter()
        .map(|h| (text(&h.name), h.value.as_ref().map(text)))
        .collect()
}

fn pair(name: &str, value: &str) -> (String, Option<String>) {
    (name.to_owned(), Some(value.to_owned()))
}

#[test]
fn a_plain_request_is_given_as_it_stands() {
    let raw = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\naCCept:  */* \t\r\n\r\n";
    let outcome = one(raw);
    let request = outcome.only();
    assert_eq!(line(request), "GET /a?b=c");
    assert_eq!(request.version, (1, 1));
    assert_eq!(headers(request), [pair("Host", "x"), pair("aCCept", "*/*")]);
    assert_eq!(*request.raw, raw[..]);
    assert_eq!(request.head_end, raw.len());
    assert_eq!(request.ts, Timestamp(1));
    assert_eq!(request.flags, Flags::empty());
    assert_eq!(outcome.interest, Interest::Wanted);
}

#[test]
fn a_head_may_be_cut_between_any_two_bytes() {
    let raw = b"\r\nPOST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
    for at in 1..raw.len() {
        let outcome = run(&[seg(&raw[..at]), seg(&raw[at..])]);
        assert_eq!(*outcome.only().raw, raw[..], "cut at {at}");
        assert_eq!(outcome.only().ts, Timestamp(1), "cut at {at}");
    }
    let bytes: Vec<Event> = raw.iter().map(|b| seg([*b])).collect();
    assert_eq!(*run(&bytes).only().raw, raw[..]);
}

#[test]
fn empty_lines_before_the_request_line_belong_to_its_raw_bytes() {
    let outcome = one("\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    let request = outcome.only();
    assert_eq!((request.line_start, request.raw.len()), (4, 22));
    assert_eq!(request.flags, Flags::empty());
}

#[test]
fn the_target_is_everything_between_the_first_and_the_last_space() {
    let outcome = one("GET /a b\tc HTTP/1.1\r\n\r\n");
    assert_eq!(line(outcome.only()), "GET /a b\tc");
    assert_eq!(outcome.only().flags, Flags::DISPUTED);
    assert_eq!(
        line(one(b"GET /\xff\x00 HTTP/1.1\r\n\r\n").only()),
        "GET /\u{fffd}\0"
    );
}

#[test]
fn any_token_is_a_method_and_any_two_digits_a_version() {
    for (text, version) in [
        ("M-SEARCH * HTTP/1.1", (1, 1)),
        ("b!ug /x HTTP/9.0", (9, 0)),
    ] {
        assert_eq!(one(format!("{text}\r\n\r\n")).only().version, version);
    }
}

/// Any token is a method, so it gives a row; but servers that read a list of methods answer 400 and close. Whoever does not
/// frames it like everybody, so it casts no doubt on what follows: a client of a proxy must not have the requests of all
/// others on the proxy's connection disputed.
#[test]
fn a_method_that_no_list_holds_is_given_as_disputed() {
    let flags = |method: &str| one(format!("{method} /x HTTP/1.1\r\n\r\n")).only().flags;
    for known in [
        "GET",
        "HEAD",
        "QUERY",
        "PROPFIND",
        "VERSION-CONTROL",
        "UPDATEREDIRECTREF",
        "M-SEARCH",
        "PURGE",
        "UNSUBSCRIBE",
    ] {
        assert_eq!(flags(known), Flags::empty(), "{known}");
    }
    for unknown in [
        "MKCOLA",
        "ANNOUNCE",
        "FOO",
        "GETT",
        "GE",
        "get",
        "Post",
        "RPC_IN_DATA",
        "PRI",
        "1",
        "!",
    ] {
        assert_eq!(flags(unknown), Flags::DISPUTED, "{unknown}");
    }
    let behind = one("FOO / HTTP/1.1\r\n\r\nGET /next HTTP/1.1\r\n\r\n");
    assert_eq!(behind.flags(), [Flags::DISPUTED, Flags::empty()]);
    // So with bytes of a target that RFC 3986 does not know, which old clients send.
    for target in ["/\u{e4}", "/\u{7f}"] {
        let outcome = one(format!(
            "GET {target} HTTP/1.1\r\n\r\nGET /next HTTP/1.1\r\n\r\n"
        ));
        assert_eq!(
            outcome.flags(),
            [Flags::DISPUTED, Flags::empty()],
            "{target:?}"
        );
    }
}

#[test]
fn spaces_behind_the_version_do_not_hide_a_request() {
    let outcome = one("GET /x HTTP/1.1  \r\n\r\n");
    assert_eq!(line(outcome.only()), "GET /x");
    assert_eq!(outcome.only().flags, Flags::DISPUTED);
}

#[test]
fn what_a_strict_server_refuses_is_given_as_disputed() {
    for head in [
        "GET / HTTP/1.1\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\n",
        "\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "\rGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "\r\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "\n\rGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHo\0st: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n y\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost\r\n\r\n",
        "GET / HTTP/1.1\r\n: x\r\n\r\n",
        "get / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: x\r\n\r\n",
    ] {
        let outcome = one(head);
        assert_eq!(outcome.only().flags, Flags::DISPUTED, "{head:?}");
        assert_eq!(outcome.only().raw, head.as_bytes());
    }
}

#[test]
fn a_fold_is_kept_with_its_line_break_and_a_line_without_colon_has_no_value() {
    let outcome = one("GET / HTTP/1.1\r\nA: b \r\n\tc \r\nB:\r\n d\r\nnone\r\nE :\t f\r\n\r\n");
    let none = ("none".to_owned(), None);
    assert_eq!(
        headers(outcome.only()),
        [
            pair("A", "b \r\n\tc"),
            pair("B", "\r\n d"),
            none,
            pair("E ", "f")
        ]
    );
}

#[test]
fn rtsp_sip_http_0_9_and_lines_without_target_give_no_row() {
    for text in [
        "OPTIONS rtsp://x RTSP/1.0\r\n\r\n",
        "INVITE sip:a@b SIP/2.0\r\n\r\n",
        "GET /\r\n\r\n",
        "GET\t/\r\n\r\n",
        " GET /\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "\0\0\0\x26",
    ] {
        let outcome = one(text);
        assert_eq!(outcome.lines(), [""; 0], "{text:?}");
        assert_eq!(outcome.interest, opaque(PacketOutcome::NotHttp), "{text:?}");
    }
}

/// They give no row, but a lenient server may answer them and go on reading: what comes behind is not hidden by them.
#[test]
fn a_line_that_means_http_and_is_no_request_line_does_not_hide_the_requests_behind_it() {
    const NEXT: &str = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";
    for text in [
        "GET HTTP/1.1",
        "GET  HTTP/1.1",
        "GET\t/\tHTTP/1.1",
        "GET\u{b}/\u{c}HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1",
        "GET / HTTP/1.1x",
        "GET / HTTP/1.1\t",
        " GET / HTTP/1.1",
        "\tGET / HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET /HTTP/1.1",
    ] {
        let bytes = format!("{text}\r\nHost: x\r\n\r\n");
        let outcome = run(&[seg(&bytes), seg(NEXT)]);
        if text.starts_with("G(T") {
            // No token and no blank: no request line of anybody's.
            assert_eq!(outcome.interest, opaque(PacketOutcome::NotHttp));
            continue;
        }
        assert_eq!(outcome.lines(), ["GET /next"], "{text:?}");
        assert_eq!(
            outcome.flags(),
            [Flags::RESYNCED | Flags::DISPUTED],
            "{text:?}"
        );
        assert_eq!(outcome.counters.lost_framings, 1);
        let single: Vec<Event> = bytes
            .bytes()
            .map(|b| More(vec![b]))
            .chain([seg(NEXT)])
            .collect();
        assert_eq!(run(&single).lines(), ["GET /next"], "{text:?}");
    }
}

/// nginx skips any number of empty lines before a request line.
#[test]
fn no_number_of_empty_lines_hides_the_request_behind_them() {
    let get = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
    for (lines, kept, disputed) in [
        (1, 2, false),
        (2048, 4096, false),
        (2049, 2, true),
        (70_000, 736, true),
    ] {
        let text = format!("{}{get}", "\r\n".repeat(lines));
        for size in [1, 1000, 4095, 4096, 4097, 1_000_000] {
            let events: Vec<Event> = text.as_bytes().chunks(size).map(seg).collect();
            let outcome = run(&events);
            let request = outcome.only();
            assert_eq!(request.line_start, kept, "{lines} in pieces of {size}");
            assert_eq!(
                request.raw,
                &text.as_bytes()[text.len() - get.len() - kept..]
            );
            assert_eq!(request.flags.contains(Flags::DISPUTED), disputed);
            assert_eq!(outcome.counters.skipped_bytes, (2 * lines - kept) as u64);
        }
    }
    // However short a head may be.
    let short = HttpOptions {
        max_head: 60,
        ..HttpOptions::default()
    };
    for size in [1, 70, 1000] {
        let text = format!("{}{get}", "\r\n".repeat(100));
        let events: Vec<Event> = text.as_bytes().chunks(size).map(seg).collect();
        let outcome = run_with(short.clone(), false, &events, End::Fin);
        assert_eq!(outcome.only().line_start, 200, "in pieces of {size}");
    }
    // Neither do bare line feeds, nor a head of the greatest length behind them, nor a CONNECT before.
    let long = format!("GET /a HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(131_072 - 24));
    let outcome = one(format!("{}{long}", "\n".repeat(9000)));
    assert_eq!(outcome.only().line_start, 9000 - 8192);
    assert_eq!(outcome.only().raw.len(), 9000 - 8192 + 131_072);
    let connect = "CONNECT a:1 HTTP/1.1\r\n\r\n";
    let outcome = one(format!(
        "{connect}{}{connect}{}{get}",
        "\r\n".repeat(5000),
        "\r\n".repeat(5000)
    ));
    assert_eq!(outcome.lines(), ["CONNECT a:1", "CONNECT a:1"]);
    assert_eq!(outcome.interest, opaque(PacketOutcome::Tunnel));
}

#[test]
fn the_first_bytes_tell_answers_tls_and_http2_however_they_are_cut() {
    for (bytes, outcome) in [
        (&b"HTTP/1.1 200 OK\r\n"[..], PacketOutcome::Response),
        (b"\x16\x03\x01\x02\x00\x01", PacketOutcome::Tls),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", PacketOutcome::Http2),
        (b"HTTP/1.x 200 OK\r\n", PacketOutcome::NotHttp),
        (b"\x16\x02", PacketOutcome::NotHttp),
    ] {
        assert_eq!(one(bytes).interest, opaque(outcome));
        let cut: Vec<Event> = bytes.iter().map(|b| seg([*b])).collect();
        assert_eq!(run(&cut).interest, opaque(outcome));
        assert_eq!(run(&cut).requests.len(), 0);
    }
    assert_eq!(run(&[seg("HTTP/1")]).interest, Interest::Wanted);
}

#[test]
fn a_head_of_max_head_bytes_is_given_and_a_longer_one_is_counted() {
    let options = HttpOptions {
        max_head: 100,
        ..HttpOptions::default()
    };
    let head =
        |len: usize| format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(len - 23)).into_bytes();
    for cut in [false, true] {
        let run = |bytes: Vec<u8>| {
            let events: Vec<Event> = bytes.chunks(if cut { 1 } else { 1000 }).map(seg).collect();
            run_with(options.clone(), false, &events, End::Fin)
        };
        assert_eq!(run(head(100)).only().raw.len(), 100);
        let longer = run(head(101));
        assert_eq!(longer.requests.len(), 0);
        assert_eq!(longer.counters.oversize_heads, 1);
        // The connection is not given up: what comes after at a segment's start is found.
        let next = run_with(
            options.clone(),
            false,
            &[seg(head(101)), seg("GET /next HTTP/1.1\r\n\r\n")],
            End::Fin,
        );
        assert_eq!(next.lines(), ["GET /next"]);
        assert_eq!(next.flags(), [Flags::RESYNCED]);
        // A request line alone beyond the bound is not known to be one.
        let line = run([b"GET /".to_vec(), vec![b'a'; 200]].concat());
        assert_eq!(line.interest, opaque(PacketOutcome::NotHttp));
    }
}

#[test]
fn what_is_held_of_an_unfinished_head_stays_near_max_head() {
    let mut extractor = Extractor::new(HttpOptions {
        max_head: 1000,
        ..HttpOptions::default()
    });
    let mut worst = 0;
    extractor.chunk(
        DirectionId::new(1, 1),
        &ends(),
        Chunk::Open { midstream: false },
        &mut |_| (),
    );
    let spaces = std::iter::repeat_n(&b' ', 5000);
    for byte in b"GET / HTTP/1.1\r\nA: ".iter().chain(spaces) {
        let chunk = Chunk::Data {
            bytes: &[*byte],
            ts: Timestamp(1),
            segment_start: true,
            conflict: false,
        };
        extractor.chunk(DirectionId::new(1, 1), &ends(), chunk, &mut |_| {
            panic!("no request")
        });
        worst = worst.max(extractor.held_bytes());
    }
    assert!((1000..=2048).contains(&worst), "{worst}");
    assert_eq!(extractor.held_bytes(), 0);
}

#[test]
fn connection_close_and_http_1_0_without_keep_alive_want_hop() {
    for (head, hop) in [
        ("GET / HTTP/1.1\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nConnection: te, CLOSE\r\n\r\n", true),
        (
            "GET / HTTP/1.1\r\nConnection: x\r\nconnection: close\r\n\r\n",
            true,
        ),
        ("GET / HTTP/1.0\r\n\r\n", true),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nX-Connection: close\r\n\r\n", false),
    ] {
        let outcome = one(head);
        assert_eq!(super::super::wants_hop(outcome.only()), hop, "{head:?}");
        assert_eq!(outcome.only().flags.contains(Flags::HOP), hop, "{head:?}");
        let keep = HttpOptions {
            hop_persist: false,
            ..HttpOptions::default()
        };
        let kept = run_with(keep, false, &[seg(head)], End::Fin);
        assert!(!kept.only().flags.contains(Flags::HOP));
    }
}

#[test]
fn a_field_that_would_pass_for_ours_is_spoofed() {
    for (name, spoofed) in [
        ("X-Real-IP", true),
        ("x_real_ip", true),
        ("X-SERVER_Addr", true),
        ("x-server-port", true),
        ("X-Mirror-Flags", true),
        ("X-Real-IP2", false),
        ("X.Real.IP", false),
        ("X-Forwarded-For", false),
    ] {
        let raw = format!("GET / HTTP/1.1\r\n{name}: 1\r\n\r\n");
        let outcome = one(&raw);
        assert_eq!(
            outcome.only().flags.contains(Flags::SPOOFED),
            spoofed,
            "{name}"
        );
        assert_eq!(outcome.only().raw, raw.as_bytes());
    }
    assert!(
        one("GET / HTTP/1.1\r\nX-Real-IP : 1\r\n\r\n")
            .only()
            .flags
            .contains(Flags::SPOOFED)
    );
}

#[test]
fn copies_that_disagreed_mark_the_requests_that_contain_them() {
    let outcome = run(&[
        seg("GET /1 HTTP/1.1\r\n\r\nPOST /2 HTTP/1.1\r\nContent-Length: 4\r\n\r\nab"),
        Conflict(b"cdGET /3 HTTP/1.1\r\n".to_vec()),
        seg("\r\nGET /4 HTTP/1.1\r\n\r\n"),
    ]);
    let [a, b] = [Flags::empty(), Flags::AMBIGUOUS];
    assert_eq!(outcome.flags(), [a, b, b, a]);
    assert_eq!(outcome.requests[2].ts, Timestamp(2));
}

/// Found by the fuzzer: what waited for the rest of a PROXY line turned out to be a whole head and more.
#[test]
fn bytes_that_waited_for_a_proxy_header_are_read_again_as_what_they_are() {
    let outcome = run(&[
        seg("PROXY / HTTP/1.1\n\nGET /hid"),
        More(b"den HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
    ]);
    assert_eq!(outcome.lines(), ["PROXY /", "GET /hidden"]);
    assert_eq!(outcome.counters.skipped_bytes, 0);
    // The same as in one piece, and in pieces of one byte.
    let text = b"PROXY / HTTP/1.1\n\nGET /hidden HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(one(text).lines(), outcome.lines());
    let bytes: Vec<Event> = text.iter().map(|b| seg([*b])).collect();
    assert_eq!(run(&bytes).lines(), outcome.lines());
}

/// Found by the fuzzer: whether the line was nearly a request line was looked at only where it came in one piece.
#[test]
fn a_line_longer_than_any_head_is_the_same_garbage_however_it_is_cut() {
    let options = || HttpOptions {
        max_head: 60,
        ..HttpOptions::default()
    };
    for len in [56, 57, 58, 90] {
        let text = format!("{} HTTP/x\n", "a".repeat(len - 7));
        let whole = run_with(options(), false, &[seg(&text)], End::Fin);
        for at in 1..text.len() {
            let (first, rest) = text.split_at(at);
            let pieces = [seg(first), More(rest.as_bytes().to_vec())];
            let cut = run_with(options(), false, &pieces, End::Fin);
            assert_eq!(cut.interest, whole.interest, "{len} {at}");
            assert_eq!(cut.counters, whole.counters, "{len} {at}");
        }
    }
}
