#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| jobcache_fuzz::templates::run(data));
