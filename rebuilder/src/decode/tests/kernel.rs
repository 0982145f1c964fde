//! Packets in pieces, as the kernel of this machine puts them together: the same pieces are sent to it over loopback.
//! Skipped where raw sockets are not allowed (they need `CAP_NET_RAW`).

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header};
use proptest::prelude::*;
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::super::fragments::Reassembler;
use super::super::{ip, link};
use super::*;

/// `IPPROTO_RAW`: we write the IP header.
const RAW: i32 = 255;
const UDP: i32 = 17;

/// Of its own for each run: the kernel keeps what an earlier one left unfinished.
fn source() -> Ipv4Addr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, a | 0x40, b, c)
}

const DST: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 2);

/// A piece in units of 8 bytes, but for `odd` bytes at the end.
#[derive(Clone, Debug)]
struct Told {
    at: u16,
    units: u16,
    odd: u16,
    more: bool,
    value: u8,
}

/// The bytes of a piece. The first eight of the packet are a UDP header that tells whose it is.
fn content(told: &Told, ports: [u8; 4]) -> Vec<u8> {
    let header = [&ports[..], &[0, 8, 0, 0]].concat();
    let from = usize::from(told.at) * 8;
    (from..from + usize::from(told.units * 8 + told.odd))
        .map(|at| header.get(at).copied().unwrap_or(told.value))
        .collect()
}

fn packet(v6: bool, id: u16, told: &Told, bytes: &[u8]) -> Vec<u8> {
    let offset = IpFragOffset::try_new(told.at).unwrap();
    let len = u16::try_from(bytes.len()).unwrap();
    if v6 {
        let id = std::process::id() << 16 | u32::from(id);
        let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, told.more, id);
        let header = Ipv6Header {
            payload_length: len + 8,
            next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
            hop_limit: 64,
            source: Ipv6Addr::LOCALHOST.octets(),
            destination: Ipv6Addr::LOCALHOST.octets(),
            ..Default::default()
        };
        [&header.to_bytes()[..], &fragment.to_bytes(), bytes].concat()
    } else {
        let mut header =
            Ipv4Header::new(len, 64, IpNumber::UDP, source().octets(), DST.octets()).unwrap();
        header.identification = id;
        header.dont_fragment = false;
        header.more_fragments = told.more;
        header.fragment_offset = offset;
        header.header_checksum = header.calc_header_checksum();
        [&header.to_bytes()[..], bytes].concat()
    }
}

/// The kernel, as somebody who takes whole UDP packets.
struct Kernel {
    v6: bool,
    send: Socket,
    recv: Socket,
}

impl Kernel {
    fn new(v6: bool) -> Option<Self> {
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let raw = |protocol: i32| Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)));
        let (Ok(send), Ok(recv)) = (raw(RAW), raw(UDP)) else {
            eprintln!("SKIPPED: no raw sockets (CAP_NET_RAW)");
            return None;
        };
        recv.set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        // Of all the UDP on this machine ours alone, whose source ports begin with 0x7a or 0x7b; an IPv4 raw socket sees
        // the IP header, too. Loads a byte, compares, compares, takes, drops.
        recv.attach_filter(&[
            SockFilter::new(0x30, 0, 0, if v6 { 0 } else { 20 }),
            SockFilter::new(0x15, 1, 0, 0x7a),
            SockFilter::new(0x15, 0, 1, 0x7b),
            SockFilter::new(0x06, 0, 0, u32::MAX),
            SockFilter::new(0x06, 0, 0, 0),
        ])
        .unwrap();
        Some(Self { v6, send, recv })
    }

    fn tell(&self, packet: &[u8]) {
        let to: SocketAddr = if self.v6 {
            (Ipv6Addr::LOCALHOST, 0).into()
        } else {
            (DST, 0).into()
        };
        let sent = self.send.send_to(packet, &SockAddr::from(to)).unwrap();
        assert_eq!(sent, packet.len());
    }

    /// Tells it a piece, and a whole packet behind it to know when it is done; gives the packet that became whole.
    fn give(&mut self, id: u16, told: &Told, ports: [u8; 4]) -> Option<Vec<u8>> {
        self.tell(&packet(self.v6, id, told, &content(told, ports)));
        let end = [0x7a, ports[1], ports[2], !ports[3]];
        let whole = Told {
            at: 0,
            units: 1,
            odd: 0,
            more: false,
            value: 0,
        };
        self.tell(&packet(self.v6, id ^ 0x8000, &whole, &content(&whole, end)));
        let mut became = None;
        let begun = Instant::now();
        loop {
            let mut buffer = [0; 2_048];
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "the kernel is silent"
            );
            let Ok(len) = (&self.recv).read(&mut buffer) else {
                continue;
            };
            // An IPv4 raw socket gives the header, too.
            let got = &buffer[if self.v6 { 0 } else { 20 }..len];
            if got.starts_with(&end) {
                return became;
            }
            if got.starts_with(&ports) {
                assert_eq!(became, None);
                became = Some(got.to_vec());
            }
        }
    }
}

