//! `vfuctl events`

use std::time::SystemTime;

use proto::v1::{Event, ListEventsRequest, event::Severity};
use serde_json::json;

use super::device_name;
use crate::{
    args::Events,
    client::Client,
    error::Error,
    output::{Format, Output, age, json, table},
};

/// As many events as one answer may hold.
const PAGE: usize = 1000;

/// Lists the events.
pub(crate) async fn run(
    args: Events,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let events = all(&args, client).await?;
    match output.format() {
        Format::Table | Format::Wide => {
            let wide = output.format() == Format::Wide;
            output.text(&list(&events, wide, SystemTime::now()))
        }
        Format::Name => {
            let names = events.iter().map(|it| format!("{}\n", it.name));
            output.text(&names.collect::<String>())
        }
        Format::Json | Format::Yaml => {
            let events = events.iter().map(|it| json("Event", it));
            let events = events.collect::<Result<Vec<_>, _>>()?;
            output.value(&json!({ "events": events }))
        }
    }
}

/// As many of the latest as are asked for, however many pages that takes.
async fn all(args: &Events, client: &Client) -> Result<Vec<Event>, Error> {
    let parent = device_name(args.id.as_deref().unwrap_or("-"));
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut events = Vec::new();
    let mut page_token = String::new();
    while events.len() < limit {
        let rest = PAGE.min(limit - events.len());
        let request = client.request(ListEventsRequest {
            parent: parent.clone(),
            page_size: i32::try_from(rest).unwrap_or(i32::MAX),
            page_token,
            filter: args.filter.clone(),
        });
        let answer = client.answer(client.devices().list_events(request)).await?;
        events.extend(answer.events.into_iter().take(rest));
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(events)
}

fn list(events: &[Event], wide: bool, now: SystemTime) -> String {
    let mut head = vec![
        "LAST SEEN",
        "SEVERITY",
        "REASON",
        "DEVICE",
        "COUNT",
        "MESSAGE",
    ];
    if wide {
        head.extend(["UID", "TRACE"]);
    }
    let rows = events.iter().map(|event| {
        let severity = match event.severity() {
            Severity::Unspecified => "",
            severity => severity.as_str_name(),
        };
        let mut row = vec![
            event.time.map(|it| age(it, now)).unwrap_or_default(),
            severity.to_owned(),
            event.reason.clone(),
            device(event).to_owned(),
            event.count.to_string(),
            event.message.clone(),
        ];
        if wide {
            row.extend([event.device_uid.clone(), event.trace_id.clone()]);
        }
        row
    });
    table(&head, rows)
}

/// The id of the device, from `devices/{id}/events/{event}`.
fn device(event: &Event) -> &str {
    event.name.split('/').nth(1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn events_look_like_kubectls() {
        let event = Event {
            name: "devices/nic0/events/1".into(),
            device_uid: "0b1f".into(),
            time: Some(prost_types::Timestamp::default()),
            severity: Severity::Warning.into(),
            reason: "PROCESS_EXITED".into(),
            message: "exit code 1\nlast line".into(),
            count: 2,
            trace_id: String::new(),
        };
        let now = UNIX_EPOCH + Duration::from_secs(7);
        assert_eq!(
            list(std::slice::from_ref(&event), false, now),
            "\
LAST SEEN   SEVERITY   REASON           DEVICE   COUNT   MESSAGE
7s          WARNING    PROCESS_EXITED   nic0     2       exit code 1 last line
"
        );
        let wide = list(&[event], true, now);
        let lines: Vec<_> = wide.lines().collect();
        assert!(
            lines[0].ends_with("MESSAGE                 UID    TRACE"),
            "{wide}"
        );
        assert!(lines[1].ends_with("last line   0b1f   <none>"), "{wide}");
    }
}
