//! What no client should send, to the real binary over real sockets. Invariant: each is answered by a problem that says what
//! is wrong (or, where that is no HTTP, by the end of the connection), nothing of it is stored, and who comes next is
//! served.

mod cases;
mod connections;
mod document;
mod exceptions;
mod faults;
mod rows;
mod sizes;
mod stored;
mod table;
mod tokens;
mod wire;
