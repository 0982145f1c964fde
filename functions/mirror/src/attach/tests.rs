use super::*;
use crate::answer::SkipReason;
use crate::fake::{self, Fake, event_file, refused, session, tagged};
use crate::interface::InstanceState;
use serde_json::json;
use std::time::Duration;

const ENI: &str = "eni-0a1b2c3d4e5f60718";
const INSTANCE: &str = "i-1234567890abcdef0";

async fn attach(fake: &Fake, payload: Value) -> Result<AttachAnswer, AttachError> {
    let settings = fake::settings();
    let run = Run {
        ports: fake,
        settings: &settings,
        pacer: &fake::pacer(),
        deadline: Duration::from_secs(60),
    };
    deliver(&run, &payload).await
}

/// As the function takes it: a batch of the queue, or else a bare event.
async fn deliver(run: &Run<'_, Fake>, payload: &Value) -> Result<AttachAnswer, AttachError> {
    let Some(records) = payload.get("Records").and_then(Value::as_array) else {
        return bare(run, payload).await;
    };
    let text = |record: &Value, field: &str| record[field].as_str().unwrap_or_default().to_owned();
    let queued: Vec<_> = records
        .iter()
        .map(|r| Queued {
            id: text(r, "messageId"),
            body: text(r, "body"),
        })
        .collect();
    Ok(batch(run, &queued).await)
}

fn record(id: &str, body: &str) -> Value {
    json!({"messageId": id, "receiptHandle": "r", "body": body, "eventSource": "aws:sqs", "attributes": {}})
}

fn records(events: &[&str]) -> Value {
    let records = events.iter().enumerate();
    json!({"Records": records.map(|(n, e)| record(&format!("m-{n}"), &event_file(e).to_string())).collect::<Vec<_>>()})
}

fn again(answer: &AttachAnswer) -> Vec<&str> {
    answer
        .batch_item_failures
        .iter()
        .flatten()
        .map(|f| f.item_identifier.as_str())
        .collect()
}

#[tokio::test]
async fn each_event_that_names_a_running_instance_or_its_interface_gives_it_one_session() {
    for event in [
        "instance-running",
        "asg-launch",
        "tag-change-instance",
        "tag-change-interface",
        "ecs-task-running",
        "trail-run-instances",
        "trail-attach-interface",
        "trail-create-tags",
    ] {
        let fake = Fake::with_one_tagged();
        let answer = attach(&fake, event_file(event)).await.unwrap();
        assert_eq!(answer.answer.created.len(), 1, "{event}");
        assert_eq!(answer.batch_item_failures, None, "{event}");
        assert_eq!(
            fake.sessions_of(ENI),
            [("tms-001".to_owned(), 100)],
            "{event}"
        );
    }
}

#[tokio::test]
async fn the_same_event_three_times_makes_one_session() {
    let fake = Fake::with_one_tagged();
    for _ in 0..3 {
        attach(&fake, event_file("instance-running")).await.unwrap();
    }
    assert_eq!(fake.count("create"), 1);

    let fake = Fake::with_one_tagged();
    let answer = attach(
        &fake,
        records(&["instance-running", "asg-launch", "instance-running"]),
    )
    .await
    .unwrap();
    assert_eq!(answer.answer.created.len(), 1);
    assert_eq!((fake.count("create"), again(&answer).len()), (1, 0));
}

#[tokio::test]
async fn two_events_at_once_make_one_session() {
    let fake = Fake::with_one_tagged();
    let (a, b) = tokio::join!(
        attach(&fake, event_file("instance-running")),
        attach(&fake, event_file("asg-launch"))
    );
    let made = a.unwrap().answer.created.len() + b.unwrap().answer.created.len();
    assert_eq!((made, fake.sessions_of(ENI).len()), (1, 1));
    assert_eq!(
        fake.count("create"),
        2,
        "both tried, and the number was the lock"
    );
}

