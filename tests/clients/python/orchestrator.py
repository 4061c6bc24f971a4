"""What an orchestrator does with the agent: orchestrator.py SOCKET SCENARIO

Ends with a traceback and exit code 1 where the agent does not do as its API says.
"""

import os
import sys
import threading
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from vfu import Agent, data

NIC = {"model": "e1000", "config": {"net": {"null": {}}}}


def create(agent, name, **more):
    device = {"spec": NIC, **more.pop("device", {})}
    return agent.CreateDevice(device_id=name, device=device, **more)


def details(error):
    """The details of an error by the name of their type."""
    found = {}
    for detail in rpc_status.from_call(error).details:
        name = detail.TypeName().rsplit(".", 1)[-1]
        message = getattr(error_details_pb2, name)()
        assert detail.Unpack(message), name
        found[name] = message
    return found


def refused(code, call, **fields):
    """The details of the error of a call that has to fail."""
    try:
        answer = call(**fields)
    except grpc.RpcError as error:
        assert error.code() == code, error
        found = details(error)
        assert found["ErrorInfo"].domain == "vfu.dev", found
        return found
    raise AssertionError(f"no error but {answer}")


def life(agent):
    """A device is created, seen by a watch, and deleted; a repeated create makes nothing new."""
    before = agent.ListDevices()
    assert before.resource_version, "a watch can't go on after this list"
    stream = agent.WatchDevices(resource_version=before.resource_version)
    seen = []
    gone = threading.Event()

    def read():
        try:
            for change in stream:
                seen.append(data(change))
                if seen[-1]["type"] == "DELETED":
                    break
        finally:
            gone.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    request = str(uuid.uuid4())
    device = create(agent, "nic0", request_id=request, device={"labels": {"tenant": "blue"}})
    assert data(device)["status"]["state"] == "READY", device
    assert os.path.exists(device.status.socket_path)
    again = create(agent, "nic0", request_id=request, device={"labels": {"tenant": "blue"}})
    assert again.uid == device.uid
    agent.DeleteDevice(name=device.name, etag=again.etag)
    assert gone.wait(60), seen
    stream.cancel()
    reader.join()

    assert seen[0]["type"] == "ADDED" and seen[-1]["type"] == "DELETED", seen
    versions = [change["resource_version"] for change in seen]
    assert len(set(versions)) == len(versions), versions
    states = [it["device"]["status"]["state"] for it in seen if it["type"] != "BOOKMARK"]
    assert "READY" in states, states
    assert all(it["device"]["uid"] == device.uid for it in seen if it["type"] != "BOOKMARK")
    # A reader that comes late is told the same.
    late = agent.WatchDevices(resource_version=before.resource_version)
    told = []
    for change in late:
        told.append(data(change))
        if told[-1]["type"] == "DELETED":
            break
    late.cancel()
    changes = [it for it in seen if it["type"] != "BOOKMARK"]
    assert [it for it in told if it["type"] != "BOOKMARK"] == changes


def pages(agent):
    """A list comes in pages, each device once, and a filter chooses."""
    names = [f"nic{number}" for number in range(5)]
    for number, name in enumerate(names):
        colour = "blue" if number % 2 else "red"
        create(agent, name, device={"labels": {"tenant": colour}})

    def listed(**fields):
        found, token, count = [], "", 0
        while True:
            page = agent.ListDevices(page_size=2, page_token=token, **fields)
            assert len(page.devices) <= 2
            found += [device.name.removeprefix("devices/") for device in page.devices]
            token, count = page.next_page_token, count + 1
            if not token:
                return found, count

    assert listed() == (names, 3)
    assert listed(filter='labels.tenant = "blue"') == (["nic1", "nic3"], 1)
    found = refused(grpc.StatusCode.INVALID_ARGUMENT, agent.ListDevices, filter="tenant ==")
    assert found["BadRequest"].field_violations[0].field == "filter", found
    found = refused(grpc.StatusCode.INVALID_ARGUMENT, agent.ListDevices, page_token="x")
    assert found["BadRequest"].field_violations[0].field == "page_token", found


def errors(agent):
    """An error says for programs what is wrong, and where."""
    config = {"mac": "52:54:00", "colour": "red"}
    found = refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        agent.CreateDevice,
        device_id="Nic_0",
        device={"spec": {"model": "e1000", "config": config}},
    )
    fields = {it.field for it in found["BadRequest"].field_violations}
    assert {"device_id", "device.spec.config.mac"} <= fields, found
    assert found["ErrorInfo"].reason.isupper(), found

    found = refused(grpc.StatusCode.NOT_FOUND, agent.GetDevice, name="devices/nic0")
    assert found["ResourceInfo"].resource_name == "devices/nic0", found
    create(agent, "nic0")
    found = refused(
        grpc.StatusCode.ALREADY_EXISTS,
        agent.CreateDevice,
        device_id="nic0",
        device={"spec": NIC},
    )
    assert found["ResourceInfo"].resource_name == "devices/nic0", found
    refused(grpc.StatusCode.ABORTED, agent.DeleteDevice, name="devices/nic0", etag="other")
    agent.DeleteDevice(name="devices/nic0")


def logs(agent):
    """Logs are followed until the device is deleted, and its events can be read after that."""
    device = create(agent, "nic0")
    stream = agent.ReadLogs(name=device.name, follow=True)
    lines = []

    def read():
        for answer in stream:
            lines.extend(line.text for line in answer.lines)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    agent.ResetDevice(name=device.name)
    agent.DeleteDevice(name=device.name)
    reader.join(60)
    assert not reader.is_alive(), "the end of the device is the end of its log"
    assert stream.code() == grpc.StatusCode.OK, stream

    events = agent.ListEvents(parent=device.name).events
    assert events, "a device was made and deleted"
    assert all(event.device_uid == device.uid for event in events), events
    times = [event.time.ToNanoseconds() for event in events]
    assert times == sorted(times, reverse=True), events


def reflection(agent):
    """What can be called is found without any file of the project."""
    services = set(agent.database.get_services())
    wanted = {"vfu.v1.DeviceService", "vfu.v1.ModelService", "vfu.v1.AgentService"}
    assert wanted | {"grpc.health.v1.Health"} <= services, services
    methods = agent.pool.FindServiceByName("vfu.v1.DeviceService").methods_by_name
    assert {"CreateDevice", "WatchDevices", "ReadLogs"} <= set(methods), list(methods)
    states = agent.pool.FindEnumTypeByName("vfu.v1.DeviceStatus.State").values_by_name
    assert "STOPPED" in states, list(states)
    assert agent.GetAgent().name == "agent"


def authority(socket):
    """What is said about the authority of C-core clients is so: a path with a slash needs the option."""
    with Agent(f"unix:{socket}", options=[]) as bare:
        try:
            bare.GetAgent()
        except grpc.RpcError as error:
            assert "RST_STREAM" in error.details(), error
        else:
            raise AssertionError("the option is not needed any more: say so where it is documented")
    os.chdir(os.path.dirname(socket))
    with Agent(f"unix:{os.path.basename(socket)}", options=[]) as relative:
        assert relative.GetAgent().name == "agent"


def main():
    _, socket, scenario = sys.argv
    if scenario == "authority":
        return authority(socket)
    scenarios = {it.__name__: it for it in (life, pages, errors, logs, reflection)}
    with Agent(f"unix:{socket}") as agent:
        scenarios[scenario](agent)


main()
