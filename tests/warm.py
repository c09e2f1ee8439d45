"""An interpreter that has torch and the package loaded: importing them takes longer than most programs of the tests.

A server loads them once and forks itself for each program, which so is a process of its own, with its own session,
folder, environment and standard streams. What stands for it is the command ``python`` in a folder: it takes
``-c CODE``, ``-m MODULE`` or a script, hands signals on, and ends as the program does; if it is killed, so is the
program. Environment variables that libraries read when they are imported are the server's.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

# No module with a command line of its own: `runpy` wants to be the first to load it.
LOADED = (
    "accelerate", "rheidae.preprocess.pipeline", "rheidae.runs.report", "rheidae.runs.train", "torch._dynamo",
    "torch.export",
)  # fmt: skip
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextlib.contextmanager
def interpreter(folder):
    """Start the server; give the path of the command."""
    address = str(folder / "socket")
    command = folder / "python"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" "{address}" "$@"\n')
    command.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(listener.fileno())], stdin=subprocess.PIPE,
            cwd=Path(__file__).parents[1], pass_fds=[listener.fileno()], env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    yield command
    server.stdin.close()
    server.wait()


def client(address, arguments):
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(request)
        answers = server.makefile()
        pid = int(answers.readline())
        for number in HANDED_ON:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        status = int(answers.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def serve(listener):
    """Return the arguments of a program, in its process."""
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # programs would copy all of it to look it through when they end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return attend(connection)
        connection.close()
    sys.exit(0)


def attend(connection):
    """Fork the program, and wait for its end or for that of the command which stands for it."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as requests:
        arguments, folder, environment = json.loads(requests.read(int.from_bytes(size, "big")))
    program = os.fork()
    if program == 0:
        connection.close()
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        return arguments
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    connection.sendall(f"{program}\n".encode())
    if connection in select.select([connection, os.pidfd_open(program)], [], [])[0]:
        os.kill(program, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{status}\n".encode())
    os._exit(0)


def run(arguments):
    """What Python does with such arguments."""
    kind = arguments[0]
    if kind == "-m":
        sys.path[0], sys.argv = os.getcwd(), arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0], sys.argv = "", ["-c", *arguments[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    else:
        sys.path[0], sys.argv = os.path.dirname(kind), arguments
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1].isdecimal():
        with socket.socket(fileno=int(sys.argv[1])) as listener:
            arguments = serve(listener)
        run(arguments)
    else:
        client(sys.argv[1], sys.argv[2:])