fn ours(store: &mut Reassembler, v6: bool, packet: &[u8]) -> Option<Vec<u8>> {
    let network = if v6 {
        link::Network::V6(packet)
    } else {
        link::Network::V4(packet)
    };
    match ip::open(network) {
        Ok(ip::Opened::Fragment(piece)) => {
            let whole = store.add(Timestamp(1), None, &piece).ok()?;
            Some(whole.payload.to_vec())
        }
        _ => None,
    }
}

/// Pieces of a packet of five units, most of them sound.
fn script() -> impl Strategy<Value = Vec<Told>> {
    let value = || 0u8..3;
    let sound = (0u16..5, prop::sample::select(vec![1u16, 1, 2]), value());
    let sound = sound.prop_map(|(at, units, value)| {
        let units = units.min(5 - at);
        Told {
            at,
            units,
            odd: 0,
            more: at + units < 5,
            value,
        }
    });
    let any = (0u16..7, 0u16..4, 0u16..8, any::<bool>(), value());
    let any = any.prop_map(|(at, units, odd, more, value)| Told {
        at,
        units,
        odd,
        // Without either it is no piece.
        more: more || at == 0,
        value,
    });
    prop::collection::vec(prop_oneof![8 => sound, 1 => any], 2..14)
}

/// Of packets that come one after the other, the kernel gives a copy again, and we do not.
fn new(packets: Vec<Option<Vec<u8>>>) -> Vec<Vec<u8>> {
    let mut packets: Vec<_> = packets.into_iter().flatten().collect();
    packets.dedup();
    packets
}

#[test]
fn the_kernel_of_this_machine_makes_the_same_packets_of_the_same_pieces() {
    // 15 bits number the packets of a run.
    let cases = std::env::var("PROPTEST_CASES")
        .map_or(400, |n| n.parse().unwrap())
        .min(0x7ff0);
    for v6 in [false, true] {
        let Some(kernel) = Kernel::new(v6) else {
            return;
        };
        let kernel = std::cell::RefCell::new(kernel);
        let numbers = std::cell::Cell::new(0_u16);
        let made = std::cell::Cell::new(0);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        runner
            .run(&script(), |script| {
                let number = numbers.get().wrapping_add(1) & 0x7fff;
                numbers.set(number);
                let [hi, lo] = number.to_be_bytes();
                let ports = [0x7b, hi, lo, 9];
                let mut store = Reassembler::default();
                let mut kernels = Vec::new();
                let mut own = Vec::new();
                for told in &script {
                    kernels.push(kernel.borrow_mut().give(number, told, ports));
                    let bytes = content(told, ports);
                    own.push(ours(&mut store, v6, &packet(v6, number, told, &bytes)));
                    store.bytes();
                }
                // An empty piece ends what is unfinished: the kernel has room for a thousand of them only.
                let empty = Told {
                    at: 100,
                    units: 0,
                    odd: 0,
                    more: true,
                    value: 0,
                };
                let nothing = kernel.borrow_mut().give(number, &empty, ports);
                prop_assert_eq!(nothing, None);
                let (kernels, own) = (new(kernels), new(own));
                made.set(made.get() + own.len());
                prop_assert_eq!(own, kernels, "v6: {}", v6);
                Ok(())
            })
            .unwrap();
        println!("{cases} scripts, {} packets", made.get());
        assert!(made.get() > usize::try_from(cases / 10).unwrap());
    }
}
