#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| jobcache_fuzz::rules::run(data));
