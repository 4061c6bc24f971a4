//! The API's messages as ours and back. What comes in is checked here, field by field; what is
//! wrong is collected, so that a caller learns all of it at once.

use std::collections::BTreeMap;
use std::path::Path;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};
use proto::v1;
use serde_json::{Map, Number};
use tonic::Status;
use tonic::codegen::http::HeaderMap;
use uuid::Uuid;

use super::limits;
use super::plug;
use super::status::invalid;
use crate::clock;
use crate::labels::{check_annotations, check_labels};
use crate::models::Catalogue;
use crate::models::model::{Bar, BarKind, Model};
use crate::schema::{Violation, quoted};
use crate::store::{BackendLossPolicy, Call, History, Record, RestartPolicy, SocketSpec, Spec};
use crate::supervisor::{Configured, Device, Life, View};

const MAX_CONFIG_DEPTH: usize = 32;
const MAX_ID_BYTES: usize = 63;
const DEFAULT_PAGE: i32 = 100;
const MAX_PAGE: i32 = 1000;

const ID_RULE: &str = "an id has 1 to 63 of a-z, 0-9 and -, begins with a letter and does not end \
                       with -";

/// Whether an id is `[a-z]([-a-z0-9]{0,61}[a-z0-9])?`.
fn is_id(id: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_ID_BYTES).contains(&id.len())
        && id.bytes().all(known)
        && id.starts_with(|first: char| first.is_ascii_lowercase())
        && !id.ends_with('-')
}

/// The id in a name such as `devices/nic0`.
pub(super) fn device_id(name: &str) -> Result<&str, Status> {
    device_id_in("name", name)
}

/// The same of a name that is in this field of the request.
pub(super) fn device_id_in<'a>(field: &str, name: &'a str) -> Result<&'a str, Status> {
    match name.strip_prefix("devices/") {
        Some(id) if is_id(id) => Ok(id),
        _ => Err(invalid(vec![Violation::new(
            field,
            format!("{} is not devices/ and an id; {ID_RULE}", quoted(name)),
        )])),
    }
}

/// The record of the device that a request asks for.
pub(super) fn record(
    request: v1::CreateDeviceRequest,
    catalogue: &Catalogue,
    traceparent: Option<String>,
) -> Result<Record, Status> {
    let mut bad = Vec::new();
    let mut refuse = |field: &str, why: &str| bad.push(Violation::new(field, why));

    let Some(device) = request.device else {
        refuse("device", "required");
        return Err(invalid(bad));
    };
    let generated_id = request.device_id.is_empty();
    if !generated_id && !is_id(&request.device_id) {
        let given = quoted(&request.device_id);
        refuse("device_id", &format!("{given} is not allowed: {ID_RULE}"));
    }
    if !device.name.is_empty() && device.name != format!("devices/{}", request.device_id) {
        refuse("device.name", "must be empty, or devices/ and device_id");
    }
    let given = [
        ("device.uid", !device.uid.is_empty()),
        ("device.etag", !device.etag.is_empty()),
        ("device.generation", device.generation != 0),
        ("device.create_time", device.create_time.is_some()),
        ("device.update_time", device.update_time.is_some()),
        ("device.delete_time", device.delete_time.is_some()),
        ("device.status", device.status.is_some()),
    ];
    for (field, _) in given.into_iter().filter(|(_, given)| *given) {
        refuse(field, "the agent sets this field; leave it out");
    }
    check_request_id(&request.request_id, &mut bad);
    let labels = device.labels.into_iter().collect();
    let annotations = device.annotations.into_iter().collect();
    check_labels(&labels, &mut bad);
    check_annotations(&annotations, &mut bad);

    let Some(spec) = device.spec else {
        bad.push(Violation::new("device.spec", "required"));
        return Err(invalid(bad));
    };
    let restart_policy = restart_policy(spec.restart_policy, &mut bad);
    let backend_loss_policy = backend_loss_policy(spec.backend_loss_policy, &mut bad);
    let socket = spec.socket.map(|it| socket_spec(it, &mut bad));
    let limits = limits::limits(spec.limits, &mut bad);
    let model = catalogue.models.get(&spec.model);
    let config = config(spec.config.unwrap_or_default(), &mut bad);
    match (model, &config) {
        (Some(model), Some(config)) => {
            bad.extend(model.check(config).into_iter().map(Violation::in_config));
        }
        (Some(_), None) => {}
        (None, _) => {
            let known = known_models(catalogue);
            let why = match &*spec.model {
                "" => format!("required; one of {known}"),
                name => format!("{} is not a model; there are: {known}", quoted(name)),
            };
            bad.push(Violation::new("device.spec.model", why));
        }
    }
    let Some(config) = config.filter(|_| bad.is_empty()) else {
        return Err(invalid(bad));
    };

    let uid = Uuid::new_v4();
    let id = match generated_id {
        true => generated(&spec.model, uid),
        false => request.device_id,
    };
    let spec = Spec {
        model: spec.model,
        config,
        restart_policy,
        backend_loss_policy,
        socket,
        limits,
    };
    // An id that the agent made is not what was asked for.
    let asked_id = (!generated_id).then_some(&id);
    let created_by = Call::new(
        &request.request_id,
        &(asked_id, &labels, &annotations, &spec),
    );
    let now = clock::now();
    Ok(Record {
        id,
        uid: uid.to_string(),
        etag: Uuid::new_v4().simple().to_string(),
        generation: 1,
        labels,
        annotations,
        create_time: now,
        update_time: now,
        delete_time: None,
        spec,
        created_by,
        calls: Vec::new(),
        deleted_by: None,
        traceparent,
        history: History::default(),
        undo: None,
        attachment: None,
    })
}

