//! Files that are mapped: pieces, and files that change while they are read.

use std::io::Seek;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::RwLock;
use std::thread;

use super::super::pieces::PIECE;
use super::*;
use crate::receive::mapping::{MOST, Mapping};

/// Held to read by who needs a mapping, and to write by who takes all of them away.
static PLACES: RwLock<()> = RwLock::new(());

impl CaptureReader {
    fn is_mapped(&self) -> bool {
        self.window.pieces.is_some()
    }
}

fn mapped(path: &Path) -> CaptureReader {
    let reader = CaptureReader::open(path).unwrap();
    assert!(reader.is_mapped());
    reader
}

/// A pcap file whose records have these lengths, and where each begins and the last ends. A packet's bytes tell it from
/// any other, and none is zero.
fn pcap_of(lens: &[usize]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = LITTLE.pcap_header(0xa1b2_c3d4, 1);
    let mut offsets = vec![bytes.len()];
    for (n, len) in lens.iter().enumerate() {
        bytes.extend(LITTLE.pcap_record(7, u32::try_from(n).unwrap(), &data(n, *len)));
        offsets.push(bytes.len());
    }
    (bytes, offsets)
}

fn data(n: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((n + at) % 255 + 1).unwrap())
        .collect()
}

fn row(n: usize, len: usize) -> Row {
    let ts = 7_000_000_000 + 1_000 * n as u64;
    (ts, LinkType::Ethernet, data(n, len))
}

fn rows_of(lens: &[usize]) -> Vec<Row> {
    lens.iter().enumerate().map(|(n, l)| row(n, *l)).collect()
}

