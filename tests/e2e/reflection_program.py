"""A client that has never heard of kvorum: all it knows, it learns by reflection.

    reflection_program.py ADDRESS KEY VALUE

puts the value, gets it and lists by the key as prefix, and prints what it got as JSON.
"""

import json
import sys
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)


class Service:
    """Calls the unary methods of a service by their names, with fields by their names."""

    def __init__(self, channel: grpc.Channel, name: str) -> None:
        self._channel = channel
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        self._service = pool.FindServiceByName(name)

    def call(self, method: str, **fields: object) -> Any:
        described = self._service.methods_by_name[method]
        request, response = map(GetMessageClass, (described.input_type, described.output_type))
        return self._channel.unary_unary(
            f"/{self._service.full_name}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )(request(**fields), timeout=10)


def main(address: str, key: str, value: str) -> None:
    with grpc.insecure_channel(address) as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        [name] = [name for name in services if name.endswith(".KV")]
        kv = Service(channel, name)
        put = kv.call("Put", key=key.encode(), value=value.encode())
        got = kv.call("Get", key=key.encode())
        listed = kv.call("List", prefix=key.encode())
    print(
        json.dumps(
            {
                "put": put.revision,
                "got": [got.record.value.decode(), got.record.revision],
                "listed": [[one.key.decode(), one.value.decode()] for one in listed.records],
                "modules": sorted(name for name in sys.modules if name.startswith("kvorum")),
            }
        )
    )


main(*sys.argv[1:])
