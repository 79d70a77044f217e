//! What a route's filters do with its requests and answers, compiled.
//!
//! In: filters of the config, and heads of messages. Out: changed heads, answers in an
//! application's stead, faults. Promise: changes allocate nothing beyond what the head itself
//! holds; what frames a message or tells who called is never touched, for validation refuses
//! filters that would.

mod coding;
mod cors;
mod edit;
mod fault;
mod location;

pub use coding::{Compressor, Decompressor, Unsupported, coding, preferred};
pub use cors::Cors;
pub use fault::{Abort, Fault};
pub use location::{Redirect, Rewrite};

use outrigger_config::{DirectResponse, Filter};
use outrigger_wire::head::Head;

use edit::Edit;

/// The filters of a route or of one of its backends.
#[derive(Debug, Default)]
pub struct Filters {
    request: Vec<Edit>,
    response: Vec<Edit>,
    /// What requests ask for instead.
    pub rewrite: Option<Rewrite>,
    /// Which pages may read the answers.
    pub cors: Option<Cors>,
    /// What requests suffer.
    pub fault: Option<Fault>,
    /// What is answered instead of forwarding.
    pub answer: Option<Answer>,
    /// How answers are compressed.
    pub compressor: Option<Compressor>,
    /// How requests, or answers, are decompressed.
    pub decompressor: Option<Decompressor>,
}

/// An answer in an application's stead.
#[derive(Debug)]
pub enum Answer {
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// As the config has it.
    Direct(DirectResponse),
}

impl Filters {
    /// Compiles filters that validation has looked at; `None` when there are none.
    pub fn of(filters: &[Filter]) -> Option<Box<Self>> {
        if filters.is_empty() {
            return None;
        }
        let mut all = Self::default();
        for filter in filters {
            if let Some(changes) = &filter.request_header_modifier {
                edit::add(&mut all.request, changes);
            }
            if let Some(changes) = &filter.response_header_modifier {
                edit::add(&mut all.response, changes);
            }
            if let Some(rewrite) = &filter.url_rewrite {
                all.rewrite = Some(Rewrite::of(rewrite));
            }
            if let Some(redirect) = &filter.request_redirect {
                all.answer = Some(Answer::Redirect(Redirect::of(redirect)));
            }
            if let Some(direct) = &filter.direct_response {
                all.answer = Some(Answer::Direct(direct.clone()));
            }
            if let Some(cors) = &filter.cors {
                all.cors = Some(Cors::of(cors));
            }
            if let Some(fault) = &filter.fault {
                all.fault = Fault::of(fault);
            }
            if let Some(compressor) = &filter.compressor {
                all.compressor = Some(Compressor::of(compressor));
            }
            if let Some(decompressor) = &filter.decompressor {
                all.decompressor = Some(Decompressor::of(decompressor));
            }
        }
        Some(Box::new(all))
    }

    /// Whether it may keep a request from being forwarded.
    pub fn may_answer(&self) -> bool {
        self.cors.is_some() || self.fault.is_some() || self.answer.is_some()
    }

    /// Changes a request: what it asks for, then its fields. `matched` bytes of its path were matched by its route.
    pub fn change_request(&self, request: &mut Head, matched: u32) {
        if let Some(rewrite) = &self.rewrite {
            rewrite.apply(request, matched);
        }
        self.request.iter().for_each(|edit| edit.apply(request));
    }

    /// Changes an answer's fields.
    pub fn change_response(&self, response: &mut Head) {
        self.response.iter().for_each(|edit| edit.apply(response));
    }
}
