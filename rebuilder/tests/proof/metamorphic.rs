//! The same connections told differently give the same requests, byte for byte: rows are compared as they are printed
//! (`raw_sha256` and `ts` included), in order.
//!
//! A capture may differ legitimately only where DESIGN §2 says that a lacking or late byte changes what is known. Each
//! such capture is listed here with its reason; one that is listed and does not differ fails too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::OnceLock;

use rebuilder::decode::{DecodeOptions, Decoder, TcpFlags};
use rebuilder::pipeline::PipelineOptions;
use rebuilder::time::Timestamp;

use crate::captures;
use crate::random::Random;
use crate::run::{Run, run};
use crate::simulator::{self, Mirror};
use crate::wire::{self, Owned};

/// What is left out of the comparison, besides nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Besides {
    Nothing,
    /// `vni`: the outermost VXLAN header's, so it tells wrapped from bare.
    Vni,
    /// The flag `ambiguous`: a copy disagrees.
    Ambiguous,
    /// Which row comes first: the packet that completes a request is another one.
    Order,
}

fn without_ambiguous(row: &str) -> String {
    let mut row: serde_json::Value = serde_json::from_str(row).unwrap();
    let flags = row["flags"].as_array_mut().unwrap();
    flags.retain(|flag| flag != "ambiguous");
    row.to_string()
}

fn without_vni(row: &str) -> String {
    let mut row: serde_json::Value = serde_json::from_str(row).unwrap();
    row.as_object_mut().unwrap().remove("vni");
    row.to_string()
}

fn rows(run: &Run, besides: Besides) -> Vec<String> {
    match besides {
        Besides::Nothing => run.rows.clone(),
        Besides::Vni => run.rows.iter().map(|row| without_vni(row)).collect(),
        Besides::Ambiguous => run.rows.iter().map(|r| without_ambiguous(r)).collect(),
        Besides::Order => {
            let mut rows = run.rows.clone();
            rows.sort();
            rows
        }
    }
}

/// A capture, with what comes of it as it is.
struct Told {
    name: String,
    /// Copies were lost and cut.
    poor: bool,
    frames: Vec<Owned>,
    run: Run,
}

/// Public captures where they are laid beside the checkout, and generated ones, with and without a mirror that loses,
/// delays, doubles and cuts. Read and run once for all tests of this file.
fn told() -> &'static [Told] {
    static TOLD: OnceLock<Vec<Told>> = OnceLock::new();
    TOLD.get_or_init(|| {
        let mut all = captures::corpus("metamorphic").unwrap_or_default();
        let perfect = Mirror::default();
        let poor = Mirror {
            loss: 4,
            reorder: 10,
            duplicate: 10,
            cut_at: Some(8_500),
            one_sided: false,
        };
        for (seed, what, mirror) in [
            (1, "perfect", perfect),
            (2, "poor", poor),
            (3, "poor", poor),
        ] {
            let (_, frames) = simulator::connections(seed, 9, 5);
            let frames = mirror.copy(seed, &frames);
            let frames = frames.iter().map(simulator::bare).collect();
            all.push((format!("generated {seed}, {what}"), frames));
        }
        let run = |(name, frames): (String, Vec<Owned>)| {
            let run = run(&frames, &PipelineOptions::default());
            let poor = name.ends_with("poor");
            Told {
                name,
                poor,
                frames,
                run,
            }
        };
        all.into_iter().map(run).collect()
    })
}

/// Says how two lists of rows differ.
fn difference(want: &[String], got: &[String]) -> Option<String> {
    if want == got {
        return None;
    }
    let sorted = |rows: &[String]| {
        let mut rows = rows.to_vec();
        rows.sort();
        rows
    };
    let order = if sorted(want) == sorted(got) {
        " (order only)"
    } else {
        ""
    };
    let lacking: Vec<_> = want.iter().filter(|row| !got.contains(row)).collect();
    let beyond: Vec<_> = got.iter().filter(|row| !want.contains(row)).collect();
    Some(format!(
        "{} rows, {} expected{order}\n    lacking: {lacking:#?}\n    instead: {beyond:#?}",
        got.len(),
        want.len()
    ))
}

