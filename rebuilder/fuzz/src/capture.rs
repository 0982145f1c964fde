//! Capture files, and their frames through the whole path.

use std::io::{self, Read};
use std::path::Path;

use rebuilder::http::HttpOptions;
use rebuilder::pipeline::{Pipeline, PipelineOptions};
use rebuilder::receive::LinkType;
use rebuilder::receive::capture::CaptureReader;
use rebuilder::stream::{End, StreamOptions};

use crate::forwarded;
use crate::http::Dice;

/// Gives a file in pieces, as pipes and decompressors do.
struct Trickle {
    bytes: Vec<u8>,
    at: usize,
    most: usize,
}

impl Read for Trickle {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let rest = &self.bytes[self.at..];
        let n = rest.len().min(self.most).min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Ok(n)
    }
}

/// A frame as a file gave it: time, link type, bytes.
type Row = (u64, LinkType, Vec<u8>);

fn read(data: &[u8], most: usize) -> (Vec<Row>, Option<String>) {
    let source = Trickle {
        bytes: data.to_vec(),
        at: 0,
        most,
    };
    let mut rows: Vec<Row> = Vec::new();
    let mut reader = match CaptureReader::from_reader(Path::new("fuzz.pcap"), source) {
        Ok(reader) => reader,
        Err(e) => return (rows, Some(e.to_string())),
    };
    let mut bytes = 0;
    loop {
        let before = reader.offset();
        match reader.next() {
            Ok(Some(frame)) => {
                bytes += frame.data.len();
                rows.push((frame.ts.0, frame.link, frame.data.to_vec()));
                assert!(reader.offset() > before, "no way forward");
            }
            Ok(None) => break,
            Err(e) => {
                assert!(
                    matches!(reader.next(), Ok(None)),
                    "it goes on after an error"
                );
                return (rows, Some(e.to_string()));
            }
        }
    }
    // What is not zipped cannot hold more than it is long.
    assert!(data.starts_with(&[0x1f, 0x8b]) || bytes <= data.len());
    (rows, None)
}

/// A capture file, pcap or pcapng, plain or gzipped.
///
/// Asserts: the same frames and the same end however the file is read; an error is one line that names the file, and
/// the last word; the frames go through the pipeline, whose caps hold and which holds nothing at the end.
pub fn capture(data: &[u8]) {
    let (rows, error) = read(data, usize::MAX);
    if let Some(error) = &error {
        assert!(
            error.starts_with("fuzz.pcap: ") && error.lines().count() == 1,
            "{error}"
        );
    }
    let most = 1 + Dice::of(data).below(40);
    let (again, why) = read(data, most);
    // What a decompressor had read of a damaged stream when it came upon the damage depends on how much it was given.
    let damaged = [&error, &why]
        .into_iter()
        .flatten()
        .any(|e| e.contains("gzip stream is damaged"));
    if damaged {
        assert!(rows.starts_with(&again) || again.starts_with(&rows));
    } else {
        assert_eq!((&again, why), (&rows, error));
    }

    let options = PipelineOptions {
        stream: StreamOptions {
            flow_cap: 6_000,
            total_cap: 16_000,
            max_flows: 3,
            isn_entries: 64,
            ..StreamOptions::default()
        },
        http: HttpOptions {
            max_held: 20_000,
            ..HttpOptions::default()
        },
        ..PipelineOptions::default()
    };
    let most_held = options.stream.total_cap + options.http.max_held;
    let mut pipeline = Pipeline::new(options);
    let mut requests = Vec::new();
    for (ts, link, data) in &rows {
        let frame = rebuilder::receive::Frame {
            ts: rebuilder::time::Timestamp(*ts),
            link: *link,
            data,
        };
        pipeline.frame(&frame, &mut |request| requests.push(request.into_owned()));
        assert!(pipeline.held_bytes() <= most_held);
    }
    pipeline.finish(End::Eof, &mut |request| requests.push(request.into_owned()));
    assert_eq!((pipeline.held_bytes(), pipeline.flows()), (0, 0));
    assert_eq!(pipeline.http_counters().requests, requests.len() as u64);
    requests.iter().for_each(forwarded::check);
}
