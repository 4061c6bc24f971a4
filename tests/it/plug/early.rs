//! A guest that hears nothing yet: it is stopped, or its kernel has not begun. What it is asked for then it must be asked
//! for again.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
};

use proto::v1::{PlugDeviceRequest, UnplugDeviceRequest, Vmm, attachment, vmm::Endpoint};
use tests::require;
use tonic::Code;

use super::*;
use crate::agent::{Host, create, get, nic, reason, wait_for};

const ID: &str = "nic0";

fn plugging(host: &Host) -> PlugDeviceRequest {
    let path = host.path("vmm.qmp").display().to_string();
    PlugDeviceRequest {
        name: format!("devices/{ID}"),
        vmm: Some(Vmm {
            endpoint: Some(Endpoint::QmpSocketPath(path)),
            ..Vmm::default()
        }),
        ..PlugDeviceRequest::default()
    }
}

fn unplugging(seconds: i64) -> UnplugDeviceRequest {
    UnplugDeviceRequest {
        name: format!("devices/{ID}"),
        timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..UnplugDeviceRequest::default()
    }
}

fn with_monitors(host: &Host) -> Builder {
    let monitor = |name: &str| format!("unix:{},server=on,wait=off", host.path(name).display());
    let builder = machine(Way::Acpi).arg("-qmp").arg(monitor("vmm.qmp"));
    builder.arg("-qmp").arg(monitor("hand.qmp"))
}

/// Has a machine go on, as its operator would.
fn go_on(host: &Host) -> Result<()> {
    let mut stream = UnixStream::connect(host.path("hand.qmp"))?;
    stream.set_read_timeout(Some(UNPLUG_LIMIT))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    lines.next().context("a greeting")??;
    for command in ["qmp_capabilities", "cont"] {
        writeln!(stream, "{}", json!({"execute": command}))?;
        let answer = lines.next().context("an answer")??;
        ensure!(!answer.contains("error"), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_that_has_not_booted_is_asked_until_it_hears() -> Result<()> {
    require!(Qemu);
    let host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic(ID)).await;
    let stopped = with_monitors(&host).arg("-S");
    let booting = tokio::task::spawn_blocking(move || stopped.boot());
    wait_for_file(&host.path("vmm.qmp")).await?;
    devices.plug_device(plugging(&host)).await?;

    // While nothing runs in it, it is late and no more, and keeps the device.
    let late = devices.unplug_device(unplugging(1)).await.unwrap_err();
    ensure!(late.code() == Code::DeadlineExceeded, "{late:?}");
    ensure!(reason(&late) == "GUEST_LATE", "{late:?}");
    let device = get(&mut devices, ID).await;
    let attachment = device.status.and_then(|it| it.attachment);
    let attachment = attachment.context("it is in the VMM still")?;
    ensure!(attachment.state() == attachment::State::Plugged);

    let mut others = devices.clone();
    let (unplugged, guest) = tokio::join!(others.unplug_device(unplugging(120)), async {
        wait_for(&mut devices, ID, "on its way out", |it| {
            let attachment = it.status.as_ref().and_then(|it| it.attachment.as_ref());
            attachment.is_some_and(|it| it.state() == attachment::State::Unplugging)
        })
        .await;
        go_on(&host)?;
        booting.await?
    });
    unplugged?;
    has_no_card(&mut guest?)
}

#[tokio::test]
async fn a_guest_that_is_paused_lets_go_when_it_runs_on() -> Result<()> {
    require!(Qemu);
    let host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic(ID)).await;
    let builder = with_monitors(&host);
    let mut guest = tokio::task::spawn_blocking(move || builder.boot()).await??;
    devices.plug_device(plugging(&host)).await?;
    wait_for_card(&mut guest)?;
    guest.qmp("stop", json!({}))?;
    let late = devices.unplug_device(unplugging(1)).await.unwrap_err();
    ensure!(reason(&late) == "GUEST_LATE", "{late:?}");
    // The earlier request is in its ears when it runs on: nobody has to ask again.
    go_on(&host)?;
    wait_for(&mut devices, ID, "in no VMM", |it| {
        it.status.as_ref().is_some_and(|it| it.attachment.is_none())
    })
    .await;
    has_no_card(&mut guest)
}

async fn wait_for_file(path: &Path) -> Result<()> {
    let path = path.to_owned();
    let there = move || Ok(path.exists().then_some(()));
    let waited = tokio::task::spawn_blocking(move || {
        tests::command::wait_for("a monitor's socket", UNPLUG_LIMIT, there)
    });
    waited.await?
}
