//! The `jobcache` command.

fn main() {}
