//! After the story: everything is left running, and a person is told where.

use crate::NAMES;
use crate::stage::Stage;
use crate::traffic::{Stream, Who};

/// Requests per second of each of two clients.
const RATE: u32 = 5;

/// Starts light traffic and says what is where. The traffic ends with what is returned.
pub fn leave_running(stage: &Stage) -> Vec<Stream> {
    let (out, envoy) = (&stage.out, &stage.envoy);
    let traffic = vec![stage.stream(Who::Crowd, 11, RATE), stage.stream(Who::Steady, 31, RATE)];
    let (served, admin) = (envoy.addr(), envoy.admin_addr());
    let mut lines = vec![
        format!("two clients of {RATE}/s go on; changes of circuits are told below. Ctrl-C stops everything."),
        String::new(),
        "the service behind Envoy and haven".to_owned(),
        format!("  curl -i http://{served}/api/users/1"),
        format!("  curl -i http://{served}/readyz"),
        "be a noisy client: count the answers by status".to_owned(),
        format!(
            "  curl -sZ --parallel-max 40 -o /dev/null -w '%{{http_code}}\\n' 'http://{served}/api/users/[1-500]' | sort | uniq -c"
        ),
        "Envoy's admin page: the dashboard for now (haven's own comes in a later release)".to_owned(),
        format!("  http://{admin}/                  all pages"),
        format!("  curl -s 'http://{admin}/stats/prometheus?filter=haven_'"),
        "                                           haven: circuits, retries, fallbacks, limits, in flight".to_owned(),
        format!("  curl -s http://{admin}/clusters   Envoy's view of the endpoints"),
        "switch faults; each line has its undoing with null".to_owned(),
    ];
    for (upstream, name) in stage.upstreams.iter().zip(NAMES) {
        let faults = format!("curl -s http://{}/admin/faults -d", upstream.admin_addr());
        lines.push(format!("  upstream {name} at {}", upstream.addr()));
        lines.push(format!("    {faults} '{{\"close\":true}}'       killed"));
        lines.push(format!("    {faults} '{{\"hang\":true}}'        hangs"));
        lines.push(format!("    {faults} '{{\"status\":503}}'       answers 503"));
        lines.push(format!("    {faults} '{{\"close\":null,\"hang\":null,\"status\":null}}'"));
    }
    out.plain("");
    out.heading("left running");
    for line in lines {
        out.plain(&format!("  {line}"));
    }
    traffic
}
