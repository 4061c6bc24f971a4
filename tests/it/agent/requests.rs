//! What the API answers: what is refused and why, and how the agent and its models describe themselves.

use proto::v1::bar::Kind as BarKind;

use super::*;

#[tokio::test]
async fn bad_requests_name_the_field_and_the_cure_and_leave_nothing() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut unknown_model = nic("nic0");
    spec(&mut unknown_model).model = "e1001".to_owned();
    let mut mode = nic("nic0");
    spec(&mut mode).socket = Some(SocketSpec {
        mode: Some(0o1777),
        ..SocketSpec::default()
    });
    let mut output_only = nic("nic0");
    output_only.device.as_mut().unwrap().uid = "mine".to_owned();
    let mut request_id = nic("nic0");
    request_id.request_id = "again".to_owned();
    let config = |config| e1000("nic0", config);
    let cases = [
        (unknown_model, "device.spec.model", "there are: e1000"),
        (nic("Nic0"), "device_id", "begins with a letter"),
        (nic("../nic0"), "device_id", "a-z, 0-9 and -"),
        (mode, "device.spec.socket.mode", "at most 0777"),
        (output_only, "device.uid", "leave it out"),
        (request_id, "request_id", "UUID"),
        (
            config(json!({"mtu": 1})),
            "device.spec.config.mtu",
            "known here: chip, link, mac",
        ),
        (
            config(json!({"mac": "52:54:zz"})),
            "device.spec.config.mac",
            "52:54:00:12:34:56",
        ),
        (
            config(json!({"mac": 7})),
            "device.spec.config.mac",
            "expected",
        ),
        (
            config(json!({"net": {"taap": {}}})),
            "device.spec.config.net.taap",
            "stream, tap",
        ),
        (
            config(json!({"net": {"tap": {"ifname": 7}}})),
            "device.spec.config.net.tap.ifname",
            "expected",
        ),
        (
            config(json!({"net": {"stream": {"path": "/x"}}})),
            "device.spec.config.net.stream.mode",
            "required",
        ),
        (CreateDeviceRequest::default(), "device", "required"),
    ];
    for (request, field, cure) in cases {
        let error = refused(&mut devices, request).await;
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        let (named, why) = violation(&error);
        assert_eq!(named, field, "{error}");
        assert!(why.contains(cure), "{field}: {why}");
        assert!(error.message().contains(&why), "{error}");
    }
    let several = refused(&mut devices, e1000("NIC", json!({"mac": "x", "mtu": 1}))).await;
    let fields: Vec<_> = several
        .get_details_bad_request()
        .unwrap()
        .field_violations
        .into_iter()
        .map(|it| it.field)
        .collect();
    assert_eq!(
        fields,
        [
            "device_id",
            "device.spec.config.mac",
            "device.spec.config.mtu"
        ]
    );
    host.assert_empty().await;
}

#[tokio::test]
async fn a_socket_path_too_long_is_refused_before_anything_is_made() {
    let host =
        Host::start_with(|host| host.run_dir = host.path("a-run-directory-that-is-not-short"))
            .await;
    let mut devices = host.devices().await;
    let around = host.run_dir.join("devices//vfio-user.sock");
    let room = 107 - around.as_os_str().len();
    let error = refused(&mut devices, nic(&"n".repeat(room + 1))).await;
    assert_eq!(error.code(), Code::InvalidArgument);
    let (field, why) = violation(&error);
    assert_eq!(field, "device_id");
    for word in [
        "vfio-user.sock",
        "108 bytes",
        "107",
        "shorter id",
        "--run-dir",
    ] {
        assert!(why.contains(word), "{why}");
    }
    host.assert_empty().await;
    create(&mut devices, nic(&"n".repeat(room))).await;
}

