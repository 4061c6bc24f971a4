//! What the agent finds out about a device and a VMM, through its API, with a QEMU that is a script.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
};

use proto::v1::{
    DiagnoseDeviceRequest, Finding, GetDeviceRequest, PlugDeviceRequest, Vmm, device_status::State,
    finding::Severity, vmm::Endpoint,
};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{Devices, Host, create, nic, reason};

/// What a QEMU of the script is like.
#[derive(Clone)]
struct Machine {
    version: [u32; 3],
    is_shared: bool,
    takes_vfio_user: bool,
    ports: Vec<&'static str>,
    run_state: &'static str,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            version: [11, 1, 0],
            is_shared: true,
            takes_vfio_user: true,
            ports: vec!["rp0"],
            run_state: "running",
        }
    }
}

impl Machine {
    /// Serves connections, one after the other.
    fn serve(&self, listener: &UnixListener) {
        for stream in listener.incoming() {
            // A client may go at any time.
            let _ = self.converse(&stream.unwrap());
        }
    }

    fn converse(&self, mut stream: &UnixStream) -> std::io::Result<()> {
        let [major, minor, micro] = self.version;
        let version = json!({"major": major, "minor": minor, "micro": micro});
        let greeting =
            json!({"QMP": {"version": {"qemu": version, "package": ""}, "capabilities": []}});
        writeln!(stream, "{greeting}")?;
        for line in BufReader::new(stream).lines() {
            let command: Value = serde_json::from_str(&line?).unwrap();
            let answer = self.answer(&command);
            let mut answer = match answer {
                Some(value) => json!({ "return": value }),
                None => json!({"error": {"class": "GenericError", "desc": "not in the script"}}),
            };
            answer["id"] = command["id"].clone();
            writeln!(stream, "{answer}")?;
        }
        Ok(())
    }

    fn answer(&self, command: &Value) -> Option<Value> {
        let arguments = &command["arguments"];
        let ports = || self.ports.iter();
        Some(match command["execute"].as_str().unwrap() {
            "qmp_capabilities" => json!({}),
            "query-status" => json!({"status": self.run_state}),
            "qom-get" => match arguments["property"].as_str().unwrap() {
                "type" => json!("pc-q35-11.1-machine"),
                "memory-backend" => json!("/objects/mem"),
                _ => return None,
            },
            "qom-list-types" if self.takes_vfio_user => json!([{"name": "vfio-user-pci"}]),
            "qom-list-types" => json!([]),
            "query-memdev" => json!([{"id": "mem", "size": 256 << 20, "share": self.is_shared}]),
            "qom-list" if arguments["path"] == "/machine" => json!([
                {"name": "peripheral", "type": "child<container>"},
                {"name": "q35", "type": "child<q35-pcihost>"},
            ]),
            "qom-list" => ports()
                .map(|port| json!({"name": port, "type": "child<pcie-root-port>"}))
                .collect(),
            "qom-list-get" => {
                let paths = arguments["paths"].as_array().unwrap().iter();
                let objects = paths.map(|path| self.object(path.as_str().unwrap()));
                let objects = objects.map(|it| json!({ "properties": it }));
                objects.collect()
            }
            _ => return None,
        })
    }

    /// The properties of an object.
    fn object(&self, path: &str) -> Vec<Value> {
        let kind = |kind: &str| json!({"name": "type", "type": "string", "value": kind});
        let child =
            |name: &str, kind: &str| json!({"name": name, "type": format!("child<{kind}>")});
        match path.trim_start_matches("/machine/") {
            "peripheral" => {
                let ports = self.ports.iter().map(|it| child(it, "pcie-root-port"));
                [kind("container")].into_iter().chain(ports).collect()
            }
            "q35" => vec![kind("q35-pcihost"), child("pcie.0", "PCIE")],
            "q35/pcie.0" => {
                let ports = self.ports.iter().enumerate().map(|(index, port)| {
                    json!({
                        "name": format!("child[{index}]"), "type": "link<pcie-root-port>",
                        "value": format!("/machine/peripheral/{port}"),
                    })
                });
                [kind("PCIE")].into_iter().chain(ports).collect()
            }
            port if port.split('/').count() == 2 => {
                let name = port.rsplit('/').next().unwrap();
                vec![
                    kind("pcie-root-port"),
                    json!({"name": "addr", "type": "int32", "value": 16}),
                    json!({"name": "parent_bus", "type": "link<bus>", "value": "/machine/q35/pcie.0"}),
                    json!({"name": "hotplug", "type": "bool", "value": true}),
                    child(name, "PCIE"),
                ]
            }
            bus => {
                let port = format!("/machine/{}", bus.rsplit_once('/').unwrap().0);
                let handler = json!({"name": "hotplug-handler", "type": "link<hotplug-handler>", "value": port});
                vec![kind("PCIE"), handler]
            }
        }
    }
}

