//! Where the analyser is: `--forward http(s)://HOST:PORT`.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ForwardError;

/// A parsed `--forward`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `https`.
    pub tls: bool,
    /// A name or an address, an IPv6 one without brackets.
    pub host: String,
    /// 80 or 443 when the URL names none.
    pub port: u16,
}

impl Target {
    /// Where the URL names an address, that: it needs no resolver.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(ip, self.port))
    }

    /// Asks the resolver. Blocks: for the start and for the slow side, never for a worker.
    ///
    /// # Errors
    /// [`ForwardError::Resolve`], also when the name has no address.
    pub fn resolve(&self) -> Result<Vec<SocketAddr>, ForwardError> {
        let fail = |source| ForwardError::Resolve {
            host: self.host.clone(),
            source,
        };
        let mut found: Vec<SocketAddr> = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(fail)?
            .collect();
        found.sort_unstable();
        found.dedup();
        if found.is_empty() {
            return Err(fail(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no address",
            )));
        }
        Ok(found)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Target {
    type Err = ForwardError;

    fn from_str(url: &str) -> Result<Self, ForwardError> {
        let bad = |why: &'static str| ForwardError::Url {
            url: url.to_owned(),
            why,
        };
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| bad("it has no scheme"))?;
        let tls = match scheme {
            _ if scheme.eq_ignore_ascii_case("http") => false,
            _ if scheme.eq_ignore_ascii_case("https") => true,
            _ => return Err(bad("the scheme is neither http nor https")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(bad(
                "it has a path, but requests keep the path that was captured",
            ));
        }
        if authority.contains('@') {
            return Err(bad("user names and passwords are not sent"));
        }
        let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
            let (host, rest) = bracketed
                .split_once(']')
                .ok_or_else(|| bad("the bracket is not closed"))?;
            if !matches!(host.parse(), Ok(IpAddr::V6(_))) {
                return Err(bad("what stands in brackets is no IPv6 address"));
            }
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(bad("the port is missing behind the bracket")),
            }
        } else {
            match authority.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err(bad("an IPv6 address stands in brackets"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            }
        };
        let host_byte = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        if host.is_empty() || !host.bytes().all(host_byte) {
            return Err(bad("the host is empty or has a character that no host has"));
        }
        let port = match port {
            None if tls => 443,
            None => 80,
            // `u16::from_str` would take a plus sign.
            Some(port) => match port.parse() {
                Ok(number) if number != 0 && !port.starts_with('+') => number,
                _ => return Err(bad("the port is not a number from 1 to 65535")),
            },
        };
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
        })
    }
}

/// The analyser's current addresses: written by whoever resolves the name again, read when a connection is opened.
#[derive(Debug, Default)]
pub struct Addresses {
    // Held for the copy of a few addresses, when a connection is opened.
    answers: Mutex<Answers>,
    /// How often there was an answer, so that a worker sees without a lock that there is nothing new.
    answered: AtomicU64,
}

/// What the resolver said.
#[derive(Debug, Default)]
struct Answers {
    last: Vec<SocketAddr>,
    before: Vec<SocketAddr>,
}

impl Addresses {
    /// These.
    #[must_use]
    pub fn new(list: Vec<SocketAddr>) -> Self {
        Self {
            answers: Mutex::new(Answers {
                before: list.clone(),
                last: list,
            }),
            answered: AtomicU64::new(0),
        }
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on these. An empty list is ignored: a resolver that fails must not cut off what still works.
    pub fn set(&self, list: Vec<SocketAddr>) {
        if !list.is_empty() {
            let mut answers = self.answers();
            answers.before = std::mem::replace(&mut answers.last, list);
            self.answered.fetch_add(1, Ordering::Release);
        }
    }

    /// How often they were set.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// Those that stand in none of the last two answers are gone; these do. A name with many addresses, such as a large
    /// load balancer's, may give eight of them at a time.
    #[must_use]
    pub fn present(&self) -> Vec<SocketAddr> {
        let answers = self.answers();
        [answers.last.as_slice(), &answers.before].concat()
    }

    /// All of them from the `turn`-th on, round and round.
    #[must_use]
    pub fn from(&self, turn: usize) -> Vec<SocketAddr> {
        let mut list = self.answers().last.clone();
        if let Some(first) = turn.checked_rem(list.len()) {
            list.rotate_left(first);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_scheme_host_and_port() {
        for (url, tls, host, port) in [
            ("http://10.0.0.1:8080", false, "10.0.0.1", 8080),
            ("https://waf.internal", true, "waf.internal", 443),
            ("HTTP://waf.internal/", false, "waf.internal", 80),
            ("http://[2001:db8::1]:81", false, "2001:db8::1", 81),
        ] {
            let target: Target = url.parse().unwrap();
            assert_eq!(
                (target.tls, target.host.as_str(), target.port),
                (tls, host, port)
            );
            assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
            let address = host.parse().ok().map(|ip| SocketAddr::new(ip, port));
            assert_eq!(target.address(), address);
            assert_eq!(address.is_none(), host == "waf.internal");
        }
    }

    #[test]
    fn a_bad_url_is_one_line_that_names_it_and_the_form() {
        for url in [
            "10.0.0.1:8080",
            "ftp://x:1",
            "http://x:0",
            "http://x:65536",
            "http://x:+80",
            "http://x:",
            "http://:80",
            "http://x/path",
            "http://x?q",
            "http://u:p@x",
            "http://::1:80",
            "http://[::1",
            "http://[x]:80",
            "http://[::1]80",
            "http://a b",
            "http://a\r\nX: y",
        ] {
            let line = url.parse::<Target>().unwrap_err().to_string();
            assert!(line.contains("http(s)://HOST:PORT"), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn addresses_are_taken_in_turn_and_never_become_none() {
        let a: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let b: SocketAddr = "10.0.0.2:80".parse().unwrap();
        let addresses = Addresses::new(vec![a, b]);
        assert_eq!(addresses.from(0), [a, b]);
        assert_eq!(addresses.from(1), [b, a]);
        assert_eq!(addresses.from(usize::MAX), [b, a]);
        addresses.set(Vec::new());
        assert_eq!(addresses.from(2), [a, b]);
        assert_eq!(addresses.answered(), 0);
        addresses.set(vec![b]);
        assert_eq!(addresses.from(2), [b]);
        // It may be there again the next time.
        assert!(addresses.present().contains(&a));
        addresses.set(vec![b]);
        assert!(!addresses.present().contains(&a));
        assert!(addresses.present().contains(&b));
        assert_eq!(addresses.answered(), 2);
        assert_eq!(Addresses::default().from(7), []);
    }
}
