//! Four workers, and connections of which a segment comes so that the kernel cannot tell whose it is: in fragments,
//! behind VLAN tags or IPv6 extension headers, in a tunnel within the mirror's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod program;
mod wire;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use program::{PATIENCE, Rebuilder, analyser};
use wire::{Sender, mirrored, vxlan};

/// How a frame is told.
type Telling = fn(&[u8], u16) -> Vec<Vec<u8>>;

/// Where the IP payload begins in a frame of [`wire::tcp`].
fn behind_ip(frame: &[u8]) -> usize {
    if frame[14] >> 4 == 4 { 34 } else { 54 }
}

fn with_length(mut frame: Vec<u8>) -> Vec<u8> {
    let len = frame.len();
    if frame[14] >> 4 == 4 {
        frame[16..18].copy_from_slice(&u16::try_from(len - 14).unwrap().to_be_bytes());
        frame[24..26].fill(0);
        let sum = wire::checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[18..20].copy_from_slice(&u16::try_from(len - 54).unwrap().to_be_bytes());
    }
    frame
}

/// RFC 791 §3.2, RFC 8200 §4.5: pieces of 32 bytes, the last first.
fn in_fragments(frame: &[u8], id: u16) -> Vec<Vec<u8>> {
    let at = behind_ip(frame);
    let (head, body) = frame.split_at(at);
    let count = body.chunks(32).count();
    let pieces = body.chunks(32).enumerate().map(|(n, piece)| {
        let last = n + 1 == count;
        let offset = u16::try_from(n * 32).unwrap();
        let mut out = head.to_vec();
        if at == 34 {
            out[18..20].copy_from_slice(&id.to_be_bytes());
            let bits = (offset / 8) | if last { 0 } else { 0x2000 };
            out[20..22].copy_from_slice(&bits.to_be_bytes());
        } else {
            out[20] = 44;
            let [o0, o1] = (offset | u16::from(!last)).to_be_bytes();
            let [i0, i1] = id.to_be_bytes();
            out.extend([6, 0, o0, o1, 0, 0, i0, i1]);
        }
        out.extend(piece);
        with_length(out)
    });
    pieces.rev().collect()
}

/// 802.1ad with 802.1Q in it.
fn tagged(frame: &[u8], _: u16) -> Vec<Vec<u8>> {
    let tags = [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6];
    vec![[&frame[..12], &tags, &frame[12..]].concat()]
}

