//! What the audit log says of requests that change something: which resource, and under which id.

use proto::v1;
use tonic::Request;

use crate::audit::{Note, Subject};

/// The resource of calls that concern the whole agent.
const AGENT: &str = "agent";

/// A request that changes something.
pub(super) trait Mutation {
    fn subject(&self) -> Subject;
}

/// The message of a request, which is told to the audit log.
pub(super) fn open<T: Mutation>(request: Request<T>) -> T {
    open_noted(request).0
}

/// The same, and the way to tell it more.
pub(super) fn open_noted<T: Mutation>(mut request: Request<T>) -> (T, Note) {
    let note = request.extensions_mut().remove::<Note>();
    // Without one nobody listens: see the layer.
    let note = note.unwrap_or_default();
    let message = request.into_inner();
    note.set(message.subject());
    (message, note)
}

fn subject(resource: &str, request_id: &str, validate_only: bool) -> Subject {
    Subject {
        resource: resource.to_owned(),
        request_id: request_id.to_owned(),
        validate_only,
    }
}

impl Mutation for v1::CreateDeviceRequest {
    /// An id that the agent is to make up is not known yet.
    fn subject(&self) -> Subject {
        let resource = match &*self.device_id {
            "" => String::new(),
            id => format!("devices/{id}"),
        };
        subject(&resource, &self.request_id, self.validate_only)
    }
}

impl Mutation for v1::UpdateDeviceRequest {
    fn subject(&self) -> Subject {
        let name = self.device.as_ref().map_or("", |it| &it.name);
        subject(name, &self.request_id, self.validate_only)
    }
}

impl Mutation for v1::DeleteDeviceRequest {
    fn subject(&self) -> Subject {
        subject(&self.name, &self.request_id, self.validate_only)
    }
}

impl Mutation for v1::ResetDeviceRequest {
    fn subject(&self) -> Subject {
        subject(&self.name, &self.request_id, false)
    }
}

impl Mutation for v1::RestartDeviceRequest {
    fn subject(&self) -> Subject {
        subject(&self.name, &self.request_id, self.validate_only)
    }
}

impl Mutation for v1::PlugDeviceRequest {
    fn subject(&self) -> Subject {
        subject(&self.name, &self.request_id, self.validate_only)
    }
}

impl Mutation for v1::UnplugDeviceRequest {
    fn subject(&self) -> Subject {
        subject(&self.name, &self.request_id, self.validate_only)
    }
}

impl Mutation for v1::DrainRequest {
    fn subject(&self) -> Subject {
        subject(AGENT, "", false)
    }
}

impl Mutation for v1::UndrainRequest {
    fn subject(&self) -> Subject {
        subject(AGENT, "", false)
    }
}

impl Mutation for v1::ShutDownDevicesRequest {
    fn subject(&self) -> Subject {
        subject(AGENT, "", false)
    }
}
