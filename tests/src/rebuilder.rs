//! The rebuilder under test: the real binary, in its namespace.
//!
//! Whoever stops one has its books checked (DESIGN §2, rule 10): every packet that reached its host has an outcome or
//! was dropped by the kernel and counted, and every request has an outcome or is in flight. The host's own counter of
//! the link is the other side of that balance, so a rebuilder cannot pass by forgetting.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::network::{Host, REBUILDER_LINK, REBUILDER_UNDERLAY};
use crate::process::{Process, tail, wait_for};

const ADMIN: &str = "127.0.0.1:9445";

/// How long the figures may take to agree: they are published ten times a second, and the machine may be busy.
const AGREEMENT: Duration = Duration::from_secs(5);

/// How long a rebuilder may take to end: by default it waits 30 seconds for answers.
const DRAIN: Duration = Duration::from_secs(35);

/// The release binary: `REBUILDER_BIN`, or what cargo builds (nothing, where it is up to date).
///
/// # Errors
/// Where the build fails.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("REBUILDER_BIN") {
        return Ok(path.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "rebuilder",
            "--bin",
            "rebuilder",
        ])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo")?;
    if !out.status.success() {
        bail!("cargo build --release --package rebuilder: {}", out.status);
    }
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| {
            message
                .pointer("/target/name")
                .and_then(|name| name.as_str())
                == Some("rebuilder")
        })
        .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .context("cargo named no executable")
}

/// A running `rebuilder run`. Dropping it checks its books and panics where they do not balance, unless the thread
/// panics already.
#[derive(Debug)]
pub struct Rebuilder {
    host: Arc<Host>,
    process: Process,
    /// Packets on its link before it was started, and when it took traffic: what came in between it may have missed.
    before: (u64, u64),
    settled: bool,
}

impl Rebuilder {
    /// Starts it in `host`, which must be behind the load balancer, and waits until it takes traffic.
    ///
    /// # Errors
    /// Where it does not.
    pub fn start(
        host: &Arc<Host>,
        binary: &Path,
        directory: &Path,
        forward: &str,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        let mut command = host.namespace.command(binary);
        command.args([
            "run",
            "--forward",
            forward,
            "--listen",
            &format!("{REBUILDER_UNDERLAY}:4789"),
        ]);
        command.args(["--admin", ADMIN]).args(more);
        // The tests send 80 MB in a moment, to a program that is not optimised. The kernel keeps as much for a socket that
        // asks for 64 MB.
        command.env("REBUILDER_RING_BYTES", "128M");
        let before = host.namespace.counters(REBUILDER_LINK)?.received;
        let process = Process::start("rebuilder", command, directory)?;
        let mut rebuilder = Self {
            host: Arc::clone(host),
            process,
            before: (before, before),
            settled: false,
        };
        wait_for(
            "the rebuilder takes traffic",
            Duration::from_secs(20),
            || {
                rebuilder.process.must_be_running()?;
                Ok(rebuilder.get("/healthz").is_ok().then_some(()))
            },
        )
        .with_context(|| tail(rebuilder.process.log(), 2000))?;
        rebuilder.before.1 = rebuilder.arrived()?;
        Ok(rebuilder)
    }

    /// Packets that its host has received on the link of mirrored packets, ever.
    fn arrived(&self) -> anyhow::Result<u64> {
        Ok(self.host.namespace.counters(REBUILDER_LINK)?.received)
    }

    /// Whether so many packets, counted or dropped by the kernel, are what has come since the start.
    fn balances(&self, taken: u64, arrived: u64) -> bool {
        (arrived - self.before.1..=arrived - self.before.0).contains(&taken)
    }

    /// Rule 10, while it runs: waits until every packet that has arrived has one outcome or is a counted drop, and every
    /// request that was handed to the forwarder has one outcome or is in flight.
    ///
    /// # Errors
    /// Where that is not so within five seconds; the error holds both sides.
    pub fn accounts(&self) -> anyhow::Result<Metrics> {
        self.accounts_within(AGREEMENT)
    }

