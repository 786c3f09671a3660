//! All that a broker keeps, as its API shows it. Invariant: two of these are equal if nothing was stored, changed, leased or
//! settled between them. Changes nothing itself.

use serde_json::{Map, Value};
use sluice_tests::Client;

/// Looks at everything.
pub(super) async fn stored(client: &Client) -> Value {
    let mut all = Map::new();
    let mut paths = vec!["/topics".to_owned(), "/subscriptions".to_owned(), "/schemas".to_owned()];
    // The newest entry tells whether anything was changed by a request.
    paths.push("/audit-logs?limit=1".to_owned());
    for topic in named(&read(client, "/topics").await["topics"], "name") {
        paths.extend(["pipeline", "metrics", "messages", "dlq"].map(|part| format!("/topics/{topic}/{part}")));
    }
    for id in named(&read(client, "/subscriptions").await["subscriptions"], "subscriptionId") {
        paths.push(format!("/subscriptions/{id}/pipeline"));
    }
    for path in paths {
        let found = read(client, &path).await;
        all.insert(path, found);
    }
    Value::Object(all)
}

/// What differs, for a message.
pub(super) fn difference(before: &Value, after: &Value) -> Option<String> {
    let (before, after) = (before.as_object()?, after.as_object()?);
    let changed = |path: &&String| before.get(*path) != after.get(*path);
    let path = after.keys().chain(before.keys()).find(changed)?;
    let show = |all: &Map<String, Value>| all.get(path).map_or_else(String::new, Value::to_string);
    Some(format!("{path} was {}\n  and is {}", show(before), show(after)))
}

async fn read(client: &Client, path: &str) -> Value {
    let mut found = client.get(path).await.expect(200);
    for group in found["groups"].as_array_mut().into_iter().flatten() {
        // It rises by itself; who asked is no matter of what is stored.
        group["lagSeconds"].take();
        group["consumers"].take();
    }
    // Until now, and since then by the second.
    found["window"].take();
    found
}

fn named(list: &Value, member: &str) -> Vec<String> {
    let items = list.as_array().expect("a list");
    items.iter().filter_map(|item| item[member].as_str().map(str::to_owned)).collect()
}