#[tokio::test]
async fn a_tap_in_use_is_a_failed_precondition_that_names_it() {
    require!(Tap);
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let ifname = format!("vfut{}", std::process::id() % 100_000);
    let tap = |id| e1000(id, json!({"net": {"tap": {"ifname": ifname}}}));
    create(&mut devices, tap("nic0")).await;
    let error = refused(&mut devices, tap("nic1")).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "IN_USE")
    );
    assert!(error.message().contains(&ifname), "{error}");
    let info = error.get_details_error_info().unwrap();
    assert_eq!(info.metadata["field"], "device.spec.config.net.tap.ifname");
    let precondition = error.get_details_precondition_failure().unwrap();
    assert_eq!(precondition.violations[0].r#type, "IN_USE");
    assert!(!host.path("run/devices/nic1").exists());

    let interface = Path::new("/sys/class/net").join(&ifname);
    assert!(interface.exists());
    devices.delete_device(deletion("nic0")).await.unwrap();
    assert!(!interface.exists());
    host.assert_empty().await;
}

#[tokio::test]
async fn an_agent_that_may_not_make_taps_says_so() {
    require!(Tap);
    let host = Host::start_with(|host| {
        // Nobody may not enter the folder the tests were built in.
        let folder = host.path("bin");
        fs::create_dir(&folder).unwrap();
        for name in ["vfu-agent", "vfu-device"] {
            fs::copy(programs().unwrap().join(name), folder.join(name)).unwrap();
        }
        host.program = folder.join("vfu-agent");
        std::os::unix::fs::chown(host.dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        host.user = Some(NOBODY);
    })
    .await;
    let mut devices = host.devices().await;
    let error = refused(&mut devices, e1000("nic0", json!({"net": {"tap": {}}}))).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "PERMISSION"),
        "{error}"
    );
    let mut root = nic("nic1");
    spec(&mut root).socket = Some(SocketSpec {
        uid: Some(0),
        ..SocketSpec::default()
    });
    let error = refused(&mut devices, root).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "PERMISSION"),
        "{error}"
    );
    host.assert_empty().await;
    create(&mut devices, nic("nic2")).await;
}

#[tokio::test]
async fn a_missing_device_program_is_told_and_the_agent_runs() {
    let host = Host::start_with(|host| {
        host.flags
            .extend(["--device-program".into(), "/nowhere/vfu-device".into()])
    })
    .await;
    let mut devices = host.devices().await;
    let error = refused(&mut devices, nic("nic0")).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "DEVICE_PROGRAM_MISSING")
    );
    for word in ["/nowhere/vfu-device", "install", "--device-program"] {
        assert!(error.message().contains(word), "{error}");
    }
    host.assert_empty().await;
    let mut agent = AgentServiceClient::new(host.channel().await);
    let agent = agent
        .get_agent(GetAgentRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(agent.runtimes[0].error.contains("/nowhere/vfu-device"));
}

#[tokio::test]
async fn mutations_are_guarded_and_safe_to_repeat() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut request = nic("");
    request.validate_only = true;
    let planned = create(&mut devices, request.clone()).await;
    assert!(planned.uid.is_empty() && planned.status.is_none());
    host.assert_empty().await;

    request.validate_only = false;
    request.request_id = "8f14e45f-ceea-467f-a0e6-0b1f2a3c4d5e".to_owned();
    let mut also = devices.clone();
    let (first, second) = tokio::join!(
        create(&mut devices, request.clone()),
        create(&mut also, request.clone())
    );
    assert_eq!(first, second);
    assert!(first.name.starts_with("devices/e1000-"), "{}", first.name);
    spec(&mut request).set_restart_policy(RestartPolicy::Never);
    let error = refused(&mut devices, request).await;
    assert_eq!(violation(&error).0, "request_id");

    let id = first.name.strip_prefix("devices/").unwrap();
    let error = refused(&mut devices, nic(id)).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::AlreadyExists, "DEVICE_EXISTS")
    );
    assert_eq!(
        error.get_details_resource_info().unwrap().resource_name,
        first.name
    );
    let mut delete = deletion(id);
    delete.etag = "old".to_owned();
    let error = devices.delete_device(delete.clone()).await.unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::Aborted, "ETAG_MISMATCH")
    );
    delete.etag = first.etag.clone();
    delete.validate_only = true;
    devices.delete_device(delete.clone()).await.unwrap();
    assert_eq!(get(&mut devices, id).await, first);
    delete.validate_only = false;
    devices.delete_device(delete).await.unwrap();
    host.assert_empty().await;
}

