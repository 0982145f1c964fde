//! A bare EventBridge event to a hint: the instances and interfaces that it names. Everything else about them is
//! looked up again.
//!
//! Sources: EventBridge events reference (EC2, EC2 Auto Scaling, tags, ECS); CloudTrail record contents.

use crate::id::{EniId, InstanceId, MAX_ID_BYTES};
use crate::time::since_epoch;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// Most ids that are taken from one event; a `RunInstances` of 1,000 instances has 2,000. What is beyond is the sweep's.
pub const MAX_IDS: usize = 4096;
/// Most characters of an identity's ARN that are kept; IAM's own limit for a role session is far below.
const MAX_ARN: usize = 2048;
/// How deep a CloudTrail record is searched.
const MAX_DEPTH: usize = 16;

/// What an event names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hint {
    /// Instances.
    pub instances: BTreeSet<InstanceId>,
    /// Interfaces.
    pub enis: BTreeSet<EniId>,
    /// It names something that is gone and cannot be looked up any more; what that means, a look at everything finds.
    pub lost: Option<Lost>,
    /// It tells of something that has come to be, so that not to find it may mean that it is not visible yet.
    pub appears: bool,
    /// When it happened, since 1970.
    pub at: Option<Duration>,
}

/// What an event tells of without naming an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// A mirror session was removed, anyone's.
    Session {
        /// ARN of the identity that removed it; empty where the record does not say.
        by: String,
    },
    /// An interface was detached; the record names the attachment, which is gone.
    Attachment,
}

impl Hint {
    /// Whether there is nothing to look up.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty() && self.enis.is_empty() && self.lost.is_none()
    }
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
    let mut hint = Hint {
        at: text("time").and_then(since_epoch),
        ..Hint::default()
    };
    let word = |key: &str| detail.get(key).and_then(Value::as_str).unwrap_or("");
    match (source, kind) {
        ("aws.ec2", "EC2 Instance State-change Notification") => {
            hint.take(detail.get("instance-id"));
            hint.appears = matches!(word("state"), "pending" | "running");
        }
        (
            "aws.autoscaling",
            "EC2 Instance Launch Successful"
            | "EC2 Instance Terminate Successful"
            | "EC2 Instance-launch Lifecycle Action"
            | "EC2 Instance-terminate Lifecycle Action",
        ) => {
            hint.take(detail.get("EC2InstanceId"));
            hint.appears = kind.contains("Launch") || kind.contains("-launch");
        }
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
                hint.appears |=
                    attachment.get("status").and_then(Value::as_str) == Some("ATTACHED");
            }
        }
        ("aws.ec2", "AWS API Call via CloudTrail") if detail.get("errorCode").is_none() => {
            let name = word("eventName");
            hint.appears = matches!(
                name,
                "RunInstances" | "CreateNetworkInterface" | "AttachNetworkInterface"
            );
            if name == "DeleteTrafficMirrorSession" {
                let by = detail.pointer("/userIdentity/arn").and_then(Value::as_str);
                let by = by.unwrap_or_default().chars().take(MAX_ARN).collect();
                hint.lost = Some(Lost::Session { by });
            } else if TRAIL_CALLS.contains(&name) {
                for part in ["requestParameters", "responseElements"] {
                    hint.search(detail.get(part).unwrap_or(&Value::Null), 0);
                }
                if name == "DetachNetworkInterface" && hint.is_empty() {
                    hint.lost = Some(Lost::Attachment);
                }
            }
        }
        _ => {}
    }
    if hint.is_empty() {
        Event::Ignored(describe(source, kind, detail))
    } else {
        Event::Hint(hint)
    }
}

