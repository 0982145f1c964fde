//! What is said to be held is what is held: live allocations are compared with `held_bytes`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use rebuilder::http::{Extractor, HttpOptions};
use rebuilder::stream::{Chunk, DirectionId, Endpoints};
use rebuilder::time::Timestamp;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the state of a direction and its place in the table may take beside the bytes that it holds. The table of flows
/// is capped by count, so this is, too.
const A_DIRECTION: usize = 1024;

const DIRECTIONS: usize = 50;

/// Gives each of many directions the same pieces, and says what they are said to hold and what they do hold.
fn held_and_live(midstream: bool, pieces: &[&[u8]]) -> (usize, usize) {
    let before = LIVE.load(Ordering::Relaxed);
    let mut extractor = Extractor::new(HttpOptions::default());
    let ends = Endpoints {
        vni: None,
        src: std::net::SocketAddr::from(([192, 0, 2, 7], 40_000)),
        dst: std::net::SocketAddr::from(([10, 0, 0, 2], 80)),
    };
    for n in 0..DIRECTIONS {
        let dir = DirectionId::new(n as u64, n);
        extractor.chunk(dir, &ends, Chunk::Open { midstream }, &mut |_| {});
        for bytes in pieces {
            let chunk = Chunk::Data {
                bytes,
                ts: Timestamp(1),
                segment_start: true,
                conflict: false,
            };
            extractor.chunk(dir, &ends, chunk, &mut |_| {});
        }
    }
    let live = LIVE.load(Ordering::Relaxed) - before;
    (extractor.held_bytes(), live)
}

/// One test, because what is live is counted for the whole process.
///
/// Of the heads: a field of three bytes takes forty in a list of fields, and a thousand such heads whose bodies were awaited
/// once took 4.8 GB where 131 MB were counted.
#[test]
fn in_every_state_a_direction_takes_no_more_than_is_counted() {
    let head_of_fields = |end: &str| {
        let mut head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n".to_vec();
        while head.len() < (128 << 10) - 8 {
            head.extend_from_slice(b"a:\n");
        }
        head.truncate((128 << 10) - 8);
        head.extend_from_slice(end.as_bytes());
        head
    };
    let post = b"POST / HTTP/1.1\r\nContent-Length: 999999\r\n\r\n".as_slice();
    let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice();
    let kilobytes = [b'a'; 5000].as_slice();
    let digits = [b'0'; 200].as_slice();
    let proxy = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".as_slice();
    let (whole, open) = (head_of_fields("\n\r\n"), head_of_fields("\n"));
    for (state, midstream, pieces, least) in [
        (
            "the body behind a head of fields",
            false,
            &[whole.as_slice()][..],
            130_000,
        ),
        ("a head of fields", false, &[&open], 130_000),
        (
            "a head in pieces",
            false,
            &[b"GET / HTTP/1.1\r\nA: ", kilobytes, kilobytes],
            10_000,
        ),
        ("a request line", false, &[b"GET /", kilobytes], 5000),
        (
            "a PROXY header",
            false,
            &[proxy, kilobytes, kilobytes],
            10_000,
        ),
        (
            "a body",
            false,
            &[post, kilobytes, kilobytes, kilobytes],
            15_000,
        ),
        (
            "chunks",
            false,
            &[chunked, b"fffff\r\n", kilobytes, kilobytes],
            10_000,
        ),
        (
            "the size of a chunk, read along",
            false,
            &[chunked, b"3\r\nabc\r\n", digits],
            200,
        ),
        ("trailers", false, &[chunked, b"0\r\nA: ", kilobytes], 5000),
        (
            "a search that has a candidate",
            true,
            &[b"GET /", kilobytes, kilobytes],
            10_000,
        ),
        (
            "a search that has none",
            true,
            &[b"\0", kilobytes, kilobytes],
            0,
        ),
        ("nothing yet", false, &[], 0),
    ] {
        let (held, live) = held_and_live(midstream, pieces);
        assert!(held >= DIRECTIONS * least, "{state}: {held} counted");
        let allowed = held + held / 10 + DIRECTIONS * A_DIRECTION;
        assert!(
            live <= allowed,
            "{state}: {live} bytes live, {held} counted"
        );
    }
}
