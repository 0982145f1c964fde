use super::*;
use crate::fake::{self, Fake, event_file, interface, session, tagged};
use crate::memory::Memory;
use crate::pace::Pacer;
use serde_json::json;
use std::sync::Mutex;
use std::time::Duration;

const ENI: &str = "eni-0a1b2c3d4e5f60718";

fn with<T>(fake: &Fake, work: impl AsyncFnOnce(&Run<'_, Fake>) -> T) -> T {
    let settings = fake::settings();
    let pacer = fake::pacer();
    let run = Run {
        ports: fake,
        settings: &settings,
        pacer: &pacer,
        memory: &Memory::default(),
        deadline: Duration::from_secs(60),
    };
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(work(&run))
}

/// One interface to be made, one right, one drifted, one unselected, one whose interface is gone, two foreign sessions.
fn mixed() -> Fake {
    let fake = Fake::new(vec![
        tagged("eni-1", "i-1"),
        tagged("eni-2", "i-2"),
        tagged("eni-3", "i-3"),
        interface("eni-4", "i-4"),
    ]);
    let mut drifted = session("tms-3", "eni-3", 105, Some(fake::STACK));
    drifted.target = crate::id::TargetId::new("tmt-replaced");
    fake.state().sessions = vec![
        session("tms-2", "eni-2", 100, Some(fake::STACK)),
        drifted,
        session("tms-4", "eni-4", 100, Some(fake::STACK)),
        session("tms-5", "eni-5", 100, Some(fake::STACK)),
        session("tms-6", "eni-1", 100, Some("arn:of:another:stack")),
        session("tms-7", "eni-4", 7, None),
    ];
    fake
}

fn touched(list: &[Touched]) -> Vec<(&str, Option<&str>, u16)> {
    list.iter()
        .map(|t| {
            (
                t.eni.as_str(),
                t.session.as_ref().map(|s| s.as_str()),
                t.number.get(),
            )
        })
        .collect()
}

#[test]
fn a_sweep_makes_changes_and_removes_what_it_must_and_nothing_of_others() {
    let fake = mixed();
    let swept = with(&fake, async |run| sweep(run).await).unwrap();
    assert_eq!(
        touched(&swept.answer.created),
        [("eni-1", Some("tms-005"), 101)]
    );
    assert_eq!(
        touched(&swept.answer.modified),
        [("eni-3", Some("tms-3"), 105)]
    );
    assert_eq!(
        touched(&swept.answer.deleted),
        [("eni-4", Some("tms-4"), 100), ("eni-5", Some("tms-5"), 100)]
    );
    assert_eq!((swept.ours, swept.foreign), (3, 2));
    let ids: Vec<_> = fake
        .state()
        .sessions
        .iter()
        .map(|s| s.id.to_string())
        .collect();
    assert_eq!(ids, ["tms-2", "tms-3", "tms-6", "tms-7", "tms-005"]);
    assert_eq!(
        with(&fake, async |run| sweep(run).await).unwrap().answer,
        Answer::default(),
        "a second sweep rests"
    );
}

#[test]
fn a_dry_run_says_the_same_does_nothing_and_names_the_cost() {
    let fake = mixed();
    let before = fake.state().sessions.clone();
    let dry = with(&fake, async |run| dry_run(run).await).unwrap();
    assert_eq!(touched(&dry.answer.created), [("eni-1", None, 101)]);
    assert_eq!(
        touched(&dry.answer.modified),
        [("eni-3", Some("tms-3"), 105)]
    );
    assert_eq!(dry.answer.deleted.len(), 2);
    // 3 sessions of 0.015 $ an hour, 730 hours.
    assert_eq!(dry.answer.monthly_cost, Some(32.85));
    assert_eq!(fake.state().sessions, before);
    assert_eq!(
        fake.count("create") + fake.count("modify") + fake.count("delete"),
        0
    );
}

#[test]
fn a_session_whose_interface_the_listing_does_not_show_yet_is_spared() {
    let fake = Fake::new(vec![tagged("eni-1", "i-1"), tagged("eni-2", "i-2")]);
    fake.state().sessions = vec![
        session("tms-1", "eni-1", 100, Some(fake::STACK)),
        session("tms-2", "eni-2", 100, Some(fake::STACK)),
        session("tms-3", "eni-3", 100, Some(fake::STACK)),
    ];
    fake.state().unlisted = vec![EniId::new("eni-1")];
    let swept = with(&fake, async |run| sweep(run).await).unwrap();
    assert_eq!(
        touched(&swept.answer.deleted),
        [("eni-3", Some("tms-3"), 100)]
    );
    assert_eq!(swept.ours, 2);
}

#[test]
fn a_sweep_that_cannot_list_says_so() {
    let fake = mixed();
    fake.fail("sessions", fake::refused("UnauthorizedOperation"), 1);
    let error = with(&fake, async |run| sweep(run).await).unwrap_err();
    assert_eq!(error.code, "UnauthorizedOperation");
    assert_eq!(fake.count("create"), 0);
}

#[test]
fn each_request_is_told_by_its_fields() {
    for (file, expected) in [
        ("scheduled", Request::Sweep),
        ("dry-run", Request::DryRun),
        ("custom-create", Request::Custom),
        ("custom-update", Request::Custom),
        ("custom-delete", Request::Custom),
    ] {
        assert_eq!(Request::parse(&event_file(file)), Ok(expected), "{file}");
    }
    let Ok(Request::Explain(hint)) = Request::parse(&event_file("explain-instance")) else {
        panic!("explain")
    };
    assert_eq!((hint.instances.len(), hint.enis.len()), (1, 0));
    let Ok(Request::Explain(hint)) = Request::parse(&event_file("explain-interface")) else {
        panic!("explain")
    };
    assert_eq!((hint.instances.len(), hint.enis.len()), (0, 1));
}

#[test]
fn another_request_is_refused_in_one_line_with_the_remedy() {
    for (payload, what) in [
        (json!({}), "none of the known fields"),
        (json!(null), "none of the known fields"),
        (json!({"dry_run": false}), "dry_run: false is not true"),
        (json!({"explain": "web-1"}), "explain: \"web-1\" is neither"),
        (json!({"explain": 7}), "explain: 7 is neither"),
        (
            event_file("instance-running"),
            "EC2 Instance State-change Notification",
        ),
    ] {
        let line = Request::parse(&payload).unwrap_err().to_string();
        assert!(
            line.contains(what) && line.contains("send a scheduled event") && !line.contains('\n'),
            "{line}"
        );
    }
}

fn explained(fake: &Fake, file: &str) -> Vec<Explained> {
    let Ok(Request::Explain(hint)) = Request::parse(&event_file(file)) else {
        panic!("{file}")
    };
    with(fake, async |run| explain(run, &hint).await).unwrap()
}

#[test]
fn explain_tells_of_each_interface_why() {
    let fake = Fake::with_one_tagged();
    let said = explained(&fake, "explain-instance");
    assert_eq!(
        (said.len(), said[0].mirrored, said[0].reason.as_str()),
        (1, false, "selected")
    );
    assert!(
        said[0]
            .text
            .contains("`tag:Mirror=true` in Selection selects it"),
        "{}",
        said[0].text
    );
    assert!(said[0].text.contains("the next sweep makes it"));

    fake.state().sessions = vec![session("tms-1", ENI, 100, Some(fake::STACK))];
    let said = explained(&fake, "explain-interface");
    assert!(
        said[0].mirrored && said[0].text.contains("Session tms-1 with number 100"),
        "{}",
        said[0].text
    );

    fake.state().interfaces[0]
        .instance
        .as_mut()
        .unwrap()
        .instance_type = "t2.micro".to_owned();
    assert!(
        explained(&fake, "explain-interface")[0]
            .text
            .contains("T2 family")
    );

    fake.state().sessions = (1..4)
        .map(|n| session(&format!("tms-{n}"), ENI, n, None))
        .collect();
    let said = explained(&fake, "explain-interface");
    assert_eq!(
        (said[0].mirrored, said[0].reason.as_str()),
        (false, "interface_full")
    );

    fake.state().interfaces[0]
        .instance
        .as_mut()
        .unwrap()
        .tags
        .clear();
    let said = explained(&fake, "explain-interface");
    assert_eq!(said[0].reason, "not_selected");
    assert!(said[0].text.contains("tag:Mirror=true"), "{}", said[0].text);

    fake.state().interfaces.clear();
    let said = explained(&fake, "explain-instance");
    assert_eq!(
        (said[0].eni.as_ref(), said[0].reason.as_str()),
        (None, "not_found")
    );
    assert_eq!(
        explained(&fake, "explain-interface")[0]
            .eni
            .as_ref()
            .map(EniId::as_str),
        Some(ENI)
    );
}

#[test]
fn explain_names_the_term_that_excludes() {
    let fake = Fake::with_one_tagged();
    let mut settings = fake::settings();
    settings.selection = "tag:Mirror=true, !vpc:vpc-*".parse().unwrap();
    let pacer = fake::pacer();
    let run = Run {
        ports: &fake,
        settings: &settings,
        pacer: &pacer,
        memory: &Memory::default(),
        deadline: Duration::from_secs(60),
    };
    let hint = Hint {
        enis: [EniId::new(ENI)].into(),
        ..Hint::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let said = runtime.block_on(explain(&run, &hint)).unwrap();
    assert_eq!(said[0].reason, "excluded");
    assert_eq!(said[0].text, "`!vpc:vpc-*` in Selection excludes it");
}

/// A sweep of each minute with more to do than it can: how much it does at one change in a second, and when it ends.
fn busy_minute(
    listing: Duration,
    deadline: Duration,
    work: impl AsyncFnOnce(&Run<'_, Fake>) -> Result<Swept, ApiError>,
) -> (usize, Duration) {
    let selected = |n| tagged(&format!("eni-{n:03}"), &format!("i-{n:03}"));
    let fake = Fake::new((0..200).map(selected).collect());
    fake.state().listing = listing;
    let mut settings = fake::settings();
    settings.sweep_every = Duration::from_secs(60);
    let run = Run {
        ports: &fake,
        settings: &settings,
        pacer: &Mutex::new(Pacer::new(1.0, 1)),
        memory: &Memory::default(),
        deadline,
    };
    let swept = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(work(&run))
        .unwrap();
    let made = swept.answer.created.len();
    let left = |s: &&crate::answer::Skipped| s.reason == SkipReason::LeftToSweep;
    assert_eq!(swept.answer.skipped.iter().filter(left).count(), 200 - made);
    let end = fake.state().now;
    (made, end)
}

#[test]
fn a_scheduled_sweep_ends_before_the_next_one_begins() {
    let function = Duration::from_secs(885);
    let (made, end) = busy_minute(Duration::ZERO, function, async |r| scheduled_sweep(r).await);
    // From second 0 to second 47: none is begun with less than 3 s left of the 50.
    assert_eq!((made, end), (48, Duration::from_secs(47)));
    // One that the stack asks for is alone, and takes the time that it has.
    let (made, _) = busy_minute(Duration::ZERO, Duration::from_secs(150), async |r| {
        sweep(r).await
    });
    assert_eq!(made, 148);
}

#[test]
fn a_scheduled_sweep_gets_to_its_changes_however_long_the_listing_takes() {
    let function = Duration::from_secs(885);
    let (made, end) = busy_minute(Duration::from_secs(70), function, async |r| {
        scheduled_sweep(r).await
    });
    assert_eq!((made, end), (18, Duration::from_secs(70 + 17)));
}

#[test]
fn a_scheduled_sweep_ends_with_its_invocation_too() {
    let (made, _) = busy_minute(Duration::ZERO, Duration::from_secs(30), async |r| {
        scheduled_sweep(r).await
    });
    assert_eq!(made, 28);
}

/// What [`explain`] says of [`ENI`] by these settings, after `before` has run in the same process.
fn explained_by(fake: &Fake, settings: &Settings, memory: &Memory) -> Explained {
    let run = Run {
        ports: fake,
        settings,
        pacer: &fake::pacer(),
        memory,
        deadline: Duration::from_secs(60),
    };
    let of = Hint {
        enis: [EniId::new(ENI)].into(),
        ..Hint::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread();
    let said = { runtime }.build().unwrap().block_on(explain(&run, &of));
    said.unwrap().remove(0)
}

/// What a dry run says of it.
fn dry_by(fake: &Fake, settings: &Settings, memory: &Memory) -> Swept {
    let run = Run {
        ports: fake,
        settings,
        pacer: &fake::pacer(),
        memory,
        deadline: Duration::from_secs(60),
    };
    let runtime = tokio::runtime::Builder::new_current_thread();
    { runtime }
        .build()
        .unwrap()
        .block_on(dry_run(&run))
        .unwrap()
}

#[test]
fn each_skip_reason_is_explained_in_words_and_stands_in_the_dry_run() {
    use crate::interface::{InstanceState, InterfaceStatus};
    type Change = fn(&mut crate::fake::State, &mut Settings);
    fn interface(state: &mut crate::fake::State) -> &mut crate::interface::Interface {
        &mut state.interfaces[0]
    }
    fn stopped(state: &mut crate::fake::State, _: &mut Settings) {
        interface(state).instance.as_mut().unwrap().state = InstanceState::Stopped;
    }
    fn by_vpc(state: &mut crate::fake::State, settings: &mut Settings, description: &str) {
        settings.selection = "vpc:vpc-1".parse().unwrap();
        let i = interface(state);
        (i.instance, i.instance_id, i.primary) = (None, None, false);
        (i.requester_managed, i.description) = (true, description.to_owned());
    }
    let cases: [(SkipReason, Change); 18] = [
        (SkipReason::MirroringOff, |_, s| s.mirroring = false),
        (SkipReason::StackLeaving, |f, _| f.leaving = true),
        (SkipReason::NotAttached, |f, _| {
            interface(f).status = InterfaceStatus::Available;
        }),
        (SkipReason::Changing, |f, _| {
            interface(f).status = InterfaceStatus::Detaching;
        }),
        (SkipReason::InstanceStopped, stopped),
        (SkipReason::InstanceUnknown, |f, _| {
            interface(f).instance = None;
        }),
        (SkipReason::InterfaceType, |f, _| {
            interface(f).kind = "trunk".to_owned();
        }),
        (SkipReason::RequesterManaged, |f, s| {
            by_vpc(f, s, "EFS mount target for fs-1");
        }),
        (SkipReason::LoadBalancer, |f, s| {
            by_vpc(f, s, "ELB app/web/50dc6c495c0c9188");
        }),
        (SkipReason::MirrorTarget, |f, _| {
            f.mirror_targets = vec![EniId::new(ENI)];
        }),
        (SkipReason::Refused, |_, _| {}),
        (SkipReason::Ipv6Only, |f, _| {
            interface(f).addresses = vec!["2001:db8::1".parse().unwrap()];
        }),
        (SkipReason::OwnInterface, |_, s| {
            s.own_security_groups = ["sg-app".to_owned()].into();
        }),
        (SkipReason::AnalyzerInterface, |_, s| {
            let at = "10.0.0.7".parse().unwrap();
            s.analyzer = Some(crate::settings::Analyzer::Address(at));
        }),
        (SkipReason::AnalyzerUnresolved, |_, s| {
            s.analyzer = Some(crate::settings::Analyzer::Name("waf.invalid".to_owned()));
        }),
        (SkipReason::InterfaceFull, |f, _| {
            let foreign = |n| session(&format!("tms-{n}"), ENI, n, None);
            f.sessions = (1..4).map(foreign).collect();
        }),
        (SkipReason::NoFreeNumber, |f, s| {
            s.base = crate::id::SessionNumber::MAX;
            f.sessions = vec![session("tms-1", ENI, 32766, None)];
        }),
        (SkipReason::AccountQuota, |f, s| {
            s.session_headroom = crate::plan::SESSIONS_PER_ACCOUNT - 1;
            f.sessions = vec![session("tms-1", "eni-other", 7, None)];
        }),
    ];
    let mut seen = BTreeSet::new();
    for (reason, change) in cases {
        let fake = Fake::with_one_tagged();
        let (mut settings, memory) = (fake::settings(), Memory::default());
        change(&mut fake.state(), &mut settings);
        if reason == SkipReason::Refused {
            memory.refuse(&fake.state().interfaces[0], Duration::ZERO);
        }
        let said = explained_by(&fake, &settings, &memory);
        assert_eq!((said.mirrored, &said.reason), (false, &reason.name()));
        assert!(said.text.ends_with(reason.text()), "{}", said.text);
        // By its own words it is selected; but without its instance nobody can tell.
        let selected = said.text.contains("in Selection selects it, but ");
        assert_eq!(
            selected,
            reason != SkipReason::InstanceUnknown,
            "{}",
            said.text
        );
        let dry = dry_by(&fake, &settings, &memory).answer;
        let skips: Vec<_> = dry
            .skipped
            .iter()
            .map(|s| (s.eni.as_str(), s.reason))
            .collect();
        assert_eq!(skips, [(ENI, reason)]);
        assert!(dry.created.is_empty());
        seen.insert(reason);
    }
    // The other two come only of a run that changes something.
    seen.extend([SkipReason::InterfaceGone, SkipReason::LeftToSweep]);
    assert_eq!(seen, SkipReason::ALL.into());
}

#[test]
fn the_account_s_headroom_stays_free_and_the_sweep_says_what_is_left() {
    let interfaces = |n: usize| (0..n).map(|n| tagged(&format!("eni-{n}"), &format!("i-{n}")));
    let fake = Fake::new(interfaces(5).collect());
    fake.state().sessions = vec![session("tms-x", "eni-other", 7, None)];
    let mut settings = fake::settings();
    settings.session_headroom = crate::plan::SESSIONS_PER_ACCOUNT - 4;
    let memory = Memory::default();
    let swept = dry_by(&fake, &settings, &memory);
    assert_eq!((swept.answer.created.len(), swept.ours), (3, 3));
    assert_eq!(swept.headroom, crate::plan::SESSIONS_PER_ACCOUNT - 4);
    let without: Vec<_> = swept
        .answer
        .skipped
        .iter()
        .map(|s| s.eni.as_str())
        .collect();
    assert_eq!(without, ["eni-3", "eni-4"]);
}

#[test]
fn drift_is_counted() {
    let fake = mixed();
    let swept = with(&fake, async |run| sweep(run).await).unwrap();
    assert_eq!(swept.drifted, 1);
    // After an update that replaced the target all of ours move, and nobody else's.
    let fake = Fake::new(vec![tagged("eni-1", "i-1"), tagged("eni-2", "i-2")]);
    fake.state().sessions = vec![
        session("tms-1", "eni-1", 100, Some(fake::STACK)),
        session("tms-2", "eni-2", 100, Some(fake::STACK)),
        session("tms-3", "eni-2", 7, None),
    ];
    let mut settings = fake::settings();
    settings.spec.target = crate::id::TargetId::new("tmt-new");
    let swept = dry_by(&fake, &settings, &Memory::default());
    assert_eq!((swept.drifted, swept.answer.modified.len()), (2, 2));
    assert_eq!(swept.answer.created.len() + swept.answer.deleted.len(), 0);
}
