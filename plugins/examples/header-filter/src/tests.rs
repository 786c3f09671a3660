//! The example's tests: a stage runs natively, verdict by verdict, with no WebAssembly at hand.

use sluice_plugin::testing::{Input, Verdict, run};

use crate::HeaderFilter;

#[test]
fn only_the_wanted_value_passes() {
    let inputs = [Input::new("a").header("kind", "order"), Input::new("b").header("kind", "refund"), Input::new("c")];
    let outcomes = run::<HeaderFilter>(r#"{"header":"kind","value":"order"}"#, inputs).unwrap();
    assert_eq!(outcomes[0].verdict, Verdict::Passed);
    assert_eq!(outcomes[1].verdict, Verdict::Dropped("another value".into()));
    assert_eq!(outcomes[2].verdict, Verdict::Dropped("another value".into()));
    assert!(outcomes.iter().all(|outcome| outcome.payload_reads == 0), "headers are enough");
}
