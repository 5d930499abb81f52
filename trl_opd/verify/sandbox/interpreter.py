"""What a program may see: an interpreter, its standard library, the C library's folder, and named packages."""

import os
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("numpy",)
"""The packages that programs may import beside the standard library, where they are installed."""

_FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")
ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
"""All of a program's environment. Hashes are fixed, so that the order of a set is the same in every run."""


@dataclass(frozen=True)
class Interpreter:
    """Paths on this machine.

    Attributes:
        executable (`str`): The interpreter that this one's virtual environment, if any, was made from.
        libraries (`tuple[str, ...]`): Files and folders that it needs.
        hidden (`tuple[str, ...]`): Folders inside `libraries` that it does not.
        packages (`tuple[str, ...]`): Files and folders of `PACKAGES`.
        package_paths (`tuple[str, ...]`): The folders that they are found in.
    """

    executable: str
    libraries: tuple[str, ...]
    hidden: tuple[str, ...]
    packages: tuple[str, ...]
    package_paths: tuple[str, ...]

    def command(self, source: str, descriptor: int) -> list[str]:
        """The command that runs `source`, which reads its task from `descriptor`."""
        return [self.executable, *_FLAGS, "-c", source, str(descriptor)]


@cache
def find_interpreter() -> Interpreter:
    """The interpreter for programs: our own."""
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    libraries = [executable, *_shared_libraries(executable)]
    standard = dict.fromkeys(sysconfig.get_path(name, vars=_base_variables()) for name in ("stdlib", "platstdlib"))
    libraries += [path for path in standard if os.path.isdir(path)]
    hidden = [f"{path}/{name}" for path in standard for name in ("site-packages", "dist-packages", "test")]
    packages, package_paths = _find_packages()
    return Interpreter(
        executable,
        tuple(dict.fromkeys(libraries)),
        tuple(path for path in hidden if os.path.isdir(path)),
        packages,
        package_paths,
    )


def _base_variables() -> dict[str, str]:
    return {
        "base": sys.base_prefix,
        "platbase": sys.base_exec_prefix,
        "installed_base": sys.base_prefix,
        "installed_platbase": sys.base_exec_prefix,
    }


def _shared_libraries(executable: str) -> list[str]:
    """The dynamic linker, its cache, and the folders of the C library and of the interpreter's own library."""
    found = [path for path in ("/etc/ld.so.cache", *_linkers()) if os.path.exists(path)]
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/") > 0}
    for path in sorted(mapped):
        name = os.path.basename(path)
        if name.startswith(("libc.so.", "libc-", "ld-musl-")):
            found.append(os.path.dirname(os.path.realpath(path)))
        elif name.startswith("libpython"):
            found.append(path)
    return found


def _linkers() -> list[str]:
    folders = (Path("/lib64"), Path("/lib"))
    return [str(path) for folder in folders if folder.is_dir() for path in sorted(folder.glob("ld-*.so*"))]


def _find_packages() -> tuple[tuple[str, ...], tuple[str, ...]]:
    parts, folders = [], []
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            continue
        package = Path(spec.origin).parent.resolve()
        candidates = (package, package.with_name(f"{name}.libs"))
        parts += [str(path) for path in candidates if path.is_dir()]
        folders.append(str(package.parent))
    return tuple(parts), tuple(dict.fromkeys(folders))