/// Collects what is wrong with a request's id, if it has one.
pub(super) fn check_request_id(request_id: &str, bad: &mut Vec<Violation>) {
    if !request_id.is_empty() && Uuid::try_parse(request_id).is_err() {
        bad.push(Violation::new("request_id", "must be a UUID"));
    }
}

/// The names of all models, for people.
pub(super) fn known_models(catalogue: &Catalogue) -> String {
    let names: Vec<_> = catalogue.models.keys().map(String::as_str).collect();
    names.join(", ")
}

/// An id from the model's name and some of the uid's digits.
fn generated(model: &str, uid: Uuid) -> String {
    let known = |it: &char| it.is_ascii_lowercase() || it.is_ascii_digit();
    let stem: String = model.chars().filter(known).take(32).collect();
    let digits = &uid.simple().to_string()[..8];
    if stem.starts_with(|first: char| first.is_ascii_lowercase()) {
        format!("{stem}-{digits}")
    } else {
        format!("device-{digits}")
    }
}

/// What the agent does when the device's process ends.
pub(super) fn restart_policy(policy: i32, bad: &mut Vec<Violation>) -> RestartPolicy {
    use v1::device_spec::RestartPolicy as Policy;
    match Policy::try_from(policy) {
        Ok(Policy::Unspecified | Policy::Always) => RestartPolicy::Always,
        Ok(Policy::OnFailure) => RestartPolicy::OnFailure,
        Ok(Policy::Never) => RestartPolicy::Never,
        Err(_) => {
            let why = format!("{policy} is not a policy; there are: ALWAYS, ON_FAILURE, NEVER");
            bad.push(Violation::new("device.spec.restart_policy", why));
            RestartPolicy::Always
        }
    }
}

/// What the agent does when the device's process ends while a VMM has the device.
pub(super) fn backend_loss_policy(policy: i32, bad: &mut Vec<Violation>) -> BackendLossPolicy {
    use v1::device_spec::BackendLossPolicy as Policy;
    match Policy::try_from(policy) {
        Ok(Policy::Unspecified | Policy::Hold) => BackendLossPolicy::Hold,
        Ok(Policy::Replug) => BackendLossPolicy::Replug,
        Ok(Policy::Fail) => BackendLossPolicy::Fail,
        Err(_) => {
            let why = format!("{policy} is not a policy; there are: HOLD, REPLUG, FAIL");
            bad.push(Violation::new("device.spec.backend_loss_policy", why));
            BackendLossPolicy::Hold
        }
    }
}

/// Owner and mode of the socket.
pub(super) fn socket_spec(spec: v1::SocketSpec, bad: &mut Vec<Violation>) -> SocketSpec {
    if let Some(mode) = spec.mode.filter(|mode| *mode > 0o777) {
        let why = format!("{mode} (octal {mode:o}) has more than permission bits; at most 0777");
        bad.push(Violation::new("device.spec.socket.mode", why));
    }
    for (field, id) in [("uid", spec.uid), ("gid", spec.gid)] {
        // chown takes this number for "leave it as it is".
        if id == Some(u32::MAX) {
            let field = format!("device.spec.socket.{field}");
            bad.push(Violation::new(field, "4294967295 is not an id"));
        }
    }
    SocketSpec {
        uid: spec.uid,
        gid: spec.gid,
        mode: spec.mode,
    }
}

