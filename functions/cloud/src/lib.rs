//! The AWS side of the ports of [`mirror`], and what the functions share at their start.
//!
//! # Environment
//!
//! The template sets it; nothing else configures a function. An empty value counts as absent.
//!
//! | variable | parameter or resource | default |
//! |---|---|---|
//! | `MIRRORFLEET_STACK_ARN` | `AWS::StackId` | needed |
//! | `MIRRORFLEET_TARGET_ID` | the mirror target | needed |
//! | `MIRRORFLEET_FILTER_ID` | the mirror filter | needed |
//! | `MIRRORFLEET_SELECTION` | `Selection` | `tag:Mirror=true` |
//! | `MIRRORFLEET_VNI` | `Vni` | 4789 |
//! | `MIRRORFLEET_PACKET_LENGTH` | `PacketLength` | 8500 |
//! | `MIRRORFLEET_SESSION_NUMBER_BASE` | `SessionNumberBase` | 100 |
//! | `MIRRORFLEET_MUTATIONS_PER_SECOND` | `MutationsPerSecond`, of all functions together | 3 |
//! | `MIRRORFLEET_SWEEP_MINUTES` | `SweepMinutes` | 5 |
//! | `MIRRORFLEET_MIRRORING` | `Mirroring` | `on` |
//! | `MIRRORFLEET_OWN_SECURITY_GROUPS` | security groups of rebuilders, load balancers and nodes, by comma | none |
//! | `MIRRORFLEET_ANALYZER_URL` | `AnalyzerUrl` | none |
//! | `MIRRORFLEET_SESSION_HOUR_USD` | `SessionHourUsd` | 0.015 |
//! | `MIRRORFLEET_SESSION_HEADROOM` | `SessionHeadroom` | 100 |
//! | `MIRRORFLEET_TARGET_GROUP_ARN` | the rebuilders' target group, of `drain` alone | needed |
//!
//! `AWS_ENDPOINT_URL` (and `AWS_ENDPOINT_URL_EC2` and so on, a service each) are honoured; `RUST_LOG` sets the log's filter
//! (default `info`).
//!
//! # Permissions
//!
//! `ec2:DescribeNetworkInterfaces`, `ec2:DescribeInstances`, `ec2:DescribeTrafficMirrorSessions`,
//! `ec2:CreateTrafficMirrorSession`, `ec2:ModifyTrafficMirrorSession`, `ec2:DeleteTrafficMirrorSession`, `ec2:CreateTags`
//! (in the creating call), `ec2:DescribeTrafficMirrorTargets`, `cloudformation:DescribeStacks` on the stack; for `elb:NAME`
//! in the selection `elasticloadbalancing:DescribeLoadBalancers`, for `ecs:` `ecs:ListClusters`, `ecs:ListTasks` and
//! `ecs:DescribeTasks`; `reconcile` also `lambda:InvokeFunction` on itself, for removals that one run is too short for.
//! `drain` needs none of these, but `elasticloadbalancing:DeregisterTargets`, `elasticloadbalancing:DescribeTargetHealth`,
//! `autoscaling:RecordLifecycleActionHeartbeat` and `autoscaling:CompleteLifecycleAction`.

mod describe;
mod ecs;
mod elb;
mod errors;
mod http;
mod leave;
mod mutate;
mod refusal;
mod stack;

pub use refusal::Refusal;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use mirror::ports::{Clock, Resolver};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// A page of 1,000 may take this long; a throttled one is asked for again.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(20);
/// A change may take this long. Whether it was made is then found out by the same token, or by describing.
const MUTATE_TIMEOUT: Duration = Duration::from_secs(5);
/// Tries of one page.
const DESCRIBE_TRIES: u32 = 4;

/// AWS. Built once, at the start of the process.
#[derive(Debug)]
pub struct Cloud {
    /// Describes, with retries of the SDK's own.
    reader: aws_sdk_ec2::Client,
    /// Changes, one try each: retries are paced and counted by `mirror`.
    writer: aws_sdk_ec2::Client,
    /// As `reader`, for clients of other services. They are made for each call: few runs need one, and all share the
    /// connections.
    reading: SdkConfig,
    /// As `writer`, likewise.
    writing: SdkConfig,
    /// For what is no SDK call. Made when first used: `attach` never needs it, and loading certificates takes time.
    plain: OnceLock<Connector>,
    start: Instant,
}

impl Cloud {
    /// Reads region, credentials and endpoints from the environment.
    pub async fn from_env() -> Self {
        // One for all clients: each that is left to itself loads the certificates once more.
        let http = Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .build_https();
        let sdk = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .http_client(http)
            .load()
            .await;
        let timeouts = |attempt: Duration| {
            TimeoutConfig::builder()
                .connect_timeout(Duration::from_secs(3))
                .operation_attempt_timeout(attempt)
                .build()
        };
        let reading = sdk
            .to_builder()
            .retry_config(RetryConfig::standard().with_max_attempts(DESCRIBE_TRIES))
            .timeout_config(timeouts(DESCRIBE_TIMEOUT))
            .build();
        let writing = sdk
            .into_builder()
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts(MUTATE_TIMEOUT))
            .build();
        Self {
            reader: aws_sdk_ec2::Client::new(&reading),
            writer: aws_sdk_ec2::Client::new(&writing),
            reading,
            writing,
            plain: OnceLock::new(),
            start: Instant::now(),
        }
    }

    fn plain(&self) -> &Connector {
        let tls = || {
            Connector::builder()
                .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
                .build()
        };
        self.plain.get_or_init(tls)
    }

    /// When a run has to end, by the clock of this port: `reserve` before the invocation's deadline, but never more than
    /// a quarter of what is left before it. `deadline_ms` is Lambda's, in milliseconds of the epoch.
    pub fn deadline(&self, deadline_ms: u64, reserve: Duration) -> Duration {
        let left = Duration::from_millis(deadline_ms.saturating_sub(epoch_ms()));
        self.now() + left.saturating_sub(reserve.min(left / 4))
    }
}

impl Clock for Cloud {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn since_epoch(&self) -> Option<Duration> {
        SystemTime::now().duration_since(UNIX_EPOCH).ok()
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

impl Resolver for Cloud {
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        // The port is not looked at.
        let lookup = tokio::net::lookup_host((host, 0));
        match tokio::time::timeout(Duration::from_secs(5), lookup).await {
            Ok(Ok(found)) => Ok(found.map(|a| a.ip()).collect()),
            Ok(Err(e)) => Err(format!("{host} cannot be resolved: {e}")),
            Err(_) => Err(format!("{host} cannot be resolved: no answer in 5 s")),
        }
    }
}

/// Milliseconds since 1970.
pub fn epoch_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// One variable of the environment.
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Logs as JSON lines on standard output, where Lambda takes them from.
pub fn init_logs() {
    // Not the crate's `EnvFilter`: its regular expressions are half a megabyte of every function.
    let filter = env("RUST_LOG").and_then(|filter| filter.parse().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let fields = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false);
    let logs = tracing_subscriber::registry().with(filter).with(fields);
    // Fails only where a subscriber is set already, and then there are logs.
    let _ = logs.try_init();
}
