//! What is no plugin, brought as one, by upload and by the watched folder. Invariant: a test for each row of `files!`; what
//! runs goes on running, and what was brought is told what it is.

use bytes::Bytes;

use crate::pipeline::draft::Verdict;
use crate::pipeline::engine;

use super::super::{Rig, draft, guest, header, tag};

/// The bytes, and words of the host on them.
mod said_of {
    use super::{Bytes, engine, patched, random, tag};

    type Said = (Bytes, &'static str);

    pub(super) fn empty() -> Said {
        (Bytes::new(), "no WebAssembly component")
    }

    pub(super) fn random_bytes() -> Said {
        (random(100_000, 1), "no WebAssembly component")
    }

    pub(super) fn truncated() -> Said {
        let whole = tag(2);
        (whole.slice(..whole.len() / 2), "no valid component")
    }

    pub(super) fn core_module() -> Said {
        (Bytes::from_static(b"\0asm\x01\0\0\0"), "core module")
    }

    pub(super) fn machine_code() -> Said {
        let code = engine::compiling().unwrap().precompile_component(&tag(2)).unwrap();
        (code.into(), "machine code for wasmtime")
    }

    pub(super) fn wrong_world() -> Said {
        (patched(&[("sluice:plugin/stage", "acme-x:plugin/stage")]), "it does not export sluice:plugin/stage@1.0.0")
    }

    pub(super) fn wrong_import() -> Said {
        (patched(&[("sluice:plugin/types", "sluice:secret/types")]), "which Sluice does not offer to plugins")
    }

    pub(super) fn newer_world() -> Said {
        (patched(&NEWER_MAJOR), "the plugin targets 2.0.0 of sluice:plugin, this host serves 1.0.0–1.0.0")
    }

    /// A newer minor version is taken, unless it uses what this host does not have.
    pub(super) fn newer_function() -> Said {
        let newer = [NEWER_MINOR[0], NEWER_MINOR[1], NEWER_MINOR[2], ("set-header", "set-shadow")];
        (patched(&newer), "the plugin targets 1.1.0 of sluice:plugin, this host serves 1.0.0–1.0.0")
    }

    pub(super) fn oversized() -> Said {
        (vec![0; (50 << 20) + 1].into(), "the component has 52428801 bytes: at most 52428800 are allowed")
    }

    const NEWER_MAJOR: [(&str, &str); 3] = [
        ("sluice:plugin/types@1.0.0", "sluice:plugin/types@2.0.0"),
        ("sluice:plugin/stage@1.0.0", "sluice:plugin/stage@2.0.0"),
        ("sluice:plugin/log@1.0.0", "sluice:plugin/log@2.0.0"),
    ];
    pub(super) const NEWER_MINOR: [(&str, &str); 3] = [
        ("sluice:plugin/types@1.0.0", "sluice:plugin/types@1.1.0"),
        ("sluice:plugin/stage@1.0.0", "sluice:plugin/stage@1.1.0"),
        ("sluice:plugin/log@1.0.0", "sluice:plugin/log@1.1.0"),
    ];
}

macro_rules! tests {
    ($($word:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $word() {
                let (bytes, says) = said_of::$word();
                refused(bytes, says).await;
            }
        )*
    };
}

files!(tests);

async fn refused(bytes: Bytes, says: &str) {
    let rig = Rig::new().await;
    rig.with_stage("tag", |_| {}).await;
    let error = rig.accept("tag", bytes.clone()).await.unwrap_err();
    assert!(error.to_string().contains(says), "{error}");
    rig.pipelines.watch().unwrap();
    std::fs::write(rig.file("tag.wasm"), &bytes).unwrap();
    let is = |error: &crate::pipeline::PluginProblem| error.file == "tag.wasm" && error.message.contains(says);
    let view = rig.until("tag", |view| view.last_error.as_ref().is_some_and(is)).await;
    assert_eq!((view.versions.len(), rig.metric("sluice_plugin_reload_errors_total", "tag")), (1, 2.0));
    let processed = rig.run(vec![draft("{}", &[])]).await;
    assert_eq!((&processed[0].verdict, header(&processed[0], "tag")), (&Verdict::Pass, Some("tag-version-1")));
    rig.pipelines.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_minor_version_that_uses_nothing_new_is_taken() {
    let rig = Rig::new().await;
    rig.accept("tag", patched(&said_of::NEWER_MINOR)).await.unwrap();
}

/// Bytes of any value always give the same answer, and never a panic.
#[tokio::test(flavor = "multi_thread")]
async fn a_component_with_a_few_wrong_bytes_is_refused_or_taken_but_never_hurts() {
    let rig = Rig::new().await;
    let (whole, wrong) = (tag(1), random(4 * 50, 2));
    for wrong in wrong.chunks(4) {
        let mut bytes = whole.to_vec();
        let at = u32::from_le_bytes([wrong[0], wrong[1], wrong[2], 0]) as usize % bytes.len();
        bytes[at] ^= wrong[3] | 1;
        // Either is well: a byte in a name or a constant may make another plugin.
        let _ = rig.accept("fuzzed", bytes.into()).await;
    }
    rig.accept("tag", whole).await.unwrap();
}

/// The guest `tag` with texts replaced by others of the same length.
fn patched(replaced: &[(&str, &str)]) -> Bytes {
    let mut bytes = guest("tag").to_vec();
    for (from, to) in replaced {
        assert_eq!(from.len(), to.len());
        let places: Vec<usize> =
            (0..=bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
        for at in places {
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
    }
    bytes.into()
}

/// Always the same bytes: xorshift.
fn random(count: usize, seed: u64) -> Bytes {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..count).map(|_| next()).collect()
}
