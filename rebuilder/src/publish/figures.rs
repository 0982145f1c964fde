//! What is put: each metric's name, unit and meaning, and the series of `/metrics` that it is made of.

use crate::telemetry::{BalancerStatus, Counter, Gauge, PacketOutcome, RequestOutcome};

/// CloudWatch's units, as far as they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// So many.
    Count,
    /// Bytes.
    Bytes,
    /// 0 to 100.
    Percent,
    /// Seconds.
    Seconds,
}

/// How a metric comes about.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// What these counters grew by, together.
    Growth(Vec<String>),
    /// This gauge, times so much.
    Level(String, f64),
    /// Seconds of which there are figures.
    Heartbeat,
    /// How often the rebuilder was found to be another process.
    Restarts,
}

/// A metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: Unit,
    /// What it says, in a few words.
    pub meaning: String,
    /// What it is made of.
    pub kind: Kind,
}

fn counter(counter: Counter) -> String {
    format!("rebuilder_{}_total", counter.name())
}

fn packets(outcome: PacketOutcome) -> String {
    format!("rebuilder_packets_total{{outcome=\"{outcome}\"}}")
}

fn requests(outcome: RequestOutcome) -> String {
    format!("rebuilder_requests_total{{outcome=\"{outcome}\"}}")
}

/// `delivered_2xx` as `Delivered2xx`.
fn words(label: &str) -> String {
    label
        .split('_')
        .flat_map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_ascii_uppercase())
                .into_iter()
                .chain(letters)
        })
        .collect()
}

