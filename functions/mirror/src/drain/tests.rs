use super::*;
use crate::fake::event_file;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

const GROUP: &str = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/fleet/1";
const SECOND: Duration = Duration::from_secs(1);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn over() -> ApiError {
    ApiError {
        class: ErrorClass::Gone,
        code: "ValidationError".to_owned(),
        message: "No active Lifecycle Action found with instance ID i-1".to_owned(),
    }
}

fn action(instance: &str) -> LifecycleAction {
    LifecycleAction {
        group: "rebuilders".to_owned(),
        hook: "leave".to_owned(),
        token: format!("token-of-{instance}"),
        instance: InstanceId::new(instance),
    }
}

// ---- What an event says ------------------------------------------------------------------------------------------

#[test]
fn the_published_event_names_the_action() {
    assert_eq!(
        LifecycleAction::parse(&event_file("drain-terminate")),
        Ok(LifecycleAction {
            group: "fleet-RebuilderGroup-1A2B3C4D5E6F".to_owned(),
            hook: "fleet-RebuilderLeaves-6F5E4D3C2B1A".to_owned(),
            token: "87654321-4321-4321-4321-210987654321".to_owned(),
            instance: InstanceId::new("i-1234567890abcdef0"),
        })
    );
}

#[test]
fn an_event_that_is_none_is_refused_in_one_line() {
    let refused = |event: &Value| LifecycleAction::parse(event).unwrap_err().to_string();
    assert!(refused(&event_file("instance-terminated")).contains("State-change"));
    assert!(refused(&serde_json::json!([])).contains("of kind \"none\""));
    for key in [
        "AutoScalingGroupName",
        "LifecycleHookName",
        "LifecycleActionToken",
        "EC2InstanceId",
    ] {
        let mut event = event_file("drain-terminate");
        event["detail"][key] = "".into();
        let line = refused(&event);
        assert!(line.contains(key) && !line.contains('\n'), "{line}");
    }
    let mut event = event_file("drain-terminate");
    event["detail"]["EC2InstanceId"] = "web-1".into();
    assert!(refused(&event).contains("\"web-1\" is no instance id"));
}

// ---- Against a load balancer and a group of memory ----------------------------------------------------------------

#[derive(Default)]
struct World {
    now: Duration,
    /// What each call takes.
    call: Duration,
    /// The deregistration delay.
    delay: Duration,
    /// Since when each instance drains; `None`: registered.
    targets: BTreeMap<String, Option<Duration>>,
    /// When the hook lets each action go on by itself.
    actions: BTreeMap<String, Duration>,
    /// When each action went on, and whether its instance was still a target then.
    went_on: BTreeMap<String, (Duration, bool)>,
    log: Vec<(Duration, &'static str)>,
    /// Errors for the calls of a name; the last one stays for ever where `true`.
    errors: BTreeMap<&'static str, (Vec<ApiError>, bool)>,
    /// The calls of this name are carried out, and their first answer is lost.
    lost: Option<&'static str>,
    /// Auto Scaling deregisters an instance only after its action has gone on.
    late: bool,
}

/// The hook's heartbeat time-out in the template.
const HOOK: Duration = Duration::from_secs(300);

struct Lab(Mutex<World>);

impl Lab {
    fn new(change: impl FnOnce(&mut World)) -> Self {
        let mut world = World {
            call: Duration::from_millis(20),
            delay: secs(30),
            ..World::default()
        };
        world.targets.insert("i-1".to_owned(), None);
        world.actions.insert("i-1".to_owned(), HOOK);
        change(&mut world);
        Self(Mutex::new(world))
    }

    fn leave(&self) -> Left {
        let leaving = action("i-1");
        let run = run(self, GROUP, &leaving, secs(885));
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(run)
    }

    fn count(&self, call: &str) -> usize {
        let world = self.0.lock().unwrap();
        world.log.iter().filter(|(_, name)| *name == call).count()
    }

    fn went_on(&self) -> Option<(Duration, bool)> {
        let mut world = self.0.lock().unwrap();
        world.expire();
        world.went_on.get("i-1").copied()
    }

