//! What is wanted of each interface: the selection, and the reasons that stand against it.

use crate::answer::SkipReason;
use crate::families::{Support, support};
use crate::interface::{InstanceState, Interface, InterfaceStatus};
use crate::plan::{Desired, Rank, Verdict};
use crate::ports::Resolver;
use crate::selection::Judgement;
use crate::settings::{Analyzer, Settings};
use std::net::IpAddr;

/// Where the analyser is at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnalyzerAt {
    /// At none of the customer's interfaces, or at these addresses.
    Addresses(Vec<IpAddr>),
    /// Its name could not be resolved; why.
    Unresolved(String),
}

/// Looks the analyser's addresses up, where `AnalyzerUrl` names one.
pub async fn locate_analyzer(settings: &Settings, resolver: &impl Resolver) -> AnalyzerAt {
    match &settings.analyzer {
        None => AnalyzerAt::Addresses(Vec::new()),
        Some(Analyzer::Address(address)) => AnalyzerAt::Addresses(vec![*address]),
        Some(Analyzer::Name(name)) => match resolver.resolve(name).await {
            Ok(addresses) if !addresses.is_empty() => AnalyzerAt::Addresses(addresses),
            Ok(_) => AnalyzerAt::Unresolved(format!("{name} has no address")),
            Err(why) => AnalyzerAt::Unresolved(why),
        },
    }
}

/// What is wanted of all these interfaces. `complete`: they are all there are in the region.
pub fn desire(
    settings: &Settings,
    interfaces: &[Interface],
    analyzer: &AnalyzerAt,
    complete: bool,
) -> Desired {
    Desired {
        stack: settings.stack.clone(),
        spec: settings.spec.clone(),
        base: settings.base,
        interfaces: interfaces
            .iter()
            .map(|i| (i.id.clone(), verdict(i, settings, analyzer)))
            .collect(),
        complete,
    }
}

/// What is wanted of one interface.
pub fn verdict(interface: &Interface, settings: &Settings, analyzer: &AnalyzerAt) -> Verdict {
    // Without its instance's tags a `!` term might hold unseen, and a positive one fail.
    let blind = interface.instance_id.is_some() && interface.instance.is_none();
    let group = match settings.selection.judge(interface) {
        Judgement::Excluded(_) => return Verdict::Unselected,
        Judgement::Unselected if !blind => return Verdict::Unselected,
        Judgement::Unselected => usize::MAX,
        Judgement::Selected(group, _) => group,
    };
    if let Some(reason) = forbidden(interface, settings, analyzer) {
        return Verdict::Release(reason);
    }
    if blind {
        return Verdict::Keep(SkipReason::InstanceUnknown);
    }
    if matches!(analyzer, AnalyzerAt::Unresolved(_)) {
        return Verdict::Keep(SkipReason::AnalyzerUnresolved);
    }
    match (
        interface.status,
        interface.instance.as_ref().map(|i| i.state),
    ) {
        (InterfaceStatus::Available, _) => Verdict::Release(SkipReason::NotAttached),
        (InterfaceStatus::Detaching, _) => Verdict::Keep(SkipReason::Changing),
        (_, Some(InstanceState::Stopped | InstanceState::Terminated)) => {
            Verdict::Release(SkipReason::InstanceStopped)
        }
        (_, Some(InstanceState::ShuttingDown)) => Verdict::Keep(SkipReason::Changing),
        // Just launched: the create may come a moment too early, and then its message comes again.
        (_, Some(InstanceState::Pending | InstanceState::Running) | None) => {
            let kind = interface
                .instance
                .as_ref()
                .map_or("", |i| i.instance_type.as_str());
            Verdict::Mirror(Rank {
                doubtful: matches!(support(kind), Support::LeftOut(_))
                    || interface.load_balancer().is_some(),
                group,
                secondary: !interface.primary,
            })
        }
    }
}

