use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::pcapng::Order;
use super::window::{FIRST_WINDOW, LARGEST_WINDOW};
use super::*;

/// What a test expects of a packet: time, link type, bytes.
type Row = (u64, LinkType, Vec<u8>);

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read_path(path: &Path) -> (Vec<Row>, Option<CaptureError>) {
    let mut reader = match CaptureReader::open(path) {
        Ok(reader) => reader,
        Err(e) => return (Vec::new(), Some(e)),
    };
    let mut rows = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(frame)) => rows.push((frame.ts.0, frame.link, frame.data.to_vec())),
            Ok(None) => return (rows, None),
            Err(e) => {
                assert!(reader.next().unwrap().is_none());
                return (rows, Some(e));
            }
        }
    }
}

/// One packet at a time, and several at once: both must give the same.
fn read(bytes: &[u8]) -> (Vec<Row>, Option<CaptureError>) {
    let file = file(bytes);
    let (rows, error) = read_path(file.path());
    let (again, why) = read_few(CaptureReader::open(file.path()));
    assert_eq!(rows, again);
    assert_eq!(format!("{error:?}"), format!("{why:?}"));
    (rows, error)
}

fn read_few(reader: Result<CaptureReader, CaptureError>) -> (Vec<Row>, Option<CaptureError>) {
    let mut reader = match reader {
        Ok(reader) => reader,
        Err(e) => return (Vec::new(), Some(e)),
    };
    let mut rows = Vec::new();
    loop {
        let few = reader.next_few(5).map(|frames| {
            let rows = frames.map(|f| (f.ts.0, f.link, f.data.to_vec()));
            rows.collect::<Vec<_>>()
        });
        match few {
            Ok(few) if few.is_empty() => return (rows, None),
            Ok(few) => {
                assert!(few.len() <= 5);
                rows.extend(few);
            }
            Err(e) => {
                assert_eq!(reader.next_few(5).unwrap().len(), 0);
                return (rows, Some(e));
            }
        }
    }
}

fn rows(bytes: &[u8]) -> Vec<Row> {
    let (rows, error) = read(bytes);
    assert!(error.is_none(), "{error:?}");
    rows
}

fn one_line(error: &CaptureError) -> String {
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

/// Writes numbers in one byte order.
#[derive(Clone, Copy)]
struct Writer(Order);

impl Writer {
    fn u16(self, n: u16) -> [u8; 2] {
        match self.0 {
            Order::Little => n.to_le_bytes(),
            Order::Big => n.to_be_bytes(),
        }
    }

    fn u32(self, n: u32) -> [u8; 4] {
        match self.0 {
            Order::Little => n.to_le_bytes(),
            Order::Big => n.to_be_bytes(),
        }
    }

    fn len(self, n: usize) -> [u8; 4] {
        self.u32(u32::try_from(n).unwrap())
    }

    fn pcap_header(self, magic: u32, link: u32) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.u32(magic));
        out.extend(self.u16(2));
        out.extend(self.u16(4));
        for word in [0, 0, 262_144, link] {
            out.extend(self.u32(word));
        }
        out
    }

    fn pcap_record(self, sec: u32, frac: u32, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.u32(sec));
        out.extend(self.u32(frac));
        out.extend(self.len(data.len()));
        out.extend(self.len(data.len() + 9));
        out.extend(data);
        out
    }

    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let padded = body.len().next_multiple_of(4);
        let mut out = Vec::new();
        out.extend(self.u32(kind));
        out.extend(self.len(padded + 12));
        out.extend(body);
        out.resize(8 + padded, 0);
        out.extend(self.len(padded + 12));
        out
    }

    fn section(self) -> Vec<u8> {
        let mut body = self.u32(0x1a2b_3c4d).to_vec();
        body.extend(self.u16(1));
        body.extend(self.u16(0));
        body.extend([0xff; 8]);
        self.block(0x0a0d_0d0a, &body)
    }

    fn interface(self, link: u16, snaplen: u32, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = self.u16(link).to_vec();
        body.extend([0; 2]);
        body.extend(self.u32(snaplen));
        for (code, value) in options {
            body.extend(self.u16(*code));
            body.extend(self.u16(u16::try_from(value.len()).unwrap()));
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        if !options.is_empty() {
            body.extend([0; 4]);
        }
        self.block(1, &body)
    }

    fn enhanced(self, interface: u32, stamp: u64, data: &[u8]) -> Vec<u8> {
        let mut body = self.u32(interface).to_vec();
        body.extend(self.u32(u32::try_from(stamp >> 32).unwrap()));
        body.extend(self.u32(u32::try_from(stamp & 0xffff_ffff).unwrap()));
        body.extend(self.len(data.len()));
        body.extend(self.len(data.len()));
        body.extend(data);
        body.resize(body.len().next_multiple_of(4), 0);
        // A comment behind the packet.
        body.extend(self.u16(1));
        body.extend(self.u16(2));
        body.extend(b"hi\0\0\0\0\0\0");
        self.block(6, &body)
    }

    fn obsolete(self, interface: u16, stamp: u64, data: &[u8]) -> Vec<u8> {
        let mut body = self.u16(interface).to_vec();
        body.extend(self.u16(7));
        body.extend(self.u32(u32::try_from(stamp >> 32).unwrap()));
        body.extend(self.u32(u32::try_from(stamp & 0xffff_ffff).unwrap()));
        body.extend(self.len(data.len()));
        body.extend(self.len(data.len()));
        body.extend(data);
        self.block(2, &body)
    }

    fn simple(self, original: u32, data: &[u8]) -> Vec<u8> {
        let mut body = self.u32(original).to_vec();
        body.extend(data);
        self.block(3, &body)
    }
}

