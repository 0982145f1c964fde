//! What is there, page by page: interfaces, instances and sessions, and what other services know of them.

use crate::errors::api_error;
use crate::{Cloud, ecs, elb, stack};
use aws_sdk_ec2::types::{
    Filter, InstanceStateName, NetworkInterface, NetworkInterfaceStatus, Tag, TrafficMirrorSession,
};
use mirror::error::ApiError;
use mirror::id::{EniId, FilterId, InstanceId, SessionId, SessionNumber, StackArn, TargetId};
use mirror::interface::{Instance, InstanceState, Interface, InterfaceStatus, Tags, Ties};
use mirror::plan::Session;
use mirror::ports::{ClassicBalancer, InstanceQuery, InterfaceQuery, Inventory, SessionQuery};
use std::net::IpAddr;

/// The tag that makes a session ours.
pub(crate) const STACK_TAG: &str = "mirrorfleet:stack";
/// Most values of one filter (EC2 API, "List and filter using the API").
const FILTER_VALUES: usize = 200;
/// Most items of a page.
const PAGE: i32 = 1000;

/// One filter for each 200 values, or none at all for everything.
fn filters<'a>(name: &'a str, values: Option<Vec<&'a str>>) -> Vec<Option<Filter>> {
    let Some(values) = values else {
        return vec![None];
    };
    let filter = |chunk: &[&str]| {
        let values = Some(chunk.iter().map(|v| (*v).to_owned()).collect());
        Some(Filter::builder().name(name).set_values(values).build())
    };
    values.chunks(FILTER_VALUES).map(filter).collect()
}

impl Inventory for Cloud {
    async fn interfaces(&self, query: InterfaceQuery<'_>) -> Result<Vec<Interface>, ApiError> {
        // Filters, not ids: an id that is gone would fail the whole call.
        let filters = match query {
            InterfaceQuery::All => filters("", None),
            InterfaceQuery::Ids(ids) => filters(
                "network-interface-id",
                Some(ids.iter().map(EniId::as_str).collect()),
            ),
            InterfaceQuery::OfInstances(ids) => filters(
                "attachment.instance-id",
                Some(ids.iter().map(InstanceId::as_str).collect()),
            ),
        };
        let mut found = Vec::new();
        for filter in filters {
            let call = self
                .reader
                .describe_network_interfaces()
                .set_filters(filter.map(|f| vec![f]));
            let mut pages = call.into_paginator().page_size(PAGE).send();
            while let Some(page) = pages.next().await {
                found.extend(
                    page.map_err(|e| api_error(&e))?
                        .network_interfaces()
                        .iter()
                        .filter_map(interface),
                );
            }
        }
        Ok(found)
    }

    async fn instances(&self, query: InstanceQuery<'_>) -> Result<Vec<Instance>, ApiError> {
        let filters = match query {
            InstanceQuery::All => filters("", None),
            InstanceQuery::Ids(ids) => filters(
                "instance-id",
                Some(ids.iter().map(InstanceId::as_str).collect()),
            ),
        };
        let mut found = Vec::new();
        for filter in filters {
            let call = self
                .reader
                .describe_instances()
                .set_filters(filter.map(|f| vec![f]));
            let mut pages = call.into_paginator().page_size(PAGE).send();
            while let Some(page) = pages.next().await {
                let page = page.map_err(|e| api_error(&e))?;
                found.extend(
                    page.reservations()
                        .iter()
                        .flat_map(|r| r.instances())
                        .filter_map(instance),
                );
            }
        }
        Ok(found)
    }

    async fn sessions(&self, query: SessionQuery<'_>) -> Result<Vec<Session>, ApiError> {
        let filters = match query {
            SessionQuery::All => filters("", None),
            SessionQuery::On(enis) => filters(
                "network-interface-id",
                Some(enis.iter().map(EniId::as_str).collect()),
            ),
        };
        let mut found = Vec::new();
        for filter in filters {
            let call = self
                .reader
                .describe_traffic_mirror_sessions()
                .set_filters(filter.map(|f| vec![f]));
            let mut pages = call.into_paginator().page_size(PAGE).send();
            while let Some(page) = pages.next().await {
                found.extend(
                    page.map_err(|e| api_error(&e))?
                        .traffic_mirror_sessions()
                        .iter()
                        .filter_map(session),
                );
            }
        }
        Ok(found)
    }

    async fn classic_balancers(&self) -> Result<Vec<ClassicBalancer>, ApiError> {
        elb::classic_balancers(&self.reading).await
    }

    async fn clusters(&self) -> Result<Vec<String>, ApiError> {
        ecs::clusters(&self.reading).await
    }

    async fn task_interfaces(&self, cluster: &str) -> Result<Vec<EniId>, ApiError> {
        ecs::task_interfaces(&self.reading, cluster).await
    }

