//! `rebuilder inspect` on files that are large, or that somebody changes meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod wire;

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::NamedTempFile;
use wire::{Sender, a_second_apart, pcap};

/// More requests than a pipe takes the rows of, and where the record of each begins in the file.
fn requests(count: usize) -> (Vec<u8>, Vec<usize>) {
    let mut sender = Sender::new("10.1.0.7:40000", "10.0.0.2:80");
    let padding = "p".repeat(900);
    let frames = (0..count).map(|n| {
        sender.data(format!(
            "GET /{n} HTTP/1.1\r\nHost: x\r\nPadding: {padding}\r\n\r\n"
        ))
    });
    let records = a_second_apart(frames.collect());
    let file = pcap(&records);
    let mut offset = 24;
    let mut offsets = Vec::new();
    for record in &records {
        offsets.push(offset);
        offset += 16 + record.frame.len();
    }
    assert_eq!(offset, file.len());
    (file, offsets)
}

/// `inspect --json`, which waits as soon as it has printed what its standard output takes unread.
fn inspect(path: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_rebuilder"))
        .args(["inspect", "--json"])
        .arg(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What it has printed when it has ended: rows, standard error.
fn ended(mut child: Child, mut out: impl Read) -> (Vec<Value>, String, Option<i32>) {
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    let rows = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    (rows, said, child.wait().unwrap().code())
}

#[test]
fn a_file_that_is_cut_while_it_is_read_gives_the_requests_before_the_cut_and_one_line() {
    let (bytes, offsets) = requests(3_000);
    // Far behind all that can be printed into a pipe (64 KiB) and a buffer, and before the end: at the edge of a page, of a
    // record, and within one.
    for cut in [400 * 4096, offsets[1_500], offsets[1_700] + 500] {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let mut child = inspect(file.path());
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        // So it has the file.
        out.read_line(&mut first).unwrap();
        file.as_file().set_len(cut as u64).unwrap();
        let (rows, said, code) = ended(child, out);
        let whole = offsets.iter().filter(|o| **o <= cut).count() - 1;
        let targets: Vec<_> = rows.iter().map(|r| r["target"].as_str().unwrap()).collect();
        let expected: Vec<_> = (1..whole).map(|n| format!("/{n}")).collect();
        assert!(first.contains("\"/0\""), "{first}");
        assert_eq!(targets, expected, "cut at {cut}");
        // Between two records it is a shorter file.
        let inside = !offsets.contains(&cut);
        assert_eq!(code, Some(i32::from(inside)), "{said}");
        assert_eq!(said.lines().count(), usize::from(inside), "{said}");
        let name = file.path().to_str().unwrap();
        let says = format!("{name}: ends inside a record: ");
        let cut = format!("is cut at byte {cut};");
        assert!(
            !inside || (said.contains(&says) && said.contains(&cut)),
            "{said}"
        );
    }
}

#[test]
fn a_file_that_grows_while_it_is_read_is_read_to_its_new_end() {
    let (bytes, offsets) = requests(3_000);
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&bytes[..offsets[1_500] + 100]).unwrap();
    let mut child = inspect(file.path());
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    file.write_all(&bytes[offsets[1_500] + 100..]).unwrap();
    let (rows, said, code) = ended(child, out);
    assert_eq!((rows.len(), said.as_str(), code), (2_999, "", Some(0)));
}

/// A figure of a process, in bytes (proc_pid_status(5)).
fn status(child: &Child, name: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    let kib: usize = line.split_whitespace().next().unwrap().parse().unwrap();
    kib << 10
}

#[test]
fn a_large_file_takes_no_more_memory_than_a_small_one() {
    const HOLE: u32 = 1 << 20;
    let (requests, _) = requests(400);
    let peaks = [8, 400].map(|holes| {
        // Packets of zeros that take no room on the disk, and requests behind them.
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&requests[..24]).unwrap();
        for _ in 0..holes {
            for word in [1, 0, HOLE, HOLE] {
                file.write_all(&word.to_le_bytes()).unwrap();
            }
            file.seek(SeekFrom::Current(HOLE.into())).unwrap();
        }
        file.write_all(&requests[24..]).unwrap();
        let mut child = inspect(file.path());
        let mut out = BufReader::new(child.stdout.take().unwrap());
        // It is behind the holes, and stays until it can print more.
        out.read_line(&mut String::new()).unwrap();
        let peaks = ["VmHWM:", "VmPeak:"].map(|name| status(&child, name));
        let (rows, said, code) = ended(child, out);
        assert_eq!((rows.len(), said.as_str(), code), (399, "", Some(0)));
        peaks
    });
    let [
        [resident, address_space],
        [more_resident, more_address_space],
    ] = peaks;
    println!(
        "resident {resident} and {more_resident}, addresses {address_space} and {more_address_space}"
    );
    assert!(more_resident < resident + (4 << 20), "{peaks:?}");
    assert!(more_address_space < address_space + (4 << 20), "{peaks:?}");
    assert!(more_resident < 64 << 20, "{peaks:?}");
}