    /// The same, with so much patience.
    ///
    /// # Errors
    /// As [`Self::accounts`].
    pub fn accounts_within(&self, patience: Duration) -> anyhow::Result<Metrics> {
        let mut seen = String::new();
        wait_for("the books balance", patience, || {
            // In this order: what arrives in between makes a further round, not a false alarm.
            let arrived = self.arrived()?;
            let metrics = self.metrics()?;
            let taken = metrics.packets() + metrics.count("rebuilder_kernel_drops_total");
            let outcomes = metrics.outcomes("rebuilder_requests_total");
            let kept = |outcome| outcomes.get(outcome).unwrap_or(&0);
            let decided: u64 = metrics.requests() - kept("incomplete") - kept("health_check");
            let submitted = metrics.count("rebuilder_requests_submitted_total");
            let in_flight = metrics.count("rebuilder_requests_in_flight");
            seen = format!(
                "{arrived} packets on the link ({:?} before it took traffic), {taken} counted or dropped; \
                 {submitted} requests submitted, {decided} decided, {in_flight} in flight",
                self.before
            );
            let balanced =
                self.balances(taken, arrived) && submitted == decided + in_flight;
            Ok(balanced.then_some(metrics))
        })
        .with_context(|| seen)
    }

    /// Rule 10, after the end: the figures of the last line it has written.
    fn last_accounts(&self) -> anyhow::Result<()> {
        let output = self.process.output();
        let line = last_line(&output)?;
        let figure = |name: &str| last_figure(&output, name);
        let (taken, arrived) = (
            figure("packets")? + figure("kernel_drops")?,
            self.arrived()?,
        );
        let (requests, submitted) = (figure("requests")?, figure("submitted")?);
        if !self.balances(taken, arrived) {
            bail!(
                "{arrived} packets on the link, {:?} before it took traffic: {line}",
                self.before
            );
        }
        if requests != submitted + figure("incomplete")? + figure("health_checks")? {
            bail!("not every request has one outcome: {line}");
        }
        if requests != figure("extracted")? {
            bail!("not every request that was found has one outcome: {line}");
        }
        Ok(())
    }

    /// The body of a path of its admin port that answers 200.
    ///
    /// # Errors
    /// Where it does not.
    pub fn get(&self, path: &str) -> anyhow::Result<String> {
        let url = format!("http://{ADMIN}{path}");
        self.host.namespace.run(|| http_get(&url))?
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// Where they cannot be read, or their requests do not add up (rule 10), which they must in every single scrape.
    pub fn metrics(&self) -> anyhow::Result<Metrics> {
        let metrics = Metrics::parse(&self.get("/metrics")?);
        let found = metrics.count("rebuilder_requests_extracted_total");
        let in_flight = metrics.count("rebuilder_requests_in_flight");
        if found != metrics.requests() + in_flight {
            bail!(
                "of {found} requests {} have an outcome and {in_flight} are in flight: {metrics:?}",
                metrics.requests()
            );
        }
        Ok(metrics)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until so many requests have an outcome and none is in flight.
    ///
    /// # Errors
    /// Where that is not so within a minute; the error holds the metrics.
    pub fn settled(&self, requests: u64) -> anyhow::Result<Metrics> {
        let mut last = Metrics::default();
        wait_for(
            "every request has its outcome",
            Duration::from_secs(60),
            || {
                last = self.metrics()?;
                let in_flight = last.count("rebuilder_requests_in_flight");
                Ok((last.requests() == requests && in_flight == 0).then_some(()))
            },
        )
        .with_context(|| format!("{requests} sent: {last:?}"))?;
        Ok(last)
    }

    /// Ends it, and gives all it wrote.
    ///
    /// # Errors
    /// As [`Self::drain`], and where its exit code is not 0.
    pub fn drained(self) -> anyhow::Result<String> {
        let (code, output) = self.drain(DRAIN)?;
        if code != Some(0) {
            bail!("the rebuilder ended with {code:?}: {output}");
        }
        Ok(output)
    }

    /// Ends it as a deployment does (SIGTERM), and gives its exit code and all it wrote.
    ///
    /// # Errors
    /// Where it does not end, or its books do not balance (rule 10).
    pub fn drain(mut self, timeout: Duration) -> anyhow::Result<(Option<i32>, String)> {
        self.settled = true;
        self.process.signal(libc::SIGTERM);
        let status = self.process.wait(timeout)?;
        if status.success() {
            self.last_accounts()?;
        }
        Ok((status.code(), self.process.output()))
    }
}

impl Drop for Rebuilder {
    fn drop(&mut self) {
        if self.settled || std::thread::panicking() {
            return;
        }
        if let Err(error) = self
            .process
            .must_be_running()
            .and_then(|()| self.accounts())
        {
            panic!("rule 10 does not hold: {error:#}");
        }
    }
}

fn last_line(output: &str) -> anyhow::Result<&str> {
    output
        .lines()
        .rev()
        .find(|line| line.contains("ended"))
        .context("it has not written its last line")
}

/// A figure of the last line that a rebuilder writes: what was counted in all, its end included, which no scrape sees.
///
/// # Errors
/// Where `output` does not hold it.
pub fn last_figure(output: &str, name: &str) -> anyhow::Result<u64> {
    let line = last_line(output)?;
    plain(line)
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        .with_context(|| format!("no {name} in {line}"))
}

/// Without the colours of a terminal.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, escape)) = rest.split_once("\x1b[") {
        text.push_str(before);
        rest = escape.split_once('m').map_or("", |(_, behind)| behind);
    }
    text + rest
}

