//! Validates a filter configuration offline, with the code and the messages of the filter.
//!
//! `check_config FILE` exits with 0 if the file is valid, 1 if it is not, 2 if it could not be
//! read.

#[cfg(not(target_arch = "wasm32"))]
fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(file), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: check_config FILE");
        return 2.into();
    };
    let shown = std::path::Path::new(&file).display();
    let document = match std::fs::read(&file) {
        Ok(document) => document,
        Err(error) => {
            eprintln!("{shown}: {error}");
            return 2.into();
        }
    };
    match haven::document::parse(&document) {
        Ok(config) => {
            println!(
                "{shown}: ok: {} routes, {} upstreams, {} rate limits, {} circuit breakers, \
                 {} fallbacks",
                config.routes.len(),
                config.upstreams.len(),
                config.rate_limits.len(),
                config.circuit_breakers.len(),
                config.fallbacks.len(),
            );
            for line in config.warnings() {
                println!("warning: {line}");
            }
            0.into()
        }
        Err(errors) => {
            println!("{errors}");
            1.into()
        }
    }
}

#[cfg(target_arch = "wasm32")]
fn main() {}