const LITTLE: Writer = Writer(Order::Little);
const BIG: Writer = Writer(Order::Big);

/// A pcap file of three packets, and where each record begins; the last offset is the file's end.
fn pcap_sample() -> (Vec<u8>, Vec<usize>) {
    let mut bytes = LITTLE.pcap_header(0xa1b2_c3d4, 1);
    let mut offsets = vec![bytes.len()];
    for data in [&b"abc"[..], b"", b"defgh"] {
        bytes.extend(LITTLE.pcap_record(1_700_000_000, 5, data));
        offsets.push(bytes.len());
    }
    (bytes, offsets)
}

/// A pcapng file with two sections of different byte order, five interfaces and every kind of packet block; the
/// offsets of its packet blocks; and what stands in it, by the format's specification.
fn pcapng_sample() -> (Vec<u8>, Vec<usize>, Vec<Row>) {
    const SECOND: u64 = 1_000_000_000;
    let mut blocks = vec![
        (false, LITTLE.section()),
        (false, LITTLE.interface(1, 0, &[])),
        (false, LITTLE.interface(101, 0, &[(9, &[9])])),
        (true, LITTLE.enhanced(0, 1_700_000_000_000_001, b"one")),
    ];
    let mut expected = vec![(
        1_700_000_000 * SECOND + 1_000,
        LinkType::Ethernet,
        b"one".to_vec(),
    )];
    blocks.push((true, LITTLE.enhanced(1, 1_700_000_001_000_000_002, b"two!")));
    expected.push((1_700_000_001 * SECOND + 2, LinkType::Raw, b"two!".to_vec()));
    // No time of its own: that of the packet before.
    blocks.push((true, LITTLE.simple(5, b"three")));
    expected.push((
        1_700_000_001 * SECOND + 2,
        LinkType::Ethernet,
        b"three".to_vec(),
    ));
    // Statistics and a kind that nobody knows are passed over.
    blocks.push((false, LITTLE.block(5, &[0; 12])));
    blocks.push((false, LITTLE.block(0x0bad_cafe, &[1; 5])));
    blocks.push((true, LITTLE.obsolete(1, 1_700_000_002_000_000_003, b"4")));
    expected.push((1_700_000_002 * SECOND + 3, LinkType::Raw, b"4".to_vec()));

    blocks.push((false, BIG.section()));
    // 2^10 units a second, an hour ahead; cut at 4 bytes.
    let offset = 3_600i64.to_be_bytes();
    blocks.push((
        false,
        BIG.interface(228, 4, &[(9, &[0x8a]), (14, &offset), (2, b"eth0")]),
    ));
    blocks.push((true, BIG.enhanced(0, 1_700_000_003 * 1_024 + 512, b"five")));
    expected.push((
        1_700_003_603 * SECOND + SECOND / 2,
        LinkType::Ipv4,
        b"five".to_vec(),
    ));
    blocks.push((true, BIG.simple(900, b"sixs")));
    expected.push((
        1_700_003_603 * SECOND + SECOND / 2,
        LinkType::Ipv4,
        b"sixs".to_vec(),
    ));
    blocks.push((true, BIG.obsolete(0, 0, b"")));
    expected.push((3_600 * SECOND, LinkType::Ipv4, Vec::new()));
    let mut bytes = Vec::new();
    let mut offsets = Vec::new();
    for (packet, block) in blocks {
        if packet {
            offsets.push(bytes.len());
        }
        bytes.extend(block);
    }
    (bytes, offsets, expected)
}

