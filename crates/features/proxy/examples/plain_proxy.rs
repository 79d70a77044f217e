//! The data plane alone, for profiles: `plain_proxy CONFIG.yaml [WORKERS]` serves until it is killed.
//!
//! It builds in a fraction of the whole binary's time. For instruction counts run it under
//! `valgrind --tool=callgrind`; docs/adr/0005-data-plane-threads-and-cost.md tells how.

use std::error::Error;

use outrigger_http::Resolver;
use outrigger_identity::IdentityComponent;
use outrigger_runtime::{Context, LineQueue};
use outrigger_telemetry::trace::SpanQueue;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: plain_proxy CONFIG.yaml [WORKERS]")?;
    let workers = arguments.next().map_or(Ok(1), |count| count.parse())?;
    let text = std::fs::read_to_string(&path)?;
    let config = outrigger_config::parse(&path, &text, &|_| None).map_err(|error| error.to_string())?.config;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (_component, identities) = IdentityComponent::new();
        // Inbound listeners only; dropping `_standalone` would be the request to stop.
        let (context, _standalone) = Context::standalone(config, workers);
        let component =
            outrigger_proxy::components(identities, Resolver::from_system(), SpanQueue::new(), LineQueue::new(), None)
                .remove(0);
        component.run(context).await
    })
}