/// What a retelling must leave as it is.
struct Claim<'a> {
    test: &'a str,
    besides: Besides,
    /// So many frames must come out changed, dropped or added, or nothing would be proven.
    touched: usize,
    /// Whether it holds where bytes are missing, too.
    of_the_poor: bool,
    /// Captures that differ, and why they may.
    exceptions: &'a [(&'a str, &'a str)],
}

impl Claim<'_> {
    /// Runs the captures as they are and as `retell` tells them.
    fn holds(&self, retell: impl Fn(&Told) -> Vec<Owned>) {
        let with_corpus = told().len() > 300;
        let options = PipelineOptions::default();
        let listed: BTreeMap<_, _> = self.exceptions.iter().copied().collect();
        let mut differing = BTreeSet::new();
        let mut report = String::new();
        let mut touched = 0;
        let mut requests = 0;
        for told in told().iter().filter(|told| self.of_the_poor || !told.poor) {
            let frames = retell(told);
            let known: BTreeSet<_> = told.frames.iter().map(|f| &f.data).collect();
            touched += frames.len().abs_diff(told.frames.len());
            let changed = frames.iter().filter(|f| !known.contains(&f.data)).count();
            let pairs = frames.iter().zip(&told.frames);
            let moved = pairs.filter(|(a, b)| a.data != b.data).count();
            touched += changed.max(moved);
            let mut want = rows(&told.run, self.besides);
            let mut got = rows(&run(&frames, &options), self.besides);
            if told.poor {
                // When a hole is given up is another time, so what waits behind it comes at another one.
                want.sort();
                got.sort();
            }
            requests += want.len();
            if let Some(difference) = difference(&want, &got) {
                differing.insert(told.name.as_str());
                if !listed.contains_key(told.name.as_str()) {
                    report += &format!("  {}: {difference}\n", told.name);
                }
            }
        }
        println!(
            "{}: {requests} requests, {touched} frames touched, {} captures differ as listed",
            self.test,
            differing.len()
        );
        assert!(
            report.is_empty(),
            "{}: captures differ:\n{report}",
            self.test
        );
        for (name, why) in listed.iter().filter(|_| with_corpus) {
            assert!(
                differing.contains(name),
                "{name} is listed ({why}) and does not differ: take it off the list"
            );
        }
        let least = if with_corpus {
            self.touched
        } else {
            self.touched / 20
        };
        assert!(touched >= least, "only {touched} frames were touched");
    }
}

/// Which end of each connection is the client: who sent the first SYN; where none was captured, who sent requests.
fn clients(told: &Told) -> BTreeMap<[SocketAddr; 2], SocketAddr> {
    let mut clients = BTreeMap::new();
    let mut decoder = Decoder::new(DecodeOptions::default());
    for frame in &told.frames {
        if let Ok(segment) = decoder.decode(&frame.frame())
            && segment.flags.contains(TcpFlags::SYN)
            && !segment.flags.contains(TcpFlags::ACK)
        {
            clients
                .entry(connection(segment.src, segment.dst))
                .or_insert(segment.src);
        }
    }
    for request in &told.run.requests {
        let ends = request.endpoints;
        clients
            .entry(connection(ends.src, ends.dst))
            .or_insert(ends.src);
    }
    clients
}

fn connection(a: SocketAddr, b: SocketAddr) -> [SocketAddr; 2] {
    if a <= b { [a, b] } else { [b, a] }
}

/// Without what the server said.
fn client_only(told: &Told) -> Vec<Owned> {
    let clients = clients(told);
    let mut decoder = Decoder::new(DecodeOptions::default());
    let said_by_a_client = |frame: &&Owned| match decoder.decode(&frame.frame()) {
        Ok(segment) => clients
            .get(&connection(segment.src, segment.dst))
            .is_none_or(|client| *client == segment.src),
        Err(_) => true,
    };
    told.frames
        .iter()
        .filter(said_by_a_client)
        .cloned()
        .collect()
}