/// All of them.
#[must_use]
pub fn figures() -> Vec<Figure> {
    let grown = |name: &str, unit: Unit, series: Vec<String>, meaning: &str| Figure {
        name: name.to_owned(),
        unit,
        meaning: meaning.to_owned(),
        kind: Kind::Growth(series),
    };
    let ring = || vec![counter(Counter::KernelDrops)];
    let host = || vec![counter(Counter::SoftnetDrops)];
    let cap = || {
        vec![
            packets(PacketOutcome::OverCap),
            packets(PacketOutcome::HandoverFull),
        ]
    };
    let mut all = vec![
        grown(
            "Packets",
            Unit::Count,
            PacketOutcome::ALL.iter().map(|&o| packets(o)).collect(),
            "Mirrored packets that were read.",
        ),
        grown(
            "Bytes",
            Unit::Bytes,
            vec![counter(Counter::ReceivedBytes)],
            "Bytes in them, outer headers excluded.",
        ),
        grown(
            "PacketsDropped",
            Unit::Count,
            [ring(), host(), cap()].concat(),
            "Packets lost because a rebuilder had no time or no room for them; the sum of the next three. More rebuilders help.",
        ),
        grown(
            "PacketsDroppedRing",
            Unit::Count,
            ring(),
            "Of them, those that found the ring or the receive buffer full.",
        ),
        grown(
            "PacketsDroppedHost",
            Unit::Count,
            host(),
            "Of them, those that found the kernel's queue behind the network card full.",
        ),
        grown(
            "PacketsDroppedCap",
            Unit::Count,
            cap(),
            "Of them, those that found a flow, the flow table or another worker's queue full.",
        ),
        grown(
            "PacketsDraining",
            Unit::Count,
            vec![packets(PacketOutcome::Draining)],
            "Packets that came to a rebuilder that was on its way out.",
        ),
        grown(
            "PacketsUnreadable",
            Unit::Count,
            [
                PacketOutcome::BadChecksum,
                PacketOutcome::BadVxlan,
                PacketOutcome::BadLink,
                PacketOutcome::BadIp,
                PacketOutcome::BadTcp,
            ]
            .into_iter()
            .map(packets)
            .collect(),
            "Packets that are broken: outcomes `bad_…`.",
        ),
        grown(
            "NicLimited",
            Unit::Count,
            vec![
                counter(Counter::NicBandwidthExceeded),
                counter(Counter::NicPacketsExceeded),
                counter(Counter::NicConntrackExceeded),
            ],
            "Packets beyond what the instance type takes, which EC2 delayed or dropped.",
        ),
        grown(
            "FramesCut",
            Unit::Count,
            vec![counter(Counter::CutFrames)],
            "Frames that the mirror cut short; bytes behind the cut are not analysed.",
        ),
        grown(
            "Gaps",
            Unit::Count,
            vec![counter(Counter::Gaps)],
            "Holes in streams: bytes that were never captured, wherever they were lost.",
        ),
        grown(
            "BytesMissing",
            Unit::Bytes,
            vec![counter(Counter::GapBytes)],
            "Bytes in those holes whose length is known.",
        ),
        grown(
            "BytesShed",
            Unit::Bytes,
            vec![
                counter(Counter::ShedBytes),
                counter(Counter::LostFragmentBytes),
            ],
            "Captured bytes that were thrown away: a cap was reached, or fragments had no fellow.",
        ),
        grown(
            "FlowsEvicted",
            Unit::Count,
            vec![counter(Counter::EvictedFlows)],
            "Connections closed early because the flow table was full.",
        ),
        grown(
            "HeadsIncomplete",
            Unit::Count,
            vec![counter(Counter::IncompleteHeads)],
            "Requests given up inside their head.",
        ),
        grown(
            "RequestsCut",
            Unit::Count,
            vec![counter(Counter::CutRequests)],
            "Requests forwarded without their end because a cap was reached.",
        ),
        grown(
            "RequestsLost",
            Unit::Count,
            [
                RequestOutcome::RefusedByAnalyser,
                RequestOutcome::QueueFull,
                RequestOutcome::QuarantineFull,
                RequestOutcome::DrainTimeout,
            ]
            .into_iter()
            .map(requests)
            .collect(),
            "Requests that were rebuilt and that the analyser did not answer: the sum of the outcomes that say why.",
        ),
    ];
    all.extend(RequestOutcome::ALL.iter().map(|&outcome| {
        grown(
            &format!("Requests{}", words(outcome.label())),
            Unit::Count,
            vec![requests(outcome)],
            &format!("Requests with the outcome `{outcome}`."),
        )
    }));
    all.extend(BalancerStatus::ALL.iter().map(|status| {
        let label = status.label();
        grown(
            &format!("BalancerAnswers{}", words(label)),
            Unit::Count,
            vec![format!(
                "rebuilder_balancer_answers_total{{status=\"{label}\"}}"
            )],
            &format!("Requests that a load balancer answered itself, status {label}."),
        )
    }));
    all.extend([
        grown(
            "AnalyserTimeouts",
            Unit::Count,
            vec![counter(Counter::AnswerTimeouts)],
            "Connections given up because an answer did not come in time.",
        ),
        grown(
            "AnalyserConnectFailures",
            Unit::Count,
            vec![counter(Counter::ConnectFailures)],
            "Connections to the analyser that could not be established.",
        ),
    ]);
    let level = |name: &str, unit: Unit, series: &str, times: f64, meaning: &str| Figure {
        name: name.to_owned(),
        unit,
        meaning: meaning.to_owned(),
        kind: Kind::Level(format!("rebuilder_{series}"), times),
    };
    all.extend([
        level(
            "Load",
            Unit::Percent,
            "load_ratio",
            100.0,
            "Share of its time that the busiest worker was at work, or of its ring that waited; each second.",
        ),
        level(
            "Flows",
            Unit::Count,
            Gauge::Flows.name(),
            1.0,
            "Connections whose state is held.",
        ),
        level(
            "HeldBytes",
            Unit::Bytes,
            Gauge::HeldBytes.name(),
            1.0,
            "Bytes held until a hole fills or a request is whole.",
        ),
        level(
            "QueueBytes",
            Unit::Bytes,
            Gauge::QueueBytes.name(),
            1.0,
            "Bytes of requests that wait for the analyser.",
        ),
        level(
            "RequestsInFlight",
            Unit::Count,
            Gauge::InFlight.name(),
            1.0,
            "Requests without an outcome yet; each second.",
        ),
        Figure {
            name: "Heartbeat".to_owned(),
            unit: Unit::Seconds,
            meaning: "Seconds of which there are figures: a minute's Sum is 60 for each rebuilder that runs and tells."
                .to_owned(),
            kind: Kind::Heartbeat,
        },
        Figure {
            name: "Restarts".to_owned(),
            unit: Unit::Count,
            meaning: "Times that a rebuilder was started anew; what it counted in its last second is unknown."
                .to_owned(),
            kind: Kind::Restarts,
        },
    ]);
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_words() {
        let all = figures();
        let names: BTreeSet<&str> = all.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        assert!(
            names.contains("RequestsRefusedByAnalyser") && names.contains("BalancerAnswers5xx")
        );
        for name in names {
            assert!(
                name.starts_with(|c: char| c.is_ascii_uppercase())
                    && name.bytes().all(|b| b.is_ascii_alphanumeric()),
                "{name}"
            );
        }
    }

    /// What no more than so many metrics cost stands in the README; each is charged for by the month.
    #[test]
    fn they_fit_in_one_call_and_in_what_the_readme_says() {
        assert!(figures().len() <= 45, "{}", figures().len());
    }

    #[test]
    fn the_readme_has_a_row_for_each_and_for_no_other() {
        let readme = include_str!("../../README.md");
        let (_, section) = readme.split_once("\n## rebuilder publish\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows: BTreeSet<String> = section
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(str::to_owned)
            .filter(|line| !line.starts_with("| `--"))
            .collect();
        let expected: BTreeSet<String> = figures()
            .iter()
            .map(|f| format!("| `{}` | {:?} | {} |", f.name, f.unit, f.meaning))
            .collect();
        let print =
            |rows: BTreeSet<&String>| rows.into_iter().cloned().collect::<Vec<_>>().join("\n");
        assert!(
            rows == expected,
            "README.md lacks:\n{}\nand has:\n{}",
            print(expected.difference(&rows).collect()),
            print(rows.difference(&expected).collect())
        );
    }
}
