use super::*;
use crate::fake::{self, Fake, refused, session, tagged};
use crate::plan::Session;
use crate::verdict::{AnalyzerAt, desire};

const MINUTE: Duration = Duration::from_secs(60);

/// Converges all interfaces of the fake, by what the sessions were at `seen`.
async fn converge_seen(
    fake: &Fake,
    seen: &[Session],
    pacer: &Mutex<Pacer>,
    deadline: Duration,
) -> Outcome {
    let settings = fake::settings();
    let interfaces = fake.state().interfaces.clone();
    let desired = desire(
        &settings,
        &interfaces,
        &AnalyzerAt::Addresses(Vec::new()),
        true,
    );
    let plan = plan(
        &desired,
        seen,
        &Limits {
            per_interface: SESSIONS_PER_INTERFACE,
            per_account: None,
        },
    );
    let run = Run {
        ports: fake,
        settings: &settings,
        pacer,
        deadline,
    };
    run.execute(&desired, plan).await
}

async fn converge(fake: &Fake) -> Outcome {
    let seen = fake.state().sessions.clone();
    converge_seen(fake, &seen, &fake::pacer(), MINUTE).await
}

#[tokio::test]
async fn a_throttled_create_is_tried_again_with_the_same_token() {
    let fake = Fake::with_one_tagged();
    fake.fail("create", refused("RequestLimitExceeded"), 2);
    let outcome = converge(&fake).await;
    assert_eq!(outcome.answer.created.len(), 1);
    assert_eq!((fake.count("create"), fake.count("token")), (3, 1));
    assert_eq!(
        fake.now(),
        Duration::from_secs(3),
        "1 s and 2 s of back-off"
    );
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_makes_one_session() {
    let fake = Fake::with_one_tagged();
    fake.lose_answer("create");
    let outcome = converge(&fake).await;
    assert_eq!(outcome.answer.created.len(), 1);
    assert_eq!(fake.state().sessions.len(), 1);
}

#[tokio::test]
async fn a_create_that_stays_throttled_fails_and_may_be_retried_and_its_neighbour_goes_on() {
    let fake = Fake::new(vec![tagged("eni-1", "i-1"), tagged("eni-2", "i-2")]);
    fake.fail("create", refused("RequestLimitExceeded"), 4);
    let outcome = converge(&fake).await;
    assert_eq!(outcome.answer.failed.len(), 1);
    assert!(
        outcome.answer.failed[0]
            .error
            .starts_with("RequestLimitExceeded")
    );
    assert_eq!(outcome.retryable, [EniId::new("eni-1")].into());
    assert_eq!(outcome.answer.created[0].eni.as_str(), "eni-2");
}

#[tokio::test]
async fn a_number_that_someone_took_meanwhile_is_passed_over() {
    let fake = Fake::with_one_tagged();
    fake.state().sessions = vec![session("tms-x", "eni-0a1b2c3d4e5f60718", 100, None)];
    let outcome = converge_seen(&fake, &[], &fake::pacer(), MINUTE).await;
    assert_eq!(outcome.answer.created[0].number.get(), 101);
    assert!(outcome.answer.failed.is_empty());
}

#[tokio::test]
async fn ours_that_another_run_made_meanwhile_is_enough() {
    let fake = Fake::with_one_tagged();
    fake.state().sessions = vec![session(
        "tms-x",
        "eni-0a1b2c3d4e5f60718",
        100,
        Some(fake::STACK),
    )];
    let outcome = converge_seen(&fake, &[], &fake::pacer(), MINUTE).await;
    assert_eq!(outcome, Outcome::default());
    assert_eq!(fake.state().sessions.len(), 1);
}

#[tokio::test]
async fn ours_that_the_listing_does_not_show_yet_is_waited_for() {
    let fake = Fake::with_one_tagged();
    fake.state().sessions = vec![session(
        "tms-x",
        "eni-0a1b2c3d4e5f60718",
        100,
        Some(fake::STACK),
    )];
    fake.state().unseen = 1;
    let outcome = converge_seen(&fake, &[], &fake::pacer(), MINUTE).await;
    assert_eq!(outcome, Outcome::default());
    assert_eq!(fake.state().sessions.len(), 1);
    assert!(fake.now() > Duration::ZERO);
}

#[tokio::test]
async fn a_refusal_that_never_explains_itself_ends_after_a_few_looks() {
    let fake = Fake::with_one_tagged();
    fake.fail("create", refused("InvalidParameterValue"), 100);
    let outcome = converge(&fake).await;
    assert!(
        outcome.answer.failed[0]
            .error
            .starts_with("InvalidParameterValue")
    );
    assert_eq!(fake.count("create"), 4);
    assert_eq!(outcome.retryable.len(), 1);
}

#[tokio::test]
async fn a_quota_or_a_permanent_refusal_is_reported_and_not_retried() {
    for code in [
        "TrafficMirrorSourcesPerTargetLimitExceeded",
        "NetworkInterfaceNotSupported",
        "UnauthorizedOperation",
    ] {
        let fake = Fake::new(vec![tagged("eni-1", "i-1"), tagged("eni-2", "i-2")]);
        fake.fail("create", refused(code), 1);
        let outcome = converge(&fake).await;
        assert_eq!(outcome.answer.failed.len(), 1, "{code}");
        assert!(outcome.retryable.is_empty(), "{code}");
        assert_eq!(outcome.answer.created.len(), 1, "{code}: the rest goes on");
        assert_eq!(fake.count("create"), 2, "{code}");
    }
}

#[tokio::test]
async fn once_the_account_is_full_no_further_create_is_tried() {
    let fake = Fake::new(
        (0..5)
            .map(|n| tagged(&format!("eni-{n}"), &format!("i-{n}")))
            .collect(),
    );
    fake.fail("create", refused("TrafficMirrorSessionLimitExceeded"), 1);
    let outcome = converge(&fake).await;
    assert_eq!(fake.count("create"), 1);
    assert_eq!(outcome.answer.failed.len(), 1);
    assert!(
        outcome
            .answer
            .skipped
            .iter()
            .all(|s| s.reason == SkipReason::AccountQuota)
    );
    assert_eq!(outcome.answer.skipped.len(), 4);
}

#[tokio::test]
async fn an_interface_that_went_meanwhile_is_a_skip() {
    let fake = Fake::with_one_tagged();
    fake.fail("create", refused("InvalidNetworkInterfaceID.NotFound"), 1);
    let outcome = converge(&fake).await;
    assert_eq!(outcome.answer.skipped[0].reason, SkipReason::InterfaceGone);
    assert!(outcome.answer.failed.is_empty());
}

#[tokio::test]
async fn a_session_that_is_gone_already_counts_as_deleted() {
    let fake = Fake::new(vec![]);
    let seen = [session("tms-1", "eni-1", 100, Some(fake::STACK))];
    let outcome = converge_seen(&fake, &seen, &fake::pacer(), MINUTE).await;
    assert_eq!(outcome.answer.deleted.len(), 1);
    assert!(outcome.answer.failed.is_empty());
}

#[tokio::test]
async fn a_session_that_someone_removed_while_it_was_to_be_changed_is_made_anew() {
    let fake = Fake::with_one_tagged();
    let mut drifted = session("tms-1", "eni-0a1b2c3d4e5f60718", 100, Some(fake::STACK));
    drifted.vni = Some(1);
    let outcome = converge_seen(&fake, &[drifted], &fake::pacer(), MINUTE).await;
    assert_eq!(
        (outcome.answer.modified.len(), outcome.answer.created.len()),
        (0, 1)
    );
}

#[tokio::test]
async fn changes_keep_the_pace_and_what_does_not_fit_is_left_to_the_sweep() {
    let fake = Fake::new(
        (0..10)
            .map(|n| tagged(&format!("eni-{n}"), &format!("i-{n}")))
            .collect(),
    );
    let pacer = Mutex::new(Pacer::new(0.5, 1));
    // One at once, then one in 2 s; the last one must begin 3 s before the end: at 0, 2, 4 and 6 s.
    let outcome = converge_seen(&fake, &[], &pacer, Duration::from_secs(10)).await;
    assert_eq!(outcome.answer.created.len(), 4);
    assert_eq!(fake.now(), Duration::from_secs(6));
    assert!(
        outcome
            .answer
            .skipped
            .iter()
            .all(|s| s.reason == SkipReason::LeftToSweep)
    );
    assert_eq!(outcome.answer.skipped.len(), 6);
    assert!(outcome.retryable.is_empty());
}
