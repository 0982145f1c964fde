//! A bare EventBridge event to a hint: the instances and interfaces that it names. Everything else about them is
//! looked up again.
//!
//! Sources: EventBridge events reference (EC2, EC2 Auto Scaling, tags, ECS); CloudTrail record contents.

use crate::id::{EniId, InstanceId, MAX_ID_BYTES};
use serde_json::Value;
use std::collections::BTreeSet;

/// Most ids that are taken from one event; a `RunInstances` of 1,000 instances has 2,000. What is beyond is the sweep's.
pub const MAX_IDS: usize = 4096;
/// How deep a CloudTrail record is searched.
const MAX_DEPTH: usize = 16;

/// What an event names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hint {
    /// Instances.
    pub instances: BTreeSet<InstanceId>,
    /// Interfaces.
    pub enis: BTreeSet<EniId>,
}

/// An event, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Look these up.
    Hint(Hint),
    /// A kind that nobody handles, or one that names nothing: counted and acknowledged. What it was.
    Ignored(String),
    /// No event at all: not JSON, or without `source` or `detail-type`. Why, and what was expected.
    Malformed(String),
}

/// Reads the body of a queue message.
pub fn parse_text(body: &str) -> Event {
    match serde_json::from_str(body) {
        Ok(value) => parse(&value),
        Err(e) => {
            let place = format!("line {} column {}", e.line(), e.column());
            Event::Malformed(format!(
                "the body is not JSON ({place}); expected an EventBridge event"
            ))
        }
    }
}

/// Reads an event.
pub fn parse(event: &Value) -> Event {
    let text = |key: &str| event.get(key).and_then(Value::as_str);
    let (source, kind) = match (text("source"), text("detail-type")) {
        (Some(source), Some(kind)) => (source, kind),
        (None, _) => return missing("source"),
        (_, None) => return missing("detail-type"),
    };
    let detail = event.get("detail").unwrap_or(&Value::Null);
    let mut hint = Hint::default();
    match (source, kind) {
        ("aws.ec2", "EC2 Instance State-change Notification") => {
            hint.take(detail.get("instance-id"));
        }
        (
            "aws.autoscaling",
            "EC2 Instance Launch Successful"
            | "EC2 Instance Terminate Successful"
            | "EC2 Instance-launch Lifecycle Action"
            | "EC2 Instance-terminate Lifecycle Action",
        ) => hint.take(detail.get("EC2InstanceId")),
        ("aws.tag", "Tag Change on Resource") => {
            for arn in event
                .get("resources")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                hint.take_text(
                    arn.as_str()
                        .and_then(|arn| arn.rsplit('/').next())
                        .unwrap_or(""),
                );
            }
        }
        ("aws.ecs", "ECS Task State Change") => {
            for attachment in detail
                .get("attachments")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                hint.search(attachment.get("details").unwrap_or(&Value::Null), 0);
            }
        }
        ("aws.ec2", "AWS API Call via CloudTrail") if detail.get("errorCode").is_none() => {
            let name = detail
                .get("eventName")
                .and_then(Value::as_str)
                .unwrap_or("");
            if TRAIL_CALLS.contains(&name) {
                for part in ["requestParameters", "responseElements"] {
                    hint.search(detail.get(part).unwrap_or(&Value::Null), 0);
                }
            }
        }
        _ => {}
    }
    if hint == Hint::default() {
        Event::Ignored(describe(source, kind, detail))
    } else {
        Event::Hint(hint)
    }
}

/// The calls in a trail that can change what is to be mirrored.
const TRAIL_CALLS: &[&str] = &[
    "RunInstances",
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
    "CreateTags",
    "DeleteTags",
    "DeleteTrafficMirrorSession",
];

fn missing(key: &str) -> Event {
    Event::Malformed(format!(
        "the event has no text `{key}`; expected an EventBridge event with `source` and `detail-type`"
    ))
}

/// For the log: at most 120 characters, whatever the event says.
fn describe(source: &str, kind: &str, detail: &Value) -> String {
    let call = detail
        .get("eventName")
        .and_then(Value::as_str)
        .map(|c| format!(" {c}"))
        .unwrap_or_default();
    format!("{source}: {kind}{call}")
        .chars()
        .filter(|c| !c.is_control())
        .take(120)
        .collect()
}

impl Hint {
    fn take(&mut self, value: Option<&Value>) {
        self.take_text(value.and_then(Value::as_str).unwrap_or(""));
    }

    fn take_text(&mut self, text: &str) {
        if text.len() > MAX_ID_BYTES || self.instances.len() + self.enis.len() >= MAX_IDS {
            return;
        }
        if let Some(id) = InstanceId::parse(text) {
            self.instances.insert(id);
        } else if let Some(id) = EniId::parse(text) {
            self.enis.insert(id);
        }
    }

