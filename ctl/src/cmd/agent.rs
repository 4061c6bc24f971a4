//! `vfuctl agent`, `vfuctl drain`, `vfuctl undrain` and `vfuctl shutdown-devices`

use std::time::{Duration, SystemTime};

use proto::v1::{
    Agent, DrainRequest, GetAgentRequest, Runtime, ShutDownDevicesRequest, UndrainRequest,
};

use serde_json::Value;

use crate::{
    args::{Drain, ShutDownDevices},
    client::Client,
    config::plain,
    error::{Error, printable},
    output::{Format, Output, age, json, table},
};

/// How much longer than the agent waits for processes vfuctl waits for the agent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Shows the agent.
pub(crate) async fn show(client: &Client, output: &mut Output<'_>) -> Result<(), Error> {
    let agent = get(client).await?;
    match output.format() {
        Format::Name => output.text(&format!("{}\n", agent.name)),
        Format::Json | Format::Yaml => output.value(&json("Agent", &agent)?),
        Format::Table | Format::Wide => output.text(&page(&agent, SystemTime::now())?),
    }
}

/// The agent, as it says itself.
pub(super) async fn get(client: &Client) -> Result<Agent, Error> {
    let request = client.request(GetAgentRequest::default());
    client.answer(client.agent().get_agent(request)).await
}

/// Drains the agent.
pub(crate) async fn drain(
    args: Drain,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let request = client.request(DrainRequest {
        reason: args.reason,
    });
    let agent = client.answer(client.agent().drain(request)).await?;
    done(&agent, "drained: it makes no new devices", output)
}

/// Ends that.
pub(crate) async fn undrain(client: &Client, output: &mut Output<'_>) -> Result<(), Error> {
    let request = client.request(UndrainRequest {});
    let agent = client.answer(client.agent().undrain(request)).await?;
    done(&agent, "undrained: it makes devices", output)
}

fn done(agent: &Agent, what: &str, output: &mut Output<'_>) -> Result<(), Error> {
    match output.format() {
        Format::Table | Format::Wide => output.text(&format!("{} {what}\n", agent.name)),
        Format::Name => output.text(&format!("{}\n", agent.name)),
        Format::Json | Format::Yaml => output.value(&json("Agent", agent)?),
    }
}

/// Ends the processes of all devices.
pub(crate) async fn shut_down(
    args: ShutDownDevices,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    // The agent is to say what is left when the time is over, so that the call itself has more.
    let wait = client.timeout();
    let client = client.with_timeout(wait.saturating_add(PATIENCE));
    let timeout = prost_types::Duration::try_from(wait).ok();
    let request = client.request(ShutDownDevicesRequest {
        force: args.force,
        timeout,
    });
    let mut agent = client.agent();
    let answer = client.answer(agent.shut_down_devices(request)).await?;
    match output.format() {
        Format::Table | Format::Wide => {
            let devices = match answer.stopped {
                1 => "1 device".to_owned(),
                count => format!("{count} devices"),
            };
            output.text(&format!("{devices} stopped\n"))?;
        }
        // The names are of those that are left, and there are none when all went well.
        Format::Name => {
            let names = answer.remaining.iter().map(|name| format!("{name}\n"));
            output.text(&names.collect::<String>())?;
        }
        Format::Json | Format::Yaml => {
            output.value(&json("ShutDownDevicesResponse", &answer)?)?;
        }
    }
    match answer.remaining.is_empty() {
        true => Ok(()),
        false => Err(Error::Remaining {
            names: answer.remaining,
            timeout: wait,
        }),
    }
}

/// The agent for people.
fn page(agent: &Agent, now: SystemTime) -> Result<String, Error> {
    let since = |time: &prost_types::Timestamp| {
        let whole = prost_types::Timestamp { nanos: 0, ..*time };
        format!("{whole} ({} ago)", age(*time, now))
    };
    let mut lines = vec![
        ("Version", agent.version.clone()),
        ("Process", agent.pid.to_string()),
        (
            "Started",
            agent.start_time.as_ref().map(since).unwrap_or_default(),
        ),
        ("Host", agent.hostname.clone()),
        ("Boot id", agent.boot_id.clone()),
        ("Run directory", agent.run_dir.clone()),
        ("State directory", agent.state_dir.clone()),
        ("Devices", devices(agent)),
    ];
    lines.push((
        "New devices",
        match &agent.drain_time {
            None => "made".to_owned(),
            Some(time) => {
                let reason = match agent.drain_reason.as_str() {
                    "" => "no reason given",
                    reason => reason,
                };
                format!("none since {}: {reason}; vfuctl undrain", since(time))
            }
        },
    ));
    if let Some(time) = &agent.shut_down_time {
        lines.push(("Shut down", format!("{}; vfuctl undrain", since(time))));
    }
    lines.push((
        "Cgroup",
        match (agent.cgroup.as_str(), agent.cgroup_error.as_str()) {
            ("", "") => "none".to_owned(),
            ("", error) => format!("none: {error}"),
            (path, "") => path.to_owned(),
            (path, error) => format!("{path}; {error}"),
        },
    ));
    if !agent.config_error.is_empty() {
        let error = &agent.config_error;
        lines.push(("Configuration", format!("as it was before: {error}")));
    }
    for device in &agent.unreadable_devices {
        let text = format!("{}: {}", device.name, device.error);
        lines.push(("Unreadable", text));
    }
    let mut text = String::new();
    for (name, value) in lines {
        // What the agent says of the host may be anything.
        let value = printable(&value).replace('\n', " ");
        text.push_str(&format!("{:17}{value}\n", format!("{name}:")));
    }
    text.push('\n');
    text.push_str(&table(
        &["RUNTIME", "USABLE", "MODELS", "PROGRAM"],
        agent.runtimes.iter().map(runtime),
    ));
    text.push('\n');
    text.push_str(&table(&["LIMIT", "VALUE"], limits(agent)?));
    Ok(text)
}

