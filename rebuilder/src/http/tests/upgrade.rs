//! What follows an `Upgrade` or a CONNECT, by the client's bytes alone (rule 5 of the design).

use super::*;

const NEXT: &str = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";
const WEBSOCKET: &str = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const H2C: &str = "GET /h2c HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
     HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n";
/// RFC 6455 §5.7: a masked text message "Hello".
const FRAME: &[u8] = &[
    0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
];

/// Targets and what the direction is at its end, however the bytes behind `from` are cut in two.
#[track_caller]
fn however_cut(from: usize, bytes: &[u8], targets: &[&str], interest: Interest) {
    for at in from..bytes.len() {
        let events = [seg(&bytes[..at]), seg(&bytes[at..])];
        let outcome = run(&events[usize::from(at == 0)..]);
        assert_eq!(outcome.lines(), targets, "cut at {at}");
        assert_eq!(outcome.interest, interest, "cut at {at}");
        for request in &outcome.requests {
            assert_eq!(request.flags, Flags::empty(), "cut at {at}");
        }
    }
}

#[test]
fn behind_a_websocket_that_took_nothing_is_a_request_whatever_it_looks_like_later() {
    let tunnel = opaque(PacketOutcome::Tunnel);
    let bytes = [WEBSOCKET.as_bytes(), FRAME, NEXT.as_bytes()].concat();
    however_cut(WEBSOCKET.len(), &bytes, &["GET /ws"], tunnel);
    let outcome = run(&[
        seg(WEBSOCKET),
        seg(FRAME),
        seg(NEXT),
        Gap(5),
        seg(NEXT),
        seg(format!("{NEXT}{NEXT}")),
    ]);
    assert_eq!(outcome.lines(), ["GET /ws"]);
    assert_eq!(outcome.interest, tunnel);
    assert_eq!(outcome.counters.lost_framings, 0);
}