/// An agent with device `nic0`, and VMMs.
struct Ward {
    host: Host,
    devices: Devices,
}

impl Ward {
    async fn open() -> Self {
        let host = Host::start().await;
        let mut devices = host.devices().await;
        create(&mut devices, nic("nic0")).await;
        Self { host, devices }
    }

    /// A VMM that does this with its listening socket.
    fn vmm(&mut self, name: &str, serve: impl FnOnce(UnixListener) + Send + 'static) -> PathBuf {
        let path = self.host.path(name);
        let listener = UnixListener::bind(&path).unwrap();
        // It ends with the test's process.
        std::thread::spawn(move || serve(listener));
        path
    }

    fn qemu(&mut self, name: &str, change: impl FnOnce(&mut Machine)) -> PathBuf {
        let mut machine = Machine::default();
        change(&mut machine);
        self.vmm(name, move |listener| machine.serve(&listener))
    }

    async fn diagnose(&mut self, request: DiagnoseDeviceRequest) -> Vec<Finding> {
        let answer = self.devices.diagnose_device(request).await;
        let findings = answer.unwrap().into_inner().findings;
        for it in &findings {
            assert!(!it.code.is_empty() && !it.message.is_empty(), "{it:?}");
            assert_eq!(it.cure.is_empty(), it.severity() == Severity::Ok, "{it:?}");
        }
        findings
    }

    /// The errors of nic0 and this VMM.
    async fn errors(&mut self, qmp: PathBuf) -> Vec<String> {
        let found = self.diagnose(of(&qmp)).await;
        let errors = found
            .into_iter()
            .filter(|it| it.severity() == Severity::Error);
        errors.map(|it| it.code).collect()
    }

    async fn plug(&mut self, request: PlugDeviceRequest) -> Result<(), Status> {
        let request = PlugDeviceRequest {
            validate_only: true,
            ..request
        };
        self.devices.plug_device(request).await.map(|_| ())
    }
}

fn vmm(qmp: &std::path::Path) -> Option<Vmm> {
    Some(Vmm {
        endpoint: Some(Endpoint::QmpSocketPath(qmp.display().to_string())),
        ..Vmm::default()
    })
}

fn of(qmp: &std::path::Path) -> DiagnoseDeviceRequest {
    DiagnoseDeviceRequest {
        name: "devices/nic0".into(),
        vmm: vmm(qmp),
        ..DiagnoseDeviceRequest::default()
    }
}

#[tokio::test]
async fn a_qemu_that_can_take_the_device_has_no_error() {
    let mut ward = Ward::open().await;
    let qmp = ward.qemu("qmp", |_| {});
    let found = ward.diagnose(of(&qmp)).await;
    let bad: Vec<_> = found
        .iter()
        .filter(|it| it.severity() != Severity::Ok)
        .collect();
    assert_eq!(bad, Vec::<&Finding>::new());
    let place = found.iter().find(|it| it.code == "PLACE").unwrap();
    assert_eq!(place.subject, "rp0");
    let access = found.iter().find(|it| it.code == "SOCKET_ACCESS").unwrap();
    assert!(access.message.contains(&std::process::id().to_string()));

    let plug = PlugDeviceRequest {
        name: "devices/nic0".into(),
        vmm: vmm(&qmp),
        ..PlugDeviceRequest::default()
    };
    ward.plug(plug).await.unwrap();
    let get = GetDeviceRequest {
        name: "devices/nic0".into(),
    };
    let device = ward.devices.get_device(get).await.unwrap().into_inner();
    let status = device.status.unwrap();
    assert_eq!((status.state(), status.attachment), (State::Ready, None));

    // Either of them alone.
    let alone = DiagnoseDeviceRequest {
        name: String::new(),
        ..of(&qmp)
    };
    assert!(
        ward.diagnose(alone)
            .await
            .iter()
            .any(|it| it.code == "PLACE")
    );
    let alone = DiagnoseDeviceRequest {
        vmm: None,
        ..of(&qmp)
    };
    let found = ward.diagnose(alone).await;
    assert_eq!(found[0].code, "DEVICE_READY");
}

