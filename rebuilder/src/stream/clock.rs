//! Flow time (DESIGN §2 "Time"): what the packets say the time is.

use std::time::Duration;

use crate::time::Timestamp;

/// A packet further ahead than this is not believed alone.
const JUMP: Duration = Duration::from_secs(3600);
/// So many packets in a row must agree before a jump is followed.
const AGREEING: u32 = 3;

/// The largest packet time so far. An earlier packet does not move it back; one that is more than an hour ahead moves
/// it only when the next packets agree, so that one broken time stamp expires nothing.
#[derive(Debug, Default)]
pub(super) struct FlowClock {
    now: Option<Timestamp>,
    /// A time too far ahead to believe, and how many packets in a row have told about that time.
    doubted: Option<(Timestamp, u32)>,
    jumps: u64,
}

impl FlowClock {
    /// Takes a packet's time and returns flow time.
    pub(super) fn observe(&mut self, ts: Timestamp) -> Timestamp {
        let Some(now) = self.now else {
            self.now = Some(ts);
            return ts;
        };
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

    /// Takes a time from a trusted clock (an idle socket's wall clock, the end of a file).
    pub(super) fn advance(&mut self, to: Timestamp) -> Timestamp {
        let now = self.now.map_or(to, |now| now.max(to));
        self.now = Some(now);
        now
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
}
