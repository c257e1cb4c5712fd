#!/usr/bin/env python3
"""image.py WASM VERSION COMPAT ARTIFACT: writes the filter as images that Istio's WasmPlugin and
Envoy Gateway pull, in both forms of the Wasm image specification. Both are OCI image layouts, as
tar archives; the same module gives the same bytes.

COMPAT is an ordinary image of one layer with /plugin.wasm. `docker load` takes it too, and
`docker push` makes Docker's form of it. ARTIFACT has the module itself as a layer, beside one that
says which runtime it is for.

image.py --check WASM ARCHIVE...: unpacks archives as those who pull do, and compares."""

import gzip
import hashlib
import io
import json
import pathlib
import sys
import tarfile

ABI = "0.2.1"
NAME = "haven"

OCI = "application/vnd.oci.image."
INDEX, MANIFEST, CONFIG = (OCI + part for part in ("index.v1+json", "manifest.v1+json", "config.v1+json"))
LAYER = OCI + "layer.v1.tar+gzip"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
WASM_CONFIG = "application/vnd.module.wasm.config.v1+json"
WASM_LAYER = "application/vnd.module.wasm.content.layer.v1+wasm"


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def dump(value):
    return json.dumps(value, indent=1, sort_keys=True).encode()


def tar(files):
    """An uncompressed archive of (name, bytes), without anything of this machine or hour."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Layout:
    """An OCI image layout with one manifest."""

    def __init__(self):
        self.blobs = {}

    def add(self, media_type, data, **more):
        self.blobs[digest(data)] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}

    def archive(self, version, manifest, others=()):
        top = self.add(MANIFEST, dump({"schemaVersion": 2, "mediaType": MANIFEST, **manifest}))
        top["annotations"] = {"org.opencontainers.image.ref.name": version}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]}
        blobs = sorted((blob_path(name), data) for name, data in self.blobs.items())
        return tar(
            [("oci-layout", dump({"imageLayoutVersion": "1.0.0"})), ("index.json", dump(index))]
            + list(others)
            + blobs
        )


def blob_path(name):
    return "blobs/" + name.replace(":", "/")


def annotations(version, **more):
    return {
        "org.opencontainers.image.title": NAME,
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0",
        **more,
    }


def compat(wasm, version):
    layout = Layout()
    content = tar([("plugin.wasm", wasm)])
    # No name and no time in gzip's head.
    layer = layout.add(LAYER, gzip.compress(content, 9, mtime=0))
    config = layout.add(
        CONFIG,
        dump(
            {
                # A filter runs wherever Envoy does; but an image without these is refused, or
                # taken for one of another machine.
                "architecture": "amd64",
                "os": "linux",
                "created": "1970-01-01T00:00:00Z",
                "config": {"Labels": annotations(version)},
                "rootfs": {"type": "layers", "diff_ids": [digest(content)]},
                "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "make dist"}],
            }
        ),
    )
    manifest = {
        "config": config,
        "layers": [layer],
        "annotations": annotations(version, **{"module.wasm.image/variant": "compat"}),
    }
    # What `docker load` reads.
    docker = [
        {
            "Config": blob_path(config["digest"]),
            "RepoTags": [f"{NAME}:{version}"],
            "Layers": [blob_path(layer["digest"])],
        }
    ]
    return layout.archive(version, manifest, [("manifest.json", dump(docker))])


def artifact(wasm, version):
    layout = Layout()
    runtime = dump({"type": "envoy_proxy", "abiVersions": [ABI], "config": {"root_ids": [NAME]}})
    title = "org.opencontainers.image.title"
    manifest = {
        # A config of the runtime's own media type, as pushed by tools for artifacts.
        "config": layout.add(WASM_CONFIG, runtime),
        "layers": [
            layout.add(WASM_CONFIG, runtime, annotations={title: "runtime-config.json"}),
            layout.add(WASM_LAYER, wasm, annotations={title: "plugin.wasm"}),
        ],
        "annotations": annotations(version),
    }
    return layout.archive(version, manifest)


def fail(what):
    sys.exit(f"error: {what}")


def unpack(path):
    """The module in an archive, found as Istio and Envoy Gateway find it, and with every digest and
    size checked."""
    try:
        with tarfile.open(path) as archive:
            files = {info.name: archive.extractfile(info).read() for info in archive if info.isfile()}
    except (tarfile.TarError, OSError) as error:
        fail(f"{path}: {error}")
    if "index.json" not in files:
        fail(f"{path} is no OCI image layout")

    def blob(descriptor):
        data = files.get(blob_path(descriptor["digest"]))
        if data is None:
            fail(f"{path}: {descriptor['digest']} is missing")
        if (digest(data), len(data)) != (descriptor["digest"], descriptor["size"]):
            fail(f"{path}: {descriptor['digest']} is not what its name or size says")
        return data

    (top,) = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(blob(top))
    config, layers = blob(manifest["config"]), manifest["layers"]
    if len(layers) == 1 and layers[0]["mediaType"] in (LAYER, DOCKER_LAYER):
        content = gzip.decompress(blob(layers[0]))
        if manifest["annotations"].get("module.wasm.image/variant") != "compat":
            fail(f"{path}: the annotation of the compat variant is missing")
        if json.loads(config)["rootfs"]["diff_ids"] != [digest(content)]:
            fail(f"{path}: the layer is not what the image's config says")
        (docker,) = json.loads(files["manifest.json"])
        named = [docker["Config"], *docker["Layers"]]
        if named != [blob_path(part["digest"]) for part in (manifest["config"], *layers)]:
            fail(f"{path}: docker load would read other files than a registry gets")
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            if archive.getnames() != ["plugin.wasm"]:
                fail(f"{path}: the layer holds {archive.getnames()}, not plugin.wasm alone")
            return archive.extractfile("plugin.wasm").read()
    if [layer["mediaType"] for layer in layers] != [WASM_CONFIG, WASM_LAYER]:
        fail(f"{path}: {[layer['mediaType'] for layer in layers]} are no layers of a Wasm image")
    if json.loads(blob(layers[0]))["type"] != "envoy_proxy":
        fail(f"{path}: it is not for Envoy")
    return blob(layers[1])


def main(arguments):
    if arguments[:1] == ["--check"] and len(arguments) >= 3:
        wasm = pathlib.Path(arguments[1]).read_bytes()
        for path in arguments[2:]:
            if unpack(path) != wasm:
                fail(f"{path}: its module is not {arguments[1]}")
        return
    if len(arguments) != 4:
        sys.exit(__doc__)
    wasm, version = pathlib.Path(arguments[0]).read_bytes(), arguments[1]
    if wasm[:8] != b"\0asm\1\0\0\0":
        fail(f"{arguments[0]} is not a wasm module")
    pathlib.Path(arguments[2]).write_bytes(compat(wasm, version))
    pathlib.Path(arguments[3]).write_bytes(artifact(wasm, version))


main(sys.argv[1:])
