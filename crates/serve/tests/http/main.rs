//! The server as its clients see it: a real one on a free port, with a small random model.

mod exact;
mod hostile;
mod support;
