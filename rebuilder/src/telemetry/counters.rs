//! What one worker counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::{PacketOutcome, RequestOutcome};

/// A closed set of unlabelled metrics: the enum, the metric's name and its help text stand in one place.
macro_rules! metrics {
    ($(#[$meta:meta])* $name:ident { $($variant:ident => $metric:literal, $help:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $(#[doc = $help] $variant,)+ }

        impl $name {
            /// Every one, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The metric's name, without the prefix `rebuilder_` and, for a counter, without the suffix `_total`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $metric,)+ }
            }

            /// The help text, with the unit.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)+ }
            }

            /// Its place in [`Self::ALL`].
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

metrics! {
    /// What only grows. Packets and requests by outcome are counted beside these.
    Counter {
        ReceivedBytes => "received_bytes", "Bytes of the mirrored frames that were read, outer headers excluded.";
        KernelDrops => "kernel_drops", "Mirrored packets that the kernel dropped because the ring or the receive buffer was full.";
        SoftnetDrops => "softnet_drops", "Packets of this host, mirrored or not, that found the queue between a network card and the kernel full (`/proc/net/softnet_stat`), since the rebuilder started.";
        NicBandwidthExceeded => "nic_bandwidth_exceeded", "Packets of this host, mirrored or not, beyond the incoming bandwidth of its instance type (`bw_in_allowance_exceeded` of the driver ena), since the rebuilder started.";
        NicPacketsExceeded => "nic_packets_exceeded", "Packets of this host beyond the packets per second of its instance type (`pps_allowance_exceeded`), since the rebuilder started.";
        NicConntrackExceeded => "nic_conntrack_exceeded", "Packets of this host beyond the connections that its security groups track (`conntrack_allowance_exceeded`), since the rebuilder started.";
        TruncatedDatagrams => "truncated_datagrams", "Datagrams longer than 9,600 bytes, taken as far as that; the frames in them count as cut.";
        SuperFrames => "super_frames", "Packets that were several ones of the wire, put together by a card or by the kernel (GRO) or not cut to size yet (GSO): of several datagrams in one, only the first can be read.";
        AnalyserOpened => "analyser_opened", "Packets of connections that a host with the analyser's address opened to others. Where a load balancer stands there, the nodes behind it are mirrored, and each of their requests comes back to them; take them out of the selection.";
        HandedOver => "handed_over", "Segments that reached another worker than the one that holds their connection, and were handed to it: fragments, tunnels and headers that the kernel does not read.";
        CutFrames => "cut_frames", "Frames that the mirror cut short (session packet length, MTU): a hole of known length each.";
        BadChecksums => "bad_checksums", "Frames whose TCP or IPv4 checksum is wrong and that were taken all the same; see `--checksum`.";
        Gaps => "gaps", "Holes in a stream that were given up: their bytes were never captured.";
        GapBytes => "gap_bytes", "Bytes missing in the holes of known length that were given up.";
        ShedBytes => "shed_bytes", "Captured bytes thrown away because a flow or the whole table had reached its byte cap, or because they lay alone far ahead of a stream that went on without them.";
        LostFragmentBytes => "lost_fragment_bytes", "Captured bytes of IP fragments that were held or refused and never became part of a packet: pieces were missing, contradicted each other, or the cap was reached.";
        ConflictBytes => "conflict_bytes", "Bytes that disagreed with bytes that had been captured at the same place; see the flag `ambiguous`.";
        LateConflicts => "late_conflicts", "Late copies that disagreed with bytes that had been handed on; the request is `ambiguous` unless it was complete.";
        EvictedFlows => "evicted_flows", "Connections closed early because the flow table was full.";
        TimeJumps => "time_jumps", "Packet time stamps more than an hour ahead of flow time, which were not followed.";
        IncompleteHeads => "incomplete_heads", "Requests given up inside their head, because of a hole, the end of the stream or a cap; there is nothing to forward.";
        CutRequests => "cut_requests", "Requests forwarded as `truncated` because they or all that is held had reached a byte cap.";
        LostFramings => "lost_framings", "Times it could not be told where the next request begins; it is searched for.";
        SkippedBytes => "skipped_bytes", "Bytes of request streams that stand in no request, passed over while the framing was lost.";
        Extracted => "requests_extracted", "Requests found in the traffic: the sum of all outcomes, plus those in flight.";
        Submitted => "requests_submitted", "Requests handed to the forwarder: the sum of all outcomes but `incomplete` and `health_check`, plus those in flight.";
        Resent => "requests_resent", "Requests that were written to a connection and had to be written to another one (delivery is at least once).";
        Quarantined => "requests_quarantined", "Times a request was sent alone on a fresh connection.";
        AnswerTimeouts => "answer_timeouts", "Connections given up because the oldest request on them was not answered in time.";
        ForwardedBytes => "forwarded_bytes", "Bytes written to analyser connections, before TLS.";
        Connects => "connects", "Connections to the analyser that were established.";
        ConnectFailures => "connect_failures", "Connections to the analyser that could not be established.";
    }
}

metrics! {
    /// What goes up and down. The exported figure is the sum over the workers.
    Gauge {
        Flows => "flows", "Connections whose state is held.";
        HeldBytes => "held_bytes", "Captured bytes held until a hole before them fills or a request is whole.";
        QueueBytes => "queue_bytes", "Bytes of requests that wait for a connection to the analyser.";
        InFlightBytes => "inflight_bytes", "Bytes of requests that were given to a connection and are not answered yet.";
        InFlight => "requests_in_flight", "Requests that have no outcome yet: waiting, or sent and not answered.";
        Connections => "connections", "Established connections to the analyser, quarantine included.";
        QuarantineConnections => "quarantine_connections", "Connections that carry a single, disputed or charged request.";
    }
}

/// An answer that a balancer between us and the analyser gave itself: it tells how much is hidden from the analyser.
///
/// Recognised by `Server: awselb/2.0`, which an Application Load Balancer puts into answers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalancerStatus {
    /// 400: malformed, or against the desync mitigation mode.
    BadRequest,
    /// 405: a method such as TRACE.
    MethodNotAllowed,
    /// 463: more than 30 addresses in X-Forwarded-For.
    TooManyAddresses,
    /// 5xx: no healthy analyser behind it.
    Unavailable,
    /// Any other.
    Other,
}

impl BalancerStatus {
    /// Every one, in the order of declaration.
    pub const ALL: &'static [Self] = &[
        Self::BadRequest,
        Self::MethodNotAllowed,
        Self::TooManyAddresses,
        Self::Unavailable,
        Self::Other,
    ];

    /// Which one a status code is.
    #[must_use]
    pub const fn of(status: u16) -> Self {
        match status {
            400 => Self::BadRequest,
            405 => Self::MethodNotAllowed,
            463 => Self::TooManyAddresses,
            500..=599 => Self::Unavailable,
            _ => Self::Other,
        }
    }

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadRequest => "400",
            Self::MethodNotAllowed => "405",
            Self::TooManyAddresses => "463",
            Self::Unavailable => "5xx",
            Self::Other => "other",
        }
    }
}

