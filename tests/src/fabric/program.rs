//! Sessions of one interface -> the lines that tell `tc` what to mirror. Pure.
//!
//! A filter chain of `tc` ends at the first match. That is AWS's rule as well: the lowest session number first, the
//! lowest rule number first, and a packet is mirrored once.

use std::fmt::Write as _;

use anyhow::{Context, bail};

use super::session::{Action, Rule, Session};

/// Where on the VPC side of an interface a direction passes.
#[derive(Clone, Copy)]
enum Hook {
    /// Frames that leave the VPC for the instance.
    Egress,
    /// Frames that come from the instance.
    Ingress,
}

impl Hook {
    const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// The batch for `tc` that mirrors `port` for these sessions, each with the device that its copies go to.
///
/// # Errors
/// A rule that cannot be expressed: a bad network, ports the wrong way round, a rejecting rule before another session
/// of the same interface (this kernel's `tc` can end a chain, but not go on at the next session).
pub(super) fn batch(port: &str, sessions: &[(&Session, &str)]) -> anyhow::Result<String> {
    let mut ordered = sessions.to_vec();
    ordered.sort_by_key(|(session, _)| session.number);
    let mut text = String::new();
    for hook in [Hook::Egress, Hook::Ingress] {
        let mut priority = 0_u32;
        for (index, (session, device)) in ordered.iter().enumerate() {
            let mut rules: Vec<&Rule> = match hook {
                Hook::Egress => session.filter.ingress.iter().collect(),
                Hook::Ingress => session.filter.egress.iter().collect(),
            };
            rules.sort_by_key(|rule| rule.number);
            for rule in rules {
                let action = match rule.action {
                    Action::Accept => format!("action mirred egress mirror dev {device}"),
                    // A match without an action ends the chain and lets the packet pass.
                    Action::Reject if index + 1 == ordered.len() => "flowid :1".to_owned(),
                    Action::Reject => bail!(
                        "{}: rule {} rejects, and another session follows on {}: not supported by the lab",
                        session.id,
                        rule.number,
                        session.eni
                    ),
                };
                priority += 1;
                let (family, alternatives) = matches(rule)
                    .with_context(|| format!("{}, rule {}", session.filter.id, rule.number))?;
                for alternative in alternatives {
                    writeln!(
                        text,
                        "filter add dev {port} {} protocol {family} prio {priority} u32{alternative} {action}",
                        hook.name()
                    )?;
                }
            }
        }
    }
    Ok(text)
}

/// The link protocol, and the `u32` matches any of which is the rule.
fn matches(rule: &Rule) -> anyhow::Result<(&'static str, Vec<String>)> {
    let v6 = rule.source_cidr.contains(':');
    if v6 != rule.destination_cidr.contains(':') {
        bail!(
            "source {} and destination {} are of two families",
            rule.source_cidr,
            rule.destination_cidr
        );
    }
    let ip = if v6 { "ip6" } else { "ip" };
    let mut common = String::new();
    for (side, cidr) in [("src", &rule.source_cidr), ("dst", &rule.destination_cidr)] {
        check_cidr(cidr)?;
        if !cidr.ends_with("/0") {
            write!(common, " match {ip} {side} {cidr}")?;
        }
    }
    if let Some(protocol) = rule.protocol {
        write!(common, " match {ip} protocol {protocol} 0xff")?;
    }
    let mut alternatives = vec![common];
    if !v6 && (rule.source_ports.is_some() || rule.destination_ports.is_some()) {
        for alternative in &mut alternatives {
            // Ports stand at a fixed place only behind a header without options and in a first fragment.
            alternative.push_str(" match u8 0x05 0x0f at 0 match u16 0 0x1fff at 6");
        }
    }
    for (side, ports) in [
        ("sport", rule.source_ports),
        ("dport", rule.destination_ports),
    ] {
        let Some((first, last)) = ports else { continue };
        if first > last {
            bail!("ports {first} to {last} are the wrong way round");
        }
        let blocks = blocks(first, last);
        alternatives = alternatives
            .iter()
            .flat_map(|alternative| {
                blocks.iter().map(move |(value, mask)| {
                    format!("{alternative} match {ip} {side} {value} {mask:#06x}")
                })
            })
            .collect();
    }
    for alternative in &mut alternatives {
        if alternative.is_empty() {
            alternative.push_str(" match u32 0 0");
        }
    }
    Ok((if v6 { "ipv6" } else { "ip" }, alternatives))
}

fn check_cidr(cidr: &str) -> anyhow::Result<()> {
    let (address, prefix) = cidr
        .split_once('/')
        .with_context(|| format!("{cidr}: no prefix length"))?;
    let address: std::net::IpAddr = address.parse().with_context(|| cidr.to_owned())?;
    let prefix: u8 = prefix.parse().with_context(|| cidr.to_owned())?;
    if prefix > if address.is_ipv4() { 32 } else { 128 } {
        bail!("{cidr}: prefix too long");
    }
    Ok(())
}

/// The fewest aligned power-of-two blocks, as value and mask, that together are the ports `first` to `last`.
fn blocks(first: u16, last: u16) -> Vec<(u16, u16)> {
    let mut blocks = Vec::new();
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    while at < end {
        // The largest block that is aligned here and does not pass the end.
        let aligned = if at == 0 {
            1 << 16
        } else {
            1 << at.trailing_zeros()
        };
        let mut size: u32 = aligned;
        while at + size > end {
            size /= 2;
        }
        // Both fit: `at` < 65536, and the mask of a block of 65536 is 0.
        let narrow = |value: u32| u16::try_from(value & 0xffff).unwrap_or_default();
        blocks.push((narrow(at), narrow(!(size - 1))));
        at += size;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::super::session::http_session;
    use super::*;

    #[test]
    fn blocks_hold_every_port_of_the_range_and_no_other() {
        for (first, last) in [
            (80, 80),
            (0, 65535),
            (1, 65535),
            (8080, 8090),
            (65535, 65535),
            (0, 0),
            (1023, 1025),
        ] {
            let blocks = blocks(first, last);
            for port in 0..=u16::MAX {
                let hits = blocks
                    .iter()
                    .filter(|(value, mask)| port & mask == *value)
                    .count();
                assert_eq!(
                    hits,
                    usize::from((first..=last).contains(&port)),
                    "{port} of {first}-{last}"
                );
            }
        }
    }

    #[test]
    fn the_lowest_session_number_stands_first() {
        let (late, early) = (
            http_session("late", "eni-1", 7, &[80]),
            http_session("early", "eni-1", 3, &[80]),
        );
        let text = batch("p1", &[(&late, "mlate"), (&early, "mearly")]).unwrap();
        let devices: Vec<&str> = text
            .lines()
            .filter_map(|line| line.rsplit(' ').next())
            .collect();
        assert_eq!(devices, ["mearly", "mearly", "mlate", "mlate"]);
        let priorities: Vec<&str> = text
            .lines()
            .map(|line| line.split(' ').nth(8).unwrap())
            .collect();
        assert_eq!(priorities, ["1", "2", "3", "4"]);
    }

    #[test]
    fn what_goes_to_the_instance_is_seen_leaving_the_vpc() {
        let session = http_session("s", "eni-1", 1, &[80]);
        let text = batch("p1", &[(&session, "m")]).unwrap();
        assert_eq!(
            text.lines().next().unwrap(),
            "filter add dev p1 egress protocol ip prio 1 u32 match ip protocol 6 0xff match u8 0x05 0x0f at 0 \
             match u16 0 0x1fff at 6 match ip dport 80 0xffff action mirred egress mirror dev m"
        );
    }

    #[test]
    fn a_rule_that_cannot_be_expressed_is_an_error_that_names_it() {
        let mut session = http_session("s", "eni-1", 1, &[80]);
        session.filter.ingress[0].source_cidr = "10.0.0.0/33".to_owned();
        let error = batch("p1", &[(&session, "m")]).unwrap_err();
        assert!(
            format!("{error:#}").contains("rule 1: 10.0.0.0/33: prefix too long"),
            "{error:#}"
        );
    }

    #[test]
    fn a_rejecting_rule_ends_the_chain_before_an_accepting_one() {
        let mut session = http_session("s", "eni-1", 1, &[80]);
        session.filter.ingress[0].action = Action::Reject;
        let text = batch("p1", &[(&session, "m")]).unwrap();
        assert!(text.lines().next().unwrap().ends_with("flowid :1"));
        assert!(
            batch(
                "p1",
                &[
                    (&session, "m"),
                    (&http_session("t", "eni-1", 2, &[80]), "n")
                ]
            )
            .is_err()
        );
    }
}
