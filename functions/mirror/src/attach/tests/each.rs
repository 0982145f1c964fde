//! Each selector with each event.

use super::*;
use crate::id::InstanceId;

type Change = fn(&mut fake::State);

/// Each selector, and what makes the one interface of [`Fake::with_one_tagged`] selected by it. What the events name is
/// that interface, or its instance; a second one, in another VPC and without tags, is never selected.
fn selectors() -> Vec<(&'static str, Change)> {
    fn tag(state: &mut fake::State, key: &str, value: &str) {
        let tags = &mut state.interfaces[0].instance.as_mut().unwrap().tags;
        tags.insert(key.to_owned(), value.to_owned());
    }
    vec![
        ("tag:Mirror=true", |_| {}),
        ("tag:Team", |f| {
            let tags = &mut f.interfaces[0].tags;
            tags.insert("Team".to_owned(), String::new());
        }),
        ("asg:web-*", |f| {
            tag(f, "aws:autoscaling:groupName", "web-1");
        }),
        ("eks:prod/work*", |f| {
            tag(f, "eks:cluster-name", "prod");
            tag(f, "eks:nodegroup-name", "workers");
        }),
        ("eks:prod & !interface:primary", |f| {
            tag(f, "kubernetes.io/cluster/prod", "owned");
            f.interfaces[0].primary = false;
        }),
        ("elb:legacy", |f| {
            f.balancers = vec![ClassicBalancer {
                name: "legacy".to_owned(),
                instances: vec![InstanceId::new(INSTANCE)],
            }];
        }),
        ("vpc:vpc-1", |_| {}),
        ("subnet:subnet-7", |f| {
            f.interfaces[0].subnet = "subnet-7".to_owned();
        }),
        ("instance:i-1234567890abcdef0", |_| {}),
        ("eni:eni-0a1b2c3d4e5f60718", |_| {}),
        ("vpc:* & interface:primary, !vpc:vpc-2", |_| {}),
        ("vpc:*, !tag:env=dev", |f| {
            let decoy = &mut f.interfaces[1].tags;
            decoy.insert("env".to_owned(), "dev".to_owned());
        }),
        // These are of no instance, so only events that name the interface concern them.
        ("ecs:prod", |f| {
            of_a_service(f, "arn:aws:ecs:us-east-1:123456789012:attachment/1f");
            f.tasks = [("prod".to_owned(), vec![EniId::new(ENI)])].into();
        }),
        ("elb:app/web", |f| {
            of_a_service(f, "ELB app/web/50dc6c495c0c9188");
        }),
        ("elb:classic/web", |f| {
            of_a_service(f, "ELB web");
        }),
    ]
}

fn of_a_service(state: &mut fake::State, description: &str) {
    let i = &mut state.interfaces[0];
    (i.instance, i.instance_id, i.primary) = (None, None, false);
    (i.requester_managed, i.description) = (true, description.to_owned());
}

/// Each document of an event that names something.
pub(super) const ALL_EVENTS: [&str; 21] = [
    "instance-pending",
    "instance-running",
    "instance-stopping",
    "instance-stopped",
    "instance-terminated",
    "asg-launch",
    "asg-launch-lifecycle",
    "asg-terminate",
    "asg-terminate-lifecycle",
    "tag-change-instance",
    "tag-change-interface",
    "ecs-task-running",
    "ecs-task-stopped",
    "trail-run-instances",
    "trail-create-interface",
    "trail-attach-interface",
    "trail-detach-interface",
    "trail-delete-interface",
    "trail-create-tags",
    "trail-delete-tags",
    "trail-delete-session",
];

fn selected_by(selector: &str, change: Change) -> (Fake, crate::settings::Settings) {
    let fake = Fake::with_one_tagged();
    let mut decoy = fake::interface("eni-00000009", "i-00000009");
    decoy.vpc = "vpc-2".to_owned();
    fake.state().interfaces.push(decoy);
    change(&mut fake.state());
    let mut settings = fake::settings();
    settings.selection = selector.parse().unwrap();
    (fake, settings)
}

fn mirrored(fake: &Fake) -> Vec<String> {
    let state = fake.state();
    state.sessions.iter().map(|s| s.eni.to_string()).collect()
}

#[tokio::test]
async fn by_each_selector_each_event_gives_a_session_to_the_right_interface_and_to_no_other() {
    for (selector, change) in selectors() {
        for event in ALL_EVENTS {
            let (fake, settings) = selected_by(selector, change);
            let concerns = fake.state().interfaces[0].instance_id.is_some()
                || !matches!(event_names(event), (true, false));
            let payload = records(&[event]);
            attach_by(&fake, &settings, &Memory::default(), payload).await;
            let right: &[&str] = if concerns { &[ENI] } else { &[] };
            assert_eq!(mirrored(&fake), right, "{selector} on {event}");
        }
    }
}

/// Whether an event names instances, and whether it names interfaces or something that is gone.
fn event_names(event: &str) -> (bool, bool) {
    match event::parse(&event_file(event)) {
        Event::Hint(hint) => (
            !hint.instances.is_empty(),
            !hint.enis.is_empty() || hint.lost.is_some(),
        ),
        other => panic!("{event}: {other:?}"),
    }
}

#[tokio::test]
async fn shuffled_doubled_and_a_third_of_them_dropped_they_give_the_same_after_one_sweep() {
    for (selector, change) in selectors() {
        for seed in 0..8 {
            let (fake, settings) = selected_by(selector, change);
            let mut random = crate::sim::Random(seed);
            let mut events: Vec<&str> = ALL_EVENTS.iter().chain(&ALL_EVENTS).copied().collect();
            events.retain(|_| !random.in_thousand(333));
            events.sort_by_cached_key(|_| random.next());
            let memory = Memory::default();
            for some in events.chunks(5) {
                let answer = attach_by(&fake, &settings, &memory, records(some)).await;
                assert!(again(&answer).is_empty() && answer.answer.failed.is_empty());
            }
            let run = Run {
                ports: &fake,
                settings: &settings,
                pacer: &fake::pacer(),
                memory: &memory,
                deadline: fake.state().now + Duration::from_secs(60),
            };
            crate::reconcile::sweep(&run).await.unwrap();
            assert_eq!(mirrored(&fake), [ENI], "{selector}, seed {seed}");
        }
    }
}