#[test]
fn pcap_is_read_in_both_byte_orders_and_both_resolutions() {
    let data = b"packet".to_vec();
    for (magic, nanos) in [(0xa1b2_c3d4, 7_000), (0xa1b2_3c4d, 7)] {
        for writer in [LITTLE, BIG] {
            let mut bytes = writer.pcap_header(magic, 276);
            bytes.extend(writer.pcap_record(1_700_000_000, 7, &data));
            bytes.extend(writer.pcap_record(u32::MAX, 0, b""));
            let expected = [
                (
                    1_700_000_000_000_000_000 + nanos,
                    LinkType::LinuxSll2,
                    data.clone(),
                ),
                (4_294_967_295_000_000_000, LinkType::LinuxSll2, Vec::new()),
            ];
            assert_eq!(rows(&bytes), expected);
        }
    }
}

#[test]
fn the_modified_pcap_of_old_linux_kernels_is_read() {
    let mut bytes = LITTLE.pcap_header(0xa1b2_cd34, 1);
    for data in [b"one", b"two"] {
        let record = LITTLE.pcap_record(1, 2, data);
        bytes.extend(&record[..16]);
        // Interface, protocol, packet type, padding.
        bytes.extend([9; 8]);
        bytes.extend(&record[16..]);
    }
    let row = |data: &[u8]| (1_000_002_000, LinkType::Ethernet, data.to_vec());
    assert_eq!(rows(&bytes), [row(b"one"), row(b"two")]);
}

#[test]
fn pcapng_is_read_with_sections_interfaces_and_every_kind_of_packet_block() {
    let (bytes, _, expected) = pcapng_sample();
    assert_eq!(rows(&bytes), expected);
}

#[test]
fn wireshark_reads_the_same_out_of_the_pcapng_sample() {
    let (bytes, _, expected) = pcapng_sample();
    let file = file(&bytes);
    let out = std::process::Command::new("tshark")
        .args([
            "-T",
            "fields",
            "-e",
            "frame.time_epoch",
            "-e",
            "frame.cap_len",
            "-r",
        ])
        .arg(file.path())
        .output();
    let Ok(out) = out else {
        eprintln!("SKIPPED: tshark is not installed");
        return;
    };
    let out = String::from_utf8(out.stdout).unwrap();
    assert_eq!(out.lines().count(), expected.len());
    for (line, (ts, _, data)) in out.lines().zip(&expected) {
        let (time, len) = line.split_once('\t').unwrap();
        assert_eq!(len.parse::<usize>().unwrap(), data.len());
        // Simple packet blocks have no time in Wireshark.
        if !time.is_empty() && time != "0.000000000" {
            let (seconds, nanos) = time.split_once('.').unwrap();
            let seconds: u64 = seconds.parse().unwrap();
            assert_eq!(seconds * 1_000_000_000 + nanos.parse::<u64>().unwrap(), *ts);
        }
    }
}

