//! On the loopback interface, with what the kernel really does. Where a packet must be one that no UDP socket sends
//! (tags, pieces, options), it is put onto the interface as a frame.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::thread::sleep;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use etherparse::{IpHeaders, IpNumber, Ipv4Header, PacketBuilder};
use socket2::{SockAddr, SockAddrStorage};

use super::*;
use crate::time::Timestamp;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(HERE), 0);
const PATIENCE: Duration = Duration::from_secs(10);

const SMALL: RingOptions = RingOptions {
    bytes: LEAST_RING,
    retire: DEFAULT_RETIRE,
};

thread_local! {
    /// Whether the thread, which is a test's, has a network of its own. The kernel puts fragments together once for all
    /// packet sockets of a network that ask for it, and one of them gets the whole.
    static ISOLATED: bool = {
        // SAFETY: it takes a constant, and changes what the calling thread opens from now on.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        result == 0
            && std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status()
                .is_ok_and(|status| status.success())
    };
}

/// `None`, and said so, where that is not allowed.
fn open(addr: SocketAddr, workers: usize, options: &RingOptions) -> Option<Vec<RingReceiver>> {
    if !ISOLATED.with(|&isolated| isolated) {
        eprintln!("SKIPPED: no network of its own (CAP_SYS_ADMIN, ip)");
        return None;
    }
    match bind_group(addr, workers, options) {
        Err(BindError::NoPacketSocket { .. }) => {
            eprintln!("SKIPPED: no packet sockets (CAP_NET_RAW)");
            None
        }
        group => Some(group.unwrap()),
    }
}

fn one(addr: SocketAddr) -> Option<RingReceiver> {
    Some(open(addr, 1, &SMALL)?.remove(0))
}

/// Drains until nothing is left that was sent before.
fn rest(receiver: &mut RingReceiver) -> Vec<Vec<u8>> {
    let started = Instant::now();
    let mut all = Vec::new();
    loop {
        let drained = receiver.drain(usize::MAX, |frame| all.push(frame.data.to_vec()));
        if drained.left == Left::Nothing {
            return all;
        }
        assert!(started.elapsed() < PATIENCE, "{}", all.len());
        sleep(Duration::from_millis(1));
    }
}

fn sender() -> UdpSocket {
    UdpSocket::bind((HERE, 0)).unwrap()
}

/// Puts frames onto the loopback interface, as if a card had received them.
struct Wire(Socket);

impl Wire {
    fn new() -> Self {
        Self(Socket::new(Domain::PACKET, Type::RAW, None).unwrap())
    }

    fn put(&self, frame: &[u8]) {
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: a sockaddr_ll is plain data and fits into the storage.
        let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        // The loopback interface is the first of every network namespace.
        address.sll_ifindex = 1;
        let len = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        // SAFETY: filled in above, of this length.
        let to = unsafe { SockAddr::new(storage, len) };
        assert_eq!(self.0.send_to(frame, &to).unwrap(), frame.len());
    }
}

/// The MAC address of the loopback interface, and one of somebody else.
const OURS: [u8; 6] = [0; 6];
const OTHERS: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn frame_to(mac: [u8; 6], to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], mac);
    let builder = match to.ip() {
        IpAddr::V4(ip) => builder.ipv4([127, 0, 0, 9], ip.octets(), 64),
        IpAddr::V6(ip) => builder.ipv6([0xfd; 16], ip.octets(), 64),
    };
    let mut frame = Vec::new();
    builder
        .udp(5, to.port())
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// RFC 1071, over a header whose checksum field is zero.
fn with_header_sum(mut ip: Vec<u8>) -> Vec<u8> {
    let header = usize::from(ip[0] & 15) * 4;
    ip[10..12].fill(0);
    let sum: u32 = ip[..header]
        .chunks(2)
        .map(|b| u32::from(u16::from_be_bytes([b[0], b[1]])))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip
}

