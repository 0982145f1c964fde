//! The figures of the local rebuilder as CloudWatch metrics: `rebuilder publish`.
//!
//! A process of its own, because the rebuilder parses what strangers send and so has neither credentials nor a way to the
//! metadata service. It reads what everybody may read, `GET /metrics`, each second, and puts sums and statistics now and
//! then. The stack is the only dimension, so that the number of metrics, which is what they cost, does not grow with the
//! fleet: Average is the fleet, Maximum the hottest instance, Sum what all of them counted.
//!
//! [`figures`] says what is put, [`Ledger`] (pure: text in, datums out) what was counted and not put yet. Only
//! `cloudwatch`, behind the cargo feature of that name, knows AWS.

#[cfg(feature = "cloudwatch")]
pub mod cloudwatch;
mod figures;
mod ledger;
mod scrape;
#[cfg(test)]
mod tests;

pub use figures::{Figure, Kind, Unit, figures};
pub use ledger::{Batch, Datum, Ledger, StateError, Value};
pub use scrape::ScrapeError;

/// The namespace of all metrics of the product.
pub const NAMESPACE: &str = "mirrorfleet";
/// The dimension.
pub const DIMENSION: &str = "Stack";
