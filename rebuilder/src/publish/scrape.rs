//! The text of `GET /metrics`, read back. It is our own program's, but of another version perhaps, or cut short.

use std::collections::HashMap;

/// Why a text is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScrapeError {
    /// It has no end.
    #[error("the figures were cut short")]
    Cut,
    /// A figure is not there.
    #[error("the rebuilder tells no {0}; is it of another version than the publisher?")]
    Missing(String),
    /// A figure is no number.
    #[error("{0} is no number that can be used")]
    NotANumber(String),
}

/// The series of one text, by name and labels as they stand.
#[derive(Debug)]
pub(super) struct Scrape<'a>(HashMap<&'a str, &'a str>);

impl<'a> Scrape<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, ScrapeError> {
        if text.lines().next_back() != Some("# EOF") {
            return Err(ScrapeError::Cut);
        }
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Ok(Self(
            samples.filter_map(|line| line.rsplit_once(' ')).collect(),
        ))
    }

    pub(super) fn text(&self, series: &str) -> Result<&'a str, ScrapeError> {
        let found = self.0.get(series).copied();
        found.ok_or_else(|| ScrapeError::Missing(series.to_owned()))
    }

    pub(super) fn counter(&self, series: &str) -> Result<u64, ScrapeError> {
        let text = self.text(series)?;
        text.parse()
            .map_err(|_| ScrapeError::NotANumber(series.to_owned()))
    }

    pub(super) fn gauge(&self, series: &str) -> Result<f64, ScrapeError> {
        let value: Option<f64> = self.text(series)?.parse().ok();
        // CloudWatch refuses a whole call for one value that is not finite.
        value
            .filter(|value| value.is_finite())
            .ok_or_else(|| ScrapeError::NotANumber(series.to_owned()))
    }
}
