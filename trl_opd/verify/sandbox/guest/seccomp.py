"""A seccomp filter that lets a program compute and read and write files, and little else.

Written as classic BPF, which both bubblewrap (`--seccomp`) and the kernel take as it is: no library is needed. It
denies new processes (threads stay possible), sockets other than a connected pair, all that looks into or signals other
processes, and the corners of the kernel that a program which solves a puzzle never needs.
"""

import errno
import os
import struct

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD, _SOCK_STREAM, _SOCK_TYPE_MASK, _PR_SET_PDEATHSIG = 0x00010000, 1, 0xF, 1
_X32_BIT = 0x40000000

# linux/audit.h; asm/unistd_64.h and asm-generic/unistd.h
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_DENIED = {  # name: (x86_64, aarch64); None where the architecture has no such call
    "fork": (57, None),
    "vfork": (58, None),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "fanotify_init": (300, 262),
    "personality": (135, 92),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "iopl": (172, None),
    "ioperm": (173, None),
    "syslog": (103, 116),
    "vhangup": (153, 58),
}
_CLONE, _CLONE3 = (56, 220), 435
_SOCKETPAIR = (53, 199)
_SIGNALS = {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131)}
_EXECUTE = {"execve": (59, 221), "execveat": (322, 281)}
_PRCTL = (157, 167)


def supported() -> bool:
    """Whether the filter knows this machine's system calls."""
    return os.uname().machine in _ARCHITECTURES


def build_filter(own_pid: int | None = None) -> bytes:
    """The filter for this machine.

    Args:
        own_pid (`int`, *optional*): Where no namespace hides other processes and the program is running already: deny
            signals to any process but this one, a new program in its place, and a change of what happens when its
            parent dies.

    Returns:
        `bytes`: An array of `struct sock_filter`.
    """
    machine = os.uname().machine
    column = list(_ARCHITECTURES).index(machine)
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        code += [_step(_AT_LEAST, _X32_BIT, 0, 1), _deny(errno.ENOSYS)]
    # The C library falls back to clone, whose flags a filter can read.
    code += [_step(_EQUAL, _CLONE3, 0, 1), _deny(errno.ENOSYS)]
    numbers = [row[column] for row in _DENIED.values() if row[column] is not None]
    if own_pid is not None:
        numbers += [row[column] for row in _EXECUTE.values()]
    for number in numbers:
        code += [_step(_EQUAL, number, 0, 1), _deny(errno.EPERM)]
    code += _unless(_CLONE[column], 0, [_step(_ANY_BIT, _CLONE_THREAD, 1, 0)])
    code += _unless(_SOCKETPAIR[column], 1, [_step(_AND, _SOCK_TYPE_MASK), _step(_EQUAL, _SOCK_STREAM, 1, 0)])
    if own_pid is not None:
        for row in _SIGNALS.values():
            code += _unless(row[column], 0, [_step(_EQUAL, own_pid, 1, 0)])
        code += _unless(_PRCTL[column], 0, [_step(_EQUAL, _PR_SET_PDEATHSIG, 0, 1)])
    code.append(_step(_RETURN, _ALLOW))
    return b"".join(code)


def _unless(number: int, argument: int, test: list[bytes]) -> list[bytes]:
    """Deny the call `number` unless `test`, on the lower half of an argument, skips the next step."""
    block = [_step(_LOAD, _ARGUMENTS + 8 * argument), *test, _deny(errno.EPERM), _step(_RETURN, _ALLOW)]
    return [_step(_EQUAL, number, 0, len(block)), *block]


def _deny(error: int) -> bytes:
    return _step(_RETURN, _ERRNO | error)


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
