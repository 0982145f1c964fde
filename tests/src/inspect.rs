//! `rebuilder inspect`, as whoever uses it gets it, its books checked (DESIGN §2, rule 10).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;

/// What `--summary` says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Summary {
    /// In the file.
    pub packets: u64,
    /// Each in exactly one.
    pub packets_by_outcome: BTreeMap<String, u64>,
    /// Found.
    pub requests: u64,
}

impl Summary {
    /// Reads what was written, and checks that every packet has one outcome.
    ///
    /// # Errors
    /// Where that is not so, or it is no summary.
    pub fn read(text: &[u8]) -> anyhow::Result<Self> {
        let summary: Self = serde_json::from_slice(text)
            .with_context(|| format!("summary: {}", String::from_utf8_lossy(text)))?;
        let outcomes: u64 = summary.packets_by_outcome.values().sum();
        if outcomes != summary.packets {
            bail!(
                "rule 10 does not hold: {} packets, {outcomes} outcomes: {summary:?}",
                summary.packets
            );
        }
        Ok(summary)
    }
}

/// The summary of a capture that can be read to its end.
///
/// # Errors
/// Where it cannot, or its books do not balance.
pub fn summary(binary: &Path, file: &Path) -> anyhow::Result<Summary> {
    Summary::read(&inspect(binary, file, "--summary")?)
}

/// The rows of a capture that can be read to its end: one JSON object a request.
///
/// # Errors
/// Where it cannot.
pub fn rows(binary: &Path, file: &Path) -> anyhow::Result<Vec<Value>> {
    let text = String::from_utf8(inspect(binary, file, "--json")?)?;
    let rows = text.lines().map(serde_json::from_str);
    rows.collect::<Result<_, _>>().context("--json")
}

fn inspect(binary: &Path, file: &Path, form: &str) -> anyhow::Result<Vec<u8>> {
    let out = Command::new(binary)
        .arg("inspect")
        .arg(file)
        .arg(form)
        .stdin(Stdio::null())
        .output()
        .with_context(|| binary.display().to_string())?;
    if !out.status.success() {
        bail!(
            "inspect {}: {}",
            file.display(),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(out.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_without_an_outcome_is_an_error() {
        let text = |stream: u32| {
            format!(
                r#"{{"packets": 3, "packets_by_outcome": {{"stream": {stream}, "control": 1}}, "requests": 1}}"#
            )
        };
        assert_eq!(Summary::read(text(2).as_bytes()).unwrap().requests, 1);
        for wrong in [1, 3] {
            let error = Summary::read(text(wrong).as_bytes()).unwrap_err();
            assert!(error.to_string().contains("rule 10"), "{error}");
        }
    }
}
