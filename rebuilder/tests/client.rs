//! Who the client is, through the program: what an analyser reads in `X-Real-IP`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod program;
mod wire;

use std::collections::BTreeMap;

use program::{PATIENCE, Rebuilder, analyser};
use wire::Sender;

/// A version 2 header of the PROXY protocol for 203.0.113.9 (PROXY, TCP over IPv4, 12 bytes).
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\x0a\0\0\x02\x12\x34\0\x50";
/// LOCAL: a check of the balancer itself.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// The TCP peer, what stands before its request, fields of it; the client, and the flags.
type Case = (
    &'static str,
    &'static [u8],
    &'static str,
    &'static str,
    Option<&'static str>,
);

#[test]
fn the_client_is_named_by_its_proxy_header_by_a_trusted_peer_or_by_its_own_address() {
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start(
        address,
        &[
            "--trust",
            "10.1.0.0/24,2001:db8:1::/48",
            "--proxy-from",
            "10.1.0.0/16,203.0.113.50",
        ],
    );
    let xff = "X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 203.0.113.8, 10.1.0.200\r\n";
    let forged = "X-Real-IP: 6.6.6.6\r\nx_real_ip: 6.6.6.6\r\nX-Mirror-Flags: client-proxy\r\n";
    let cases: [Case; 10] = [
        ("203.0.113.7", b"", "", "203.0.113.7", None),
        ("203.0.113.7", b"", xff, "203.0.113.7", None),
        ("203.0.113.7", b"", forged, "203.0.113.7", Some("spoofed")),
        ("10.1.0.9", b"", xff, "203.0.113.8", Some("client-xff")),
        ("10.1.0.9", b"", "", "10.1.0.9", None),
        (
            "10.1.9.9",
            b"PROXY TCP4 203.0.113.9 10.0.0.2 4660 80\r\n",
            xff,
            "203.0.113.9",
            Some("client-proxy"),
        ),
        (
            "10.1.9.9",
            b"PROXY TCP6 2001:db8::9 2001:db8::2 4660 80\r\n",
            "",
            "2001:db8::9",
            Some("client-proxy"),
        ),
        (
            "10.1.9.9",
            V2,
            forged,
            "203.0.113.9",
            Some("spoofed, client-proxy"),
        ),
        ("10.1.9.9", LOCAL, "", "10.1.9.9", None),
        // Not one of the balancers.
        ("203.0.113.7", V2, "", "203.0.113.7", None),
    ];
    let mut expected = BTreeMap::new();
    for (n, (peer, header, fields, client, flags)) in cases.into_iter().enumerate() {
        // The header shares a segment with the request, or has one of its own.
        for together in [true, false] {
            let target = format!("/{n}/{together}");
            let port = 40_000 + 2 * n + usize::from(together);
            let mut sender = Sender::new(&format!("{peer}:{port}"), "10.0.0.2:8080");
            let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let bytes = [header, request.as_bytes()].concat();
            let at = if together { 0 } else { header.len() };
            let mut frames = vec![sender.syn()];
            for part in [&bytes[..at], &bytes[at..]] {
                if !part.is_empty() {
                    frames.push(sender.data(part));
                }
            }
            frames.push(sender.fin());
            rebuilder.send(&frames);
            let said = (client.to_owned(), flags.map(str::to_owned));
            expected.insert(target, said);
        }
    }
    let mut got = BTreeMap::new();
    for _ in 0..expected.len() {
        let request = received.recv_timeout(PATIENCE).unwrap();
        assert!(!request.head.contains("PROXY"), "{}", request.head);
        assert_eq!(request.field("X-Server-Addr"), Some("10.0.0.2"));
        assert_eq!(request.field("X-Server-Port"), Some("8080"));
        let client = request.field("X-Real-IP").unwrap().to_owned();
        let last = request
            .head
            .lines()
            .rfind(|l| l.starts_with("X-Forwarded-For: "));
        assert_eq!(last, Some(format!("X-Forwarded-For: {client}").as_str()));
        let flags = request.field("X-Mirror-Flags").map(str::to_owned);
        got.insert(request.target().to_owned(), (client, flags));
    }
    assert_eq!(got, expected);
}
