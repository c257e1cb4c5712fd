//! The environment that the proxy gives to the plugin (`vm_config.environment_variables`), as WASI
//! hands it over: all of it at once, as `NAME=value` with a zero at the end of each.
//!
//! Only Envoy's: what reads it is refused on nginx.

use super::bindings::Proxy;
use crate::host::Environment;

/// The most that is read, in bytes: a handful of secrets.
#[cfg(not(feature = "portable"))]
const MAX_BYTES: usize = 1 << 20;

#[cfg(not(feature = "portable"))]
impl Environment for Proxy {
    fn variable(&self, name: &str) -> Option<String> {
        use super::imports::{environ_get, environ_sizes_get};
        let (mut count, mut size) = (0, 0);
        // SAFETY: the out pointers live through the call.
        let known = unsafe { environ_sizes_get(&raw mut count, &raw mut size) } == 0;
        if !known || size > MAX_BYTES || count > size {
            return None;
        }
        let mut variables = vec![std::ptr::null_mut::<u8>(); count];
        let mut buffer = vec![0u8; size];
        // SAFETY: both are as large as the host has said, and live through the call.
        if unsafe { environ_get(variables.as_mut_ptr(), buffer.as_mut_ptr()) } != 0 {
            return None;
        }
        let mut all = buffer.split(|byte| *byte == 0);
        let value = all.find_map(|it| it.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        String::from_utf8(value.to_vec()).ok()
    }
}

#[cfg(feature = "portable")]
impl Environment for Proxy {
    fn variable(&self, _name: &str) -> Option<String> {
        None
    }
}
