//! What each call of the API takes: one table from method to the least role.

use std::fmt;

use serde::{Deserialize, Serialize};

use self::Role::{Admin, Operator, Viewer};

/// What a caller may do. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Also makes, changes and deletes devices.
    Operator,
    /// Also does what concerns the whole host.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Viewer => "viewer",
            Operator => "operator",
            Admin => "admin",
        })
    }
}

const PACKAGE: &str = "vfu.v1.";

const METHODS: [(&str, Role); 20] = [
    ("vfu.v1.AgentService/Drain", Admin),
    ("vfu.v1.AgentService/GetAgent", Viewer),
    ("vfu.v1.AgentService/ShutDownDevices", Admin),
    ("vfu.v1.AgentService/Undrain", Admin),
    ("vfu.v1.DeviceService/CreateDevice", Operator),
    ("vfu.v1.DeviceService/DeleteDevice", Operator),
    ("vfu.v1.DeviceService/DiagnoseDevice", Operator),
    ("vfu.v1.DeviceService/GetDevice", Viewer),
    ("vfu.v1.DeviceService/ListDevices", Viewer),
    ("vfu.v1.DeviceService/ListEvents", Viewer),
    ("vfu.v1.DeviceService/PlugDevice", Operator),
    ("vfu.v1.DeviceService/ReadLogs", Viewer),
    ("vfu.v1.DeviceService/ResetDevice", Operator),
    ("vfu.v1.DeviceService/RestartDevice", Operator),
    ("vfu.v1.DeviceService/UnplugDevice", Operator),
    ("vfu.v1.DeviceService/UpdateDevice", Operator),
    ("vfu.v1.DeviceService/WatchDevices", Viewer),
    ("vfu.v1.DeviceService/WatchStats", Viewer),
    ("vfu.v1.ModelService/GetModel", Viewer),
    ("vfu.v1.ModelService/ListModels", Viewer),
];

/// The least role for a method, such as `vfu.v1.DeviceService/GetDevice`. Health and reflection are for whoever can
/// connect, and so is what does not exist: its caller is told so. A method of ours that is missing in the table is for
/// admins, rather than for everybody.
pub(crate) fn least(method: &str) -> Option<Role> {
    let known = METHODS.iter().find(|(name, _)| *name == method);
    match known {
        Some((_, role)) => Some(*role),
        None => method.starts_with(PACKAGE).then_some(Admin),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn the_table_has_every_method_of_the_api_and_no_other() {
        let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut methods = Vec::new();
        for file in &set.file {
            for service in &file.service {
                let named = service.method.iter().map(|method| {
                    format!("{}.{}/{}", file.package(), service.name(), method.name())
                });
                methods.extend(named);
            }
        }
        methods.sort();
        assert_eq!(METHODS.map(|(name, _)| name).as_slice(), methods);
    }

    #[test]
    fn what_reads_is_for_viewers_and_what_changes_is_not() {
        for (method, role) in METHODS {
            let (_, name) = method.split_once('/').unwrap();
            let reads = ["Get", "List", "Watch", "Read"]
                .iter()
                .any(|it| name.starts_with(it));
            assert_eq!(reads, role == Viewer, "{method}");
        }
    }

    #[test]
    fn health_and_reflection_take_no_role_and_an_unknown_method_of_ours_takes_the_highest() {
        assert_eq!(least("grpc.health.v1.Health/Check"), None);
        let reflection = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        assert_eq!(least(reflection), None);
        assert_eq!(least("vfu.v1.DeviceService/Invented"), Some(Admin));
    }
}
