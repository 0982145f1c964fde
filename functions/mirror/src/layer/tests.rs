use super::*;
use crate::fake::{Fake, refused};
use proptest::prelude::*;

fn with(layers: &[(&str, u64)]) -> Fake {
    let fake = Fake::new(vec![]);
    for &(name, versions) in layers {
        fake.state()
            .layers
            .insert(name.to_owned(), (1..=versions).collect());
    }
    fake
}

fn left(fake: &Fake, layer: &str) -> usize {
    fake.state().layers.get(layer).map_or(0, BTreeSet::len)
}

async fn remove(fake: &Fake) -> Result<usize, String> {
    remove_versions(fake, "fleet-rebuilder", Duration::from_secs(600)).await
}

#[test]
fn a_page_is_read_as_lambda_writes_it() {
    // Lambda API reference, "ListLayerVersions", response syntax.
    let body = br#"{"LayerVersions": [
        {"CompatibleArchitectures": ["x86_64"], "CompatibleRuntimes": ["provided.al2023"],
         "CreatedDate": "2018-11-14T23:03:52.894+0000", "Description": "d",
         "LayerVersionArn": "arn:aws:lambda:us-east-2:123456789012:layer:my-layer:2", "LicenseInfo": "MIT", "Version": 2},
        {"Version": 1}], "NextMarker": "AF/+="}"#;
    let page = Page::parse(body).unwrap();
    assert_eq!(page.versions().collect::<Vec<_>>(), [2, 1]);
    assert_eq!(page.next(), Some("AF/+="));
    for last in [
        r#"{"LayerVersions": []}"#,
        r#"{"NextMarker": null, "LayerVersions": []}"#,
        "{}",
    ] {
        assert_eq!(
            Page::parse(last.as_bytes()).unwrap(),
            Page::default(),
            "{last}"
        );
    }
    assert_eq!(Page::parse(b"<html>").unwrap_err().class, ErrorClass::Retry);
}

#[tokio::test]
async fn all_versions_of_this_layer_go_and_no_other() {
    let fake = with(&[("fleet-rebuilder", 7), ("fleet-rebuilder-2", 3)]);
    assert_eq!(remove(&fake).await, Ok(7));
    assert_eq!(
        (
            left(&fake, "fleet-rebuilder"),
            left(&fake, "fleet-rebuilder-2")
        ),
        (0, 3)
    );
    // Nothing to do is success.
    assert_eq!(remove(&fake).await, Ok(0));
}

#[tokio::test]
async fn what_is_not_allowed_is_told_with_the_number_that_is_left() {
    let fake = with(&[("fleet-rebuilder", 2)]);
    fake.fail(
        "delete_layer_version",
        refused("AccessDeniedException"),
        100,
    );
    let why = remove(&fake).await.unwrap_err();
    assert!(
        why.starts_with("2 versions of the layer fleet-rebuilder are left after 0"),
        "{why}"
    );
    assert!(why.contains("AccessDeniedException"), "{why}");
    assert!(why.ends_with("; delete the stack again"), "{why}");

    let fake = with(&[("fleet-rebuilder", 2)]);
    fake.fail("layer_versions", refused("AccessDeniedException"), 100);
    let why = remove(&fake).await.unwrap_err();
    assert!(why.starts_with("an unknown number of versions"), "{why}");
}

#[tokio::test]
async fn the_deadline_is_kept() {
    let fake = with(&[("fleet-rebuilder", 50)]);
    fake.fail(
        "delete_layer_version",
        refused("TooManyRequestsException"),
        100_000,
    );
    let why = remove_versions(&fake, "fleet-rebuilder", Duration::from_secs(9))
        .await
        .unwrap_err();
    assert!(why.starts_with("50 versions"), "{why}");
    assert!(fake.now() <= Duration::from_secs(11));
}

proptest! {
    /// Throttled, errors of the service, lost answers, somebody else deletes too: as long as something gets through now
    /// and then, nothing is left.
    #[test]
    fn a_removal_that_gets_through_leaves_nothing(
        versions in 0..40_u64,
        troubles in proptest::collection::vec((0..4_u8, any::<bool>()), 0..12),
    ) {
        let fake = with(&[("fleet-rebuilder", versions), ("other", 2)]);
        for &(kind, listing) in &troubles {
            let call = if listing { "layer_versions" } else { "delete_layer_version" };
            match kind {
                0 => fake.fail(call, refused("TooManyRequestsException"), 1),
                1 => fake.fail(call, ApiError::answered(500, "ServiceException", ""), 1),
                2 if !listing => fake.fail(call, refused("ResourceNotFoundException"), 1),
                _ if !listing => fake.lose_answer(call),
                _ => fake.fail(call, ApiError::unanswered("time-out"), 1),
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let result = runtime.block_on(remove(&fake));
        prop_assert_eq!(left(&fake, "other"), 2);
        match result {
            Ok(removed) => {
                prop_assert_eq!(left(&fake, "fleet-rebuilder"), 0);
                prop_assert!(removed as u64 <= versions);
            }
            // Only where each of so many rounds in a row met a trouble of its own.
            Err(why) => prop_assert!(troubles.len() >= MAX_IDLE_ROUNDS as usize, "{}", why),
        }
    }
}
