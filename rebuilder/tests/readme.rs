//! README.md names every outcome and every metric.

use std::fmt::Write as _;

use rebuilder::telemetry::{Counter, Gauge, PacketOutcome, RequestOutcome};

#[test]
fn the_readme_names_every_outcome_and_metric() {
    let readme = include_str!("../README.md");
    let outcomes = PacketOutcome::ALL
        .iter()
        .map(|o| o.label())
        .chain(RequestOutcome::ALL.iter().map(|o| o.label()));
    let metrics = Counter::ALL
        .iter()
        .map(|c| format!("rebuilder_{}_total", c.name()))
        .chain(Gauge::ALL.iter().map(|g| format!("rebuilder_{}", g.name())));
    let mut missing = String::new();
    for name in outcomes.map(str::to_owned).chain(metrics) {
        if !readme.contains(&format!("`{name}`")) {
            let _ = writeln!(missing, "{name}");
        }
    }
    assert!(
        missing.is_empty(),
        "rebuilder/README.md does not name:\n{missing}"
    );
}
