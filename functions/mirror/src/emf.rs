//! The same figures as metrics: one line of CloudWatch embedded metric format on standard output.
//!
//! Source: CloudWatch embedded metric format specification.

use crate::answer::Answer;
use crate::id::StackArn;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The namespace of all metrics of the functions.
pub const NAMESPACE: &str = "mirrorfleet";

/// A metric's name and its value. Names: `SessionsCreated`, `SessionsModified`, `SessionsDeleted`, `SessionsFailed`,
/// `InterfacesSkipped`; of `attach` also `EventsIgnored`, `EventsMalformed`, `MessagesRetried`; of a sweep also
/// `SessionsOurs` and `SessionsForeign`. All are counts.
pub type Figure = (&'static str, usize);

/// One line. Dimensions: `Stack` (name) and `Function` (`attach` or `reconcile`). Skips by reason stand beside the
/// metrics as a field of the log, `skipped_by_reason`.
pub fn line(
    stack: &StackArn,
    function: &str,
    epoch_ms: u64,
    answer: &Answer,
    more: &[Figure],
) -> String {
    let mut figures: Vec<Figure> = vec![
        ("SessionsCreated", answer.created.len()),
        ("SessionsModified", answer.modified.len()),
        ("SessionsDeleted", answer.deleted.len()),
        ("SessionsFailed", answer.failed.len()),
        ("InterfacesSkipped", answer.skipped.len()),
    ];
    figures.extend_from_slice(more);
    let mut by_reason: BTreeMap<String, usize> = BTreeMap::new();
    for skipped in &answer.skipped {
        let reason = serde_json::to_value(skipped.reason).ok();
        let reason = reason.as_ref().and_then(Value::as_str).unwrap_or("unknown");
        *by_reason.entry(reason.to_owned()).or_default() += 1;
    }
    let metrics: Vec<Value> = figures
        .iter()
        .map(|(name, _)| json!({"Name": name, "Unit": "Count"}))
        .collect();
    let mut fields: Map<String, Value> = figures
        .iter()
        .map(|(name, n)| ((*name).to_owned(), json!(n)))
        .collect();
    fields.insert("Stack".to_owned(), json!(stack.name()));
    fields.insert("Function".to_owned(), json!(function));
    fields.insert("skipped_by_reason".to_owned(), json!(by_reason));
    let directive =
        json!({"Namespace": NAMESPACE, "Dimensions": [["Stack", "Function"]], "Metrics": metrics});
    fields.insert(
        "_aws".to_owned(),
        json!({"Timestamp": epoch_ms, "CloudWatchMetrics": [directive]}),
    );
    Value::Object(fields).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{SkipReason, Skipped};
    use crate::id::EniId;

    #[test]
    fn each_metric_that_is_declared_has_its_value_and_each_dimension_too() {
        let skipped = |n: u32, reason| Skipped {
            eni: EniId::new(format!("eni-{n}")),
            reason,
        };
        let answer = Answer {
            skipped: vec![
                skipped(1, SkipReason::InterfaceFull),
                skipped(2, SkipReason::InterfaceFull),
            ],
            ..Answer::default()
        };
        let stack = StackArn::new("arn:aws:cloudformation:eu-west-1:1:stack/fleet/1");
        let line = line(
            &stack,
            "attach",
            1_700_000_000_000,
            &answer,
            &[("EventsIgnored", 4)],
        );
        assert!(!line.contains('\n'));
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["_aws"]["Timestamp"], 1_700_000_000_000_u64);
        let directive = &value["_aws"]["CloudWatchMetrics"][0];
        for metric in directive["Metrics"].as_array().unwrap() {
            assert!(value[metric["Name"].as_str().unwrap()].is_u64(), "{metric}");
        }
        assert_eq!(
            (&value["InterfacesSkipped"], &value["EventsIgnored"]),
            (&json!(2), &json!(4))
        );
        assert_eq!(
            (&value["Stack"], &value["Function"]),
            (&json!("fleet"), &json!("attach"))
        );
        assert_eq!(value["skipped_by_reason"], json!({"interface_full": 2}));
    }
}
