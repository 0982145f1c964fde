//! What a hundred thousand connections that are open take of the machine's memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod program;
mod wire;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use program::{PATIENCE, Rebuilder, analyser};
use wire::{ACK, SYN, tcp, vxlan};

/// Must show 6 of the plan.
const FLOWS: u32 = 100_000;
const MOST: usize = 200 << 20;

const RING: &str = "32M";
const RING_BYTES: usize = 32 << 20;
/// Packets that may wait in it, or their requests for an answer; one takes less than 700 bytes.
const AHEAD: u64 = 20_000;

/// Of each connection: the SYN, the answer to it, a request, the beginning of a response. A client of its own each.
fn packets(n: u32) -> [Vec<u8>; 4] {
    let client = SocketAddr::from((Ipv4Addr::from(0x0b00_0000 + n), 40_000));
    let server = SocketAddr::from(([10, 0, 0, 2], 80));
    let request = format!(
        "GET /items/{n}?page=3&sort=price HTTP/1.1\r\nHost: shop.example\r\nAccept: */*\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
         Cookie: session=0123456789abcdef0123456789abcdef\r\n\r\n"
    );
    let answer = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 9999\r\n\r\n0123456789";
    let frames = [
        tcp(client, server, 1_000, SYN, b""),
        tcp(server, client, 5_000, SYN | ACK, b""),
        tcp(client, server, 1_001, ACK, request.as_bytes()),
        tcp(server, client, 5_001, ACK, answer),
    ];
    frames.map(|frame| vxlan(1, &frame))
}

#[test]
fn a_hundred_thousand_open_connections_stay_below_200_mb_beside_the_ring() {
    let (address, received) = analyser();
    // Nobody looks at them.
    drop(received);
    let rebuilder = Rebuilder::start(address, &["--ring-bytes", RING, "--held-bytes", "1G"]);
    if !rebuilder.ring {
        eprintln!("SKIPPED: no packet ring (CAP_NET_RAW)");
        return;
    }
    let before = rebuilder.resident();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sent = 0;
    for n in 0..FLOWS {
        for packet in packets(n) {
            socket.send_to(&packet, rebuilder.listen).unwrap();
            sent += 1;
        }
        if sent % (AHEAD / 2) == 0 {
            taken(&rebuilder, sent.saturating_sub(AHEAD / 2));
        }
    }
    taken(&rebuilder, sent);
    rebuilder.shows(&format!("rebuilder_flows {FLOWS}"));
    rebuilder.shows(&format!(
        "rebuilder_requests_total{{outcome=\"delivered_2xx\"}} {FLOWS}"
    ));
    let now = rebuilder.resident();
    println!(
        "{} MB beside the ring, {} MB before the first packet; {} bytes a connection",
        (now - RING_BYTES) >> 20,
        (before - RING_BYTES) >> 20,
        (now - before) / FLOWS as usize
    );
    assert!(now - RING_BYTES <= MOST, "{now} bytes, the ring among them");
}

/// Waits until so many packets have an outcome, and the requests in them too, so that few of these wait in buffers at any
/// time. No packet is lost.
fn taken(rebuilder: &Rebuilder, packets: u64) {
    let begun = Instant::now();
    while rebuilder.sum("rebuilder_packets_total") < packets
        || rebuilder.sum("rebuilder_requests_total") < packets / 4
    {
        assert!(begun.elapsed() < 3 * PATIENCE, "{}", rebuilder.metrics());
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(rebuilder.sum("rebuilder_kernel_drops_total"), 0);
}