/// The calls in a trail that name what they change, besides `DeleteTrafficMirrorSession`, which does not.
const TRAIL_CALLS: &[&str] = &[
    "RunInstances",
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
    "CreateTags",
    "DeleteTags",
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

    /// Each document of an event that is handled: what it names, and whether that has come to be.
    const HANDLED: &[(&str, &[&str], &[&str], bool)] = &[
        ("instance-pending", &[INSTANCE], &[], true),
        ("instance-running", &[INSTANCE], &[], true),
        ("instance-stopping", &[INSTANCE], &[], false),
        ("instance-stopped", &[INSTANCE], &[], false),
        ("instance-terminated", &[INSTANCE], &[], false),
        ("asg-launch", &[INSTANCE], &[], true),
        ("asg-launch-lifecycle", &[INSTANCE], &[], true),
        ("asg-terminate", &[INSTANCE], &[], false),
        ("asg-terminate-lifecycle", &[INSTANCE], &[], false),
        ("tag-change-instance", &[INSTANCE], &[], false),
        ("tag-change-interface", &[], &[ENI], false),
        ("ecs-task-running", &[], &[ENI], true),
        ("ecs-task-stopped", &[], &[ENI], false),
        ("trail-run-instances", &[INSTANCE], &[ENI], true),
        ("trail-create-interface", &[], &[ENI], true),
        ("trail-attach-interface", &[INSTANCE], &[ENI], true),
        ("trail-delete-interface", &[], &[ENI], false),
        ("trail-create-tags", &[INSTANCE], &[ENI], false),
        ("trail-delete-tags", &[INSTANCE], &[ENI], false),
    ];
    const INSTANCE: &str = "i-1234567890abcdef0";
    const ENI: &str = "eni-0a1b2c3d4e5f60718";

    fn hint(event: &Value) -> Hint {
        match parse(event) {
            Event::Hint(hint) => hint,
            other => panic!("{event}: {other:?}"),
        }
    }

    #[test]
    fn each_published_event_names_its_instances_and_interfaces() {
        for (file, instances, enis, appears) in HANDLED {
            let is = hint(&event_file(file));
            let named: Vec<_> = is.instances.iter().map(InstanceId::as_str).collect();
            assert_eq!(named, *instances, "{file}");
            let named: Vec<_> = is.enis.iter().map(EniId::as_str).collect();
            assert_eq!(named, *enis, "{file}");
            assert_eq!((is.appears, is.lost), (*appears, None), "{file}");
            assert!(is.at.is_some(), "{file}");
        }
    }

    #[test]
    fn what_cannot_be_looked_up_any_more_is_told_apart() {
        let by = "arn:aws:sts::123456789012:assumed-role/admin/alice".to_owned();
        let removed = hint(&event_file("trail-delete-session"));
        assert_eq!(removed.lost, Some(Lost::Session { by }));
        assert!(removed.instances.is_empty() && removed.enis.is_empty());
        let detached = hint(&event_file("trail-detach-interface"));
        assert_eq!(detached.lost, Some(Lost::Attachment));
        assert!(!removed.appears && !detached.appears);
    }

    #[test]
    fn each_document_of_an_event_is_one_of_these() {
        let others = [
            "trail-delete-session",
            "trail-detach-interface",
            "scheduled",
            "malformed",
            "custom-create",
            "custom-update",
            "custom-delete",
            "dry-run",
            "explain-instance",
            "explain-interface",
        ];
        let handled = HANDLED.iter().map(|(file, ..)| *file);
        let known: BTreeSet<String> = handled.chain(others).map(str::to_owned).collect();
        let folder = format!("{}/../../events", env!("CARGO_MANIFEST_DIR"));
        let there: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|f| Some(f.ok()?.path().file_stem()?.to_str()?.to_owned()))
            .filter(|name| !name.starts_with("drain"))
            .collect();
        assert_eq!(there, known);
    }

    #[test]
    fn fields_that_nobody_knows_change_nothing() {
        for (file, ..) in HANDLED {
            let event = event_file(file);
            let mut more = event.clone();
            more["a-new-field"] = serde_json::json!({"instance-id": "i-9"});
            more["detail"]["aNewField"] = serde_json::json!([{"x": "eni-9"}]);
            assert_eq!(parse(&more), parse(&event), "{file}");
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