/// What is left of a reader.
fn rest(mut reader: CaptureReader) -> (Vec<Row>, Option<CaptureError>) {
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

proptest! {
    #[test]
    fn records_that_straddle_pieces_are_read_as_from_a_stream(
        lens in prop::collection::vec(
            prop_oneof![4 => 0..200usize, 2 => PIECE - 50..PIECE + 50, 1 => 0..3 * PIECE],
            1..40,
        ),
        cut in 0..20usize,
    ) {
        let (mut bytes, offsets) = pcap_of(&lens);
        bytes.truncate(bytes.len() - cut);
        let complete = offsets.iter().filter(|o| **o <= bytes.len()).count() - 1;
        // Both ways.
        let (rows, error) = read(&bytes);
        prop_assert_eq!(rows, rows_of(&lens[..complete]));
        prop_assert_eq!(error.is_none(), offsets.contains(&bytes.len()));
    }
}

#[test]
fn blocks_of_pcapng_that_straddle_pieces_are_read_as_from_a_stream() {
    let mut bytes = [LITTLE.section(), LITTLE.interface(1, 0, &[])].concat();
    let mut expected = Vec::new();
    for n in 0..300 {
        let data = data(n, n * 7 % 500);
        bytes.extend(LITTLE.enhanced(0, n as u64, &data));
        expected.push((1_000 * n as u64, LinkType::Ethernet, data));
        if n % 50 == 0 {
            bytes.extend(LITTLE.block(0x0bad_cafe, &vec![9; 2 * PIECE + n]));
        }
    }
    assert_eq!(rows(&bytes), expected);
}

#[test]
fn no_more_of_a_file_is_mapped_than_a_piece_or_the_record_that_needs_more() {
    let _places = PLACES.read().unwrap();
    let large = 5 * PIECE;
    let (bytes, _) = pcap_of(&[&[100; 400][..], &[large], &[100; 400]].concat());
    let file = file(&bytes);
    let mut reader = mapped(file.path());
    let mut largest = 0;
    while let Some(frame) = reader.next().unwrap() {
        let len = frame.data.len();
        let held = reader.window.memory().len();
        largest = largest.max(held);
        // In these tests a piece is a page, which a record may begin in and leave.
        assert!(held <= 2 * PIECE || len == large, "{held} for {len}");
        assert!(reader.is_mapped());
    }
    // With what stands before it in its first page.
    assert!((large..large + 4096 + 16).contains(&largest), "{largest}");
}

#[test]
fn a_file_that_grows_is_read_on() {
    let _places = PLACES.read().unwrap();
    let lens = [300; 100];
    let (bytes, offsets) = pcap_of(&lens);
    // The file ends between two records, inside one, and with the first page.
    for end in [offsets[40], offsets[40] + 100, PIECE] {
        let file = file(&bytes[..end]);
        let mut reader = mapped(file.path());
        let mut rows = Vec::new();
        for _ in 0..offsets.iter().filter(|o| **o <= end).count() - 1 {
            let frame = reader.next().unwrap().unwrap();
            rows.push((frame.ts.0, frame.link, frame.data.to_vec()));
        }
        file.as_file().write_all(&bytes[end..]).unwrap();
        let (more, error) = rest(reader);
        assert!(error.is_none(), "{error:?}");
        rows.extend(more);
        assert_eq!(rows, rows_of(&lens));
    }
}

/// Reads `first` packets, cuts the file at `cut`, and reads the rest: the rows of all.
fn cut_while_read(
    file: &NamedTempFile,
    first: usize,
    cut: usize,
) -> (Vec<Row>, Option<CaptureError>) {
    let mut reader = mapped(file.path());
    let mut rows = Vec::new();
    for _ in 0..first {
        let frame = reader.next().unwrap().unwrap();
        rows.push((frame.ts.0, frame.link, frame.data.to_vec()));
    }
    file.as_file().set_len(cut as u64).unwrap();
    let (more, error) = rest(reader);
    rows.extend(more);
    (rows, error)
}

/// Of `lens`, cut at `cut` while it was read.
fn check_cut(lens: &[usize], offsets: &[usize], cut: usize, got: (Vec<Row>, Option<CaptureError>)) {
    let (rows, error) = got;
    let complete = offsets.iter().filter(|o| **o <= cut).count() - 1;
    assert_eq!(rows[..complete], rows_of(lens)[..complete], "cut at {cut}");
    // The one that was cut may be given, with zeros behind the cut.
    assert!(rows.len() <= complete + 1, "cut at {cut}: {}", rows.len());
    if let Some((_, _, data)) = rows.get(complete) {
        let there = cut.saturating_sub(offsets[complete] + 16);
        assert!(data[there..].iter().all(|b| *b == 0), "cut at {cut}");
    }
    let error = error.unwrap_or_else(|| panic!("no error, cut at {cut}"));
    let CaptureError::Lost { offset, .. } = &error else {
        panic!("{error}, cut at {cut}");
    };
    assert_eq!(*offset, cut as u64);
    let line = one_line(&error);
    assert!(line.contains(&format!("gone from byte {cut} on")), "{line}");
}

#[test]
fn a_file_that_is_cut_while_it_is_read_gives_what_stands_before_the_cut_and_an_error() {
    let _places = PLACES.read().unwrap();
    let lens: Vec<_> = (0..120).map(|n| 30 + n * 37 % 600).collect();
    let (bytes, offsets) = pcap_of(&lens);
    let read = 5;
    assert!(offsets[read] < PIECE && bytes.len() > 8 * PIECE);
    // In the piece that is mapped, in later ones; at the edge of a page, of a record, in its numbers and in its packet.
    let mut cuts = vec![PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 7 * PIECE];
    for offset in [offsets[6], offsets[8], offsets[60]] {
        cuts.extend([offset, offset + 8, offset + 16, offset + 21]);
    }
    for cut in cuts {
        let file = file(&bytes);
        check_cut(&lens, &offsets, cut, cut_while_read(&file, read, cut));
    }
}

#[test]
fn a_packet_that_is_cut_while_it_is_looked_at_ends_in_zeros_and_the_next_call_is_an_error() {
    let _places = PLACES.read().unwrap();
    let (bytes, offsets) = pcap_of(&[100, 5 * PIECE, 100]);
    let file = file(&bytes);
    let mut reader = mapped(file.path());
    assert_eq!(reader.next().unwrap().unwrap().data, data(0, 100));
    let cut = 3 * PIECE;
    let there = cut - offsets[1] - 16;
    {
        let large = reader.next().unwrap().unwrap().data;
        file.as_file().set_len(cut as u64).unwrap();
        assert_eq!(large[..there], data(1, there));
        assert!(large[there..].iter().all(|b| *b == 0));
    }
    match reader.next() {
        Err(CaptureError::Lost { offset, .. }) => assert_eq!(offset, cut as u64),
        other => panic!("{other:?}"),
    }
    assert!(reader.next().unwrap().is_none());
}

#[test]
fn a_pcapng_that_is_cut_while_it_is_read_is_no_corrupt_one() {
    let _places = PLACES.read().unwrap();
    let mut bytes = [LITTLE.section(), LITTLE.interface(1, 0, &[])].concat();
    let mut offsets = vec![bytes.len()];
    for n in 0..100 {
        bytes.extend(LITTLE.enhanced(0, n as u64, &data(n, 200)));
        offsets.push(bytes.len());
    }
    for cut in [
        offsets[9],
        offsets[9] + 6,
        offsets[9] + 100,
        PIECE,
        offsets[50],
    ] {
        let file = file(&bytes);
        let (rows, error) = cut_while_read(&file, 3, cut);
        // A block's length stands at its end too, so none is given that is cut.
        let complete = offsets.iter().filter(|o| **o <= cut).count() - 1;
        assert_eq!(rows.len(), complete, "cut at {cut}");
        match error {
            Some(CaptureError::Lost { offset, .. }) => assert_eq!(offset, cut as u64),
            other => panic!("{other:?}, cut at {cut}"),
        }
    }
}

#[test]
fn files_that_are_cut_while_threads_read_them_do_not_disturb_each_other() {
    let _places = PLACES.read().unwrap();
    let lens = [90; 400];
    let (bytes, offsets) = pcap_of(&lens);
    thread::scope(|scope| {
        for thread in 0..4 {
            let (bytes, offsets) = (&bytes, &offsets);
            scope.spawn(move || {
                for round in 0..50 {
                    let file = file(bytes);
                    // One of them is left whole.
                    if thread == 3 {
                        let (rows, error) = rest(mapped(file.path()));
                        assert!(error.is_none(), "{error:?}");
                        assert_eq!(rows, rows_of(&lens));
                        continue;
                    }
                    let cut = PIECE + 500 * round + 7 * thread;
                    let got = cut_while_read(&file, 10, cut);
                    check_cut(&lens, offsets, cut, got);
                }
            });
        }
    });
}

#[test]
fn where_nothing_more_is_mapped_a_file_is_read_from_its_beginning_or_from_where_it_is() {
    let _places = PLACES.write().unwrap();
    // The first record ends with the first piece.
    let lens = [PIECE - 24 - 16, 50, 3 * PIECE, 50];
    let (bytes, _) = pcap_of(&lens);
    let file = file(&bytes);
    let mut begun = mapped(file.path());
    assert_eq!(begun.next().unwrap().unwrap().data, data(0, lens[0]));
    assert_eq!(begun.window.available(), 0);
    let mut taken = vec![begun.window.pieces.as_mut().unwrap().piece.take().unwrap()];
    // Other tests map files without saying so, for a moment.
    while taken.len() < MOST {
        taken.extend(Mapping::new(file.as_file(), 0, 1));
    }
    assert!(Mapping::new(file.as_file(), 0, 1).is_err());
    let (rows, error) = rest(CaptureReader::open(file.path()).unwrap());
    assert!(error.is_none(), "{error:?}");
    assert_eq!(rows, rows_of(&lens));
    let frame = begun.next().unwrap().unwrap();
    assert_eq!(frame.data, data(1, lens[1]));
    assert!(!begun.is_mapped());
    assert_eq!(rest(begun).0, rows_of(&lens)[2..]);
    drop(taken);
    mapped(file.path());
}

#[test]
fn pipes_and_zipped_files_are_read() {
    let (bytes, _) = pcap_of(&[100; 200]);
    let zipped = file(&gzip(&bytes));
    let reader = CaptureReader::open(zipped.path()).unwrap();
    assert!(!reader.is_mapped());
    assert_eq!(rest(reader).0, rows_of(&[100; 200]));

    let (from, mut to) = std::io::pipe().unwrap();
    let writer = thread::spawn(move || to.write_all(&bytes));
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&from));
    let reader = CaptureReader::open(Path::new(&path)).unwrap();
    assert!(!reader.is_mapped());
    assert_eq!(rest(reader).0, rows_of(&[100; 200]));
    writer.join().unwrap().unwrap();
}

