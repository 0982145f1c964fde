//! The functions' settings, from the template's environment alone.

use crate::id::{FilterId, SessionNumber, StackArn, TargetId};
use crate::plan::{SESSIONS_PER_ACCOUNT, SessionSpec};
use crate::selection::Selection;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Price of a session-hour in US dollars where `MIRRORFLEET_SESSION_HOUR_USD` says nothing (us-east-1).
pub const SESSION_HOUR_USD: f64 = 0.015;
/// Sessions of the account's 10,000 that we leave free where `MIRRORFLEET_SESSION_HEADROOM` says nothing: another team's
/// tool, or someone who debugs, is not to fail because of us.
pub const SESSION_HEADROOM: usize = 100;

/// A setting that cannot be used. One line that names the place and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{parameter} ({variable}): {what}")]
pub struct SettingsError {
    /// The environment variable.
    pub variable: &'static str,
    /// The template parameter or resource that it comes from.
    pub parameter: &'static str,
    /// What is wrong, and what to write instead.
    pub what: String,
}

/// Where the analyser is, as far as its interfaces must be told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Analyzer {
    /// A literal address.
    Address(IpAddr),
    /// A name to be resolved at each run.
    Name(String),
}

/// All settings of `attach` and `reconcile`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `MIRRORFLEET_STACK_ARN`: whose sessions are ours.
    pub stack: StackArn,
    /// `MIRRORFLEET_TARGET_ID`, `_FILTER_ID`, `_VNI` (default 4789), `_PACKET_LENGTH` (default 8500).
    pub spec: SessionSpec,
    /// `MIRRORFLEET_SELECTION` (default `tag:Mirror=true`).
    pub selection: Selection,
    /// `MIRRORFLEET_SESSION_NUMBER_BASE` (default 100).
    pub base: SessionNumber,
    /// `MIRRORFLEET_MUTATIONS_PER_SECOND` (default 3), of all functions together.
    pub mutations_per_second: f64,
    /// `MIRRORFLEET_SWEEP_MINUTES` (default 5): from one scheduled sweep to the next.
    pub sweep_every: Duration,
    /// `MIRRORFLEET_MIRRORING`: `on` (default) or `off`.
    pub mirroring: bool,
    /// `MIRRORFLEET_OWN_SECURITY_GROUPS`, by comma: an interface in one of them is never mirrored.
    pub own_security_groups: BTreeSet<String>,
    /// Host of `MIRRORFLEET_ANALYZER_URL`; empty for the stack's own nodes.
    pub analyzer: Option<Analyzer>,
    /// `MIRRORFLEET_SESSION_HOUR_USD` (default [`SESSION_HOUR_USD`]).
    pub session_hour_usd: f64,
    /// `MIRRORFLEET_SESSION_HEADROOM` (default [`SESSION_HEADROOM`]): how many of the account's sessions stay free for
    /// others.
    pub session_headroom: usize,
}

impl Settings {
    /// How many sessions the account may have, everyone's counted, before we make no more.
    pub fn session_limit(&self) -> usize {
        SESSIONS_PER_ACCOUNT.saturating_sub(self.session_headroom)
    }

    /// Whether the identity of a trail record is a function of this stack: CloudFormation names the roles that it makes
    /// after the stack.
    pub fn is_own_role(&self, arn: &str) -> bool {
        arn.split_once(":assumed-role/")
            .and_then(|(_, role)| role.strip_prefix(self.stack.name()))
            .is_some_and(|rest| rest.starts_with('-'))
    }
}

/// What must be known to remove our sessions: less than the rest, so that a stack whose settings are wrong can be deleted.
#[derive(Debug, Clone, PartialEq)]
pub struct Teardown {
    /// Whose sessions are ours.
    pub stack: StackArn,
    /// Changes a second.
    pub mutations_per_second: f64,
}

const RATE: &str = "MIRRORFLEET_MUTATIONS_PER_SECOND";
const DEFAULT_RATE: f64 = 3.0;

