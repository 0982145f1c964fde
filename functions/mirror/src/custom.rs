//! The stack's custom resources. `Custom::MirrorSessions`: mirror what already runs when the stack is made or changed,
//! remove our sessions when it goes. `Custom::LayerVersions`: made before the layer's first version and removed after all
//! that fetches one; then all versions go. Whatever happens, CloudFormation is answered.
//!
//! Source: CloudFormation user guide, "Custom resource request and response reference".

use crate::converge::{Run, Stop, delete};
use crate::id::StackArn;
use crate::layer::remove_versions;
use crate::memory::{Memory, STAYS_FOR};
use crate::pace::Pacer;
use crate::plan::Session;
use crate::ports::{Again, Callback, Layers, Ports, SessionQuery};
use crate::reconcile::sweep;
use crate::settings::{Settings, SettingsError, Teardown};
use serde_json::{Map, Value, json};
use std::sync::Mutex;
use std::time::Duration;

/// The physical id, always the same: a changed one would make CloudFormation delete the old, and with it the sessions.
pub const PHYSICAL_ID: &str = "mirrorfleet-sessions";
/// The same of the resource that removes the layer's versions.
pub const LAYER_PHYSICAL_ID: &str = "mirrorfleet-layer-versions";
/// Its type.
const LAYER_TYPE: &str = "Custom::LayerVersions";
/// The field in which a continued removal counts its runs.
const PASS: &str = "mirrorfleet:pass";
/// Runs of one removal. CloudFormation waits for an hour at most, and a function lives a quarter of it.
const MAX_PASSES: u64 = 14;
/// Longest reason in bytes: an answer has 4,096 at most, and a byte of it may take two.
const MAX_REASON: usize = 1200;
/// What a create may take from its turn to its effect.
const IN_FLIGHT: Duration = Duration::from_secs(1);
/// The turn of a poller at one change a second.
const LONGEST_TURN: Duration = Duration::from_secs(4);
/// Removal rounds without any progress before it is given up.
const MAX_IDLE_ROUNDS: u32 = 4;
/// Tries of the answer itself.
const PUT_TRIES: u32 = 5;

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reply {
    Success(Value),
    Failed(String),
    /// Another run of the function goes on and will answer.
    Continued,
}

/// One invocation for the custom resource.
#[derive(Debug)]
pub struct Custom<'a, P> {
    /// The world.
    pub ports: &'a P,
    /// The settings, or why there are none: also that is an answer.
    pub settings: Result<&'a Settings, &'a SettingsError>,
    /// Enough to remove, even without settings.
    pub teardown: Teardown,
    /// The pace of changes.
    pub pacer: &'a Mutex<Pacer>,
    /// When the work must have ended; the answer comes after it.
    pub deadline: Duration,
}