    /// A call: it takes its time, and fails when it is to.
    async fn call<T>(
        &self,
        name: &'static str,
        act: impl FnOnce(&mut World) -> Result<T, ApiError> + Send,
    ) -> Result<T, ApiError> {
        tokio::task::yield_now().await;
        let mut world = self.0.lock().unwrap();
        let now = world.now;
        world.log.push((now, name));
        world.now = now + world.call;
        world.expire();
        if let Some((errors, stays)) = world.errors.get_mut(name)
            && let Some(error) = errors.first().cloned()
        {
            if errors.len() > 1 || !*stays {
                errors.remove(0);
            }
            return Err(error);
        }
        let answer = act(&mut world);
        if world.lost == Some(name) {
            world.lost = None;
            return Err(ApiError::unanswered("connection reset"));
        }
        answer
    }
}

impl World {
    fn target(&self, instance: &str) -> Target {
        match self.targets.get(instance) {
            None => Target::Gone,
            Some(None) => Target::Registered,
            Some(Some(since)) if self.now < *since + self.delay => Target::Draining,
            Some(Some(_)) => Target::Gone,
        }
    }

    /// The hook's time is up.
    fn expire(&mut self) {
        let up: Vec<_> = self
            .actions
            .iter()
            .filter(|(_, at)| self.now >= **at)
            .map(|(i, _)| i.clone())
            .collect();
        for instance in up {
            self.go_on(&instance);
        }
    }

    fn go_on(&mut self, instance: &str) {
        let still = self.target(instance) != Target::Gone;
        self.actions.remove(instance);
        self.went_on.insert(instance.to_owned(), (self.now, still));
        if self.late {
            self.targets.insert(instance.to_owned(), Some(self.now));
        }
    }
}

impl Targets for Lab {
    async fn deregister(&self, group: &str, instance: &InstanceId) -> Result<(), ApiError> {
        assert_eq!(group, GROUP);
        self.call("deregister", |world| {
            let now = world.now;
            if let Some(since) = world.targets.get_mut(instance.as_str()) {
                since.get_or_insert(now);
            }
            Ok(())
        })
        .await
    }

    async fn target(&self, _: &str, instance: &InstanceId) -> Result<Target, ApiError> {
        self.call("look", |world| Ok(world.target(instance.as_str())))
            .await
    }
}

impl Lifecycle for Lab {
    async fn heartbeat(&self, action: &LifecycleAction) -> Result<(), ApiError> {
        self.call("heartbeat", |world| {
            let now = world.now;
            let until = world.actions.get_mut(action.instance.as_str());
            *until.ok_or_else(over)? = now + HOOK;
            Ok(())
        })
        .await
    }

    async fn complete(&self, action: &LifecycleAction) -> Result<(), ApiError> {
        self.call("complete", |world| {
            let instance = action.instance.as_str();
            if !world.actions.contains_key(instance) {
                return Err(over());
            }
            world.go_on(instance);
            Ok(())
        })
        .await
    }
}

impl Clock for Lab {
    fn now(&self) -> Duration {
        self.0.lock().unwrap().now
    }

