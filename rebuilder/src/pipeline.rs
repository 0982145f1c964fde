//! The packet path of one worker: frames in, requests out. A capture file and a live socket both run this.

use std::ops::ControlFlow::{self, Break, Continue};

use crate::decode::{DecodeOptions, Decoder, Plain, Segment};
use crate::handover::{Route, Steer};
use crate::http::{Extractor, HttpCounters, HttpOptions, Request};
use crate::prefetch::Ahead;
use crate::receive::Frame;
use crate::stream::{
    AHEAD, Chunk, Compared, DirectionId, End, Endpoints, Interest, Named, Sink, Stats,
    StreamOptions, Streams,
};
use crate::telemetry::PacketOutcome;
use crate::time::Timestamp;

/// Settings of every stage of the packet path.
#[derive(Clone, Debug, Default)]
pub struct PipelineOptions {
    /// Which frames count.
    pub decode: DecodeOptions,
    /// Reassembly: times and caps.
    pub stream: StreamOptions,
    /// Extraction: caps and whom to trust.
    pub http: HttpOptions,
}

/// Decoder, flow table and extractor of one worker.
pub struct Pipeline {
    decoder: Decoder,
    streams: Streams,
    extractor: Extractor,
    ahead: Ahead,
    cut_frames: u64,
    gaps: u64,
}

/// Hands the chunks of the stream stage to the extractor.
struct Extraction<'a, F> {
    gaps: &'a mut u64,
    extractor: &'a mut Extractor,
    out: &'a mut F,
}

impl<F: FnMut(Request)> Sink for Extraction<'_, F> {
    fn compare(&mut self, dir: DirectionId, behind: u64, copy: &[u8]) -> Compared {
        self.extractor.compare(dir, behind, copy)
    }

    fn asks(&self, dir: DirectionId) -> bool {
        self.extractor.asks(dir)
    }

    fn chunk(&mut self, dir: DirectionId, ends: &Endpoints, chunk: Chunk<'_>) -> Interest {
        *self.gaps += u64::from(matches!(chunk, Chunk::Gap { .. }));
        self.extractor.chunk(dir, ends, chunk, self.out)
    }
}

impl Pipeline {
    /// A pipeline that holds nothing.
    #[must_use]
    pub fn new(options: PipelineOptions) -> Self {
        Self {
            decoder: Decoder::new(options.decode),
            streams: Streams::new(options.stream),
            extractor: Extractor::new(options.http),
            ahead: Ahead::default(),
            cut_frames: 0,
            gaps: 0,
        }
    }

    /// Takes one frame. The requests that it completes go to `out`, in stream order; the answer is the one outcome of
    /// the packet.
    pub fn frame(&mut self, frame: &Frame<'_>, out: &mut impl FnMut(Request)) -> PacketOutcome {
        self.steered_frame(frame, |_| Route::Own, out)
            .unwrap_or(PacketOutcome::HandoverFull)
    }

    /// The same, where `route` says whether the frame's segment is this worker's. `None` where it is not: its packet
    /// ends with the worker that takes it.
    pub fn steered_frame(
        &mut self,
        frame: &Frame<'_>,
        route: impl FnOnce(&Segment<'_>) -> Route,
        out: &mut impl FnMut(Request),
    ) -> Option<PacketOutcome> {
        let segment = match self.decoder.decode(frame) {
            Ok(segment) => segment,
            Err(outcome) => return Some(outcome),
        };
        self.cut_frames += u64::from(segment.cut > 0);
        if let Break(outcome) = routed(route(&segment)) {
            return outcome;
        }
        let mut sink = Extraction {
            gaps: &mut self.gaps,
            extractor: &mut self.extractor,
            out,
        };
        Some(self.streams.push(&segment, &mut sink))
    }

    /// Takes frames that are in memory together, as [`Pipeline::steered_frame`] would one after the other, `steer` saying
    /// whose the segments are; each outcome that ends here goes to `ended`.
    pub fn frames<'a>(
        &mut self,
        frames: impl Iterator<Item = Frame<'a>>,
        mut steer: impl Steer,
        mut ended: impl FnMut(PacketOutcome),
        out: &mut impl FnMut(Request),
    ) {
        let mut frames = frames.fuse();
        let mut batch = [Plain::NONE; AHEAD];
        let mut names = [Named::NONE; AHEAD];
        // Of those that ended in the decoder: their place in the batch keeps outcomes in the order of frames.
        let mut decoded = [None; AHEAD];
        loop {
            let mut count = 0;
            let mut other = None;
            let places = batch.iter_mut().zip(&mut names).zip(&mut decoded);
            for ((plain, named), refused) in places {
                let Some(frame) = frames.next() else {
                    break;
                };
                match self.decoder.decode_plain(&frame, plain) {
                    Some(Ok(())) => {
                        self.streams.name(plain, named);
                        *refused = None;
                    }
                    Some(Err(outcome)) => {
                        *named = Named::NONE;
                        *refused = Some(outcome);
                    }
                    None => {
                        other = Some(frame);
                        break;
                    }
                }
                count += 1;
            }
            self.streams.look_ahead(|dir| self.extractor.prefetch(dir));
            for ((plain, named), refused) in batch.iter().zip(&names).zip(&decoded).take(count) {
                self.ahead.read(plain.payload);
                let ends = match refused {
                    Some(outcome) => Break(Some(*outcome)),
                    None if steer.is_own(plain) => Continue(()),
                    None => routed(steer.route(&plain.segment())),
                };
                let outcome = match ends {
                    Break(outcome) => outcome,
                    Continue(()) => {
                        let mut sink = Extraction {
                            gaps: &mut self.gaps,
                            extractor: &mut self.extractor,
                            out,
                        };
                        // A plain frame is none that was cut.
                        Some(self.streams.push_named(plain, named, &mut sink))
                    }
                };
                outcome.map(&mut ended);
            }
            match other {
                Some(frame) => {
                    let route = |segment: &Segment<'_>| steer.route(segment);
                    self.steered_frame(&frame, route, out).map(&mut ended);
                }
                None if count < AHEAD => return,
                None => {}
            }
        }
    }