#[test]
fn a_gzipped_file_gives_the_same_packets_in_one_member_or_many() {
    for plain in [pcap_sample().0, pcapng_sample().0] {
        let expected = rows(&plain);
        assert_eq!(rows(&gzip(&plain)), expected);
        let (head, tail) = plain.split_at(plain.len() / 2);
        assert_eq!(rows(&[gzip(head), gzip(tail)].concat()), expected);
    }
}

#[test]
fn a_file_without_packets_is_a_capture_of_zero_packets() {
    assert_eq!(rows(&LITTLE.pcap_header(0xa1b2_c3d4, 1)), []);
    assert_eq!(rows(&BIG.section()), []);
}

#[test]
fn a_pcap_cut_anywhere_gives_the_packets_before_and_the_offset() {
    let (bytes, offsets) = pcap_sample();
    let whole = rows(&bytes);
    for cut in 4..=bytes.len() {
        for zipped in [false, true] {
            let cut_bytes = &bytes[..cut];
            let (rows, error) = if zipped {
                read(&gzip(cut_bytes))
            } else {
                read(cut_bytes)
            };
            let complete = offsets.iter().filter(|o| **o <= cut).count();
            assert_eq!(rows, whole[..complete.saturating_sub(1)]);
            if offsets.contains(&cut) {
                assert!(error.is_none());
                continue;
            }
            let began = offsets.iter().rfind(|o| **o < cut).copied().unwrap_or(0);
            let error = error.unwrap();
            let CaptureError::EndsInside { offset, end, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!((*offset, *end), (began as u64, cut as u64));
            let line = one_line(&error);
            assert!(line.contains(&format!("the one at byte {began} is cut at byte {cut}")));
        }
    }
}

#[test]
fn a_pcapng_cut_anywhere_gives_the_packets_before_and_an_error_unless_between_blocks() {
    let (bytes, offsets, whole) = pcapng_sample();
    let mut clean = 0;
    for cut in 4..bytes.len() {
        let (rows, error) = read(&bytes[..cut]);
        assert_eq!(rows, whole[..rows.len()]);
        // A packet is given as soon as its block is whole: at the latest where the next one begins.
        let begun = offsets.iter().filter(|o| **o < cut).count();
        assert!(rows.len() == begun || rows.len() + 1 == begun);
        match error {
            None => clean += 1,
            Some(CaptureError::EndsInside { offset, end, .. }) => {
                assert_eq!(end, cut as u64);
                assert!(offset < end);
            }
            Some(e) => panic!("{e}"),
        }
    }
    // Between two of its 14 blocks.
    assert_eq!(clean, 13);
}

#[test]
fn a_cut_gzip_stream_is_an_error_even_where_it_stops_between_two_records() {
    let (bytes, _) = pcap_sample();
    let zipped = gzip(&bytes);
    for cut in 2..zipped.len() {
        let (rows, error) = read(&zipped[..cut]);
        let error = error.unwrap_or_else(|| panic!("cut at {cut} of {}", zipped.len()));
        assert!(matches!(error, CaptureError::EndsInside { .. }), "{error}");
        assert!(rows.len() <= 3);
        one_line(&error);
    }
}

#[test]
fn a_damaged_gzip_stream_is_corrupt_and_what_stands_before_was_read() {
    let (bytes, _) = pcap_sample();
    let mut zipped = gzip(&bytes);
    // The checksum over the content, in the last eight bytes.
    let at = zipped.len() - 8;
    zipped[at] ^= 1;
    let (rows, error) = read(&zipped);
    let error = error.unwrap();
    assert!(matches!(error, CaptureError::Corrupt { .. }), "{error}");
    assert!(one_line(&error).contains("gzip"));
    assert_eq!(rows.len(), 3);
}

#[test]
fn what_is_no_capture_is_told_with_its_first_bytes() {
    let cases: [(&[u8], &str); 6] = [
        (b"", "nothing (it is empty)"),
        (b"GE", "47 45"),
        (b"GET / HTTP/1.1\r\n\r\n", "47 45 54 20"),
        (&[0; 100], "00 00 00 00"),
        // Begins as pcapng does, but goes on otherwise.
        (b"\n\r\r\nTable of contents", "0a 0d 0d 0a"),
        // A magic number of two bytes.
        (&[0xd4, 0xc3], "d4 c3"),
    ];
    for (bytes, begins) in cases {
        for bytes in [bytes.to_vec(), gzip(bytes)] {
            let (_, error) = read(&bytes);
            let error = error.unwrap();
            assert!(matches!(error, CaptureError::NotACapture { .. }), "{error}");
            assert!(one_line(&error).contains(begins), "{error}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_told_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("absent.pcap"), folder.path().to_owned()] {
        let (_, error) = read_path(&path);
        let error = error.unwrap();
        assert!(matches!(error, CaptureError::Unreadable { .. }), "{error}");
        assert!(one_line(&error).starts_with(path.to_str().unwrap()));
    }
}

#[test]
fn the_largest_record_is_read_and_one_byte_more_is_corrupt() {
    for (len, fits) in [(MAX_RECORD, true), (MAX_RECORD + 1, false)] {
        let mut bytes = LITTLE.pcap_header(0xa1b2_c3d4, 1);
        bytes.extend(LITTLE.u32(1));
        bytes.extend(LITTLE.u32(0));
        bytes.extend(LITTLE.len(len));
        bytes.extend(LITTLE.len(len));
        let file = file(&bytes);
        // The packet is a hole in the file: zeros that take no room.
        file.as_file().set_len((bytes.len() + len) as u64).unwrap();
        let mut reader = CaptureReader::open(file.path()).unwrap();
        match reader.next() {
            Ok(Some(frame)) => {
                assert!(fits);
                assert_eq!(frame.data.len(), len);
            }
            Err(CaptureError::Corrupt { offset, .. }) => {
                assert!(!fits);
                assert_eq!(offset, 24);
            }
            other => panic!("{other:?}"),
        }
        assert!(reader.window.buf.len() <= LARGEST_WINDOW);
    }
}

#[test]
fn a_length_that_lies_in_a_short_file_costs_no_memory() {
    let mut bytes = LITTLE.pcap_header(0xa1b2_c3d4, 1);
    bytes.extend(LITTLE.pcap_record(1, 0, b"x"));
    bytes.extend([0; 8]);
    bytes.extend(LITTLE.len(MAX_RECORD));
    bytes.extend([0; 4]);
    let file = file(&bytes);
    let mut reader = CaptureReader::open(file.path()).unwrap();
    assert!(reader.next().unwrap().is_some());
    assert!(matches!(
        reader.next(),
        Err(CaptureError::EndsInside { offset: 41, .. })
    ));
    assert_eq!(reader.window.buf.len(), FIRST_WINDOW);
}

#[test]
fn a_block_without_packets_may_be_larger_than_the_cap_and_is_not_held() {
    let len = MAX_RECORD + 64;
    let mut bytes = LITTLE.section();
    bytes.extend(LITTLE.interface(1, 0, &[]));
    bytes.extend(LITTLE.u32(0x0bad_cafe));
    bytes.extend(LITTLE.len(len));
    let file = file(&bytes);
    let mut handle = file.as_file();
    handle.set_len((bytes.len() + len - 12) as u64).unwrap();
    std::io::Seek::seek(&mut handle, std::io::SeekFrom::End(0)).unwrap();
    handle.write_all(&LITTLE.len(len)).unwrap();
    handle.write_all(&LITTLE.enhanced(0, 1, b"x")).unwrap();
    let mut reader = CaptureReader::open(file.path()).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().data, b"x");
    assert!(reader.next().unwrap().is_none());
    assert_eq!(reader.window.buf.len(), FIRST_WINDOW);
}

#[test]
fn a_section_may_describe_so_many_interfaces_and_no_more() {
    let mut bytes = LITTLE.section();
    let interface = LITTLE.interface(1, 0, &[]);
    bytes.extend(interface.repeat(MAX_INTERFACES));
    let last = u32::try_from(MAX_INTERFACES - 1).unwrap();
    bytes.extend(LITTLE.enhanced(last, 1, b"x"));
    assert_eq!(rows(&bytes).len(), 1);
    let at = bytes.len() as u64;
    bytes.extend(interface);
    match read(&bytes) {
        (rows, Some(CaptureError::Corrupt { offset, .. })) => {
            assert_eq!((rows.len(), offset), (1, at));
        }
        other => panic!("{:?}", other.1),
    }
}

#[test]
fn a_block_that_contradicts_itself_is_corrupt_at_its_offset() {
    let start = [LITTLE.section(), LITTLE.interface(1, 0, &[])].concat();
    let good = LITTLE.enhanced(0, 1, b"good");
    let broken = |at: usize, word: u32| {
        let mut block = LITTLE.enhanced(0, 1, b"0123456789");
        block[at..at + 4].copy_from_slice(&LITTLE.u32(word));
        block
    };
    let cases = [
        // Its own length: below a block's frame; not the one at its end.
        broken(4, 8),
        broken(4, 48),
        // An interface that is not described.
        broken(8, 1),
        // A packet longer than its block.
        broken(20, 1_000),
        broken(20, u32::MAX),
        // A resolution of 10^99 units a second.
        LITTLE.interface(1, 0, &[(9, &[99])]),
        // Simple and obsolete packets longer than their blocks.
        LITTLE.simple(100, b"short"),
        LITTLE.block(2, &[&[0; 12][..], &LITTLE.u32(5), &[0; 8]].concat()),
        LITTLE.block(2, b"none"),
    ];
    for block in cases {
        let bytes = [&start[..], &good, &block, &good].concat();
        let (rows, error) = read(&bytes);
        assert_eq!(rows.len(), 1, "{block:02x?}");
        match error.unwrap() {
            CaptureError::Corrupt { offset, .. } => {
                assert_eq!(offset, (start.len() + good.len()) as u64);
            }
            e => panic!("{e} for {block:02x?}"),
        }
    }
}

#[test]
fn no_time_stamp_passes_for_the_end_of_time_or_a_time_before_the_epoch() {
    let early = (-5i64).to_le_bytes();
    let mut bytes = LITTLE.section();
    bytes.extend(LITTLE.interface(1, 0, &[(9, &[0])]));
    bytes.extend(LITTLE.interface(1, 0, &[(14, &early)]));
    bytes.extend(LITTLE.enhanced(0, u64::MAX, b""));
    bytes.extend(LITTLE.enhanced(1, 4_000_000, b""));
    let times: Vec<_> = rows(&bytes).iter().map(|r| r.0).collect();
    assert_eq!(times, [u64::MAX - 1, 0]);
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic_or_read_on_for_ever(
        ng in any::<bool>(),
        zipped in any::<bool>(),
        keep in 0usize..400,
        tail in prop::collection::vec(any::<u8>(), 0..200),
        flips in prop::collection::vec((0usize..400, any::<u8>()), 0..6),
    ) {
        let mut bytes = if ng { pcapng_sample().0 } else { pcap_sample().0 };
        bytes.truncate(keep);
        bytes.extend(tail);
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let len = bytes.len();
        if zipped {
            bytes = gzip(&bytes);
        }
        let (rows, _) = read(&bytes);
        prop_assert!(rows.len() <= len / 12);
        prop_assert!(rows.iter().map(|r| r.2.len()).sum::<usize>() <= len);
    }
}
