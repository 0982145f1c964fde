use super::*;
use crate::answer::SkipReason;
use crate::fake::{self, Fake, event_file, refused, session, tagged};
use crate::interface::InstanceState;
use crate::memory::Memory;
use crate::ports::ClassicBalancer;
use serde_json::json;
use std::time::Duration;

mod each;

use each::ALL_EVENTS;

const ENI: &str = "eni-0a1b2c3d4e5f60718";
const INSTANCE: &str = "i-1234567890abcdef0";

async fn attach(fake: &Fake, payload: Value) -> Result<AttachAnswer, AttachError> {
    let settings = fake::settings();
    let run = Run {
        ports: fake,
        settings: &settings,
        pacer: &fake::pacer(),
        memory: &Memory::default(),
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
    let other = tagged("eni-0b000001", "i-0b000001");
    let fake = Fake::with_one_tagged();
    fake.state().interfaces.push(other);
    // Creates for events go by interface id backwards: the first four tries are those of eni-0b000001.
    fake.fail("create", refused("RequestLimitExceeded"), 4);
    let mut second = event_file("instance-running");
    second["detail"]["instance-id"] = json!("i-0b000001");
    let mut by_eni = event_file("tag-change-interface");
    by_eni["resources"] =
        json!(["arn:aws:ec2:us-east-1:123456789012:network-interface/eni-0b000001"]);
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
        memory: &Memory::default(),
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
        memory: &Memory::default(),
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

/// A run until second 60 by these settings, with this memory.
async fn attach_by(
    fake: &Fake,
    settings: &crate::settings::Settings,
    memory: &Memory,
    payload: Value,
) -> AttachAnswer {
    let run = Run {
        ports: fake,
        settings,
        pacer: &fake::pacer(),
        memory,
        deadline: fake.state().now + Duration::from_secs(60),
    };
    deliver(&run, &payload).await.unwrap()
}

#[tokio::test]
async fn a_session_that_someone_removed_is_put_back_and_one_that_we_removed_is_not_looked_for() {
    for event in ["trail-delete-session", "trail-detach-interface"] {
        let fake = Fake::with_one_tagged();
        let answer = attach(&fake, event_file(event)).await.unwrap();
        assert_eq!(answer.answer.created.len(), 1, "{event}");
    }
    let fake = Fake::with_one_tagged();
    let mut event = event_file("trail-delete-session");
    event["detail"]["userIdentity"]["arn"] =
        json!("arn:aws:sts::123456789012:assumed-role/fleet-ReconcileRole-1A2B/fleet-reconcile");
    let answer = attach(&fake, event).await.unwrap();
    assert_eq!((answer.ignored, answer.answer.created.len()), (1, 0));
    assert!(fake.state().calls.is_empty());
}

#[tokio::test]
async fn a_detached_interface_is_released_though_its_event_does_not_name_it() {
    let fake = Fake::with_one_tagged();
    fake.state().interfaces[0].status = crate::interface::InterfaceStatus::Available;
    fake.state().sessions = vec![
        session("tms-1", ENI, 100, Some(fake::STACK)),
        session("tms-2", ENI, 7, None),
    ];
    attach(&fake, records(&["trail-detach-interface"]))
        .await
        .unwrap();
    assert_eq!(fake.sessions_of(ENI), [("tms-2".to_owned(), 7)]);
}

#[tokio::test]
async fn an_event_never_changes_what_another_event_of_any_kind_would_not() {
    // What is looked up is what is: of a stopped instance each event, whatever it says, removes the session.
    for event in ALL_EVENTS {
        let fake = Fake::with_one_tagged();
        fake.state().interfaces[0].instance.as_mut().unwrap().state = InstanceState::Stopped;
        fake.state().sessions = vec![session("tms-1", ENI, 100, Some(fake::STACK))];
        let answer = attach(&fake, records(&[event, event])).await.unwrap();
        assert_eq!(answer.answer.deleted.len(), 1, "{event}");
        assert!(
            fake.sessions_of(ENI).is_empty() && again(&answer).is_empty(),
            "{event}"
        );
    }
}

/// 30 s after the event `instance-running`.
fn half_a_minute_later() -> Option<Duration> {
    Some(Duration::from_secs(1_794_432_594 + 30))
}

#[tokio::test]
async fn what_is_not_visible_yet_comes_again_and_two_minutes_later_it_is_gone() {
    let fake = Fake::new(vec![]);
    fake.state().epoch = half_a_minute_later();
    let answer = attach(&fake, records(&["instance-running", "instance-terminated"]))
        .await
        .unwrap();
    assert_eq!(again(&answer), ["m-0"]);
    let bare = attach(&fake, event_file("instance-running")).await;
    assert!(bare.unwrap_err().to_string().contains("not visible yet"));
    fake.state().now = Duration::from_secs(90);
    let answer = attach(&fake, records(&["instance-running"])).await.unwrap();
    assert!(again(&answer).is_empty());
}

#[tokio::test]
async fn an_interface_that_is_described_before_a_create_finds_it_comes_again_while_it_is_new() {
    let fake = Fake::with_one_tagged();
    fake.state().epoch = half_a_minute_later();
    let other = tagged("eni-00000002", "i-00000002");
    fake.state().interfaces.push(other);
    fake.fail("create", refused("InvalidNetworkInterfaceID.NotFound"), 1);
    let mut second = event_file("instance-running");
    second["detail"]["instance-id"] = json!("i-00000002");
    let payload = json!({"Records": [
        record("m-0", &event_file("instance-running").to_string()), record("m-1", &second.to_string())]});
    let answer = attach(&fake, payload).await.unwrap();
    // Creates for events go by interface id backwards: the first call is that of the first message.
    assert_eq!(again(&answer), ["m-0"]);
    assert_eq!(answer.answer.skipped[0].reason, SkipReason::InterfaceGone);
}

#[tokio::test]
async fn an_instance_that_cannot_be_described_yet_comes_again_while_it_is_new() {
    let fake = Fake::with_one_tagged();
    fake.state().epoch = half_a_minute_later();
    fake.state().interfaces[0].instance = None;
    let answer = attach(&fake, records(&["instance-running"])).await.unwrap();
    assert_eq!(answer.answer.skipped[0].reason, SkipReason::InstanceUnknown);
    assert_eq!(again(&answer), ["m-0"]);
}

#[tokio::test]
async fn a_refusal_is_remembered_by_the_process_and_skipped_with_its_reason() {
    let fake = Fake::with_one_tagged();
    fake.fail("create", refused("NetworkInterfaceNotSupported"), 1);
    let (settings, memory) = (fake::settings(), Memory::default());
    let event = || event_file("instance-running");
    let first = attach_by(&fake, &settings, &memory, event()).await;
    assert_eq!(first.answer.failed.len(), 1);
    let second = attach_by(&fake, &settings, &memory, event()).await;
    assert_eq!(second.answer.skipped[0].reason, SkipReason::Refused);
    assert_eq!(fake.count("create"), 1);
    // Another instance type is another question.
    let resized = "m5.xlarge".to_owned();
    fake.state().interfaces[0]
        .instance
        .as_mut()
        .unwrap()
        .instance_type = resized;
    let third = attach_by(&fake, &settings, &memory, event()).await;
    assert_eq!(third.answer.created.len(), 1);
}

#[tokio::test]
async fn what_others_did_to_an_interface_is_not_remembered_against_it() {
    let fake = Fake::with_one_tagged();
    let full = "TrafficMirrorSessionsPerInterfaceLimitExceeded";
    fake.fail("create", refused(full), 1);
    let (settings, memory) = (fake::settings(), Memory::default());
    let event = || event_file("instance-running");
    attach_by(&fake, &settings, &memory, event()).await;
    let second = attach_by(&fake, &settings, &memory, event()).await;
    assert_eq!(second.answer.created.len(), 1);
}

#[tokio::test]
async fn while_the_stack_is_being_deleted_nothing_is_made() {
    let fake = Fake::with_one_tagged();
    fake.state().leaving = true;
    let answer = attach(&fake, records(&["instance-running"])).await.unwrap();
    assert_eq!(answer.answer.skipped[0].reason, SkipReason::StackLeaving);
    assert!(fake.state().sessions.is_empty() && again(&answer).is_empty());
}

#[tokio::test]
async fn the_time_from_the_first_event_to_the_session_is_told() {
    let fake = Fake::with_one_tagged();
    fake.state().epoch = half_a_minute_later();
    // The group's event says a later time: the first one counts.
    let answer = attach(&fake, records(&["instance-running", "asg-launch"]))
        .await
        .unwrap();
    assert_eq!(answer.latencies, [Duration::from_secs(30)]);
    let fake = Fake::with_one_tagged();
    let answer = attach(&fake, records(&["instance-running"])).await.unwrap();
    assert!(answer.latencies.is_empty(), "the time of day is not known");
}

/// An instance of a load balancer, a task, a load balancer of its own kind, and one that none of them is.
fn tied() -> Fake {
    let task = |eni: &str| {
        let mut task = fake::interface(eni, "i-1");
        (task.instance, task.instance_id) = (None, None);
        task.requester_managed = true;
        task.description = "arn:aws:ecs:us-east-1:123456789012:attachment/1f".to_owned();
        task
    };
    let mut alb = task("eni-00000003");
    alb.description = "ELB app/web/50dc6c495c0c9188".to_owned();
    let fake = Fake::new(vec![
        fake::interface("eni-00000001", "i-00000001"),
        task("eni-00000002"),
        alb,
        fake::interface("eni-00000004", "i-00000004"),
        task("eni-00000005"),
    ]);
    fake.state().balancers = vec![ClassicBalancer {
        name: "legacy".to_owned(),
        instances: vec![InstanceId::new("i-00000001"), InstanceId::new("i-00000009")],
    }];
    fake.state().tasks = [
        ("prod".to_owned(), vec![EniId::new("eni-00000002")]),
        ("dev".to_owned(), vec![EniId::new("eni-00000005")]),
    ]
    .into();
    fake
}

fn of_interfaces(enis: std::ops::RangeInclusive<u32>) -> Value {
    let mut event = event_file("trail-create-tags");
    let ids: Vec<_> = enis
        .map(|n| json!({"resourceId": format!("eni-{n:08}")}))
        .collect();
    event["detail"]["requestParameters"] = json!({"resourcesSet": {"items": ids}});
    event
}

#[tokio::test]
async fn terms_that_ask_other_services_select_what_those_say_and_ask_no_more_than_they_must() {
    for (selection, made, asked) in [
        ("elb:legacy", vec!["eni-00000001"], vec!["balancers"]),
        ("ecs:prod", vec!["eni-00000002"], vec!["tasks"]),
        ("ecs:p*", vec!["eni-00000002"], vec!["clusters", "tasks"]),
        ("ecs:none", vec![], vec!["tasks"]),
        ("elb:app/web", vec!["eni-00000003"], vec![]),
        (
            "vpc:vpc-1, !ecs:*, !elb:legacy",
            vec!["eni-00000004"],
            vec!["balancers", "clusters", "tasks", "tasks"],
        ),
    ] {
        let fake = tied();
        let mut settings = fake::settings();
        settings.selection = selection.parse().unwrap();
        let answer = attach_by(&fake, &settings, &Memory::default(), of_interfaces(1..=5)).await;
        let enis: Vec<_> = answer
            .answer
            .created
            .iter()
            .map(|t| t.eni.as_str())
            .collect();
        assert_eq!(enis, made, "{selection}");
        let calls = fake.state().calls.clone();
        let others = ["balancers", "clusters", "tasks"];
        let calls: Vec<_> = calls
            .iter()
            .filter(|c| others.contains(&c.as_str()))
            .collect();
        assert_eq!(calls, asked, "{selection}");
    }
    // Where no interface is a task's, ECS is not asked.
    let fake = tied();
    let mut settings = fake::settings();
    settings.selection = "ecs:prod, tag:a".parse().unwrap();
    attach_by(&fake, &settings, &Memory::default(), of_interfaces(1..=1)).await;
    assert_eq!(fake.count("tasks"), 0);
}

#[tokio::test]
async fn a_term_that_cannot_be_looked_up_changes_nothing_and_its_messages_come_again() {
    let fake = tied();
    fake.state().sessions = vec![session("tms-1", "eni-00000001", 100, Some(fake::STACK))];
    let mut settings = fake::settings();
    settings.selection = "elb:legacy".parse().unwrap();
    fake.fail("balancers", refused("AccessDenied"), 1);
    let payload = json!({"Records": [record("m-0", &of_interfaces(1..=5).to_string())]});
    let answer = attach_by(&fake, &settings, &Memory::default(), payload).await;
    assert_eq!(again(&answer), ["m-0"]);
    assert_eq!(fake.state().sessions.len(), 1);
}

#[tokio::test]
async fn the_interface_of_a_mirror_target_is_left_out() {
    let fake = Fake::with_one_tagged();
    fake.state().mirror_targets = vec![EniId::new(ENI)];
    let answer = attach(&fake, event_file("instance-running")).await.unwrap();
    assert_eq!(answer.answer.skipped[0].reason, SkipReason::MirrorTarget);
    assert_eq!(fake.count("create"), 0);
}
