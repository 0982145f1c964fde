//! `rebuilder publish`: asks the rebuilder each second, and puts what it says into CloudWatch.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_cloudwatch::operation::put_metric_data::PutMetricDataError;
use aws_sdk_cloudwatch::types::{Dimension, MetricDatum, StandardUnit, StatisticSet};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::{Batch, DIMENSION, Datum, Ledger, Unit, Value};

/// How often the rebuilder is asked. It measures its load over a second, so each one is seen.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The admin endpoint is on this machine.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
/// Far more than `/metrics` has.
const ANSWER_MAX: u64 = 1024 * 1024;
/// Tries of one put, and how long each of them and all together may take: a put that fails goes with the next one.
const TRIES: u32 = 3;
const TRY_TIMEOUT: Duration = Duration::from_secs(3);
const PUT_TIMEOUT: Duration = Duration::from_secs(8);

/// What `rebuilder publish` needs to know.
#[derive(Clone, Debug)]
pub struct PublishOptions {
    /// Where the rebuilder's `/metrics` is.
    pub admin: Admin,
    /// How often figures are put.
    pub every: Duration,
    /// The namespace of the metrics.
    pub namespace: String,
    /// The value of the dimension.
    pub stack: String,
    /// Where what was put is remembered, so that a new process goes on from there.
    pub state: Option<PathBuf>,
}

/// `http://ADDRESS:PORT`.
#[derive(Clone, Copy, Debug)]
pub struct Admin(SocketAddr);

impl FromStr for Admin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text
            .strip_prefix("http://")
            .map(|rest| rest.strip_suffix('/').unwrap_or(rest))
            .and_then(|rest| rest.parse().ok());
        address
            .map(Self)
            .ok_or_else(|| "the admin endpoint is http://ADDRESS:PORT".into())
    }
}

/// Why nothing can be published at all. What fails later is said and tried again.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Threads or signals.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
}

/// Publishes until SIGTERM or SIGINT, then once more.
///
/// # Errors
/// [`PublishError`].
pub fn run(options: &PublishOptions) -> Result<(), PublishError> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (end, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            signals.forever().next();
            let _ = end.send(());
        })?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(publish(options, ended));
    Ok(())
}

async fn publish(options: &PublishOptions, mut ended: oneshot::Receiver<()>) {
    let mut publisher = Publisher {
        options,
        client: client().await,
        ledger: remembered(options.state.as_deref()),
        asking: Told::default(),
        putting: Told::default(),
        remembering: Told::default(),
        asked: Instant::now(),
    };
    info!(
        "publishing the figures of {} each {:?}, {DIMENSION} {}",
        options.admin.0, options.every, options.stack
    );
    let mut seconds = interval(ASK_EVERY);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut put_at = Instant::now() + options.every;
    loop {
        tokio::select! {
            _ = seconds.tick() => {}
            _ = &mut ended => break,
        }
        publisher.ask().await;
        if Instant::now() >= put_at {
            put_at += options.every;
            publisher.put().await;
        }
    }
    publisher.ask().await;
    publisher.put().await;
}

struct Publisher<'a> {
    options: &'a PublishOptions,
    client: Client,
    ledger: Ledger,
    asking: Told,
    putting: Told,
    remembering: Told,
    asked: Instant,
}

