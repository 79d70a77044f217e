//! Bodies of a route whose filters compress or decompress.
//!
//! In: a message whose head is as the filters left it. Out: its body in the coding that the receiver takes, and a head that
//! says so. Promise: `outrigger_traffic::filter` decides which messages these are; where there is no room an answer goes
//! as it is, and a request whose application would not understand it is refused.

use outrigger_traffic::filter::{Compressor, Filters};
use outrigger_wire::coding::Coding;
use outrigger_wire::h1::Framing;
use outrigger_wire::head::Head;

use super::{Exchange, Incoming};
use crate::body::Source;
use crate::coded::CodedSource;
use crate::error::Reason;
use crate::metrics::CodedMetrics;

/// What is done with a body, as metrics call it.
const COMPRESS: &str = "compress-response";
const DECOMPRESS: &str = "decompress-response";
const DECOMPRESS_REQUEST: &str = "decompress-request";

impl Exchange {
    /// Decompresses the request's body, when its route's filter asks for that.
    pub(super) fn decompress_request(&self, incoming: &mut Incoming<'_>) -> Result<(), Reason> {
        let Some(filter) = self.route_filters().and_then(|filters| filters.decompressor.as_ref()) else {
            return Ok(());
        };
        if matches!(incoming.framing, Framing::Empty) {
            return Ok(());
        }
        let found = filter.request(incoming.request).map_err(|_| Reason::UnsupportedCoding)?;
        let Some(coding) = found else { return Ok(()) };
        let Some(place) = self.snapshot.coded.place() else {
            self.skipped(DECOMPRESS_REQUEST);
            return Err(Reason::Overloaded);
        };
        let metrics = self.coded(DECOMPRESS_REQUEST, coding);
        let body = std::mem::replace(&mut incoming.source, Source::Empty);
        incoming.source = CodedSource::decompressed(body, coding, filter.max_ratio, place, metrics);
        incoming.framing = Framing::Chunked;
        Ok(())
    }

    /// Tells a client what it may compress requests with.
    pub(super) fn tell_codings(&self, response: &mut Head) {
        if let Some(filter) = self.route_filters().and_then(|filters| filters.decompressor.as_ref()) {
            response.push("Accept-Encoding", filter.accepted().as_bytes());
        }
    }

    /// An answer's body as this client takes it, and its framing; its head is made to fit.
    pub(super) fn code_answer<'a>(
        &self,
        request: &Head,
        response: &mut Head,
        framing: Framing,
        body: Source<'a>,
    ) -> (Framing, Source<'a>) {
        let Some(filters) = self.route_filters() else { return (framing, body) };
        if matches!(framing, Framing::Empty) || (filters.compressor.is_none() && filters.decompressor.is_none()) {
            return (framing, body);
        }
        let (framing, body) = self.decompress_answer(filters, request, response, framing, body);
        let length = match framing {
            Framing::Length(length) => Some(length),
            _ => None,
        };
        let chosen = filters.compressor.as_ref().and_then(|filter| filter.choose(request, response, length));
        let Some((coding, level)) = chosen else { return (framing, body) };
        let Some(place) = self.snapshot.coded.place() else {
            self.skipped(COMPRESS);
            return (framing, body);
        };
        Compressor::change(response, coding);
        let metrics = self.coded(COMPRESS, coding);
        (Framing::Chunked, CodedSource::compressed(body, (coding, level), place, metrics))
    }

    fn decompress_answer<'a>(
        &self,
        filters: &Filters,
        request: &Head,
        response: &mut Head,
        framing: Framing,
        body: Source<'a>,
    ) -> (Framing, Source<'a>) {
        let Some(filter) = &filters.decompressor else { return (framing, body) };
        let Some(coding) = filter.response(request, response) else { return (framing, body) };
        let Some(place) = self.snapshot.coded.place() else {
            self.skipped(DECOMPRESS);
            return (framing, body);
        };
        filter.change_response(response);
        let metrics = self.coded(DECOMPRESS, coding);
        (Framing::Chunked, CodedSource::decompressed(body, coding, filter.max_ratio, place, metrics))
    }

    fn coded(&self, work: &str, coding: Coding) -> CodedMetrics {
        let labels = [self.downstream.local.shared.name.as_str(), self.route_name(), work, coding.as_str()];
        self.downstream.local.worker.families.coded(&labels)
    }

    fn skipped(&self, work: &str) {
        let labels = [self.downstream.local.shared.name.as_str(), self.route_name(), work];
        self.downstream.local.worker.families.coded_skipped(&labels);
    }
}