impl<P: Ports + Callback + Again + Layers> Custom<'_, P> {
    /// Handles a request and answers it. Gives what was answered; the error is one line, and means that CloudFormation
    /// could not be reached.
    pub async fn handle(&self, request: &Value) -> Result<Value, String> {
        let text = |key: &str| request.get(key).and_then(Value::as_str);
        let physical = text("PhysicalResourceId");
        let is_layer = text("ResourceType") == Some(LAYER_TYPE);
        let own = if is_layer {
            LAYER_PHYSICAL_ID
        } else {
            PHYSICAL_ID
        };
        let reply = match (
            text("RequestType"),
            text("StackId"),
            text("RequestId"),
            text("LogicalResourceId"),
        ) {
            (Some(kind), Some(stack), Some(_), Some(logical)) => match (kind, physical) {
                // Its name is looked at now, while a mistake is still the deployment's.
                ("Create" | "Update", _) if is_layer => {
                    layer_name(request).map_or_else(Reply::Failed, |_| Reply::Success(json!({})))
                }
                ("Create" | "Update", _) => self.converge().await,
                ("Delete", Some(id)) if id == own || made_up(id, stack, logical) => {
                    if is_layer {
                        self.remove_layer(request).await
                    } else {
                        self.remove(request).await
                    }
                }
                ("Delete", _) => Reply::Success(json!({})),
                (other, _) => Reply::Failed(format!(
                    "RequestType {other:?} is none of Create, Update and Delete"
                )),
            },
            _ => Reply::Failed(
                "the request lacks RequestType, StackId, RequestId or LogicalResourceId".to_owned(),
            ),
        };
        // A deletion is answered under the id that it names, everything else under ours.
        let physical = match (text("RequestType"), physical) {
            (Some("Delete"), Some(id)) => id,
            _ => own,
        };
        let mut body = Map::new();
        for key in ["StackId", "RequestId", "LogicalResourceId"] {
            body.insert(key.to_owned(), json!(text(key).unwrap_or_default()));
        }
        body.insert("PhysicalResourceId".to_owned(), json!(physical));
        match reply {
            Reply::Continued => return Ok(json!({"Status": "CONTINUED"})),
            Reply::Success(data) => {
                body.insert("Status".to_owned(), json!("SUCCESS"));
                body.insert("Data".to_owned(), data);
            }
            Reply::Failed(reason) => {
                body.insert("Status".to_owned(), json!("FAILED"));
                body.insert("Reason".to_owned(), json!(short(&reason)));
            }
        }
        let body = Value::Object(body);
        self.answer(text("ResponseURL").unwrap_or_default(), &body)
            .await?;
        Ok(body)
    }

    async fn answer(&self, url: &str, body: &Value) -> Result<(), String> {
        if url.is_empty() {
            return Err(
                "the request has no ResponseURL, so CloudFormation cannot be answered".to_owned(),
            );
        }
        let mut tries = 1;
        loop {
            match self.ports.put(url, body.to_string()).await {
                Ok(()) => return Ok(()),
                Err(e) if tries >= PUT_TRIES => {
                    return Err(format!("CloudFormation could not be answered: {e}"));
                }
                Err(_) => {
                    self.ports
                        .sleep(Duration::from_millis(250) * 2u32.pow(tries))
                        .await;
                }
            }
            tries += 1;
        }
    }

    /// One pass. A session that fails never fails the stack: the sweep goes on.
    async fn converge(&self) -> Reply {
        let settings = match self.settings {
            Ok(settings) => settings,
            Err(e) => return Reply::Failed(e.to_string()),
        };
        let run = Run {
            ports: self.ports,
            settings,
            pacer: self.pacer,
            memory: &Memory::default(),
            deadline: self.deadline,
        };
        match sweep(&run).await {
            Ok(swept) => Reply::Success(json!({
                "Created": swept.answer.created.len(),
                "Modified": swept.answer.modified.len(),
                "Deleted": swept.answer.deleted.len(),
                "Skipped": swept.answer.skipped.len(),
                "Failed": swept.answer.failed.len(),
            })),
            Err(e) => Reply::Success(json!({"Failed": 1, "Error": short(&e.to_string())})),
        }
    }

    async fn remove_layer(&self, request: &Value) -> Reply {
        let layer = match layer_name(request) {
            Ok(layer) => layer,
            Err(why) => return Reply::Failed(why),
        };
        match remove_versions(self.ports, layer, self.deadline).await {
            Ok(removed) => Reply::Success(json!({"Deleted": removed})),
            Err(why) => Reply::Failed(why),
        }
    }

    /// Removes our sessions until two listings in a row show none.
    async fn remove(&self, request: &Value) -> Reply {
        // Events, schedule and queue are gone by now: the whole rate is ours.
        let pacer = Mutex::new(Pacer::alone(self.teardown.mutations_per_second));
        let settle = settle(self.teardown.mutations_per_second);
        let mut state = Removal::default();
        while self.ports.now() < self.deadline {
            let ours = match self.ports.sessions(SessionQuery::All).await {
                Ok(all) => all
                    .into_iter()
                    .filter(|s| s.is_of(&self.teardown.stack))
                    .collect::<Vec<_>>(),
                Err(e) => {
                    state.error = Some(format!("listing sessions: {e}"));
                    state.idle_rounds += 1;
                    if state.idle_rounds >= MAX_IDLE_ROUNDS {
                        break;
                    }
                    self.ports.sleep(settle).await;
                    continue;
                }
            };
            state.left = Some(ours.len());
            if ours.is_empty() {
                if state.seen_empty {
                    return Reply::Success(json!({"Deleted": state.removed}));
                }
                state.seen_empty = true;
                self.ports.sleep(settle).await;
                continue;
            }
            state.seen_empty = false;
            let before = state.removed;
            if !self.remove_all(&ours, &pacer, &mut state).await {
                break;
            }
            state.idle_rounds = if state.removed > before {
                0
            } else {
                state.idle_rounds + 1
            };
            if state.idle_rounds >= MAX_IDLE_ROUNDS {
                break;
            }
            if state.removed == before {
                self.ports.sleep(settle).await;
            }
        }
        self.go_on(request, state).await
    }

    /// `false`: no time left.
    async fn remove_all(
        &self,
        ours: &[Session],
        pacer: &Mutex<Pacer>,
        state: &mut Removal,
    ) -> bool {
        for session in ours {
            match delete(self.ports, pacer, self.deadline, &session.id).await {
                Ok(()) => {
                    state.removed += 1;
                    state.left = state.left.map(|n| n.saturating_sub(1));
                }
                Err(Stop::Time | Stop::Leaving) => return false,
                Err(Stop::Error(e)) => state.error = Some(format!("{}: {e}", session.id)),
            }
        }
        true
    }

    /// After a run that was too short: another one, or the count of what is left.
    async fn go_on(&self, request: &Value, state: Removal) -> Reply {
        let pass = request.get(PASS).and_then(Value::as_u64).unwrap_or(1);
        let left = state
            .left
            .map_or_else(|| "an unknown number of".to_owned(), |n| n.to_string());
        let mut why = format!(
            "{left} mirror sessions of this stack are left after {} were removed",
            state.removed
        );
        if let Some(error) = &state.error {
            why.push_str(&format!("; last error: {error}"));
        }
        if state.removed > 0 && state.idle_rounds < MAX_IDLE_ROUNDS && pass < MAX_PASSES {
            let mut next = request.clone();
            if let Some(fields) = next.as_object_mut() {
                fields.insert(PASS.to_owned(), json!(pass + 1));
            }
            match self.ports.invoke_self(next.to_string()).await {
                Ok(()) => return Reply::Continued,
                Err(e) => why.push_str(&format!("; the function could not go on by itself: {e}")),
            }
        }
        Reply::Failed(format!("{why}; delete the stack again"))
    }
}

