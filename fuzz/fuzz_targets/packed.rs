#![no_main]

libfuzzer_sys::fuzz_target!(
    // Panics that our code catches are none: without libFuzzer's hook, it ends at those that are not caught.
    init: drop(std::panic::take_hook()),
    |data: &[u8]| olora_fuzz::targets::model::packed(data)
);
