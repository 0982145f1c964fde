//! Who the client is: PROXY headers, trusted peers, and nobody else.

use super::super::{Cidr, OriginSource};
use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn trusting(networks: &[&str]) -> HttpOptions {
    HttpOptions {
        trust: networks.iter().map(|n| n.parse().unwrap()).collect(),
        ..HttpOptions::default()
    }
}

/// The client of a GET with these fields, sent by 192.0.2.7.
fn client(networks: &[&str], fields: &str) -> (String, OriginSource) {
    let raw = format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n");
    let outcome = run_with(trusting(networks), false, &[seg(raw)], End::Fin);
    (
        outcome.only().origin.to_string(),
        outcome.only().origin_from,
    )
}

fn expect(networks: &[&str], fields: &str, origin: &str, from: OriginSource) {
    assert_eq!(
        client(networks, fields),
        (origin.to_owned(), from),
        "{fields:?}"
    );
}

#[test]
fn an_untrusted_peer_cannot_name_another_client() {
    expect(
        &[],
        "X-Forwarded-For: 203.0.113.9",
        "192.0.2.7",
        OriginSource::Peer,
    );
    expect(
        &["192.0.2.8/31"],
        "X-Forwarded-For: 203.0.113.9",
        "192.0.2.7",
        OriginSource::Peer,
    );
}

#[test]
fn of_a_trusted_peers_list_the_rightmost_untrusted_address_is_the_client() {
    let trust = ["192.0.2.0/24", "10.0.0.0/8", "2001:db8:1::/48"];
    for (fields, origin) in [
        ("X-Forwarded-For: 203.0.113.9", "203.0.113.9"),
        (
            "X-Forwarded-For: 1.1.1.1, 203.0.113.9, 10.1.2.3",
            "203.0.113.9",
        ),
        (
            "x-forwarded-for: 1.1.1.1\r\nX-FORWARDED-FOR: 203.0.113.9\r\nX-Forwarded-For: 10.0.0.1",
            "203.0.113.9",
        ),
        ("X-Forwarded-For: 203.0.113.9:4711", "203.0.113.9"),
        (
            "X-Forwarded-For: [2001:db8:2::1]:80, 2001:db8:1::5",
            "2001:db8:2::1",
        ),
        ("X-Forwarded-For: [2001:db8:2::1]", "2001:db8:2::1"),
        (
            "X-Forwarded-For: ::ffff:203.0.113.9, ::ffff:10.0.0.1",
            "203.0.113.9",
        ),
        ("X-Forwarded-For: 203.0.113.9, ,", "203.0.113.9"),
        // All of them trusted: the farthest is as near as it gets.
        ("X-Forwarded-For: 10.0.0.9, 10.0.0.1", "10.0.0.9"),
        // Garbage ends the search at the hop before it.
        (
            "X-Forwarded-For: 203.0.113.9, unknown, 10.0.0.1",
            "10.0.0.1",
        ),
    ] {
        expect(&trust, fields, origin, OriginSource::Xff);
    }
    for fields in [
        "X-Forwarded-For: 203.0.113.9, <script>",
        "X-Forwarded-For:",
        "Host: x",
    ] {
        expect(&trust, fields, "192.0.2.7", OriginSource::Peer);
    }
}

#[test]
fn a_network_contains_what_its_prefix_says() {
    let contains = |net: &str, ip: &str| {
        let net: Cidr = net.parse().unwrap();
        net.contains(ip.parse().unwrap())
    };
    assert!(contains("10.0.0.0/8", "10.255.255.255") && !contains("10.0.0.0/8", "11.0.0.0"));
    assert!(contains("10.1.2.3", "10.1.2.3") && !contains("10.1.2.3", "10.1.2.2"));
    assert!(contains("0.0.0.0/0", "255.1.2.3") && !contains("0.0.0.0/0", "::1"));
    assert!(contains("::/0", "2001:db8::1") && contains("10.0.0.0/8", "::ffff:10.0.0.1"));
    assert!(
        contains("2001:db8::/33", "2001:db8:7fff::1")
            && !contains("2001:db8::/33", "2001:db8:8000::")
    );
    // Bits of the address behind the prefix do not matter.
    assert!(contains("10.9.9.9/8", "10.1.1.1"));
    for bad in [
        "",
        "10.0.0.0/33",
        "::/129",
        "10.0.0/8",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "a/8",
        "10.0.0.0/",
    ] {
        let error = bad.parse::<Cidr>().unwrap_err().to_string();
        assert!(error.contains("ADDRESS/PREFIX"), "{error}");
    }
}

