#![no_main]

libfuzzer_sys::fuzz_target!(|input: &str| sessiond::fuzzing::merge(input));