    async fn stack_is_leaving(&self, stack: &StackArn) -> Result<bool, ApiError> {
        stack::is_leaving(&self.reading, stack).await
    }

    async fn mirror_target_interfaces(&self) -> Result<Vec<EniId>, ApiError> {
        // The API has no filter for the type of a target.
        let call = self.reader.describe_traffic_mirror_targets();
        let mut pages = call.into_paginator().page_size(PAGE).send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            found.extend(
                page.map_err(|e| api_error(&e))?
                    .traffic_mirror_targets()
                    .iter()
                    .filter_map(|t| t.network_interface_id())
                    .map(EniId::new),
            );
        }
        Ok(found)
    }
}

fn tags(tags: &[Tag]) -> Tags {
    let pair = |t: &Tag| {
        Some((
            t.key()?.to_owned(),
            t.value().unwrap_or_default().to_owned(),
        ))
    };
    tags.iter().filter_map(pair).collect()
}

/// `None` for one without an id, which does not occur.
fn interface(i: &NetworkInterface) -> Option<Interface> {
    let attachment = i.attachment();
    let public = |a: Option<&aws_sdk_ec2::types::NetworkInterfaceAssociation>| {
        a.and_then(|a| a.public_ip()).map(str::to_owned)
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    let private = i.private_ip_addresses().iter();
    let texts = private
        .flat_map(|a| {
            [
                a.private_ip_address().map(str::to_owned),
                public(a.association()),
            ]
        })
        .chain([
            i.private_ip_address().map(str::to_owned),
            public(i.association()),
        ])
        .chain(
            i.ipv6_addresses()
                .iter()
                .map(|a| a.ipv6_address().map(str::to_owned)),
        )
        .flatten();
    for address in texts.filter_map(|text| text.parse().ok()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Some(Interface {
        id: EniId::new(i.network_interface_id()?),
        vpc: i.vpc_id().unwrap_or_default().to_owned(),
        subnet: i.subnet_id().unwrap_or_default().to_owned(),
        status: match i.status() {
            Some(NetworkInterfaceStatus::InUse | NetworkInterfaceStatus::Associated) => {
                InterfaceStatus::InUse
            }
            Some(NetworkInterfaceStatus::Attaching) => InterfaceStatus::Attaching,
            Some(NetworkInterfaceStatus::Available) => InterfaceStatus::Available,
            // A state that we do not know is one in passing: nothing is made, nothing is removed.
            _ => InterfaceStatus::Detaching,
        },
        kind: i
            .interface_type()
            .map_or("interface", |t| t.as_str())
            .to_owned(),
        requester_managed: i.requester_managed().unwrap_or(false),
        description: i.description().unwrap_or_default().to_owned(),
        tags: tags(i.tag_set()),
        security_groups: i
            .groups()
            .iter()
            .filter_map(|g| g.group_id())
            .map(str::to_owned)
            .collect(),
        addresses,
        primary: attachment.is_some_and(|a| {
            a.device_index() == Some(0) && a.network_card_index().unwrap_or(0) == 0
        }),
        instance_id: attachment
            .and_then(|a| a.instance_id())
            .map(InstanceId::new),
        instance: None,
        ties: Ties::default(),
    })
}

fn instance(i: &aws_sdk_ec2::types::Instance) -> Option<Instance> {
    Some(Instance {
        id: InstanceId::new(i.instance_id()?),
        state: match i.state().and_then(|s| s.name()) {
            Some(InstanceStateName::Pending) => InstanceState::Pending,
            Some(InstanceStateName::Running) => InstanceState::Running,
            Some(InstanceStateName::Stopped) => InstanceState::Stopped,
            Some(InstanceStateName::Terminated) => InstanceState::Terminated,
            // Shutting down, stopping, and what we do not know: in passing.
            _ => InstanceState::ShuttingDown,
        },
        instance_type: i.instance_type().map_or("", |t| t.as_str()).to_owned(),
        tags: tags(i.tags()),
    })
}

fn session(s: &TrafficMirrorSession) -> Option<Session> {
    let stack = s
        .tags()
        .iter()
        .find(|t| t.key() == Some(STACK_TAG))
        .and_then(|t| t.value());
    Some(Session {
        id: SessionId::new(s.traffic_mirror_session_id()?),
        eni: EniId::new(s.network_interface_id()?),
        number: SessionNumber::new(i64::from(s.session_number()?))?,
        target: TargetId::new(s.traffic_mirror_target_id().unwrap_or_default()),
        filter: FilterId::new(s.traffic_mirror_filter_id().unwrap_or_default()),
        vni: s.virtual_network_id().and_then(|n| u32::try_from(n).ok()),
        packet_length: s.packet_length().and_then(|n| u32::try_from(n).ok()),
        stack: stack.map(StackArn::new),
    })
}
