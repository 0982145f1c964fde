//! Which instance types can be a source, as AWS's list stood in August 2025.
//!
//! The list ages. It is used to order creation (what will probably be refused comes last) and to explain; whether a
//! session can be made is the API's answer alone.

/// What the list says of an instance type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Its family is on the list.
    Listed,
    /// Left out of the list on purpose; why, in words.
    LeftOut(&'static str),
    /// Not on our copy of the list: newer, or rare.
    Unknown,
}

/// Beginnings of the families on AWS's list. A family is the part of the type before the dot.
const LISTED: &[&str] = &[
    "a1", "c4", "c5", "c6", "c7", "d2", "d3", "f1", "g3", "g4", "g5", "g6", "h1", "hpc6", "hpc7",
    "i3", "i4", "inf1", "inf2", "m4", "m5", "m6", "m7", "p2", "p3", "p4", "p5", "r4", "r5", "r6",
    "r7", "t3", "t4g", "trn1", "vt1", "x1", "x2", "z1d",
];

/// What the list says of `instance_type`, for example `m5.large`.
pub fn support(instance_type: &str) -> Support {
    let (family, size) = instance_type.split_once('.').unwrap_or((instance_type, ""));
    if size.starts_with("metal") {
        return Support::LeftOut("bare metal instances cannot be mirrored");
    }
    if family == "t2" {
        return Support::LeftOut("the T2 family cannot be mirrored");
    }
    if ["m8", "c8", "r8"].iter().any(|f| family.starts_with(f)) {
        return Support::LeftOut("the eighth generation was not on AWS's list in August 2025");
    }
    if LISTED.iter().any(|f| family.starts_with(f)) {
        Support::Listed
    } else {
        Support::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_that_aws_leaves_out_are_named() {
        for listed in [
            "m5.large",
            "t3.micro",
            "t3a.small",
            "t4g.nano",
            "c6gn.xlarge",
            "r5d.2xlarge",
            "x2iedn.large",
            "z1d.large",
        ] {
            assert_eq!(support(listed), Support::Listed, "{listed}");
        }
        for out in [
            "t2.micro",
            "m5.metal",
            "c6g.metal",
            "i3en.metal-24xl",
            "m8g.large",
            "c8g.large",
            "r8g.medium",
        ] {
            assert!(matches!(support(out), Support::LeftOut(_)), "{out}");
        }
        for unknown in ["u-6tb1.56xlarge", "", "m9.large", "mac"] {
            assert_eq!(support(unknown), Support::Unknown, "{unknown}");
        }
    }
}