#[test]
fn the_server_s_direction_is_never_needed() {
    let claim = Claim {
        test: "the_server_s_direction_is_never_needed",
        besides: Besides::Nothing,
        touched: 5_000,
        of_the_poor: true,
        exceptions: &[],
    };
    claim.holds(client_only);
}

fn each(told: &Told, retell: impl Fn(&Owned) -> Owned) -> Vec<Owned> {
    told.frames.iter().map(retell).collect()
}

#[test]
fn what_stands_around_the_packet_is_of_no_matter() {
    let in_a_vlan = |f: &Owned| wire::tagged(f, &[[0x8100, 0x2005]]);
    let in_two_vlans_and_vxlan = |f: &Owned| {
        let f = wire::tagged(f, &[[0x88a8, 0x0064], [0x8100, 0x2005]]);
        wire::mirrored(&f, 7).unwrap_or(f)
    };
    let cases: [(&str, Besides, usize, Retell); 11] = [
        ("VXLAN", Besides::Vni, 10_000, in_vxlan),
        ("VXLAN as a socket gives it", Besides::Vni, 10_000, |f| {
            wire::datagram(f, 7).unwrap_or_else(|| f.clone())
        }),
        ("802.1Q", Besides::Nothing, 10_000, in_a_vlan),
        (
            "QinQ in VXLAN",
            Besides::Vni,
            10_000,
            in_two_vlans_and_vxlan,
        ),
        ("Ethernet padding", Besides::Nothing, 5_000, wire::padded),
        ("no link header", Besides::Nothing, 10_000, wire::unlinked),
        (
            "Linux cooked capture",
            Besides::Nothing,
            10_000,
            wire::cooked,
        ),
        ("VXLAN in GENEVE", Besides::Vni, 10_000, |f| {
            wire::through_a_gateway(f, 7).unwrap_or_else(|| f.clone())
        }),
        (
            "an IPv6 extension header",
            Besides::Nothing,
            500,
            wire::with_ipv6_extension,
        ),
        (
            "TCP options",
            Besides::Nothing,
            5_000,
            wire::with_tcp_options,
        ),
        (
            "IPv4 options",
            Besides::Nothing,
            5_000,
            wire::with_ipv4_options,
        ),
    ];
    for (test, besides, touched, retell) in cases {
        let claim = Claim {
            test,
            besides,
            touched,
            of_the_poor: true,
            exceptions: &[],
        };
        claim.holds(|told| each(told, retell));
    }
}

/// A frame told differently.
type Retell = fn(&Owned) -> Owned;
/// A frame told in several.
type Split = fn(&Owned) -> Vec<Owned>;

fn payload_len(frame: &Owned) -> usize {
    wire::layout(frame.link, &frame.data).map_or(0, |at| at.end - at.payload)
}

fn halves(frame: &Owned) -> Vec<Owned> {
    let len = payload_len(frame);
    let cuts = if len > 1 { vec![len / 2] } else { vec![] };
    wire::resegment(frame, &cuts)
}

#[test]
fn segments_cut_up_are_the_same_stream() {
    let claim = Claim {
        test: "segments cut in two",
        besides: Besides::Nothing,
        touched: 5_000,
        // Where the framing is lost, a request may begin where a segment does: here at other places.
        of_the_poor: false,
        exceptions: &[],
    };
    claim.holds(|told| told.frames.iter().flat_map(halves).collect());

    // What a server says in bytes would only take time: the requests' directions are cut to bytes.
    let claim = Claim {
        test: "segments of one byte",
        touched: 100_000,
        ..claim
    };
    claim.holds(|told| {
        let clients = clients(told);
        let mut decoder = Decoder::new(DecodeOptions::default());
        let single = |f: &Owned| {
            let by_a_client = decoder
                .decode(&f.frame())
                .is_ok_and(|s| clients.get(&connection(s.src, s.dst)) == Some(&s.src));
            let cuts = if by_a_client { payload_len(f) } else { 0 };
            wire::resegment(f, &(1..cuts).collect::<Vec<_>>())
        };
        told.frames.iter().flat_map(single).collect()
    });
}

fn in_vxlan(frame: &Owned) -> Owned {
    wire::mirrored(frame, 7).unwrap_or_else(|| frame.clone())
}

