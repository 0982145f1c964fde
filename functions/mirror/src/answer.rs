//! What the functions answer: JSON, by DESIGN §5.

use crate::error::ErrorClass;
use crate::id::{EniId, SessionId, SessionNumber};
use serde::Serialize;
use std::time::Duration;

/// Why a selected interface has no session, or why an interface is or is not mirrored. Closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// `Mirroring` is `off`.
    MirroringOff,
    /// The stack is being deleted: nothing is made any more.
    StackLeaving,
    /// Attached to nothing.
    NotAttached,
    /// It, or its instance, is just passing from one state to another; an event or the sweep comes back to it.
    Changing,
    /// The instance is stopped: a session would cost and copy nothing.
    InstanceStopped,
    /// The instance could not be described, so its tags are not known; the sweep comes back to it.
    InstanceUnknown,
    /// Not of type `interface`: trunk, branch, NAT gateway, load balancer, endpoint…
    InterfaceType,
    /// Made by an AWS service whose interfaces cannot be mirrored.
    RequesterManaged,
    /// Belongs to a load balancer that no `elb:app/…` or `elb:classic/…` names.
    LoadBalancer,
    /// Is itself the target of someone's mirror sessions.
    MirrorTarget,
    /// AWS refused it for what it is, not long ago, and it has not changed since.
    Refused,
    /// Has no IPv4 address: interfaces in IPv6-only subnets cannot be mirrored.
    Ipv6Only,
    /// Belongs to this stack: rebuilders, load balancers, analyser nodes.
    OwnInterface,
    /// Has an address of the analyser behind `AnalyzerUrl`.
    AnalyzerInterface,
    /// The name in `AnalyzerUrl` could not be resolved, so that its interface cannot be told from others; nothing is
    /// created, because a mirrored analyser would be fed its own traffic without end.
    AnalyzerUnresolved,
    /// Other teams have three sessions there already.
    InterfaceFull,
    /// No session number is free at or above `SessionNumberBase`.
    NoFreeNumber,
    /// The account has no session left, or none but those that stay free for others.
    AccountQuota,
    /// It was gone when its session was to be made.
    InterfaceGone,
    /// The time of this run or the pace of changes did not suffice; the sweep goes on.
    LeftToSweep,
}

impl SkipReason {
    /// Its name in answers and metrics.
    pub fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// All of them.
    pub const ALL: [SkipReason; 20] = [
        Self::MirroringOff,
        Self::StackLeaving,
        Self::NotAttached,
        Self::Changing,
        Self::InstanceStopped,
        Self::InstanceUnknown,
        Self::InterfaceType,
        Self::RequesterManaged,
        Self::LoadBalancer,
        Self::MirrorTarget,
        Self::Refused,
        Self::Ipv6Only,
        Self::OwnInterface,
        Self::AnalyzerInterface,
        Self::AnalyzerUnresolved,
        Self::InterfaceFull,
        Self::NoFreeNumber,
        Self::AccountQuota,
        Self::InterfaceGone,
        Self::LeftToSweep,
    ];

    /// The reason in words, with the remedy where there is one.
    pub fn text(self) -> &'static str {
        match self {
            Self::MirroringOff => {
                "the stack's parameter Mirroring is off; set it to on to mirror again"
            }
            Self::StackLeaving => "the stack is being deleted, so nothing is mirrored any more",
            Self::NotAttached => "it is attached to nothing, and a session would cost all the same",
            Self::Changing => {
                "it or its instance is just changing state; the next event or sweep looks again"
            }
            Self::InstanceStopped => {
                "its instance is stopped, and a session would cost all the same"
            }
            Self::InstanceUnknown => {
                "its instance could not be described yet; the next sweep looks again"
            }
            Self::InterfaceType => "only interfaces of type `interface` can be mirrored",
            Self::RequesterManaged => {
                "it belongs to an AWS service whose interfaces cannot be mirrored"
            }
            Self::LoadBalancer => {
                "it belongs to a load balancer; only `elb:app/NAME` or `elb:classic/NAME` in Selection selects such"
            }
            Self::MirrorTarget => {
                "it is the target of mirror sessions itself, and such cannot be mirrored"
            }
            Self::Refused => {
                "AWS refused to mirror it for what it is; it is tried again when it changes, or after six hours"
            }
            Self::Ipv6Only => {
                "it has no IPv4 address, and interfaces in IPv6-only subnets cannot be mirrored"
            }
            Self::OwnInterface => {
                "it belongs to this stack, whose own interfaces are never mirrored"
            }
            Self::AnalyzerInterface => {
                "it has an address of the analyser behind AnalyzerUrl, which is never mirrored"
            }
            Self::AnalyzerUnresolved => {
                "the name in AnalyzerUrl cannot be resolved from the function, so the analyser could be mirrored by \
                 mistake; use its address, or a name that public DNS knows"
            }
            Self::InterfaceFull => "other teams' sessions take all three places of the interface",
            Self::NoFreeNumber => {
                "no session number is free at or above SessionNumberBase; lower the parameter"
            }
            Self::AccountQuota => {
                "the account's 10,000 sessions in this region are used up, but for those that are left free for others"
            }
            Self::InterfaceGone => "it was gone before its session could be made",
            Self::LeftToSweep => {
                "this run had no time left at the pace of MutationsPerSecond; the next sweep goes on"
            }
        }
    }
}

