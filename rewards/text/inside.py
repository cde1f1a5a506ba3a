"""What the sandbox runs with `python -I -c`: limits on itself first, then the program. Imports nothing of ours.

Arguments: folder, CPU seconds, bytes of memory, bytes of a file, 1 for calls. See rewards/text/sandbox.py.
"""

import ctypes
import os
import resource
import sys
from contextlib import suppress

FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn")
FORBIDDEN += ("socket.", "ctypes.", "os.kill", "os.killpg", "signal.pthread_kill", "os.startfile", "mmap.", "fcntl.ioctl")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown")
CHANGES += ("os.utime", "os.setxattr", "os.removexattr", "shutil.move", "shutil.rmtree", "os.mkfifo", "os.mknod")
NO_NEW_PRIVILEGES = 38  # of prctl
LANDLOCK = (444, 445, 446)  # create a ruleset, add a rule, restrict oneself: the same numbers on all architectures
# rights on files: execute, read, list; and to write, remove, make, refer, truncate
READ, WRITE, FILE = 0b1101, 0x7FF2, 0x4007
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/urandom")  # what an interpreter reads besides itself
# machine -> its seccomp name, clone, and what starts or becomes another program: fork, vfork, execve, execveat
CALLS = {"x86_64": (0xC000003E, 56, (57, 58, 59, 322)), "aarch64": (0xC00000B7, 220, (221, 281))}
CLONE3, THREAD, FOREIGN = 435, 0x10000, 0x40000000  # of all machines; a flag of clone; calls of another convention


class Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr"""

    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64)]


class Beneath(ctypes.Structure):
    """struct landlock_path_beneath_attr"""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("rights", ctypes.c_uint64), ("parent", ctypes.c_int32)]


class Instruction(ctypes.Structure):
    """struct sock_filter"""

    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class Filter(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_uint16), ("start", ctypes.POINTER(Instruction))]


def limit(cpu: int, memory: int, file: int) -> None:
    """Limits that only a privileged process could raise again."""
    numbers = {"CPU": cpu, "AS": memory, "FSIZE": file, "NOFILE": 64, "CORE": 0, "NPROC": 0}
    for name, most in numbers.items():
        kind = getattr(resource, "RLIMIT_" + name, None)
        if kind is not None:
            with suppress(ValueError, OSError):  # a system that does not know it, such as RLIMIT_AS on macOS
                resource.setrlimit(kind, (most, most))


def fence_files(folder: str) -> None:
    """Landlock: write beneath the folder only, read that and the interpreter. Does nothing where the kernel has none."""
    system = ctypes.CDLL(None, use_errno=True)
    create, add, restrict = LANDLOCK
    version = system.syscall(create, None, 0, 1) if sys.platform == "linux" else -1
    if version < 1:
        return
    known = (READ | WRITE) & ((1 << (13 if version < 2 else 14 if version < 3 else 15)) - 1)
    rules = Ruleset(known, 0)
    handle = system.syscall(create, ctypes.byref(rules), 8, 0)
    allowed = {folder: known, os.devnull: known & FILE}
    allowed |= {path: known & READ for path in (*SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix) if os.path.exists(path)}
    for path, rights in allowed.items():
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        beneath = Beneath(rights if os.path.isdir(path) else rights & FILE, opened)
        system.syscall(add, handle, 1, ctypes.byref(beneath), 0)
        os.close(opened)
    system.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)  # without which an ordinary user may not restrict itself
    system.syscall(restrict, handle, 0)
    os.close(handle)


def fence_calls() -> None:
    """Seccomp: no process and no other program, threads only. Holds for root too, whom no limit of processes binds."""
    if sys.platform != "linux" or os.uname().machine not in CALLS:
        return
    machine, clone, starts = CALLS[os.uname().machine]
    load, equal, least, bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    tests = [(least, FOREIGN, "deny", ""), *((equal, number, "deny", "") for number in starts), (equal, CLONE3, "unknown", "")]
    lines = [(load, 4, "", ""), (equal, machine, "", "deny"), (load, 0, "", ""), *tests]
    lines += [(equal, clone, "", "allow"), (load, 16, "", ""), (bits, THREAD, "allow", "deny")]
    places = {"": -1, "allow": len(lines), "deny": len(lines) + 1, "unknown": len(lines) + 2}
    lines += [(answer, 0x7FFF0000, "", ""), (answer, 0x50001, "", ""), (answer, 0x50026, "", "")]  # allow, EPERM, ENOSYS
    jumps = [[places[to] - at - 1 if to else 0 for to in line[2:]] for at, line in enumerate(lines)]
    program = (Instruction * len(lines))(*(Instruction(line[0], *jump, line[1]) for line, jump in zip(lines, jumps, strict=True)))
    system = ctypes.CDLL(None, use_errno=True)
    system.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    system.prctl(22, 2, ctypes.byref(Filter(len(lines), program)), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def refuse(folder: str) -> None:
    """An audit hook, which cannot be taken away again: no processes, no sockets, no changes outside of the folder."""
    inside = (folder + os.sep, folder)

    def outside(path: object) -> bool:
        if isinstance(path, int):
            return False  # an open file
        return not os.path.realpath(os.fsdecode(path)).startswith(inside)  # type: ignore[arg-type]

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(event)
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if writes and path not in ("/dev/null", os.devnull) and outside(path):
                raise PermissionError(path)
        elif event in CHANGES and any(isinstance(a, (str, bytes)) and outside(a) for a in arguments):
            raise PermissionError(event)

    def no_process(*given: object) -> None:
        raise PermissionError("fork_exec")

    import _posixsubprocess  # the one way to a process that no audit event tells of
    import subprocess

    for module in (_posixsubprocess, subprocess):
        for name in ("fork_exec", "_fork_exec"):
            setattr(module, name, no_process)
    sys.addaudithook(hook)


def main() -> None:
    folder, cpu, memory, file, calls = sys.argv[1], *map(int, sys.argv[2:6])
    with open("program.py", encoding="utf-8") as source, open("calls.txt", encoding="utf-8") as asked:
        program, wanted = source.read(), asked.read().split("\n")
    answers = os.dup(1) if calls else -1
    if calls:  # what the program prints is not an answer
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv[1:] = []
    fence_files(folder)
    fence_calls()
    limit(cpu, memory, file)
    refuse(os.path.realpath(folder))
    names = {"__name__": "__main__" if not calls else "answer", "__builtins__": __builtins__}
    exec(compile(program, "program.py", "exec"), names)
    for number, call in enumerate(wanted) if calls else ():
        try:
            answer = repr(eval(compile(call, "call", "eval"), names)).replace("\n", " ")
        except Exception as problem:
            answer = f"!{type(problem).__name__}"
        os.write(answers, f"{number}\t{answer}\n".encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
