#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kms_proxy::fuzzing::envelope(bytes));
