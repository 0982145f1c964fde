//! Health checks of targets: real HTTP requests, and what follows from their results.
//!
//! Rules, from the Network Load Balancers user guide, "Health checks": a registered target is `initial` until its first
//! check passes; `UnhealthyThresholdCount` failures in a row make it unhealthy, `HealthyThresholdCount` passes in a row
//! healthy again. A check has failed that was not answered within its timeout, or with a status that does not match.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;

/// What is checked and how often.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Check {
    /// The port that is asked.
    pub port: u16,
    /// The path that is asked for.
    pub path: String,
    /// Seconds from one check's start to the next one's.
    pub interval: f64,
    /// Seconds after which an answer is too late.
    pub timeout: f64,
    /// Passes in a row that make an unhealthy target healthy.
    pub healthy_threshold: u32,
    /// Failures in a row that make a target unhealthy.
    pub unhealthy_threshold: u32,
    /// Statuses that pass: `200`, `200,204` or `200-299`.
    pub codes: String,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            port: 9445,
            path: "/healthz".to_owned(),
            interval: 10.0,
            timeout: 5.0,
            healthy_threshold: 2,
            unhealthy_threshold: 2,
            codes: "200".to_owned(),
        }
    }
}

impl Check {
    fn matches(&self, status: u16) -> bool {
        self.codes.split(',').any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let bound = |text: &str| text.trim().parse::<u16>().ok();
            bound(first).is_some_and(|first| status >= first)
                && bound(last).is_some_and(|last| status <= last)
        })
    }

    /// Asks a target, from the calling thread's network namespace.
    ///
    /// # Errors
    /// Where the check has failed; the error says why.
    pub fn ask(&self, address: std::net::Ipv4Addr) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs_f64(self.timeout);
        let left = || match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => bail!("Request timed out"),
            left => Ok(left),
        };
        let to = SocketAddrV4::new(address, self.port);
        let mut stream = TcpStream::connect_timeout(&to.into(), left()?)?;
        stream.set_write_timeout(Some(left()?))?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nUser-Agent: ELB-HealthChecker/2.0\r\n\
             Accept-Encoding: gzip, compressed\r\n\r\n",
            self.path
        );
        stream.write_all(request.as_bytes())?;
        let mut head = Vec::new();
        let mut buffer = [0; 512];
        while !head.contains(&b'\n') {
            stream.set_read_timeout(Some(left()?))?;
            match stream.read(&mut buffer)? {
                0 => bail!("the connection ended without an answer"),
                read => head.extend_from_slice(buffer.get(..read).unwrap_or_default()),
            }
        }
        let line = String::from_utf8_lossy(&head);
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status: u16 = status.context("no HTTP status")?;
        if !self.matches(status) {
            bail!("Health checks failed with these codes: [{status}]");
        }
        Ok(())
    }
}

/// How a target is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// No check has passed yet.
    #[default]
    Initial,
    /// It takes flows.
    Healthy,
    /// It does not.
    Unhealthy,
}

impl State {
    /// As the API names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What the checks of a target have come to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    state: State,
    /// Results in a row that are all the same.
    streak: u32,
    passing: bool,
}

impl Health {
    pub(super) fn note(&mut self, passed: bool, check: &Check) {
        self.streak = if passed == self.passing {
            self.streak + 1
        } else {
            1
        };
        self.passing = passed;
        let enough = match (passed, self.state) {
            (true, State::Initial) => 1,
            (true, _) => check.healthy_threshold,
            (false, _) => check.unhealthy_threshold,
        };
        if self.streak >= enough {
            self.state = if passed {
                State::Healthy
            } else {
                State::Unhealthy
            };
        }
    }

    pub(super) const fn state(self) -> State {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(results: &[bool]) -> State {
        let mut health = Health::default();
        for &passed in results {
            health.note(passed, &Check::default());
        }
        health.state()
    }

    #[test]
    fn only_so_many_results_in_a_row_change_a_target() {
        assert_eq!(after(&[]), State::Initial);
        assert_eq!(after(&[false]), State::Initial);
        assert_eq!(after(&[false, false]), State::Unhealthy);
        assert_eq!(after(&[true]), State::Healthy);
        assert_eq!(after(&[true, false, true, false]), State::Healthy);
        assert_eq!(after(&[true, false, false]), State::Unhealthy);
        assert_eq!(after(&[false, false, true]), State::Unhealthy);
        assert_eq!(after(&[false, false, true, false, true]), State::Unhealthy);
        assert_eq!(after(&[false, false, true, true]), State::Healthy);
    }

    #[test]
    fn statuses_match_as_the_matcher_says() {
        let check = |codes: &str| Check {
            codes: codes.to_owned(),
            ..Check::default()
        };
        assert!(check("200").matches(200));
        assert!(!check("200").matches(503));
        assert!(check("200,204").matches(204));
        assert!(check("200-399").matches(302));
        assert!(!check("200-399").matches(404));
    }
}
