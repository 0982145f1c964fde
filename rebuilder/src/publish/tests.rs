//! The ledger against real counters: what is put is what was counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::telemetry::{
    BalancerStatus, Counter, Gauge, Metrics, PacketOutcome, RequestOutcome, WorkerCounters,
};

const SECOND: Duration = Duration::from_secs(1);

/// A rebuilder's figures, without the rebuilder.
struct Process {
    counters: Arc<WorkerCounters>,
    metrics: Metrics,
}

impl Process {
    fn start() -> Self {
        let counters = Arc::new(WorkerCounters::default());
        let metrics = Metrics::new(vec![Arc::clone(&counters)]);
        Self { counters, metrics }
    }

    fn text(&self) -> String {
        assert!(self.counters.publish());
        self.metrics.encode().unwrap()
    }
}

fn put(ledger: &mut Ledger) -> BTreeMap<String, Value> {
    let batch = ledger.take();
    let datums = batch.iter().flat_map(|batch| batch.datums().to_vec());
    datums.map(|datum| (datum.name, datum.value)).collect()
}

fn single(values: &BTreeMap<String, Value>, name: &str) -> Option<f64> {
    match values.get(name)? {
        Value::Single(value) => Some(*value),
        Value::Statistics { .. } => panic!("{name} has statistics"),
    }
}

#[test]
fn every_metric_is_put_of_every_text_at_zero_too() {
    let mut ledger = Ledger::default();
    ledger.observe(&Process::start().text(), SECOND).unwrap();
    let values = put(&mut ledger);
    let names: Vec<&String> = values.keys().collect();
    let mut expected: Vec<String> = figures().into_iter().map(|figure| figure.name).collect();
    expected.sort_unstable();
    assert_eq!(names, expected.iter().collect::<Vec<_>>());
    assert!(ledger.take().is_none(), "nothing is put twice");
}

#[test]
fn sums_are_of_the_series_that_they_name() {
    let process = Process::start();
    let c = &process.counters;
    c.packets(PacketOutcome::Stream, 100);
    c.packets(PacketOutcome::OverCap, 3);
    c.packets(PacketOutcome::HandoverFull, 5);
    c.packets(PacketOutcome::Draining, 11);
    c.packets(PacketOutcome::BadTcp, 2);
    c.packets(PacketOutcome::BadChecksum, 4);
    c.add(Counter::KernelDrops, 7);
    c.add(Counter::SoftnetDrops, 13);
    c.add(Counter::NicPacketsExceeded, 17);
    c.add(Counter::CutFrames, 19);
    c.add(Counter::ShedBytes, 1000);
    c.add(Counter::LostFragmentBytes, 23);
    for outcome in [
        RequestOutcome::Delivered2xx,
        RequestOutcome::RefusedByAnalyser,
        RequestOutcome::QueueFull,
        RequestOutcome::QueueFull,
        RequestOutcome::QuarantineFull,
        RequestOutcome::DrainTimeout,
        RequestOutcome::HealthCheck,
    ] {
        c.request(outcome);
    }
    c.balancer(BalancerStatus::of(463));
    c.balancer(BalancerStatus::of(503));
    let mut ledger = Ledger::default();
    ledger.observe(&process.text(), SECOND).unwrap();
    let values = put(&mut ledger);
    for (name, value) in [
        ("Packets", 125.0),
        ("PacketsDropped", 28.0),
        ("PacketsDroppedRing", 7.0),
        ("PacketsDroppedHost", 13.0),
        ("PacketsDroppedCap", 8.0),
        ("PacketsDraining", 11.0),
        ("PacketsUnreadable", 6.0),
        ("NicLimited", 17.0),
        ("FramesCut", 19.0),
        ("BytesShed", 1023.0),
        ("RequestsLost", 5.0),
        ("RequestsDelivered2xx", 1.0),
        ("RequestsQueueFull", 2.0),
        ("RequestsHealthCheck", 1.0),
        ("BalancerAnswers463", 1.0),
        ("BalancerAnswers5xx", 1.0),
        ("BalancerAnswers400", 0.0),
        ("Restarts", 0.0),
        ("Heartbeat", 1.0),
    ] {
        assert_eq!(single(&values, name), Some(value), "{name}");
    }
}

#[test]
fn levels_are_statistics_of_every_second_and_end_with_their_batch() {
    let process = Process::start();
    let mut ledger = Ledger::default();
    for (load, flows) in [(0.25, 10), (0.75, 30), (0.5, 20)] {
        process.counters.set_load(load);
        process.counters.set(Gauge::Flows, flows);
        ledger.observe(&process.text(), SECOND).unwrap();
    }
    let batch = ledger.take().unwrap();
    let statistics = |sum, min, max| Value::Statistics {
        count: 3.0,
        sum,
        min,
        max,
    };
    let of = |name| batch.datums().iter().find(|d| d.name == name).unwrap();
    assert_eq!(of("Load").value, statistics(150.0, 25.0, 75.0));
    assert_eq!(of("Flows").value, statistics(60.0, 10.0, 30.0));
    assert_eq!(of("Heartbeat").value, Value::Single(3.0));
    ledger.give_back(batch);
    let values = put(&mut ledger);
    assert!(values.contains_key("Packets"));
    assert!(
        !values.contains_key("Load") && !values.contains_key("Heartbeat"),
        "a level that could not be put is not put for a later time"
    );
}

