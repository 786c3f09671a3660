//! What a plugin author can count on of the powers: values, figures, schemas.

use std::time::Duration;

use serde::Deserialize;
use sluice_plugin::{
    Error, Failure, Message, Rejection, Stage, kv, metrics, schemas,
    testing::{Bench, Input, Verdict, check_cases, figures},
};

/// Obeys what its message's payload says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Obey {}

impl Stage for Obey {
    fn message(&self, message: &Message<'_>) -> Result<(), Failure> {
        match String::from_utf8_lossy(&message.payload()).as_ref() {
            "set" => message.kv_set("k", "1", None),
            "set-shortly" => message.kv_set("k", "2", Some(Duration::from_millis(10))),
            "set-hardly" => message.kv_set("k", "3", Some(Duration::from_nanos(1))),
            "delete" => message.kv_delete("k"),
            "set-and-drop" => {
                message.kv_set("k", "4", None);
                message.drop("unwanted");
            }
            "set-and-reject" => {
                message.kv_set("k", "5", None);
                return Err(Rejection::new("NO", "wrong").into());
            }
            "set-and-fail" => {
                message.kv_set("k", "6", None);
                return Err(Error::new("broken").into());
            }
            "long-key" => message.kv_set(&"k".repeat(257), "", None),
            "long-value" => message.kv_set("k", vec![0; 64 * 1024 + 1], None),
            "at-the-bounds" => message.kv_set(&"k".repeat(256), vec![0; 64 * 1024], None),
            "schema" => message.set_payload(schemas::get("late").unwrap_or_default()),
            "count" => {
                metrics::add("seen_total", 2);
                metrics::set("level", 0.5);
                metrics::observe("bytes", 7.0);
            }
            "many-names" => (0..40).for_each(|n| metrics::add(&format!("n{n:02}"), 1)),
            "bad-name" => metrics::add("Orders-Total", 1),
            _ => {
                let seen = kv::get("k").map(|value| String::from_utf8_lossy(&value).into_owned());
                message.set_header("k", seen.as_deref().unwrap_or("none"));
            }
        }
        Ok(())
    }
}

fn bench() -> Bench<Obey> {
    Bench::new("{}").expect("the config is right")
}

fn obey(bench: &Bench<Obey>, whats: &[&str]) -> Vec<String> {
    let outcomes = bench.run(whats.iter().map(|what| Input::new(*what))).expect("the stage runs");
    outcomes.iter().map(|outcome| outcome.message.header_value("k").unwrap_or("-").to_owned()).collect()
}

#[test]
fn a_value_is_seen_in_its_batch_and_kept_after_it() {
    let bench = bench();
    assert_eq!(obey(&bench, &["get", "set", "get", "delete", "get", "set"]), ["none", "-", "1", "-", "none", "-"]);
    assert_eq!(obey(&bench, &["get"]), ["1"]);
    assert_eq!(obey(&bench, &["delete"]), ["-"]);
    assert_eq!((obey(&bench, &["get"]), bench.kv("k")), (vec!["none".into()], None));
    assert_eq!(obey(&self::bench().keep("k", "before"), &["get"]), ["before"]);
}

#[test]
fn a_value_stays_with_its_message_or_not_at_all() {
    for what in ["set-and-drop", "set-and-reject"] {
        let bench = bench();
        assert_eq!(obey(&bench, &[what, "get"])[1], if what == "set-and-drop" { "4" } else { "5" });
        assert_eq!(obey(&bench, &["get"]), ["none"], "{what}");
    }
    let bench = bench();
    bench.run(["set", "set-and-fail"].map(Input::new)).unwrap_err();
    assert_eq!(bench.kv("k"), None, "a fault takes back what the batch set");
}

#[test]
fn a_value_is_gone_after_its_time() {
    let bench = bench();
    assert_eq!(obey(&bench, &["set-shortly", "get"])[1], "2");
    bench.advance(Duration::from_millis(9));
    assert_eq!(obey(&bench, &["get"]), ["2"]);
    bench.advance(Duration::from_millis(1));
    assert_eq!(obey(&bench, &["get"]), ["none"]);
    assert_eq!(obey(&bench, &["set-hardly", "get"])[1], "3", "rounded up to a millisecond");
    assert_eq!(obey(&bench, &["at-the-bounds"]), ["-"]);
}

