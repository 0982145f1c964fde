//! How an invocation fails: one line, and a kind that an operator can filter by.

use lambda_runtime::Diagnostic;
use std::fmt;

/// An invocation's error. Lambda gets `errorType` and `errorMessage`; the runtime logs the line, so nobody else does.
#[derive(Clone, PartialEq, Eq)]
pub struct Refusal {
    kind: &'static str,
    line: String,
}

impl Refusal {
    /// `MIRRORFLEET_…` is wrong.
    pub fn settings(error: &impl fmt::Display) -> Self {
        Self {
            kind: "Settings",
            line: error.to_string(),
        }
    }

    /// The event is none that the function knows.
    pub fn event(error: &impl fmt::Display) -> Self {
        Self {
            kind: "Event",
            line: error.to_string(),
        }
    }

    /// A service did not do what it was asked.
    pub fn service(error: &impl fmt::Display) -> Self {
        Self {
            kind: "Service",
            line: error.to_string(),
        }
    }
}

/// The runtime logs errors by this.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl From<Refusal> for Diagnostic {
    fn from(refusal: Refusal) -> Self {
        Diagnostic {
            error_type: refusal.kind.to_owned(),
            error_message: refusal.line,
        }
    }
}
