//! The commands against an agent that keeps devices in a map.

mod agent;
mod device;
mod fake;

use std::ffi::OsString;

use proto::v1::{
    agent_service_server::AgentServiceServer, device_service_server::DeviceServiceServer,
    device_status, model_service_server::ModelServiceServer,
};
use serde_json::Value;
use tokio::{net::UnixListener, task::JoinSet};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use self::fake::Fake;
use crate::{error::Error, output::from_struct, run};

/// A running agent, until it is dropped.
struct Host {
    dir: tempfile::TempDir,
    fake: Fake,
    _server: JoinSet<()>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        let server = Server::builder()
            .add_service(DeviceServiceServer::new(fake.clone()))
            .add_service(ModelServiceServer::new(fake.clone()))
            .add_service(AgentServiceServer::new(fake.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let mut tasks = JoinSet::new();
        tasks.spawn(async { server.await.unwrap() });
        Self {
            dir,
            fake,
            _server: tasks,
        }
    }

    /// Runs `vfuctl` with `line` and gives what it printed and how it ended.
    async fn vfuctl(&self, line: &str) -> (String, Result<(), Error>) {
        let endpoint = format!("--endpoint=unix://{}/agent.sock", self.dir.path().display());
        let words = ["vfuctl", endpoint.as_str()]
            .into_iter()
            .chain(line.split(' '));
        let words: Vec<_> = words.map(OsString::from).collect();
        run_words(&words).await
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
    let result = run(words, &mut sink).await;
    (String::from_utf8(sink).unwrap(), result)
}