/// Prometheus samples by name with labels, as they stand in the text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// From the text of the page.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let sample = |line: &str| -> Option<(String, f64)> {
            if line.starts_with('#') {
                return None;
            }
            // A value may be followed by a timestamp only in formats that this endpoint does not write.
            let (name, value) = line.trim().rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter_map(sample).collect())
    }

    /// A sample without labels; 0 where there is none.
    #[must_use]
    pub fn value(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// A sample that is a whole number; 0 where there is none.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a counter below 2^53"
    )]
    pub fn count(&self, name: &str) -> u64 {
        self.value(name) as u64
    }

    /// The samples of a counter by their `outcome`, those that are 0 left out.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a counter below 2^53"
    )]
    pub fn outcomes(&self, name: &str) -> BTreeMap<String, u64> {
        self.0
            .iter()
            .filter_map(|(sample, &value)| {
                let labels = sample
                    .strip_prefix(name)?
                    .strip_prefix('{')?
                    .strip_suffix('}')?;
                let outcome = labels.split_once("outcome=\"")?.1.split_once('"')?.0;
                (value > 0.0).then(|| (outcome.to_owned(), value as u64))
            })
            .fold(BTreeMap::new(), |mut sums, (outcome, value)| {
                *sums.entry(outcome).or_default() += value;
                sums
            })
    }

    /// Requests whose fate is known, of all outcomes.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.outcomes("rebuilder_requests_total").values().sum()
    }

    /// Requests that the analyser answered, whatever it said.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        let outcomes = self.outcomes("rebuilder_requests_total");
        outcomes
            .iter()
            .filter(|(outcome, _)| outcome.starts_with("delivered_"))
            .map(|(_, count)| count)
            .sum()
    }

    /// Packets taken, of all outcomes.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.outcomes("rebuilder_packets_total").values().sum()
    }
}

/// The body of a page that answers 200.
///
/// # Errors
/// Where it does not, or not within five seconds.
pub fn http_get(url: &str) -> anyhow::Result<String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(5)))
        .build()
        .into();
    Ok(agent
        .get(url)
        .call()
        .with_context(|| url.to_owned())?
        .body_mut()
        .read_to_string()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_by_their_outcome() {
        let text = "# HELP rebuilder_requests_total r\n# TYPE rebuilder_requests_total counter\n\
                    rebuilder_requests_total{outcome=\"delivered_2xx\"} 7\n\
                    rebuilder_requests_total{outcome=\"delivered_4xx\"} 2\n\
                    rebuilder_requests_total{outcome=\"queue_full\"} 1\n\
                    rebuilder_packets_total{outcome=\"stream\"} 40\nrebuilder_flows 3\n";
        let metrics = Metrics::parse(text);
        assert_eq!(
            (metrics.requests(), metrics.delivered(), metrics.packets()),
            (10, 9, 40)
        );
        assert!((metrics.value("rebuilder_flows") - 3.0).abs() < f64::EPSILON);
    }
}