/// RFC 791 §3.2: the packet of a frame in pieces of so many bytes, a multiple of 8.
fn pieces(frame: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let (header, body) = frame[14..].split_at(20);
    let count = body.chunks(size).count();
    let piece = |(n, body): (usize, &[u8])| {
        let mut ip = [header, body].concat();
        let len = u16::try_from(ip.len()).unwrap();
        ip[2..4].copy_from_slice(&len.to_be_bytes());
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        let offset = u16::try_from(n * size / 8).unwrap();
        let more = if n + 1 < count { 0x2000 } else { 0 };
        ip[6..8].copy_from_slice(&(offset | more).to_be_bytes());
        [&frame[..14], &with_header_sum(ip)].concat()
    };
    body.chunks(size).enumerate().map(piece).collect()
}

#[test]
fn datagrams_come_in_order_once_each_with_the_time_of_their_arrival() {
    let Some(mut receiver) = one(LOOPBACK) else {
        return;
    };
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let before = clock();
    let sender = sender();
    for n in 0..500_u32 {
        sender
            .send_to(&n.to_be_bytes(), receiver.local_addr())
            .unwrap();
    }
    let mut seen = Vec::new();
    let started = Instant::now();
    while seen.len() < 500 {
        assert!(started.elapsed() < PATIENCE, "{}", seen.len());
        receiver.drain(1_000, |frame| {
            assert_eq!(frame.link, LinkType::Vxlan);
            let ts = u128::from(frame.ts.0);
            assert!(before.as_nanos() <= ts && ts <= clock().as_nanos());
            seen.push(u32::from_be_bytes(frame.data.try_into().unwrap()));
        });
    }
    seen.extend(rest(&mut receiver).iter().map(|_| u32::MAX));
    assert_eq!(seen, (0..500).collect::<Vec<_>>());
    assert_eq!(receiver.kernel_drops(), 0);
}

#[test]
fn the_port_of_geneve_takes_geneve() {
    let Some(mut receiver) = one((HERE, 6081).into()) else {
        return;
    };
    sender().send_to(b"x", (HERE, 6081)).unwrap();
    let mut links = Vec::new();
    let started = Instant::now();
    while links.is_empty() && started.elapsed() < PATIENCE {
        receiver.drain(9, |frame| links.push(frame.link));
    }
    assert_eq!(links, [LinkType::Geneve]);
}

#[test]
fn a_ring_is_left_alone_no_longer_than_it_can_bear() {
    let millis = |bytes: usize| pause_of(bytes).as_millis();
    assert_eq!(millis(DEFAULT_RING), 16);
    assert_eq!(millis(MOST_RING), 16);
    // 32 MiB at 10 Gbit/s are full after 27 ms.
    assert_eq!(millis(32 << 20), 8);
    assert_eq!(millis(LEAST_RING), DEFAULT_RETIRE.as_millis());
}

#[test]
fn a_drain_stops_inside_a_block_and_goes_on_there() {
    let Some(mut receiver) = one(LOOPBACK) else {
        return;
    };
    let sender = sender();
    for n in 0..100_u8 {
        sender.send_to(&[n], receiver.local_addr()).unwrap();
    }
    // All in one block, and given.
    sleep(Duration::from_millis(200));
    let mut seen = Vec::new();
    let mut drain = |budget| receiver.drain(budget, |frame| seen.push(frame.data[0]));
    let part = |datagrams, left| Drained { datagrams, left };
    assert_eq!(drain(0), part(0, Left::More));
    assert_eq!(drain(70), part(70, Left::More));
    assert_eq!(drain(1), part(1, Left::More));
    assert_eq!(drain(70), part(29, Left::Nothing));
    assert_eq!(drain(70), part(0, Left::Nothing));
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
}

#[test]
fn what_lies_in_a_block_that_is_not_given_yet_is_not_nothing() {
    // So long that the block is certainly not given before it is looked at.
    let options = RingOptions {
        retire: Duration::from_millis(300),
        ..SMALL
    };
    let Some(mut group) = open(LOOPBACK, 1, &options) else {
        return;
    };
    let receiver = &mut group[0];
    let sender = sender();
    // Also after the ring has gone round: a block that comes for the second time.
    for round in 0..6 {
        let nothing = receiver.drain(9, |_| panic!("nothing was sent"));
        assert_eq!(nothing.left, Left::Nothing, "{round}");
        sender.send_to(b"x", receiver.local_addr()).unwrap();
        let hidden = receiver.drain(9, |_| panic!("the block is not given yet"));
        assert_eq!(hidden.left, Left::Soon, "{round}");
        assert_eq!(rest(receiver), [b"x"]);
    }
}

