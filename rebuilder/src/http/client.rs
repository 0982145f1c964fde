//! Who the client of a request is, when the TCP peer is a trusted proxy (§5 of the design, "The client").

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::framing::members;

/// An IP network in CIDR notation, e.g. `10.0.0.0/8` or `2001:db8::/32`; a plain address is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no [`Cidr`]; the message names the text and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no network: write an address or ADDRESS/PREFIX, e.g. 10.0.0.0/8 or 2001:db8::/32"
)]
pub struct CidrError(String);

impl Cidr {
    /// Whether `address` lies in this network. An IPv4 address written as IPv6 (`::ffff:a.b.c.d`) counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                u32::MAX
                    .checked_shl(32 - u32::from(self.prefix))
                    .unwrap_or(0)
                    & (net.to_bits() ^ ip.to_bits())
                    == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                u128::MAX
                    .checked_shl(128 - u32::from(self.prefix))
                    .unwrap_or(0)
                    & (net.to_bits() ^ ip.to_bits())
                    == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || CidrError(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(digits) if digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| error())?
            }
            Some(_) => return Err(error()),
        };
        if prefix > longest {
            return Err(error());
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The rightmost address of the X-Forwarded-For values, read as one list, that is not trusted; garbage ends the search at
/// the hop before it. `None` when the list names nobody: then the peer, itself trusted, is all that is known.
pub(super) fn forwarded_for<'a>(
    values: impl DoubleEndedIterator<Item = &'a [u8]>,
    trust: &[Cidr],
) -> Option<IpAddr> {
    let mut last = None;
    for value in values.rev() {
        // RFC 9110 §5.6.1.2: empty members are to be ignored.
        for member in members(value).rev().filter(|m| !m.is_empty()) {
            let Some(hop) = address(member) else {
                return last;
            };
            last = Some(hop);
            if !trust.iter().any(|net| net.contains(hop)) {
                return last;
            }
        }
    }
    last
}

/// An address with or without port, IPv6 with or without brackets: what load balancers write.
fn address(member: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(member).ok()?;
    let unbracketed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let address = match unbracketed {
        Some(inner) => IpAddr::V6(inner.parse::<Ipv6Addr>().ok()?),
        None => text
            .parse::<IpAddr>()
            .ok()
            .or_else(|| text.parse::<SocketAddr>().ok().map(|s| s.ip()))?,
    };
    Some(address.to_canonical())
}
