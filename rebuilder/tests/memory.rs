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

/// A field of three bytes takes forty in a list of fields: a thousand such heads whose bodies were awaited once took
/// 4.8 GB where 131 MB were counted.
#[test]
fn a_head_of_many_fields_whose_body_is_awaited_takes_no_more_than_is_counted() {
    let mut extractor = Extractor::new(HttpOptions::default());
    let mut head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n".to_vec();
    while head.len() < 128 << 10 {
        head.extend_from_slice(b"a:\n");
    }
    head.truncate((128 << 10) - 8);
    head.extend_from_slice(b"\n\r\n");
    let ends = Endpoints {
        vni: None,
        src: "192.0.2.7:40000".parse().unwrap(),
        dst: "10.0.0.2:80".parse().unwrap(),
    };
    let before = LIVE.load(Ordering::Relaxed);
    for n in 0..100 {
        let dir = DirectionId(n);
        let chunks = [
            Chunk::Open { midstream: false },
            Chunk::Data {
                bytes: &head,
                ts: Timestamp(1),
                segment_start: true,
                conflict: false,
            },
        ];
        for chunk in chunks {
            extractor.chunk(dir, &ends, chunk, &mut |_| panic!("the body is missing"));
        }
    }
    let held = extractor.held_bytes();
    assert!(held >= 100 * head.len(), "{held}");
    let live = LIVE.load(Ordering::Relaxed) - before;
    assert!(live < held + held / 10, "{live} bytes live, {held} counted");
}
