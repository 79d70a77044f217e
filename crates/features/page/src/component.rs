//! The page's life: its files are registered while the config wants it.
//!
//! In: `admin.page`. Out: endpoints of the admin API. Promise: it stays to the very end of a
//! stop, which is when it is looked at; turned off, nothing of it answers.

use outrigger_config::Config;
use outrigger_runtime::{AdminRequest, AdminRoute, AdminRoutes, BoxError, BoxFuture, Component, Context, StopPhase};

use crate::assets::{self, ASSETS};

/// The component `page`.
pub struct PageComponent;

impl Component for PageComponent {
    fn name(&self) -> &'static str {
        "page"
    }

    fn stop_phase(&self) -> StopPhase {
        StopPhase::Identity
    }

    fn enabled(&self, config: &Config) -> bool {
        config.admin.page
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move {
            let _routes = register(&ctx.admin);
            ctx.status.ready();
            ctx.stop.requested().await;
            Ok(())
        })
    }
}

/// Only the page itself is in the index of endpoints.
fn register(admin: &AdminRoutes) -> Vec<AdminRoute> {
    let files = ASSETS.iter().map(|asset| {
        let about = if asset.name.is_empty() { "the page for browsers" } else { "" };
        admin.register(format!("/ui/{}", asset.name), about, move |request: AdminRequest| {
            let answer = assets::answer(asset, &request);
            Box::pin(async { answer })
        })
    });
    let bare = admin.register("/ui", "", |_| Box::pin(async { assets::redirect() }));
    files.chain([bare]).collect()
}
