//! The fuzz targets over what is kept of their inputs. Invariant: every file of `tests/fuzz/corpus` and
//! `tests/fuzz/regressions` is run by the function that the fuzzer runs, and every target has a folder and a binary.

use std::path::Path;

use sluice_tests::binary::repository;
use sluice_tests::fuzz::{TARGETS, Target};

/// Bytes of all seeds together: they are cloned with the source.
const CORPUS_BYTES_MAX: u64 = 200 * 1024;

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("the test names a target")
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let read = |entry: std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, std::fs::read(entry.path()).expect("readable"))
    };
    entries.map(|entry| read(entry.expect("readable"))).collect()
}

/// Runs all that is kept for a target; the file's name comes before the panic's text.
fn replay(name: &str) {
    let target = target(name);
    let mut kept = files(&target.folder("corpus"));
    assert!(!kept.is_empty(), "{name} has no seeds: FUZZ_SEEDS=write makes them");
    kept.extend(files(&target.folder("regressions")));
    for (file, input) in kept {
        println!("{name}/{file}");
        (target.run)(&input);
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed_and_has_a_binary() {
            let replayed = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|target| target.name), replayed);
            for name in replayed {
                assert!(repository().join(format!("tests/fuzz/fuzz_targets/{name}.rs")).is_file(), "{name}");
            }
        }
    };
}

replays! { journal segment expression jwt publish guest_edits }

/// With `FUZZ_SEEDS=write` in the environment the files are made anew.
#[test]
fn the_corpus_is_what_the_code_makes() {
    let write = std::env::var("FUZZ_SEEDS").is_ok_and(|wish| wish == "write");
    let mut bytes = 0;
    for target in &TARGETS {
        let folder = target.folder("corpus");
        for (name, seed) in (target.seeds)() {
            let file = folder.join(name);
            bytes += seed.len() as u64;
            if write {
                std::fs::create_dir_all(&folder).expect("writable");
                std::fs::write(&file, &seed).expect("writable");
            }
            let kept = std::fs::read(&file).unwrap_or_default();
            assert!(kept == seed, "{} is not what the code makes now: FUZZ_SEEDS=write", file.display());
        }
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes of seeds");
}
