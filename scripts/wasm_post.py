#!/usr/bin/env python3
"""wasm_post.py IN OUT: writes OUT and OUT.sha256, less the exports that haven does not implement.

The SDK exports every callback of the ABI, and a host calls each one that is exported: for body chunks and trailers that
is a trip into the VM per request that does nothing. A callback goes when src/ has no method of its name, so that
writing the method is all it takes to bring it back.
"""
import hashlib
import pathlib
import re
import sys

# export of the module: the SDK's methods behind it
CALLBACKS = {
    "proxy_on_new_connection": ["on_new_connection"],
    "proxy_on_downstream_data": ["on_downstream_data"],
    "proxy_on_downstream_connection_close": ["on_downstream_close"],
    "proxy_on_upstream_data": ["on_upstream_data"],
    "proxy_on_upstream_connection_close": ["on_upstream_close"],
    "proxy_on_request_headers": ["on_http_request_headers"],
    "proxy_on_request_body": ["on_http_request_body"],
    "proxy_on_request_trailers": ["on_http_request_trailers"],
    "proxy_on_response_headers": ["on_http_response_headers"],
    "proxy_on_response_body": ["on_http_response_body"],
    "proxy_on_response_trailers": ["on_http_response_trailers"],
    "proxy_on_done": ["on_done"],
    "proxy_on_log": ["on_log"],
    "proxy_on_tick": ["on_tick"],
    "proxy_on_queue_ready": ["on_queue_ready"],
    "proxy_on_http_call_response": ["on_http_call_response"],
    "proxy_on_grpc_receive_initial_metadata": ["on_grpc_stream_initial_metadata"],
    "proxy_on_grpc_receive": ["on_grpc_call_response", "on_grpc_stream_message"],
    "proxy_on_grpc_receive_trailing_metadata": ["on_grpc_stream_trailing_metadata"],
    "proxy_on_grpc_close": ["on_grpc_call_response", "on_grpc_stream_close"],
    "proxy_on_foreign_function": ["on_foreign_function"],
}
# What the linker and getrandom's backend leave exported, and no host asks for.
LINKER = {"__data_end", "__heap_base", "__getrandom_v03_custom"}
EXPORT_SECTION = 7


def leb(data, at):
    """One unsigned LEB128 number and where the next byte is."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def to_leb(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def without(section, names):
    """An export section less the exports in names, and the names that went."""
    count, at = leb(section, 0)
    kept, gone = [], []
    for _ in range(count):
        start = at
        length, at = leb(section, at)
        name = section[at : at + length].decode()
        _, at = leb(section, at + length + 1)  # past the kind, the index
        if name in names:
            gone.append(name)
        else:
            kept.append(section[start:at])
    return to_leb(len(kept)) + b"".join(kept), gone


def strip(module, names):
    if module[:4] != b"\0asm":
        sys.exit("error: that is not a wasm module")
    out, gone, at = [module[:8]], [], 8
    while at < len(module):
        kind = module[at]
        size, body = leb(module, at + 1)
        at = body + size
        section = module[body:at]
        if kind == EXPORT_SECTION:
            section, gone = without(section, names)
        out.append(bytes([kind]) + to_leb(len(section)) + section)
    return b"".join(out), gone


def main():
    source, target = map(pathlib.Path, sys.argv[1:])
    code = "\n".join(p.read_text() for p in sorted(pathlib.Path("src").rglob("*.rs")))
    written = set(re.findall(r"\bfn (on_\w+)", code))
    names = {export for export, methods in CALLBACKS.items() if not written.intersection(methods)}
    module, gone = strip(source.read_bytes(), names | LINKER)
    target.parent.mkdir(exist_ok=True)
    digest = hashlib.sha256(module).hexdigest()
    # By rename, as a running Envoy or test may be reading the old file.
    for path, content in ((target, module), (target.with_name(target.name + ".sha256"), f"{digest}  {target.name}\n".encode())):
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(content)
        fresh.replace(path)
    print(f"{target}: {len(module)} bytes ({len(module) / 1024:.0f} KiB), {len(gone)} unused exports left out\nsha256 {digest}")


if __name__ == "__main__":
    main()
