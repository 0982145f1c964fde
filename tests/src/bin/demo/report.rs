//! The numbers, and whether they agree.

use std::collections::BTreeMap;

use lab::analyser::Inspected;
use lab::nginx::Entry;

use crate::requests::{Shot, Wire};

/// Statuses with which nginx refuses a request before any module has looked at it.
const REFUSALS: [u16; 3] = [400, 413, 501];

/// What became of one request at the analyser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It never came.
    Missing,
    /// nginx refused it with this status.
    Refused(u16),
    /// `ModSecurity` inspected it and found nothing, or these rules without passing the threshold.
    Passed(Vec<String>),
    /// `ModSecurity` holds it for an attack.
    Flagged(Vec<String>),
    /// nginx accepted it, and it is not in the audit log: that must not be.
    NotInspected,
}

impl Fate {
    pub(crate) fn text(&self) -> String {
        // Rules that only add up scores say nothing about the request.
        let attack = |rules: &[String]| {
            let named: Vec<&str> = rules
                .iter()
                .map(String::as_str)
                .filter(|rule| !matches!(*rule, "949110" | "980130"))
                .collect();
            named.join(" ")
        };
        match self {
            Self::Missing => "MISSING".to_owned(),
            Self::Refused(status) => format!("refused by nginx: {status}"),
            Self::Passed(rules) if rules.is_empty() => "inspected".to_owned(),
            Self::Passed(rules) => format!("inspected, below the threshold: {}", attack(rules)),
            Self::Flagged(rules) => format!("FLAGGED {}", attack(rules)),
            Self::NotInspected => "ACCEPTED BUT NOT INSPECTED".to_owned(),
        }
    }
}

/// Looks a request up in the analyser's two logs.
pub(crate) fn fate(wire: &Wire, access: &[Entry], audit: &[Inspected]) -> Fate {
    let Some(entry) = access
        .iter()
        .find(|it| it.method() == wire.method && it.target() == wire.target)
    else {
        return Fate::Missing;
    };
    if REFUSALS.contains(&entry.status) {
        return Fate::Refused(entry.status);
    }
    match audit
        .iter()
        .find(|it| it.method == wire.method && it.target == wire.target)
    {
        None => Fate::NotInspected,
        Some(found) if found.is_flagged() => Fate::Flagged(found.rules.clone()),
        Some(found) => Fate::Passed(found.rules.clone()),
    }
}

/// What disagrees about a shot: an attack that nobody noticed, or an ordinary request that was not simply inspected.
pub(crate) fn objection(shot: &Shot, fates: &[Fate]) -> Option<String> {
    if let Some(lost) = fates
        .iter()
        .find(|fate| matches!(fate, Fate::Missing | Fate::NotInspected))
    {
        return Some(format!("{}: {}", shot.what, lost.text()));
    }
    let noticed = fates
        .iter()
        .any(|fate| matches!(fate, Fate::Flagged(_) | Fate::Refused(_)));
    match (shot.hostile, noticed) {
        (true, false) => Some(format!("{}: neither flagged nor refused", shot.what)),
        (false, true) => Some(format!("{}: ordinary, but flagged or refused", shot.what)),
        _ => None,
    }
}

/// One line of the table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) sent: u64,
    pub(crate) rebuilt: u64,
    pub(crate) delivered: u64,
    pub(crate) flagged: u64,
    pub(crate) refused: BTreeMap<u16, u64>,
    pub(crate) to_session: Option<f64>,
    pub(crate) to_first_request: Option<f64>,
}

impl Row {
    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.rebuilt += other.rebuilt;
        self.delivered += other.delivered;
        self.flagged += other.flagged;
        for (&status, &count) in &other.refused {
            *self.refused.entry(status).or_default() += count;
        }
    }

    pub(crate) fn objection(&self) -> Option<String> {
        (self.sent != self.rebuilt || self.rebuilt != self.delivered).then(|| {
            format!(
                "{}: {} sent, {} rebuilt, {} delivered",
                self.name, self.sent, self.rebuilt, self.delivered
            )
        })
    }
}

/// The table, with a line of sums.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut all = Row {
        name: "together".to_owned(),
        ..Row::default()
    };
    rows.iter().for_each(|row| all.add(row));
    let mut cells = vec![
        [
            "instance",
            "sent",
            "rebuilt",
            "delivered",
            "flagged",
            "400",
            "413",
            "501",
            "session",
            "first request",
        ]
        .map(ToOwned::to_owned),
    ];
    let seconds =
        |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1} s"));
    for row in rows.iter().chain([&all]) {
        let refused = |status| {
            row.refused
                .get(&status)
                .copied()
                .unwrap_or_default()
                .to_string()
        };
        cells.push([
            row.name.clone(),
            row.sent.to_string(),
            row.rebuilt.to_string(),
            row.delivered.to_string(),
            row.flagged.to_string(),
            refused(400),
            refused(413),
            refused(501),
            seconds(row.to_session),
            seconds(row.to_first_request),
        ]);
    }
    let mut widths = [0; 10];
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    for (number, line) in cells.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let padded = if column == 0 {
                format!("  {cell:<width$}")
            } else {
                format!("  {cell:>width$}")
            };
            text.push_str(&padded);
        }
        text.push('\n');
        if number == 0 || number + 2 == cells.len() {
            let rule: usize = widths.iter().map(|width| width + 2).sum();
            text.push_str(&format!("  {}\n", "-".repeat(rule - 2)));
        }
    }
    text.push_str(
        "\n  400, 413, 501: delivered, and refused by the analyser's own nginx before any rule was asked.\n  \
         session, first request: seconds from the launch of the instance.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::volley;

    #[test]
    fn an_attack_that_nobody_noticed_is_an_objection() {
        let directory = lab::janitor::Prefix::new().unwrap().directory().unwrap();
        let shots = volley(1, directory.path()).unwrap();
        let attack = shots.iter().find(|shot| shot.hostile).unwrap();
        let ordinary = shots.iter().find(|shot| !shot.hostile).unwrap();
        assert!(objection(attack, &[Fate::Passed(vec![])]).is_some());
        assert!(objection(attack, &[Fate::Refused(400)]).is_none());
        assert!(objection(ordinary, &[Fate::Passed(vec![])]).is_none());
        assert!(objection(ordinary, &[Fate::Flagged(vec![])]).is_some());
        assert!(objection(ordinary, &[Fate::Missing]).is_some());
        assert!(objection(attack, &[Fate::Refused(400), Fate::NotInspected]).is_some());
    }

    #[test]
    fn a_row_whose_numbers_differ_is_an_objection() {
        let mut row = Row {
            sent: 3,
            rebuilt: 3,
            delivered: 3,
            ..Row::default()
        };
        assert!(row.objection().is_none());
        row.delivered = 2;
        assert!(row.objection().is_some());
    }

    #[test]
    fn every_target_of_the_demo_is_unique() {
        let directory = lab::janitor::Prefix::new().unwrap().directory().unwrap();
        let mut targets: Vec<String> = [1, 2]
            .into_iter()
            .flat_map(|round| volley(round, directory.path()).unwrap())
            .flat_map(|shot| shot.wire)
            .map(|wire| wire.target)
            .collect();
        let all = targets.len();
        targets.sort();
        targets.dedup();
        assert_eq!(targets.len(), all);
    }
}