#[tokio::test]
async fn a_burst_of_launches_is_a_few_descriptions() {
    let fake = Fake::new(
        (0..100)
            .map(|n| tagged(&format!("eni-{n:08x}"), &format!("i-{n:08x}")))
            .collect(),
    );
    let records: Vec<_> = (0..100)
        .map(|n| {
            let mut event = event_file("instance-running");
            event["detail"]["instance-id"] = json!(format!("i-{n:08x}"));
            record(&format!("m-{n}"), &event.to_string())
        })
        .collect();
    let answer = attach(&fake, json!({"Records": records})).await.unwrap();
    assert_eq!(answer.answer.created.len(), 100);
    assert_eq!(
        (
            fake.count("interfaces"),
            fake.count("instances"),
            fake.count("sessions")
        ),
        (1, 1, 1)
    );
}

#[tokio::test]
async fn an_instance_that_is_gone_is_acknowledged() {
    for event in ["instance-terminated", "asg-terminate", "instance-running"] {
        let fake = Fake::new(vec![]);
        let answer = attach(&fake, records(&[event])).await.unwrap();
        assert_eq!(
            answer,
            AttachAnswer {
                batch_item_failures: Some(vec![]),
                ..AttachAnswer::default()
            },
            "{event}"
        );
    }
}

#[tokio::test]
async fn an_interface_that_lost_its_tag_loses_our_session_and_no_other() {
    let fake = Fake::with_one_tagged();
    fake.state().interfaces[0]
        .instance
        .as_mut()
        .unwrap()
        .tags
        .clear();
    fake.state().sessions = vec![
        session("tms-1", ENI, 100, Some(fake::STACK)),
        session("tms-2", ENI, 1, None),
        session("tms-3", "eni-other", 100, Some(fake::STACK)),
    ];
    let answer = attach(&fake, event_file("tag-change-instance"))
        .await
        .unwrap();
    assert_eq!(answer.answer.deleted.len(), 1);
    let left: Vec<_> = fake
        .state()
        .sessions
        .iter()
        .map(|s| s.id.to_string())
        .collect();
    assert_eq!(left, ["tms-2", "tms-3"]);
}

#[tokio::test]
async fn a_stopped_instance_is_released_with_a_reason() {
    let fake = Fake::with_one_tagged();
    fake.state().interfaces[0].instance.as_mut().unwrap().state = InstanceState::Stopped;
    fake.state().sessions = vec![session("tms-1", ENI, 100, Some(fake::STACK))];
    let answer = attach(&fake, event_file("instance-running")).await.unwrap();
    assert_eq!(answer.answer.skipped[0].reason, SkipReason::InstanceStopped);
    assert!(fake.state().sessions.is_empty());
}

#[tokio::test]
async fn a_malformed_message_comes_again_and_its_neighbours_do_not() {
    let fake = Fake::with_one_tagged();
    let mut payload = records(&["malformed", "instance-running", "scheduled"]);
    payload["Records"]
        .as_array_mut()
        .unwrap()
        .push(record("m-3", "{not json"));
    payload["Records"]
        .as_array_mut()
        .unwrap()
        .push(json!({"messageId": "m-4"}));
    let answer = attach(&fake, payload).await.unwrap();
    assert_eq!(again(&answer), ["m-0", "m-3", "m-4"]);
    assert_eq!(
        (
            answer.malformed,
            answer.ignored,
            answer.answer.created.len()
        ),
        (3, 1, 1)
    );
}

