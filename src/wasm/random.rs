//! getrandom's custom backend: WASI's `random_get`, which both Envoy and nginx offer to a module of this target.

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn random_get(buffer: *mut u8, length: usize) -> u16;
}

// SAFETY: the signature is the one that getrandom documents for custom backends; it fills `length` bytes at `dest` or returns an error.
#[unsafe(no_mangle)]
unsafe extern "Rust" fn __getrandom_v03_custom(dest: *mut u8, length: usize) -> Result<(), getrandom::Error> {
    // SAFETY: the caller vouches for `length` writable bytes at `dest`.
    if unsafe { random_get(dest, length) } == 0 { Ok(()) } else { Err(getrandom::Error::UNEXPECTED) }
}
