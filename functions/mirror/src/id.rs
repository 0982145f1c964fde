//! Names of things, each a type of its own, so that a mix-up does not compile.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest identifier that is taken from an event, in bytes. AWS's own are at most 24.
pub const MAX_ID_BYTES: usize = 64;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// What every such identifier begins with.
            pub const PREFIX: &'static str = $prefix;

            /// Takes what the API itself said.
            pub fn new(id: impl Into<String>) -> Self {
                Self(id.into())
            }

            /// Takes what someone else said: the prefix and then 1 or more hexadecimal digits, at most
            /// [`MAX_ID_BYTES`] in all; anything else is `None`.
            pub fn parse(text: &str) -> Option<Self> {
                let digits = text.strip_prefix($prefix)?;
                let hex = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
                (hex && text.len() <= MAX_ID_BYTES).then(|| Self(text.to_owned()))
            }

            /// The identifier as AWS writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// An elastic network interface, `eni-…`.
    EniId, "eni-"
);
id!(
    /// An EC2 instance, `i-…`.
    InstanceId, "i-"
);
id!(
    /// A traffic mirror session, `tms-…`.
    SessionId, "tms-"
);
id!(
    /// A traffic mirror target, `tmt-…`.
    TargetId, "tmt-"
);
id!(
    /// A traffic mirror filter, `tmf-…`.
    FilterId, "tmf-"
);

/// The ARN of a CloudFormation stack. A session that carries ours is ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StackArn(String);

impl StackArn {
    /// Takes the ARN as CloudFormation gives it (`AWS::StackId`).
    pub fn new(arn: impl Into<String>) -> Self {
        Self(arn.into())
    }

    /// The ARN.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The stack's name: what stands after `:stack/` up to the next slash; the whole text where there is no such part.
    pub fn name(&self) -> &str {
        self.0
            .split_once(":stack/")
            .map_or(self.0.as_str(), |(_, rest)| {
                rest.split('/').next().unwrap_or(rest)
            })
    }
}

/// A session's number: 1 to 32766, unique per interface, the lowest wins a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionNumber(u16);

impl SessionNumber {
    /// The highest number that the API takes.
    pub const MAX: SessionNumber = SessionNumber(32766);

    /// `None` outside 1 to 32766.
    pub fn new(number: i64) -> Option<Self> {
        u16::try_from(number)
            .ok()
            .filter(|n| (1..=Self::MAX.0).contains(n))
            .map(Self)
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// The next higher number, if there is one.
    pub fn next(self) -> Option<Self> {
        Self::new(i64::from(self.0) + 1)
    }
}

impl fmt::Display for SessionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_its_prefix_and_hexadecimal_digits() {
        assert!(EniId::parse("eni-0a1b2c3d4e5f60718").is_some());
        assert!(InstanceId::parse("i-1234567890abcdef0").is_some());
        for bad in ["", "eni-", "i-0a1b", "eni-xyz", "eni-0a 1b", "arn:eni-0a1b"] {
            assert_eq!(EniId::parse(bad), None, "{bad}");
        }
        let long = format!("eni-{}", "a".repeat(MAX_ID_BYTES - 4));
        assert!(EniId::parse(&long).is_some());
        assert_eq!(EniId::parse(&format!("{long}a")), None);
    }

    #[test]
    fn a_session_number_lies_between_1_and_32766() {
        assert_eq!(SessionNumber::new(0), None);
        assert_eq!(SessionNumber::new(32767), None);
        assert_eq!(SessionNumber::new(-1), None);
        assert_eq!(SessionNumber::new(32766), Some(SessionNumber::MAX));
        assert_eq!(SessionNumber::MAX.next(), None);
        assert_eq!(
            SessionNumber::new(1).and_then(SessionNumber::next),
            SessionNumber::new(2)
        );
    }

    #[test]
    fn a_stack_is_called_by_the_name_in_its_arn() {
        let arn = "arn:aws:cloudformation:eu-west-1:123456789012:stack/fleet/51af3dc0-da77-11e4-872e-1234567db123";
        assert_eq!(StackArn::new(arn).name(), "fleet");
        assert_eq!(StackArn::new("odd").name(), "odd");
    }
}
