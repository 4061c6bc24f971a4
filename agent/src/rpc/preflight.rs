//! What keeps a VMM from taking a device, as the API tells it.

use std::path::PathBuf;

use proto::v1::{self, finding::Severity};
use tonic::Status;

use super::{Service, device_id, plug, status};
use crate::preflight::{self, Finding, Question, Subject};
use crate::schema::Violation;
use crate::store::Call;
use crate::supervisor::{Device, Plug};
use crate::vmm::Wanted;

/// What was found, in the answer's words.
pub(super) async fn diagnose(
    service: &Service,
    request: v1::DiagnoseDeviceRequest,
) -> Result<v1::DiagnoseDeviceResponse, Status> {
    let supervisor = &service.supervisor;
    if request.name.is_empty() && request.vmm.is_none() {
        let violation = Violation::new("name", "name a device, a VMM, or both");
        return Err(status::invalid(vec![violation]));
    }
    let device = match &*request.name {
        "" => None,
        name => Some(supervisor.get(device_id(name)?)?),
    };
    let id = device.as_ref().map_or("", |it| &it.record.id);
    let plug = match request.vmm {
        Some(_) => Some(plug::plug(id, &as_plug(request))?),
        None => device.as_ref().and_then(present),
    };
    let question = question(service, device.as_ref(), plug.as_ref()).await;
    let found = preflight::findings(&question, &supervisor.shared.vmms).await;
    Ok(v1::DiagnoseDeviceResponse {
        findings: found.into_iter().map(finding).collect(),
    })
}

/// Makes every check of the VMM and of the way between it and the device, unless it is there or on its way, or was when
/// `call` came first. A refusal has a violation for each check that failed.
pub(super) async fn check(
    service: &Service,
    device: &Device,
    plug: &Plug,
    call: Option<&Call>,
) -> Result<(), Status> {
    if device.record.attachment.is_some() || device.record.has_met(call)? {
        return Ok(());
    }
    let question = question(service, Some(device), Some(plug)).await;
    let checked = preflight::check(&question, &service.supervisor.shared.vmms).await;
    checked.map_err(|found| status::unfit(&device.record.id, found))
}

fn as_plug(request: v1::DiagnoseDeviceRequest) -> v1::PlugDeviceRequest {
    v1::PlugDeviceRequest {
        name: request.name,
        vmm: request.vmm,
        vmm_device_id: request.vmm_device_id,
        bus: request.bus,
        slot: request.slot,
        pci_segment: request.pci_segment,
        ..v1::PlugDeviceRequest::default()
    }
}

/// The VMM that a device is in.
fn present(device: &Device) -> Option<Plug> {
    let attachment = device.record.attachment.as_deref()?;
    Some(Plug {
        vmm: attachment.vmm.clone(),
        vmm_device_id: attachment.vmm_device_id.clone(),
        wanted: Wanted::default(),
    })
}

async fn question(service: &Service, device: Option<&Device>, plug: Option<&Plug>) -> Question {
    let supervisor = &service.supervisor;
    // Without a catalogue the other checks are worth as much.
    let catalogue = supervisor.shared.models.get().await.ok();
    let subject = device.map(|device| {
        let socket = PathBuf::from(supervisor.shared.socket_path(&device.record.id));
        let models = catalogue.as_ref().map(|it| &it.models);
        let model = models.and_then(|it| it.get(&device.record.spec.model));
        let bars = model.map_or_else(Vec::new, |it| it.bars.clone());
        Subject::new(device, socket, bars)
    });
    let own = device.map(|it| &*it.record.id);
    Question {
        device: subject,
        endpoint: plug.map(|it| it.vmm.clone()),
        vmm_device_id: plug.map(|it| it.vmm_device_id.clone()).unwrap_or_default(),
        wanted: plug.map(|it| it.wanted.clone()).unwrap_or_default(),
        rivals: plug.map_or_else(Vec::new, |plug| supervisor.attached(plug, own)),
    }
}

fn finding(finding: Finding) -> v1::Finding {
    let severity = match finding.severity {
        preflight::Severity::Ok => Severity::Ok,
        preflight::Severity::Warning => Severity::Warning,
        preflight::Severity::Error => Severity::Error,
    };
    v1::Finding {
        severity: severity.into(),
        code: finding.code.to_owned(),
        subject: finding.subject,
        message: finding.message,
        cure: finding.cure,
    }
}
