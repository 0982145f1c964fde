//! The workers' counters as Prometheus text.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{
    BalancerStatus, Counter, Figures, Gauge, PacketOutcome, RequestOutcome, WorkerCounters,
};

/// What the text is: `OpenMetrics` 1.0, which Prometheus, the CloudWatch agent and the collectors read.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The workers' counters as one set of metrics, names `rebuilder_…`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    workers: Workers,
}

impl Metrics {
    /// Metrics over these workers.
    #[must_use]
    pub fn new(workers: Vec<Arc<WorkerCounters>>) -> Self {
        let workers = Workers(workers.into());
        let mut registry = Registry::with_prefix("rebuilder");
        registry.register_collector(Box::new(Collected {
            workers: workers.clone(),
            start: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
        }));
        Self { registry, workers }
    }

    /// The sums of what the workers last published, for whoever wants numbers rather than text.
    #[must_use]
    pub fn totals(&self) -> Figures {
        self.workers.totals()
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

/// All workers.
#[derive(Clone, Debug)]
struct Workers(Arc<[Arc<WorkerCounters>]>);

impl Workers {
    fn totals(&self) -> Figures {
        let mut totals = Figures::default();
        for worker in self.0.iter() {
            totals.add(&worker.published());
        }
        totals
    }
}

/// What is told of them.
#[derive(Debug)]
struct Collected {
    workers: Workers,
    /// When the counters were zero, in seconds of the epoch: another number is another process.
    start: f64,
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

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // One copy for the whole text: read one by one while the workers count, the figures would not add up.
        let totals = self.workers.totals();
        family(
            &mut encoder,
            (
                "packets",
                "Mirrored packets by where they ended; each packet ends in exactly one outcome.",
                "outcome",
            ),
            PacketOutcome::ALL
                .iter()
                .map(|&o| (o.label(), totals.packets(o))),
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
                .map(|&o| (o.label(), totals.requests(o))),
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
                .map(|&s| (s.label(), totals.balancer(s))),
        )?;
        for &counter in Counter::ALL {
            encoder
                .encode_descriptor(counter.name(), counter.help(), None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&totals.counter(counter), None)?;
        }
        for &gauge in Gauge::ALL {
            encoder
                .encode_descriptor(gauge.name(), gauge.help(), None, MetricType::Gauge)?
                .encode_gauge(&totals.gauge(gauge))?;
        }
        encoder
            .encode_descriptor(
                "load_ratio",
                "Share of time (0 to 1) that the busiest worker did not wait for packets.",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&totals.load())?;
        encoder
            .encode_descriptor(
                "start_time_seconds",
                "When the counters were zero, in seconds since 1970.",
                None,
                MetricType::Gauge,
            )?
            .encode_gauge(&self.start)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

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
        assert!(
            metrics.encode().unwrap().contains("rebuilder_flows 0\n"),
            "nobody sees what is not published"
        );
        assert!(a.publish() && b.publish());
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
        assert_eq!(types, 3 + Counter::ALL.len() + Gauge::ALL.len() + 2);
    }

    #[test]
    fn requests_are_outcomes_and_in_flight_at_every_scrape() {
        let (a, b, metrics) = two_workers();
        let over = AtomicBool::new(false);
        let work = |worker: &WorkerCounters| -> u64 {
            let (mut rebuilt, mut waiting) = (0, 0);
            for round in 0.. {
                for _ in 0..1 + round % 5 {
                    worker.add(Counter::Submitted, 1);
                    rebuilt += 1;
                    waiting += 1;
                }
                for _ in 0..(round % 7).min(waiting) {
                    worker.request(RequestOutcome::Delivered2xx);
                    waiting -= 1;
                }
                worker.set(Gauge::InFlight, waiting);
                worker.publish();
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
            while !worker.publish() {}
            rebuilt
        };
        let all: u64 = std::thread::scope(|scope| {
            let workers = [&a, &b].map(|worker| scope.spawn(|| work(worker)));
            let mut seen = BTreeSet::new();
            let end = Instant::now() + Duration::from_secs(20);
            // So many different states, each caught while the workers counted on.
            while seen.len() < 200 && Instant::now() < end {
                let totals = metrics.totals();
                let rebuilt = totals.counter(Counter::Submitted);
                let ended = totals.requests(RequestOutcome::Delivered2xx);
                assert_eq!(rebuilt, ended + totals.gauge(Gauge::InFlight));
                seen.insert(rebuilt);
            }
            over.store(true, Ordering::Relaxed);
            assert_eq!(seen.len(), 200);
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .sum()
        });
        assert_eq!(metrics.totals().counter(Counter::Submitted), all);
    }
}