    /// Takes every text within `value` that is an id: records differ from call to call.
    fn search(&mut self, value: &Value, depth: usize) {
        match value {
            Value::String(text) => self.take_text(text),
            Value::Array(items) if depth < MAX_DEPTH => {
                items.iter().for_each(|v| self.search(v, depth + 1));
            }
            Value::Object(fields) if depth < MAX_DEPTH => {
                fields.values().for_each(|v| self.search(v, depth + 1));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::event_file;
    use proptest::prelude::*;

    fn hint(instances: &[&str], enis: &[&str]) -> Event {
        Event::Hint(Hint {
            instances: instances.iter().map(|i| InstanceId::new(*i)).collect(),
            enis: enis.iter().map(|e| EniId::new(*e)).collect(),
        })
    }

    #[test]
    fn each_published_event_names_its_instances_and_interfaces() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("instance-running", &["i-1234567890abcdef0"], &[]),
            ("instance-terminated", &["i-1234567890abcdef0"], &[]),
            ("asg-launch", &["i-1234567890abcdef0"], &[]),
            ("asg-terminate", &["i-1234567890abcdef0"], &[]),
            ("tag-change-instance", &["i-1234567890abcdef0"], &[]),
            ("tag-change-interface", &[], &["eni-0a1b2c3d4e5f60718"]),
            ("ecs-task-running", &[], &["eni-0a1b2c3d4e5f60718"]),
            (
                "trail-run-instances",
                &["i-1234567890abcdef0"],
                &["eni-0a1b2c3d4e5f60718"],
            ),
            (
                "trail-attach-interface",
                &["i-1234567890abcdef0"],
                &["eni-0a1b2c3d4e5f60718"],
            ),
            (
                "trail-create-tags",
                &["i-1234567890abcdef0"],
                &["eni-0a1b2c3d4e5f60718"],
            ),
        ];
        for (file, instances, enis) in table {
            assert_eq!(parse(&event_file(file)), hint(instances, enis), "{file}");
        }
    }

    #[test]
    fn what_nobody_handles_is_ignored_by_name() {
        assert_eq!(
            parse(&event_file("scheduled")),
            Event::Ignored("aws.events: Scheduled Event".to_owned())
        );
        for (source, kind) in [
            ("aws.s3", "Object Created"),
            ("aws.autoscaling", "EC2 Instance Launch Unsuccessful"),
        ] {
            let event = serde_json::json!({"source": source, "detail-type": kind, "detail": {"EC2InstanceId": "i-1"}});
            assert_eq!(parse(&event), Event::Ignored(format!("{source}: {kind}")));
        }
    }

    #[test]
    fn a_known_kind_that_names_nothing_is_ignored() {
        for detail in [
            serde_json::json!({}),
            serde_json::json!({"instance-id": 7}),
            serde_json::json!({"instance-id": "web-1"}),
        ] {
            let event = serde_json::json!({
                "source": "aws.ec2", "detail-type": "EC2 Instance State-change Notification", "detail": detail});
            assert!(matches!(parse(&event), Event::Ignored(_)), "{event}");
        }
    }

    #[test]
    fn a_trail_record_of_a_refused_call_is_ignored() {
        let mut event = event_file("trail-attach-interface");
        event["detail"]["errorCode"] = "Client.UnauthorizedOperation".into();
        assert_eq!(
            parse(&event),
            Event::Ignored(
                "aws.ec2: AWS API Call via CloudTrail AttachNetworkInterface".to_owned()
            )
        );
    }

    #[test]
    fn a_body_that_is_no_event_is_malformed_and_says_why() {
        let of = |body: &str| match parse_text(body) {
            Event::Malformed(why) => why,
            other => panic!("{body}: {other:?}"),
        };
        assert!(of("").contains("not JSON (line 1 column 0)"));
        assert!(of("{\"source\": ").contains("not JSON"));
        assert!(of("[]").contains("no text `source`"));
        assert!(of("{\"source\": 1, \"detail-type\": \"x\"}").contains("no text `source`"));
        assert!(of(&event_file("malformed").to_string()).contains("no text `detail-type`"));
    }

    #[test]
    fn the_cap_on_ids_is_reached() {
        let ids: Vec<_> = (0..MAX_IDS + 5).map(|n| format!("eni-{n:08x}")).collect();
        let event = serde_json::json!({
            "source": "aws.ec2", "detail-type": "AWS API Call via CloudTrail",
            "detail": {"eventName": "CreateTags", "requestParameters": ids}});
        let Event::Hint(hint) = parse(&event) else {
            panic!("no hint")
        };
        assert_eq!(hint.enis.len(), MAX_IDS);
    }

    proptest! {
        #[test]
        fn no_body_panics(body in ".{0,60}|[\\[\\]{}\":,a-z0-9-]{0,60}") {
            let _ = parse_text(&body);
        }
    }
}
