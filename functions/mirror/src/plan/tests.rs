use super::*;
use proptest::prelude::*;

const OURS: &str = "arn:aws:cloudformation:eu-west-1:1:stack/fleet/1";
const LIMITS: Limits = Limits {
    per_interface: SESSIONS_PER_INTERFACE,
    per_account: Some(SESSIONS_PER_ACCOUNT),
};

fn number(n: u16) -> SessionNumber {
    SessionNumber::new(i64::from(n)).expect("a session number")
}

fn spec() -> SessionSpec {
    SessionSpec {
        target: TargetId::new("tmt-1"),
        filter: FilterId::new("tmf-1"),
        vni: 4789,
        packet_length: 8500,
    }
}

fn session(id: &str, eni: &str, n: u16, stack: Option<&str>) -> Session {
    Session {
        id: SessionId::new(id),
        eni: EniId::new(eni),
        number: number(n),
        target: spec().target,
        filter: spec().filter,
        vni: Some(4789),
        packet_length: Some(8500),
        stack: stack.map(StackArn::new),
    }
}

fn desired(interfaces: &[(&str, Verdict)]) -> Desired {
    Desired {
        stack: StackArn::new(OURS),
        spec: spec(),
        base: number(100),
        interfaces: interfaces
            .iter()
            .map(|(eni, v)| (EniId::new(*eni), *v))
            .collect(),
        complete: true,
    }
}

const FIRST: Rank = Rank {
    doubtful: false,
    group: 0,
    secondary: false,
};
const DOUBTFUL: Rank = Rank {
    doubtful: true,
    ..FIRST
};
const MIRROR: Verdict = Verdict::Mirror(FIRST);

fn create(eni: &str, n: u16) -> Action {
    Action::Create {
        eni: EniId::new(eni),
        number: number(n),
    }
}

fn delete(id: &str, eni: &str, n: u16, why: DeleteReason) -> Action {
    Action::Delete {
        session: SessionId::new(id),
        eni: EniId::new(eni),
        number: number(n),
        why,
    }
}

#[test]
fn a_selected_interface_without_a_session_gets_one_with_the_base_number() {
    let p = plan(&desired(&[("eni-1", MIRROR)]), &[], &LIMITS);
    assert_eq!(p.actions, [create("eni-1", 100)]);
    assert_eq!(p.ours, 1);
}

#[test]
fn the_lowest_number_that_is_free_on_that_interface_is_taken() {
    let actual = [
        session("tms-1", "eni-1", 100, None),
        session("tms-2", "eni-1", 102, Some("other")),
        session("tms-3", "eni-2", 101, None),
    ];
    let p = plan(
        &desired(&[("eni-1", MIRROR), ("eni-2", MIRROR)]),
        &actual,
        &LIMITS,
    );
    assert_eq!(p.actions, [create("eni-1", 101), create("eni-2", 100)]);
    assert_eq!((p.ours, p.foreign), (2, 3));
}

#[test]
fn an_interface_with_three_foreign_sessions_is_skipped() {
    let actual: Vec<_> = (1..4)
        .map(|n| session(&format!("tms-{n}"), "eni-1", n, None))
        .collect();
    let p = plan(&desired(&[("eni-1", MIRROR)]), &actual, &LIMITS);
    assert!(p.actions.is_empty());
    assert_eq!(
        p.skipped,
        [(EniId::new("eni-1"), SkipReason::InterfaceFull)]
    );
}

