use super::*;
use crate::fake::{self, Fake, event_file, refused, session, tagged};
use crate::ports::Clock;

async fn custom_until(
    fake: &Fake,
    settings: Result<&Settings, &SettingsError>,
    request: &Value,
    deadline: u64,
) -> Result<Value, String> {
    let custom = Custom {
        ports: fake,
        settings,
        teardown: Teardown {
            stack: crate::id::StackArn::new(fake::STACK),
            mutations_per_second: 1.0,
        },
        pacer: &fake::pacer(),
        deadline: Duration::from_secs(deadline),
    };
    custom.handle(request).await
}

async fn custom(fake: &Fake, request: &Value) -> Value {
    custom_until(fake, Ok(&fake::settings()), request, 600)
        .await
        .unwrap();
    the_answer(fake)
}

/// The one answer that CloudFormation got.
fn the_answer(fake: &Fake) -> Value {
    let answers = &fake.state().answers;
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].0, "http://127.0.0.1:1/response");
    answers[0].1.clone()
}

fn ours(n: usize) -> Vec<Session> {
    (0..n)
        .map(|i| {
            session(
                &format!("tms-{i}"),
                &format!("eni-{i}"),
                100,
                Some(fake::STACK),
            )
        })
        .collect()
}

#[tokio::test]
async fn create_and_update_mirror_what_runs_and_answer_under_the_constant_id() {
    for file in ["custom-create", "custom-update"] {
        let fake = Fake::with_one_tagged();
        let request = event_file(file);
        let answer = custom(&fake, &request).await;
        assert_eq!(answer["Status"], "SUCCESS", "{file}");
        assert_eq!(answer["PhysicalResourceId"], "mirrorfleet-sessions");
        for key in ["StackId", "RequestId", "LogicalResourceId"] {
            assert_eq!(answer[key], request[key], "{file}");
        }
        assert_eq!(answer["Data"]["Created"], 1);
        assert_eq!(fake.state().sessions.len(), 1);
    }
}

#[tokio::test]
async fn a_session_that_fails_never_fails_the_stack() {
    let fake = Fake::new(vec![tagged("eni-1", "i-1"), tagged("eni-2", "i-2")]);
    fake.fail("create", refused("TrafficMirrorSessionLimitExceeded"), 1);
    let answer = custom(&fake, &event_file("custom-create")).await;
    assert_eq!(
        (&answer["Status"], &answer["Data"]["Failed"]),
        (&json!("SUCCESS"), &json!(1))
    );

    let fake = Fake::with_one_tagged();
    fake.fail("interfaces", refused("RequestLimitExceeded"), 1);
    assert_eq!(
        custom(&fake, &event_file("custom-create")).await["Status"],
        "SUCCESS"
    );
}

#[tokio::test]
async fn settings_that_cannot_be_used_fail_a_create_with_their_line_and_not_a_delete() {
    let error = SettingsError {
        variable: "MIRRORFLEET_SELECTION",
        parameter: "Selection",
        what: "column 1: no".to_owned(),
    };
    let fake = Fake::new(vec![]);
    custom_until(&fake, Err(&error), &event_file("custom-create"), 600)
        .await
        .unwrap();
    let answer = the_answer(&fake);
    assert_eq!(answer["Status"], "FAILED");
    assert_eq!(
        answer["Reason"],
        "Selection (MIRRORFLEET_SELECTION): column 1: no"
    );

    let fake = Fake::new(vec![]);
    fake.state().sessions = ours(2);
    custom_until(&fake, Err(&error), &event_file("custom-delete"), 600)
        .await
        .unwrap();
    assert_eq!(the_answer(&fake)["Status"], "SUCCESS");
    assert!(fake.state().sessions.is_empty());
}

#[tokio::test]
async fn delete_removes_ours_alone_and_answers_after_two_empty_listings() {
    let fake = Fake::new(vec![]);
    fake.state().sessions = ours(5);
    fake.state()
        .sessions
        .push(session("tms-x", "eni-0", 7, None));
    fake.state()
        .sessions
        .push(session("tms-y", "eni-0", 8, Some("arn:of:another:stack")));
    let answer = custom(&fake, &event_file("custom-delete")).await;
    assert_eq!(
        (&answer["Status"], &answer["Data"]["Deleted"]),
        (&json!("SUCCESS"), &json!(5))
    );
    assert_eq!(fake.state().sessions.len(), 2);
    assert_eq!(
        fake.count("sessions"),
        3,
        "one that shows them, two that are empty"
    );
}

#[tokio::test]
async fn delete_for_another_id_succeeds_and_does_nothing() {
    for physical in [
        Some("mirrorfleet-sessions-v2"),
        Some("other-MirrorSessions-1ABC"),
        None,
    ] {
        let fake = Fake::new(vec![]);
        fake.state().sessions = ours(1);
        let mut request = event_file("custom-delete");
        match physical {
            Some(id) => request["PhysicalResourceId"] = json!(id),
            None => drop(
                request
                    .as_object_mut()
                    .unwrap()
                    .remove("PhysicalResourceId"),
            ),
        }
        let answer = custom(&fake, &request).await;
        assert_eq!(answer["Status"], "SUCCESS");
        assert_eq!(
            answer["PhysicalResourceId"],
            physical.unwrap_or("mirrorfleet-sessions")
        );
        assert_eq!(fake.state().sessions.len(), 1);
        assert_eq!(fake.count("sessions"), 0);
    }
}