impl Settings {
    /// Reads them. `get` gives the value of a variable; an empty one counts as absent.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let env = Env { get };
        let mirroring = env
            .value("MIRRORFLEET_MIRRORING")
            .unwrap_or_else(|| "on".to_owned());
        Ok(Self {
            stack: StackArn::new(env.needed("MIRRORFLEET_STACK_ARN", "AWS::StackId")?),
            spec: SessionSpec {
                target: TargetId::new(env.needed("MIRRORFLEET_TARGET_ID", "MirrorTargetId")?),
                filter: FilterId::new(env.needed("MIRRORFLEET_FILTER_ID", "MirrorFilterId")?),
                vni: env.number("MIRRORFLEET_VNI", "Vni", 4789, 0..=16_777_215)?,
                packet_length: env.number(
                    "MIRRORFLEET_PACKET_LENGTH",
                    "PacketLength",
                    8500,
                    1..=8500,
                )?,
            },
            selection: env.selection()?,
            base: env.base()?,
            mutations_per_second: env.positive(RATE, "MutationsPerSecond", DEFAULT_RATE)?,
            sweep_every: Duration::from_secs(
                60 * env.number("MIRRORFLEET_SWEEP_MINUTES", "SweepMinutes", 5u64, 1..=1440)?,
            ),
            mirroring: match mirroring.as_str() {
                "on" => true,
                "off" => false,
                other => {
                    return Err(error(
                        "MIRRORFLEET_MIRRORING",
                        "Mirroring",
                        format!("`{other}`: write `on` or `off`"),
                    ));
                }
            },
            own_security_groups: env
                .value("MIRRORFLEET_OWN_SECURITY_GROUPS")
                .iter()
                .flat_map(|list| list.split(','))
                .map(str::trim)
                .filter(|group| !group.is_empty())
                .map(str::to_owned)
                .collect(),
            analyzer: env
                .value("MIRRORFLEET_ANALYZER_URL")
                .map(|url| analyzer(&url))
                .transpose()?,
            session_hour_usd: env.positive(
                "MIRRORFLEET_SESSION_HOUR_USD",
                "SessionHourUsd",
                SESSION_HOUR_USD,
            )?,
            session_headroom: env.number(
                "MIRRORFLEET_SESSION_HEADROOM",
                "SessionHeadroom",
                SESSION_HEADROOM,
                0..=SESSIONS_PER_ACCOUNT,
            )?,
        })
    }
}

impl Teardown {
    /// Reads them. The custom resource's event names the stack too, so nothing here can be missing or wrong.
    pub fn read(get: impl Fn(&str) -> Option<String>, stack_of_event: &str) -> Self {
        let env = Env { get };
        Self {
            stack: StackArn::new(
                env.value("MIRRORFLEET_STACK_ARN")
                    .unwrap_or_else(|| stack_of_event.to_owned()),
            ),
            mutations_per_second: env
                .positive(RATE, "MutationsPerSecond", DEFAULT_RATE)
                .unwrap_or(DEFAULT_RATE),
        }
    }
}

fn error(variable: &'static str, parameter: &'static str, what: String) -> SettingsError {
    SettingsError {
        variable,
        parameter,
        what,
    }
}

struct Env<F> {
    get: F,
}

impl<F: Fn(&str) -> Option<String>> Env<F> {
    fn value(&self, variable: &str) -> Option<String> {
        (self.get)(variable)
            .map(|v| v.trim().to_owned())
            .filter(|v| !v.is_empty())
    }

    fn needed(
        &self,
        variable: &'static str,
        parameter: &'static str,
    ) -> Result<String, SettingsError> {
        let missing = || {
            error(
                variable,
                parameter,
                "is not set; the template sets it, so deploy the function with it".to_owned(),
            )
        };
        self.value(variable).ok_or_else(missing)
    }

    fn number<T>(
        &self,
        variable: &'static str,
        parameter: &'static str,
        default: T,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<T, SettingsError>
    where
        T: std::str::FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.value(variable) else {
            return Ok(default);
        };
        match text.parse::<T>() {
            Ok(n) if range.contains(&n) => Ok(n),
            _ => {
                let what = format!(
                    "`{text}`: write a number from {} to {}",
                    range.start(),
                    range.end()
                );
                Err(error(variable, parameter, what))
            }
        }
    }

    fn positive(
        &self,
        variable: &'static str,
        parameter: &'static str,
        default: f64,
    ) -> Result<f64, SettingsError> {
        let Some(text) = self.value(variable) else {
            return Ok(default);
        };
        match text.parse::<f64>() {
            Ok(n) if n.is_finite() && n > 0.0 => Ok(n),
            _ => Err(error(
                variable,
                parameter,
                format!("`{text}`: write a number above 0, for example {default}"),
            )),
        }
    }

