//! CloudFormation: whether this stack is on its way out.

use crate::errors::api_error;
use aws_config::SdkConfig;
use aws_sdk_cloudformation::Client;
use aws_sdk_cloudformation::types::Stack;
use mirror::error::ApiError;
use mirror::id::StackArn;

pub(crate) async fn is_leaving(sdk: &SdkConfig, stack: &StackArn) -> Result<bool, ApiError> {
    let call = Client::new(sdk)
        .describe_stacks()
        .stack_name(stack.as_str());
    let answer = call.send().await.map_err(|e| api_error(&e))?;
    Ok(answer.stacks().iter().any(leaves))
}

/// `DELETE_…`, and `ROLLBACK_…`: the creation failed, and what was made is removed again. That of a failed update is
/// called `UPDATE_ROLLBACK_…`, and the stack stays.
fn leaves(stack: &Stack) -> bool {
    let status = stack.stack_status().map_or("", |s| s.as_str());
    status.starts_with("DELETE_") || status.starts_with("ROLLBACK_")
}