    async fn sleep(&self, time: Duration) {
        tokio::task::yield_now().await;
        self.0.lock().unwrap().now += time;
    }
}

#[test]
fn the_termination_goes_on_a_moment_after_the_delay_when_the_flows_have_surely_moved() {
    let lab = Lab::new(|_| {});
    let left = lab.leave();
    assert_eq!((left.ended, left.error), (Ending::Drained, None));
    let (at, still) = lab.went_on().unwrap();
    assert!(
        !still && at >= secs(30) + SETTLE && at < secs(30) + SETTLE + POLL + SECOND,
        "{at:?}"
    );
    assert_eq!((lab.count("deregister"), lab.count("complete")), (1, 1));
}

#[test]
fn it_does_not_matter_in_which_order_auto_scaling_deregisters() {
    // Long before the hook, just before it, and only after it.
    for (since, late) in [(Some(0), false), (Some(80), false), (None, true)] {
        let lab = Lab::new(|w| {
            w.now = secs(90);
            w.actions.insert("i-1".to_owned(), secs(90) + HOOK);
            w.targets.insert("i-1".to_owned(), since.map(secs));
            w.late = late;
        });
        assert_eq!(lab.leave().ended, Ending::Drained, "{since:?} {late}");
        let (at, still) = lab.went_on().unwrap();
        let moved = since.map_or(secs(90), secs) + secs(30);
        assert!(!still && at >= moved, "{since:?} {late}");
        assert!(
            at <= moved.max(secs(90)) + SETTLE + POLL + SECOND,
            "{since:?} {at:?}"
        );
    }
}

#[test]
fn an_instance_that_is_no_target_does_not_wait() {
    let lab = Lab::new(|w| w.targets.clear());
    assert_eq!(lab.leave().ended, Ending::Drained);
    assert!(lab.went_on().unwrap().0 < SECOND);
    let gone = ApiError::answered(400, "TargetGroupNotFound", "no such group");
    let lab = Lab::new(|w| {
        w.errors.insert("deregister", (vec![gone.clone()], true));
        w.errors.insert("look", (vec![gone.clone()], true));
    });
    assert_eq!(lab.leave().ended, Ending::Drained);
    assert!(lab.went_on().unwrap().0 < SECOND);
}

#[test]
fn a_delay_longer_than_the_hook_is_waited_for_with_heartbeats() {
    let lab = Lab::new(|w| w.delay = secs(700));
    assert_eq!(lab.leave().ended, Ending::Drained);
    let (at, still) = lab.went_on().unwrap();
    assert!(
        !still && at >= secs(700) + SETTLE && at < secs(720),
        "{at:?}"
    );
    assert!((11..=13).contains(&lab.count("heartbeat")));
}

#[test]
fn a_delay_longer_than_the_function_ends_in_time() {
    let lab = Lab::new(|w| w.delay = secs(3600));
    assert_eq!(lab.leave().ended, Ending::Unmoved);
    let (at, still) = lab.went_on().unwrap();
    assert!(still && at >= secs(850) && at < secs(885), "{at:?}");
}

#[test]
fn the_same_event_again_changes_nothing() {
    let lab = Lab::new(|_| {});
    lab.leave();
    let first = lab.went_on();
    let left = lab.leave();
    assert_eq!(left.ended, Ending::Over);
    assert!(left.seconds < 1.0);
    assert_eq!(lab.went_on(), first);
    assert_eq!((lab.count("deregister"), lab.count("complete")), (1, 1));
}

#[test]
fn two_at_once_let_it_go_on_once() {
    let lab = Lab::new(|_| {});
    let leaving = action("i-1");
    let runs = async {
        let one = run(&lab, GROUP, &leaving, secs(885));
        let other = run(&lab, GROUP, &leaving, secs(885));
        tokio::join!(one, other)
    };
    let (one, other) = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(runs);
    let mut ended = [one.ended, other.ended];
    ended.sort_by_key(|e| *e == Ending::Over);
    assert_eq!(ended, [Ending::Drained, Ending::Over]);
    assert!(!lab.went_on().unwrap().1);
}

#[test]
fn a_lost_answer_to_the_last_call_is_no_failure() {
    let lab = Lab::new(|w| w.lost = Some("complete"));
    assert_eq!(lab.leave().ended, Ending::Drained);
    assert_eq!(lab.count("complete"), 2);
}

#[test]
fn a_refused_deregistration_does_not_keep_the_instance_for_ever() {
    let denied = ApiError::answered(403, "AccessDenied", "not authorized");
    let lab = Lab::new(|w| {
        w.errors.insert("deregister", (vec![denied], true));
    });
    let left = lab.leave();
    assert_eq!(left.ended, Ending::Unmoved);
    assert!(left.error.unwrap().contains("deregister: AccessDenied"));
    let (at, _) = lab.went_on().unwrap();
    assert!(at >= UNMOVED && at < UNMOVED + POLL, "{at:?}");
}

#[test]
fn where_nothing_is_permitted_the_hook_lets_it_go_on() {
    let denied = || vec![ApiError::answered(403, "AccessDenied", "not authorized")];
    let lab = Lab::new(|w| {
        for call in ["deregister", "look", "heartbeat", "complete"] {
            w.errors.insert(call, (denied(), true));
        }
    });
    assert_eq!(lab.leave().ended, Ending::NotCompleted);
    assert_eq!(lab.went_on().unwrap().0.as_secs(), HOOK.as_secs());
}

// ---- Whatever is answered -----------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy)]
enum Reply {
    Fine,
    Failed(ErrorClass),
    Unanswered,
    Over,
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        6 => Just(Reply::Fine),
        2 => Just(Reply::Failed(ErrorClass::Retry)),
        1 => Just(Reply::Failed(ErrorClass::Config)),
        1 => Just(Reply::Failed(ErrorClass::Unknown)),
        1 => Just(Reply::Unanswered),
        1 => Just(Reply::Over),
    ]
}

