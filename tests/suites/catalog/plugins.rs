//! Plugins' versions and their bytes.

use sluice::catalog::{Accepted, CatalogError, NewPlugin, PluginSource, Scope, TopicKind};

use crate::bed::{Bed, alice, digest, short};

pub async fn the_version_accepted_last_is_latest_and_a_label_keeps_its_bytes(fixture: Bed) {
    let (first, accepted) = fixture.accept(None, b"one").await.unwrap();
    assert_eq!((first.version.as_str(), accepted), (short(b"one").as_str(), Accepted::New));
    let (second, _) = fixture.accept(Some("1.2.0"), b"two").await.unwrap();
    assert_eq!(fixture.latest_plugin().await, second);
    let (back, accepted) = fixture.accept(None, b"one").await.unwrap();
    assert_eq!((&back.version, accepted), (&first.version, Accepted::Again));
    assert!(back.accepted > second.accepted);
    assert_eq!(fixture.latest_plugin().await, back);
    let entries = fixture.audit().await.len();
    assert_eq!(fixture.accept(None, b"one").await.unwrap(), (back, Accepted::Again), "nothing to do");
    assert_eq!(fixture.audit().await.len(), entries);
    assert!(matches!(fixture.accept(Some("1.2.0"), b"three").await, Err(CatalogError::Conflict(_))));
    assert!(matches!(fixture.accept(Some("latest"), b"three").await, Err(CatalogError::Conflict(_))));
    // Without a label, bytes are known by the label that they have.
    assert_eq!(fixture.accept(None, b"two").await.unwrap().0.version, "1.2.0");
}

pub async fn a_bound_version_stays_and_an_unbound_one_goes_with_its_bytes(fixture: Bed) {
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let (one, _) = fixture.accept(None, b"one").await.unwrap();
    fixture.accept(Some("2.0.0"), b"two").await.unwrap();
    fixture.accept(Some("2.0.1"), b"two").await.unwrap();
    fixture.revise(Scope::Topic(topic.id), None).await.unwrap();
    let delete = async |label: &str| fixture.catalog.delete_plugin_version("filter", label, &alice()).await;
    assert!(matches!(delete(&one.version).await, Err(CatalogError::Conflict(_))));
    delete("2.0.0").await.unwrap();
    assert!(fixture.catalog.plugin_bytes(&digest(b"two")).await.unwrap().is_some(), "2.0.1 still has them");
    delete("2.0.1").await.unwrap();
    assert!(fixture.catalog.plugin_bytes(&digest(b"two")).await.unwrap().is_none());
    assert!(matches!(delete("2.0.1").await, Err(CatalogError::NotFound(_))));
}

pub async fn a_name_whose_versions_are_deleted_is_remembered_and_so_many_are(fixture: Bed) {
    let known = async || fixture.catalog.imports_when_deleted("filter").await.unwrap();
    let delete = async |label: &str| fixture.catalog.delete_plugin_version("filter", label, &alice()).await.unwrap();
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
                INSERT INTO deleted_plugins SELECT 'gone-' || i, '[]', -i FROM n";
    fixture.sql(many).await;
    fixture.accept(Some("1"), b"one").await.unwrap();
    fixture.accept(Some("2"), b"two").await.unwrap();
    delete("1").await;
    assert_eq!(known().await, None, "there is another");
    delete("2").await;
    assert!(known().await.is_some());
    assert_eq!(fixture.catalog.imports_when_deleted("gone-10000").await.unwrap(), None, "the oldest");
    assert!(fixture.catalog.imports_when_deleted("gone-9999").await.unwrap().is_some());
    fixture.accept(Some("3"), b"three").await.unwrap();
    assert_eq!(known().await, None, "it has a version again");
}

pub async fn bytes_that_are_not_their_digests_are_damage(fixture: Bed) {
    fixture.accept(None, b"one").await.unwrap();
    fixture.spoil_plugins().await;
    let read = fixture.catalog.plugin_bytes(&digest(b"one")).await;
    assert!(matches!(read, Err(CatalogError::Damaged(_))), "{read:?}");
    assert_eq!(fixture.catalog.verify().await.unwrap().len(), 1);
    let wrong = NewPlugin {
        plugin: "filter".to_owned(),
        version: None,
        bytes: b"three"[..].into(),
        digest: digest(b"four"),
        source: PluginSource::Upload,
        imports: Vec::new(),
        signed_by: None,
        config_schema: None,
    };
    assert!(matches!(fixture.catalog.accept_plugin(wrong, &alice()).await, Err(CatalogError::Damaged(_))));
}