#[test]
fn when_nothing_is_left_no_earlier_packet_comes_any_more() {
    let Some(mut receiver) = one(LOOPBACK) else {
        return;
    };
    let to = receiver.local_addr();
    let clock = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Timestamp(u64::try_from(now.as_nanos()).unwrap())
    };
    let sending = std::thread::spawn(move || {
        let sender = sender();
        for _ in 0..400 {
            sender.send_to(b"x", to).unwrap();
            sleep(Duration::from_millis(1));
        }
    });
    let (mut seen, mut passed, mut advances) = (0, Timestamp(0), 0);
    let started = Instant::now();
    while seen < 400 && started.elapsed() < PATIENCE {
        let before = clock();
        let drained = receiver.drain(99, |frame| {
            seen += 1;
            assert!(frame.ts >= passed, "flow time had passed it");
        });
        if drained.left == Left::Nothing {
            passed = before;
            advances += 1;
        }
    }
    sending.join().unwrap();
    assert_eq!(seen, 400);
    assert!(advances > 5, "{advances}");
}

#[test]
fn the_same_datagrams_are_taken_as_by_a_udp_socket() {
    let Some(mut receiver) = one(LOOPBACK) else {
        return;
    };
    let wire = Wire::new();
    let to = receiver.local_addr();
    let mut plain = frame_to(OURS, to, b"plain");
    plain.extend(b"what fills up a short frame");
    wire.put(&plain);
    // Of no concern: another port, another address, another machine's, another protocol, another family.
    let other = SocketAddr::new(to.ip(), to.port() ^ 1);
    wire.put(&frame_to(OURS, other, b"port"));
    wire.put(&frame_to(
        OURS,
        (Ipv4Addr::new(127, 0, 0, 2), to.port()).into(),
        b"address",
    ));
    wire.put(&frame_to(OTHERS, to, b"machine"));
    wire.put(&frame_to(
        OURS,
        (Ipv6Addr::LOCALHOST, to.port()).into(),
        b"family",
    ));
    let mut tcp = plain.clone();
    tcp[23] = 6;
    wire.put(&tcp);
    // And too short for its headers.
    wire.put(&plain[..36]);
    wire.put(&frame_to(OURS, to, b"end"));
    assert_eq!(rest(&mut receiver), [&b"plain"[..], b"end"]);
}

#[test]
fn the_unspecified_address_takes_every_one_of_its_family_and_that_of_ipv6_both() {
    for (listen, taken) in [
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), vec![b"four"]),
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), vec![b"four", b"six!"]),
        (IpAddr::V6(Ipv6Addr::LOCALHOST), vec![b"six!"]),
        (IpAddr::V6(HERE.to_ipv6_mapped()), vec![b"four"]),
    ] {
        let Some(mut receiver) = one((listen, 0).into()) else {
            return;
        };
        let wire = Wire::new();
        let port = receiver.local_addr().port();
        wire.put(&frame_to(OURS, (HERE, port).into(), b"four"));
        wire.put(&frame_to(OURS, (Ipv6Addr::LOCALHOST, port).into(), b"six!"));
        assert_eq!(rest(&mut receiver), taken, "{listen}");
    }
}

#[test]
fn outer_tags_and_options_do_not_hide_a_datagram() {
    let Some(mut receiver) = one(LOOPBACK) else {
        return;
    };
    let wire = Wire::new();
    let to = receiver.local_addr();
    let frame = frame_to(OURS, to, b"payload");
    let tags: [&[u8]; 4] = [
        &[0x81, 0, 0, 5],
        &[0x88, 0xa8, 0, 5],
        &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6],
        &[0x81, 0, 0, 5, 0x81, 0, 0, 6],
    ];
    for tag in tags {
        wire.put(&[&frame[..12], tag, &frame[12..]].concat());
    }
    let mut header = Ipv4Header::new(0, 9, IpNumber::UDP, [127, 0, 0, 9], HERE.octets()).unwrap();
    header.options = [1; 40].into();
    let mut options = Vec::new();
    PacketBuilder::ethernet2([2; 6], OURS)
        .ip(IpHeaders::Ipv4(header, Default::default()))
        .udp(5, to.port())
        .write(&mut options, b"payload")
        .unwrap();
    wire.put(&options);
    assert_eq!(rest(&mut receiver), [b"payload"; 5]);
}