/// One set of figures: those of a worker at one moment, or the sums over all workers.
#[derive(Clone, Debug)]
pub struct Figures {
    packets: [u64; PacketOutcome::ALL.len()],
    requests: [u64; RequestOutcome::ALL.len()],
    counters: [u64; Counter::ALL.len()],
    gauges: [u64; Gauge::ALL.len()],
    balancer: [u64; BalancerStatus::ALL.len()],
    load_millionths: u64,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            packets: [0; _],
            requests: [0; _],
            counters: [0; _],
            gauges: [0; _],
            balancer: [0; _],
            load_millionths: 0,
        }
    }
}

impl Figures {
    /// Adds another worker's. The load is that of the busier one: flows do not move between workers, so that one is full
    /// first.
    pub(super) fn add(&mut self, other: &Self) {
        // Wrapping like the counters themselves; a scraper reads a smaller number as a restart.
        let add = |sums: &mut [u64], more: &[u64]| {
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum = sum.wrapping_add(*more);
            }
        };
        add(&mut self.packets, &other.packets);
        add(&mut self.requests, &other.requests);
        add(&mut self.counters, &other.counters);
        add(&mut self.gauges, &other.gauges);
        add(&mut self.balancer, &other.balancer);
        self.load_millionths = self.load_millionths.max(other.load_millionths);
    }

    /// Packets that ended so.
    #[must_use]
    pub const fn packets(&self, outcome: PacketOutcome) -> u64 {
        self.packets[outcome.index()]
    }

    /// Requests that ended so.
    #[must_use]
    pub const fn requests(&self, outcome: RequestOutcome) -> u64 {
        self.requests[outcome.index()]
    }

    /// The value of a counter.
    #[must_use]
    pub const fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter.index()]
    }

    /// The value of a gauge.
    #[must_use]
    pub const fn gauge(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge.index()]
    }

    /// Answers of this kind that a balancer gave.
    #[must_use]
    pub const fn balancer(&self, status: BalancerStatus) -> u64 {
        self.balancer[status as usize]
    }

    /// The share of time (0 to 1) that the worker was busy.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // at most a million
    pub fn load(&self) -> f64 {
        self.load_millionths as f64 / 1e6
    }
}