#[tokio::test]
async fn delete_under_the_id_that_cloudformation_made_up_removes_what_the_cancelled_creation_made()
{
    let fake = Fake::new(vec![]);
    fake.state().sessions = ours(1);
    let mut request = event_file("custom-delete");
    let stack = request["StackId"].as_str().unwrap();
    let name = stack.split('/').nth(1).unwrap();
    let made_up = format!(
        "{name}-{}-1X2Y3Z",
        request["LogicalResourceId"].as_str().unwrap()
    );
    request["PhysicalResourceId"] = json!(made_up);
    let answer = custom(&fake, &request).await;
    assert_eq!(answer["Status"], "SUCCESS");
    assert_eq!(answer["PhysicalResourceId"], json!(made_up));
    assert_eq!(fake.state().sessions.len(), 0);
}

#[tokio::test]
async fn a_session_that_appears_late_is_removed_too() {
    let fake = Fake::new(vec![]);
    fake.state().sessions = ours(1);
    fake.state().unseen = 1;
    let answer = custom(&fake, &event_file("custom-delete")).await;
    assert_eq!(answer["Status"], "SUCCESS");
    assert!(fake.state().sessions.is_empty());
}

#[tokio::test]
async fn nothing_is_seen_for_longer_than_anybody_makes_sessions_who_does_not_know_of_the_removal() {
    let fake = Fake::new(vec![]);
    custom(&fake, &event_file("custom-delete")).await;
    let turn = Pacer::for_poller(1.0).wait(Duration::ZERO);
    assert!(fake.now() > STAYS_FOR + turn, "{:?}", fake.now());
}

#[tokio::test]
async fn a_removal_that_one_run_is_too_short_for_goes_on_in_another() {
    let fake = Fake::new(vec![]);
    fake.state().sessions = ours(40);
    let mut request = event_file("custom-delete");
    let mut runs = 0;
    // One a second and five at once: a run of 15 s removes about 17, never all.
    loop {
        runs += 1;
        let deadline = fake.now().as_secs() + 15;
        custom_until(&fake, Ok(&fake::settings()), &request, deadline)
            .await
            .unwrap();
        let next = fake.state().invoked.pop();
        match next {
            Some(next) => request = next,
            None => break,
        }
        assert!(
            fake.state().answers.is_empty(),
            "who goes on does not answer"
        );
        assert!(runs < 10);
    }
    assert!(runs > 2, "{runs}");
    assert_eq!(the_answer(&fake)["Status"], "SUCCESS");
    assert!(fake.state().sessions.is_empty());
}