#[test]
fn the_last_places_go_by_doubt_then_by_group_then_to_primary_interfaces_then_by_id() {
    let rank = |doubtful, group, secondary| {
        Verdict::Mirror(Rank {
            doubtful,
            group,
            secondary,
        })
    };
    let order = ["eni-f", "eni-e", "eni-b", "eni-d", "eni-c", "eni-a"];
    let wanted = desired(&[
        ("eni-f", rank(false, 0, false)),
        ("eni-e", rank(false, 0, true)),
        ("eni-b", rank(false, 1, false)),
        ("eni-d", rank(false, 1, false)),
        ("eni-c", rank(false, 1, true)),
        ("eni-a", rank(true, 0, false)),
    ]);
    for places in 0..=order.len() {
        let limits = Limits {
            per_account: Some(places),
            ..LIMITS
        };
        let p = plan(&wanted, &[], &limits);
        let made: Vec<_> = p.actions.iter().map(|a| a.eni().as_str()).collect();
        assert_eq!(made, order[..places]);
        let skipped: Vec<_> = p.skipped.iter().map(|(e, _)| e.as_str()).collect();
        assert_eq!(skipped, order[places..]);
    }
}

#[test]
fn nobody_loses_a_session_to_an_interface_of_a_better_rank() {
    let wanted = desired(&[("eni-1", MIRROR), ("eni-2", Verdict::Mirror(DOUBTFUL))]);
    let limits = Limits {
        per_account: Some(1),
        ..LIMITS
    };
    let there = [session("tms-1", "eni-2", 100, Some(OURS))];
    let p = plan(&wanted, &there, &limits);
    assert!(p.actions.is_empty());
    assert_eq!(p.skipped, [(EniId::new("eni-1"), SkipReason::AccountQuota)]);
}

#[test]
fn the_last_places_of_the_account_are_filled_and_the_rest_is_skipped() {
    let limits = Limits {
        per_account: Some(3),
        ..LIMITS
    };
    let actual = [
        session("tms-1", "eni-9", 1, None),
        session("tms-2", "eni-8", 100, Some(OURS)),
    ];
    let wanted = desired(&[
        ("eni-1", Verdict::Mirror(DOUBTFUL)),
        ("eni-2", MIRROR),
        ("eni-3", MIRROR),
    ]);
    let p = plan(&wanted, &actual, &limits);
    // The session that goes makes room; the doubtful interface is the one that is left out.
    assert_eq!(
        p.actions,
        [
            delete("tms-2", "eni-8", 100, DeleteReason::InterfaceGone),
            create("eni-2", 100),
            create("eni-3", 100)
        ]
    );
    assert_eq!(p.skipped, [(EniId::new("eni-1"), SkipReason::AccountQuota)]);
}

#[test]
fn a_session_that_drifted_is_changed_and_keeps_its_number() {
    let mut off: Vec<Session> = (1..5)
        .map(|n| session(&format!("tms-{n}"), &format!("eni-{n}"), 107, Some(OURS)))
        .collect();
    off[0].target = TargetId::new("tmt-old");
    off[1].filter = FilterId::new("tmf-old");
    off[2].vni = None;
    off[3].packet_length = Some(100);
    let wanted = desired(&[
        ("eni-1", MIRROR),
        ("eni-2", MIRROR),
        ("eni-3", MIRROR),
        ("eni-4", MIRROR),
    ]);
    let p = plan(&wanted, &off, &LIMITS);
    let modify = |n: u16| Action::Modify {
        session: SessionId::new(format!("tms-{n}")),
        eni: EniId::new(format!("eni-{n}")),
        number: number(107),
    };
    assert_eq!(p.actions, [modify(1), modify(2), modify(3), modify(4)]);
}

#[test]
fn a_session_below_the_base_moves_up_past_foreign_numbers() {
    let actual = [
        session("tms-1", "eni-1", 7, Some(OURS)),
        session("tms-2", "eni-1", 100, None),
    ];
    let p = plan(&desired(&[("eni-1", MIRROR)]), &actual, &LIMITS);
    let expected = Action::Modify {
        session: SessionId::new("tms-1"),
        eni: EniId::new("eni-1"),
        number: number(101),
    };
    assert_eq!(p.actions, [expected]);
}