/// The counters of one worker thread, which is their only writer.
///
/// What the worker counts is its own. Others see what it last published: a copy of all figures made at a moment when
/// they add up (requests = outcomes + in flight), so that a scrape in the middle of a burst adds up too.
///
/// Aligned so that two workers never share a cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerCounters {
    packets: [AtomicU64; PacketOutcome::ALL.len()],
    requests: [AtomicU64; RequestOutcome::ALL.len()],
    counters: [AtomicU64; Counter::ALL.len()],
    gauges: [AtomicU64; Gauge::ALL.len()],
    balancer: [AtomicU64; BalancerStatus::ALL.len()],
    load_millionths: AtomicU64,
    // Held for the copy of some eighty numbers.
    published: Mutex<Figures>,
}

impl Default for WorkerCounters {
    fn default() -> Self {
        Self {
            packets: [const { AtomicU64::new(0) }; _],
            requests: [const { AtomicU64::new(0) }; _],
            counters: [const { AtomicU64::new(0) }; _],
            gauges: [const { AtomicU64::new(0) }; _],
            balancer: [const { AtomicU64::new(0) }; _],
            load_millionths: AtomicU64::new(0),
            published: Mutex::default(),
        }
    }
}

impl WorkerCounters {
    /// A packet has ended.
    pub fn packet(&self, outcome: PacketOutcome) {
        raise(&self.packets[outcome.index()], 1);
    }

    /// Many packets have ended in the same way.
    pub fn packets(&self, outcome: PacketOutcome, n: u64) {
        raise(&self.packets[outcome.index()], n);
    }

    /// A request has ended.
    pub fn request(&self, outcome: RequestOutcome) {
        raise(&self.requests[outcome.index()], 1);
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, n: u64) {
        raise(&self.counters[counter.index()], n);
    }

    /// Sets a gauge.
    pub fn set(&self, gauge: Gauge, value: u64) {
        self.gauges[gauge.index()].store(value, Ordering::Relaxed);
    }

    /// A balancer answered in the analyser's place.
    pub fn balancer(&self, status: BalancerStatus) {
        raise(&self.balancer[status as usize], 1);
    }

