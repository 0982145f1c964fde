//! `rebuilder replay` over a real socket: what arrives gives the rows of the capture itself.
//!
//! A capture that took minutes arrives at once, so it is compared with itself told at the same pace. `ts` is left out,
//! because frames that `replay` does not send (no IP in them) take a stamp there and none here; `vni` is added.

use std::net::UdpSocket;
use std::sync::mpsc;
use std::time::Duration;

use rebuilder::decode::Vni;
use rebuilder::pipeline::PipelineOptions;
use rebuilder::receive::LinkType;
use rebuilder::replay::{self, ReplayOptions};
use rebuilder::time::Timestamp;

use crate::captures;
use crate::run::{Run, run};
use crate::wire::Owned;

/// Says that the sender is done; no mirrored packet is as short.
const END: &[u8] = b"end";

/// Sends a capture to a socket at this many packets a second; gives what arrives, or `None` where the system lost some
/// of it. (Its receive buffer may be as small as three of the largest packets.)
fn through_a_socket(file: &std::path::Path, pps: u64) -> Option<Vec<Owned>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let to = socket.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(len) = socket.recv(&mut buffer) {
            if &buffer[..len] == END {
                break;
            }
            sender.send(buffer[..len].to_vec()).unwrap();
        }
    });
    let report = replay::run(&ReplayOptions {
        file: file.to_owned(),
        to: to.to_string(),
        pps: Some(pps.try_into().unwrap()),
        loops: 1,
        vni: Vni(7),
    })
    .unwrap();
    let end = UdpSocket::bind("127.0.0.1:0").unwrap();
    end.send_to(END, to).unwrap();
    reading.join().unwrap();
    let arrived: Vec<Vec<u8>> = receiver.into_iter().collect();
    (arrived.len() as u64 == report.sent).then(|| stamped(LinkType::Vxlan, arrived))
}

/// Frames, a microsecond after each other.
fn stamped(link: LinkType, frames: Vec<Vec<u8>>) -> Vec<Owned> {
    let at = |n: usize| Timestamp(1_700_000_000_000_000_000 + n as u64 * 1_000);
    let frame = |(n, data)| Owned {
        ts: at(n),
        link,
        data,
    };
    frames.into_iter().enumerate().map(frame).collect()
}

fn rows(run: &Run) -> Vec<String> {
    let without = |row: &String| {
        let mut row: serde_json::Value = serde_json::from_str(row).unwrap();
        let fields = row.as_object_mut().unwrap();
        fields.remove("ts");
        fields.remove("vni");
        row.to_string()
    };
    let mut rows: Vec<_> = run.rows.iter().map(without).collect();
    // At another time another packet completes a request.
    rows.sort();
    rows
}

#[test]
fn a_replayed_capture_gives_the_requests_of_the_file() {
    let Some(files) = captures::corpus_files("a_replayed_capture_gives_the_requests_of_the_file")
    else {
        return;
    };
    let (mut replayed, mut requests) = (0, 0);
    for file in &files {
        let frames = captures::frames(file);
        let Some(link) = frames.first().map(|frame| frame.link) else {
            continue;
        };
        let frames = stamped(link, frames.into_iter().map(|frame| frame.data).collect());
        let want = run(&frames, &PipelineOptions::default());
        // Some are no captures, some are cut; `replay` has tests of its own for those.
        if want.rows.is_empty() || !captures::is_whole(file) {
            continue;
        }
        let arrived = [20_000, 5_000, 1_000, 500, 200, 200, 200, 200, 200]
            .into_iter()
            .find_map(|pps| through_a_socket(file, pps))
            .expect("a socket that takes a capture in one of nine tries");
        let got = run(&arrived, &PipelineOptions::default());
        assert_eq!(rows(&got), rows(&want), "{}", file.display());
        replayed += 1;
        requests += want.rows.len();
    }
    println!("{replayed} captures, {requests} requests");
    assert!(replayed >= 200, "only {replayed} captures were replayed");
}
