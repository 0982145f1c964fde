//! The same figures as metrics: lines of CloudWatch embedded metric format on standard output.
//!
//! Source: CloudWatch embedded metric format specification.

use crate::answer::{Answer, SkipReason};
use crate::drain::{Ending, Left};
use crate::error::ErrorClass;
use crate::id::StackArn;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// The namespace of all metrics of the functions.
pub const NAMESPACE: &str = "mirrorfleet";

/// Most values of one metric in one line (the specification's limit).
const MAX_VALUES: usize = 100;

/// A metric's name and its value. Names: `SessionsCreated`, `SessionsModified`, `SessionsDeleted`, `SessionsFailed`,
/// `InterfacesSkipped`; of `attach` also `EventsIgnored`, `EventsMalformed`, `MessagesRetried`; of a sweep also
/// `SessionsOurs`, `SessionsForeign`, `SessionsDrifted` and `QuotaHeadroom`. All are counts.
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
        *by_reason.entry(skipped.reason.name()).or_default() += 1;
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

/// The line of `drain`: `DrainTime` in seconds, and `DrainsUnmoved`, 1 where the termination went on or was left alone
/// before the flows were moved. How it ended stands beside them, `ended`.
pub fn left(stack: &StackArn, epoch_ms: u64, left: &Left) -> String {
    let unmoved = matches!(left.ended, Ending::Unmoved | Ending::NotCompleted);
    let metrics = json!([{"Name": "DrainTime", "Unit": "Seconds"}, {"Name": "DrainsUnmoved", "Unit": "Count"}]);
    let directive =
        json!({"Namespace": NAMESPACE, "Dimensions": [["Stack", "Function"]], "Metrics": metrics});
    json!({
        "Stack": stack.name(), "Function": "drain", "DrainTime": left.seconds, "DrainsUnmoved": u8::from(unmoved),
        "ended": left.ended, "instance": left.instance,
        "_aws": {"Timestamp": epoch_ms, "CloudWatchMetrics": [directive]}})
    .to_string()
}