    fn selection(&self) -> Result<Selection, SettingsError> {
        let text = self
            .value("MIRRORFLEET_SELECTION")
            .unwrap_or_else(|| "tag:Mirror=true".to_owned());
        text.parse()
            .map_err(|e| error("MIRRORFLEET_SELECTION", "Selection", format!("{e}")))
    }

    fn base(&self) -> Result<SessionNumber, SettingsError> {
        let variable = "MIRRORFLEET_SESSION_NUMBER_BASE";
        let n: u16 = self.number(variable, "SessionNumberBase", 100, 1..=32766)?;
        // The range is the type's own, so the error cannot be reached; it is not worth a panic all the same.
        SessionNumber::new(i64::from(n))
            .ok_or_else(|| error(variable, "SessionNumberBase", "out of range".to_owned()))
    }
}

/// The host of `http(s)://HOST[:PORT][/…]`.
fn analyzer(url: &str) -> Result<Analyzer, SettingsError> {
    let bad = || {
        let what = format!(
            "`{url}`: write http://HOST:PORT or https://HOST:PORT, an IPv6 address in brackets"
        );
        error("MIRRORFLEET_ANALYZER_URL", "AnalyzerUrl", what)
    };
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))
        .ok_or_else(bad)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    if let Some(v6) = host_port.strip_prefix('[') {
        let (address, _) = v6.split_once(']').ok_or_else(bad)?;
        return Ok(Analyzer::Address(IpAddr::V6(
            address.parse::<Ipv6Addr>().map_err(|_| bad())?,
        )));
    }
    let host = host_port.rsplit_once(':').map_or(host_port, |(h, _)| h);
    let plausible = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match host.parse::<IpAddr>() {
        Ok(address) => Ok(Analyzer::Address(address)),
        Err(_) if !host.is_empty() && host.chars().all(plausible) => {
            Ok(Analyzer::Name(host.to_owned()))
        }
        Err(_) => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: [(&str, &str); 3] = [
        (
            "MIRRORFLEET_STACK_ARN",
            "arn:aws:cloudformation:eu-west-1:1:stack/fleet/1",
        ),
        ("MIRRORFLEET_TARGET_ID", "tmt-1"),
        ("MIRRORFLEET_FILTER_ID", "tmf-1"),
    ];

    fn read(more: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let all: Vec<_> = NEEDED.iter().chain(more).copied().collect();
        Settings::read(|name| {
            all.iter()
                .rev()
                .find(|(k, _)| *k == name)
                .map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn the_defaults_are_those_of_the_template() {
        let s = read(&[]).unwrap();
        assert_eq!(
            (s.spec.vni, s.spec.packet_length, s.base.get()),
            (4789, 8500, 100)
        );
        assert_eq!(s.selection.to_string(), "tag:Mirror=true");
        assert!(s.mirroring && s.analyzer.is_none() && s.own_security_groups.is_empty());
        assert!((s.mutations_per_second - 3.0).abs() < f64::EPSILON);
        assert_eq!(s.sweep_every, Duration::from_secs(300));
        assert_eq!(
            read(&[("MIRRORFLEET_VNI", "")]),
            Ok(s),
            "an empty value is no value"
        );
    }

    #[test]
    fn a_bad_setting_is_one_line_that_names_the_place_and_the_remedy() {
        let table = [
            (
                "MIRRORFLEET_STACK_ARN",
                "",
                "AWS::StackId (MIRRORFLEET_STACK_ARN): is not set",
            ),
            (
                "MIRRORFLEET_TARGET_ID",
                " ",
                "MirrorTargetId (MIRRORFLEET_TARGET_ID): is not set",
            ),
            (
                "MIRRORFLEET_VNI",
                "16777216",
                "Vni (MIRRORFLEET_VNI): `16777216`: write a number from 0 to 16777215",
            ),
            (
                "MIRRORFLEET_PACKET_LENGTH",
                "9000",
                "PacketLength (MIRRORFLEET_PACKET_LENGTH): `9000`: write a number from 1 to 8500",
            ),
            (
                "MIRRORFLEET_SESSION_NUMBER_BASE",
                "0",
                "write a number from 1 to 32766",
            ),
            (
                "MIRRORFLEET_MUTATIONS_PER_SECOND",
                "fast",
                "`fast`: write a number above 0",
            ),
            (
                "MIRRORFLEET_MUTATIONS_PER_SECOND",
                "NaN",
                "write a number above 0",
            ),
            (
                "MIRRORFLEET_SWEEP_MINUTES",
                "0",
                "SweepMinutes (MIRRORFLEET_SWEEP_MINUTES): `0`: write a number from 1 to 1440",
            ),
            (
                "MIRRORFLEET_MIRRORING",
                "true",
                "Mirroring (MIRRORFLEET_MIRRORING): `true`: write `on` or `off`",
            ),
            (
                "MIRRORFLEET_SELECTION",
                "colour:red",
                "Selection (MIRRORFLEET_SELECTION): column 1: `colour:` is not a term",
            ),
            (
                "MIRRORFLEET_ANALYZER_URL",
                "waf:8080",
                "AnalyzerUrl (MIRRORFLEET_ANALYZER_URL): `waf:8080`: write http://HOST:PORT",
            ),
            (
                "MIRRORFLEET_ANALYZER_URL",
                "http://[::1",
                "write http://HOST:PORT",
            ),
            (
                "MIRRORFLEET_ANALYZER_URL",
                "http://a b:1",
                "write http://HOST:PORT",
            ),
            (
                "MIRRORFLEET_SESSION_HOUR_USD",
                "-1",
                "write a number above 0",
            ),
        ];
        for (variable, value, message) in table {
            let line = read(&[(variable, value)]).expect_err(variable).to_string();
            assert!(
                line.contains(message) && !line.contains('\n'),
                "{variable}={value}: {line}"
            );
        }
    }

    #[test]
    fn the_analyser_is_an_address_or_a_name() {
        let of = |url: &str| read(&[("MIRRORFLEET_ANALYZER_URL", url)]).unwrap().analyzer;
        assert_eq!(
            of("http://10.0.0.5:8080"),
            Some(Analyzer::Address("10.0.0.5".parse().unwrap()))
        );
        assert_eq!(
            of("https://10.0.0.5/waf"),
            Some(Analyzer::Address("10.0.0.5".parse().unwrap()))
        );
        assert_eq!(
            of("http://[2001:db8::5]:80/"),
            Some(Analyzer::Address("2001:db8::5".parse().unwrap()))
        );
        assert_eq!(
            of("https://user:pw@waf.example.com:443"),
            Some(Analyzer::Name("waf.example.com".to_owned()))
        );
        assert_eq!(of(""), None);
    }

    #[test]
    fn own_security_groups_are_a_list_by_comma() {
        let s = read(&[("MIRRORFLEET_OWN_SECURITY_GROUPS", "sg-1, sg-2,,")]).unwrap();
        assert_eq!(
            s.own_security_groups,
            ["sg-1".to_owned(), "sg-2".to_owned()].into()
        );
    }

    #[test]
    fn the_headroom_is_taken_off_the_accounts_sessions() {
        assert_eq!(read(&[]).unwrap().session_limit(), 9_900);
        let s = read(&[("MIRRORFLEET_SESSION_HEADROOM", "0")]).unwrap();
        assert_eq!(s.session_limit(), 10_000);
        let e = read(&[("MIRRORFLEET_SESSION_HEADROOM", "10001")]).unwrap_err();
        assert!(e.what.contains("from 0 to 10000"), "{e}");
    }

    #[test]
    fn the_roles_of_the_stack_are_known_by_its_name() {
        let s = read(&[]).unwrap();
        let own = "arn:aws:sts::1:assumed-role/fleet-ReconcileRole-1A2B/fleet-reconcile";
        assert!(s.is_own_role(own));
        for other in [
            "arn:aws:sts::1:assumed-role/fleeting-Role/x",
            "arn:aws:sts::1:assumed-role/other-fleet-Role/x",
            "arn:aws:iam::1:user/fleet-admin",
            "",
        ] {
            assert!(!s.is_own_role(other), "{other}");
        }
    }

    #[test]
    fn a_teardown_needs_no_valid_settings() {
        let t = Teardown::read(|_| None, "arn:stack");
        assert_eq!(
            (t.stack.as_str(), t.mutations_per_second),
            ("arn:stack", 3.0)
        );
        let t = Teardown::read(|name| (name == RATE).then(|| "x".to_owned()), "arn:stack");
        assert!((t.mutations_per_second - 3.0).abs() < f64::EPSILON);
    }
}