/// Why an interface must not or can never be mirrored, whatever its state.
fn forbidden(
    interface: &Interface,
    settings: &Settings,
    analyzer: &AnalyzerAt,
) -> Option<SkipReason> {
    let at_analyzer =
        |addresses: &[IpAddr]| interface.addresses.iter().any(|a| addresses.contains(a));
    if !settings.mirroring {
        Some(SkipReason::MirroringOff)
    } else if interface
        .security_groups
        .iter()
        .any(|g| settings.own_security_groups.contains(g))
    {
        Some(SkipReason::OwnInterface)
    } else if matches!(analyzer, AnalyzerAt::Addresses(addresses) if at_analyzer(addresses)) {
        Some(SkipReason::AnalyzerInterface)
    } else if interface.kind != "interface" {
        Some(SkipReason::InterfaceType)
    } else if interface.ties.mirror_target {
        Some(SkipReason::MirrorTarget)
    } else if interface.load_balancer().is_some() {
        let named = settings.selection.names_its_balancer(interface);
        (!named).then_some(SkipReason::LoadBalancer)
    } else if interface.requester_managed && !interface.managed_but_mirrorable() {
        Some(SkipReason::RequesterManaged)
    } else if !interface.addresses.iter().any(IpAddr::is_ipv4) {
        Some(SkipReason::Ipv6Only)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    const FIRST: Rank = Rank {
        doubtful: false,
        group: 0,
        secondary: false,
    };
    const MIRROR: Verdict = Verdict::Mirror(FIRST);

    fn nowhere() -> AnalyzerAt {
        AnalyzerAt::Addresses(Vec::new())
    }

    /// An interface that is selected and fine, changed by `change`.
    fn judged(change: impl FnOnce(&mut Interface)) -> Verdict {
        let mut settings = fake::settings();
        settings.own_security_groups = ["sg-own".to_owned()].into();
        let mut interface = fake::interface("eni-1", "i-1");
        interface
            .tags
            .insert("Mirror".to_owned(), "true".to_owned());
        change(&mut interface);
        let analyzer = AnalyzerAt::Addresses(vec!["10.9.9.9".parse().unwrap()]);
        verdict(&interface, &settings, &analyzer)
    }

    fn state(s: InstanceState) -> impl FnOnce(&mut Interface) {
        move |i| {
            if let Some(instance) = &mut i.instance {
                instance.state = s;
            }
        }
    }

    #[test]
    fn each_fact_that_stands_against_mirroring_has_its_reason() {
        use SkipReason as R;
        assert_eq!(judged(|_| {}), MIRROR);
        assert_eq!(judged(state(InstanceState::Pending)), MIRROR);
        assert_eq!(judged(|i| i.tags.clear()), Verdict::Unselected);
        assert_eq!(
            judged(|i| i.status = InterfaceStatus::Available),
            Verdict::Release(R::NotAttached)
        );
        assert_eq!(judged(|i| i.status = InterfaceStatus::Attaching), MIRROR);
        assert_eq!(
            judged(|i| i.status = InterfaceStatus::Detaching),
            Verdict::Keep(R::Changing)
        );
        assert_eq!(
            judged(state(InstanceState::Stopped)),
            Verdict::Release(R::InstanceStopped)
        );
        assert_eq!(
            judged(state(InstanceState::ShuttingDown)),
            Verdict::Keep(R::Changing)
        );
        assert_eq!(
            judged(|i| i.instance = None),
            Verdict::Keep(R::InstanceUnknown)
        );
        assert_eq!(
            judged(|i| i.kind = "trunk".to_owned()),
            Verdict::Release(R::InterfaceType)
        );
        assert_eq!(
            judged(|i| i.ties.mirror_target = true),
            Verdict::Release(R::MirrorTarget)
        );
        assert_eq!(
            judged(|i| i.addresses = vec!["2001:db8::1".parse().unwrap()]),
            Verdict::Release(R::Ipv6Only)
        );
        assert_eq!(
            judged(|i| i.security_groups.push("sg-own".to_owned())),
            Verdict::Release(R::OwnInterface)
        );
        assert_eq!(
            judged(|i| i.addresses.push("10.9.9.9".parse().unwrap())),
            Verdict::Release(R::AnalyzerInterface)
        );
    }

    #[test]
    fn of_interfaces_that_services_made_only_databases_caches_and_tasks_are_mirrored() {
        let made = |description: &str| {
            let description = description.to_owned();
            judged(move |i| {
                i.requester_managed = true;
                i.description = description;
                i.instance = None;
                i.instance_id = None;
            })
        };
        for fine in [
            "RDSNetworkInterface",
            "ElastiCache redis-001",
            "arn:aws:ecs:eu-west-1:1:attachment/1f",
        ] {
            assert_eq!(made(fine), MIRROR, "{fine}");
        }
        for not in ["EFS mount target for fs-1", "Amazon EKS prod", ""] {
            assert_eq!(
                made(not),
                Verdict::Release(SkipReason::RequesterManaged),
                "{not}"
            );
        }
    }

    #[test]
    fn a_family_that_aws_leaves_out_is_tried_last_and_not_skipped() {
        let t2 = judged(|i| {
            if let Some(instance) = &mut i.instance {
                instance.instance_type = "t2.micro".to_owned();
            }
        });
        let doubtful = true;
        assert_eq!(t2, Verdict::Mirror(Rank { doubtful, ..FIRST }));
    }

    #[test]
    fn a_load_balancer_is_tried_only_where_it_is_named_and_then_last() {
        let of = |selection: &str, description: &str| {
            let mut settings = fake::settings();
            settings.selection = selection.parse().unwrap();
            let mut i = fake::interface("eni-1", "i-1");
            (i.instance, i.instance_id, i.primary) = (None, None, false);
            (i.requester_managed, i.description) = (true, description.to_owned());
            verdict(&i, &settings, &nowhere())
        };
        let alb = "ELB app/web/50dc6c495c0c9188";
        let skipped = Verdict::Release(SkipReason::LoadBalancer);
        assert_eq!(of("vpc:vpc-1", alb), skipped);
        assert_eq!(of("vpc:vpc-1", "ELB web"), skipped);
        assert_eq!(of("vpc:vpc-1, elb:app/api", alb), skipped);
        let last = Verdict::Mirror(Rank {
            doubtful: true,
            group: 1,
            secondary: true,
        });
        assert_eq!(of("tag:a, elb:app/web", alb), last);
        assert_eq!(of("tag:a, elb:classic/web", "ELB web"), last);
    }

    #[test]
    fn the_rank_tells_the_group_that_selects_and_primary_from_secondary() {
        let mut settings = fake::settings();
        settings.selection = "tag:a, vpc:vpc-1".parse().unwrap();
        let mut i = fake::interface("eni-1", "i-1");
        i.primary = false;
        let rank = Rank {
            group: 1,
            secondary: true,
            ..FIRST
        };
        assert_eq!(verdict(&i, &settings, &nowhere()), Verdict::Mirror(rank));
    }

    #[test]
    fn with_mirroring_off_nothing_is_wanted() {
        let mut settings = fake::settings();
        settings.mirroring = false;
        let mut interface = fake::interface("eni-1", "i-1");
        interface
            .tags
            .insert("Mirror".to_owned(), "true".to_owned());
        let is = verdict(&interface, &settings, &nowhere());
        assert_eq!(is, Verdict::Release(SkipReason::MirroringOff));
    }

    #[test]
    fn an_analyser_whose_name_does_not_resolve_stops_creation_and_removes_nothing() {
        let mut interface = fake::interface("eni-1", "i-1");
        interface
            .tags
            .insert("Mirror".to_owned(), "true".to_owned());
        let unresolved = AnalyzerAt::Unresolved("no such host".to_owned());
        let is = verdict(&interface, &fake::settings(), &unresolved);
        assert_eq!(is, Verdict::Keep(SkipReason::AnalyzerUnresolved));
    }

    #[test]
    fn an_interface_is_not_dropped_because_its_instance_could_not_be_seen() {
        let mut interface = fake::interface("eni-1", "i-1");
        interface.instance = None;
        assert_eq!(
            verdict(&interface, &fake::settings(), &nowhere()),
            Verdict::Keep(SkipReason::InstanceUnknown)
        );
    }
}