#[test]
#[should_panic(expected = "on the way out")]
fn setting_a_value_on_the_way_out_is_a_trap() {
    obey(&bench().on_the_way_out(), &["set"]);
}

#[test]
fn values_are_read_on_the_way_out() {
    assert_eq!(obey(&bench().keep("k", "1").on_the_way_out(), &["get"]), ["1"]);
}

#[test]
#[should_panic(expected = "at most 256")]
fn a_long_key_is_a_trap() {
    obey(&bench(), &["long-key"]);
}

#[test]
#[should_panic(expected = "at most 65536")]
fn a_long_value_is_a_trap() {
    obey(&bench(), &["long-value"]);
}

#[test]
#[should_panic(expected = "while a Bench configures")]
fn asking_for_a_schema_late_is_a_trap() {
    obey(&bench(), &["schema"]);
}

#[test]
fn figures_are_added_up_by_their_names() {
    let _ = figures();
    obey(&bench(), &["count", "count"]);
    let counted = figures();
    assert_eq!(counted.counters, [("seen_total".to_owned(), 4)].into());
    assert_eq!(counted.gauges, [("level".to_owned(), 0.5)].into());
    assert_eq!(counted.observed, [("bytes".to_owned(), vec![7.0, 7.0])].into());
    assert_eq!(figures(), Default::default());
    obey(&bench(), &["many-names"]);
    let names: Vec<String> = figures().counters.into_keys().collect();
    assert_eq!((names.len(), names.last().map(String::as_str)), (32, Some("n31")), "further names are left out");
}

#[test]
#[should_panic(expected = "no name of a metric")]
fn a_metrics_name_has_a_form() {
    obey(&bench(), &["bad-name"]);
}

/// What each case's fault must be told apart from: a runner that compares nothing.
#[test]
fn cases_are_compared_by_what_they_name() {
    let write = |name: &str, out: &str| {
        let dir = std::env::temp_dir().join(format!("sluice-cases-{}-{name}", std::process::id()));
        let case = dir.join("one");
        std::fs::create_dir_all(&case).unwrap();
        let input = r#"[{"payloadText": "set", "headers": {"a": "b"}, "key": "c"}, {"payloadBase64": "Z2V0"},
            {"payloadText": "set-and-reject"}, {"payloadText": "set-and-drop"}]"#;
        std::fs::write(case.join("in.json"), input).unwrap();
        std::fs::write(case.join("out.json"), out).unwrap();
        dir
    };
    let right = r#"[{"verdict": "pass", "payloadText": "set", "headers": {"a": "b"}, "key": "c", "contentType": "text/plain; charset=utf-8"},
        {"verdict": "changed", "headers": {"k": "1"}}, {"verdict": "rejected", "faults": [{"code": "NO"}]},
        {"verdict": "dropped", "reason": "unwanted", "emitted": []}]"#;
    let dir = write("right", right);
    check_cases::<Obey>(&dir);
    std::fs::remove_dir_all(dir).unwrap();
    for (i, (from, to)) in [
        ("\"pass\"", "\"changed\""),
        ("\"payloadText\": \"set\"", "\"payloadText\": \"get\""),
        ("{\"a\": \"b\"}", "{}"),
        ("\"key\": \"c\"", "\"key\": \"d\""),
        ("\"contentType\": \"text/plain; charset=utf-8\"", "\"contentType\": \"text/plain\""),
        (", \"headers\": {\"k\": \"1\"}", ""),
        ("\"reason\"", "\"raeson\""),
        ("\"NO\"", "\"YES\""),
        ("[{\"code\": \"NO\"}]", "[]"),
        ("\"unwanted\"", "\"wanted\""),
        ("\"emitted\": []", "\"emitted\": [{\"topic\": \"t\"}]"),
        ("\"verdict\": \"dropped\"", "\"verdict\": \"fault\""),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(right.contains(from), "{from}");
        let dir = write(&format!("wrong-{i}"), &right.replacen(from, to, 1));
        let checked = std::panic::catch_unwind(|| check_cases::<Obey>(&dir));
        assert!(checked.is_err(), "{from} and {to} are no difference");
        std::fs::remove_dir_all(dir).unwrap();
    }
    assert_eq!(bench().run([Input::new("set-and-drop")]).unwrap()[0].verdict, Verdict::Dropped("unwanted".into()));
}
