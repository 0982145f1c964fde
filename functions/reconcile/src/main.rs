//! Lambda `reconcile`: schedule, dry run, explanation, and the stack's custom resource.

use cloud::{Cloud, Refusal};
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use mirror::converge::Run;
use mirror::custom::Custom;
use mirror::emf;
use mirror::error::ApiError;
use mirror::memory::Memory;
use mirror::pace::Pacer;
use mirror::reconcile::{Request, Swept, dry_run, explain, scheduled_sweep};
use mirror::settings::{Settings, SettingsError, Teardown};
use serde_json::{Value, json};
use std::sync::Mutex;
use std::time::Duration;

/// Kept back of an invocation's time for its answer, CloudFormation's included.
const RESERVE: Duration = Duration::from_secs(15);

struct Function {
    cloud: Cloud,
    /// An error here answers each invocation: a function that ends at its start would be started again for ever.
    settings: Result<Settings, SettingsError>,
    pacer: Mutex<Pacer>,
    memory: Memory,
}

async fn handle(function: &Function, event: LambdaEvent<Value>) -> Result<Value, Refusal> {
    let LambdaEvent { payload, context } = event;
    let deadline = function.cloud.deadline(context.deadline, RESERVE);
    match Request::parse(&payload).map_err(|e| Refusal::event(&e))? {
        Request::Custom => custom(function, &payload, deadline).await,
        request => converge(function, request, deadline).await,
    }
}

async fn custom(
    function: &Function,
    payload: &Value,
    deadline: Duration,
) -> Result<Value, Refusal> {
    let stack_of_event = payload
        .get("StackId")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let custom = Custom {
        ports: &function.cloud,
        settings: function.settings.as_ref(),
        teardown: Teardown::read(cloud::env, stack_of_event),
        pacer: &function.pacer,
        deadline,
    };
    let answered = custom
        .handle(payload)
        .await
        .map_err(|e| Refusal::service(&e))?;
    tracing::info!(%answered, "custom resource");
    Ok(answered)
}

async fn converge(
    function: &Function,
    request: Request,
    deadline: Duration,
) -> Result<Value, Refusal> {
    let settings = function.settings.as_ref().map_err(Refusal::settings)?;
    let run = Run {
        ports: &function.cloud,
        settings,
        pacer: &function.pacer,
        memory: &function.memory,
        deadline,
    };
    let text = |e: ApiError| Refusal::service(&format!("nothing could be listed: {e}"));
    match request {
        Request::Explain(of) => Ok(json!(explain(&run, &of).await.map_err(text)?)),
        Request::DryRun => Ok(json!(dry_run(&run).await.map_err(text)?.answer)),
        Request::Sweep | Request::Custom => {
            let swept = scheduled_sweep(&run).await.map_err(text)?;
            report(settings, &swept);
            Ok(json!(swept.answer))
        }
    }
}

fn report(settings: &Settings, swept: &Swept) {
    for failed in &swept.answer.failed {
        tracing::warn!(eni = %failed.eni, "{}", failed.error);
    }
    if let Some(why) = &swept.analyzer {
        tracing::error!(
            "AnalyzerUrl (MIRRORFLEET_ANALYZER_URL): {why}; no session is made until it can be resolved"
        );
    }
    let figures = [
        ("SessionsOurs", swept.ours),
        ("SessionsForeign", swept.foreign),
        ("SessionsDrifted", swept.drifted),
        ("QuotaHeadroom", swept.headroom),
    ];
    let lines = emf::lines(
        &settings.stack,
        "reconcile",
        cloud::epoch_ms(),
        &swept.answer,
        &figures,
        &[],
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
    let pacer = Mutex::new(Pacer::for_sweep(rate));
    let function: &'static Function = Box::leak(Box::new(Function {
        cloud: Cloud::from_env().await,
        settings,
        pacer,
        memory: Memory::default(),
    }));
    run(service_fn(move |event| handle(function, event))).await
}
