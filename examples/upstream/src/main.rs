//! The demo upstream: a small HTTP service whose faults are switched while it runs.
//!
//! ```text
//! upstream --listen 127.0.0.1:0 --admin 127.0.0.1:0 --name a
//! listening 127.0.0.1:40001 admin 127.0.0.1:40002
//!
//! curl -s localhost:40001/echo/x                             # what arrived here
//! curl -s localhost:40002/admin/state                        # faults and counters
//! curl -s localhost:40002/admin/faults -d '{"status":503}'   # answer 503 from now on
//! curl -s localhost:40002/admin/faults -d '{"status":null}'  # and no more
//! curl -s -X POST localhost:40002/admin/reset                # all faults off, counters to zero
//! ```
//!
//! The faults are the fields of [`haven_upstream::faults::Faults`]. SIGTERM and SIGINT end it:
//! requests in flight are answered first.

use std::net::SocketAddr;
use std::process::ExitCode;

use haven_upstream::{Options, Upstream};

const USAGE: &str = "usage: upstream --listen ADDR --admin ADDR --name NAME\n\
    \x20 --listen  where requests are served, e.g. 0.0.0.0:8080; \
    port 0 picks a free one (default 127.0.0.1:0)\n\
    \x20 --admin   where faults are switched; never expose it (default 127.0.0.1:0)\n\
    \x20 --name    what it calls itself in answers (default upstream)";

#[tokio::main]
async fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("{message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("upstream: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    // Taken before the first word on stdout: who reads it may send a signal at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let upstream = Upstream::start(options).await?;
    println!(
        "listening {} admin {}",
        upstream.addr(),
        upstream.admin_addr()
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    upstream.stop().await;
    Ok(())
}

/// The options on the command line; `None` = help was asked for.
fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options::default();
    while let Some(flag) = args.next() {
        if flag == "--help" || flag == "-h" {
            return Ok(None);
        }
        let mut value = || args.next().ok_or_else(|| format!("{flag} wants a value"));
        match flag.as_str() {
            "--listen" => options.listen = address(&flag, &value()?)?,
            "--admin" => options.admin = address(&flag, &value()?)?,
            "--name" => options.name = value()?,
            _ => return Err(format!("unknown argument {flag:?}")),
        }
    }
    Ok(Some(options))
}

fn address(flag: &str, value: &str) -> Result<SocketAddr, String> {
    value
        .parse()
        .map_err(|_| format!("{flag}: {value:?} is not an address like 127.0.0.1:8080"))
}
