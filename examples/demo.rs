//! The demo of `make demo`: a real Envoy with `envoy.yaml`, three unequal upstreams, steady
//! traffic, and all that can go wrong.
//!
//! Envoy gets a copy of `envoy.yaml` in which only addresses differ: free loopback ports, the
//! upstreams of this process, and the path of the filter. Seven acts, each with counts and with
//! expectations that are checked: the exit code is 0 if all were met, 1 if not, 2 if the story
//! could not begin. `KEEP=1` leaves everything running afterwards, until Ctrl-C or SIGTERM.
//!
//! ```text
//! HAVEN_ENVOY=.tools/envoy HAVEN_WASM=dist/haven.wasm cargo run --example demo
//! ```

use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

#[path = "demo/keep.rs"]
mod keep;
#[path = "demo/out.rs"]
mod out;
#[path = "demo/report.rs"]
mod report;
#[path = "demo/stage.rs"]
mod stage;
#[path = "demo/story.rs"]
mod story;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "demo/traffic.rs"]
mod traffic;
#[path = "demo/watch.rs"]
mod watch;

use out::{Look, Out};
use stage::Stage;

/// What the upstreams call themselves.
const NAMES: [&str; 3] = ["a", "b", "c"];

#[tokio::main]
async fn main() -> ExitCode {
    let out = Arc::new(Out::new());
    let keep = std::env::var("KEEP").is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return cannot_begin(&format!("signals cannot be received: {error}")),
    };
    // Whatever ends this function drops the stage, and with it Envoy and the upstreams.
    let story = async {
        let mut stage = Stage::set(out.clone()).await?;
        let met = story::tell(&mut stage).await;
        Ok::<_, String>((stage, met))
    };
    let (stage, met) = tokio::select! {
        told = story => match told {
            Ok(told) => told,
            Err(error) => return cannot_begin(&error),
        },
        code = signals.next() => {
            out.line(Look::Bold, "\ninterrupted: everything is stopped");
            return code;
        }
    };
    if keep {
        let traffic = keep::leave_running(&stage);
        // By a signal is how this ends well: the story's result stands.
        let _ = signals.next().await;
        drop(traffic);
    }
    drop(stage);
    out.plain("\nEnvoy and the upstreams are stopped.");
    if met {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn cannot_begin(why: &str) -> ExitCode {
    eprintln!("error: the demo cannot begin: {why}");
    ExitCode::from(2)
}

/// The signals that ask us to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one; gives the exit code by which a shell knows it.
    async fn next(&mut self) -> ExitCode {
        tokio::select! {
            _ = self.interrupt.recv() => ExitCode::from(130),
            _ = self.terminate.recv() => ExitCode::from(143),
            _ = self.hang_up.recv() => ExitCode::from(129),
        }
    }
}
