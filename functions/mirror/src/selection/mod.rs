//! Which interfaces are to be mirrored: one expression.
//!
//! ```text
//! expression  = group *( "," group )            comma: any of the groups
//! group       = term *( "&" term )              &: all of the terms
//! term        = [ "!" ] kind
//! kind        = "tag:" key [ "=" pattern ]      on the interface or its instance; without a value: the tag is there
//!             | "vpc:" pattern | "subnet:" pattern | "eni:" pattern | "instance:" pattern
//!             | "asg:" pattern                  Auto Scaling group, by name
//!             | "eks:" cluster [ "/" nodegroup ]   nodes, and the interfaces that the CNI adds to them
//!             | "ecs:" cluster                  the interfaces of its tasks (Fargate, and `awsvpc` on instances)
//!             | "elb:" pattern                  instances that are registered with a Classic Load Balancer
//!             | "elb:app/" pattern              the interfaces of an Application Load Balancer itself
//!             | "elb:classic/" pattern          the interfaces of a Classic Load Balancer itself
//!             | "interface:" ( "primary" | "all" )
//! pattern     = text that may hold `*` (any characters, also none); "quoted" where it holds a blank or one of , & ! " ( )
//! ```
//!
//! # Precedence
//!
//! 1. **A `!` term always wins**: wherever it stands, an interface for which it holds is not selected.
//! 2. `&` binds tighter than the comma: `a & b, c` is (a and b) or c. There are no parentheses.
//! 3. `interface:primary` does not select, it restricts the group that it stands in, and that group alone.
//! 4. Where the account's sessions do not suffice for all, **the group that stands first is served first**
//!    ([`crate::plan::Rank`]).
//!
//! In quotes, `\"`, `\\` and `\*` stand for the characters themselves. Keys and values are case-sensitive, as AWS's are.
//!
//! # Load balancers
//!
//! Their own interfaces belong to AWS, which documents that such cannot be sources; its own tools mirror those of
//! Application and Classic Load Balancers all the same. So no other term ever selects one (`vpc:` would, and then half
//! of all traffic would be copied twice): only `elb:app/NAME` and `elb:classic/NAME` do. They are tried, and a refusal is
//! remembered. `elb:NAME` is another thing: the instances behind a Classic Load Balancer.

mod parse;
mod pattern;

pub use parse::{MAX_BYTES, MAX_TERMS, ParseError};
pub use pattern::Pattern;

use crate::interface::{BalancerKind, Interface};
use std::fmt;
use std::str::FromStr;

/// Tag that Auto Scaling puts on each instance of a group, however it came to the group.
const ASG_TAG: &str = "aws:autoscaling:groupName";
/// Tags that name an EKS cluster: managed node groups, Karpenter, and the CNI on its secondary interfaces.
const EKS_CLUSTER_TAGS: &[&str] = &[
    "eks:cluster-name",
    "eks:eks-cluster-name",
    "aws:eks:cluster-name",
    "alpha.eksctl.io/cluster-name",
    "cluster.k8s.amazonaws.com/name",
];
/// Tag whose **key** names the cluster, on self-managed nodes (value `owned` or `shared`).
const EKS_CLUSTER_KEY: &str = "kubernetes.io/cluster/";
/// Tags that name the group of a node.
const EKS_NODEGROUP_TAGS: &[&str] = &[
    "eks:nodegroup-name",
    "alpha.eksctl.io/nodegroup-name",
    "karpenter.sh/nodepool",
];

/// The facts that a term asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A tag of this key; with a pattern, of such a value. The interface or its instance carries it.
    Tag(String, Option<Pattern>),
    /// The VPC.
    Vpc(Pattern),
    /// The subnet.
    Subnet(Pattern),
    /// The interface itself.
    Eni(Pattern),
    /// The instance that it is attached to.
    Instance(Pattern),
    /// The Auto Scaling group of that instance.
    Asg(Pattern),
    /// The EKS cluster, and the node group.
    Eks(Pattern, Option<Pattern>),
    /// The ECS cluster whose task has the interface.
    Ecs(Pattern),
    /// The Classic Load Balancer with which its instance is registered.
    BehindClassic(Pattern),
    /// The load balancer that the interface itself belongs to.
    Balancer(BalancerKind, Pattern),
    /// The primary interface of an instance. Restricts, does not select.
    Primary,
    /// Any interface: the default, spelt out. Restricts nothing, selects nothing.
    AnyInterface,
}

impl Kind {
    fn restricts_only(&self) -> bool {
        matches!(self, Kind::Primary | Kind::AnyInterface)
    }

    fn holds(&self, interface: &Interface) -> bool {
        match self {
            Kind::Tag(key, None) => interface.tag_values(key).next().is_some(),
            Kind::Tag(key, Some(value)) => interface.tag_values(key).any(|v| value.matches(v)),
            Kind::Vpc(p) => p.matches(&interface.vpc),
            Kind::Subnet(p) => p.matches(&interface.subnet),
            Kind::Eni(p) => p.matches(interface.id.as_str()),
            Kind::Instance(p) => interface
                .instance_id
                .as_ref()
                .is_some_and(|i| p.matches(i.as_str())),
            Kind::Asg(p) => interface
                .instance_tag(ASG_TAG)
                .is_some_and(|name| p.matches(name)),
            Kind::Eks(cluster, group) => {
                in_cluster(interface, cluster) && in_nodegroup(interface, group.as_ref())
            }
            Kind::Ecs(cluster) => interface
                .cluster()
                .is_some_and(|name| cluster.matches(name)),
            Kind::BehindClassic(p) => interface.ties.balancers.iter().any(|name| p.matches(name)),
            Kind::Balancer(kind, p) => interface
                .load_balancer()
                .is_some_and(|(k, name)| k == *kind && p.matches(name)),
            Kind::Primary => interface.primary,
            Kind::AnyInterface => true,
        }
    }
}

