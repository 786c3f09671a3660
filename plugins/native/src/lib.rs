//! Nothing but the example `measure`: the first-party plugins run natively, for the broker's benchmark.