/// A configuration as JSON, if it can be one.
pub(super) fn config(config: Struct, bad: &mut Vec<Violation>) -> Option<serde_json::Value> {
    let value = match object(config, MAX_CONFIG_DEPTH) {
        Ok(value) => value,
        Err(why) => {
            bad.push(Violation::new("device.spec.config", why));
            return None;
        }
    };
    match Model::check_size(&value) {
        Ok(()) => Some(value),
        Err(violation) => {
            bad.push(violation.in_config());
            None
        }
    }
}

fn object(object: Struct, depth: usize) -> Result<serde_json::Value, String> {
    let fields = object.fields.into_iter();
    let fields = fields.map(|(key, value)| Ok((key, json(value, depth)?)));
    Ok(serde_json::Value::Object(
        fields.collect::<Result<Map<_, _>, String>>()?,
    ))
}

fn json(value: Value, depth: usize) -> Result<serde_json::Value, String> {
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| format!("nested deeper than {MAX_CONFIG_DEPTH} levels"))?;
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(it)) => it.into(),
        Some(Kind::StringValue(it)) => it.into(),
        Some(Kind::NumberValue(it)) => number(it)?.into(),
        Some(Kind::StructValue(it)) => object(it, depth)?,
        Some(Kind::ListValue(it)) => {
            let items = it.values.into_iter().map(|it| json(it, depth));
            serde_json::Value::Array(items.collect::<Result<_, _>>()?)
        }
    })
}

/// A Struct has one kind of number. Whole ones are integers to a model, as in JSON.
fn number(value: f64) -> Result<Number, String> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the bound is that of whole numbers an f64 holds exactly"
        )]
        return Ok(Number::from(value as i64));
    }
    Number::from_f64(value).ok_or_else(|| format!("{value} is not a number of JSON"))
}

/// JSON as a Struct; what is not an object becomes an empty one.
fn to_struct(value: &serde_json::Value) -> Struct {
    let fields = value.as_object().into_iter().flatten();
    let fields = fields.map(|(key, value)| (key.clone(), to_value(value)));
    Struct {
        fields: fields.collect::<BTreeMap<_, _>>(),
    }
}

fn to_value(value: &serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(it) => Kind::BoolValue(*it),
        serde_json::Value::Number(it) => Kind::NumberValue(it.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(it) => Kind::StringValue(it.clone()),
        serde_json::Value::Array(items) => Kind::ListValue(ListValue {
            values: items.iter().map(to_value).collect(),
        }),
        serde_json::Value::Object(_) => Kind::StructValue(to_struct(value)),
    };
    Value { kind: Some(kind) }
}

/// That a VMM has a device that is dead there, if so.
fn lost(record: &Record) -> Option<v1::Condition> {
    let since = record.attachment.as_deref()?.lost_time?;
    let cure = record.spec.backend_loss_policy.cure();
    Some(v1::Condition {
        r#type: "BackendLost".to_owned(),
        status: v1::condition::Status::True.into(),
        reason: "CONNECTION_LOST".to_owned(),
        message: format!("the VMM has the device, and no connection to it: {cure}"),
        last_transition_time: Some(since.into()),
        observed_generation: record.generation,
    })
}

/// A device as the API has it.
pub(super) fn device(device: Device, socket_path: String) -> v1::Device {
    let Device { record, view } = device;
    let delete_time = view.delete_time.map(Timestamp::from);
    let ready = v1::Condition {
        r#type: "Ready".to_owned(),
        status: match view.served() {
            true => v1::condition::Status::True.into(),
            false => v1::condition::Status::False.into(),
        },
        reason: view.reason.to_string(),
        message: view.message.clone(),
        last_transition_time: Some(view.since.into()),
        observed_generation: record.generation,
    };
    let configured = v1::Condition {
        r#type: "Configured".to_owned(),
        last_transition_time: Some(view.configured_since.into()),
        observed_generation: record.generation,
        ..configured(&view)
    };
    let backend_lost = lost(&record);
    let resets = view.resets;
    let status = v1::DeviceStatus {
        state: state(view.life).into(),
        socket_path,
        pid: view.pid.unwrap_or_default(),
        client: view.client.map(|it| v1::Client {
            pid: it.pid,
            uid: it.uid,
            gid: it.gid,
            executable: it.executable.unwrap_or_default(),
        }),
        attachment: record.attachment.as_deref().map(plug::attachment),
        restart_count: view.restart_count,
        resets: Some(v1::ResetCounts {
            device_reset: resets.device_reset,
            function_level: resets.function_level,
            software: resets.software,
            lost_connection: resets.lost_connection,
            api: resets.api,
        }),
        conditions: [Some(ready), Some(configured), backend_lost]
            .into_iter()
            .flatten()
            .collect(),
        start_time: view.start_time.map(Timestamp::from),
        traceparent: record.traceparent.clone().unwrap_or_default(),
    };
    v1::Device {
        delete_time,
        status: Some(status),
        ..planned(&record)
    }
}

