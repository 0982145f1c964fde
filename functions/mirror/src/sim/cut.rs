//! A process that is killed between any two of its calls.

use super::queue::state_change;
use super::{Account, Kill, Process, World, run};
use crate::attach::{Queued, batch};
use crate::fake;
use crate::id::{EniId, SessionId, TargetId};
use crate::pace::Pacer;
use crate::plan::Session;
use crate::reconcile::sweep;
use std::collections::BTreeMap;
use std::time::Duration;

/// Something of each kind to do: make, change, remove, remove a double, remove an orphan; beside sessions of others.
fn furnish(account: &mut Account) {
    let eni = |account: &mut Account, selected| {
        let id = account.launch(selected, 1);
        account.of_instance[&id].first().cloned().unwrap()
    };
    for _ in 0..3 {
        let e = eni(account, true);
        account.put(&e, 100, None);
        account.put(&e, 7, Some("arn:of:another:stack"));
    }
    let e = eni(account, true);
    let drifted = account.put(&e, 100, Some(fake::STACK));
    if let Some(shown) = account.sessions.get_mut(&drifted) {
        shown.it.target = TargetId::new("tmt-changed");
    }
    let e = eni(account, true);
    account.put(&e, 100, Some(fake::STACK));
    account.put(&e, 101, Some(fake::STACK));
    account.put(&e, 102, None);
    let e = eni(account, false);
    account.put(&e, 100, Some(fake::STACK));
    account.put(&e, 101, None);
    account.put(&EniId::new("eni-0dead"), 100, Some(fake::STACK));
}

/// One run that dies as `kill` says, and then one that does not. Gives how many calls the first made or would have made.
fn cut(kill: Kill, events: bool) -> usize {
    let world = World::new(3);
    furnish(&mut world.lock());
    let foreign: BTreeMap<SessionId, Session> = world.lock().foreign();
    let settings = fake::settings();
    let bodies: Vec<String> = world
        .lock()
        .instances
        .keys()
        .map(|id| state_change(id.as_str(), "running", Duration::ZERO).to_string())
        .collect();
    let queued: Vec<Queued> = (0..)
        .zip(&bodies)
        .map(|(n, body)| message(n, body))
        .collect();
    let first = Process::new(&world, "first", &settings, Pacer::for_sweep(3.0)).dies(kill);
    let mut calls = 0;
    let work = async {
        for (process, again) in [(&first, false), (&second(&world, &settings), true)] {
            let run = process.run(Duration::from_secs(600));
            let lived = if events {
                let answer = process.live(batch(&run, &queued)).await;
                answer.map(|a| assert_eq!(a.batch_item_failures, Some(vec![])))
            } else {
                let swept = process.live(sweep(&run)).await;
                swept.map(|s| assert!(s.unwrap().answer.failed.is_empty()))
            };
            assert_eq!(lived.is_none(), !again && kill != Kill::Never, "{kill:?}");
        }
        calls = first.calls();
        if events {
            // Events do not name an interface that is gone.
            let orphans = second(&world, &settings);
            sweep(&orphans.run(Duration::from_secs(600))).await.unwrap();
        }
    };
    run(&world, vec![Box::pin(work)]);
    let account = world.lock();
    assert_eq!(account.differences(), Vec::<String>::new(), "{kill:?}");
    assert_eq!(account.wrongs, Vec::<String>::new(), "{kill:?}");
    assert!(account.foreign() == foreign, "{kill:?}");
    calls
}

fn second<'a>(world: &'a World, settings: &'a crate::settings::Settings) -> Process<'a> {
    Process::new(world, "second", settings, Pacer::for_sweep(3.0))
}

fn message(n: usize, body: &str) -> Queued {
    Queued {
        id: n.to_string(),
        body: body.to_owned(),
    }
}

#[test]
fn killed_between_any_two_calls_the_next_run_converges_and_no_session_is_doubled_or_leaked() {
    for events in [false, true] {
        let calls = cut(Kill::Never, events);
        for n in 0..calls {
            cut(Kill::Before(n), events);
            cut(Kill::After(n), events);
        }
        println!("SIM killed before and after each of {calls} calls, events: {events}");
        assert!(calls > 8, "{calls}");
    }
}
