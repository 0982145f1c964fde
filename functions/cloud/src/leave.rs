//! What `drain` asks: a target group of the load balancer, and the lifecycle action of an Auto Scaling group. One try a
//! call: [`mirror::drain`] repeats what is worth it.

use crate::Cloud;
use crate::errors::api_error;
use aws_sdk_elasticloadbalancingv2::types::{TargetDescription, TargetHealthStateEnum};
use mirror::drain::{LifecycleAction, Target};
use mirror::error::{ApiError, ErrorClass};
use mirror::id::InstanceId;
use mirror::ports::{Lifecycle, Targets};

fn described(instance: &InstanceId) -> TargetDescription {
    TargetDescription::builder().id(instance.as_str()).build()
}

impl Targets for Cloud {
    async fn deregister(&self, target_group: &str, instance: &InstanceId) -> Result<(), ApiError> {
        let call = aws_sdk_elasticloadbalancingv2::Client::new(&self.writing)
            .deregister_targets()
            .target_group_arn(target_group)
            .targets(described(instance));
        call.send().await.map_err(|e| api_error(&e)).map(|_| ())
    }

    async fn target(&self, target_group: &str, instance: &InstanceId) -> Result<Target, ApiError> {
        let call = aws_sdk_elasticloadbalancingv2::Client::new(&self.writing)
            .describe_target_health()
            .target_group_arn(target_group)
            .targets(described(instance));
        let answer = call.send().await.map_err(|e| api_error(&e))?;
        let state = answer
            .target_health_descriptions()
            .first()
            .and_then(|d| d.target_health())
            .and_then(|h| h.state());
        Ok(match state {
            None | Some(TargetHealthStateEnum::Unused) => Target::Gone,
            Some(TargetHealthStateEnum::Draining | TargetHealthStateEnum::UnhealthyDraining) => {
                Target::Draining
            }
            Some(_) => Target::Registered,
        })
    }
}

impl Lifecycle for Cloud {
    async fn heartbeat(&self, action: &LifecycleAction) -> Result<(), ApiError> {
        let call = aws_sdk_autoscaling::Client::new(&self.writing)
            .record_lifecycle_action_heartbeat()
            .auto_scaling_group_name(&action.group)
            .lifecycle_hook_name(&action.hook)
            .lifecycle_action_token(&action.token)
            .instance_id(action.instance.as_str());
        call.send()
            .await
            .map_err(|e| over(api_error(&e)))
            .map(|_| ())
    }

    async fn complete(&self, action: &LifecycleAction) -> Result<(), ApiError> {
        let call = aws_sdk_autoscaling::Client::new(&self.writing)
            .complete_lifecycle_action()
            .auto_scaling_group_name(&action.group)
            .lifecycle_hook_name(&action.hook)
            .lifecycle_action_token(&action.token)
            .instance_id(action.instance.as_str())
            .lifecycle_action_result("CONTINUE");
        call.send()
            .await
            .map_err(|e| over(api_error(&e)))
            .map(|_| ())
    }
}

/// Auto Scaling has one code for everything that is not there: the action ("No active Lifecycle Action found …"), the
/// hook, the group.
fn over(error: ApiError) -> ApiError {
    match error.code.as_str() {
        "ValidationError" => ApiError {
            class: ErrorClass::Gone,
            ..error
        },
        _ => error,
    }
}