#[test]
fn pieces_of_an_outer_packet_are_put_together_whatever_their_order() {
    for workers in [1, 2] {
        let Some(mut group) = open(LOOPBACK, workers, &SMALL) else {
            return;
        };
        let wire = Wire::new();
        let to = group[0].local_addr();
        let payload: Vec<u8> = (0..=255).cycle().take(9_001).collect();
        let in_order = pieces(&frame_to(OURS, to, &payload), 1_480, 4);
        assert_eq!(in_order.len(), 7);
        in_order.iter().for_each(|piece| wire.put(piece));
        let reversed = pieces(&frame_to(OURS, to, &payload), 1_480, 5);
        reversed.iter().rev().for_each(|piece| wire.put(piece));
        // Incomplete: it never becomes a datagram.
        wire.put(&pieces(&frame_to(OURS, to, &payload), 1_480, 6)[0]);
        let taken: Vec<_> = group.iter_mut().flat_map(rest).collect();
        let lens: Vec<_> = taken.iter().map(Vec::len).collect();
        assert!(taken == [payload.clone(), payload], "{lens:?} {workers}");
    }
}

#[test]
fn a_jumbo_frame_is_taken_whole_and_a_longer_one_counted() {
    let Some(mut receiver) = one(LOOPBACK) else {
        return;
    };
    let sender = sender();
    for (len, super_frames) in [(9_600, 0), (60_000, 1)] {
        let payload: Vec<u8> = (0..=255).cycle().take(len).collect();
        sender.send_to(&payload, receiver.local_addr()).unwrap();
        assert!(rest(&mut receiver) == [payload]);
        assert_eq!(receiver.super_frames(), super_frames);
    }
}

#[test]
fn what_finds_the_ring_full_is_counted_and_reading_goes_on_behind_it() {
    // So that no block is given before it is full.
    let options = RingOptions {
        retire: Duration::from_millis(300),
        ..SMALL
    };
    let Some(mut group) = open(LOOPBACK, 1, &options) else {
        return;
    };
    let receiver = &mut group[0];
    let (sender, sent) = (sender(), 3_000_usize);
    for _ in 0..sent {
        sender.send_to(&[0; 1_000], receiver.local_addr()).unwrap();
    }
    // Sixteen blocks of 64 KiB, each packet with its header in at most 1,152 bytes and at least 1,028.
    assert!((receiver.fill() - 1.0).abs() < 1e-9, "{}", receiver.fill());
    let taken = rest(receiver).len();
    assert!((896..1_020).contains(&taken), "{taken}");
    assert_eq!(
        receiver.kernel_drops(),
        u64::try_from(sent - taken).unwrap()
    );
    assert!(receiver.fill().abs() < 1e-9);
    // The kernel had stopped; it begins again, as often as it takes.
    for n in 0..20_u8 {
        sender.send_to(&[n], receiver.local_addr()).unwrap();
        assert_eq!(rest(receiver), [[n]]);
    }
    assert_eq!(
        receiver.kernel_drops(),
        u64::try_from(sent - taken).unwrap()
    );
}

#[test]
fn a_ring_that_refuses_gives_what_it_has_taken_before() {
    let Some(mut receiver) = one(LOOPBACK) else {
        return;
    };
    let sender = sender();
    sender.send_to(b"before", receiver.local_addr()).unwrap();
    receiver.refuse();
    sender.send_to(b"behind", receiver.local_addr()).unwrap();
    assert_eq!(rest(&mut receiver), [b"before"]);
}

#[test]
fn a_taken_port_is_told_whoever_has_it() {
    let Some(ring) = one(LOOPBACK) else {
        return;
    };
    let e = bind_group(ring.local_addr(), 2, &SMALL).unwrap_err();
    assert!(matches!(e, BindError::PortInUse { .. }), "{e}");
    let e = crate::receive::udp::bind_group(ring.local_addr(), 2, &Default::default()).unwrap_err();
    assert!(matches!(e, BindError::PortInUse { .. }), "{e}");
    let socket = sender();
    let e = bind_group(socket.local_addr().unwrap(), 1, &SMALL).unwrap_err();
    assert!(matches!(e, BindError::PortInUse { .. }), "{e}");
}

