use super::*;
use crate::fake::{self, Fake, refused, session, tagged};
use crate::memory::Memory;
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
        memory: &Memory::default(),
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

/// A policy that allows by tag does not know a session that is gone, and neither does the answer.
#[tokio::test]
async fn a_session_that_is_gone_and_so_not_allowed_to_be_changed_counts_as_gone() {
    let fake = Fake::with_one_tagged();
    let mut drifted = session("tms-1", "eni-0a1b2c3d4e5f60718", 100, Some(fake::STACK));
    drifted.vni = Some(1);
    let unselected = session("tms-2", "eni-2", 100, Some(fake::STACK));
    for call in ["modify", "delete"] {
        fake.fail(call, refused("UnauthorizedOperation"), 1);
    }
    let seen = [drifted, unselected];
    let outcome = converge_seen(&fake, &seen, &fake::pacer(), MINUTE).await;
    assert!(outcome.answer.failed.is_empty());
    assert_eq!(outcome.answer.created.len(), 1);
    assert_eq!(outcome.answer.deleted.len(), 1);
}

#[tokio::test]
async fn a_change_that_is_not_allowed_fails_where_the_session_is_there() {
    let fake = Fake::with_one_tagged();
    let mut drifted = session("tms-1", "eni-0a1b2c3d4e5f60718", 100, Some(fake::STACK));
    drifted.vni = Some(1);
    fake.state().sessions = vec![drifted, session("tms-2", "eni-2", 100, Some(fake::STACK))];
    for call in ["modify", "delete"] {
        fake.fail(call, refused("UnauthorizedOperation"), 1);
    }
    let outcome = converge(&fake).await;
    assert_eq!(outcome.answer.failed.len(), 2);
    assert!(outcome.retryable.is_empty());
    assert_eq!((fake.count("modify"), fake.count("delete")), (1, 1));
    assert_eq!(fake.state().sessions.len(), 2);
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

#[tokio::test]
async fn the_wait_before_a_retry_lies_between_half_and_the_whole() {
    for (hurry, waited) in [(0.0, 1000), (0.5, 750), (1.0, 500)] {
        let fake = Fake::with_one_tagged();
        fake.state().hurry = hurry;
        fake.fail("create", refused("RequestLimitExceeded"), 1);
        converge(&fake).await;
        assert_eq!(fake.now(), Duration::from_millis(waited), "{hurry}");
    }
}

#[test]
fn a_random_number_is_drawn_from_a_token_where_there_is_no_other() {
    struct Tokens(std::cell::Cell<u32>);
    // Not shared between threads here; the trait asks for it.
    struct Port(Mutex<Tokens>);
    impl Sessions for Port {
        async fn create(&self, _: NewSession<'_>) -> Result<SessionId, ApiError> {
            Err(refused("no"))
        }
        async fn modify(
            &self,
            _: &SessionId,
            _: SessionNumber,
            _: &crate::plan::SessionSpec,
        ) -> Result<(), ApiError> {
            Err(refused("no"))
        }
        async fn delete(&self, _: &SessionId) -> Result<(), ApiError> {
            Err(refused("no"))
        }
        fn token(&self) -> String {
            let tokens = self.0.lock().unwrap();
            tokens.0.set(tokens.0.get() + 1);
            format!("{:032x}", tokens.0.get())
        }
    }
    let port = Port(Mutex::new(Tokens(std::cell::Cell::new(0))));
    let drawn: Vec<f64> = (0..1000).map(|_| port.random()).collect();
    assert!(drawn.iter().all(|r| (0.0..=1.0).contains(r)));
    for tenth in 0..10 {
        let from = f64::from(tenth) / 10.0;
        let within = drawn.iter().filter(|r| (from..from + 0.1).contains(*r));
        let n = within.count();
        assert!((50..150).contains(&n), "{n} of 1,000 from {from}");
    }
}

/// 150 interfaces without a session, and somebody who makes ours on half of them while the first is waited for.
async fn beside_another(meanwhile: usize) -> (Fake, Outcome) {
    let fake = Fake::new(
        (0..150)
            .map(|n| tagged(&format!("eni-{n:03}"), &format!("i-{n:03}")))
            .collect(),
    );
    fake.state().sessions = (150 - meanwhile..150)
        .map(|n| {
            let (id, eni) = (format!("tms-x{n}"), format!("eni-{n:03}"));
            session(&id, &eni, 100, Some(fake::STACK))
        })
        .collect();
    let pacer = Mutex::new(Pacer::new(1.0, 1));
    let outcome = converge_seen(&fake, &[], &pacer, Duration::from_secs(600)).await;
    (fake, outcome)
}

#[tokio::test]
async fn a_plan_that_is_a_minute_old_is_made_anew_before_what_another_run_did_is_tried() {
    let (fake, outcome) = beside_another(80).await;
    assert_eq!(outcome.answer.created.len(), 70);
    assert!(outcome.answer.failed.is_empty() && outcome.retryable.is_empty());
    // Creates at 0 to 60 s by the old plan; then one look, which knows of the 80.
    assert_eq!((fake.count("create"), fake.count("sessions")), (70, 1));
    assert_eq!(fake.state().sessions.len(), 150);
}

#[tokio::test]
async fn a_long_run_ends_when_the_stack_is_deleted() {
    let fake = Fake::new(
        (0..100)
            .map(|n| tagged(&format!("eni-{n:03}"), &format!("i-{n:03}")))
            .collect(),
    );
    let pacer = Mutex::new(Pacer::new(1.0, 1));
    // Executed by a plan that was made before.
    let run = converge_seen(&fake, &[], &pacer, Duration::from_secs(600));
    let deletion = async {
        while fake.now() < Duration::from_secs(10) {
            tokio::task::yield_now().await;
        }
        fake.state().leaving = true;
    };
    let (outcome, ()) = tokio::join!(run, deletion);
    let left = |s: &&Skipped| s.reason == SkipReason::StackLeaving;
    assert_eq!(
        outcome.answer.skipped.iter().filter(left).count(),
        100 - outcome.answer.created.len()
    );
    assert!(fake.now() <= Duration::from_secs(13), "{:?}", fake.now());
    assert!(outcome.answer.created.len() >= 10);
}
