//! The SYN of a direction, and the data that it may carry (TCP Fast Open, RFC 7413).
//!
//! A server that does not do Fast Open, or does not know the cookie, drops the data of a SYN and acknowledges the SYN
//! alone; the client sends its data once more, and it need not be the same. So the data of a SYN waits until the client
//! shows which it was: a client that goes on behind the data was understood; one that sends from the first byte again
//! was not, and what it sends then is what the server got.

use crate::decode::Seq;
use crate::telemetry::PacketOutcome;
use crate::time::Timestamp;

use super::super::offset::{StreamOffset, advance, len64};
use super::super::{Sink, StreamOptions};
use super::{Direction, Env, Part, Start, cost_of};

/// Data that came with the SYN and was not handed on yet.
#[derive(Debug)]
pub(super) struct SynData {
    seq: Seq,
    payload: Box<[u8]>,
    ts: Timestamp,
    /// Flow time; once any of it was sent again, of the last such segment.
    since: Timestamp,
    /// Some of it was sent again outside the SYN, so nothing of the SYN's was taken. It is only compared then.
    refused: bool,
}

impl SynData {
    pub(super) fn cost(&self) -> usize {
        cost_of(self.payload.len())
    }
}

impl Direction {
    /// Takes a SYN. `true` when it is this direction's own.
    pub(in crate::stream) fn note_syn(
        &mut self,
        isn: Seq,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) -> bool {
        if let Some(own) = self.isn {
            return own == isn;
        }
        let Ok(at) = u64::try_from(self.place(advance(isn, 1))) else {
            return false;
        };
        let at = StreamOffset(at);
        let lowest = match self.start {
            Start::At(start) => start,
            Start::Waiting(_) => self.held.first().map_or(self.next, |first| first.at),
        };
        if at > lowest || lowest.since(at) > u64::from(env.opts.window) {
            return false;
        }
        self.isn = Some(isn);
        if self.is_waiting() {
            self.open(at, false, env, sink);
            self.drain(env, sink);
            self.refresh_hole();
        }
        true
    }

    /// Keeps the data of a SYN until the client shows whether it was taken; `None` where that is known already.
    pub(super) fn keep_syn_data(
        &mut self,
        part: &Part<'_>,
        env: &mut Env<'_>,
    ) -> Option<PacketOutcome> {
        if !part.syn || part.payload.is_empty() || self.opaque.is_some() {
            return None;
        }
        if let Some(kept) = &self.syn_data {
            let conflicting = differing(&kept.payload, part.payload);
            env.stats.conflicting_bytes += conflicting;
            return Some(PacketOutcome::Duplicate);
        }
        let untouched = self.start == Start::At(self.next) && self.held.is_empty();
        if !untouched || self.excess(cost_of(part.payload.len()), env) > 0 {
            return None;
        }
        self.syn_data = Some(Box::new(SynData {
            seq: part.seq,
            payload: part.payload.into(),
            ts: part.ts,
            since: env.now,
            refused: false,
        }));
        self.high = self.high.max(self.next + part.len());
        self.settle(env);
        Some(PacketOutcome::Stream)
    }

    /// Decides on the data of the SYN by what the client sends at `part`. `true` where the part disagrees with it.
    pub(super) fn weigh_syn_data(
        &mut self,
        part: &Part<'_>,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) -> bool {
        let place = self.place(part.seq);
        let Some(start) = self.syn_data.as_ref().map(|kept| self.place(kept.seq)) else {
            return false;
        };
        let Some(kept) = &mut self.syn_data else {
            return false;
        };
        let skip = usize::try_from(place.saturating_sub(start)).unwrap_or(0);
        let lead = usize::try_from(start.saturating_sub(place)).unwrap_or(0);
        if skip >= kept.payload.len() {
            self.note_taken(part.seq, env, sink);
            return false;
        }
        let again = part.payload.get(lead..).unwrap_or_default();
        if again.is_empty() {
            return false;
        }
        kept.since = env.now;
        let conflicting = differing(kept.payload.get(skip..).unwrap_or_default(), again);
        env.stats.conflicting_bytes += conflicting;
        if !std::mem::replace(&mut kept.refused, true) {
            // What it told of the stream's length is void.
            self.high = self.held.end().unwrap_or(self.next).max(self.next);
        }
        conflicting > 0
    }

    /// The client goes on at `seq`, or the server has everything before it: if that is behind the data of the SYN, it
    /// was taken.
    pub(in crate::stream) fn note_taken(
        &mut self,
        seq: Seq,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) {
        let at = self.place(seq);
        let taken = self.syn_data.as_ref().is_some_and(|kept| {
            let len = i64::try_from(kept.payload.len()).unwrap_or(i64::MAX);
            let beyond = len..=i64::from(env.opts.window);
            !kept.refused && beyond.contains(&at.saturating_sub(self.place(kept.seq)))
        });
        if taken {
            self.release_syn_data(env, sink);
        }
    }

    /// Hands the SYN's data on, unless it was refused.
    pub(super) fn release_syn_data(&mut self, env: &mut Env<'_>, sink: &mut impl Sink) {
        let Some(kept) = self.syn_data.take() else {
            return;
        };
        self.settle(env);
        if kept.refused {
            return;
        }
        let part = Part {
            seq: kept.seq,
            payload: &kept.payload,
            cut: 0,
            fin: false,
            syn: false,
            ack: None,
            urgent: None,
            ts: kept.ts,
        };
        self.place_payload(&part, false, env, sink);
        self.settle(env);
        self.refresh_hole();
    }

    /// The data of the SYN is of no use once all of it was handed on otherwise.
    pub(super) fn drop_syn_data(&mut self, env: &mut Env<'_>) {
        let Some(kept) = &self.syn_data else { return };
        let end = self
            .place(kept.seq)
            .saturating_add_unsigned(len64(kept.payload.len()));
        if end <= i64::try_from(self.next.0).unwrap_or(i64::MAX) {
            self.syn_data = None;
            self.settle(env);
        }
    }

    /// When the data of the SYN is taken for granted, for want of a sign, or of no use any more.
    pub(super) fn syn_data_due(&self, opts: &StreamOptions) -> Option<Timestamp> {
        self.syn_data
            .as_ref()
            .map(|kept| kept.since + opts.gap_after)
    }
}

fn differing(a: &[u8], b: &[u8]) -> u64 {
    len64(a.iter().zip(b).filter(|(a, b)| a != b).count())
}
