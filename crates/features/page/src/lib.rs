//! The page at the admin API: what `top`, `tap`, `clusters`, `routes` and `connections` tell, in a browser.
//!
//! In: nothing; the page asks the same endpoints as these commands, from the browser. Out: its
//! files under `/ui/`, held in the executable. Promise: it costs nothing while nobody looks; it
//! loads nothing from anywhere else, runs no script that is not one of these files, and no other
//! site can frame it.

mod assets;
mod component;

pub use component::PageComponent;