/// IPv6: hop-by-hop options and destination options (padding) before TCP. IPv4: an authentication header (RFC 4302).
fn extended(frame: &[u8], _: u16) -> Vec<Vec<u8>> {
    let at = behind_ip(frame);
    let (mut head, body) = (frame[..at].to_vec(), &frame[at..]);
    if at == 34 {
        head[23] = 51;
        head.extend([6, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
    } else {
        head[20] = 0;
        head.extend([60, 0, 1, 4, 0, 0, 0, 0]);
        head.extend([6, 0, 1, 4, 0, 0, 0, 0]);
    }
    head.extend(body);
    vec![with_length(head)]
}

/// A pod's packet in its node's.
fn in_vxlan(frame: &[u8], _: u16) -> Vec<Vec<u8>> {
    vec![mirrored(9, frame)]
}

/// The same with GENEVE (RFC 8926): a VXLAN header has as many bytes as one of GENEVE without options.
fn in_geneve(frame: &[u8], _: u16) -> Vec<Vec<u8>> {
    let mut outer = mirrored(9, frame);
    outer[36..38].copy_from_slice(&6081_u16.to_be_bytes());
    outer[42..46].copy_from_slice(&[0, 0, 0x65, 0x58]);
    vec![outer]
}

fn in_pieces_of_a_tunnel(frame: &[u8], id: u16) -> Vec<Vec<u8>> {
    in_fragments(&mirrored(9, frame), id)
}

const TELLINGS: [(&str, Telling); 6] = [
    ("fragments", in_fragments),
    ("tags", tagged),
    ("extensions", extended),
    ("vxlan", in_vxlan),
    ("geneve", in_geneve),
    ("pieces", in_pieces_of_a_tunnel),
];

/// The datagrams of some connections, and what each asks for.
fn connections() -> (Vec<Vec<u8>>, Vec<String>) {
    let (mut datagrams, mut targets) = (Vec::new(), Vec::new());
    for n in 0..240_u16 {
        let (name, telling) = TELLINGS[usize::from(n) % TELLINGS.len()];
        let target = format!("/{name}/{n}");
        let mut sender = if n % 4 < 2 {
            Sender::new(&format!("10.1.{}.7:{}", n % 7, 40_000 + n), "10.0.0.2:80")
        } else {
            Sender::new(
                &format!("[2001:db8::{n:x}]:{}", 40_000 + n),
                "[2001:db8:1::2]:80",
            )
        };
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: a\r\nX-Padding: {}\r\nContent-Length: 5\r\n\r\nhello",
            "p".repeat(100)
        );
        let (first, rest) = request.split_at(20);
        let (second, third) = rest.split_at(120);
        let mut frames = vec![sender.syn(), sender.data(first)];
        frames.extend(telling(&sender.data(second), n));
        frames.push(sender.data(third));
        frames.extend(telling(&sender.fin(), 0x4000 | n));
        datagrams.extend(frames.iter().map(|frame| vxlan(1, frame)));
        targets.push(target);
    }
    (datagrams, targets)
}

#[test]
fn every_connection_is_whole_whatever_worker_its_segments_reach() {
    let (address, received) = analyser();
    let mut rebuilder = Rebuilder::start(address, &["--workers", "4"]);
    let (datagrams, targets) = connections();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (n, datagram) in datagrams.iter().enumerate() {
        socket.send_to(datagram, rebuilder.listen).unwrap();
        // As much as a buffer without privileges holds, and no more.
        if n % 64 == 63 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let mut got = BTreeMap::new();
    for _ in &targets {
        let request = received.recv_timeout(PATIENCE).unwrap();
        assert_eq!(request.field("X-Mirror-Flags"), None, "{}", request.head);
        assert_eq!(request.body, b"hello");
        *got.entry(request.target().to_owned()).or_insert(0) += 1;
    }
    let expected: BTreeMap<_, _> = targets.into_iter().map(|target| (target, 1)).collect();
    assert_eq!(got, expected);

    // Each packet has one outcome, those that were handed over too.
    let begun = Instant::now();
    while rebuilder.sum("rebuilder_packets_total") < datagrams.len() as u64 {
        assert!(begun.elapsed() < PATIENCE, "{}", rebuilder.metrics());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        rebuilder.sum("rebuilder_packets_total"),
        datagrams.len() as u64,
        "{}",
        rebuilder.metrics()
    );
    rebuilder.shows("rebuilder_packets_total{outcome=\"handover_full\"} 0");
    // Of each connection one or two segments could go anywhere, so that about three quarters of them went astray. (The
    // figure follows the others within a tenth of a second.)
    let handed = || rebuilder.sum("rebuilder_handed_over_total");
    while handed() < 250 {
        assert!(begun.elapsed() < PATIENCE, "{}", rebuilder.metrics());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(handed() <= 480);
    assert_eq!(rebuilder.end(), Some(0));
    assert!(received.try_recv().is_err(), "a request came twice");
}

/// RFC 8926 §3.4, with the three options of a Gateway Load Balancer (class 0x0108: endpoint, attachment, flow cookie),
/// around a mirrored IP packet.
fn behind_a_gateway(frame: &[u8], cookie: u16) -> Vec<u8> {
    let mut datagram = vec![8, 0, 0x08, 0x00, 0, 0, 0, 0];
    datagram.extend([1, 8, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1]);
    datagram.extend([1, 8, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]);
    datagram.extend([1, 8, 3, 1, 0, 0]);
    datagram.extend(cookie.to_be_bytes());
    datagram.extend(&mirrored(7, frame)[14..]);
    datagram
}

#[test]
fn a_gateway_load_balancers_packets_are_taken_on_its_port() {
    let (address, received) = analyser();
    // The port is what tells, so the address must be of this run alone.
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let listen = format!("127.{}.{b}.{c}:6081", a | 0x40);
    let arguments = ["--workers", "4", "--listen", &listen, "--vni", "7"];
    let mut rebuilder = Rebuilder::start(address, &arguments);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sent = 0;
    for n in 0..40_u16 {
        let mut sender = Sender::new(&format!("10.1.0.7:{}", 40_000 + n), "10.0.0.2:80");
        let request = format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n");
        let (first, second) = request.split_at(9);
        let mut frames = vec![sender.syn(), sender.data(first)];
        frames.extend(in_fragments(&sender.data(second), n));
        for frame in &frames {
            let datagram = behind_a_gateway(frame, n);
            socket.send_to(&datagram, rebuilder.listen).unwrap();
            sent += 1;
        }
    }
    let got = (0..40).map(|_| received.recv_timeout(PATIENCE).unwrap());
    let got: std::collections::BTreeSet<_> = got
        .map(|request| {
            assert_eq!(request.field("X-Mirror-Flags"), None, "{}", request.head);
            request.target().to_owned()
        })
        .collect();
    assert_eq!(got.len(), 40);
    let begun = Instant::now();
    while rebuilder.sum("rebuilder_packets_total") != sent {
        assert!(begun.elapsed() < PATIENCE, "{}", rebuilder.metrics());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(rebuilder.end(), Some(0));
}

#[test]
fn what_is_handed_over_while_the_program_ends_is_rebuilt() {
    let (address, received) = analyser();
    let mut rebuilder = Rebuilder::start(address, &["--workers", "4"]);
    let (datagrams, targets) = connections();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for datagram in datagrams.iter().take(datagrams.len() / 4) {
        socket.send_to(datagram, rebuilder.listen).unwrap();
    }
    // All is in the kernel's hands: loopback delivers within the call that sends, or in a moment where the machine is
    // busy.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rebuilder.end(), Some(0));
    let mut got = 0;
    while let Ok(request) = received.try_recv() {
        assert_eq!(request.field("X-Mirror-Flags"), None, "{}", request.head);
        got += 1;
    }
    assert!(
        got + 1 >= targets.len() / 4,
        "{got} of {}",
        targets.len() / 4
    );
}
