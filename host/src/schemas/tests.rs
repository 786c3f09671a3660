//! What the registry promises, over a catalog in a temporary directory.

use serde_json::json;

use super::*;
use crate::clock::{Clock, Timestamp};

async fn registry() -> (tempfile::TempDir, Schemas) {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(&dir.path().join("catalog.db"), Clock::fixed(Timestamp(0))).await.unwrap();
    (dir, Schemas::new(catalog, 100))
}

fn version(version: &str, definition: &str, compatibility: Compatibility) -> NewSchema {
    NewSchema { id: "orders".to_owned(), version: version.to_owned(), definition: definition.to_owned(), compatibility }
}

async fn faults_of(registry: &Schemas, definition: Value) -> Vec<Fault> {
    let new = version("1", &definition.to_string(), Compatibility::None);
    match registry.register(new, &Actor::system()).await {
        Err(SchemaError::Invalid(faults)) => faults,
        other => panic!("{definition} is not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_definition_that_is_no_schema_is_refused_with_every_fault_by_its_place() {
    let (_dir, registry) = registry().await;
    let faults =
        faults_of(&registry, json!({"type": "text", "properties": {"a": {"minLength": -1}, "b": {"required": 1}}}))
            .await;
    let paths: Vec<&str> = faults.iter().map(|fault| fault.path.as_str()).collect();
    for expected in [
        "/schemaDefinition/type",
        "/schemaDefinition/properties/a/minLength",
        "/schemaDefinition/properties/b/required",
    ] {
        assert!(paths.contains(&expected), "{paths:?}");
    }
    let draft_3 = faults_of(&registry, json!({"$schema": "http://json-schema.org/draft-03/schema#"})).await;
    assert_eq!(draft_3[0].path, "/schemaDefinition/$schema");
    let elsewhere = faults_of(&registry, json!({"properties": {"a": {"$ref": "https://example.com/a.json"}}})).await;
    assert_eq!(elsewhere.len(), 1, "a schema from elsewhere is not fetched: {elsewhere:?}");
    let nowhere = faults_of(&registry, json!({"$ref": "#/$defs/missing"})).await;
    assert_eq!(nowhere.len(), 1, "{nowhere:?}");
    let pattern = faults_of(&registry, json!({"properties": {"a": {"pattern": "("}}})).await;
    assert!(pattern[0].path.starts_with("/schemaDefinition/properties/a"), "{pattern:?}");
    let long = faults_of(&registry, json!({"description": "x".repeat(DEFINITION_BYTES_MAX)})).await;
    assert_eq!(long[0].path, "/schemaDefinition");

    let unnamed = NewSchema { id: "a b".to_owned(), ..version(&"1".repeat(51), "{}", Compatibility::None) };
    match registry.register(unnamed, &Actor::system()).await {
        Err(SchemaError::Invalid(faults)) => assert_eq!(faults.len(), 2),
        other => panic!("{other:?}"),
    }
    let not_json = registry.register(version("1", "{", Compatibility::None), &Actor::system()).await;
    assert!(matches!(not_json, Err(SchemaError::Invalid(_))));
    assert_eq!(registry.list(None, 10, 0).await.unwrap().1, 0, "nothing refused was kept");
}

#[tokio::test]
async fn every_draft_reads_its_own_words() {
    let (_dir, registry) = registry().await;
    // A maximum that excludes itself: a flag in draft 4, a number after.
    for (draft, exclusive) in [
        ("http://json-schema.org/draft-04/schema#", json!(true)),
        ("http://json-schema.org/draft-06/schema#", json!(10)),
        ("http://json-schema.org/draft-07/schema#", json!(10)),
        ("https://json-schema.org/draft/2019-09/schema", json!(10)),
        ("https://json-schema.org/draft/2020-12/schema", json!(10)),
    ] {
        let definition = json!({"$schema": draft, "maximum": 10, "exclusiveMaximum": exclusive}).to_string();
        let label = draft.replace(['/', ':', '#'], "-");
        registry.register(version(&label, &definition, Compatibility::None), &Actor::system()).await.unwrap();
        assert_eq!(registry.validate("orders", json!(9)).await.unwrap(), []);
        assert_eq!(registry.validate("orders", json!(10)).await.unwrap().len(), 1, "{draft}");
    }
}

#[tokio::test]
async fn the_same_version_again_changes_nothing_and_other_content_is_a_conflict() {
    let (_dir, registry) = registry().await;
    let register = async |definition: &str, compatibility| {
        registry.register(version("1", definition, compatibility), &Actor::system()).await
    };
    let (first, registered) = register(r#"{"type":"object","title":"a"}"#, Compatibility::Full).await.unwrap();
    assert_eq!(registered, Registered::New);
    let again = register(r#"{ "title": "a", "type": "object" }"#, Compatibility::Full).await.unwrap();
    assert_eq!(again, (first, Registered::Again));
    for (definition, compatibility) in
        [("{}", Compatibility::Full), (r#"{"type":"object","title":"a"}"#, Compatibility::None)]
    {
        let refused = register(definition, compatibility).await;
        assert!(matches!(refused, Err(SchemaError::Catalog(CatalogError::Conflict(_)))), "{refused:?}");
    }
    assert_eq!(registry.versions("orders").await.unwrap().len(), 1);
    assert!(matches!(registry.versions("none").await, Err(SchemaError::NotFound(_))));
    assert!(matches!(registry.get("none").await, Err(SchemaError::NotFound(_))));
}

#[tokio::test]
async fn a_declared_compatibility_lets_annotations_change_and_names_all_else() {
    let (_dir, registry) = registry().await;
    let register = async |name: &str, definition: &str, compatibility| {
        registry.register(version(name, definition, compatibility), &Actor::system()).await
    };
    register("1", r#"{"type":"object"}"#, Compatibility::Backward).await.unwrap();
    register("2", r#"{"type":"object","title":"An order"}"#, Compatibility::Backward).await.unwrap();
    // A declaration can't be shed by the version that breaks it, only by one that changes nothing.
    match register("3", r#"{"type":"object","required":["id"]}"#, Compatibility::None).await {
        Err(SchemaError::Incompatible { declared, changed }) => {
            assert_eq!((declared, changed), (Compatibility::Backward, vec!["/required".to_owned()]));
        }
        other => panic!("{other:?}"),
    }
    register("3", r#"{"type":"object"}"#, Compatibility::None).await.unwrap();
    register("4", r#"{"type":"object","required":["id"]}"#, Compatibility::None).await.unwrap();
    let versions = registry.versions("orders").await.unwrap();
    assert_eq!(versions.iter().map(|schema| schema.version.as_str()).collect::<Vec<_>>(), ["4", "3", "2", "1"]);
}

#[tokio::test]
async fn faults_of_a_payload_are_named_by_place_and_bounded() {
    let (_dir, registry) = registry().await;
    let definition = json!({"type": "object", "properties": {"id": {"type": "string"}, "at": {"format": "date-time"},
        "lines": {"items": {"type": "integer"}}}, "required": ["id"]});
    registry.register(version("1", &definition.to_string(), Compatibility::None), &Actor::system()).await.unwrap();
    assert_eq!(registry.validate("orders", json!({"id": "a", "at": "formats assert nothing"})).await.unwrap(), []);
    let faults = registry.validate("orders", json!({"id": 7, "lines": [1, "two"]})).await.unwrap();
    let mut paths: Vec<&str> = faults.iter().map(|fault| fault.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/id", "/lines/1"]);
    let many = registry.validate("orders", json!({"id": "a", "lines": vec!["x".repeat(10_000); 1000]})).await.unwrap();
    assert_eq!(many.len(), FAULTS_MAX);
    assert!(many.iter().all(|fault| fault.message.chars().count() <= 513));
    assert!(matches!(registry.validate("none", json!(1)).await, Err(SchemaError::NotFound(_))));
}

#[tokio::test]
async fn a_new_version_validates_at_once_also_in_another_process() {
    let (dir, registry) = registry().await;
    registry.register(version("1", "true", Compatibility::None), &Actor::system()).await.unwrap();
    let catalog = Catalog::open(&dir.path().join("catalog.db"), Clock::fixed(Timestamp(0))).await.unwrap();
    let other = Schemas::new(catalog, 100);
    assert_eq!(other.validate("orders", json!(1)).await.unwrap(), []);
    registry.register(version("2", "false", Compatibility::None), &Actor::system()).await.unwrap();
    assert_eq!(other.validate("orders", json!(1)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_pattern_that_backtracks_for_ever_is_cut_off() {
    let (_dir, registry) = registry().await;
    // The back reference keeps it off the linear engine.
    let definition = json!({"pattern": r"^(a+)+\1$"}).to_string();
    registry.register(version("1", &definition, Compatibility::None), &Actor::system()).await.unwrap();
    let payload = json!(format!("{}b", "a".repeat(5000)));
    let faults = tokio::time::timeout(std::time::Duration::from_secs(10), registry.validate("orders", payload)).await;
    assert_eq!(faults.unwrap().unwrap().len(), 1);
}
