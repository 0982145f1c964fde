//! PROXY protocol headers: what the specification says, and what two readers written by others make of the same bytes.

use std::net::IpAddr;

use proptest::prelude::*;
use proxy_header::{ParseConfig, ProxyHeader};

use super::super::OriginSource;
use super::super::proxy::{Preamble, read};
use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// A version 2 header, written out from the specification's figures (§2.2).
fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a".to_vec();
    header.extend([command, family]);
    header.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    header.extend(payload);
    header
}

const V4: [u8; 12] = [203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x34, 0, 80];

fn v6(source: &str) -> Vec<u8> {
    let source: std::net::Ipv6Addr = source.parse().unwrap();
    [&source.octets()[..], &[0; 15], &[1, 0x12, 0x34, 0, 80]].concat()
}

/// A header, and the client that it names.
fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
    let tlvs = [
        &V4[..],
        &[0x04, 0, 3, 1, 2, 3],
        &[0xea, 0, 23, 1],
        b"vpce-0123456789abcdef0",
        &[0x01, 0, 2],
        b"h2",
    ]
    .concat();
    vec![
        (b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\r\n".to_vec(), Some("203.0.113.9")),
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".to_vec(), Some("255.255.255.255")),
        (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n".to_vec(), Some("0.0.0.0")),
        (b"PROXY TCP6 2001:db8::9 2001:db8::1 4660 80\r\n".to_vec(), Some("2001:db8::9")),
        (
            // The longest line that addresses make (§2.1): 104 bytes.
            b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n".to_vec(),
            Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ),
        (b"PROXY TCP6 ::ffff:203.0.113.9 ::1 4660 80\r\n".to_vec(), Some("203.0.113.9")),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
        (format!("PROXY UNKNOWN {}\r\n", "f".repeat(91)).into_bytes(), None),
        (v2(0x21, 0x11, &V4), Some("203.0.113.9")),
        (v2(0x21, 0x12, &V4), Some("203.0.113.9")),
        (v2(0x21, 0x11, &tlvs), Some("203.0.113.9")),
        (v2(0x21, 0x21, &v6("2001:db8::9")), Some("2001:db8::9")),
        (v2(0x21, 0x21, &v6("::ffff:203.0.113.9")), Some("203.0.113.9")),
        // A health check of the balancer itself.
        (v2(0x20, 0x00, &[]), None),
        (v2(0x20, 0x11, &V4), None),
        (v2(0x20, 0x21, &v6("2001:db8::9")), None),
        // UNIX, UNSPEC, families and protocols of the future: the peer is all that is known.
        (v2(0x21, 0x31, &[7; 216]), None),
        (v2(0x21, 0x32, &[7; 230]), None),
        (v2(0x21, 0x00, &[]), None),
        (v2(0x21, 0x00, &[1, 0, 1, 9]), None),
        (v2(0x21, 0x41, &V4), None),
        (v2(0x21, 0x10, &V4), None),
        (v2(0x21, 0x13, &V4), None),
        (v2(0x21, 0xff, &V4), None),
        // Addresses that are cut short.
        (v2(0x21, 0x11, &V4[..11]), None),
        (v2(0x21, 0x21, &V4), None),
        (v2(0x21, 0x11, &[]), None),
        // The longest that there is: 16 + 65,535 bytes.
        (v2(0x21, 0x11, &[&V4[..], &[4, 0xff, 0xf0], &vec![0; 65_520]].concat()), Some("203.0.113.9")),
    ]
}

fn trusting_all() -> HttpOptions {
    HttpOptions {
        trust: vec!["0.0.0.0/0".parse().unwrap()],
        ..HttpOptions::default()
    }
}

/// That the two requests behind the header are clear, and from whom.
#[track_caller]
fn names(events: &[Event], origin: Option<&str>) {
    let outcome = run_with(trusting_all(), false, events, End::Fin);
    assert_eq!(outcome.counters.proxy_headers, 1);
    assert_eq!(outcome.requests.len(), 2);
    for request in &outcome.requests {
        assert_eq!(request.raw, GET.as_bytes());
        assert_eq!(request.origin.to_string(), origin.unwrap_or("192.0.2.7"));
        let from = origin.map_or(OriginSource::Peer, |_| OriginSource::Proxy);
        assert_eq!(request.origin_from, from);
        assert_eq!(request.flags, Flags::empty());
    }
    assert_eq!(outcome.counters.skipped_bytes, 0);
}

#[test]
fn a_proxy_header_names_the_client_of_all_requests_however_its_bytes_are_cut() {
    for (header, origin) in headers() {
        let bytes = [&header, GET.as_bytes(), GET.as_bytes()].concat();
        // All in one segment, and the header in one of its own.
        names(&[seg(&bytes)], origin);
        names(&[seg(&header), seg(&bytes[header.len()..])], origin);
        if header.len() < 1000 {
            for at in 1..bytes.len() {
                names(&[seg(&bytes[..at]), seg(&bytes[at..])], origin);
            }
            let single: Vec<Event> = bytes.iter().map(|b| seg([*b])).collect();
            names(&single, origin);
        } else {
            let events: Vec<Event> = bytes.chunks(1460).map(seg).collect();
            names(&events, origin);
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
        "PROXY TCP4 203.0.113.9 10.0.0.1\r\n",
        "PROXY TCP4\r\n",
        "PROXY \r\n",
        "PROXY TCP4 2001:db8::9 2001:db8::1 4660 80\r\n",
        "PROXY TCP6 203.0.113.9 10.0.0.1 4660 80\r\n",
        "PROXY TCP5 203.0.113.9 10.0.0.1 4660 80\r\n",
        "PROXY tcp4 203.0.113.9 10.0.0.1 4660 80\r\n",
        "PROXY  TCP4 203.0.113.9 10.0.0.1 4660 80\r\n",
        "PROXY TCP4  203.0.113.9 10.0.0.1 4660 80\r\n",
        "PROXY\tTCP4\t203.0.113.9\t10.0.0.1\t4660\t80\r\n",
        "PROXY TCP4 203.0.113 10.0.0.1 4660 80\r\n",
        "PROXY TCP4 203.0.113.256 10.0.0.1 4660 80\r\n",
        "PROXY TCP4 203.0.113.09 10.0.0.1 4660 80\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 70000 80\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 -1 80\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 +466 80\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 4660 80 x\r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 4660 80 \r\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\n",
        "PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\r\r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY UNKNOWN a\rb\r\n",
        "PROXY UNKNOWN\n",
        "PROXY TCP4 203.0.113.9\n 10.0.0.1 4660 80\r\n",
        "proxy TCP4 203.0.113.9 10.0.0.1 4660 80\r\n",
        "\r\nPROXY TCP4 203.0.113.9 10.0.0.1 4660 80\r\n",
    ] {
        let outcome = one(format!("{bytes}{GET}"));
        assert_eq!(outcome.counters.proxy_headers, 0, "{bytes:?}");
        assert_eq!(outcome.lines(), [""; 0], "{bytes:?}");
        assert_eq!(
            outcome.interest,
            opaque(PacketOutcome::NotHttp),
            "{bytes:?}"
        );
    }
    // Another version or command of the binary header: nobody knows where it ends.
    for command in [0x01, 0x11, 0x31, 0xf1, 0x22, 0x2f] {
        let outcome = one([&v2(command, 0x11, &V4), GET.as_bytes()].concat());
        assert_eq!(outcome.counters.proxy_headers, 0, "{command:x}");
        assert_eq!(
            outcome.interest,
            opaque(PacketOutcome::NotHttp),
            "{command:x}"
        );
    }
    // PROXY is a method like another, and empty lines are no signature.
    assert_eq!(one("PROXY /x HTTP/1.1\r\n\r\n").lines(), ["PROXY /x"]);
    assert_eq!(one("PROXY UNKNOWN HTTP/1.1\r\n\r\n").lines(), [""; 0]);
    assert_eq!(one(format!("\r\n\r\n{GET}")).lines(), ["GET /"]);
    // A line may be 107 bytes long (§2.1).
    let long = format!("PROXY UNKNOWN {}", "x".repeat(91));
    assert_eq!(one(format!("{long}\r\n{GET}")).lines(), ["GET /"]);
    assert_eq!(one(format!("{long}x\r\n{GET}")).lines(), [""; 0]);
}

#[test]
fn only_the_first_bytes_of_a_connection_are_a_proxy_header() {
    for header in [
        b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\r\n".to_vec(),
        v2(0x21, 0x11, &V4),
    ] {
        let later = run(&[seg(GET), seg(&header), seg(GET)]);
        assert_eq!(later.counters.proxy_headers, 0);
        assert_eq!(later.requests.len(), 2);
        assert!(
            later
                .requests
                .iter()
                .all(|r| r.origin_from == OriginSource::Peer)
        );
        // A second one is none, either: a proxy that stands before another one sends its own first.
        let twice = run(&[seg(&header), seg(&header), seg(GET)]);
        assert_eq!((twice.counters.proxy_headers, twice.requests.len()), (1, 0));
        assert_eq!(twice.interest, opaque(PacketOutcome::NotHttp));
        // The beginning was not seen, or is missing.
        for (midstream, events) in [
            (true, vec![seg(&header), seg(GET)]),
            (false, vec![Gap(9), seg(&header), seg(GET)]),
        ] {
            let outcome = run_with(HttpOptions::default(), midstream, &events, End::Fin);
            assert_eq!(outcome.only().origin_from, OriginSource::Peer);
        }
    }
}

#[test]
fn where_balancers_are_named_nobody_elses_header_names_a_client() {
    let header = "PROXY TCP4 203.0.113.9 10.0.0.1 4660 80\r\n";
    for (from, origin) in [
        (vec![], "203.0.113.9"),
        (vec!["192.0.2.0/24"], "203.0.113.9"),
        (vec!["198.51.100.0/24", "192.0.2.7"], "203.0.113.9"),
        (vec!["198.51.100.0/24"], "192.0.2.7"),
        // It is the peer that counts, not whom it names.
        (vec!["203.0.113.0/24"], "192.0.2.7"),
    ] {
        let options = HttpOptions {
            proxy_from: from.iter().map(|n| n.parse().unwrap()).collect(),
            ..HttpOptions::default()
        };
        let outcome = run_with(options, false, &[seg(format!("{header}{GET}"))], End::Fin);
        let request = outcome.only();
        assert_eq!(
            (request.raw.as_ref(), request.origin.to_string().as_str()),
            (GET.as_bytes(), origin)
        );
    }
}

/// The header of the test, its checksum computed with another implementation (Python, a table of 256).
#[test]
fn a_header_whose_checksum_is_wrong_names_nobody() {
    let with = |checksum: [u8; 4]| {
        let payload = [&V4[..], &[0x03, 0, 4], &checksum, &[0x04, 0, 1, 9]].concat();
        let header = v2(0x21, 0x11, &payload);
        one([&header, GET.as_bytes()].concat())
            .only()
            .origin
            .to_string()
    };
    let right = CHECKSUM.to_be_bytes();
    assert_eq!(with(right), "203.0.113.9");
    for bit in 0..32 {
        assert_eq!(with((CHECKSUM ^ 1 << bit).to_be_bytes()), "192.0.2.7");
    }
    // Of the wrong size.
    let short = v2(0x21, 0x11, &[&V4[..], &[0x03, 0, 2, 1, 2]].concat());
    assert_eq!(
        one([&short, GET.as_bytes()].concat())
            .only()
            .origin
            .to_string(),
        "192.0.2.7"
    );
}

const CHECKSUM: u32 = 0xf70c_d542;

/// What another reader makes of the bytes: the length of the header, and whom it names.
type Theirs = Option<(usize, Option<IpAddr>)>;

fn by_ppp(bytes: &[u8]) -> Theirs {
    match ppp::HeaderResult::parse(bytes) {
        ppp::HeaderResult::V1(Ok(header)) => {
            let source = match header.addresses {
                ppp::v1::Addresses::Tcp4(a) => Some(IpAddr::V4(a.source_address)),
                ppp::v1::Addresses::Tcp6(a) => Some(IpAddr::V6(a.source_address)),
                ppp::v1::Addresses::Unknown => None,
            };
            Some((header.header.len(), source))
        }
        ppp::HeaderResult::V2(Ok(header)) => {
            let source = match header.addresses {
                _ if header.command == ppp::v2::Command::Local => None,
                ppp::v2::Addresses::IPv4(a) => Some(IpAddr::V4(a.source_address)),
                ppp::v2::Addresses::IPv6(a) => Some(IpAddr::V6(a.source_address)),
                _ => None,
            };
            Some((header.as_bytes().len(), source))
        }
        _ => None,
    }
}

fn by_proxy_header(bytes: &[u8]) -> Theirs {
    let (header, len) = ProxyHeader::parse(bytes, ParseConfig::default()).ok()?;
    Some((len, header.proxied_address().map(|a| a.source.ip())))
}

fn by_us(bytes: &[u8]) -> Theirs {
    match read(bytes) {
        Preamble::Header { len, source } => Some((len, source)),
        Preamble::More | Preamble::Absent => None,
    }
}

fn canonical(theirs: Theirs) -> Theirs {
    theirs.map(|(len, source)| (len, source.map(|a| a.to_canonical())))
}

#[test]
fn three_readers_agree_on_the_headers_of_the_specification() {
    for (header, origin) in headers() {
        let bytes = [&header, GET.as_bytes()].concat();
        let origin = origin.map(|o| o.parse().unwrap());
        assert_eq!(by_us(&bytes), Some((header.len(), origin)));
        for (name, theirs) in [
            ("ppp", by_ppp(&bytes)),
            ("proxy-header", by_proxy_header(&bytes)),
        ] {
            // ppp names the source of what is neither TCP nor UDP; the specification calls it unspecified.
            if name == "ppp" && header.get(12..14) == Some(&[0x21, 0x10]) {
                continue;
            }
            // They refuse addresses that are cut short and families that nobody knows; we pass such a header over.
            if let Some(theirs) = canonical(theirs) {
                assert_eq!(
                    theirs,
                    (header.len(), origin),
                    "{name}: {}",
                    header.escape_ascii()
                );
            } else {
                assert_eq!(origin, None, "{name}: {}", header.escape_ascii());
            }
        }
        // No part of it is taken for a header, or for the beginning of something else.
        for len in 0..header.len() {
            assert_eq!(
                read(&header[..len]),
                Preamble::More,
                "{}",
                header.escape_ascii()
            );
        }
    }
}

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let headers = headers();
    let small: Vec<Vec<u8>> = headers
        .into_iter()
        .map(|h| h.0)
        .filter(|h| h.len() < 300)
        .collect();
    let word = prop::sample::select(vec![
        &b" "[..],
        b"\r",
        b"\n",
        b"0",
        b"9",
        b":",
        b".",
        b"f",
        b"TCP4",
        b"TCP6",
        b"UNKNOWN",
        b"\0",
        b"\x11",
        b"\x21",
        b"\x20",
    ]);
    let edit = (0.0..1.0f64, 0..3usize, word);
    (
        prop::sample::select(small),
        prop::collection::vec(edit, 0..4),
    )
        .prop_map(|(mut header, edits)| {
            for (place, remove, word) in edits {
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss,
                    reason = "any place within will do"
                )]
                let at = (place * header.len() as f64) as usize;
                let end = (at + remove).min(header.len());
                header.splice(at..end, word.iter().copied());
            }
            header.extend(GET.as_bytes());
            header
        })
}

proptest! {
    #[test]
    fn what_others_accept_we_accept_alike_and_whom_we_name_they_name(bytes in mutated()) {
        let (us, ppp, header) = (by_us(&bytes), canonical(by_ppp(&bytes)), canonical(by_proxy_header(&bytes)));
        if ppp.is_some() && ppp == header {
            // They leave a checksum to their caller.
            let checked = ppp::v2::Header::try_from(bytes.as_slice())
                .is_ok_and(|h| h.tlvs().any(|tlv| tlv.map_or(true, |t| t.kind == 3)));
            if checked {
                prop_assert_eq!(us.map(|h| h.0), ppp.map(|h| h.0));
            } else {
                prop_assert_eq!(us, ppp);
            }
        }
        if let Some((_, Some(_))) = us {
            // ppp refuses ports with leading zeros, as the specification has senders write none.
            prop_assert_eq!(header, us);
            if ppp.is_none() {
                prop_assert!(bytes.starts_with(b"PROXY TCP"));
                prop_assert!(bytes.windows(3).any(|w| w[0] == b' ' && w[1] == b'0' && w[2].is_ascii_digit()));
            } else {
                prop_assert_eq!(ppp, us);
            }
        }
    }
}