#[test]
fn an_upgrade_to_clear_text_http2_that_took_ends_in_http2() {
    let bytes = [
        H2C.as_bytes(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        NEXT.as_bytes(),
    ]
    .concat();
    however_cut(
        H2C.len(),
        &bytes,
        &["GET /h2c"],
        opaque(PacketOutcome::Http2),
    );
}

#[test]
fn a_request_line_at_the_boundary_means_that_the_upgrade_did_not_take() {
    // Java's HTTP client asks for h2c with its first request and goes on like this when it gets 200.
    let body =
        "POST /h2c HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\n\x01abc\x02";
    let chunks = "POST /h2c HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\x01\x02\x03\r\n0\r\n\r\n";
    for (upgrade, line) in [
        (H2C, "GET /h2c"),
        (WEBSOCKET, "GET /ws"),
        (body, "POST /h2c"),
        (chunks, "POST /h2c"),
    ] {
        let bytes = format!("{upgrade}{NEXT}\r\n{NEXT}{upgrade}{NEXT}");
        let lines = [line, "GET /next", "GET /next", line, "GET /next"];
        however_cut(0, bytes.as_bytes(), &lines, Interest::Wanted);
    }
}

#[test]
fn what_is_no_request_line_at_the_boundary_makes_the_rest_opaque() {
    for behind in [
        "\0",
        "\x16\x03\x01\x02",
        "HTTP/1.1 200 OK\r\n",
        "hello\n",
        "ls -la\n",
        "GET /\r\n",
        "GET / http/1.1\r\n",
        "GET\t/\tHTTP/1.1\r\n",
        " GET / HTTP/1.1\r\n",
    ] {
        let outcome = run(&[seg(WEBSOCKET), seg(behind), seg(NEXT)]);
        assert_eq!(outcome.lines(), ["GET /ws"], "{behind:?}");
        assert_eq!(
            outcome.interest,
            opaque(PacketOutcome::Tunnel),
            "{behind:?}"
        );
    }
    // Once it did not take, the connection is one like others.
    let outcome = run(&[seg(WEBSOCKET), seg(NEXT), seg("\0\0"), seg(NEXT)]);
    assert_eq!(outcome.lines(), ["GET /ws", "GET /next", "GET /next"]);
    assert_eq!(outcome.flags()[2], Flags::RESYNCED | Flags::DISPUTED);
}

/// Whether it took stood in the missing bytes. That it did not is the rule with h2c, so the next request line is looked for.
#[test]
fn a_hole_at_the_boundary_behind_an_upgrade_leaves_it_open_and_is_searched() {
    let outcome = run(&[seg(H2C), Gap(30), seg("x"), seg(NEXT), seg(NEXT)]);
    assert_eq!(outcome.lines(), ["GET /h2c", "GET /next", "GET /next"]);
    assert_eq!(
        outcome.flags(),
        [Flags::empty(), Flags::RESYNCED, Flags::empty()]
    );
    // A hole in its body does not: the boundary is where the length says.
    let post = "POST /u HTTP/1.1\r\nUpgrade: h2c\r\nContent-Length: 9\r\n\r\nab";
    let outcome = run(&[seg(post), Gap(7), seg(FRAME), seg(NEXT)]);
    assert_eq!(outcome.flags(), [Flags::TRUNCATED]);
    assert_eq!(outcome.interest, opaque(PacketOutcome::Tunnel));
}

#[test]
fn behind_a_connect_only_another_connect_is_a_request() {
    let connect = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n";
    let tunnel = opaque(PacketOutcome::Tunnel);
    // Asked for credentials, a client asks again on the same connection.
    let twice = format!("{connect}\r\n{connect}");
    however_cut(0, twice.as_bytes(), &["CONNECT a:443"; 2], Interest::Wanted);
    for behind in [
        NEXT,
        "connect a:443 HTTP/1.1\r\n\r\n",
        "CONNECTS a:443 HTTP/1.1\r\n\r\n",
        "CONNECT a:443 RTSP/1.0\r\n\r\n",
        "CONNECT a:443 http/1.1\r\n\r\n",
        "CONNECT\ta:443 HTTP/1.1\r\n\r\n",
        "\x16\x03\x01\0\x05",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 200 OK\r\n",
        "\0",
        "\r\n\r\n\0",
    ] {
        let bytes = format!("{connect}{behind}");
        however_cut(connect.len(), bytes.as_bytes(), &["CONNECT a:443"], tunnel);
        let outcome = run(&[seg(connect), seg(behind), seg(connect), seg(NEXT)]);
        assert_eq!(outcome.lines(), ["CONNECT a:443"], "{behind:?}");
    }
    // A hole, a head that never ends, or one that is too long: nothing behind it is looked for.
    for events in [
        vec![seg(connect), Gap(1), seg(connect)],
        vec![seg(connect), seg("CONNECT a:4"), Gap(1), seg(connect)],
        vec![
            seg(connect),
            seg(format!(
                "CONNECT a:1 HTTP/1.1\r\nA: {}",
                "a".repeat(140_000)
            )),
            seg(NEXT),
        ],
    ] {
        let outcome = run(&events);
        assert_eq!(
            (outcome.lines(), outcome.interest),
            (vec!["CONNECT a:443".to_owned()], tunnel)
        );
    }
    // An Upgrade field changes nothing, and neither does the case of the method make one.
    let both = "CONNECT a:443 HTTP/1.1\r\nUpgrade: x\r\n\r\n";
    assert_eq!(run(&[seg(both), seg(NEXT)]).interest, tunnel);
    let lower = run(&[seg("connect a:443 HTTP/1.1\r\n\r\n"), seg(NEXT)]);
    assert_eq!(lower.lines(), ["connect a:443", "GET /next"]);
}

#[test]
fn a_field_named_like_upgrade_is_none_and_upgrade_counts_without_connection() {
    let like = "GET /1 HTTP/1.1\r\nUpgrade-Insecure-Requests: 1\r\nX-Upgrade: x\r\n\r\n";
    let outcome = run(&[seg(like), seg("\0"), seg(NEXT)]);
    assert_eq!(outcome.lines(), ["GET /1", "GET /next"]);
    let bare = "GET /1 HTTP/1.1\r\nupgrade: x\r\n\r\n";
    assert_eq!(
        run(&[seg(bare), seg("\0")]).interest,
        opaque(PacketOutcome::Tunnel)
    );
}
