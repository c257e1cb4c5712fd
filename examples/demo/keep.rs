//! After the story: everything is left running, and the addresses are printed.

use crate::NAMES;
use crate::stage::{CALM, FIRST, Stage};
use crate::traffic::{Stream, Who};

/// Requests per second of each of two clients.
const RATE: u32 = 5;

/// Starts light traffic and says what is where. The traffic ends with what is returned.
pub fn leave_running(stage: &Stage) -> Vec<Stream> {
    let (out, envoy) = (&stage.out, &stage.envoy);
    let traffic = vec![
        stage.stream(Who::Crowd, FIRST, RATE),
        stage.stream(Who::Steady, CALM, RATE),
    ];
    let (served, admin) = (envoy.addr(), envoy.admin_addr());
    let mut lines = vec![
        format!(
            "Two clients of {RATE}/s go on; changes of circuits are told below. Ctrl-C stops everything."
        ),
        String::new(),
        "the service behind Envoy and haven:".to_owned(),
        format!("  curl -i http://{served}/api/users/1"),
        format!("  curl -i http://{served}/readyz"),
        "be a noisy client, and count the answers by status:".to_owned(),
        "  curl -sZ --parallel-max 40 -o /dev/null -w '%{http_code}\\n' \\".to_owned(),
        format!("    'http://{served}/api/users/[1-500]' | sort | uniq -c"),
        "the dashboard for now is Envoy's admin page (haven's own comes in a later release):"
            .to_owned(),
        format!("  http://{admin}/"),
        "circuits, retries, fallbacks, refusals and requests in flight, as Prometheus sees them:"
            .to_owned(),
        format!("  curl -s 'http://{admin}/stats/prometheus?filter=haven_'"),
        "Envoy's view of the endpoints:".to_owned(),
        format!("  curl -s http://{admin}/clusters"),
    ];
    let log = std::env::temp_dir().join(format!("haven-envoy-{}-0/stdout.log", std::process::id()));
    if log.exists() {
        lines.push("the access log, with what haven decided:".to_owned());
        lines.push(format!("  tail -f {}", log.display()));
    }
    for (upstream, name) in stage.upstreams.iter().zip(NAMES) {
        let faults = format!("  curl -s http://{}/admin/faults -d", upstream.admin_addr());
        lines.push(format!(
            "upstream {name}, at {}: killed, hangs, answers 503, well again:",
            upstream.addr()
        ));
        for fault in ["{\"close\":true}", "{\"hang\":true}", "{\"status\":503}"] {
            lines.push(format!("{faults} '{fault}'"));
        }
        lines.push(format!(
            "{faults} '{{\"close\":null,\"hang\":null,\"status\":null}}'"
        ));
    }
    out.act("left running");
    for line in lines {
        out.plain(format!("  {line}").trim_end());
    }
    traffic
}
