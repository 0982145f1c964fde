//! The rebuilder under test: the real binary, in its namespace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::network::{Host, REBUILDER_UNDERLAY};
use crate::process::{Process, tail, wait_for};

const ADMIN: &str = "127.0.0.1:9445";

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

/// A running `rebuilder run`.
#[derive(Debug)]
pub struct Rebuilder {
    host: Arc<Host>,
    process: Process,
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
        let process = Process::start("rebuilder", command, directory)?;
        let mut rebuilder = Self {
            host: Arc::clone(host),
            process,
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
        Ok(rebuilder)
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
    /// Where they cannot be read.
    pub fn metrics(&self) -> anyhow::Result<Metrics> {
        Ok(Metrics::parse(&self.get("/metrics")?))
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends it as a deployment does (SIGTERM), and gives its exit code and all it wrote.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn drain(mut self, timeout: Duration) -> anyhow::Result<(Option<i32>, String)> {
        self.process.signal(libc::SIGTERM);
        let status = self.process.wait(timeout)?;
        Ok((status.code(), self.process.output()))
    }
}

/// Prometheus samples by name with labels, as they stand in the text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn parse(text: &str) -> Self {
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
