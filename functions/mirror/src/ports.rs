//! What the logic asks of the world: a trait per capability, so that each function's permissions can be read off its
//! bounds, and so that tests run on memory.

use crate::drain::{LifecycleAction, Target};
use crate::error::ApiError;
use crate::id::{EniId, InstanceId, SessionId, SessionNumber, StackArn};
use crate::interface::{Instance, Interface};
use crate::plan::{Session, SessionSpec};
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

/// Which interfaces to describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterfaceQuery<'a> {
    /// All of the region.
    All,
    /// These, by id. One that is gone is left out of the answer, it is no error.
    Ids(&'a [EniId]),
    /// Those that are attached to these instances.
    OfInstances(&'a [InstanceId]),
}

/// Which sessions to describe. The API has no filter for tags, so everyone's are in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionQuery<'a> {
    /// All of the account in the region.
    All,
    /// Those on these interfaces.
    On(&'a [EniId]),
}

/// Which instances to describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceQuery<'a> {
    /// All of the region.
    All,
    /// These, by id. One that is gone is left out of the answer, it is no error.
    Ids(&'a [InstanceId]),
}

/// Reads what is there. Calls page through everything, and retry what can be retried.
pub trait Inventory: Sync {
    /// Interfaces, without their instances ([`Interface::instance`] is `None`).
    fn interfaces(
        &self,
        query: InterfaceQuery<'_>,
    ) -> impl Future<Output = Result<Vec<Interface>, ApiError>> + Send;

    /// Instances.
    fn instances(
        &self,
        query: InstanceQuery<'_>,
    ) -> impl Future<Output = Result<Vec<Instance>, ApiError>> + Send;

    /// Mirror sessions.
    fn sessions(
        &self,
        query: SessionQuery<'_>,
    ) -> impl Future<Output = Result<Vec<Session>, ApiError>> + Send;

    /// All Classic Load Balancers of the region with the instances registered with them
    /// (`elasticloadbalancing:DescribeLoadBalancers` of API version 2012-06-01, 400 a page). Asked for only where the
    /// selection has an `elb:NAME` term; so not to know is an error, never an empty list: that would unselect.
    fn classic_balancers(
        &self,
    ) -> impl Future<Output = Result<Vec<ClassicBalancer>, ApiError>> + Send;

    /// Names of all ECS clusters of the region (`ecs:ListClusters`, 100 a page). Asked for only where an `ecs:` term
    /// holds a star.
    fn clusters(&self) -> impl Future<Output = Result<Vec<String>, ApiError>> + Send;

    /// Interfaces of the tasks of an ECS cluster that run or start (`ecs:ListTasks`, then `ecs:DescribeTasks` with 100
    /// tasks a call; `attachments[].details[networkInterfaceId]`). A cluster that is not there has none.
    fn task_interfaces(
        &self,
        cluster: &str,
    ) -> impl Future<Output = Result<Vec<EniId>, ApiError>> + Send;

    /// Whether this stack is being deleted (`cloudformation:DescribeStacks`, status `DELETE_…`, or `ROLLBACK_…` after a
    /// creation that failed). Then nothing is made: it would only have to be removed again. Not to know is no reason to stop.
    fn stack_is_leaving(
        &self,
        stack: &StackArn,
    ) -> impl Future<Output = Result<bool, ApiError>> + Send;

    /// Interfaces that are themselves targets of mirror sessions, anyone's (`ec2:DescribeTrafficMirrorTargets`, which has
    /// no filter for their type). They are left out of the plan; without this list the API refuses them one by one.
    fn mirror_target_interfaces(&self)
    -> impl Future<Output = Result<Vec<EniId>, ApiError>> + Send;
}

/// A Classic Load Balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassicBalancer {
    /// Its name.
    pub name: String,
    /// The instances registered with it.
    pub instances: Vec<InstanceId>,
}

/// A session to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession<'a> {
    /// On this interface.
    pub eni: &'a EniId,
    /// With this number.
    pub number: SessionNumber,
    /// Looking like this.
    pub spec: &'a SessionSpec,
    /// Tagged as this stack's, in the creating call itself.
    pub stack: &'a StackArn,
    /// Idempotency token, the same for each try of one create.
    pub token: &'a str,
}

/// Changes sessions. One call each, no retries: those are paced and counted by the caller.
pub trait Sessions: Sync {
    /// Makes one.
    fn create(
        &self,
        new: NewSession<'_>,
    ) -> impl Future<Output = Result<SessionId, ApiError>> + Send;

    /// Gives one the number and the look.
    fn modify(
        &self,
        session: &SessionId,
        number: SessionNumber,
        spec: &SessionSpec,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Removes one.
    fn delete(&self, session: &SessionId) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// A random token of at most 64 ASCII characters.
    fn token(&self) -> String;

    /// A random number from 0 to 1, to spread retries. Drawn from a token unless said otherwise.
    fn random(&self) -> f64 {
        // FNV-1a, and MurmurHash3's finaliser, because the last bytes hardly reach the upper bits of the former.
        let hash = self
            .token()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        u32::try_from(hash >> 32).map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX))
    }
}

/// A target group of a load balancer.
pub trait Targets: Sync {
    /// Takes an instance out. One that is not in it is no error.
    fn deregister(
        &self,
        target_group: &str,
        instance: &InstanceId,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// What the load balancer says of an instance.
    fn target(
        &self,
        target_group: &str,
        instance: &InstanceId,
    ) -> impl Future<Output = Result<Target, ApiError>> + Send;
}

/// A termination that waits for us. Of an action that is over, both calls say [`crate::error::ErrorClass::Gone`].
pub trait Lifecycle: Sync {
    /// It still takes time.
    fn heartbeat(
        &self,
        action: &LifecycleAction,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// It may go on.
    fn complete(
        &self,
        action: &LifecycleAction,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// Time.
pub trait Clock: Sync {
    /// Monotonic time from any fixed start.
    fn now(&self) -> Duration;

    /// The time of day: since 1970. `None` where it is not known; then no latency is told, and an event is never taken
    /// for one that came before what it tells is visible.
    fn since_epoch(&self) -> Option<Duration> {
        None
    }

    /// Waits.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send;
}

/// Names to addresses.
pub trait Resolver: Sync {
    /// All addresses of a host; the error is one line.
    fn resolve(&self, host: &str) -> impl Future<Output = Result<Vec<IpAddr>, String>> + Send;
}

/// Answers to CloudFormation.
pub trait Callback: Sync {
    /// HTTP PUT of `body` to a presigned URL, without a content type; the error is one line.
    fn put(&self, url: &str, body: String) -> impl Future<Output = Result<(), String>> + Send;
}

/// The function itself, once more.
pub trait Again: Sync {
    /// Starts the running function asynchronously with this event; the error is one line.
    fn invoke_self(&self, event: String) -> impl Future<Output = Result<(), String>> + Send;
}

/// The versions of a Lambda layer.
pub trait Layers: Sync {
    /// Of all pages (`lambda:ListLayerVersions`, 50 a page). A layer that is not there has none.
    fn layer_versions(
        &self,
        layer: &str,
    ) -> impl Future<Output = Result<Vec<u64>, ApiError>> + Send;

    /// Removes one (`lambda:DeleteLayerVersion`). One try.
    fn delete_layer_version(
        &self,
        layer: &str,
        version: u64,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// What a converging run needs.
pub trait Ports: Inventory + Sessions + Clock + Resolver {}
impl<T: Inventory + Sessions + Clock + Resolver> Ports for T {}
