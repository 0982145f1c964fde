//! The versions of the stack's layer, in which the rebuilder travels. CloudFormation keeps each of them
//! (`RetentionPolicy: Retain`), because instances of an older one may still have to be replaced during an update; so
//! whoever removes the stack removes them.

use crate::error::{ApiError, ErrorClass};
use crate::ports::{Clock, Layers};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::time::Duration;

/// Between two tries where the API refused, or named what should be gone.
const PAUSE: Duration = Duration::from_secs(2);
/// Rounds without any progress before it is given up.
const MAX_IDLE_ROUNDS: u32 = 5;

/// A page of `lambda:ListLayerVersions`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Page {
    #[serde(default)]
    layer_versions: Vec<Listed>,
    #[serde(default)]
    next_marker: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    version: u64,
}

impl Page {
    /// Of an answer's body (Lambda API reference, "ListLayerVersions").
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        serde_json::from_slice(body).map_err(|e| {
            ApiError::unanswered(format!(
                "Lambda's list of layer versions cannot be read: {e}"
            ))
        })
    }

    /// The versions on it.
    pub fn versions(&self) -> impl Iterator<Item = u64> {
        self.layer_versions.iter().map(|listed| listed.version)
    }

    /// Where the next page begins; none where this was the last.
    pub fn next(&self) -> Option<&str> {
        self.next_marker
            .as_deref()
            .filter(|marker| !marker.is_empty())
    }
}

/// Removes all versions, until a listing shows none. How many were removed; the error is one line.
pub async fn remove_versions<P: Layers + Clock>(
    ports: &P,
    layer: &str,
    deadline: Duration,
) -> Result<usize, String> {
    let mut removed = BTreeSet::new();
    let mut idle_rounds = 0;
    loop {
        let before = removed.len();
        let (left, error) = match ports.layer_versions(layer).await {
            Ok(versions) if versions.is_empty() => return Ok(removed.len()),
            Ok(versions) => {
                let mut error = None;
                for &version in &versions {
                    if ports.now() >= deadline {
                        break;
                    }
                    match ports.delete_layer_version(layer, version).await {
                        Ok(()) => {
                            removed.insert(version);
                        }
                        Err(e) if e.class == ErrorClass::Gone => {}
                        Err(e) => {
                            error = Some(e);
                            ports.sleep(PAUSE).await;
                        }
                    }
                }
                let left = versions.iter().filter(|v| !removed.contains(v)).count();
                (left.to_string(), error)
            }
            Err(e) => ("an unknown number of".to_owned(), Some(e)),
        };
        idle_rounds = if removed.len() > before {
            0
        } else {
            idle_rounds + 1
        };
        if idle_rounds >= MAX_IDLE_ROUNDS || ports.now() >= deadline {
            let why = error.map_or_else(String::new, |e| format!("; last error: {e}"));
            return Err(format!(
                "{left} versions of the layer {layer} are left after {} were removed{why}; delete the stack again",
                removed.len()
            ));
        }
        if removed.len() == before {
            ports.sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests;
