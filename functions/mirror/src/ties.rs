//! Gives interfaces their [`Ties`]: what Elastic Load Balancing, ECS and the list of mirror targets know of them.
//!
//! Each list is asked for only where the selection has a term that needs it, and then completely, whatever the number
//! of interfaces: half a list would unselect the other half. An error is an error of the whole run for the same reason.

use crate::converge::Run;
use crate::error::ApiError;
use crate::id::{EniId, InstanceId};
use crate::interface::Interface;
use crate::ports::{Inventory, Ports};
use crate::selection::Pattern;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Looks the ties of all these interfaces up.
///
/// # Errors
/// Something that a term asks for could not be listed.
pub(crate) async fn tie<P: Ports>(
    run: &Run<'_, P>,
    interfaces: &mut [Interface],
) -> Result<(), ApiError> {
    let (ports, selection) = (run.ports, &run.settings.selection);
    let targets = match run.memory.targets(ports.now()) {
        Some(targets) => targets,
        None => {
            let listed = ports.mirror_target_interfaces().await?;
            let listed: Arc<BTreeSet<EniId>> = Arc::new(listed.into_iter().collect());
            run.memory.keep_targets(Arc::clone(&listed), ports.now());
            listed
        }
    };
    let balancers = if selection.asks_for_classic_members() {
        by_instance(ports).await?
    } else {
        BTreeMap::new()
    };
    // A task's interface says whose it is only as `of_task`; where there is none, ECS is not asked.
    let clusters = if interfaces.iter().any(Interface::of_task) {
        by_interface(ports, selection.clusters()).await?
    } else {
        BTreeMap::new()
    };
    for interface in interfaces {
        let of_instance = interface
            .instance_id
            .as_ref()
            .and_then(|id| balancers.get(id));
        interface.ties.balancers = of_instance.cloned().unwrap_or_default();
        interface.ties.cluster = clusters.get(&interface.id).cloned();
        interface.ties.mirror_target = targets.contains(&interface.id);
    }
    Ok(())
}

async fn by_instance(
    ports: &impl Inventory,
) -> Result<BTreeMap<InstanceId, Vec<String>>, ApiError> {
    let mut names: BTreeMap<InstanceId, Vec<String>> = BTreeMap::new();
    for balancer in ports.classic_balancers().await? {
        for instance in balancer.instances {
            names
                .entry(instance)
                .or_default()
                .push(balancer.name.clone());
        }
    }
    Ok(names)
}

async fn by_interface(
    ports: &impl Inventory,
    wanted: impl Iterator<Item = &Pattern>,
) -> Result<BTreeMap<EniId, String>, ApiError> {
    let (mut clusters, mut patterns) = (BTreeSet::new(), Vec::new());
    for pattern in wanted {
        match pattern.as_literal() {
            Some(name) => drop(clusters.insert(name.to_owned())),
            None => patterns.push(pattern),
        }
    }
    if !patterns.is_empty() {
        let all = ports.clusters().await?.into_iter();
        clusters.extend(all.filter(|name| patterns.iter().any(|p| p.matches(name))));
    }
    let mut of = BTreeMap::new();
    for cluster in clusters {
        let enis = ports.task_interfaces(&cluster).await?;
        of.extend(enis.into_iter().map(|eni| (eni, cluster.clone())));
    }
    Ok(of)
}
