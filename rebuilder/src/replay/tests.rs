use std::io::Write;
use std::path::Path;

use etherparse::PacketBuilder;

use super::*;
use crate::decode::{DecodeOptions, Decoder};
use crate::receive::udp::{UdpOptions, UdpReceiver, bind_group};
use crate::time::Timestamp;

/// A pcap file (little-endian, microseconds).
fn pcap(folder: &Path, link: u32, frames: &[Vec<u8>]) -> PathBuf {
    let path = folder.join(format!("{link}.pcap"));
    let mut file = std::fs::File::create(&path).unwrap();
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, link] {
        file.write_all(&u32::to_le_bytes(word)).unwrap();
    }
    for frame in frames {
        let len = u32::try_from(frame.len()).unwrap();
        for word in [1, 2, len, len] {
            file.write_all(&u32::to_le_bytes(word)).unwrap();
        }
        file.write_all(frame).unwrap();
    }
    path
}

fn ethernet(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(port, 80, 7, 1_000)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

fn receiver() -> UdpReceiver {
    let addr = "127.0.0.1:0".parse().unwrap();
    bind_group(addr, 1, &UdpOptions::default())
        .unwrap()
        .remove(0)
}

fn options(file: PathBuf, receiver: &UdpReceiver) -> ReplayOptions {
    ReplayOptions {
        file,
        to: receiver.local_addr().to_string(),
        pps: None,
        loops: 1,
        vni: Vni(0x0012_3456),
    }
}

fn received(receiver: &mut UdpReceiver) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    receiver
        .drain(usize::MAX, Timestamp(0), |f| all.push(f.data.to_vec()))
        .unwrap();
    all
}

#[test]
fn a_bare_ethernet_frame_is_wrapped_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let frame = ethernet(1, b"hello");
    let file = pcap(folder.path(), 1, std::slice::from_ref(&frame));
    let mut receiver = receiver();
    let report = run(&options(file, &receiver)).unwrap();
    assert_eq!((report.sent, report.skipped.len()), (1, 0));
    let mut expected = vec![0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0];
    expected.extend(frame);
    assert_eq!(received(&mut receiver), [expected]);
}

#[test]
fn a_wrapped_frame_goes_out_from_its_vxlan_header_on_reserved_bits_included() {
    let folder = tempfile::tempdir().unwrap();
    let mut vxlan = vec![0xff, 1, 2, 3, 0, 0, 9, 0x77];
    vxlan.extend(ethernet(1, b"hello"));
    let mut outer = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 9], 64)
        .udp(65_500, 4789)
        .write(&mut outer, &vxlan)
        .unwrap();
    let mut receiver = receiver();
    let file = pcap(folder.path(), 1, &[outer]);
    assert_eq!(run(&options(file, &receiver)).unwrap().sent, 1);
    assert_eq!(received(&mut receiver), [vxlan]);
}

#[test]
fn frames_of_other_link_types_get_an_ethernet_header_and_decode_to_what_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let v4 = ethernet(1, b"hello")[14..].to_vec();
    let mut v6 = Vec::new();
    PacketBuilder::ipv6([1; 16], [2; 16], 64)
        .tcp(1, 80, 7, 1_000)
        .write(&mut v6, b"hello")
        .unwrap();
    let prefixed = |prefix: &[u8], packet: &[u8]| [prefix, packet].concat();
    let sll = [0, 4, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0x86, 0xdd];
    let mut sll2 = [0; 20];
    sll2[0] = 0x08;
    let cases = [
        (0, prefixed(&[2, 0, 0, 0], &v4)),
        (108, prefixed(&[0, 0, 0, 30], &v6)),
        (101, v4.clone()),
        (228, v4.clone()),
        (229, v6.clone()),
        (113, prefixed(&sll, &v6)),
        (276, prefixed(&sll2, &v4)),
    ];
    for (link, frame) in cases {
        let mut receiver = receiver();
        let is_v6 = frame.ends_with(&v6);
        let file = pcap(folder.path(), link, &[frame]);
        let report = run(&options(file, &receiver)).unwrap();
        assert_eq!((report.sent, report.skipped.len()), (1, 0), "link {link}");
        let datagram = received(&mut receiver).remove(0);
        let frame = Frame {
            ts: Timestamp(0),
            link: LinkType::Vxlan,
            data: &datagram,
        };
        let mut decoder = Decoder::new(DecodeOptions::default());
        let segment = decoder.decode(&frame).unwrap();
        assert_eq!(segment.src.port(), 1);
        assert_eq!(segment.src.is_ipv6(), is_v6, "link {link}");
        assert_eq!(segment.payload, b"hello");
    }
}

#[test]
fn what_cannot_be_sent_is_skipped_by_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut receiver = receiver();
    // The largest that fits, and one byte more.
    let fits = MAX_PAYLOAD - 8;
    let frames = [vec![1; fits], vec![1; fits + 1]];
    let report = run(&options(pcap(folder.path(), 1, &frames), &receiver)).unwrap();
    assert_eq!(report.sent, 1);
    assert_eq!(report.skipped, BTreeMap::from([("too_large", 1)]));
    assert_eq!(received(&mut receiver).len(), 1);

    let unknown = pcap(folder.path(), 127, &[vec![0; 60]]);
    let report = run(&options(unknown, &receiver)).unwrap();
    assert_eq!(report.skipped, BTreeMap::from([("link_type", 1)]));

    // An ARP message and a frame of two bytes, as Linux cooked captures.
    let arp = vec![0, 4, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 8, 6, 0, 1];
    let cooked = pcap(folder.path(), 113, &[arp, vec![0; 2]]);
    let report = run(&options(cooked, &receiver)).unwrap();
    let reasons = BTreeMap::from([("bad_link", 1), ("not_ip", 1)]);
    assert_eq!((report.sent, report.skipped), (0, reasons));
}

#[test]
fn loops_and_pace_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let frames: Vec<_> = (0..20).map(|n| ethernet(n, b"x")).collect();
    let mut receiver = receiver();
    let mut options = options(pcap(folder.path(), 1, &frames), &receiver);
    options.loops = 3;
    options.pps = NonZeroU64::new(500);
    let report = run(&options).unwrap();
    assert_eq!(report.sent, 60);
    // The last of 60 is due after 59/500 s.
    assert!(report.elapsed >= Duration::from_millis(117), "{report:?}");
    assert_eq!(received(&mut receiver).len(), 60);
}

#[test]
fn a_bad_target_a_closed_port_and_a_missing_file_are_each_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let frames = vec![ethernet(1, b"x"); 1_000];
    let receiver = receiver();
    let mut options = options(pcap(folder.path(), 1, &frames), &receiver);
    drop(receiver);
    let closed = run(&options).unwrap_err();
    assert!(matches!(closed, ReplayError::Refused { .. }), "{closed}");
    options.to = "nowhere".to_owned();
    let target = run(&options).unwrap_err();
    assert!(matches!(target, ReplayError::Target { .. }), "{target}");
    options.to = "127.0.0.1:9".to_owned();
    options.file = folder.path().join("absent.pcap");
    let file = run(&options).unwrap_err();
    assert!(matches!(file, ReplayError::Capture(_)), "{file}");
    for e in [closed, target, file] {
        assert_eq!(e.to_string().lines().count(), 1, "{e}");
    }
}
