//! The commands against an agent that keeps devices in a map.

mod agent;
mod calls;
mod device;
mod fake;
mod observe;
mod plug;
mod watch;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    sync::{Arc, Mutex},
};

use proto::v1::{
    agent_service_server::AgentServiceServer, device_service_server::DeviceServiceServer,
    device_status, model_service_server::ModelServiceServer,
};
use serde_json::Value;
use tokio::{net::UnixListener, task::JoinSet};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{codegen::http, transport::Server};
use tower::util::MapRequestLayer;

use self::fake::Fake;
use crate::{error::Error, output::from_struct, run};

/// A running agent, until it is dropped.
struct Host {
    dir: tempfile::TempDir,
    fake: Fake,
    /// Full names of the methods that were called.
    calls: Arc<Mutex<BTreeSet<String>>>,
    _server: JoinSet<()>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        let calls = Arc::new(Mutex::new(BTreeSet::new()));
        let called = calls.clone();
        let record = MapRequestLayer::new(move |request: http::Request<_>| {
            let path = request.uri().path().trim_start_matches('/');
            called.lock().unwrap().insert(path.replace('/', "."));
            request
        });
        let server = Server::builder()
            .layer(record)
            .add_service(DeviceServiceServer::new(fake.clone()))
            .add_service(ModelServiceServer::new(fake.clone()))
            .add_service(AgentServiceServer::new(fake.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let mut tasks = JoinSet::new();
        tasks.spawn(async { server.await.unwrap() });
        Self {
            dir,
            fake,
            calls,
            _server: tasks,
        }
    }

    fn words(&self, line: &str) -> Vec<OsString> {
        let endpoint = format!("--endpoint=unix://{}/agent.sock", self.dir.path().display());
        let words = ["vfuctl", endpoint.as_str()];
        let words = words.into_iter().chain(line.split(' '));
        words.map(OsString::from).collect()
    }

    /// Runs `vfuctl` with `line` and gives what it printed and how it ended.
    async fn vfuctl(&self, line: &str) -> (String, Result<(), Error>) {
        run_words(&self.words(line)).await
    }

    /// Runs `vfuctl` with `line`, which has to fail, and gives what it printed, what it noted and how it ended.
    async fn noted(&self, line: &str) -> (String, String, Error) {
        let words = self.words(line);
        let (mut sink, mut notes) = (Vec::new(), Vec::new());
        let result = run(&words, &mut sink, &mut notes, false).await;
        let [text, notes] = [sink, notes].map(|it| String::from_utf8(it).unwrap());
        (text, notes, result.expect_err(line))
    }

    async fn good(&self, line: &str) -> String {
        let (text, result) = self.vfuctl(line).await;
        match result {
            Ok(()) => text,
            Err(error) => panic!("vfuctl {line}: {:?}", error.lines()),
        }
    }

    async fn bad(&self, line: &str) -> (u8, String) {
        let (_, result) = self.vfuctl(line).await;
        let error = result.expect_err(line);
        (error.exit_code(), error.lines().join("\n"))
    }

    /// Brings a device into a state.
    fn state(&self, id: &str, state: device_status::State) {
        let mut devices = self.fake.devices.lock().unwrap();
        let device = devices.get_mut(&format!("devices/{id}")).unwrap();
        device.status.get_or_insert_default().set_state(state);
    }

    fn config(&self, id: &str) -> Value {
        let devices = self.fake.devices.lock().unwrap();
        let spec = devices[&format!("devices/{id}")].spec.clone().unwrap();
        from_struct(&spec.config.unwrap())
    }
}

/// Runs `vfuctl` with `words` and gives what it printed and how it ended.
async fn run_words(words: &[OsString]) -> (String, Result<(), Error>) {
    let mut sink = Vec::new();
    let result = run(words, &mut sink, &mut std::io::sink(), false).await;
    (String::from_utf8(sink).unwrap(), result)
}
