//! Flow time (DESIGN §2 "Time"): what the packets say the time is.

use std::time::Duration;

use crate::time::Timestamp;

/// A packet further ahead than this is not believed alone.
const JUMP: Duration = Duration::from_secs(3600);
/// So many packets in a row must agree before a jump is followed.
const AGREEING: u32 = 3;
/// Packets that are all further behind than this were stamped by a clock that was set back, or come from another
/// recording; nearer ones were overtaken.
const BEHIND: Duration = Duration::from_secs(60);
/// For so long of their own time must packets be behind before time goes on from them.
const STEADY: Duration = Duration::from_secs(1);
/// A trusted clock further behind than this was set back.
pub(crate) const SET_BACK: Duration = Duration::from_secs(1);

/// The largest packet time so far. An earlier packet does not move it back; one that is more than an hour ahead moves
/// it only when the next packets agree, so that one broken time stamp expires nothing.
///
/// It never goes back, but it does not stand still for as long as the clock behind the time stamps was set back
/// either: from then on it runs ahead of that clock by a constant.
#[derive(Debug, Default)]
pub(super) struct FlowClock {
    now: Option<Timestamp>,
    /// What flow time is ahead of the clock that stamps packets: by how much that was set back, in all.
    ahead: Duration,
    /// A time too far ahead to believe, and how many packets in a row have told about that time.
    doubted: Option<(Timestamp, u32)>,
    /// The first and the latest time of packets in a row that were far behind.
    behind: Option<(Timestamp, Timestamp)>,
    jumps: u64,
    /// Nothing is doubted, nobody is behind, and no clock was ever set back.
    steady: bool,
}

impl FlowClock {
    /// Takes a packet's time and returns flow time.
    #[inline]
    pub(super) fn observe(&mut self, ts: Timestamp) -> Timestamp {
        // As a rule.
        if self.steady
            && let Some(now) = self.now
            && ts + BEHIND >= now
            && ts <= now + JUMP
        {
            let now = now.max(ts);
            self.now = Some(now);
            return now;
        }
        let now = self.observe_any(ts);
        self.steady = self.ahead.is_zero() && self.doubted.is_none() && self.behind.is_none();
        now
    }

    fn observe_any(&mut self, ts: Timestamp) -> Timestamp {
        let ts = ts + self.ahead;
        let Some(now) = self.now else {
            self.now = Some(ts);
            return ts;
        };
        if ts + BEHIND < now {
            self.doubted = None;
            let (first, latest) = self.behind.unwrap_or((ts, ts));
            let latest = latest.max(ts);
            self.behind = Some((first, latest));
            if latest.since(first) >= STEADY {
                self.set_back(now.since(latest));
            }
            return now;
        }
        self.behind = None;
        if ts <= now + JUMP {
            self.doubted = None;
            let now = now.max(ts);
            self.now = Some(now);
            return now;
        }
        self.jumps = self.jumps.saturating_add(1);
        let agreeing = match self.doubted {
            Some((at, n)) if ts.since(at).max(at.since(ts)) <= JUMP => n.saturating_add(1),
            _ => 1,
        };
        if agreeing >= AGREEING {
            self.doubted = None;
            self.now = Some(ts);
            return ts;
        }
        self.doubted = Some((ts, agreeing));
        now
    }

    /// Flow time as it is; the first packet's where there was none before.
    pub(super) fn first(&mut self, ts: Timestamp) -> Timestamp {
        match self.now {
            Some(now) => now,
            None => self.observe(ts),
        }
    }

    /// Takes a time from a trusted clock (an idle socket's wall clock, the end of a file).
    pub(super) fn advance(&mut self, to: Timestamp) -> Timestamp {
        let to = to + self.ahead;
        let now = self.now.map_or(to, |now| now.max(to));
        let late = now.since(to);
        if late > SET_BACK {
            self.set_back(late);
        }
        self.now = Some(now);
        now
    }

    fn set_back(&mut self, by: Duration) {
        self.steady = false;
        self.ahead = self.ahead.saturating_add(by);
        self.behind = None;
        self.doubted = None;
    }

