//! Validates a filter configuration offline, with the code and the messages of the filter, and
//! warns of what is valid and still likely to be a mistake: with the proxy's bootstrap, of routes
//! there that go round the filter, and of clusters whose endpoints are not those of the filter.
//!
//! `check_config FILE [--envoy BOOTSTRAP | --nginx]` exits with 0 if the file is valid, 1 if it is not, 2 if
//! one could not be read.

#[cfg(not(target_arch = "wasm32"))]
mod endpoints;
#[cfg(not(target_arch = "wasm32"))]
mod envoy;

#[cfg(not(target_arch = "wasm32"))]
fn main() -> std::process::ExitCode {
    use haven::host::HostKind;
    use std::path::Path;

    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let (file, bootstrap, kind) = match &arguments[..] {
        [file] => (Path::new(file), None, HostKind::Envoy),
        [file, flag] if flag == "--nginx" => (Path::new(file), None, HostKind::Nginx),
        [file, flag, bootstrap] if flag == "--envoy" => {
            let bootstrap = Some(Path::new(bootstrap));
            (Path::new(file), bootstrap, HostKind::Envoy)
        }
        _ => {
            eprintln!("usage: check_config FILE [--envoy BOOTSTRAP | --nginx]");
            return 2.into();
        }
    };
    let read =
        |file: &Path| std::fs::read(file).map_err(|error| eprintln!("{}: {error}", file.display()));
    let Ok(document) = read(file) else {
        return 2.into();
    };
    let shown = file.display();
    let read_config = || {
        let config = haven::document::parse(&document)?;
        config.check_host(kind)?;
        // A parameter of nginx ends there.
        if kind == HostKind::Nginx && document.len() >= 4096 {
            println!(
                "warning: {shown}: {} bytes, and nginx takes less than 4096",
                document.len()
            );
        }
        Ok::<_, haven::document::ConfigErrors>(config)
    };
    let config = match read_config() {
        Ok(config) => config,
        Err(errors) => {
            println!("{errors}");
            return 1.into();
        }
    };
    println!(
        "{shown}: ok: {} routes, {} upstreams, {} rate limits, {} circuit breakers, {} fallbacks",
        config.routes.len(),
        config.upstreams.len(),
        config.rate_limits.len(),
        config.circuit_breakers.len(),
        config.fallbacks.len(),
    );
    for line in config.warnings() {
        println!("warning: {line}");
    }
    let Some(bootstrap) = bootstrap else {
        return 0.into();
    };
    let Ok(text) = read(bootstrap) else {
        return 2.into();
    };
    let upstreams = config.upstreams.iter();
    let overrides: Vec<_> = upstreams.map(|it| it.override_header.clone()).collect();
    // JSON is YAML too.
    match serde_yaml_ng::from_slice(&text) {
        Ok(value) => {
            let own = endpoints::warnings(&value, &config);
            for line in envoy::warnings(&value, &overrides).into_iter().chain(own) {
                println!("warning: {}: {line}", bootstrap.display());
            }
            0.into()
        }
        Err(error) => {
            eprintln!("{}: {error}", bootstrap.display());
            2.into()
        }
    }
}

#[cfg(target_arch = "wasm32")]
fn main() {}
