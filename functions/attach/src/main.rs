//! Lambda `attach`: an SQS batch of events, or one bare event; the interfaces that they name converge.

use aws_lambda_events::sqs::SqsEvent;
use cloud::{Cloud, Refusal};
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use mirror::answer::AttachAnswer;
use mirror::attach::{self, AttachError, Queued};
use mirror::converge::Run;
use mirror::emf;
use mirror::memory::Memory;
use mirror::pace::Pacer;
use mirror::settings::{Settings, SettingsError};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Mutex;
use std::time::Duration;

/// Kept back of an invocation's time for its answer.
const RESERVE: Duration = Duration::from_secs(5);

struct Function {
    cloud: Cloud,
    /// An error here answers each invocation: a function that ends at its start would be started again for ever.
    settings: Result<Settings, SettingsError>,
    pacer: Mutex<Pacer>,
    memory: Memory,
}

/// What invokes this function: the queue's mapping, or somebody with one event.
#[derive(Deserialize)]
#[serde(untagged)]
enum Inbound {
    Batch(SqsEvent),
    Bare(Value),
}

async fn handle(function: &Function, event: LambdaEvent<Inbound>) -> Result<AttachAnswer, Refusal> {
    let settings = function.settings.as_ref().map_err(Refusal::settings)?;
    let deadline = function.cloud.deadline(event.context.deadline, RESERVE);
    let run = Run {
        ports: &function.cloud,
        settings,
        pacer: &function.pacer,
        memory: &function.memory,
        deadline,
    };
    let answer = match event.payload {
        Inbound::Batch(batch) => attach::batch(&run, &queued(batch)).await,
        Inbound::Bare(payload) => attach::bare(&run, &payload).await.map_err(|e| match e {
            AttachError::Malformed(_) => Refusal::event(&e),
            AttachError::Api(_) => Refusal::service(&e),
        })?,
    };
    report(settings, &answer);
    Ok(answer)
}

/// A record without text is a malformed event, and ends as one.
fn queued(batch: SqsEvent) -> Vec<Queued> {
    let message = |m: aws_lambda_events::sqs::SqsMessage| Queued {
        id: m.message_id.unwrap_or_default(),
        body: m.body.unwrap_or_default(),
    };
    batch.records.into_iter().map(message).collect()
}

fn report(settings: &Settings, answer: &AttachAnswer) {
    let again = answer.batch_item_failures.as_ref().map_or(0, Vec::len);
    let figures = [
        ("EventsIgnored", answer.ignored),
        ("EventsMalformed", answer.malformed),
        ("MessagesRetried", again.saturating_sub(answer.malformed)),
    ];
    for failed in &answer.answer.failed {
        tracing::warn!(eni = %failed.eni, "{}", failed.error);
    }
    let lines = emf::lines(
        &settings.stack,
        "attach",
        cloud::epoch_ms(),
        &answer.answer,
        &figures,
        &answer.latencies,
    );
    for line in lines {
        println!("{line}");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    cloud::init_logs();
    let settings = Settings::read(cloud::env);
    let rate = settings.as_ref().map_or(1.0, |s| s.mutations_per_second);
    let pacer = Mutex::new(Pacer::for_poller(rate));
    let function: &'static Function = Box::leak(Box::new(Function {
        cloud: Cloud::from_env().await,
        settings,
        pacer,
        memory: Memory::default(),
    }));
    run(service_fn(move |event| handle(function, event))).await
}