#[test]
fn of_two_sessions_of_ours_on_one_interface_the_lower_id_stays() {
    let actual = [
        session("tms-b", "eni-1", 100, Some(OURS)),
        session("tms-a", "eni-1", 101, Some(OURS)),
    ];
    for verdict in [MIRROR, Verdict::Keep(SkipReason::Changing)] {
        let p = plan(&desired(&[("eni-1", verdict)]), &actual, &LIMITS);
        assert_eq!(
            p.actions,
            [delete("tms-b", "eni-1", 100, DeleteReason::Duplicate)]
        );
        assert_eq!(p.ours, 1);
    }
}

#[test]
fn what_is_not_selected_any_more_loses_ours_and_only_ours() {
    let actual = [
        session("tms-1", "eni-1", 100, Some(OURS)),
        session("tms-2", "eni-1", 101, Some("other")),
    ];
    let p = plan(
        &desired(&[("eni-1", Verdict::Unselected)]),
        &actual,
        &LIMITS,
    );
    assert_eq!(
        p.actions,
        [delete("tms-1", "eni-1", 100, DeleteReason::Unselected)]
    );
    let p = plan(
        &desired(&[("eni-1", Verdict::Release(SkipReason::InstanceStopped))]),
        &actual,
        &LIMITS,
    );
    assert_eq!(
        p.actions,
        [delete("tms-1", "eni-1", 100, DeleteReason::Released)]
    );
    assert_eq!(
        p.skipped,
        [(EniId::new("eni-1"), SkipReason::InstanceStopped)]
    );
}

#[test]
fn an_interface_in_passing_neither_gains_nor_loses_a_session() {
    let wanted = desired(&[
        ("eni-1", Verdict::Keep(SkipReason::Changing)),
        ("eni-2", Verdict::Keep(SkipReason::Changing)),
    ]);
    let p = plan(
        &wanted,
        &[session("tms-1", "eni-1", 100, Some(OURS))],
        &LIMITS,
    );
    assert!(p.actions.is_empty());
    assert_eq!(p.ours, 1);
}

#[test]
fn without_a_complete_listing_other_interfaces_are_left_alone() {
    let mut wanted = desired(&[]);
    let actual = [session("tms-1", "eni-1", 100, Some(OURS))];
    assert_eq!(
        plan(&wanted, &actual, &LIMITS).actions,
        [delete("tms-1", "eni-1", 100, DeleteReason::InterfaceGone)]
    );
    wanted.complete = false;
    let p = plan(&wanted, &actual, &LIMITS);
    assert!(p.actions.is_empty());
    assert_eq!(p.ours, 1);
}

#[test]
fn where_no_number_is_left_the_interface_is_skipped_or_keeps_what_it_has() {
    let mut wanted = desired(&[("eni-1", MIRROR)]);
    wanted.base = SessionNumber::MAX;
    let foreign = session("tms-1", "eni-1", 32766, None);
    let p = plan(&wanted, std::slice::from_ref(&foreign), &LIMITS);
    assert_eq!(p.skipped, [(EniId::new("eni-1"), SkipReason::NoFreeNumber)]);
    let p = plan(
        &wanted,
        &[foreign, session("tms-2", "eni-1", 5, Some(OURS))],
        &LIMITS,
    );
    assert!(p.actions.is_empty(), "{p:?}");
}

