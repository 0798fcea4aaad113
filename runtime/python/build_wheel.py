"""Builds the wheel: the Python files and libbitsmith, as PEP 517 asks; no other package is needed.

Reads `bitsmith/`, the workspace's version, and the shared library: `BITSMITH_LIBRARY`, or where
`cargo build --release --workspace` puts it. The library is called by ctypes, so one wheel serves every Python version; its
platform tag is that of this machine. Always holds: the same files give the same wheel, and it appears as a whole.
"""

import base64
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sysconfig
import tempfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
NAMES = {"linux": "libbitsmith.so", "macosx": "libbitsmith.dylib", "win": "bitsmith.dll"}


def _platform():
    return re.sub(r"[-.]", "_", sysconfig.get_platform())


def _library():
    name = next((name for start, name in NAMES.items() if _platform().startswith(start)), "libbitsmith.so")
    given = os.environ.get("BITSMITH_LIBRARY")
    path = pathlib.Path(given) if given else HERE.parents[1] / "target" / "release" / name
    if not path.is_file():
        raise SystemExit(f"{path} is missing: cargo build --release --workspace, or set BITSMITH_LIBRARY")
    strip = shutil.which("strip")
    if strip is None or not name.endswith(".so"):
        return name, path.read_bytes()
    # Four fifths of the library are lines of sources for debuggers.
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / name
        shutil.copy(path, copy)
        subprocess.run([strip, "--strip-debug", str(copy)], check=True)
        return name, copy.read_bytes()


def _version():
    text = (HERE.parents[1] / "Cargo.toml").read_text()
    return re.search(r'^version = "(.*)"', text, re.MULTILINE).group(1)


def _metadata(version):
    readme = (HERE / "README.md").read_text()
    lines = [
        "Metadata-Version: 2.1",
        "Name: bitsmith",
        f"Version: {version}",
        "Summary: Quantized kernels for LLM inference: bundles, packed weights, KV caches",
        "License: MIT OR Apache-2.0",
        "Requires-Python: >=3.9",
        "Requires-Dist: numpy>=1.22",
        "Description-Content-Type: text/markdown",
        "",
        readme,
    ]
    return "\n".join(lines)


def get_requires_for_build_wheel(config_settings=None):
    return []


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    version, tag = _version(), f"py3-none-{_platform()}"
    files = {f"bitsmith/{path.name}": path.read_bytes() for path in sorted((HERE / "bitsmith").iterdir()) if path.is_file()}
    name, library = _library()
    files[f"bitsmith/{name}"] = library
    info = f"bitsmith-{version}.dist-info"
    files[f"{info}/METADATA"] = _metadata(version).encode()
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: bitsmith {version}\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    )
    for licence in ("LICENSE-MIT", "LICENSE-APACHE"):
        files[f"{info}/licenses/{licence}"] = (HERE.parents[1] / licence).read_bytes()
    record = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(content)}")
    files[f"{info}/RECORD"] = "\n".join(record + [f"{info}/RECORD,,", ""]).encode()
    wheel = f"bitsmith-{version}-{tag}.whl"
    target = pathlib.Path(wheel_directory) / wheel
    new = target.with_suffix(".new")
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    new.replace(target)
    return wheel