fn in_cluster(interface: &Interface, cluster: &Pattern) -> bool {
    let by_value = EKS_CLUSTER_TAGS
        .iter()
        .any(|key| interface.tag_values(key).any(|v| cluster.matches(v)));
    let instance = interface.instance.iter().flat_map(|i| i.tags.keys());
    by_value
        || interface
            .tags
            .keys()
            .chain(instance)
            .filter_map(|key| key.strip_prefix(EKS_CLUSTER_KEY))
            .any(|name| cluster.matches(name))
}

fn in_nodegroup(interface: &Interface, group: Option<&Pattern>) -> bool {
    group.is_none_or(|group| {
        EKS_NODEGROUP_TAGS
            .iter()
            .any(|key| interface.tag_values(key).any(|v| group.matches(v)))
    })
}

/// One term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// Written with `!`.
    pub negated: bool,
    /// What it asks.
    pub kind: Kind,
}

/// A parsed expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    groups: Vec<Vec<Term>>,
}

/// What an expression says of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement<'a> {
    /// This group holds, and no `!` term does; the first of them, and its place in the expression, from 0.
    Selected(usize, &'a [Term]),
    /// This `!` term holds.
    Excluded(&'a Term),
    /// No group holds.
    Unselected,
}

impl Selection {
    /// Whether the interface is selected, and by what.
    pub fn judge(&self, interface: &Interface) -> Judgement<'_> {
        let mut terms = self.groups.iter().flatten();
        if let Some(term) = terms.find(|t| t.negated && t.kind.holds(interface)) {
            return Judgement::Excluded(term);
        }
        self.groups
            .iter()
            .enumerate()
            .find(|(_, group)| holds(group, interface))
            .map_or(Judgement::Unselected, |(at, group)| {
                Judgement::Selected(at, group)
            })
    }

    /// Whether the expression names the load balancer that the interface belongs to: without that, none of their own
    /// interfaces is mirrored, whatever else selects it.
    pub fn names_its_balancer(&self, interface: &Interface) -> bool {
        let names = |t: &Term| !t.negated && matches!(t.kind, Kind::Balancer(..));
        self.groups
            .iter()
            .any(|group| group.iter().any(names) && holds(group, interface))
    }

    /// Whether a term asks which instances are registered with Classic Load Balancers.
    pub fn asks_for_classic_members(&self) -> bool {
        self.kinds().any(|k| matches!(k, Kind::BehindClassic(_)))
    }

    /// The ECS clusters that terms ask for.
    pub fn clusters(&self) -> impl Iterator<Item = &Pattern> {
        self.kinds().filter_map(|k| match k {
            Kind::Ecs(cluster) => Some(cluster),
            _ => None,
        })
    }

    fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.groups.iter().flatten().map(|t| &t.kind)
    }

    /// Shorthand of [`Selection::judge`].
    pub fn selects(&self, interface: &Interface) -> bool {
        matches!(self.judge(interface), Judgement::Selected(..))
    }

    /// The groups, as written.
    pub fn groups(&self) -> &[Vec<Term>] {
        &self.groups
    }
}

/// Whether all positive terms of a group hold, and it is one that selects. `!` terms are looked at before.
fn holds(group: &[Term], interface: &Interface) -> bool {
    selects(group) && group.iter().all(|t| t.negated || t.kind.holds(interface))
}

/// A group selects when one of its terms does more than exclude or restrict.
fn selects(group: &[Term]) -> bool {
    group.iter().any(|t| !t.negated && !t.kind.restricts_only())
}

impl FromStr for Selection {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse::parse(text)
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, group) in self.groups.iter().enumerate() {
            f.write_str(if i > 0 { ", " } else { "" })?;
            f.write_str(&group_text(group))?;
        }
        Ok(())
    }
}

/// A group as it would be written.
pub fn group_text(group: &[Term]) -> String {
    group
        .iter()
        .map(Term::to_string)
        .collect::<Vec<_>>()
        .join(" & ")
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.negated {
            f.write_str("!")?;
        }
        match &self.kind {
            Kind::Tag(key, value) => {
                write!(f, "tag:{}", pattern::quoted_literal(key))?;
                value.as_ref().map_or(Ok(()), |v| write!(f, "={v}"))
            }
            Kind::Vpc(p) => write!(f, "vpc:{p}"),
            Kind::Subnet(p) => write!(f, "subnet:{p}"),
            Kind::Eni(p) => write!(f, "eni:{p}"),
            Kind::Instance(p) => write!(f, "instance:{p}"),
            Kind::Asg(p) => write!(f, "asg:{p}"),
            Kind::Eks(cluster, group) => {
                write!(f, "eks:{cluster}")?;
                group.as_ref().map_or(Ok(()), |g| write!(f, "/{g}"))
            }
            Kind::Ecs(cluster) => write!(f, "ecs:{cluster}"),
            Kind::BehindClassic(p) => write!(f, "elb:{p}"),
            Kind::Balancer(BalancerKind::Application, p) => write!(f, "elb:app/{p}"),
            Kind::Balancer(BalancerKind::Classic, p) => write!(f, "elb:classic/{p}"),
            Kind::Primary => f.write_str("interface:primary"),
            Kind::AnyInterface => f.write_str("interface:all"),
        }
    }
}

#[cfg(test)]
mod tests;