/// What AWS would have after the plan, refusing what AWS refuses.
fn apply(actual: &[Session], wanted: &Desired, plan: &Plan) -> Result<Vec<Session>, TestCaseError> {
    let mut after = actual.to_vec();
    for (i, action) in plan.actions.iter().enumerate() {
        match action {
            Action::Delete { session, eni, .. } => {
                let at = after.iter().position(|s| s.id == *session && s.eni == *eni);
                let gone = after.swap_remove(at.expect("only what is there is deleted"));
                prop_assert_eq!(
                    gone.stack.as_ref(),
                    Some(&wanted.stack),
                    "only ours is deleted"
                );
            }
            Action::Modify {
                session, number, ..
            } => {
                let clash = after
                    .iter()
                    .any(|s| s.id != *session && s.eni == *action.eni() && s.number == *number);
                prop_assert!(!clash, "number {} is taken", number);
                let s = after
                    .iter_mut()
                    .find(|s| s.id == *session)
                    .expect("only what is there is changed");
                prop_assert_eq!(
                    s.stack.as_ref(),
                    Some(&wanted.stack),
                    "only ours is changed"
                );
                s.number = *number;
                s.target = wanted.spec.target.clone();
                s.filter = wanted.spec.filter.clone();
                s.vni = Some(wanted.spec.vni);
                s.packet_length = Some(u32::from(wanted.spec.packet_length));
            }
            Action::Create { eni, number } => {
                let there: Vec<_> = after.iter().filter(|s| s.eni == *eni).collect();
                prop_assert!(
                    there.len() < SESSIONS_PER_INTERFACE,
                    "more than three on {}",
                    eni
                );
                prop_assert!(
                    there.iter().all(|s| s.number != *number),
                    "number {} is taken",
                    number
                );
                prop_assert!(*number >= wanted.base);
                after.push(Session {
                    number: *number,
                    ..session(&format!("tms-new{i}"), eni.as_str(), 1, Some(OURS))
                });
            }
        }
    }
    Ok(after)
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        4 => (any::<bool>(), 0..3usize, any::<bool>())
            .prop_map(|(doubtful, group, secondary)| Verdict::Mirror(Rank { doubtful, group, secondary })),
        1 => Just(Verdict::Keep(SkipReason::Changing)),
        1 => Just(Verdict::Release(SkipReason::InstanceStopped)),
        2 => Just(Verdict::Unselected),
    ]
}

/// At most three sessions an interface with distinct numbers around the base, as AWS guarantees; ours or not, drifted or not.
fn sessions() -> impl Strategy<Value = Vec<Session>> {
    let numbers = proptest::sample::subsequence(vec![1u16, 99, 100, 101, 102, 32766], 0..=3);
    let one = (0..3u8, 0..4u8, 0..100u32);
    let on_eni = (numbers, proptest::collection::vec(one, 3));
    proptest::collection::vec(on_eni, 6).prop_map(|enis| {
        let mut all = Vec::new();
        for (e, (numbers, kinds)) in enis.into_iter().enumerate() {
            for (n, (owner, drift, id)) in numbers.into_iter().zip(kinds) {
                let stack = [Some(OURS), Some("other"), None]
                    .get(usize::from(owner))
                    .copied()
                    .flatten();
                let mut s = session(&format!("tms-{id}{e}{n}"), &format!("eni-{e}"), n, stack);
                match drift {
                    0 => s.target = TargetId::new("tmt-old"),
                    1 => s.vni = None,
                    _ => {}
                }
                all.push(s);
            }
        }
        all
    })
}

