//! The flags of `rebuilder publish`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rebuilder::publish::NAMESPACE;
use rebuilder::publish::cloudwatch::{self, Admin, PublishError, PublishOptions};
use rebuilder::units::parse_duration;

#[derive(Args)]
pub(super) struct PublishArgs {
    /// The value of the metrics' only dimension, `Stack`: who shares it is added up.
    #[arg(long, env = "REBUILDER_PUBLISH_STACK", value_name = "NAME")]
    stack: String,
    /// The namespace of the metrics.
    #[arg(long, env = "REBUILDER_PUBLISH_NAMESPACE", default_value = NAMESPACE)]
    namespace: String,
    /// Where the rebuilder serves /metrics.
    #[arg(
        long,
        env = "REBUILDER_PUBLISH_ADMIN",
        default_value = "http://127.0.0.1:9445",
        value_name = "URL"
    )]
    admin: Admin,
    /// How often figures are put.
    #[arg(long, env = "REBUILDER_PUBLISH_EVERY", default_value = "30s", value_parser = parse_duration)]
    every: Duration,
    /// A file that remembers what was put, for a process that goes on after this one.
    #[arg(long, env = "REBUILDER_PUBLISH_STATE", value_name = "FILE")]
    state: Option<PathBuf>,
}

pub(super) fn run(args: PublishArgs) -> Result<(), PublishError> {
    super::log("info");
    cloudwatch::run(&PublishOptions {
        admin: args.admin,
        every: args.every,
        namespace: args.namespace,
        stack: args.stack,
        state: args.state,
    })
}
