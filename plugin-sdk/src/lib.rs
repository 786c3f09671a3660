//! The plugin author's side of Sluice: typed messages over the `sluice:plugin` world.
//! Invariant: nothing is copied out of the host until it is asked for, so a stage that looks at headers
//! never pays for payloads. Never decides what a verdict leads to: that is the stage's binding in the broker.
//!
//! A plugin is a struct (its fields are the stage's config) and one function:
//!
//! ```
//! use sluice_plugin::{Failure, Message, Stage, serde::Deserialize};
//!
//! #[derive(Deserialize)]
//! #[serde(crate = "sluice_plugin::serde")]
//! struct OnlyKind { kind: String }
//!
//! impl Stage for OnlyKind {
//!     fn message(&self, message: &Message) -> Result<(), Failure> {
//!         if message.header("kind").as_deref() != Some(&self.kind) { message.drop("another kind"); }
//!         Ok(())
//!     }
//! }
//!
//! sluice_plugin::export!(OnlyKind);
//!
//! // In `cargo test`, with no WebAssembly at hand:
//! use sluice_plugin::testing::{Input, Verdict, run};
//! let outcomes = run::<OnlyKind>(r#"{"kind": "order"}"#, [
//!     Input::new("{}").header("kind", "order"),
//!     Input::new("{}").header("kind", "refund"),
//! ])?;
//! assert_eq!(outcomes[0].verdict, Verdict::Passed);
//! assert_eq!(outcomes[1].verdict, Verdict::Dropped("another kind".into()));
//! # Ok::<(), sluice_plugin::Error>(())
//! ```
//!
//! What a plugin may do beyond its messages are powers, each an import that is listed when it is uploaded: [`kv`] (values that
//! outlive the batch), [`metrics`] (figures of its own), [`schemas`] (the broker's registered schemas). Those that the code
//! doesn't call are not imported.
//!
//! Build it with `cargo build --release --target wasm32-wasip2`, crate type `cdylib`.

mod batch;
mod column;
mod error;
mod headers;
pub mod kv;
pub mod log;
mod message;
pub mod metrics;
pub mod schemas;
mod source;
mod stage;

#[cfg(target_family = "wasm")]
mod host;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use batch::{Batch, Messages};
pub use column::{Column, HeaderColumn, PayloadColumn};
pub use error::{Error, Failure, NOT_JSON, Rejection, UNEXPECTED_JSON};
pub use message::{Emit, Message, Position};
pub use stage::Stage;

/// Deserialising configs and payloads; re-exported so that a first plugin needs one dependency.
pub use serde;
/// JSON values; re-exported so that a first plugin needs one dependency.
pub use serde_json;

#[doc(hidden)]
#[cfg(target_family = "wasm")]
pub mod __private {
    //! What `export!` expands to. Not for use by hand; it may change in any release.
    pub use crate::host::{Slot, bindings};
}

/// Makes a [`Stage`] the stage that this component exports. Once per crate.
///
/// On targets other than WebAssembly it only checks that the type is a stage, so that the crate's tests link.
#[macro_export]
macro_rules! export {
    ($stage:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Exported;
            ::std::thread_local! {
                static STAGE: $crate::__private::Slot<$stage> = const { $crate::__private::Slot::empty() };
            }
            impl $crate::__private::bindings::exports::sluice::plugin::stage::Guest for Exported {
                fn configure(
                    config: ::std::string::String,
                ) -> ::std::result::Result<(), $crate::__private::bindings::sluice::plugin::types::Error> {
                    STAGE.with(|slot| slot.configure(&config))
                }
                fn process(
                    messages: &$crate::__private::bindings::sluice::plugin::types::Batch,
                ) -> ::std::result::Result<(), $crate::__private::bindings::sluice::plugin::types::Error> {
                    STAGE.with(|slot| slot.process(messages))
                }
            }
    $crate::__private::bindings::__export_plugin!(Exported with_types_in $crate::__private::bindings);
        };
        #[cfg(not(target_family = "wasm"))]
        const _: fn() = || {
            fn is_a_stage<S: $crate::Stage>() {}
            is_a_stage::<$stage>();
        };
    };
}
