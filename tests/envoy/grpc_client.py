"""A client of grpc.health.v1: grpc_client.py ADDRESS NAME...

It prints as JSON what Check answers for each name, and what Watch answers.
"""

import json
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def said(call):
    try:
        return health_pb2.HealthCheckResponse.ServingStatus.Name(call().status)
    except grpc.RpcError as error:
        return error.code().name


with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest
    # Three of each on one connection: what one leaves behind another would find.
    checks = [
        {name: said(lambda: stub.Check(request(service=name), timeout=10)) for name in sys.argv[2:]}
        for _ in range(3)
    ]
    assert checks[0] == checks[1] == checks[2], checks
    watch = said(lambda: next(stub.Watch(request(), timeout=10)))
    print(json.dumps({"check": checks[0], "watch": watch}))
