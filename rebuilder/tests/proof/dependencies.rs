//! What `cargo test -p rebuilder` compiles.

use std::process::Command;

/// The names of all packages that building and testing a package of this workspace takes, on any platform, with the features
/// that it has by default.
fn packages(of: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", of])
        .args(["--edges", "normal,build,dev", "--target", "all"])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(name)
        .collect()
}

/// The SDK takes minutes to compile; only `rebuilder publish` needs it, which is not built by default. (`aws-lc-rs`, a cryptography library
/// that takes minutes too, bears the name and is meant as well.)
#[test]
fn testing_the_rebuilder_builds_no_aws_crate() {
    let of_aws = |name: &String| name.starts_with("aws") || name.starts_with("lambda");
    let packages = packages("rebuilder");
    assert!(packages.len() > 50, "{packages:?}");
    let found: Vec<_> = packages.iter().filter(|name| of_aws(name)).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn where_there_are_aws_crates_they_are_seen() {
    assert!(packages("cloud").iter().any(|name| name == "aws-sdk-ec2"));
}
