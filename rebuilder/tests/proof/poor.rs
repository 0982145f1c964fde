//! The public captures as a poor mirror would have copied them: packets lost, overtaken, doubled, cut. Nothing is made
//! up, and what carries no flag is a request of the whole capture.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use rebuilder::decode::{DecodeOptions, Decoder, TcpFlags};
use rebuilder::http::{Flags, Request};
use rebuilder::pipeline::PipelineOptions;
use rebuilder::time::Timestamp;

use crate::captures;
use crate::random::Random;
use crate::run::run;
use crate::wire::Owned;

/// What of each direction was captured: sequence number, time, bytes.
#[derive(Default)]
struct Segments(BTreeMap<(SocketAddr, SocketAddr), Vec<Segment>>);

type Segment = (u32, Timestamp, Vec<u8>);

impl Segments {
    fn of(frames: &[Owned]) -> Self {
        let mut decoder = Decoder::new(DecodeOptions::default());
        let mut all = Self::default();
        for frame in frames {
            if let Ok(s) = decoder.decode(&frame.frame())
                && !s.payload.is_empty()
            {
                let syn = u32::from(s.flags.contains(TcpFlags::SYN));
                let list = all.0.entry((s.src, s.dst)).or_default();
                list.push((s.seq.0.wrapping_add(syn), s.ts, s.payload.to_vec()));
            }
        }
        all
    }

    /// Whether the bytes of a request were captured at consecutive sequence numbers, the first of them at its time.
    fn hold(&self, request: &Request) -> bool {
        let ends = request.endpoints;
        let Some(list) = self.0.get(&(ends.src, ends.dst)) else {
            return false;
        };
        list.iter()
            .filter(|(_, ts, _)| *ts == request.ts)
            .flat_map(|(seq, _, bytes)| (0..bytes.len()).map(move |n| (seq, bytes, n)))
            .filter(|(_, bytes, n)| bytes[*n] == request.raw[0])
            .any(|(seq, _, n)| {
                let start = seq.wrapping_add(u32::try_from(n).unwrap());
                follow(list, start, &request.raw)
            })
    }
}

/// Whether `raw` stands from `seq` on, each byte in some segment.
fn follow(list: &[Segment], seq: u32, raw: &[u8]) -> bool {
    let mut done = 0;
    while done < raw.len() {
        let here = seq.wrapping_add(u32::try_from(done).unwrap());
        let longest = list
            .iter()
            .filter_map(|(start, _, bytes)| {
                let at = usize::try_from(here.wrapping_sub(*start)).unwrap();
                let same = bytes.get(at..)?.iter().zip(&raw[done..]);
                Some(same.take_while(|(a, b)| a == b).count())
            })
            .max();
        match longest {
            Some(more) if more > 0 => done += more,
            _ => return false,
        }
    }
    true
}

/// Percentages of packets, and where frames are cut.
#[derive(Clone, Copy, Debug)]
struct Poor {
    loss: u64,
    overtaken: u64,
    twice: u64,
    cut_at: usize,
}

fn copy(frames: &[Owned], poor: Poor, seed: u64) -> Vec<Owned> {
    let mut random = Random(seed);
    let mut arriving = Vec::new();
    let mut now = 0;
    for frame in frames {
        now = now.max(frame.ts.0);
        let mut copy = frame.clone();
        copy.data.truncate(poor.cut_at);
        for (percent, late) in [(100 - poor.loss, poor.overtaken), (poor.twice, 100)] {
            let arrives = random.below(100) < percent;
            let delay = if random.below(100) < late {
                random.below(40_000_000)
            } else {
                0
            };
            if arrives {
                arriving.push((now + delay, copy.clone()));
            }
        }
    }
    arriving.sort_by_key(|(at, _)| *at);
    arriving.into_iter().map(|(_, frame)| frame).collect()
}

#[test]
fn a_poor_mirror_of_the_corpus_makes_no_request_up() {
    let test = "a_poor_mirror_of_the_corpus_makes_no_request_up";
    let Some(corpus) = captures::corpus(test) else {
        return;
    };
    let options = PipelineOptions::default();
    let key = |r: &Request| (r.endpoints.src, r.endpoints.dst, r.raw.to_vec());
    let mirrors = [
        Poor {
            loss: 5,
            overtaken: 10,
            twice: 10,
            cut_at: usize::MAX,
        },
        Poor {
            loss: 25,
            overtaken: 0,
            twice: 0,
            cut_at: usize::MAX,
        },
        Poor {
            loss: 0,
            overtaken: 10,
            twice: 0,
            cut_at: 200,
        },
        Poor {
            loss: 5,
            overtaken: 10,
            twice: 10,
            cut_at: 700,
        },
    ];
    for (seed, poor) in (1..).zip(mirrors) {
        let (mut whole, mut flagged) = (0, 0);
        for (name, frames) in &corpus {
            let truth = run(frames, &options);
            if truth.requests.is_empty() {
                continue;
            }
            let truth: BTreeSet<_> = truth.requests.iter().map(key).collect();
            let arriving = copy(frames, poor, seed);
            let segments = Segments::of(&arriving);
            for request in run(&arriving, &options).requests {
                let text = || format!("{name}: {:?} {}", request.flags, request.raw.escape_ascii());
                assert!(segments.hold(&request), "not captured: {}", text());
                let doubt = Flags::TRUNCATED
                    | Flags::ABORTED
                    | Flags::RESYNCED
                    | Flags::MIDSTREAM
                    | Flags::AMBIGUOUS;
                if request.flags.intersects(doubt) {
                    flagged += 1;
                } else {
                    whole += 1;
                    assert!(
                        truth.contains(&key(&request)),
                        "no request of the whole capture, and without a flag: {}",
                        text()
                    );
                }
            }
        }
        println!("{poor:?}: {whole} whole, {flagged} flagged");
        assert!(whole > 100 && flagged > 10);
    }
}