#[tokio::test]
async fn each_thing_that_a_qemu_lacks_is_an_error_of_its_own() {
    let mut ward = Ward::open().await;
    let old = ward.qemu("old", |it| it.version = [10, 1, 0]);
    assert_eq!(ward.errors(old).await, ["VMM_TOO_OLD"]);
    let bare = ward.qemu("bare", |it| it.takes_vfio_user = false);
    assert_eq!(ward.errors(bare).await, ["VMM_WITHOUT_VFIO_USER"]);
    let private = ward.qemu("private", |it| it.is_shared = false);
    assert_eq!(
        ward.errors(private.clone()).await,
        ["VMM_MEMORY_NOT_SHARED"]
    );
    let full = ward.qemu("full", |it| it.ports = Vec::new());
    assert_eq!(ward.errors(full.clone()).await, ["NO_FREE_PLACE"]);
    let paused = ward.qemu("paused", |it| it.run_state = "paused");
    let found = ward.diagnose(of(&paused)).await;
    let warning = found.iter().find(|it| it.severity() == Severity::Warning);
    assert_eq!(warning.unwrap().code, "VMM_NOT_RUNNING");
    let elsewhere = DiagnoseDeviceRequest {
        bus: "rp7".into(),
        ..of(&paused)
    };
    let found = ward.diagnose(elsewhere).await;
    let error = found.iter().find(|it| it.severity() == Severity::Error);
    assert_eq!(error.unwrap().code, "BUS_UNKNOWN");

    // A plug is refused by the same.
    let plug = PlugDeviceRequest {
        name: "devices/nic0".into(),
        vmm: vmm(&private),
        vmm_device_id: "rp0".into(),
        ..PlugDeviceRequest::default()
    };
    let error = ward.plug(plug.clone()).await.unwrap_err();
    let refusal = (error.code(), &*reason(&error));
    assert_eq!(refusal, (Code::FailedPrecondition, "VMM_MEMORY_NOT_SHARED"));
    let violations = error.get_details_precondition_failure().unwrap().violations;
    let kinds: Vec<_> = violations.iter().map(|it| &*it.r#type).collect();
    assert_eq!(kinds, ["VMM_MEMORY_NOT_SHARED", "VMM_DEVICE_ID_TAKEN"]);
    assert_eq!(violations[0].subject, "mem");
    assert!(violations[0].description.contains("share=on"));
    let stale = PlugDeviceRequest {
        etag: "then".into(),
        ..plug
    };
    assert_eq!(ward.plug(stale).await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn what_is_no_qemu_costs_its_caller_a_while_and_no_more() {
    let mut ward = Ward::open().await;
    let nothing = ward.host.path("nothing");
    assert_eq!(ward.errors(nothing).await, ["VMM_UNREACHABLE"]);
    let web = ward.vmm("web", |listener| {
        for stream in listener.incoming() {
            let _ = writeln!(stream.unwrap(), "HTTP/1.1 400 Bad Request");
        }
    });
    assert_eq!(ward.errors(web).await, ["VMM_STRANGER"]);
    let silent = ward.vmm("silent", |listener| {
        let _all: Vec<_> = listener.incoming().collect();
    });
    assert_eq!(ward.errors(silent).await, ["VMM_STRANGER"]);
    // It greets, and then says nothing any more.
    let stuck = ward.vmm("stuck", |listener| {
        let greeting = json!({"QMP": {"version": {"qemu": {"major": 11, "minor": 0, "micro": 0}}}});
        let mut all = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = writeln!(stream, "{greeting}\n{}", json!({"return": {}, "id": 0}));
            all.push(stream);
        }
    });
    let found = ward.diagnose(of(&stuck)).await;
    let errors: Vec<_> = found
        .iter()
        .filter(|it| it.severity() == Severity::Error)
        .collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    // What has nothing to do with the VMM is told all the same.
    assert_eq!(found[0].code, "DEVICE_READY");
}

#[tokio::test]
async fn a_question_about_nothing_is_invalid() {
    let mut ward = Ward::open().await;
    let relative = Some(Vmm {
        endpoint: Some(Endpoint::QmpSocketPath("qmp".into())),
        ..Vmm::default()
    });
    let ask = |name: &str, vmm: Option<Vmm>| DiagnoseDeviceRequest {
        name: name.into(),
        vmm,
        ..DiagnoseDeviceRequest::default()
    };
    for (request, code) in [
        (ask("", None), Code::InvalidArgument),
        (ask("devices/nic0", relative), Code::InvalidArgument),
        (
            ask("devices/nic0", Some(Vmm::default())),
            Code::InvalidArgument,
        ),
        (ask("devices/nic9", None), Code::NotFound),
    ] {
        let error = ward.devices.diagnose_device(request).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    let error = ward.plug(PlugDeviceRequest::default()).await.unwrap_err();
    let fields = error.get_details_bad_request().unwrap().field_violations;
    let fields: Vec<_> = fields.into_iter().map(|it| it.field).collect();
    assert_eq!(fields, ["name"]);
}