impl Publisher<'_> {
    async fn ask(&mut self) {
        let elapsed = self.asked.elapsed();
        self.asked = Instant::now();
        let answer = timeout(ASK_TIMEOUT, metrics(self.options.admin.0)).await;
        let taken = match answer {
            Err(_) => Err("it does not answer".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(text)) => self
                .ledger
                .observe(&text, elapsed)
                .map_err(|error| error.to_string()),
        };
        let whom = self.options.admin.0;
        self.asking
            .tell(&format!("asking {whom} for figures"), taken);
    }

    async fn put(&mut self) {
        if let Some(batch) = self.ledger.take() {
            let put = timeout(PUT_TIMEOUT, self.try_to_put(&batch)).await;
            let put = put.unwrap_or_else(|_| Err("CloudWatch does not answer".to_owned()));
            if put.is_err() {
                self.ledger.give_back(batch);
            }
            self.putting.tell("putting figures into CloudWatch", put);
        }
        if let Some(file) = &self.options.state {
            let kept = self
                .ledger
                .state()
                .map_err(|error| error.to_string())
                .and_then(|state| replace(file, &state).map_err(|error| error.to_string()));
            let what = format!("remembering in {} what was put", file.display());
            self.remembering.tell(&what, kept);
        }
    }

    async fn try_to_put(&self, batch: &Batch) -> Result<(), String> {
        let dimension = Dimension::builder()
            .name(DIMENSION)
            .value(&self.options.stack)
            .build();
        let now = SystemTime::now().into();
        let datums = batch.datums().iter().map(|datum| {
            let of = MetricDatum::builder()
                .dimensions(dimension.clone())
                .timestamp(now);
            of_datum(datum, of).build()
        });
        self.client
            .put_metric_data()
            .namespace(&self.options.namespace)
            .set_metric_data(Some(datums.collect()))
            .send()
            .await
            .map(drop)
            .map_err(|error| why(&error))
    }
}

/// Without what differs from one call to the next.
fn why(error: &SdkError<PutMetricDataError>) -> String {
    let refused = error.as_service_error().map(ProvideErrorMetadata::meta);
    match refused.and_then(|meta| meta.code().zip(meta.message())) {
        Some((code, message)) => format!("{code}: {message}"),
        None => DisplayErrorContext(error).to_string(),
    }
}

fn of_datum(
    datum: &Datum,
    of: aws_sdk_cloudwatch::types::builders::MetricDatumBuilder,
) -> aws_sdk_cloudwatch::types::builders::MetricDatumBuilder {
    let of = of.metric_name(&datum.name).unit(match datum.unit {
        Unit::Count => StandardUnit::Count,
        Unit::Bytes => StandardUnit::Bytes,
        Unit::Percent => StandardUnit::Percent,
        Unit::Seconds => StandardUnit::Seconds,
    });
    match datum.value {
        Value::Single(value) => of.value(value),
        Value::Statistics {
            count,
            sum,
            min,
            max,
        } => of.statistic_values(
            StatisticSet::builder()
                .sample_count(count)
                .sum(sum)
                .minimum(min)
                .maximum(max)
                .build(),
        ),
    }
}

/// Region, credentials and endpoint as the SDK finds them: the environment, then the metadata service.
async fn client() -> Client {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(2))
        .operation_attempt_timeout(TRY_TIMEOUT)
        .build();
    let config = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .retry_config(RetryConfig::standard().with_max_attempts(TRIES))
        .timeout_config(timeouts)
        .load()
        .await;
    Client::new(&config)
}

/// `GET /metrics`.
async fn metrics(admin: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    // The server ends the connection behind an answer to HTTP/1.0.
    stream
        .write_all(format!("GET /metrics HTTP/1.0\r\nHost: {admin}\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer).await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => {
            let line = answer.lines().next().unwrap_or_default();
            Err(io::Error::other(format!("it answers {line:?}")))
        }
    }
}

fn remembered(file: Option<&Path>) -> Ledger {
    let Some(file) = file else {
        return Ledger::default();
    };
    let ledger = match std::fs::read_to_string(file) {
        Ok(text) => Ledger::from_state(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ledger::default()),
        Err(error) => Err(error.to_string()),
    };
    ledger.unwrap_or_else(|error| {
        warn!(
            "{}: {error}; everything that the rebuilder has counted is put, whether it was before or not",
            file.display()
        );
        Ledger::default()
    })
}

/// All or nothing: a process that is killed meanwhile leaves the old state.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, file)
}

/// Says when something begins to fail, why, and when it does no more: not each time.
#[derive(Debug, Default)]
struct Told(Option<String>);

impl Told {
    fn tell(&mut self, what: &str, outcome: Result<(), String>) {
        match (&self.0, outcome) {
            (Some(_), Ok(())) => {
                info!("{what} works again");
                self.0 = None;
            }
            (before, Err(why)) if before.as_deref() != Some(why.as_str()) => {
                warn!("{what} fails, and is tried again: {why}");
                self.0 = Some(why);
            }
            _ => {}
        }
    }
}
