"""Confinement from within: limits, another user, Landlock and seccomp, before any code that is not ours runs."""

import os
import resource

import seccomp


def set_limits(limits: dict) -> None:
    """Hard limits of this process, which it cannot raise again.

    At the limit of processor time comes SIGXCPU, and where the program ignores it, SIGKILL a second later.
    """
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        grace = 1 if kind == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else 0
        resource.setrlimit(kind, (value, value + grace))


def become(uid: int) -> None:
    """Give up root for a user that owns nothing."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def restrict(spec: dict) -> None:
    """Where no namespace hides the machine: Landlock for files, seccomp for all else.

    Args:
        spec (`dict`): `uid` or None; `parent`, the process that must outlive this one; `read` paths, `list` folders
            whose names may be read, `write` folder; `devices`.
    """
    import ctypes  # costs milliseconds, so only where it is needed

    kernel = _Kernel(ctypes)
    if spec["uid"] is not None:
        kernel.become_reader(spec["uid"])
    kernel.die_with_parent(spec["parent"])
    kernel.no_new_privileges()
    kernel.landlock(spec)
    kernel.seccomp(seccomp.build_filter(os.getpid()))


_CAPSET = {"x86_64": 126, "aarch64": 91}
_NUMBER_OF_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # by Landlock's ABI; later ones brought none


class _Kernel:
    """The few system calls for which Python has no function; all fail loudly."""

    _PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 8, 22, 38
    _CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
    _CAPABILITY_VERSION, _CAP_DAC_READ_SEARCH, _SIGKILL = 0x20080522, 1 << 2, 9

    # linux/landlock.h
    _EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
    _MAKE_SPECIAL = (1 << 6) | (1 << 9) | (1 << 10) | (1 << 11)  # devices, sockets, pipes
    _TCP = 3  # bind and connect, from ABI 4 on
    _SCOPES = 3  # abstract sockets and signals, from ABI 6 on

    def __init__(self, ctypes) -> None:
        self.c = ctypes
        self.libc = ctypes.CDLL(None, use_errno=True)

    def _checked(self, result: int) -> int:
        if result < 0:
            number = self.c.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def _prctl(self, *arguments) -> None:
        self._checked(self.libc.prctl(*(self.c.c_ulong(a) if isinstance(a, int) else a for a in arguments)))

    def _call(self, number: int, *arguments) -> int:
        self.libc.syscall.restype = self.c.c_long
        return self._checked(self.libc.syscall(self.c.c_long(number), *arguments))

    def become_reader(self, uid: int) -> None:
        """Give up root but for the right to search private folders: the interpreter may lie in one, and Landlock says
        what may be read."""
        self._prctl(self._PR_SET_KEEPCAPS, 1, 0, 0, 0)
        become(uid)
        u32 = self.c.c_uint32
        keep = self._CAP_DAC_READ_SEARCH
        header, data = (u32 * 2)(self._CAPABILITY_VERSION, 0), (u32 * 6)(keep, keep, 0, 0, 0, 0)
        self._call(_CAPSET[os.uname().machine], header, data)

    def die_with_parent(self, parent: int) -> None:
        self._prctl(self._PR_SET_PDEATHSIG, self._SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    def no_new_privileges(self) -> None:
        self._prctl(self._PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    def landlock(self, spec: dict) -> None:
        c = self.c
        version = self._call(self._CREATE_RULESET, None, c.c_size_t(0), c.c_uint32(1))
        files = (1 << _NUMBER_OF_FILE_RIGHTS[min(version, 5)]) - 1
        handled = (c.c_uint64 * 3)(files, self._TCP if version >= 4 else 0, self._SCOPES if version >= 6 else 0)
        size = 8 if version < 4 else 16 if version < 6 else 24
        ruleset = self._call(self._CREATE_RULESET, handled, c.c_size_t(size), c.c_uint32(0))
        for path in spec["read"]:
            folder = self._READ_DIR if os.path.isdir(path) else 0
            self._allow(ruleset, path, self._READ_FILE | folder)
        for path in spec["list"]:
            self._allow(ruleset, path, self._READ_DIR)
        for path in spec["devices"]:
            self._allow(ruleset, path, self._READ_FILE | self._WRITE_FILE)
        self._allow(ruleset, spec["write"], files & ~self._EXECUTE & ~self._MAKE_SPECIAL)
        self._call(self._RESTRICT_SELF, c.c_int(ruleset), c.c_uint32(0))
        os.close(ruleset)

    def _allow(self, ruleset: int, path: str, rights: int) -> None:
        c = self.c

        class PathBeneath(c.Structure):
            _pack_ = 1
            _fields_ = (("allowed_access", c.c_uint64), ("parent_fd", c.c_int32))

        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = PathBeneath(rights, folder)
        self._call(self._ADD_RULE, c.c_int(ruleset), c.c_int(1), c.byref(rule), c.c_uint32(0))
        os.close(folder)

    def seccomp(self, program: bytes) -> None:
        c = self.c

        class Program(c.Structure):
            _fields_ = (("length", c.c_ushort), ("filter", c.c_char_p))

        self._prctl(self._PR_SET_SECCOMP, 2, c.byref(Program(len(program) // 8, program)), 0, 0)
