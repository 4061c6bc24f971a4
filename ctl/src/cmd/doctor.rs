//! `vfuctl doctor`

use proto::v1::{DiagnoseDeviceRequest, Finding, finding::Severity};
use serde_json::json;

use super::device_name;
use crate::{
    args::Doctor,
    client::Client,
    error::Error,
    output::{Format, Output, json, table},
};

/// Shows what is found; an error when it keeps a VMM from taking the device.
pub(crate) async fn run(
    args: Doctor,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let request = client.request(DiagnoseDeviceRequest {
        name: args.id.as_deref().map(device_name).unwrap_or_default(),
        vmm: args.place.vmm(),
        vmm_device_id: args.place.vmm_device_id.unwrap_or_default(),
        bus: args.place.bus.unwrap_or_default(),
        slot: args.place.slot.unwrap_or_default(),
        pci_segment: args.place.segment,
    });
    let mut devices = client.devices();
    let answer = client.answer(devices.diagnose_device(request)).await?;
    let findings = answer.findings;
    match output.format() {
        Format::Table => output.text(&list(&findings, false))?,
        Format::Wide => output.text(&list(&findings, true))?,
        Format::Name => {
            let codes = findings.iter().map(|it| format!("{}\n", it.code));
            output.text(&codes.collect::<String>())?;
        }
        Format::Json | Format::Yaml => {
            let findings = findings.iter().map(|it| json("Finding", it));
            let findings = findings.collect::<Result<Vec<_>, _>>()?;
            output.value(&json!({ "findings": findings }))?;
        }
    }
    let errors = findings
        .iter()
        .filter(|it| it.severity() == Severity::Error);
    match errors.count() {
        0 => Ok(()),
        errors => Err(Error::Findings(errors)),
    }
}

/// What matters most comes first. `wide` has the cure in a column of its own.
fn list(findings: &[Finding], wide: bool) -> String {
    let mut sorted: Vec<_> = findings.iter().collect();
    sorted.sort_by_key(|it| std::cmp::Reverse(it.severity));
    let rows = sorted.iter().map(|it| {
        let mut row = vec![it.severity().as_str_name().to_owned(), it.code.clone()];
        row.push(it.subject.clone());
        match wide {
            true => row.extend([it.message.clone(), it.cure.clone()]),
            false if it.cure.is_empty() => row.push(it.message.clone()),
            false => row.push(format!("{}; {}", it.message, it.cure)),
        }
        row
    });
    let mut head = vec!["SEVERITY", "CODE", "SUBJECT", "MESSAGE"];
    if wide {
        head.push("CURE");
    }
    table(&head, rows)
}
