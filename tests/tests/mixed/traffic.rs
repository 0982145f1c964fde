//! What all clients together send.

use std::net::SocketAddr;
use std::thread;

use lab::data_plane::{CLIENT, DataPlane};
use lab::judge::{Request, Sent};
use lab::random::Random;

use super::raw::{Cut, Raw};
use super::tools::{Curl, Known, Wrk};

/// Payload that is not cut: less than [`super::PACKET_LENGTH`] with headers.
const UNCUT: usize = 8400;

/// How much of each kind is sent.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// At least so many requests in all.
    pub(crate) requests: usize,
    /// Answers that each of the two wrk waits for, for two seconds at most.
    pub(crate) wrk: u64,
    /// curls of 50 pages each.
    pub(crate) curls: usize,
    /// Small files that curl posts.
    pub(crate) curl_posts: usize,
    /// For each of the two raw clients: connections with pipelined requests.
    pub(crate) pipelines: usize,
    /// Requests sent byte by byte.
    pub(crate) byte_by_byte: usize,
    /// Bodies with baits, up to 2 MB.
    pub(crate) bodies: usize,
    /// Bodies with baits of 20 MB.
    pub(crate) large: usize,
    /// They are sent at 3 MB/s, so that what waits behind a hole stays below its cap.
    pub(crate) paced: bool,
    /// A bait every so many segments.
    pub(crate) bait_every: usize,
    /// How much of each frame is mirrored; all where there is none.
    pub(crate) packet_length: Option<u32>,
    /// tcpdump writes what the rebuilder gets.
    pub(crate) captured: bool,
    /// No segment with heads in it is so long that the mirror cuts it. What a cut head costs besides itself depends on
    /// what shares its segments: the requests behind it, up to the next one that begins a segment.
    pub(crate) whole_heads: bool,
}

/// What was sent, as far as the clients know.
pub(crate) struct Traffic {
    pub(crate) sent: Vec<Sent>,
    pub(crate) curl: Known,
    pub(crate) wrks: Vec<Wrk>,
}

impl Traffic {
    /// Two raw clients, curl and two wrk at the same time; then as many pipelined requests as lack of the number.
    pub(crate) fn send(plane: &DataPlane, servers: [SocketAddr; 4], seed: u64, load: Load) -> Self {
        let (client, directory) = (&plane.client, plane.vpc.directory());
        let locals = CLIENT.map(|address| address.parse().unwrap());
        // On a thread inside: sockets belong to the namespace in which they are made.
        let raw = |number: u16, send: &(dyn Fn(&mut Raw) + Sync)| {
            let mut raw = Raw {
                random: Random::new(seed ^ (u64::from(number) + 1) << 20),
                locals,
                servers,
                port: 10_000 + 5_000 * number,
                id: u64::from(number) << 32,
                bait_every: load.bait_every,
                sent: Vec::new(),
            };
            client
                .namespace
                .run(move || {
                    send(&mut raw);
                    raw.sent
                })
                .unwrap()
        };
        let mut all = thread::scope(|scope| {
            let raw = &raw;
            let raws: Vec<_> = (0..2)
                .map(|number| scope.spawn(move || raw(number, &|raw| everything(raw, load))))
                .collect();
            let wrks: Vec<_> = [("plain", servers[0]), ("jumbo", servers[3])]
                .map(|(name, server)| {
                    scope.spawn(move || Wrk::run(client, directory, name, server, load.wrk, 2))
                })
                .into_iter()
                .collect();
            let mut curl = Curl {
                client,
                directory,
                servers,
                port: 26_000,
                id: 1 << 36,
                random: Random::new(seed),
                known: Known::default(),
            };
            for _ in 0..load.curls {
                curl.gets(50);
            }
            for number in 0..load.curl_posts {
                curl.post([1, 100, 5_000, 60_000, 900_000][number % 5]);
            }
            Self {
                sent: raws
                    .into_iter()
                    .flat_map(|raw| raw.join().unwrap())
                    .collect(),
                curl: curl.known,
                wrks: wrks.into_iter().map(|wrk| wrk.join().unwrap()).collect(),
            }
        });
        let by_wrk: u64 = all.wrks.iter().map(|wrk| wrk.answers).sum();
        let raw_and_curl =
            all.sent.iter().map(|it| it.requests.len()).sum::<usize>() + all.curl.len();
        let lacking = load
            .requests
            .saturating_sub(raw_and_curl + usize::try_from(by_wrk).unwrap());
        all.sent.extend(raw(2, &|raw| {
            for _ in 0..lacking.div_ceil(51) {
                pipelines(raw, load.whole_heads);
            }
        }));
        all
    }
}