#[test]
fn ip_fragments_become_the_packet_they_were() {
    type Pieces = fn(&Owned, u16) -> Vec<Owned>;
    let cases: [(&str, Besides, Pieces); 5] = [
        ("fragments of 512 bytes", Besides::Nothing, |f, id| {
            wire::fragments(f, 512, id)
        }),
        (
            "fragments of 512 bytes, last first",
            Besides::Nothing,
            |f, id| wire::fragments(f, 512, id).into_iter().rev().collect(),
        ),
        ("fragments of 32 bytes", Besides::Nothing, |f, id| {
            wire::fragments(f, 32, id)
        }),
        ("fragments in VXLAN", Besides::Vni, |f, id| {
            wire::fragments(f, 512, id).iter().map(in_vxlan).collect()
        }),
        ("VXLAN in fragments", Besides::Vni, |f, id| {
            wire::mirrored(f, 7)
                .map_or_else(|| vec![f.clone()], |f| wire::outer_fragments(&f, 1_480, id))
        }),
    ];
    for (test, besides, pieces) in cases {
        let claim = Claim {
            test,
            besides,
            touched: 5_000,
            of_the_poor: true,
            exceptions: &[],
        };
        claim.holds(|told| {
            let mut id = 0x7000_u16;
            let pieces = |f: &Owned| {
                id = id.wrapping_add(1);
                pieces(f, id)
            };
            told.frames.iter().flat_map(pieces).collect()
        });
    }
}

/// Each frame, and `later` (ns) its copy, told by `retell`.
fn doubled(frames: &[Owned], later: u64, retell: impl Fn(&Owned) -> Vec<Owned>) -> Vec<Owned> {
    let mut out: Vec<Owned> = Vec::new();
    let mut copied = 0;
    for (n, frame) in frames.iter().enumerate() {
        out.push(frame.clone());
        // The copies whose time has come before the next frame's.
        let next = frames.get(n + 1).map_or(Timestamp(u64::MAX), |f| f.ts);
        while let Some(original) = frames[..=n].get(copied)
            && original.ts.0.saturating_add(later) <= next.0
        {
            let ts = Timestamp(original.ts.0.saturating_add(later));
            out.extend(
                retell(original)
                    .into_iter()
                    .map(|copy| Owned { ts, ..copy }),
            );
            copied += 1;
        }
    }
    out
}

#[test]
fn mirrored_twice_is_rebuilt_once() {
    const MS: u64 = 1_000_000;
    let as_it_is = |f: &Owned| vec![f.clone()];
    let other_vni = |f: &Owned| vec![wire::mirrored(f, 9).unwrap_or_else(|| f.clone())];
    let cases: [(&str, u64, Split); 5] = [
        ("copies adjacent", 0, as_it_is),
        ("copies adjacent, cut in two", 0, halves),
        ("copies 50 ms apart", 50 * MS, as_it_is),
        ("copies 50 ms apart, another VNI", 50 * MS, other_vni),
        ("copies 1.9 s apart, behind the FIN", 1_900 * MS, other_vni),
    ];
    for (test, later, retell) in cases {
        let claim = Claim {
            test,
            besides: Besides::Nothing,
            touched: 14_000,
            of_the_poor: true,
            exceptions: &[],
        };
        claim.holds(|told| doubled(&told.frames, later, retell));
    }
}

/// Sequence numbers moved so that each direction's first captured one is `first`. `None` where a segment's header
/// cannot be reached (a fragment, a tunnel).
fn renumbered(told: &Told, first: u32) -> Option<Vec<Owned>> {
    let mut decoder = Decoder::new(DecodeOptions::default());
    let mut moved: BTreeMap<(SocketAddr, SocketAddr), u32> = BTreeMap::new();
    for frame in &told.frames {
        if let Ok(s) = decoder.decode(&frame.frame()) {
            wire::layout(frame.link, &frame.data)?;
            moved
                .entry((s.src, s.dst))
                .or_insert(first.wrapping_sub(s.seq.0));
        }
    }
    let renumber = |frame: &Owned| {
        decoder.decode(&frame.frame()).map_or_else(
            |_| frame.clone(),
            |s| {
                let by = |direction| moved.get(&direction).copied().unwrap_or(0);
                wire::renumbered(frame, by((s.src, s.dst)), by((s.dst, s.src)))
            },
        )
    };
    Some(told.frames.iter().map(renumber).collect())
}