/// Whether a device's process has the recorded configuration, and why not.
fn configured(view: &View) -> v1::Condition {
    use v1::condition::Status;
    let (status, reason, message) = match (&view.configured, view.is_configured) {
        (_, Some(true)) => (Status::True, "CONFIGURED", String::new()),
        (Configured::No { field, message }, Some(false)) => {
            let field = field
                .as_deref()
                .map_or(String::new(), |it| format!("{it}: "));
            let message = format!("it has the configuration from before: {field}{message}");
            (Status::False, "DEVICE_REFUSED", message)
        }
        _ if view.served() => {
            let message = "it was told and has not answered yet";
            (Status::Unknown, "DEVICE_NO_ANSWER", message.to_owned())
        }
        _ => {
            let message = "it has this configuration when it has started";
            (Status::Unknown, "NOT_SERVED", message.to_owned())
        }
    };
    v1::Condition {
        status: status.into(),
        reason: reason.to_owned(),
        message,
        ..v1::Condition::default()
    }
}

/// A device without its status.
fn planned(record: &Record) -> v1::Device {
    let spec = &record.spec;
    v1::Device {
        name: format!("devices/{}", record.id),
        uid: record.uid.clone(),
        etag: record.etag.clone(),
        generation: record.generation,
        labels: record.labels.clone().into_iter().collect(),
        annotations: record.annotations.clone().into_iter().collect(),
        create_time: Some(record.create_time.into()),
        update_time: Some(record.update_time.into()),
        delete_time: None,
        spec: Some(v1::DeviceSpec {
            model: spec.model.clone(),
            config: Some(to_struct(&spec.config)),
            restart_policy: match spec.restart_policy {
                RestartPolicy::Always => v1::device_spec::RestartPolicy::Always.into(),
                RestartPolicy::OnFailure => v1::device_spec::RestartPolicy::OnFailure.into(),
                RestartPolicy::Never => v1::device_spec::RestartPolicy::Never.into(),
            },
            backend_loss_policy: match spec.backend_loss_policy {
                BackendLossPolicy::Hold => v1::device_spec::BackendLossPolicy::Hold.into(),
                BackendLossPolicy::Replug => v1::device_spec::BackendLossPolicy::Replug.into(),
                BackendLossPolicy::Fail => v1::device_spec::BackendLossPolicy::Fail.into(),
            },
            socket: spec.socket.map(|it| v1::SocketSpec {
                uid: it.uid,
                gid: it.gid,
                mode: it.mode,
            }),
            limits: limits::to_proto(spec.limits),
        }),
        status: None,
    }
}

/// What a device would be, which is not made.
pub(super) fn validated(record: &Record) -> v1::Device {
    v1::Device {
        uid: String::new(),
        etag: String::new(),
        create_time: None,
        update_time: None,
        ..planned(record)
    }
}

fn state(life: Life) -> v1::device_status::State {
    use v1::device_status::State;
    match life {
        Life::Starting => State::Starting,
        Life::Ready => State::Ready,
        Life::Connected => State::Connected,
        Life::Failed => State::Failed,
        Life::Stopped => State::Stopped,
        Life::Deleting | Life::Gone => State::Deleting,
    }
}

/// Name of the runtime that has vfu's own models.
pub(super) const OWN_RUNTIME: &str = "vfu-device";

/// A model as the API has it.
pub(super) fn model(model: &Model, program: &Path) -> v1::Model {
    let (source, runtime, unsupported) = match &model.external {
        None => (program, OWN_RUNTIME, Vec::new()),
        Some(it) => {
            let unsupported = it.unsupported.iter().map(|it| (*it).to_owned()).collect();
            (it.source.as_path(), it.runtime.as_str(), unsupported)
        }
    };
    v1::Model {
        name: format!("models/{}", model.name),
        description: model.description.clone(),
        vendor_id: model.vendor_id,
        device_id: model.device_id,
        class_code: model.class_code,
        config_schema: Some(to_struct(&model.config_schema)),
        bars: model.bars.iter().map(bar).collect(),
        source: source.display().to_string(),
        runtime: runtime.to_owned(),
        unsupported,
    }
}

