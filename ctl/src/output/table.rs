//! Tables for people, as kubectl's.

use std::time::{SystemTime, UNIX_EPOCH};

use proto::v1::{Attachment, Client, Device, Vmm, WatchDevicesResponse, vmm::Endpoint};

use crate::error::printable;

/// What stands where there is nothing, as in kubectl's tables.
const NONE: &str = "<none>";

/// A table of devices; `wide` has more columns.
pub(super) fn devices(devices: &[Device], wide: bool, now: SystemTime) -> String {
    table(
        &device_head(wide),
        devices.iter().map(|it| device_row(it, wide, now)),
    )
}

fn device_head(wide: bool) -> Vec<&'static str> {
    let mut head = vec!["NAME", "MODEL", "STATE", "ATTACHMENT", "CLIENT", "AGE"];
    if wide {
        head.extend([
            "VMM", "VMM-ID", "BUS", "ADDRESS", "SOCKET", "PID", "RESTARTS", "UID",
        ]);
    }
    head
}

fn device_row(device: &Device, wide: bool, now: SystemTime) -> Vec<String> {
    let spec = device.spec.clone().unwrap_or_default();
    let status = device.status.clone().unwrap_or_default();
    let state = status.state().as_str_name();
    let attachment = status.attachment.as_ref();
    let stage = attachment.map(|it| it.state().as_str_name());
    let mut row = vec![
        id(&device.name).to_owned(),
        spec.model,
        state.to_owned(),
        stage.unwrap_or_default().to_owned(),
        status.client.as_ref().map(client).unwrap_or_default(),
        device
            .create_time
            .map(|it| age(it, now))
            .unwrap_or_default(),
    ];
    if wide {
        let pid = Some(status.pid).filter(|pid| *pid != 0);
        let attachment = attachment.cloned().unwrap_or_default();
        row.extend([
            attachment.vmm.as_ref().map(control).unwrap_or_default(),
            attachment.vmm_device_id,
            attachment.bus,
            attachment.address,
            status.socket_path,
            pid.map(|pid| pid.to_string()).unwrap_or_default(),
            status.restart_count.to_string(),
            device.uid.clone(),
        ]);
    }
    row
}

/// A table of changes of devices that grows at its end. A column gets wider when it has to.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    widths: Vec<usize>,
}

impl Changes {
    /// The lines for more changes, the first time under a head.
    pub(super) fn lines(
        &mut self,
        changes: &[WatchDevicesResponse],
        wide: bool,
        now: SystemTime,
    ) -> String {
        let mut rows = Vec::new();
        if self.widths.is_empty() {
            let head = ["EVENT"].into_iter().chain(device_head(wide));
            rows.push(head.map(str::to_owned).collect());
            // What most devices come to have, lest the first long word shift all lines after it.
            self.widths = ["MODIFIED", "", "", "CONNECTED"].map(str::len).to_vec();
        }
        for change in changes {
            if let Some(device) = &change.device {
                let mut row = vec![change.r#type().as_str_name().to_owned()];
                row.extend(device_row(device, wide, now));
                rows.push(row);
            }
        }
        lines(rows, &mut self.widths)
    }
}

/// The id in a resource name.
pub(crate) fn id(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or_default()
}

/// A VMM in few words.
pub(crate) fn client(client: &Client) -> String {
    match id(&client.executable) {
        "" => client.pid.to_string(),
        program => format!("{program}({})", client.pid),
    }
}

/// Where a VMM is controlled.
fn control(vmm: &Vmm) -> String {
    match &vmm.endpoint {
        Some(Endpoint::QmpSocketPath(path) | Endpoint::CloudHypervisorSocketPath(path)) => {
            path.clone()
        }
        None => String::new(),
    }
}

/// Where in a VMM a device is, for people. Empty where the VMM does not tell.
pub(crate) fn place(attachment: &Attachment) -> String {
    let parts = [("bus", &attachment.bus), ("address", &attachment.address)];
    let parts = parts.iter().filter(|(_, text)| !text.is_empty());
    let parts: Vec<_> = parts.map(|(what, text)| format!("{what} {text}")).collect();
    parts.join(", ")
}

/// How a device is, in few words.
pub(crate) fn situation(device: &Device) -> String {
    let status = device.status.clone().unwrap_or_default();
    let state = status.state().as_str_name();
    match &status.attachment {
        None => state.to_owned(),
        Some(attachment) => format!("{state}, {}", attachment.state().as_str_name()),
    }
}

/// Lines of columns three blanks apart, under a head.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut all = vec![head.iter().map(|it| (*it).to_owned()).collect()];
    all.extend(rows);
    lines(all, &mut Vec::new())
}