/// A session that was or would be made, changed or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Touched {
    /// The interface.
    pub eni: EniId,
    /// The session; null in a dry run for one that does not exist yet.
    pub session: Option<SessionId>,
    /// Its number.
    pub number: SessionNumber,
}

/// A selected interface that has no session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The interface.
    pub eni: EniId,
    /// Why.
    pub reason: SkipReason,
}

/// An interface where a call failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// The interface.
    pub eni: EniId,
    /// The service's code and message.
    pub error: String,
    /// What kind of error it is; for metrics, not in the answer.
    #[serde(skip)]
    pub class: ErrorClass,
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Answer {
    /// Sessions made.
    pub created: Vec<Touched>,
    /// Sessions changed.
    pub modified: Vec<Touched>,
    /// Sessions removed.
    pub deleted: Vec<Touched>,
    /// Selected interfaces without a session.
    pub skipped: Vec<Skipped>,
    /// Interfaces where a call failed.
    pub failed: Vec<Failed>,
    /// US dollars that our sessions cost in a month of 730 hours after this plan; only in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly_cost: Option<f64>,
}

/// One message that is to come again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchItemFailure {
    /// `messageId` of the SQS record.
    pub item_identifier: String,
}

/// What `attach` answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AttachAnswer {
    /// What was done.
    #[serde(flatten)]
    pub answer: Answer,
    /// Events of a kind that nobody handles.
    pub ignored: usize,
    /// Bodies that are no events.
    pub malformed: usize,
    /// Of each session made: how long after its event, as far as both times are known. For metrics, not in the answer.
    #[serde(skip)]
    pub latencies: Vec<Duration>,
    /// Messages to deliver again, or to put aside; null when a bare event was handled.
    #[serde(rename = "batchItemFailures", skip_serializing_if = "Option::is_none")]
    pub batch_item_failures: Option<Vec<BatchItemFailure>>,
}

/// What `reconcile` says of one interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// The interface; null where an instance has none.
    pub eni: Option<EniId>,
    /// Whether a session of ours is there now.
    pub mirrored: bool,
    /// `selected`, `excluded`, `not_selected`, `not_found`, or a [`SkipReason`].
    pub reason: String,
    /// The same in words.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_fields_of_the_contract() {
        let touched = Touched {
            eni: EniId::new("eni-1"),
            session: Some(SessionId::new("tms-1")),
            number: SessionNumber::MAX,
        };
        let answer = AttachAnswer {
            answer: Answer {
                created: vec![touched],
                skipped: vec![Skipped {
                    eni: EniId::new("eni-2"),
                    reason: SkipReason::InterfaceFull,
                }],
                failed: vec![Failed {
                    eni: EniId::new("eni-3"),
                    error: "Odd: no".to_owned(),
                    class: ErrorClass::Unknown,
                }],
                ..Answer::default()
            },
            batch_item_failures: Some(vec![BatchItemFailure {
                item_identifier: "m-1".to_owned(),
            }]),
            ..AttachAnswer::default()
        };
        assert_eq!(
            serde_json::to_value(&answer).unwrap(),
            serde_json::json!({
                "created": [{"eni": "eni-1", "session": "tms-1", "number": 32766}],
                "modified": [],
                "deleted": [],
                "skipped": [{"eni": "eni-2", "reason": "interface_full"}],
                "failed": [{"eni": "eni-3", "error": "Odd: no"}],
                "ignored": 0,
                "malformed": 0,
                "batchItemFailures": [{"itemIdentifier": "m-1"}],
            })
        );
    }

    #[test]
    fn the_readme_tells_each_reason_in_the_same_words() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        for reason in SkipReason::ALL {
            let row = format!("| `{}` | {} |", reason.name(), reason.text());
            assert!(readme.contains(&row), "README.md lacks: {row}");
        }
    }

    #[test]
    fn each_reason_has_a_name_and_words_of_its_own() {
        let names: std::collections::BTreeSet<_> = SkipReason::ALL
            .iter()
            .map(|r| serde_json::to_string(r).unwrap())
            .collect();
        let texts: std::collections::BTreeSet<_> =
            SkipReason::ALL.iter().map(|r| r.text()).collect();
        assert_eq!(
            (names.len(), texts.len()),
            (SkipReason::ALL.len(), SkipReason::ALL.len())
        );
    }
}
