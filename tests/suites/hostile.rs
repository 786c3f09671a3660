//! Guests that a process might die of, over the real binary. Invariant: a test for each row of `deadly!`, made from it: the
//! message gets the verdict that the stage's owner chose, another topic is served all the while, operators are told, and
//! the process is the same one as before, no larger, and ends when it is asked to. Never asks how long anything took.

#[macro_use]
#[path = "../guests/behaviours.rs"]
mod behaviours;

use serde_json::{Value, json};
use sluice_tests::{Broker, guest, wait};

/// Far above what an instance may take, far below what any of them would if it could.
const GROWTH_BYTES_MAX: u64 = 96 << 20;
/// The log holds a hundred lines a second of each plugin, and the broker's own.
const LOG_BYTES_MAX: usize = 1 << 20;
/// Tries of one misdeed: more than the breaker waits for.
const TRIES: usize = 4;

macro_rules! tests {
    ($($word:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $word() {
                let bed = Bed::start().await;
                shown::$word(&bed).await;
                bed.assert_as_before().await;
            }
        )*
    };
}

deadly!(tests);

/// What each row does, and what the broker makes of it.
mod shown {
    use super::{Bed, guest, json};

    const GIVE_BACK: &str = "(call $drop (local.get $batch))";

    pub(super) async fn recurse(bed: &Bed) {
        bed.misdeed("recurse", Some("TRAPPED")).await;
    }

    pub(super) async fn recurse_and_call(bed: &Bed) {
        bed.misdeed("recurse_and_call", Some("TRAPPED")).await;
    }

    pub(super) async fn bomb(bed: &Bed) {
        bed.misdeed("bomb", Some("OUT_OF_MEMORY")).await;
    }

    pub(super) async fn payload(bed: &Bed) {
        bed.misdeed("payload", Some("TRAPPED")).await;
    }

    pub(super) async fn log(bed: &Bed) {
        bed.misdeed("log", Some("TIMED_OUT")).await;
    }

    pub(super) async fn print(bed: &Bed) {
        bed.misdeed("print", Some("TIMED_OUT")).await;
    }

    pub(super) async fn drip(bed: &Bed) {
        bed.misdeed("drip", None).await;
    }

    pub(super) async fn stack_bomb(bed: &Bed) {
        bed.replace("hostile", &guest::raw("(func $deeper (call $deeper))", "(call $deeper)")).await;
        bed.misdeed("", Some("TRAPPED")).await;
    }

    pub(super) async fn table_bomb(bed: &Bed) {
        let grow = "(drop (table.grow $t (ref.null func) (i32.const 1000000000)))";
        bed.replace("hostile", &guest::raw("(table $t 1 funcref)", grow)).await;
        bed.misdeed("", Some("OUT_OF_MEMORY")).await;
    }

    pub(super) async fn configure_spin(bed: &Bed) {
        let mut stage = super::stage("reject", 100);
        stage["config"] = json!({"do": "configure_spin"});
        let stages = json!({"stages": [stage]});
        let put = bed.broker.put("/topics/victim/pipeline", &stages);
        let (answer, ()) = tokio::join!(put, bed.neighbour_is_served());
        let problem = answer.expect_problem(400, "VALIDATION_ERROR");
        assert_eq!(problem["errors"][0]["pointer"], "/stages/0/config", "{problem}");
        assert!(problem["errors"][0]["message"].as_str().is_some_and(|why| why.contains("CPU time")), "{problem}");
        assert_eq!(bed.broker.publish("victim", 1).await.pipeline_revision, Some(0), "nothing has changed");
    }

    pub(super) async fn start_spins(bed: &Bed) {
        bed.is_refused(&guest::raw("(func $spin (loop (br 0))) (start $spin)", GIVE_BACK), "it does not start").await;
    }

    pub(super) async fn oversized(bed: &Bed) {
        bed.is_refused(&vec![0; (50 << 20) + 1], "the component has 52428801 bytes: at most 52428800 are allowed")
            .await;
        // The largest that is read at all.
        bed.is_refused(&vec![0; 50 << 20], "no WebAssembly component").await;
    }
}

/// A broker with a victim and a neighbour, and what it was like before.
struct Bed {
    broker: Broker,
    process: u32,
    resident_bytes: u64,
}

fn stage(on_fault: &str, timeout_ms: u32) -> Value {
    json!({"name": "victim", "plugin": "hostile", "version": "latest", "config": {}, "onFault": on_fault,
        "timeoutMs": timeout_ms, "memoryMb": 64})
}