    /// Sets the share of time (0 to 1) that the worker was busy; see [`super::LoadMeter`].
    pub fn set_load(&self, ratio: f64) {
        // `as` saturates and turns NaN into 0, and the clamp keeps it below 2^20: nothing is cut.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let millionths = (ratio.clamp(0.0, 1.0) * 1e6) as u64;
        self.load_millionths.store(millionths, Ordering::Relaxed);
    }

    /// Lets others see the figures as they are now; for the worker, when they add up. It never waits: `false` when
    /// somebody is reading at this very moment, and the next call will do.
    pub fn publish(&self) -> bool {
        let mut published = match self.published.try_lock() {
            Ok(published) => published,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let copy = |to: &mut [u64], from: &[AtomicU64]| {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from.load(Ordering::Relaxed);
            }
        };
        copy(&mut published.packets, &self.packets);
        copy(&mut published.requests, &self.requests);
        copy(&mut published.counters, &self.counters);
        copy(&mut published.gauges, &self.gauges);
        copy(&mut published.balancer, &self.balancer);
        published.load_millionths = self.load_millionths.load(Ordering::Relaxed);
        true
    }

    /// What was last published.
    pub(super) fn published(&self) -> MutexGuard<'_, Figures> {
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How many packets have ended so, for the worker itself.
    #[must_use]
    pub fn packets_of(&self, outcome: PacketOutcome) -> u64 {
        self.packets[outcome.index()].load(Ordering::Relaxed)
    }

    /// How many requests have ended so, for the worker itself.
    #[must_use]
    pub fn requests_of(&self, outcome: RequestOutcome) -> u64 {
        self.requests[outcome.index()].load(Ordering::Relaxed)
    }

    /// The value of a counter, for the worker itself.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter.index()].load(Ordering::Relaxed)
    }

    /// The value of a gauge, for the worker itself.
    #[must_use]
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge.index()].load(Ordering::Relaxed)
    }

    /// How many answers of this kind a balancer gave, for the worker itself.
    #[must_use]
    pub fn balancer_of(&self, status: BalancerStatus) -> u64 {
        self.balancer[status as usize].load(Ordering::Relaxed)
    }
}

/// With a load and a store, which is enough where there is one writer: an addition that no other writer could come between
/// would take as long as twenty others, once a packet, and hold up what memory was asked for behind it.
#[inline]
fn raise(counter: &AtomicU64, n: u64) {
    let value = counter.load(Ordering::Relaxed);
    counter.store(value.wrapping_add(n), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_set_is_indexed_by_its_own_order() {
        for (i, outcome) in PacketOutcome::ALL.iter().enumerate() {
            assert_eq!(outcome.index(), i);
        }
        for (i, outcome) in RequestOutcome::ALL.iter().enumerate() {
            assert_eq!(outcome.index(), i);
        }
        for (i, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(counter.index(), i);
        }
        for (i, gauge) in Gauge::ALL.iter().enumerate() {
            assert_eq!(gauge.index(), i);
        }
        for (i, status) in BalancerStatus::ALL.iter().enumerate() {
            assert_eq!(*status as usize, i);
        }
    }

    #[test]
    fn a_load_outside_0_to_1_is_clamped() {
        let counters = WorkerCounters::default();
        for (given, stored) in [(0.25, 0.25), (-1.0, 0.0), (7.0, 1.0), (f64::NAN, 0.0)] {
            counters.set_load(given);
            assert!(counters.publish());
            let load = counters.published().load();
            assert!((load - stored).abs() < 1e-6, "{given}");
        }
    }

    #[test]
    fn the_worker_never_waits_for_a_scrape() {
        let counters = WorkerCounters::default();
        counters.packet(PacketOutcome::Stream);
        let reading = counters.published();
        assert!(!counters.publish());
        assert_eq!(reading.packets(PacketOutcome::Stream), 0);
        drop(reading);
        assert!(counters.publish());
        let seen = counters.published().packets(PacketOutcome::Stream);
        assert_eq!(seen, 1);
    }
}
