//! Who the client is: whom a trusted peer names, and nobody else.

use super::super::{Cidr, OriginSource};
use super::*;

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
    // A hop without port and brackets, or with them; anything else is garbage and ends the search, too.
    for garbage in [
        "unknown",
        "_hidden",
        "203.0.113.9.",
        "203.0.113",
        "0xcb.0.113.9",
        "3405803785",
        "203.0.113.9 203.0.113.8",
        "203.0.113.9:",
        "203.0.113.9:70000",
        "\"203.0.113.9\"",
        "for=203.0.113.9",
        "[203.0.113.9]",
        "2001:db8:2::1]",
        "fe80::1%eth0",
        "a.example",
    ] {
        let fields =
            format!("X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: {garbage}, 10.0.0.1");
        expect(&trust, &fields, "10.0.0.1", OriginSource::Xff);
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