#[test]
fn a_text_that_is_not_whole_changes_nothing() {
    let process = Process::start();
    process.counters.packets(PacketOutcome::Stream, 5);
    let text = process.text();
    let mut ledger = Ledger::default();
    let cut = &text[..text.len() / 2];
    assert_eq!(ledger.observe(cut, SECOND), Err(ScrapeError::Cut));
    let without = text.replace("rebuilder_gaps_total 0\n", "");
    assert_eq!(
        ledger.observe(&without, SECOND),
        Err(ScrapeError::Missing("rebuilder_gaps_total".to_owned()))
    );
    let nan = text.replace("rebuilder_load_ratio 0.0", "rebuilder_load_ratio NaN");
    assert_ne!(nan, text);
    assert_eq!(
        ledger.observe(&nan, SECOND),
        Err(ScrapeError::NotANumber("rebuilder_load_ratio".to_owned()))
    );
    assert!(ledger.take().is_none());
    ledger.observe(&text, SECOND).unwrap();
    assert_eq!(single(&put(&mut ledger), "Packets"), Some(5.0));
}

/// What happens to publisher and rebuilder.
#[derive(Clone, Debug)]
enum Step {
    /// The rebuilder counts so many packets and refused requests, and is asked.
    Count(u16, u8),
    /// The rebuilder is another process. It was asked just before, or not all that it counted is known.
    Restart,
    /// A put that succeeds, or not.
    Put(bool),
    /// The publisher ends and another one goes on.
    Successor,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u16>(), any::<u8>()).prop_map(|(packets, refused)| Step::Count(packets, refused)),
        1 => Just(Step::Restart),
        3 => any::<bool>().prop_map(Step::Put),
        1 => Just(Step::Successor),
    ]
}

proptest! {
    #[test]
    fn what_is_put_is_what_was_counted(steps in prop::collection::vec(step(), 0..60)) {
        let mut process = Process::start();
        let mut ledger = Ledger::default();
        let (mut packets, mut refused, mut restarts) = (0.0, 0.0, 0.0);
        let mut put: BTreeMap<&str, f64> = BTreeMap::new();
        let mut known = false;
        let mut take = |ledger: &mut Ledger, succeeds: bool| {
            let Some(batch) = ledger.take() else { return };
            if succeeds {
                let values: BTreeMap<_, _> =
                    batch.datums().iter().map(|d| (d.name.clone(), d.value)).collect();
                for name in ["Packets", "RequestsRefusedByAnalyser", "RequestsLost", "Restarts"] {
                    *put.entry(name).or_default() += single(&values, name).unwrap_or_default();
                }
            } else {
                ledger.give_back(batch);
            }
        };
        for step in steps {
            match step {
                Step::Count(more, lost) => {
                    process.counters.packets(PacketOutcome::Stream, more.into());
                    for _ in 0..lost {
                        process.counters.request(RequestOutcome::RefusedByAnalyser);
                    }
                    packets += f64::from(more);
                    refused += f64::from(lost);
                    ledger.observe(&process.text(), SECOND).unwrap();
                    known = true;
                }
                Step::Restart => {
                    process = Process::start();
                    restarts += f64::from(u8::from(known));
                    known = true;
                    ledger.observe(&process.text(), SECOND).unwrap();
                }
                Step::Put(succeeds) => take(&mut ledger, succeeds),
                Step::Successor => ledger = Ledger::from_state(&ledger.state().unwrap()).unwrap(),
            }
        }
        take(&mut ledger, true);
        let of = |name| put.get(name).copied().unwrap_or_default();
        prop_assert_eq!(of("Packets"), packets);
        prop_assert_eq!(of("RequestsRefusedByAnalyser"), refused);
        prop_assert_eq!(of("RequestsLost"), refused);
        prop_assert_eq!(of("Restarts"), restarts);
    }

    #[test]
    fn no_text_panics(text in ".{0,200}", at in 0_usize..4000, end in any::<bool>()) {
        let whole = Process::start().text();
        let at = whole.floor_char_boundary(at);
        let mixed = format!("{}{text}{}", &whole[..at], &whole[at..]);
        let end = if end { "\n# EOF" } else { "" };
        for text in [format!("{text}{end}"), mixed] {
            let mut ledger = Ledger::default();
            let _ = ledger.observe(&text, SECOND);
            for datum in ledger.take().iter().flat_map(Batch::datums) {
                let finite = match datum.value {
                    Value::Single(value) => value.is_finite(),
                    Value::Statistics { count, sum, min, max } => {
                        count >= 1.0 && sum.is_finite() && min <= max
                    }
                };
                prop_assert!(finite, "{datum:?}");
            }
        }
    }

    #[test]
    fn no_state_panics(text in ".{0,200}") {
        let _ = Ledger::from_state(&text);
    }
}