#[tokio::test]
async fn lists_come_in_pages_ordered_by_name() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    for id in ["c", "a", "b"] {
        create(&mut devices, nic(id)).await;
    }
    let mut request = ListDevicesRequest {
        page_size: 2,
        ..ListDevicesRequest::default()
    };
    let page = devices
        .list_devices(request.clone())
        .await
        .unwrap()
        .into_inner();
    let names: Vec<_> = page.devices.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["devices/a", "devices/b"]);
    request.page_token = page.next_page_token;
    let page = devices
        .list_devices(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (page.devices.len(), &*page.devices[0].name),
        (1, "devices/c")
    );
    assert_eq!(page.next_page_token, "");
    request.page_token = "c".to_owned();
    let error = devices.list_devices(request.clone()).await.unwrap_err();
    assert_eq!(violation(&error).0, "page_token");
    request.page_size = -1;
    let error = devices.list_devices(request).await.unwrap_err();
    assert_eq!(violation(&error).0, "page_size");
}

#[tokio::test]
async fn the_largest_of_requests_have_answers_that_callers_can_take() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let long = "x".repeat(500);
    let fields = (0..100).map(|it| (format!("{it}{long}"), json!({})));
    let error = refused(&mut devices, e1000("nic0", fields.collect())).await;
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().len() + error.details().len() < 8000);

    for index in 0..50 {
        let mut request = nic(&format!("nic{index:02}"));
        let annotations = &mut request.device.as_mut().unwrap().annotations;
        annotations.insert("large".to_owned(), "x".repeat(64_000));
        create(&mut devices, request).await;
    }
    let mut request = ListDevicesRequest::default();
    let mut names = Vec::new();
    loop {
        let page = devices.list_devices(request.clone()).await;
        let page = page.unwrap().into_inner();
        names.extend(page.devices.into_iter().map(|it| it.name));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let all: Vec<_> = (0..50).map(|it| format!("devices/nic{it:02}")).collect();
    assert_eq!(names, all);
}

#[tokio::test]
async fn models_and_the_agent_describe_themselves() {
    let host = Host::start().await;
    let mut models = ModelServiceClient::new(host.channel().await);
    let all = models
        .list_models(ListModelsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .models;
    let e1000 = all.iter().find(|it| it.name == "models/e1000").unwrap();
    assert_eq!(
        (e1000.vendor_id, e1000.device_id, e1000.class_code),
        (0x8086, 0x100e, 0x2_0000)
    );
    assert!(
        e1000
            .config_schema
            .as_ref()
            .unwrap()
            .fields
            .contains_key("properties")
    );
    let bars = e1000.bars.iter();
    let bars: Vec<_> = bars
        .map(|it| (it.index, it.kind(), it.size_bytes))
        .collect();
    assert_eq!(
        bars,
        [(0, BarKind::Memory32, 128 << 10), (2, BarKind::Io, 64)],
        "{e1000:?}"
    );
    let name = "models/e1000".to_owned();
    assert_eq!(
        &models
            .get_model(GetModelRequest { name })
            .await
            .unwrap()
            .into_inner(),
        e1000
    );
    let name = "models/e1001".to_owned();
    let error = models
        .get_model(GetModelRequest { name })
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::NotFound, "MODEL_NOT_FOUND")
    );

    create(&mut host.devices().await, nic("nic0")).await;
    let mut agent = AgentServiceClient::new(host.channel().await);
    let agent = agent
        .get_agent(GetAgentRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(agent.run_dir, host.path("run").to_str().unwrap());
    let counts = agent.device_counts.unwrap();
    assert_eq!((counts.total, counts.ready), (1, 1));
    assert!(agent.runtimes[0].models.contains(&"e1000".to_owned()));
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let host = Host::start().await;
    let mut health = HealthClient::new(host.channel().await);
    for service in ["", "vfu.v1.DeviceService"] {
        let service = service.to_owned();
        let answer = health
            .check(HealthCheckRequest { service })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    let mut reflection = ServerReflectionClient::new(host.channel().await);
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers
        .message()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else {
        panic!("not a list: {answer:?}");
    };
    let names: Vec<_> = list.service.into_iter().map(|it| it.name).collect();
    for name in [
        "vfu.v1.DeviceService",
        "vfu.v1.ModelService",
        "vfu.v1.AgentService",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
}