/// In portions of so many bytes at most, where one request is not more.
fn portions(requests: Vec<Request>, most: usize) -> Vec<Vec<Request>> {
    let (mut portions, mut length): (Vec<Vec<Request>>, _) = (Vec::new(), 0);
    for request in requests {
        length += request.bytes.len();
        match portions.last_mut().filter(|_| length <= most) {
            Some(portion) => portion.push(request),
            None => {
                length = request.bytes.len();
                portions.push(vec![request]);
            }
        }
    }
    portions
}

/// One connection with 51 requests, twice 25 of them at once. `whole`: or in portions that the mirror does not cut.
fn pipelines(raw: &mut Raw, whole: bool) {
    let server = raw.server();
    let mut connection = raw.open(server);
    for _ in 0..2 {
        let requests: Vec<Request> = (0..25)
            .map(|_| match raw.random.below(8) {
                0 => {
                    let length = raw.random.below(3000);
                    raw.post(length, None)
                }
                1 => {
                    let length = raw.random.below(3000);
                    let chunks = 1 + raw.random.below(20);
                    raw.chunked(length, chunks, None)
                }
                _ => raw.get(),
            })
            .collect();
        let most = if whole && server >= 2 {
            UNCUT
        } else {
            usize::MAX
        };
        for requests in portions(requests, most) {
            raw.pipeline(&mut connection, requests);
        }
    }
    let last = raw.closing();
    raw.send(&mut connection, last, Cut::Anyhow);
}

fn everything(raw: &mut Raw, load: Load) {
    for _ in 0..load.pipelines {
        pipelines(raw, load.whole_heads);
    }
    // Split at every byte boundary of the head.
    let mut at = 1;
    while at > 0 {
        let server = raw.server();
        let mut connection = raw.open(server);
        for _ in 0..10 {
            let request = raw.post(40, None);
            if at < request.head {
                raw.send(&mut connection, request, Cut::At(at));
                at += 1;
            } else {
                raw.send(&mut connection, request, Cut::Anyhow);
                at = 0;
                break;
            }
        }
    }
    for number in 0..load.byte_by_byte {
        let server = raw.server();
        let mut connection = raw.open(server);
        let request = if number % 2 == 0 {
            raw.post(30, None)
        } else {
            raw.chunked(30, 7, None)
        };
        raw.send(&mut connection, request, Cut::Bytes);
        let next = raw.post(3, None);
        raw.send(&mut connection, next, Cut::Bytes);
    }
    for number in 0..load.bodies {
        let server = number % 4;
        let mut connection = raw.open(server);
        let segment = connection.segment_size().unwrap();
        let length =
            20_usize.pow(1 + u32::try_from(number / 4 % 4).unwrap()) + raw.random.below(2_000);
        let request = if number % 3 == 0 {
            raw.chunked(length, 1, Some(segment))
        } else {
            raw.post(length, Some(segment))
        };
        raw.send(&mut connection, request, Cut::Aligned);
        let behind = vec![
            raw.post(10, None),
            raw.chunked(20, 3, None),
            raw.post(0, None),
        ];
        raw.pipeline(&mut connection, behind);
    }
    for number in 0..load.large {
        let mut connection = raw.open(number % 4);
        let segment = connection.segment_size().unwrap();
        let request = raw.post(20_000_000, Some(segment));
        let cut = if load.paced { Cut::Paced } else { Cut::Aligned };
        raw.send(&mut connection, request, cut);
    }
}
