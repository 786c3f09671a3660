//! The contract: the SDK's copy of it, and what of it is promised for ever. The copy must ship with the package (authors build
//! outside this repository); this test keeps it one.

use wit_parser::{Resolve, Stability, WorldItem};

const CONTRACT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../wit/sluice.wit");
/// As it was released. It never changes; the compiled plugins beside it are of it.
const RELEASED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/plugins-1.0/sluice.wit");

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn the_shipped_contract_is_the_repositorys() {
    let shipped = read(concat!(env!("CARGO_MANIFEST_DIR"), "/wit/sluice.wit"));
    assert_eq!(shipped, read(CONTRACT), "run: cp wit/sluice.wit plugin-sdk/wit/");
}

#[test]
fn every_item_says_since_when_it_is_there() {
    let mut resolve = Resolve::new();
    let package = resolve.push_file(CONTRACT).unwrap();
    let version = resolve.packages[package].name.version.clone().expect("the package has a version");
    let (mut items, mut without) = (0, Vec::new());
    let mut look = |name: String, stability: &Stability| {
        items += 1;
        match stability {
            Stability::Stable { since, .. } if *since <= version => {}
            other => without.push(format!("{name}: {other:?}")),
        }
    };
    for (_, interface) in resolve.interfaces.iter() {
        let of = interface.name.as_deref().expect("the contract has no inline interface");
        look(of.to_owned(), &interface.stability);
        interface.functions.iter().for_each(|(name, function)| look(format!("{of}.{name}"), &function.stability));
        interface.types.iter().for_each(|(name, id)| look(format!("{of}.{name}"), &resolve.types[*id].stability));
    }
    for (_, world) in resolve.worlds.iter() {
        look(world.name.clone(), &world.stability);
        for (key, item) in world.imports.iter().chain(&world.exports) {
            if let WorldItem::Interface { stability, .. } = item {
                look(format!("{}: {key:?}", world.name), stability);
            }
        }
    }
    assert!(without.is_empty(), "without @since, or of a later version than {version}: {without:#?}");
    assert!(items > 50, "{items} items: the contract has been read");
}

/// Within 1.x only functions are added: each line of code that was released stands there, in its order.
#[test]
fn what_was_released_stays_as_it_was() {
    let code = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("///"));
        lines.filter(|line| !line.starts_with("package ")).map(str::to_owned).collect()
    };
    let (released, now) = (code(&read(RELEASED)), code(&read(CONTRACT)));
    let mut left = now.iter();
    for line in &released {
        assert!(left.any(|now| now == line), "{line:?} of 1.0 is gone, or has another place");
    }
    assert!(released.len() > 100, "the released contract has been read");
}
