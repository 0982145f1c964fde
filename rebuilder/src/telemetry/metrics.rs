//! The workers' counters as Prometheus text.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{BalancerStatus, Counter, Gauge, PacketOutcome, RequestOutcome, WorkerCounters};

/// What the text is: `OpenMetrics` 1.0, which Prometheus, the CloudWatch agent and the collectors read.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The workers' counters as one set of metrics, names `rebuilder_…`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    totals: Totals,
}

impl Metrics {
    /// Metrics over these workers.
    #[must_use]
    pub fn new(workers: Vec<Arc<WorkerCounters>>) -> Self {
        let totals = Totals {
            workers: workers.into(),
        };
        let mut registry = Registry::with_prefix("rebuilder");
        registry.register_collector(Box::new(totals.clone()));
        Self { registry, totals }
    }

    /// The sums, for whoever wants numbers rather than text.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The body of `GET /metrics`.
    ///
    /// # Errors
    /// When the formatter fails, which one that writes to a string does not.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::with_capacity(8 * 1024);
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

/// Sums over all workers.
#[derive(Clone, Debug)]
pub struct Totals {
    workers: Arc<[Arc<WorkerCounters>]>,
}

impl Totals {
    fn sum(&self, of: impl Fn(&WorkerCounters) -> u64) -> u64 {
        // Wrapping like the counters themselves; a scraper reads a smaller number as a restart.
        self.workers
            .iter()
            .fold(0, |sum, worker| sum.wrapping_add(of(worker)))
    }

    /// Packets that ended so.
    #[must_use]
    pub fn packets(&self, outcome: PacketOutcome) -> u64 {
        self.sum(|w| w.packets_of(outcome))
    }

    /// Requests that ended so.
    #[must_use]
    pub fn requests(&self, outcome: RequestOutcome) -> u64 {
        self.sum(|w| w.requests_of(outcome))
    }

    /// A counter.
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.sum(|w| w.counter(counter))
    }

    /// A gauge.
    #[must_use]
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.sum(|w| w.gauge(gauge))
    }

    /// Answers that a balancer gave.
    #[must_use]
    pub fn balancer(&self, status: BalancerStatus) -> u64 {
        self.sum(|w| w.balancer_of(status))
    }

    /// The load (0 to 1) of the busiest worker: flows do not move between workers, so that one is full first.
    #[must_use]
    pub fn load(&self) -> f64 {
        self.workers.iter().map(|w| w.load()).fold(0.0, f64::max)
    }
}

/// One counter for each member of a closed label set, so that a label is there from the start, at zero.
fn family<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, key): (&str, &str, &'static str),
    values: impl Iterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (label, value) in values {
        metric
            .encode_family(&[(key, label)])?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

impl Collector for Totals {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        family(
            &mut encoder,
            (
                "packets",
                "Mirrored packets by where they ended; each packet ends in exactly one outcome.",
                "outcome",
            ),
            PacketOutcome::ALL
                .iter()
                .map(|&o| (o.label(), self.packets(o))),
        )?;
        family(
            &mut encoder,
            (
                "requests",
                "Rebuilt requests by where they ended; each request ends in exactly one outcome.",
                "outcome",
            ),
            RequestOutcome::ALL
                .iter()
                .map(|&o| (o.label(), self.requests(o))),
        )?;
        family(
            &mut encoder,
            (
                "balancer_answers",
                "Requests that a load balancer answered itself, by status: the analyser did not see them.",
                "status",
            ),
            BalancerStatus::ALL
                .iter()
                .map(|&s| (s.label(), self.balancer(s))),
        )?;
        for &counter in Counter::ALL {
            encoder
                .encode_descriptor(counter.name(), counter.help(), None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&self.counter(counter), None)?;
        }
        for &gauge in Gauge::ALL {
            encoder
                .encode_descriptor(gauge.name(), gauge.help(), None, MetricType::Gauge)?
                .encode_gauge(&self.gauge(gauge))?;
        }
        encoder
            .encode_descriptor(
                "load_ratio",
                "Share of time (0 to 1) that the busiest worker did not wait for packets.",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&self.load())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_workers() -> (Arc<WorkerCounters>, Arc<WorkerCounters>, Metrics) {
        let a = Arc::new(WorkerCounters::default());
        let b = Arc::new(WorkerCounters::default());
        let metrics = Metrics::new(vec![Arc::clone(&a), Arc::clone(&b)]);
        (a, b, metrics)
    }

    #[test]
    fn every_outcome_is_there_from_the_start_at_zero() {
        let (_, _, metrics) = two_workers();
        let text = metrics.encode().unwrap();
        for outcome in PacketOutcome::ALL {
            let line = format!("\nrebuilder_packets_total{{outcome=\"{outcome}\"}} 0\n");
            assert!(text.contains(&line), "{line} in\n{text}");
        }
        for outcome in RequestOutcome::ALL {
            let line = format!("\nrebuilder_requests_total{{outcome=\"{outcome}\"}} 0\n");
            assert!(text.contains(&line), "{line} in\n{text}");
        }
    }

    #[test]
    fn the_contract_s_names_and_the_sums_over_workers() {
        let (a, b, metrics) = two_workers();
        a.packet(PacketOutcome::Stream);
        b.packets(PacketOutcome::Stream, 4);
        b.request(RequestOutcome::Delivered2xx);
        a.set(Gauge::Flows, 7);
        b.set(Gauge::Flows, 5);
        b.set(Gauge::HeldBytes, 1000);
        a.set_load(0.5);
        b.set_load(0.25);
        b.add(Counter::KernelDrops, 3);
        b.balancer(BalancerStatus::of(463));
        let text = metrics.encode().unwrap();
        for line in [
            "rebuilder_packets_total{outcome=\"stream\"} 5",
            "rebuilder_requests_total{outcome=\"delivered_2xx\"} 1",
            "rebuilder_flows 12",
            "rebuilder_held_bytes 1000",
            "rebuilder_load_ratio 0.5",
            "rebuilder_kernel_drops_total 3",
            "rebuilder_balancer_answers_total{status=\"463\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn every_metric_has_a_help_text() {
        let (_, _, metrics) = two_workers();
        let text = metrics.encode().unwrap();
        let types = text.lines().filter(|l| l.starts_with("# TYPE ")).count();
        let helps = text
            .lines()
            .filter(|l| l.starts_with("# HELP ") && l.len() > 50)
            .count();
        assert_eq!(types, helps);
        assert_eq!(types, 3 + Counter::ALL.len() + Gauge::ALL.len() + 1);
    }
}
