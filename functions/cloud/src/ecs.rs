//! ECS: which interfaces belong to the tasks of a cluster.

use crate::errors::api_error;
use aws_config::SdkConfig;
use aws_sdk_ecs::Client;
use aws_sdk_ecs::error::SdkError;
use aws_sdk_ecs::types::{DesiredStatus, Task};
use mirror::error::ApiError;
use mirror::id::EniId;

/// Most items of a page of `ListClusters` and `ListTasks`, and most tasks of one `DescribeTasks` (ECS API reference).
const PAGE: i32 = 100;
const TASKS: usize = 100;
/// Attachment of a task that uses the network mode `awsvpc`, Fargate's only one, and its detail with the interface's id
/// (API reference, Attachment).
const ATTACHMENT: &str = "ElasticNetworkInterface";
const DETAIL: &str = "networkInterfaceId";

pub(crate) async fn clusters(sdk: &SdkConfig) -> Result<Vec<String>, ApiError> {
    let call = Client::new(sdk).list_clusters();
    let mut pages = call.into_paginator().page_size(PAGE).send();
    let mut found = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| api_error(&e))?;
        // arn:aws:ecs:REGION:ACCOUNT:cluster/NAME
        let name = |arn: &String| arn.rsplit('/').next().map(str::to_owned);
        found.extend(page.cluster_arns().iter().filter_map(name));
    }
    Ok(found)
}

pub(crate) async fn task_interfaces(
    sdk: &SdkConfig,
    cluster: &str,
) -> Result<Vec<EniId>, ApiError> {
    let client = Client::new(sdk);
    let mut tasks: Vec<String> = Vec::new();
    // Those that are to run: what starts has its interface already, and what ends may still have it, but not for long.
    let call = client
        .list_tasks()
        .cluster(cluster)
        .desired_status(DesiredStatus::Running);
    let mut pages = call.into_paginator().page_size(PAGE).send();
    while let Some(page) = pages.next().await {
        match page {
            Ok(page) => tasks.extend_from_slice(page.task_arns()),
            Err(SdkError::ServiceError(answer))
                if answer.err().is_cluster_not_found_exception() =>
            {
                return Ok(Vec::new());
            }
            Err(error) => return Err(api_error(&error)),
        }
    }
    let mut found = Vec::new();
    for some in tasks.chunks(TASKS) {
        let call = client
            .describe_tasks()
            .cluster(cluster)
            .set_tasks(Some(some.to_vec()));
        // One that has ended meanwhile stands under `failures`, and has no interface any more.
        let answer = call.send().await.map_err(|e| api_error(&e))?;
        found.extend(answer.tasks().iter().flat_map(interfaces));
    }
    Ok(found)
}

fn interfaces(task: &Task) -> impl Iterator<Item = EniId> {
    task.attachments()
        .iter()
        .filter(|a| a.r#type() == Some(ATTACHMENT))
        .flat_map(|a| a.details())
        .filter(|d| d.name() == Some(DETAIL))
        .filter_map(|d| d.value().map(EniId::new))
}
