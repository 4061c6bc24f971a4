//! ListEvents: what happened to devices, also to those that are gone.

use proto::v1;
use tonic::Status;

use super::status::invalid_field;
use super::{Service, convert};
use crate::events::{Event, Severity};
use crate::filter::{Facts, Field, Filter, Schema};
use crate::supervisor::Error;

/// The parent of all events.
const ALL: &str = "devices/-";

/// What a filter can ask of an event; `facts` has the values in this order.
const SCHEMA: Schema = Schema {
    fields: &[
        Field::text("reason"),
        Field::one_of("severity", &["NORMAL", "WARNING"]),
        Field::text("device_uid"),
    ],
    has_labels: false,
};

/// One page.
pub(super) fn list(
    service: &Service,
    request: &v1::ListEventsRequest,
) -> Result<v1::ListEventsResponse, Status> {
    let device = match &*request.parent {
        ALL => None,
        parent => Some(convert::device_id_in("parent", parent)?),
    };
    let filter = Filter::parse(&request.filter, &SCHEMA)
        .map_err(|error| invalid_field("filter", error.to_string()))?;
    let count = convert::page_size(request.page_size)?;
    let before = match convert::page_after(&request.page_token)? {
        None => u64::MAX,
        Some(order) => order
            .parse()
            .map_err(|_| invalid_field("page_token", "not a next_page_token of ListEvents"))?,
    };
    let shared = &service.supervisor.shared;
    let takes = |event: &Event| filter.is_empty() || filter.matches(&facts(event));
    let (found, more) = shared.events.list(device, before, count, takes);
    if let Some(id) = device
        && found.is_empty()
        && shared
            .events
            .list(device, u64::MAX, 1, |_| true)
            .0
            .is_empty()
        && matches!(service.supervisor.get(id), Err(Error::Missing { .. }))
    {
        return Err(Error::Missing { id: id.to_owned() }.into());
    }
    let last = found.last().filter(|_| more);
    Ok(v1::ListEventsResponse {
        next_page_token: last.map_or(String::new(), |it| {
            convert::page_token(&it.order.to_string())
        }),
        events: found.into_iter().map(event).collect(),
    })
}

fn severity(severity: Severity) -> v1::event::Severity {
    match severity {
        Severity::Normal => v1::event::Severity::Normal,
        Severity::Warning => v1::event::Severity::Warning,
    }
}

fn facts(event: &Event) -> Facts {
    Facts {
        fields: vec![
            event.reason.clone(),
            severity(event.severity).as_str_name().to_owned(),
            event.uid.clone(),
        ],
        ..Facts::default()
    }
}

fn event(event: Event) -> v1::Event {
    v1::Event {
        name: format!("devices/{}/events/{:016x}", event.device, event.name),
        device_uid: event.uid,
        time: Some(event.time.into()),
        severity: severity(event.severity).into(),
        reason: event.reason,
        message: event.message,
        count: i64::try_from(event.count).unwrap_or(i64::MAX),
        trace_id: event.trace_id,
    }
}