#[tokio::test]
async fn a_bare_malformed_event_is_an_error_of_one_line() {
    let error = attach(&Fake::with_one_tagged(), event_file("malformed"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("malformed event: the event has no text `detail-type`"),
        "{error}"
    );
    assert!(!error.contains('\n'));
}

#[tokio::test]
async fn only_messages_of_an_interface_that_stays_throttled_come_again() {
    let other = tagged("eni-00000001", "i-00000001");
    let fake = Fake::with_one_tagged();
    fake.state().interfaces.push(other);
    // Creates go by interface id: the first four tries are those of eni-00000001.
    fake.fail("create", refused("RequestLimitExceeded"), 4);
    let mut second = event_file("instance-running");
    second["detail"]["instance-id"] = json!("i-00000001");
    let mut by_eni = event_file("tag-change-interface");
    by_eni["resources"] =
        json!(["arn:aws:ec2:us-east-1:123456789012:network-interface/eni-00000001"]);
    let mut payload = records(&["instance-running"]);
    payload["Records"]
        .as_array_mut()
        .unwrap()
        .push(record("m-second", &second.to_string()));
    payload["Records"]
        .as_array_mut()
        .unwrap()
        .push(record("m-eni", &by_eni.to_string()));
    let answer = attach(&fake, payload).await.unwrap();
    assert_eq!(again(&answer), ["m-second", "m-eni"]);
    assert_eq!(fake.sessions_of(ENI).len(), 1);
    assert_eq!(
        INSTANCE,
        event_file("instance-running")["detail"]["instance-id"]
    );
}

#[tokio::test]
async fn a_permanent_refusal_is_reported_and_acknowledged() {
    let fake = Fake::with_one_tagged();
    fake.fail("create", refused("NetworkInterfaceNotSupported"), 1);
    let answer = attach(&fake, records(&["instance-running"])).await.unwrap();
    assert_eq!(answer.answer.failed[0].eni.as_str(), ENI);
    assert!(again(&answer).is_empty());
}

#[tokio::test]
async fn when_nothing_can_be_described_all_messages_with_work_come_again() {
    let fake = Fake::with_one_tagged();
    fake.fail("interfaces", refused("RequestLimitExceeded"), 1);
    let answer = attach(&fake, records(&["instance-running", "scheduled"]))
        .await
        .unwrap();
    assert_eq!(again(&answer), ["m-0"]);
    fake.fail("interfaces", refused("UnauthorizedOperation"), 1);
    let error = attach(&fake, event_file("instance-running"))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("UnauthorizedOperation"), "{error}");
}

#[tokio::test]
async fn with_mirroring_off_nothing_is_made_and_ours_goes() {
    let fake = Fake::with_one_tagged();
    fake.state().sessions = vec![session("tms-1", ENI, 100, Some(fake::STACK))];
    let mut settings = fake::settings();
    settings.mirroring = false;
    let run = Run {
        ports: &fake,
        settings: &settings,
        pacer: &fake::pacer(),
        deadline: Duration::from_secs(60),
    };
    let answer = bare(&run, &event_file("instance-running")).await.unwrap();
    assert_eq!(answer.answer.skipped[0].reason, SkipReason::MirroringOff);
    assert!(fake.state().sessions.is_empty());
}

#[tokio::test]
async fn the_analyser_is_found_by_its_name_and_never_mirrored() {
    let fake = Fake::with_one_tagged();
    let mut settings = fake::settings();
    settings.analyzer = Some(crate::settings::Analyzer::Name(
        "waf.example.com".to_owned(),
    ));
    let run = Run {
        ports: &fake,
        settings: &settings,
        pacer: &fake::pacer(),
        deadline: Duration::from_secs(60),
    };
    let answer = bare(&run, &event_file("instance-running")).await.unwrap();
    assert_eq!(
        answer.answer.skipped[0].reason,
        SkipReason::AnalyzerUnresolved
    );
    fake.state().hosts.insert(
        "waf.example.com".to_owned(),
        vec!["10.0.0.7".parse().unwrap()],
    );
    let answer = bare(&run, &event_file("instance-running")).await.unwrap();
    assert_eq!(
        answer.answer.skipped[0].reason,
        SkipReason::AnalyzerInterface
    );
    fake.state().hosts.insert(
        "waf.example.com".to_owned(),
        vec!["10.0.0.8".parse().unwrap()],
    );
    assert_eq!(
        bare(&run, &event_file("instance-running"))
            .await
            .unwrap()
            .answer
            .created
            .len(),
        1
    );
}