    /// Takes a segment that another worker has decoded. It does not move flow time, see [`Streams::push_handed`].
    pub fn segment(
        &mut self,
        segment: &Segment<'_>,
        out: &mut impl FnMut(Request),
    ) -> PacketOutcome {
        let mut sink = Extraction {
            gaps: &mut self.gaps,
            extractor: &mut self.extractor,
            out,
        };
        self.streams.push_handed(segment, &mut sink)
    }

    /// Moves flow time to `now`: holes grow old and idle flows end. Call it with the wall clock only when the socket
    /// was found empty, or a backlog would expire what is waiting in it.
    pub fn advance(&mut self, now: Timestamp, out: &mut impl FnMut(Request)) {
        let mut sink = Extraction {
            gaps: &mut self.gaps,
            extractor: &mut self.extractor,
            out,
        };
        self.streams.advance(now, &mut sink);
    }

    /// Ends every flow: the capture file is at its end, or the worker drains.
    pub fn finish(&mut self, end: End, out: &mut impl FnMut(Request)) {
        self.decoder.finish();
        let mut sink = Extraction {
            gaps: &mut self.gaps,
            extractor: &mut self.extractor,
            out,
        };
        self.streams.finish(end, &mut sink);
    }

    /// Connections in the table.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.streams.flows()
    }

    /// Frames that were shorter than their IP length: the mirror cut them.
    #[must_use]
    pub fn cut_frames(&self) -> u64 {
        self.cut_frames
    }

    /// Frames with a wrong checksum that were taken all the same.
    #[must_use]
    pub fn bad_checksums(&self) -> u64 {
        self.decoder.bad_checksums()
    }

    /// Captured bytes of IP fragments that never became a packet.
    #[must_use]
    pub fn lost_fragment_bytes(&self) -> u64 {
        self.decoder.lost_fragment_bytes()
    }

    /// Bytes that disagreed with bytes captured at the same place, of IP fragments and of streams.
    #[must_use]
    pub fn conflict_bytes(&self) -> u64 {
        self.decoder.fragment_conflict_bytes() + self.streams.stats().conflicting_bytes
    }

    /// Holes in streams that were given up.
    #[must_use]
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    /// What reassembly did.
    #[must_use]
    pub fn stream_stats(&self) -> Stats {
        self.streams.stats()
    }

    /// Bytes held for reassembly and for requests that are not complete.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.streams.held_bytes() + self.extractor.held_bytes()
    }

    /// What the extractor could not make a request of.
    #[must_use]
    pub fn http_counters(&self) -> HttpCounters {
        self.extractor.counters()
    }
}

/// Breaks where a segment is not this worker's, with the outcome of its packet: none where another worker counts it.
fn routed(route: Route) -> ControlFlow<Option<PacketOutcome>> {
    match route {
        Route::Own => Continue(()),
        Route::Handed => Break(None),
        Route::Full => Break(Some(PacketOutcome::HandoverFull)),
        Route::Loop => Break(Some(PacketOutcome::Loop)),
    }
}
