//! What an operator writes to choose a backend.
//!
//! The documentation of these types is the help text of the command line, which reads it from the JSON Schema.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the network card's frames go.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[schemars(inline)]
pub enum Config {
    /// A TAP interface of this host.
    Tap(Tap),
    /// A UNIX stream socket that carries frames as QEMU's `-netdev stream` does.
    Stream(Stream),
    /// Every frame comes back to the card that sent it.
    Loopback {},
    /// A cable without a partner: nothing arrives, and what is sent is lost.
    Null {},
}

impl Default for Config {
    fn default() -> Self {
        Self::Null {}
    }
}

/// A TAP interface of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Tap {
    /// Name of the interface, created if it does not exist. Without it the first free name of vfu0, vfu1, ... is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = r"^[^/:%\s]{1,15}$"))]
    pub ifname: Option<String>,
    /// Name of a bridge, which must exist, to put the interface into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = r"^[^/:%\s]{1,15}$"))]
    pub bridge: Option<String>,
    /// Network namespace that holds the interface and the bridge, by path, for example /run/netns/blue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub netns: Option<PathBuf>,
}

/// A UNIX stream socket that carries frames as QEMU's `-netdev stream` does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Stream {
    /// Path of the socket, of at most 107 bytes.
    #[schemars(with = "String", length(min = 1, max = 107))]
    pub path: PathBuf,
    /// Whether to connect to the socket or to make it.
    pub mode: Mode,
}

/// Which end of the socket is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Mode {
    /// Connect to a socket that another program made; while there is none, try again every second.
    Connect,
    /// Make the socket and serve one peer at a time; a stale socket file is replaced.
    Listen,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_backend_is_written_as_documented() {
        let tap = json!({"tap": {"ifname": "vfu0", "bridge": "br0", "netns": "/run/netns/x"}});
        let stream = json!({"stream": {"path": "/x.sock", "mode": "connect"}});
        for written in [
            tap,
            stream,
            json!({"loopback": {}}),
            json!({"null": {}}),
            json!({"tap": {}}),
        ] {
            let config: Config = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(serde_json::to_value(&config).unwrap(), written);
        }
        assert_eq!(
            serde_json::to_value(Config::default()).unwrap(),
            json!({"null": {}})
        );
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for written in [
            json!({"tap": {"name": "vfu0"}}),
            json!({"null": {"x": 1}}),
            json!({"stream": {"path": "/x.sock"}}),
            json!({"stream": {"path": "/x.sock", "mode": "both"}}),
            json!({"vde": {}}),
            json!({"null": {}, "loopback": {}}),
        ] {
            assert!(
                serde_json::from_value::<Config>(written.clone()).is_err(),
                "{written}"
            );
        }
    }

    #[test]
    fn schema_has_one_closed_object_per_backend() {
        let schema = schemars::schema_for!(Config).to_value();
        let backends = schema["oneOf"].as_array().unwrap();
        let name =
            |backend: &serde_json::Value| backend["required"][0].as_str().unwrap().to_owned();
        assert_eq!(
            backends.iter().map(name).collect::<Vec<_>>(),
            ["tap", "stream", "loopback", "null"]
        );
        for backend in backends {
            assert_eq!(backend["additionalProperties"], false);
            assert_eq!(
                backend["properties"][name(backend)]["additionalProperties"],
                false
            );
            assert!(backend["description"].is_string());
        }
        let tap = &backends[0]["properties"]["tap"];
        assert_eq!(tap["properties"]["ifname"]["type"], "string");
        assert_eq!(tap.get("required"), None);
    }
}
