//! Whether vfuctl has a command for each call of the API.

use std::collections::BTreeSet;

use prost_reflect::DescriptorPool;

use super::Host;

/// A command for each of them.
const COMMANDS: [(&str, &str); 20] = [
    ("vfu.v1.AgentService.GetAgent", "agent"),
    ("vfu.v1.AgentService.Drain", "drain"),
    ("vfu.v1.AgentService.Undrain", "undrain"),
    ("vfu.v1.AgentService.ShutDownDevices", "shutdown-devices"),
    ("vfu.v1.DeviceService.CreateDevice", "create e1000 nic1"),
    ("vfu.v1.DeviceService.GetDevice", "get nic0"),
    ("vfu.v1.DeviceService.ListDevices", "list"),
    (
        "vfu.v1.DeviceService.UpdateDevice",
        "update nic0 --label a=b",
    ),
    ("vfu.v1.DeviceService.DeleteDevice", "delete nic1"),
    ("vfu.v1.DeviceService.ResetDevice", "reset nic0"),
    ("vfu.v1.DeviceService.RestartDevice", "restart nic0"),
    (
        "vfu.v1.DeviceService.PlugDevice",
        "plug nic0 --qmp /run/vm.qmp",
    ),
    ("vfu.v1.DeviceService.UnplugDevice", "unplug nic0"),
    ("vfu.v1.DeviceService.DiagnoseDevice", "doctor nic0"),
    ("vfu.v1.DeviceService.WatchDevices", "watch"),
    ("vfu.v1.DeviceService.WatchStats", "stats"),
    ("vfu.v1.DeviceService.ReadLogs", "logs nic0"),
    ("vfu.v1.DeviceService.ListEvents", "events"),
    ("vfu.v1.ModelService.ListModels", "models"),
    ("vfu.v1.ModelService.GetModel", "models e1000"),
];

#[tokio::test]
async fn each_call_of_the_api_has_a_command() {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let methods: BTreeSet<String> = pool
        .services()
        .flat_map(|service| {
            let methods = service.methods();
            methods
                .map(|it| it.full_name().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let known = COMMANDS.iter().map(|(method, _)| (*method).to_owned());
    let known: BTreeSet<String> = known.collect();
    assert_eq!(methods, known, "left: the API, right: the table");

    let host = Host::new();
    host.good("create e1000 nic0").await;
    for (method, command) in COMMANDS {
        host.calls.lock().unwrap().clear();
        // How it ends is for other tests; a watch has no good end.
        let _ = host.vfuctl(command).await;
        let calls = host.calls.lock().unwrap();
        assert!(calls.contains(method), "vfuctl {command}: {calls:?}");
    }
}
