//! Frames made by hand, one for each way in which headers stack, as tshark reads them; skipped where it is absent.

use std::io::Write;
use std::net::IpAddr;
use std::process::Command;

use super::outcomes::{extended, gateway_options, geneve, insert, patch};
use super::*;

/// A frame, and how many bytes of it were captured.
type Case = (&'static str, Vec<u8>, usize);

fn cases() -> Vec<Case> {
    let (four, six) = (
        v4_frame(b"GET / HTTP/1.1\r\n"),
        v6_frame(b"GET / HTTP/1.1\r\n"),
    );
    let tag = |kind: [u8; 2]| [kind[0], kind[1], 0x20, 5];
    let tags = |frame: &[u8], kinds: &[[u8; 2]]| {
        insert(
            frame,
            12,
            &kinds.iter().flat_map(|kind| tag(*kind)).collect::<Vec<_>>(),
        )
    };
    let options = |words: u8| {
        let len = u16::try_from(four.len() - 14).unwrap() + u16::from(words) * 4;
        let head = patch(
            patch(four.clone(), 14, &[0x45 + words]),
            16,
            &len.to_be_bytes(),
        );
        insert(&head, 34, &vec![1; usize::from(words) * 4])
    };
    let tcp_options = {
        let len = u16::try_from(four.len() - 14 + 40).unwrap();
        let head = patch(patch(four.clone(), 16, &len.to_be_bytes()), 46, &[0xf0]);
        insert(&head, 54, &[1; 40])
    };
    let authenticated = {
        let len = u16::try_from(four.len() - 14 + 12).unwrap();
        let head = patch(patch(four.clone(), 16, &len.to_be_bytes()), 23, &[51]);
        insert(&head, 34, &[6, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])
    };
    let snap = {
        let len = u16::try_from(four.len() - 14 + 8).unwrap();
        insert(
            &patch(four.clone(), 12, &len.to_be_bytes()),
            14,
            &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0],
        )
    };
    let mirrored = |vni: u32, frame: &[u8]| datagram(4789, &vxlan(vni, frame));
    let gateway = |frame: &[u8]| datagram(6081, &geneve(0x0800, &gateway_options(), &frame[14..]));
    let jumbo = v4_frame(&[b'x'; 8_960]);
    let whole = |name: &'static str, frame: Vec<u8>| {
        let len = frame.len();
        (name, frame, len)
    };
    vec![
        whole("plain", four.clone()),
        whole("802.1Q", tags(&six, &[[0x81, 0]])),
        whole("QinQ", tags(&four, &[[0x88, 0xa8], [0x81, 0]])),
        whole("three tags", tags(&four, &[[0x81, 0]; 3])),
        whole("LLC and SNAP", snap),
        whole("the shortest IPv4 options", options(1)),
        whole("the longest IPv4 options", options(10)),
        whole("the longest TCP options", tcp_options),
        whole("IPv4 authentication header", authenticated),
        whole(
            "IPv6 hop-by-hop and destination options",
            extended(&[0, 60], 0),
        ),
        whole("IPv6 atomic fragment", extended(&[44], 0)),
        whole("IPv6 authentication header", extended(&[51], 0)),
        whole("padding", [&four[..], &[0; 18]].concat()),
        ("a frame cut at 8,500", jumbo.clone(), 8_500),
        ("a frame cut in its payload", six.clone(), six.len() - 7),
        whole("a mirrored frame", mirrored(4_711, &six)),
        whole(
            "a mirrored frame cut at 8,500",
            mirrored(1, &jumbo[..8_500]),
        ),
        whole(
            "a mirrored frame with tags",
            mirrored(2, &tags(&four, &[[0x81, 0]])),
        ),
        whole(
            "GENEVE around Ethernet",
            datagram(6081, &geneve(0x6558, b"", &six)),
        ),
        whole(
            "GENEVE around IPv4",
            datagram(6081, &geneve(0x0800, &[0; 12], &four[14..])),
        ),
        whole(
            "GENEVE around IPv6",
            datagram(6081, &geneve(0x86dd, b"", &six[14..])),
        ),
        whole(
            "a Gateway Load Balancer's",
            gateway(&mirrored(0x00ab_cdef, &four)),
        ),
        whole(
            "a pod's in a mirrored node's",
            mirrored(7, &mirrored(8, &six)),
        ),
        whole("three tunnels", gateway(&mirrored(7, &mirrored(8, &four)))),
    ]
}