const CHILD: &str = "MAPPED_TESTS_CHILD";

/// Ends the process in the way that the test below names.
#[test]
#[ignore = "run in a process of its own by the test below"]
fn a_child_with_a_bus_error() {
    let Ok(way) = std::env::var(CHILD) else {
        return;
    };
    let (bytes, _) = pcap_of(&[100; 200]);
    let mut file = file(&bytes);
    if way == "sent" {
        // SAFETY: no handler.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
    let mut reader = mapped(file.path());
    reader.next().unwrap();
    if way == "sent" {
        // SAFETY: no pointers.
        unsafe { libc::raise(libc::SIGBUS) };
        unreachable!("a signal without a handler ends the process");
    }
    // A mapping that is none of the reader's.
    // SAFETY: at a place that the kernel chooses; it is never unmapped.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes.len(),
            libc::PROT_READ,
            libc::MAP_SHARED,
            std::os::fd::AsRawFd::as_raw_fd(file.as_file()),
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    file.rewind().unwrap();
    file.as_file().set_len(PIECE as u64).unwrap();
    // SAFETY: mapped above. It faults, which is what is tested.
    let byte = unsafe { start.cast::<u8>().add(PIECE + 1).read_volatile() };
    unreachable!("read {byte} where nothing is");
}

#[test]
fn a_bus_error_that_is_not_ours_ends_the_process_as_before() {
    for way in ["fault", "sent"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture"])
            .arg("receive::capture::tests::mapped::a_child_with_a_bus_error")
            .env(CHILD, way)
            .output()
            .unwrap();
        assert_eq!(
            child.status.signal(),
            Some(libc::SIGBUS),
            "{way}: {:?}, {}",
            child.status,
            String::from_utf8_lossy(&child.stderr)
        );
    }
}
