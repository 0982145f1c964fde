//! Elastic Load Balancing: which instances are registered with Classic Load Balancers.

use crate::errors::api_error;
use aws_config::SdkConfig;
use aws_sdk_elasticloadbalancing::Client;
use mirror::error::ApiError;
use mirror::id::InstanceId;
use mirror::ports::ClassicBalancer;

/// Most load balancers of a page (API reference, DescribeLoadBalancers of version 2012-06-01).
const PAGE: i32 = 400;

pub(crate) async fn classic_balancers(sdk: &SdkConfig) -> Result<Vec<ClassicBalancer>, ApiError> {
    let call = Client::new(sdk).describe_load_balancers().page_size(PAGE);
    let mut pages = call.into_paginator().send();
    let mut found = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| api_error(&e))?;
        found.extend(page.load_balancer_descriptions().iter().filter_map(|b| {
            Some(ClassicBalancer {
                name: b.load_balancer_name()?.to_owned(),
                instances: b
                    .instances()
                    .iter()
                    .filter_map(|i| i.instance_id())
                    .map(InstanceId::new)
                    .collect(),
            })
        }));
    }
    Ok(found)
}