/// A pcap file of Ethernet frames (little-endian, microseconds).
fn pcap(cases: &[Case]) -> tempfile::NamedTempFile {
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let mut bytes = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 1]);
    for (n, (_, frame, captured)) in (0..).zip(cases) {
        let len = |len: usize| u32::try_from(len).unwrap();
        bytes.extend(words(&[
            1_700_000_000 + n,
            0,
            len(*captured),
            len(frame.len()),
        ]));
        bytes.extend(&frame[..*captured]);
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

/// What tshark says of a frame: of addresses the innermost pair, of identifiers the outermost.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    src: IpAddr,
    dst: IpAddr,
    ports: (u16, u16),
    numbers: (u32, u32),
    flags: u8,
    /// As the IP length says.
    payload: usize,
    vni: Option<u32>,
}

impl Seen {
    fn of(line: &str) -> Self {
        let columns: Vec<Vec<&str>> = line
            .split('\t')
            .map(|column| {
                column
                    .split(';')
                    .filter(|value| !value.is_empty())
                    .collect()
            })
            .collect();
        let last = |n: usize| columns[n].last().copied();
        let number = |n: usize| last(n).unwrap().parse::<u32>().unwrap();
        // Which family is the innermost one, the order of the protocols tells.
        let protocols = columns[0].last().unwrap();
        let (v4, v6) = (protocols.rfind(":ip:"), protocols.rfind(":ipv6:"));
        let (src, dst) = if v6 > v4 { (3, 4) } else { (1, 2) };
        Self {
            src: last(src).unwrap().parse().unwrap(),
            dst: last(dst).unwrap().parse().unwrap(),
            ports: (number(5).try_into().unwrap(), number(6).try_into().unwrap()),
            numbers: (number(7), number(8)),
            flags: u8::try_from(u32::from_str_radix(&last(9).unwrap()[2..], 16).unwrap() & 0x3f)
                .unwrap(),
            payload: number(10).try_into().unwrap(),
            vni: columns[11].first().map(|vni| vni.parse().unwrap()),
        }
    }
}

#[test]
fn each_way_of_stacking_headers_is_read_as_tshark_reads_it() {
    let cases = cases();
    let file = pcap(&cases);
    let fields = [
        "frame.protocols",
        "ip.src",
        "ip.dst",
        "ipv6.src",
        "ipv6.dst",
        "tcp.srcport",
        "tcp.dstport",
        "tcp.seq_raw",
        "tcp.ack_raw",
        "tcp.flags",
        "tcp.len",
        "vxlan.vni",
    ];
    let mut tshark = Command::new("tshark");
    tshark.args([
        "-n",
        "-T",
        "fields",
        "-E",
        "occurrence=a",
        "-E",
        "aggregator=;",
    ]);
    tshark.args(fields.iter().flat_map(|field| ["-e", field]));
    let Ok(out) = tshark.arg("-r").arg(file.path()).output() else {
        eprintln!("SKIPPED: tshark is not installed");
        return;
    };
    let text = String::from_utf8(out.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), cases.len());
    for ((name, frame, captured), line) in cases.iter().zip(lines) {
        let got = decode(&frame[..*captured]).unwrap_or_else(|outcome| panic!("{name}: {outcome}"));
        let ours = Seen {
            src: got.src.ip(),
            dst: got.dst.ip(),
            ports: (got.src.port(), got.dst.port()),
            numbers: (got.seq, got.ack),
            flags: got.flags,
            // What a mirror cut off, tshark counts only where the capture says so: the tunnel's length ends its view.
            payload: match got.vni {
                Some(_) => got.payload.len(),
                None => got.payload.len() + usize::try_from(got.cut).unwrap(),
            },
            vni: got.vni,
        };
        assert_eq!(ours, Seen::of(line), "{name}: {line}");
        // The capture's end is the frame's, cut or not, but for what pads it.
        if *name != "padding" {
            assert!(frame[..*captured].ends_with(&got.payload), "{name}");
        }
    }
}