/// Whatever limits the API has, by their names there.
fn limits(agent: &Agent) -> Result<Vec<Vec<String>>, Error> {
    let limits = json("AgentLimits", &agent.limits.unwrap_or_default())?;
    let limits = limits.as_object().into_iter().flatten();
    let row = |(name, value): (&String, &Value)| {
        let mut words = String::new();
        for c in name.chars() {
            if c.is_uppercase() {
                words.push(' ');
            }
            words.extend(c.to_lowercase());
        }
        vec![words, plain(value)]
    };
    Ok(limits.map(row).collect())
}

fn devices(agent: &Agent) -> String {
    let counts = agent.device_counts.unwrap_or_default();
    let states = [
        (counts.starting, "starting"),
        (counts.ready, "ready"),
        (counts.connected, "connected"),
        (counts.failed, "failed"),
        (counts.deleting, "deleting"),
        (counts.stopped, "stopped"),
    ];
    let states = states.iter().filter(|(count, _)| *count != 0);
    let states: Vec<_> = states
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    match states.is_empty() {
        true => counts.total.to_string(),
        false => format!("{} ({})", counts.total, states.join(", ")),
    }
}

fn runtime(runtime: &Runtime) -> Vec<String> {
    let usable = match runtime.error.as_str() {
        "" => "yes".to_owned(),
        error => format!("no: {error}"),
    };
    vec![
        runtime.name.clone(),
        usable,
        runtime.models.join(","),
        runtime.path.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{AgentLimits, DeviceCounts, UnreadableDevice};
    use std::time::UNIX_EPOCH;

    fn agent() -> Agent {
        Agent {
            name: "agent".into(),
            version: "0.1.0".into(),
            pid: 7,
            start_time: Some(prost_types::Timestamp {
                seconds: 0,
                nanos: 5,
            }),
            hostname: "host".into(),
            boot_id: "b-1".into(),
            run_dir: "/run/vfu".into(),
            state_dir: "/var/lib/vfu".into(),
            runtimes: vec![Runtime {
                name: "vfu-device".into(),
                path: "/usr/bin/vfu-device".into(),
                models: vec!["e1000".into(), "nvme".into()],
                ..Runtime::default()
            }],
            device_counts: Some(DeviceCounts {
                total: 3,
                ready: 2,
                stopped: 1,
                ..DeviceCounts::default()
            }),
            limits: Some(AgentLimits {
                devices: 1024,
                concurrent_calls: 256,
                request_bytes: 4096,
                ..AgentLimits::default()
            }),
            cgroup: "/sys/fs/cgroup/vfu.slice".into(),
            ..Agent::default()
        }
    }

    #[test]
    fn the_page_says_what_the_agent_says() {
        let now = UNIX_EPOCH + Duration::from_secs(185);
        assert_eq!(
            page(&agent(), now).unwrap(),
            "\
Version:         0.1.0
Process:         7
Started:         1970-01-01T00:00:00Z (3m5s ago)
Host:            host
Boot id:         b-1
Run directory:   /run/vfu
State directory: /var/lib/vfu
Devices:         3 (2 ready, 1 stopped)
New devices:     made
Cgroup:          /sys/fs/cgroup/vfu.slice

RUNTIME      USABLE   MODELS       PROGRAM
vfu-device   yes      e1000,nvme   /usr/bin/vfu-device

LIMIT              VALUE
concurrent calls   256
devices            1024
request bytes      4096
"
        );
    }

    #[test]
    fn the_page_says_what_is_wrong_and_what_to_do() {
        let mut agent = agent();
        agent.drain_time = Some(prost_types::Timestamp::default());
        agent.drain_reason = "new kernel\n\u{1b}[2J".into();
        agent.shut_down_time = agent.drain_time;
        agent.cgroup = String::new();
        agent.cgroup_error = "no cgroup v2; mount it".into();
        agent.config_error = "agent.toml:1:1: x: there is no such key".into();
        agent.runtimes[0].error = "not found; install it".into();
        agent.unreadable_devices = vec![UnreadableDevice {
            name: "devices/nic0".into(),
            error: "missing field `uid`".into(),
        }];
        let page = page(&agent, UNIX_EPOCH + Duration::from_secs(1)).unwrap();
        for line in [
            "New devices:     none since 1970-01-01T00:00:00Z (1s ago): new kernel \u{fffd}[2J; vfuctl undrain",
            "Shut down:       1970-01-01T00:00:00Z (1s ago); vfuctl undrain",
            "Cgroup:          none: no cgroup v2; mount it",
            "Configuration:   as it was before: agent.toml:1:1: x: there is no such key",
            "Unreadable:      devices/nic0: missing field `uid`",
            "vfu-device   no: not found; install it   e1000,nvme   /usr/bin/vfu-device",
        ] {
            assert!(page.lines().any(|it| it == line), "no `{line}` in\n{page}");
        }
    }
}