#[test]
fn the_kernel_does_not_answer_what_is_taken() {
    let Some(mut receiver) = one(LOOPBACK) else {
        return;
    };
    let to = receiver.local_addr();
    let sender = sender();
    sender.connect(to).unwrap();
    sender.send(b"x").unwrap();
    assert_eq!(rest(&mut receiver).len(), 1);
    // An ICMP error of the port would be told now.
    sender.send(b"y").unwrap();
    drop(receiver);
    sender.send(b"z").unwrap();
    let e = sender.send(b"z").unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::ConnectionRefused);
}

/// A mirrored packet of the connection, as a datagram's payload.
fn mirrored(src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let builder = match (src.ip(), dst.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => builder.ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => builder.ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!(),
    };
    let mut datagram = vec![8, 0, 0, 0, 0, 0, 1, 0];
    builder
        .tcp(src.port(), dst.port(), 1, 1_000)
        .write(&mut datagram, b"x")
        .unwrap();
    datagram
}

/// Clients of one network that speak to a few servers, as behind a mirror.
fn connection(n: u32, v6: bool) -> (SocketAddr, SocketAddr) {
    let [_, a, b, c] = (n / 4).to_be_bytes();
    let server = u8::try_from(n % 3).unwrap();
    let port = 32_768 + u16::try_from(n.wrapping_mul(7_919) % 28_000).unwrap();
    let ip = |net: u8, a: u8, b: u8, c: u8| {
        if v6 {
            IpAddr::V6([0x26, 0, 0x1f, 0x18, 0, 0, 0, net, 0, 0, 0, 0, 0, a, b, c].into())
        } else {
            IpAddr::V4(Ipv4Addr::new(10 + net, a, b, c))
        }
    };
    (
        (ip(1, a, b, c), port).into(),
        (ip(2, 0, 0, server), 443).into(),
    )
}

#[test]
fn both_directions_of_ten_thousand_connections_reach_one_worker_each_and_the_shares_are_fair() {
    // Nothing is read meanwhile, so no block must be given by age.
    let large = RingOptions {
        bytes: 16 << 20,
        retire: Duration::from_millis(300),
    };
    for (outer, v6, workers) in [
        (IpAddr::V4(HERE), false, 2),
        (IpAddr::V4(HERE), true, 4),
        (IpAddr::V6(Ipv6Addr::LOCALHOST), false, 4),
        (IpAddr::V6(Ipv6Addr::LOCALHOST), true, 2),
    ] {
        let Some(mut group) = open((outer, 0).into(), workers, &large) else {
            return;
        };
        let to = group[0].local_addr();
        // Both ends of a connection may be mirrored: two outer sources.
        let senders = [(); 2].map(|()| UdpSocket::bind((outer, 0)).unwrap());
        let mut flow_of = BTreeMap::new();
        for n in 0..10_000 {
            let (client, server) = connection(n, v6);
            for (sender, (src, dst)) in senders.iter().zip([(client, server), (server, client)]) {
                let datagram = mirrored(src, dst);
                sender.send_to(&datagram, to).unwrap();
                flow_of.insert(datagram, (src, dst, n));
            }
        }
        let mut worker_of = BTreeMap::new();
        let mut shares = Vec::new();
        for (worker, receiver) in group.iter_mut().enumerate() {
            let taken = rest(receiver);
            assert_eq!(receiver.kernel_drops(), 0);
            for datagram in &taken {
                let (src, dst, flow) = flow_of[datagram];
                assert_eq!(*worker_of.entry(flow).or_insert(worker), worker);
                assert_eq!(steering::owner(src, dst, workers), worker);
            }
            shares.push(taken.len());
        }
        assert_eq!(shares.iter().sum::<usize>(), 20_000, "{shares:?}");
        // Must show 5 of the plan: at most 1.2 times the fair share.
        let most = 20_000 * 12 / 10 / workers;
        assert!(shares.iter().all(|&share| share <= most), "{shares:?}");
    }
}
