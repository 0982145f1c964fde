//! What the logic asks of the world: a trait per capability, so that each function's permissions can be read off its
//! bounds, and so that tests run on memory.

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
}

/// Time.
pub trait Clock: Sync {
    /// Monotonic time from any fixed start.
    fn now(&self) -> Duration;

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

/// What a converging run needs.
pub trait Ports: Inventory + Sessions + Clock + Resolver {}
impl<T: Inventory + Sessions + Clock + Resolver> Ports for T {}