/// What may stand in a path: a layer's name, no ARN.
fn layer_name(request: &Value) -> Result<&str, String> {
    request
        .pointer("/ResourceProperties/LayerName")
        .and_then(Value::as_str)
        .filter(|name| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
        .ok_or_else(|| "the property LayerName is not the name of a layer".to_owned())
}

/// How long two listings are apart that have to agree that nothing is left. EC2 is eventually consistent, and a batch of
/// `attach` or a sweep that began before the removal makes sessions until it knows of it ([`STAYS_FOR`]), and one more at
/// its turn.
fn settle(mutations_per_second: f64) -> Duration {
    let turn = Pacer::for_poller(mutations_per_second).wait(Duration::ZERO);
    STAYS_FOR + turn.min(LONGEST_TURN) + IN_FLIGHT
}

/// Where a removal stands.
#[derive(Default)]
struct Removal {
    removed: usize,
    left: Option<usize>,
    seen_empty: bool,
    idle_rounds: u32,
    error: Option<String>,
}

/// Whether CloudFormation made this id up, for a creation whose answer it never had: it was cancelled because something
/// else failed, or the stack was deleted, while it ran. What that creation made has to go all the same, or target and
/// filter cannot. Such an id is the names of the stack and of the resource with a random end.
fn made_up(physical: &str, stack: &str, logical: &str) -> bool {
    let stack = StackArn::new(stack);
    physical
        .strip_prefix(stack.name())
        .and_then(|rest| rest.strip_prefix('-')?.strip_prefix(logical))
        .is_some_and(|rest| rest.starts_with('-'))
}

/// One line of at most [`MAX_REASON`] bytes.
fn short(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() + c.len_utf8() > MAX_REASON {
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

#[cfg(test)]
mod tests;