    /// Flow time; the epoch before the first packet.
    pub(super) fn now(&self) -> Timestamp {
        self.now.unwrap_or_default()
    }

    /// Packets whose time was more than an hour ahead of flow time.
    pub(super) fn jumps(&self) -> u64 {
        self.jumps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000_000;

    #[test]
    fn an_earlier_packet_does_not_move_time_back() {
        let mut clock = FlowClock::default();
        clock.observe(Timestamp(100));
        assert_eq!(clock.observe(Timestamp(40)), Timestamp(100));
    }

    #[test]
    fn one_packet_an_hour_ahead_is_counted_and_not_followed() {
        let mut clock = FlowClock::default();
        clock.observe(Timestamp(100));
        assert_eq!(clock.observe(Timestamp(100 + HOUR)), Timestamp(100 + HOUR));
        assert_eq!(
            clock.observe(Timestamp(101 + 2 * HOUR)),
            Timestamp(100 + HOUR)
        );
        assert_eq!(clock.observe(Timestamp(101 + HOUR)), Timestamp(101 + HOUR));
        assert_eq!(clock.jumps(), 1);
    }

    #[test]
    fn a_jump_is_followed_when_three_packets_in_a_row_agree() {
        let mut clock = FlowClock::default();
        clock.observe(Timestamp(100));
        assert_eq!(clock.observe(Timestamp(9 * HOUR)), Timestamp(100));
        assert_eq!(
            clock.observe(Timestamp(20 * HOUR)),
            Timestamp(100),
            "another time agrees with nothing"
        );
        assert_eq!(clock.observe(Timestamp(20 * HOUR + 1)), Timestamp(100));
        assert_eq!(
            clock.observe(Timestamp(20 * HOUR + 2)),
            Timestamp(20 * HOUR + 2)
        );
        assert_eq!(clock.jumps(), 4);
    }

    #[test]
    fn a_trusted_clock_that_was_set_back_does_not_stop_time() {
        let mut clock = FlowClock::default();
        let second = Duration::from_secs(1);
        clock.observe(Timestamp(5 * HOUR));
        assert_eq!(clock.advance(Timestamp(4 * HOUR)), Timestamp(5 * HOUR));
        let later = clock.advance(Timestamp(4 * HOUR) + second);
        assert_eq!(later, Timestamp(5 * HOUR) + second);
        // The packets are stamped by the same clock.
        let packet = clock.observe(Timestamp(4 * HOUR) + 2 * second);
        assert_eq!(packet, Timestamp(5 * HOUR) + 2 * second);
    }

    #[test]
    fn packets_that_are_a_minute_behind_for_a_second_go_on_from_flow_time() {
        let mut clock = FlowClock::default();
        let ms = Duration::from_millis(1);
        clock.observe(Timestamp(5 * HOUR));
        for n in 0..=1000 {
            assert_eq!(
                clock.observe(Timestamp(4 * HOUR) + n * ms),
                Timestamp(5 * HOUR)
            );
        }
        assert_eq!(
            clock.observe(Timestamp(4 * HOUR) + 1500 * ms),
            Timestamp(5 * HOUR) + 500 * ms
        );
    }

    #[test]
    fn packets_of_two_clocks_a_minute_apart_do_not_push_time_ahead() {
        let mut clock = FlowClock::default();
        let step = Duration::from_millis(100);
        for n in 0..100 {
            let fast = Timestamp(5 * HOUR) + n * step;
            assert_eq!(clock.observe(fast), fast);
            assert_eq!(clock.observe(Timestamp(4 * HOUR) + n * step), fast);
        }
    }

    #[test]
    fn packets_less_than_a_minute_behind_were_overtaken() {
        let mut clock = FlowClock::default();
        let second = Duration::from_secs(1);
        clock.observe(Timestamp(HOUR));
        for n in 1..60 {
            assert_eq!(
                clock.observe(Timestamp(HOUR - 60_000_000_000) + n * second),
                Timestamp(HOUR)
            );
        }
    }
}
