//! The SDK's copy of the contract. It must ship with the package (authors build outside this repository), so
//! it is a copy; this test keeps it one.

#[test]
fn the_shipped_contract_is_the_repositorys() {
    let root = env!("CARGO_MANIFEST_DIR");
    let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).unwrap();
    assert_eq!(read("wit/sluice.wit"), read("../wit/sluice.wit"), "run: cp wit/sluice.wit plugin-sdk/wit/");
}