/// All lines of a run: [`line`]; one for each reason with `InterfacesSkippedByReason` (a further dimension, `Reason`) and
/// one for each class of error with `SessionsFailedByClass` (`Class`); then `SessionLatency` in milliseconds, from the time
/// of the event to the session, with up to 100 values a line.
pub fn lines(
    stack: &StackArn,
    function: &str,
    epoch_ms: u64,
    answer: &Answer,
    more: &[Figure],
    latencies: &[Duration],
) -> Vec<String> {
    let mut lines = vec![line(stack, function, epoch_ms, answer, more)];
    let one = |metric: &str, unit: &str, value: Value, dimension: Option<(&str, &str)>| {
        let mut dimensions = vec!["Stack", "Function"];
        dimensions.extend(dimension.map(|(name, _)| name));
        let directive = json!({
            "Namespace": NAMESPACE, "Dimensions": [dimensions], "Metrics": [{"Name": metric, "Unit": unit}]});
        let mut fields = json!({
            "Stack": stack.name(), "Function": function,
            "_aws": {"Timestamp": epoch_ms, "CloudWatchMetrics": [directive]}});
        fields[metric] = value;
        if let Some((name, of)) = dimension {
            fields[name] = json!(of);
        }
        fields.to_string()
    };
    let mut reasons: BTreeMap<SkipReason, usize> = BTreeMap::new();
    for skipped in &answer.skipped {
        *reasons.entry(skipped.reason).or_default() += 1;
    }
    let mut classes: BTreeMap<ErrorClass, usize> = BTreeMap::new();
    for failed in &answer.failed {
        *classes.entry(failed.class).or_default() += 1;
    }
    lines.extend(reasons.into_iter().map(|(reason, n)| {
        let of = reason.name();
        one(
            "InterfacesSkippedByReason",
            "Count",
            json!(n),
            Some(("Reason", &of)),
        )
    }));
    lines.extend(classes.into_iter().map(|(class, n)| {
        let of = Some(("Class", class.name()));
        one("SessionsFailedByClass", "Count", json!(n), of)
    }));
    lines.extend(latencies.chunks(MAX_VALUES).map(|some| {
        let values: Vec<u128> = some.iter().map(Duration::as_millis).collect();
        one("SessionLatency", "Milliseconds", json!(values), None)
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Failed, Skipped};
    use crate::id::{EniId, InstanceId};

    #[test]
    fn a_drain_that_did_not_move_the_flows_is_counted() {
        let stack = StackArn::new("arn:aws:cloudformation:eu-west-1:1:stack/fleet/1");
        let of = |ended| Left {
            instance: InstanceId::new("i-1"),
            ended,
            seconds: 31.5,
            error: None,
        };
        for (ended, name, unmoved) in [
            (Ending::Drained, "drained", 0),
            (Ending::Over, "over", 0),
            (Ending::Unmoved, "unmoved", 1),
            (Ending::NotCompleted, "not_completed", 1),
        ] {
            let line = left(&stack, 1_700_000_000_000, &of(ended));
            let value: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(
                (value["DrainTime"].as_f64(), &value["Function"]),
                (Some(31.5), &json!("drain"))
            );
            assert_eq!(
                (&value["DrainsUnmoved"], &value["ended"]),
                (&json!(unmoved), &json!(name))
            );
            for metric in value["_aws"]["CloudWatchMetrics"][0]["Metrics"]
                .as_array()
                .unwrap()
            {
                assert!(
                    value[metric["Name"].as_str().unwrap()].is_number(),
                    "{metric}"
                );
            }
        }
    }

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

    #[test]
    fn reasons_classes_and_latencies_are_metrics_of_their_own() {
        let eni = || EniId::new("eni-1");
        let skipped = |reason| Skipped { eni: eni(), reason };
        let failed = |class| Failed {
            eni: eni(),
            error: "no".to_owned(),
            class,
        };
        let answer = Answer {
            skipped: vec![
                skipped(SkipReason::Refused),
                skipped(SkipReason::AccountQuota),
                skipped(SkipReason::Refused),
            ],
            failed: vec![failed(ErrorClass::Retry), failed(ErrorClass::Retry)],
            ..Answer::default()
        };
        let stack = StackArn::new("arn:aws:cloudformation:eu-west-1:1:stack/fleet/1");
        let latencies: Vec<_> = (0..150).map(Duration::from_millis).collect();
        let lines: Vec<Value> = lines(&stack, "attach", 1, &answer, &[], &latencies)
            .iter()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(lines.len(), 1 + 2 + 1 + 2);
        for line in &lines {
            let directive = &line["_aws"]["CloudWatchMetrics"][0];
            for dimension in directive["Dimensions"][0].as_array().unwrap() {
                assert!(line[dimension.as_str().unwrap()].is_string(), "{line}");
            }
            for metric in directive["Metrics"].as_array().unwrap() {
                assert!(!line[metric["Name"].as_str().unwrap()].is_null(), "{line}");
            }
        }
        let of = |metric: &str, dimension: &str| -> Vec<(Value, Value)> {
            let with = lines.iter().filter(|l| !l[metric].is_null());
            with.map(|l| (l[dimension].clone(), l[metric].clone()))
                .collect()
        };
        assert_eq!(
            of("InterfacesSkippedByReason", "Reason"),
            [
                (json!("refused"), json!(2)),
                (json!("account_quota"), json!(1))
            ]
        );
        assert_eq!(
            of("SessionsFailedByClass", "Class"),
            [(json!("retry"), json!(2))]
        );
        let values = of("SessionLatency", "Stack");
        assert_eq!(values.len(), 2);
        assert_eq!(values[0].1.as_array().unwrap().len(), 100);
        assert_eq!(values[1].1[49], json!(149));
    }
}