proptest! {
    #[test]
    fn it_converges_in_one_step_within_all_limits(
        verdicts in proptest::collection::vec(proptest::option::of(verdict()), 6),
        actual in sessions(),
        base in proptest::sample::select(vec![1u16, 100, 32766]),
        complete in any::<bool>(),
        most in 0..20usize,
    ) {
        let mut wanted = desired(&[]);
        wanted.base = number(base);
        wanted.complete = complete;
        wanted.interfaces = verdicts.iter().enumerate()
            .filter_map(|(e, v)| v.map(|v| (EniId::new(format!("eni-{e}")), v))).collect();
        let limits = Limits { per_account: Some(most), ..LIMITS };

        let first = plan(&wanted, &actual, &limits);
        let after = apply(&actual, &wanted, &first)?;

        // A fixed point on its own result: the same skips, nothing to do.
        let second = plan(&wanted, &after, &limits);
        prop_assert!(second.actions.is_empty(), "{:?} then {:?}", first, second);
        let skips = |p: &Plan| p.skipped.iter().cloned().collect::<std::collections::BTreeMap<_, _>>();
        prop_assert_eq!(skips(&first), skips(&second));

        // Foreign sessions are as they were.
        let foreign = |all: &[Session]| {
            let mut f: Vec<_> = all.iter().filter(|s| !s.is_of(&wanted.stack)).cloned().collect();
            f.sort_by(|a, b| a.id.cmp(&b.id));
            f
        };
        prop_assert_eq!(foreign(&actual), foreign(&after));
        prop_assert_eq!(first.foreign, foreign(&actual).len());

        // Each selected interface has one session of ours that is right, or is skipped with a reason; the account's
        // quota is not passed by us.
        let ours: Vec<_> = after.iter().filter(|s| s.is_of(&wanted.stack)).collect();
        prop_assert_eq!(first.ours, ours.len());
        let created = first.actions.iter().filter(|a| matches!(a, Action::Create { .. })).count();
        prop_assert!(created == 0 || after.len() <= most);
        for (eni, verdict) in &wanted.interfaces {
            let here: Vec<_> = ours.iter().filter(|s| s.eni == *eni).collect();
            let skipped = first.skipped.iter().any(|(e, _)| e == eni);
            match verdict {
                Verdict::Mirror(_) => {
                    prop_assert_eq!(here.len(), usize::from(!skipped));
                    prop_assert!(here.iter().all(|s| s.target == wanted.spec.target && s.vni == Some(wanted.spec.vni)));
                }
                Verdict::Keep(_) => prop_assert!(skipped && here.len() <= 1),
                Verdict::Release(_) => prop_assert!(skipped && here.is_empty()),
                Verdict::Unselected => prop_assert!(!skipped && here.is_empty()),
            }
        }
    }
}

/// 10,000 interfaces as an account has them: half with a session of ours, some of those drifted or doubled, some with
/// foreign ones; and as many sessions on interfaces that are not wanted.
fn large() -> (Desired, Vec<Session>) {
    let mut wanted = desired(&[]);
    wanted.interfaces = (0..10_000)
        .map(|n| {
            let rank = Rank {
                doubtful: n % 50 == 0,
                group: n % 3,
                secondary: n % 4 == 0,
            };
            (EniId::new(format!("eni-{n:017x}")), Verdict::Mirror(rank))
        })
        .collect();
    let mut actual = Vec::new();
    for n in 0..10_000 {
        let eni = format!("eni-{n:017x}");
        let mut add = |id: String, number, stack| actual.push(session(&id, &eni, number, stack));
        if n % 2 == 0 {
            add(format!("tms-{n:017x}"), 100, Some(OURS));
        }
        if n % 10 == 0 {
            add(format!("tms-a{n:016x}"), 101, Some(OURS));
        }
        if n % 7 == 0 {
            add(format!("tms-b{n:016x}"), 1, None);
        }
    }
    for (n, session) in actual.iter_mut().enumerate() {
        if n % 20 == 0 {
            session.target = TargetId::new("tmt-old");
        }
    }
    (wanted, actual)
}

#[test]
fn ten_thousand_interfaces_are_planned_in_under_a_tenth_of_a_second() {
    let (wanted, actual) = large();
    // The fastest of five: the neighbours of a busy machine are no part of it.
    let one = || {
        let start = std::time::Instant::now();
        let p = plan(&wanted, &actual, &LIMITS);
        (start.elapsed(), p)
    };
    let (took, p) = (0..5).map(|_| one()).min_by_key(|(t, _)| *t).unwrap();
    println!("10,000 interfaces, {} sessions: {took:?}", actual.len());
    let count = |is: fn(&Action) -> bool| p.actions.iter().filter(|a| is(a)).count();
    assert_eq!(count(|a| matches!(a, Action::Delete { .. })), 1_000);
    // 7,429 are there, and 1,000 of them go.
    assert_eq!(
        count(|a| matches!(a, Action::Create { .. })),
        10_000 - 6_429
    );
    assert!(count(|a| matches!(a, Action::Modify { .. })) > 100);
    // A build without optimisation takes several times as long as the function does.
    let most = if cfg!(debug_assertions) { 1000 } else { 100 };
    assert!(took < std::time::Duration::from_millis(most), "{took:?}");
}