/// The same without a head, for a table whose columns are at least as wide as `widths`, which grow.
fn lines(mut rows: Vec<Vec<String>>, widths: &mut Vec<usize>) -> String {
    for row in &mut rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (cell, width) in row.iter_mut().zip(widths.iter_mut()) {
            *cell = match cell.is_empty() {
                true => NONE.to_owned(),
                // A client's executable can have any name.
                false => printable(cell).replace('\n', " "),
            };
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths.iter());
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// How long ago, in one or two units, as kubectl does.
pub(crate) fn age(since: prost_types::Timestamp, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = now.saturating_sub(u64::try_from(since.seconds).unwrap_or(0));
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: u64, unit: &str, small: u64, part: &str| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{part}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::device;
    use std::time::Duration;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1185)
    }

    #[test]
    fn tables_look_like_kubectls() {
        let other = Device {
            name: "devices/a-long-name".into(),
            ..Device::default()
        };
        assert_eq!(
            devices(&[device(), other], false, now()),
            "\
NAME          MODEL    STATE               ATTACHMENT   CLIENT                  AGE
nic0          e1000    CONNECTED           <none>       qemu-system-x86_64(7)   3m5s
a-long-name   <none>   STATE_UNSPECIFIED   <none>       <none>                  <none>
"
        );
        let mut plugged = device();
        plugged.status.get_or_insert_default().attachment = Some(Attachment {
            state: proto::v1::attachment::State::Plugged.into(),
            bus: "rp0".into(),
            address: "0000:02:00.0".into(),
            vmm: Some(Vmm {
                endpoint: Some(Endpoint::QmpSocketPath("/run/vm1/qmp.sock".into())),
                ..Vmm::default()
            }),
            vmm_device_id: "card0".into(),
            ..Attachment::default()
        });
        assert_eq!(
            place(
                plugged
                    .status
                    .as_ref()
                    .unwrap()
                    .attachment
                    .as_ref()
                    .unwrap()
            ),
            "bus rp0, address 0000:02:00.0"
        );
        assert_eq!(
            devices(&[plugged], true, now()),
            "\
NAME   MODEL   STATE       ATTACHMENT   CLIENT                  AGE    VMM                 VMM-ID   BUS   ADDRESS        SOCKET                                 PID   RESTARTS   UID
nic0   e1000   CONNECTED   PLUGGED      qemu-system-x86_64(7)   3m5s   /run/vm1/qmp.sock   card0    rp0   0000:02:00.0   /run/vfu/devices/nic0/vfio-user.sock   42    0          0b1f
"
        );
    }

    #[test]
    fn ages_have_one_or_two_units() {
        let age = |seconds: u64| {
            let zero = prost_types::Timestamp::default();
            super::age(zero, UNIX_EPOCH + Duration::from_secs(seconds))
        };
        assert_eq!(age(0), "0s");
        assert_eq!(age(119), "119s");
        assert_eq!(age(120), "2m");
        assert_eq!(age(185), "3m5s");
        assert_eq!(age(3600), "60m");
        assert_eq!(age(3 * 3600 + 60), "3h1m");
        assert_eq!(age(30 * 3600), "30h");
        assert_eq!(age(3 * 86400 + 7200), "3d2h");
        assert_eq!(age(400 * 86400), "400d");
    }
}
