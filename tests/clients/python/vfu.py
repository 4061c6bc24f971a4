"""The agent's API by reflection: no stubs, no protos, only what the agent itself says.

Every method becomes a function that takes the fields of its request by keyword and gives the answer, or for a stream
its call, over which one iterates and which one cancels.
"""

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

# No call of these tests takes longer, on however slow a machine.
DEADLINE_SECONDS = 60

# On its own, gRPC's C core sends the percent-encoded path of the socket as :authority. A percent sign can't be in the
# host of an authority, which is why servers that check it reset the stream.
OPTIONS = [("grpc.default_authority", "localhost")]


class Agent:
    """A connection to the agent on a UNIX socket."""

    def __init__(self, target, options=OPTIONS):
        self.channel = grpc.insecure_channel(target, options=options)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def __getattr__(self, method):
        for service in ("DeviceService", "ModelService", "AgentService"):
            found = self.pool.FindServiceByName(f"vfu.v1.{service}").methods_by_name.get(method)
            if found:
                return self._function(found)
        raise AttributeError(method)

    def _function(self, method):
        request = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)
        kind = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        call = kind(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )

        def function(**fields):
            return call(json_format.ParseDict(fields, request()), timeout=DEADLINE_SECONDS)

        return function


def data(message):
    """The message as dictionaries and lists, with the names of the protos."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
