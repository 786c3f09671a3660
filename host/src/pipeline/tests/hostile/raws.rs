//! Components that no compiler would make, from the text of `tests/guests/raw.wat`. Invariant: a test for each row of
//! `raws!`; what is refused is refused as unusable, in words about the component, and never as a fault of the broker.

use bytes::Bytes;
use serde_json::json;

use crate::catalog::Actor;
use crate::pipeline::PipelineError;

use super::super::{Rig, draft, fault, stage};
use super::Neighbour;

const TEXT: &str = include_str!("../../../../../tests/guests/raw.wat");
/// What `process` does in all that are well-behaved.
const GIVE_BACK: &str = "(call $drop (local.get $batch))";

/// What is put into the text.
#[derive(Default)]
struct Raw {
    component: String,
    module: String,
    process: &'static str,
}

impl Raw {
    fn bytes(&self) -> Bytes {
        let process = if self.process.is_empty() { GIVE_BACK } else { self.process };
        let text = TEXT.replace("(; component ;)", &self.component).replace("(; module ;)", &self.module);
        wat::parse_str(text.replace("(; process ;)", process)).expect("the text is a component").into()
    }

    /// Beside the plugin's own module, `count` instances of one with `what`.
    fn beside(what: &str, count: usize) -> Raw {
        let module = format!("(core module $beside {what})");
        let instances = "(core instance (instantiate $beside))".repeat(count);
        Raw { component: module + &instances, ..Raw::default() }
    }
}

enum Outcome {
    /// It runs, and fails on each message: cause and words.
    Fault(&'static str, &'static str),
    /// It is not accepted.
    Refused(&'static str),
}

mod said_of {
    use super::Outcome::{Fault, Refused};
    use super::{GIVE_BACK, Outcome, Raw};

    macro_rules! rows {
        ($($word:ident: $raw:expr => $outcome:expr,)*) => {
            $(pub(super) fn $word() -> (Raw, Outcome) { ($raw, $outcome) })*
        };
    }

    fn with_module(module: &str, process: &'static str) -> Raw {
        Raw { module: module.to_owned(), process, ..Raw::default() }
    }

    rows! {
        table_bomb: with_module("(table $t 1 funcref)", "(drop (table.grow $t (ref.null func) (i32.const 10000000)))")
            => Fault("OUT_OF_MEMORY", "it wanted a table of 10000001 elements and may have 50000"),
        stack_bomb: with_module("(func $deeper (call $deeper))", "(call $deeper)")
            => Fault("TRAPPED", "call stack exhausted"),
        borrow_kept: with_module("", "(nop)")
            => Fault("TRAPPED", "borrow handles still remain"),
        table_large: Raw::beside("(table 50001 funcref)", 1)
            => Refused("table index 0 has a minimum element size of 50001 which exceeds the limit of 50000"),
        tables: Raw::beside("(table 1 funcref)", 17)
            => Refused("contains 17 tables, which exceeds the configured maximum of 16"),
        memory_large: Raw::beside("(memory 1025)", 1)
            => Refused("module memory does not fit"),
        memories: Raw::beside("(memory 1)", 4)
            => Refused("contains 5 Wasm linear memories, which exceeds the configured maximum of 4"),
        core_instances: Raw::beside("", 64)
            => Refused("core module instances, which exceeds the configured maximum of 64"),
        start_spins: with_module("(func $spin (loop (br 0))) (start $spin)", GIVE_BACK)
            => Refused("it does not start: it used more CPU time than the 2000 ms"),
        function_long: with_module(&format!("(func {})", "nop ".repeat(1 << 20)), GIVE_BACK)
            => Refused("a function of it has 1048578 bytes: at most 1048576 are allowed"),
        functions: with_module(&"(func)".repeat(200_000), GIVE_BACK)
            => Refused("functions: at most 200000 are allowed"),
        interfaces: Raw {
            component: (0..256).map(|n| format!("(import \"wasi:io/i{n}@0.2.0\" (instance))")).collect(),
            ..Raw::default()
        } => Refused("it imports 257 interfaces: at most 256 are allowed"),
    }
}

macro_rules! tests {
    ($($word:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $word() {
                let (raw, outcome) = said_of::$word();
                shown(&raw, &outcome).await;
            }
        )*
    };
}

raws!(tests);

async fn shown(raw: &Raw, outcome: &Outcome) {
    let rig = Rig::new().await;
    let neighbour = Neighbour::of(&rig).await;
    let (accepted, ()) = tokio::join!(rig.accept("raw", raw.bytes()), neighbour.is_served());
    match outcome {
        Outcome::Refused(says) => {
            let error = accepted.unwrap_err();
            assert!(matches!(&error, PipelineError::Unusable(why) if why.contains(says)), "{error:?}");
            let view = rig.pipelines.plugin("raw").unwrap();
            assert!(view.versions.is_empty() && view.last_error.is_some_and(|error| error.message.contains(says)));
            assert_eq!(rig.metric("sluice_plugin_reload_errors_total", "raw"), 1.0);
        }
        Outcome::Fault(cause, says) => {
            accepted.unwrap();
            rig.pipelines.set(rig.scope(), vec![stage("raw", "raw", json!({}))], None, &Actor::system()).await.unwrap();
            let (processed, ()) = tokio::join!(rig.run(vec![draft("{}", &[]); 2]), neighbour.is_served());
            for processed in &processed {
                let (found, said) = fault(processed);
                assert!(found == *cause && said.contains(says), "{found} {said}");
            }
        }
    }
    neighbour.is_served().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_just_within_the_bounds_is_accepted_and_runs() {
    let rig = Rig::new().await;
    let within = [
        Raw::default(),
        Raw::beside("(memory 1)", 3),
        Raw::beside("(table 50000 funcref)", 1),
        Raw::beside("(table 1 funcref)", 16),
        Raw::beside("", 61),
        Raw { module: format!("(func {})", "nop ".repeat((1 << 20) - 2)), ..Raw::default() },
    ];
    for (n, raw) in within.iter().enumerate() {
        rig.accept("raw", raw.bytes()).await.unwrap_or_else(|error| panic!("{n}: {error}"));
        rig.pipelines.set(rig.scope(), vec![stage("raw", "raw", json!({}))], None, &Actor::system()).await.unwrap();
        let processed = rig.run(vec![draft("{}", &[])]).await;
        assert_eq!(processed[0].verdict, crate::pipeline::draft::Verdict::Pass, "{n}");
    }
}