impl Bed {
    async fn start() -> Bed {
        let broker = Broker::start().await;
        for topic in ["victim", "quiet"] {
            broker.create_topic(topic, "Queue").await;
        }
        let filter =
            json!({"name": "f", "plugin": "filter", "version": "latest", "config": {"headerMatches": {"a": "1"}}});
        broker.put_pipeline("quiet", json!([filter])).await;
        let mut bed = Bed { process: broker.process_id(), broker, resident_bytes: 0 };
        bed.replace("hostile", guest::hostile()).await;
        bed.neighbour_is_served().await;
        bed.resident_bytes = bed.broker.resident_bytes();
        bed
    }

    /// Puts a plugin into the folder and waits until it is `latest`.
    async fn replace(&self, name: &str, component: &[u8]) {
        self.broker.place_plugin(&format!("{name}.wasm"), component);
        wait::until("the plugin is taken in", async || {
            let answer = self.broker.get(&format!("/plugins/{name}")).await;
            let is = answer.status == 200 && answer.json()["versions"][0]["size"] == component.len();
            is.then_some(())
        })
        .await;
    }

    /// Puts what is no plugin into the folder, and waits until that is said.
    async fn is_refused(&self, bytes: &[u8], says: &str) {
        let before = self.broker.get("/plugins/hostile").await.expect(200)["versions"].clone();
        self.broker.place_plugin("hostile.wasm", bytes);
        let refused = wait::until("the file is refused", async || {
            let page = self.broker.get("/plugins/hostile").await.expect(200);
            let is = page["lastError"]["message"].as_str().is_some_and(|why| why.contains(says));
            is.then_some(page)
        });
        let (page, ()) = tokio::join!(refused, self.neighbour_is_served());
        assert_eq!((&page["lastError"]["file"], &page["versions"]), (&json!("hostile.wasm"), &before));
        assert!(self.broker.log().contains(says), "the log has it");
        assert!(self.metrics().await.contains("sluice_plugin_reload_errors_total{plugin=\"hostile\"}"));
    }

    /// Has the stage do it under each `onFault`; `cause` is what it fails of, if it does.
    async fn misdeed(&self, word: &str, cause: Option<&str>) {
        // What is to fail of something else has the time to: touching 64 MiB alone may take 100 ms of a busy machine.
        let timeout_ms = if matches!(cause, None | Some("TIMED_OUT")) { 100 } else { 5_000 };
        for (on_fault, status) in [("reject", None), ("deadLetter", Some("DeadLettered")), ("pass", Some("Pending"))] {
            self.broker.put_pipeline("victim", json!([stage(on_fault, timeout_ms)])).await;
            for attempt in 0..TRIES {
                let publish = self.broker.publish("victim", attempt).header("do", word).answer();
                let (answer, ()) = tokio::join!(publish, self.neighbour_is_served());
                match (cause, status) {
                    (Some(cause), None) => {
                        let problem = answer.expect_problem(503, "PLUGIN_FAULT");
                        let detail = problem["detail"].as_str().unwrap_or_default();
                        let wanted = if attempt < 3 { cause } else { "BREAKER_OPEN" };
                        assert!(detail.contains(wanted), "{problem}");
                        assert_eq!((&problem["stage"], &problem["plugin"]), (&json!("victim"), &json!("hostile")));
                    }
                    _ => {
                        let wanted = if cause.is_some() { status.unwrap_or_default() } else { "Pending" };
                        assert_eq!(answer.expect(202)["status"], wanted);
                    }
                }
            }
        }
        let Some(cause) = cause else { return };
        let counted = format!("sluice_plugin_faults_total{{cause=\"{cause}\",plugin=\"hostile\",version=");
        let metrics = self.metrics().await;
        let nine = metrics.lines().any(|line| line.starts_with(&counted) && line.ends_with(" 9"));
        assert!(nine, "{counted}…}} 9");
        let letters = self.broker.get("/topics/victim/dlq").await.expect(200);
        let letter = &letters["deadLetters"][0];
        assert!(letter.to_string().contains(cause) || letter.to_string().contains("BREAKER_OPEN"), "{letter}");
    }

    async fn neighbour_is_served(&self) {
        for n in 0..5 {
            assert_eq!(self.broker.publish("quiet", n).header("a", "1").await.status, "Pending");
        }
    }

    async fn metrics(&self) -> String {
        self.broker.anonymous().get("//metrics").await.text()
    }

    /// The same process, no larger, with a log of bounded length, which ends well.
    async fn assert_as_before(mut self) {
        self.neighbour_is_served().await;
        assert_eq!(self.broker.process_id(), self.process);
        let (before, now) = (self.resident_bytes, self.broker.resident_bytes());
        assert!(now < before + GROWTH_BYTES_MAX, "{now} bytes after {before}");
        assert!(self.broker.log().len() < LOG_BYTES_MAX, "{} bytes of log", self.broker.log().len());
        assert!(self.broker.stop().await.success());
    }
}
