//! What the guest `hostile` does in `configure`. Invariant: a test for each row of `configures!`, made from it; a config is
//! tried before it is set, and what is refused changes nothing.

use serde_json::json;

use crate::catalog::Actor;
use crate::pipeline::PipelineError;

use super::super::{Rig, guest, stage};
use super::Neighbour;

/// Words of the host on each row.
mod said_of {
    macro_rules! words {
        ($($word:ident: $says:literal,)*) => { $(pub(super) fn $word() -> &'static str { $says })* };
    }

    words! {
        configure_spin: "more CPU time than the 2000 ms",
        configure_panic: "configured to panic",
        configure_bomb: "bytes of memory and may have 33554432",
        configure_recurse: "the plugin fails with this config",
        configure_refuse: "the plugin refuses the config: no such config!!!",
        configure_kv: "the batch was used outside of `process`",
        configure_schemas: "it asked for more than 64 schemas",
        configure_log: "more CPU time than the 2000 ms",
    }
}

macro_rules! tests {
    ($($word:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $word() {
                refused(stringify!($word), said_of::$word()).await;
            }
        )*
    };
}

configures!(tests);

async fn refused(word: &str, says: &str) {
    let rig = Rig::new().await;
    rig.accept("hostile", guest("hostile")).await.unwrap();
    let neighbour = Neighbour::of(&rig).await;
    let stages = vec![stage("ok", "hostile", json!({})), stage("bad", "hostile", json!({ "do": word }))];
    let actor = Actor::system();
    let set = rig.pipelines.set(rig.scope(), stages, None, &actor);
    let (set, ()) = tokio::join!(set, neighbour.is_served());
    let PipelineError::Invalid(faults) = set.unwrap_err() else { panic!("a config is refused as one") };
    let [(pointer, why)] = &faults[..] else { panic!("{faults:?}") };
    assert_eq!(pointer, "/stages/1/config");
    assert!(why.contains(says) && why.len() < 1200, "{why}");
    assert_eq!(rig.pipelines.revision(rig.scope()), 0);
    assert!(rig.pipelines.plugin_log("hostile").len() <= 200);
    neighbour.is_served().await;
}
