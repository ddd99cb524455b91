"""A foreign program: many processes connect, serve, fork, pass connections on and fail, all at once, and each writes down
what it did itself.

Arguments: a folder for the accounts, and connections in all. An account has a line for each end: `a LOCAL REMOTE PID` says
that this process called connect(), `p LOCAL REMOTE PID` that this process' call ended a passive end; with `-` for the PID the
peer did. Ports; 0 where the attempt never had one.
"""

import os
import socket
import struct
import sys

FOLDER, TOTAL = sys.argv[1], int(sys.argv[2])
CLOSED_PORT = 9
NO_ROUTE = ("203.0.113.129", 80)
LINES = []
CHILDREN = []


def note(kind, local, remote, who=None):
    LINES.append(f"{kind} {local} {remote} {os.getpid() if who is None else who}\n")


def write_down():
    with open(f"{FOLDER}/{os.getpid()}", "w") as file:
        file.writelines(LINES)
    LINES.clear()


def fork(work):
    pid = os.fork()
    if pid == 0:
        LINES.clear()
        CHILDREN.clear()
        work()
        write_down()
        os._exit(0)
    CHILDREN.append(pid)
    return pid


def listen(address="127.0.0.1", reuse=False, port=0):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    if reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address, port))
    sock.listen(4096)
    return sock


def port_of(sock):
    return sock.getsockname()[1]


def reset_on_close(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# What the client wants, by its first byte: to be closed first, to close first, to be reset, to reset. `q` ends the server.
WISHES = b"scrR"


def serve(sock, peer, local):
    """Serves one connection."""
    wish = sock.recv(1)
    if wish in (b"c", b"R"):
        sock.sendall(b".")
        try:
            while sock.recv(4096):
                pass
            note("p", local, peer)
        except ConnectionResetError:
            note("p", local, peer, "-")
    else:
        if wish == b"r":
            reset_on_close(sock)
        note("p", local, peer)
    sock.close()


def accept_all(listener):
    local = port_of(listener)
    while True:
        sock, address = listener.accept()
        if sock.recv(1, socket.MSG_PEEK) == b"q":
            listener.close()
            serve(sock, address[1], local)
            return
        serve(sock, address[1], local)


def accept_and_fork(listener):
    """A process for each connection."""
    local = port_of(listener)
    while True:
        sock, address = listener.accept()
        wish = sock.recv(1, socket.MSG_PEEK)
        if wish == b"q":
            serve(sock, address[1], local)
            break
        ready, go = os.pipe()

        def child():
            # Until the parent has closed its copy.
            os.read(ready, 1)
            serve(sock, address[1], local)

        pid = fork(child)
        sock.close()
        os.write(go, b".")
        os.close(ready)
        os.close(go)
        os.waitpid(pid, 0)


def accept_and_pass(listener):
    """Another process gets each connection."""
    local = port_of(listener)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def worker():
        ours.close()
        listener.close()
        while True:
            text, fds, _, _ = socket.recv_fds(theirs, 16, 1)
            if not fds:
                return
            sock = socket.socket(fileno=fds[0])
            theirs.send(b".")
            theirs.recv(1)
            serve(sock, int(text), local)

    pid = fork(worker)
    theirs.close()
    while True:
        sock, address = listener.accept()
        if sock.recv(1, socket.MSG_PEEK) == b"q":
            serve(sock, address[1], local)
            break
        socket.send_fds(ours, [str(address[1]).encode()], [sock.fileno()])
        ours.recv(1)
        sock.close()
        ours.send(b".")
    ours.close()
    os.waitpid(pid, 0)


def talk(sock, wish):
    sock.sendall(wish)
    if wish in (b"c", b"R"):
        sock.recv(1)
        if wish == b"R":
            reset_on_close(sock)
    else:
        try:
            while sock.recv(4096):
                pass
        except ConnectionResetError:
            pass
    sock.close()


def connect(to):
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.connect(to)
    note("a", port_of(sock), to[1])
    return sock


def call(to, count):
    for number in range(count):
        wish = bytes(WISHES[number % 4 : number % 4 + 1])
        talk(connect(to), wish)


def call_and_fork(to, count):
    """A child closes what its parent opened, or ends the connection by its own end."""
    for number in range(count):
        sock = connect(to)
        pid = fork(lambda: talk(sock, b"sc"[number % 2 :][:1]))
        sock.close()
        os.waitpid(pid, 0)


def call_and_pass(to, count):
    """Another process talks and closes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def taker():
        ours.close()
        while True:
            _, fds, _, _ = socket.recv_fds(theirs, 16, 1)
            if not fds:
                return
            talk(socket.socket(fileno=fds[0]), b"c")

    pid = fork(taker)
    theirs.close()
    for _ in range(count):
        sock = connect(to)
        socket.send_fds(ours, [b"."], [sock.fileno()])
        sock.close()
    ours.close()
    os.waitpid(pid, 0)


def fail(count):
    """Attempts that come to nothing: refused, without a way, given up."""
    for number in range(count):
        sock = socket.socket()
        if number % 3 == 0:
            sock.bind(("127.0.0.1", 0))
            local = port_of(sock)
            assert sock.connect_ex(("127.0.0.1", CLOSED_PORT)) != 0
            note("a", local, CLOSED_PORT)
        elif number % 3 == 1:
            assert sock.connect_ex(NO_ROUTE) != 0
            note("a", 0, NO_ROUTE[1])
        else:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", CLOSED_PORT))
            note("a", port_of(sock), CLOSED_PORT)
        sock.close()


def main():
    plain, prefork, forking, passing = listen(), listen(), listen(), listen()
    dual = listen("::")
    shared = [listen(reuse=True)]
    shared += [listen(reuse=True, port=port_of(shared[0])) for _ in range(2)]
    listeners = [plain, prefork, forking, passing, dual, *shared]
    servers = [(accept_all, plain), (accept_and_fork, forking), (accept_and_pass, passing), (accept_all, dual)]
    servers += [(accept_all, prefork)] * 3 + [(accept_all, listener) for listener in shared]

    def server(accept, own):
        for listener in listeners:
            if listener is not own:
                listener.close()
        accept(own)

    for accept, listener in servers:
        fork(lambda: server(accept, listener))
    ports = {listener: port_of(listener) for listener in listeners}
    at = {listener: ("127.0.0.1", port) for listener, port in ports.items()}
    for listener in listeners:
        listener.close()

    def share(percent):
        return TOTAL * percent // 100

    clients = [
        lambda: call(at[plain], share(15)),
        lambda: call(at[prefork], share(15)),
        lambda: call(at[shared[0]], share(15)),
        lambda: call(at[dual], share(5)),
        lambda: call(("::1", ports[dual]), share(5)),
        lambda: call(at[passing], share(10)),
        lambda: call(at[forking], share(5)),
        lambda: call_and_fork(at[plain], share(5)),
        lambda: call_and_pass(at[prefork], share(10)),
        lambda: fail(share(15)),
    ]
    callers = [fork(client) for client in clients]
    for pid in callers:
        os.waitpid(pid, 0)
    # One for each server, which ends then. Whoever shares a port closes its listener first, or the next one could wait there.
    for _, listener in servers:
        talk(connect(at[listener]), b"q")
    for pid in CHILDREN:
        if pid not in callers:
            os.waitpid(pid, 0)
    write_down()


main()