/// A version 2 header, written out from the specification's figures (§2.2).
fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a".to_vec();
    header.extend([command, family]);
    header.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    header.extend(payload);
    header
}

const V4: [u8; 12] = [203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x34, 0, 80];

#[test]
fn a_proxy_header_names_the_client_of_all_requests_and_is_no_part_of_them() {
    let mut v6 = [0u8; 36];
    v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    v6[15] = 9;
    let tlv = [&V4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
    for (header, origin) in [
        (
            b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\r\n".to_vec(),
            Some("203.0.113.9"),
        ),
        (
            b"PROXY TCP6 2001:db8::9 2001:db8::1 4660 80\r\n".to_vec(),
            Some("2001:db8::9"),
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
        (v2(0x21, 0x11, &V4), Some("203.0.113.9")),
        (v2(0x21, 0x11, &tlv), Some("203.0.113.9")),
        (v2(0x21, 0x21, &v6), Some("2001:db8::9")),
        (v2(0x20, 0x00, &[]), None),
        (v2(0x20, 0x11, &V4), None),
        (v2(0x21, 0x31, &[7; 216]), None),
        (v2(0x21, 0x00, &[]), None),
    ] {
        let bytes = [&header, GET.as_bytes(), GET.as_bytes()].concat();
        let len = bytes.len();
        for size in [1, 2, 11, header.len(), header.len() + 1, len] {
            let events: Vec<Event> = bytes.chunks(size).map(seg).collect();
            let outcome = run_with(trusting(&["0.0.0.0/0"]), false, &events, End::Fin);
            assert_eq!(outcome.counters.proxy_headers, 1);
            assert_eq!(outcome.requests.len(), 2, "{header:?} in pieces of {size}");
            for request in &outcome.requests {
                assert_eq!(request.raw, GET.as_bytes());
                assert_eq!(request.origin.to_string(), origin.unwrap_or("192.0.2.7"));
                let from = if origin.is_some() {
                    OriginSource::Proxy
                } else {
                    OriginSource::Peer
                };
                assert_eq!(request.origin_from, from);
                assert_eq!(request.flags, Flags::empty());
            }
        }
    }
}

#[test]
fn the_request_behind_a_proxy_header_has_the_time_of_its_own_first_byte() {
    let outcome = run(&[Conflict(v2(0x21, 0x11, &V4)), seg(GET)]);
    assert_eq!(outcome.only().ts, Timestamp(2));
    assert_eq!(outcome.only().flags, Flags::empty());
}

#[test]
fn what_is_not_exactly_a_proxy_header_is_none() {
    for bytes in [
        "PROXY TCP4 203.0.113.9 10.0.0.1 4660\r\n",
        "PROXY TCP4 2001:db8::9 2001:db8::1 4660 80\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 70000 80\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 4660 80 x\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 +466 80\r\n",
    ] {
        let outcome = one(format!("{bytes}{GET}"));
        assert_eq!(outcome.counters.proxy_headers, 0, "{bytes:?}");
        assert_eq!(
            outcome.interest,
            opaque(PacketOutcome::NotHttp),
            "{bytes:?}"
        );
    }
    // PROXY is a method like another.
    assert_eq!(one("PROXY /x HTTP/1.1\r\n\r\n").lines(), ["PROXY /x"]);
    // A line may be 107 bytes long (§2.1), and empty lines are no signature.
    let long = format!("PROXY UNKNOWN {}", "x".repeat(91));
    assert_eq!(one(format!("{long}\r\n{GET}")).lines(), ["GET /"]);
    assert_eq!(one(format!("{long}x\r\n{GET}")).lines(), [""; 0]);
    assert_eq!(one(format!("\r\n\r\n{GET}")).lines(), ["GET /"]);
    // Only at the beginning of a connection.
    let later = run(&[seg(GET), seg("PROXY UNKNOWN\r\n"), seg(GET)]);
    assert_eq!(later.counters.proxy_headers, 0);
    assert_eq!(later.requests.len(), 2);
    let midstream = run_with(
        HttpOptions::default(),
        true,
        &[seg(v2(0x21, 0x11, &V4)), seg(GET)],
        End::Fin,
    );
    assert_eq!(midstream.only().origin_from, OriginSource::Peer);
}