impl Reply {
    fn as_answer<T>(self, fine: T) -> Result<T, ApiError> {
        match self {
            Reply::Fine => Ok(fine),
            Reply::Failed(class) => Err(ApiError {
                class,
                code: "Odd".to_owned(),
                message: String::new(),
            }),
            Reply::Unanswered => Err(ApiError::unanswered("cut")),
            Reply::Over => Err(over()),
        }
    }
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        3 => Just(Target::Registered),
        5 => Just(Target::Draining),
        1 => Just(Target::Gone),
    ]
}

proptest! {
    /// Any answers at all, in any order, each after any time up to 8 s.
    #[test]
    fn it_ends_in_time_beats_in_time_and_never_lets_go_too_early(
        replies in prop::collection::vec((reply(), target(), 1u64..8_000), 1..200),
        deadline in 60u64..900,
    ) {
        let (mut now, deadline) = (Duration::ZERO, secs(deadline));
        let longest = Duration::from_secs(8);
        let mut drain = Drain::new(now, deadline);
        let mut script = replies.iter().cycle();
        let (mut heard, mut gone, mut seen_to_drain) = (now, false, false);
        let (mut steps, mut completed, mut finished) = (0, false, false);
        let ending = loop {
            steps += 1;
            prop_assert!(steps < 2_000, "no end");
            let step = drain.next(now);
            if let Step::End(ending) = step {
                break ending;
            }
            // However slow the calls: each of the others is due before the heartbeat at most once.
            prop_assert!(gone || now < deadline, "late: {:?}", now);
            if let Step::Wait(time) = step {
                prop_assert!(time > Duration::ZERO && time <= HEARTBEAT);
                now += time;
                continue;
            }
            if !completed {
                prop_assert!(now.saturating_sub(heard) <= HEARTBEAT + SETTLE + longest * 3, "no heartbeat since {:?}", heard);
            }
            let (reply, target, took) = script.next().unwrap();
            now += Duration::from_millis(*took);
            match step {
                Step::Heartbeat => {
                    heard = now;
                    drain.heartbeat(now, &reply.as_answer(()));
                    finished |= matches!(reply, Reply::Over);
                }
                Step::Deregister => drain.deregister(now, &reply.as_answer(())),
                Step::Look => {
                    let answer = reply.as_answer(*target);
                    match &answer {
                        Ok(target) => {
                            gone = *target == Target::Gone;
                            seen_to_drain = *target == Target::Draining;
                        }
                        Err(e) => gone |= e.class == ErrorClass::Gone,
                    }
                    drain.look(now, &answer);
                }
                Step::Complete => {
                    let began = now - Duration::from_millis(*took);
                    let may = gone
                        || began + LAST_WORDS >= deadline
                        || (!seen_to_drain && began >= UNMOVED);
                    prop_assert!(may, "let go too early, at {:?}", began);
                    completed = true;
                    drain.complete(now, &reply.as_answer(()));
                    finished |= matches!(reply, Reply::Fine | Reply::Over);
                }
                Step::Wait(_) | Step::End(_) => unreachable!(),
            }
        };
        prop_assert!(now <= deadline + longest, "{:?} is after {:?}", now, deadline);
        match ending {
            Ending::Drained => prop_assert!(finished && gone),
            Ending::Unmoved => prop_assert!(finished && completed && !gone),
            Ending::Over => prop_assert!(finished),
            Ending::NotCompleted => prop_assert!(!finished),
        }
        prop_assert_eq!(drain.next(now + HEARTBEAT), Step::End(ending));
    }
}
