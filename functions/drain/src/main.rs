//! Lambda `drain`: the terminate hook of the rebuilders' group. One that leaves goes when the load balancer has moved its
//! flows.

use cloud::{Cloud, Refusal};
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use mirror::drain::{self, Ending, Left, LifecycleAction};
use mirror::emf;
use mirror::id::StackArn;
use serde_json::{Value, json};
use std::time::Duration;

/// Kept back of an invocation's time for its answer.
const RESERVE: Duration = Duration::from_secs(15);
const STACK: &str = "MIRRORFLEET_STACK_ARN";
const TARGET_GROUP: &str = "MIRRORFLEET_TARGET_GROUP_ARN";

async fn handle(cloud: &Cloud, event: LambdaEvent<Value>) -> Result<Value, Refusal> {
    let LambdaEvent { payload, context } = event;
    let setting = |name: &'static str| {
        cloud::env(name).filter(|v| !v.is_empty()).ok_or_else(|| {
            let what = "is not set; the template sets it, so deploy the function with it";
            Refusal::settings(&format!("{name}: {what}"))
        })
    };
    let (stack, target_group) = (StackArn::new(setting(STACK)?), setting(TARGET_GROUP)?);
    let action = LifecycleAction::parse(&payload).map_err(|e| Refusal::event(&e))?;
    let deadline = cloud.deadline(context.deadline, RESERVE);
    let left = drain::run(cloud, &target_group, &action, deadline).await;
    println!("{}", emf::left(&stack, cloud::epoch_ms(), &left));
    told(&left)
}

/// Lambda repeats what fails, and by then the hook may have been let go on.
fn told(left: &Left) -> Result<Value, Refusal> {
    let why = left.error.as_deref().unwrap_or("no call failed");
    match left.ended {
        Ending::NotCompleted => {
            return Err(Refusal::service(&format!(
                "{}: {} ({why})",
                left.instance, left.ended
            )));
        }
        Ending::Unmoved => tracing::warn!(instance = %left.instance, "{} ({why})", left.ended),
        Ending::Drained | Ending::Over => {
            tracing::info!(instance = %left.instance, "{}", left.ended);
        }
    }
    Ok(json!(left))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    cloud::init_logs();
    let cloud: &'static Cloud = Box::leak(Box::new(Cloud::from_env().await));
    run(service_fn(move |event| handle(cloud, event))).await
}
