//! What Grafana shows and Prometheus warns of. Invariant: an expression that Prometheus does not take, or a metric that
//! docs/metrics.md does not have, is found.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluice_tests::binary::repository;
use sluice_tests::outside::{said, yaml_documents};
use sluice_tests::servers::promtool;

use super::{folder, text};

/// The names on the page, with what the rest of their row says.
fn documented() -> BTreeMap<String, String> {
    let page = text(&repository().join("docs/metrics.md"));
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    rows.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
}

fn names(expression: &str) -> impl Iterator<Item = &str> {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    expression
        .split(move |letter| !is_letter(letter))
        .filter(|word| ["sluice_", "process_", "haproxy_"].iter().any(|prefix| word.starts_with(prefix)))
}

fn is_known(documented: &BTreeMap<String, String>, name: &str) -> bool {
    if ["process_resident_memory_bytes", "process_cpu_seconds_total"].contains(&name) {
        // The page names these as the usual ones.
        return true;
    }
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
    match of_histogram.and_then(|base| documented.get(base)) {
        Some(row) => row.contains("| histogram"),
        // The parts of a histogram have names, the whole has not.
        None => documented.get(name).is_some_and(|row| !row.contains("| histogram")),
    }
}

fn dashboard() -> Value {
    serde_json::from_str(&text(&folder().join("grafana/dashboards/messaging.json"))).expect("JSON")
}

/// All expressions of the dashboard, with the variables of Grafana put in.
fn shown() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.map(|target| target["expr"].as_str().expect("an expression"));
    expressions.map(|text| text.replace("$__rate_interval", "1m").replace("$topic", ".*")).collect()
}

#[test]
fn every_metric_that_is_shown_or_warned_of_is_one_that_brokers_have() {
    let rules = yaml_documents(&[text(&folder().join("prometheus-rules.yml"))]).remove(0).remove(0);
    let rules = rules["groups"][0]["rules"].as_array().expect("rules").clone();
    let warned = rules.iter().map(|rule| rule["expr"].as_str().expect("an expression").to_owned());
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().expect("variables").clone();
    let asked = variables.iter().map(|variable| variable["query"]["query"].as_str().expect("a query").to_owned());
    let all: Vec<String> = shown().into_iter().chain(warned).chain(asked).collect();
    assert!(all.len() > 40, "{} expressions", all.len());
    let documented = documented();
    let unknown: Vec<&str> =
        all.iter().flat_map(|text| names(text)).filter(|name| !is_known(&documented, name)).collect();
    assert!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
}

#[test]
fn prometheus_takes_every_expression_of_the_dashboard() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let rules: Vec<Value> = shown()
        .into_iter()
        .enumerate()
        .map(|(number, expr)| json!({"record": format!("shown:{number}"), "expr": expr}))
        .collect();
    // YAML takes JSON.
    let file = json!({"groups": [{"name": "shown", "rules": rules}]});
    std::fs::write(folder.path().join("shown.yml"), file.to_string()).expect("a folder of ours can be written");
    let checked = promtool(folder.path(), &["check", "rules", "shown.yml"]);
    assert!(checked.status.success(), "{}", said(&checked));
}

#[test]
fn the_dashboard_asks_the_source_that_is_provisioned() {
    let files = ["datasources/prometheus.yml", "dashboards/dashboards.yml"];
    let read = yaml_documents(&files.map(|file| text(&folder().join("grafana").join(file))));
    let sources = read[0][0]["datasources"].as_array().expect("sources").clone();
    let prometheus = sources.iter().find(|source| source["type"] == "prometheus").expect("Prometheus");
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"]["uid"], prometheus["uid"], "{}", panel["title"]);
    }
    // Where the compose file mounts them.
    let production = super::compose(super::PRODUCTION);
    let mounts = production["services"]["grafana"]["volumes"].as_array().expect("mounts").clone();
    let path = &read[1][0]["providers"][0]["options"]["path"];
    assert!(mounts.iter().any(|mount| mount["target"] == *path), "{path}");
}