fn bar(bar: &Bar) -> v1::Bar {
    let kind = match bar.kind {
        BarKind::Memory32 => v1::bar::Kind::Memory32,
        BarKind::Memory64 => v1::bar::Kind::Memory64,
        BarKind::Io => v1::bar::Kind::Io,
        BarKind::Unknown => v1::bar::Kind::Unspecified,
    };
    v1::Bar {
        index: bar.index,
        kind: kind.into(),
        size_bytes: bar.size_bytes,
        prefetchable: bar.prefetchable,
    }
}

/// How many entries a page has.
pub(super) fn page_size(asked: i32) -> Result<usize, Status> {
    let size = match asked {
        0 => DEFAULT_PAGE,
        1.. => asked.min(MAX_PAGE),
        _ => {
            let why =
                format!("{asked} is negative; 0 means {DEFAULT_PAGE}, {MAX_PAGE} is the most");
            return Err(invalid(vec![Violation::new("page_size", why)]));
        }
    };
    Ok(usize::try_from(size).expect("it is positive"))
}

/// The token of the page after `last`. Only the agent looks into it.
pub(super) fn page_token(last: &str) -> String {
    format!("after:{last}")
}

/// The entry after which a page begins.
pub(super) fn page_after(token: &str) -> Result<Option<&str>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let after = token.strip_prefix("after:").filter(|it| !it.is_empty());
    after.map(Some).ok_or_else(|| {
        let why = "not a next_page_token of this agent";
        invalid(vec![Violation::new("page_token", why)])
    })
}

/// The trace context of a call, if it is one: `00-<32>-<16>-<2>` in hexadecimal.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let sizes = text.split('-').map(str::len);
    let known = |byte: u8| byte == b'-' || byte.is_ascii_hexdigit();
    (sizes.eq([2, 32, 16, 2]) && text.bytes().all(known)).then_some(text)
}

/// The id of the trace that a call belongs to.
pub(super) fn trace_id(headers: &HeaderMap) -> Option<String> {
    traceparent(headers)?.split('-').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::models::model::MAX_CONFIG_BYTES;

    #[test]
    fn ids_are_those_of_the_rule() {
        let longest = "a".repeat(63);
        for id in ["a", "nic0", "a-b", &longest] {
            assert!(is_id(id), "{id}");
        }
        let too_long = "a".repeat(64);
        for id in [
            "", "0a", "-a", "a-", "A", "a_b", "a/b", "é", "..", &too_long,
        ] {
            assert!(!is_id(id), "{id}");
        }
    }

    #[test]
    fn whole_numbers_are_integers() {
        assert_eq!(number(3.0).unwrap(), Number::from(3));
        assert_eq!(number(-3.0).unwrap(), Number::from(-3));
        assert_eq!(number(0.5).unwrap(), Number::from_f64(0.5).unwrap());
        assert!(number(f64::NAN).is_err() && number(f64::INFINITY).is_err());
        assert!(number(1e300).unwrap().is_f64());
    }

    #[test]
    fn a_configuration_too_deep_or_too_large_is_refused() {
        let mut value = serde_json::json!({});
        for _ in 0..40 {
            value = serde_json::json!({"a": value});
        }
        let mut bad = Vec::new();
        assert_eq!(config(to_struct(&value), &mut bad), None);
        let large = serde_json::json!({"a": "x".repeat(MAX_CONFIG_BYTES)});
        assert_eq!(config(to_struct(&large), &mut bad), None);
        assert!(bad.iter().all(|it| it.field == "device.spec.config"));
        assert!(bad[0].description.contains("deeper than 32"));
        assert!(bad[1].description.contains("at most 65536"));
    }

    #[test]
    fn pages_are_bounded_and_tokens_are_ours() {
        assert_eq!(page_size(0).unwrap(), 100);
        assert_eq!(page_size(7).unwrap(), 7);
        assert_eq!(page_size(i32::MAX).unwrap(), 1000);
        assert!(page_size(-1).is_err());
        assert_eq!(page_after(&page_token("nic0")).unwrap(), Some("nic0"));
        assert_eq!(page_after("").unwrap(), None);
        assert!(page_after("nic0").is_err());
    }

    proptest! {
        #[test]
        fn generated_ids_are_ids(model in ".{0,80}") {
            prop_assert!(is_id(&generated(&model, Uuid::new_v4())));
        }

        #[test]
        fn no_text_breaks_the_quotes(text in ".{0,200}") {
            quoted(&text);
            let _ = device_id(&text);
        }
    }
}
