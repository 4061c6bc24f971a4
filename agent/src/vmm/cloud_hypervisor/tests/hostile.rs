//! A peer that is no cloud-hypervisor, or a broken one.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use tempfile::TempDir;

use super::vmms;
use crate::vmm::{Endpoint, Error, Vm};

const PING: &str = r#"{"version": "v50.0"}"#;

fn socket() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    (dir, path)
}

/// Lets `script` answer each request, told the path of it, until it says that it is enough of the connection.
fn serve(path: &Path, script: impl Fn(&str, &mut UnixStream) -> bool + Send + Clone + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let script = script.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                loop {
                    let mut head = Vec::new();
                    let mut line = String::new();
                    while line != "\r\n" {
                        line.clear();
                        if !reader.read_line(&mut line).is_ok_and(|it| it > 0) {
                            return;
                        }
                        head.push(line.clone());
                    }
                    let path = head[0].split(' ').nth(1).unwrap_or_default();
                    if !script(path, &mut stream) {
                        return;
                    }
                }
            });
        }
    });
}

/// Says it, if anybody hears it.
fn say(stream: &mut UnixStream, text: &str) -> bool {
    stream.write_all(text.as_bytes()).is_ok()
}

fn ok(stream: &mut UnixStream, body: &str) -> bool {
    let length = body.len();
    say(
        stream,
        &format!("HTTP/1.1 200 \r\nContent-Length: {length}\r\n\r\n{body}"),
    )
}

async fn open(path: &Path) -> Result<Vm, Error> {
    let endpoint = Endpoint::CloudHypervisor {
        socket: path.to_owned(),
        events: None,
    };
    let (_stop, vmms) = vmms();
    vmms.open(&endpoint).await
}

/// What is said of a socket whose peer answers so.
async fn refusal(answer: impl Fn(&mut UnixStream) -> bool + Send + Clone + 'static) -> String {
    let (_dir, path) = socket();
    serve(&path, move |_, stream| answer(stream));
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, Error::Stranger { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.len() < 2000, "{} bytes", text.len());
    text
}

#[tokio::test]
async fn what_is_no_cloud_hypervisor_is_told_by_what_it_says() {
    for (said, told) in [
        ("{\"QMP\": {}}\r\n", "HTTP"),
        (
            "HTTP/1.1 404 \r\nContent-Length: 2\r\n\r\nno",
            "status 404: no",
        ),
        ("HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nhi", "with `hi`"),
        (
            "HTTP/1.1 200 \r\nContent-Length: 20\r\n\r\nhi",
            "end of file before",
        ),
    ] {
        let error = refusal(move |stream| !say(stream, said)).await;
        assert!(error.contains(told), "{error}");
    }
    let endless_head = refusal(|stream| {
        say(stream, "HTTP/1.1 200 \r\n");
        while say(stream, "X-Y: z\r\n") {}
        false
    });
    let error = endless_head.await;
    assert!(error.contains("too large"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_one_who_says_nothing_silent() {
    let (_dir, path) = socket();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    serve(&path, |_, _| true);
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, Error::Unanswered { .. }), "{error:?}");
    let path = path.with_extension("informational");
    serve(&path, |_, stream| {
        while say(stream, "HTTP/1.1 102 \r\n\r\n") {}
        false
    });
    let error = open(&path).await.unwrap_err();
    let is_bounded = matches!(error, Error::Unanswered { .. } | Error::Stranger { .. });
    assert!(is_bounded, "{error:?}");
}

/// Facts of a VMM that answers `vm.info` with this.
async fn facts(info: &'static str) -> Result<crate::vmm::Facts, Error> {
    let (_dir, path) = socket();
    serve(&path, move |request, stream| match request {
        "/api/v1/vmm.ping" => ok(stream, PING),
        _ => say(stream, info) && info.starts_with("HTTP"),
    });
    let (_stop, vmms) = vmms();
    let events = None;
    let socket = path;
    let endpoint = Endpoint::CloudHypervisor { socket, events };
    vmms.open(&endpoint).await.unwrap().facts().await
}

#[tokio::test]
async fn an_account_that_is_none_is_an_error() {
    let length = |body: &str| {
        format!(
            "HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let deep = length(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)));
    let negative = length(r#"{"state": "Running", "config": {"memory": {"size": -1}}}"#);
    for info in [deep, negative, length("[]"), length("")] {
        let error = facts(info.leak()).await.unwrap_err();
        assert!(matches!(error, Error::Stranger { .. }), "{error:?}");
    }
    let none = "HTTP/1.1 500 \r\nContent-Length: 30\r\n\r\n[\"x\", \"The VM is not created\"]";
    let error = facts(none).await.unwrap_err();
    assert!(matches!(error, Error::NoPlace { .. }), "{error:?}");
    let error = facts("gibberish\r\n\r\n").await.unwrap_err();
    assert!(matches!(error, Error::Unanswered { .. }), "{error:?}");
}

#[tokio::test]
async fn a_strange_account_is_taken_for_what_it_says() {
    let body = r#"{"state": "Run\u001bning", "config": {"memory": {"size": 0, "zones": [
        {"id": "z", "size": 5, "hugepages": true}, {"id": "y", "size": 6}]},
        "platform": {"num_pci_segments": 65535, "iommu_segments": [1]},
        "user_devices": [{"socket": "/s"}, {"id": "nic0", "socket": "/n"}],
        "devices": [{"id": "vfio0"}]},
        "device_tree": {"nic0": {"pci_bdf": "0001:00:1f.0"}, "vfio0": {"pci_bdf": "0000:00:05.0"},
        "lost": {"pci_bdf": "nowhere"}}}"#;
    let answer = format!(
        "HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let facts = facts(answer.leak()).await.unwrap();
    assert_eq!(facts.run_state, "run ning");
    let memory: Vec<_> = facts
        .memory
        .iter()
        .map(|it| (&*it.id, it.is_shared))
        .collect();
    assert_eq!(memory, [("z", true), ("y", false)]);
    assert_eq!(facts.buses.len(), 256);
    assert!(!facts.buses[1].has_place() && facts.buses[2].has_place());
    let devices: Vec<_> = facts.devices.iter().map(|it| &*it.id).collect();
    assert_eq!(devices, ["nic0"]);
}

#[tokio::test]
async fn a_vmm_that_closes_after_each_answer_is_asked_on_the_next_connection() {
    let (_dir, path) = socket();
    serve(&path, |request, stream| {
        let body = match request {
            "/api/v1/vmm.ping" => PING,
            _ => r#"{"state": "Running", "config": {"memory": {"size": 1}}}"#,
        };
        !ok(stream, body)
    });
    let (_stop, vmms) = vmms();
    let events = None;
    let socket = path;
    let endpoint = Endpoint::CloudHypervisor { socket, events };
    let vm = vmms.open(&endpoint).await.unwrap();
    for _ in 0..20 {
        // One that was sent on a connection that was about to be closed is not certain.
        let facts = vm.facts().await;
        let is_good = matches!(facts, Ok(_) | Err(Error::Unanswered { .. }));
        assert!(is_good, "{facts:?}");
    }
    let deadline = std::time::Instant::now() + super::LIMIT;
    while vm.facts().await.is_err() {
        assert!(
            std::time::Instant::now() < deadline,
            "it is never asked again"
        );
    }
}
