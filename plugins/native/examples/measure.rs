//! Measures a plugin natively: reads `{plugin, config, payload, headers, batch}` from its input and prints microseconds a
//! message. Invariant: the stage runs as its component does, over batches of the same messages; what is measured is warm.

use std::{hint::black_box, time::Instant};

use serde_json::Value;
use sluice_plugin::{
    Stage,
    testing::{Bench, Input},
};

/// Messages of one round: some tens of milliseconds of the quickest plugin.
const MESSAGES: usize = 50_000;

fn main() {
    let work: Value = serde_json::from_reader(std::io::stdin()).expect("the input is JSON");
    let measure = match work["plugin"].as_str().expect("a plugin is named") {
        "cloudevents" => measure::<cloudevents::CloudEvents>,
        "dedup" => measure::<dedup::Dedup>,
        "filter" => measure::<filter::Filter>,
        "jq" => measure::<jq::Jq>,
        "json-schema" => measure::<json_schema::JsonSchema>,
        "redact" => measure::<redact::Redact>,
        "sample" => measure::<sample::Sample>,
        other => panic!("no plugin {other:?}"),
    };
    println!("{}", measure(&work));
}

fn measure<S: Stage>(work: &Value) -> f64 {
    let bench = Bench::<S>::new(&work["config"].to_string()).expect("the config is good");
    let mut message = Input::new(work["payload"].as_str().expect("a payload"));
    for (name, value) in work["headers"].as_object().expect("headers") {
        message = message.header(name, value.as_str().expect("a header's value is text"));
    }
    let size = usize::try_from(work["batch"].as_u64().expect("a size")).expect("a batch is small");
    let batch = vec![message; size];
    let round = |batches: usize| {
        for _ in 0..batches {
            black_box(bench.run(black_box(batch.clone())).expect("it runs"));
        }
    };
    round(MESSAGES / size / 10);
    let begun = Instant::now();
    round(MESSAGES / size);
    begun.elapsed().as_secs_f64() * 1e6 / (MESSAGES / size * size) as f64
}