#[test]
fn any_initial_sequence_number_gives_the_same_requests() {
    for first in [0, 1, u32::MAX, u32::MAX - 10, 0x7fff_ff00] {
        let claim = Claim {
            test: &format!("first sequence number {first}"),
            besides: Besides::Nothing,
            touched: 10_000,
            of_the_poor: true,
            exceptions: &[],
        };
        claim.holds(|told| renumbered(told, first).unwrap_or_else(|| told.frames.clone()));
    }
}

/// The frames in the order of their time and a delay of up to `most` ns each, by chance.
fn shuffled(frames: &[Owned], most: u64) -> Vec<Owned> {
    let mut random = Random(1);
    let mut now = 0;
    let mut out: Vec<_> = frames
        .iter()
        .map(|f| {
            now = now.max(f.ts.0);
            (now + random.below(most), f.clone())
        })
        .collect();
    out.sort_by_key(|(at, _)| *at);
    out.into_iter().map(|(_, f)| f).collect()
}

#[test]
fn the_order_of_arrival_is_of_no_matter() {
    let claim = Claim {
        test: "shuffled within 40 ms",
        besides: Besides::Order,
        touched: 5_000,
        // Without its SYN a direction begins 50 ms after its first segment, and another one is first now.
        of_the_poor: false,
        exceptions: &[(
            "zeek__http__vnd.ms-cab-compressed-multi-conn.pcap",
            "a request was captured twice, 1 µs apart: `ts` is that of the copy seen first",
        )],
    };
    claim.holds(|told| shuffled(&told.frames, 40_000_000));
}

/// Behind each segment with payload and no other flag than PSH and ACK, what an outsider may send in its name.
fn with_forgeries(told: &Told, forge: impl Fn(&Owned, u32) -> Option<Owned>) -> Vec<Owned> {
    let mut out = Vec::new();
    for frame in &told.frames {
        out.push(frame.clone());
        if let Some((payload, flags)) = wire::contents(frame)
            && !payload.is_empty()
            && flags & (wire::SYN | wire::FIN | wire::RST | wire::URG) == 0
        {
            out.extend(forge(frame, u32::try_from(payload.len()).unwrap()));
        }
    }
    out
}

#[test]
fn keep_alives_and_forged_segments_change_nothing() {
    type Forge = fn(&Owned, u32) -> Option<Owned>;
    let cases: [(&str, Besides, Forge); 7] = [
        ("keep-alive probes", Besides::Nothing, |f, len| {
            wire::forged(f, len.wrapping_sub(1), wire::ACK, &[])
        }),
        (
            "keep-alive probes with a byte of rubbish",
            Besides::Ambiguous,
            |f, len| wire::forged(f, len.wrapping_sub(1), wire::ACK, b"?"),
        ),
        ("a RST inside what was sent", Besides::Nothing, |f, len| {
            wire::forged(f, len / 2, wire::RST, &[])
        }),
        ("a RST ahead", Besides::Nothing, |f, len| {
            wire::forged(f, len + 7_777, wire::RST, &[])
        }),
        ("a FIN inside what was sent", Besides::Nothing, |f, len| {
            wire::forged(f, len / 2, wire::FIN | wire::ACK, &[])
        }),
        ("a SYN far away", Besides::Nothing, |f, _| {
            wire::forged(f, 0x4000_0000, wire::SYN, &[])
        }),
        ("a SYN near by", Besides::Nothing, |f, len| {
            wire::forged(f, len + 5_000, wire::SYN, &[])
        }),
    ];
    for (test, besides, forge) in cases {
        let claim = Claim {
            test,
            besides,
            touched: 3_000,
            of_the_poor: false,
            exceptions: &[],
        };
        claim.holds(|told| with_forgeries(told, forge));
    }
}
