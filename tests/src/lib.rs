//! The harness of the suites: a real broker, real receivers, a clock to move. Never a mock of what ships.
