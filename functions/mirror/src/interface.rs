//! An interface and the instance behind it, as far as selection and planning look at them.

use crate::id::{EniId, InstanceId};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Tags by key.
pub type Tags = BTreeMap<String, String>;

/// `Status` of a network interface (API reference, NetworkInterface).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterfaceStatus {
    /// Attached to nothing.
    Available,
    /// Being attached.
    Attaching,
    /// Attached: `in-use`, or `associated`.
    InUse,
    /// Being detached.
    Detaching,
}

/// State of an instance (API reference, InstanceState).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// Being started.
    Pending,
    /// Up.
    Running,
    /// On its way down, to `stopped` or `terminated`.
    ShuttingDown,
    /// Stopped: its sessions stay, and are paid for.
    Stopped,
    /// Gone, but still listed.
    Terminated,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its state when it was described.
    pub state: InstanceState,
    /// For example `m5.large`.
    pub instance_type: String,
    /// Its tags, those of its Auto Scaling group and of EKS included (`aws:autoscaling:groupName`, `eks:cluster-name`…).
    pub tags: Tags,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its id.
    pub id: EniId,
    /// `vpc-…`.
    pub vpc: String,
    /// `subnet-…`.
    pub subnet: String,
    /// Its status.
    pub status: InterfaceStatus,
    /// `InterfaceType`: `interface`, `efa`, `trunk`, `branch`, `nat_gateway`, …
    pub kind: String,
    /// Made and owned by an AWS service.
    pub requester_managed: bool,
    /// Free text; AWS services name themselves in it.
    pub description: String,
    /// Its own tags.
    pub tags: Tags,
    /// `sg-…`.
    pub security_groups: Vec<String>,
    /// Private and public addresses, both families.
    pub addresses: Vec<IpAddr>,
    /// Device index 0 on network card 0 of its instance.
    pub primary: bool,
    /// The instance that it is attached to, if it is an instance.
    pub instance_id: Option<InstanceId>,
    /// That instance, where it could be described.
    pub instance: Option<Instance>,
    /// What only others know of it; empty as the interface itself is described.
    pub ties: Ties,
}

/// What other services know of an interface. Looked up only where the selection asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ties {
    /// Names of the Classic Load Balancers with which its instance is registered.
    pub balancers: Vec<String>,
    /// Name of the ECS cluster one of whose tasks has the interface.
    pub cluster: Option<String>,
    /// It is itself the target of someone's mirror sessions.
    pub mirror_target: bool,
}

/// A kind of load balancer whose own interfaces can be tried as sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BalancerKind {
    /// Application Load Balancer.
    Application,
    /// Classic Load Balancer.
    Classic,
}

/// Tag of the reserved namespace that ECS puts on what it makes for a task, where managed tags are on.
const ECS_CLUSTER_TAG: &str = "aws:ecs:clusterName";

impl Interface {
    /// The values of a tag, on the interface and on its instance: either of them may carry it.
    pub fn tag_values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let of_instance = self.instance_tag(key);
        self.tags
            .get(key)
            .map(String::as_str)
            .into_iter()
            .chain(of_instance)
    }

    /// The value of a tag of the instance.
    pub fn instance_tag(&self, key: &str) -> Option<&str> {
        self.instance.as_ref()?.tags.get(key).map(String::as_str)
    }

    /// The ECS cluster whose task has the interface.
    pub fn cluster(&self) -> Option<&str> {
        let tagged = || self.tags.get(ECS_CLUSTER_TAG).map(String::as_str);
        self.ties.cluster.as_deref().or_else(tagged)
    }

    /// Whether ECS made it for a task: it describes such by the ARN of the attachment.
    pub fn of_task(&self) -> bool {
        self.description.starts_with("arn:") && self.description.contains(":ecs:")
    }

    /// The load balancer that it belongs to. Elastic Load Balancing describes its interfaces as `ELB app/NAME/HASH` or
    /// `ELB NAME`; what somebody writes on an interface of their own does not count.
    pub fn load_balancer(&self) -> Option<(BalancerKind, &str)> {
        let name = self.description.strip_prefix("ELB ")?;
        if !self.requester_managed {
            return None;
        }
        match name.split_once('/') {
            None => Some((BalancerKind::Classic, name)),
            Some(("app", rest)) => {
                let name = rest.split_once('/').map_or(rest, |(name, _)| name);
                Some((BalancerKind::Application, name))
            }
            // Network and Gateway Load Balancers have interfaces of types of their own.
            Some(_) => None,
        }
    }

    /// Made by a service whose interfaces may be mirrored all the same: RDS and ElastiCache (documented), and tasks on
    /// Fargate, whose interface ECS describes by the ARN of the attachment.
    pub fn managed_but_mirrorable(&self) -> bool {
        self.description.starts_with("RDS")
            || self.description.starts_with("ElastiCache")
            || self.of_task()
    }
}