#[tokio::test]
async fn a_removal_that_cannot_go_on_fails_with_the_count() {
    let fake = Fake::new(vec![]);
    fake.state().sessions = ours(40);
    fake.state().invoke_error = Some("AccessDenied".to_owned());
    custom_until(
        &fake,
        Ok(&fake::settings()),
        &event_file("custom-delete"),
        15,
    )
    .await
    .unwrap();
    let answer = the_answer(&fake);
    let left = fake.state().sessions.len();
    assert_eq!(answer["Status"], "FAILED");
    let reason = answer["Reason"].as_str().unwrap();
    assert!(
        reason.starts_with(&format!("{left} mirror sessions of this stack are left")),
        "{reason}"
    );
    assert!(
        reason.contains("AccessDenied") && reason.ends_with("delete the stack again"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_removal_that_is_not_allowed_fails_at_once_and_does_not_start_itself_for_ever() {
    let fake = Fake::new(vec![]);
    fake.state().sessions = ours(1);
    fake.fail("delete", refused("UnauthorizedOperation"), 1000);
    let answer = custom(&fake, &event_file("custom-delete")).await;
    assert_eq!(answer["Status"], "FAILED");
    assert!(
        answer["Reason"]
            .as_str()
            .unwrap()
            .contains("UnauthorizedOperation")
    );
    assert!(fake.state().invoked.is_empty());

    let fake = Fake::new(vec![]);
    fake.fail("sessions", refused("UnauthorizedOperation"), 1000);
    assert_eq!(
        custom(&fake, &event_file("custom-delete")).await["Status"],
        "FAILED"
    );
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_answered_too() {
    for (key, value, reason) in [
        ("RequestType", json!("Explode"), "RequestType \"Explode\""),
        ("StackId", json!(null), "lacks RequestType, StackId"),
    ] {
        let fake = Fake::new(vec![]);
        let mut request = event_file("custom-create");
        request[key] = value;
        let answer = custom(&fake, &request).await;
        assert_eq!(answer["Status"], "FAILED");
        assert!(
            answer["Reason"].as_str().unwrap().contains(reason),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn the_answer_is_sent_again_until_it_arrives() {
    let fake = Fake::with_one_tagged();
    fake.state().put_failures = 4;
    assert_eq!(
        custom(&fake, &event_file("custom-create")).await["Status"],
        "SUCCESS"
    );

    let fake = Fake::with_one_tagged();
    fake.state().put_failures = 5;
    let settings = fake::settings();
    let error = custom_until(&fake, Ok(&settings), &event_file("custom-create"), 600)
        .await
        .unwrap_err();
    assert!(
        error.contains("could not be answered: connection refused"),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_never_exceeds_what_cloudformation_takes() {
    let what = "\"\\\n".repeat(5000);
    let error = SettingsError {
        variable: "V",
        parameter: "P",
        what,
    };
    let fake = Fake::new(vec![]);
    let body = custom_until(&fake, Err(&error), &event_file("custom-create"), 600)
        .await
        .unwrap();
    assert!(body.to_string().len() <= 4096, "{}", body.to_string().len());
}

// ---- The layer's versions ----------------------------------------------------------------------------------------------

fn of_the_layer(file: &str, physical: Option<&str>) -> Value {
    let mut request = event_file(file);
    request["ResourceType"] = json!("Custom::LayerVersions");
    request["LogicalResourceId"] = json!("LayerVersions");
    request["ResourceProperties"]["LayerName"] = json!("fleet-rebuilder");
    if let Some(id) = physical {
        request["PhysicalResourceId"] = json!(id);
    }
    request
}

fn with_layer() -> Fake {
    let fake = Fake::with_one_tagged();
    fake.state()
        .layers
        .insert("fleet-rebuilder".to_owned(), (1..=3).collect());
    fake.state().sessions = ours(2);
    fake
}

#[tokio::test]
async fn the_layers_resource_does_nothing_until_it_is_deleted() {
    for file in ["custom-create", "custom-update"] {
        let fake = with_layer();
        let answer = custom(&fake, &of_the_layer(file, None)).await;
        assert_eq!(answer["Status"], "SUCCESS", "{file}");
        assert_eq!(answer["PhysicalResourceId"], "mirrorfleet-layer-versions");
        assert_eq!(fake.state().layers["fleet-rebuilder"].len(), 3);
        assert_eq!(fake.state().sessions.len(), 2);
    }
}

#[tokio::test]
async fn its_deletion_removes_all_versions_and_no_session() {
    let made_up = "fleet-LayerVersions-1A2B3C4D5E6F7";
    for physical in ["mirrorfleet-layer-versions", made_up] {
        let fake = with_layer();
        let answer = custom(&fake, &of_the_layer("custom-delete", Some(physical))).await;
        assert_eq!(
            (&answer["Status"], &answer["Data"]["Deleted"]),
            (&json!("SUCCESS"), &json!(3))
        );
        assert_eq!(answer["PhysicalResourceId"], physical);
        assert!(fake.state().layers["fleet-rebuilder"].is_empty());
        assert_eq!(fake.state().sessions.len(), 2);
    }
    // The sessions' id is another resource's.
    let fake = with_layer();
    let answer = custom(&fake, &of_the_layer("custom-delete", Some(PHYSICAL_ID))).await;
    assert_eq!(answer["Status"], "SUCCESS");
    assert_eq!(fake.state().layers["fleet-rebuilder"].len(), 3);
}

#[tokio::test]
async fn the_deletion_of_the_sessions_leaves_the_layer() {
    let fake = with_layer();
    custom(&fake, &event_file("custom-delete")).await;
    assert_eq!(fake.state().layers["fleet-rebuilder"].len(), 3);
    assert!(fake.state().sessions.is_empty());
}

#[tokio::test]
async fn a_layer_that_is_no_name_is_refused_before_anything_is_asked() {
    for name in [
        json!(""),
        json!("arn:aws:lambda:r:1:layer:l"),
        json!("a/../b"),
        json!(7),
        Value::Null,
    ] {
        for file in ["custom-create", "custom-delete"] {
            let fake = with_layer();
            let mut request = of_the_layer(file, Some(LAYER_PHYSICAL_ID));
            request["ResourceProperties"]["LayerName"] = name.clone();
            let answer = custom(&fake, &request).await;
            assert_eq!(answer["Status"], "FAILED", "{name}");
            assert_eq!(fake.count("layer_versions"), 0);
        }
    }
}

#[tokio::test]
async fn versions_that_stay_fail_the_removal_with_their_number() {
    let fake = with_layer();
    fake.fail(
        "delete_layer_version",
        refused("AccessDeniedException"),
        100,
    );
    let answer = custom(
        &fake,
        &of_the_layer("custom-delete", Some(LAYER_PHYSICAL_ID)),
    )
    .await;
    assert_eq!(answer["Status"], "FAILED");
    let reason = answer["Reason"].as_str().unwrap();
    assert!(
        reason.starts_with("3 versions of the layer fleet-rebuilder are left"),
        "{reason}"
    );
}
