//! In steady state a packet asks the allocator for nothing, and a request that comes in one only for the list of its fields:
//! its bytes are handed on where they lie. Judged by an allocator that counts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod wire;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use rebuilder::pipeline::{Pipeline, PipelineOptions};
use rebuilder::receive::{Frame, LinkType};
use rebuilder::telemetry::PacketOutcome;
use rebuilder::time::Timestamp;
use wire::{Sender, tcp};

struct Counting;

static ASKED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CONNECTIONS: u16 = 1_000;

/// A connection as both sides send it; the server's direction is mirrored, too.
struct Connection {
    client: Sender,
    server: Sender,
}

impl Connection {
    fn new(n: u16) -> Self {
        let client = format!("10.1.0.7:{}", 20_000 + n);
        Self {
            client: Sender::new(&client, "10.0.0.2:80"),
            server: Sender::new("10.0.0.2:80", &client),
        }
    }

    fn request(&mut self) -> Vec<u8> {
        self.client
            .data("GET /a/b?c=d HTTP/1.1\r\nHost: h\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n")
    }

    fn answer(&mut self) -> Vec<u8> {
        let head: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n";
        self.server.data([head, &[b'r'; 900]].concat())
    }

    fn acknowledgement(&self) -> Vec<u8> {
        tcp(
            self.client.src,
            self.client.dst,
            self.client.seq,
            wire::ACK,
            &[],
        )
    }
}

/// Takes frames that were made before, and says how often the allocator was asked meanwhile.
fn asked(
    pipeline: &mut Pipeline,
    now: &mut u64,
    frames: &[Vec<u8>],
    outcome: PacketOutcome,
) -> (usize, usize) {
    let mut requests = 0;
    let before = ASKED.load(Ordering::Relaxed);
    for data in frames {
        *now += 10_000;
        let frame = Frame {
            ts: Timestamp(*now),
            link: LinkType::Ethernet,
            data,
        };
        let got = pipeline.frame(&frame, &mut |_| requests += 1);
        assert_eq!(got, outcome);
    }
    (ASKED.load(Ordering::Relaxed) - before, requests)
}

/// One test, because the count is of the whole process.
#[test]
fn a_packet_asks_for_no_memory_and_a_request_for_the_list_of_its_fields() {
    let mut pipeline = Pipeline::new(PipelineOptions::default());
    let mut now = 1_700_000_000_000_000_000;
    let mut connections: Vec<Connection> = (0..CONNECTIONS).map(Connection::new).collect();
    let mut all = |make: &mut dyn FnMut(&mut Connection) -> Vec<u8>| -> Vec<Vec<u8>> {
        connections.iter_mut().map(make).collect()
    };
    let control = PacketOutcome::Control;
    asked(
        &mut pipeline,
        &mut now,
        &all(&mut |c| c.client.syn()),
        control,
    );
    asked(
        &mut pipeline,
        &mut now,
        &all(&mut |c| c.server.syn()),
        control,
    );
    for round in 0..20 {
        let (asks, requests) = asked(
            &mut pipeline,
            &mut now,
            &all(&mut Connection::request),
            PacketOutcome::Stream,
        );
        assert_eq!(requests, usize::from(CONNECTIONS));
        let answers = all(&mut Connection::answer);
        let (for_answers, _) = asked(&mut pipeline, &mut now, &answers, PacketOutcome::Response);
        let (for_nothing, _) = asked(
            &mut pipeline,
            &mut now,
            &all(&mut |c| c.acknowledgement()),
            control,
        );
        // In the first rounds tables grow.
        if round >= 2 {
            assert_eq!((for_answers, for_nothing), (0, 0), "round {round}");
            assert!(
                asks <= requests,
                "{asks} for {requests} requests, round {round}"
            );
        }
    }
}
